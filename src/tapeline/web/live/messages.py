"""The messages of the live feed and the rows in them, as JSON.

A number of nanoseconds and a sequence number are text: JavaScript's numbers are exact only up to 2 ** 53. What is not known is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec
import pyarrow as pa

from tapeline.records import BARS_TOPIC, TICKS_TOPIC

Kind = Literal["hello", "latest", "ticks", "bars", "conflated", "health", "gaps", "jobs", "alerts", "alive", "error"]
#: The kinds that a client can subscribe to.
KINDS: Final = ("ticks", "bars", "latest", "health", "gaps", "jobs", "alerts")
#: Kinds of which each message is the whole present state, so that the last one is enough.
STATES: Final = ("health", "gaps", "jobs", "alerts")


class Tick(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A trade or a quote. docs/reference/columns.md explains each column."""

    id: str  # raw_partition-raw_offset-raw_index: the event's id, as for `tapeline audit`
    symbol: str
    ts_ns: str
    kind: str
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    last: float | None = None
    volume: float | None = None
    side: str | None = None
    exchange: str
    provider: str
    feed: str
    channel: str
    sequence: str | None = None
    trade_id: str | None = None
    conditions: str | None = None
    received_ns: str


class Bar(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A revision of a bar. `ts_ns` is the start of its window."""

    id: str
    symbol: str
    ts_ns: str
    interval: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float | None = None
    trades: int | None = None
    final: bool
    exchange: str
    provider: str
    feed: str
    channel: str
    received_ns: str


class Latest(msgspec.Struct, omit_defaults=True):
    """The last trade and the last quote of a symbol, of whichever provider sent them."""

    symbol: str
    last: float | None = None
    volume: float | None = None
    side: str | None = None
    trade_ts_ns: str | None = None
    trade_provider: str | None = None
    trade_feed: str | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    quote_ts_ns: str | None = None
    quote_provider: str | None = None
    quote_feed: str | None = None


class Hello(msgspec.Struct, omit_defaults=True):
    """The first message of a connection."""

    kind: Literal["hello"]
    id: str
    #: Whether the client continues where it was. If it asked to and this is false, `missed` says why: then events are missing.
    resumed: bool
    missed: str = ""
    #: The symbols that are known so far and that the subscription matches.
    symbols: list[str] = []


class TickRows(msgspec.Struct):
    """Ticks. Those of one symbol are in the order of the stream."""

    kind: Literal["ticks"]
    id: str
    rows: list[Tick]


class BarRows(msgspec.Struct):
    """Bars. Those of one symbol are in the order of the stream."""

    kind: Literal["bars"]
    id: str
    rows: list[Bar]


class LatestRows(msgspec.Struct):
    """The present values of symbols: at first of all that are subscribed to, then of those that changed."""

    kind: Literal["latest"]
    id: str
    rows: list[Latest]


class Conflated(msgspec.Struct):
    """What a client gets that did not take its messages fast enough: the number of events that it did not get, and the latest values."""

    kind: Literal["conflated"]
    id: str
    skipped: int
    rows: list[Latest]


class Alive(msgspec.Struct):
    """A sign of life, where there was no other message for some seconds: the client has got everything up to `id`."""

    kind: Literal["alive"]
    id: str


class Error(msgspec.Struct):
    """A request on the websocket that was wrong. The connection stays open."""

    kind: Literal["error"]
    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message, encoded."""

    kind: str
    id: str
    #: The message itself, as JSON.
    body: bytes
    #: How many events it holds.
    events: int = 0
    #: For a client that wants another form than JSON: the rows, which follow the message as a binary one.
    binary: bytes = b""

    def __len__(self) -> int:
        return len(self.body) + len(self.binary)

    def event_stream(self) -> bytes:
        """Return it as a server-sent event. A sign of life is none: an id without data, which a browser remembers."""
        if self.kind == "alive":
            return b": alive\nid: %b\n\n" % self.id.encode()
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.id.encode(), self.kind.encode(), self.body)


_encode: Final = msgspec.json.Encoder().encode


def encoded(value: msgspec.Struct | Mapping[str, Any]) -> bytes:
    """Return a value as JSON."""
    return _encode(value)


def message(kind: str, id: str, rows: list[bytes], *, events: int = 0, numbers: Mapping[str, int] = MappingProxyType({})) -> Message:  # noqa: A002 its own word
    """Return a message of rows that are JSON already. `events`: how many there are. `numbers`: further keys of the message."""
    extra = b"".join(b'"%b":%d,' % (name.encode(), value) for name, value in numbers.items())
    body = b'{"kind":"%b","id":"%b",%b"rows":[%b]}' % (kind.encode(), id.encode(), extra, b",".join(rows))
    return Message(kind, id, body, events)


def state(kind: str, id: str, body: bytes) -> Message:  # noqa: A002 the message's own word
    """Return a message of a state, whose body is a JSON object that is not empty: its keys follow `kind` and `id`."""
    return Message(kind, id, b'{"kind":"%b","id":"%b",%b' % (kind.encode(), id.encode(), body[1:]))


def _columns(batch: pa.RecordBatch, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    return zip(*(batch[name].to_pylist() for name in names), strict=True)


_TICK: Final = (
    *("raw_partition", "raw_offset", "raw_index", "symbol", "ts_ns", "kind", "bid", "ask", "bid_size", "ask_size", "last", "volume"),
    *("side", "exchange", "provider", "feed", "channel", "sequence", "trade_id", "conditions", "received_ns"),
)
_BAR: Final = (
    *("raw_partition", "raw_offset", "raw_index", "symbol", "ts_ns", "interval", "open", "high", "low", "close", "volume", "vwap"),
    *("trades", "final", "exchange", "provider", "feed", "channel", "received_ns"),
)


def ticks_of(batch: pa.RecordBatch) -> list[bytes]:
    """Return each row of ticks as JSON."""
    rows = []
    for p, o, i, symbol, ts, kind, bid, ask, bs, az, last, volume, side, ex, pr, feed, channel, seq, trade, cond, got in _columns(
        batch, _TICK
    ):
        one = Tick(
            id=f"{p}-{o}-{i}",
            symbol=symbol,
            ts_ns=str(ts),
            kind=kind,
            bid=bid,
            ask=ask,
            bid_size=bs,
            ask_size=az,
            last=last,
            volume=volume,
            side=side,
            exchange=ex,
            provider=pr,
            feed=feed,
            channel=channel,
            sequence=None if seq is None else str(seq),
            trade_id=trade,
            conditions=cond,
            received_ns=str(got),
        )
        rows.append(_encode(one))
    return rows


def bars_of(batch: pa.RecordBatch) -> list[bytes]:
    """Return each row of bars as JSON."""
    rows = []
    for p, o, i, symbol, ts, interval, opened, high, low, close, volume, vwap, trades, final, ex, pr, feed, channel, got in _columns(
        batch, _BAR
    ):
        one = Bar(
            id=f"{p}-{o}-{i}",
            symbol=symbol,
            ts_ns=str(ts),
            interval=interval,
            open=opened,
            high=high,
            low=low,
            close=close,
            volume=volume,
            vwap=vwap,
            trades=trades,
            final=final,
            exchange=ex,
            provider=pr,
            feed=feed,
            channel=channel,
            received_ns=str(got),
        )
        rows.append(_encode(one))
    return rows


#: Table to the function that makes JSON of its rows.
ROWS: Final[Mapping[str, Callable[[pa.RecordBatch], list[bytes]]]] = {TICKS_TOPIC.table: ticks_of, BARS_TOPIC.table: bars_of}
