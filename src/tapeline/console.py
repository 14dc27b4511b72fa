"""The standard output, for people who may stop reading before the end."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class Output(Console):
    """The standard output. Its reader (head, less) may go before it has read all: that is no error."""

    def on_broken_pipe(self) -> None:
        """What rich calls where nobody reads any more. Raises SystemExit with status 0."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)
