"""What reaches a terminal: the standard output, for people who may stop reading before the end, and texts that cannot command it."""

from __future__ import annotations

import os
import sys

from rich.console import Console


def printable(text: str) -> str:
    """A text from elsewhere with its control characters written out: an escape sequence in a symbol moves no cursor."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else _written(letter) for letter in text)


def _written(letter: str) -> str:
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"


class Output(Console):
    """The standard output. Its reader (head, less) may go before it has read all: that is no error."""

    def on_broken_pipe(self) -> None:
        """What rich calls where nobody reads any more. Raises SystemExit with status 0."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)
