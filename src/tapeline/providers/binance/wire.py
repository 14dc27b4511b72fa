"""Binance spot's market events as they are on the wire.

Facts: Binance's public spot API documentation, "WebSocket Streams". Prices and sizes are decimal texts. Times are counts of milliseconds
or microseconds since 1970.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tapeline.providers.events import Int64

#: The intervals of bars. The name of a bar channel ends in its interval.
INTERVALS: Final = "1s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M".split()


class Trade(msgspec.Struct, gc=False):
    """`{"e":"trade","E":1672515782136,"s":"BNBBTC","t":12345,"p":"0.001","q":"100","T":1672515782136,"m":true,"M":true}`"""

    e: Literal["trade"]
    s: str
    t: Int64
    p: str
    q: str
    T: Int64
    m: bool  # the buyer was the maker: the aggressor sold


class AggTrade(msgspec.Struct, gc=False):
    """`{"e":"aggTrade","E":..,"s":"BNBBTC","a":12345,"p":"0.001","q":"100","f":100,"l":105,"T":1672515782136,"m":true}`"""

    e: Literal["aggTrade"]
    s: str
    a: Int64
    p: str
    q: str
    T: Int64
    m: bool


class BookTicker(msgspec.Struct, gc=False):
    """`{"u":400900217,"s":"BNBUSDT","b":"25.35190000","B":"31.21000000","a":"25.36520000","A":"40.66000000"}`. No time and no `e`."""

    u: Int64
    s: str
    b: str
    B: str
    a: str
    A: str


class KlineBody(msgspec.Struct, gc=False):
    """`{"t":1672515780000,"T":..,"s":"BNBBTC","i":"1m",..,"o":"0.0010","c":"0.0020",..,"v":"1000","n":100,"x":false,"q":"1.0000",..}`

    `t` is the start of the window. `v` is the volume in the base asset and `q` in the quote asset. `x`: the window is over.
    """

    t: Int64
    i: str
    o: str
    c: str
    h: str
    l: str  # noqa: E741 the wire's own name
    v: str
    q: str
    n: Int64
    x: bool


class Kline(msgspec.Struct, gc=False):
    """`{"e":"kline","E":..,"s":"BNBBTC","k":{"t":..,"i":"1m","o":"0.0010",..,"v":"1000","n":100,"x":false,"q":"1.0000",..}}`"""

    e: Literal["kline"]
    E: Int64
    s: str
    k: KlineBody
