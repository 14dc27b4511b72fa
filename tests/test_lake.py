"""The lake keeps each event once, with the position it stands for, in one commit; and shows days, order and last revisions right."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from typer.testing import CliRunner

from made import DAY, NOON, bars, rejects, ticks
from tapeline.cli import app
from tapeline.errors import ConfigError, DiskProblem, NewerData
from tapeline.local import files as local_files
from tapeline.providers.registry import identity
from tapeline.reading.sql import connect, find
from tapeline.records import BARS, BARS_TOPIC, NS_PER_S, REJECTED_TOPIC, TICKS, TICKS_TOPIC, Chunk, Topic
from tapeline.stores import Written, with_dates
from tapeline.stores.lake import Lake
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake.checking import Checked, check

Row = dict[str, Any]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake", identity)


def kept(lake: Lake, *batches: pa.RecordBatch) -> list[int]:
    """Write batches of ticks one after another; how many rows of each were kept."""
    return [write(lake, TICKS_TOPIC, batch).rows for batch in batches]


def checked(lake: Lake) -> list[Checked]:
    """What `tapeline lake check` finds."""
    return check(lake.root, identity, None, lambda *_: None)


def position(lake: Lake, topic: Topic = TICKS_TOPIC, partition: int = 0) -> int:
    """Where the lake reads a partition next."""
    return lake.totals(topic).positions.get(partition, 0)


def write(lake: Lake, topic: Topic, batch: pa.RecordBatch, partition: int = 0) -> Written:
    """Write what comes next in a partition."""
    return lake.write(Chunk.dense(topic, partition, position(lake, topic, partition), batch))


def table(lake: Lake, name: str = "ticks", order: str = "raw_offset") -> list[Row]:
    with connect(lake.root) as db:
        found: list[Row] = db.sql(f"SELECT * FROM {name} ORDER BY {order}").to_arrow_table().to_pylist()
    return found


POLYGON: Row = {"provider": "polygon", "feed": "stocks", "channel": "T", "symbol": "AAPL", "exchange": "XNAS", "side": None}
ALPACA: Row = {
    "provider": "alpaca",
    "feed": "sip",
    "channel": "trades",
    "symbol": "AAPL",
    "exchange": "XNAS",
    "side": None,
    "sequence": None,
}
NO_ID: Row = {**POLYGON, "feed": "options", "trade_id": None}
OPTION: Row = {**ALPACA, "feed": "opra", "symbol": "AAPL240315C00172500", "trade_id": None}
NO_NUMBER: Row = {**NO_ID, "sequence": None}
QUOTE: Row = {**POLYGON, "channel": "Q", "kind": "quote", "last": None, "volume": None, "trade_id": None, "bid": 1.0, "ask": 2.0}
CRYPTO_QUOTE: Row = {**QUOTE, "feed": "crypto", "channel": "XQ", "symbol": "BTC/USD", "sequence": None}


def test_an_empty_lake_begins_at_zero(lake: Lake) -> None:
    totals = lake.totals(TICKS_TOPIC)
    assert (totals.positions, totals.read, totals.rows, totals.duplicates) == ({}, 0, 0, 0)
    assert table(lake) == []


BOOK: Row = {
    "channel": "bookTicker",
    "kind": "quote",
    "bid": 1.0,
    "bid_size": 3.0,
    "ask": 2.0,
    "ask_size": 5.0,
    "last": None,
    "volume": None,
}
SAME: list[tuple[str, Row, Row]] = [
    ("binance: the number", {"sequence": 7}, {"sequence": 7, "received_ns": NOON + 99, "raw_offset": 50}),
    ("binance: the number, in another unit of time", {"sequence": 7}, {"sequence": 7, "ts_ns": NOON + 123_456}),
    ("binance: the number of a quote", {**BOOK, "sequence": 7}, {**BOOK, "sequence": 7, "ts_ns": NOON + 123_456}),
    (
        "polygon stocks: the id of the day",
        {**POLYGON, "trade_id": "9"},
        {**POLYGON, "trade_id": "9", "sequence": 8},
    ),
    ("polygon options: the content", NO_ID, NO_ID),
    ("alpaca options: the content", OPTION, {**OPTION, "received_ns": NOON + 7, "latency_ns": 7}),
    ("alpaca: the id of the day", {**ALPACA, "trade_id": "9"}, {**ALPACA, "trade_id": "9", "ts_ns": NOON + 1}),
    ("a quote: the number and the content", QUOTE, {**QUOTE, "received_ns": NOON + 7, "latency_ns": 7}),
    ("a quote: in another unit of time", QUOTE, {**QUOTE, "ts_ns": NOON + 123_456, "conditions": "1"}),
    ("a quote without a number: the millisecond", {**QUOTE, "sequence": None}, {**QUOTE, "sequence": None, "ts_ns": NOON + 123_456}),
    ("polygon options: in another unit of time", NO_ID, {**NO_ID, "ts_ns": NOON + 123_456}),
    ("polygon options without a number: the millisecond", NO_NUMBER, {**NO_NUMBER, "ts_ns": NOON + 123_456}),
    ("polygon crypto: a quote has its content alone", CRYPTO_QUOTE, CRYPTO_QUOTE),
    ("a quote with an empty side: the content", {**QUOTE, "ask": None}, {**QUOTE, "ask": None}),
]
DIFFERENT: list[tuple[str, Row, Row]] = [
    ("binance: another number", {"sequence": 7}, {"sequence": 8}),
    ("binance: one number for two trades", {"sequence": 7, "volume": 824.0}, {"sequence": 7, "volume": 19_332.0}),
    ("binance: one number, another price", {"sequence": 7, "last": 2.38e-6}, {"sequence": 7, "last": 2.39e-6}),
    ("binance: one number, another quote", {**BOOK, "sequence": 7}, {**BOOK, "sequence": 7, "bid_size": 4.0}),
    ("binance: another symbol", {"sequence": 7}, {"sequence": 7, "symbol": "ETH/USDT"}),
    ("binance: another channel", {"sequence": 7}, {"sequence": 7, "channel": "aggTrade"}),
    ("polygon: another simulator", {**POLYGON, "trade_id": "9"}, {**POLYGON, "trade_id": "9", "exchange": "XNYS"}),
    ("polygon: another day", {**POLYGON, "trade_id": "9"}, {**POLYGON, "trade_id": "9", "ts_ns": NOON + DAY}),
    ("polygon: another feed", {**POLYGON, "trade_id": "9"}, {**POLYGON, "trade_id": "9", "feed": "options"}),
    ("another provider", {**POLYGON, "trade_id": "9"}, {**ALPACA, "trade_id": "9"}),
    (
        "polygon options: another sequence",
        {**POLYGON, "feed": "options", "trade_id": None},
        {**POLYGON, "feed": "options", "trade_id": None, "sequence": 5},
    ),
    ("alpaca options: a nanosecond later", OPTION, {**OPTION, "ts_ns": NOON + 1}),
    ("alpaca options: another condition", OPTION, {**OPTION, "conditions": "S"}),
    ("a quote: another price", QUOTE, {**QUOTE, "ask": 2.5}),
    ("a quote: a side that is empty now", QUOTE, {**QUOTE, "ask": None}),
    ("a quote: another number", QUOTE, {**QUOTE, "sequence": 2}),
    ("a quote: without the number", QUOTE, {**QUOTE, "sequence": None}),
    ("a quote without a number: a millisecond later", {**QUOTE, "sequence": None}, {**QUOTE, "sequence": None, "ts_ns": NOON + 1_000_000}),
    ("polygon options without a number: another size", NO_NUMBER, {**NO_NUMBER, "volume": 3.0}),
    ("polygon crypto: a nanosecond later", CRYPTO_QUOTE, {**CRYPTO_QUOTE, "ts_ns": NOON + 1}),
]


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in two writes"])
@pytest.mark.parametrize(("what", "first", "second"), SAME, ids=[what for what, _, _ in SAME])
def test_an_event_that_comes_twice_is_kept_once_the_first_time(lake: Lake, what: str, first: Row, second: Row, together: bool) -> None:
    if together:
        assert kept(lake, ticks(first, second)) == [1]
    else:
        assert kept(lake, ticks(first), ticks({**second, "raw_offset": 60})) == [1, 0]
    (row,) = table(lake)
    assert row["received_ns"] == ticks(first)["received_ns"][0].as_py()
    totals = lake.totals(TICKS_TOPIC)
    assert (totals.positions, totals.read, totals.rows, totals.duplicates) == ({0: 2}, 2, 1, 1)


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in two writes"])
@pytest.mark.parametrize(("what", "first", "second"), DIFFERENT, ids=[what for what, _, _ in DIFFERENT])
def test_two_events_are_kept_as_two(lake: Lake, what: str, first: Row, second: Row, together: bool) -> None:
    if together:
        assert kept(lake, ticks(first, second)) == [2]
    else:
        assert kept(lake, ticks(first), ticks({**second, "raw_offset": 60})) == [1, 1]
    assert len(table(lake)) == 2


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in two writes"])
@pytest.mark.parametrize("base", [POLYGON, ALPACA], ids=["polygon", "alpaca"])
def test_trades_that_came_without_their_id_are_not_taken_for_one_another(lake: Lake, base: Row, together: bool) -> None:
    first, second = {**base, "trade_id": None, "last": 1.0}, {**base, "trade_id": None, "last": 2.0, "ts_ns": NOON + 5}
    batches = [ticks(first, second)] if together else [ticks(first), ticks({**second, "raw_offset": 60})]
    assert sum(kept(lake, *batches)) == 2


def test_a_binance_event_is_known_again_across_midnight(lake: Lake) -> None:
    midnight = NOON // DAY * DAY + DAY
    assert kept(lake, ticks({"ts_ns": midnight - 1, "sequence": 7}), ticks({"ts_ns": midnight + 1, "sequence": 7})) == [1, 0]


def test_duplicates_are_found_among_many_days_and_files(lake: Lake) -> None:
    days = [[{"sequence": day * 100 + at, "ts_ns": NOON + day * DAY + at} for at in range(20)] for day in range(5)]
    assert kept(lake, *[ticks(*rows) for rows in days]) == [20] * 5
    assert kept(lake, ticks(*[row for rows in days for row in rows], {"sequence": 999})) == [1]
    assert lake.totals(TICKS_TOPIC).duplicates == 100


def test_another_lake_object_knows_what_the_first_one_wrote(lake: Lake) -> None:
    kept(lake, ticks({"sequence": 1}))
    other = Lake(lake.root, identity)
    assert position(other) == 1
    assert kept(other, ticks({"sequence": 1, "raw_offset": 9}, {"sequence": 2, "raw_offset": 10})) == [1]
    assert kept(lake, ticks({"sequence": 2, "raw_offset": 11})) == [0]
    assert position(lake) == 4


def test_revisions_of_a_bar_are_all_kept_and_the_last_is_shown(lake: Lake) -> None:
    revisions: list[Row] = [
        {"close": 2.0},
        {"close": 2.0, "received_ns": NOON + 77},
        {"close": 3.0},
        {"close": 2.5, "final": True},
        {"ts_ns": NOON + 60 * NS_PER_S},
    ]
    assert write(lake, BARS_TOPIC, bars(*revisions)).rows == 4
    assert [(row["ts_ns"], row["close"], row["final"]) for row in table(lake, "bars", "ts_ns")] == [
        (NOON, 2.5, True),
        (NOON + 60 * NS_PER_S, 2.0, False),
    ]
    assert [row["close"] for row in table(lake, "bar_revisions")] == [2.0, 3.0, 2.5, 2.0]
    late = bars({"close": 9.0, "raw_offset": 70}, {"close": 3.0, "raw_offset": 71})
    assert write(lake, BARS_TOPIC, late).rows == 1
    assert [row["close"] for row in table(lake, "bars", "ts_ns")] == [9.0, 2.0]


def test_bars_of_other_intervals_symbols_and_feeds_are_other_bars(lake: Lake) -> None:
    others: list[Row] = [{}, {"interval": "1s"}, {"symbol": "AMD"}, {"feed": "options"}, {"provider": "alpaca"}]
    assert write(lake, BARS_TOPIC, bars(*others)).rows == 5
    assert len(table(lake, "bars")) == 5


def test_rejects_and_notices_are_kept_however_equal_and_each_of_a_raw_record_once(lake: Lake) -> None:
    assert write(lake, REJECTED_TOPIC, rejects(3)) == Written(3, 0)
    assert write(lake, REJECTED_TOPIC, rejects(3, first=3)) == Written(3, 0)
    assert write(lake, REJECTED_TOPIC, rejects(4, first=3)) == Written(1, 3)
    assert [row["raw_offset"] for row in table(lake, "rejected")] == list(range(7))


@pytest.mark.parametrize("begun", [False, True])
def test_a_write_of_nothing_is_none(lake: Lake, begun: bool) -> None:
    if begun:
        kept(lake, ticks({}))
    before = lake.totals(TICKS_TOPIC)
    assert write(lake, TICKS_TOPIC, pa.RecordBatch.from_pylist([], TICKS)) == Written(0, 0)
    assert lake.totals(TICKS_TOPIC) == Lake(lake.root, identity).totals(TICKS_TOPIC) == before
    assert len(table(lake)) == before.rows == begun


def test_a_write_of_duplicates_alone_moves_the_position(lake: Lake) -> None:
    kept(lake, ticks({"sequence": 1}), ticks({"sequence": 1}))
    assert position(lake) == 2


def test_topics_and_partitions_have_positions_of_their_own(lake: Lake) -> None:
    write(lake, TICKS_TOPIC, ticks({"sequence": 1}))
    write(lake, TICKS_TOPIC, ticks({"sequence": 2}, {"sequence": 3}), 1)
    assert [position(lake, TICKS_TOPIC, partition) for partition in (0, 1, 2)] == [1, 2, 0]
    assert position(lake, BARS_TOPIC) == 0


def test_a_write_of_several_partitions_keeps_what_is_new_of_each_and_moves_all(lake: Lake) -> None:
    parts = [Chunk.dense(REJECTED_TOPIC, p, first, rejects(3, raw_partition=p)) for p, first in ((2, 0), (0, 1 << 31))]
    assert lake.write(Chunk.join(parts)) == Written(6, 0)
    assert lake.totals(REJECTED_TOPIC).positions == {0: (1 << 31) + 3, 2: 3}
    assert lake.write(Chunk.join(parts)) == Written(0, 0)  # as after a commit whose answer was lost
    more = [*parts, Chunk.dense(REJECTED_TOPIC, 2, 3, rejects(2, 3, 2)), Chunk.dense(REJECTED_TOPIC, 1, 0, rejects(1, 0, 1))]
    assert lake.write(Chunk.join(more)) == Written(3, 0)
    totals = Lake(lake.root, identity).totals(REJECTED_TOPIC)
    assert (totals.positions, totals.read, totals.rows) == ({0: (1 << 31) + 3, 1: 1, 2: 5}, 9, 9)
    assert len(table(lake, "rejected")) == 9


def test_an_event_that_comes_in_two_partitions_is_kept_once(lake: Lake) -> None:
    both = [Chunk.dense(TICKS_TOPIC, partition, 0, ticks({"sequence": 7, "raw_partition": partition})) for partition in (0, 1)]
    assert lake.write(Chunk.join(both)) == Written(1, 1)
    totals = lake.totals(TICKS_TOPIC)
    assert (totals.positions, totals.read, totals.rows, totals.duplicates) == ({0: 1, 1: 1}, 2, 1, 1)


# Crashes


def test_a_crash_between_the_files_and_the_commit_leaves_no_rows(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(lake, ticks({"sequence": 1}))
    orphan = lake.root / "ticks" / "date=2024-03-15" / "part-00001-orphan.parquet"
    pq.write_table(pa.table(with_dates(ticks({"sequence": 2}))).drop_columns(["date"]), orphan)

    def failing(*arguments: object, **named: object) -> None:
        raise DeltaError("disk full")

    monkeypatch.setattr(lake_files, "commit", failing)
    with pytest.raises(DiskProblem, match="disk full"):
        kept(lake, ticks({"sequence": 2}))
    monkeypatch.undo()
    assert [row["sequence"] for row in table(lake)] == [1]
    assert position(lake) == 1
    assert kept(lake, ticks({"sequence": 2, "raw_offset": 4})) == [1]
    assert [row["sequence"] for row in table(lake)] == [1, 2]


@pytest.mark.parametrize("committed", [False, True])
def test_the_files_of_a_failed_commit_are_removed_at_once_and_those_of_one_that_took_stay(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, *, committed: bool
) -> None:
    lake.write(tick(1))
    before = files(lake)
    commit = lake_files.commit

    def failing(*arguments: Any, **named: Any) -> None:
        if committed:
            commit(*arguments, **named)
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(lake_files, "commit", failing)
        for _ in range(3):
            with pytest.raises(DiskProblem):
                lake.write(tick(2))
            if committed:
                break
    assert len(files(lake)) == len(before) + committed
    lake.write(tick(2))
    assert len(files(lake)) == len(before) + 1
    assert lake.totals(TICKS_TOPIC).rows == 2


def test_a_flushed_file_is_on_disk_before_the_commit_that_names_it(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    named: list[str] = []
    sync, commit = local_files.sync, lake_files.commit

    def noting(path: Path) -> None:
        synced.append(path.name)
        sync(path)

    def naming(folder: Path, table: Any, removed: Any, added: Any, *rest: Any, **more: Any) -> None:
        assert all(f".{Path(one.path).name}.aside" in synced and f"date={one.day}" in synced for one in added)
        named.extend(one.path for one in added)
        commit(folder, table, removed, added, *rest, **more)

    monkeypatch.setattr(local_files, "sync", noting)
    monkeypatch.setattr(lake_files, "commit", naming)
    lake.write(tick(1))
    assert named


def tick(number: int) -> Chunk:
    return Chunk.dense(TICKS_TOPIC, 0, number - 1, ticks({"sequence": number, "raw_offset": number}))


def files(lake: Lake) -> list[Path]:
    return sorted((lake.root / "ticks").glob("date=*/*"))


def test_a_write_that_was_committed_and_still_raised_is_not_written_twice(lake: Lake) -> None:
    first = Chunk.dense(REJECTED_TOPIC, 0, 0, rejects(3))
    lake.write(first)
    again = lake.write(first)
    assert (again.rows, again.duplicates) == (0, 0)
    lake.write(Chunk.join([first, Chunk.dense(REJECTED_TOPIC, 0, 3, rejects(2, first=3))]))
    totals = lake.totals(REJECTED_TOPIC)
    assert (totals.positions, totals.read, totals.rows, len(table(lake, "rejected"))) == ({0: 5}, 5, 5, 5)


WRITER = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from made import ticks
from tapeline.providers.registry import identity
from tapeline.records import TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake
lake = Lake(Path(sys.argv[1]), identity)
at = lake.totals(TICKS_TOPIC).positions.get(0, 0)
while True:
    rows = ticks(*[dict(sequence=at + n, raw_offset=at + n) for n in range(50)])
    lake.write(Chunk.dense(TICKS_TOPIC, 0, at, rows))
    at += 50
    print("ready", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_rows_position_and_counts_that_agree(lake: Lake) -> None:
    last = 0
    for after_s in (0.13, 0.2):
        code = WRITER.format(tests=str(Path(__file__).parent))
        process = subprocess.Popen([sys.executable, "-c", code, str(lake.root)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        totals = Lake(lake.root, identity).totals(TICKS_TOPIC)
        assert totals.positions[0] == totals.read == totals.rows > last
        assert totals.duplicates == 0
        assert [row["sequence"] for row in table(lake)] == list(range(totals.rows))
        last = totals.rows


# What readers see

MIDNIGHT = NOON // DAY * DAY
EDGES = {
    -DAY - 1: date(1969, 12, 30),
    -DAY: date(1969, 12, 31),
    -1: date(1969, 12, 31),
    0: date(1970, 1, 1),
    999: date(1970, 1, 1),
    MIDNIGHT - 1: date(2024, 3, 14),
    MIDNIGHT: date(2024, 3, 15),
    MIDNIGHT + DAY - 1: date(2024, 3, 15),
    MIDNIGHT + DAY: date(2024, 3, 16),
    4_102_444_800 * NS_PER_S - 1: date(2099, 12, 31),
}


def test_the_date_and_the_timestamp_are_right_at_the_edges_of_days(lake: Lake) -> None:
    kept(lake, ticks(*[{"ts_ns": ns, "sequence": at} for at, ns in enumerate(EDGES)]))
    with connect(lake.root) as db:
        found = db.execute("SELECT ts_ns, date, epoch_us(ts) FROM ticks ORDER BY ts_ns").fetchall()
    assert found == [(ns, day, ns // 1_000) for ns, day in sorted(EDGES.items())]
    folders = {path.name for path in (lake.root / "ticks").iterdir() if path.name.startswith("date=")}
    assert folders == {f"date={day}" for day in EDGES.values()}


def test_the_rows_of_a_file_are_sorted_by_symbol_and_time(lake: Lake) -> None:
    rows = [{"symbol": f"S{at * 7 % 5}/USDT", "ts_ns": NOON + at * 31 % 17, "sequence": at} for at in range(60)]
    kept(lake, ticks(*rows))
    for path in (lake.root / "ticks").rglob("date=*/*.parquet"):
        order = [(row["symbol"], row["ts_ns"]) for row in pq.read_table(path, partitioning=None).to_pylist()]
        assert len(order) == 60
        assert order == sorted(order)


def test_every_column_comes_back_as_it_was_written(lake: Lake) -> None:
    batch = ticks({}, {**QUOTE, "conditions": "1,2"}, {**ALPACA, "trade_id": "币", "last": 5e-324})
    kept(lake, batch)
    found = [{name: row[name] for name in TICKS.names} for row in table(lake)]
    assert found == batch.to_pylist()
    write(lake, BARS_TOPIC, bars({"vwap": 1.25, "trades": 3}))
    assert [{name: row[name] for name in BARS.names} for row in table(lake, "bars")] == bars({"vwap": 1.25, "trades": 3}).to_pylist()


def test_a_lake_of_a_newer_format_is_refused_untouched(lake: Lake) -> None:
    write_deltalake(str(lake.root / "ticks"), with_dates(ticks({})), partition_by=["date"], description="Tapeline lake, format 99")
    chunk = Chunk.dense(TICKS_TOPIC, 0, 0, ticks({}))
    for attempt in (lambda: lake.totals(TICKS_TOPIC), lambda: lake.write(chunk), lambda: connect(lake.root)):
        with pytest.raises(NewerData, match="99"):
            attempt()
    assert DeltaTable(str(lake.root / "ticks")).version() == 0


def test_a_damaged_table_is_named(lake: Lake) -> None:
    kept(lake, ticks({}))
    for path in (lake.root / "ticks" / "_delta_log").glob("*.json"):
        path.write_text("no log at all")
    with pytest.raises(DiskProblem, match="ticks"):
        Lake(lake.root, identity).totals(TICKS_TOPIC)


def test_a_missing_file_is_trouble_with_the_disk_and_not_a_loss(lake: Lake) -> None:
    kept(lake, ticks({"sequence": 1}))
    (path,) = (lake.root / "ticks").rglob("date=*/*.parquet")
    path.unlink()
    with pytest.raises(DiskProblem, match="lake"):
        kept(Lake(lake.root, identity), ticks({"sequence": 1}))


def test_the_log_holds_the_position_for_other_programs(lake: Lake) -> None:
    kept(lake, ticks({"sequence": 1}, {"sequence": 1}))
    log = [json.loads(line) for path in (lake.root / "ticks" / "_delta_log").glob("*.json") for line in path.read_text().splitlines()]
    found = {entry["txn"]["appId"]: entry["txn"]["version"] for entry in log if "txn" in entry}
    name = f"tapeline/{TICKS_TOPIC.name}"
    assert found == {f"{name}/0": 2, f"{name}/partitions": 1, f"{name}/read": 2, f"{name}/rows": 1, f"{name}/duplicates": 1}


def test_an_id_is_known_after_a_restart_though_lower_ones_came_first(lake: Lake) -> None:
    kept(lake, ticks({"sequence": 100, "ts_ns": NOON}))
    restarted = Lake(lake.root, identity)
    hour = 3_600 * 10**9
    assert kept(restarted, ticks({"sequence": 50, "ts_ns": NOON - hour, "raw_offset": 1})) == [1]
    assert kept(restarted, ticks({"sequence": 100, "ts_ns": NOON, "raw_offset": 2})) == [0]
    assert kept(restarted, ticks({"sequence": 101, "ts_ns": NOON + 1, "raw_offset": 3})) == [1]


def test_ids_that_others_wrote_between_two_writes_are_known(lake: Lake) -> None:
    kept(lake, ticks({"sequence": 1}))
    kept(lake, ticks({"sequence": 2, "raw_offset": 1}))
    kept(Lake(lake.root, identity), ticks({"sequence": 9, "raw_offset": 2}))
    assert kept(lake, ticks({"sequence": 9, "raw_offset": 3}, {"sequence": 10, "raw_offset": 4})) == [1]
    assert kept(lake, ticks({"sequence": 10, "raw_offset": 5}, {"sequence": 3, "raw_offset": 6})) == [1]


def test_a_hole_in_the_log_is_told_in_words_with_what_to_do(lake: Lake) -> None:
    for number in range(4):
        kept(lake, ticks({"sequence": number + 1, "raw_offset": number}))
    (lake.root / "ticks" / "_delta_log" / f"{2:020}.json").unlink()
    for ask in (lambda: Lake(lake.root, identity).totals(TICKS_TOPIC), lambda: connect(lake.root)):
        with pytest.raises(DiskProblem) as problem:
            ask()
        said = str(problem.value)
        assert "_delta_log lacks an entry between 00000000000000000001.json and 00000000000000000003.json" in said
        assert "Restore" in said
        assert "{" not in said


def test_an_entry_of_the_log_that_is_damaged_is_named_with_what_to_do(lake: Lake) -> None:
    for number in range(4):
        kept(lake, ticks({"sequence": number + 1, "raw_offset": number}))
    (lake.root / "ticks" / "_delta_log" / f"{2:020}.json").write_bytes(b"\xff garbage\n")
    for ask in (lambda: Lake(lake.root, identity).totals(TICKS_TOPIC), lambda: connect(lake.root), lambda: checked(lake)):
        with pytest.raises(DiskProblem, match=f"{2:020}.json of its _delta_log is damaged. Restore it from a backup"):
            ask()


def test_of_a_lake_that_nobody_can_read_it_is_not_said_that_readers_see_it_whole(lake: Lake) -> None:
    for number in range(4):
        kept(lake, ticks({"sequence": number + 1, "raw_offset": number}))
    (lake.root / "ticks" / "_delta_log" / f"{2:020}.json").unlink()
    with pytest.raises(DiskProblem, match="was not checked: its log is incomplete") as problem:
        checked(lake)
    assert "Readers see" not in str(problem.value)
    assert "Nothing was changed" in str(problem.value)


@pytest.mark.parametrize("damage", ["gone", "its head", "all of it"])
def test_a_file_that_cannot_be_read_is_trouble_with_the_disk_to_whoever_asks_for_its_rows(damage: str, lake: Lake, tmp_path: Path) -> None:
    kept(lake, ticks({"sequence": 1}), ticks({"sequence": 2, "raw_offset": 1}))
    config = tmp_path / "tapeline.toml"
    config.write_text(f'data_dir = "{lake.root.parent}"\n')
    asked = CliRunner().invoke(app, ["sql", "SELECT nothing FROM ticks", "--config", str(config)])
    assert isinstance(asked.exception, ConfigError)
    for path in (lake.root / "ticks").rglob("*.parquet"):
        size = path.stat().st_size
        noise = (bytes(range(255, 0, -7)) * size)[:size]
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(noise if damage == "all of it" else b"PAR1" + noise[: size // 2] + path.read_bytes()[size // 2 + 4 :])
    with pytest.raises(DiskProblem, match="tapeline lake check"):
        find(lake.root, "ticks", "symbol = ? ORDER BY ts_ns", ["BTC/USDT"])
    asked = CliRunner().invoke(app, ["sql", "SELECT max(symbol), sum(last) FROM ticks", "--config", str(config)])
    assert isinstance(asked.exception, DiskProblem)
    assert "tapeline lake check" in str(asked.exception)


def test_a_table_whose_files_are_gone_is_trouble_only_to_whoever_asks_for_its_rows(lake: Lake) -> None:
    kept(lake, ticks({"sequence": 1}))
    for path in (lake.root / "ticks").rglob("*.parquet"):
        path.unlink()
    with connect(lake.root) as db:
        assert db.sql("FROM notices").fetchall() == db.sql("FROM bars").fetchall() == []
        for view in ("ticks", "trades"):
            with pytest.raises(duckdb.Error, match=r"ticks/date=.*\.parquet"):
                db.sql(f"FROM {view}").fetchall()


#: As deltalake says it where a disk is full, in the colors of a terminal; and where RUST_BACKTRACE is set.
_COLORED = "Generic LocalFileSystem error \x1b[31m↳\x1b[0m Unable to copy data to file \x1b[31m↳\x1b[0m No space left (os error 28)"
_WITH_CALLS = "Kernel error: Encountered unexpected 'x'\n   0: <unknown>\n   1: start_thread\n"


def test_what_delta_says_is_shown_without_colors_and_calls() -> None:
    plain = "Generic LocalFileSystem error: Unable to copy data to file: No space left (os error 28)"
    assert lake_files.message_of(DeltaError(_COLORED)) == plain
    assert lake_files.message_of(DeltaError(_WITH_CALLS)) == "Kernel error: Encountered unexpected 'x'"
