"""Runs each stage as a process: starts them, restarts those that die, gives up with an error, and stops all in the order of the flow."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Final

from tapeline.errors import FATAL_STATUSES, DiskProblem, Refused, TapelineError, Unavailable
from tapeline.local.threads import concurrently

log = logging.getLogger(__name__)

#: After living this long, a stage counts as healthy, and its earlier deaths no longer count.
_WELL_AFTER_S: Final = 30.0
_DEATHS_IN_A_ROW: Final = 8
#: When a stage that the others do not need cannot continue, it is started again after this time.
_MUCH_LATER_S: Final = 600.0
_STOP_WITHIN_S: Final = 75.0
_LOOK_AGAIN_S: Final = 2.0
_ROUND_S: Final = 0.2
#: The exit statuses of a stage that had more to do and could not do it.
_UNFINISHED: Final = frozenset({Unavailable.exit_status, DiskProblem.exit_status, Refused.exit_status})


class StageFailed(TapelineError):
    """A stage ended for good. `status`: the exit status to end with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Stage:
    """A stage's process, and the history of its earlier processes. `started`, `again_at` and `stopping_since` are monotonic seconds."""

    name: str
    command: Sequence[str]
    place: int  # in the flow: stages of one place are stopped together, after all earlier places
    needed: bool = True  # whether all stages stop when it fails for good
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0  # consecutive, since it was last healthy
    restarts: int = 0
    again_at: float = 0.0
    waits: Iterator[float] | None = field(default=None, repr=False)
    listener: threading.Thread | None = field(default=None, repr=False)
    stopping_since: float | None = None  # when its process was told to end


class Supervisor:
    """Runs the stages. They start in the order in which they are given."""

    def __init__(
        self,
        stages: Sequence[Stage],
        waits: Callable[[], Iterator[float]],
        say: Callable[[str], None],
        environment: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`waits`: the delays before restarts, in seconds. `say`: called with each line that a stage writes to stderr.

        `environment`: the environment variables of the stages. `clock`: monotonic, in seconds."""
        self._environment = environment
        self._stages = stages
        self._waits = waits
        self._say = say
        self._clock = clock

    def run(self, stop: threading.Event, idle: Callable[[], bool], tick: Callable[[dict[str, Any]], None]) -> None:
        """Run the stages until `stop` is set or `idle` returns True. Raises StageFailed when a stage cannot continue; the others are
        stopped first.

        `idle` and `tick` may have to wait for a server that is away, so a separate thread calls them. They are not called after this
        returns, unless one hangs for more than 75 s. `tick` gets the report."""

        def look() -> bool:
            if idle():
                return True
            tick(self.report())
            return False

        looking: Future[bool] | None = None
        look_at = self._clock()
        try:
            for stage in self._stages:
                self._start(stage)
            while not stop.is_set():
                for stage in self._stages:
                    self._watch(stage)
                if looking is None and self._clock() >= look_at:
                    looking = concurrently(look, "look on")
                    wait([looking], _ROUND_S)
                if looking is not None and looking.done():
                    try:
                        if looking.result():
                            return
                    except (Unavailable, Refused) as error:
                        # The stages have the same problem and wait it out. Monitoring must not stop them.
                        log.warning("%s The stages keep running.", error)
                        look_at = self._clock() + _LOOK_AGAIN_S
                    looking = None
                stop.wait(_ROUND_S)
        finally:
            self._stop_all()
            wait([looking] if looking is not None else [], _STOP_WITHIN_S)

    def report(self) -> dict[str, Any]:
        """Return the `pid` and the number of `restarts` of each stage. `pid` is None while a stage waits for its restart."""
        now = [(stage, stage.process) for stage in self._stages]  # another thread may end a process meanwhile
        return {stage.name: {"pid": process.pid if process else None, "restarts": stage.restarts} for stage, process in now}

    def _start(self, stage: Stage) -> None:
        # A new session: so Ctrl-C in the terminal reaches only the supervisor, which then stops the stages in order.
        stage.process = subprocess.Popen(  # noqa: S603 our own command
            stage.command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, env=self._environment
        )
        stage.started, stage.stopping_since = self._clock(), None
        stage.listener = threading.Thread(target=self._listen, args=(stage.process,), name=f"listen to {stage.name}", daemon=True)
        stage.listener.start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        if process.stderr is not None:
            with process.stderr as lines:
                for line in lines:
                    self._say(line.decode("utf-8", "replace").rstrip())

    def _watch(self, stage: Stage) -> None:
        now = self._clock()
        if stage.process is None:
            if now >= stage.again_at:
                stage.restarts += 1
                self._start(stage)
            return
        status = stage.process.poll()
        if status is None:
            if now - stage.started > _WELL_AFTER_S:
                stage.deaths, stage.waits = 0, None
            return
        stage.process = None
        if stage.listener is not None:
            stage.listener.join(1.0)  # so that its last messages come before ours
        if not stage.needed and (status in FATAL_STATUSES or stage.deaths >= _DEATHS_IN_A_ROW):
            stage.deaths, stage.waits, stage.again_at = 0, None, now + _MUCH_LATER_S
            log.error(
                "%s cannot continue (status %d). The other stages keep running. Tapeline restarts it in %.0f min.",
                stage.name,
                status,
                _MUCH_LATER_S / 60,
            )
            return
        if status in FATAL_STATUSES:
            raise StageFailed(f"{stage.name} cannot continue. Its message is above. Tapeline stopped the other stages.", status)
        stage.deaths += 1
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        if stage.deaths > _DEATHS_IN_A_ROW:
            raise StageFailed(
                f"{stage.name} {how}, {stage.deaths} times in a row. Tapeline gives up. Nothing in the stream and the stores was lost.",
                status if status > 0 else 70,
            )
        stage.waits = stage.waits or self._waits()
        delay = next(stage.waits)
        stage.again_at = now + delay
        log.warning("%s %s. Tapeline restarts it in %.1f s. It continues where it stopped.", stage.name, how, delay)

    def _stop_all(self) -> None:
        """Stop the stages place by place: each finishes what the places before it left. If one cannot finish, all others are stopped at
        once, because no more input comes."""
        unfinished = False
        for place in sorted({stage.place for stage in self._stages}):
            for stage in self._stages:
                if stage.place == place or unfinished:
                    self._ask_to_end(stage)
            for stage in self._stages:
                if stage.place == place and not self._ended(stage):
                    unfinished = True

    def _ask_to_end(self, stage: Stage) -> None:
        if stage.process is not None and stage.stopping_since is None:
            stage.stopping_since = self._clock()
            stage.process.terminate()

    def _ended(self, stage: Stage) -> bool:
        """Wait for a stage to end; return whether it finished its work. A stage that does not end within 75 s is killed."""
        if stage.process is None or stage.stopping_since is None:
            return True
        try:
            status = stage.process.wait(max(0.0, stage.stopping_since + _STOP_WITHIN_S - self._clock()))
        except subprocess.TimeoutExpired:
            log.error(
                "%s did not stop within %.0f s. Tapeline kills it. The next start redoes what it had not committed.",
                stage.name,
                _STOP_WITHIN_S,
            )
            stage.process.kill()
            stage.process.wait()
            return False
        return status not in _UNFINISHED
