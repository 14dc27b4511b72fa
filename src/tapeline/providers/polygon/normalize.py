"""Turns the events of Polygon.io (now Massive) into columns, for stocks, options and crypto.

Facts: Polygon.io's WebSocket documentation. Every frame is a JSON array of mixed events; the tag is `ev`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa

from tapeline.providers.columns import but_zero, epoch_ns, flags, floats, in_range, integers, joined, side_of, texts
from tapeline.providers.decoding.arrays import ArrayDecoder
from tapeline.providers.decoding.inexact import JsonNumbers
from tapeline.providers.decoding.native import NativeDecoder
from tapeline.providers.events import DAILY_ID, SAME_CONTENT, Channel, Columns, Events, Frames, Notice, Reject
from tapeline.providers.history import PageHeader, decode_pages
from tapeline.providers.polygon import files as polygon_files
from tapeline.providers.polygon import history as polygon_history
from tapeline.providers.polygon.wire import (
    Bar,
    CryptoBar,
    CryptoQuote,
    CryptoSecondBar,
    CryptoTrade,
    PastBar,
    Quote,
    SecondBar,
    Status,
    Trade,
)
from tapeline.records import NS_PER_S, Identity

if TYPE_CHECKING:
    import tapeline_native

STOCK_EXCHANGES: Final = {
    1: "XASE", 2: "XBOS", 3: "XCIS", 4: "FINR", 6: "XISE", 7: "EDGA", 8: "EDGX", 9: "XCHI", 10: "XNYS", 11: "ARCX", 12: "XNAS",
    14: "LTSE", 15: "IEXG", 16: "CBSX", 17: "XPHL", 18: "BATY", 19: "BATS", 20: "EPRL", 21: "MEMX", 23: "TXSE", 62: "OOTC",
}  # fmt: skip
#: FINRA's trade reporting facilities. An off-exchange trade has exchange 4, and names its facility too.
TRADE_REPORTING_FACILITIES: Final = {201: "FINY", 202: "FINN", 203: "FINC"}
OPTION_EXCHANGES: Final = {302: "XCBO", 308: "XISX"}
CRYPTO_EXCHANGES: Final = {1: "coinbase", 2: "bitfinex", 6: "bitstamp", 10: "binance", 23: "kraken"}


#: Turns the times in events, which are counts since 1970, into ns.
Times: TypeAlias = Callable[[pa.Array], pa.Array]


def _symbol(event: Any) -> str:
    pair = getattr(event, "pair", None)
    return str(pair).replace("-", "/") if pair is not None else str(event.sym).removeprefix("O:")


def _venue(table: dict[int, str], code: int | None) -> str:
    if code is None:
        return "composite"
    return table.get(code) or f"polygon:{code}"


def _size(plain: float, exact: str | None) -> float:
    """The size with its fraction if the event has one, else the plain size.

    If the text with the fraction is not a number, the size is NaN, which the checks reject."""
    if exact is None:
        return plain
    try:
        return float("nan") if "_" in exact else float(exact)
    except ValueError:
        return float("nan")


def _sequence(events: Sequence[Trade] | Sequence[Quote]) -> pa.Array:
    """The provider's sequence numbers. 0 becomes null: old option trades have it, and it means that there is no number."""
    return integers([event.q or None for event in events])


def _trades(table: dict[int, str], times: Times = epoch_ns) -> Any:
    def columns(events: Sequence[Trade]) -> Columns:
        return {
            "symbol": texts([_symbol(event) or None for event in events]),
            "ts_ns": times(integers([event.t for event in events])),
            "last": floats([event.p for event in events]),
            "volume": floats([_size(event.s, event.ds) for event in events]),
            "exchange": texts([TRADE_REPORTING_FACILITIES.get(event.trfi or 0) or _venue(table, event.x) for event in events]),
            "sequence": _sequence(events),
            "trade_id": texts([event.i for event in events]),
            "conditions": joined([event.c for event in events]),
        }

    return columns


def _quotes(table: dict[int, str], times: Times = epoch_ns) -> Any:
    def columns(events: Sequence[Quote]) -> Columns:
        bid, bid_size = side_of(floats([event.bp for event in events]), floats([event.bs for event in events]))
        ask, ask_size = side_of(floats([event.ap for event in events]), floats([event.as_ for event in events]))
        return {
            "symbol": texts([_symbol(event) or None for event in events]),
            "ts_ns": times(integers([event.t for event in events])),
            "bid": bid,
            "ask": ask,
            "bid_size": bid_size,
            "ask_size": ask_size,
            "exchange": texts([_venue(table, event.bx if event.bp and event.bx is not None else event.ax) for event in events]),
            "sequence": _sequence(events),
            "conditions": joined([_listed(event.c) for event in events]),
        }

    return columns


def _listed(codes: int | list[int] | None) -> list[int] | None:
    return [codes] if isinstance(codes, int) else codes


def _bars(interval: str) -> Any:
    def columns(events: Sequence[Bar]) -> Columns:
        return {
            "symbol": texts([_symbol(event) or None for event in events]),
            "ts_ns": epoch_ns(integers([event.s for event in events])),
            "interval": interval,
            "open": floats([event.o for event in events]),
            "high": floats([event.h for event in events]),
            "low": floats([event.l for event in events]),
            "close": floats([event.c for event in events]),
            "volume": floats([_size(event.v, event.dv) for event in events]),
            "vwap": but_zero(floats([event.vw for event in events])),
            "final": False,  # late trades may revise a bar for about 15 minutes
            "exchange": "composite",
        }

    return columns


def _past_bars(interval: str) -> Any:
    def columns(events: Sequence[PastBar]) -> Columns:
        more = {"trades": integers([event.n for event in events]), "final": flags([event.final for event in events])}
        return {**_bars(interval)(events), **more}

    return columns


def _crypto_trades(events: Sequence[CryptoTrade], times: Times = epoch_ns) -> Columns:
    codes = [_listed(event.c) or [] for event in events]
    return {
        "symbol": texts([_symbol(event) or None for event in events]),
        "ts_ns": times(integers([event.t for event in events])),
        "last": floats([event.p for event in events]),
        "volume": floats([event.s for event in events]),
        "side": texts(["sell" if 1 in some else "buy" if 2 in some else None for some in codes]),
        "exchange": texts([_venue(CRYPTO_EXCHANGES, event.x) for event in events]),
        "trade_id": texts([None if event.i is None else str(event.i) for event in events]),
        "conditions": joined(codes),
    }


def _crypto_quotes(events: Sequence[CryptoQuote]) -> Columns:
    bid, bid_size = side_of(floats([event.bp for event in events]), floats([event.bs for event in events]))
    ask, ask_size = side_of(floats([event.ap for event in events]), floats([event.as_ for event in events]))
    return {
        "symbol": texts([_symbol(event) or None for event in events]),
        "ts_ns": epoch_ns(integers([event.t for event in events])),
        "bid": bid,
        "ask": ask,
        "bid_size": bid_size,
        "ask_size": ask_size,
        "exchange": texts([_venue(CRYPTO_EXCHANGES, event.x) for event in events]),
    }


def _control(_: Status, text: str) -> Notice:
    return Notice("control", text)


#: Sequence numbers repeat and go back, so a number alone does not identify a quote. Times from the history are in ns, while those of the
#: stream are in ms, so two copies of a quote may differ in time.
_QUOTE: Final = Identity(
    ("date", "symbol", "exchange", "sequence", "bid", "ask", "bid_size", "ask_size"), "sequence", drift_ns=2 * NS_PER_S, else_by_ms=True
)
#: Option trades have no sequence number in the provider's files. In older rows of the history it is 0.
_OPTION_TRADE: Final = Identity(
    ("date", "symbol", "exchange", "sequence", "last", "volume"), "sequence", drift_ns=2 * NS_PER_S, counted=True
)
_STOCKS: Final = {
    Trade: Channel("T", "trade", _trades(STOCK_EXCHANGES), DAILY_ID),
    Quote: Channel("Q", "quote", _quotes(STOCK_EXCHANGES), _QUOTE),
    Bar: Channel("AM", "bar", _bars("1m"), SAME_CONTENT["bar"]),
    SecondBar: Channel("A", "bar", _bars("1s"), SAME_CONTENT["bar"]),
}
_OPTIONS: Final = {
    Trade: Channel("T", "trade", _trades(OPTION_EXCHANGES), _OPTION_TRADE),
    Quote: Channel("Q", "quote", _quotes(OPTION_EXCHANGES), _QUOTE),
    Bar: Channel("AM", "bar", _bars("1m"), SAME_CONTENT["bar"]),
    SecondBar: Channel("A", "bar", _bars("1s"), SAME_CONTENT["bar"]),
}
_CRYPTO: Final = {
    CryptoTrade: Channel("XT", "trade", _crypto_trades, DAILY_ID),
    CryptoQuote: Channel("XQ", "quote", _crypto_quotes, SAME_CONTENT["quote"]),
    CryptoBar: Channel("XA", "bar", _bars("1m"), SAME_CONTENT["bar"]),
    CryptoSecondBar: Channel("XAS", "bar", _bars("1s"), SAME_CONTENT["bar"]),
}
_EXCHANGES: Final = {"stocks": STOCK_EXCHANGES, "options": OPTION_EXCHANGES, "crypto": CRYPTO_EXCHANGES}
_MARKETS: Final[dict[str, dict[Any, Channel]]] = {"stocks": _STOCKS, "options": _OPTIONS, "crypto": _CRYPTO}
CHANNELS: Final = {feed: {channel.name: channel for channel in market.values()} for feed, market in _MARKETS.items()}


def _past(market: dict[Any, Channel], trades: Any, quotes: Any = None) -> dict[str, Channel]:
    """The channels of a market for the events of its history. There, trades and quotes have times in ns, and bars have `n` and `final`."""
    columns = {
        "T": trades,
        "XT": trades,
        "Q": quotes,
        **dict.fromkeys(("AM", "XA"), _past_bars("1m")),
        **dict.fromkeys(("A", "XAS"), _past_bars("1s")),
    }
    return {one.name: replace(one, columns=columns[one.name]) for one in market.values() if one.name in columns}


_PAST: Final = {
    "stocks": _past(_STOCKS, _trades(STOCK_EXCHANGES, in_range), _quotes(STOCK_EXCHANGES, in_range)),
    "options": _past(_OPTIONS, _trades(OPTION_EXCHANGES, in_range), _quotes(OPTION_EXCHANGES, in_range)),
    "crypto": _past(_CRYPTO, partial(_crypto_trades, times=in_range)),
}
#: The keys of prices and sizes, live and over REST. (The `s` of a bar is a time in ms, which is too short to be inexact.)
_NUMBERS: Final = JsonNumbers("p s ds bp bs ap as o h l c v dv vw price size decimal_size bid_price bid_size ask_price ask_size".split())
_DECODERS: Final = {feed: ArrayDecoder("ev", market, {Status: _control}) for feed, market in _MARKETS.items()}


def native(core: type[tapeline_native.Decoder], feed: str) -> NativeDecoder | None:
    """The decoder of a feed in the native core. It reads what the socket sends. Pages of the history are read here."""
    exchanges = _EXCHANGES.get(feed)
    return None if exchanges is None else NativeDecoder(core.polygon(feed == "crypto", exchanges, TRADE_REPORTING_FACILITIES))


def decode(feed: str, frames: Frames, events: Events) -> None:
    """Sort the events of one feed (`stocks`, `options`, `crypto`). They come in array frames and in pages of the history."""
    decoder = _DECODERS.get(feed)
    if decoder is not None:
        events.inexact += frames.inexact(_NUMBERS)
        decoder(decode_pages(frames, events, _PAST[feed], partial(_page_events, events)), events)
        return
    for row, frame in frames:
        events.seen += 1
        events.rejects.add(Reject(f"unknown polygon feed ({feed!r})", frame), row, 0)


def _page_events(events: Events, header: PageHeader, body: bytes) -> Sequence[polygon_history.Event | Notice | Reject]:
    if not polygon_files.is_file(header.path):
        return polygon_history.events_of(header.channel, header.symbol, header.time_ms, body)
    decoded, inexact = polygon_files.counted_events_of(header.channel, header.symbol, header.time_ms, body)
    events.inexact += inexact
    return decoded
