"""Alpaca's websocket session: it authenticates, subscribes to channels and reads the control messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Literal

import msgspec

from tapeline.providers.alpaca.normalize import CHANNELS
from tapeline.providers.events import NO_NAMES, UNREADABLE
from tapeline.providers.session import FeedSettings, Plan, Problem, Reply, gravest, us_name_problem, without
from tapeline.secret import Secret

STREAM_URL: Final = "wss://stream.data.alpaca.markets"
HISTORY_URL: Final = "https://data.alpaca.markets"
_PATHS: Final = {
    "iex": "v2/iex",
    "sip": "v2/sip",
    "delayed_sip": "v2/delayed_sip",
    "test": "v2/test",
    "opra": "v1beta1/opra",
    "indicative": "v1beta1/indicative",
    "crypto": "v1beta3/crypto/us",
}
_MSGPACK_ONLY: Final = frozenset({"opra", "indicative"})
#: How long to wait for the account's connection to become free. A session that ended without a close counts for about 90 s more.
_COOL_DOWN_S: Final = 30.0
_FIX: Final = "Fix the configuration of this provider."
#: Error code to the action, the least wait in seconds, and advice. For any other code the action is to reconnect.
_ERRORS: Final[dict[int, tuple[Literal["warn", "reconnect", "stop"], float, str]]] = {
    400: ("stop", 0.0, _FIX),
    401: ("reconnect", 0.0, ""),
    402: ("stop", 0.0, "Check TAPELINE_ALPACA_KEY and TAPELINE_ALPACA_SECRET."),
    403: ("warn", 0.0, ""),
    404: ("reconnect", 0.0, ""),
    405: ("warn", 0.0, "The plan's symbol limit is reached. Earlier subscriptions keep running. Configure fewer symbols."),
    406: ("reconnect", _COOL_DOWN_S, "Another process uses this account's connection. Stop it. Alpaca frees a dead one within 90 s."),
    407: ("reconnect", 0.0, "This machine read too slowly. Backfill the events that were missed."),
    409: ("stop", 0.0, "The plan does not include this feed. Choose another feed."),
    410: ("stop", 0.0, "This feed does not offer one of the channels. Remove it."),
    411: ("stop", 0.0, "The key has no right to this feed."),
    412: ("stop", 0.0, "Option feeds accept only msgpack."),
    413: ("stop", 0.0, "List the option contracts instead of *."),
    500: ("reconnect", 0.0, ""),
}
#: The tag of each kind of market data, to the channel's name in the configuration.
_DATA: Final = {b"t": b"trades", b"q": b"quotes", b"b": b"bars", b"u": b"updatedBars", b"d": b"dailyBars"}


class _Control(msgspec.Struct):
    T: str = ""
    msg: str = ""
    code: int = 0
    trades: list[str] = []
    quotes: list[str] = []
    bars: list[str] = []
    updatedBars: list[str] = []  # noqa: N815 the wire's own name
    dailyBars: list[str] = []  # noqa: N815


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The options of an Alpaca block."""

    codec: Literal["json", "msgpack"] = "json"  # the wire format for stocks and crypto; option feeds always use msgpack


class AlpacaSession:
    """The conversation with Alpaca: greeting, auth, subscribe.

    The acknowledgement lists all subscriptions of the connection. The session compares it with what was requested."""

    def __init__(self, key: Secret, secret: Secret, codec: Literal["json", "msgpack"], wanted: Mapping[str, Sequence[str]]) -> None:
        self._key, self._secret, self._wanted = key, secret, wanted
        self._missing = [f"{channel}.{symbol}" for channel, symbols in wanted.items() for symbol in symbols]
        if codec == "json":
            self._encode = msgspec.json.encode
            self._controls: Callable[[bytes], list[_Control]] = msgspec.json.Decoder(list[_Control]).decode
            self._heads: tuple[bytes, ...] = (b'[{"T":"success"', b'[{"T":"subscription"', b'[{"T":"error"')
            self._mark, self._end = b'"T":"', b'"'
        else:
            self._encode = msgspec.msgpack.encode
            self._controls = msgspec.msgpack.Decoder(list[_Control]).decode
            self._heads = tuple(b"\xa1T" + bytes([0xA0 | len(name)]) + name for name in (b"success", b"subscription", b"error"))
            self._mark, self._end = b"\xa1T\xa1", b""

    def opened(self) -> Sequence[bytes]:
        """Return nothing, because Alpaca greets first. `received` answers the greeting with the login."""
        return ()

    def received(self, frame: bytes) -> Reply | None:
        """Answer the greeting with the login, and the login's success with the subscriptions.

        An error becomes a problem, without the key and the secret in its text. If a frame has several errors, the gravest is returned.
        """
        if not (frame.startswith(self._heads) if self._end else frame[2:].startswith(self._heads)):
            return None
        try:
            controls = self._controls(frame)
        except UNREADABLE:
            return Reply()
        send: list[bytes] = []
        problems: list[Problem] = []
        for control in controls:
            if control.T == "success" and control.msg == "connected":
                send.append(self._encode({"action": "auth", "key": self._key.reveal(), "secret": self._secret.reveal()}))
            elif control.T == "success" and control.msg == "authenticated":
                send.append(self._encode({"action": "subscribe", **self._wanted}))
            elif control.T == "subscription":
                has = {channel: set(getattr(control, channel)) for channel in self._wanted}
                requested = ((channel, symbol) for channel, symbols in self._wanted.items() for symbol in symbols)
                self._missing = [f"{channel}.{symbol}" for channel, symbol in requested if symbol not in has[channel]]
            elif control.T == "error":
                action, wait_s, advice = _ERRORS.get(control.code, ("reconnect", 0.0, ""))
                message = without(control.msg, self._key, self._secret).rstrip(".")
                text = f"alpaca says {control.code}: {message}. {advice}".strip()
                problems.append(Problem(text, action, wait_s, str(control.code)))
        return Reply(send, gravest(problems))

    def channel(self, frame: bytes) -> bytes | None:
        """Return the configuration's name (`trades`) of the first event's channel, although a frame may hold events of several.

        None for a control frame, and for a frame that begins with a correction, a cancel or another notice.
        """
        mark = frame.find(self._mark, 0, 24)
        at = mark + len(self._mark)
        closed = frame[at + 1 : at + 1 + len(self._end)] == self._end
        return _DATA.get(frame[at : at + 1]) if mark >= 0 and closed else None

    def missing(self) -> Sequence[str]:
        return self._missing


def name_problem(feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """Why events of a canonical symbol would not be kept under that name; empty if they would."""
    del names
    return us_name_problem(feed, symbol)


def symbol_of(feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """The symbol unchanged, because Alpaca's own names are canonical."""
    del feed, names
    return symbol


def subscription(feed: str, topic: str, names: Mapping[str, str] = NO_NAMES) -> tuple[str, str] | None:
    """The channel and the symbol of a topic (`trades.AAPL`); None for any other text."""
    del names
    channel, _, symbol = topic.partition(".")
    return (channel, symbol) if channel in CHANNELS.get(feed, {}) and symbol else None


def plans(settings: FeedSettings) -> list[Plan]:
    """A plan for one connection, because an account usually may have one connection to each endpoint."""
    options = settings.options if isinstance(settings.options, Options) else Options()
    codec = "msgpack" if settings.feed in _MSGPACK_ONLY else options.codec
    wanted = {channel: list(settings.symbols) for channel in settings.channels}
    return [
        Plan(
            provider="alpaca",
            feed=settings.feed,
            name=f"alpaca-{settings.feed}",
            url=f"{settings.url or STREAM_URL}/{_PATHS[settings.feed]}",
            subscriptions=[f"{channel}.{symbol}" for channel in settings.channels for symbol in settings.symbols],
            session=partial(AlpacaSession, settings.key, settings.secret, codec, wanted),
            binary=codec == "msgpack",
            headers={"Content-Type": "application/msgpack" if codec == "msgpack" else "application/json"},
            rotate_after_s=settings.rotate_after_s,
        )
    ]
