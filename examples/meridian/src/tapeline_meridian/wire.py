"""What Meridian sends: lines of cells between semicolons, several to a frame.

    deal;XAU-CHF;817819200.123456;000A3F;1893.25;0.75;S
    book;XAU-CHF;817819200.123789;000B11;1893.20;10;1893.30;4

A time is seconds since 2000-01-01 UTC, with six places. A number has six places to the base of 36, and no symbol's deals leave one out;
of the book only every change of the best price has one. `S` and `B`: who dealt sold or bought. A size is in troy ounces.
"""

from __future__ import annotations

from typing import NamedTuple

#: 2000-01-01T00:00Z in ns since 1970.
EPOCH_NS = 946_684_800 * 1_000_000_000
_PLACES = 6
_LONGEST = 40


class Deal(NamedTuple):
    """`deal;XAU-CHF;817819200.123456;000A3F;1893.25;0.75;S`"""

    symbol: str
    ts_ns: int
    number: int
    price: float
    size: float
    side: str


class Book(NamedTuple):
    """`book;XAU-CHF;817819200.123789;000B11;1893.20;10;1893.30;4`"""

    symbol: str
    ts_ns: int
    number: int
    bid: float
    bid_size: float
    ask: float
    ask_size: float


def read(line: str) -> Deal | Book | None:
    """An event of a line; None: the line is about the session. Raises ValueError that says what is wrong with it."""
    kind, *cells = line.split(";")
    if max(map(len, cells), default=0) > _LONGEST:
        raise ValueError("a cell is too long")
    if kind == "deal":
        symbol, time, number, price, size, side = cells
        return Deal(canonical(symbol), ns(time), int(number, 36), float(price), float(size), {"S": "sell", "B": "buy"}.get(side, ""))
    if kind == "book":
        symbol, time, number, *prices = cells
        bid, bid_size, ask, ask_size = map(float, prices)
        return Book(canonical(symbol), ns(time), int(number, 36), bid, bid_size, ask, ask_size)
    return None


def ns(text: str) -> int:
    """A time in ns since 1970. Raises ValueError."""
    seconds, _, micros = text.partition(".")
    if not (seconds.isascii() and seconds.isdigit() and micros.isascii() and micros.isdigit() and len(micros) == _PLACES):
        raise ValueError(f"{text!r} is no time")
    return EPOCH_NS + int(seconds) * 1_000_000_000 + int(micros) * 1_000


def written(ts_ns: int) -> str:
    """The time as Meridian writes it; a part of a microsecond counts as a whole one."""
    micros = -(-(ts_ns - EPOCH_NS) // 1_000)
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}"


def base36(number: int) -> str:
    """A number as Meridian writes it."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[digit] + digits
    return digits.rjust(_PLACES, "0")


def canonical(symbol: str) -> str:
    """`XAU-CHF` is XAU/CHF."""
    return symbol.replace("-", "/")
