"""The session that asks Meridian for its channels: `key;...`, then a line `want;channel;symbol` for each, each answered `ok` or `no`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Literal

import msgspec

from tapeline.providers.events import NO_NAMES
from tapeline.providers.session import FeedSettings, Plan, Problem, Reply, refusal
from tapeline.secret import Secret
from tapeline_meridian.normalize import CHANNELS
from tapeline_meridian.wire import canonical

STREAM_URL: Final = "wss://stream.meridian.example"
HISTORY_URL: Final = "https://history.meridian.example"
#: Meridian answers so while it counts its bars at night.
_COUNTING: Final = 418


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What can be set for Meridian."""

    book: Literal["best", "all"] = "best"  # every change of the best price, or of anything


class MeridianSession:
    """No socket and no clock: frames in, lines to send out."""

    def __init__(self, key: Secret, subscriptions: Sequence[str], book: str) -> None:
        self._key, self._subscriptions, self._book = key, subscriptions, book
        self._missing = dict.fromkeys(subscriptions)

    def opened(self) -> Sequence[bytes]:
        """Return the login with the wanted kind of book, then one message with a line for each topic."""
        wants = [f"want;{topic}" for topic in self._subscriptions]
        return [f"key;{self._key.reveal()};{self._book}".encode(), "\n".join(wants).encode()]

    def received(self, frame: bytes) -> Reply | None:
        """Read the answers. `ok` confirms a topic, `no` is a warning, and `locked` stops the connection until a person fixes the key."""
        if frame.startswith((b"deal;", b"book;")):
            return None
        reply = Reply()
        for line in frame.decode(errors="replace").splitlines():
            status, _, rest = line.partition(";")
            if status == "ok":
                self._missing.pop(rest, None)
            elif status == "no":
                reply = Reply(problem=Problem(f"meridian refused {rest}. Check its name. The other subscriptions keep running.", "warn"))
            elif status == "locked":
                return Reply(problem=Problem("meridian does not know the key. Check it.", "stop"))
        return reply

    def channel(self, frame: bytes) -> bytes | None:
        """Return `deal` or `book`, which is the channel of the frame's first line. None for any other frame."""
        return frame[:4] if frame.startswith((b"deal;", b"book;")) else None

    def missing(self) -> Sequence[str]:
        return list(self._missing)


def plans(settings: FeedSettings) -> list[Plan]:
    """One connection for everything."""
    options = settings.options if isinstance(settings.options, Options) else Options()
    subscriptions = [f"{channel};{symbol}" for channel in settings.channels for symbol in settings.symbols]
    return [
        Plan(
            provider="meridian",
            feed=settings.feed,
            name=f"meridian-{settings.feed}",
            url=f"{settings.url or STREAM_URL}/metals",
            subscriptions=subscriptions,
            session=partial(MeridianSession, settings.key, subscriptions, options.book),
            rotate_after_s=settings.rotate_after_s,
            refusal=_refusal,
        )
    ]


def _refusal(status: int, text: str, worked: bool) -> Problem:
    if status == _COUNTING:
        return Problem(f"answered HTTP {status}: it counts its bars. Tapeline retries.", "reconnect")
    return refusal(status, text, worked)


def subscription(feed: str, topic: str, names: Mapping[str, str] = NO_NAMES) -> tuple[str, str] | None:
    """The channel and the canonical symbol of a topic (`deal;XAU-CHF`)."""
    del names
    channel, _, symbol = topic.partition(";")
    return (channel, canonical(symbol)) if channel in CHANNELS.get(feed, {}) and symbol else None


def symbol_of(feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str | None:
    """The canonical symbol, of itself or of Meridian's own name for it (`XAU-CHF`)."""
    del feed, names
    metal, _, currency = canonical(symbol).partition("/")
    return f"{metal}/{currency}" if metal and currency else None


def name_problem(feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """Why no event is kept under a canonical symbol; empty: they are."""
    del feed, names
    return "" if symbol.count("/") == 1 and symbol.isupper() else "a metal is written like XAU/CHF"
