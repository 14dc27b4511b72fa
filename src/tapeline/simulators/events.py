"""What a simulator sends: events of a channel and symbol, and the websocket frames that carry them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

#: Websocket opcodes (RFC 6455).
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_encoder: Final = msgspec.json.Encoder()


class Topic(NamedTuple):
    """What a client subscribes to: a channel of a symbol in a feed. The symbol `*` stands for every symbol."""

    feed: str
    channel: str
    symbol: str


class Event:
    """One event of the market.

    `id` is the provider's own id, or None if there is none. `ns` is the event time in nanoseconds since the epoch. `fields` holds the
    fields as on the wire, in the same order. `raw` marks an event that a fault made unreadable on purpose.
    """

    __slots__ = ("_json", "fields", "id", "ns", "raw", "topic")

    def __init__(
        self,
        topic: Topic,
        id: int | str | None,  # noqa: A002 - the journal's own word
        ns: int,
        fields: dict[str, Any],
        json: bytes | None = None,
        raw: bool = False,
    ) -> None:
        self.topic = topic
        self.id = id
        self.ns = ns
        self.fields = fields
        self._json = json
        self.raw = raw

    def json(self) -> bytes:
        """The event as JSON text. It is encoded once."""
        text = self._json
        if text is None:
            text = self._json = _encoder.encode(self.fields)
        return text


class Frame(NamedTuple):
    """One websocket message: its payload and each event in it, with the JSON text that the journal gets."""

    payload: bytes
    opcode: int
    entries: list[tuple[Event, bytes]]
    repeat: bool = False
