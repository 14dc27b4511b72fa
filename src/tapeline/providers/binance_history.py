"""Binance spot's history over REST: what to ask for, and which events a page holds. Pure: requests and pages in, nothing sent.

Facts: Binance's public spot API documentation, "Market Data endpoints": `aggTrades` (weight 4) and `historicalTrades` (25) by id, `klines`
(2) by time, at most 1,000 rows a page, no key. Of single trades of long ago nothing is there: a page begins with a later id then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import quote

import msgspec

from tapeline.providers.binance_wire import AggTrade, Kline, KlineBody, Trade
from tapeline.providers.normalizing import Int64
from tapeline.records import NS_PER_MS

PAGE_ROWS: Final = 1_000
Event: TypeAlias = "Trade | AggTrade | Kline"


class Asked(msgspec.Struct):
    """The line before a page in the raw topic: what was asked for, and whether this was the last page of it."""

    channel: str
    symbol: str  # the provider's own
    name: str  # the same, canonical
    time_ms: int  # when it was fetched: a bar whose window had ended by then is final
    first: int  # the numbers asked for, both inclusive: ids, or for bars the times (ms) of windows
    last: int
    done: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One page."""

    path: str
    weight: int


def request(channel: str, symbol: str, first: int, last: int) -> Request:
    """The page that begins with `first`. Raises KeyError for a channel of which there is no history."""
    rows = min(PAGE_ROWS, last - first + 1)
    symbol = quote(symbol, safe="")
    if channel.startswith("kline_"):
        interval = channel.removeprefix("kline_")
        window = f"startTime={first}&endTime={last}&limit={PAGE_ROWS}"
        return Request(f"/api/v3/klines?symbol={symbol}&interval={interval}&{window}", 2)
    path, weight = {"trade": ("historicalTrades", 25), "aggTrade": ("aggTrades", 4)}[channel]
    return Request(f"/api/v3/{path}?symbol={symbol}&fromId={first}&limit={rows}", weight)


class _Trade(msgspec.Struct):
    """`{"id":28457,"price":"4.00000100","qty":"12.00000000","quoteQty":"48.000012","time":1499865549590,"isBuyerMaker":true,...}`"""

    id: Int64
    price: str
    qty: str
    time: Int64
    isBuyerMaker: bool  # noqa: N815 the wire's own name


class _AggTrade(msgspec.Struct):
    """`{"a":26129,"p":"0.01633102","q":"4.70443515","f":27781,"l":27781,"T":1498793709153,"m":true,"M":true}`"""

    a: Int64
    p: str
    q: str
    T: Int64
    m: bool


class _Bar(msgspec.Struct, array_like=True):
    """`[1499040000000,"0.0163","0.8000","0.0157","0.0157","148976.11",1499644799999,"2434.19",308,"1756.87","28.46","0"]`"""

    open_ms: Int64
    open: str
    high: str
    low: str
    close: str
    volume: str
    close_ms: Int64
    quote_volume: str
    trades: Int64


_TRADES: Final = msgspec.json.Decoder(list[_Trade])
_AGG_TRADES: Final = msgspec.json.Decoder(list[_AggTrade])
_BARS: Final = msgspec.json.Decoder(list[_Bar])


def events_of(channel: str, symbol: str, time_ms: int, body: bytes) -> Sequence[Event]:
    """The events of a page as the stream would have sent them. Raises what decoding bytes may raise, KeyError for another channel."""
    if channel == "trade":
        return [Trade("trade", symbol, row.id, row.price, row.qty, row.time, row.isBuyerMaker) for row in _TRADES.decode(body)]
    if channel == "aggTrade":
        return [AggTrade("aggTrade", symbol, row.a, row.p, row.q, row.T, row.m) for row in _AGG_TRADES.decode(body)]
    if not channel.startswith("kline_"):
        raise KeyError(channel)
    interval = channel.removeprefix("kline_")
    return [_kline(symbol, interval, time_ms, row) for row in _BARS.decode(body)]


def _kline(symbol: str, interval: str, time_ms: int, row: _Bar) -> Kline:
    close_ms = row.close_ms if row.close_ms < 10**14 else row.close_ms // 1_000
    body = KlineBody(
        row.open_ms, interval, row.open, row.close, row.high, row.low, row.volume, row.quote_volume, row.trades, close_ms < time_ms
    )
    return Kline("kline", row.close_ms, symbol, body)


def number_of(event: Event) -> int:
    """The number by which pages are asked for: the id, or the time (ms) of a bar's window."""
    if isinstance(event, Kline):
        return event.k.t if event.k.t < 10**14 else event.k.t // 1_000
    return event.t if isinstance(event, Trade) else event.a


def numbers(channel: str, first_id: int, last_id: int, start_ns: int, end_ns: int) -> tuple[int, int]:
    """The numbers to ask for where these ids are missing, or the windows between these times."""
    if channel.startswith("kline_"):
        return start_ns // NS_PER_MS, end_ns // NS_PER_MS  # the window behind the gap too, which is known: so no page is empty
    return first_id, last_id
