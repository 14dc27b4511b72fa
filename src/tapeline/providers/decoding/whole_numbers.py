"""Whole numbers as providers write them: `65.0` and `8.13548e+8` are whole too, and exact however long they are.

JSON has one kind of number. A decoder that wants an integer takes digits alone, so a text that it refuses is tried once more with every
number that has no fraction written as digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Final, TypeVar

import msgspec

_T = TypeVar("_T")
#: Texts, which stay as they are, and numbers.
_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?', re.DOTALL)
_NUMBER: Final = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
#: More digits than 64 bits hold.
_MOST_DIGITS: Final = 20


def reading(decode: Callable[[bytes], _T]) -> Callable[[bytes], _T]:
    """A decoder of JSON that takes whole numbers however they are written. Raises what `decode` raises."""

    def read(text: bytes) -> _T:
        try:
            return decode(text)
        except msgspec.ValidationError:
            written = _TOKENS.sub(lambda found: in_digits(found[0]), bytes(text))
            if written == bytes(text):
                raise
        return decode(written)

    return read


def in_digits(token: bytes) -> bytes:
    """A number without a fraction in digits alone; anything else as it is."""
    if token.isdigit() or not _NUMBER.fullmatch(token):
        return token
    value = Decimal(token.decode())
    if value.adjusted() >= _MOST_DIGITS or value != value.to_integral_value() or (not value and token.startswith(b"-")):
        return token
    return str(int(value)).encode()


def whole(text: str) -> int:
    """The whole number that a text means. Raises ValueError for what is none, or does not fit 64 bits."""
    number = int(in_digits(text.encode()))
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{text} does not fit 64 bits")
    return number
