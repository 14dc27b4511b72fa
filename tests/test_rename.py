"""A renamed symbol: afterwards every store and the ledger are as if it had had its right name from the start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adbc_driver_postgresql import dbapi  # type: ignore[import-untyped]  # it carries no types
from deltalake import DeltaTable
from typer.testing import CliRunner, Result

from made import DAY, NOON, bars, ticks
from proving import PROVE, proof
from tapeline.app.ledgers import ledger_rows, open_ledger
from tapeline.app.process_names import store_name
from tapeline.app.stores import open_stores
from tapeline.app.streams import consumer_groups
from tapeline.cli import app
from tapeline.config import Config, load
from tapeline.errors import DiskProblem, Unavailable
from tapeline.ledger.facts import ConnectionRecord, Facts, Key, Run
from tapeline.ledger.renaming import renamed
from tapeline.ledger.sqlite import LedgerFile
from tapeline.local.locks import own
from tapeline.providers.history import PageHeader
from tapeline.providers.registry import DECODERS, identity
from tapeline.reading import sql as query
from tapeline.records import BARS_TOPIC, NORMALIZED_TOPICS, NOTICES, NOTICES_TOPIC, NS_PER_MS, NS_PER_S, RAW, RAW_TOPIC, TICKS_TOPIC, Chunk
from tapeline.secret import NO_SECRET
from tapeline.stages.ledger import LedgerWriter, Scope, run_ledger
from tapeline.stages.normalize import Normalize, run_normalize
from tapeline.stages.store import StoreWriter, Writing, run_store
from tapeline.stores.lake import Lake, removing
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake import renaming as lake_renaming
from tapeline.stores.lake.checking import check
from tapeline.stores.lake.compacting import compact
from tapeline.stores.lake.renaming import LakeRenaming
from tapeline.stores.postgres import Postgres
from tapeline.stores.postgres.database import Database
from tapeline.stores.postgres.renaming import PostgresRenaming
from tapeline.stores.renaming import Renamed, Renaming
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry.status import StatusFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from services.postgres import PostgresServer

    from tapeline.providers.events import Names
    from tapeline.records import Topic
    from tapeline.stores import Store
    from tapeline.stores.renaming import Renames

ONE = Renaming("binance", "spot", "AD/AEUR", "ADA/EUR")
SPOT = ("binance", "spot")
RIGHT: Names = {SPOT: {"ADAEUR": "ADA/EUR"}}
#: As an earlier version had it: by its table of quote assets.
WRONG: Names = {SPOT: {"ADAEUR": "AD/AEUR"}}
#: A minute before midnight.
START = NOON + DAY // 2 - 60 * NS_PER_S
FIRST, SECOND = date(2024, 3, 15), date(2024, 3, 16)
TABLES = ("ticks", "bar_revisions", "bars", "notices", "rejected")


def silent(*_: object) -> None:
    """No progress bar."""


# Raw records


def trade(number: int, symbol: str = "ADAEUR") -> bytes:
    time = (START + number * NS_PER_S) // NS_PER_MS
    event = {"e": "trade", "E": time, "s": symbol, "t": number, "p": "0.95", "q": str(number), "T": time, "m": True, "M": True}
    return json.dumps({"stream": f"{symbol.lower()}@trade", "data": event}, separators=(",", ":")).encode()


def quote(number: int) -> bytes:
    event = {"u": number, "s": "ADAEUR", "b": "0.94", "B": "1", "a": "0.96", "A": str(number)}
    return json.dumps({"stream": "adaeur@bookTicker", "data": event}, separators=(",", ":")).encode()


def kline(window: int, volume: str = "1", *, final: bool = True) -> bytes:
    start = START // NS_PER_MS + window * 60_000
    body = {"t": start, "T": start + 59_999, "s": "ADAEUR", "i": "1m", "f": 1, "L": 2, "o": "1", "c": "1", "h": "1", "l": "1"}
    body |= {"v": volume, "n": 2, "x": final, "q": "1", "V": "1", "Q": "1", "B": "0"}
    event = {"e": "kline", "E": start + 60_000, "s": "ADAEUR", "k": body}
    return json.dumps({"stream": "adaeur@kline_1m", "data": event}, separators=(",", ":")).encode()


def page(first: int, last: int, symbol: str) -> bytes:
    """A page of history that an earlier version asked for by its own name."""
    asked = PageHeader("trade", symbol, "/there", (START + 900 * NS_PER_S) // NS_PER_MS, 0, 0, first, last, True, 1)
    rows = [
        {"id": number, "price": "0.95", "qty": str(number), "time": (START + number * NS_PER_S) // NS_PER_MS, "isBuyerMaker": True}
        for number in range(first, last + 1)
    ]
    return msgspec.json.encode(asked) + b"\n" + json.dumps(rows).encode()


def opened(*topics: str) -> bytes:
    return json.dumps({"topics": topics}).encode()


TOPICS = ("adaeur@trade", "adaeur@bookTicker", "adaeur@kline_1m", "btcusdt@trade")
Record = tuple[str, str, int, bytes]


def records(connection: str, first: int, last: int) -> list[Record]:
    """A connection from trade `first` to before trade `last`; one in ten is lost."""
    at = START + first * NS_PER_S
    found: list[Record] = [(connection, "opened", at, opened(*TOPICS)), (connection, "subscribed", at + 1, b"{}")]
    for number in range(first, last):
        at = START + number * NS_PER_S + NS_PER_S // 2
        frames = [] if number % 10 == 9 else [trade(number), trade(number, "BTCUSDT")]
        frames += [quote(number)] + ([kline(number // 60, str(number), final=number % 60 == 59)] if number % 20 == 19 else [])
        found += [(connection, "frame", at + step, frame) for step, frame in enumerate(frames)]
    return [*found, (connection, "closed", at + 9, b'{"by":"network","reason":"it broke"}')]


#: The first trades came under the wrong name, around midnight. The others came under the right one, some of them again.
BEFORE = [*records("binance-spot-0-a", 1, 100), ("repair-1", "fetched", START + 900 * NS_PER_S, page(9, 9, "AD/AEUR"))]
AFTER = [
    *records("binance-spot-0-b", 110, 130),
    *[("binance-spot-0-b", "frame", START + 300 * NS_PER_S + number, trade(number)) for number in range(90, 105)],
    ("binance-spot-0-b", "frame", START + 200 * NS_PER_S, quote(95)),
    ("binance-spot-0-b", "frame", START + 302 * NS_PER_S, kline(0, "59")),
    ("binance-spot-0-b", "frame", START + 303 * NS_PER_S, b'{"stream":"adaeur@trade","data":{"e":"trade","s":"ADAEUR"}}'),
]


def batch(some: Iterable[Record]) -> pa.RecordBatch:
    connection, kind, received, payload = zip(*some, strict=True)
    n = len(connection)
    texts = [pa.array(column, pa.string()) for column in (["binance"] * n, ["spot"] * n, connection, kind)]
    return pa.record_batch([*texts, pa.array(received, pa.int64()), pa.array(payload, pa.binary())], schema=RAW)


class Home:
    """A data directory, whose stages run when a test says so."""

    def __init__(self, root: Path, database: str = "") -> None:
        self.root, self.path = root, root / "tapeline.toml"
        root.mkdir(parents=True)
        stores = '[[stores]]\nurl = "lake:"\n' + (f'[[stores]]\nurl = "{database}"\n' if database else "")
        self.path.write_text(
            f'data_dir = "{root}"\n[[providers]]\nname = "binance"\nsymbols = ["ADAEUR", "BTCUSDT"]\nchannels = ["trade"]\n'
            f'names = {{ ADAEUR = "ADA/EUR" }}\n{stores}'
        )

    @property
    def config(self) -> Config:
        return load(self.path, {})

    def receive(self, some: Iterable[Record], names: Names, *, kept: bool = True) -> None:
        """Records come, and go the whole way, at a time when names were these. Not `kept`: they wait for the stores."""
        stop = threading.Event()
        stop.set()
        config = self.config
        with closing(EmbeddedStream(self.root / "stream", 1, groups=consumer_groups(config))) as stream:
            stream.append(RAW_TOPIC, batch(some), 0)
            run_normalize(Normalize(stream, DECODERS, StatusFile(self.root, "normalize"), name="test", names=names), stop, Random(1))
            for name, store in open_stores(config).items() if kept else ():
                status = StatusFile(self.root, name)
                run_store(StoreWriter(stream, store, Writing(name, 60, 0.0), status, stop), stop, Random(1))
                if isinstance(store, Postgres):
                    store.close()
            if kept:
                stores = [store_name(one) for one in config.stores]
                status = StatusFile(self.root, "ledger")
                run_ledger(LedgerWriter(stream, open_ledger(config), DECODERS, status, stop, Scope(stores, names)), stop, Random(1))

    def ask(self, *words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--config", str(self.path)], catch_exceptions=True)

    def rename(self, *options: str) -> list[dict[str, Any]]:
        done = self.ask("rename", ONE.old, ONE.new, "--format", "json", *options)
        assert done.exit_code == 0, (done.output, done.exception)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def kept(self) -> dict[str, list[str]]:
        """Every row of every table, and every interval of the ledger."""
        with closing(query.connect(self.root / "lake", lambda: ledger_rows(self.config))) as db:
            found = {
                table: sorted(map(repr, db.sql(f"SELECT * FROM {table}").to_arrow_table().to_pylist())) for table in (*TABLES, "coverage")
            }
        facts, _ = open_ledger(self.config).load()
        # The notice of a reading of history keeps its text.
        found["notices"] = [row.replace('"symbol":"AD/AEUR"', '"symbol":"ADA/EUR"') for row in found["notices"]]
        return {
            **found,
            "runs": sorted(f"{key}: {some}" for key, some in facts.runs.items()),
            "connections": sorted(repr(one) for one in facts.connections.values()),
        }

    def symbols(self) -> set[str]:
        """What the lake and the ledger know, by whichever name."""
        with closing(query.connect(self.root / "lake", lambda: ledger_rows(self.config))) as db:
            tables = " UNION ".join(f"SELECT symbol FROM {table}" for table in ("ticks", "bar_revisions", "bars", "notices", "coverage"))
            return {symbol for (symbol,) in db.sql(tables).fetchall() if symbol is not None}

    def whole(self) -> None:
        """The lake is as its logs say, and every store balances."""
        found = [one for some in check(self.root / "lake", identity, None, silent) for one in some.findings]
        assert found == []
        for store in open_stores(self.config).values():
            for topic in NORMALIZED_TOPICS:
                totals = store.totals(topic)
                assert totals.read == totals.rows + totals.duplicates
            if isinstance(store, Postgres):
                store.close()


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an earlier version has kept, and what has come since."""
    home = Home(tmp_path_factory.mktemp("wrong") / "data")
    home.receive(BEFORE, WRONG)
    home.receive(AFTER, RIGHT)
    return home.root


@pytest.fixture(scope="module")
def always_right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The same, had the name always been right."""
    home = Home(tmp_path_factory.mktemp("right") / "data")
    home.receive([(*record[:3], record[3].replace(b"AD/AEUR", b"ADA/EUR")) for record in BEFORE], RIGHT)
    home.receive(AFTER, RIGHT)
    return home.kept()


@pytest.fixture
def home(wrong: Path, tmp_path: Path) -> Home:
    found = Home(tmp_path / "data")
    text = found.path.read_text()
    shutil.copytree(wrong, found.root, dirs_exist_ok=True)
    found.path.write_text(text)
    return found


# The whole way


@pytest.mark.parametrize("compacted", ["compacted", "not compacted", "one day compacted"])
def test_everything_is_as_if_the_name_had_always_been_right(compacted: str, home: Home, always_right: dict[str, list[str]]) -> None:
    for day in {"compacted": [FIRST, SECOND], "one day compacted": [FIRST], "not compacted": []}[compacted]:
        compact(home.root / "lake", day, silent)
    assert home.symbols() == {"AD/AEUR", "ADA/EUR", "BTC/USDT"}
    done = home.rename()
    assert home.kept() == always_right
    assert home.symbols() == {"ADA/EUR", "BTC/USDT"}
    home.whole()
    assert {(one["store"], one.get("table"), one.get("day")) for one in done} == {
        ("lake", "ticks", "2024-03-15"),
        ("lake", "ticks", "2024-03-16"),
        ("lake", "bars", "2024-03-15"),
        ("lake", "bars", "2024-03-16"),
        ("ledger", None, None),
    }
    assert sum(one["duplicates"] for one in done if one["store"] == "lake") == 11  # nine trades, a quote and a bar came twice
    if compacted == "compacted":
        names = [Path(uri) for uri in DeltaTable(str(home.root / "lake" / "ticks")).file_uris()]
        assert [name.name.partition("-")[0] for name in names] == ["compacted"] * 2
        for name in names:
            order = pq.read_table(name, columns=["symbol", "ts_ns"], partitioning=None).to_pylist()
            assert order == sorted(order, key=lambda row: (row["symbol"], row["ts_ns"]))


def test_a_second_call_changes_nothing(home: Home) -> None:
    home.rename()
    files = sorted(
        (path, path.stat().st_mtime_ns) for path in (home.root / "lake").rglob("*") if path.is_file() and path.name != ".compacting"
    )
    ledger = (home.root / "ledger.sqlite").read_bytes()
    assert home.rename() == []
    assert home.ask("rename", ONE.old, ONE.new).stdout == "Nothing is stored under AD/AEUR.\n"
    again = sorted(
        (path, path.stat().st_mtime_ns) for path in (home.root / "lake").rglob("*") if path.is_file() and path.name != ".compacting"
    )
    assert again == files
    assert (home.root / "ledger.sqlite").read_bytes() == ledger


def test_a_dry_run_says_what_would_be_done_and_does_nothing(home: Home) -> None:
    before = home.kept()
    with own(home.root / "locks" / "lake", "tapeline lake"):  # it may run beside a store
        would = home.rename("--dry-run")
    shown = home.ask("rename", ONE.old, ONE.new, "--dry-run")
    assert home.kept() == before
    assert home.rename() == would
    assert "2024-03-15 lake ticks: 113 rows would be renamed to ADA/EUR" in shown.stdout
    assert "ledger: bookTicker, kline_1m, trade would be renamed to ADA/EUR" in shown.stdout


def test_complete_answers_for_the_right_name_and_knows_nothing_of_the_wrong_one(home: Home) -> None:
    home.rename()
    answered = home.ask("complete", "ADA/EUR", "2024-03-15", "--channel", "trade", "--format", "json")
    states = [(one["state"], one["first_id"], one["last_id"]) for one in json.loads(answered.stdout)["intervals"] if one["first_id"]]
    assert states[:3] == [("proven", 1, 18), ("open", 19, 19), ("proven", 20, 28)], "9 was fetched, by the wrong name"
    assert home.ask("gaps", "--symbol", "AD/AEUR").exit_code != 0
    wrong = home.ask("complete", "AD/AEUR", "2024-03-15")
    assert "does not know the symbol 'AD/AEUR'" in str(wrong.exception)


def test_what_comes_afterwards_goes_on_where_it_was(home: Home, tmp_path: Path) -> None:
    more = [
        *records("binance-spot-0-c", 131, 140),
        *[("binance-spot-0-c", "frame", START + 400 * NS_PER_S, trade(number)) for number in (5, 19)],
    ]
    home.rename()
    home.receive(more, RIGHT)
    other = Home(tmp_path / "other")
    other.receive([(*record[:3], record[3].replace(b"AD/AEUR", b"ADA/EUR")) for record in BEFORE], RIGHT)
    other.receive(AFTER, RIGHT)
    other.receive(more, RIGHT)
    assert home.kept() == other.kept()
    home.whole()


def test_a_ledger_that_is_made_anew_is_the_same_but_for_what_was_asked_by_the_wrong_name(home: Home) -> None:
    home.rename()
    kept = home.kept()
    (home.root / "ledger.sqlite").unlink()
    home.receive([("x", "frame", START, b"{}")], RIGHT)
    home.rename()
    again = home.kept()
    assert [line for line in again["runs"] if "x" not in line] == kept["runs"]


# Who says no


def refused(home: Home, *words: str, status: int = 78) -> str:
    before = home.kept()
    done = home.ask("rename", *words)
    assert home.kept() == before
    assert getattr(done.exception, "exit_status", done.exit_code) == status, (done.output, done.exception)
    return str(done.exception)


def test_names_of_two_symbols_are_refused(home: Home) -> None:
    said = refused(home, "AD/AEUR", "ADA/USD")
    assert "ADAEUR and ADAUSD" in said
    assert "such as AD/AEUR and ADA/EUR" in said


def test_a_name_that_is_right_today_stays(home: Home) -> None:
    said = refused(home, "ADA/EUR", "AD/AEUR")
    assert "Tapeline stores events of ADAEUR as ADA/EUR" in said
    assert 'names = { ADAEUR = "AD/AEUR" }' in said
    assert "the same name" in refused(home, "ADA/EUR", "ADA/EUR")
    assert "There is no feed binance future" in refused(home, "AD/AEUR", "ADA/EUR", "--feed", "future")
    assert "Nothing shows" in refused(home, "BT/CUSD", "BTC/USD", "--provider", "polygon", "--feed", "crypto")


def test_without_a_name_that_says_so_the_table_is_right(home: Home) -> None:
    home.path.write_text(home.path.read_text().replace('names = { ADAEUR = "ADA/EUR" }\n', ""))
    assert "Tapeline stores events of ADAEUR as AD/AEUR" in refused(home, "AD/AEUR", "ADA/EUR")


def test_the_exchange_s_own_list_says_what_is_right(home: Home) -> None:
    home.path.write_text(home.path.read_text().replace('names = { ADAEUR = "ADA/EUR" }\n', ""))
    home.receive([("", "listed", START, b'{"url":"http://there","names":{"ADAEUR":"ADA/EUR"}}')], {})
    assert home.rename()
    assert home.symbols() == {"ADA/EUR", "BTC/USDT"}


@pytest.mark.parametrize("stage", ["run", "lake", "ledger"])
def test_it_does_not_run_beside_what_writes(stage: str, home: Home) -> None:
    with own(home.root / "locks" / stage, f"tapeline {stage}"):
        said = refused(home, ONE.old, ONE.new, status=75)
    assert f"tapeline {stage}, process {os.getpid()}" in said
    assert "Stop the stores and the ledger first" in said


def test_it_takes_turns_with_what_changes_the_lake(home: Home) -> None:
    with lake_files.changing(home.root / "lake", "tapeline compact"):
        assert f"tapeline compact, process {os.getpid()}" in refused(home, ONE.old, ONE.new, status=75)


def test_ingest_and_normalize_may_run_and_what_still_waits_under_the_wrong_name_is_said(home: Home) -> None:
    home.receive([("binance-spot-0-d", "frame", START + 500 * NS_PER_S, trade(500))], WRONG, kept=False)
    with own(home.root / "locks" / "normalize-1", "tapeline normalize"), own(home.root / "locks" / "ingest", "tapeline ingest"):
        done = home.ask("rename", ONE.old, ONE.new)
    assert done.exit_code == 1
    assert "lake ticks: 1 rows under AD/AEUR still wait in the stream. Run the store (`tapeline store lake`)" in done.stdout
    home.receive([("x", "frame", START, b"{}")], RIGHT)
    assert [one["rows"] for one in home.rename() if one["store"] == "lake"] == [1]


def test_where_nothing_was_ever_kept_there_is_nothing_to_do(tmp_path: Path) -> None:
    home = Home(tmp_path / "empty")
    assert home.ask("rename", ONE.old, ONE.new).stdout == "Nothing is stored under AD/AEUR.\n"
    assert not (home.root / "lake").exists()
    assert not (home.root / "ledger.sqlite").exists()


# Who dies on the way


STEPS = {
    "before the file is written": (lake_renaming, "sorted_copy"),
    "before the commit": (lake_files, "commit"),
    "before the old file is deleted": (removing, "delete_removed"),
    "before the ledger": (LedgerFile, "save"),
    "within the ledger": (LedgerFile, "forget"),
}


@pytest.mark.parametrize(
    ("step", "day"), [(step, day) for step, (owner, _) in STEPS.items() for day in range(1, 2 if owner is LedgerFile else 5)]
)
def test_a_call_that_fails_is_finished_by_the_next(
    step: str, day: int, home: Home, always_right: Mapping[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = STEPS[step]
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def fails(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == day:
            raise OSError("the disk is full") if owner is not LedgerFile else DiskProblem("the disk is full")
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        done = home.ask("rename", ONE.old, ONE.new)
    assert isinstance(done.exception, Unavailable), done.output
    assert "the disk is full" in str(done.exception)
    home.rename()
    assert home.kept() == always_right
    home.whole()


DYING = """
import os, signal, sys
from pathlib import Path
from tapeline.app.streams import consumer_groups
from tapeline.app.stores import open_renames, open_stores
from tapeline.app.ledgers import ledger_rows, open_ledger
from tapeline.app.process_names import store_name
from tapeline.config import load
from tapeline.jobs import rename
from tapeline.stores.postgres import database, renaming as postgres_renaming
from tapeline.stores.lake import files as lake_files, removing, renaming as lake_renaming, compacting as lake_compacting
from tapeline.ledger import sqlite as ledger_file, postgres as postgres_ledger
from tapeline.stores.renaming import Renaming
left = int(sys.argv[2])
parts = (database, lake_files, removing, lake_renaming, lake_compacting, ledger_file, postgres_ledger, postgres_renaming, rename)
where = {some.__file__ for some in parts}
def passed(frame, event, argument):
    global left
    if frame.f_code.co_filename in where and event in ("call", "return"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
config = load(Path(sys.argv[1]), {})
parts = open_renames(config), open_ledger(config)
one = Renaming("binance", "spot", "AD/AEUR", "ADA/EUR")
sys.setprofile(passed)
list(rename.rename(one, *parts, lambda *_: None))
sys.setprofile(None)
print(int(sys.argv[2]) - left)
"""


def dying_after(home: Home, points: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", DYING, str(home.path), str(points)], capture_output=True, text=True, check=False)


@proof("lake")
def test_killed_at_any_point_the_next_call_ends_it(home: Home, wrong: Path, always_right: dict[str, list[str]]) -> None:
    compact(home.root / "lake", FIRST, silent)
    shutil.copytree(home.root, copy := home.root.with_name("copy"))
    points = int(dying_after(home, 1_000_000).stdout)
    chosen = range(1, points) if PROVE else sorted(Random(7).sample(range(1, points), 8))
    for point in chosen:
        shutil.rmtree(home.root)
        shutil.copytree(copy, home.root)
        assert dying_after(home, point).returncode == -signal.SIGKILL
        if point % 3 == 0:  # and again, on what the first one left
            dying_after(home, point // 2)
        home.rename()
        assert home.kept() == always_right, f"killed at point {point}"
        home.whole()
        assert not list((home.root / "lake").glob("*/.compacting"))


# One store alone


@dataclass
class Kept:
    """What a store keeps, and renames."""

    store: Store
    renames: Renames
    asked: Callable[[str], list[tuple[Any, ...]]]

    def write(self, topic: Topic, rows: pa.RecordBatch) -> None:
        self.store.write(Chunk.dense(topic, 0, self.store.totals(topic).positions.get(0, 0), rows))

    def rows(self, table: str, columns: str = "*") -> list[tuple[Any, ...]]:
        return sorted(self.asked(f"SELECT {columns} FROM {table}"), key=repr)

    def rename(self) -> list[tuple[str, date, int, int]]:
        """What a dry run says, which is what is done then."""
        would = list(self.renames.rename(ONE, silent, dry_run=True))
        done = list(self.renames.rename(ONE, silent, dry_run=False))
        assert done == would
        assert list(self.renames.rename(ONE, silent, dry_run=False)) == []
        return [(one.table, one.day, one.rows, one.duplicates) for one in done]


@pytest.fixture(params=["lake", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    if request.param == "lake":

        def in_lake(question: str) -> list[tuple[Any, ...]]:
            with closing(query.connect(tmp_path)) as db:
                return db.sql(question).fetchall()

        yield Kept(Lake(tmp_path, identity), LakeRenaming(tmp_path, identity), in_lake)
        assert [one.findings for one in check(tmp_path, identity, None, silent) if one.findings] == []
        return
    url = request.getfixturevalue("database")
    with closing(Postgres(url, NO_SECRET, identity)) as store:
        yield Kept(store, PostgresRenaming(Database(url, NO_SECRET), identity), lambda question: asked(url, question))


def asked(url: str, question: str) -> list[tuple[Any, ...]]:
    with closing(dbapi.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(question)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


OLD = {"symbol": "AD/AEUR"}
NEW = {"symbol": "ADA/EUR"}


def test_of_two_rows_of_one_event_the_one_that_came_first_is_kept(kept: Kept) -> None:
    kept.write(TICKS_TOPIC, ticks({**OLD, "sequence": 1, "received_ns": 20}, {**OLD, "sequence": 2, "received_ns": 20}))
    kept.write(TICKS_TOPIC, ticks({**NEW, "sequence": 1, "received_ns": 10, "raw_offset": 8}))
    kept.write(TICKS_TOPIC, ticks({**NEW, "sequence": 2, "received_ns": 30, "raw_offset": 9}, {**NEW, "sequence": 3, "raw_offset": 10}))
    assert kept.rename() == [("ticks", FIRST, 1, 2)]
    assert kept.rows("ticks", "symbol, sequence, raw_offset") == [("ADA/EUR", 1, 8), ("ADA/EUR", 2, 1), ("ADA/EUR", 3, 10)]
    totals = kept.store.totals(TICKS_TOPIC)
    assert (totals.read, totals.rows, totals.duplicates) == (5, 3, 2)


def test_two_trades_that_share_a_number_and_differ_are_two_and_those_without_one_are_all_others(kept: Kept) -> None:
    kept.write(TICKS_TOPIC, ticks({**OLD, "sequence": 1, "last": 1.0}, {**OLD, "sequence": 2, "volume": None}))
    kept.write(TICKS_TOPIC, ticks({**NEW, "sequence": 1, "last": 2.0, "raw_offset": 8}))
    kept.write(TICKS_TOPIC, ticks({**NEW, "sequence": 2, "volume": None, "raw_offset": 9}))
    kept.write(TICKS_TOPIC, ticks({**NEW, "sequence": None, "raw_offset": 10}))
    kept.write(TICKS_TOPIC, ticks({**OLD, "sequence": None, "raw_offset": 11}))
    assert kept.rename() == [("ticks", FIRST, 3, 1)]
    assert kept.rows("ticks", "raw_offset") == [(0,), (1,), (10,), (11,), (8,)]


def test_a_number_of_one_channel_says_nothing_of_another(kept: Kept) -> None:
    quoted = {"channel": "bookTicker", "kind": "quote", "last": None, "volume": None, "ask": 2.0}
    kept.write(TICKS_TOPIC, ticks({**OLD, "sequence": 1}, {**OLD, **quoted, "sequence": 2, "bid": 1.0}))
    kept.write(TICKS_TOPIC, ticks({**NEW, "sequence": 1, "channel": "aggTrade", "raw_offset": 8}))
    kept.write(TICKS_TOPIC, ticks({**NEW, **quoted, "sequence": 2, "bid": 1.5, "raw_offset": 9}))
    assert kept.rename() == [("ticks", FIRST, 2, 0)]


def test_a_copy_on_the_other_side_of_midnight_is_one_too(kept: Kept) -> None:
    quoted = {"channel": "bookTicker", "kind": "quote", "last": None, "volume": None, "bid": 1.0, "ask": 2.0, "sequence": 7}
    midnight = NOON + DAY // 2
    kept.write(TICKS_TOPIC, ticks({**OLD, **quoted, "ts_ns": midnight - 1}, {**OLD, **quoted, "sequence": 8, "ts_ns": midnight - 1}))
    kept.write(TICKS_TOPIC, ticks({**NEW, **quoted, "ts_ns": midnight + 1, "raw_offset": 8}))
    assert kept.rename() == [("ticks", FIRST, 1, 1)]
    assert kept.rows("ticks", "symbol, sequence") == [("ADA/EUR", 7), ("ADA/EUR", 8)]


def test_other_providers_feeds_and_symbols_are_left_alone(kept: Kept) -> None:
    kept.write(TICKS_TOPIC, ticks({**OLD, "provider": "other"}, {**OLD, "feed": "other", "raw_offset": 2}))
    kept.write(TICKS_TOPIC, ticks({"sequence": 5, "raw_offset": 3}, {"symbol": "AA/EUR", "sequence": 5, "raw_offset": 4}))
    before = kept.rows("ticks")
    assert kept.rename() == []
    kept.write(TICKS_TOPIC, ticks({**OLD, "sequence": 6, "raw_offset": 5}))
    assert kept.rename() == [("ticks", FIRST, 1, 0)]
    assert set(before) < set(kept.rows("ticks"))


def test_notices_and_bars_that_name_it_are_renamed_and_those_without_a_symbol_stay(kept: Kept) -> None:
    usual = {**dict.fromkeys(NOTICES.names), "provider": "binance", "feed": "spot", "connection": "c", "kind": "cancel", "detail": "{}"}
    usual |= {"ts_ns": NOON, "received_ns": NOON, "raw_partition": 0, "raw_index": 0}
    said = [{**usual, "symbol": symbol, "raw_offset": at} for at, symbol in enumerate(("AD/AEUR", None, "ADA/EUR", "BTC/USDT", None))]
    kept.write(NOTICES_TOPIC, pa.RecordBatch.from_pylist(said, NOTICES))
    kept.write(NOTICES_TOPIC, pa.RecordBatch.from_pylist([{**said[1], "raw_offset": 9}], NOTICES))
    binance = {"provider": "binance", "feed": "spot", "channel": "kline_1m"}
    kept.write(BARS_TOPIC, bars({**binance, **OLD}, {**binance, **OLD, "close": 3.0, "received_ns": NOON + 9}))
    kept.write(
        BARS_TOPIC,
        bars({**binance, **NEW, "close": 1.0, "raw_offset": 9}, {**binance, **NEW, "ts_ns": NOON + 60 * NS_PER_S, "raw_offset": 10}),
    )
    assert kept.rename() == [("bars", FIRST, 2, 0), ("notices", FIRST, 1, 0)]
    found = kept.rows("notices", "raw_offset, symbol")
    assert found == [(0, "ADA/EUR"), (1, None), (2, "ADA/EUR"), (3, "BTC/USDT"), (4, None), (9, None)]
    assert kept.rows("bars", "symbol, close, ts_ns") == [("ADA/EUR", 2.0, NOON + 60 * NS_PER_S), ("ADA/EUR", 3.0, NOON)]
    assert kept.rows("bar_revisions", "close, symbol") == [(1.0, "ADA/EUR"), (2.0, "ADA/EUR"), (2.0, "ADA/EUR"), (3.0, "ADA/EUR")]


def test_the_last_revision_of_a_bar_that_came_under_both_names_is_the_first_copy_of_it(kept: Kept) -> None:
    binance = {"provider": "binance", "feed": "spot", "channel": "kline_1m"}
    kept.write(BARS_TOPIC, bars({**binance, **NEW, "close": 3.0, "received_ns": NOON + 1}, {**binance, **NEW, "received_ns": NOON + 2}))
    kept.write(BARS_TOPIC, bars({**binance, **OLD, "close": 3.0, "received_ns": NOON + 9, "raw_offset": 9}))
    assert kept.rename() == [("bars", FIRST, 0, 1)]
    assert kept.rows("bars", "symbol, close, raw_offset") == [("ADA/EUR", 2.0, 1)]
    assert len(kept.rows("bar_revisions")) == 2


def test_what_the_store_keeps_afterwards_meets_what_was_renamed(kept: Kept) -> None:
    kept.write(TICKS_TOPIC, ticks({**OLD, "sequence": 1}, {**OLD, "sequence": 2}))
    kept.rename()
    kept.write(TICKS_TOPIC, ticks({**NEW, "sequence": 2, "raw_offset": 8}, {**NEW, "sequence": 3, "raw_offset": 9}))
    assert kept.rows("ticks", "symbol, sequence") == [("ADA/EUR", 1), ("ADA/EUR", 2), ("ADA/EUR", 3)]


# The lake alone


def write(root: Path, topic: Topic, rows: pa.RecordBatch) -> None:
    lake = Lake(root, identity)
    lake.write(Chunk.dense(topic, 0, lake.totals(topic).positions.get(0, 0), rows))


def rename_in(root: Path) -> list[Renamed]:
    return list(LakeRenaming(root, identity).rename(ONE, silent, dry_run=False))


def test_a_file_of_copies_alone_goes_without_another_in_its_place(tmp_path: Path) -> None:
    write(tmp_path, TICKS_TOPIC, ticks({**NEW, "sequence": 1, "received_ns": 1}))
    write(tmp_path, TICKS_TOPIC, ticks({**OLD, "sequence": 1, "received_ns": 2, "raw_offset": 9}))
    assert rename_in(tmp_path) == [Renamed("lake", "ticks", FIRST, 0, 1)]
    assert len(list(tmp_path.glob("ticks/date=*/*.parquet"))) == 1


def test_files_without_a_row_of_it_stay(tmp_path: Path) -> None:
    write(tmp_path, TICKS_TOPIC, ticks({"symbol": "AA/EUR"}, {"sequence": 5, "raw_offset": 3}))
    before = set(tmp_path.glob("ticks/date=*/*.parquet"))
    write(tmp_path, TICKS_TOPIC, ticks({**OLD, "sequence": 6, "raw_offset": 5}))
    rename_in(tmp_path)
    assert before < set(tmp_path.glob("ticks/date=*/*.parquet"))


def test_a_compacted_day_of_many_files_has_no_symbol_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tapeline.stores.lake import compacting as lake_compacting

    monkeypatch.setattr(lake_compacting, "_FILE_ROWS", 3)
    names = ("A/EUR", "AD/AEUR", "AD/BEUR", "ADA/EUR", "ADB/EUR", "Z/EUR")
    rows = [{"symbol": symbol, "sequence": at, "raw_offset": 10 * number + at} for number, symbol in enumerate(names) for at in range(2)]
    write(tmp_path, TICKS_TOPIC, ticks(*[{**row, "sequence": 7 + row["sequence"]} if row["symbol"] == "ADA/EUR" else row for row in rows]))
    compact(tmp_path, FIRST, silent)
    assert len(before := set(tmp_path.glob("ticks/date=*/*.parquet"))) == 6
    rename_in(tmp_path)
    after = {
        path: set(pq.read_table(path, columns=["symbol"], partitioning=None)["symbol"].to_pylist())
        for path in tmp_path.glob("ticks/date=*/*")
    }
    assert sorted(symbol for some in after.values() for symbol in some) == ["A/EUR", "AD/BEUR", "ADA/EUR", "ADB/EUR", "Z/EUR"]
    assert len(before & set(after)) == 3, "the files around are as they were"
    assert not any(one.changed for one in compact(tmp_path, FIRST, silent))


def test_a_damaged_file_is_named_and_its_day_stays(tmp_path: Path) -> None:
    write(tmp_path, TICKS_TOPIC, ticks({**OLD, "sequence": 1}, {**OLD, "sequence": 2}))
    (path,) = tmp_path.glob("ticks/date=*/*.parquet")
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(DiskProblem, match=r"lake repair"):
        rename_in(tmp_path)
    assert list(tmp_path.glob("ticks/date=*/*.parquet")) == [path]


# PostgreSQL, with the lake and the ledger


@pytest.fixture
def both(database: str, tmp_path: Path) -> Home:
    """As `wrong`, kept in both stores, with the ledger in PostgreSQL."""
    home = Home(tmp_path / "both", database)
    home.receive(BEFORE, WRONG)
    home.receive(AFTER, RIGHT)
    return home


def held(home: Home, url: str) -> dict[str, list[str]]:
    """Every row of PostgreSQL's tables, as the lake has them."""
    found = {}
    with closing(query.connect(home.root / "lake")) as db:
        columns = {
            table: ", ".join(f'"{name}"' for name in db.sql(f"SELECT * FROM {table}").columns if name not in ("date", "ts"))
            for table in TABLES
        }
        wanted = {table: sorted(map(repr, db.sql(f"SELECT {names} FROM {table}").fetchall())) for table, names in columns.items()}
    found = {table: sorted(repr(tuple(row)) for row in asked(url, f"SELECT {names} FROM {table}")) for table, names in columns.items()}
    assert found == wanted
    return found


def test_both_stores_are_as_if_the_name_had_always_been_right(both: Home, database: str, always_right: dict[str, list[str]]) -> None:
    would = both.rename("--dry-run")
    assert both.rename() == would
    assert both.kept() == always_right
    held(both, database)
    both.whole()
    assert {one["store"] for one in would} == {"lake", "postgresql", "ledger"}
    assert asked(database, "SELECT count(*) FROM coverage WHERE symbol = 'AD/AEUR'") == [(0,)]
    assert asked(database, "SELECT count(*) FROM tapeline_ledger_runs WHERE symbol = 'AD/AEUR'") == [(0,)]
    assert both.rename() == []


@pytest.mark.parametrize("day", [1, 3])
def test_a_transaction_that_fails_is_undone_and_the_next_call_ends_it(
    day: int, both: Home, database: str, always_right: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PostgresRenaming._of_day
    calls = 0

    def fails(*arguments: Any, **named: Any) -> Renamed:
        nonlocal calls
        calls += 1
        found = real(*arguments, **named)
        if calls == day:
            raise DiskProblem("the disk is full")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(PostgresRenaming, "_of_day", fails)
        assert isinstance(both.ask("rename", ONE.old, ONE.new).exception, DiskProblem)
    left = sum(count for (count,) in asked(database, "SELECT count(*) FROM ticks WHERE symbol = 'AD/AEUR'"))
    assert bool(left) == (day == 1)
    both.rename()
    assert both.kept() == always_right
    held(both, database)


def test_killed_at_any_point_the_next_call_ends_it_in_both(
    both: Home, database: str, postgres_server: PostgresServer, always_right: dict[str, list[str]]
) -> None:
    copies = [f"{database.rpartition('/')[2]}_{at}" for at in range(6)]
    for name in copies:
        postgres_server.ask(f"CREATE DATABASE {name} TEMPLATE {database.rpartition('/')[2]}")
    text = both.path.read_text()
    shutil.copytree(both.root, folder := both.root.with_name("copy"))
    points = 1_000_000
    for name in copies:
        shutil.rmtree(both.root)
        shutil.copytree(folder, both.root)
        url = f"{database.rpartition('/')[0]}/{name}"
        both.path.write_text(text.replace(database, url))
        done = dying_after(both, points if points == 1_000_000 else Random(points).randrange(points // 2, points))
        if points == 1_000_000:
            points = int(done.stdout)
        else:
            assert done.returncode == -signal.SIGKILL
            both.rename()
            points -= 1
        assert both.kept() == always_right
        held(both, url)
    for name in copies:
        postgres_server.ask(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_that_is_away_is_said_to_be(home: Home) -> None:
    home.path.write_text(home.path.read_text() + '[[stores]]\nurl = "postgresql://nobody@127.0.0.1:1/x"\n')
    done = home.ask("rename", ONE.old, ONE.new)
    assert isinstance(done.exception, Unavailable)
    assert "postgresql://nobody@127.0.0.1:1/x" in str(done.exception)


# The ledger alone


def test_facts_of_both_names_become_one() -> None:
    old, new, other = (Key("binance", "spot", "trade", symbol) for symbol in ("AD/AEUR", "ADA/EUR", "BTC/USDT"))
    runs = {old: [Run(1, 5, 10, 50), Run(9, 9, 90, 90)], new: [Run(4, 6, 40, 60), Run(20, 21, 1, 2)], other: [Run(1, 1, 1, 1)]}
    connection = ConnectionRecord(
        "binance",
        "spot",
        topics=["adaeur@trade", "btcusdt@trade"],
        first={"trade AD/AEUR": 5, "trade ADA/EUR": 7, "trade BTC/USDT": 1},
        asked=[("trade AD/AEUR", 1, 2), ("trade ADA/EUR", 1, 2), ("trade ADA/EUR", 5, 6)],
        read=[("trade AD/AEUR", 1, 5), ("trade ADA/EUR", 3, 9), ("trade BTC/USDT", 1, 2)],
        rejected=[("trade AD/AEUR", 1, 5)],
        asking=[("trade AD/AEUR", 1, 5, 2), ("trade ADA/EUR", 1, 5, 1)],
        reading=[("bookTicker AD/AEUR", 1, 5, 2)],
        rejecting=[("trade AD/AEUR", 1, 5)],
    )
    before = Facts.of(
        runs, {"c": connection, "d": ConnectionRecord("binance", "spot", topics=["btcusdt@trade"]), "e": ConnectionRecord("alpaca", "iex")}
    )
    after = renamed(before, "binance", "spot", "AD/AEUR", "ADA/EUR")
    assert after.runs == {new: [Run(1, 6, 10, 60), Run(9, 9, 90, 90), Run(20, 21, 1, 2)], other: [Run(1, 1, 1, 1)]}
    found = after.connections["c"]
    assert found.first == {"trade ADA/EUR": 5, "trade BTC/USDT": 1}
    assert found.asked == [("trade ADA/EUR", 1, 2), ("trade ADA/EUR", 5, 6)]
    assert found.read == [("trade ADA/EUR", 1, 9), ("trade BTC/USDT", 1, 2)]
    assert (found.rejected, found.rejecting) == ([("trade ADA/EUR", 1, 5)], [("trade ADA/EUR", 1, 5)])
    assert found.asking == [("trade ADA/EUR", 1, 5, 2)]
    assert found.reading == [("bookTicker ADA/EUR", 1, 5, 2)]
    assert found.names == {"ADAEUR": "ADA/EUR"}
    assert {key.symbol for key in after.keys()} == {"ADA/EUR", "BTC/USDT"}  # noqa: SIM118 no mapping
    assert (after.touched_runs, after.touched_connections) == ({new}, {"c"})
    assert before.runs == runs
    assert before.connections["c"] == connection
    assert not before.touched()
    assert renamed(after, "binance", "spot", "AD/AEUR", "ADA/EUR").touched() == set()
