"""The documentation says what the program does: its commands run, its settings exist, its links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from tapeline import errors
from tapeline.app.connections import connection_plans
from tapeline.cli import app
from tapeline.config import Config, ProviderConfig, StoreConfig, StreamConfig, load
from tapeline.ledger import INTERVALS
from tapeline.orchestration.catalog import jobs_of
from tapeline.providers.registry import CHANNELS
from tapeline.reading.sql import connect
from tapeline.simulators import FAULTS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KEYS = {"TAPELINE_POLYGON_KEY": "k", "TAPELINE_ALPACA_KEY": "k", "TAPELINE_ALPACA_SECRET": "s"}


def blocks(language: str) -> list[tuple[Path, str]]:
    return [(page, text) for page in PAGES for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def tapeline_commands() -> list[list[str]]:
    found = []
    for _, text in blocks("sh"):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].endswith("tapeline"):
                found.append(words[1:])
    return found


def help_of(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("words", tapeline_commands(), ids=" ".join)
def test_every_command_in_the_docs_exists_with_its_options(words: list[str]) -> None:
    shown = help_of(*words[: 2 if words[0] in ("jobs", "lake", "rejected") else 1])
    for option in (word for word in words[1:] if word.startswith("-")):
        assert option in shown


def test_every_make_target_in_the_docs_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^)make (\w+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test", "bench", "help"} <= named <= targets
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(target in listed for target in ("install", "demo", "test", "lint", "bench", "prove"))


def test_the_configurations_in_the_docs_are_right(tmp_path: Path) -> None:
    found = blocks("toml")
    assert found
    for _, text in found:
        path = tmp_path / "tapeline.toml"
        path.write_text(text)
        config = load(path, {})
        assert bool(connection_plans(config, KEYS)) == any(some.live for some in config.providers)
        jobs_of(config)


def test_the_table_of_settings_names_every_setting_and_no_other() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    table = page[page.index("## Settings") : page.index("Secrets:")]
    named = set()
    for cell in re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", cell)
        prefix = names[0].rpartition(".")[0]
        named |= {name if "." in name or not prefix else f"{prefix}.{name}" for name in names}
    lists: dict[str, Any] = {"stream": StreamConfig, "providers[]": ProviderConfig, "stores[]": StoreConfig}
    wanted = {f"{name}.{field.encode_name}" for name, struct in lists.items() for field in msgspec.structs.fields(struct)}
    wanted |= {field.encode_name for field in msgspec.structs.fields(Config)} - {"stream", "providers", "stores"}
    assert named == wanted


def test_the_table_of_exit_statuses_holds_every_error() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    told = {int(status) for status in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TapelineError)]
    assert {kind.exit_status for kind in kinds} <= told


def test_the_readme_names_every_provider_feed_and_channel() -> None:
    page = (ROOT / "README.md").read_text()
    for provider, feeds in CHANNELS.items():
        assert provider in page.lower()
        for feed, channels in feeds.items():
            assert f"`{feed}`" in page
            for channel in channels:
                assert f"`{channel}`" in page or channel.startswith("kline_")


def test_the_page_of_records_names_every_column_and_every_fault_has_help() -> None:
    page = (ROOT / "docs" / "records.md").read_text()
    for name in (
        "ts_ns",
        "bid",
        "ask",
        "last",
        "volume",
        "side",
        "sequence",
        "trade_id",
        "conditions",
        "exchange",
        "latency_ns",
        "raw_index",
    ):
        assert name in page
    assert all(FAULTS.values())


def test_the_links_in_the_docs_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_queries_in_the_docs_run_on_an_empty_lake(tmp_path: Path) -> None:
    queries = [word for words in tapeline_commands() for word in words if word.upper().startswith("SELECT")]
    queries += re.findall(r'tapeline sql "(SELECT [^.][^"]+)"', "".join(page.read_text() for page in PAGES))
    assert queries
    db = connect(tmp_path, INTERVALS.empty_table())
    for query in queries:
        db.execute(query).fetchall()


def test_the_command_line_starts_quickly_and_speaks_of_itself() -> None:
    shown = subprocess.run([sys.executable, "-m", "tapeline", "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("run", "ingest", "normalize", "store", "demo", "simulate", "sql", "tail", "status", "check"):
        assert command in shown


def test_the_changelog_has_a_place_for_what_is_next_and_the_version_is_one() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


#: Messages that are made of more than one text of the source: their parts.
_COMPOSED = {
    "... stopped: polygon says auth_failed": ["stopped:", "polygon says", "auth_failed"],
    "polygon says max_connections": ["polygon says", "max_connections"],
    "alpaca says 406: ...": ["alpaca says"],
    "not confirmed by ...: T.ABC": ["not confirmed by"],
    "stale: no data for N s on an open socket": ["stale: no", "on an open socket"],
    "... answered HTTP 403: ...": ["answered HTTP"],
    "ingest to normalize: N raw records written ≠ ...": ["ingest to normalize", "raw records written"],
    "normalize to lake: N ticks written ≠ ...": ["written"],
    "Another process holds the one connection of ...": ["Another process holds", "the one connection of"],
    "clock: ...'s times are N s ahead of this machine's": ["'s times are", "this machine's"],
    "... was not compacted": ["was not", "compacted"],
    "lake: it ended with status N": ["it ended with status"],
    "was killed by ...": ["was killed by"],
    "tapeline lake tidy already runs here: ...": ["already runs here"],
    "... was not pruned": ["was not", "pruned"],
    "normalize was killed by SIGKILL. Tapeline restarts it": ["was killed by", "Tapeline restarts it in"],
    "... ended with status N. Tapeline restarts it": ["ended with status", "Tapeline restarts it in"],
    "silent for N s": ["silent for"],
}


def test_the_messages_in_the_table_are_what_the_program_says() -> None:
    texts = []
    for path in sorted((ROOT / "src" / "tapeline").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values))
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page[page.index("| you see |") : page.index("`tapeline status` shows the equation")]
    cells = [line.split(" | ")[0] for line in table.splitlines()[2:] if line.startswith("|")]
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 60
    assert set(_COMPOSED) <= set(messages)
    for message in messages:
        parts = _COMPOSED.get(message) or [part.strip() for part in re.split(r"\.\.\.|\b[NM]\b", message) if part.strip(" :,;")]
        unknown = [part for part in parts if not any(part in text for text in texts)]
        assert not unknown, f"{message!r} is said nowhere: {unknown}"


def test_the_reference_pages_are_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for page, text in generate.PAGES.items():
        assert (ROOT / "docs" / "reference" / page).read_text() == text(), f"{page}: run `make docs`"


def test_every_page_is_in_the_site_s_contents() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def slug(heading: str) -> str:
    """The anchor of a heading, as the site makes it."""
    plain = unicodedata.normalize("NFKD", re.sub(r"[`*]|\\", "", heading)).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def test_every_link_within_the_documentation_leads_to_a_page_and_a_heading() -> None:
    pages = {page: page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
    prose = {page: re.sub(r"```.*?```", "", text, flags=re.DOTALL) for page, text in pages.items()}
    anchors = {page: {slug(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")} for page, text in prose.items()}
    links = [(page, link) for page, text in prose.items() for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert len(links) > 100
    for page, link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors[target], f"{page.name}: {link}"
