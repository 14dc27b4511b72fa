"""Reads whole numbers in every notation that providers use, such as `65.0` and `8.13548e+8`, and keeps every digit.

JSON has only one type of number, but a decoder for an integer accepts digits only. If it refuses a text, the text is decoded once more
with every number that has no fraction rewritten as digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Final, TypeVar

import msgspec

_T = TypeVar("_T")
#: JSON strings, which stay as they are, and numbers.
_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?', re.DOTALL)
_NUMBER: Final = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
#: A number of more digits than this does not fit 64 bits.
_MOST_DIGITS: Final = 20


def reading(decode: Callable[[bytes], _T]) -> Callable[[bytes], _T]:
    """Wrap a JSON decoder so that it accepts whole numbers in every notation. The wrapped decoder raises what `decode` raises."""

    def read(text: bytes) -> _T:
        try:
            return decode(text)
        except msgspec.ValidationError:
            written = _TOKENS.sub(lambda match: in_digits(match[0]), bytes(text))
            if written == bytes(text):
                raise
        return decode(written)

    return read


def in_digits(token: bytes) -> bytes:
    """A number without a fraction, rewritten as digits only; any other token unchanged."""
    if token.isdigit() or not _NUMBER.fullmatch(token):
        return token
    value = Decimal(token.decode())
    if value.adjusted() >= _MOST_DIGITS or value != value.to_integral_value() or (not value and token.startswith(b"-")):
        return token
    return str(int(value)).encode()


def whole(text: str) -> int:
    """The whole number that a text stands for. Raises ValueError if the text is not a whole number or does not fit 64 bits."""
    number = int(in_digits(text.encode()))
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{text} does not fit 64 bits")
    return number
