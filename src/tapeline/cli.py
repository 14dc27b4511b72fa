"""The command line."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from importlib.abc import MetaPathFinder
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from tapeline.config import Config, environment, load
from tapeline.errors import Busy, ConfigError, TapelineError, Unavailable
from tapeline.locks import own
from tapeline.monitor.status import StatusFile, worker_name

if TYPE_CHECKING:
    import pyarrow as pa

    from tapeline.rejects import Rejected, Table
    from tapeline.streams import Stream

log = logging.getLogger("tapeline")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Market data from the providers' sockets to a stream and a lake, every event accounted for.",
    epilog="Try `tapeline demo`: the whole pipeline against local venues, nothing to set up.",
)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The configuration; tapeline.toml here if left out.")]


#: A store writes in bursts; where cores are few, those wait for the stages whose delay is felt.
_STORE_NICENESS = 10
#: Normalize workers on one machine.
_MOST_WORKERS = 64


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class TailTopic(StrEnum):
    raw = "raw"
    ticks = "ticks"
    bars = "bars"
    notices = "notices"
    rejected = "rejected"


class VenueName(StrEnum):
    binance = "binance"
    polygon = "polygon"
    alpaca = "alpaca"


class _WithoutPandas(MetaPathFinder):
    """No command uses pandas; pyarrow would load it wherever it is installed, into every stage: 50 MB and a quarter of a second each."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        del path, target
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)


def main() -> None:
    """Entry point: errors become one message on stderr and an exit status that means something (docs/commands.md)."""
    sys.meta_path.insert(0, _WithoutPandas())
    try:
        app(prog_name="tapeline")
    except TapelineError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(getattr(error, "status", error.exit_status))
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def run(
    config: ConfigOption = None,
    until_idle: Annotated[
        float | None,
        typer.Option(help="End with status 0 when nothing has arrived for SECONDS and every backlog is zero.", metavar="SECONDS"),
    ] = None,
) -> None:
    """Run every stage the config names, one process each, supervised.

    Without a config it streams a few symbols from Binance's public market data, which needs no key.

    Example: `tapeline run --config tapeline.toml --until-idle 10`
    """
    from tapeline.run import run as run_all

    settings = _load(config)
    run_all(settings, config, until_idle, _stop_on_signal(), _terminal())


@app.command()
def ingest(
    config: ConfigOption = None,
    process: Annotated[str, typer.Option(help="Open the [[providers]] that have this process; those without one if left out.")] = "",
) -> None:
    """The sockets alone: record every frame into the stream, byte for byte.

    Example: `tapeline ingest --process crypto` opens what the config marks with `process = "crypto"`
    """
    from tapeline import wiring
    from tapeline.delivery import Delivery
    from tapeline.ingest import StreamRecorder
    from tapeline.ingest import ingest as ingest_stage

    settings = _load(config)
    planned = wiring.plans(settings, environment())
    mine = [(provider, plan) for provider, plan in planned if provider.process == process]
    if not mine:
        raise ConfigError(f"The config has no [[providers]] with process = {process!r}. Name one that it has, or leave out --process.")
    random = Random()
    name = wiring.ingest_name(process)

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        orphan = asyncio.create_task(_stop_with_parent(stop))
        stream = wiring.open_stream(settings)
        try:
            leases = await wiring.leases_in_time(mine, stream, random, stop)
            writer = f"{name}-{uuid.uuid4().hex}"
            delivery = Delivery(stream.producer(writer), writer, wiring.spool(settings, process))
            delivery.open()
            recorder = StreamRecorder(delivery, wiring.partitions(planned, wiring.raw_partitions(settings, stream)), random)
            lines = wiring.lines(mine, recorder, time.time_ns, random)
            await ingest_stage(lines, recorder, wiring.checks(mine), StatusFile(settings.root, name), stop, leases)
        finally:
            orphan.cancel()
            stream.close()

    with _own_stage(settings, name):
        _loop_runner(body)


@app.command()
def normalize(
    config: ConfigOption = None,
    worker: Annotated[int | None, typer.Option(help="Which of several; the first that does not run if left out.", min=1)] = None,
) -> None:
    """The interpreter alone: raw records in; ticks, bars, notices and rejects out.

    Started several times, on one machine or many, the workers share the raw topic's partitions; the others take over from one that dies.
    """
    from tapeline import wiring
    from tapeline.providers import DECODERS
    from tapeline.stages import Normalize, run_normalize

    settings = _load(config)
    stop = _stop_on_signal(with_parent=True)
    with _own_worker(settings, worker) as name:
        stream = wiring.open_stream(settings)
        run_normalize(Normalize(stream, DECODERS, StatusFile(settings.root, name), name=wiring.member_name(settings, name)), stop, Random())
        stream.close()


@app.command()
def store(
    name: Annotated[str | None, typer.Argument(help="Which of the config's stores; the first if left out.")] = None,
    config: ConfigOption = None,
) -> None:
    """One store alone: keep what normalize wrote, from where the store itself says it is."""
    from tapeline import wiring
    from tapeline.stages import KeepIn, run_store

    os.nice(_STORE_NICENESS)
    settings = _load(config)
    stop = _stop_on_signal(with_parent=True)
    by_name = {wiring.store_name(some): some for some in settings.stores}
    chosen = name or next(iter(by_name), "")
    if chosen not in by_name:
        raise ConfigError(f"The config has no store {chosen!r}. It has: {', '.join(by_name) or 'none'}.")
    with _own_stage(settings, chosen):
        stream = wiring.open_stream(settings)
        keep = KeepIn(
            stream,
            wiring.open_store(settings, by_name[chosen]),
            StatusFile(settings.root, chosen),
            stop,
            group=chosen,
            flush_rows=by_name[chosen].flush_rows,
            flush_s=by_name[chosen].flush_seconds,
        )
        run_store(keep, stop, Random())
        stream.close()


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="How long the venues send.")] = 30.0,
    rate: Annotated[float, typer.Option(help="Events a second of each venue.")] = 1000.0,
    data_dir: Annotated[Path, typer.Option(help="Where the demo's data goes; made anew.")] = Path("demo-data"),
) -> None:
    """The whole pipeline against three local venues: nothing to set up, no network.

    Ends with status 0 only if every event that the venues sent is in the lake exactly once, or rejected with a reason.
    """
    from tapeline.demo import Demo

    console = Console()
    ok = Demo(data_dir.resolve(), seconds, rate, console).run(_stop_on_signal())
    raise typer.Exit(0 if ok else 1)


@app.command()
def venue(
    name: Annotated[VenueName, typer.Argument(help="Which provider to stand in for.")],
    port: Annotated[int, typer.Option(help="0 takes any free port.")] = 0,
    rate: Annotated[float, typer.Option(help="Events a second.")] = 1000.0,
    symbols: Annotated[str, typer.Option(help="The provider's own names, with commas; a usual set if left out.")] = "",
    capture: Annotated[list[Path] | None, typer.Option(help="Replay this recording instead of making a market; repeatable.")] = None,
    speed: Annotated[float, typer.Option(help="Of a replay: 1 as recorded, 0 as fast as the client reads.")] = 1.0,
    fault: Annotated[list[str] | None, typer.Option(help="name or name:parameter; repeatable. `--fault list` shows all.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Serve wss with a test certificate for localhost.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed makes the same market.")] = 1,
    journal: Annotated[Path | None, typer.Option(help="Write every event sent to this file, a JSON line each.")] = None,
    limit: Annotated[int | None, typer.Option(help="Stop sending after so many events.")] = None,
    day_seconds: Annotated[float, typer.Option(help="The length of a day: Binance closes connections daily.")] = 86400.0,
) -> None:
    """A local stand-in for a provider, on real sockets, for tests and CI.

    Example: `tapeline venue binance --port 9101 --rate 5000 --fault reset:30`
    """
    from tapeline.venues import FAULTS, VenueOptions, serve

    if fault == ["list"]:
        for fault_name, text in FAULTS.items():
            typer.echo(f"{fault_name:20} {text}")
        return
    try:
        options = VenueOptions(
            name=name.value,
            port=port,
            rate=rate,
            symbols=tuple(text for text in symbols.split(",") if text),
            captures=tuple(capture or ()),
            speed=speed,
            faults=tuple(fault or ()),
            tls=tls,
            seed=seed,
            journal=journal,
            limit=limit,
            day_seconds=day_seconds,
        )
        _loop_runner(lambda: serve(options))
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"port {port} cannot be opened: {error.strerror or error}. Choose another --port, or 0 for any.") from error


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="Any DuckDB SELECT over ticks, bars, bar_revisions, notices, rejected.")],
    config: ConfigOption = None,
    format: Annotated[Format, typer.Option(help="json: an object a line. parquet: to --output or a pipe.")] = Format.table,  # noqa: A002
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of the screen.")] = None,
) -> None:
    """Query the lake with DuckDB.

    Example: `tapeline sql "SELECT symbol, count(*), max(last) FROM ticks GROUP BY symbol"`
    """
    import duckdb

    from tapeline import wiring
    from tapeline.output import write
    from tapeline.query import connect

    settings = _load(config)
    try:
        result = connect(wiring.lake_folder(settings)).sql(query)
        table = result.to_arrow_table() if result is not None else None
    except duckdb.Error as error:
        raise ConfigError(f"DuckDB: {error}") from error
    if table is not None:
        with _reader_may_leave():
            write(table, format.value, output)


@app.command()
def tail(
    topic: Annotated[TailTopic, typer.Argument(help="Which topic of the stream.")],
    symbol: Annotated[str | None, typer.Option(help="Only this symbol (canonical, such as BTC/USDT).")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as records arrive, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the latest records.")] = 10,
    config: ConfigOption = None,
) -> None:
    """The latest records of a topic, one JSON object a line.

    Example: `tapeline tail ticks --symbol BTC/USDT --follow`
    """
    from tapeline.output import json_lines
    from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC

    settings = _load(config)
    stop = _stop_on_signal()
    stream = _stream_with_data(settings)
    chosen = RAW_TOPIC if topic is TailTopic.raw else next(t for t in NORMALIZED_TOPICS if t.table == topic.value)
    if symbol and "symbol" not in chosen.schema.names:
        raise ConfigError(f"{topic.value} records carry no symbol; leave out --symbol.")
    positions = stream.before_end(chosen, lines if symbol is None else 500_000)
    latest: list[pa.RecordBatch] = []
    while not stop.is_set():
        chunk = stream.read(chosen, positions, 4096)
        if chunk is None:
            with _reader_may_leave():
                _print_last(latest, lines, json_lines)
            latest, lines = [], 1 << 60
            if not follow:
                break
            stop.wait(0.05)
            continue
        positions |= chunk.next
        latest.append(_only(chunk.batch, symbol))
    stream.close()


@app.command()
def replay(
    symbol: Annotated[list[str], typer.Option(help="Canonical, such as BTC/USDT; repeatable.")],
    since: Annotated[str, typer.Option("--from", help="The first moment: ISO 8601 with zone, a date, or ns since 1970.")],
    until: Annotated[str, typer.Option("--to", help="The first moment that is left out.")],
    into: Annotated[Path, typer.Option(help="The configuration whose stream gets the ticks; not the one that they came by.")],
    speed: Annotated[float, typer.Option(help="1 as it happened, 10 ten times as fast, 0 as fast as the stream takes it.")] = 1.0,
    provider: Annotated[str | None, typer.Option(help="Only this provider's.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only trade or quote.")] = None,
    source: Annotated[str, typer.Option(help="Which store to read.")] = "lake",
    config: ConfigOption = None,
) -> None:
    """Publish ticks that were kept into another stream, in event-time order, at the pace at which they happened.

    For a trading engine or a backtest that reads a stream; it finds them in `market-data.normalized`.

    Example: `tapeline replay --symbol BTC/USDT --from 2026-01-05 --to 2026-01-06 --speed 10 --into backtest.toml`
    """
    from tapeline import wiring
    from tapeline.reading import replay_batches
    from tapeline.replaying import publish

    settings, target = _load(config), load(into, environment())
    if _addresses(settings) & _addresses(target):
        raise ConfigError(
            f"--into {into} names the stream that the ticks came by, {target.stream.shown}: its readers would take them for new ones. "
            "Name a configuration with another stream; an embedded one has its own data_dir."
        )
    stop = _stop_on_signal()
    batches = replay_batches(symbol, since, until, speed, provider=provider, kind=kind, source=source, config=settings, sleep=stop.wait)
    stream = wiring.open_stream(target)
    try:
        published = publish(batches, stream, stop, Random())
    finally:
        stream.close()
    typer.echo(f"{published} ticks published{', then stopped' if stop.is_set() else ''}.", err=True)
    raise typer.Exit(130 if stop.is_set() else 0)


def _addresses(settings: Config) -> set[str]:
    """Where the configuration's stream is, whoever logs in to it."""
    if settings.stream.url == "embedded:":
        return {str(settings.root)}
    hosts, _, database = settings.stream.url.partition("://")[2].rpartition("@")[2].partition("/")
    return {f"{host}/{database}" for host in hosts.split(",")}


@app.command()
def status(
    config: ConfigOption = None,
    format: Annotated[Format, typer.Option(help="table or json.")] = Format.table,  # noqa: A002
) -> None:
    """Uptime, rates, backlog, and the accounting equation. Status 1 if an equation does not balance, 69 if the stream is away."""
    from tapeline import wiring
    from tapeline.monitor.health import snapshot
    from tapeline.monitor.table import tables

    settings = _load(config)
    stream = _stream_with_data(settings)
    trouble: Unavailable | None = None
    try:
        found = snapshot(settings.root, stream, wiring.open_stores(settings))
    except Unavailable as error:
        trouble, found = error, snapshot(settings.root, None, {})
    stream.close()
    if format is Format.json:
        typer.echo(json.dumps(found))
    else:
        Console().print(tables(found))
    if trouble is not None:
        raise trouble
    raise typer.Exit(0 if all(entry["balanced"] for entry in found["equations"]) else 1)


rejected_app = typer.Typer(no_args_is_help=True, help="What could not be read: look at it, and try it again.")
app.add_typer(rejected_app, name="rejected")
ProviderOption = Annotated[str | None, typer.Option(help="Only this provider's.")]
ReasonOption = Annotated[str | None, typer.Option(help="Only those whose reason contains this text.")]


@rejected_app.command("list")
def rejected_list(
    provider: ProviderOption = None,
    reason: ReasonOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were retried.")] = False,
    config: ConfigOption = None,
    format: Annotated[Format, typer.Option(help="table, csv, json or parquet.")] = Format.table,  # noqa: A002
) -> None:
    """Events that were rejected and not retried: id, when, from where, why.

    Example: `tapeline rejected list --reason price`
    """
    import datetime

    import pyarrow as pa

    from tapeline.output import write
    from tapeline.rejects import rejected

    settings = _load(config)
    stream = _stream_with_data(settings)
    found = [one for one in rejected(stream, _lake_table(settings)) if _wanted(one, provider, reason) and (everything or not one.retried)]
    stream.close()
    names = ["id", "received", "feed", "reason", *(["retried"] if everything else [])]
    schema = pa.schema([(name, pa.bool_() if name == "retried" else pa.string()) for name in names])
    rows = [
        {
            "id": one.name,
            "received": datetime.datetime.fromtimestamp(one.received_ns / 1e9, datetime.UTC).isoformat(" ", "milliseconds")[:23],
            "feed": f"{one.provider}/{one.feed}",
            "reason": one.reason,
            "retried": one.retried,
        }
        for one in found
    ]
    if not rows and format is Format.table:
        typer.echo("Nothing was rejected." if provider is None and reason is None else "Nothing of the kind was rejected.")
        return
    with _reader_may_leave():
        write(pa.Table.from_pylist(rows, schema), format.value, None)


@rejected_app.command("show")
def rejected_show(
    event: Annotated[str, typer.Argument(help="The id, as `rejected list` shows it.")],
    config: ConfigOption = None,
) -> None:
    """One rejected event: the reason, and its bytes as they came."""
    from tapeline.rejects import parse_id, rejected

    settings = _load(config)
    wanted = parse_id(event)
    stream = _stream_with_data(settings)
    found = next((one for one in rejected(stream, _lake_table(settings)) if one.id == wanted), None)
    stream.close()
    if found is None:
        raise ConfigError(f"No rejected event has the id {event}. `tapeline rejected list --all` shows those there are.")
    typer.echo(f"{found.provider}/{found.feed}, connection {found.connection}, received_ns {found.received_ns}", err=True)
    typer.echo(f"reason: {found.reason}{' (retried)' if found.retried else ''}", err=True)
    sys.stdout.buffer.write(found.payload + b"\n")


@rejected_app.command("retry")
def rejected_retry(
    events: Annotated[list[str] | None, typer.Argument(help="Ids; or choose by --provider, --reason or --all.")] = None,
    provider: ProviderOption = None,
    reason: ReasonOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that was not retried yet.")] = False,
    config: ConfigOption = None,
) -> None:
    """Send rejected events through today's normalizer again, each exactly once, however often this is called.

    Example: `tapeline rejected retry --reason "unknown channel"`
    """
    from tapeline.rejects import parse_id, retry

    settings = _load(config)
    ids = {parse_id(event) for event in events or ()}
    if not (ids or provider or reason or everything):
        raise ConfigError("Say which: ids, --provider, --reason, or --all.")
    stream = _stream_with_data(settings)
    sent = retry(stream, _lake_table(settings), lambda one: _wanted(one, provider, reason), ids)
    stream.close()
    for one in sent:
        typer.echo(one.name)
    typer.echo(f"{len(sent)} events go through the normalizer again; `tapeline audit ID` shows what became of one.", err=True)


@app.command()
def audit(
    event: Annotated[str | None, typer.Argument(help="The tick's own id: raw_partition-raw_offset-raw_index.")] = None,
    symbol: Annotated[str | None, typer.Option(help="Or its symbol (canonical) ...")] = None,
    time_ns: Annotated[str | None, typer.Option("--time", help="... and time: ns since 1970, or ISO 8601 with zone.")] = None,
    config: ConfigOption = None,
    format: Annotated[Format, typer.Option(help="table or json.")] = Format.table,  # noqa: A002
) -> None:
    """Where a tick came from and where it went: the raw frame, its connection, its place in each topic and store.

    Example: `tapeline audit --symbol BTC/USDT --time 2026-01-05T14:30:00.123Z`
    """
    from tapeline import audit as way
    from tapeline import query, times, wiring
    from tapeline.output import plain
    from tapeline.rejects import parse_id

    settings = _load(config)
    lake = wiring.lake_folder(settings)

    def find(table: str, condition: str, values: list[Any]) -> list[dict[str, Any]]:
        return query.find(lake, table, condition, values)

    if event is not None:
        ids = [parse_id(event)]
    elif symbol and time_ns:
        ids = way.by_symbol(find, symbol, times.parse(time_ns, "--time"))
    else:
        raise ConfigError("Name the tick: its id, or --symbol and --time.")
    if not ids:
        raise ConfigError(f"The lake holds no tick of {symbol} at or before {time_ns}.")
    stream, stores = _stream_with_data(settings), wiring.open_stores(settings)
    for one in ids:
        steps = list(way.trace(stream, stores, find, one))
        if not any(step.details for step in steps):
            raise ConfigError(f"Nothing is known of {'-'.join(map(str, one))}: neither the stream nor the lake holds it.")
        if format is Format.json:
            shown = [{"where": step.where, "found": step.found, "record": plain(step.details)} for step in steps]
            typer.echo(json.dumps({"id": "-".join(map(str, one)), "steps": shown}))
        else:
            Console().print(way.picture(one, steps))
    stream.close()


@app.command()
def check(config: ConfigOption = None) -> None:
    """Is the config right, and is everything it names reachable? Status 0 if so."""
    from tapeline.checkup import checkup

    settings = _load(config)
    failed = 0
    console = Console()
    for result in checkup(settings, environment()):
        mark = "[green]ok[/]  " if result.status == 0 else "[red]FAIL[/]"
        console.print(f"{mark} {_escape(result.what)}: {_escape(result.found)}", highlight=False, soft_wrap=True)
        failed = failed or result.status
    raise typer.Exit(failed)


def _wanted(one: Rejected, provider: str | None, reason: str | None) -> bool:
    return (provider is None or one.provider == provider) and (reason is None or reason in one.reason)


def _lake_table(settings: Config) -> Table:
    """The rows of the lake's tables, for what the stream no longer holds."""
    from tapeline import query, wiring

    return lambda table: query.find(wiring.lake_folder(settings), table, "true", [])


def _load(path: Path | None) -> Config:
    _log_to_stderr()
    return load(path, environment())


def _stream_with_data(settings: Config) -> Stream:
    """The stream of a run that was; looking on makes none."""
    from tapeline import wiring

    if settings.stream.url == "embedded:" and not (settings.root / "stream").exists():
        raise ConfigError(f"There is no data in {settings.root} yet. Start with `tapeline run`, or name another --config.")
    return wiring.open_stream(settings)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """The reader of our output (head, less) may go before it has read all: that is no error."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def _log_to_stderr() -> None:
    supervised = "TAPELINE_LOG" in os.environ
    logging.getLogger("picows").setLevel(logging.WARNING)  # each connection's socket options are no news
    if sys.stderr.isatty() and not supervised:
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def _terminal() -> Console:
    """Where the log goes, if that is a terminal, so that a live table and the log's lines do not write over each other; else stdout."""
    consoles = [handler.console for handler in logging.getLogger().handlers if isinstance(handler, RichHandler)]
    return consoles[0] if consoles else Console()


def _stop_on_signal(*, with_parent: bool = False) -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if with_parent and _supervisor() is not None:
        threading.Thread(target=_watch_parent, args=(stop,), name="watch supervisor", daemon=True).start()
    return stop


def _supervisor() -> int | None:
    """The supervisor's process id, for a stage that it started."""
    word, _, pid = os.environ.get("TAPELINE_LOG", "").partition(" ")
    return int(pid) if word == "supervised" else None


def _watch_parent(stop: threading.Event) -> None:
    """A supervisor that was killed cannot stop its stages: they stop by themselves."""
    while os.getppid() == _supervisor() and not stop.wait(0.5):
        pass
    stop.set()


async def _stop_with_parent(stop: asyncio.Event) -> None:
    if _supervisor() is None:
        return
    while os.getppid() == _supervisor():
        await asyncio.sleep(0.5)
    stop.set()


def _own_stage(settings: Config, stage: str) -> Any:
    """A stage's lock. Under a supervisor, a predecessor that is just ending, at most as long as it may finish its work, is waited for."""
    gc.freeze()  # what start-up has made is never garbage: a collection that walks it all would be felt in the latency
    return own(settings.root / "locks" / stage, f"tapeline {stage}", wait_s=90.0 if _supervisor() is not None else 0.0)


@contextmanager
def _own_worker(settings: Config, number: int | None) -> Iterator[str]:
    """The lock of a normalize worker: the one asked for, or the first that is free. Gives the worker's name."""
    numbers = [number] if number is not None else range(1, _MOST_WORKERS + 1)
    for some in numbers:
        name = worker_name(some)
        with ExitStack() as held:
            try:
                held.enter_context(_own_stage(settings, name))
            except Busy:
                if some == numbers[-1]:
                    raise
                continue
            yield name
            return


def _loop_runner(body: Any) -> None:
    """Run a coroutine function on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(body())
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())


def _only(batch: pa.RecordBatch, symbol: str | None) -> pa.RecordBatch:
    import pyarrow.compute as pc

    return batch if symbol is None else batch.filter(pc.equal(batch["symbol"], symbol))


def _print_last(batches: list[pa.RecordBatch], count: int, json_lines: Any) -> None:
    import pyarrow as pa

    if batches:
        table = pa.Table.from_batches(batches)
        for text in json_lines(table.slice(max(0, table.num_rows - count))):
            typer.echo(text)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
