"""The way of one tick: the raw frame it came from, its connection, and where it lies in each topic and store."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import Any, Final

import numpy as np
from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree

from tapeline.errors import ConfigError
from tapeline.output import plain
from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, NS_PER_S, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Topic
from tapeline.stores import Store
from tapeline.streams import Stream

#: Rows of a query over the lake: table, condition and its values to rows; none where there is no lake.
Find = Callable[[str, str, list[Any]], list[dict[str, Any]]]

_BY_ID: Final = "raw_partition = ? AND raw_offset = ? AND raw_index = ?"
_LOOK_ROWS: Final = 2_000
_SCAN_ROWS: Final = 20_000
_OUTPUTS: Final = (TICKS_TOPIC, BARS_TOPIC, REJECTED_TOPIC, NOTICES_TOPIC)


@dataclass(slots=True)
class Step:
    """One place on the way."""

    where: str
    found: str
    details: dict[str, Any] = field(default_factory=dict)


def by_symbol(find: Find, symbol: str, ts_ns: int) -> list[tuple[int, int, int]]:
    """The ids of the symbol's events at a time, or else of those nearest before it."""
    rows = find("ticks", "symbol = ? AND ts_ns <= ? ORDER BY ts_ns DESC, raw_offset DESC, raw_index DESC LIMIT 20", [symbol, ts_ns])
    nearest = max((row["ts_ns"] for row in rows), default=0)
    return [(row["raw_partition"], row["raw_offset"], row["raw_index"]) for row in rows if row["ts_ns"] == nearest]


def trace(stream: Stream, stores: Mapping[str, Store], find: Find, event: tuple[int, int, int]) -> Iterator[Step]:
    """Each place in turn, whether the event is there or not."""
    partition, offset, _ = event
    raw = _raw(stream, partition, offset)
    if raw is None:
        yield Step(f"{RAW_TOPIC.name} {partition} @ {offset}", "no longer in the stream: retention has removed it, or it never was")
    else:
        yield Step(f"{RAW_TOPIC.name} {partition} @ {offset}", f"{raw['kind']} of connection {raw['connection']}", raw)
    kept_in: dict[Topic, list[dict[str, Any]]] = {}
    for topic in _OUTPUTS:
        rows = kept_in[topic] = find("bar_revisions" if topic is BARS_TOPIC else topic.table, _BY_ID, list(event))
        place = _output(stream, topic, event)
        if place is not None:
            at, found, row = place
            yield Step(f"{topic.name} {at} @ {found}", "in the stream", row)
            for name, store in stores.items():
                read = store.totals(topic).positions.get(at, 0) > found
                yield Step(f"{name} {topic.table}", _kept(name, rows) if read else "not yet read: it waits in the stream")
        elif rows:
            yield Step(topic.name, "no longer in the stream")
            yield Step(f"lake {topic.table}", _kept("lake", rows), rows[0])


def _kept(store: str, rows: list[dict[str, Any]]) -> str:
    if store != "lake":
        return "read"
    return f"kept in {rows[0]['filename']}" if rows else "read, and not kept: an equal event was there before it"


def _raw(stream: Stream, partition: int, offset: int) -> dict[str, Any] | None:
    found = _at(stream, RAW_TOPIC, partition, offset, 1)
    if found is None or found[0][0] != offset:
        return None
    row = found[1][0]
    payload = row["payload"]
    try:
        row["payload"] = payload.decode()
    except UnicodeDecodeError:
        row["payload"] = "base64 " + base64.b64encode(payload).decode()
    return row


def _output(stream: Stream, topic: Topic, event: tuple[int, int, int]) -> tuple[int, int, dict[str, Any]] | None:
    """Where an event lies in an output topic: partition, offset, row.

    What came of one raw partition lies in raw order in each partition of a topic, so the place is found by halving."""
    lows, highs = stream.before_end(topic, 1 << 62), stream.ends(topic)
    for partition in highs:
        low, high = lows.get(partition, 0), highs[partition]
        while high - low > _LOOK_ROWS:
            middle = (low + high) // 2
            seen = _first_of(stream, topic, partition, middle, event[0])
            if seen is None or seen >= event[1]:
                high = middle
            else:
                low = middle
        scanned = low
        while (found := _at(stream, topic, partition, scanned, _LOOK_ROWS)) is not None and scanned <= high + _LOOK_ROWS:
            for offset, row in zip(*found, strict=True):
                if (row["raw_partition"], row["raw_offset"], row["raw_index"]) == event:
                    return partition, int(offset), row
            scanned = int(found[0][-1]) + 1
    return None


def _first_of(stream: Stream, topic: Topic, partition: int, position: int, raw_partition: int) -> int | None:
    """The raw offset of the first record at or after a position that came of a raw partition."""
    looked = 0
    while looked < _SCAN_ROWS and (found := _at(stream, topic, partition, position, _LOOK_ROWS)) is not None:
        for row in found[1]:
            if row["raw_partition"] == raw_partition:
                return int(row["raw_offset"])
        looked += len(found[1])
        position = int(found[0][-1]) + 1
    return None


def _at(stream: Stream, topic: Topic, partition: int, position: int, rows: int) -> tuple[Any, list[dict[str, Any]]] | None:
    """Offsets and rows of one partition from a position on."""
    ends = stream.ends(topic)
    chunk = stream.read(topic, ends | {partition: position}, rows)
    if chunk is None:
        return None
    mine = np.flatnonzero(chunk.partition == partition)[:rows]
    if not len(mine):
        return None
    return chunk.offset[mine], chunk.batch.slice(int(mine[0]), len(mine)).to_pylist()


def parse_time(text: str) -> int:
    """Nanoseconds since 1970, from a count of them or an ISO 8601 time. Raises ConfigError for a time without a zone."""
    if text.isdecimal():
        return int(text)
    whole, dot, rest = text.partition(".")
    digits = "".join(takewhile(str.isdecimal, rest))
    try:
        moment = datetime.fromisoformat(whole + rest[len(digits) :])
    except ValueError:
        raise ConfigError(f"{text!r} is no time. Write 2026-01-05T14:30:00.123Z, or nanoseconds since 1970.") from None
    if moment.tzinfo is None:
        raise ConfigError(f"{text!r} has no zone, and could mean any of many moments. Add Z, or an offset such as -05:00.")
    return int(moment.timestamp()) * NS_PER_S + (int(digits[:9].ljust(9, "0")) if dot else 0)


def picture(event: tuple[int, int, int], steps: list[Step]) -> RenderableType:
    """The way as a tree, top to bottom."""
    tree = Tree(Text("-".join(map(str, event)), style="bold"))
    for step in steps:
        branch = tree.add(Text.assemble((step.where, "cyan"), "  ", step.found))
        for name, value in step.details.items():
            if value is not None and name not in ("raw_partition", "raw_offset", "raw_index", "filename", "ts", "date"):
                branch.add(Text.assemble((f"{name} ", "dim"), str(plain(value))))
    return tree
