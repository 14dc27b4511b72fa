"""What differs between providers: how a client is let in, what it may ask for, how events are packed into frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tapeline.simulators.events import Event, Frame, Topic
    from tapeline.simulators.tape import Tape


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request without a body: the path percent-decoded and without its query, header names in lower case."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    method: str = "GET"


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply that is no upgrade."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Link(Protocol):
    """A session's way to its client."""

    number: int  # of the connection, counted from 1
    clean: bool  # the client said good-bye with a close frame

    def say(self, payload: bytes, opcode: int) -> None:
        """Send a control message or a ping."""

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame, then hang up."""

    def hang_up(self) -> None:
        """Hang up after what was said, without a close frame."""

    def later(self, seconds: float, then: Sequence[bytes], opcode: int) -> None:
        """Send control messages after some seconds."""

    def subscribed(self, added: Sequence[Topic]) -> None:
        """The session's topics have changed; these are new."""


class Session(Protocol):
    """One client's conversation. `topics` is what it subscribed to; times are loop seconds."""

    feed: str
    topics: set[Topic]
    deflate: bool  # compress what is sent

    def opened(self, link: Link, now: float, /) -> None:
        """The socket is open."""

    def heard(self, now: float, /) -> None:
        """Any frame has arrived, pings and pongs included."""

    def message(self, data: bytes, now: float, /) -> None:
        """A whole message has arrived."""

    def pong(self, payload: bytes, now: float, /) -> None:
        """A pong has arrived."""

    def tick(self, now: float, /) -> None:
        """Time has passed: called several times a second."""

    def pack(self, events: Sequence[Event]) -> list[Frame]:
        """Frames that carry these events."""

    def slow(self) -> None:
        """The client is too slow: say so, if the provider has a word for it, before it is dropped."""

    def day_end(self) -> None:
        """The provider's forced disconnect."""

    def left(self, now: float, /) -> None:
        """The socket is gone."""


class Provider(Protocol):
    """One provider: its market's tape, and a session for each client."""

    @property
    def tape(self) -> Tape:
        """What tells the market."""

    def enter(self, request: Request) -> Session | Reply:
        """Let a websocket client in, or refuse the upgrade."""

    def get(self, request: Request, /) -> Reply | None:
        """Answer an HTTP request; None when nothing is served there."""

    def happened(self, events: Sequence[Event], /) -> None:
        """Note events for the provider's history, where the simulator serves one, whether or not a socket is sent them."""

    def resolve(self, topic: Topic) -> list[Topic]:
        """The single symbols behind a topic, which may be a wildcard."""
