"""The house's walls: imports run one way, each concern has one module, and every module says what it is."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

import tapeline

ROOT = Path(tapeline.__file__).parent
MODULES = {
    ".".join(("tapeline", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

#: The rooms from the bottom up: a module imports from its own room and from those above it in this list.
LAYERS: Final = [
    *("errors", "records", "local", "secret", "times", "calendars", "retry", "telemetry"),
    *("providers", "config", "net", "streams", "stores", "ledger", "stages", "jobs"),
    *("monitor", "app", "orchestration", "reading", "web", "simulators", "demo", "cli", "__main__"),
]
#: Streams, stores and ledgers of one kind: only `app` names them (and reading opens the lake's own files, past any store).
CONCRETE: Final = {
    "tapeline.streams.embedded",
    "tapeline.streams.kafka",
    "tapeline.streams.redis",
    "tapeline.stores.lake",
    "tapeline.stores.postgres",
    "tapeline.ledger.sqlite",
    "tapeline.ledger.postgres",
    "tapeline.orchestration.postgres",
}
WHO_KNOWS_CONCRETE: Final = {"tapeline.app", "tapeline.orchestration.opening", "tapeline.cli.lake", "tapeline.reading"}
#: Library to who may import it, simulators aside; of a package, all its modules.
OWNERS: Final = {
    "picows": {"tapeline.net.listener", "tapeline.net.websocket"},
    "urllib": {"tapeline.net.http"},
    "urllib3": {"tapeline.net.http"},
    "http": set[str](),
    "pyarrow.fs": {"tapeline.net.s3"},
    "socket": {"tapeline.web.address"},
    "starlette": {"tapeline.web"},
    "uvicorn": {"tapeline.web.server"},
    "ssl": {"tapeline.net"},
    "sqlite3": {
        "tapeline.local.sqlite",
        "tapeline.streams.embedded",
        "tapeline.stages.ingest.spool",
        "tapeline.ledger.sqlite",
        "tapeline.jobs.backfill.page_log",
        "tapeline.orchestration.database",
        "tapeline.web.past",
    },
    "confluent_kafka": {"tapeline.streams.kafka"},
    "redis": {"tapeline.streams.redis"},
    "deltalake": {"tapeline.stores.lake", "tapeline.reading.sql"},
    "duckdb": {"tapeline.stores.lake", "tapeline.reading", "tapeline.demo.verify", "tapeline.cli"},
    "adbc_driver_manager": {"tapeline.stores.postgres", "tapeline.ledger.postgres", "tapeline.orchestration.postgres"},
    "adbc_driver_postgresql": {"tapeline.stores.postgres.database"},
    "typer": {"tapeline.cli"},
    "exchange_calendars": {"tapeline.calendars"},
}
#: Takes addresses apart and opens none.
ANYBODY_S = {"urllib.parse"}
PURE = ("asyncio", "socket", "http", "picows", "urllib", "ssl", "threading", "time", "random", "os", "logging")
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers", "base", "common", "misc", "tools", "core", "lib"}


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, anywhere in it; what only type checkers see counts too."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            modules = [f"{node.module}.{name.name}" for name in node.names if f"{node.module}.{name.name}" in MODULES]
            yield from modules if len(modules) == len(node.names) else [str(node.module), *modules]


def inside(module: str, packages: set[str]) -> bool:
    """Whether a module is one of these, or part of one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


PIPELINE = [module for module in MODULES if room(module) not in ("", "simulators")]
SIMULATORS = [module for module in MODULES if room(module) == "simulators"]


def broken(modules: Iterable[str], forbidden: Callable[[str, str], bool]) -> dict[str, list[str]]:
    """Which modules import what they may not: `forbidden(module, imported)`."""
    found = {module: sorted({name for name in imports(MODULES[module]) if forbidden(module, name)}) for module in modules}
    return {module: names for module, names in found.items() if names}


def test_imports_run_one_way() -> None:
    assert sorted({room(module) for module in MODULES} - {"", *LAYERS}) == [], "give it a place in the layers"

    def upward(module: str, name: str) -> bool:
        return name in MODULES and bool(room(name)) and LAYERS.index(room(name)) > LAYERS.index(room(module))

    assert broken(PIPELINE, upward) == {}


def test_no_module_imports_in_a_circle() -> None:
    graph = {
        module: {name for name in imports(path) if name in MODULES and name not in (module, "tapeline")} for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_pipeline_does_not_know_the_simulators_nor_they_the_pipeline() -> None:
    modules = [module for module in PIPELINE if room(module) not in ("demo", "cli")]
    assert broken(modules, lambda _, name: room(name) == "simulators") == {}
    assert broken(SIMULATORS, lambda _, name: name in MODULES and room(name) != "simulators") == {}


def test_providers_are_pure() -> None:
    modules = [module for module in PIPELINE if room(module) in ("providers", "records", "errors")]
    assert broken(modules, lambda _, name: name.split(".")[0] in PURE and name not in ANYBODY_S) == {}


def test_a_library_is_known_to_its_owner_alone() -> None:
    def not_its_owner(module: str, name: str) -> bool:
        libraries = [library for library in OWNERS if inside(name, {library}) and name not in ANYBODY_S]
        return any(not inside(module, OWNERS[library]) for library in libraries)

    assert broken(PIPELINE, not_its_owner) == {}


def test_only_app_names_streams_stores_and_ledgers_of_one_kind() -> None:
    outside = [module for module in PIPELINE if not inside(module, CONCRETE | WHO_KNOWS_CONCRETE)]
    assert broken(outside, lambda _, name: inside(name, CONCRETE)) == {}


def test_one_provider_knows_nothing_of_another() -> None:
    names = {f"tapeline.providers.{name}" for name in ("alpaca", "binance", "polygon")}
    modules = [module for module in MODULES if inside(module, names)]
    assert len(modules) > len(names)
    assert broken(modules, lambda module, name: any(inside(name, {other}) and not inside(module, {other}) for other in names)) == {}


def test_a_module_has_a_name_that_says_something_and_a_first_line_that_says_what_it_is() -> None:
    assert [module for module in MODULES if module.rsplit(".", 1)[-1] in EMPTY_NAMES] == []
    first = {module: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for module, path in MODULES.items()}
    assert [module for module, line in first.items() if len(line) <= 15] == []


def test_files_and_functions_stay_small_enough_to_be_read_at_once() -> None:
    assert {module: lines for module, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 400} == {}
    long = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 50:
                long[f"{module}.{node.name}"] = lines
    assert long == {}


#: Here a parameter is an option of a command, or an argument that a user types by its name.
TYPED_BY_USERS: Final = ("tapeline.cli.", "tapeline.reading.api")


def test_a_function_has_at_most_seven_parameters() -> None:
    many = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not module.startswith(TYPED_BY_USERS):
                names = [some.arg for some in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len(set(names) - {"self", "cls"}) > 7:
                    many[f"{module}.{node.name}"] = names
    assert many == {}, "a dataclass says what belongs together"


def test_what_is_public_says_what_it_does() -> None:
    trees = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    # A method that a protocol or a class above has described needs no words of its own.
    described = {
        member.name
        for node in classes
        for member in node.body
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(member)
    }
    silent = [f"{module}.{name}" for module, tree in trees.items() for name in _silent(tree.body, described)]
    assert silent == []


def _silent(body: list[ast.stmt], described: set[str], inside: str = "") -> Iterator[str]:
    """The public functions, classes and methods without a docstring."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node) and not (inside and node.name in described):
                yield f"{inside}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from _silent(node.body, described, f"{inside}{node.name}.")


def test_nobody_but_its_own_folder_names_a_provider() -> None:
    names = ("alpaca", "binance", "massive", "polygon")
    theirs = {f"tapeline.providers.{name}" for name in names}
    # The simulators and the demo are made of the three that are stood in for.
    outside = [module for module in PIPELINE if not inside(module, theirs) and room(module) != "demo"]
    found = {}
    for module in outside:
        tree = ast.parse(MODULES[module].read_text())
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings may give examples
        named = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts and node.value.lower() in names
        ]
        if named:
            found[module] = named
    assert found == {}


def test_no_command_loads_pandas_which_pyarrow_would_wherever_it_is_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tapeline", "sql", "SELECT 1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "TAPELINE_DATA_DIR": str(tmp_path)})
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pyarrow.lib" in loaded
    assert not any(name.startswith("pandas.") for name in loaded)
