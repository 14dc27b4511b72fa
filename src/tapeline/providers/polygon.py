"""Massive, formerly Polygon.io: the wire structs of stocks, options and crypto, and what they mean.

Facts: Massive's WebSocket documentation. Every frame is a JSON array of mixed events; the tag is `ev`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec

from tapeline.providers.arrays import ArrayDecoder
from tapeline.providers.normalizing import (
    DAILY_ID,
    SAME_CONTENT,
    UNREADABLE,
    Channel,
    Columns,
    Events,
    Frames,
    Int64,
    Notice,
    Reject,
    epoch_ns,
    floats,
    integers,
    joined,
    side_of,
    texts,
)
from tapeline.providers.session import FeedSettings, Plan, Reply, Trouble, gravest, without

STOCK_EXCHANGES: Final = {
    1: "XASE", 2: "XBOS", 3: "XCIS", 4: "FINR", 6: "XISE", 7: "EDGA", 8: "EDGX", 9: "XCHI", 10: "XNYS", 11: "ARCX", 12: "XNAS",
    14: "LTSE", 15: "IEXG", 16: "CBSX", 17: "XPHL", 18: "BATY", 19: "BATS", 20: "EPRL", 21: "MEMX", 23: "TXSE", 62: "OOTC",
}  # fmt: skip
#: FINRA's trade reporting facilities, which a trade off exchange names beside exchange 4.
TRADE_REPORTING_FACILITIES: Final = {201: "FINY", 202: "FINN", 203: "FINC"}
OPTION_EXCHANGES: Final = {302: "XCBO", 308: "XISX"}
CRYPTO_EXCHANGES: Final = {1: "coinbase", 2: "bitfinex", 6: "bitstamp", 10: "binance", 23: "kraken"}


class _Event(msgspec.Struct, tag_field="ev", gc=False):
    """Every event carries its type in `ev`."""


class Status(_Event, tag="status"):
    """`{"ev":"status","status":"auth_success","message":"authenticated"}`"""

    status: str = ""
    message: str = ""


class Trade(_Event, tag="T"):
    """`{"ev":"T","sym":"MSFT","x":4,"i":"12345","z":3,"p":114.125,"s":100,"ds":"100.0","c":[0,12],"t":1536036818784,"q":3681328,
    "trfi":201,"trft":1536036818780}`; options have no `i` and no `z`"""

    sym: str
    x: int
    p: float
    s: float
    t: Int64
    q: Int64 | None = None
    i: str | None = None
    ds: str | None = None  # the size with its fraction, which `s` lacks
    c: list[int] | None = None
    trfi: int | None = None


class Quote(_Event, tag="Q"):
    """`{"ev":"Q","sym":"MSFT","bx":4,"bp":114.125,"bs":100,"ax":7,"ap":114.128,"as":160,"c":0,"i":[604],"t":1536036818784,
    "q":50385480,"z":3}`; sizes in shares"""

    sym: str
    t: Int64
    bx: int | None = None
    bp: float | None = None
    bs: float | None = None
    ax: int | None = None
    ap: float | None = None
    as_: float | None = msgspec.field(default=None, name="as")
    c: int | list[int] | None = None
    q: Int64 | None = None


class Bar(_Event, tag="AM"):
    """`{"ev":"AM","sym":"GTE","v":4110,"vw":0.4488,"o":0.4488,"c":0.4486,"h":0.4489,"l":0.4486,"z":685,"s":1610144640000,
    "e":1610144700000}`; `s` is the window's start"""

    sym: str
    s: Int64
    o: float
    h: float
    l: float  # noqa: E741 the wire's own name
    c: float
    v: float
    vw: float | None = None
    dv: str | None = None


class SecondBar(Bar, tag="A"):
    pass


class CryptoTrade(_Event, tag="XT"):
    """`{"ev":"XT","pair":"BTC-USD","p":33021.9,"t":1610462007425,"s":0.01616617,"c":[2],"i":"14272084","x":3,"r":1610462007576}`"""

    pair: str
    p: float
    s: float
    t: Int64
    x: int
    i: str | int | None = None
    c: list[int] | int | None = None


class CryptoQuote(_Event, tag="XQ"):
    """`{"ev":"XQ","pair":"BTC-USD","bp":33052.79,"bs":0.48,"ap":33073.19,"as":0.601,"t":1610462411115,"x":1,"r":1610462411128}`"""

    pair: str
    t: Int64
    x: int
    bp: float | None = None
    bs: float | None = None
    ap: float | None = None
    as_: float | None = msgspec.field(default=None, name="as")


class CryptoBar(_Event, tag="XA"):
    """`{"ev":"XA","pair":"BCD-USD","v":951.6112,"vw":0.7756,"z":73,"o":0.772,"c":0.784,"h":0.784,"l":0.771,"s":..,"e":..}`"""

    pair: str
    s: Int64
    o: float
    h: float
    l: float  # noqa: E741 the wire's own name
    c: float
    v: float
    vw: float | None = None
    dv: str | None = None


class CryptoSecondBar(CryptoBar, tag="XAS"):
    pass


def _symbol(event: Any) -> str:
    pair = getattr(event, "pair", None)
    return str(pair).replace("-", "/") if pair is not None else str(event.sym).removeprefix("O:")


def _venue(table: dict[int, str], code: int | None) -> str:
    if code is None:
        return "composite"
    return table.get(code) or f"polygon:{code}"


def _size(plain: float, exact: str | None) -> float:
    """The size with its fraction where the event has one; NaN, which the checks reject, where that is no number."""
    if exact is None:
        return plain
    try:
        return float("nan") if "_" in exact else float(exact)
    except ValueError:
        return float("nan")


def _trades(table: dict[int, str]) -> Any:
    def columns(events: Sequence[Trade]) -> Columns:
        return {
            "symbol": texts([_symbol(event) or None for event in events]),
            "ts_ns": epoch_ns(integers([event.t for event in events])),
            "last": floats([event.p for event in events]),
            "volume": floats([_size(event.s, event.ds) for event in events]),
            "exchange": texts([TRADE_REPORTING_FACILITIES.get(event.trfi or 0) or _venue(table, event.x) for event in events]),
            "sequence": integers([event.q for event in events]),
            "trade_id": texts([event.i for event in events]),
            "conditions": joined([event.c for event in events]),
        }

    return columns


def _quotes(table: dict[int, str]) -> Any:
    def columns(events: Sequence[Quote]) -> Columns:
        bid, bid_size = side_of(floats([event.bp for event in events]), floats([event.bs for event in events]))
        ask, ask_size = side_of(floats([event.ap for event in events]), floats([event.as_ for event in events]))
        return {
            "symbol": texts([_symbol(event) or None for event in events]),
            "ts_ns": epoch_ns(integers([event.t for event in events])),
            "bid": bid,
            "ask": ask,
            "bid_size": bid_size,
            "ask_size": ask_size,
            "exchange": texts([_venue(table, event.bx if event.bp and event.bx is not None else event.ax) for event in events]),
            "sequence": integers([event.q for event in events]),
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
            "vwap": floats([event.vw for event in events]),
            "final": False,  # late trades may revise a bar for some 15 minutes
            "exchange": "composite",
        }

    return columns


def _crypto_trades(events: Sequence[CryptoTrade]) -> Columns:
    codes = [_listed(event.c) or [] for event in events]
    return {
        "symbol": texts([_symbol(event) or None for event in events]),
        "ts_ns": epoch_ns(integers([event.t for event in events])),
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


_STOCKS: Final = {
    Trade: Channel("T", "trade", _trades(STOCK_EXCHANGES), DAILY_ID),
    Quote: Channel("Q", "quote", _quotes(STOCK_EXCHANGES), SAME_CONTENT["quote"]),
    Bar: Channel("AM", "bar", _bars("1m"), SAME_CONTENT["bar"]),
    SecondBar: Channel("A", "bar", _bars("1s"), SAME_CONTENT["bar"]),
}
_OPTIONS: Final = {
    Trade: Channel("T", "trade", _trades(OPTION_EXCHANGES), SAME_CONTENT["trade"]),
    Quote: Channel("Q", "quote", _quotes(OPTION_EXCHANGES), SAME_CONTENT["quote"]),
    Bar: Channel("AM", "bar", _bars("1m"), SAME_CONTENT["bar"]),
    SecondBar: Channel("A", "bar", _bars("1s"), SAME_CONTENT["bar"]),
}
_CRYPTO: Final = {
    CryptoTrade: Channel("XT", "trade", _crypto_trades, DAILY_ID),
    CryptoQuote: Channel("XQ", "quote", _crypto_quotes, SAME_CONTENT["quote"]),
    CryptoBar: Channel("XA", "bar", _bars("1m"), SAME_CONTENT["bar"]),
    CryptoSecondBar: Channel("XAS", "bar", _bars("1s"), SAME_CONTENT["bar"]),
}
_MARKETS: Final[dict[str, dict[Any, Channel]]] = {"stocks": _STOCKS, "options": _OPTIONS, "crypto": _CRYPTO}
CHANNELS: Final = {feed: {channel.name: channel for channel in market.values()} for feed, market in _MARKETS.items()}
_DECODERS: Final = {feed: ArrayDecoder("ev", market, {Status: _control}) for feed, market in _MARKETS.items()}


def decode(feed: str, frames: Frames, events: Events) -> None:
    """Sort the events of the array frames of one feed (`stocks`, `options`, `crypto`)."""
    decoder = _DECODERS.get(feed)
    if decoder is not None:
        decoder(frames, events)
        return
    for row, frame in frames:
        events.seen += 1
        events.rejects.add(Reject(f"unknown polygon feed {feed!r}", frame), row, 0)


# The session.

STREAM_URL: Final = "wss://socket.massive.com"
HISTORY_URL: Final = "https://api.massive.com"
#: Whether an account may have one connection to an endpoint alone, or a few.
ONE_CONNECTION: Final = True
SECOND_URL: Final = ""
DEFAULT_FEED: Final = "stocks"
SECRET_KINDS: Final[tuple[str, ...]] = ("key",)
#: Well under the megabyte that the provider's own clients allow a message.
_TOPICS_PER_MESSAGE: Final = 500
_COOL_DOWN_S: Final = 60.0


class _StatusFrame(msgspec.Struct):
    ev: str = ""
    status: str = ""
    message: str = ""


_STATUSES: Final = msgspec.json.Decoder(list[_StatusFrame])


def _compact(frame: bytes) -> bytes:
    """The beginning of a frame without the spaces that JSON allows."""
    return frame[:32].translate(None, b" \t\r\n")


class PolygonSession:
    """Greeting, auth, subscribe; each topic is acknowledged by name, an unknown one not at all."""

    def __init__(self, key: str, topics: Sequence[str]) -> None:
        self._key = key
        self._topics = topics
        self._missing = dict.fromkeys(topics)

    def opened(self) -> Sequence[bytes]:
        return ()

    def received(self, frame: bytes) -> Reply | None:
        if not _compact(frame).startswith(b'[{"ev":"status"'):
            return None
        try:
            statuses = _STATUSES.decode(frame)
        except UNREADABLE:
            return Reply()
        send: list[bytes] = []
        troubles: list[Trouble | None] = []
        for status in statuses:
            if status.status == "connected":
                send.append(msgspec.json.encode({"action": "auth", "params": self._key}))
            elif status.status == "auth_success":
                send += self._subscribe()
            elif status.status == "success":
                self._missing.pop(status.message.removeprefix("subscribed to: "), None)
            else:
                troubles.append(self._trouble(status))
        return Reply(send, gravest(trouble for trouble in troubles if trouble is not None))

    def _subscribe(self) -> list[bytes]:
        size = _TOPICS_PER_MESSAGE
        groups = [self._topics[at : at + size] for at in range(0, len(self._topics), size)]
        return [msgspec.json.encode({"action": "subscribe", "params": ",".join(some)}) for some in groups]

    def _trouble(self, status: _StatusFrame) -> Trouble | None:
        said = f"polygon says {status.status}: {without(status.message.strip(), self._key)}"
        match status.status:
            case "auth_failed":
                return Trouble(f"{said} Check the key (TAPELINE_POLYGON_KEY) and that the plan includes websockets.", "stop")
            case "max_connections":
                return Trouble(f"{said} Another process holds this key's connection; end it.", "reconnect", _COOL_DOWN_S)
            case "error" if "access real-time" in status.message:
                return Trouble(f'{said} Set url = "wss://delayed.massive.com" for this provider.', "stop")
            case "error":
                return Trouble(f"{said} Topics outside the plan are refused; the others go on.", "warn")
            case "auth_timeout" | "slow_consumer" | "force_disconnect":
                return Trouble(said, "reconnect")
        return None

    def channel(self, frame: bytes) -> bytes | None:
        head = _compact(frame)
        if not head.startswith(b'[{"ev":"') or head.startswith(b'[{"ev":"status"'):
            return None
        return head[8 : head.find(b'"', 8)]

    def missing(self) -> Sequence[str]:
        return list(self._missing)


def symbol_of(feed: str, symbol: str) -> str:
    """The canonical symbol, of itself or of the provider's own name for it (`BTC-USD`, `O:SPY251219C00650000`)."""
    return symbol.removeprefix("X:").replace("-", "/") if feed == "crypto" else symbol.removeprefix("O:")


def subscription(feed: str, topic: str) -> tuple[str, str] | None:
    """The channel and the canonical symbol of a topic (`T.AAPL`, `T.O:SPY251219C00650000`, `XT.BTC-USD`); None for one that has none."""
    channel, _, symbol = topic.partition(".")
    return (channel, symbol_of(feed, symbol)) if channel in CHANNELS.get(feed, {}) and symbol else None


def plans(settings: FeedSettings) -> list[Plan]:
    """One connection: an account has one for each market."""
    topics = [f"{channel}.{symbol}" for channel in settings.channels for symbol in settings.symbols]
    return [
        Plan(
            provider="polygon",
            feed=settings.feed,
            name=f"polygon-{settings.feed}",
            url=f"{settings.url or STREAM_URL}/{settings.feed}",
            topics=topics,
            session=partial(PolygonSession, settings.key, topics),
            rotate_after_s=settings.rotate_after_s,
        )
    ]
