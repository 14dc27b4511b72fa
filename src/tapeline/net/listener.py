"""One socket: frames go to the recorder first, then to the session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
)

from tapeline.net.rate_limit import TOO_FAST_S
from tapeline.net.staleness import StalenessWatchdog
from tapeline.providers.session import Plan, Problem, Session
from tapeline.records import RawKind
from tapeline.retry.backoff import backoff

log = logging.getLogger(__name__)

#: A message comes in at most so many parts.
_MOST_PARTS: Final = 65_536


class Recorder(Protocol):
    """Takes raw records; durable soon after. `full` says that no more can be taken for now: stop reading."""

    def record(self, plan: Plan, connection: str, kind: RawKind, received_ns: int, payload: bytes) -> None: ...

    def on_pause(self, pause: Callable[[bool], None]) -> None:
        """Register a callback that is told to stop (True) and to go on (False) reading."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a line waits for what, in seconds, and how much it takes in one piece."""

    #: How often an open connection is looked after: silence, replacement, stop.
    look_every_s: float = 0.25
    #: StalenessWatchdog on the wire for this long is met with a ping, and as long again without an answer with a close.
    ping_after_s: float = 10.0
    confirm_within_s: float = 10.0
    #: The new connection of a rotation takes over once it has data, or after this long.
    overlap_s: float = 15.0
    #: A replacement that could not be dialed is tried again after this long, while the old connection lives.
    replace_again_s: float = 5.0
    too_fast_s: float = TOO_FAST_S
    #: The waits between attempts begin with the first and double up to the second.
    first_wait_s: float = 0.5
    longest_wait_s: float = 60.0
    #: Frames over this size end the connection, which the record of its close then says.
    frame_bytes: int = 64 * 1024 * 1024

    def waits(self, random: Random) -> Iterator[float]:
        """Seconds to wait before each attempt."""
        return backoff(random, self.first_wait_s, self.longest_wait_s)


USUAL_LIMITS: Final = Limits()


@dataclass(slots=True)
class ConnectionState:
    """What a line has been through, for the status page."""

    connected: bool = False
    connects: int = 0
    frames: int = 0
    last_data_ns: int = 0
    problem: str = ""
    stopped: bool = False


class Owner(Protocol):
    """The line that a socket is of, as the socket sees it."""

    plan: Plan
    recorder: Recorder
    limits: Limits
    state: ConnectionState
    watchdog: StalenessWatchdog
    clock: Callable[[], int]
    paused: bool

    def opened(self, listener: Listener) -> None:
        """The socket is open, and nothing has been read from it yet."""

    def data_flows(self) -> None:
        """Market data came, for the first time over this socket."""


class Listener(WSListener):
    """One socket: frames go to the recorder first, then to the session."""

    def __init__(self, line: Owner, connection: str) -> None:
        self.line = line
        self.connection = connection
        self.session: Session = line.plan.session()
        self.transport: WSTransport | None = None
        self.parts: list[bytes] = []
        self.parts_size = 0
        self.close_reason: dict[str, Any] = {}
        self.problem: Problem | None = None
        self.got_data = False
        self.successor_asked = False
        self.outbox: asyncio.Queue[bytes] = asyncio.Queue(maxsize=4096)

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Before any frame is taken: a greeting may arrive together with the upgrade's answer."""
        self.transport = transport
        self.line.opened(self)

    def send_user_specific_ping(self, transport: WSTransport) -> None:
        if self.line.paused:  # its answer would not be read: do not wait for one
            asyncio.get_running_loop().call_soon(transport.notify_user_specific_pong_received)
        else:
            transport.send_ping()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        now_ns = self.line.clock()
        kind = frame.msg_type
        if kind in (WSMsgType.TEXT, WSMsgType.BINARY) and frame.fin:
            self.take(frame.get_payload_as_bytes(), now_ns)
        elif kind in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION):
            self.parts.append(frame.get_payload_as_bytes())
            self.parts_size += len(self.parts[-1])
            if self.parts_size > self.line.limits.frame_bytes:
                self.end({"by": "tapeline", "reason": f"a message of more than {self.line.limits.frame_bytes} bytes"})
            elif len(self.parts) > _MOST_PARTS:
                self.end({"by": "tapeline", "reason": f"a message of more than {_MOST_PARTS} parts"})
            elif frame.fin:
                whole, self.parts, self.parts_size = b"".join(self.parts), [], 0
                self.take(whole, now_ns)
        elif kind == WSMsgType.CLOSE:
            if self.close_reason:  # the answer to our own
                transport.disconnect()
                return
            code = frame.get_close_code()
            text = (frame.get_close_message() or b"").decode("utf-8", "replace")
            self.close_reason = {
                "by": "provider",
                "code": code.value if isinstance(code, WSCloseCode) else int(code),
                "reason": text,
            }
            transport.send_close(code)
            transport.disconnect()

    def take(self, payload: bytes, now_ns: int) -> None:
        line = self.line
        line.recorder.record(line.plan, self.connection, "frame", now_ns, payload)
        line.state.frames += 1
        channel = self.session.channel(payload)
        if channel is not None:
            line.watchdog.heard(channel, now_ns)
            line.state.last_data_ns = now_ns
            if not self.got_data:
                self.got_data = True
                line.data_flows()
            return
        reply = self.session.received(payload)
        if reply is None:
            return
        for message in reply.send:
            self.outbox.put_nowait(message)
        if reply.successor:
            self.successor_asked = True
        if reply.problem is not None:
            self.handle(reply.problem)

    def handle(self, problem: Problem) -> None:
        if problem.action == "warn":
            log.warning("%s: %s", self.line.plan.name, problem.message)
            self.line.state.problem = problem.message
            return
        self.problem = problem
        self.end({"by": "tapeline", "reason": problem.message})

    def end(self, reason: dict[str, Any]) -> None:
        if not self.close_reason:
            self.close_reason = reason
        if self.transport is not None:
            self.transport.send_close()
            self.transport.disconnect()

    def finish(self, reason: dict[str, Any]) -> None:
        """Ask for the end, and read on until the provider agrees: what it has sent before that is kept."""
        if self.transport is not None and not self.line.paused:
            self.close_reason = self.close_reason or reason
            self.transport.send_close()
        else:
            self.end(reason)

    @property
    def unsent(self) -> int:
        """Bytes that wait for the peer to read."""
        return self.transport.underlying_transport.get_write_buffer_size() if self.transport is not None and not self.gone else 0

    @property
    def gone(self) -> bool:
        return self.transport is None or self.transport.is_disconnected

    def pause(self, pause: bool) -> None:
        if self.transport is None or self.gone:
            return
        if pause:
            self.transport.underlying_transport.pause_reading()
            self.transport.notify_user_specific_pong_received()
        else:
            self.transport.underlying_transport.resume_reading()
