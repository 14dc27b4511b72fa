"""From decoded events to columns: what every provider's normalizer shares. Pure: no clock, no socket, no state.

A provider's decoder walks the frames of one raw batch and sorts what it finds into `Events`: market events by channel, notices and
rejects. Each channel then turns its events into columns, the columns are checked, and what fails a check moves to the rejects.
The order of the output is the order of the raw records, whatever the batch size, so that a replay gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import (
    BARS_TOPIC,
    NORMALIZED_TOPICS,
    NOTICES_TOPIC,
    NS_PER_MS,
    NS_PER_US,
    REJECTED_TOPIC,
    TICKS_TOPIC,
    Topic,
)

#: Integers on the wire must fit the columns they go to.
Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Kind: TypeAlias = Literal["trade", "quote", "bar"]
#: Column name to an array, or to a text that holds for every row.
Columns: TypeAlias = Mapping[str, "pa.Array | str | bool"]
#: Names of the columns that make two events of a channel the same; empty: no two events ever are.
Identity: TypeAlias = tuple[str, ...]

_ORIGIN: Final = ("received_ns", "raw_partition", "raw_offset", "raw_index")


def _content(topic: Topic) -> Identity:
    return tuple(name for name in topic.schema.names if name not in (*_ORIGIN, "latency_ns"))


#: Two events with the same content are one event: for channels without an id, where repeating a state says nothing new.
SAME_CONTENT: Final[dict[Kind, Identity]] = {
    "trade": _content(TICKS_TOPIC),
    "quote": _content(TICKS_TOPIC),
    "bar": _content(BARS_TOPIC),
}
#: Ids that start anew each day and on each venue.
DAILY_ID: Final[Identity] = ("date", "symbol", "exchange", "trade_id")
#: Numbers that a symbol's events carry once and for ever.
SEQUENCE: Final[Identity] = ("symbol", "sequence")

# Scalars are made once: pyarrow looks for an optional module at each one that it makes from a Python value, 0.1 ms a time.
_ZERO: Final = pa.scalar(0.0)
_TRUE: Final = pa.scalar(True)
_NO_FLOAT: Final = pa.scalar(None, pa.float64())
_NO_TIME: Final = pa.scalar(None, pa.int64())
_NOT_A_NUMBER: Final = pa.scalar(float("nan"))
_FRAME: Final = pa.scalar("frame")
_EARLIEST_NS: Final = 631_152_000 * 1_000_000_000  # 1990-01-01
_LATEST_NS: Final = 4_102_444_800 * 1_000_000_000  # 2100-01-01
_EARLIEST: Final = pa.scalar(_EARLIEST_NS)
_LATEST: Final = pa.scalar(_LATEST_NS)
#: A count of this size or more since 1970 is in microseconds, a smaller one in milliseconds (PROVIDERS: Binance archives).
_MICROSECONDS_FROM: Final = 10**14


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """How the events of one of a provider's channels become rows."""

    name: str
    kind: Kind
    #: Wire events to the columns that they carry; what is left out is null.
    columns: Callable[[Sequence[Any]], Columns]
    identity: Identity


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
    """An event that cannot be read, with the reason and its own bytes."""

    reason: str
    payload: bytes


@dataclass(slots=True)
class Events:
    """What a decoder found in the frames of one feed."""

    channels: dict[Channel, Rows] = field(default_factory=dict)
    notices: Rows = field(default_factory=Rows)
    rejects: Rows = field(default_factory=Rows)
    #: Events seen on the wire, counted by the decoder apart from where they go: the left side of the accounting equation.
    seen: int = 0

    def rows(self, channel: Channel) -> Rows:
        found = self.channels.get(channel)
        if found is None:
            found = self.channels[channel] = Rows()
        return found


#: Sorts the frames (row in the raw batch, bytes) of one feed into events.
Decode: TypeAlias = Callable[[str, Iterable[tuple[int, bytes]], Events], None]


@dataclass(frozen=True, slots=True)
class Count:
    """The accounting of one feed: seen = ticks + bars + notices + rejected."""

    records: int = 0
    seen: int = 0
    ticks: int = 0
    bars: int = 0
    notices: int = 0
    rejected: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Normalized:
    """The output of one raw batch: a batch for each topic, and the accounting by (provider, feed)."""

    batches: dict[Topic, pa.RecordBatch]
    counts: dict[tuple[str, str], Count]


def normalize(raw: pa.RecordBatch, partition: int, first_offset: int, decoders: Mapping[str, Decode]) -> Normalized:
    """Turn the raw records at `partition`, `first_offset` onwards into ticks, bars, notices and rejects, in raw order."""
    parts: dict[Topic, list[_Part]] = {topic: [] for topic in NORMALIZED_TOPICS}
    counts: dict[tuple[str, str], Count] = {}
    source = _Source(raw, partition, first_offset)
    for (provider, feed), rows in source.by_feed():
        events = Events()
        decode = decoders.get(provider)
        if decode is None:
            for row in rows:
                events.rejects.add(Reject(f"unknown provider {provider!r}", source.payload[row]), row, 0)
            events.seen = len(rows)
        else:
            decode(feed, source.frames(rows, events), events)
        before = {topic: sum(part.batch.num_rows for part in parts[topic]) for topic in parts}
        _to_parts(source, provider, feed, events, parts)
        made = [sum(part.batch.num_rows for part in parts[topic]) - before[topic] for topic in NORMALIZED_TOPICS]
        counts[provider, feed] = Count(len(rows), events.seen, *made)
    return Normalized({topic: _in_raw_order(topic, parts[topic]) for topic in parts}, counts)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one topic with their place in the raw batch: row << 32 | index."""

    batch: pa.RecordBatch
    place: npt.NDArray[np.int64]


class _Source:
    """The raw batch, as columns that are read by row."""

    def __init__(self, raw: pa.RecordBatch, partition: int, first_offset: int) -> None:
        self.raw = raw
        self.partition = partition
        self.first_offset = first_offset
        self.payload: list[bytes] = raw["payload"].to_pylist()
        self.received = raw["received_ns"].to_numpy()
        self.connection = raw["connection"]
        kind = raw["kind"]
        self.special: dict[int, str] = {}
        if pc.any(pc.not_equal(kind, _FRAME)).as_py():
            self.special = {row: text for row, text in enumerate(kind.to_pylist()) if text != "frame"}

    def by_feed(self) -> list[tuple[tuple[str, str], Sequence[int]]]:
        """(provider, feed) with the rows that carry it; in the usual case one feed has them all."""
        provider, feed = self.raw["provider"].dictionary_encode(), self.raw["feed"].dictionary_encode()
        if len(provider.dictionary) <= 1 and len(feed.dictionary) <= 1:
            n = self.raw.num_rows
            return [((provider.dictionary[0].as_py(), feed.dictionary[0].as_py()), range(n))] if n else []
        groups: dict[tuple[int, int], list[int]] = {}
        pairs = zip(provider.indices.to_pylist(), feed.indices.to_pylist(), strict=True)
        for row, pair in enumerate(pairs):
            groups.setdefault(pair, []).append(row)
        return [((provider.dictionary[p].as_py(), feed.dictionary[f].as_py()), rows) for (p, f), rows in groups.items()]

    def frames(self, rows: Sequence[int], events: Events) -> Iterable[tuple[int, bytes]]:
        """The frames among `rows`; Tapeline's own records (opened, subscribed, closed) become notices on the way."""
        payload = self.payload
        if not self.special:
            return enumerate(payload) if len(rows) == len(payload) else ((row, payload[row]) for row in rows)
        frames: list[tuple[int, bytes]] = []
        for row in rows:
            kind = self.special.get(row)
            if kind is None:
                frames.append((row, payload[row]))
                continue
            events.seen += 1
            if kind in ("opened", "subscribed", "closed"):
                events.notices.add(Notice(kind, payload[row].decode("utf-8", "replace")), row, 0)
            else:
                events.rejects.add(Reject(f"unknown kind of raw record {kind!r}", payload[row]), row, 0)
        return frames

    def origin(self, row: npt.NDArray[np.int64], index: npt.NDArray[np.int64]) -> dict[str, pa.Array]:
        return {
            "received_ns": pa.array(self.received[row]),
            "raw_partition": pa.array(np.full(len(row), self.partition, np.int32)),
            "raw_offset": pa.array(row + self.first_offset),
            "raw_index": pa.array(index.astype(np.int32)),
        }


def _to_parts(source: _Source, provider: str, feed: str, events: Events, parts: dict[Topic, list[_Part]]) -> None:
    for channel, found in events.channels.items():
        topic = BARS_TOPIC if channel.kind == "bar" else TICKS_TOPIC
        part, bad = _market_part(source, provider, feed, channel, topic, found)
        for at, reason in bad:
            payload = event_bytes(source.payload[found.row[at]], found.index[at])
            events.rejects.add(Reject(reason, payload), found.row[at], found.index[at])
        parts[topic].append(part)
    for topic, found in ((NOTICES_TOPIC, events.notices), (REJECTED_TOPIC, events.rejects)):
        if not found.events:
            continue
        row, index = np.array(found.row, np.int64), np.array(found.index, np.int64)
        columns = source.origin(row, index) | {"connection": source.connection.take(pa.array(row))}
        columns |= {"provider": provider, "feed": feed}
        if topic is NOTICES_TOPIC:
            ts = pa.array([notice.ts_ns for notice in found.events], pa.int64())
            columns["ts_ns"] = pc.coalesce(ts, columns["received_ns"])
            names: tuple[str, ...] = ("kind", "symbol", "detail")
        else:
            names = ("reason", "payload")
        for name in names:
            columns[name] = pa.array([getattr(event, name) for event in found.events], topic.schema.field(name).type)
        parts[topic].append(_Part(_assemble(topic, columns, len(row)), row << 32 | index))


def _market_part(
    source: _Source, provider: str, feed: str, channel: Channel, topic: Topic, found: Rows
) -> tuple[_Part, list[tuple[int, str]]]:
    """The good rows of a channel, and (position in `found`, reason) of the bad ones."""
    n = len(found.events)
    row, index = np.array(found.row, np.int64), np.array(found.index, np.int64)
    columns: dict[str, Any] = source.origin(row, index)
    columns |= {"provider": provider, "feed": feed, "channel": channel.name}
    if channel.kind != "bar":
        columns["kind"] = channel.kind
    columns |= channel.columns(found.events)
    if "ts_ns" not in columns:  # the channel carries no time
        columns["ts_ns"] = columns["received_ns"]
    elif channel.kind != "bar":
        columns["latency_ns"] = pc.subtract(columns["received_ns"], columns["ts_ns"])
    elif "sent_ns" in columns:
        columns["latency_ns"] = pc.subtract(columns["received_ns"], columns.pop("sent_ns"))
    bad = _problems(channel.kind, columns, found.events)
    place = row << 32 | index
    if bad:
        keep = np.ones(n, bool)
        keep[[at for at, _ in bad]] = False
        mask = pa.array(keep)
        columns = {name: c.filter(mask) if isinstance(c, pa.Array) else c for name, c in columns.items()}
        place = place[keep]
    return _Part(_assemble(topic, columns, len(place)), place), bad


def _assemble(topic: Topic, columns: Mapping[str, Any], n: int) -> pa.RecordBatch:
    arrays = []
    for column in topic.schema:
        value = columns.get(column.name)
        if value is None:
            value = pa.nulls(n, column.type)
        elif not isinstance(value, pa.Array):
            value = pa.repeat(_scalar(value, column.type), n)
        arrays.append(value)
    return pa.RecordBatch.from_arrays(arrays, schema=topic.schema)


@lru_cache(maxsize=1_024)
def _scalar(value: str | bool, kind: pa.DataType) -> pa.Scalar:
    return pa.scalar(value, kind)


def _in_raw_order(topic: Topic, parts: list[_Part]) -> pa.RecordBatch:
    if not parts:
        return _assemble(topic, {}, 0)
    if len(parts) == 1:
        batch, place = parts[0].batch, parts[0].place
    else:
        batch = pa.concat_batches([part.batch for part in parts])
        place = np.concatenate([part.place for part in parts])
    if len(place) > 1 and not bool(np.all(place[1:] > place[:-1])):
        batch = batch.take(pa.array(np.argsort(place, kind="stable")))
    return batch


def _problems(kind: Kind, columns: Mapping[str, Any], events: Sequence[object]) -> list[tuple[int, str]]:
    """(row, reason) for each row that breaks a rule, the first broken rule naming the reason."""
    reasons: dict[int, str] = {}
    for name, fine, rule in _rules(kind, columns):
        if fine.null_count == 0 and pc.all(fine).as_py() is not False:
            continue
        for at, good in enumerate(fine.to_pylist()):
            if not good and at not in reasons:
                value = columns[name][at].as_py()
                shown = f"in {events[at]}" if value is None else value
                reasons[at] = f"{_SPOKEN.get(name, name)} {shown} {rule}"
    return sorted(reasons.items())


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


def _rules(kind: Kind, columns: Mapping[str, Any]) -> Iterable[tuple[str, pa.BooleanArray, str]]:
    """(column, which rows keep the rule, what the rule says); a null in the second counts as broken."""
    yield "symbol", pc.is_valid(columns["symbol"]), "ends in no known quote asset"
    yield "ts_ns", pc.is_valid(columns["ts_ns"]), "cannot be read, or lies outside 1990 to 2100"
    above, from_zero = "is not a finite number above zero", "is not a finite number of zero or more"
    prices: tuple[str, ...]
    if kind == "quote":
        for name in ("bid", "ask", "bid_size", "ask_size"):
            empty = pc.is_null(columns[name])
            yield name, pc.or_(empty, pc.fill_null(_finite_from(columns[name], above=False), _TRUE)), from_zero
        return
    prices = ("last",) if kind == "trade" else ("open", "high", "low", "close")
    for name in prices:
        yield name, _finite_from(columns[name], above=True), above
    yield "volume", _finite_from(columns["volume"], above=False), from_zero
    if "vwap" in columns:
        yield "vwap", pc.or_(pc.is_null(columns["vwap"]), pc.fill_null(pc.is_finite(columns["vwap"]), _TRUE)), above


def _finite_from(values: pa.Array, *, above: bool) -> pa.BooleanArray:
    bound = pc.greater(values, _ZERO) if above else pc.greater_equal(values, _ZERO)
    return pc.and_(bound, pc.is_finite(values))


def event_bytes(frame: bytes, index: int) -> bytes:
    """The bytes of one event: its element where the frame is an array, else the frame itself."""
    for decode in (msgspec.json.decode, msgspec.msgpack.decode):
        try:
            elements = decode(frame, type=list[msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
            continue
        return bytes(elements[index])
    return frame


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


def decimals(values: Iterable[str]) -> pa.Array:
    """Decimal texts as the nearest float64; a text that is no number becomes NaN, which the checks reject."""
    written = pa.array(list(values), pa.string())
    return _each(written, lambda some: pc.cast(some, pa.float64()), _NOT_A_NUMBER)


def rfc3339(values: Iterable[str]) -> pa.Array:
    """RFC 3339 times (up to nine digits of a second, with zone) as ns; null where unreadable or outside 1990 to 2100."""
    written = pa.array(list(values), pa.string())
    ns = _each(written, lambda some: pc.cast(pc.cast(some, pa.timestamp("ns", "UTC")), pa.int64()), _NO_TIME)
    return in_range(ns)


def epoch_ns(values: Iterable[int]) -> pa.Array:
    """Epoch milliseconds or microseconds (told apart by size) as ns; null outside 1990 to 2100."""
    count = np.array(list(values), np.int64)
    unit = np.where(count >= _MICROSECONDS_FROM, NS_PER_US, NS_PER_MS)
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
