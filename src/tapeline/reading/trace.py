"""Traces one tick: the raw frame it came from, its connection, and its place in each topic and store."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree

from tapeline.local.output import plain
from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Topic
from tapeline.stores import Store
from tapeline.streams import Stream

#: Queries the lake: given a table, a condition and the condition's values, returns the rows; none if there is no lake.
Find = Callable[[str, str, list[Any]], list[dict[str, Any]]]

_BY_ID: Final = "raw_partition = ? AND raw_offset = ? AND raw_index = ?"
_LOOK_ROWS: Final = 2_000
_SCAN_ROWS: Final = 20_000
_OUTPUTS: Final = (TICKS_TOPIC, BARS_TOPIC, REJECTED_TOPIC, NOTICES_TOPIC)


@dataclass(slots=True)
class Step:
    """One place on the way of a tick: where it is, what was found there, and details by name."""

    where: str
    found: str
    details: dict[str, Any] = field(default_factory=dict)


def by_symbol(find: Find, symbol: str, ts_ns: int) -> list[tuple[int, int, int]]:
    """The ids (raw partition, offset, index) of a symbol's ticks at `ts_ns` (UTC), or at the last earlier time that has any; at most 20."""
    rows = find("ticks", "symbol = ? AND ts_ns <= ? ORDER BY ts_ns DESC, raw_offset DESC, raw_index DESC LIMIT 20", [symbol, ts_ns])
    nearest = max((row["ts_ns"] for row in rows), default=0)
    return [(row["raw_partition"], row["raw_offset"], row["raw_index"]) for row in rows if row["ts_ns"] == nearest]


def trace(stream: Stream, stores: Mapping[str, Store], find: Find, event: tuple[int, int, int]) -> Iterator[Step]:
    """Yield a step for each place that an event passes, and say whether it is there. `event`: raw partition, offset and index.

    Raises Unavailable while the stream is away."""
    partition, offset, _ = event
    raw = _raw(stream, partition, offset)
    if raw is None:
        yield Step(f"{RAW_TOPIC.name} {partition} @ {offset}", "not in the stream: retention has removed it, or it never existed")
    else:
        yield Step(f"{RAW_TOPIC.name} {partition} @ {offset}", f"{raw['kind']} of connection {raw['connection']}", raw)
    known = False
    for topic in _OUTPUTS:
        rows = find("bar_revisions" if topic is BARS_TOPIC else topic.table, _BY_ID, list(event))
        place = _output(stream, topic, event)
        known = known or place is not None or bool(rows)
        if place is not None:
            at, position, row = place
            yield Step(f"{topic.name} {at} @ {position}", "in the stream", row)
            for name, store in stores.items():
                read = store.totals(topic).positions.get(at, 0) > position
                yield Step(f"{name} {topic.table}", _kept(name, rows) if read else "not yet read: it waits in the stream")
        elif rows:
            yield Step(topic.name, "no longer in the stream")
            yield Step(f"lake {topic.table}", _kept("lake", rows), rows[0])
    if raw is not None and not known:
        read = stream.positions("normalize", RAW_TOPIC).get(partition, 0) > offset
        yield Step("normalize", f"no topic has event {event[2]} of this record" if read else "not yet read: it waits in the stream")


def _kept(store: str, rows: list[dict[str, Any]]) -> str:
    if store != "lake":
        return "read"
    return f"kept in {rows[0]['filename']}" if rows else "read, but not kept: the store already had an equal event"


def _raw(stream: Stream, partition: int, offset: int) -> dict[str, Any] | None:
    records = _at(stream, RAW_TOPIC, partition, offset, 1)
    if records is None or records[0][0] != offset:
        return None
    row: dict[str, Any] = records[1].slice(0, 1).to_pylist()[0]
    payload = row["payload"]
    try:
        row["payload"] = payload.decode()
    except UnicodeDecodeError:
        row["payload"] = "base64 " + base64.b64encode(payload).decode()
    return row


def _output(stream: Stream, topic: Topic, event: tuple[int, int, int]) -> tuple[int, int, dict[str, Any]] | None:
    """Where an event is in an output topic: (partition, offset, row); None if it is not there."""
    lows, highs = stream.tail_positions(topic, 1 << 62), stream.ends(topic)
    for partition, high in highs.items():
        match = _search(stream, topic, partition, lows.get(partition, 0), high, event)
        if match is not None:
            return partition, *match
    return None


def _search(
    stream: Stream, topic: Topic, partition: int, low: int, high: int, event: tuple[int, int, int]
) -> tuple[int, dict[str, Any]] | None:
    """Find an event's (offset, row) in one partition by binary search.

    In each partition of a topic, the events of one raw partition are in the order of their raw records."""
    while (records := _at(stream, topic, partition, low, _LOOK_ROWS)) is not None:
        offsets, batch = records
        here = _of(batch, event[0]) & (batch["raw_offset"].to_numpy() == event[1]) & (batch["raw_index"].to_numpy() == event[2])
        if here.any():
            row = int(np.flatnonzero(here)[0])
            return int(offsets[row]), batch.slice(row, 1).to_pylist()[0]
        low = int(offsets[-1]) + 1
        if low >= high:
            break
        middle = (low + high) // 2
        first = _first_of(stream, topic, partition, middle, high, event[0])
        if first is None or first[1:] > event[1:]:
            high = middle
        else:
            low = first[0]
    return None


def _first_of(stream: Stream, topic: Topic, partition: int, position: int, end: int, raw_partition: int) -> tuple[int, int, int] | None:
    """The first record in [position, end) that came from a raw partition: (offset, raw offset, raw index); None if there is none."""
    while position < end and (records := _at(stream, topic, partition, position, _SCAN_ROWS)) is not None:
        offsets, batch = records
        rows = np.flatnonzero(_of(batch, raw_partition))
        if len(rows):
            row = int(rows[0])
            return int(offsets[row]), batch["raw_offset"][row].as_py(), batch["raw_index"][row].as_py()
        position = int(offsets[-1]) + 1
    return None


def _of(batch: pa.RecordBatch, raw_partition: int) -> Any:
    return batch["raw_partition"].to_numpy() == raw_partition


def _at(stream: Stream, topic: Topic, partition: int, position: int, rows: int) -> tuple[Any, pa.RecordBatch] | None:
    """The offsets and records of one partition from a position on, at most `rows`; None if there are none."""
    at = dict(stream.ends(topic))
    if position >= at.get(partition, 0):
        return None
    at[partition] = position
    while (chunk := stream.read(topic, at, rows)) is not None:
        mine = np.flatnonzero(chunk.partition == partition)[:rows]
        if len(mine):
            return chunk.offset[mine], chunk.batch.take(pa.array(mine))
        at |= chunk.next  # all of it was from other partitions, where records arrive meanwhile
    return None


def picture(event: tuple[int, int, int], steps: list[Step]) -> RenderableType:
    """The steps of a trace as a tree, from top to bottom."""
    tree = Tree(Text("-".join(map(str, event)), style="bold"))
    for step in steps:
        branch = tree.add(Text.assemble((step.where, "cyan"), "  ", step.found))
        for name, value in step.details.items():
            if value is not None and name not in ("raw_partition", "raw_offset", "raw_index", "filename", "ts", "date"):
                branch.add(Text.assemble((f"{name} ", "dim"), str(plain(value))))
    return tree
