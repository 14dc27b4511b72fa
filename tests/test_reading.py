"""Reading gives each row that was asked for, once, in one order, exact to the nanosecond; opens what can match; says what is wrong."""

from __future__ import annotations

import itertools
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from hypothesis import example, given
from hypothesis import strategies as st

import tapeline
from made import BAR, DAY, NOON, TRADE, ticks
from tapeline import config, times
from tapeline.config import Config
from tapeline.errors import ConfigError, DiskProblem, NewerData, TapelineError, Unavailable, WrongArgument
from tapeline.providers.registry import identity
from tapeline.reading import asof
from tapeline.reading import replay as replaying
from tapeline.records import BARS_TOPIC, NS_PER_S, TICKS, TICKS_TOPIC, Chunk, Topic
from tapeline.stores.lake import Lake, with_dates
from tapeline.stores.lake import reading as lake_reading
from tapeline.stores.selection import ORDER, Selection
from tapeline.streams.embedded import EmbeddedStream

Row = dict[str, Any]

SECOND = NS_PER_S
MIDNIGHT = NOON // DAY * DAY
QUOTE: Row = {**TRADE, "kind": "quote", "channel": "bookTicker", "last": None, "volume": None, "side": None, "trade_id": None}
ALPACA: Row = {"provider": "alpaca", "feed": "iex", "exchange": "IEXG", "channel": "trades", "sequence": None}
#: Which rows are the same event is no matter here: each has a number of its own.
NUMBERS = itertools.count(1)


def trade(symbol: str, ts_ns: int, last: float, **other: Any) -> Row:
    number = next(NUMBERS)
    return {
        **TRADE,
        "symbol": symbol,
        "ts_ns": ts_ns,
        "last": last,
        "sequence": number,
        "trade_id": str(number),
        "raw_offset": number,
        **other,
    }


def quote(symbol: str, ts_ns: int, bid: float | None, ask: float | None, **other: Any) -> Row:
    number = next(NUMBERS)
    sizes = {"bid_size": 1.0 if bid else None, "ask_size": 2.0 if ask else None}
    return {**QUOTE, "symbol": symbol, "ts_ns": ts_ns, "bid": bid, "ask": ask, **sizes, "sequence": number, "raw_offset": number, **other}


def write(lake: Lake, topic: Topic, *rows: Row) -> None:
    """One commit of the lake, in the order given."""
    batch = pa.RecordBatch.from_pylist(list(rows), topic.schema)
    first = lake.totals(topic).positions.get(0, 0)
    assert lake.write(Chunk.dense(topic, 0, first, batch)).rows == len(rows)


def settings(root: Path) -> Config:
    return Config(data_dir=str(root))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake", identity)


@pytest.fixture
def here(tmp_path: Path) -> Config:
    """The configuration whose lake is `lake`."""
    return settings(tmp_path)


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: tuple(row[name] for name in ORDER))


def without_ts(table: pa.Table) -> list[Row]:
    found: list[Row] = table.drop_columns(["ts"]).to_pylist()
    return found


# A market of some days, with all that makes order and choice hard, and what reading it must give

SYMBOLS = ("AAPL", "BTC/USDT", "ETH/USDT", "Z")
MARKET: list[list[Row]] = []


def market() -> list[list[Row]]:
    """Rows of some commits: days apart and overlapping, many of one nanosecond, of three providers, three raw partitions."""
    if MARKET:
        return MARKET
    dice = random.Random(5)
    for commit in range(9):
        rows: list[Row] = []
        begin = MIDNIGHT + commit // 3 * DAY + commit % 3 * 7 * 3600 * SECOND
        for _ in range(60):
            symbol = dice.choice(SYMBOLS[: 2 + commit % 3])
            ts = begin + dice.choice([0, 1, 2, 1_000, dice.randrange(8 * 3600 * SECOND)])
            other: Row = {"raw_partition": dice.randrange(3), "raw_index": dice.randrange(3)}
            if symbol == "AAPL":
                other |= ALPACA
            make = trade if dice.random() < 0.5 else quote
            rows.append(make(symbol, ts, 1.5, **other) if make is trade else quote(symbol, ts, 1.0, dice.choice([2.0, None]), **other))
        dice.shuffle(rows)
        MARKET.append(rows)
    return MARKET


@pytest.fixture(scope="module")
def traded(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("market")
    lake = Lake(root / "lake", identity)
    for rows in market():
        write(lake, TICKS_TOPIC, *rows)
    return settings(root)


def test_times_with_a_zone_come_out_of_duckdb_as_python_s_own(traded: Config) -> None:
    with tapeline.connect(config=traded) as db:
        ((ts, ns),) = db.sql("SELECT ts, ts_ns FROM ticks ORDER BY ts_ns LIMIT 1").fetchall()
    assert ts == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // 1_000)


def expected(symbols: list[str], start_ns: int, end_ns: int, provider: str | None = None, kind: str | None = None) -> list[Row]:
    return in_order(
        [
            row
            for row in itertools.chain(*market())
            if row["symbol"] in symbols
            and start_ns <= row["ts_ns"] < end_ns
            and provider in (None, row["provider"])
            and kind in (None, row["kind"])
        ]
    )


MOMENTS = st.one_of(
    st.integers(MIDNIGHT - DAY, MIDNIGHT + 4 * DAY),
    st.sampled_from([row["ts_ns"] + by for rows in market() for row in rows for by in (0, 1)]),
)


@given(
    symbols=st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=3),
    moments=st.tuples(MOMENTS, MOMENTS),
    provider=st.sampled_from([None, "binance", "alpaca", "polygon"]),
    kind=st.sampled_from([None, "trade", "quote"]),
    window=st.sampled_from([1, 7, 500_000]),
)
def test_ticks_are_those_asked_for_in_order_whatever_fits_in_a_window(
    traded: Config, symbols: list[str], moments: tuple[int, int], provider: str | None, kind: str | None, window: int
) -> None:
    start, end = min(moments), max(moments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lake_reading, "_WINDOW_ROWS", window)
        patch.setattr(lake_reading, "_UNCOUNTED_ROWS", 4 * window if window < 500_000 else 1_000_000)
        found = tapeline.ticks(symbols, start, end, provider=provider, kind=kind, config=traded).arrow()
    assert without_ts(found) == expected(symbols, start, end, provider, kind)
    assert found["ts"].cast(pa.int64()).to_pylist() == found["ts_ns"].to_pylist()


def test_a_file_whose_bytes_were_changed_is_refused_by_every_question_that_reads_it(tmp_path: Path) -> None:
    Lake(tmp_path / "lake", identity).write(Chunk.dense(TICKS_TOPIC, 0, 0, ticks(trade("BTC/USDT", NOON, 1.0))))
    (file,) = (tmp_path / "lake" / "ticks").rglob("*.parquet")
    whole = file.read_bytes()
    at = whole.rindex(b"parquet-cpp")  # who wrote it: nothing that a reader would miss
    file.write_bytes(whole[:at] + b"Parquet-cpp" + whole[at + 11 :])
    asked = Selection(("BTC/USDT",), NOON, NOON + SECOND, ("symbol", "last"))
    careless = tapeline.open_source("lake", config=Config(data_dir=str(tmp_path)))
    assert careless.last(asked).num_rows == careless.ticks(asked).read_all().num_rows == 1
    for ask in (lambda source: source.last(asked), lambda source: source.ticks(asked).read_all()):
        with pytest.raises(DiskProblem, match="bytes were changed"):
            ask(tapeline.open_source("lake", verify=True, config=Config(data_dir=str(tmp_path))))


def test_the_start_is_in_the_range_and_the_end_is_not(lake: Lake, here: Config) -> None:
    rows = [trade("Z", NOON + at, 1.0) for at in range(-1, 4)]
    write(lake, TICKS_TOPIC, *rows)
    assert tapeline.ticks("Z", NOON, NOON + 3, config=here).arrow()["ts_ns"].to_pylist() == [NOON, NOON + 1, NOON + 2]
    assert tapeline.ticks("Z", NOON, NOON, config=here).arrow().num_rows == 0


def test_what_is_empty_has_the_columns_all_the_same(traded: Config) -> None:
    found = tapeline.ticks("Z", NOON - 9 * DAY, NOON - 8 * DAY, config=traded)
    assert found.arrow().schema == found.schema == pa.schema([*TICKS, pa.field("ts", pa.timestamp("ns", "UTC"), nullable=False)])
    assert list(found.pandas().columns) == list(found.polars().columns) == found.duckdb().columns == [*TICKS.names, "ts"]


def test_columns_come_in_the_order_asked_for_and_ts_without_ts_ns(traded: Config) -> None:
    whole = tapeline.ticks(SYMBOLS, MIDNIGHT, MIDNIGHT + 4 * DAY, config=traded).arrow()
    for names in (["ts"], ["last", "ts", "symbol"], ["conditions"], "raw_index"):
        some = tapeline.ticks(SYMBOLS, MIDNIGHT, MIDNIGHT + 4 * DAY, columns=names, config=traded).arrow()
        assert some == whole.select([names] if isinstance(names, str) else names)


def test_every_table_has_the_same_rows_exact_to_the_nanosecond(lake: Lake, here: Config) -> None:
    odd = 1_710_504_000_123_456_789
    large = (1 << 53) + 1  # not a float64
    rows = [trade("Z", odd, 0.1, sequence=large, latency_ns=-7), trade("Z", odd + 1, 5e-324, sequence=None, conditions="1,币")]
    write(lake, TICKS_TOPIC, *rows)
    result = tapeline.ticks("Z", odd, odd + 2, config=here)
    assert without_ts(result.arrow()) == rows
    frame = result.pandas()
    assert str(frame["ts"].dtype) == "datetime64[ns, UTC]"
    assert [moment.value for moment in frame["ts"]] == [odd, odd + 1]
    assert (str(frame["sequence"].dtype), frame["sequence"][0], frame["sequence"][1] is pd.NA) == ("Int64", large, True)
    assert (str(frame["ts_ns"].dtype), str(frame["raw_partition"].dtype)) == ("int64", "int32")
    assert list(frame["latency_ns"]) == [-7, 5]
    polars = result.polars()
    assert str(polars.schema["ts"]) == "Datetime(time_unit='ns', time_zone='UTC')"
    assert polars["ts"].to_physical().to_list() == [odd, odd + 1]
    assert polars.drop("ts").to_dicts() == rows
    relation = result.duckdb()
    assert relation.aggregate("sum(ts_ns), max(sequence), min(last), count(*)").fetchall() == [(2 * odd + 1, large, 5e-324, 2)]
    assert (str(relation.types[-1]), relation.columns[-1]) == ("TIMESTAMP_NS", "ts")
    minute = "SELECT epoch_ns(ts), time_bucket(INTERVAL '1 minute', ts) = TIMESTAMP '2024-03-15 12:00:00' FROM t ORDER BY ts"
    assert relation.query("t", minute).fetchall() == [(odd, True), (odd + 1, True)]
    assert duckdb.sql("SELECT count(*) FROM relation AS a JOIN relation AS b USING (ts)").fetchall() == [(2,)]
    with duckdb.connect() as own:
        assert result.duckdb(own).filter("ts_ns % 2 = 0").aggregate("count(*)").fetchall() == [(1,)]
    assert without_ts(pa.RecordBatchReader.from_stream(result).read_all()) == rows


def test_a_result_is_of_the_moment_it_was_asked_for(lake: Lake, here: Config) -> None:
    first = trade("Z", NOON, 1.0)
    write(lake, TICKS_TOPIC, first)
    result = tapeline.ticks("Z", NOON, NOON + DAY, config=here)
    write(lake, TICKS_TOPIC, trade("Z", NOON + 1, 2.0))
    assert without_ts(result.arrow()) == without_ts(result.arrow()) == [first]
    assert tapeline.ticks("Z", NOON, NOON + DAY, config=here).arrow().num_rows == 2


def test_a_source_that_is_open_shows_each_call_what_is_there_by_then(lake: Lake, here: Config) -> None:
    write(lake, TICKS_TOPIC, trade("Z", NOON, 1.0))
    source = tapeline.open_source("lake", config=here)
    first = tapeline.ticks("Z", NOON, NOON + DAY, source=source)
    other = first.batches()
    write(lake, TICKS_TOPIC, trade("Z", NOON + 1, 2.0))
    second = tapeline.ticks("Z", NOON, NOON + DAY, columns=["last"], source=source).arrow()
    assert second["last"].to_pylist() == [1.0, 2.0]
    assert other.read_all()["last"].to_pylist() == first.arrow()["last"].to_pylist() == [1.0]
    assert tapeline.latest("Z", source=source).arrow()["last"].to_pylist() == [2.0]


# What is opened, and when


def files(lake: Lake, day: int) -> list[Path]:
    return sorted((lake.root / "ticks" / f"date={datetime.fromtimestamp(day // SECOND, UTC):%Y-%m-%d}").glob("*.parquet"))


def test_files_that_cannot_match_are_not_opened(lake: Lake, here: Config) -> None:
    for day in range(3):
        write(lake, TICKS_TOPIC, trade("AAPL", NOON + day * DAY, 1.0), trade("MSFT", NOON + day * DAY, 1.0))
        write(lake, TICKS_TOPIC, trade("Z", NOON + day * DAY + 1, 2.0))
    for path in (*files(lake, NOON), *files(lake, NOON + 2 * DAY)):
        path.write_bytes(b"no Parquet")
    other = next(path for path in files(lake, NOON + DAY) if b"MSFT" in path.read_bytes())
    other.write_bytes(b"no Parquet")
    assert tapeline.ticks("Z", NOON + DAY, NOON + DAY + 2, config=here).arrow()["last"].to_pylist() == [2.0]
    with pytest.raises(DiskProblem, match="cannot be read"):
        tapeline.ticks("Z", NOON, NOON + DAY + 2, config=here).arrow()


def test_batches_come_before_what_is_later_is_opened(lake: Lake, here: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_reading, "_WINDOW_ROWS", 10)
    monkeypatch.setattr(lake_reading, "_UNCOUNTED_ROWS", 0)
    days = [[trade("Z", NOON + day * DAY + at, float(at)) for at in range(10)] for day in range(3)]
    for rows in days:
        write(lake, TICKS_TOPIC, *rows)
    reader = tapeline.ticks("Z", NOON, NOON + 3 * DAY, columns=TICKS.names, config=here).batches()
    assert reader.read_next_batch().to_pylist() == days[0]
    for path in files(lake, NOON + 2 * DAY):
        path.unlink()
    assert reader.read_next_batch().to_pylist() == days[1]
    with pytest.raises(DiskProblem, match="cannot be read"):
        reader.read_next_batch()


def test_no_more_rows_are_sorted_at_once_than_a_window_has(lake: Lake, here: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_reading, "_WINDOW_ROWS", 50)
    monkeypatch.setattr(lake_reading, "_UNCOUNTED_ROWS", 0)
    sorted_at_once: list[int] = []
    run = lake_reading.LakeSource._run

    def watched(source: lake_reading.LakeSource, text: str, *rest: Any) -> Iterator[pa.RecordBatch]:
        batches = list(run(source, text, *rest))
        if "ORDER BY ts_ns" in text:
            sorted_at_once.append(sum(batch.num_rows for batch in batches))
        return iter(batches)

    dice = random.Random(3)
    # Most within a thousandth of the range, some far off, and one nanosecond with more than a window's rows.
    rows = [trade("Z", NOON + dice.randrange(1_000_000), 1.0) for _ in range(700)]
    rows += [trade("Z", NOON + dice.randrange(DAY // 3), 1.0) for _ in range(100)]
    crowded = [trade("Z", NOON + DAY // 3, 1.0) for _ in range(60)]
    write(lake, TICKS_TOPIC, *rows, *crowded)
    monkeypatch.setattr(lake_reading.LakeSource, "_run", watched)
    assert without_ts(tapeline.ticks("Z", NOON, NOON + DAY, config=here).arrow()) == in_order([*rows, *crowded])
    assert max(sorted_at_once[:-1]) <= 50
    assert sorted_at_once[-1] == 60


# Bars


def test_bars_are_the_last_revision_of_each(lake: Lake, here: Config) -> None:
    minute = 60 * SECOND
    rows: list[Row] = [
        {**BAR, "close": 2.0, "raw_offset": 1},
        {**BAR, "close": 2.5, "received_ns": NOON + 9, "final": True, "raw_offset": 2},
        {**BAR, "ts_ns": NOON + minute, "close": 4.0, "raw_offset": 3, "vwap": 1.5, "trades": 7},
        {**BAR, "interval": "1s", "close": 5.0, "raw_offset": 4},
        {**BAR, "symbol": "AMD", "close": 6.0, "raw_offset": 5},
        {**BAR, "provider": "alpaca", "feed": "iex", "channel": "bars", "close": 7.0, "raw_offset": 6},
    ]
    write(lake, BARS_TOPIC, *rows[:1])
    write(lake, BARS_TOPIC, *rows[1:])
    assert without_ts(tapeline.bars(["AAPL", "AMD"], NOON, NOON + DAY, config=here).arrow()) == in_order(rows[1:])
    assert without_ts(tapeline.bars("AAPL", NOON, NOON + minute, interval="1m", provider="polygon", config=here).arrow()) == [rows[1]]
    some = tapeline.bars("AAPL", NOON, NOON + 1, interval="1s", columns=["close", "ts"], config=here).arrow()
    assert some.to_pylist() == [{"close": 5.0, "ts": pd.Timestamp(NOON, tz="UTC")}]


# The latest


def test_the_latest_is_the_last_trade_and_the_quote_in_force_of_each_symbol(traded: Config) -> None:
    rows = tapeline.latest(["Z", "AAPL", "BTC/USDT"], config=traded).arrow().to_pylist()
    assert [row["symbol"] for row in rows] == ["Z", "AAPL", "BTC/USDT"]
    for row in rows:
        last = expected([row["symbol"]], 0, 1 << 62, kind="trade")[-1]
        bid = expected([row["symbol"]], 0, 1 << 62, kind="quote")[-1]
        assert (row["trade_ts_ns"], row["last"], row["trade_provider"]) == (last["ts_ns"], last["last"], last["provider"])
        assert (row["quote_ts_ns"], row["bid"], row["ask"], row["quote_feed"]) == (bid["ts_ns"], bid["bid"], bid["ask"], bid["feed"])
        assert row["trade_ts"] == pd.Timestamp(last["ts_ns"], tz="UTC")


@given(before=MOMENTS.filter(lambda moment: moment > MIDNIGHT), provider=st.sampled_from([None, "alpaca"]))
def test_the_latest_before_a_moment_is_what_it_was_just_before_it(traded: Config, before: int, provider: str | None) -> None:
    (row,) = tapeline.latest("AAPL", before=before, provider=provider, config=traded).arrow().to_pylist()
    trades, quotes = (expected(["AAPL"], 0, before, kind=kind) for kind in ("trade", "quote"))
    assert row["trade_ts_ns"] == (trades[-1]["ts_ns"] if trades else None)
    assert (row["quote_ts_ns"], row["ask"]) == ((quotes[-1]["ts_ns"], quotes[-1]["ask"]) if quotes else (None, None))


def test_the_latest_opens_the_newest_files_alone_and_others_only_for_what_these_lack(lake: Lake, here: Config) -> None:
    for day in range(6):
        at = NOON + day * DAY
        write(lake, TICKS_TOPIC, trade("Z", at, float(day)), quote("Z", at + 1, 1.0, 2.0), *([trade("OLD", at, 9.0)] if day == 4 else []))
    for day in range(4):
        for path in files(lake, NOON + day * DAY):
            path.write_bytes(b"no Parquet")
    (row,) = tapeline.latest("Z", config=here).arrow().to_pylist()
    assert (row["last"], row["trade_ts_ns"], row["quote_ts_ns"]) == (5.0, NOON + 5 * DAY, NOON + 5 * DAY + 1)
    (row,) = tapeline.latest("OLD", days=2, config=here).arrow().to_pylist()
    assert (row["last"], row["bid"]) == (9.0, None)


def test_what_is_older_than_the_days_is_not_looked_for(lake: Lake, here: Config) -> None:
    write(lake, TICKS_TOPIC, trade("OLD", NOON, 3.0))
    write(lake, TICKS_TOPIC, trade("Z", NOON + 9 * DAY, 4.0))
    (row,) = tapeline.latest("OLD", config=here).arrow().to_pylist()
    assert (row["symbol"], row["last"]) == ("OLD", None)
    assert tapeline.latest("OLD", days=10, config=here).arrow()["last"].to_pylist() == [3.0]


# The quote in force


def as_of(rows: list[Row]) -> list[tuple[int, int | None, float | None, float | None]]:
    """For each trade: its raw offset, and the quote in force by the rule, said once more in plain loops."""
    found = []
    for row in in_order(rows):
        if row["kind"] == "trade":
            key = [row[name] for name in asof.KEY]
            quotes = [other for other in rows if other["kind"] == "quote" and [other[name] for name in asof.KEY] == key]
            force = in_order([other for other in quotes if other["ts_ns"] <= row["ts_ns"]])[-1:] or [dict.fromkeys(TICKS.names)]
            found.append((row["raw_offset"], force[0]["ts_ns"], force[0]["bid"], force[0]["ask"]))
    return found


def quoted(table: pa.Table) -> list[tuple[int, int | None, float | None, float | None]]:
    return [(row["raw_offset"], row["quote_ts_ns"], row["bid"], row["ask"]) for row in table.to_pylist()]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["A", "B"]), st.sampled_from(["iex", "sip"]), st.integers(0, 6), st.sampled_from([None, 1.0, 2.0, 3.0])),
    max_size=25,
)


@given(events=EVENTS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), since=st.integers(0, 7))
def test_the_quote_in_force_is_the_last_at_or_before_the_trade_however_the_batches_are_cut(
    events: list[tuple[str, str, int, float | None]], sizes: list[int], since: int
) -> None:
    rows = []
    for number, (symbol, feed, ts, bid) in enumerate(events):
        kind = {**QUOTE, "bid": bid, "ask": 9.0} if bid is not None else TRADE
        rows.append({**kind, "symbol": symbol, "feed": feed, "ts_ns": ts, "raw_offset": number})
    stream = ticks(*in_order([row for row in rows if row["ts_ns"] >= since]))
    asked: list[tuple[str, str, str]] = []

    def before(provider: str, feed: str, symbols: tuple[str, ...]) -> pa.Table:
        asked.extend((provider, feed, symbol) for symbol in symbols)
        early = [row for row in in_order(rows) if row["ts_ns"] < since and row["kind"] == "quote" and row["feed"] == feed]
        last = {row["symbol"]: row for row in early if row["symbol"] in symbols}
        return pa.Table.from_pylist(list(last.values()), TICKS)

    def cut() -> Iterator[pa.RecordBatch]:
        at = 0
        for size in itertools.cycle(sizes):
            if at >= stream.num_rows:
                return
            yield stream.slice(at, size)
            at += size

    batches = list(asof.quotes_at_trades(cut(), before, asof.QUOTED))
    wanted = {row["raw_offset"] for row in rows if row["ts_ns"] >= since}
    assert quoted(pa.Table.from_batches(batches, asof.QUOTED)) == [one for one in as_of(rows) if one[0] in wanted]
    assert len(asked) == len(set(asked))


def test_the_quote_in_force_of_a_lake_may_be_from_before_the_range(traded: Config) -> None:
    rows = expected(list(SYMBOLS), 0, 1 << 62)
    start, end = MIDNIGHT + DAY + 8 * 3600 * SECOND, MIDNIGHT + 3 * DAY
    found = tapeline.quotes_at_trades(SYMBOLS, start, end, config=traded).arrow()
    wanted = {row["raw_offset"] for row in rows if row["kind"] == "trade" and start <= row["ts_ns"] < end}
    assert quoted(found) == [one for one in as_of(rows) if one[0] in wanted]
    assert any(one[1] is not None and one[1] < start for one in quoted(found))
    assert found["quote_ts"].cast(pa.int64()).to_pylist() == found["quote_ts_ns"].to_pylist()
    assert found.schema.names == [*asof.QUOTED.names, "ts", "quote_ts"]
    some = tapeline.quotes_at_trades(SYMBOLS, start, end, columns=["ask", "last", "ts"], config=traded).arrow()
    assert some == found.select(["ask", "last", "ts"])


def test_a_quote_of_the_very_nanosecond_is_in_force_though_it_came_after_the_trade(lake: Lake, here: Config) -> None:
    write(
        lake,
        TICKS_TOPIC,
        quote("Z", NOON - 1, 1.0, 2.0),
        trade("Z", NOON, 5.0),
        quote("Z", NOON, 3.0, None),
        quote("Z", NOON + 1, 7.0, 8.0),
    )
    (row,) = tapeline.quotes_at_trades("Z", NOON, NOON + 1, config=here).arrow().to_pylist()
    assert (row["last"], row["bid"], row["ask"], row["quote_ts_ns"]) == (5.0, 3.0, None, NOON)


# Replay


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 10**15
        self.slept: list[float] = []

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += round(seconds * NS_PER_S)


def test_a_replay_gives_each_tick_in_order_when_it_is_due(lake: Lake, here: Config) -> None:
    rows = [trade("Z", NOON, 1.0), quote("A", NOON, 2.0, 3.0), trade("Z", NOON + 4 * SECOND, 4.0), trade("A", NOON + 5 * SECOND, 5.0)]
    write(lake, TICKS_TOPIC, *rows)
    clock = Clock()
    begun = clock.now
    found = tapeline.replay(["A", "Z"], NOON, NOON + DAY, speed=2.0, config=here, sleep=clock.sleep, clock=clock)
    seen = [(clock.now - begun, tick) for tick in found]
    assert [tick._asdict() for _, tick in seen] == in_order(rows)
    assert [at for at, _ in seen] == [0, 0, 2 * SECOND, 5 * SECOND // 2]
    assert clock.slept == [2.0, 0.5]


@pytest.mark.parametrize("speed", [0, None, 0.0])
def test_a_replay_without_a_speed_never_sleeps(traded: Config, speed: float | None) -> None:
    found = tapeline.replay(SYMBOLS, MIDNIGHT, MIDNIGHT + 4 * DAY, speed=speed, config=traded, sleep=pytest.fail)
    assert [tick._asdict() for tick in found] == expected(list(SYMBOLS), 0, 1 << 62)


def test_a_replay_that_was_slow_catches_up_without_a_pause(lake: Lake, here: Config) -> None:
    write(lake, TICKS_TOPIC, *[trade("Z", NOON + at * SECOND, 1.0) for at in range(5)])
    clock = Clock()
    found = tapeline.replay("Z", NOON, NOON + DAY, config=here, sleep=clock.sleep, clock=clock)
    next(found)
    clock.now += 3 * SECOND
    assert [tick.ts_ns for tick in itertools.islice(found, 3)] == [NOON + at * SECOND for at in (1, 2, 3)]
    assert clock.slept == []
    assert next(found).ts_ns == NOON + 4 * SECOND
    assert clock.slept == [1.0]


def test_a_replay_reads_no_further_than_it_is_taken(lake: Lake, here: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_reading, "_WINDOW_ROWS", 2)
    monkeypatch.setattr(lake_reading, "_UNCOUNTED_ROWS", 0)
    for day in range(3):
        write(lake, TICKS_TOPIC, trade("Z", NOON + day * DAY, 1.0), trade("Z", NOON + day * DAY + 1, 1.0))
    found = tapeline.replay("Z", NOON, NOON + 3 * DAY, speed=0, config=here)
    next(found)
    for path in files(lake, NOON + 2 * DAY):
        path.unlink()
    assert [tick.ts_ns for tick in itertools.islice(found, 3)] == [NOON + 1, NOON + DAY, NOON + DAY + 1]
    with pytest.raises(Unavailable):
        next(found)


@given(
    gaps=st.lists(st.integers(0, 3 * NS_PER_S), min_size=1, max_size=30),
    size=st.integers(1, 9),
    speed=st.floats(0.01, 1000.0),
)
def test_no_tick_is_early_none_is_lost_and_none_waits_without_need(gaps: list[int], size: int, speed: float) -> None:
    ts = np.cumsum(gaps) + NOON
    batch = pa.record_batch({"ts_ns": pa.array(ts, pa.int64())})
    clock = Clock()
    begun, seen = clock.now, []
    for part in replaying.paced((batch.slice(at, size) for at in range(0, len(ts), size)), speed, sleep=clock.sleep, clock=clock):
        seen += [(one, clock.now - begun) for one in part["ts_ns"].to_pylist()]
    assert [one for one, _ in seen] == ts.tolist()
    for one, at in seen:
        due = (one - int(ts[0])) / speed
        assert due - 1 <= at <= due + 2 * len(ts)


def test_a_sleep_that_is_told_to_stop_ends_a_replay(lake: Lake, here: Config) -> None:
    write(lake, TICKS_TOPIC, trade("Z", NOON, 1.0), trade("Z", NOON + SECOND, 1.0))
    assert len(list(tapeline.replay("Z", NOON, NOON + DAY, config=here, sleep=lambda _: True))) == 1


def test_the_fields_of_a_tick_are_the_columns() -> None:
    assert list(tapeline.Tick._fields) == TICKS.names


# The command


def command(*words: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "tapeline", "replay", *words], cwd=folder, stderr=subprocess.PIPE, text=True)


def published(root: Path) -> list[Row]:
    stream = EmbeddedStream(root / "stream", 1)
    with closing(stream):
        chunk = stream.read(TICKS_TOPIC, {}, 10_000)
        return chunk.batch.to_pylist() if chunk is not None else []


@pytest.fixture
def desk(tmp_path: Path, lake: Lake) -> Path:
    """A folder with the lake, its configuration, and that of another stream."""
    (tmp_path / "tapeline.toml").write_text('data_dir = "."\n')
    (tmp_path / "backtest.toml").write_text('data_dir = "./backtest"\n')
    return tmp_path


def test_the_command_publishes_into_another_stream_what_is_in_the_range_in_order(desk: Path, lake: Lake) -> None:
    rows = [trade("Z", NOON + at * 7 % 50, float(at)) for at in range(50)] + [quote("A", NOON + 1, None, 3.0)]
    write(lake, TICKS_TOPIC, *rows, trade("OTHER", NOON, 1.0))
    words = (
        "--symbol",
        "Z",
        "--symbol",
        "A",
        "--from",
        "2024-03-15T12:00:00Z",
        "--to",
        "2024-03-15T12:00:00.000000040Z",
        "--into",
        "backtest.toml",
    )
    process = command(*words, "--speed", "0", folder=desk)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "41 ticks published.\n")
    assert published(desk / "backtest") == in_order([row for row in rows if row["ts_ns"] < NOON + 40])


def test_the_command_keeps_the_pace_and_stops_when_it_is_told(desk: Path, lake: Lake) -> None:
    rows = [trade("Z", NOON, 1.0), trade("Z", NOON + SECOND // 2, 2.0), trade("Z", NOON + 600 * SECOND, 3.0)]
    write(lake, TICKS_TOPIC, *rows)
    process = command("--symbol", "Z", "--from", str(NOON), "--to", str(NOON + DAY), "--into", "backtest.toml", folder=desk)
    deadline = time.monotonic() + 60
    while len(published(desk / "backtest")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "2 ticks published, then stopped.\n")
    assert published(desk / "backtest") == rows[:2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--into", "tapeline.toml"], "the stream that the ticks came from"),
        (["--into", "none.toml"], "no configuration file none.toml"),
        (["--into", "backtest.toml", "--speed", "-1"], "speed = -1.0"),
        (["--into", "backtest.toml", "--kind", "bar"], "kind = 'bar'"),
    ],
)
def test_the_command_says_what_is_wrong(desk: Path, lake: Lake, words: list[str], said: str) -> None:
    write(lake, TICKS_TOPIC, trade("Z", NOON, 1.0))
    process = command("--symbol", "Z", "--from", "2024-03-15", "--to", "2024-03-16", *words, folder=desk)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 78
    assert said in shown
    assert published(desk / "backtest") == []


class Shaky:
    """A stream that is away for the second call."""

    def __init__(self) -> None:
        self.got: list[Row] = []
        self.calls = 0

    def append(self, topic: Topic, batch: pa.RecordBatch, partition: int | None = None) -> None:
        self.calls += 1
        if self.calls == 2:
            raise Unavailable("not now")
        assert topic is TICKS_TOPIC
        self.got += batch.to_pylist()


def test_a_stream_that_is_away_for_a_moment_gets_each_tick_once(traded: Config) -> None:
    stream: Any = Shaky()
    batches = (
        tapeline.ticks(SYMBOLS, MIDNIGHT, MIDNIGHT + 4 * DAY, columns=TICKS.names, config=traded).arrow().to_batches(max_chunksize=100)
    )
    assert replaying.publish(iter(batches), stream, threading.Event(), random.Random(1)) == len(stream.got)
    assert stream.got == expected(list(SYMBOLS), 0, 1 << 62)


def test_a_lake_that_cannot_be_read_to_the_end_is_not_taken_for_the_end(lake: Lake, here: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_reading, "_WINDOW_ROWS", 1)
    monkeypatch.setattr(lake_reading, "_UNCOUNTED_ROWS", 0)
    rows = [trade("Z", NOON + day * DAY, 1.0) for day in range(3)]
    for row in rows:
        write(lake, TICKS_TOPIC, row)
    batches = tapeline.ticks("Z", NOON, NOON + 3 * DAY, columns=TICKS.names, config=here).batches()
    first = batches.read_next_batch()
    for path in files(lake, NOON + 2 * DAY):
        path.unlink()
    stream: Any = Shaky()
    with pytest.raises(DiskProblem, match="cannot be read"):
        replaying.publish(itertools.chain([first], batches), stream, threading.Event(), random.Random(1))
    assert stream.got == rows[:2]


# What is wrong is said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"symbols": []}, "symbols is empty. Name at least one"),
        ({"symbols": ""}, "empty name"),
        ({"symbols": ["Z", 5]}, "symbols has 5, which is not text"),
        ({"symbols": ["Z", None]}, "symbols has None"),
        ({"symbols": 7}, "symbols = 7"),
        ({"symbols": ["btcusdt"]}, "no ticks of 'btcusdt' at any time. Did you mean 'BTC/USDT'"),
        ({"symbols": ["Z", "NOPE1", "NOPE2"]}, "'NOPE1' at any time, nor of 1 more"),
        ({"start": NOON + 2, "end": NOON + 1}, f"start = {NOON + 2} is after end = {NOON + 1}. Swap them"),
        ({"start": "2024-03-15T12:00:00"}, "has no time zone"),
        ({"end": datetime(2024, 3, 15)}, "has no time zone"),  # noqa: DTZ001
        ({"start": 1.5}, "start = 1.5 is not a time"),
        ({"end": "soon"}, "end = 'soon' is not a time"),
        ({"end": None}, "end = None"),
        ({"columns": ["last", "prize"]}, "columns has 'prize', which is not a column. The columns are: symbol, ts_ns"),
        ({"columns": ["last", "last"]}, "columns has 'last' twice"),
        ({"columns": []}, "columns is empty"),
        ({"columns": 5}, "columns = 5"),
        ({"kind": "bar"}, "kind = 'bar' is not a kind of tick. Use one of: trade, quote"),
        ({"provider": "kraken"}, "provider = 'kraken' is not a provider. Use one of: alpaca, binance, polygon"),
        ({"source": None}, "source = None is not a source"),
        ({"source": "csv"}, "source = 'csv' is not a source. Use one of: lake, postgres"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_meant_is_named_with_its_value_and_the_remedy(traded: Config, changed: Row, said: str) -> None:
    arguments: Row = {"symbols": "Z", "start": "2024-03-15", "end": "2024-03-20", "config": traded} | changed
    with pytest.raises(ValueError, match=r".") as caught:
        tapeline.ticks(**arguments)
    assert said in str(caught.value)
    assert isinstance(caught.value, TapelineError)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda here: tapeline.bars("Z", NOON, NOON, config=here), "no bars of 'Z'"),
        (lambda here: tapeline.bars("Z", NOON, NOON, interval="1 minute", config=here), "interval = '1 minute'"),
        (lambda here: tapeline.latest("Z", days=0.5, config=here), "days = 0.5"),
        (lambda here: tapeline.latest("Z", provider="x", config=here), "provider = 'x'"),
        (lambda here: tapeline.replay("Z", NOON, NOON, speed=-1, config=here), "speed = -1"),
        (lambda here: tapeline.replay("Z", NOON, NOON, speed=float("nan"), config=here), "speed = nan"),
        (lambda here: tapeline.quotes_at_trades("Z", NOON, NOON, columns=["kind"], config=here), "columns has 'kind'"),
    ],
)
def test_the_other_calls_say_so_too_at_once(traded: Config, call: Any, said: str) -> None:
    with pytest.raises(WrongArgument) as caught:
        call(traded)
    assert said in str(caught.value)


def test_a_lake_that_holds_nothing_is_no_lake_with_an_empty_answer(here: Config) -> None:
    with pytest.raises(WrongArgument, match=r"no ticks of 'Z' at any time\. Check the symbol"):
        tapeline.ticks("Z", NOON, NOON + DAY, config=here)


def test_a_symbol_that_is_only_in_the_middle_of_an_old_file_is_known(lake: Lake, here: Config) -> None:
    write(lake, TICKS_TOPIC, *[trade(symbol, NOON, 1.0) for symbol in ("A", "RARE", "Z")])
    for day in range(1, 12):
        write(lake, TICKS_TOPIC, *[trade(symbol, NOON + day * DAY, 1.0) for symbol in ("A", "Z")])
    assert tapeline.ticks("RARE", NOON + DAY, NOON + 2 * DAY, config=here).arrow().num_rows == 0


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(
    traded: Config, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed. Install it: pip install 'tapeline\[{name}\]'"):
        getattr(tapeline.ticks("Z", NOON, NOON, config=traded), name)()


def test_postgres_is_a_source_that_says_what_it_lacks(here: Config) -> None:
    with pytest.raises(ConfigError, match="postgres"):
        tapeline.ticks("Z", NOON, NOON, source="postgresql", config=here)


def test_the_configuration_may_be_a_file_or_the_one_in_the_folder(desk: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    write(lake, TICKS_TOPIC, trade("Z", NOON, 1.0))
    monkeypatch.chdir(desk)
    for given_config in (None, "tapeline.toml", desk / "tapeline.toml", config.load(desk / "tapeline.toml", {})):
        assert tapeline.ticks("Z", NOON, NOON + 1, config=given_config).arrow().num_rows == 1
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        tapeline.ticks("Z", NOON, NOON + 1, config="nowhere.toml")


def test_a_lake_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "lake" / "ticks"), with_dates(ticks({})), partition_by=["date"], description="Tapeline lake, format 99")
    with pytest.raises(NewerData, match="99"):
        tapeline.ticks("Z", NOON, NOON, config=settings(tmp_path))


def test_importing_tapeline_is_cheap() -> None:
    code = "import sys, tapeline; assert not {'pyarrow', 'duckdb', 'deltalake', 'numpy'} & set(sys.modules); tapeline.ticks"
    subprocess.run([sys.executable, "-u", "-c", code], check=True)  # a new interpreter: a fork has imported everything
    assert set(tapeline.__all__) <= set(dir(tapeline))
    with pytest.raises(AttributeError, match="tocks"):
        tapeline.tocks  # noqa: B018


def test_the_pages_on_reading_run_as_they_are(desk: Path, lake: Lake) -> None:
    docs = Path(__file__).parent.parent / "docs"
    pages = (docs / "read-data.md").read_text() + (docs / "reading.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", pages, re.DOTALL))
    begin = times.parse("2026-01-05T14:00:00Z", "start")
    rows = [quote("BTC/USDT", begin + SECOND, 9.0, 11.0), quote("ETH/USDT", begin, 1.0, None)]
    rows += [trade("BTC/USDT", begin + (at + 2) * SECOND, 10.0 + at, volume=2.0) for at in range(3)]
    write(lake, TICKS_TOPIC, *rows, trade("ETH/USDT", begin, 3.0))
    (desk / "data").symlink_to(desk)  # where the page has it
    code += "\nprint(turnover, joined['quote_ts_ns'].to_list(), price)"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=desk, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"66.0 {[begin + SECOND] * 3} 12.0"
    assert "2026-01-05 14:00:02" in ran.stdout


# Times

ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
NANOSECONDS = st.integers(-(1 << 63), (1 << 63) - 1)


def text_of(ns: int, zone: timezone, digits: int) -> str:
    """A moment as ISO 8601, its fraction cut to so many digits."""
    seconds, fraction = divmod(ns, NS_PER_S)
    moment = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(zone).isoformat()
    whole, offset = moment[:19], moment[19:]
    return f"{whole}.{fraction:09d}"[: 20 + digits].rstrip(".") + offset


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1710504000123456789", 1_710_504_000_123_456_789),
        ("2024-03-15T12:00:00Z", 1_710_504_000_000_000_000),
        ("2024-03-15T12:00:00.5Z", 1_710_504_000_500_000_000),
        ("2024-03-15T12:00:00.123456789Z", 1_710_504_000_123_456_789),
        ("2024-03-15T12:00:00.123456789+00:00", 1_710_504_000_123_456_789),
        ("2024-03-15T07:00:00.000000001-05:00", 1_710_504_000_000_000_001),
        ("2024-03-15 12:00:00.25Z", 1_710_504_000_250_000_000),
        ("1969-12-31T23:59:59.25Z", -750_000_000),
    ],
)
def test_times_as_people_write_them_are_read_to_the_nanosecond(text: str, ns: int) -> None:
    assert times.parse(text, "--time") == ns


@given(ns=NANOSECONDS, zone=ZONES)
@example(ns=-1, zone=UTC)
def test_a_time_as_text_is_exact_to_the_nanosecond_in_any_zone(ns: int, zone: timezone) -> None:
    assert times.parse(text_of(ns, zone, 9), "start") == ns
    assert times.parse(text_of(ns, UTC, 9).replace("+00:00", "Z"), "start") == ns
    assert times.parse(text_of(ns, UTC, 9).replace("+00:00", "z").replace("T", " "), "start") == ns


@given(ns=NANOSECONDS, zone=ZONES, digits=st.integers(0, 9))
def test_a_fraction_of_fewer_digits_is_the_same_as_with_zeros(ns: int, zone: timezone, digits: int) -> None:
    step = 10 ** (9 - digits)
    if ns // step * step >= -(1 << 63):
        assert times.parse(text_of(ns, zone, digits), "start") == ns // step * step


@given(ns=NANOSECONDS.filter(lambda ns: abs(ns) >= 10**17))
def test_a_number_of_nanoseconds_is_itself(ns: int) -> None:
    assert times.parse(ns, "start") == times.parse(str(ns), "start") == times.parse(np.int64(ns), "start") == ns


@given(moment=st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1), timezones=ZONES | st.timezones()))  # noqa: DTZ001
def test_a_datetime_with_a_zone_is_exact_to_its_microsecond(moment: datetime) -> None:
    found = times.parse(moment, "start")
    # Of two zones, a moment that is there twice or not at all equals no other.
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=found // 1_000) == moment.astimezone(UTC)
    assert found % 1_000 == 0


@given(ns=st.integers(-(1 << 62), 1 << 62), zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"]))
def test_a_timestamp_of_pandas_keeps_its_nanoseconds(ns: int, zone: str) -> None:
    assert times.parse(pd.Timestamp(ns, tz=zone), "start") == ns


@given(day=st.dates(date(1700, 1, 1), date(2200, 1, 1)))
def test_a_date_alone_is_its_midnight_in_utc(day: date) -> None:
    midnight = (day - date(1970, 1, 1)).days * DAY
    assert times.parse(day, "start") == times.parse(day.isoformat(), "start") == midnight


@given(day=st.dates(date(1000, 1, 1), date(9999, 12, 31)))
def test_eight_digits_are_a_date_as_text_and_as_a_number(day: date) -> None:
    for moment in (f"{day:%Y%m%d}", int(f"{day:%Y%m%d}")):
        if 1678 <= day.year <= 2261:
            assert times.parse(moment, "start") == times.parse(day, "start")
        else:
            with pytest.raises(WrongArgument, match="out of range"):
                times.parse(moment, "start")


@pytest.mark.parametrize("moment", [0, 1, -1, 1_614_556_800, "1614556800", 1_614_556_800_000, "1614556800000000", 10**17 - 1])
def test_a_number_that_no_event_can_have_is_refused_with_the_ways_to_write_one(moment: Any) -> None:
    with pytest.raises(WrongArgument, match=r"(?s)cannot be nanoseconds since 1970.*six to milliseconds.*20260105"):
        times.parse(moment, "start")


@pytest.mark.parametrize("moment", ["20261305", 20260230, "00000000"])
def test_eight_digits_that_are_no_date_are_refused(moment: Any) -> None:
    with pytest.raises(WrongArgument, match="is not a time"):
        times.parse(moment, "start")


@given(moment=st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)))  # noqa: DTZ001
def test_a_time_without_a_zone_is_refused(moment: datetime) -> None:
    for given_moment in (moment, moment.isoformat(), moment.isoformat(" ", "minutes"), pd.Timestamp(moment)):
        with pytest.raises(WrongArgument, match=r"begin = .* has no time zone, so it is ambiguous"):
            times.parse(given_moment, "begin")


@pytest.mark.parametrize(
    "moment",
    [
        *("", "now", "12:30Z", "2024-13-01", "2024-03-15T25:00Z", "2024-03-15T12:00:00.Z", "2024-03-15T12:00+25:00", "1e18", "٢٠٢٤-03-15"),
        *(True, None, 1.0, b"2024-03-15", np.datetime64("2024-03-15"), [1]),
    ],
    ids=repr,
)
def test_what_is_no_time_is_refused(moment: Any) -> None:
    with pytest.raises(WrongArgument, match="is not a time"):
        times.parse(moment, "start")


@pytest.mark.parametrize(
    "moment", [1 << 63, -(1 << 63) - 1, "9" * 30, "2263-01-01", "1677-01-01T00:00:00Z", datetime.max.replace(tzinfo=UTC)]
)
def test_a_time_beyond_64_bits_is_refused(moment: Any) -> None:
    with pytest.raises(WrongArgument, match="out of range"):
        times.parse(moment, "start")


def test_a_time_finer_than_a_nanosecond_is_refused_and_zeros_are_not() -> None:
    with pytest.raises(WrongArgument, match="finer than a nanosecond"):
        times.parse("2024-03-15T12:00:00.1234567891Z", "start")
    assert times.parse("2024-03-15T12:00:00.1234567890Z", "start") == NOON + 123_456_789
