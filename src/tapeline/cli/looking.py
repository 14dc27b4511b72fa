"""The commands that show the data, how it came there, and how the pipeline is."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapeline.cli.app import app
from tapeline.cli.terminal import (
    ConfigOption,
    Format,
    TableOrJson,
    echo,
    escape,
    load_config,
    reader_may_leave,
    stop_on_signal,
)
from tapeline.config import Config, environment, load
from tapeline.errors import ConfigError, Unavailable
from tapeline.local.console import Output

if TYPE_CHECKING:
    import pyarrow as pa


class TailTopic(StrEnum):
    """The topics that `tapeline tail` prints. All but `raw` have the name of their table."""

    raw = "raw"
    ticks = "ticks"
    bars = "bars"
    notices = "notices"
    rejected = "rejected"


@app.command()
def sql(
    query: Annotated[
        str,
        typer.Argument(
            help="A DuckDB SELECT over ticks, trades, amendments, bars, bar_revisions, suspects, notices, rejected, instruments, "
            "coverage, gaps."
        ),
    ],
    config: ConfigOption = None,
    format: Annotated[Format, typer.Option(help="table, csv, json (one object a line) or parquet (to --output or a pipe).")] = Format.table,  # noqa: A002
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of the screen.")] = None,
    allow_files: Annotated[
        bool, typer.Option("--allow-files", help="Let the query read and write other files too (read_csv, COPY, ATTACH).")
    ] = False,
) -> None:
    """Query the lake with DuckDB. The query can read nothing but the lake, unless you give --allow-files.

    Example: `tapeline sql "SELECT symbol, count(*), max(last) FROM ticks GROUP BY symbol"`
    """
    import duckdb

    from tapeline.app.ledgers import ledger_rows
    from tapeline.app.stores import lake_folder
    from tapeline.local.output import write
    from tapeline.reading.sql import connect, fence, meaning, only_reads

    settings = load_config(config)
    lake = lake_folder(settings)
    try:
        db = connect(lake, partial(ledger_rows, settings))
        if len(db.extract_statements(query)) > 1:
            raise ConfigError("The query has more than one statement. Give one statement.")
        if not allow_files:
            if not only_reads(db, query):
                raise ConfigError("`tapeline sql` only reads. Add --allow-files for a statement that writes.")
            fence(db, lake)
        result = db.sql(query)
        table = result.to_arrow_table() if result is not None else None
    except duckdb.PermissionException as error:
        raise ConfigError(f"{error}. `tapeline sql` reads only the lake. Add --allow-files to read other files.") from error
    except duckdb.Error as error:
        raise meaning(lake, error) from error
    if table is not None:
        with reader_may_leave():
            write(table, format.value, output)


@app.command()
def symbols(
    symbol: Annotated[list[str] | None, typer.Argument(help="Canonical symbols, such as BTC/USDT; all if left out.")] = None,
    at: Annotated[str | None, typer.Option(help="As the lists were at this moment: ISO 8601 with zone, a date, or ns since 1970.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    source: Annotated[str, typer.Option(help="The store to read: lake or postgresql.")] = "lake",
    config: ConfigOption = None,
    format: Annotated[Format, typer.Option(help="table, csv, json (one object a line) or parquet (to --output or a pipe).")] = Format.table,  # noqa: A002
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of the screen.")] = None,
) -> None:
    """Show the instruments that the providers list, or listed at a moment. The job `symbols` reads the lists.

    Example: `tapeline symbols AAPL --at 2026-01-05`
    """
    from tapeline.local.output import write
    from tapeline.reading.api import instruments

    found = instruments(symbol or None, at=at, provider=provider, source=source, config=load_config(config)).arrow()
    if format is Format.table:
        found = found.select(_SHOWN_OF_A_SYMBOL)
    with reader_may_leave():
        write(found, format.value, output)


#: The columns that a screen has room for.
_SHOWN_OF_A_SYMBOL = ["provider", "symbol", "kind", "exchange", "status", "listed"]


@app.command()
def tail(
    topic: Annotated[TailTopic, typer.Argument(help="The topic of the stream: raw, ticks, bars, notices or rejected.")],
    symbol: Annotated[str | None, typer.Option(help="Only this symbol (canonical, such as BTC/USDT).")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing records as they arrive, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the latest records to print.")] = 10,
    config: ConfigOption = None,
) -> None:
    """Print the latest records of a topic, one JSON object a line.

    Example: `tapeline tail ticks --symbol BTC/USDT --follow`
    """
    from tapeline.app.streams import stream_with_data
    from tapeline.local.output import json_lines
    from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC

    settings = load_config(config)
    stop = stop_on_signal()
    stream = stream_with_data(settings)
    chosen = RAW_TOPIC if topic is TailTopic.raw else next(t for t in NORMALIZED_TOPICS if t.table == topic.value)
    if symbol and "symbol" not in chosen.schema.names:
        raise ConfigError(f"{topic.value} records have no symbol. Leave out --symbol.")
    positions = stream.tail_positions(chosen, lines if symbol is None else 500_000)
    latest: list[pa.RecordBatch] = []
    while not stop.is_set():
        chunk = stream.read(chosen, positions, 4096)
        if chunk is None:
            with reader_may_leave():
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
    symbol: Annotated[list[str], typer.Option(help="The canonical symbol, such as BTC/USDT; repeatable.")],
    since: Annotated[str, typer.Option("--from", help="The first moment: ISO 8601 with zone, a date, or ns since 1970.")],
    until: Annotated[str, typer.Option("--to", help="The end, not included.")],
    into: Annotated[
        Path,
        typer.Option(help="The configuration whose stream receives the ticks. It must name another stream than the one they came from."),
    ],
    speed: Annotated[float, typer.Option(help="1: the original pace; 10: ten times as fast; 0: as fast as the stream accepts.")] = 1.0,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind of tick: trade or quote.")] = None,
    source: Annotated[str, typer.Option(help="The store to read: lake or postgresql.")] = "lake",
    config: ConfigOption = None,
) -> None:
    """Publish stored ticks to another stream, in event-time order and at the original pace.

    A trading engine or a backtest that reads a stream finds them in `market-data.normalized`. Status 130: the replay was stopped.

    Example: `tapeline replay --symbol BTC/USDT --from 2026-01-05 --to 2026-01-06 --speed 10 --into backtest.toml`
    """
    from tapeline.app.streams import open_stream
    from tapeline.reading.api import replay_batches
    from tapeline.reading.replay import publish

    settings, target = load_config(config), load(into, environment())
    if _addresses(settings) & _addresses(target):
        raise ConfigError(
            f"--into {into} names the stream that the ticks came from ({target.stream.shown}). Its readers would take them as new ticks. "
            "Use a configuration with another stream. An embedded stream needs another data_dir."
        )
    stop = stop_on_signal()
    batches = replay_batches(symbol, since, until, speed, provider=provider, kind=kind, source=source, config=settings, sleep=stop.wait)
    stream = open_stream(target)
    try:
        published = publish(batches, stream, stop, Random())
    finally:
        stream.close()
    echo(f"{published} ticks published{', then stopped' if stop.is_set() else ''}.", err=True)
    raise typer.Exit(130 if stop.is_set() else 0)


def _addresses(settings: Config) -> set[str]:
    """The addresses of the configuration's stream, without the user."""
    if settings.stream.url == "embedded:":
        return {str(settings.root)}
    hosts, _, database = settings.stream.url.partition("://")[2].rpartition("@")[2].partition("/")
    return {f"{host}/{database}" for host in hosts.split(",")}


@app.command()
def status(
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table or json.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """Show uptime, rates, backlog and the accounting equations.

    Status 1: an equation does not balance. Status 69: the stream cannot be reached. The stages and the spool are shown all the same.
    """
    from tapeline.app.process_names import stage_names
    from tapeline.app.stores import open_stores
    from tapeline.app.streams import raw_consumer_groups, stream_with_data
    from tapeline.monitor.health import snapshot
    from tapeline.monitor.terminal import tables

    settings = load_config(config)
    stream = stream_with_data(settings)
    problem: Unavailable | None = None
    try:
        stages = stage_names(settings)
        state = snapshot(settings.root, stream, open_stores(settings), raw_consumer_groups(settings), stages=stages)
    except Unavailable as error:
        problem, state = error, snapshot(settings.root, None, {}, stages=stage_names(settings))
    stream.close()
    if format is TableOrJson.json:
        echo(json.dumps(state))
    else:
        Output().print(tables(state))
    if problem is not None:
        raise problem
    raise typer.Exit(0 if all(entry["balanced"] for entry in state["equations"]) else 1)


@app.command()
def audit(
    event: Annotated[str | None, typer.Argument(help="The event's id: raw_partition-raw_offset-raw_index.")] = None,
    symbol: Annotated[str | None, typer.Option(help="Instead of an id: the canonical symbol, together with --time.")] = None,
    time_ns: Annotated[
        str | None,
        typer.Option("--time", help="With --symbol: ns since 1970, or ISO 8601 with zone. Takes the nearest tick at or before it."),
    ] = None,
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table or json.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """Trace one event: its raw frame, its connection, and its place in each topic and store.

    Example: `tapeline audit --symbol BTC/USDT --time 2026-01-05T14:30:00.123Z`
    """
    from tapeline import times
    from tapeline.app.stores import lake_folder, open_stores
    from tapeline.app.streams import stream_with_data
    from tapeline.jobs.rejects import parse_id
    from tapeline.local.output import plain
    from tapeline.reading import sql as query
    from tapeline.reading import trace as way

    settings = load_config(config)
    lake = lake_folder(settings)

    def find(table: str, condition: str, values: list[Any]) -> list[dict[str, Any]]:
        return query.find(lake, table, condition, values)

    if event is not None:
        ids = [parse_id(event)]
    elif symbol and time_ns:
        ids = way.by_symbol(find, symbol, times.parse(time_ns, "--time"))
    else:
        raise ConfigError("Name the event: give its id, or --symbol and --time.")
    if not ids:
        raise ConfigError(f"The lake has no tick of {symbol} at or before {time_ns}. Use a later --time.")
    stream, stores = stream_with_data(settings), open_stores(settings)
    for one in ids:
        steps = list(way.trace(stream, stores, find, one))
        if not any(step.details for step in steps):
            raise ConfigError(f"The event {'-'.join(map(str, one))} is neither in the stream nor in the lake. Check the id.")
        if format is TableOrJson.json:
            shown = [{"where": step.where, "found": step.found, "record": plain(step.details)} for step in steps]
            echo(json.dumps({"id": "-".join(map(str, one)), "steps": shown}))
        else:
            Output().print(way.picture(one, steps))
    stream.close()


@app.command()
def check(config: ConfigOption = None) -> None:
    """Check that the configuration is valid, and that everything it names can be reached. Status 0: both are true."""
    from itertools import chain

    from tapeline.app.preflight import checkup
    from tapeline.orchestration.preflight import checks

    settings = load_config(config)
    failed = 0
    console = Output()
    for result in chain(checkup(settings, environment()), checks(settings)):
        mark = "[green]ok[/]  " if result.status == 0 else "[red]FAIL[/]"
        console.print(f"{mark} {escape(result.what)}: {escape(result.found)}", highlight=False, soft_wrap=True)
        failed = failed or result.status
    raise typer.Exit(failed)


def _only(batch: pa.RecordBatch, symbol: str | None) -> pa.RecordBatch:
    import pyarrow.compute as pc

    return batch if symbol is None else batch.filter(pc.equal(batch["symbol"], symbol))


def _print_last(batches: list[pa.RecordBatch], count: int, json_lines: Any) -> None:
    import pyarrow as pa

    if batches:
        table = pa.Table.from_batches(batches)
        for text in json_lines(table.slice(max(0, table.num_rows - count))):
            echo(text)
