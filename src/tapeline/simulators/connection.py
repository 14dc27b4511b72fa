"""One client's socket. It reads whole messages, writes many frames at once, and can fail in the ways that the faults describe."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from socket import SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING, Final, Protocol

from picows import WSFrame, WSListener, WSMsgType, WSTransport

from tapeline.simulators import wire
from tapeline.simulators.events import PING, PONG, Event, Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapeline.simulators.events import Frame, Topic
    from tapeline.simulators.mischief import Mischief
    from tapeline.simulators.session import Session

_HIGH_WATER: Final = 256 * 1024  # with this many unsent bytes, the generator waits for this client
_LONGEST_MESSAGE: Final = 1 << 20  # inbound
_RST: Final = struct.pack("ii", 1, 0)
_BETWEEN_HALVES_S: Final = 0.005
_GRACE_S: Final = 1.0  # for the client's own close frame, and for the last bytes to leave


class Host(Protocol):
    """What a connection tells its simulator."""

    def now(self) -> float:
        """Monotonic seconds."""

    def wake(self) -> None:
        """A slow client has caught up."""

    def entered(self, connection: Connection) -> None:
        """A websocket has opened."""

    def left(self, connection: Connection) -> None:
        """A websocket is gone."""

    def subscribed(self, connection: Connection, added: Sequence[Topic]) -> None:
        """A client's subscriptions have changed."""

    def handed_over(self, connection: Connection, frames: Sequence[Frame], *, repeat: bool) -> None:
        """Frames were handed to a socket."""

    def audience_changed(self) -> None:
        """The set of clients or their topics has changed; the audience must be computed again."""


class Connection(WSListener):
    """A websocket from its upgrade to its end."""

    def __init__(self, simulator: Host, session: Session, number: int, mischief: Mischief) -> None:
        self.simulator = simulator
        self.session = session
        self.number = number
        self.mischief = mischief
        self.clean = False
        self._stale = False  # this client gets no more data
        self.full_since: float | None = None  # when its buffer filled up (loop seconds)
        self.backlog: deque[Event] = deque()  # events that it must get again before any new ones
        self.opened_s = 0.0
        self._transport: WSTransport | None = None
        self._parts: list[bytes] = []
        self._compressed = False
        self._held: bytearray | None = None  # bytes to send after the second half of a split frame
        self._ending = False

    # what picows calls

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Report the client to the simulator and to its session, and limit the send buffer to 256 KiB."""
        self._transport = transport
        transport.underlying_transport.set_write_buffer_limits(high=_HIGH_WATER, low=_HIGH_WATER // 4)
        self.opened_s = self.simulator.now()
        self.simulator.entered(self)
        self.session.opened(self, self.opened_s)

    def on_ws_frame(self, _transport: WSTransport, frame: WSFrame) -> None:
        """Answer a ping or a close, and pass a whole message on to the session. After the connection has begun to end, only a close counts.

        A message of more than 1 MiB brings a close with 1009, and broken compression one with 1007.
        """
        now = self.simulator.now()
        if frame.msg_type == WSMsgType.CLOSE:
            self._closed_by_client(frame.get_payload_as_bytes())
        if self._ending:
            return
        self.session.heard(now)
        if frame.msg_type == WSMsgType.PING:
            self._write(wire.frame(frame.get_payload_as_bytes(), PONG))
        elif frame.msg_type == WSMsgType.PONG:
            self.session.pong(frame.get_payload_as_bytes(), now)
        else:
            self._assemble(frame, now)

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        """Report the end of the socket to the session and to the simulator, whoever ended it."""
        self._listen_no_more()
        self.session.left(self.simulator.now())
        self.simulator.left(self)

    def pause_writing(self) -> None:
        """Note since when more than 256 KiB wait to be sent. While a client is `full`, the simulator makes no events for anyone."""
        self.full_since = self.simulator.now()

    def resume_writing(self) -> None:
        """Let the simulator go on, because at most 64 KiB still wait to be sent."""
        self.full_since = None
        self.simulator.wake()

    # what sessions call

    def say(self, payload: bytes, opcode: int) -> None:
        """Send a message at once, compressed if the session compresses. Nothing is sent after the connection has begun to end."""
        self._write(wire.deflated_frame(payload, opcode) if self._deflates(opcode) else wire.frame(payload, opcode))

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame, and give the client up to 1 s to send its own. Returns at once. A second call does nothing."""
        if not self._ending:
            self._write(wire.close_frame(code, reason))
            self._end(_GRACE_S if not self.clean else 0.0)

    def hang_up(self) -> None:
        if not self._ending:
            self._end(0.0)

    def later(self, seconds: float, then: Sequence[bytes], opcode: int) -> None:
        loop = asyncio.get_running_loop()
        for payload in then:
            loop.call_later(seconds, self.say, payload, opcode)

    def subscribed(self, added: Sequence[Topic]) -> None:
        self.simulator.subscribed(self, added)

    # what the simulator calls

    @property
    def listens(self) -> bool:
        """Whether this client gets data."""
        return not (self._stale or self._ending)

    @property
    def full(self) -> bool:
        """Whether this client must read before it gets more."""
        return self.full_since is not None and self.listens

    def deliver(self, events: Sequence[Event], *, repeat: bool = False) -> None:
        """Send events, with the chosen faults, and write each to the journal."""
        session, mischief = self.session, self.mischief
        if mischief.active:
            packed = session.pack(mischief.events(events))
            self.transmit(mischief.frames(session, packed), repeat=repeat)
        else:
            self.transmit(session.pack(events), repeat=repeat)

    def transmit(self, frames: Sequence[Frame], *, repeat: bool = False) -> None:
        """Send frames, and write their events to the journal."""
        if not frames:
            return
        if self.session.deflate:
            data = b"".join([wire.deflated_frame(frame.payload, frame.opcode) for frame in frames])
        else:
            head = wire.header
            parts = [part for frame in frames for part in (head(frame.opcode, len(frame.payload)), frame.payload)]
            data = b"".join(parts)
        if self.mischief.splits():
            self._write_in_two(data)
        else:
            self._write(data)
        self.simulator.handed_over(self, frames, repeat=repeat)

    def reset(self) -> None:
        """Send the beginning of a frame, then reset the TCP connection."""
        if self._transport is None or self._ending:
            return
        self._write(wire.header(1, 200) + b'{"e":"trade","E":17')
        self._listen_no_more()
        raw = self._transport.underlying_transport
        raw.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _RST)
        asyncio.get_running_loop().call_later(0.02, raw.abort)

    def stale(self) -> None:
        """Send no more data; the rest of the conversation goes on."""
        self._stale = True
        self.simulator.audience_changed()

    def play_dead(self) -> None:
        """Stop sending and reading. The socket stays open."""
        if self._transport is not None and not self._ending:
            self._listen_no_more()
            raw = self._transport.underlying_transport
            raw.pause_reading()

    def drop(self) -> None:
        """End the connection at once, without a close frame."""
        self._listen_no_more()
        if self._transport is not None:
            self._transport.underlying_transport.abort()

    # inside

    def _listen_no_more(self) -> None:
        """Send nothing more to this client, and write nothing more to the journal for it."""
        if not self._ending:
            self._ending = True
            self.simulator.audience_changed()

    def _closed_by_client(self, payload: bytes) -> None:
        self.clean = True
        if self._ending and self._transport is not None:
            self._transport.underlying_transport.close()
        else:
            self.close(int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1000)

    def _assemble(self, frame: WSFrame, now: float) -> None:
        if frame.msg_type != WSMsgType.CONTINUATION:
            self._parts, self._compressed = [], frame.rsv1
        self._parts.append(frame.get_payload_as_bytes())
        if sum(map(len, self._parts)) > _LONGEST_MESSAGE:
            self.close(1009, "message too big")
        elif frame.fin:
            whole, self._parts = b"".join(self._parts), []
            try:
                message = wire.inflate(whole, _LONGEST_MESSAGE) if self._compressed else whole
            except ValueError:
                self.close(1007, "invalid compressed data")
                return
            self.session.message(message, now)

    def _deflates(self, opcode: int) -> bool:
        return self.session.deflate and opcode not in (PING, PONG)

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._ending:
            return
        if self._held is not None:
            self._held += data
        else:
            self._transport.underlying_transport.write(data)

    def _write_in_two(self, data: bytes) -> None:
        """Cut inside the last frame. Later bytes wait until the second half has been sent."""
        cut = len(data) - min(len(data) // 2, 50)
        self._write(data[:cut])
        if self._held is None:
            self._held = bytearray(data[cut:])
            asyncio.get_running_loop().call_later(_BETWEEN_HALVES_S, self._release)
        else:
            self._held += data[cut:]

    def _release(self) -> None:
        held, self._held = self._held, None
        if held:
            self._write(bytes(held))

    def _end(self, grace_s: float) -> None:
        """Flush and close. If closing takes longer than the grace period, abort."""
        self._listen_no_more()
        if self._transport is None:
            return
        raw, loop = self._transport.underlying_transport, asyncio.get_running_loop()
        if self._held:
            raw.write(bytes(self._held))
            self._held = None
        loop.call_later(grace_s, raw.close)
        loop.call_later(grace_s + _GRACE_S, raw.abort)
