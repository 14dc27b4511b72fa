"""Runs every stage of the configuration as a process: the work of `tapeline run`."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from rich.console import Console

from tapeline.app.connections import connection_plans
from tapeline.app.histories import has_history
from tapeline.app.monitor import monitored
from tapeline.app.overview import Overview
from tapeline.app.process_names import ingest_name
from tapeline.app.stores import open_stores
from tapeline.app.streams import open_stream, raw_consumer_groups
from tapeline.app.supervisor import Stage, Supervisor
from tapeline.config import Config, environment
from tapeline.errors import Refused, Unavailable
from tapeline.local.locks import own
from tapeline.monitor.health import backlogs, snapshot
from tapeline.monitor.terminal import Screen
from tapeline.retry.backoff import backoff
from tapeline.stores import Store
from tapeline.streams import Stream
from tapeline.telemetry.families import RESTARTS
from tapeline.telemetry.status import StatusFile, read_status, worker_name

log = logging.getLogger(__name__)

_LINE_EVERY_S: Final = 5.0


def run(settings: Config, config: Path | None, until_idle_s: float | None, stop: threading.Event, console: Console) -> None:
    """Run until stopped, or idle for `until_idle_s`. Raises ConfigError and Busy before a start; later StageFailed, Unavailable."""
    connection_plans(settings, environment())
    stream, stores = open_stream(settings), open_stores(settings)
    ingests = [ingest_name(process) for process in _processes(settings)]
    with own(settings.root / "locks" / "run", "tapeline run"):
        stages = _stages(settings, config, stores)
        log.info("Running %s. The data folder is %s. Press Ctrl-C to stop.", ", ".join(stage.name for stage in stages), settings.root)
        try:
            _supervise(settings, stages, (stream, stores), _idle(settings, stream, stores, ingests, until_idle_s), stop, console)
            try:
                last = snapshot(settings.root, stream, stores, raw_consumer_groups(settings))
                for entry in last["equations"]:
                    log.info("%s", entry["text"])
                log.info("Stopped: %s", left(last))
            except (Unavailable, Refused) as error:
                log.warning("%s Stopped. The accounting was not checked.", error)
        finally:
            stream.close()
    lines = [line for name in ingests for line in read_status(settings.root).get(name, {}).get("lines", {}).values()]
    if until_idle_s is not None and lines and not any(line["connects"] for line in lines):
        why = "; ".join(dict.fromkeys(line["problem"].rstrip(".") for line in lines if line["problem"]))
        raise Unavailable(f"No provider was ever connected, so nothing arrived{f': {why}' if why else ''}. Run `tapeline check`.")


def _processes(settings: Config) -> list[str]:
    """The names of the ingest processes; the empty name is the one without a name of its own."""
    return list(dict.fromkeys(provider.process for provider in settings.providers if provider.live))


def _stages(settings: Config, config: Path | None, stores: Iterable[str]) -> list[Stage]:
    """Every stage of the configuration, with its command."""
    arguments = ["--config", str(config)] if config else []
    command = [sys.executable, "-m", "tapeline"]
    stages = [
        Stage(ingest_name(process), [*command, "ingest", *(["--process", process] if process else []), *arguments], place=0)
        for process in _processes(settings)
    ]
    stages += [
        Stage(worker_name(number), [*command, "normalize", "--worker", str(number), *arguments], place=1)
        for number in range(1, settings.normalize_workers + 1)
    ]
    stages += [Stage(name, [*command, "store", name, *arguments], place=2) for name in stores]
    if settings.ledger:
        stages.append(Stage("ledger", [*command, "ledger", *arguments], place=3, needed=False))
    if settings.ledger and settings.repair and has_history(settings):
        stages.append(Stage("repair", [*command, "repair", "--follow", *arguments], place=3, needed=False))
    if settings.scheduler != "none":
        stages.append(Stage("schedule", [*command, "schedule", *arguments], place=3, needed=False))
    if settings.dashboard.run and settings.dashboard.listen:
        listen = ["--listen", settings.dashboard.listen]
        stages.append(Stage("dashboard", [*command, "dashboard", *listen, *arguments], place=3, needed=False))
    return stages


def _supervise(
    settings: Config,
    stages: Sequence[Stage],
    parts: tuple[Stream, Mapping[str, Store]],
    idle: Callable[[], bool],
    stop: threading.Event,
    console: Console,
) -> None:
    """Run the stages, show what they do on the console, and answer for them over HTTP."""
    stream, stores = parts
    status = StatusFile(settings.root, "run")
    overview = Overview(settings, stream, stores, time.time_ns)

    def see() -> dict[str, Any]:
        return snapshot(settings.root, stream, stores, raw_consumer_groups(settings))

    def report(now: Mapping[str, Any]) -> dict[str, Any]:
        restarts = [RESTARTS.at(one["restarts"], name) for name, one in now.items()]
        return {"stages": now, "metrics": [*restarts, *(overview.samples() if settings.monitor.listen else ())]}

    with monitored(settings, {"run", *(stage.name for stage in stages if stage.needed)}), Screen(console, see, _LINE_EVERY_S) as screen:

        def look(now: dict[str, Any]) -> None:
            status.maybe(lambda: report(now))
            screen.tick()

        marked = {**environment(), "TAPELINE_LOG": f"supervised {os.getpid()}"}
        Supervisor(stages, lambda: backoff(Random(), 0.3, 15.0), screen.say, marked).run(stop, idle, look)


def left(last: Mapping[str, Any]) -> str:
    """A sentence about the records that are not in the stores yet, or are lost, from the last snapshot."""
    waiting = sum(entry["records"] for entry in last["backlog"])
    spool = last["spool"]
    parts = [
        f"{waiting:,} records wait in the stream for a stage that has not read them; the next start continues with them" if waiting else "",
        f"{spool['spooled']:,} records wait on disk for the stream; the next start sends them" if spool["spooled"] else "",
        f"{spool['dropped']:,} records are lost because the spool was full" if spool["dropped"] else "",
        "the stream lost records before a stage read them: `tapeline gaps` shows them" if last["forgotten"] else "",
        "" if all(entry["balanced"] for entry in last["equations"]) else "the accounting does not balance: `tapeline status` shows where",
    ]
    return "; ".join(part for part in parts if part) + "." if any(parts) else "everything received is in the stores."


def _idle(
    settings: Config, stream: Stream, stores: Mapping[str, Store], ingests: Sequence[str], seconds: float | None
) -> Callable[[], bool]:
    """A function that tells whether nothing has arrived for `seconds` and no records wait. It is always False if `seconds` is None."""
    started_ns = time.time_ns()
    raw_groups = raw_consumer_groups(settings)

    def idle() -> bool:
        if seconds is None:
            return False
        statuses = read_status(settings.root)
        for status in (statuses.get(name, {}) for name in ingests):
            if status.get("started_ns", 0) < started_ns:
                return False  # this ingest process has not reported since the run began
            # Measured up to its last report, not up to now: an old report, or that of a dead process, says nothing about now.
            quiet_ns = status["updated_ns"] - max(status.get("last_data_ns", 0), status["started_ns"])
            if quiet_ns < seconds * 1e9 or status.get("unsettled") or status.get("spooled"):
                return False
        return not any(backlog.records for backlog in backlogs(stream, stores, raw_groups))

    return idle
