"""Binance's websocket session: it subscribes to streams and reads the acknowledgements."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import msgspec

from tapeline.providers.binance.normalize import CHANNELS
from tapeline.providers.binance.symbols import canonical
from tapeline.providers.events import (
    NO_NAMES,
    UNREADABLE,
)
from tapeline.providers.session import Check, FeedSettings, Plan, Problem, Reply, refusal, rest_of

STREAM_URL: Final = "wss://data-stream.binance.vision"
#: The second line's host. It differs from the first one; the port is the same.
SECOND_URL: Final = "wss://stream.binance.com:443"
REST_URL: Final = "https://data-api.binance.vision"
ARCHIVE_URL: Final = "https://data.binance.vision"
#: Not the host of REST_URL, which has no historicalTrades.
HISTORY_URL: Final = "https://api.binance.com"
_STREAMS_PER_CONNECTION: Final = 1024
_STREAMS_PER_MESSAGE: Final = 100
#: Binance allows five messages a second from us on a connection, and counts pings and pongs too.
_PACE_S: Final = 0.25
#: Binance closes a connection after 24 hours, so it is replaced ten minutes earlier.
_ROTATE_AFTER_S: Final = 24 * 3600.0 - 600.0


class _Ack(msgspec.Struct):
    """`{"result":null,"id":1}`, `{"error":{"code":2,"msg":"..."},"id":1}` or, in the documentation, `{"code":2,"msg":"...","id":1}`"""

    id: int | str | None = None
    error: dict[str, Any] | None = None
    code: int | None = None
    msg: str = ""


_ACK: Final = msgspec.json.Decoder(_Ack)
#: Binance has no keys and no plans, so a 403 says nothing about us. Its firewall answers 403 or 404 now and then, and accepts the next
#: attempt.
PASSING: Final = frozenset({403})


def _refusal(status: int, text: str, worked: bool) -> Problem:
    return refusal(status, text, worked or status in {*PASSING, 404})


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The options of a Binance block."""

    time_unit: Literal["ms", "us"] = "ms"  # the unit of the times that Binance sends: milliseconds or microseconds


class BinanceSession:
    """The conversation with Binance: SUBSCRIBE in batches.

    If Binance refuses a batch, its streams are requested again one by one, to find the stream at fault."""

    def __init__(self, streams: Sequence[str]) -> None:
        self._streams = streams
        self._requests: dict[int, Sequence[str]] = {}
        self._missing = dict.fromkeys(streams)
        self._next_id = 1

    def opened(self) -> Sequence[bytes]:
        """Return the SUBSCRIBE requests, each with at most 100 streams."""
        size = _STREAMS_PER_MESSAGE
        return [self._subscribe(self._streams[at : at + size]) for at in range(0, len(self._streams), size)]

    def received(self, frame: bytes) -> Reply | None:
        """Read an acknowledgement. After a refused batch, its streams are requested again one by one. A stream refused alone is a warning.

        `serverShutdown` asks for the successor. An error that names no known request is ignored, and its streams stay missing.
        """
        if frame.startswith(b'{"stream":"') and frame[11:12] != b"!":
            return None
        if b'"serverShutdown"' in frame:
            return Reply(successor=True)
        try:
            ack = _ACK.decode(frame)
        except UNREADABLE:
            return Reply()
        streams = self._requests.pop(ack.id, None) if isinstance(ack.id, int) else None
        refusal = {"code": ack.code, "msg": ack.msg} if ack.error is None and ack.code is not None else ack.error
        if streams is None or refusal is None:
            for stream in streams or ():
                self._missing.pop(stream, None)
            return Reply()
        if len(streams) > 1:
            return Reply(send=[self._subscribe([stream]) for stream in streams])
        message = f"binance refused {streams[0]}: {refusal.get('msg')} (code {refusal.get('code')}). Check its name."
        return Reply(problem=Problem(f"{message} The other subscriptions keep running.", "warn", code=str(refusal.get("code"))))

    def channel(self, frame: bytes) -> bytes | None:
        """Return the part of the stream's name after `@` (`trade`, `kline_1m`). None for anything but a symbol's stream."""
        if not frame.startswith(b'{"stream":"') or frame[11:12] == b"!":
            return None
        end = frame.find(b'"', 11)
        return frame[frame.find(b"@", 11, end) + 1 : end]

    def missing(self) -> Sequence[str]:
        return list(self._missing)

    def _subscribe(self, streams: Sequence[str]) -> bytes:
        number = self._next_id
        self._next_id += 1
        self._requests[number] = streams
        return msgspec.json.encode({"method": "SUBSCRIBE", "params": list(streams), "id": number})


def content(frame: bytes) -> bytes | None:
    """An event's frame without the time at which it was sent (`E`), because that may differ between connections.

    None if the frame is not an event."""
    if not frame.startswith(b'{"stream":"') or frame[11:12] == b"!":
        return None
    at = frame.find(b',"E":')
    end = frame.find(b",", at + 5)
    return frame[:at] + frame[end:] if at > 0 and end > 0 else frame


def subscription(feed: str, topic: str, names: Mapping[str, str] = NO_NAMES) -> tuple[str, str] | None:
    """The channel and the canonical symbol of a topic (`btcusdt@trade`); None for any other text."""
    symbol, _, channel = topic.partition("@")
    name = canonical(symbol.upper(), names)
    return (channel, name) if channel in CHANNELS.get(feed, {}) and name is not None else None


def plans(settings: FeedSettings) -> list[Plan]:
    """One plan for each 1,024 streams, which is the most that a connection may have."""
    streams = [f"{symbol.lower()}@{channel}" for symbol in settings.symbols for channel in settings.channels]
    url = settings.url or STREAM_URL
    options = settings.options if isinstance(settings.options, Options) else Options()
    rest = settings.rest_url or (rest_of(settings.url) if settings.url else REST_URL)
    connections = []
    for at in range(0, len(streams), _STREAMS_PER_CONNECTION):
        some = streams[at : at + _STREAMS_PER_CONNECTION]
        connections.append(
            Plan(
                provider="binance",
                feed=settings.feed,
                name=f"binance-{settings.feed}-{at // _STREAMS_PER_CONNECTION}",
                url=f"{url}/stream" + ("?timeUnit=MICROSECOND" if options.time_unit == "us" else ""),
                subscriptions=some,
                session=partial(BinanceSession, some),
                pace_s=_PACE_S,
                rotate_after_s=settings.rotate_after_s or _ROTATE_AFTER_S,
                content=content,
                refusal=_refusal,
                check=Check(f"{rest}/api/v3/exchangeInfo", partial(_symbol_problems, settings.symbols), partial(_listed, settings.symbols))
                if at == 0
                else None,
            )
        )
    return connections


class _Listed(msgspec.Struct):
    symbol: str
    baseAsset: str = ""  # noqa: N815 the wire's own name
    quoteAsset: str = ""  # noqa: N815
    status: str = ""


class _ExchangeInfo(msgspec.Struct):
    symbols: list[_Listed] = []


def _symbol_problems(symbols: Sequence[str], body: bytes) -> list[str]:
    """A text for each configured symbol that the exchange does not list or does not trade now. `body` is that of exchangeInfo."""
    listed = {entry.symbol: entry for entry in msgspec.json.decode(body, type=_ExchangeInfo).symbols}
    problems = []
    for symbol in symbols:
        entry = listed.get(symbol)
        if entry is None:
            near = difflib.get_close_matches(symbol, listed, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            problems.append(f"binance lists no symbol {symbol!r}{hint}: it will never send data")
        elif entry.status not in ("", "TRADING"):
            problems.append(f"binance does not trade {symbol} now (status {entry.status})")
    return problems


def _listed(symbols: Sequence[str], body: bytes) -> dict[str, str]:
    """The configured symbols to their canonical symbols, split as the exchange splits them. `body` is that of exchangeInfo."""
    wanted = set(symbols)
    listed = msgspec.json.decode(body, type=_ExchangeInfo).symbols
    return {one.symbol: f"{one.baseAsset}/{one.quoteAsset}" for one in listed if one.symbol in wanted and one.baseAsset and one.quoteAsset}
