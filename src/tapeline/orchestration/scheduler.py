"""The embedded scheduler: it asks what is due, and starts each due run as a child process with a time limit.

It is level-triggered: only the schedule and the record of the runs decide. So a scheduler that was killed, a clock that jumped and a second
scheduler change nothing. A run that was missed is due at the next look.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tapeline.config import environment
from tapeline.orchestration.catalog import Job
from tapeline.orchestration.runs import GRACE_S, Run, Runs
from tapeline.records import NS_PER_S

log = logging.getLogger(__name__)

#: The most missed moments of one job that are made up for.
_MOST_MISSED: Final = 400
#: How many of a job's latest runs are looked at.
LOOKED_AT: Final = 2_000
#: How long a stop waits for the children.
_STOP_WITHIN_S: Final = 10.0
#: A child that is over its job's timeout by so much is killed. It ends by itself before, unless it hangs.
_OVERDUE_NS: Final = int((GRACE_S + 30.0) * NS_PER_S)

#: A run that lasted for so long before it failed was good: the next one is a first attempt.
_GOOD_RUN_NS: Final = 600 * NS_PER_S
_NEVER_NS: Final = (1 << 63) - 1


def due(job: Job, runs: Sequence[Run], since_ns: int, started_ns: int, now_ns: int) -> tuple[list[tuple[int, int]], int]:
    """Return the runs that a job needs now, (moment of the schedule, attempt), the earliest first; and the moment before which no run is
    needed any more. Pure.

    `runs`: the job's runs so far. `since_ns`: no run is needed for an earlier moment. `started_ns`: when this scheduler started. All ns,
    UTC."""
    last: dict[int, Run] = {}
    #: When the latest run over each thing started that succeeded.
    done: dict[str, int] = {}
    for run in runs:
        if run.state == "succeeded":
            done[run.thing] = max(run.started_ns, done.get(run.thing, 0))
    whole = [run for run in runs if not job.is_part(run.thing)]
    failures = Counter(run.due_ns for run in whole if run.state in ("failed", "killed"))
    for run in whole:
        if run.due_ns is not None and (run.due_ns not in last or run.attempt > last[run.due_ns].attempt):
            last[run.due_ns] = run
    needed, settled_ns = [], None
    for moment in _moments(job, since_ns, started_ns, now_ns):
        if _done_otherwise(job, done, moment):
            continue
        attempt = last.get(moment)
        open_ = attempt is None or attempt.state == "running" or (attempt.retry_ns is not None and failures[moment] <= job.settings.retries)
        if open_ and settled_ns is None:
            settled_ns = moment
        if attempt is None:
            needed.append((moment, 1))
        elif open_ and attempt.state != "running" and attempt.retry_ns is not None and attempt.retry_ns <= now_ns:
            needed.append((moment, attempt.attempt + 1))
    return needed, max(since_ns, now_ns if settled_ns is None else settled_ns)


def _done_otherwise(job: Job, done: Mapping[str, int], moment: int) -> bool:
    """Whether the day of a moment was done since that moment: as a whole, also by hand, or for each provider by itself."""
    if not job.kind.of_a_day:
        return False
    day = job.thing(moment)
    by_provider = [f"{day} {provider}" for provider in job.providers]
    return done.get(day, -1) >= moment or bool(by_provider and all(done.get(part, -1) >= moment for part in by_provider))


def _moments(job: Job, since_ns: int, started_ns: int, now_ns: int) -> Sequence[int]:
    """The moments of the schedule for which the job should have run by now."""
    latest = job.schedule.due(now_ns)
    if latest is None or latest < since_ns:
        return ()
    if job.settings.catch_up == "none":
        return (latest,) if latest >= started_ns else ()
    if job.settings.catch_up == "latest":
        return (latest,)
    moments: deque[int] = deque(maxlen=_MOST_MISSED)
    for moment in job.schedule.after(since_ns - 1):
        if moment > now_ns:
            break
        moments.append(moment)
    return moments


@dataclass(slots=True)
class _Child:
    job: Job
    due_ns: int
    process: subprocess.Popen[bytes]
    #: When it is killed (ns, UTC).
    until_ns: int


@dataclass(slots=True)
class Scheduler:
    """One scheduler. Any number of them may look at the same runs."""

    jobs: Mapping[str, Job]
    runs: Runs
    #: Returns the command of a run, for a job's name, a moment of its schedule and an attempt.
    command: Callable[[str, int, int], Sequence[str]]
    clock: Callable[[], int]
    #: Its name, so that a dead scheduler is seen.
    name: str
    #: The most children at once, besides those that never end.
    at_once: int = 2
    _children: dict[str, _Child] = field(default_factory=dict)
    _since_ns: dict[str, int] = field(default_factory=dict)
    _started_ns: int = 0

    def step(self) -> bool:
        """Look once: collect the children that have ended, and start what is due. Return False always: the loop rests after each look."""
        now_ns = self.clock()
        self._started_ns = self._started_ns or now_ns
        self.runs.looked(self.name)
        self._collect(now_ns)
        paused = self.runs.paused()
        for name, job in self.jobs.items():
            since_ns = self._since_ns[name] if name in self._since_ns else self.runs.since(name)
            busy = not job.continuous and sum(not child.job.continuous for child in self._children.values()) >= self.at_once
            if busy or name in self._children or name in paused:
                continue
            latest = None if job.continuous else job.schedule.due(now_ns)
            if not job.continuous and (latest is None or latest < since_ns):
                continue  # all earlier moments are settled, so its runs need not be read
            if job.continuous:
                needed = self._to_continue(name, now_ns)
            else:
                needed, self._since_ns[name] = due(job, self.runs.of(name, LOOKED_AT), since_ns, self._started_ns, now_ns)
            for moment, attempt in needed[:1]:
                self._start(job, moment, attempt, now_ns)
        return False

    def status(self) -> dict[str, Any]:
        """Return what `tapeline status` shows: the running children."""
        return {"running": {name: child.process.pid for name, child in self._children.items()}}

    def finish(self, wait_s: float = _STOP_WITHIN_S) -> None:
        """Tell the children to stop, and kill those that have not after `wait_s` seconds in all. The next start takes their runs up."""
        for child in self._children.values():
            child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + wait_s
        for child in self._children.values():
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("%s did not stop within %.0f s. Tapeline kills it. The next start continues it.", child.job.name, wait_s)
                child.process.kill()
                child.process.wait()

    def _to_continue(self, name: str, now_ns: int) -> list[tuple[int, int]]:
        """The run that a job needs which always runs: none while one is under way, or after an error that a retry cannot help.

        After that error, it is started again by the next scheduler, because a person may have mended the cause."""
        last = next(iter(self.runs.of(name, 1)), None)
        if last is None or last.state in ("stopped", "succeeded"):
            return [(now_ns, 1)]
        if last.state == "running" or (last.retry_ns or 0) > now_ns or (last.retry_ns is None and last.started_ns >= self._started_ns):
            return []
        lasted_ns = (last.ended_ns or now_ns) - last.started_ns
        return [(now_ns, 1 if lasted_ns > _GOOD_RUN_NS else last.attempt + 1)]

    def _start(self, job: Job, moment: int, attempt: int, now_ns: int) -> None:
        marked = {**environment(), "TAPELINE_LOG": f"supervised {os.getpid()}"}  # it ends if this process is killed
        process = subprocess.Popen(  # noqa: S603 our own command
            self.command(job.name, moment, attempt), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=marked
        )
        until_ns = _NEVER_NS if job.continuous else now_ns + job.timeout_ns + _OVERDUE_NS
        self._children[job.name] = _Child(job, moment, process, until_ns)
        log.info("Started %s (attempt %d), process %d.", job.name, attempt, process.pid)

    def _collect(self, now_ns: int) -> None:
        for name, child in list(self._children.items()):
            if child.process.poll() is None and now_ns > child.until_ns:
                log.error("%s goes on long after its timeout, process %d. Tapeline kills it.", name, child.process.pid)
                child.process.kill()
                child.process.wait()
            if child.process.poll() is not None:
                del self._children[name]
