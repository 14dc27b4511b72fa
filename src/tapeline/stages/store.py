"""The store stage writes the normalized topics into one store. It starts at the positions that are stored in the store itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.errors import Busy, Unavailable
from tapeline.records import BARS_TOPIC, NORMALIZED_TOPICS, NS_PER_S, TICKS_TOPIC, Chunk, Topic
from tapeline.retry import loop
from tapeline.retry.backoff import backoff
from tapeline.stages.forgotten import StreamLoss
from tapeline.stages.upkeep import Upkeep
from tapeline.stores import Store
from tapeline.streams import APPENDED, Stream
from tapeline.streams.lives import rows_of
from tapeline.telemetry import families
from tapeline.telemetry.families import Sample
from tapeline.telemetry.latencies import Latencies
from tapeline.telemetry.status import Rate, StatusFile

log = logging.getLogger(__name__)

_REST_S: Final = 0.05
#: How often old data is removed, by keep_days and keep_gb.
_TIDY_NS: Final = 3_600 * NS_PER_S
#: How many times `unacknowledged` looks for a moment in which nothing is written.
_TRIES_AT_REST: Final = 20
#: After a read of this many records the stage does not rest: more records are probably waiting.
_MORE_ROWS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Writing:
    """The store's consumer group, and when its rows are written: when `flush_rows` of a topic are held, or after `flush_s` seconds."""

    group: str
    flush_rows: int
    flush_s: float


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What a store's stage does beside its writes, never both at once.

    `tidy` is called once an hour between two writes; if it raises Busy or Unavailable, it is called again an hour later. `upkeep` is a
    child process that works in parallel with the writes."""

    tidy: Callable[[], None] | None = None
    upkeep: Upkeep | None = None


NO_MAINTENANCE: Final = Maintenance()


class _Speed:
    """How quickly a store writes, and how late events are in it."""

    def __init__(self, store: str, clock: Callable[[], int]) -> None:
        self._store, self._clock = store, clock
        self._rows: dict[str, int] = {}
        self._commits: dict[str, Latencies] = {}
        self._latencies: dict[str, Latencies] = {}

    def wrote(self, topic: Topic, batch: pa.RecordBatch, began_ns: int, ended_ns: int, rows: int) -> None:
        """Count a commit. `batch`: what was to be written; `rows`: how many rows were new."""
        self._rows[topic.table] = self._rows.get(topic.table, 0) + rows
        self._commits.setdefault(topic.table, Latencies(self._clock)).add(np.array([ended_ns - began_ns]))
        if topic in (TICKS_TOPIC, BARS_TOPIC):
            late = pc.subtract(ended_ns, batch["received_ns"])
            for provider in pc.unique(batch["provider"]).to_pylist():
                mine = late.filter(pc.equal(batch["provider"], provider))
                self._latencies.setdefault(provider, Latencies(self._clock)).add(mine.to_numpy())

    def samples(self) -> list[Sample]:
        return [
            *(families.STORED.at(rows, table) for table, rows in self._rows.items()),
            *(families.COMMITS.at(some.since_start(), table) for table, some in self._commits.items()),
            *(families.PIPELINE.at(some.since_start(), provider, self._store) for provider, some in self._latencies.items()),
        ]


class StoreWriter:
    """Writes the normalized topics into one store. It starts at the positions that are stored in the store itself."""

    def __init__(
        self,
        stream: Stream,
        store: Store,
        writing: Writing,
        status: StatusFile,
        stop: threading.Event,
        maintenance: Maintenance = NO_MAINTENANCE,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`clock`: UTC, ns."""
        self._upkeep = maintenance.upkeep
        self._tidy, self._tidy_due_ns = maintenance.tidy, clock()
        self._stream, self._store, self._status, self._stop, self._clock = stream, store, status, stop, clock
        self._group = writing.group
        self._flush_rows, self._flush_ns = writing.flush_rows, int(writing.flush_s * NS_PER_S)
        self._read: dict[Topic, dict[int, int]] = {}
        self._held: dict[Topic, list[Chunk]] = {topic: [] for topic in NORMALIZED_TOPICS}
        self._since: dict[Topic, int] = {}
        self._confirmed: dict[Topic, int] = {}  # the total of records read, as the stream has last confirmed it
        self._tried: dict[Topic, int] = {}  # the same total after the acknowledgement that is being sent
        self._unacknowledged: dict[Topic, Chunk] = {}
        self._rate, self._speed = Rate(clock), _Speed(writing.group, clock)
        self._forgotten = StreamLoss(stream, writing.group, clock)

    def step(self) -> bool:
        if self._read:
            self._status.maybe(self._report)
        worked = False
        for topic in list(self._unacknowledged):  # written, but the acknowledgement failed: the disk was full or the server away
            self._acknowledge_written(topic)
        if not self._read:  # here, not in __init__: `loop.run` then waits for a store that is away
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
                worked = worked or chunk.rows >= _MORE_ROWS or self._stop.is_set()  # when stopping: until nothing is left
            full = rows >= self._flush_rows
            old = held and self._clock() - self._since[topic] >= self._flush_ns
            if full or old or (held and self._stop.is_set() and chunk is None):
                self._flush(topic)
                worked = True
        self._tidy_up()
        return worked

    def _tidy_up(self) -> None:
        """Start or check the upkeep and run `tidy` when it is due. Does nothing while the stage stops."""
        if self._stop.is_set():
            return
        if self._upkeep is not None:
            self._upkeep.look()
            if self._upkeep.running:
                return  # never both at once: both change the store's files
        if self._tidy is not None and self._clock() >= self._tidy_due_ns:
            self._tidy_due_ns = self._clock() + _TIDY_NS
            try:
                self._tidy()
            except (Busy, Unavailable) as error:
                log.warning("%s Tapeline retries in an hour.", error)

    def _begin(self, topic: Topic) -> dict[int, int]:
        """The store's positions. They are acknowledged at once: the stage may have been killed between a write and its acknowledgement."""
        positions = self._store.totals(topic).positions
        self._acknowledge(topic, positions, lambda _: unacknowledged(self._stream, self._group, topic, positions))
        return positions

    def _flush(self, topic: Topic) -> None:
        chunk = Chunk.join(self._held[topic])
        began_ns = self._clock()
        written = self._store.write(chunk)
        ended_ns = self._clock()
        self._rate.add(written.rows)
        self._speed.wrote(topic, chunk.batch, began_ns, ended_ns, written.rows)
        self._held[topic].clear()
        del self._since[topic]
        self._unacknowledged[topic] = chunk
        self._acknowledge_written(topic)

    def _acknowledge_written(self, topic: Topic) -> None:
        """Acknowledge what the store has written. If the stream lost its counts, only records of its present life are counted."""
        chunk = self._unacknowledged[topic]
        self._acknowledge(topic, chunk.next, lambda lost: rows_of(chunk, self._stream.lives(topic)) if lost else chunk.rows)
        del self._unacknowledged[topic]

    def _acknowledge(self, topic: Topic, positions: Mapping[int, int], rows: Callable[[bool], int]) -> None:
        """Acknowledge the positions and, if the stream counts records, add the number of new ones. `rows(lost)` gives that number.

        `lost` is True if the stream has lost its total. The total is read again in each round: the stream may lose it before the
        acknowledgement, or apply the acknowledgement although the reply was lost."""
        if not self._stream.counts_records:
            self._stream.acknowledge(self._group, topic, positions)
            return
        done = False
        while not done:
            has = self._stream.totals(self._group).get(f"{topic.table}/read")
            if has is not None and self._confirmed.get(topic, 0) < has == self._tried.get(topic):
                done = True
            else:
                more = rows(has is None or has < self._confirmed.get(topic, 0))
                self._tried[topic] = (has or 0) + more
                done = self._stream.acknowledge(self._group, topic, positions, (has, more))
        self._confirmed[topic] = self._tried.pop(topic)

    def _report(self) -> dict[str, Any]:
        kept = {topic.table: self._store.totals(topic) for topic in NORMALIZED_TOPICS}
        return {
            "rows_per_s": self._rate.take(),
            "tables": {table: totals.parts for table, totals in kept.items()},
            "metrics": self._speed.samples(),
            "forgotten": self._forgotten.losses,
            "ahead": self._forgotten.ahead,
            **({"upkeep": self._upkeep.report()} if self._upkeep is not None else {}),
        }

    def finish(self) -> None:
        if self._upkeep is not None:
            self._upkeep.stop()
        self._status.write(self._report())


def unacknowledged(stream: Stream, group: str, topic: Topic, positions: Mapping[int, int]) -> int:
    """How many records a store has read up to `positions` and not yet acknowledged to the stream.

    For a store that has never acknowledged anything, these are all written records that it no longer has to read. Returns 0 if records
    are written during every attempt to count."""
    for _ in range(_TRIES_AT_REST):
        acknowledged = f"{topic.table}/read" in stream.totals(group)
        written = written_to(stream, topic)
        rest = sum(stream.lag(topic, positions).values())
        open_ = sum(stream.lag(topic, stream.positions(group, topic)).values()) if acknowledged else written
        if written == written_to(stream, topic):  # nothing was written in between, so the numbers belong to one moment
            return max(0, open_ - rest)
    return 0


def run_store(stage: StoreWriter, stop: threading.Event, random: Random) -> None:
    """Run the stage until `stop` is set. The stream and the store may be away for any time. Raises what waiting cannot end."""
    loop.run(stage.step, stop, rest_s=_REST_S, waits=lambda: backoff(random, cap_s=5.0), drain_s=60.0)
    stage.finish()


def written_to(stream: Stream, topic: Topic) -> int:
    """How many records were written to a normalized topic since its counts last began."""
    made = sum(count for name, count in stream.totals("normalize").items() if name.rpartition("/")[2] == topic.table)
    return made + stream.totals(APPENDED).get(topic.table, 0)
