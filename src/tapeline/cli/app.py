"""The one command line that the commands belong to."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Market data from the providers' sockets to a stream and a lake, every event accounted for.",
    epilog="Try `tapeline demo`: the whole pipeline against local simulators, nothing to set up.",
)
