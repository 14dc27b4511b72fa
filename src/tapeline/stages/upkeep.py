"""Runs a stage's maintenance in a child process, because it is slow, needs much memory and may fail without harm."""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final

from tapeline.errors import Busy, TapelineError
from tapeline.local.threads import concurrently

log = logging.getLogger(__name__)

#: How often `due` is asked; and how long to wait after another process was busy with the work, and after a failure.
_LOOK_EVERY_S: Final = 60.0
_AFTER_BUSY_S: Final = 600.0
_AFTER_FAILURE_S: Final = 3_600.0
_STOP_WITHIN_S: Final = 5.0


class Upkeep:
    """Starts a command when work is due, one at a time, and reports the result. If the command or its stage dies, the work is still due."""

    def __init__(self, what: str, command: Sequence[str], due: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """`what`: its name in the log and on the status page. `command`: prints one line for each thing that it has done.

        `due`: whether there is work. `clock`: monotonic, in seconds."""
        self._what, self._command, self._due, self._clock = what, command, due, clock
        self._look_at = clock()
        self._process: subprocess.Popen[str] | None = None
        self._printed: Future[tuple[str, str]] | None = None
        self._since_ns = 0
        self._last: dict[str, Any] = {}

    @property
    def running(self) -> bool:
        """Whether a command was started and `look` or `stop` has not yet dealt with its end."""
        return self._process is not None

    def look(self) -> None:
        """Start the command if work is due, or collect its result. Call it often: `due` is asked at most once a minute.

        Errors of `due` and of the command are not raised: they are logged, and the work is tried again in an hour."""
        if self._process is not None:
            if self._printed is not None and self._printed.done():
                self._ended(self._process, self._printed)
            return
        if self._clock() < self._look_at:
            return
        self._look_at = self._clock() + _LOOK_EVERY_S
        try:
            if self._due():
                self._process = subprocess.Popen(  # noqa: S603 our own command
                    self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
                )
                self._printed = concurrently(self._process.communicate, self._what)
                self._since_ns = time.time_ns()
        except (OSError, TapelineError) as error:
            self._failed(str(error))

    def _ended(self, process: subprocess.Popen[str], printed: Future[tuple[str, str]]) -> None:
        self._process = self._printed = None
        status = process.returncode
        if status == Busy.exit_status:
            self._look_at = self._clock() + _AFTER_BUSY_S  # another process does the work; `due` then finds what is left
            return
        lines = printed.result()[0].splitlines()
        if lines:
            self._last = {"done": lines[-1], "ended_ns": time.time_ns()}
        for line in lines:
            log.info("%s: %s", self._what, line)
        if status:
            ended = f"it was killed by {signal.Signals(-status).name}." if status < 0 else f"it ended with status {status} (see above)."
            self._failed(ended)

    def _failed(self, why: str) -> None:
        self._look_at = self._clock() + _AFTER_FAILURE_S
        self._last = {"failed": why, "ended_ns": time.time_ns()}
        log.error("%s: %s The work waits. Tapeline retries in an hour.", self._what, why)

    def report(self) -> dict[str, Any]:
        """For the status page: `since_ns` (UTC), when the running command started, or None; and the result of the last one."""
        return {**self._last, "since_ns": self._since_ns if self.running else None}

    def stop(self) -> None:
        """End the running command. Its work is done at the next start."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = self._printed = None
