"""The house's walls: imports run one way, each concern has one module, and every module says what it is."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import tapeline

ROOT = Path(tapeline.__file__).parent
MODULES = {
    ".".join(("tapeline", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

#: From the bottom up: a module imports from its own layer's package and from the layers above it in this list.
LAYERS: list[set[str]] = [
    {"records"},
    {"errors"},
    {"console"},
    {"secret"},
    {"locks", "config", "times", "quota", "durable", "machine", "backoff", "beside", "clock", "shortening"},
    {"providers"},
    {"completeness"},
    {"folding"},
    {"streams", "stores", "net", "bucket", "spool"},
    {"rest"},
    {"monitor", "delivery", "names"},
    {"flow", "query", "output", "asof", "pairs", "upkeep"},
    {"taken"},
    {"stages", "ingest", "supervisor", "truth", "rejects", "audit", "replaying"},
    {"jobs"},
    {"wiring"},
    {"checkup", "demo", "run", "reading"},
    {"cli"},
    {"__main__"},
]
#: Only the wiring makes these (and query opens the lake's own files, past any store).
CONCRETE = {
    "tapeline.streams.embedded",
    "tapeline.streams.kafka",
    "tapeline.streams.redis",
    "tapeline.stores.lake",
    "tapeline.stores.lake_checking",
    "tapeline.stores.lake_due",
    "tapeline.stores.lake_files",
    "tapeline.stores.lake_reading",
    "tapeline.stores.lake_renaming",
    "tapeline.stores.lake_repairing",
    "tapeline.stores.lake_retention",
    "tapeline.stores.lake_sealing",
    "tapeline.stores.lake_tidying",
    "tapeline.stores.ledger_file",
    "tapeline.stores.postgres",
    "tapeline.stores.postgres_ledger",
    "tapeline.stores.postgres_renaming",
}
WHO_KNOWS_CONCRETE = {"tapeline.wiring", "tapeline.cli", "tapeline.demo", "tapeline.query", "tapeline.reading"}
#: Library to who may import it, venues aside; of a package, all its modules.
OWNERS = {
    "picows": {"tapeline.net"},
    "urllib": {"tapeline.rest"},
    "http": {"tapeline.rest"},
    "pyarrow.fs": {"tapeline.bucket"},
    "socket": set[str](),
    "ssl": {"tapeline.net", "tapeline.rest"},
    "sqlite3": {"tapeline.streams.embedded", "tapeline.spool", "tapeline.stores.ledger_file", "tapeline.jobs.page_log"},
    "confluent_kafka": {"tapeline.streams.kafka"},
    "redis": {"tapeline.streams.redis"},
    "deltalake": {
        "tapeline.stores.lake",
        "tapeline.stores.lake_files",
        "tapeline.stores.lake_reading",
        "tapeline.stores.lake_renaming",
        "tapeline.stores.lake_repairing",
        "tapeline.stores.lake_retention",
        "tapeline.stores.lake_sealing",
        "tapeline.query",
    },
    "duckdb": {
        "tapeline.query",
        "tapeline.reading",
        "tapeline.stores.lake_checking",
        "tapeline.stores.lake_reading",
        "tapeline.stores.lake_renaming",
        "tapeline.stores.lake_repairing",
        "tapeline.stores.lake_sealing",
        "tapeline.truth",
        "tapeline.cli",
    },
    "adbc_driver_manager": {
        "tapeline.stores.database",
        "tapeline.stores.postgres",
        "tapeline.stores.postgres_ledger",
        "tapeline.stores.postgres_reading",
        "tapeline.stores.postgres_renaming",
        "tapeline.stores.schema",
    },
    "adbc_driver_postgresql": {"tapeline.stores.database"},
    "typer": {"tapeline.cli"},
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
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names if f"{node.module}.{name.name}" in MODULES)


def inside(module: str, packages: set[str]) -> bool:
    """Whether a module is one of these, or part of one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer(module: str) -> int:
    part = module.split(".")[1] if "." in module else ""
    return next((at for at, names in enumerate(LAYERS) if part in names), -1)


PIPELINE = [module for module in MODULES if module != "tapeline" and not module.startswith("tapeline.venues")]
VENUES = [module for module in MODULES if module.startswith("tapeline.venues")]


def broken(modules: Iterable[str], forbidden: Callable[[str, str], bool]) -> dict[str, list[str]]:
    """Which modules import what they may not: `forbidden(module, imported)`."""
    found = {module: sorted({name for name in imports(MODULES[module]) if forbidden(module, name)}) for module in modules}
    return {module: names for module, names in found.items() if names}


def test_a_module_imports_only_from_the_layers_below_it() -> None:
    assert [module for module in PIPELINE if layer(module) < 0] == [], "give it a place in the layers"

    def upward(module: str, name: str) -> bool:
        foreign = name.startswith("tapeline.") and name.split(".")[1] not in (module.split(".")[1], "venues")
        return foreign and layer(name) >= layer(module)

    assert broken(PIPELINE, upward) == {}


def test_the_pipeline_does_not_know_the_venues() -> None:
    modules = [module for module in PIPELINE if module not in ("tapeline.cli.trying", "tapeline.demo")]
    assert broken(modules, lambda _, name: name.startswith("tapeline.venues")) == {}


def test_the_venues_know_nothing_of_the_pipeline() -> None:
    assert broken(VENUES, lambda _, name: name.startswith("tapeline.") and not name.startswith("tapeline.venues")) == {}


def test_providers_are_pure() -> None:
    modules = [module for module in PIPELINE if module.startswith(("tapeline.providers", "tapeline.records", "tapeline.errors"))]
    assert broken(modules, lambda _, name: name.split(".")[0] in PURE and name not in ANYBODY_S) == {}


def test_a_library_is_known_to_its_owner_alone() -> None:
    def not_its_owner(module: str, name: str) -> bool:
        libraries = [library for library in OWNERS if inside(name, {library}) and name not in ANYBODY_S]
        return any(not inside(module, OWNERS[library]) for library in libraries)

    assert broken(PIPELINE, not_its_owner) == {}


def test_only_the_wiring_knows_concrete_classes() -> None:
    outside = [module for module in PIPELINE if not inside(module, CONCRETE | WHO_KNOWS_CONCRETE)]
    assert broken(outside, lambda _, name: inside(name, CONCRETE)) == {}


def test_one_provider_knows_nothing_of_another() -> None:
    names = {f"tapeline.providers.{name}" for name in ("alpaca", "binance", "polygon")}
    assert broken(names, lambda module, name: name in names - {module}) == {}


def test_a_module_has_a_name_that_says_something_and_a_first_line_that_says_what_it_is() -> None:
    assert [module for module in MODULES if module.rsplit(".", 1)[-1] in EMPTY_NAMES] == []
    first = {module: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for module, path in MODULES.items()}
    assert [module for module, line in first.items() if len(line) <= 15] == []


def test_no_command_loads_pandas_which_pyarrow_would_wherever_it_is_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tapeline", "sql", "SELECT 1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "TAPELINE_DATA_DIR": str(tmp_path)})
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pyarrow.lib" in loaded
    assert not any(name.startswith("pandas.") for name in loaded)
