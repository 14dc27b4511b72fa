"""The interfaces for what differs between providers: how clients connect, what they may request, how events are packed into frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tapeline.simulators.events import Event, Frame, Topic
    from tapeline.simulators.tape import Tape


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request without a body. The path is percent-decoded and has no query; header names are in lower case."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    method: str = "GET"


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply that is not an upgrade."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Link(Protocol):
    """A session's way to its client."""

    number: int  # the connection's number, counted from 1
    clean: bool  # the client has sent a close frame

    def say(self, payload: bytes, opcode: int) -> None:
        """Send a control message or a ping."""

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame, then hang up."""

    def hang_up(self) -> None:
        """Send what is still waiting, then hang up without a close frame."""

    def later(self, seconds: float, then: Sequence[bytes], opcode: int) -> None:
        """Send control messages after some seconds."""

    def subscribed(self, added: Sequence[Topic]) -> None:
        """The session's topics have changed; these are new."""


class Session(Protocol):
    """One client's conversation. `topics` holds its subscriptions. Times are loop seconds."""

    feed: str
    topics: set[Topic]
    deflate: bool  # compress what is sent

    def opened(self, link: Link, now: float, /) -> None:
        """The socket is open."""

    def heard(self, now: float, /) -> None:
        """A frame has arrived. Pings and pongs count too."""

    def message(self, data: bytes, now: float, /) -> None:
        """A whole message has arrived."""

    def pong(self, payload: bytes, now: float, /) -> None:
        """A pong has arrived."""

    def tick(self, now: float, /) -> None:
        """Do what is due at this time. Called several times a second."""

    def pack(self, events: Sequence[Event]) -> list[Frame]:
        """Frames that carry these events."""

    def slow(self) -> None:
        """Tell a client that it is too slow, before it is dropped, if the provider has a message for this."""

    def day_end(self) -> None:
        """The provider's forced disconnect."""

    def left(self, now: float, /) -> None:
        """The socket is gone."""


class Provider(Protocol):
    """One provider: its market's tape, and a session for each client."""

    @property
    def tape(self) -> Tape:
        """Turns the market into this provider's events."""

    @property
    def listings(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of the lists of instruments by market, as they are on the wire. A change is in the next answer."""

    def enter(self, request: Request) -> Session | Reply:
        """Let a websocket client in, or refuse the upgrade."""

    def get(self, request: Request, /) -> Reply | None:
        """Answer an HTTP request. None if nothing is served at the path."""

    def happened(self, events: Sequence[Event], /) -> None:
        """Note events for the provider's history, if the simulator serves one, even if they are sent to no socket."""

    def resolve(self, topic: Topic) -> list[Topic]:
        """The single symbols behind a topic, which may be a wildcard."""
