"""The messages of the live feed and the rows in them, as JSON.

A number of nanoseconds and a sequence number are text: JavaScript's numbers are exact only up to 2 ** 53. What is not known is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import msgspec
import pyarrow as pa

from tapeline.records import BARS_TOPIC, TICKS_TOPIC

_State = Literal["health", "gaps", "jobs", "alerts"]
#: The kinds that a client can subscribe to.
Kind = Literal["ticks", "bars", "latest", _State]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
#: Kinds of which each message is the whole present state, so that the last one is enough.
STATES: Final[tuple[str, ...]] = get_args(_State)


class Tick(msgspec.Struct, omit_defaults=True):
    """A trade or a quote. docs/reference/columns.md explains each column."""

    id: str  # raw_partition-raw_offset-raw_index: the event's id, as for `tapeline audit`
    symbol: str
    ts_ns: str
    kind: Literal["trade", "quote"]
    exchange: str
    provider: str
    feed: str
    channel: str
    received_ns: str
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    last: float | None = None
    volume: float | None = None
    side: str | None = None
    sequence: str | None = None
    trade_id: str | None = None
    conditions: str | None = None


class Bar(msgspec.Struct, omit_defaults=True):
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
    final: bool
    exchange: str
    provider: str
    feed: str
    channel: str
    received_ns: str
    vwap: float | None = None
    trades: int | None = None


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


@dataclass(slots=True, eq=False)
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
    #: For how many clients it waits.
    queues: int = 0

    def __len__(self) -> int:
        """About how many bytes it takes in memory."""
        return len(self.body) + len(self.binary) + _BYTES_BESIDES

    def event_stream(self) -> bytes:
        """Return it as a server-sent event. A sign of life is none: an id without data, which a browser remembers."""
        if self.kind == "alive":
            return b": alive\nid: %b\n\n" % self.id.encode()
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.id.encode(), self.kind.encode(), self.body)


#: What a message takes besides its body: the object, its id and its place in a queue.
_BYTES_BESIDES: Final = 250
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


#: What the id of an event is made of.
_ID: Final = ("raw_partition", "raw_offset", "raw_index")


def _rows_of(kind: type[msgspec.Struct]) -> Callable[[pa.RecordBatch], list[bytes]]:
    """Return a function that makes JSON of each row of a batch. The fields of `kind` are the columns of a row, in their order."""
    fields = [(field.name, field.type in (str, str | None)) for field in msgspec.structs.fields(kind)]

    def rows(batch: pa.RecordBatch) -> list[bytes]:
        return list(map(_encode, map(kind, *(_values(batch, name, as_text=as_text) for name, as_text in fields))))

    return rows


def _values(batch: pa.RecordBatch, name: str, *, as_text: bool) -> Iterable[Any]:
    if name == "id":
        return map("{}-{}-{}".format, *(batch[part].to_pylist() for part in _ID))
    values: list[Any] = (batch[name].cast(pa.string()) if as_text else batch[name]).to_pylist()
    return values


#: Table to the function that makes JSON of its rows.
ROWS: Final[Mapping[str, Callable[[pa.RecordBatch], list[bytes]]]] = {
    TICKS_TOPIC.table: _rows_of(Tick),
    BARS_TOPIC.table: _rows_of(Bar),
}
