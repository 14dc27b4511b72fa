"""Takes a snapshot of the whole pipeline: what runs, how fast, what waits where, and whether every event is accounted for."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tapeline.local.machine import process_space
from tapeline.monitor.lag import places
from tapeline.records import NORMALIZED_TOPICS, NS_PER_S, RAW_TOPIC
from tapeline.stages.store import written_to
from tapeline.stores import Store
from tapeline.streams import Stream
from tapeline.streams.lives import read_of
from tapeline.telemetry.status import read_status

#: A process in another container or on another machine counts as dead after this long without a report. Each reports once a second or so.
_SILENT_NS = 15 * NS_PER_S
_PARTS = ("ticks", "bars", "notices", "rejected", "duplicates")


@dataclass(frozen=True, slots=True)
class Equation:
    """in = out + duplicates + rejected, for one stage and one kind of input. `read` is the left side, `parts` the terms of the right."""

    stage: str
    what: str
    read: int
    parts: Mapping[str, int]

    @property
    def balanced(self) -> bool:
        """Whether every record that was read is accounted for."""
        return self.read == sum(self.parts.values())

    def __str__(self) -> str:
        right = " + ".join(f"{count:,} {name}" for name, count in self.parts.items())
        return f"{self.stage}: {self.read:,} {self.what} {'=' if self.balanced else '≠'} {right}"


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much a group has still to read of a partition. The unit is records; on Kafka it is messages, which hold several records."""

    group: str
    topic: str
    partition: int
    records: int


def equations(stream: Stream, stores: Mapping[str, Store]) -> list[Equation]:
    """The equations of normalize, for each feed, and of each store, for each table.

    One transaction commits all numbers of an equation, so it holds at every moment, even while the pipeline runs."""
    result = []
    totals = of_feeds(stream)
    feeds = sorted({name.rpartition("/")[0] for name in totals})
    for feed in feeds:
        parts = {part: totals.get(f"{feed}/{part}", 0) for part in _PARTS}
        result.append(Equation("normalize", f"events of {feed}", totals.get(f"{feed}/seen", 0), parts))
    for name, store in stores.items():
        for topic in NORMALIZED_TOPICS:
            kept = store.totals(topic)
            if kept.read:
                result.append(Equation(name, topic.table, kept.read, kept.parts))
    return result


def of_feeds(stream: Stream) -> dict[str, int]:
    """The counts of normalize by feed: `provider/feed/part` -> count."""
    return {name: total for name, total in stream.totals("normalize").items() if "/" in name}


def into_normalize(stream: Stream) -> Equation | None:
    """Compares how much was written to the raw topic with how much normalize has read, in the partitions' present lives.

    None if the stream does not count it, or if normalize read more during the query. As in `between`, the written count is read before and
    after."""
    before, totals, at = stream.written(RAW_TOPIC), stream.totals("normalize"), stream.positions("normalize", RAW_TOPIC)
    counted = {p: read_of(totals, p, life.since) for p, life in before.items() if at.get(p, 0) > life.since}
    read = {p: records for p, records in counted.items() if records is not None}
    waiting = stream.lag(RAW_TOPIC, at)
    after = stream.written(RAW_TOPIC)
    if not read or stream.totals("normalize") != totals or any(p not in after or after[p].since != before[p].since for p in read):
        return None  # nothing is counted, or normalize went on, or the topic began anew, in between: try at the next snapshot
    least, most = (sum(written[p].records for p in read) for written in (before, after))
    taken, on_the_way = sum(read.values()), sum(waiting[p] for p in read)
    written = min(max(taken + on_the_way, least), most)
    return Equation("ingest to normalize", "raw records written", written, {"taken": taken, "on the way": on_the_way})


def between(stream: Stream, stores: Iterable[str]) -> list[Equation]:
    """Compares how much each stage wrote with how much the next has read. A difference shows that the stream lost records.

    A stream that counts messages instead of records gives no equations for the stores. The two sides are not committed together. So the
    written count is read before and after the read count, and the sum of taken and waiting records must lie between the two."""
    result = [equation] if (equation := into_normalize(stream)) is not None else []
    for name in stores if stream.counts_records else ():
        for topic in NORMALIZED_TOPICS:
            least = written_to(stream, topic)
            read = stream.totals(name).get(f"{topic.table}/read")
            if not read and not least:
                continue
            read = read or 0
            waiting = sum(stream.lag(topic, stream.positions(name, topic)).values())
            if stream.totals(name).get(f"{topic.table}/read", 0) != read:
                continue  # the store went on in between: try at the next snapshot
            most = written_to(stream, topic)
            written = min(max(read + waiting, least), most)
            result.append(Equation(f"normalize to {name}", f"{topic.table} written", written, {"taken": read, "on the way": waiting}))
    return result


def backlogs(stream: Stream, stores: Mapping[str, Store], raw_groups: Sequence[str]) -> list[Backlog]:
    """The backlogs of the groups that read the raw topic, and of the stores, by partition.

    Positions are read before the ends, so no backlog is negative while the pipeline runs."""
    return [
        Backlog(group, topic.name, partition, waiting)
        for group, topic, read in places(stream, stores, raw_groups)
        for partition, waiting in stream.lag(topic, read).items()
    ]


def alive(status: Mapping[str, Any], now_ns: int) -> bool:
    """Whether the process that wrote a status still runs.

    On this machine, its process id is checked. In another container or on another machine, the time of its last report decides."""
    if status.get("space", process_space()) != process_space():
        return now_ns - int(status.get("updated_ns", 0)) < _SILENT_NS
    try:
        os.kill(int(status["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def snapshot(
    root: Path,
    stream: Stream | None,
    stores: Mapping[str, Store],
    raw_groups: Sequence[str] = ("normalize",),
    clock_ns: int | None = None,
    stages: Container[str] | None = None,
) -> dict[str, Any]:
    """Everything that `tapeline status` shows, as plain values. Without a stream, only what the stages report about themselves.

    `stages`: the configured stages; a stage that is not among them is shown only while it runs. `clock_ns`: now (UTC)."""
    now_ns = clock_ns if clock_ns is not None else time.time_ns()
    statuses = {name: status for name, status in read_status(root).items() if stages is None or name in stages or alive(status, now_ns)}
    shown = {
        name: {
            "running": alive(status, now_ns),
            "pid": status.get("pid"),
            "uptime_s": round((now_ns - status.get("started_ns", now_ns)) / NS_PER_S, 1),
            "silent_s": round((now_ns - status.get("updated_ns", now_ns)) / NS_PER_S, 1),
            "decoder": status.get("decoder", ""),
        }
        for name, status in statuses.items()
    }
    totals = of_feeds(stream) if stream is not None else {}
    ingests = [status for name, status in statuses.items() if name.partition("-")[0] == "ingest"]
    lines = {name: line for status in ingests for name, line in status.get("lines", {}).items()}
    workers = [status for name, status in statuses.items() if name.partition("-")[0] == "normalize" and alive(status, now_ns)]
    paces = [status.get("providers", {}) for status in workers]
    names = sorted(
        {name.partition("/")[0] for name in totals} | {line["provider"] for line in lines.values()} | {n for p in paces for n in p}
    )
    providers = {name: _provider(name, totals, lines, [pace[name] for pace in paces if name in pace]) for name in names}
    return {
        "stages": shown,
        "providers": providers,
        "elsewhere": _elsewhere(workers, stream.partitions) if stream is not None else None,
        "lines": {name: _line(line) for name, line in lines.items() if "arbitration" in line},
        "backlog": [asdict(backlog) for backlog in backlogs(stream, stores, raw_groups)] if stream is not None else [],
        "forgotten": [{"stage": name, **entry} for name, status in statuses.items() for entry in status.get("forgotten", [])],
        "ahead": [[name, *place] for name, status in statuses.items() for place in status.get("ahead", [])],
        "leaps": [leap for status in ingests for leap in status.get("leaps", [])],
        "passed_over": statuses.get("ledger", {}).get("passed_over", 0),
        "upkeep": {name: status["upkeep"] for name, status in statuses.items() if "upkeep" in status},
        "gaps": statuses.get("ledger", {}).get("states"),  # the number of gaps by state; None if no ledger is kept
        "spool": {part: sum(status.get(part, 0) for status in ingests) for part in ("spooled", "spooled_bytes", "dropped")},
        "equations": [
            {"stage": e.stage, "what": e.what, "read": e.read, **e.parts, "balanced": e.balanced, "text": str(e)}
            for e in ([*equations(stream, stores), *between(stream, stores)] if stream is not None else [])
        ],
    }


def _elsewhere(workers: Sequence[Mapping[str, Any]], partitions: int) -> dict[str, int] | None:
    """How many partitions of the raw topic no worker of this run reads: another run on the same stream does. None if there are none, or
    if no worker runs."""
    mine = {partition for worker in workers for partition in worker.get("partitions", [])}
    return {"partitions": partitions - len(mine), "of": partitions} if workers and len(mine) < partitions else None


def _line(line: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one of two lines that carry the same events."""
    return {"connected": line["connected"], "reconnects": max(0, line["connects"] - 1), **line["arbitration"]}


def _provider(name: str, totals: Mapping[str, int], lines: Mapping[str, Any], paces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mine = [line for line in lines.values() if line["provider"] == name]

    def total(part: str) -> int:
        return sum(value for key, value in totals.items() if key.startswith(f"{name}/") and key.endswith(f"/{part}"))

    return {
        "connected": sum(line["connected"] for line in mine),
        "lines": len(mine),
        "reconnects": sum(max(0, line["connects"] - 1) for line in mine),
        "ticks_per_s": sum(pace["ticks_per_s"] for pace in paces),
        "p50_ms": max((pace["p50_ms"] for pace in paces if pace["p50_ms"] is not None), default=None),  # of the slowest worker
        "p99_ms": max((pace["p99_ms"] for pace in paces if pace["p99_ms"] is not None), default=None),
        "ticks": total("ticks"),
        "bars": total("bars"),
        "rejected": total("rejected"),
        "suspect": total("suspect"),
        "inexact": total("inexact"),
        "clock_off_s": max((pace["clock_off_s"] for pace in paces if pace.get("clock_off_s") is not None), key=abs, default=None),
        "problem": "; ".join(line["problem"] for line in mine if line["problem"]),
    }
