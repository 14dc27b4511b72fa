"""One open websocket: it records every frame first, and then passes it to the provider's session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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

#: The most parts that one message may have.
_MOST_PARTS: Final = 65_536
#: The most codes of errors that are counted apart.
_MOST_CODES: Final = 30


class Recorder(Protocol):
    """Takes raw records and makes them durable soon after. It can ask its callers to stop reading while it is full."""

    def record(self, plan: Plan, connection: str, kind: RawKind, received_ns: int, payload: bytes) -> None:
        """Take one raw record of a connection. `received_ns`: UTC, when the bytes were in hand."""

    def on_pause(self, pause: Callable[[bool], None]) -> None:
        """Register a callback. It is called with True to stop reading, and with False to go on."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The waits of a connection, in seconds, and the largest message that it accepts."""

    #: How often an open connection is checked for silence, replacement and stop.
    look_every_s: float = 0.25
    #: After this long without any frame a ping is sent. After the same time without an answer the connection is closed.
    ping_after_s: float = 10.0
    confirm_within_s: float = 10.0
    #: When a connection is replaced, the new one takes over as soon as it has data, or after this long.
    overlap_s: float = 15.0
    #: If the replacement cannot be opened, the next attempt comes after this long. The old connection goes on meanwhile.
    replace_again_s: float = 5.0
    #: The least wait after an attempt that the provider rejected as too early (HTTP 429, 418).
    too_fast_s: float = TOO_FAST_S
    #: The waits between attempts begin with `first_wait_s` and double up to `longest_wait_s`.
    first_wait_s: float = 0.5
    longest_wait_s: float = 60.0
    #: A larger frame or message (bytes) ends the connection. The record of the close gives this reason.
    frame_bytes: int = 64 * 1024 * 1024

    def waits(self, random: Random) -> Iterator[float]:
        """Seconds to wait before each attempt."""
        return backoff(random, self.first_wait_s, self.longest_wait_s)


USUAL_LIMITS: Final = Limits()


@dataclass(slots=True)
class ConnectionState:
    """The state of a planned connection, for the status page."""

    connected: bool = False
    connects: int = 0
    frames: int = 0
    last_data_ns: int = 0
    problem: str = ""
    stopped: bool = False
    #: How often a connection was given up because it was silent.
    stale: int = 0
    #: How often the provider refused, reported a problem or closed, by its code.
    errors: dict[str, int] = field(default_factory=dict)

    def failed(self, code: str) -> None:
        """Count an error of the provider. Of many different codes, the later ones count as `other`."""
        code = code if code in self.errors or len(self.errors) < _MOST_CODES else "other"
        self.errors[code] = self.errors.get(code, 0) + 1


class Owner(Protocol):
    """The keeper of a planned connection, as its sockets see it."""

    plan: Plan
    recorder: Recorder
    limits: Limits
    state: ConnectionState
    watchdog: StalenessWatchdog
    clock: Callable[[], int]
    paused: bool

    def opened(self, listener: Listener) -> None:
        """Called when the socket is open, before anything is read from it."""

    def data_flows(self) -> None:
        """Called when market data comes over this socket for the first time."""


class Listener(WSListener):
    """One open websocket. It records every frame first, and then passes it to the provider's session."""

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
        self.successor_requested = False
        self.outbox: asyncio.Queue[bytes] = asyncio.Queue(maxsize=4096)

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Report the open socket before any frame is read. A greeting may arrive together with the answer to the upgrade."""
        self.transport = transport
        self.line.opened(self)

    def send_user_specific_ping(self, transport: WSTransport) -> None:
        """Send a ping, unless reading is paused. picows calls this."""
        if self.line.paused:  # reading is paused, so the pong could not be seen: do not wait for it
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
            if self.close_reason:  # this is the answer to our own close
                transport.disconnect()
                return
            code = frame.get_close_code()
            text = (frame.get_close_message() or b"").decode("utf-8", "replace")
            number = code.value if isinstance(code, WSCloseCode) else int(code)
            self.close_reason = {"by": "provider", "code": number, "reason": text}
            self.line.state.failed(str(number))
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
            self.successor_requested = True
        if reply.problem is not None:
            self.handle(reply.problem)

    def handle(self, problem: Problem) -> None:
        """Log a problem that is only a warning. End the connection for any other."""
        self.line.state.failed(problem.code or problem.action)
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
        """Send a close, and read on until the provider answers it. Frames that it sent before its answer are kept."""
        if self.transport is not None and not self.line.paused:
            self.close_reason = self.close_reason or reason
            self.transport.send_close()
        else:
            self.end(reason)

    @property
    def unsent(self) -> int:
        """The bytes that the peer has not read yet and that wait in our send buffer."""
        return self.transport.underlying_transport.get_write_buffer_size() if self.transport is not None and not self.gone else 0

    @property
    def gone(self) -> bool:
        """Whether the connection is not open yet, or no more."""
        return self.transport is None or self.transport.is_disconnected

    def pause(self, pause: bool) -> None:
        if self.transport is None or self.gone:
            return
        if pause:
            self.transport.underlying_transport.pause_reading()
            self.transport.notify_user_specific_pong_received()
        else:
            self.transport.underlying_transport.resume_reading()
