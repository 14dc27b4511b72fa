"""Watches over promises: looks at each [[sla]] block and each deadline of a job, keeps the alerts, and tells people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from tapeline.app.promises import Promises
from tapeline.config import Config
from tapeline.monitor.promises import Finding
from tapeline.orchestration.alerts import Alerts, Problem
from tapeline.orchestration.catalog import Job
from tapeline.orchestration.notifying import Notifier
from tapeline.orchestration.runs import Run, Runs
from tapeline.records import NS_PER_S
from tapeline.times import ns_of, text

#: What cannot be looked up for so long is a problem itself.
_UNKNOWN_NS: Final = 180 * NS_PER_S
_LOOKED_AT: Final = 2_000
RUNBOOK: Final = "docs/alerts.md"
#: The runbook of alerts that another program raises.
OTHERS: Final = f"{RUNBOOK}#others"


@dataclass(slots=True)
class Watch:
    """Looks at all promises, as often as it is called."""

    promises: Promises
    jobs: Mapping[str, Job]
    runs: Runs
    alerts: Alerts
    notifier: Notifier
    clock: Callable[[], int]
    #: Since when a promise could not be looked up.
    _unknown_since: dict[str, int] = field(default_factory=dict)

    def look(self) -> dict[str, Any]:
        """Look once, and return how many promises are kept, broken and unknown, and what is wrong."""
        now_ns = self.clock()
        settings = self.promises.by_name
        problems: list[Problem] = []
        over: list[str] = []
        counts = {"kept": 0, "broken": 0, "unknown": 0}
        for finding in self.promises.look():
            some = settings[finding.name]
            counts["unknown" if finding.kept is None else "kept" if finding.kept else "broken"] += 1
            runbook = f"{RUNBOOK}#{some.settings.check}"
            if finding.kept is False:
                problems.append(Problem(finding.name, finding.text, runbook, some.settings.notify, some.remind_ns))
            elif finding.kept:
                over.append(finding.name)
            unknown = Problem(
                f"{finding.name} is unknown",
                f"This promise cannot be checked: {finding.text}",
                f"{RUNBOOK}#unknown",
                some.settings.notify,
                some.remind_ns,
            )
            if self._long_unknown(finding, now_ns):
                problems.append(unknown)
            elif finding.kept is not None:
                over.append(unknown.name)
        late = {f"job {name}": self._late(job, now_ns) for name, job in self.jobs.items() if job.deadline is not None}
        for name, problem in late.items():
            if problem is None:
                over.append(name)
            else:
                problems.append(problem)
                counts["broken"] += 1
        over += self._gone([*settings, *late])
        self.alerts.settle(problems, over)
        self.alerts.tell(self.notifier.send, {problem.name: problem.remind_ns for problem in problems})
        return {**counts, "problems": [f"{problem.name}: {problem.text}" for problem in problems]}

    def _long_unknown(self, finding: Finding, now_ns: int) -> bool:
        if finding.kept is not None:
            self._unknown_since.pop(finding.name, None)
            return False
        return now_ns - self._unknown_since.setdefault(finding.name, now_ns) >= _UNKNOWN_NS

    def _gone(self, names: Sequence[str]) -> list[str]:
        """The open alerts of promises and deadlines that the configuration no longer has. Alerts that others raised stay."""
        known = {*names, *(f"{name} is unknown" for name in names)}
        return [one.name for one in self.alerts.open() if one.name not in known and one.runbook != OTHERS]

    def _late(self, job: Job, now_ns: int) -> Problem | None:
        runs = self.runs.of(job.name, _LOOKED_AT)
        moment_ns = missed(job, runs, self.runs.since(job.name), now_ns)
        if moment_ns is None:
            return None
        last = next((run for run in runs if run.due_ns == moment_ns), None)
        why = "it did not run" if last is None else f"its last attempt {last.state}{f': {last.error}' if last.error else ''}"
        promised = f"{job.name} should have succeeded by {job.settings.deadline} ({job.schedule.timezone})"
        wording = f"{promised}; {why.rstrip('.')}. It was due at {text(moment_ns)[:19]} UTC."
        return Problem(f"job {job.name}", wording, f"{RUNBOOK}#job", job.settings.notify)


def missed(job: Job, runs: Sequence[Run], since_ns: int, now_ns: int) -> int | None:
    """The latest moment of a job's schedule whose deadline has passed without a run that succeeded; None if there is none. Pure.

    `runs`: the job's latest runs. `since_ns`: no run is needed for an earlier moment. A run that a person or another scheduler started
    after the moment counts too."""
    if job.deadline is None:
        return None
    moment_ns = job.schedule.due(now_ns)
    for _ in range(2):  # the latest moment, or the one before if the deadline of the latest has not come
        if moment_ns is None or moment_ns < since_ns:
            return None
        if deadline_of(job, moment_ns) <= now_ns:
            done = any(run.state == "succeeded" and (run.due_ns == moment_ns or run.started_ns >= moment_ns) for run in runs)
            return None if done else moment_ns
        moment_ns = job.schedule.due(moment_ns - 1)
    return None


def deadline_of(job: Job, moment_ns: int) -> int:
    """The deadline (ns, UTC) of a moment of the schedule: the first time after it at which the clock shows the job's deadline."""
    assert job.deadline is not None, "only a job with a deadline has one"
    zone = ZoneInfo(job.schedule.timezone)
    day = datetime.fromtimestamp(moment_ns // NS_PER_S, zone).date()
    first = ns_of(datetime.combine(day, job.deadline, zone))
    return first if first > moment_ns else ns_of(datetime.combine(day + timedelta(days=1), job.deadline, zone))


def job_age_ns(runs: Runs, job: str, now_ns: int) -> int | None:
    """For how long (ns) no run of a job has succeeded; None if none ever did."""
    ended = [run.ended_ns for run in runs.of(job, _LOOKED_AT) if run.state == "succeeded" and run.ended_ns is not None]
    return now_ns - max(ended) if ended else None


@contextmanager
def watch(config: Config, jobs: Mapping[str, Job], runs: Runs, alerts: Alerts, clock: Callable[[], int]) -> Iterator[Watch]:
    """Open everything that the promises of a configuration are looked up in. Raises ConfigError."""
    with Promises(config, clock, lambda job: job_age_ns(runs, job, clock())) as promises:
        yield Watch(promises, jobs, runs, alerts, Notifier(config), clock)
