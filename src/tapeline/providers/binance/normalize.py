"""Turns Binance spot's events into columns.

Facts: Binance's public spot API documentation, "WebSocket Streams" and "General endpoints". No key is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.providers.binance import files as binance_archive
from tapeline.providers.binance import history as binance_history
from tapeline.providers.binance.symbols import canonical
from tapeline.providers.binance.wire import INTERVALS, AggTrade, BookTicker, Kline, Trade
from tapeline.providers.columns import but_zero, counted_decimals, decimals, epoch_ns, flags, integers, ratio, side_of, texts
from tapeline.providers.decoding import whole_numbers
from tapeline.providers.decoding.native import NativeDecoder
from tapeline.providers.events import (
    QUOTE_SEQUENCE,
    SAME_CONTENT,
    SEQUENCE,
    UNREADABLE,
    Channel,
    Columns,
    Events,
    Frames,
    Int64,
    Notice,
    Reject,
    Rows,
)
from tapeline.providers.history import PageHeader, decode_pages

if TYPE_CHECKING:
    import tapeline_native

_SELL: Final = pa.scalar("sell")
_BUY: Final = pa.scalar("buy")


def _decimal_columns(events: Sequence[Any], *names: str) -> tuple[Mapping[str, pa.Array], int]:
    """The named texts of the events as numbers, and the count of those that float64 does not hold exactly.

    All are converted in one call, because for a few events the calls take most of the time."""
    n = len(events)
    numbers, inexact = counted_decimals([getattr(event, name) for name in names for event in events])
    return {name: numbers.slice(at * n, n) for at, name in enumerate(names)}, inexact


def _trades(number: str) -> Callable[[Sequence[Any]], Columns]:
    def columns(events: Sequence[Any]) -> Columns:
        numbers, inexact = _decimal_columns(events, "p", "q")
        ids = integers([getattr(event, number) for event in events])
        return {
            "symbol": texts([canonical(event.s) for event in events]),
            "ts_ns": epoch_ns(integers([event.T for event in events])),
            "last": numbers["p"],
            "volume": numbers["q"],
            "side": pc.if_else(flags([event.m for event in events]), _SELL, _BUY),
            "exchange": "binance",
            "sequence": ids,
            "trade_id": pc.cast(ids, pa.string()),
            "inexact": inexact,
        }

    return columns


def _quotes(events: Sequence[BookTicker]) -> Columns:
    numbers, inexact = _decimal_columns(events, "b", "B", "a", "A")
    bid, bid_size = side_of(numbers["b"], numbers["B"])
    ask, ask_size = side_of(numbers["a"], numbers["A"])
    return {
        "symbol": texts([canonical(event.s) for event in events]),
        "bid": bid,
        "ask": ask,
        "bid_size": bid_size,
        "ask_size": ask_size,
        "exchange": "binance",
        "sequence": integers([event.u for event in events]),
        "inexact": inexact,
    }


def _bars(events: Sequence[Kline]) -> Columns:
    written = [
        counted_decimals([event.k.o for event in events]),
        counted_decimals([event.k.h for event in events]),
        counted_decimals([event.k.l for event in events]),
        counted_decimals([event.k.c for event in events]),
        counted_decimals([event.k.v for event in events]),
    ]
    opened, high, low, close, volume = (numbers for numbers, _ in written)
    quoted = decimals([event.k.q for event in events])  # only used for `vwap` and not stored, so inexact values are not counted
    return {
        "symbol": texts([canonical(event.s) for event in events]),
        "ts_ns": epoch_ns(integers([event.k.t for event in events])),
        "sent_ns": epoch_ns(integers([event.E for event in events])),
        "interval": texts([event.k.i for event in events]),
        "open": opened,
        "high": high,
        "low": low,
        "close": close,
        "volume": volume,
        "vwap": but_zero(ratio(quoted, volume)),
        "trades": integers([event.k.n for event in events]),
        "final": flags([event.k.x for event in events]),
        "exchange": "binance",
        "inexact": sum(count for _, count in written),
    }


TRADE: Final = Channel("trade", "trade", _trades("t"), SEQUENCE, contiguous=True)
AGG_TRADE: Final = Channel("aggTrade", "trade", _trades("a"), SEQUENCE, contiguous=True)
BOOK_TICKER: Final = Channel("bookTicker", "quote", _quotes, QUOTE_SEQUENCE)
#: Contiguous, because every window exists while a symbol trades, even a window without trades.
KLINES: Final = {
    f"kline_{interval}": Channel(f"kline_{interval}", "bar", _bars, SAME_CONTENT["bar"], contiguous=True) for interval in INTERVALS
}
_SPOT: Final = {channel.name: channel for channel in (TRADE, AGG_TRADE, BOOK_TICKER, *KLINES.values())}
CHANNELS: Final = {"spot": _SPOT}


def _combined(event: type[msgspec.Struct]) -> Callable[[bytes], Any]:
    """A function that decodes `{"stream":"...","data":<event>}`. Any other key is an error."""
    fields = [("stream", str), ("data", event)]
    combined = msgspec.defstruct(f"Combined{event.__name__}", fields, gc=False, forbid_unknown_fields=True)
    return whole_numbers.reading(msgspec.json.Decoder(combined).decode)


_EVENT: Final[dict[str, type[msgspec.Struct]]] = {"trade": Trade, "aggTrade": AggTrade, "bookTicker": BookTicker, "kline": Kline}
_COMBINED: Final = {name: _combined(event) for name, event in _EVENT.items()}
_BARE: Final = {name: whole_numbers.reading(msgspec.json.Decoder(event).decode) for name, event in _EVENT.items()}


class _Interval(msgspec.Struct):
    i: str


_ABSENT: Final = msgspec.Raw(b"")


class _Probe(msgspec.Struct):
    """The keys that tell what kind of message a frame is. A raw key that is absent has empty bytes."""

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


_PROBE: Final = whole_numbers.reading(msgspec.json.Decoder(_Probe).decode)
_KLINE_INTERVAL: Final = msgspec.json.Decoder(_Interval)


def native(core: type[tapeline_native.Decoder], feed: str) -> NativeDecoder:
    """The decoder of spot, the only feed, in the native core."""
    del feed
    return NativeDecoder(core.binance([*KLINES]), canonical)


def decode(feed: str, frames: Frames, events: Events) -> None:
    """Sort the frames of spot, the only feed."""
    del feed
    frames = decode_pages(frames, events, _SPOT, _page_events)
    events.seen += len(frames)
    _decode_json(frames, events)
    for rows in events.channels.values() if events.names else ():
        for event in rows.events:
            event.s = events.names.get(event.s, event.s)


def _page_events(header: PageHeader, body: bytes) -> Sequence[Any]:
    events_of = binance_archive.events_of if header.path.endswith(".zip") else binance_history.events_of
    return events_of(header.channel, header.symbol, header.time_ms, body)


def _decode_json(frames: Frames, events: Events) -> None:
    routes: dict[bytes, tuple[str, Callable[[bytes], Any], Rows]] = {}
    for row, frame in frames:
        route = routes.get(frame[11 : frame.find(b'"', 11)])
        if route is not None:
            stream, to_event, rows = route
            try:
                combined = to_event(frame)
            except UNREADABLE:
                combined = None  # `_route` gives the reason, so that it does not depend on the frame's place in the batch
            if combined is not None and combined.stream == stream:
                rows.add(combined.data, row, 0)
                continue
        try:
            _route(frame, row, events, routes)
        except UNREADABLE as error:
            events.rejects.add(Reject(f"JSON: {error}", frame), row, 0)


def _route(frame: bytes, row: int, events: Events, routes: dict[bytes, tuple[str, Callable[[bytes], Any], Rows]]) -> None:
    """Decode a frame of a stream that is new in this batch, and remember the route for later frames of that stream."""
    probe = _PROBE(frame)
    if probe.stream and bytes(probe.data):
        symbol, _, suffix = probe.stream.partition("@")
        channel = _SPOT.get(suffix)
        if channel is not None:
            kind = suffix.partition("_")[0]
            rows = events.rows(channel)
            rows.add(_BARE[kind](probe.data), row, 0)
            routes[probe.stream.encode()] = (probe.stream, _COMBINED[kind], rows)
            return
        probe = _PROBE(probe.data)
        if probe.e != "serverShutdown":
            events.rejects.add(Reject(f"unknown stream ({symbol}@{suffix}, event type {probe.e!r})", frame), row, 0)
            return
    if probe.e == "serverShutdown":
        events.notices.add(Notice("shutdown", frame.decode(), ts_ns=epoch_ns(integers([probe.E]))[0].as_py()), row, 0)
    elif probe.e in _BARE or (not probe.e and bytes(probe.u) and bytes(probe.b)):
        name = probe.e or "bookTicker"
        full = f"kline_{_KLINE_INTERVAL.decode(probe.k).i}" if name == "kline" else name
        if full in _SPOT:
            events.rows(_SPOT[full]).add(_BARE[name](frame), row, 0)
        else:
            events.rejects.add(Reject(f"unknown channel ({full!r})", frame), row, 0)
    elif not probe.e and (bytes(probe.error) or bytes(probe.code) or bytes(probe.result)):
        events.notices.add(Notice("control", frame.decode()), row, 0)
    else:
        events.rejects.add(Reject(f"unknown event type ({probe.e!r})", frame), row, 0)
