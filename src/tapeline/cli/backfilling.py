"""The commands that read a provider's history: `backfill` and `reconcile`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from tapeline import times
from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, TableOrJson, echo, load_config, midnight_ns, progress, stop_on_signal
from tapeline.errors import ConfigError
from tapeline.local.console import Output
from tapeline.providers.registry import names
from tapeline.records import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapeline.app.tasks import Backfilled, Planned
    from tapeline.jobs.backfill.backfill import Job, State
    from tapeline.jobs.reconcile import Reconciled

_DAY_NS = 86_400 * NS_PER_S


class Origin(StrEnum):
    """Where a backfill reads the history: over REST, or from the provider's files of whole days and months."""

    rest = "rest"
    files = "files"


@app.command()
def backfill(
    start: Annotated[str, typer.Option(help="The first moment: a date (its midnight in UTC), ISO 8601 with zone, or ns since 1970.")],
    end: Annotated[str | None, typer.Option(help="The end, not included; the start of today (UTC) if left out.")] = None,
    provider: Annotated[str | None, typer.Option(help=f"{', '.join(names())}; every provider of the configuration if left out.")] = None,
    symbols: Annotated[
        str | None, typer.Option(help="Comma-separated, canonical or the provider's own; the configured ones if left out.")
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(help="Comma-separated: trades, quotes, bars, or the provider's own names; the configured ones if left out."),
    ] = None,
    origin: Annotated[
        Origin, typer.Option("--from", help="rest, or files: the provider's files of whole days and months, which suit long spans.")
    ] = Origin.rest,
    workers: Annotated[
        int, typer.Option(min=1, max=32, help="How many requests run at the same time. They keep to the provider's limits.")
    ] = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be requested, and request nothing.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Fetch again what an earlier call has already fetched.")] = False,
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table, or json: one object for each feed.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """Bring a provider's history into the stream. From there it is normalized, stored and accounted for like live data.

    If the command is killed or stopped, call it again: it continues at the page where it was. No page comes twice, and none is missed.
    An event that is already stored is kept once. `tapeline run` (or the stages) must be running, or be started afterwards. Status 1:
    something could not be fetched. Status 130: the command was stopped.

    Example: `tapeline backfill --provider binance --symbols BTCUSDT,ETHUSDT --channels trades --start 2026-01-05 --end 2026-01-06`
    """
    from tapeline.app import tasks
    from tapeline.app.history_jobs import Wanted

    settings, stop = load_config(config), stop_on_signal()
    begin_ns, end_ns = _moments(start, end)
    request = Wanted(provider, _listed(symbols), _listed(channels), files=origin is Origin.files)
    if dry_run:
        _show(tasks.plan_backfill(settings, request, (begin_ns, end_ns)), format)
        return
    failed = False
    bar = partial(_bar, format)
    for done in tasks.backfill(settings, request, (begin_ns, end_ns), stop, workers=workers, again=again, watch=bar):
        failed = failed or bool(done.state.failed)
        _report(done, format)
    if stop.is_set():
        echo("Stopped. The fetched data is in the stream. Run the same command again to continue.", err=True)
        raise typer.Exit(130)
    raise typer.Exit(1 if failed else 0)


def _report(done: Backfilled, format: TableOrJson) -> None:  # noqa: A002
    from tapeline.jobs.backfill.backfill import encoded

    echo(encoded(done.state).decode() if format is TableOrJson.json else _summary(done.job, done.state))
    for span, error in done.state.failed:
        echo(f"{span.symbol} {span.channel} from {times.text(span.start_ns)}: {error}", err=True)


@app.command()
def reconcile(
    day: Annotated[str, typer.Argument(help="The UTC day, such as 2026-01-05.")],
    provider: Annotated[str | None, typer.Option(help="Only this provider; every provider of the configuration if left out.")] = None,
    symbols: Annotated[
        str | None, typer.Option(help="Comma-separated, canonical or the provider's own; the configured ones if left out.")
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(help="Comma-separated: trades, quotes, bars, or the provider's own names; the configured ones if left out."),
    ] = None,
    source: Annotated[str, typer.Option(help="The store to compare: lake or postgresql.")] = "lake",
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table, or json: one object for each symbol and channel.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """Compare a day in a store with the provider's history of that day: counts, volume, and each event.

    Events that the store lacks go into the stream. The ledger then records the day as `reconciled`, unless the history lacks stored events,
    contradicts them or could not be read. Status 0: they are equal. Status 1: they differed, or something could not be compared. The
    command compares one symbol and channel at a time; the rows of one must fit in memory.

    Example: `tapeline reconcile 2026-01-05 --channels trades`
    """
    from tapeline.app import tasks
    from tapeline.app.history_jobs import Wanted

    settings, stop = load_config(config), stop_on_signal()
    start_ns = midnight_ns(day)
    end_ns = min(start_ns + _DAY_NS, time.time_ns())
    if end_ns <= start_ns:
        raise ConfigError(f"{day} (UTC) has not begun. Use an earlier day.")
    differ = False
    request = Wanted(provider, _listed(symbols), _listed(channels))
    for result in tasks.reconcile(settings, request, (start_ns, end_ns), stop, source):
        if isinstance(result, tasks.Failed):
            differ = True
            echo(f"{result.key.symbol} {result.key.channel}: {result.error}", err=True)
            continue
        differ = differ or not result.equal
        echo(json.dumps({**result.key._asdict(), **_numbers(result)}) if format is TableOrJson.json else _compared(result))
    raise typer.Exit(1 if differ else 0)


def _numbers(result: Reconciled) -> dict[str, int | float | None]:
    return {name: value for name, value in asdict(result).items() if name != "key"}


def _compared(result: Reconciled) -> str:
    what = f"{result.key.symbol} {result.key.channel}: {result.stored:,} stored, {result.in_history:,} in the history"
    if result.equal:
        return f"{what}: equal"
    extra = f"; {result.only_stored:,} are only in the store" if result.only_stored else ""
    missed = f"; {result.only_in_history:,} were missing and were sent through the stream" if result.only_in_history else ""
    unread = f"; {result.rejected:,} could not be read: see `tapeline rejected list`" if result.rejected else ""
    differ = f"; {result.differing:,} differ in price, size or side" if result.differing else ""
    doubt = "" if result.claimed else "; the ledger does not use this history as evidence"
    return f"{what}{missed}{extra}{differ}{unread}{doubt}"


def _moments(start: str, end: str | None) -> tuple[int, int]:
    now_ns = time.time_ns()
    start_ns = times.parse(start, "--start")
    end_ns = now_ns - now_ns % _DAY_NS if end is None else times.parse(end, "--end")
    if end_ns > now_ns:
        raise ConfigError(f"--end {end} is in the future: the history up to then is not complete yet. Use a moment in the past.")
    if start_ns >= end_ns:
        raise ConfigError(
            f"--start {times.text(start_ns)} is not before --end {times.text(end_ns)} (UTC). Use an earlier --start or a later --end."
        )
    return start_ns, end_ns


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _show(planned: Sequence[Planned], format: TableOrJson) -> None:  # noqa: A002
    if format is TableOrJson.json:
        for one in planned:
            echo(json.dumps({"provider": one.job.provider, "feed": one.job.feed, "requests": list(one.requests)}))
        return
    for one in planned:
        job, rows = one.job, one.requests
        table = Table(title=f"{job.provider} {job.feed}", title_justify="left")
        for column in ("symbol", "channel", "from", "to", "parts", "begins with"):
            table.add_column(column, overflow="fold")
        for row in rows:
            moments = (times.text(int(row[name])) for name in ("start_ns", "end_ns"))
            table.add_row(str(row["symbol"]), str(row["channel"]), *moments, str(row["parts"]), str(row["first_request"]))
        Output().print(table)


@contextmanager
def _bar(format: TableOrJson, job: Job) -> Iterator[Callable[[State], None]]:  # noqa: A002
    """A progress bar on a terminal."""
    what = TextColumn(f"{job.provider} {job.feed} {{task.fields[events]:,}} events on {{task.fields[pages]:,}} pages")
    columns = (what, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with progress(*columns, shown=format is not TableOrJson.json) as bar:
        task = bar.add_task("", total=1.0, events=0, pages=0)
        yield lambda state: bar.update(task, completed=state.share, events=state.events, pages=state.pages)


def _summary(job: Job, state: State) -> str:
    left = state.spans - state.spans_done
    what = f"{job.provider} {job.feed}: {state.events:,} events on {state.pages:,} pages are in the stream"
    return f"{what}; {left} of {state.spans} parts are left." if left else f"{what}; all {state.spans} parts are fetched."
