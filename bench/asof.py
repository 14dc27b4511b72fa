"""Quotes at trades: Tapeline's join of a time series with itself, beside DuckDB's ASOF JOIN on the same ticks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import duckdb
import numpy as np
import pyarrow as pa

from bench.machine import table
from tapeline.reading.asof import NEEDED, QUOTED, quotes_at_trades
from tapeline.records import NS_PER_S, TICKS

_ROWS = 1_000_000
_BATCH = 65_536
_ROUNDS = 3
_NOON = 1_710_504_000 * NS_PER_S
_COLUMNS = ("symbol", "ts_ns", "last", "volume", "bid", "ask", "quote_ts_ns")

_AS_WRITTEN = """
    SELECT trade.symbol, trade.ts_ns, trade.last, trade.volume, quote.bid, quote.ask, quote.ts_ns AS quote_ts_ns
    FROM (SELECT * FROM ticks WHERE kind = 'trade') AS trade
    ASOF LEFT JOIN (SELECT * FROM ticks WHERE kind = 'quote') AS quote
    ON trade.symbol = quote.symbol AND trade.provider = quote.provider AND trade.feed = quote.feed AND trade.ts_ns >= quote.ts_ns
"""
#: The same, where of several quotes in one nanosecond the last is in force, and the trades come in the order of time.
_AS_PROMISED = """
    WITH numbered AS (SELECT *, row_number() OVER () AS place FROM ticks),
    quotes AS (
        SELECT symbol, provider, feed, ts_ns, arg_max(bid, place) AS bid, arg_max(ask, place) AS ask
        FROM numbered WHERE kind = 'quote' GROUP BY ALL
    )
    SELECT trade.symbol, trade.ts_ns, trade.last, trade.volume, quote.bid, quote.ask, quote.ts_ns AS quote_ts_ns
    FROM (SELECT * FROM numbered WHERE kind = 'trade') AS trade
    ASOF LEFT JOIN quotes AS quote
    ON trade.symbol = quote.symbol AND trade.provider = quote.provider AND trade.feed = quote.feed AND trade.ts_ns >= quote.ts_ns
    ORDER BY trade.place
"""


def run() -> str:
    """The section of the report: seconds for a million ticks, the median of rounds in turns."""
    rows = []
    for symbols, trades in ((100, 0.1), (2_000, 0.3)):
        ticks = _ticks(symbols, trades)
        ways: dict[str, Callable[[], pa.Table]] = {
            "Tapeline": partial(_ours, ticks),
            "DuckDB, simple query": partial(_duckdb, ticks, _AS_WRITTEN),
            "DuckDB, query with the same result as Tapeline": partial(_duckdb, ticks, _AS_PROMISED),
        }
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        results = {}
        for _ in range(_ROUNDS):
            for way, work in ways.items():
                wall, processor = time.perf_counter(), time.process_time()
                results[way] = work()
                taken[way].append((time.perf_counter() - wall, time.process_time() - processor))
        ours, _, promised = results.values()
        assert ours.equals(promised.cast(ours.schema)), "both find the same quotes"
        for way, pairs in taken.items():
            wall, processor = (statistics.median(some) for some in zip(*pairs, strict=True))
            rows.append([way, f"{symbols:,}", f"{trades:.0%}", f"{wall:.2f}", f"{processor:.2f}"])
    return (
        f"Each way finds the quote in force at each trade, for {_ROWS:,} ticks in memory. The figures are medians of {_ROUNDS} rounds. If"
        " several quotes have the same nanosecond, Tapeline takes the last one. It returns the trades in their order. DuckDB's simple query"
        " takes any of these quotes, and returns the trades in any order.\n\n"
        + table(["way", "symbols", "share of trades", "s", "processor s"], rows)
    )


def _ticks(symbols: int, trades: float) -> pa.Table:
    random = np.random.default_rng(1)
    is_trade = random.random(_ROWS) < trades
    names = pa.array([f"S{at:04}" for at in range(symbols)])

    def numbers(absent: np.ndarray) -> pa.Array:
        return pa.array(random.random(_ROWS), mask=absent)

    return pa.table(
        {
            "symbol": names.take(pa.array(random.integers(0, symbols, _ROWS))),
            "ts_ns": pa.array(_NOON + np.sort(random.integers(0, 20 * _ROWS, _ROWS)) * 1_000),
            "provider": pa.array(["binance"] * _ROWS),
            "feed": pa.array(["spot"] * _ROWS),
            "kind": pa.array(np.where(is_trade, "trade", "quote")),
            **{name: numbers(is_trade) for name in ("bid", "ask", "bid_size", "ask_size")},
            **{name: numbers(~is_trade) for name in ("last", "volume")},
        }
    )


def _ours(ticks: pa.Table) -> pa.Table:
    nothing = pa.table({name: pa.array([], TICKS.field(name).type) for name in NEEDED})
    schema = pa.schema([QUOTED.field(name) for name in _COLUMNS])
    return pa.Table.from_batches(quotes_at_trades(iter(ticks.to_batches(_BATCH)), lambda *_: nothing, schema), schema)


def _duckdb(ticks: pa.Table, sql: str) -> pa.Table:
    with duckdb.connect() as connection:
        connection.register("ticks", ticks)
        return connection.sql(sql).to_arrow_table()
