"""Output to a terminal: texts without control characters, and a standard output that its reader may close early."""

from __future__ import annotations

import os
import sys

from rich.console import Console


def printable(text: str) -> str:
    """A text with its control characters written out, except line ends and tabs.

    So an escape sequence in a provider's text cannot move the cursor."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else _written(letter) for letter in text)


def _written(letter: str) -> str:
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"


class Output(Console):
    """The standard output. It is no error if its reader (head, less) closes it before the end."""

    def on_broken_pipe(self) -> None:
        """Called by rich when the reader has closed the output. Raises SystemExit with status 0."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)
