"""Secrets: a secret is checked when it is read, revealed only where it is used, and never shown."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus, unquote

from tapeline.errors import ConfigError
from tapeline.local.console import printable

_HIDDEN: Final = "***"
#: `Guard` ignores shorter secrets, because such a short text also occurs in texts without a secret.
_SHORTEST: Final = 4
#: The form of a line in an environment file, such as `export NAME=value`.
_ASSIGNMENT: Final = re.compile(r"(export\s+)?[A-Z][A-Z0-9_]*\s*=")


#: The password in `://user:password@host`, and in `?password=...`.
_USERINFO: Final = re.compile(r"://[^:/@]*:(.*)@")
_PASSWORD_FIELD: Final = re.compile(r"[?&;\s](?:ssl)?(?:password|passwd|pwd|secret|token|api_?key)=([^&;\s]+)", re.IGNORECASE)


def without_password(url: str) -> str:
    """An address without its password, as it may be shown."""
    return _PASSWORD_FIELD.sub(lambda match: match[0].replace(match[1], "***"), re.sub(r"(://[^:/@]*):.*@", r"\1@", url))


def passwords_in(url: str) -> list[str]:
    """The passwords that an address holds, as they are used."""
    return [unquote(part) for group in (_USERINFO, _PASSWORD_FIELD) for part in group.findall(url)]


class Secret:
    """A text that is never printed: `str`, `repr` and f-strings show asterisks in its place."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret text. Call this only where the text is sent or used."""
        return self._text

    def taken_out(self, text: str) -> str:
        """`text` with the secret replaced by asterisks. It is also found in the forms that it has in an address or in JSON."""
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


#: The empty secret: there is none.
NO_SECRET: Final = Secret()


def checked(what: str, text: str, *, key: bool) -> Secret:
    """Check a secret and remove the blanks around it.

    `what` names the secret's source in messages. With `key`, the secret goes into a header, so it must be plain ASCII without blanks,
    quotation marks around it or `NAME=` before it. Raises ConfigError, which says what is wrong but never shows the text."""
    text = text.strip()
    problem = ""
    if "\ufeff" in text:
        problem = "contains a byte order mark. Save it without one"
    elif any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        problem = "contains a line end or another control character. Write it on one line"
    elif key and not text.isascii():
        problem = "contains characters that are not ASCII"
    elif key and " " in text:
        problem = "contains a space"
    elif key and len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        problem = "is in quotation marks. Remove them"
    elif key and _ASSIGNMENT.match(text):
        problem = "has the form NAME=value. Write only the value"
    if problem:
        raise ConfigError(f"{what} {problem}. Its text is not shown here.")
    return Secret(text)


class Guard(logging.Filter):
    """A log filter that replaces every known secret by asterisks, in log lines (those of libraries too) and in errors.

    It also writes out control characters, so that a provider's text cannot move the cursor."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        super().__init__()
        self._secrets: list[Secret] = []
        self.learn(secrets)

    def learn(self, secrets: Iterable[Secret]) -> None:
        """Hide these secrets too from now on. Secrets of fewer than four characters are ignored."""
        self._secrets += [secret for secret in secrets if len(secret.reveal()) >= _SHORTEST]
        self._secrets.sort(key=lambda secret: -len(secret.reveal()))  # one may be the beginning of another

    def cleaned(self, text: str) -> str:
        """Return the text with every known secret replaced by asterisks. Control characters stay as they are."""
        for secret in self._secrets:
            text = secret.taken_out(text)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the record's message and traceback in place. Return True always: no record is dropped."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):  # a library logs with arguments that do not fit its text: that must not end the caller
            message, record.args = f"{record.msg} {record.args!r}", None
            record.msg = printable(self.cleaned(message))
        clean = printable(self.cleaned(message))
        if clean != message:
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:  # another handler may have written it
            record.exc_text = self.cleaned(record.exc_text)
        if record.stack_info:
            record.stack_info = self.cleaned(record.stack_info)
        return True
