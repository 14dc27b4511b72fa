"""The one way in which a job runs, whoever starts it: claim, work, renew the claim meanwhile, and record the end.

The exit status of an error decides about a retry: what may pass is tried again with growing waits, and what cannot pass is not.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import inf
from random import Random
from typing import Any, Final

from tapeline.config import Config
from tapeline.errors import FATAL_STATUSES, Busy, TapelineError, Unavailable
from tapeline.local.machine import process_space
from tapeline.orchestration.catalog import Job
from tapeline.orchestration.runs import GRACE_S, RENEW_S, Claim, Origin, Runs, State
from tapeline.orchestration.work import REPEATED, WORK, Work
from tapeline.records import NS_PER_S
from tapeline.retry.backoff import backoff

log = logging.getLogger(__name__)

_FIRST_WAIT_S: Final = 30.0
_LONGEST_WAIT_S: Final = 3_600.0
#: An error text names at most so many of the things that failed.
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Request:
    """Who starts a run. `due_ns` is the moment of the schedule (ns, UTC) that it is for; None: now."""

    origin: Origin = "person"
    origin_id: str = ""
    origin_url: str = ""
    due_ns: int | None = None
    attempt: int = 1
    #: Called with how far the run is, every few seconds.
    report: Callable[[Mapping[str, Any]], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run, as it was recorded."""

    run: int
    state: State
    exit_status: int
    result: Mapping[str, Any]
    error: str
    retry_ns: int | None


def run(config: Config, job: Job, request: Request, runs: Runs, stop: threading.Event, clock: Callable[[], int], random: Random) -> Outcome:
    """Run a job to its end and record it. Raises Busy if the same is running already, and what the record raises.

    A job that repeats within a minute goes on until it is stopped. Any other run that takes longer than its timeout is told to stop. If it
    does not, this ends the process after 30 s: only a process that does nothing else may call this.

    If a run has succeeded for the moment of the request, this returns its end and does nothing."""
    due_ns = clock() if request.due_ns is None else request.due_ns
    thing = job.thing(due_ns)
    if (before := _done_before(job, thing, request, runs)) is not None:
        return before
    number = runs.claim(_claim(job, thing, request))
    if number is None:
        raise Busy(f"{job.name}{f' of {thing}' if thing else ''} runs already, or has run. `tapeline jobs history {job.name}` shows it.")

    def retry_at() -> int:
        return clock() + int(wait_s(request.attempt, random) * NS_PER_S)

    keeper = _Keeper(runs, number, inf if job.continuous else job.timeout_ns / NS_PER_S, stop, request.report, retry_at)
    keeper.start()
    status, error, result = 0, "", dict[str, Any]()
    state: State | None = None
    try:
        work = Work(config, job.day(due_ns), stop, keeper.progress.update, runs, job.name)
        result = _again_and_again(job, work, random) if job.continuous else _once(job, work)
        if stop.is_set():
            status, error = Busy.exit_status, keeper.why
            state = "failed" if error else "stopped"
        elif failed := result.get("failed"):
            more = f" And {len(failed) - _SHOWN} more." if len(failed) > _SHOWN else ""
            status, error = Unavailable.exit_status, " ".join(failed[:_SHOWN]) + more
    except TapelineError as problem:
        status, error = problem.exit_status, keeper.why or str(problem)
        if stop.is_set() and not keeper.why and isinstance(problem, (Busy, Unavailable)):
            state = "stopped"  # the error says no more than that it was stopped while it waited
    except Exception as problem:
        log.exception("%s failed in a way that is not foreseen.", job.name)
        status, error = TapelineError.exit_status, f"{type(problem).__name__}: {problem}. Report this error."
    finally:
        keeper.finish()
    may_pass = status and status not in FATAL_STATUSES - {Busy.exit_status}
    retry_ns = (clock() if state == "stopped" else retry_at()) if may_pass else None
    state = state or ("failed" if status else "succeeded")
    runs.end(number, state, exit_status=status, result=result, error=error, retry_ns=retry_ns)
    return Outcome(number, state, status, result, error, retry_ns)


def _claim(job: Job, thing: str, request: Request) -> Claim:
    return Claim(
        job=job.name,
        thing=thing,
        due_ns=request.due_ns,
        arguments=job.settings.arguments,
        origin=request.origin,
        origin_id=request.origin_id,
        origin_url=request.origin_url,
        attempt=request.attempt,
        process=f"{platform.node()}, process {os.getpid()}",
        pid=os.getpid(),
        space=process_space(),
    )


def _done_before(job: Job, thing: str, request: Request, runs: Runs) -> Outcome | None:
    done = runs.done(job.name, thing, request.due_ns) if request.due_ns is not None else None
    if done is None:
        return None
    log.info("%s was done for this moment before, by run %d.", f"{job.name} {thing}".strip(), done.id)
    return Outcome(done.id, done.state, 0, done.result, "", None)


def _once(job: Job, work: Work) -> dict[str, Any]:
    name = job.settings.job
    if name in WORK:
        return WORK[name](work, job.arguments)
    with REPEATED[name](work, job.arguments) as step:
        return step()


def _again_and_again(job: Job, work: Work, random: Random) -> dict[str, Any]:
    """Do the work once in each period until told to stop. What may pass is tried again with growing waits; other errors are raised."""
    looks = failures = 0
    with ExitStack() as opened:
        name = job.settings.job
        step = opened.enter_context(REPEATED[name](work, job.arguments)) if name in REPEATED else partial(WORK[name], work, job.arguments)
        while not work.stop.is_set():
            began = time.monotonic()
            try:
                done = step()
            except Unavailable as error:
                failures += 1
                pause_s = next(islice(backoff(random, 1.0, 60.0), min(failures, 10) - 1, None))
                log.warning("%s %s tries again in %.1f s.", error, job.name, pause_s)
                work.progress({"error": str(error)})
                work.stop.wait(pause_s)
                continue
            looks, failures = looks + 1, 0
            work.progress({"times": looks, "error": "", **done})
            work.stop.wait(max(0.0, job.schedule.period_ns / NS_PER_S - (time.monotonic() - began)))
    return {"times": looks}


def wait_s(attempt: int, random: Random) -> float:
    """Return how long to wait after a failed attempt (the first is 1), in seconds: growing, with jitter, an hour at most."""
    waits = backoff(random, _FIRST_WAIT_S, _LONGEST_WAIT_S)
    return next(islice(waits, attempt - 1, None))


class _Keeper(threading.Thread):
    """Renews the claim while the job works, and tells it to stop when its time is over or its claim is lost."""

    def __init__(
        self,
        runs: Runs,
        run: int,
        timeout_s: float,
        stop: threading.Event,
        report: Callable[[Mapping[str, Any]], None],
        retry_at: Callable[[], int],
    ) -> None:
        super().__init__(name="claim", daemon=True)
        self.progress: dict[str, Any] = {}
        #: Why the job was told to stop; empty if it was not, or not by this.
        self.why = ""
        self._runs, self._run, self._timeout_s, self._stop_job = runs, run, timeout_s, stop
        self._done, self._report, self._retry_at = threading.Event(), report, retry_at

    def run(self) -> None:
        left_s = self._timeout_s
        while not self._done.wait(min(RENEW_S, max(left_s, 0.0))):
            left_s -= RENEW_S
            with suppress(OSError):  # nobody reads it any more, and the claim must be renewed all the same
                self._report(dict(self.progress))
            try:
                if not self._runs.renew(self._run, dict(self.progress)):
                    self.why = "Another process has taken this run over, because its claim was not renewed in time."
            except TapelineError as error:
                log.warning("%s The run goes on. Its claim is renewed in %.0f s.", error, RENEW_S)
            if left_s <= 0:
                self.why = f"The run took longer than its timeout of {self._timeout_s:,.0f} s. The next attempt continues where it was."
            if self.why:
                self._end()
                return

    def finish(self) -> None:
        """End the thread. The job has ended."""
        self._done.set()
        self.join()

    def _end(self) -> None:
        log.warning("%s", self.why)
        self._stop_job.set()
        if not self._done.wait(GRACE_S):
            try:
                retry_ns = self._retry_at()
                self._runs.end(self._run, "failed", exit_status=Busy.exit_status, result={}, error=self.why, retry_ns=retry_ns)
            finally:
                os._exit(Busy.exit_status)
