"""The command line application, to which every command is added."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Bring market data from the providers' sockets into a stream and a lake, and account for every event.",
    epilog="Try `tapeline demo`: the whole pipeline against local simulators, nothing to set up.",
)
