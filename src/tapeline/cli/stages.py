"""The commands that run the stages: all of the configuration, or one alone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Annotated

import typer

from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, load_config, own_stage, run_loop, stop_on_signal, supervisor, terminal
from tapeline.config import Config
from tapeline.errors import Busy, ConfigError
from tapeline.telemetry.status import StatusFile, worker_name

log = logging.getLogger("tapeline")

#: A store writes in bursts. On few cores, the bursts wait for the stages that add latency.
_STORE_NICENESS = 10
#: How long an ingest under a supervisor waits for the lease of the one before it.
_LEASE_WAIT_S = 30.0
#: The most normalize workers on one machine.
_MOST_WORKERS = 64


@app.command()
def run(
    config: ConfigOption = None,
    until_idle: Annotated[
        float | None,
        typer.Option(
            help="End with status 0 when nothing has arrived for SECONDS and every backlog is zero.",
            metavar="SECONDS",
        ),
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve the dashboard too, at [dashboard] listen (usually 127.0.0.1:8765).")
    ] = False,
) -> None:
    """Run every stage of the configuration, supervised, each in its own process.

    Without a configuration, Tapeline streams a few symbols from Binance's public market data, which needs no key. With
    --until-idle, the status is 69 if no provider was ever connected.

    Example: `tapeline run --config tapeline.toml --until-idle 10`
    """
    from msgspec.structs import replace

    from tapeline.app.run import run as run_all
    from tapeline.orchestration.preflight import check_configuration

    settings = load_config(config)
    if dashboard:
        settings = replace(settings, dashboard=replace(settings.dashboard, run=True))
    check_configuration(settings)
    run_all(settings, config, until_idle, stop_on_signal(), terminal())


@app.command()
def ingest(
    config: ConfigOption = None,
    process: Annotated[
        str, typer.Option(help="Open the [[providers]] with this process name; those without a process name if left out.")
    ] = "",
) -> None:
    """Run only ingest: open the connections and record every frame into the stream, byte for byte.

    Example: `tapeline ingest --process crypto` opens the connections of the [[providers]] blocks with `process = "crypto"`
    """
    from tapeline.app.ingest import ingest_until
    from tapeline.app.process_names import ingest_name

    settings = load_config(config)
    if not any(provider.live and provider.process == process for provider in settings.providers):
        raise ConfigError(
            f"The configuration has no [[providers]] with process = {process!r}. Use one that it has, or leave out --process."
        )

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        orphan = asyncio.create_task(stop_with_parent(stop))
        try:
            await ingest_until(stop, settings, process, lease_wait_s=_LEASE_WAIT_S if supervisor() else 0.0)
        finally:
            orphan.cancel()

    with own_stage(settings, ingest_name(process)):
        run_loop(body)


@app.command()
def normalize(
    config: ConfigOption = None,
    worker: Annotated[
        int | None, typer.Option(help="The number of this worker on this machine; the first that is not running if left out.", min=1)
    ] = None,
) -> None:
    """Run only the normalizer: it reads raw records and writes ticks, bars, notices and rejected events.

    If you start it several times, on one machine or many, the workers share the raw topic's partitions. If one dies, the others take over
    its partitions.
    """
    from tapeline.app.process_names import member_name
    from tapeline.app.streams import open_stream
    from tapeline.app.symbol_names import configured_names
    from tapeline.providers.registry import DECODERS
    from tapeline.stages.normalize import Normalize, run_normalize

    settings = load_config(config)
    stop = stop_on_signal(with_parent=True)
    with _own_worker(settings, worker, stop) as name:
        stream = open_stream(settings)
        status, member = StatusFile(settings.root, name), member_name(settings, name)
        run_normalize(Normalize(stream, DECODERS, status, name=member, names=configured_names(settings)), stop, Random())
        stream.close()


@app.command()
def ledger(config: ConfigOption = None) -> None:
    """Run only the ledger: it finds out from the raw records which data of each symbol is complete and which is missing.

    `tapeline gaps` and `tapeline complete` show the result.
    """
    from tapeline.app.ledgers import open_ledger
    from tapeline.app.process_names import store_name
    from tapeline.app.streams import open_stream
    from tapeline.app.symbol_names import configured_names
    from tapeline.providers.registry import DECODERS
    from tapeline.stages.ledger import LedgerWriter, Scope, run_ledger

    os.nice(_STORE_NICENESS)
    settings = load_config(config)
    stop = stop_on_signal(with_parent=True)
    with own_stage(settings, "ledger", stop):
        stream = open_stream(settings)
        stores = [store_name(some) for some in settings.stores]
        status, names = StatusFile(settings.root, "ledger"), configured_names(settings)
        scope = Scope(stores, names, settings.ledger_days)
        keep = LedgerWriter(stream, open_ledger(settings), DECODERS, status, stop, scope)
        run_ledger(keep, stop, Random())
        stream.close()


@app.command()
def store(
    name: Annotated[str | None, typer.Argument(help="The store: lake or postgresql; the configuration's first if left out.")] = None,
    config: ConfigOption = None,
) -> None:
    """Run only one store. It stores what normalize wrote, and continues at the position that it recorded with its last write."""
    from tapeline.app.process_names import store_name
    from tapeline.app.stores import lake_retention, lake_upkeep, open_store
    from tapeline.app.streams import open_stream
    from tapeline.stages.store import Maintenance, StoreWriter, Writing, run_store

    os.nice(_STORE_NICENESS)
    settings = load_config(config)
    stop = stop_on_signal(with_parent=True)
    by_name = {store_name(some): some for some in settings.stores}
    chosen = name or next(iter(by_name), "")
    if chosen not in by_name:
        raise ConfigError(f"The configuration has no store {chosen!r}. It has: {', '.join(by_name) or 'none'}.")
    with own_stage(settings, chosen, stop):
        stream = open_stream(settings)
        some = by_name[chosen]
        writing = Writing(chosen, some.flush_rows, some.flush_seconds)
        maintenance = Maintenance(lake_retention(settings, some), lake_upkeep(settings, some, config))
        keep = StoreWriter(stream, open_store(settings, some), writing, StatusFile(settings.root, chosen), stop, maintenance)
        run_store(keep, stop, Random())
        stream.close()


async def stop_with_parent(stop: asyncio.Event) -> None:
    """Set `stop` about 0.5 s after the supervisor that started this stage has died. Return at once if no supervisor started it."""
    if supervisor() is None:
        return
    while os.getppid() == supervisor():
        await asyncio.sleep(0.5)
    stop.set()


@contextmanager
def _own_worker(settings: Config, number: int | None, stop: threading.Event) -> Iterator[str]:
    """Hold the lock of a normalize worker: the one with this number, or the first that is free. Yields the worker's name."""
    numbers = [number] if number is not None else range(1, _MOST_WORKERS + 1)
    for some in numbers:
        name = worker_name(some)
        with ExitStack() as held:
            try:
                held.enter_context(own_stage(settings, name, stop))
            except Busy:
                if some == numbers[-1]:
                    raise
                continue
            yield name
            return
