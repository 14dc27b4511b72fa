"""The stage that writes the normalized topics into one store, each from the place that the store itself holds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

from tapeline.errors import Busy, Unavailable
from tapeline.records import NORMALIZED_TOPICS, NS_PER_S, Chunk, Topic
from tapeline.retry import loop
from tapeline.retry.backoff import backoff
from tapeline.stages.forgotten import StreamLoss
from tapeline.stages.upkeep import Upkeep
from tapeline.stores import Store
from tapeline.streams import APPENDED, Stream
from tapeline.streams.lives import rows_of
from tapeline.telemetry.status import Rate, StatusFile

log = logging.getLogger(__name__)

_REST_S: Final = 0.05
#: How often a store is kept to its days and its size.
_TIDY_NS: Final = 3_600 * NS_PER_S
#: So often a moment is waited for in which nothing is written.
_TRIES_AT_REST: Final = 20
#: Where so many records came at once there are probably more: no rest before the next look.
_MORE_ROWS: Final = 1_000


class StoreWriter:
    """Normalized topics into one store, each from the position that the store itself holds."""

    def __init__(
        self,
        stream: Stream,
        store: Store,
        status: StatusFile,
        stop: threading.Event,
        *,
        group: str,
        flush_rows: int,
        flush_s: float,
        tidy: Callable[[], None] | None = None,
        upkeep: Upkeep | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`tidy`: what the store wants done once an hour, between two writes; what it raises is tried again an hour later. `upkeep`: what
        is done beside the writes."""
        self._upkeep = upkeep
        self._tidy, self._tidy_due_ns = tidy, clock()
        self._stream, self._store, self._status, self._stop, self._clock = stream, store, status, stop, clock
        self._group = group
        self._flush_rows, self._flush_ns = flush_rows, int(flush_s * NS_PER_S)
        self._read: dict[Topic, dict[int, int]] = {}
        self._held: dict[Topic, list[Chunk]] = {topic: [] for topic in NORMALIZED_TOPICS}
        self._since: dict[Topic, int] = {}
        self._said: dict[Topic, int] = {}  # the total of what was read, as the stream should have it
        self._tried: dict[Topic, int] = {}  # and as it will be once it has heard the next word
        self._unsaid: dict[Topic, Chunk] = {}
        self._rate = Rate(clock)
        self._forgotten = StreamLoss(stream, group, clock)

    def step(self) -> bool:
        if self._read:
            self._status.maybe(self._report)
        worked = False
        for topic in list(self._unsaid):  # the disk was full, or the server away, just after the store had written
            self._tell(topic)
        if not self._read:  # here, not at the start: a store that is away is waited for as at any other time
            self._read = {topic: self._begin(topic) for topic in NORMALIZED_TOPICS}
        for topic in NORMALIZED_TOPICS:
            held = self._held[topic]
            rows = sum(chunk.rows for chunk in held)
            chunk = self._stream.read(topic, self._read[topic], self._flush_rows - rows) if rows < self._flush_rows else None
            if chunk is None and not held:
                self._forgotten.look(topic, self._read[topic])
            if chunk is not None:
                self._forgotten.met(chunk)
                self._since.setdefault(topic, self._clock())
                held.append(chunk)
                self._read[topic] |= chunk.next
                rows += chunk.rows
                worked = worked or chunk.rows >= _MORE_ROWS or self._stop.is_set()  # at the end, until nothing comes
            full = rows >= self._flush_rows
            old = held and self._clock() - self._since[topic] >= self._flush_ns
            if full or old or (held and self._stop.is_set() and chunk is None):
                self._flush(topic)
                worked = True
        self._tidy_up()
        return worked

    def _tidy_up(self) -> None:
        """What is done now and again, while nothing has to be written at once."""
        if self._stop.is_set():
            return
        if self._upkeep is not None:
            self._upkeep.look()
            if self._upkeep.running:
                return  # one after the other: both change the store's files
        if self._tidy is not None and self._clock() >= self._tidy_due_ns:
            self._tidy_due_ns = self._clock() + _TIDY_NS
            try:
                self._tidy()
            except (Busy, Unavailable) as error:
                log.warning("%s It is tried again in an hour.", error)

    def _begin(self, topic: Topic) -> dict[int, int]:
        """Where the store is. It may have been killed between a write and its word, and others wait to hear how far it is."""
        positions = self._store.totals(topic).positions
        self._say(topic, positions, lambda _: unsaid(self._stream, self._group, topic, positions))
        return positions

    def _flush(self, topic: Topic) -> None:
        chunk = Chunk.join(self._held[topic])
        written = self._store.write(chunk)
        self._rate.add(written.rows)
        self._held[topic].clear()
        del self._since[topic]
        self._unsaid[topic] = chunk
        self._tell(topic)

    def _tell(self, topic: Topic) -> None:
        """Say what the store has written. Of a stream that has lost its counts, only what was written since belongs to the new ones."""
        chunk = self._unsaid[topic]
        self._say(topic, chunk.next, lambda lost: rows_of(chunk, self._stream.lives(topic)) if lost else chunk.rows)
        del self._unsaid[topic]

    def _say(self, topic: Topic, positions: Mapping[int, int], rows: Callable[[bool], int]) -> None:
        """Tell the stream how far it is and, where it counts records, how many more there are; `rows` hears whether the count is lost.

        The stream may lose it between the look and the word, or take the word and not be heard: so the look is repeated."""
        if not self._stream.counts_records:
            self._stream.acknowledge(self._group, topic, positions)
            return
        said = False
        while not said:
            has = self._stream.totals(self._group).get(f"{topic.table}/read")
            if has is not None and self._said.get(topic, 0) < has == self._tried.get(topic):
                said = True
            else:
                more = rows(has is None or has < self._said.get(topic, 0))
                self._tried[topic] = (has or 0) + more
                said = self._stream.acknowledge(self._group, topic, positions, (has, more))
        self._said[topic] = self._tried.pop(topic)

    def _report(self) -> dict[str, Any]:
        kept = {topic.table: self._store.totals(topic) for topic in NORMALIZED_TOPICS}
        return {
            "rows_per_s": self._rate.take(),
            "tables": {table: totals.parts for table, totals in kept.items()},
            "forgotten": self._forgotten.told,
            "ahead": self._forgotten.ahead,
            **({"upkeep": self._upkeep.report()} if self._upkeep is not None else {}),
        }

    def finish(self) -> None:
        if self._upkeep is not None:
            self._upkeep.stop()
        self._status.write(self._report())


def unsaid(stream: Stream, group: str, topic: Topic, positions: Mapping[int, int]) -> int:
    """How many records a store has read up to positions of its own without having said so to the stream.

    A store that has never said anything counts as having read all that does not wait for it."""
    for _ in range(_TRIES_AT_REST):
        said = f"{topic.table}/read" in stream.totals(group)
        written = written_to(stream, topic)
        rest = sum(stream.lag(topic, positions).values())
        open_ = sum(stream.lag(topic, stream.positions(group, topic)).values()) if said else written
        if written == written_to(stream, topic):  # nothing has come in between: the numbers are of one moment
            return max(0, open_ - rest)
    return 0


def run_store(stage: StoreWriter, stop: threading.Event, random: Random) -> None:
    loop.run(stage.step, stop, rest_s=_REST_S, waits=lambda: backoff(random, cap_s=5.0), drain_s=60.0)
    stage.finish()


def written_to(stream: Stream, topic: Topic) -> int:
    """Records that were written to a normalized topic, in the present life of its counts."""
    made = sum(count for name, count in stream.totals("normalize").items() if name.rpartition("/")[2] == topic.table)
    return made + stream.totals(APPENDED).get(topic.table, 0)
