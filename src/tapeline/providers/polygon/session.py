"""Polygon.io's websocket session: it authenticates, subscribes and reads the status messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from tapeline.providers.events import NO_NAMES, UNREADABLE
from tapeline.providers.polygon.normalize import CHANNELS
from tapeline.providers.session import FeedSettings, Plan, Problem, Reply, gravest, us_name_problem, without
from tapeline.records import NS_PER_S
from tapeline.secret import Secret

STREAM_URL: Final = "wss://socket.massive.com"
#: The addresses for plans without real-time data, and the age of the events that they send (ns): 15 minutes.
DELAYED_URLS: Final = ("wss://delayed.massive.com", "wss://delayed.polygon.io")
DELAY_NS: Final = 900 * NS_PER_S
HISTORY_URL: Final = "https://api.massive.com"
#: The server of the flat files. It speaks the S3 protocol.
FILES_URL: Final = "https://files.massive.com"
FILES_BUCKET: Final = "flatfiles"
#: Keeps a subscribe message well under the megabyte that the provider's own clients allow.
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
    """The conversation with Polygon.io: greeting, auth, subscribe.

    The provider acknowledges each topic by name. It does not answer for an unknown topic, which so stays among the missing."""

    def __init__(self, key: Secret, subscriptions: Sequence[str]) -> None:
        self._key = key
        self._subscriptions = subscriptions
        self._missing = dict.fromkeys(subscriptions)

    def opened(self) -> Sequence[bytes]:
        """Return nothing, because Polygon.io greets first. `received` answers the greeting with the login."""
        return ()

    def received(self, frame: bytes) -> Reply | None:
        """Answer the greeting with the login, and the login's success with the subscriptions, at most 500 topics in a message.

        An error becomes a problem, without the key in its text. If a frame has several errors, the gravest is returned.
        """
        if not _compact(frame).startswith(b'[{"ev":"status"'):
            return None
        try:
            statuses = _STATUSES.decode(frame)
        except UNREADABLE:
            return Reply()
        send: list[bytes] = []
        problems: list[Problem | None] = []
        for status in statuses:
            if status.status == "connected":
                send.append(msgspec.json.encode({"action": "auth", "params": self._key.reveal()}))
            elif status.status == "auth_success":
                send += self._subscribe()
            elif status.status == "success":
                self._missing.pop(status.message.removeprefix("subscribed to: "), None)
            else:
                problems.append(self._problem(status))
        return Reply(send, gravest(problem for problem in problems if problem is not None))

    def _subscribe(self) -> list[bytes]:
        size = _TOPICS_PER_MESSAGE
        groups = [self._subscriptions[at : at + size] for at in range(0, len(self._subscriptions), size)]
        return [msgspec.json.encode({"action": "subscribe", "params": ",".join(some)}) for some in groups]

    def _problem(self, status: _StatusFrame) -> Problem | None:
        message = without(status.message.strip(), self._key).rstrip(".")
        text = f"polygon says {status.status}{': ' if message else ''}{message}."
        code = status.status
        match code:
            case "auth_failed":
                return Problem(f"{text} Check the key (TAPELINE_POLYGON_KEY) and that the plan includes websockets.", "stop", code=code)
            case "max_connections":
                return Problem(f"{text} Another process uses this key's connection. Stop it.", "reconnect", _COOL_DOWN_S, code)
            case "error" if "access real-time" in status.message:
                return Problem(f'{text} Set url = "wss://delayed.massive.com" for this provider.', "stop", code=code)
            case "error":
                return Problem(f"{text} Polygon refuses topics outside the plan. The other subscriptions keep running.", "warn", code=code)
            case "auth_timeout" | "slow_consumer" | "force_disconnect":
                return Problem(text, "reconnect", code=code)
        return None

    def channel(self, frame: bytes) -> bytes | None:
        """Return the type (`T`, `AM`) of the frame's first event, although a frame may hold events of several types.

        None for a status frame, and for a frame that does not begin like an array of events.
        """
        head = _compact(frame)
        if not head.startswith(b'[{"ev":"') or head.startswith(b'[{"ev":"status"'):
            return None
        return head[8 : head.find(b'"', 8)]

    def missing(self) -> Sequence[str]:
        return list(self._missing)


def name_problem(feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """Why events of a canonical symbol would not be kept under that name; empty if they would."""
    del names
    return us_name_problem(feed, symbol)


def symbol_of(feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """The canonical symbol for a canonical symbol or for the provider's own name (`BTC-USD`, `O:SPY251219C00650000`)."""
    del names
    return symbol.removeprefix("X:").replace("-", "/") if feed == "crypto" else symbol.removeprefix("O:")


def subscription(feed: str, topic: str, names: Mapping[str, str] = NO_NAMES) -> tuple[str, str] | None:
    """The channel and the canonical symbol of a topic (`T.AAPL`, `T.O:SPY251219C00650000`, `XT.BTC-USD`); None for any other text."""
    del names
    channel, _, symbol = topic.partition(".")
    return (channel, symbol_of(feed, symbol)) if channel in CHANNELS.get(feed, {}) and symbol else None


def plans(settings: FeedSettings) -> list[Plan]:
    """A plan for one connection, because an account may have one connection for each market."""
    subscriptions = [f"{channel}.{symbol}" for channel in settings.channels for symbol in settings.symbols]
    return [
        Plan(
            provider="polygon",
            feed=settings.feed,
            name=f"polygon-{settings.feed}",
            url=f"{settings.url or STREAM_URL}/{settings.feed}",
            subscriptions=subscriptions,
            session=partial(PolygonSession, settings.key, subscriptions),
            rotate_after_s=settings.rotate_after_s,
        )
    ]
