"""Ticks, bars and raw records made by hand: a row is its usual values and what a test says otherwise."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tapeline.records import BARS, NS_PER_S, RAW, REJECTED, TICKS

#: 2024-03-15 12:00:00 UTC, and a day.
NOON = 1_710_504_000 * NS_PER_S
DAY = 86_400 * NS_PER_S

TRADE: dict[str, Any] = {
    **dict.fromkeys(TICKS.names),
    "symbol": "BTC/USDT",
    "ts_ns": NOON,
    "kind": "trade",
    "last": 1.5,
    "volume": 2.0,
    "side": "buy",
    "exchange": "binance",
    "provider": "binance",
    "feed": "spot",
    "channel": "trade",
    "sequence": 1,
    "trade_id": "1",
    "received_ns": NOON + 5,
    "latency_ns": 5,
    "raw_partition": 0,
    "raw_offset": 0,
    "raw_index": 0,
}
BAR: dict[str, Any] = {
    **dict.fromkeys(BARS.names),
    "symbol": "AAPL",
    "ts_ns": NOON,
    "interval": "1m",
    "open": 1.0,
    "high": 3.0,
    "low": 1.0,
    "close": 2.0,
    "volume": 10.0,
    "final": False,
    "exchange": "composite",
    "provider": "polygon",
    "feed": "stocks",
    "channel": "AM",
    "received_ns": NOON + 5,
    "raw_partition": 0,
    "raw_offset": 0,
    "raw_index": 0,
}


def ticks(*rows: dict[str, Any]) -> pa.RecordBatch:
    """A batch of ticks; each row is told apart by its raw offset unless a test says otherwise."""
    return pa.RecordBatch.from_pylist([{**TRADE, "raw_offset": at, **row} for at, row in enumerate(rows)], TICKS)


def bars(*rows: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{**BAR, "raw_offset": at, **row} for at, row in enumerate(rows)], BARS)


def raws(first: int, count: int, payload: bytes = b"", *, distinct: bool = True) -> pa.RecordBatch:
    """Raw records whose payloads begin with their own offset."""
    texts = [b"%d " % at + payload if distinct else payload for at in range(first, first + count)]
    columns = [pa.array([text] * count, pa.string()) for text in ("binance", "spot", "c", "frame")]
    return pa.record_batch([*columns, pa.array(range(first, first + count), pa.int64()), pa.array(texts, pa.binary())], schema=RAW)


def rejects(count: int, first: int = 0, raw_partition: int = 0) -> pa.RecordBatch:
    row = {**dict.fromkeys(REJECTED.names, 0), "provider": "binance", "feed": "spot", "connection": "c", "reason": "x", "payload": b"y"}
    row |= {"received_ns": NOON, "raw_partition": raw_partition}
    return pa.RecordBatch.from_pylist([{**row, "raw_offset": at} for at in range(first, first + count)], REJECTED)
