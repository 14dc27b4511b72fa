"""Turns Alpaca's events into columns and notices, for stocks, options and crypto.

Facts: Alpaca's real-time data documentation. Every frame is an array of mixed events; the tag is `T`. The same structs read both
codecs, JSON and MessagePack.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa
from msgspec.msgpack import Ext

from tapeline.providers.alpaca import history as alpaca_history
from tapeline.providers.alpaca.wire import Bar, DailyBar, Event, Quote, Time, Trade, UpdatedBar
from tapeline.providers.columns import but_zero, flags, floats, in_range, integers, joined, rfc3339, side_of, texts
from tapeline.providers.decoding.arrays import ArrayDecoder
from tapeline.providers.decoding.inexact import JsonNumbers
from tapeline.providers.decoding.native import NativeDecoder
from tapeline.providers.events import DAILY_ID, SAME_CONTENT, Channel, Columns, Events, Frames, Notice, Reject
from tapeline.providers.history import PageHeader, decode_pages
from tapeline.records import NS_PER_S, amending

if TYPE_CHECKING:
    import tapeline_native

STOCK_EXCHANGES: Final = {
    "A": "XASE", "B": "XBOS", "C": "XCIS", "D": "FINR", "H": "EPRL", "I": "XISE", "J": "EDGA", "K": "EDGX", "L": "LTSE", "M": "XCHI",
    "N": "XNYS", "P": "ARCX", "Q": "XNAS", "U": "MEMX", "V": "IEXG", "W": "CBSX", "X": "XPHL", "Y": "BATY", "Z": "BATS",
}  # fmt: skip
OPTION_EXCHANGES: Final = {
    "A": "AMXO", "B": "XBOX", "C": "XCBO", "I": "XISX", "M": "XMIO", "N": "ARCO", "Q": "XNDQ", "W": "C2OX", "X": "XPHO", "Z": "BATO",
}  # fmt: skip

_TIMESTAMP: Final = -1


class _About(Event):
    """The base of events about a symbol that are not trades, quotes or bars."""

    S: str = ""
    t: Time = ""


class Correction(_About, tag="c"):
    """`{"T":"c","S":"EEM","x":"M","oi":52983525033527,"op":39.1582,"os":440000,"oc":[" ","7"],"ci":52983525034326,"cp":39.1809,
    "cs":440000,"cc":[" ","7"],"z":"B","t":"2023-04-06T14:25:06.542305024Z"}`. Keys with `o` describe the original trade, keys with `c`
    the corrected one."""

    x: str | None = None
    oi: int | None = None
    ci: int | None = None
    cp: float | None = None
    cs: float | None = None
    cc: list[str] | str | None = None


class Cancel(_About, tag="x"):
    """`{"T":"x","S":"GOOGL","i":465,"x":"D","p":105.31,"s":300,"a":"C","z":"C","t":"2023-03-06T13:15:29.24Z"}`"""

    x: str | None = None
    i: int | None = None


class TradingStatus(_About, tag="s"):
    """`{"T":"s","S":"AAPL","sc":"H","sm":"Trading Halt","rc":"T12","rm":"Trading Halted","t":..,"z":"C"}`: a halt or a resumption."""


class Luld(_About, tag="l"):
    """`{"T":"l","S":"AAPL","u":251.76,"d":205.98,"i":"B","t":..,"z":"C"}`: the limits up (`u`) and down (`d`) of a stock's price."""


class Imbalance(_About, tag="i"):
    """`{"T":"i","S":"AAPL","p":228.87,"t":..,"z":"C"}`: an imbalance of a stock's orders."""


class Success(Event, tag="success"):
    """`{"T":"success","msg":"connected"}`. After the login, `msg` is `authenticated`."""

    msg: str = ""


class Subscription(Event, tag="subscription"):
    """`{"T":"subscription","trades":["AAPL"],"quotes":[],..}`: all subscriptions of the connection, not only the new ones."""


class Error(Event, tag="error"):
    """`{"T":"error","code":406,"msg":"connection limit exceeded"}`"""

    code: int = 0
    msg: str = ""


def _timestamp(ext: Ext) -> int:
    """Nanoseconds since 1970 of a MessagePack Timestamp (32, 64 or 96 bits). Raises ValueError if the extension is not a Timestamp."""
    data = bytes(ext.data)
    if ext.code != _TIMESTAMP or len(data) not in (4, 8, 12):
        raise ValueError(f"extension {ext.code} of {len(data)} bytes is no Timestamp")
    ns, seconds = 0, int.from_bytes(data, "big")
    if len(data) == 8:
        ns, seconds = seconds >> 34, seconds & 0x3_FFFF_FFFF
    elif len(data) == 12:
        ns, seconds = struct.unpack(">Iq", data)
    if ns >= NS_PER_S:
        raise ValueError(f"a Timestamp of {ns} ns within its second")
    return seconds * NS_PER_S + ns


def _times(values: Sequence[Time]) -> pa.Array:
    """Event times in ns since 1970; null for a time that cannot be read or lies outside 1990 to 2100."""
    if not any(isinstance(value, Ext) for value in values):
        return rfc3339(values)  # type: ignore[arg-type]  # no Ext among them
    times: list[int | None] = []
    for value in values:
        try:
            ns = _timestamp(value) if isinstance(value, Ext) else rfc3339([value])[0].as_py()
        except ValueError:
            ns = None
        times.append(ns if ns is not None and abs(ns) < 2**63 else None)
    return in_range(pa.array(times, pa.int64()))


def _venue(table: dict[str, str] | None, code: str | None) -> str:
    if table is None:
        return "alpaca"
    code = (code or "").strip()
    return (table.get(code) or f"alpaca:{code}") if code else "composite"


def _codes(codes: list[str] | str | None) -> list[str] | None:
    return [codes] if isinstance(codes, str) else codes


_SIDES: Final = {"B": "buy", "S": "sell"}


def _trades(table: dict[str, str] | None) -> Any:
    def columns(events: Sequence[Trade]) -> Columns:
        return {
            "symbol": texts([event.S or None for event in events]),
            "ts_ns": _times([event.t for event in events]),
            "last": floats([event.p for event in events]),
            "volume": floats([event.s for event in events]),
            "side": texts([_SIDES.get(event.tks or "") for event in events]),
            "exchange": texts([_venue(table, event.x) for event in events]),
            "trade_id": texts([None if event.i is None else str(event.i) for event in events]),
            "conditions": joined([_codes(event.c) for event in events]),
        }

    return columns


def _quotes(table: dict[str, str] | None) -> Any:
    def columns(events: Sequence[Quote]) -> Columns:
        bid, bid_size = side_of(floats([event.bp for event in events]), floats([event.bs for event in events]))
        ask, ask_size = side_of(floats([event.ap for event in events]), floats([event.as_ for event in events]))
        return {
            "symbol": texts([event.S or None for event in events]),
            "ts_ns": _times([event.t for event in events]),
            "bid": bid,
            "ask": ask,
            "bid_size": bid_size,
            "ask_size": ask_size,
            "exchange": texts([_venue(table, event.bx if event.bp and (event.bx or "").strip() else event.ax) for event in events]),
            "conditions": joined([_codes(event.c) for event in events]),
        }

    return columns


def _bars(interval: str, exchange: str) -> Any:
    def columns(events: Sequence[Bar]) -> Columns:
        return {
            "symbol": texts([event.S or None for event in events]),
            "ts_ns": _times([event.t for event in events]),
            "interval": interval,
            "open": floats([event.o for event in events]),
            "high": floats([event.h for event in events]),
            "low": floats([event.l for event in events]),
            "close": floats([event.c for event in events]),
            "volume": floats([event.v for event in events]),
            "vwap": but_zero(floats([event.vw if event.v else None for event in events])),
            "trades": integers([event.n for event in events]),
            "final": flags([isinstance(event, UpdatedBar) for event in events]),
            "exchange": exchange,
        }

    return columns


def _market(table: dict[str, str] | None, bars_exchange: str, *, trade_ids: bool) -> dict[Any, Channel]:
    return {
        Trade: Channel("trades", "trade", _trades(table), DAILY_ID if trade_ids else SAME_CONTENT["trade"]),
        Quote: Channel("quotes", "quote", _quotes(table), SAME_CONTENT["quote"]),
        Bar: Channel("bars", "bar", _bars("1m", bars_exchange), SAME_CONTENT["bar"]),
        UpdatedBar: Channel("updatedBars", "bar", _bars("1m", bars_exchange), SAME_CONTENT["bar"]),
        DailyBar: Channel("dailyBars", "bar", _bars("1d", bars_exchange), SAME_CONTENT["bar"]),
    }


#: Feed to the exchange of its bars. A feed of options has no bars.
_BARS_EXCHANGES: Final = {**dict.fromkeys(("sip", "delayed_sip", "test"), "composite"), "iex": "IEXG", "crypto": "alpaca"}
_STOCKS: Final = _market(STOCK_EXCHANGES, _BARS_EXCHANGES["sip"], trade_ids=True)
_IEX: Final = _market(STOCK_EXCHANGES, _BARS_EXCHANGES["iex"], trade_ids=True)
_OPTIONS: Final = _market(OPTION_EXCHANGES, "composite", trade_ids=False)
_CRYPTO: Final = _market(None, _BARS_EXCHANGES["crypto"], trade_ids=True)
_MARKETS: Final = {
    "iex": _IEX,
    "sip": _STOCKS,
    "delayed_sip": _STOCKS,
    "test": _STOCKS,
    "opra": {event: _OPTIONS[event] for event in (Trade, Quote)},
    "indicative": {event: _OPTIONS[event] for event in (Trade, Quote)},
    "crypto": _CRYPTO,
}
#: Feed to the table of its exchange letters. Crypto has no letters.
_EXCHANGES: Final[dict[str, dict[str, str] | None]] = {
    **dict.fromkeys(("iex", "sip", "delayed_sip", "test"), STOCK_EXCHANGES),
    **dict.fromkeys(("opra", "indicative"), OPTION_EXCHANGES),
    "crypto": None,
}
CHANNELS: Final = {feed: {channel.name: channel for channel in market.values()} for feed, market in _MARKETS.items()}


def _control(event: object, text: str) -> Notice:
    del event
    return Notice("control", text)


def _about(kind: str) -> Any:
    def notice(event: _About, text: str) -> Notice:
        return Notice(kind, text, event.S or None, _times([event.t])[0].as_py())

    return notice


def _amends(kind: str, feed: str) -> Any:
    """A function that makes a notice of a correction or cancel. The notice names the trade that it takes back as the feed's ticks do."""
    plain = _about(kind)

    def notice(event: Correction | Cancel, text: str) -> Notice:
        original = event.oi if isinstance(event, Correction) else event.i
        amended: Notice = plain(event, text if original is None else amending(text, _venue(_EXCHANGES[feed], event.x), str(original)))
        return amended

    return notice


def _corrected(event: Correction) -> Trade | None:
    """The corrected trade; None if the correction lacks any part of it."""
    if event.ci is None or event.cp is None or event.cs is None or not event.S or not event.t:
        return None
    return Trade(event.S, event.t, event.cp, event.cs, event.x, event.ci, event.cc)


def _notices(feed: str) -> dict[Any, Any]:
    return {
        Correction: _amends("correction", feed),
        Cancel: _amends("cancel", feed),
        TradingStatus: _about("trading_status"),
        Luld: _about("luld"),
        Imbalance: _about("imbalance"),
        Success: _control,
        Subscription: _control,
        Error: _control,
    }


_MSGPACK_FIELDS: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_MSGPACK_TIME: Final = msgspec.msgpack.Decoder(Ext)
#: First bytes of MessagePack's extension types that a Timestamp may have: fixext 4, fixext 8, ext 8.
_EXT_BYTES: Final = (b"\xd6", b"\xd7", b"\xc7")


def _as_json(payload: bytes) -> str:
    """A MessagePack event as JSON text, with times in RFC 3339 with all nine digits.

    Raises ValueError if the event has a value that JSON cannot express."""
    event: dict[str, object] = {}
    for name, raw in _MSGPACK_FIELDS.decode(payload).items():
        value = bytes(raw)
        event[name] = _time_text(_MSGPACK_TIME.decode(value)) if value[:1] in _EXT_BYTES else msgspec.msgpack.decode(value)
    try:
        return msgspec.json.encode(event).decode()
    except TypeError as error:
        raise ValueError(str(error)) from None


def _time_text(ext: Ext) -> str:
    try:
        seconds, ns = divmod(_timestamp(ext), NS_PER_S)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns:09d}Z"
    except (ValueError, OverflowError, OSError):
        return f"unreadable time {bytes(ext.data).hex()}"


#: The keys of prices and sizes, live and over REST. `cp` and `cs` are the price and size of the corrected trade in a correction.
_NUMBERS: Final = JsonNumbers("p s bp bs ap as o h l c v vw cp cs".split())
_DECODERS: Final = {
    feed: ArrayDecoder("T", market, _notices(feed), _as_json, {Correction: _corrected}) for feed, market in _MARKETS.items()
}


def native(core: type[tapeline_native.Decoder], feed: str) -> NativeDecoder | None:
    """The decoder of a feed in the native core. It reads what the socket sends. Pages of the history are read here."""
    if feed not in _MARKETS:
        return None
    return NativeDecoder(core.alpaca(_EXCHANGES[feed], _BARS_EXCHANGES.get(feed)))


def decode(feed: str, frames: Frames, events: Events) -> None:
    """Sort the events of one feed. They come in array frames, each in JSON or MessagePack, and in pages of the history."""
    decoder = _DECODERS.get(feed)
    if decoder is not None:
        events.inexact += frames.inexact(_NUMBERS)
        decoder(decode_pages(frames, events, CHANNELS[feed], partial(_page_events, feed)), events)
        return
    for row, frame in frames:
        events.seen += 1
        events.rejects.add(Reject(f"unknown alpaca feed ({feed!r})", frame), row, 0)


def _page_events(feed: str, header: PageHeader, body: bytes) -> Sequence[Any]:
    return alpaca_history.events_of(header.channel, header.symbol, header.time_ms, body, partial(_venue, _EXCHANGES[feed]))
