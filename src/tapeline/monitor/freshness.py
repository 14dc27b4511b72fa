"""Finds out when the newest event of a feed or symbol arrived, from the end of the normalized topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from tapeline.ledger.facts import window_of
from tapeline.providers.registry import CHANNELS
from tapeline.records import BARS_TOPIC, TICKS_TOPIC, Topic
from tapeline.streams import Stream

#: A look reads so many of the latest records; more if something was not among them, and at most the last number.
_ROWS: Final = (512, 8_192, 200_000)
_AT_ONCE: Final = 8_192


@dataclass(frozen=True, slots=True)
class Match:
    """Which events are meant. An empty field means any."""

    provider: str = ""
    feed: str = ""
    symbols: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    def of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the records of a batch that match."""
        for column, values in (
            ("provider", (self.provider,)),
            ("feed", (self.feed,)),
            ("symbol", self.symbols),
            ("channel", self.channels),
        ):
            if any(values):
                batch = batch.filter(pc.is_in(batch[column], pa.array(values, pa.string())))
        return batch

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The topics that may hold such events."""
        kinds = {
            kind.kind == "bar"
            for name, feeds in CHANNELS.items()
            for channels in (feeds.values() if self.provider in ("", name) else ())
            for channel, kind in channels.items()
            if channel in self.channels
        }
        return {frozenset({True}): (BARS_TOPIC,), frozenset({False}): (TICKS_TOPIC,)}.get(frozenset(kinds), (TICKS_TOPIC, BARS_TOPIC))


@dataclass(slots=True)
class Newest:
    """What is known of the newest event of a match. Times are ns, UTC."""

    #: The time of the newest event that was seen; None if none was.
    seen_ns: int | None = None
    #: No later event than this can have been missed; None if no event at all can have been.
    until_ns: int | None = None

    def found(self, at_ns: int) -> None:
        """Note an event."""
        self.seen_ns = at_ns if self.seen_ns is None else max(self.seen_ns, at_ns)
        self.until_ns = self.seen_ns if self.until_ns is None else max(self.until_ns, self.seen_ns)


@dataclass(slots=True)
class NewestEvents:
    """Remembers the newest event of each match. A look reads the end of the topics, the latest records first, as far as it must.

    An event counts with its own time, or with its receive time if that is earlier: an old event that a backfill brings is not fresh."""

    stream: Stream
    matches: Sequence[Match]
    newest: dict[Match, Newest] = field(default_factory=dict)
    _ends: dict[Topic, Mapping[int, int]] = field(default_factory=dict)

    def look(self) -> None:
        """Read what has come since the last look. Raises Unavailable."""
        for match in self.matches:
            self.newest.setdefault(match, Newest())
        for topic in (TICKS_TOPIC, BARS_TOPIC):
            if wanted := {match for match in self.matches if topic in match.topics}:
                self._look(topic, wanted)

    def _look(self, topic: Topic, wanted: Set[Match]) -> None:
        ends, last = dict(self.stream.ends(topic)), self._ends.get(topic)
        oldest_ns: int | None = None
        found: set[Match] = set()
        whole = self.stream.tail_positions(topic, 1 << 62) if last is None else None
        for rows in _ROWS:
            tail = self.stream.tail_positions(topic, rows)
            begin = {partition: max(at, (last or {}).get(partition, 0)) for partition, at in tail.items()}
            oldest_ns, some = self._read(topic, wanted, begin, ends)
            found |= some
            joined = last is not None and all(at <= last.get(partition, 0) for partition, at in tail.items())
            if joined or tail == whole or found == wanted:
                break
        else:
            for one in (self.newest[match] for match in wanted - found):  # what lies between this look and the last one was not read
                if oldest_ns is not None:
                    one.until_ns = max(one.until_ns or 0, oldest_ns)
        self._ends[topic] = ends

    def _read(self, topic: Topic, wanted: Set[Match], begin: Mapping[int, int], ends: Mapping[int, int]) -> tuple[int | None, set[Match]]:
        """Read up to `ends`. Return the time of the oldest event that was read, and which matches were found."""
        positions, found = dict(begin), set[Match]()
        oldest_ns: int | None = None
        while any(positions.get(partition, 0) < end for partition, end in ends.items()):
            chunk = self.stream.read(topic, positions, _AT_ONCE)
            if chunk is None:
                break
            positions |= chunk.next
            times = _with_times(topic, chunk.batch)
            least_ns = pc.min(times["at_ns"]).as_py()
            oldest_ns = least_ns if oldest_ns is None else min(oldest_ns, least_ns)
            for match in wanted:
                if (mine := match.of(times)).num_rows:
                    self.newest[match].found(pc.max(mine["at_ns"]).as_py())
                    found.add(match)
        return oldest_ns, found


def _with_times(topic: Topic, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns that a match looks at, and the time of each event: `at_ns`."""
    columns = ["provider", "feed", "symbol", "channel"]
    event = batch["ts_ns"]
    if topic is BARS_TOPIC:  # a bar is there when its window is over
        pairs = zip(batch["interval"].to_pylist(), event.to_pylist(), strict=True)
        event = pa.array([(window_of(interval, at) or (at, at))[1] for interval, at in pairs], pa.int64())
    at_ns = pc.min_element_wise(event, batch["received_ns"])
    return pa.RecordBatch.from_arrays([*(batch[name] for name in columns), at_ns], [*columns, "at_ns"])
