"""A lake as large as one in use: days of a made-up market of a few hundred symbols, by the product's own writer and compacting."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tapeline.providers.registry import identity
from tapeline.records import NS_PER_MS, NS_PER_S, TICKS, TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake
from tapeline.stores.lake.compacting import compact

SYMBOLS: Final = tuple(f"{name}/USDT" for name in (f"C{number:03d}" for number in range(300)))
FIRST_DAY: Final = date(2026, 1, 5)
_FLUSH: Final = 1_000_000
_DAY_NS: Final = 86_400 * NS_PER_S
#: How busy symbols are: some few make most of the events, as everywhere.
_SHARE: Final = (lambda weight: weight / weight.sum())(1 / np.arange(4, len(SYMBOLS) + 4) ** 0.9)
_TRADES: Final = 0.4


def days(count: int) -> list[date]:
    """The days that `build` fills."""
    return [FIRST_DAY + timedelta(days=at) for at in range(count)]


def midnight_ns(day: date) -> int:
    """When a day begins, in UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * NS_PER_S


def build(root: Path, rows: int, count: int, *, compacted: bool = True) -> None:
    """About `rows` ticks over `count` days."""
    lake = Lake(root, identity)
    market = Market(np.random.default_rng(7))
    offset = 0
    for day in days(count):
        start_ns = midnight_ns(day)
        flushes = max(1, rows // count // _FLUSH)
        for at in range(flushes):
            width = _DAY_NS // flushes
            batch = market.ticks(rows // count // flushes, start_ns + at * width, width, offset)
            lake.write(Chunk.dense(TICKS_TOPIC, 0, offset, batch))
            offset += batch.num_rows
        if compacted:
            compact(root, day, lambda *_: None)


class Market:
    """Prices that walk and ids that rise, symbol by symbol."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._price = np.round(10 ** random.uniform(-1, 4.5, len(SYMBOLS)), 2)
        self._next = {True: np.ones(len(SYMBOLS), np.int64), False: np.ones(len(SYMBOLS), np.int64)}

    def ticks(self, count: int, start_ns: int, width_ns: int, offset: int) -> pa.RecordBatch:
        """Ticks of one stretch of time, in the order in which they came."""
        random = self._random
        received = np.sort(start_ns + random.integers(0, width_ns, count))
        symbol = random.choice(len(SYMBOLS), count, p=_SHARE).astype(np.int16)
        trade = random.random(count) < _TRADES
        order = np.argsort(symbol, kind="stable")  # symbol by symbol, in time
        sorted_symbol = symbol[order]
        first = np.searchsorted(sorted_symbol, np.arange(len(SYMBOLS)))
        walk = np.cumsum(random.normal(0, 2e-5, count))
        base = np.concatenate([[0.0], walk])[first][sorted_symbol]
        price = np.empty(count)
        price[order] = np.round(self._price[sorted_symbol] * np.exp(walk - base), 4)
        last = np.searchsorted(sorted_symbol, np.arange(len(SYMBOLS)), side="right") - 1
        there = last >= first
        self._price[there] = price[order[last[there]]]
        sequence = np.empty(count, np.int64)
        for kind in (True, False):
            some = order[trade[order] == kind]
            mine = symbol[some]
            sequence[some] = self._next[kind][mine] + np.arange(len(mine)) - np.searchsorted(mine, np.arange(len(SYMBOLS)))[mine]
            self._next[kind] += np.bincount(mine, minlength=len(SYMBOLS))
        return _batch(random, symbol, received, price, trade, sequence, offset)


def _batch(
    random: np.random.Generator,
    symbol: npt.NDArray[np.int16],
    received: npt.NDArray[np.int64],
    price: npt.NDArray[np.float64],
    trade: npt.NDArray[np.bool_],
    sequence: npt.NDArray[np.int64],
    offset: int,
) -> pa.RecordBatch:
    count = len(symbol)
    quote = ~trade
    delay = random.integers(2, 80, count) * NS_PER_MS + random.integers(0, NS_PER_MS, count)
    size = np.round(random.lognormal(0, 2, count), 5)

    def only(some: npt.NDArray[np.bool_], values: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> pa.Array:
        return pa.array(values, mask=~some)

    def either(one: str, other: str) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(quote.astype(np.int32)), pa.array([one, other])).cast(pa.string())

    def text(value: str | None) -> pa.Array:
        return pa.nulls(count, pa.string()) if value is None else pa.repeat(pa.scalar(value), count)

    side = pa.DictionaryArray.from_arrays(pa.array(random.integers(0, 2, count).astype(np.int32), mask=quote), pa.array(["buy", "sell"]))
    columns = {
        "symbol": pa.DictionaryArray.from_arrays(pa.array(symbol.astype(np.int32)), pa.array(SYMBOLS)).cast(pa.string()),
        "ts_ns": pa.array(np.where(trade, np.maximum((received - delay) // NS_PER_MS * NS_PER_MS, received[0]), received)),
        "kind": either("trade", "quote"),
        "bid": only(quote, price),
        "ask": only(quote, np.round(price + 0.01, 4)),
        "bid_size": only(quote, size),
        "ask_size": only(quote, np.roll(size, 1)),
        "last": only(trade, price),
        "volume": only(trade, size),
        "side": side.cast(pa.string()),
        "exchange": text("binance"),
        "provider": text("binance"),
        "feed": text("spot"),
        "channel": either("trade", "bookTicker"),
        "sequence": pa.array(sequence),
        "trade_id": only(trade, sequence).cast(pa.string()),
        "conditions": text(None),
        "received_ns": pa.array(received),
        "latency_ns": only(trade, delay),
        "raw_partition": pa.array(np.zeros(count, np.int32)),
        "raw_offset": pa.array(offset + np.arange(count)),
        "raw_index": pa.array(np.zeros(count, np.int32)),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in TICKS.names], schema=TICKS)
