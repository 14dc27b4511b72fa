"""The wire format: batches to messages and back, beside protobuf's own library on the same rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import pyarrow as pa

from bench.machine import table
from bench.market_data import Message, MessageClass, message_class
from tapeline.records import NS_PER_S, TICKS, TICKS_TOPIC
from tapeline.streams.codecs.protobuf import decode, encode, fields

_SIZES = (50, 1_000, 20_000)
_ROUNDS = 7
_SYMBOLS = ("BTC/USDT", "ETH/USDT", "BNB/USDT", "SOL/USDT")
_NOON = 1_710_504_000 * NS_PER_S
_TICK: dict[str, object] = {
    **dict.fromkeys(TICKS.names),
    "exchange": "binance",
    "provider": "binance",
    "feed": "spot",
    "raw_partition": 0,
    "raw_index": 0,
}


def run() -> str:
    """The section of the report: microseconds for each message, the median of rounds in turns."""
    library = message_class()
    rows = []
    for size in _SIZES:
        batch = pa.RecordBatch.from_pylist([_tick(at) for at in range(size)], TICKS)
        messages = encode(TICKS_TOPIC, batch)
        parsed = _parsed(library, messages)
        assert decode(TICKS_TOPIC, messages).equals(batch)
        assert _to_batch(library, messages).equals(batch)
        ways: dict[str, Callable[[], object]] = {
            "Tapeline, batch to messages": partial(encode, TICKS_TOPIC, batch),
            "library, batch to messages": partial(_from_batch, library, batch),
            "library, only serialize": partial(_serialized, parsed),
            "Tapeline, messages to batch": partial(decode, TICKS_TOPIC, messages),
            "library, messages to batch": partial(_to_batch, library, messages),
            "library, only parse": partial(_parsed, library, messages),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(_ROUNDS):
            for way, work in ways.items():
                taken[way].append(_seconds(work, max(1, 10_000 // size)))
        medians = {way: statistics.median(seconds) for way, seconds in taken.items()}
        rows += [[way, f"{size:,}", f"{seconds / size * 1e6:.2f}", size / seconds] for way, seconds in medians.items()]
    return (
        f"A batch has trades and best quotes, alternating. A trade's message has {len(messages[0])} bytes. *Only serialize* and *only"
        " parse* are the library's work without the conversion from or to columns.\n\n"
        + table(["way", "rows in a batch", "µs per message", "messages/s"], rows)
    )


def _tick(at: int) -> dict[str, object]:
    time_ns = _NOON + at * 1_000_000
    tick = {
        **_TICK,
        "symbol": _SYMBOLS[at * 7 % 4],
        "ts_ns": time_ns,
        "received_ns": time_ns + 5_000,
        "sequence": 10**9 + at,
        "raw_offset": at,
    }
    if at % 2:
        return {**tick, "kind": "quote", "channel": "bookTicker", "bid": 1.5, "ask": 1.75, "bid_size": 3.0, "ask_size": 4.0}
    trade = {
        "kind": "trade",
        "channel": "trade",
        "last": 1.5,
        "volume": 2.0,
        "side": "buy",
        "trade_id": str(10**9 + at),
        "latency_ns": 5_000,
    }
    return {**tick, **trade}


def _seconds(work: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def _parsed(library: MessageClass, messages: list[bytes]) -> list[Message]:
    return [library.FromString(message) for message in messages]


def _serialized(messages: list[Message]) -> list[bytes]:
    return [message.SerializeToString() for message in messages]


def _from_batch(library: MessageClass, batch: pa.RecordBatch) -> list[bytes]:
    """As one writes it with the library: a message's constructor for each row."""
    names = [field.name for field in fields(TICKS_TOPIC)]
    columns = [batch.column(field.column).to_pylist() for field in fields(TICKS_TOPIC)]
    return [library(**dict(zip(names, row, strict=True))).SerializeToString() for row in zip(*columns, strict=True)]


def _to_batch(library: MessageClass, messages: list[bytes]) -> pa.RecordBatch:
    parsed = _parsed(library, messages)
    columns = {}
    for field in fields(TICKS_TOPIC):
        column, name = TICKS.field(field.column), field.name
        values = [getattr(message, name) if not column.nullable or message.HasField(name) else None for message in parsed]
        columns[column.name] = pa.array(values, column.type)
    return pa.record_batch(columns, schema=TICKS)
