"""Turns raw records into ticks, bars, notices and rejects, with each provider's decoder. Pure: no clock, no socket, no state.

A provider's decoder walks the frames of one raw batch and sorts them into `Events`: market events by channel, notices and rejects.
Each channel then turns its events into columns. The columns are checked, and an event that fails a check becomes a reject.
The output has the order of the raw records, whatever the batch size, so a replay gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.providers.columns import texts
from tapeline.providers.decoding.inexact import lengths
from tapeline.providers.events import NO_NAMES, Channel, Columns, Decode, Events, Frames, Names, Notice, Reject, Rows, elements
from tapeline.providers.rules import LONGEST_TEXT, problems, rules_of, short, suspect
from tapeline.records import (
    BARS_TOPIC,
    NORMALIZED_TOPICS,
    NOTICES_TOPIC,
    REJECTED_TOPIC,
    TICKS_TOPIC,
    Chunk,
    Topic,
)

_TRUE: Final = pa.scalar(True)
_FRAME: Final = pa.scalar("frame")
_REPEATED: Final = pa.scalar("repeated")
_LONGEST_REASON: Final = 1_000
#: The rows of a short column.
_SHORT: Final = 4_096


#: Kinds of raw records that Tapeline itself wrote about a connection or a list. Each becomes one notice.
_OWN_NOTICES: Final = frozenset({"opened", "subscribed", "closed", "dropped", "listed", "leapt"})

#: Kinds of raw records that begin with a JSON line. The line becomes a notice of its own.
HEADED: Final = frozenset({"retried", "fetched"})
#: The kind of a raw record that holds a page of a list of instruments. Only its first line becomes a notice: its rows are no events.
_LIST_PAGE: Final = "instruments"
#: The index of that notice. It comes after every event in the bytes behind the line.
_BEHIND_ALL: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Count:
    """The accounting of one feed. The equation is seen = ticks + bars + notices + rejected + duplicates."""

    records: int = 0
    seen: int = 0
    ticks: int = 0
    bars: int = 0
    notices: int = 0
    rejected: int = 0
    duplicates: int = 0  # records that ingest marked as later copies; each holds one event
    suspect: int = 0  # impossible bars; they are kept as they came, are included in `bars`, and are not a term of the equation
    inexact: int = 0  # prices and sizes that float64 does not hold exactly; not a term of the equation either

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Normalized:
    """The output of one raw batch: a batch for each topic, and the accounting by (provider, feed)."""

    batches: dict[Topic, pa.RecordBatch]
    counts: dict[tuple[str, str], Count]


def normalize(chunk: Chunk, decoders: Mapping[str, Decode], *, copies: bool = False, names: Names = MappingProxyType({})) -> Normalized:
    """Turn raw records into ticks, bars, notices and rejects, in raw order.

    A later copy of an event (kind `repeated`) is only counted. With `copies`, it is decoded like any other frame. `names` holds the
    symbols that a provider's table splits wrongly or not at all."""
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
    return not _all_are(chunk.batch["kind"], "frame")


def _as_frames(chunk: Chunk) -> Chunk:
    """The chunk with later copies marked as ordinary frames."""
    raw = chunk.batch
    kind = pc.if_else(pc.equal(raw["kind"], _REPEATED), _FRAME, raw["kind"])
    return replace(chunk, batch=raw.set_column(raw.schema.get_field_index("kind"), raw.schema.field("kind"), kind))


def _without_copies(chunk: Chunk) -> tuple[Chunk, dict[tuple[str, str], Count]]:
    """The records without the later copies, and the count of these copies by feed."""
    raw = chunk.batch
    copy = pc.equal(raw["kind"], _REPEATED)
    here = copy.to_numpy(zero_copy_only=False)
    if not here.any():
        return chunk, {}
    by_feed = pa.table(raw.select(["provider", "feed"]).filter(copy)).group_by(["provider", "feed"]).aggregate([([], "count_all")])
    copies = {(row["provider"], row["feed"]): row["count_all"] for row in by_feed.to_pylist()}
    rest = replace(chunk, batch=raw.filter(pc.invert(copy)), partition=chunk.partition[~here], offset=chunk.offset[~here])
    return rest, {feed: Count(records=count, seen=count, duplicates=count) for feed, count in copies.items()}


@dataclass(frozen=True, slots=True)
class _Part:
    """Columns of one topic, and the place of each row in the raw batch: row << 32 | index. A plain value applies to every row."""

    columns: Columns
    place: npt.NDArray[np.int64]


def _count(parts: list[_Part]) -> int:
    return sum(len(part.place) for part in parts)


class _Source:
    """The raw batch, with access to the payload and origin of each row."""

    def __init__(self, chunk: Chunk, special: bool) -> None:
        """`special`: whether some of the records are not frames."""
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

    @cached_property
    def long(self) -> bool:
        """Whether any frame is long enough to hold a text over the limit. If not, that check can be skipped."""
        return bool(lengths(self.payload).max(initial=0) > LONGEST_TEXT)

    def by_feed(self) -> list[tuple[tuple[str, str], list[int] | None]]:
        """Each (provider, feed) with its rows. None in place of the rows means all rows, which is the usual case."""
        if not self._raw.num_rows:
            return []
        names = [self._raw["provider"], self._raw["feed"]]
        first = [name[0].as_py() for name in names]
        if all(_all_are(name, value) for name, value in zip(names, first, strict=True)):
            return [((first[0], first[1]), None)]
        provider, feed = (name.dictionary_encode() for name in names)
        groups: dict[tuple[int, int], list[int]] = {}
        pairs = zip(provider.indices.to_pylist(), feed.indices.to_pylist(), strict=True)
        for row, pair in enumerate(pairs):
            groups.setdefault(pair, []).append(row)
        return [((provider.dictionary[p].as_py(), feed.dictionary[f].as_py()), rows) for (p, f), rows in groups.items()]

    def frames(self, rows: list[int] | None, events: Events) -> Frames:
        """The frames among `rows`. Tapeline's own records (such as opened, subscribed, closed) are added to `events` as notices."""
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
            elif kind == _LIST_PAGE:
                events.notices.add(Notice(kind, payload.partition(b"\n")[0].decode("utf-8", "replace")), row, 0)
            elif kind in _OWN_NOTICES:
                events.notices.add(Notice(kind, payload.decode("utf-8", "replace")), row, 0)
            else:
                events.rejects.add(Reject(f"unknown kind of raw record ({kind!r})", payload), row, 0)
        return Frames(self.payload, np.array(frames, np.int64), pages)

    def event(self, row: int, index: int) -> bytes:
        """The bytes of one event: its element if the frame is an array, else the whole frame."""
        if self._split[0] != row:  # a frame is split only once, even if several of its events are wanted
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
    for read in events.reads:
        own = dict(read.columns) | {"provider": provider, "feed": feed}
        received = pa.array(source.received[read.place >> 32])
        _add_times(own, received, bar=read.topic is BARS_TOPIC)
        if own["ts_ns"].null_count:  # some of the channels carry no time
            own["ts_ns"] = pc.coalesce(own["ts_ns"], received)
        parts[read.topic].append(_Part(own, read.place))
        events.suspect += suspect(own) if read.topic is BARS_TOPIC else 0
    for channel, rows in events.channels.items():
        place, wire = _places(rows), rows.events
        own = dict(channel.columns(wire)) | {"provider": provider, "feed": feed}
        events.inexact += own.pop("inexact", 0)
        part, bad = _market_part(source, channel, place, own, wire)
        parts[BARS_TOPIC if channel.kind == "bar" else TICKS_TOPIC].append(part)
        events.suspect += suspect(part.columns) if channel.kind == "bar" else 0
        for at, reason in bad:
            row, index = int(place[at] >> 32), int(place[at] & 0xFFFFFFFF)
            # An event of a page is kept in the form that the stream would have sent. Only so can it be retried.
            payload = msgspec.json.encode(wire[at]) if row in frames.pages else source.event(row, index)
            events.rejects.add(Reject(reason, payload), row, index)
    for topic, rows in ((NOTICES_TOPIC, events.notices), (REJECTED_TOPIC, events.rejects)):
        if not rows.events:
            continue
        place = _places(rows)
        own = {"provider": provider, "feed": feed, "connection": source.connection.take(pa.array(place >> 32))}
        names: tuple[str, ...] = ("payload",)
        if topic is REJECTED_TOPIC:
            own["reason"] = texts([reject.reason[:_LONGEST_REASON] for reject in rows.events])
        else:
            times = pa.array([notice.ts_ns for notice in rows.events], pa.int64())
            own["ts_ns"] = pc.coalesce(times, pa.array(source.received[place >> 32]))
            names = ("kind", "symbol", "detail")
        for name in names:
            own[name] = pa.array([getattr(event, name) for event in rows.events], topic.schema.field(name).type)
        parts[topic].append(_Part(own, place))


def _places(rows: Rows) -> npt.NDArray[np.int64]:
    return np.array(rows.row, np.int64) << 32 | np.array(rows.index, np.int64)


def _market_part(
    source: _Source, channel: Channel, place: npt.NDArray[np.int64], columns: dict[str, Any], wire: Sequence[object]
) -> tuple[_Part, list[tuple[int, str]]]:
    """The rows of a channel that keep all rules, and (position, reason) of each row that does not."""
    columns["channel"] = channel.name
    if channel.kind != "bar":
        columns["kind"] = channel.kind
    _add_times(columns, pa.array(source.received[place >> 32]), bar=channel.kind == "bar")
    rules = (*rules_of(channel.kind, columns), *(short(columns) if source.long else ()))
    bad = problems(columns, rules, wire)
    if bad:
        keep = np.ones(len(place), bool)
        keep[[at for at, _ in bad]] = False
        mask = pa.array(keep)
        columns = {name: c.filter(mask) if isinstance(c, pa.Array) else c for name, c in columns.items()}
        place = place[keep]
    return _Part(columns, place), bad


def _add_times(columns: dict[str, Any], received: pa.Array, *, bar: bool) -> None:
    """Add the latency, and the receive time as the time of a channel that carries none."""
    sent = columns.pop("sent_ns", None) if bar else columns.get("ts_ns")
    if sent is not None:
        columns["latency_ns"] = pc.subtract(received, sent)
    if "ts_ns" not in columns:
        columns["ts_ns"] = received


def _in_raw_order(topic: Topic, source: _Source, parts: list[_Part]) -> pa.RecordBatch:
    """The parts as one batch in the order of the raw records."""
    if not parts:
        return _nothing(topic)
    place = np.concatenate([part.place for part in parts]) if len(parts) > 1 else parts[0].place
    order = None
    if len(place) > 1 and not bool((place[1:] > place[:-1]).all()):
        order = pa.array(np.argsort(place, kind="stable"))
        place = place[order.to_numpy()]
    columns: dict[str, pa.Array] = source.origin(place)
    varying: dict[str, pa.Array] = {}
    for name, kind in _fields(topic):
        if name in columns:
            continue
        values = [part.columns.get(name) for part in parts]
        first = values[0]
        if not isinstance(first, pa.Array) and all(isinstance(value, type(first)) and value == first for value in values):
            columns[name] = _filled(first, kind, len(place))  # the same value in all rows needs no sorting
            continue
        pieces = [
            value if isinstance(value, pa.Array) else _filled(value, kind, len(part.place))
            for value, part in zip(values, parts, strict=True)
        ]
        varying[name] = pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)
    if order is not None:
        ordered = pa.RecordBatch.from_pydict(varying).take(order)
        varying = dict(zip(varying, ordered.columns, strict=True))
    columns |= varying
    return pa.RecordBatch.from_arrays([columns[name] for name, _ in _fields(topic)], schema=topic.schema)


@lru_cache(maxsize=16)
def _fields(topic: Topic) -> tuple[tuple[str, pa.DataType], ...]:
    """The names and types of the columns. pyarrow makes an object each time it is asked for one."""
    return tuple((column.name, column.type) for column in topic.schema)


@lru_cache(maxsize=16)
def _nothing(topic: Topic) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, kind) for _, kind in _fields(topic)], schema=topic.schema)


def _all_are(column: pa.Array, text: str) -> bool:
    return bool(column.equals(_filled(text, column.type, len(column))))


def _filled(value: str | int | None, kind: pa.DataType, n: int) -> pa.Array:
    """Equal values. A short column is a view of a longer one that is made once, because making one costs the same, however short."""
    return _repeat(value, kind, n) if n > _SHORT else _short(value, kind).slice(0, n)


@lru_cache(maxsize=256)
def _short(value: str | int | None, kind: pa.DataType) -> pa.Array:
    return _repeat(value, kind, _SHORT)


def _repeat(value: str | int | None, kind: pa.DataType, n: int) -> pa.Array:
    return pa.nulls(n, kind) if value is None else pa.repeat(pa.scalar(value, kind), n)
