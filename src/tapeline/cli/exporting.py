"""The command that exports rows as plain files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, echo, load_config, progress

if TYPE_CHECKING:
    from tapeline.jobs.export import Progress


class Form(StrEnum):
    """The formats of exported files."""

    parquet = "parquet"
    csv = "csv"
    arrow = "arrow"


class Kind(StrEnum):
    """The kind of rows to export. Trades and quotes are rows of `ticks`, bars are rows of `bars`."""

    trade = "trade"
    quote = "quote"
    bar = "bar"


@app.command()
def export(
    symbol: Annotated[str, typer.Argument(help="The canonical symbol, such as BTC/USDT or AAPL.")],
    start: Annotated[str, typer.Option(help="The first moment: ISO 8601 with zone, a date, or ns since 1970.")],
    end: Annotated[str, typer.Option(help="The end, not included.")],
    to: Annotated[Path, typer.Option(help="The folder for the files. It must be new or empty.")],
    form: Annotated[Form, typer.Option("--as", help="The format of the files.")] = Form.parquet,
    kind: Annotated[Kind | None, typer.Option(help="trade, quote or bar; trades and quotes if left out.")] = None,
    channel: Annotated[str | None, typer.Option(help="Only this channel, such as aggTrade.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    source: Annotated[str, typer.Option(help="The store to read: lake or postgresql.")] = "lake",
    config: ConfigOption = None,
) -> None:
    """Write a symbol's ticks or bars to plain files (Parquet, CSV or Arrow), with one folder for each UTC day.

    Every time is exact to the nanosecond. Memory stays bounded, however long the range. Each file of the lake is verified against its
    checksum before it is read. The folder appears only when the export is complete: an export that is killed leaves no folder.

    Example: `tapeline export BTC/USDT --start 2026-01-05 --end 2026-01-12 --to btc --as csv`
    """
    from tapeline import times
    from tapeline.app import tasks
    from tapeline.errors import WrongArgument

    start_ns, end_ns = times.parse(start, "--start"), times.parse(end, "--end")
    if start_ns > end_ns:
        raise WrongArgument(f"--start {start} is after --end {end}. Swap them: the range is start <= time < end.")
    request = tasks.ExportRequest(symbol, (start_ns, end_ns), kind.value if kind is not None else None, channel, provider, source)
    with _shown(f"exporting {symbol}", start_ns, end_ns) as report:
        done = tasks.export(load_config(config), request, to, form.value, report)
    echo(f"{done.rows:,} rows in {done.files:,} files, {done.bytes / 1e6:,.1f} MB: {done.folder}", err=True)


@contextmanager
def _shown(what: str, start_ns: int, end_ns: int) -> Iterator[Progress]:
    """A progress bar on a terminal. It shows the event time that was reached, because the number of rows is not known."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,} rows"), TimeRemainingColumn())
    with progress(*columns) as bar:
        task = bar.add_task(what, total=end_ns - start_ns, rows=0)

        def report(rows: int, ts_ns: int) -> None:
            bar.update(task, completed=ts_ns - start_ns, rows=rows)

        yield report
