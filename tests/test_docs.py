"""The documentation says what the program does: its commands run, its settings exist, its links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from typer.testing import CliRunner

from modules import module_at
from tapeline import errors
from tapeline.app.connections import connection_plans
from tapeline.cli import app
from tapeline.config import (
    CodecsConfig,
    Config,
    DashboardConfig,
    JobConfig,
    MonitorConfig,
    NotifyConfig,
    ProviderConfig,
    SlaConfig,
    StoreConfig,
    StreamConfig,
    load,
)
from tapeline.ledger import INTERVALS
from tapeline.orchestration.catalog import jobs_of
from tapeline.providers.registry import ARCHIVES, CHANNELS, PROVIDERS
from tapeline.reading.sql import connect
from tapeline.simulators import FAULTS
from tapeline.stores.lake.checking import Problem

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
    shown = help_of(*words[: 2 if words[1:] and words[0] in ("alerts", "jobs", "lake", "rejected") else 1])
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
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for _, text in found:
        path = tmp_path / "tapeline.toml"
        path.write_text(re.sub(r'(\w+_file) = "[^"]+"', rf'\1 = "{secret}"', text))
        config = load(path, {})
        assert bool(connection_plans(config, KEYS)) == any(some.live for some in config.providers)
        jobs_of(config)


def sections(page: str) -> dict[str, str]:
    """The sections of a page of the reference, by their headings."""
    text = (ROOT / "docs" / "reference" / page).read_text()
    return {name.replace("`", ""): body for name, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)}


def test_the_page_of_settings_explains_every_setting_and_no_other() -> None:
    blocks: dict[str, Any] = {"At the top": Config, "[stream]": StreamConfig, "[stream.codecs]": CodecsConfig}
    blocks |= {
        "[[providers]]": ProviderConfig,
        "[[stores]]": StoreConfig,
        "[[jobs]]": JobConfig,
        "[[sla]]": SlaConfig,
        "[[notify]]": NotifyConfig,
        "[monitor]": MonitorConfig,
        "[dashboard]": DashboardConfig,
    }
    for name, provider in PROVIDERS.items():
        if msgspec.structs.fields(provider.options):
            blocks[f"options of {name}"] = provider.options
    found = sections("settings.md")
    assert {name for name in found if name.startswith(("[", "options of"))} == set(blocks) - {"At the top"}
    for name, struct in blocks.items():
        rows = [line.split(" | ") for line in found[name].splitlines() if line.startswith("| `")]
        assert all(row[-1].strip(" |") for row in rows), name
        wanted = {field.encode_name for field in msgspec.structs.fields(struct)}
        own_blocks = {"At the top": {"stream", "stores", "monitor", "dashboard"}, "[stream]": {"codecs"}}.get(name, set())
        assert [row[0].strip("| `") for row in rows] == [key for key in struct.__struct_encode_fields__ if key not in own_blocks]
        assert own_blocks <= wanted


def test_the_page_of_settings_names_every_variable_that_holds_a_secret() -> None:
    secrets = set(re.findall(r"`([A-Z_]+)`", sections("settings.md")["Secrets"]))
    wanted = {name for provider in PROVIDERS.values() for names in provider.secrets.values() for name in names}
    wanted |= {name for files in ARCHIVES.values() for name in files.secrets if name}
    assert secrets == wanted | {"TAPELINE_STREAM_PASSWORD", "TAPELINE_STORE_PASSWORD"}


def test_the_page_of_commands_explains_every_option() -> None:
    found = sections("commands.md")
    assert len(found) > 25
    for name, body in found.items():
        rows = [line.split(" | ") for line in body.splitlines() if line.startswith("| `")]
        assert all(len(row) == 3 and row[1].strip() for row in rows), name


def test_the_page_of_exit_statuses_holds_every_error() -> None:
    page = (ROOT / "docs" / "reference" / "exit-statuses.md").read_text()
    table = page[: page.index("## ")]
    told = {int(status) for status in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TapelineError)]
    assert {kind.exit_status for kind in kinds} <= told


def test_every_status_in_the_help_of_a_command_is_on_the_page_of_exit_statuses() -> None:
    page = (ROOT / "docs" / "reference" / "exit-statuses.md").read_text()
    table, rest = page.split("## Status 1\n")
    ones, busy = rest.split("## Status 75\n")
    helps = {name.removeprefix("tapeline "): body for name, body in sections("commands.md").items()}
    said = {name: set(re.findall(r"\b[Ss]tatus (?:is )?(\d+)(?: or (\d+))?", body)) for name, body in helps.items()}
    of = {name: {int(one) for pair in pairs for one in pair if one} for name, pairs in said.items()}
    assert set().union(*of.values()) <= {int(status) for status in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert set(re.findall(r"\[`([a-z ]+)`\]", ones)) == {name for name, statuses in of.items() if 1 in statuses}
    named = set(re.findall(r"`([a-z ]+)`", "".join(line.split(" | ")[0] for line in busy.splitlines())))
    assert {name for name, statuses in of.items() if 75 in statuses} <= named <= set(helps)


def test_the_page_of_views_names_every_view(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "views.md").read_text()
    db = connect(tmp_path, INTERVALS.empty_table)
    views = {str(name) for (name,) in db.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == views - {"ledger"}
    for view in ("amendments", "coverage"):
        (cell,) = re.findall(rf"^\| `{view}` \|(.*)$", page, re.MULTILINE)
        columns = [str(name) for (name,) in db.execute(f"SELECT column_name FROM (DESCRIBE {view})").fetchall()]
        assert re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", cell))) == columns


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
    db = connect(tmp_path, INTERVALS.empty_table)
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


def groups_of_messages() -> dict[str, list[str]]:
    """The messages of docs/operations.md by the heading of their group."""
    page = (ROOT / "docs" / "operations.md").read_text()
    groups = {}
    for heading, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        _head, _rule, *rows = [line for line in body.splitlines() if line.startswith("|")]
        assert all(re.findall(r"`([^`]+)`", row.split(" | ")[0]) for row in rows), heading
        groups[heading] = [message for row in rows for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    return groups


def test_the_page_of_messages_begins_with_a_link_to_each_group_and_has_each_message_once() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    groups = groups_of_messages()
    assert re.findall(r"^- \[(.+)\]\(#(.+)\)$", page, re.MULTILINE) == [(heading, slug(heading)) for heading in groups]
    messages = [message for group in groups.values() for message in group if message != "status"]
    assert len(messages) == len(set(messages))
    assert set(groups["Findings of `tapeline lake check`"]) == set(get_args(Problem))


def test_the_messages_in_the_tables_are_what_the_program_says() -> None:
    texts = []
    for path in sorted((ROOT / "src" / "tapeline").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values))
    messages = [message for group in groups_of_messages().values() for message in group]
    assert len(messages) > 60
    assert set(_COMPOSED) <= set(messages)
    for message in messages:
        parts = _COMPOSED.get(message) or [part.strip() for part in re.split(r"\.\.\.|\b[NM]\b", message) if part.strip(" :,;")]
        unknown = [part for part in parts if not any(part in text for text in texts)]
        assert not unknown, f"{message!r} is said nowhere: {unknown}"


def test_the_reference_pages_are_what_the_code_says() -> None:
    generate = module_at(ROOT / "docs" / "generate.py")
    for page, text in generate.PAGES.items():
        assert (ROOT / "docs" / "reference" / page).read_text() == text(), f"{page}: run `make docs`"
    assert set(generate.MORE) <= {*sections("commands.md"), *sections("settings.md")}


def test_every_page_is_in_the_site_s_contents() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def pages_of(kind: str) -> list[Path]:
    """The pages of one kind in the site's contents, without the decisions."""
    contents = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    (listed,) = re.findall(rf"^  - {kind}:\n((?:      .*\n)+)", contents, re.MULTILINE)
    return [ROOT / "docs" / page for page in re.findall(r"^      - [^\n]*: ([\w/-]+\.md)$", listed, re.MULTILINE)]


def test_a_how_to_has_something_to_do_and_an_explanation_has_not() -> None:
    for page in [*pages_of("Tutorial"), *pages_of("How to")]:
        assert re.search(r"^ *```(sh|bash|toml|python)|^1\. ", page.read_text(), re.MULTILINE), page
    for page in pages_of("Explanation"):
        assert not re.search(r"^ *```(sh|bash|toml|python)", page.read_text(), re.MULTILINE), page
    assert len(pages_of("Explanation")) > 5
    assert len(pages_of("How to")) > 10


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
