"""A provider's lists of instruments: which pages to request, and which instruments a page holds. Pure: this module sends nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from tapeline.providers.events import Reject
from tapeline.providers.history import Request, each_row
from tapeline.providers.rules import LONGEST_TEXT
from tapeline.secret import Secret

#: The kind of the raw records that hold a page of a list.
LIST_PAGE: Final = "instruments"


class Instrument(NamedTuple):
    """One instrument as a list has it. The fields are the columns of `records.LISTED`, in their order."""

    symbol: str
    native: str
    id: str | None = None
    name: str | None = None
    kind: str | None = None
    base: str | None = None
    quote: str | None = None
    exchange: str | None = None
    status: str | None = None
    listed: bool = True
    tick_size: float | None = None
    lot_size: float | None = None


class ListHeader(msgspec.Struct):
    """The line before a page in the raw topic: what was requested, and whether this page completes the list."""

    market: str
    path: str
    #: The number of the page in its reading of the list, from 1. A list is complete only with all pages up to the one that is `done`.
    page: int
    done: bool


@dataclass(frozen=True, slots=True)
class ListPage:
    """The result of checking a page."""

    rows: Sequence[Instrument | Reject]
    #: The request for the next page; None if this part of the list has come to its end.
    following: Request | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """How to read a provider's lists of instruments. Pure: it makes requests and reads pages, and sends nothing."""

    #: The address that has the lists.
    url: str
    #: The total weight of requests that a minute may have.
    weight_a_minute: int
    #: Key and secret to the HTTP headers that authenticate each request.
    headers: Callable[[Secret, Secret], Mapping[str, str]]
    #: Feed to the market whose list has the feed's instruments. Several feeds may share a market. A feed without a list is left out.
    markets: Mapping[str, str]
    #: Market to the first request of each part of its list. Together the parts are the whole list.
    first: Callable[[str], Sequence[Request]]
    #: Reads a page of a market's list. Raises WrongPage that says what is wrong.
    page: Callable[[str, Request, bytes], ListPage]
    #: What to tell a user whose key is refused; empty if there is nothing special to know.
    advice: str = ""


def instruments_of(elements: Sequence[msgspec.Raw], one: Callable[[bytes], Instrument]) -> list[Instrument | Reject]:
    """The instruments of a page. `one` reads one element. An element that cannot be read becomes a reject.

    Raises ValueError if no element can be read: then the page itself is wrong."""
    return each_row(elements, lambda text: _checked(one(text)))


def _checked(instrument: Instrument) -> Instrument:
    for name, value in zip(instrument._fields, instrument, strict=True):
        if isinstance(value, str) and ("\0" in value or len(value.encode()) > LONGEST_TEXT):
            raise ValueError(f"{name} has a zero character or more than {LONGEST_TEXT} bytes")
        if isinstance(value, float) and not 0 < value < math.inf:
            raise ValueError(f"{name} is not a finite number above zero ({value})")
    if not instrument.symbol or not instrument.native:
        raise ValueError("it has no name")
    return instrument


def step(text: str | None) -> float | None:
    """A step of prices or sizes from its decimal text. None if there is no text, or if it is zero, which means that there is no rule.

    Raises ValueError if the text is not a number."""
    return float(text or 0) or None
