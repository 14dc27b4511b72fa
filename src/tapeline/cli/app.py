"""The command line application, to which every command is added."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Bring market data from the providers' sockets into a stream and a lake, and account for every event.",
    epilog="Try `tapeline demo`: the whole pipeline against local simulators, nothing to set up.",
)


def _show_version(wanted: bool) -> None:
    from importlib.metadata import version

    if wanted:
        typer.echo(version("tapeline"))
        raise typer.Exit


@app.callback()
def tapeline(
    _version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Options of no command in particular."""
