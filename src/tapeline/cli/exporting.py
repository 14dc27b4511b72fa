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
    import pyarrow as pa

    from tapeline.jobs.export import Progress as Told


class Form(StrEnum):
    """The formats of exported files."""

    parquet = "parquet"
    csv = "csv"
    arrow = "arrow"


class Kind(StrEnum):
    """What is exported: trades and quotes are rows of `ticks`, bars are rows of `bars`."""

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
    kind: Annotated[Kind | None, typer.Option(help="Only trades, only quotes, or bars. Trades and quotes if left out.")] = None,
    channel: Annotated[str | None, typer.Option(help="Only this channel, such as aggTrade.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    source: Annotated[str, typer.Option(help="The store to read.")] = "lake",
    config: ConfigOption = None,
) -> None:
    """Write a symbol's ticks or bars to plain files (Parquet, CSV or Arrow), with one folder for each UTC day.

    Every time is exact to the nanosecond. Memory stays bounded, however long the range. Each file of the lake is verified against its
    checksum before it is read. The folder appears only when the export is complete: an export that is killed leaves no folder.

    Example: `tapeline export BTC/USDT --start 2026-01-05 --end 2026-01-12 --to btc --as csv`
    """
    import pyarrow.compute as pc

    from tapeline import times
    from tapeline.errors import ConfigError
    from tapeline.jobs.export import export as export_rows
    from tapeline.providers.registry import CHANNELS
    from tapeline.reading import api as reading

    settings = load_config(config)
    if channel is not None:
        names = sorted({name for feeds in CHANNELS.values() for channels in feeds.values() for name in channels})
        if channel not in names:
            raise ConfigError(f"{channel!r} is not a channel of any provider. Channels: {', '.join(names)}.")
    opened = reading.open_source(source, verify=True, config=settings)
    start_ns, end_ns = times.parse(start, "--start"), times.parse(end, "--end")
    if kind is Kind.bar:
        name, result = "bars", reading.bars(symbol, start, end, provider=provider, source=opened, config=settings)
    else:
        wanted = kind.value if kind is not None else None
        name, result = "ticks", reading.ticks(symbol, start, end, provider=provider, kind=wanted, source=opened, config=settings)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in result.batches():
            yield batch if channel is None else batch.filter(pc.equal(batch["channel"], channel))

    with _shown(f"exporting {symbol}", start_ns, end_ns) as told:
        done = export_rows(result.schema, batches(), to, name, form.value, told)
    echo(f"{done.rows:,} rows in {done.files:,} files, {done.bytes / 1e6:,.1f} MB: {done.folder}", err=True)


@contextmanager
def _shown(what: str, start_ns: int, end_ns: int) -> Iterator[Told]:
    """A progress bar on a terminal. It shows the event time that was reached, because the number of rows is not known."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,} rows"), TimeRemainingColumn())
    with progress(*columns) as bar:
        task = bar.add_task(what, total=end_ns - start_ns, rows=0)

        def told(rows: int, ts_ns: int) -> None:
            bar.update(task, completed=ts_ns - start_ns, rows=rows)

        yield told
