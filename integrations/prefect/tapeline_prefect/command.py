"""Tapeline's command, as this package uses it: what jobs there are, which runs are due, run one, and its alerts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

#: A command that ends with one of these exit statuses is not tried again, because only a person can fix the cause.
FATAL_STATUSES: Final = frozenset({2, 64, 65, 77, 78})
#: How long a run that is told to stop may take.
GRACE_S: Final = 40.0
#: How long a command that only asks may take: the machine may be busy.
_ANSWER_WITHIN_S: Final = 300.0
_TRY_LATER: Final = 75
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LOG_LINE: Final = re.compile(r"^\d{4}-\S+ \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) (.*)$")


class CommandFailed(Exception):
    """A command of Tapeline ended with an error. `exit_status` says whether trying again can help."""

    def __init__(self, text: str, exit_status: int) -> None:
        super().__init__(text, exit_status)
        self.exit_status = exit_status

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def may_pass(self) -> bool:
        """Whether trying again can help."""
        return self.exit_status not in FATAL_STATUSES


@dataclass(frozen=True, slots=True)
class Job:
    """A job, as Tapeline lists it. Times are seconds."""

    name: str
    does: str
    kind: str
    cron: str
    every_s: float
    timezone: str
    retries: int
    timeout_s: float
    #: How long after its moment a run must have succeeded; None if the job has no deadline.
    deadline_s: float | None
    of_a_day: bool
    paused: bool
    arguments: dict[str, Any]
    #: The JSON Schema of the arguments.
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Due:
    """A run that is needed now. `moment`: the moment of the schedule that it is for."""

    job: str
    due_ns: int
    attempt: int
    of: str

    @property
    def moment(self) -> datetime:
        """The moment of the schedule, in UTC."""
        return _EPOCH + timedelta(microseconds=self.due_ns // 1_000)


@dataclass(frozen=True, slots=True)
class Request:
    """Which run. `due_ns` is the moment (ns, UTC) of the schedule that it is for; None if a person asked for it."""

    job: str
    run_id: str
    run_url: str
    attempt: int
    due_ns: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tapeline:
    """Tapeline's command, with its configuration. `path`: the program."""

    path: str
    config: str

    def jobs(self) -> list[Job]:
        """Return the jobs that a schedule starts. Jobs that repeat within a minute stay with `tapeline run`. Raises CommandFailed."""
        return [_job(row) for row in self._rows("jobs", "list", "--format", "json") if not row["continuous"]]

    def due(self) -> list[Due]:
        """Return the runs that are needed now, the earliest of each job first. Raises CommandFailed."""
        return [Due(row["job"], row["due_ns"], row["attempt"], row["of"]) for row in self._rows("jobs", "due")]

    def gaps(self, since: str) -> list[dict[str, Any]]:
        """Return the gaps that end after a day such as 2026-01-05. Raises CommandFailed."""
        return self._rows("gaps", "--since", since, "--format", "json", allowed=(0, 1))

    def raise_alert(self, name: str, text: str) -> None:
        """Raise an alert, or change its text while it is open. Raises CommandFailed."""
        self._rows("alerts", "raise", name, "--text", text)

    def resolve_alert(self, name: str) -> None:
        """Resolve an alert; nothing happens if there is none. Raises CommandFailed."""
        self._rows("alerts", "resolve", name)

    def run(self, request: Request, log: Callable[[str, str], None], progress: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Run a job to its end and return its outcome. Whatever ends the call early stops the job, too.

        `log`: called with the level and the text of each line of the log, from another thread. Raises CommandFailed if the process ended
        without an outcome."""
        command = [self.path, "jobs", "run", request.job, "--config", self.config, "--format", "json", "--by", "prefect"]
        command += ["--by-id", request.run_id, "--by-url", request.run_url, "--attempt", str(request.attempt)]
        command += ["--arguments", json.dumps(request.arguments)]
        command += ["--due-ns", str(request.due_ns)] if request.due_ns is not None else []
        outcome: dict[str, Any] | None = None
        last = ""
        with _running(command) as process:
            assert process.stdout is not None

            def read_log() -> None:
                nonlocal last
                for line in process.stderr or ():
                    last = line.strip() or last
                    log(*_level(line.rstrip()))

            reader = threading.Thread(target=read_log, name="log of the job", daemon=True)
            reader.start()
            for line in process.stdout:
                said = json.loads(line)
                if "progress" in said:
                    progress(said["progress"])
                else:
                    outcome = said
            status = process.wait()
            reader.join()
        if outcome is None:
            raise CommandFailed(last or f"{request.job} ended with status {status} and said nothing.", status)
        return outcome

    def _rows(self, *words: str, allowed: Sequence[int] = (0,)) -> list[dict[str, Any]]:
        """The JSON objects that a command prints, one a line."""
        command = [self.path, *words, "--config", self.config]
        quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "env": _environment()}
        try:
            done = subprocess.run(command, timeout=_ANSWER_WITHIN_S, check=False, **quiet)  # type: ignore[call-overload]
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"{' '.join(command)} did not answer within {_ANSWER_WITHIN_S:.0f} s.", _TRY_LATER) from None
        if done.returncode not in allowed:
            said = (done.stderr or done.stdout).strip()
            raise CommandFailed(f"{' '.join(command)} ended with status {done.returncode}: {said[-1_000:]}", done.returncode)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _job(row: Mapping[str, Any]) -> Job:
    return Job(
        name=row["job"],
        does=row["does"],
        kind=row["kind"],
        cron=row["cron"] or "",
        every_s=row["every_s"] or 0.0,
        timezone=row["timezone"],
        retries=row["retries"],
        timeout_s=row["timeout_s"],
        deadline_s=row["deadline_s"],
        of_a_day=row["of_a_day"],
        paused=row["paused"],
        arguments=row["arguments"],
        schema=row["schema"],
    )


@contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A child that ends with this block: it is told to stop, and killed if it does not."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=_environment(), **pipes)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    """The environment of a command: plain log lines, and it stops if this process is killed. Prefect's settings are no business of it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    return kept | {"TAPELINE_LOG": f"supervised {os.getpid()}"}


def _level(line: str) -> tuple[str, str]:
    """A line of Tapeline's log as its level and its text."""
    found = _LOG_LINE.match(line)
    return (found[1], found[2]) if found else ("INFO", line)


def find(path: str) -> str:
    """Return the program `tapeline`: the given one, the one of this environment, or the one on the PATH. Raises FileNotFoundError."""
    import shutil
    import sys

    here = [path] if path else [str(Path(sys.executable).with_name("tapeline")), "tapeline"]
    for some in here:
        if found := shutil.which(some):
            return os.path.abspath(found)
    raise FileNotFoundError(f"There is no program {here[-1]!r}. Give its path: --tapeline /path/to/.venv/bin/tapeline.")
