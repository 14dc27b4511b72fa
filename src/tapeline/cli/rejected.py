"""The commands for rejected events: those that could not be read."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, Format, echo, load_config, reader_may_leave
from tapeline.config import Config
from tapeline.errors import ConfigError

if TYPE_CHECKING:
    from tapeline.jobs.rejects import Rejected, Table

rejected_app = typer.Typer(no_args_is_help=True, help="List, show and retry the events that could not be read.")


app.add_typer(rejected_app, name="rejected")


ProviderOption = Annotated[str | None, typer.Option(help="Only events of this provider.")]


ReasonOption = Annotated[str | None, typer.Option(help="Only events whose reason contains this text.")]


@rejected_app.command("list")
def rejected_list(
    provider: ProviderOption = None,
    reason: ReasonOption = None,
    everything: Annotated[bool, typer.Option("--all", help="List retried events too.")] = False,
    config: ConfigOption = None,
    format: Annotated[Format, typer.Option(help="table, csv, json or parquet.")] = Format.table,  # noqa: A002
) -> None:
    """List the events that were rejected and not retried: id, time, source and reason.

    Example: `tapeline rejected list --reason price`
    """
    import datetime

    import pyarrow as pa

    from tapeline.app.streams import stream_with_data
    from tapeline.jobs.rejects import rejected
    from tapeline.local.output import write

    settings = load_config(config)
    stream = stream_with_data(settings)
    wanted = (one for one in rejected(stream, _lake_table(settings)) if _wanted(one, provider, reason) and (everything or not one.retried))
    events = sorted((replace(one, payload=b"") for one in wanted), key=lambda one: (one.received_ns, one.id))
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
        for one in events
    ]
    if not rows and format is Format.table:
        echo("No rejected events." if provider is None and reason is None else "No matching rejected events.")
        return
    with reader_may_leave():
        write(pa.Table.from_pylist(rows, schema), format.value, None)


@rejected_app.command("show")
def rejected_show(
    event: Annotated[str, typer.Argument(help="The id, as `rejected list` shows it.")],
    config: ConfigOption = None,
) -> None:
    """Show one rejected event: the reason on stderr, and its original bytes on stdout."""
    from tapeline.app.streams import stream_with_data
    from tapeline.jobs.rejects import parse_id, rejected

    settings = load_config(config)
    wanted = parse_id(event)
    stream = stream_with_data(settings)
    reject = next((one for one in rejected(stream, _lake_table(settings)) if one.id == wanted), None)
    stream.close()
    if reject is None:
        raise ConfigError(f"No rejected event has the id {event}. `tapeline rejected list --all` lists them.")
    echo(f"{reject.provider}/{reject.feed}, connection {reject.connection}, received_ns {reject.received_ns}", err=True)
    echo(f"reason: {reject.reason}{' (retried)' if reject.retried else ''}", err=True)
    sys.stdout.buffer.write(reject.payload + b"\n")


@rejected_app.command("retry")
def rejected_retry(
    events: Annotated[list[str] | None, typer.Argument(help="The ids. Without ids, choose with --provider, --reason or --all.")] = None,
    provider: ProviderOption = None,
    reason: ReasonOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every event that was not retried yet.")] = False,
    config: ConfigOption = None,
) -> None:
    """Send rejected events through the current normalizer again. Each is sent exactly once, however often you call the command.

    An event that is rejected again becomes a new entry. Status 75: another retry runs.

    Example: `tapeline rejected retry --reason "unknown channel"`
    """
    from tapeline.app.streams import stream_with_data
    from tapeline.jobs.rejects import parse_id, retry

    settings = load_config(config)
    ids = {parse_id(event) for event in events or ()}
    if not (ids or provider or reason or everything):
        raise ConfigError("Choose the events: give ids, --provider, --reason or --all.")
    stream = stream_with_data(settings)
    sent = 0
    for name in retry(stream, _lake_table(settings), lambda one: _wanted(one, provider, reason), ids):
        echo(name)
        sent += 1
    stream.close()
    echo(f"{sent} events go through the normalizer again. `tapeline audit ID` shows the result for one event.", err=True)


def _wanted(one: Rejected, provider: str | None, reason: str | None) -> bool:
    return (provider is None or one.provider == provider) and (reason is None or reason in one.reason)


def _lake_table(settings: Config) -> Table:
    """The rows of a lake's table, for events that the stream no longer holds."""
    from tapeline.app.stores import lake_folder
    from tapeline.reading import sql as query

    return lambda table: query.each(lake_folder(settings), table)
