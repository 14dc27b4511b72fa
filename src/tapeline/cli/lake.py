"""The commands that maintain the lake."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, TableOrJson, echo, load_config, progress_bars
from tapeline.errors import ConfigError

if TYPE_CHECKING:
    from tapeline.stores.lake.checking import Checked
    from tapeline.stores.lake.compacting import Compacted
    from tapeline.stores.lake.repairing import Repaired
    from tapeline.stores.lake.retention import Pruned, Vacuumed


lake_app = typer.Typer(no_args_is_help=True, help="Maintain the lake: merge files, remove old days and unused files, check and repair.")
app.add_typer(lake_app, name="lake")

FormatOption = Annotated[TableOrJson, typer.Option(help="table, or json: one object a line.")]


@app.command()
def compact(
    days: Annotated[list[str], typer.Argument(help="The UTC days, such as 2026-01-05.", metavar="DAY...")],
    config: ConfigOption = None,
    format: FormatOption = TableOrJson.table,  # noqa: A002
) -> None:
    """Merge the many small files of a UTC day in the lake into a few sorted ones. The rows do not change.

    Before one commit replaces the old files, the command compares the new files with them: the row count, and checksums of each column,
    of the ids and of whole rows. Readers see either the old files or the new ones. A compaction that is killed changes nothing. A second
    one finds nothing to do.

    Example: `tapeline compact 2026-01-05 2026-01-06`
    """
    from tapeline.app import tasks

    settings = load_config(config)
    for day in [_day(text) for text in days]:
        with progress_bars(f"compacting {day}") as progress:
            done = tasks.compact(settings, day, progress)
        for one in done:
            echo(_as_json(one) if format is TableOrJson.json else _compacted(one))
        if not done:
            echo(f"{day}: the lake has no data of this day.", err=True)


@lake_app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")] = False,
    config: ConfigOption = None,
    format: FormatOption = TableOrJson.table,  # noqa: A002
) -> None:
    """Remove the days beyond the limits `keep_days` and `keep_gb` of the lake's [[stores]], oldest first. Today (UTC) is never removed.

    `tapeline store` does the same once an hour. A call that is killed or repeated removes those days and no others.

    Example: `tapeline lake prune --dry-run`
    """
    from tapeline.app import tasks
    from tapeline.app.stores import lake_keep
    from tapeline.stores.lake.retention import Keep

    settings = load_config(config)
    done = tasks.prune(settings, datetime.now(UTC).date(), dry_run=dry_run)
    if lake_keep(settings) == Keep():
        echo("The lake keeps everything: neither keep_days nor keep_gb is set in its [[stores]].", err=True)
    for one in done:
        echo(_as_json(one) if format is TableOrJson.json else _pruned(one, dry_run))
    if not done and format is not TableOrJson.json:
        echo("Nothing to remove.")


@lake_app.command()
def tidy(config: ConfigOption = None, format: FormatOption = TableOrJson.table) -> None:  # noqa: A002
    """Compact the days that are over, and merge the many small files of the other days.

    A day is over one hour after it ends in UTC, if nothing of it has arrived for half an hour. `tapeline store` does the same by itself,
    unless its [[stores]] has `compact = false`. If the command is killed, call it again: it continues with the days that are left.

    Example: `tapeline lake tidy`
    """
    from tapeline.app import tasks

    def report(one: Compacted) -> None:
        echo(_as_json(one) if format is TableOrJson.json else _compacted(one))

    tasks.tidy(load_config(config), datetime.now(UTC), report)


@lake_app.command()
def vacuum(config: ConfigOption = None, format: FormatOption = TableOrJson.table) -> None:  # noqa: A002
    """Delete the files that the tables' logs no longer name, and the old entries of the logs.

    This includes the files that a killed process left behind. Files that a store may be about to commit stay.

    Example: `tapeline lake vacuum`
    """
    from tapeline.app import tasks

    for one in tasks.vacuum(load_config(config)):
        echo(_as_json(one) if format is TableOrJson.json else _vacuumed(one))


@lake_app.command()
def check(
    day: Annotated[str | None, typer.Argument(help="The UTC day, such as 2026-01-05; every day if left out.")] = None,
    config: ConfigOption = None,
    format: FormatOption = TableOrJson.table,  # noqa: A002
) -> None:
    """Check the lake against its own log: the bytes of every file, and the day, id and place in the raw topic of every row.

    The command changes nothing. Status 0: there are no problems. Status 1: problems were found, and are named. `tapeline lake repair`
    rebuilds damaged files.

    Example: `tapeline lake check 2026-01-05`
    """
    from tapeline.app import tasks

    settings, chosen = load_config(config), _day(day) if day is not None else None
    with progress_bars("checking") as progress:
        done = tasks.check_lake(settings, chosen, progress)
    for one in done:
        echo(_as_json(one) if format is TableOrJson.json else _checked(one))
    raise typer.Exit(1 if any(one.findings for one in done) else 0)


@lake_app.command()
def repair(
    drop: Annotated[bool, typer.Option("--drop", help="Give up the rows whose raw records are gone. The command prints how many.")] = False,
    config: ConfigOption = None,
    format: FormatOption = TableOrJson.table,  # noqa: A002
) -> None:
    """Rebuild damaged files from the raw topic, as long as it still holds their records.

    The current normalizer makes the rows, their count is compared with the log, and one commit puts them in place. If the counts differ,
    the file stays as it is. Status 0: nothing is damaged any more. Status 1: something is still damaged, or rows were given up.

    Example: `tapeline lake repair`
    """
    from tapeline.app import tasks

    settings = load_config(config)
    whole, damaged = True, False
    with progress_bars("checking") as progress:
        for one in tasks.repair_lake(settings, progress, drop=drop):
            echo(_as_json(one) if format is TableOrJson.json else _repaired(one))
            whole, damaged = whole and not one.problem and not one.lost, True
    if not damaged and format is not TableOrJson.json:
        echo("Nothing is damaged.")
    raise typer.Exit(0 if whole else 1)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a day. Write it like 2026-01-05.") from None


def _as_json(one: Compacted | Pruned | Vacuumed | Checked | Repaired) -> str:
    fields = asdict(one)
    return json.dumps({name: fields[name] for name in sorted(fields, key=lambda name: name != "day")}, default=str)


def _pruned(one: Pruned, dry_run: bool) -> str:
    verb = "would be removed" if dry_run else "removed"
    return f"{one.day} {one.table}: {one.rows:,} rows in {one.files:,} files, {one.bytes / 1e6:,.1f} MB, {verb}"


def _vacuumed(one: Vacuumed) -> str:
    return f"{one.table}: {one.files:,} files, {one.bytes / 1e6:,.1f} MB, and {one.log_entries:,} old entries of the log are deleted"


def _checked(one: Checked) -> str:
    gone = [f"{count:,} {what}" for count, what in ((one.removed, "removed by retention"), (one.lost, "given up")) if count]
    rows = f"{one.rows:,} rows in {one.files:,} files, {one.bytes / 1e6:,.1f} MB" + (f" ({', '.join(gone)})" if gone else "")
    lines: Sequence[str] = [f"{one.table}: {rows}: {'no problems' if not one.findings else f'{len(one.findings)} problems'}"]
    return "\n".join([*lines, *(f"  {each.problem}: {each.file or each.day or one.table} {each.detail}" for each in one.findings)])


def _repaired(one: Repaired) -> str:
    what = f"{one.day} {one.table}: {', '.join(Path(file).name for file in one.files)}"
    if one.problem:
        return f"{what}: not changed: {one.problem}"
    return f"{what}: {one.found:,} rows rebuilt" + (f", {one.lost:,} rows lost for good" if one.lost else "")


def _compacted(one: Compacted) -> str:
    if not one.changed:
        return f"{one.day} {one.table}: already compacted" if one.files_after else f"{one.day} {one.table}: no data"
    files = f"{one.files_before:,} files, {one.bytes_before / 1e6:,.1f} MB, are now {one.files_after:,}, {one.bytes_after / 1e6:,.1f} MB"
    return f"{one.day} {one.table}: {one.rows:,} rows in {files}"
