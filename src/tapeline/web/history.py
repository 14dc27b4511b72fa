"""The history over HTTP: ticks, bars, gaps and coverage, from the stores and the ledger, as JSON, CSV or Arrow.

JSON has the rows of the live feed. `next` is the position up to which the store has everything: a client that continues the live feed from
there misses no event. It may get some events twice, and knows them by their `id`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv

from tapeline import times
from tapeline.app.ledgers import known_intervals
from tapeline.app.stores import open_stores
from tapeline.config import Config
from tapeline.errors import ConfigError, WrongArgument
from tapeline.ledger import INTERVALS
from tapeline.ledger.facts import ONGOING, Interval, Key
from tapeline.ledger.intervals import COVERED
from tapeline.reading import api
from tapeline.reading.result import Result
from tapeline.records import BARS, BARS_TOPIC, NS_PER_S, TICKS, TICKS_TOPIC, Topic
from tapeline.telemetry import families
from tapeline.telemetry.families import Sample
from tapeline.telemetry.latencies import Latencies
from tapeline.web import queries
from tapeline.web.coverage import MOST_CELLS, Evidence, Grid, evidence, grid
from tapeline.web.live.messages import ROWS
from tapeline.web.live.position import Position

#: The form to its media type.
MEDIA: Final[Mapping[str, str]] = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "arrow": "application/vnd.apache.arrow.stream",
}
#: The questions whose time is measured.
_ASKED: Final = (TICKS_TOPIC.table, BARS_TOPIC.table, "coverage", "gaps")
_SHORTEST_STEP_NS: Final = 60 * NS_PER_S
_FROM_THE_START: Final = -(1 << 62)


@dataclass(frozen=True, slots=True)
class History:
    """Answers questions about the past. It opens what it needs at each call, so any thread may call it."""

    config: Config
    #: Where the records of the live topics begin.
    first: Callable[[], Position]
    #: ns, UTC.
    clock: Callable[[], int]
    #: How long it took until the first rows of an answer were there, by what was asked.
    took: Mapping[str, Latencies] = field(default_factory=lambda: {name: Latencies() for name in _ASKED})
    noting: threading.Lock = field(default_factory=threading.Lock)

    def ticks(self, query: queries.Ticks) -> Iterator[bytes]:
        """Yield the answer piece by piece. Raises as `tapeline.ticks`, before the first piece."""
        next_position = self._next(query.source, query.format)
        result = api.ticks(
            queries.split(query.symbols),
            query.start,
            query.end or self.clock(),
            provider=query.provider or None,
            kind=query.kind or None,
            columns=TICKS.names,
            corrected=query.corrected,
            source=query.source,
            config=self.config,
        )
        return self._sent(result, TICKS_TOPIC, next_position, query.limit, query.format)

    def bars(self, query: queries.Bars) -> Iterator[bytes]:
        """Yield the answer piece by piece. Raises as `tapeline.bars`, before the first piece."""
        next_position = self._next(query.source, query.format)
        result = api.bars(
            queries.split(query.symbols),
            query.start,
            query.end or self.clock(),
            interval=query.interval or None,
            provider=query.provider or None,
            columns=BARS.names,
            source=query.source,
            config=self.config,
        )
        return self._sent(result, BARS_TOPIC, next_position, query.limit, query.format)

    def coverage(self, query: queries.Coverage) -> Grid:
        """Return the grid. Raises WrongArgument, and what the ledger raises."""
        start_ns, end_ns = times.parse(query.start, "start"), times.parse(query.end, "end")
        step_ns, began_ns = times.duration_ns(query.step, "step"), time.monotonic_ns()
        if end_ns <= start_ns:
            raise WrongArgument(f"start = {query.start!r} is not before end = {query.end!r}. Swap them.")
        if step_ns < _SHORTEST_STEP_NS:
            raise WrongArgument(f"step = {query.step!r} is shorter than a minute. Use 1m, 1h or 1d.")
        known = self._known(query.symbols, query.provider)
        cells = len(known) * -(-(end_ns - start_ns) // step_ns)
        if cells > MOST_CELLS:
            raise WrongArgument(f"The grid has {cells:,} cells; at most {MOST_CELLS:,} are possible. Use a longer step, or fewer symbols.")
        found = grid(known, start_ns, end_ns, step_ns, self.clock())
        self._noted("coverage", began_ns)
        return found

    def metrics(self) -> list[Sample]:
        """Return how long the answers took."""
        with self.noting:
            return [families.QUERIES.at(latencies.since_start(), name) for name, latencies in self.took.items()]

    def gaps(self, query: queries.Gaps) -> Iterator[bytes]:
        """Yield the answer. Raises WrongArgument, and what the ledger raises."""
        began_ns = time.monotonic_ns()
        start_ns = times.parse(query.start, "start") if query.start else _FROM_THE_START
        end_ns = times.parse(query.end, "end") if query.end else ONGOING
        found = [
            (key, one)
            for key, some in self._known(query.symbols, query.provider).items()
            if query.feed in ("", key.feed) and query.channel in ("", key.channel)
            for one in some
            if (query.evidence or one.state not in COVERED) and one.end_ns > start_ns and one.start_ns < end_ns
        ]
        found = sorted(found, key=lambda some: (-some[1].start_ns, some[0]))[: query.limit]
        rows = [evidence(key, one) for key, one in found]
        self._noted("gaps", began_ns)
        if query.format == "json":
            return iter([msgspec.json.encode({"rows": rows})])
        return _encoded(iter([_table(rows)]), INTERVALS, query.format)

    def _noted(self, what: str, began_ns: int) -> None:
        with self.noting:
            self.took[what].add(np.array([time.monotonic_ns() - began_ns], np.int64))

    def _known(self, symbols: str, provider: str) -> dict[Key, list[Interval]]:
        if not self.config.ledger:
            raise ConfigError("No ledger is kept, so nobody knows what is complete. Remove `ledger = false`.")
        return known_intervals(self.config, queries.split(symbols), provider or None)

    def _sent(self, result: Result, topic: Topic, next_position: str, limit: int, form: str) -> Iterator[bytes]:
        began_ns = time.monotonic_ns()
        batches = _limited(result.batches(), limit + 1)
        first = next(batches, None)  # what is wrong is raised now, while another status can be sent
        self._noted(topic.table, began_ns)
        rows = chain([first] if first is not None else [], batches)
        if form == "json":
            return _json(rows, topic, next_position, limit)
        return _encoded(_limited(rows, limit), result.schema, form)

    def _next(self, source: str, form: str) -> str:
        """The position up to which a store has everything; empty if there is none yet. Ask before the store is opened for reading.

        A source shows a store as it was when it was opened. So what is stored in between comes twice, and is never left out."""
        if form != "json":
            return ""
        store, first = open_stores(self.config).get(source), self.first()
        if store is None or not all(first.next.values()):
            return ""
        read = {topic.table: store.totals(topic).positions for topic in (TICKS_TOPIC, BARS_TOPIC)}
        found = {table: tuple(read[table].get(at, 0) for at in range(len(parts))) for table, parts in first.next.items()}
        return str(Position(found).begun(first))


def _limited(batches: Iterator[pa.RecordBatch], limit: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch.slice(0, limit)
        limit -= batch.num_rows
        if limit <= 0:
            return


def _json(batches: Iterator[pa.RecordBatch], topic: Topic, next_position: str, limit: int) -> Iterator[bytes]:
    yield b'{"next":"%b","rows":[' % next_position.encode()
    sent = 0
    for batch in batches:
        rows = ROWS[topic.table](batch.slice(0, limit - sent))
        if rows:
            yield (b"," if sent else b"") + b",".join(rows)
        sent += batch.num_rows
    yield b'],"truncated":%b}' % (b"true" if sent > limit else b"false")


class _Pieces:
    """A file that hands on what is written to it."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def flush(self) -> None:
        """Do nothing: what was written is taken by `taken`."""

    def taken(self) -> bytes:
        """Return what was written since the last call."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _encoded(batches: Iterator[pa.RecordBatch], schema: pa.Schema, form: str) -> Iterator[bytes]:
    pieces = _Pieces()
    sink = pa.PythonFile(pieces, mode="w")
    writer = pa.csv.CSVWriter(sink, schema) if form == "csv" else pa.ipc.new_stream(sink, schema)
    with writer:
        for batch in batches:
            writer.write_batch(batch)
            yield pieces.taken()
    yield pieces.taken()


def _table(rows: list[Evidence]) -> pa.RecordBatch:
    numbers = ("start_ns", "end_ns", "first_id", "last_id")
    plain = [
        {field: int(value) if field in numbers and value is not None else value for field, value in msgspec.structs.asdict(row).items()}
        for row in rows
    ]
    return pa.RecordBatch.from_pylist(plain, INTERVALS)
