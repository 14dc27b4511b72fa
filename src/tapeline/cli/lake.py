"""The commands for the lake's own life."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, Format, load_config
from tapeline.errors import ConfigError

if TYPE_CHECKING:
    from tapeline.stores.lake_sealing import Progress as Told
    from tapeline.stores.lake_sealing import Sealed


@app.command()
def seal(
    days: Annotated[list[str], typer.Argument(help="UTC days, such as 2026-01-05.", metavar="DAY...")],
    config: ConfigOption = None,
    format: Annotated[Format, typer.Option(help="table, or json: an object a line.")] = Format.table,  # noqa: A002
) -> None:
    """Merge a day's many small files in the lake into a few sorted ones; each row stays as it is.

    What is written is compared with what was there before one commit swaps them: row count, a checksum of each column, of the ids and of
    whole rows. Readers see the old files or the new ones; a seal that is killed changed nothing; a second one finds nothing to do.

    Example: `tapeline seal 2026-01-05 2026-01-06`
    """
    from tapeline import wiring
    from tapeline.stores.lake_sealing import seal as seal_day

    settings = load_config(config)
    chosen = [_day(text) for text in days]
    root = wiring.lake_folder(settings)
    if not root.exists():
        raise ConfigError(f"There is no lake at {root} yet. Start with `tapeline run`, or name another --config.")
    for day in chosen:
        with _shown(f"sealing {day}") as told:
            done = seal_day(root, day, told)
        for one in done:
            typer.echo(_as_json(one) if format is Format.json else _in_words(one))
        if not done:
            typer.echo(f"{day}: the lake holds nothing of it.", err=True)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no day: {error}. Write it such as 2026-01-05.") from None


def _as_json(one: Sealed) -> str:
    return json.dumps({"day": str(one.day)} | {name: value for name, value in asdict(one).items() if name != "day"})


def _in_words(one: Sealed) -> str:
    if not one.changed:
        return f"{one.day} {one.table}: sealed already" if one.files_after else f"{one.day} {one.table}: nothing there"
    files = f"{one.files_before:,} files, {one.bytes_before / 1e6:,.1f} MB, are now {one.files_after:,}, {one.bytes_after / 1e6:,.1f} MB"
    return f"{one.day} {one.table}: {one.rows:,} rows in {files}"


@contextmanager
def _shown(what: str) -> Iterator[Told]:
    """A progress bar for each table, on a terminal."""
    rows = TextColumn("{task.completed:,} of {task.total:,} rows")
    columns = (TextColumn("{task.description}"), BarColumn(), rows, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def told(table: str, done: int, rows: int) -> None:
            if table not in tasks:
                tasks[table] = bar.add_task(f"{what} {table}", total=rows)
            bar.update(tasks[table], completed=done)

        yield told
