"""Binance spot's public archive of past days and months: which file holds a span, and which events a piece of it. Pure.

Facts: data.binance.vision and the README of binance-public-data. A zip holds one CSV without a header (other markets' have one), beside it
`.CHECKSUM` with the SHA-256. A day's file comes the next day, a month's in the first days of the next month; files are replaced now and
then. Times are milliseconds, from 2025 on microseconds. The folder of the interval `1M` is `1mo`.

A piece is a line with the file's SHA-256 and the place behind the piece (-1: the end), and whole lines of the CSV.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np

from tapeline.providers.binance_history import CHANNELS as CHANNELS
from tapeline.providers.binance_history import Event, bar_of, headers, provider_symbol, settled_ns, time_of
from tapeline.providers.binance_wire import AggTrade, Trade
from tapeline.providers.history import Page, Request, Span, WrongPage
from tapeline.records import NS_PER_S

__all__ = ["CHANNELS", "WEIGHT_A_MINUTE", "events_of", "first", "headers", "page", "parts", "settled_ns"]

#: Files are asked for one by one: no limit is published, and ten a second are no burden.
WEIGHT_A_MINUTE: Final = 600
_DAY_NS: Final = 86_400 * NS_PER_S
_FOLDERS: Final = {"trade": "trades", "aggTrade": "aggTrades"}
_TRUE: Final = frozenset({"True", "true"})


def parts(start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """Whole UTC days, and in their place whole months where all days of one are asked for."""
    first, last = (np.datetime64(day, "D") for day in (start_ns // _DAY_NS, -(-end_ns // _DAY_NS)))
    found, at = [], first
    while at < last:
        month = at.astype("datetime64[M]")
        whole = at == month.astype("datetime64[D]") and (month + 1).astype("datetime64[D]") <= last
        until = (month + 1).astype("datetime64[D]") if whole else at + 1
        found.append((int(at.astype(np.int64)) * _DAY_NS, int(until.astype(np.int64)) * _DAY_NS))
        at = until
    return found


def first(span: Span) -> Request:
    """The file of a whole UTC month, or of the day in which the span begins."""
    begin, end = (datetime.fromtimestamp(ns // NS_PER_S, UTC) for ns in (span.start_ns, span.end_ns))
    month = begin.day == end.day == 1 and span.start_ns % _DAY_NS == span.end_ns % _DAY_NS == 0
    symbol = provider_symbol(span.symbol)
    if span.channel in _FOLDERS:
        what = _FOLDERS[span.channel]
        folder = f"{what}/{symbol}"
    else:
        interval = span.channel.removeprefix("kline_")
        what = "1mo" if interval == "1M" else interval
        folder = f"klines/{symbol}/{what}"
    date = f"{begin:%Y-%m}" if month else f"{begin:%Y-%m-%d}"
    return Request(f"/data/spot/{'monthly' if month else 'daily'}/{folder}/{symbol}-{what}-{date}.zip")


def page(span: Span, asked: Request, body: bytes, time_ms: int) -> Page:
    """Read a piece through. Raises WrongPage for a file that is not the one whose first pieces have come, or is no such CSV."""
    try:
        digest, following, _ = _taken_apart(body)
        events = events_of(span.channel, span.symbol, time_ms, body)
    except ValueError as error:
        raise WrongPage(f"{asked.path} cannot be read: {error}. Nothing of this part was kept.") from error
    before, _, _ = asked.after.partition(" ")
    if before and before != digest:
        raise WrongPage(
            f"{asked.path} has been replaced since its first part was read: it was {before[:12]}..., and is {digest[:12]}... now. What has "
            "come is kept; fetch it anew with --again."
        )
    reached_ns = time_of(events[-1]) if events else 0
    return Page(len(events), reached_ns, None if following < 0 else Request(asked.path, 0, f"{digest} {following}"))


def events_of(channel: str, symbol: str, time_ms: int, body: bytes) -> Sequence[Event]:
    """The events of a piece as the stream would have sent them. Raises ValueError for what is no such CSV."""
    symbol = provider_symbol(symbol)
    if channel == "trade":
        return [Trade("trade", symbol, _int(r[0]), r[1], r[2], _int(r[4]), r[5] in _TRUE) for r in _rows(body, 6)]
    if channel == "aggTrade":
        return [AggTrade("aggTrade", symbol, _int(r[0]), r[1], r[2], _int(r[5]), r[6] in _TRUE) for r in _rows(body, 7)]
    interval = channel.removeprefix("kline_")
    return [bar_of(symbol, interval, time_ms, _int(r[0]), r[1:6], _int(r[6]), r[7], _int(r[8])) for r in _rows(body, 9)]


def _taken_apart(body: bytes) -> tuple[str, int, bytes]:
    """SHA-256, the place behind, lines."""
    head, _, lines = body.partition(b"\n")
    digest, _, following = head.decode("ascii", "replace").partition(" ")
    return digest, int(following), lines


def _rows(body: bytes, cells: int) -> Iterator[list[str]]:
    """Without a header, whose first cell is no number. Raises ValueError for a row of fewer cells."""
    lines = _taken_apart(body)[2].decode("ascii").splitlines()
    try:
        for at, row in enumerate(csv.reader(lines)):
            if row and (at or row[0].lstrip("-").isdecimal()):
                if len(row) < cells:
                    raise ValueError(f"line {at + 1} has {len(row)} cells, not {cells} or more")
                yield row
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _int(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{text} does not fit 64 bits")
    return number
