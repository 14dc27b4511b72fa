"""What a decoder sorts frames into: events of a channel, notices and rejects; and what a channel is."""

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

#: What decoding bytes may raise: msgspec raises ValueError for bad UTF-8 and RecursionError where brackets nest too deep.
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
#: Integers on the wire must fit the columns they go to.
Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Kind: TypeAlias = Literal["trade", "quote", "bar"]
#: Column name to an array, or to a text that holds for every row. `inexact`: how many values of them float64 does not hold as written.
Columns: TypeAlias = Mapping[str, "pa.Array | str | int"]
_ORIGIN: Final = ("received_ns", "raw_partition", "raw_offset", "raw_index")


def _content(topic: Topic) -> Identity:
    return Identity(tuple(name for name in topic.schema.names if name not in (*_ORIGIN, "latency_ns")))


#: Two events with the same content are one event: for channels without an id, where repeating a state says nothing new.
SAME_CONTENT: Final[dict[Kind, Identity]] = {
    "trade": _content(TICKS_TOPIC),
    "quote": _content(TICKS_TOPIC),
    "bar": _content(BARS_TOPIC),
}
#: Ids that start anew each day and on each venue.
DAILY_ID: Final = Identity(("date", "symbol", "exchange", "trade_id"), id="trade_id", drift_ns=2 * NS_PER_S)
#: Numbers that a symbol's events carry once and for ever. Some of the channels have no time: the receive time stands in, and drifts.
#: One aggregate id of Binance's has been given to two trades (ZILBTC, 12027555, on both sides of 2021-03-01T00:00Z).
SEQUENCE: Final = Identity(("symbol", "sequence"), id="sequence", rising=True, drift_ns=120 * NS_PER_S, values=("last", "volume"))
QUOTE_SEQUENCE: Final = replace(SEQUENCE, values=("bid", "bid_size", "ask", "ask_size"))


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """How the events of one of a provider's channels become rows."""

    name: str
    kind: Kind
    #: Wire events to the columns that they carry; what is left out is null.
    columns: Callable[[Sequence[Any]], Columns]
    identity: Identity
    #: Whether the numbers of a symbol's events (of final bars: their windows) have no hole at their source: a jump proves a loss.
    contiguous: bool = False


@dataclass(slots=True)
class Rows:
    """Events of one channel: the wire structs, each with its row in the raw batch and its index within the frame."""

    events: list[Any] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    index: list[int] = field(default_factory=list)

    def add(self, event: object, row: int, index: int) -> None:
        self.events.append(event)
        self.row.append(row)
        self.index.append(index)


@dataclass(frozen=True, slots=True)
class Notice:
    """A message about the session or about earlier events. `ts_ns` None: it carries no time, the receive time stands in."""

    kind: str
    detail: str
    symbol: str | None = None
    ts_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """An event that cannot be read, with the reason and its own bytes. What differs between events of one reason is in round brackets."""

    reason: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one feed in a raw batch, as they lie in memory; iterating gives (row, bytes)."""

    payload: pa.BinaryArray
    #: Which rows of `payload`; None: all.
    rows: npt.NDArray[np.int64] | None = None
    #: Rows that are pages of the provider's history, with the JSON line that says what was asked for.
    pages: Mapping[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.payload) if self.rows is None else len(self.rows)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        if self.rows is None:
            return enumerate(self.payload.to_pylist())
        return zip(self.rows.tolist(), self._chosen().to_pylist(), strict=True)

    def inexact(self, numbers: JsonNumbers) -> int:
        """How many of the numbers float64 does not hold as they are written."""
        return numbers.inexact(self.payload if len(self) == len(self.payload) else self._chosen())

    def _chosen(self) -> pa.BinaryArray:
        return self.payload.take(pa.array(self.rows))


@dataclass(frozen=True, slots=True)
class Read:
    """Events of one channel that are columns already, one event a frame."""

    channel: Channel
    row: npt.NDArray[np.int64]
    columns: Columns


@dataclass(slots=True)
class Events:
    """What a decoder found in the frames of one feed."""

    channels: dict[Channel, Rows] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    notices: Rows = field(default_factory=Rows)
    rejects: Rows = field(default_factory=Rows)
    #: Events seen on the wire, counted by the decoder apart from where they go: the left side of the accounting equation.
    seen: int = 0
    #: Bars that no market has had. They are kept, and counted here.
    suspect: int = 0
    #: Prices and sizes that float64 does not hold as they were written. The nearest one is kept, and they are counted here.
    inexact: int = 0
    #: The provider's own names of symbols that its table splits wrongly or not at all, each with the canonical one.
    names: Mapping[str, str] = field(default_factory=dict)

    def rows(self, channel: Channel) -> Rows:
        found = self.channels.get(channel)
        if found is None:
            found = self.channels[channel] = Rows()
        return found


#: Provider and feed to what `Events.names` is.
Names: TypeAlias = Mapping[tuple[str, str], Mapping[str, str]]
#: Where no symbol is known to be split otherwise than by the provider's table.
NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
#: Sorts the frames of one feed into events.
Decode: TypeAlias = Callable[[str, Frames, Events], None]


def elements(frame: bytes) -> Sequence[msgspec.Raw | bytes]:
    """The elements of an array, else the frame itself."""
    for decode in (msgspec.json.decode, msgspec.msgpack.decode):
        try:
            found: list[msgspec.Raw] = decode(frame, type=list[msgspec.Raw])
        except UNREADABLE:
            continue
        return found
    return [frame]
