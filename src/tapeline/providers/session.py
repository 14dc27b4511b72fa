"""The interface between a provider's session and the network layer: frames in, replies out, no I/O.

Each connection gets a new session. A session knows the handshake, the subscriptions and the provider's error messages. It knows no
socket and no clock.
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
    """A problem that the provider reported, and what to do about it.

    `warn`: go on without what was refused. `reconnect`: try again after the usual backoff, but not before `wait_s` seconds.
    `stop`: only a person can help. This connection ends; the others go on.
    """

    message: str
    action: Literal["warn", "reconnect", "stop"]
    wait_s: float = 0.0
    #: What the provider calls it: its code or status. It has few values, so that it can be counted by it.
    code: str = ""


def gravest(problems: Iterable[Problem]) -> Problem | None:
    """The most serious of several problems; the first one if several are equally serious. None if there is no problem."""
    return max(problems, key=lambda problem: ("warn", "reconnect", "stop").index(problem.action), default=None)


#: HTTP statuses that mean that the address, the key, the plan or this machine's location is wrong. A person must fix these.
_FOR_A_PERSON: Final = frozenset({*range(300, 400), 400, 401, 403, 404, 451})


def refusal(status: int, text: str, worked: bool) -> Problem:
    """The problem behind an HTTP status other than 101 in answer to a websocket upgrade. `text`: the provider's own text, if any.

    `worked`: whether a connection to this address has worked since the process started. If so, the configuration is right and the
    problem may pass, so the connection is tried again."""
    message = f"answered HTTP {status}{text and f': {text}'}."
    if status not in _FOR_A_PERSON or worked:
        return Problem(f"{message} Tapeline retries.", "reconnect")
    return Problem(f"{message} Check the url, the key, the feed and the plan.", "stop")


_TICKER: Final = re.compile(r"[A-Z0-9][A-Za-z0-9.\-/]*")
_PAIR: Final = re.compile(r"[A-Z0-9.]+/[A-Z0-9.]+")
#: Root, YYMMDD, C (call) or P (put), and the strike in thousandths: the notation of the Options Clearing Corporation.
_OPTION: Final = re.compile(r"[A-Z0-9.]{1,6}\d{6}[CP]\d{8}")


def us_name_problem(feed: str, symbol: str) -> str:
    """Why a name cannot be a stock, an option or a crypto pair of a US provider; empty if it can."""
    if feed == "crypto":
        return "" if _PAIR.fullmatch(symbol) else "a pair is written like BTC/USD"
    if feed in ("options", "opra", "indicative"):
        return "" if _OPTION.fullmatch(symbol) else "an option is written like SPY251219C00650000"
    return "" if _TICKER.fullmatch(symbol) else "a stock is written like AAPL or BRK.B, in capitals"


def without(text: str, *secrets: Secret) -> str:
    """A provider's text with every secret that it quotes replaced by asterisks."""
    for secret in secrets:
        text = secret.taken_out(text)
    return text


@dataclass(frozen=True, slots=True)
class Reply:
    """What to do after a control frame."""

    send: Sequence[bytes] = ()
    problem: Problem | None = None
    #: Open the connection that replaces this one now, because the provider is about to close it.
    successor: bool = False


class Session(Protocol):
    """One connection's conversation."""

    def opened(self) -> Sequence[bytes]:
        """The messages to send as soon as the socket is open."""

    def received(self, frame: bytes) -> Reply | None:
        """The answer to a control frame; None for market data. Never raises, whatever the bytes."""

    def channel(self, frame: bytes) -> bytes | None:
        """The name of the channel that a frame belongs to, for the watchdog; None for a control frame."""

    def missing(self) -> Sequence[str]:
        """The subscriptions that were requested and are not yet confirmed."""


@dataclass(frozen=True, slots=True)
class Check:
    """A request that checks whether the configured symbols exist: GET `url`, then pass the body to `problems` and `names`.

    `problems(body)` gives a text for each problem. `names(body)` maps the provider's own name of each configured symbol to the canonical
    symbol, split as the exchange itself splits it."""

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
    subscriptions: Sequence[str]
    session: Callable[[], Session] = field(repr=False)  # may hold secrets
    binary: bool = False  # send binary frames rather than text
    headers: Mapping[str, str] = field(default_factory=dict)
    pace_s: float = 0.0  # least time between two sent messages
    rotate_after_s: float = 0.0  # when to replace the connection; 0: the provider sets no limit
    check: Check | None = None
    #: The meaning of an HTTP status other than 101. Arguments: status, the provider's text, whether a connection has ever worked.
    refusal: Callable[[int, str, bool], Problem] = refusal
    account: str = ""  # names the account and endpoint whose connections are limited; empty: no limit
    arbitration: str = ""  # the same name on two lines that carry the same events; empty: a single line
    #: The part of an event's frame that is the same on every line; None for a frame without an event. Never raises, whatever the bytes.
    content: Callable[[bytes], bytes | None] | None = None


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """The settings of one feed, with its secrets."""

    feed: str
    symbols: Sequence[str]
    channels: Sequence[str]
    url: str = ""
    rest_url: str = ""
    #: The provider's own options, of the type `Provider.options`; None: the defaults.
    options: msgspec.Struct | None = None
    key: Secret = NO_SECRET
    secret: Secret = NO_SECRET
    rotate_after_s: float = 0.0


def rest_of(url: str) -> str:
    """The HTTP address for a websocket address. The simulators serve both on one port."""
    return url.replace("ws://", "http://", 1).replace("wss://", "https://", 1)
