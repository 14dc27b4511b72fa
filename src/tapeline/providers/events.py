"""The types that decoders work with: channels, and the events, notices and rejects that a decoder sorts frames into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tapeline.providers.decoding.inexact import JsonNumbers
from tapeline.records import (
    BARS_TOPIC,
    NS_PER_S,
    TICKS_TOPIC,
    Identity,
    Topic,
)

#: The errors that decoding bytes may raise. msgspec also raises ValueError for bad UTF-8 and RecursionError if brackets nest too deep.
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
#: Integers on the wire must fit the columns they go to.
Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Kind: TypeAlias = Literal["trade", "quote", "bar"]
#: Column name to an array, or to a text that applies to every row. The key `inexact` holds the number of values that float64 does not
#: hold exactly.
Columns: TypeAlias = Mapping[str, "pa.Array | str | int"]
_ORIGIN: Final = ("received_ns", "raw_partition", "raw_offset", "raw_index")


def _content(topic: Topic) -> Identity:
    return Identity(tuple(name for name in topic.schema.names if name not in (*_ORIGIN, "latency_ns")))


#: For channels without an id: two events with the same content are the same event. Repeating a state there adds no information.
SAME_CONTENT: Final[dict[Kind, Identity]] = {
    "trade": _content(TICKS_TOPIC),
    "quote": _content(TICKS_TOPIC),
    "bar": _content(BARS_TOPIC),
}
#: For ids that start again each day on each venue.
DAILY_ID: Final = Identity(("date", "symbol", "exchange", "trade_id"), id="trade_id", drift_ns=2 * NS_PER_S)
#: For numbers that are never reused within a symbol. Some of these channels have no event time. Their rows carry the receive time, which
#: differs between copies. `values` is needed because Binance gave one aggregate id to two trades (ZILBTC, 12027555, before and after
#: 2021-03-01T00:00Z).
SEQUENCE: Final = Identity(("symbol", "sequence"), id="sequence", rising=True, drift_ns=120 * NS_PER_S, values=("last", "volume"))
QUOTE_SEQUENCE: Final = replace(SEQUENCE, values=("bid", "bid_size", "ask", "ask_size"))


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """One channel of a provider: how its events become rows, and when two of them are the same event."""

    name: str
    kind: Kind
    #: Turns wire events into columns. A column that it leaves out is null.
    columns: Callable[[Sequence[Any]], Columns]
    identity: Identity
    #: Whether the provider numbers a symbol's events (for final bars: their windows) without holes. If so, a jump proves a loss.
    contiguous: bool = False


@dataclass(slots=True)
class Rows:
    """Events of one kind, as wire structs, each with its row in the raw batch and its index within the frame."""

    events: list[Any] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    index: list[int] = field(default_factory=list)

    def add(self, event: object, row: int, index: int) -> None:
        """Append an event, a notice or a reject. `row` is its row in the raw batch, and `index` its place within the frame."""
        self.events.append(event)
        self.row.append(row)
        self.index.append(index)


@dataclass(frozen=True, slots=True)
class Notice:
    """A message about the session or about earlier events.

    `ts_ns` is None if the message carries no time; the receive time is then used."""

    kind: str
    detail: str
    symbol: str | None = None
    ts_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """An event that cannot be read: the reason and the event's own bytes.

    Round brackets in the reason enclose the part that differs between events with the same reason."""

    reason: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one feed in a raw batch, without copying them. Iterating gives (row, bytes)."""

    payload: pa.BinaryArray
    #: The rows of `payload` that belong to the feed; None means all.
    rows: npt.NDArray[np.int64] | None = None
    #: The rows that are pages of the provider's history, each with the JSON line that says what was requested.
    pages: Mapping[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.payload) if self.rows is None else len(self.rows)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        if self.rows is None:
            return enumerate(self.payload.to_pylist())
        return zip(self.rows.tolist(), self._chosen().to_pylist(), strict=True)

    def inexact(self, numbers: JsonNumbers) -> int:
        """The number of prices and sizes that float64 does not hold exactly."""
        return numbers.inexact(self.payload if len(self) == len(self.payload) else self._chosen())

    def _chosen(self) -> pa.BinaryArray:
        return self.payload.take(pa.array(self.rows))


@dataclass(frozen=True, slots=True)
class Read:
    """Ticks or bars that were decoded straight into columns. They keep all rules."""

    topic: Topic
    #: The place of each: its row in the raw batch << 32 | its index within the frame.
    place: npt.NDArray[np.int64]
    columns: Columns


@dataclass(slots=True)
class Events:
    """What a decoder found in the frames of one feed."""

    channels: dict[Channel, Rows] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    notices: Rows = field(default_factory=Rows)
    rejects: Rows = field(default_factory=Rows)
    #: Events seen on the wire: the left side of the accounting equation. The decoder counts them independently of where they go.
    seen: int = 0
    #: Bars that are impossible in a market (see `rules.suspect`). They are kept, and counted here.
    suspect: int = 0
    #: Prices and sizes that float64 does not hold exactly. The nearest float64 is kept, and they are counted here.
    inexact: int = 0
    #: The provider's own names of symbols that its table splits wrongly or not at all, each with the canonical symbol.
    names: Mapping[str, str] = field(default_factory=dict)

    def rows(self, channel: Channel) -> Rows:
        """Return the rows of a channel, to which the decoder adds its events. The first call for a channel makes them, empty."""
        rows = self.channels.get(channel)
        if rows is None:
            rows = self.channels[channel] = Rows()
        return rows


#: (provider, feed) to the mapping that `Events.names` holds.
Names: TypeAlias = Mapping[tuple[str, str], Mapping[str, str]]
#: No exceptions: every symbol is split by the provider's table.
NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
#: Sorts the frames of one feed into events.
Decode: TypeAlias = Callable[[str, Frames, Events], None]


def elements(frame: bytes) -> Sequence[msgspec.Raw | bytes]:
    """The elements of a frame that is a JSON or MessagePack array; for any other frame, a list of the frame itself."""
    for decode in (msgspec.json.decode, msgspec.msgpack.decode):
        try:
            parts: list[msgspec.Raw] = decode(frame, type=list[msgspec.Raw])
        except UNREADABLE:
            continue
        return parts
    return [frame]
