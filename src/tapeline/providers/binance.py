"""Binance spot: the wire structs, what they mean, and the session that asks for them.

Facts: Binance's public spot API documentation, "WebSocket Streams" and "General endpoints". No key is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.providers.normalizing import (
    SAME_CONTENT,
    SEQUENCE,
    Channel,
    Columns,
    Events,
    Int64,
    Notice,
    Reject,
    Rows,
    decimals,
    epoch_ns,
    flags,
    integers,
    ratio,
    side_of,
    texts,
)

#: Assets that Binance quotes prices in; the longest that ends a symbol splits it. Ingest checks each split with exchangeInfo.
QUOTE_ASSETS: Final = frozenset(
    "AEUR ARS AUD BIDR BKRW BNB BRL BTC BUSD BVND COP CZK DAI DOGE DOT ETH EUR EURI FDUSD GBP GYEN IDR IDRT JPY MXN NGN PAX PLN"
    " RLUSD RON RUB SOL TRX TRY TUSD U UAH USD1 USDC USDE USDP USDS USDT UST VAI XRP XUSD ZAR".split()
)
_LONGEST_QUOTE: Final = max(map(len, QUOTE_ASSETS))


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
    """`{"u":400900217,"s":"BNBUSDT","b":"25.35190000","B":"31.21000000","a":"25.36520000","A":"40.66000000"}`: no time, no `e`."""

    u: Int64
    s: str
    b: str
    B: str
    a: str
    A: str


class KlineBody(msgspec.Struct, gc=False):
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


@lru_cache(maxsize=65_536)
def canonical(symbol: str) -> str | None:
    """`BTCUSDT` to `BTC/USDT`; None where no known quote asset ends the symbol."""
    for length in range(min(_LONGEST_QUOTE, len(symbol) - 1), 0, -1):
        if symbol[-length:] in QUOTE_ASSETS:
            return f"{symbol[:-length]}/{symbol[-length:]}"
    return None


def _trades(number: str) -> Callable[[Sequence[Any]], Columns]:
    def columns(events: Sequence[Any]) -> Columns:
        sequence = integers(getattr(event, number) for event in events)
        return {
            "symbol": texts([canonical(event.s) for event in events]),
            "ts_ns": epoch_ns([event.T for event in events]),
            "last": decimals([event.p for event in events]),
            "volume": decimals([event.q for event in events]),
            "side": texts(["sell" if event.m else "buy" for event in events]),
            "exchange": "binance",
            "sequence": sequence,
            "trade_id": pc.cast(sequence, pa.string()),
        }

    return columns


def _quotes(events: Sequence[BookTicker]) -> Columns:
    bid, bid_size = side_of(decimals([event.b for event in events]), decimals([event.B for event in events]))
    ask, ask_size = side_of(decimals([event.a for event in events]), decimals([event.A for event in events]))
    return {
        "symbol": texts([canonical(event.s) for event in events]),
        "bid": bid,
        "ask": ask,
        "bid_size": bid_size,
        "ask_size": ask_size,
        "exchange": "binance",
        "sequence": integers([event.u for event in events]),
    }


def _bars(events: Sequence[Kline]) -> Columns:
    volume = decimals([event.k.v for event in events])
    quoted = decimals([event.k.q for event in events])
    return {
        "symbol": texts([canonical(event.s) for event in events]),
        "ts_ns": epoch_ns([event.k.t for event in events]),
        "sent_ns": epoch_ns([event.E for event in events]),
        "interval": texts([event.k.i for event in events]),
        "open": decimals([event.k.o for event in events]),
        "high": decimals([event.k.h for event in events]),
        "low": decimals([event.k.l for event in events]),
        "close": decimals([event.k.c for event in events]),
        "volume": volume,
        "vwap": ratio(quoted, volume),
        "trades": integers([event.k.n for event in events]),
        "final": flags([event.k.x for event in events]),
        "exchange": "binance",
    }


TRADE: Final = Channel("trade", "trade", _trades("t"), SEQUENCE)
AGG_TRADE: Final = Channel("aggTrade", "trade", _trades("a"), SEQUENCE)
BOOK_TICKER: Final = Channel("bookTicker", "quote", _quotes, SEQUENCE)
INTERVALS: Final = "1s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M".split()
KLINES: Final = {f"kline_{interval}": Channel(f"kline_{interval}", "bar", _bars, SAME_CONTENT["bar"]) for interval in INTERVALS}
_SPOT: Final = {channel.name: channel for channel in (TRADE, AGG_TRADE, BOOK_TICKER, *KLINES.values())}
CHANNELS: Final = {"spot": _SPOT}


def _combined(event: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    """Decodes `{"stream":"...","data":<event>}`; the stream's name has already chosen the event."""
    return msgspec.json.Decoder(msgspec.defstruct(f"Combined{event.__name__}", [("data", event)], gc=False))


_EVENT: Final[dict[str, type[msgspec.Struct]]] = {"trade": Trade, "aggTrade": AggTrade, "bookTicker": BookTicker, "kline": Kline}
_COMBINED: Final = {name: _combined(event) for name, event in _EVENT.items()}
_BARE: Final = {name: msgspec.json.Decoder(event) for name, event in _EVENT.items()}


_ABSENT: Final = msgspec.Raw(b"")


class _Probe(msgspec.Struct):
    """Any message at all, as far as needed to tell what it is. An absent key is empty bytes."""

    stream: str = ""
    data: msgspec.Raw = _ABSENT
    e: str = ""
    E: Int64 = 0
    u: msgspec.Raw = _ABSENT
    b: msgspec.Raw = _ABSENT
    k: msgspec.Raw = _ABSENT
    result: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    code: msgspec.Raw = _ABSENT


_PROBE: Final = msgspec.json.Decoder(_Probe)
_KLINE_INTERVAL: Final = msgspec.json.Decoder(msgspec.defstruct("KlineInterval", [("i", str)]))


def decode(feed: str, frames: Iterable[tuple[int, bytes]], events: Events) -> None:
    """Sort the frames of a combined stream by their stream's name, which stands first: `{"stream":"btcusdt@trade","data":{...}}`."""
    del feed  # spot is the only one
    seen = 0
    routes: dict[bytes, tuple[Callable[[bytes], Any], Rows]] = {}
    for row, frame in frames:
        seen += 1
        route = routes.get(frame[11 : frame.find(b'"', 11)])
        try:
            if route is None:
                _route(frame, row, events, routes)
                continue
            to_event, found = route
            found.events.append(to_event(frame).data)
            found.row.append(row)
            found.index.append(0)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            events.rejects.add(Reject(f"JSON: {error}", frame), row, 0)
    events.seen += seen


def _route(frame: bytes, row: int, events: Events, routes: dict[bytes, tuple[Callable[[bytes], Any], Rows]]) -> None:
    """Decode a frame whose stream has not been met in this batch, and remember where its like go."""
    probe = _PROBE.decode(frame)
    if probe.stream and bytes(probe.data):
        symbol, _, suffix = probe.stream.partition("@")
        channel = _SPOT.get(suffix)
        if channel is not None:
            to_event = _COMBINED[suffix.partition("_")[0]].decode
            found = events.rows(channel)
            found.add(to_event(frame).data, row, 0)
            head = probe.stream.encode()
            if frame.startswith(b'{"stream":"' + head + b'"'):
                routes[head] = (to_event, found)
            return
        probe = _PROBE.decode(probe.data)
        if probe.e != "serverShutdown":
            events.rejects.add(Reject(f"unknown stream {symbol}@{suffix} (event type {probe.e!r})", frame), row, 0)
            return
    if probe.e == "serverShutdown":
        events.notices.add(Notice("shutdown", frame.decode(), ts_ns=epoch_ns([probe.E])[0].as_py()), row, 0)
    elif probe.e in _BARE or (not probe.e and bytes(probe.u) and bytes(probe.b)):
        name = probe.e or "bookTicker"
        full = f"kline_{_KLINE_INTERVAL.decode(probe.k).i}" if name == "kline" else name
        if full in _SPOT:
            events.rows(_SPOT[full]).add(_BARE[name].decode(frame), row, 0)
        else:
            events.rejects.add(Reject(f"unknown channel {full!r}", frame), row, 0)
    elif not probe.e and (bytes(probe.error) or bytes(probe.code) or bytes(probe.result)):
        events.notices.add(Notice("control", frame.decode()), row, 0)
    else:
        events.rejects.add(Reject(f"unknown event type {probe.e!r}", frame), row, 0)
