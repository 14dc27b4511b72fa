"""The command that renames a symbol that was stored under a wrong name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, TableOrJson, echo, load_config, progress_bars
from tapeline.config import Config
from tapeline.errors import Busy, ConfigError
from tapeline.local.locks import own

if TYPE_CHECKING:
    from tapeline.jobs.rename import RenamedFacts, Waiting
    from tapeline.stores.renaming import Renamed, Renaming


@app.command()
def rename(
    old: Annotated[str, typer.Argument(help="The wrong name, such as AD/AEUR.")],
    new: Annotated[str, typer.Argument(help="The right name, such as ADA/EUR.")],
    provider: Annotated[str | None, typer.Option(help="The symbol's provider; if left out, the one whose symbols Tapeline splits.")] = None,
    feed: Annotated[str | None, typer.Option(help="The symbol's feed; the provider's default feed if left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be changed, and change nothing.")] = False,
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table, or json: one object a line.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """Rename a symbol that an earlier version split wrongly: its rows in every store, and its records in the ledger.

    Both names must stand for the same symbol of the exchange, and the new one must be the name that its events get today. The stores and
    the ledger must not run meanwhile; ingest and normalize may. An event that is there under both names is kept once: the row that came
    first. If the command is killed, call it again and it continues. A second call changes nothing. Status 1: rows under the old name
    still wait in the stream for a store.

    Example: `tapeline rename AD/AEUR ADA/EUR --dry-run`
    """
    from tapeline.app.ledgers import open_ledger
    from tapeline.app.stores import open_renames
    from tapeline.app.streams import open_stream_with_data
    from tapeline.app.symbol_names import names_in_force
    from tapeline.jobs.rebuild import RawRecords
    from tapeline.jobs.rename import check, waiting
    from tapeline.jobs.rename import rename as rename_symbol
    from tapeline.providers.registry import DECODERS
    from tapeline.stores.renaming import Renaming

    settings = load_config(config)
    one = Renaming(*_feed(provider, feed), old, new)
    stores = open_renames(settings)
    with ExitStack() as open_:
        stream = open_stream_with_data(settings)
        if stream is not None:
            open_.callback(stream.close)
        check(one, names_in_force(settings, stream))
        if not dry_run:
            open_.enter_context(_alone(settings))
        renamed = False
        with progress_bars("checking" if dry_run else "renaming") as progress:
            for done in rename_symbol(one, stores, open_ledger(settings), progress, dry_run=dry_run):
                renamed = True
                echo(_as_json(done) if format is TableOrJson.json else _summary(done, one, dry_run=dry_run))
        left = list(waiting(one, stores, RawRecords(stream, DECODERS))) if stream is not None else []
        for some in left:
            echo(_as_json(some) if format is TableOrJson.json else _summary(some, one, dry_run=dry_run))
    if not (renamed or left) and format is not TableOrJson.json:
        echo(f"Nothing is stored under {old}.")
    raise typer.Exit(1 if left else 0)


def _feed(provider: str | None, feed: str | None) -> tuple[str, str]:
    from tapeline.providers.registry import PROVIDERS

    whose = PROVIDERS.get(provider or next(name for name, some in PROVIDERS.items() if some.splits_names))
    if whose is None:
        raise ConfigError(f"{provider!r} is not an installed provider. Installed: {', '.join(PROVIDERS)}.")
    return whose.name, feed or whose.default_feed


@contextmanager
def _alone(settings: Config) -> Iterator[None]:
    """Hold the locks of everything that writes to the stores and the ledger. Raises Busy, which names the holder of a lock."""
    from tapeline.app.process_names import store_name

    with ExitStack() as held:
        try:
            for stage in ("run", *map(store_name, settings.stores), "ledger"):
                held.enter_context(own(settings.root / "locks" / stage, f"tapeline {stage}", by="tapeline rename"))
        except Busy as error:
            raise Busy(f"Nothing was renamed. Stop the stores and the ledger first. {error}") from None
        yield


def _as_json(one: Renamed | RenamedFacts | Waiting) -> str:
    from tapeline.jobs.rename import RenamedFacts, Waiting

    extra = {"store": "ledger"} if isinstance(one, RenamedFacts) else {}
    fields = asdict(one)
    if isinstance(one, Waiting):
        fields["waiting"] = fields.pop("rows")
    return json.dumps(extra | fields, default=str)


def _summary(one: Renamed | RenamedFacts | Waiting, renaming: Renaming, *, dry_run: bool) -> str:
    from tapeline.jobs.rename import RenamedFacts, Waiting

    become = f"would be renamed to {renaming.new}" if dry_run else f"renamed to {renaming.new}"
    if isinstance(one, Waiting):
        return (
            f"{one.store} {one.table}: {one.rows:,} rows under {renaming.old} still wait in the stream. Run the store "
            f"(`tapeline store {one.store}`), then rename again."
        )
    if isinstance(one, RenamedFacts):
        return f"ledger: {', '.join(one.channels)} {become}"
    what = "event is stored under both names" if one.duplicates == 1 else "events are stored under both names"
    there = f"; {one.duplicates:,} {what}: the later row {'would be' if dry_run else 'is'} removed"
    return f"{one.day} {one.store} {one.table}: {one.rows:,} rows {become}{there if one.duplicates else ''}"
