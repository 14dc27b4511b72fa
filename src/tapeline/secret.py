"""A secret: checked where it comes in, revealed where it is used, and shown nowhere else."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

from tapeline.errors import ConfigError
from tapeline.local.console import printable

_HIDDEN: Final = "***"
#: A shorter text stands in many that hold no secret.
_SHORTEST: Final = 4
#: As a line of an environment file has it.
_ASSIGNMENT: Final = re.compile(r"(export\s+)?[A-Z][A-Z0-9_]*\s*=")


class Secret:
    """A text that does not print itself: `str`, `repr` and f-strings of it give asterisks."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """The text, for the one who has to be told it."""
        return self._text

    def taken_out(self, text: str) -> str:
        """A text without the secret, in whatever form an address, JSON or Python would have it there."""
        if not self._text:
            return text
        for form in sorted(
            {self._text, quote(self._text, safe=""), quote(self._text), quote_plus(self._text), json.dumps(self._text)[1:-1]},
            key=len,
            reverse=True,
        ):
            text = text.replace(form, _HIDDEN)
        return text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return _HIDDEN if self._text else "''"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)


#: Where there is none.
NO_SECRET: Final = Secret()


def checked(what: str, text: str, *, key: bool) -> Secret:
    """A secret without the blanks around it. `what` names where it comes from; `key`: it goes into a header, so it is plain ASCII.

    Raises ConfigError that says what is wrong with it, and never what it is."""
    text = text.strip()
    problem = ""
    if "\ufeff" in text:
        problem = "has a byte order mark in it: save it without one"
    elif any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        problem = "has a line end or another control character in its middle: it is one line"
    elif key and not text.isascii():
        problem = "has letters that are not ASCII"
    elif key and " " in text:
        problem = "has a blank in its middle"
    elif key and len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        problem = "stands in quotation marks: leave them out"
    elif key and _ASSIGNMENT.match(text):
        problem = "has the form NAME=value: leave out the name"
    if problem:
        raise ConfigError(f"{what} {problem}. Its text is not shown here.")
    return Secret(text)


class Guard(logging.Filter):
    """Takes every known secret out of what goes through it: log lines, with what libraries say in them, and errors.

    Control characters are written out: what a provider says moves no cursor."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        super().__init__()
        self._secrets: list[Secret] = []
        self.learn(secrets)

    def learn(self, secrets: Iterable[Secret]) -> None:
        self._secrets += [secret for secret in secrets if len(secret.reveal()) >= _SHORTEST]

    def cleaned(self, text: str) -> str:
        for secret in self._secrets:
            text = secret.taken_out(text)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        clean = printable(self.cleaned(said))
        if clean != said:
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            record.exc_text = self.cleaned(logging.Formatter().formatException(record.exc_info))
        return True
