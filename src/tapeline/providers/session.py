"""What a provider's session says to the network layer: sans-I/O, frames in, replies out.

A session is made anew for each connection. It knows the handshake, the subscriptions and the provider's words for a problem; it knows
no socket and no clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import msgspec

from tapeline.secret import NO_SECRET, Secret


@dataclass(frozen=True, slots=True)
class Problem:
    """What the provider said no to, and what to do about it.

    `warn`: go on without what was refused. `reconnect`: try again after the usual backoff, at least `wait_s`.
    `stop`: only a person can help; this provider ends, the others go on.
    """

    message: str
    action: Literal["warn", "reconnect", "stop"]
    wait_s: float = 0.0


def gravest(problems: Iterable[Problem]) -> Problem | None:
    """Of several problems the one to act on; the first of equally grave ones."""
    return max(problems, key=lambda problem: ("warn", "reconnect", "stop").index(problem.action), default=None)


#: What an upgrade is answered with where the address, the key or the plan is at fault, or the place that one asks from.
_FOR_A_PERSON: Final = frozenset({*range(300, 400), 400, 401, 403, 404, 451})


def refusal(status: int, words: str, worked: bool) -> Problem:
    """The meaning of an HTTP status other than 101 in answer to a websocket's upgrade. `words`: the provider's own, if any.

    Where a connection to that address has ever worked since the start, nothing that we say is wrong, so it may pass."""
    said = f"answered HTTP {status}{words and f': {words}'}."
    if status not in _FOR_A_PERSON or worked:
        return Problem(f"{said} It is tried again.", "reconnect")
    return Problem(f"{said} Check the url, the key, the feed and the plan.", "stop")


_TICKER: Final = re.compile(r"[A-Z0-9][A-Za-z0-9.\-/]*")
_PAIR: Final = re.compile(r"[A-Z0-9.]+/[A-Z0-9.]+")
#: Root, YYMMDD, call or put, strike in thousandths: as the Options Clearing Corporation writes it.
_OPTION: Final = re.compile(r"[A-Z0-9.]{1,6}\d{6}[CP]\d{8}")


def us_name_problem(feed: str, symbol: str) -> str:
    """Why a name can be no stock, option or pair of coins at a US provider's; empty: it can."""
    if feed == "crypto":
        return "" if _PAIR.fullmatch(symbol) else "a pair is written such as BTC/USD"
    if feed in ("options", "opra", "indicative"):
        return "" if _OPTION.fullmatch(symbol) else "an option is written such as SPY251219C00650000"
    return "" if _TICKER.fullmatch(symbol) else "a stock is written such as AAPL or BRK.B, in capitals"


def without(text: str, *secrets: Secret) -> str:
    """A provider's words, with any secret that it quotes back left out."""
    for secret in secrets:
        text = secret.taken_out(text)
    return text


@dataclass(frozen=True, slots=True)
class Reply:
    """What to do after a control frame."""

    send: Sequence[bytes] = ()
    problem: Problem | None = None
    #: Open the connection that replaces this one now: the provider is about to close it.
    successor: bool = False


class Session(Protocol):
    """One connection's conversation."""

    def opened(self) -> Sequence[bytes]:
        """What to send as soon as the socket is open."""

    def received(self, frame: bytes) -> Reply | None:
        """The answer to a control frame; None for market data. Never raises, whatever the bytes."""

    def channel(self, frame: bytes) -> bytes | None:
        """A name for the kind of data a frame carries, for the watchdog; None for a control frame."""

    def missing(self) -> Sequence[str]:
        """What was asked for and is not confirmed."""


@dataclass(frozen=True, slots=True)
class Check:
    """A request that tells whether what is configured exists: GET `url`, then `problems(body)` in words.

    `names(body)`: the canonical symbol of each configured one, by its own name, as the exchange itself splits it."""

    url: str
    problems: Callable[[bytes], Sequence[str]]
    names: Callable[[bytes], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Plan:
    """One connection to keep open."""

    provider: str
    feed: str
    name: str
    url: str
    topics: Sequence[str]
    session: Callable[[], Session] = field(repr=False)  # may hold secrets
    binary: bool = False  # send binary frames rather than text
    headers: Mapping[str, str] = field(default_factory=dict)
    pace_s: float = 0.0  # least time between messages sent
    rotate_after_s: float = 0.0  # 0: the provider sets no limit to a connection's life
    check: Check | None = None
    #: What another answer to the upgrade than 101 means: status, the provider's words, whether a connection has ever worked.
    refusal: Callable[[int, str, bool], Problem] = refusal
    account: str = ""  # names what may have one connection alone; empty: as many as one likes
    pair: str = ""  # the same name for two lines that carry the same; empty: a line by itself
    #: What of an event's frame is the same on every line; None for a frame that is no event. Never raises, whatever the bytes.
    content: Callable[[bytes], bytes | None] | None = None


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """What the configuration says of one feed, with its secrets."""

    feed: str
    symbols: Sequence[str]
    channels: Sequence[str]
    url: str = ""
    rest_url: str = ""
    #: The provider's own, of the type that its `Provider.options` names; None: as they are usually.
    options: msgspec.Struct | None = None
    key: Secret = NO_SECRET
    secret: Secret = NO_SECRET
    rotate_after_s: float = 0.0


def rest_of(url: str) -> str:
    """The HTTP address beside a websocket address: the stand-ins serve both on one port."""
    return url.replace("ws://", "http://", 1).replace("wss://", "https://", 1)
