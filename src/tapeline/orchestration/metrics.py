"""The metrics of jobs and alerts, from the record of the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, get_args

from tapeline.orchestration.alerts import Alerts
from tapeline.orchestration.catalog import Job
from tapeline.orchestration.runs import Run, Runs, State
from tapeline.orchestration.scheduler import LOOKED_AT
from tapeline.records import NS_PER_S
from tapeline.telemetry import families
from tapeline.telemetry.families import Sample

_EVERY_NS: Final = 15 * NS_PER_S


@dataclass(slots=True)
class JobMetrics:
    """What Prometheus is told of jobs and alerts."""

    jobs: Mapping[str, Job]
    runs: Runs
    alerts: Alerts
    #: ns, UTC.
    clock: Callable[[], int]
    _found: list[Sample] = field(default_factory=list)
    _looked_ns: int = 0

    def samples(self) -> list[Sample]:
        """Return what the record said at most 15 s ago. Raises what the database raises."""
        now_ns = self.clock()
        if not 0 <= now_ns - self._looked_ns < _EVERY_NS:
            self._found, self._looked_ns = list(self._look(now_ns)), now_ns
        return self._found

    def _look(self, now_ns: int) -> Iterator[Sample]:
        age_ns = self.runs.last_look_age_ns()
        if age_ns is not None:
            yield families.SCHEDULER_LOOK.at((now_ns - age_ns) / NS_PER_S)
        for name, job in self.jobs.items():
            mine = self.runs.of(name, LOOKED_AT)
            counts = Counter(run.state for run in mine)
            yield from (families.JOB_RUNS.at(counts[state], name, state) for state in get_args(State))
            yield families.JOB_RUNNING.at(any(run.state == "running" for run in mine), name)
            ended = [run.ended_ns for run in mine if run.state == "succeeded" and run.ended_ns is not None]
            if ended:
                yield families.JOB_SUCCESS.at(max(ended) / NS_PER_S, name)
            yield families.JOB_LATE.at(late_ns(job, mine, self.runs.since(name), now_ns) / NS_PER_S, name)
        yield from (families.ALERT.at(1, alert.name, alert.runbook.rpartition("#")[2]) for alert in self.alerts.open())


def late_ns(job: Job, runs: Sequence[Run], since_ns: int, now_ns: int) -> int:
    """Return for how long a run of a job is due and has not succeeded, in ns; 0 if none is, and for a job that repeats within a minute.

    `runs`: the latest ones. `since_ns`: no run is needed for an earlier moment. Any run that succeeded after the moment counts."""
    moment_ns = None if job.continuous else job.schedule.due(now_ns)
    if moment_ns is None or moment_ns < since_ns:
        return 0
    done = any(run.state == "succeeded" and (run.due_ns == moment_ns or run.started_ns >= moment_ns) for run in runs)
    return 0 if done else now_ns - moment_ns
