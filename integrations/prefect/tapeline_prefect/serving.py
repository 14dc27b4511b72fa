"""One process that does it all: Prefect's server if none is configured, the deployments, the runs, and the alerts, until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from prefect.client.orchestration import get_client
from prefect.runner import Runner

from tapeline_prefect.alerts import Alerts
from tapeline_prefect.command import Job, Tapeline
from tapeline_prefect.flows import Setting
from tapeline_prefect.registering import Registered, automate, catch_up, continue_killed, drop_overdue, register
from tapeline_prefect.server import Server, answers

log = logging.getLogger(__name__)

#: How often runs whose process was killed are looked for.
_LOOK_EVERY_S: Final = 15.0
#: How often it is looked whether Prefect's server still runs.
_KEEP_EVERY_S: Final = 2.0
_FIRST_WAIT_S: Final = 5.0
_LONGEST_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve. Times are seconds."""

    tapeline: Tapeline
    #: The folder of Prefect's database and log, and of the marks of the runs under way.
    home: Path
    #: The address of Prefect's API.
    api: str
    #: The port of a server of our own; None: the server at `api` is somebody else's.
    port: int | None
    #: The name of every deployment.
    name: str = "tapeline"
    #: The most runs at once.
    at_once: int = 2
    #: The wait before a run's second attempt.
    first_wait_s: float = 30.0
    #: When a run is late; None: at its job's deadline, or else its timeout.
    late_after_s: float | None = None
    #: How often Prefect is asked for runs to start.
    poll_s: float = 10.0


@dataclass
class Serving:
    """Serves until `stop` is called."""

    options: Options
    _stop: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _runner: Runner | None = field(default=None, init=False)

    async def run(self) -> None:
        """Serve until stopped. Raises CommandFailed if Tapeline cannot list its jobs, and TimeoutError if no server answers."""
        options = self.options
        server = Server(options.home, options.port) if options.port is not None else None
        setting = Setting(options.tapeline, options.home / "runs", options.first_wait_s)
        jobs = await asyncio.to_thread(options.tapeline.jobs)
        wait_s = _FIRST_WAIT_S
        with Alerts(options.tapeline) as alerts:
            alerts.listen_for([job.name for job in jobs])
            try:
                while not self._stop.is_set():
                    await self._reachable(server)
                    try:
                        await self._serve(jobs, setting, alerts.url, server)
                        wait_s = _FIRST_WAIT_S
                    except Exception as error:  # noqa: BLE001 whatever Prefect raises when its server is away: begin again
                        log.warning(
                            "Prefect could not be served: %s: %s. Tapeline tries again in %.0f s.", type(error).__name__, error, wait_s
                        )
                        await _wait(self._stop, wait_s)
                        wait_s = min(wait_s * 2.0, _LONGEST_WAIT_S)
            finally:
                if server is not None:
                    await server.stop()

    def stop(self) -> None:
        """Stop. Runs that are under way are told to stop; the next start continues them."""
        self._stop.set()
        if self._runner is not None and self._runner.started:
            self._runner.handle_sigterm()

    async def _reachable(self, server: Server | None) -> None:
        if server is not None:
            stopped = asyncio.create_task(self._stop.wait())
            ready = asyncio.create_task(server.ready())
            await asyncio.wait({stopped, ready}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if self._stop.is_set():
                ready.cancel()
            else:
                ready.result()
            return
        while not self._stop.is_set() and not await asyncio.to_thread(answers, self.options.api):
            log.warning("There is no answer from Prefect's server at %s.", self.options.api)
            await _wait(self._stop, _FIRST_WAIT_S)

    async def _serve(self, jobs: list[Job], setting: Setting, url: str, server: Server | None) -> None:
        """Serve with one runner, until it is stopped or Prefect's server is away for too long."""
        if self._stop.is_set():
            return
        options = self.options
        # Schedules are not paused at a stop: what nobody starts meanwhile is late on Prefect's page, and the next start sorts it out.
        runner = Runner(name=options.name, query_seconds=options.poll_s, limit=options.at_once, pause_on_shutdown=False)
        async with get_client() as client:
            registered = await register(client, runner, options.name, jobs, setting)
            await automate(client, options.name, registered, url, options.late_after_s)
            await continue_killed(client, registered, setting, at_start=True)
            await drop_overdue(client, registered)
            await catch_up(client, registered, await asyncio.to_thread(options.tapeline.due))
        log.info("Serving %d jobs. Prefect's page: %s", len(jobs), options.api.removesuffix("/api"))
        self._runner = runner
        beside = [asyncio.create_task(self._look(registered, setting)), asyncio.create_task(self._keep(server))]
        try:
            await runner.start()
        finally:
            self._runner = None
            for task in beside:
                task.cancel()
        if runner.stopping:
            self._stop.set()

    async def _look(self, registered: Registered, setting: Setting) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                async with get_client() as client:
                    await continue_killed(client, registered, setting, at_start=False)
            except Exception as error:  # noqa: BLE001 the server may be away; the next look finds the same
                log.warning("Killed runs could not be looked for: %s: %s.", type(error).__name__, error)

    async def _keep(self, server: Server | None) -> None:
        """Start a server of our own again when it has ended. Prefect's clients wait for it meanwhile."""
        while server is not None:
            await asyncio.sleep(_KEEP_EVERY_S)
            if not server.runs and not self._stop.is_set():
                log.warning("Prefect's server has ended. It is started again.")
                await server.ready()


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def serve(options: Options, ready: Callable[[Serving], None] = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT. Raises as `Serving.run`."""
    serving = Serving(options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.stop)
    ready(serving)
    await serving.run()
