"""What earlier versions left on disk is read as it was, and the pipeline goes on from there: one archive for each version."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from processes import Home, block, key, ledger
from services import postgres

import formats
from tapeline.demo.verify import compare
from tapeline.ledger.answers import answer
from tapeline.ledger.intervals import intervals
from tapeline.ledger.sqlite import LedgerFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import SimulatorProcess, Spawner
    from services.postgres import PostgresServer
    from services.redis import RedisServer

VERSIONS = sorted(path.name.removesuffix(".tar.xz") for path in formats.FORMATS.glob("*.tar.xz"))
pytestmark = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def left(version: str, tmp_path: Path) -> Path:
    """A folder with what a version left."""
    folder = tmp_path / "left"
    with tarfile.open(formats.FORMATS / f"{version}.tar.xz") as file:
        file.extractall(folder, filter="data")
    return folder


def said(folder: Path) -> dict[str, Any]:
    """What the version said of it."""
    found: dict[str, Any] = json.loads((folder / "said.json").read_text())
    return found


def test_a_lake_and_its_ledger_its_stream_and_its_jobs_are_read_and_gone_on_with(
    left: Path, spawn: Spawner, simulator: Callable[..., SimulatorProcess]
) -> None:
    home, market = Home(left / "lake", spawn), simulator("binance", "--rate", "200", "--limit", "100", "--symbols", "SOLUSDT")
    home.configure(formats.SETTINGS + block("binance", market.url, ["SOLUSDT"], ["trade", "bookTicker"]), ledger=True)
    before = said(left)
    assert formats.of_the_lake(home) == before["lake"]
    assert formats.of_the_stream(home) == before["stream"]
    assert formats.of_the_dashboard(home) == before["dashboard"]
    run = home.start("run", "--until-idle", "1")
    assert run.ends() == 0, run.said
    market.stop()
    after = formats.of_the_lake(home)
    for name, rows in before["lake"].items():
        assert [row for row in rows if row not in after[name]] == [], f"{name}: lost or changed"
    assert after["ticks"] == before["lake"]["ticks"]
    found = compare(home.lake, [left / "lake.jsonl", market.journal])
    assert (found.missing, found.extra) == (before["missing"], [])
    assert all(entry["balanced"] for entry in home.status()["equations"])


def test_a_database_is_read_and_gone_on_with(
    left: Path, spawn: Spawner, own_postgres: Callable[..., PostgresServer], simulator: Callable[..., SimulatorProcess]
) -> None:
    server, market = own_postgres(), simulator("binance", "--rate", "200", "--limit", "100", "--symbols", "SOLUSDT")
    restore = [str(postgres.installed().where / "psql"), "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", server.url]
    done = subprocess.run([*restore, "--file", str(left / "postgres.sql")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before = said(left)["postgres"]
    assert formats.of_the_database(server) == before
    home = Home(left / "postgres", spawn)
    home.config.write_text(formats.on_postgres(home, server.url, market.url, ("SOLUSDT",)))
    run = home.start("run", "--until-idle", "1")
    assert run.ends() == 0, run.said
    sent = {number for channel, _, number in map(key, events(market)) if channel == "trade"}
    assert formats.of_the_database(server) == before
    kept = server.ask("SELECT sequence FROM ticks WHERE symbol = 'SOL/USDT' AND kind = 'trade'").splitlines()
    assert sorted(map(int, kept)) == sorted(sent)
    assert all(entry["balanced"] for entry in home.status()["equations"])


def events(market: SimulatorProcess) -> list[dict[str, Any]]:
    """End a simulator. The trades and quotes that it sent."""
    market.stop()
    lines = [json.loads(line) for line in market.journal.read_text().splitlines()]
    return [line["event"] for line in lines if line["channel"] in ("trade", "bookTicker")]


def test_two_lines_still_prove_what_they_proved(left: Path, spawn: Spawner, simulator: Callable[..., SimulatorProcess]) -> None:
    home, before = Home(left / "lines", spawn), said(left)
    facts, _ = LedgerFile(home.root / "ledger.sqlite").load()
    assert {key: intervals(facts, key) for key in facts.keys()} == ledger(home), "other facts, other intervals"  # noqa: SIM118
    market = simulator("binance", "--rate", "200", "--limit", "100")
    home.configure(formats.SETTINGS + formats.two_lines(market.url, market.url.replace("127.0.0.1", "localhost")), ledger=True)
    assert formats.of_the_ledger(home) == before["lines"]
    proves_as_before(home, before)
    run = home.start("run", "--until-idle", "1")
    assert run.ends() == 0, run.said
    market.stop()
    proves_as_before(home, before)


def proves_as_before(home: Home, before: dict[str, Any]) -> None:
    # One line was down, and the numbers that the other one brought have no hole.
    assert verdicts(home, before["down"]) == {"trade": "complete", "bookTicker": "unprovable"}
    # The line that was killed left no close. Only one thing proves it: it was open when the other line was dialed.
    assert verdicts(home, before["quiet"])["bookTicker"] == "unprovable"


def verdicts(home: Home, span: tuple[int, int]) -> dict[str, str]:
    """Whether each channel is complete in a stretch of time."""
    return {key.channel: answer(key, some, *span).verdict for key, some in ledger(home).items()}


def test_what_waited_in_a_spool_is_sent(
    left: Path, spawn: Spawner, own_redis: Callable[..., RedisServer], simulator: Callable[..., SimulatorProcess]
) -> None:
    home, market = Home(left / "spool", spawn), simulator("binance", "--rate", "200", "--limit", "50", "--symbols", "SOLUSDT")
    before = said(left)["spool"]
    assert formats.of_the_spool(home) == before
    stream = f'[stream]\nurl = "{own_redis().url}"\n'
    home.configure(formats.SETTINGS + stream + block("binance", market.url, ["SOLUSDT"], ["trade", "bookTicker"]))
    run = home.start("run", "--until-idle", "1")
    assert run.ends() == 0, run.said
    frames = [json.loads(text) for text in before]
    sent = [key(frame["data"])[1:] for frame in frames if frame.get("stream", "").endswith("@trade")]
    kept = home.rows("SELECT replace(symbol, '/', ''), sequence FROM ticks WHERE kind = 'trade' AND symbol <> 'SOL/USDT'")
    assert sorted(kept) == sorted(sent)
    assert sent


def test_every_version_that_was_released_has_its_archive(version: str) -> None:
    root = formats.ROOT
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    present = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert {*released} <= {*VERSIONS}
    assert present in VERSIONS, "run `make formats`"
    assert version in {*released, present}
    assert (formats.FORMATS / f"{version}.tar.xz").stat().st_size < 150_000
