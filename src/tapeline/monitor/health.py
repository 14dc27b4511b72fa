"""The whole pipeline at a glance: who runs, how fast, what waits where, and whether every event is accounted for."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapeline.monitor.status import read_status
from tapeline.records import NORMALIZED_TOPICS, NS_PER_S, RAW_TOPIC
from tapeline.stores import Store
from tapeline.streams import Stream

_PARTS = ("ticks", "bars", "notices", "rejected")


@dataclass(frozen=True, slots=True)
class Equation:
    """in = out + duplicates + rejected, for one stage and what it read."""

    stage: str
    what: str
    read: int
    parts: Mapping[str, int]

    @property
    def balanced(self) -> bool:
        return self.read == sum(self.parts.values())

    def __str__(self) -> str:
        right = " + ".join(f"{count:,} {name}" for name, count in self.parts.items())
        return f"{self.stage}: {self.read:,} {self.what} {'=' if self.balanced else '≠'} {right}"


@dataclass(frozen=True, slots=True)
class Backlog:
    """Records that a stage has still to read from a topic."""

    stage: str
    topic: str
    records: int


def equations(stream: Stream, stores: Mapping[str, Store]) -> list[Equation]:
    """Each from what one transaction committed, so each holds at every moment, also while the pipeline runs."""
    found = []
    totals = stream.totals("normalize")
    feeds = sorted({name.rpartition("/")[0] for name in totals})
    for feed in feeds:
        parts = {part: totals.get(f"{feed}/{part}", 0) for part in _PARTS}
        found.append(Equation("normalize", f"events of {feed}", totals.get(f"{feed}/seen", 0), parts))
    for name, store in stores.items():
        for topic in NORMALIZED_TOPICS:
            kept = store.totals(topic, 0)
            if kept.position:
                found.append(Equation(name, topic.table, kept.position, {"rows": kept.rows, "duplicates": kept.duplicates}))
    return found


def backlogs(stream: Stream, stores: Mapping[str, Store]) -> list[Backlog]:
    """Positions are read before the ends that they run after, so that none is below zero while the pipeline runs."""
    positions = [("normalize", RAW_TOPIC, stream.position("normalize", RAW_TOPIC, 0))]
    positions += [(name, topic, store.position(topic, 0)) for name, store in stores.items() for topic in NORMALIZED_TOPICS]
    return [Backlog(stage, topic.name, stream.ends(topic)[0] - position) for stage, topic, position in positions]


def alive(status: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a status still runs."""
    try:
        os.kill(int(status["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def snapshot(root: Path, stream: Stream, stores: Mapping[str, Store], clock_ns: int | None = None) -> dict[str, Any]:
    """Everything that `tapeline status` shows, as plain values."""
    now_ns = clock_ns if clock_ns is not None else time.time_ns()
    words = read_status(root)
    stages = {
        name: {
            "running": alive(word),
            "pid": word.get("pid"),
            "uptime_s": round((now_ns - word.get("started_ns", now_ns)) / NS_PER_S, 1),
            "silent_s": round((now_ns - word.get("updated_ns", now_ns)) / NS_PER_S, 1),
        }
        for name, word in words.items()
    }
    totals = stream.totals("normalize")
    lines = words.get("ingest", {}).get("lines", {})
    paces = words.get("normalize", {}).get("providers", {})
    names = sorted({name.partition("/")[0] for name in totals} | {line["provider"] for line in lines.values()})
    providers = {name: _provider(name, totals, lines, paces.get(name, {})) for name in names}
    return {
        "stages": stages,
        "providers": providers,
        "backlog": [{"stage": b.stage, "topic": b.topic, "records": b.records} for b in backlogs(stream, stores)],
        "equations": [
            {"stage": e.stage, "what": e.what, "read": e.read, **e.parts, "balanced": e.balanced, "text": str(e)}
            for e in equations(stream, stores)
        ],
    }


def _provider(name: str, totals: Mapping[str, int], lines: Mapping[str, Any], pace: Mapping[str, Any]) -> dict[str, Any]:
    mine = [line for line in lines.values() if line["provider"] == name]

    def total(part: str) -> int:
        return sum(value for key, value in totals.items() if key.startswith(f"{name}/") and key.endswith(f"/{part}"))

    return {
        "connected": sum(line["connected"] for line in mine),
        "lines": len(mine),
        "reconnects": sum(max(0, line["connects"] - 1) for line in mine),
        "ticks_per_s": pace.get("ticks_per_s", 0.0),
        "p50_ms": pace.get("p50_ms"),
        "p99_ms": pace.get("p99_ms"),
        "ticks": total("ticks"),
        "bars": total("bars"),
        "rejected": total("rejected"),
        "trouble": "; ".join(line["trouble"] for line in mine if line["trouble"]),
    }
