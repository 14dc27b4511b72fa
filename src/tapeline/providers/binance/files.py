"""Binance spot's public archive of past days and months: which file holds a span, and which events a piece of a file holds. Pure.

Facts: data.binance.vision and the README of binance-public-data.

- A zip holds one CSV without a header (files of other markets have one). A file `.CHECKSUM` next to it holds the SHA-256.
- The file of a day is published on the next day, the file of a month in the first days of the next month. Files are sometimes replaced.
- Times are in milliseconds, and from 2025 on in microseconds.
- The folder of the interval `1M` is `1mo`.

A piece begins with a line that holds the file's SHA-256 and the position behind the piece (-1: the end of the file). After it come whole
lines of the CSV.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import numpy as np

from tapeline.providers.binance.history import CHANNELS as CHANNELS
from tapeline.providers.binance.history import Event, bar_of, headers, provider_symbol, settled_ns, time_of
from tapeline.providers.binance.wire import AggTrade, Trade
from tapeline.providers.decoding.whole_numbers import whole
from tapeline.providers.events import Reject
from tapeline.providers.history import Page, Request, Span, WrongPage, readable, unreadable
from tapeline.records import NS_PER_S

__all__ = ["CHANNELS", "WEIGHT_A_MINUTE", "events_of", "first", "headers", "page", "parts", "settled_ns"]

#: Each file has a weight of 1. Binance publishes no limit, and ten files a second are no burden.
WEIGHT_A_MINUTE: Final = 600
_DAY_NS: Final = 86_400 * NS_PER_S
_FOLDERS: Final = {"trade": "trades", "aggTrade": "aggTrades"}
_SIDES: Final = {"True": True, "true": True, "False": False, "false": False}
#: The least and the most cells that a row of each kind may have.
_CELLS: Final = {"trade": (6, 7), "aggTrade": (7, 8), "kline": (9, 12)}


def parts(start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """The UTC days and months (ns, end exclusive) that cover the range. A month replaces its days if all of them are in the range."""
    first, last = (np.datetime64(day, "D") for day in (start_ns // _DAY_NS, -(-end_ns // _DAY_NS)))
    ranges, at = [], first
    while at < last:
        month = at.astype("datetime64[M]")
        whole = at == month.astype("datetime64[D]") and (month + 1).astype("datetime64[D]") <= last
        until = (month + 1).astype("datetime64[D]") if whole else at + 1
        ranges.append((int(at.astype(np.int64)) * _DAY_NS, int(until.astype(np.int64)) * _DAY_NS))
        at = until
    return ranges


def first(span: Span) -> Request:
    """The request for the span's file: the file of a month if the span is whole UTC months, else of the day in which it begins."""
    begin, end = (datetime.fromtimestamp(ns // NS_PER_S, UTC) for ns in (span.start_ns, span.end_ns))
    month = begin.day == end.day == 1 and span.start_ns % _DAY_NS == span.end_ns % _DAY_NS == 0
    symbol = quote(provider_symbol(span.symbol), safe="")
    if span.channel in _FOLDERS:
        what = _FOLDERS[span.channel]
        folder = f"{what}/{symbol}"
    else:
        interval = span.channel.removeprefix("kline_")
        what = "1mo" if interval == "1M" else interval
        folder = f"klines/{symbol}/{what}"
    date = f"{begin:%Y-%m}" if month else f"{begin:%Y-%m-%d}"
    return Request(f"/data/spot/{'monthly' if month else 'daily'}/{folder}/{symbol}-{what}-{date}.zip")


def page(span: Span, request: Request, body: bytes, time_ms: int) -> Page:
    """Check a piece and find the next request.

    Raises WrongPage if the file was replaced since its first piece was read, or is not such a CSV."""
    try:
        digest, following, _ = _taken_apart(body)
        rows = events_of(span.channel, span.symbol, time_ms, body)
    except ValueError as error:
        raise WrongPage(f"{request.path} cannot be read: {error}. None of this part was kept.") from error
    before, _, _ = request.after.partition(" ")
    if before and before != digest:
        raise WrongPage(
            f"{request.path} was replaced after its first part was read: it was {before[:12]}..., and is {digest[:12]}... now. What was "
            "read is kept. Fetch the file again with --again."
        )
    events: Sequence[Event] = readable(rows)
    reached_ns = time_of(events[-1]) if events else 0
    rest = None if following < 0 else Request(request.path, 0, f"{digest} {following}")
    return Page(len(rows), reached_ns, rest, unreadable=unreadable(rows, what="line"))


def events_of(channel: str, symbol: str, time_ms: int, body: bytes) -> list[Event | Reject]:
    """The events of a piece as the stream would have sent them. A line that cannot be read becomes a reject.

    `symbol` is canonical. `time_ms` is the time of the fetch. Raises ValueError if no line can be read: the file is then not such a
    CSV."""
    symbol = provider_symbol(symbol)
    events: list[Event | Reject] = []
    interval = channel.removeprefix("kline_")
    least, most = _CELLS[channel if channel in _FOLDERS else "kline"]
    for line in _lines(body):
        row = line.split(",")
        try:
            if not least <= len(row) <= most:
                raise ValueError(f"it has {len(row)} cells, not {least} to {most}")
            events.append(_event(channel, interval, symbol, time_ms, row))
        except ValueError as error:
            events.append(Reject(f"line of a file: {error}", line.encode()))
    if events and not readable(events):
        raise ValueError(unreadable(events, what="line")[0])
    return events


def _event(channel: str, interval: str, symbol: str, time_ms: int, r: Sequence[str]) -> Event:
    if channel == "trade":
        return Trade("trade", symbol, whole(r[0]), r[1], r[2], whole(r[4]), _side(r[5]))
    if channel == "aggTrade":
        return AggTrade("aggTrade", symbol, whole(r[0]), r[1], r[2], whole(r[5]), _side(r[6]))
    return bar_of(symbol, interval, time_ms, (whole(r[0]), whole(r[6])), r[1:6], r[7], whole(r[8]))


def _side(text: str) -> bool:
    """Whether the buyer was the maker. Raises ValueError if the text says neither."""
    if text not in _SIDES:
        raise ValueError(f"isBuyerMaker is {text!r}, neither True nor False")
    return _SIDES[text]


def _taken_apart(body: bytes) -> tuple[str, int, bytes]:
    """The parts of a piece: the file's SHA-256, the position behind the piece (-1: the end), and the lines."""
    head, _, lines = body.partition(b"\n")
    digest, _, following = head.decode("ascii", "replace").partition(" ")
    return digest, int(following), lines


def _lines(body: bytes) -> list[str]:
    """The lines of a piece without the header. A first line that does not begin with a digit is a header. Raises ValueError."""
    lines = [line for line in _taken_apart(body)[2].decode("utf-8").splitlines() if line]
    return lines if lines and lines[0].lstrip("-")[:1].isdecimal() else lines[1:]
