"""What a version leaves on disk, kept for the versions after it: small data directories, and what that version itself said of them.

`make formats` makes the archive of the present version, `tests/fixtures/formats/VERSION.tar.xz`. It is part of a release
(docs/development.md). An archive of a released version is never made again.

    lake/        an embedded stream into the lake: with the ledger, the runs of jobs, an alert and the dashboard's last looks
    postgres/    an embedded stream into PostgreSQL, and postgres.sql, which is a dump of the database
    lines/       an embedded stream from two lines: one was down while the other went on, and ingest was killed in a quiet market
    spool/       what ingest had received when its Redis went away
    lake.jsonl   what the simulator sent to the first
    said.json    what the version said of all this
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import tarfile
import tempfile
import time
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from endpoint import Endpoint
from msgspec.structs import astuple
from processes import Home, SimulatorProcess, Spawner, block, ledger, records
from services import postgres
from services.postgres import PostgresServer
from services.redis import RedisServer

import brokers
from tapeline.demo.verify import compare
from tapeline.ledger.facts import ONGOING
from tapeline.records import RAW_TOPIC
from tapeline.stages.ingest.spool import Spool
from tapeline.web.address import free
from tapeline.web.past import Past
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT: Final = Path(__file__).resolve().parent.parent
FORMATS: Final = ROOT / "tests" / "fixtures" / "formats"
SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
CHANNELS: Final = ("trade", "bookTicker", "kline_1s")
#: No job starts by itself, and nothing is requested from a history: what is there is what was put there.
SETTINGS: Final = 'scheduler = "none"\nrepair = false\n'
_EVENTS: Final = "130"
_HOMES: Final = ("lake", "postgres", "lines", "spool")

_ROW: Final = "symbol, kind, channel, ts_ns, sequence, trade_id, side, last, volume, bid, ask, bid_size, ask_size, received_ns"
#: The questions to the lake, by name. Each names the symbols that the version knew.
_OLD: Final = "symbol IN ('BTC/USDT', 'ETH/USDT')"
_OF_THE_LAKE: Final = {
    "ticks": f"SELECT {_ROW}, raw_offset, raw_index FROM ticks WHERE {_OLD} ORDER BY raw_offset, raw_index",
    "bars": f"SELECT symbol, ts_ns, open, high, low, close, volume, final FROM bar_revisions WHERE {_OLD} ORDER BY raw_offset, raw_index",
    "rejected": "SELECT provider, reason, raw_offset, raw_index FROM rejected ORDER BY ALL",
    "coverage": f"SELECT channel, symbol, start_ns, end_ns, state, evidence FROM coverage WHERE {_OLD} AND end_ns IS NOT NULL ORDER BY ALL",
}
_OF_THE_DATABASE: Final = {
    "ticks": f"SELECT {_ROW}, raw_offset, raw_index FROM ticks WHERE {_OLD} ORDER BY raw_offset, raw_index",
    "bars": f"SELECT symbol, ts_ns, open, high, low, close, final FROM bar_revisions WHERE {_OLD} ORDER BY raw_offset, raw_index",
    "coverage": f"SELECT channel, symbol, start_ns, end_ns, state FROM coverage WHERE {_OLD} AND end_ns IS NOT NULL ORDER BY 1, 2, 3",
    "runs": "SELECT id, job, thing, state FROM tapeline_runs ORDER BY id",
}


def of_the_lake(home: Home) -> dict[str, list[Any]]:
    """What the commands say of a home with a lake: rows, intervals, runs and alerts."""
    commands = {name: ["sql", query] for name, query in _OF_THE_LAKE.items()}
    commands |= {"runs": ["jobs", "history", "--lines", "100"], "alerts": ["alerts", "list"]}
    said = {}
    for name, command in commands.items():
        done = home.ask(*command, "--format", "json")
        assert done.returncode in (0, 1), done.stderr  # 1: an alert is open
        said[name] = [json.loads(line) for line in done.stdout.splitlines()]
        assert said[name], f"nothing was said: {name}"
    return said


def of_the_database(server: PostgresServer) -> dict[str, list[str]]:
    """What PostgreSQL says of its rows."""
    return {name: server.ask(query).splitlines() for name, query in _OF_THE_DATABASE.items()}


def of_the_stream(home: Home) -> list[str]:
    """A hash of each raw record that a home's stream holds, in order."""
    with closing(home.stream()) as stream:
        return [
            hashlib.sha256(f"{row['kind']} {row['connection']} ".encode() + row["payload"]).hexdigest()
            for row in records(stream, RAW_TOPIC)
        ]


def of_the_dashboard(home: Home) -> list[str]:
    """A hash of each look that the dashboard has kept."""
    with closing(Past(home.root / "dashboard.sqlite")) as past:
        return [hashlib.sha256(body).hexdigest() for body in past.between(0, 1 << 62, 1)]


def of_the_spool(home: Home) -> list[str]:
    """The frames that wait in a home's spool, in order."""
    with closing(Spool(home.root / "spool" / "ingest.sqlite", 1 << 30)) as spool:
        found, last = [], 0
        while some := list(spool.after(last)):
            last = some[-1].number
            found += [row for one in some for row in one.batch.to_pylist()]
    return [row["payload"].decode() for row in found if row["kind"] == "frame"]


def of_the_ledger(home: Home) -> list[list[Any]]:
    """The intervals that have an end in a home's ledger, with their keys."""
    found = [[*key, *astuple(one)] for key, known in ledger(home).items() for one in known if one.end_ns != ONGOING]
    assert found, "the ledger is empty"
    return found


class _Making:
    """Makes an archive in a folder that is empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spawn = Spawner(folder / "said")
        self._said: dict[str, Any] = {}

    def make(self) -> None:
        """Make everything but the archive itself."""
        try:
            self._lake()
            self._postgres()
            self._lines()
            self._spool()
        finally:
            self._spawn.end()
        (self._folder / "said.json").write_text(json.dumps(self._said, indent=0))

    def _simulator(self, name: str, *options: str, rate: int = 100) -> SimulatorProcess:
        journal = self._folder / f"{name}.jsonl"
        process = self._spawn("simulate", "binance", "--rate", str(rate), "--journal", str(journal), *options)
        return SimulatorProcess(process, process.says(" at ").splitlines()[0].rpartition(" at ")[2].strip(), journal)

    def _run(self, home: Home, market: SimulatorProcess, *options: str) -> None:
        run = home.start("run", "--until-idle", "1.5", *options)
        assert run.ends() == 0, run.said
        market.stop()

    def _lake(self) -> None:
        home = Home(self._folder / "lake", self._spawn)
        market = self._simulator("lake", "--limit", _EVENTS, "--fault", "garbage:0.02", "--fault", "reset:1.5")
        dashboard = f'[dashboard]\nlisten = "{free("127.0.0.1:0")}"\n'
        home.configure(SETTINGS + block("binance", market.url, SYMBOLS, CHANNELS) + dashboard, flush_seconds=1.0, ledger=True)
        self._run(home, market, "--dashboard")
        for command in (["jobs", "run", "compact", "--day", "2026-01-05"], ["alerts", "raise", "by hand", "--text", "an alert"]):
            done = home.ask(*command)
            assert done.returncode == 0, done.stderr
        self._said["lake"] = of_the_lake(home)
        self._said["stream"] = of_the_stream(home)
        self._said["dashboard"] = of_the_dashboard(home)
        found = compare(home.lake, [market.journal])
        assert not found.extra
        self._said["missing"] = found.missing

    def _postgres(self) -> None:
        with brokers.reachable_folder() as folder, PostgresServer(folder) as server:
            home = Home(self._folder / "postgres", self._spawn)
            market = self._simulator("postgres", "--limit", "60")
            home.config.write_text(on_postgres(home, server.url, market.url, SYMBOLS))
            self._run(home, market)
            done = home.ask("jobs", "run", "compact", "--day", "2026-01-05")
            self._said["job"] = done.returncode
            self._said["postgres"] = of_the_database(server)
            command = [str(postgres.installed().where / "pg_dump"), "--no-owner", "--no-privileges", "--dbname", server.url]
            dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        # What only a psql of the same release knows.
        (self._folder / "postgres.sql").write_text(re.sub(r"^\\(un)?restrict .*\n", "", dump, flags=re.MULTILINE))

    def _lines(self) -> None:
        home = Home(self._folder / "lines", self._spawn)
        market = self._simulator("lines", "--symbols", SYMBOLS[0], rate=20)
        with ExitStack() as stack:
            first, second = (Endpoint(market.url, stack) for _ in range(2))
            home.configure(SETTINGS + two_lines(first.url, second.url), flush_seconds=1.0, ledger=True)
            run = home.start("run")

            def line(number: int) -> dict[str, Any]:
                found: dict[str, Any] = home.word("ingest").get("lines", {}).get("binance-spot-0" + number * "-second", {})
                return found if found.get("connected") else {}

            def events(number: int) -> int:
                return int(line(number).get("arbitration", {}).get("events", 0))

            until(lambda: min(events(0), events(1)) > 5, "both lines bring events")
            second.kill()
            down, before = time.time_ns(), events(0)
            until(lambda: events(0) > before + 5, "the first line goes on")
            self._said["down"] = (down, time.time_ns())
            second.start()
            until(lambda: events(1) > 0, "the second line is back")
            market.halt()
            until(lambda: self._is_quiet(lambda: (events(0), events(1))), "the market is quiet")
            quiet = time.time_ns()
            second.kill()
            until(lambda: not line(1), "the second line is down")
            self._said["quiet"] = (quiet, time.time_ns())
            second.start()
            until(lambda: line(1), "the second line is back")
            until(lambda: all(some[-1].end_ns > self._said["quiet"][1] for some in ledger(home).values()), "the ledger knows")
            # Nothing says when the first line ended. The second one knew it to be open until shortly before.
            home.kill("ingest")
            until(lambda: line(0) and line(1), "the lines are back")
            run.send(signal.SIGTERM)
            assert run.ends() == 0, run.said
        market.stop()
        self._said["lines"] = of_the_ledger(home)

    @staticmethod
    def _is_quiet(counts: Callable[[], tuple[int, int]]) -> bool:
        before = counts()
        time.sleep(1.0)
        return counts() == before

    def _spool(self) -> None:
        home = Home(self._folder / "spool", self._spawn)
        market = self._simulator("spool")
        with RedisServer(self._folder / "redis") as server:
            home.configure(SETTINGS + f'[stream]\nurl = "{server.url}"\n' + block("binance", market.url, SYMBOLS, CHANNELS))
            ingest = home.start("ingest")
            until(lambda: home.word("ingest").get("records", 0) > 20, "data flows")
            server.kill()
            until(lambda: home.word("ingest").get("spooled", 0) > 40, "the spool fills")
            ingest.send(signal.SIGTERM)
            ingest.ends()
        market.stop()
        self._said["spool"] = of_the_spool(home)


def two_lines(first: str, second: str) -> str:
    """The block of a market with two lines. Neither is given up for its silence."""
    return block("binance", first, SYMBOLS[:1], ("trade", "bookTicker"), lines=2, second_url=second, stale_after=60)


def on_postgres(home: Home, database: str, url: str, symbols: tuple[str, ...]) -> str:
    """The configuration of a home whose only store is PostgreSQL."""
    store = f'[[stores]]\nurl = "{database}"\nflush_seconds = 0.5\n'
    return f'data_dir = "{home.root}"\n{SETTINGS}' + block("binance", url, symbols, CHANNELS) + store


def _members(folder: Path) -> Iterator[Path]:
    """What is kept: no locks, no logs, and no status of processes that have ended."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        kept = parts[0] in _HOMES and not {"locks", "status", "quotas"} & {*parts} and not path.name.endswith("-shm")
        if path.is_file() and (kept or path.name in ("lake.jsonl", "postgres.sql", "said.json")):
            yield path


def main() -> None:
    """Make the archive of this version."""
    FORMATS.mkdir(exist_ok=True)
    archive = FORMATS / f"{version('tapeline')}.tar.xz"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _Making(folder).make()
        with tarfile.open(archive, "w:xz", preset=9) as file:
            for path in _members(folder):
                file.add(path, str(path.relative_to(folder)))
    print(f"{archive.relative_to(ROOT)}: {archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
