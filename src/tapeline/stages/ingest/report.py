"""What ingest reports: its connections, what it has recorded, and what waits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from tapeline.local.clock import Leap
from tapeline.net.websocket import FeedConnection
from tapeline.records import NS_PER_S
from tapeline.stages.ingest.arbitration import Arbitration
from tapeline.stages.ingest.delivery import Delivery
from tapeline.telemetry import families
from tapeline.telemetry.families import Sample


class Recording(Protocol):
    """The part of the recorder that a report needs."""

    delivery: Delivery
    records: int

    @property
    def problem(self) -> str: ...


def status_of(
    lines: Sequence[FeedConnection],
    arbitrations: Sequence[Arbitration],
    recorder: Recording,
    frames_per_s: float,
    leaps: Iterable[Leap],
    leapt: int,
) -> dict[str, Any]:
    """The status of ingest. `leaps`: the latest jumps of the clock; `leapt`: how many there were."""
    measured = {name: {"arbitration": counts} for one in arbitrations for name, counts in one.report(time.time_ns()).items()}
    return {
        "records": recorder.records,
        "frames_per_s": frames_per_s,
        "unsettled": recorder.delivery.unsettled,
        "spooled": recorder.delivery.spooled,
        "spooled_bytes": recorder.delivery.spooled_bytes,
        "dropped": recorder.delivery.dropped,
        "problem": recorder.problem,
        "leaps": [leap._asdict() for leap in leaps],
        "last_data_ns": max((line.state.last_data_ns for line in lines), default=0),
        "lines": {
            line.plan.name: asdict(line.state) | {"provider": line.plan.provider} | measured.get(line.plan.name, {}) for line in lines
        },
        "metrics": [
            families.RECORDED.at(recorder.records),
            families.UNACKNOWLEDGED.at(recorder.delivery.unsettled),
            families.SPOOLED.at(recorder.delivery.spooled),
            families.SPOOLED_BYTES.at(recorder.delivery.spooled_bytes),
            families.DROPPED.at(recorder.delivery.dropped),
            families.CLOCK_LEAPS.at(leapt),
            *(sample for line in lines for sample in _of_connection(line)),
            *(sample for line in lines if line.plan.name in measured for sample in _of_line(line, measured[line.plan.name]["arbitration"])),
        ],
    }


def _of_line(line: FeedConnection, counts: Mapping[str, Any]) -> Iterator[Sample]:
    """What one of two lines that carry the same events brought."""
    labels = (line.plan.provider, line.plan.feed, line.plan.name)
    yield families.LINE_EVENTS.at(counts["events"], *labels)
    yield families.LINE_FIRST.at(counts["first"], *labels)
    yield families.LINE_MISSED.at(counts["missed"], *labels)


def _of_connection(line: FeedConnection) -> Iterator[Sample]:
    state, labels = line.state, (line.plan.provider, line.plan.feed, line.plan.name)
    yield families.FRAMES.at(state.frames, *labels)
    yield families.CONNECTED.at(state.connected, *labels)
    yield families.RECONNECTS.at(max(0, state.connects - 1), *labels)
    yield families.STALE.at(state.stale, *labels)
    yield from (families.PROVIDER_ERRORS.at(count, *labels, code) for code, count in state.errors.items())
    if state.last_data_ns:
        yield families.LAST_DATA.at(state.last_data_ns / NS_PER_S, *labels)
