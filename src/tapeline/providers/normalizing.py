"""From decoded events to columns: what every provider's normalizer shares. Pure: no clock, no socket, no state.

A provider's decoder walks the frames of one raw batch and sorts what it finds into `Events`: market events by channel, notices and
rejects. Each channel then turns its events into columns, the columns are checked, and what fails a check moves to the rejects.
The order of the output is the order of the raw records, whatever the batch size, so that a replay gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.providers.decoding.inexact import JsonNumbers, in_texts, lengths
from tapeline.records import (
    BARS_TOPIC,
    NORMALIZED_TOPICS,
    NOTICES_TOPIC,
    NS_PER_MS,
    NS_PER_S,
    NS_PER_US,
    REJECTED_TOPIC,
    TICKS_TOPIC,
    Chunk,
    Identity,
    Topic,
)

#: What decoding bytes may raise: msgspec raises ValueError for bad UTF-8 and RecursionError where brackets nest too deep.
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
#: Integers on the wire must fit the columns they go to.
Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Kind: TypeAlias = Literal["trade", "quote", "bar"]
#: A column, which rows keep the rule (None: all of them), and what the rule says.
_Rule: TypeAlias = tuple[str, "npt.NDArray[np.bool_] | None", str]
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

# Scalars are made once: pyarrow looks for an optional module at each one that it makes from a Python value, 0.1 ms a time.
_ZERO: Final = pa.scalar(0.0)
_ZERO_TRADES: Final = pa.scalar(0)
_TRUE: Final = pa.scalar(True)
_NO_FLOAT: Final = pa.scalar(None, pa.float64())
_NO_TIME: Final = pa.scalar(None, pa.int64())
_NOT_A_NUMBER: Final = pa.scalar(float("nan"))
_FRAME: Final = pa.scalar("frame")
_REPEATED: Final = pa.scalar("repeated")
_EARLIEST_NS: Final = 631_152_000 * 1_000_000_000  # 1990-01-01
_LATEST_NS: Final = 4_102_444_800 * 1_000_000_000  # 2100-01-01
_EARLIEST: Final = pa.scalar(_EARLIEST_NS)
_LATEST: Final = pa.scalar(_LATEST_NS)
#: A text of a tick or bar has at most so many bytes: a longer one may be too large for a stream's message or a store's index.
LONGEST_TEXT: Final = 1_024
_LONGEST_REASON: Final = 1_000
#: A count of this size or more since 1970 is in microseconds, a smaller one in milliseconds (PROVIDERS: Binance archives).
MICROSECONDS_FROM: Final = 10**14


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


#: Kinds of raw records that say what became of a connection, rather than what it carried.
_OWN_NOTICES: Final = frozenset({"opened", "subscribed", "closed", "refused", "listed", "leapt"})

#: Kinds of raw records that begin with a JSON line, which becomes a notice of its own.
HEADED: Final = frozenset({"retried", "fetched"})
#: The index of that notice: behind every event that the bytes after the line may hold.
_BEHIND_ALL: Final = 2**31 - 1

#: Provider and feed to what `Events.names` is.
Names: TypeAlias = Mapping[tuple[str, str], Mapping[str, str]]
#: Where no symbol is known to be split otherwise than by the provider's table.
NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
#: Sorts the frames of one feed into events.
Decode: TypeAlias = Callable[[str, Frames, Events], None]


@dataclass(frozen=True, slots=True)
class Count:
    """The accounting of one feed: seen = ticks + bars + notices + rejected + duplicates."""

    records: int = 0
    seen: int = 0
    ticks: int = 0
    bars: int = 0
    notices: int = 0
    rejected: int = 0
    duplicates: int = 0  # records that ingest marked as later copies, an event each
    suspect: int = 0  # of the bars, those that no market has had: kept as they came, and no term of the equation
    inexact: int = 0  # prices and sizes whose float64 is not what was written, no term of it either

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Normalized:
    """The output of one raw batch: a batch for each topic, and the accounting by (provider, feed)."""

    batches: dict[Topic, pa.RecordBatch]
    counts: dict[tuple[str, str], Count]


def normalize(chunk: Chunk, decoders: Mapping[str, Decode], *, copies: bool = False, names: Names = MappingProxyType({})) -> Normalized:
    """Turn raw records into ticks, bars, notices and rejects, in raw order.

    A later copy of an event (`repeated`) is counted and nothing else; with `copies` it is interpreted as if it were the only one."""
    repeated: dict[tuple[str, str], Count] = {}
    special = _other_than_frames(chunk)
    if special:
        chunk, repeated = (_as_frames(chunk), repeated) if copies else _without_copies(chunk)
        special = _other_than_frames(chunk)
    raw = chunk.batch
    parts: dict[Topic, list[_Part]] = {topic: [] for topic in NORMALIZED_TOPICS}
    counts: dict[tuple[str, str], Count] = {}
    source = _Source(chunk, special)
    for (provider, feed), rows in source.by_feed():
        events = Events(names=names.get((provider, feed), NO_NAMES))
        before = [_count(parts[topic]) for topic in NORMALIZED_TOPICS]
        frames = source.frames(rows, events)
        decode = decoders.get(provider)
        if decode is not None:
            decode(feed, frames, events)
        else:
            events.seen += len(frames)
            for row, frame in frames:
                events.rejects.add(Reject(f"unknown provider ({provider!r})", frame), row, 0)
        _to_parts(source, provider, feed, frames, events, parts)
        made = [_count(parts[topic]) - count for topic, count in zip(NORMALIZED_TOPICS, before, strict=True)]
        count = Count(raw.num_rows if rows is None else len(rows), events.seen, *made)
        counts[provider, feed] = replace(count, suspect=events.suspect, inexact=events.inexact)
    for feed_of, count in repeated.items():
        counts[feed_of] = counts.get(feed_of, Count()) + count
    return Normalized({topic: _in_raw_order(topic, source, parts[topic]) for topic in parts}, counts)


def _other_than_frames(chunk: Chunk) -> bool:
    return bool(pc.any(pc.not_equal(chunk.batch["kind"], _FRAME)).as_py())


def _as_frames(chunk: Chunk) -> Chunk:
    """Later copies as frames like any other."""
    raw = chunk.batch
    kind = pc.if_else(pc.equal(raw["kind"], _REPEATED), _FRAME, raw["kind"])
    return replace(chunk, batch=raw.set_column(raw.schema.get_field_index("kind"), raw.schema.field("kind"), kind))


def _without_copies(chunk: Chunk) -> tuple[Chunk, dict[tuple[str, str], Count]]:
    """The records but the later copies; and of those how many there are of each feed."""
    raw = chunk.batch
    copy = pc.equal(raw["kind"], _REPEATED)
    here = copy.to_numpy(zero_copy_only=False)
    if not here.any():
        return chunk, {}
    by_feed = pa.table(raw.select(["provider", "feed"]).filter(copy)).group_by(["provider", "feed"]).aggregate([([], "count_all")])
    found = {(row["provider"], row["feed"]): row["count_all"] for row in by_feed.to_pylist()}
    rest = replace(chunk, batch=raw.filter(pc.invert(copy)), partition=chunk.partition[~here], offset=chunk.offset[~here])
    return rest, {feed: Count(records=count, seen=count, duplicates=count) for feed, count in found.items()}


@dataclass(frozen=True, slots=True)
class _Part:
    """Columns of one topic with their places in the raw batch: row << 32 | index. A text or a bool holds for every row."""

    columns: Columns
    place: npt.NDArray[np.int64]


def _count(parts: list[_Part]) -> int:
    return sum(len(part.place) for part in parts)


class _Source:
    """The raw batch, as columns that are read by row."""

    def __init__(self, chunk: Chunk, special: bool) -> None:
        """`special`: whether some of the records are no frames."""
        raw = self._raw = chunk.batch
        self._partition = chunk.partition
        self._offset = chunk.offset
        self._split: tuple[int, Sequence[msgspec.Raw | bytes]] = (-1, ())
        self.connection: pa.StringArray = raw["connection"]
        self.received: npt.NDArray[np.int64] = raw["received_ns"].to_numpy()
        kind = raw["kind"]
        self._special: dict[int, str] = {}
        if special:
            self._special = {row: text for row, text in enumerate(kind.to_pylist()) if text != "frame"}
        self.payload: pa.BinaryArray = raw["payload"]
        headed = [row for row, text in self._special.items() if text in HEADED]
        self._head = {row: self.payload[row].as_py().partition(b"\n")[0] for row in headed}
        if headed:
            frames = enumerate(self.payload.to_pylist())
            self.payload = pa.array([f.partition(b"\n")[2] if row in self._head else f for row, f in frames], pa.binary())
        #: Whether a frame is long enough to hold a text that is too long.
        self.long = bool(lengths(self.payload).max(initial=0) > LONGEST_TEXT)

    def by_feed(self) -> list[tuple[tuple[str, str], list[int] | None]]:
        """(provider, feed) with the rows that carry it; in the usual case one feed has them all, which None says."""
        if not self._raw.num_rows:
            return []
        names = [self._raw["provider"], self._raw["feed"]]
        if all(pc.all(pc.equal(name, name[0])).as_py() for name in names):
            return [((names[0][0].as_py(), names[1][0].as_py()), None)]
        provider, feed = (name.dictionary_encode() for name in names)
        groups: dict[tuple[int, int], list[int]] = {}
        pairs = zip(provider.indices.to_pylist(), feed.indices.to_pylist(), strict=True)
        for row, pair in enumerate(pairs):
            groups.setdefault(pair, []).append(row)
        return [((provider.dictionary[p].as_py(), feed.dictionary[f].as_py()), rows) for (p, f), rows in groups.items()]

    def frames(self, rows: list[int] | None, events: Events) -> Frames:
        """The frames among `rows`; Tapeline's own records (opened, subscribed, closed) become notices on the way."""
        if not self._special:
            return Frames(self.payload, None if rows is None else np.array(rows, np.int64))
        frames: list[int] = []
        pages: dict[int, bytes] = {}
        for row in range(self._raw.num_rows) if rows is None else rows:
            kind = self._special.get(row)
            if kind is None:
                frames.append(row)
                continue
            events.seen += 1
            payload = self.payload[row].as_py()
            if kind in HEADED:
                events.notices.add(Notice(kind, self._head[row].decode("utf-8", "replace")), row, _BEHIND_ALL)
                frames.append(row)
                if kind == "fetched":
                    pages[row] = self._head[row]
            elif kind in _OWN_NOTICES:
                events.notices.add(Notice(kind, payload.decode("utf-8", "replace")), row, 0)
            else:
                events.rejects.add(Reject(f"unknown kind of raw record ({kind!r})", payload), row, 0)
        return Frames(self.payload, np.array(frames, np.int64), pages)

    def event(self, row: int, index: int) -> bytes:
        """The bytes of one event: its element where the frame is an array, else the frame itself."""
        if self._split[0] != row:  # each frame is split once, however many of its events are asked for
            self._split = (row, elements(self.payload[row].as_py()))
        return bytes(self._split[1][index])

    def origin(self, place: npt.NDArray[np.int64]) -> dict[str, pa.Array]:
        """The columns that say where each event came from."""
        row, index = place >> 32, place & 0xFFFFFFFF
        return {
            "received_ns": pa.array(self.received[row]),
            "raw_partition": pa.array(self._partition[row]),
            "raw_offset": pa.array(self._offset[row]),
            "raw_index": pa.array(index.astype(np.int32)),
        }


def _to_parts(source: _Source, provider: str, feed: str, frames: Frames, events: Events, parts: dict[Topic, list[_Part]]) -> None:
    own: dict[str, Any]
    reads: list[tuple[Channel, npt.NDArray[np.int64], Columns, Sequence[object] | None]]
    reads = [(read.channel, read.row << 32, read.columns, None) for read in events.reads]
    for channel, found in events.channels.items():
        reads.append((channel, _places(found), channel.columns(found.events), found.events))
    for channel, place, columns, wire in reads:
        own = dict(columns) | {"provider": provider, "feed": feed}
        events.inexact += own.pop("inexact", 0)
        part, bad = _market_part(source, channel, place, own, wire)
        parts[BARS_TOPIC if channel.kind == "bar" else TICKS_TOPIC].append(part)
        events.suspect += _suspect(part.columns) if channel.kind == "bar" else 0
        for at, reason in bad:
            row, index = int(place[at] >> 32), int(place[at] & 0xFFFFFFFF)
            # A page's event is told as the stream would have sent it: so it can be tried again.
            payload = msgspec.json.encode(wire[at]) if wire is not None and row in frames.pages else source.event(row, index)
            events.rejects.add(Reject(reason, payload), row, index)
    for topic, found in ((NOTICES_TOPIC, events.notices), (REJECTED_TOPIC, events.rejects)):
        if not found.events:
            continue
        place = _places(found)
        own = {"provider": provider, "feed": feed, "connection": source.connection.take(pa.array(place >> 32))}
        names: tuple[str, ...] = ("payload",)
        if topic is REJECTED_TOPIC:
            own["reason"] = texts([reject.reason[:_LONGEST_REASON] for reject in found.events])
        else:
            times = pa.array([notice.ts_ns for notice in found.events], pa.int64())
            own["ts_ns"] = pc.coalesce(times, pa.array(source.received[place >> 32]))
            names = ("kind", "symbol", "detail")
        for name in names:
            own[name] = pa.array([getattr(event, name) for event in found.events], topic.schema.field(name).type)
        parts[topic].append(_Part(own, place))


def _suspect(bars: Columns) -> int:
    """How many bars have an open or close outside of their low and high, or a count of trades below zero."""
    prices = {name: bars[name] for name in ("open", "high", "low", "close")}
    low, high = prices["low"], prices["high"]
    strange = pc.or_(pc.less(prices["open"], low), pc.greater(prices["open"], high))
    strange = pc.or_(strange, pc.or_(pc.less(prices["close"], low), pc.greater(prices["close"], high)))
    if isinstance(trades := bars.get("trades"), pa.Array):
        strange = pc.or_(strange, pc.fill_null(pc.less(trades, _ZERO_TRADES), False))
    return int(pc.sum(strange).as_py() or 0)


def _places(found: Rows) -> npt.NDArray[np.int64]:
    return np.array(found.row, np.int64) << 32 | np.array(found.index, np.int64)


def _market_part(
    source: _Source, channel: Channel, place: npt.NDArray[np.int64], columns: dict[str, Any], wire: Sequence[object] | None
) -> tuple[_Part, list[tuple[int, str]]]:
    """The good rows of a channel, and (position, reason) of the bad ones."""
    columns["channel"] = channel.name
    received = pa.array(source.received[place >> 32])
    if channel.kind != "bar":
        columns["kind"] = channel.kind
    if "ts_ns" not in columns:  # the channel carries no time
        columns["ts_ns"] = received
    elif channel.kind != "bar":
        columns["latency_ns"] = pc.subtract(received, columns["ts_ns"])
    elif "sent_ns" in columns:
        columns["latency_ns"] = pc.subtract(received, columns.pop("sent_ns"))
    rules = (*_rules(channel.kind, columns), *(_short(columns) if source.long else ()))
    bad = _problems(columns, rules, wire)
    if bad:
        keep = np.ones(len(place), bool)
        keep[[at for at, _ in bad]] = False
        mask = pa.array(keep)
        columns = {name: c.filter(mask) if isinstance(c, pa.Array) else c for name, c in columns.items()}
        place = place[keep]
    return _Part(columns, place), bad


def _in_raw_order(topic: Topic, source: _Source, parts: list[_Part]) -> pa.RecordBatch:
    """The parts as one batch in the order of the raw records."""
    if not parts:
        return _nothing(topic)
    place = np.concatenate([part.place for part in parts])
    order = None
    if len(place) > 1 and not bool(np.all(place[1:] > place[:-1])):
        order = pa.array(np.argsort(place, kind="stable"))
        place = place[order.to_numpy()]
    columns: dict[str, pa.Array] = source.origin(place)
    varying: dict[str, pa.Array] = {}
    for column in topic.schema:
        if column.name in columns:
            continue
        values = [part.columns.get(column.name) for part in parts]
        first = values[0]
        if not isinstance(first, pa.Array) and all(isinstance(value, type(first)) and value == first for value in values):
            columns[column.name] = _filled(first, column.type, len(place))  # one value for all rows needs no ordering
            continue
        pieces = [
            value if isinstance(value, pa.Array) else _filled(value, column.type, len(part.place))
            for value, part in zip(values, parts, strict=True)
        ]
        varying[column.name] = pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)
    if order is not None:
        ordered = pa.RecordBatch.from_pydict(varying).take(order)
        varying = dict(zip(varying, ordered.columns, strict=True))
    columns |= varying
    return pa.RecordBatch.from_arrays([columns[name] for name in topic.schema.names], schema=topic.schema)


@lru_cache(maxsize=16)
def _nothing(topic: Topic) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, column.type) for column in topic.schema], schema=topic.schema)


def _filled(value: str | int | None, kind: pa.DataType, n: int) -> pa.Array:
    return pa.nulls(n, kind) if value is None else pa.repeat(_scalar(value, kind), n)


@lru_cache(maxsize=1_024)
def _scalar(value: str | int, kind: pa.DataType) -> pa.Scalar:
    return pa.scalar(value, kind)


def _problems(columns: Mapping[str, Any], rules: Iterable[_Rule], wire: Sequence[object] | None) -> list[tuple[int, str]]:
    """(row, reason) for each row that breaks a rule, the first broken rule naming the reason."""
    reasons: dict[int, str] = {}
    for name, fine, rule in rules:
        if fine is None or fine.all():
            continue
        for at in np.flatnonzero(~fine).tolist():
            if at not in reasons:
                value = columns[name][at].as_py()
                if (value is None or value != value) and wire is not None:  # it was written, and means nothing
                    value = _written(wire[at], name)
                reasons[at] = f"{_SPOKEN.get(name, name)} {rule} ({value})"
    return sorted(reasons.items())


def _written(event: object, column: str) -> str:
    """What a wire event has in the place of a column that could not be made of it; empty where it has nothing."""
    inner = event if column == "symbol" else getattr(event, "k", event)
    found = next((getattr(inner, name) for name in _WIRE_NAMES.get(column, ()) if hasattr(inner, name)), None)
    return "" if found is None else repr(_ADDRESS.sub("", str(found))[:_LONGEST_WRITTEN])


#: What Python says of an object that has no words: where in memory it lies, which is another place each time.
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_LONGEST_WRITTEN: Final = 60
#: Where a wire event may have what a column is made of; the first that it has. (Binance's `t` is an id: its times are `T`.)
_WIRE_NAMES: Final = {
    "symbol": ("sym", "pair", "S", "s"),
    "ts_ns": ("T", "t", "s"),
    "last": ("p",),
    "bid": ("bp", "b"),
    "ask": ("ap", "a"),
    "bid_size": ("bs", "B"),
    "ask_size": ("as_", "A"),
    "volume": ("ds", "dv", "q", "v", "s"),
    "open": ("o",),
    "high": ("h",),
    "low": ("l",),
    "close": ("c",),
    "vwap": ("vw",),
}
#: What a column is called in a reject's reason.
_SPOKEN: Final = {
    "last": "price",
    "bid": "bid price",
    "ask": "ask price",
    "bid_size": "bid size",
    "ask_size": "ask size",
    "volume": "size or volume",
    "ts_ns": "time",
}


def _rules(kind: Kind, columns: Mapping[str, Any]) -> Iterator[_Rule]:
    """What every event of a kind has to keep."""
    yield "symbol", _present(columns["symbol"]), "is empty, or ends in no known quote asset"
    yield "ts_ns", _present(columns["ts_ns"]), "cannot be read, or lies outside 1990 to 2100"
    above, from_zero = "is not a finite number above zero", "is not a finite number of zero or more"
    prices: tuple[str, ...]
    if kind == "quote":
        for name in ("bid", "ask", "bid_size", "ask_size"):
            yield name, _finite(columns[name], from_zero=True, or_null=True), from_zero
        return
    prices = ("last",) if kind == "trade" else ("open", "high", "low", "close")
    for name in prices:
        yield name, _finite(columns[name], from_zero=False), above
    yield "volume", _finite(columns["volume"], from_zero=True), from_zero
    if "vwap" in columns:
        yield "vwap", _finite(columns["vwap"], from_zero=False, or_null=True), above


def _short(columns: Mapping[str, Any]) -> Iterator[_Rule]:
    """That no text is longer than streams and stores are made for."""
    for name, column in columns.items():
        if isinstance(column, pa.Array) and pa.types.is_string(column.type):
            yield name, lengths(column) <= LONGEST_TEXT, f"has more than {LONGEST_TEXT} bytes"


def _present(values: pa.Array) -> npt.NDArray[np.bool_] | None:
    return None if values.null_count == 0 else values.is_valid().to_numpy(zero_copy_only=False)


def _finite(values: pa.Array, *, from_zero: bool, or_null: bool = False) -> npt.NDArray[np.bool_]:
    """Which are numbers above zero (or from zero on) and below infinity; a null only where `or_null`."""
    number: npt.NDArray[np.float64] = values.to_numpy(zero_copy_only=False)  # a null becomes NaN, which no comparison holds for
    fine: npt.NDArray[np.bool_] = ((number >= 0) if from_zero else (number > 0)) & (number < np.inf)
    if or_null and values.null_count:
        fine |= values.is_null().to_numpy(zero_copy_only=False)
    return fine


def elements(frame: bytes) -> Sequence[msgspec.Raw | bytes]:
    """The elements of an array, else the frame itself."""
    for decode in (msgspec.json.decode, msgspec.msgpack.decode):
        try:
            found: list[msgspec.Raw] = decode(frame, type=list[msgspec.Raw])
        except UNREADABLE:
            continue
        return found
    return [frame]


# The pieces that channels build their columns from.


def texts(values: Iterable[str | None]) -> pa.Array:
    return pa.array(list(values), pa.string())


def integers(values: Iterable[int | None]) -> pa.Array:
    return pa.array(list(values), pa.int64())


def floats(values: Iterable[float | None]) -> pa.Array:
    return pa.array(list(values), pa.float64())


def flags(values: Iterable[bool]) -> pa.Array:
    return pa.array(list(values), pa.bool_())


def ratio(amount: pa.Array, by: pa.Array) -> pa.Array:
    """`amount / by`, null where `by` is zero."""
    return pc.divide(amount, pc.if_else(pc.equal(by, _ZERO), _NO_FLOAT, by))


def but_zero(values: pa.Array) -> pa.Array:
    """Null where a value is zero: an average price of nothing, which some bars of few shares carry."""
    return pc.if_else(pc.equal(values, _ZERO), _NO_FLOAT, values)


def decimals(values: Iterable[str]) -> pa.Array:
    """Decimal texts as the nearest float64; a text that is no number becomes NaN, which the checks reject."""
    return _nearest(pa.array(list(values), pa.string()))


def counted_decimals(values: Iterable[str]) -> tuple[pa.Array, int]:
    """The same, and for how many the nearest float64 is not what is written."""
    written = pa.array(list(values), pa.string())
    return _nearest(written), in_texts(written)


def _nearest(written: pa.Array) -> pa.Array:
    return _each(written, lambda some: pc.cast(some, pa.float64()), _NOT_A_NUMBER)


def rfc3339(values: Iterable[str]) -> pa.Array:
    """RFC 3339 times (up to nine digits of a second, with zone) as ns; null where unreadable or outside 1990 to 2100."""
    written = pa.array(list(values), pa.string())
    ns = _each(written, lambda some: pc.cast(pc.cast(some, pa.timestamp("ns", "UTC")), pa.int64()), _NO_TIME)
    return in_range(ns)


def epoch_ns(values: pa.Array) -> pa.Array:
    """Epoch milliseconds or microseconds (told apart by size) as ns; null outside 1990 to 2100."""
    count = values.to_numpy()
    unit = np.where(count >= MICROSECONDS_FROM, NS_PER_US, NS_PER_MS)
    readable = (count > _EARLIEST_NS // unit) & (count < _LATEST_NS // unit)
    return pa.array(np.where(readable, count, 0) * unit, mask=None if readable.all() else ~readable)


def in_range(ns: pa.Array) -> pa.Array:
    """Times in ns, null where outside 1990 to 2100."""
    inside = pc.and_(pc.greater(ns, _EARLIEST), pc.less(ns, _LATEST))
    return ns if pc.all(inside).as_py() and inside.null_count == 0 else pc.if_else(inside, ns, _NO_TIME)


def side_of(price: pa.Array, size: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Price and size of one side of a quote; both null where the price is zero or absent: that side is empty."""
    here = pc.not_equal(price, _ZERO)
    if here.null_count == 0 and pc.all(here).as_py() is not False:
        return price, size
    return pc.if_else(here, price, _NO_FLOAT), pc.if_else(here, size, _NO_FLOAT)


def joined(codes: Iterable[Sequence[object] | None]) -> pa.Array:
    """Condition codes, comma-joined; null where there are none."""
    return pa.array([",".join(map(str, some)) if some else None for some in codes], pa.string())


def _each(values: pa.Array, convert: Callable[[pa.Array], pa.Array], otherwise: pa.Scalar) -> pa.Array:
    """Convert all at once; where that fails, one by one, with `otherwise` for those that cannot be converted."""
    try:
        return convert(values)
    except pa.ArrowInvalid:
        one_by_one = []
        for at in range(len(values)):
            try:
                one_by_one.append(convert(values.slice(at, 1))[0].as_py())
            except pa.ArrowInvalid:
                one_by_one.append(otherwise.as_py())
        return pa.array(one_by_one, otherwise.type)
