"""Websockets: the only module that opens one.

`Line` keeps one planned connection open for ever: dial, hold the provider's conversation, record every frame before anything looks
at it, notice silence, and dial again with capped, jittered backoff that starts anew only once data has flowed.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec
from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSInvalidStatusError,
    WSInvalidURL,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
)

from tapeline.errors import DiskTrouble, Unavailable
from tapeline.local.clock import Leap
from tapeline.net.rate_limit import Quota
from tapeline.providers.session import Check, Plan, Session, Trouble
from tapeline.records import NS_PER_S, RawKind
from tapeline.retry.backoff import backoff

log = logging.getLogger(__name__)

#: A message comes in at most so many parts.
_MOST_PARTS: Final = 65_536
#: So much may wait for a peer to read it: pongs, and what is asked of it.
_MOST_UNSENT_BYTES: Final = 4 * 1024 * 1024
_HANDSHAKE_TIMEOUT_S: Final = 10.0
#: Attempts that came too fast (HTTP 429, 418) are repeated no sooner than this, later where Retry-After says so.
TOO_FAST_S: Final = 30.0
TOO_FAST: Final = frozenset({418, 429})
#: Binance takes 300 connections in five minutes from one address (PROVIDERS); the others say nothing of it.
DIALS_A_MINUTE: Final = 60
#: No provider bans an address for longer (Binance: three days): what says so is a mistake.
LONGEST_BAN_S: Final = 4 * 86_400.0
#: Bytes of a refusal's text that are shown.
_LONGEST_WORDS: Final = 300


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
    #: Silence on the wire for this long is met with a ping, and as long again without an answer with a close.
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


@dataclass(slots=True)
class Silence:
    """Learns how long each kind of data is usually silent, and tells when silence has lasted too long.

    A kind is mute after `floor_s` or ten times its longest silence so far, whichever is longer, at most `cap_s`; a set limit replaces
    that, and holds from the start of each connection. Each reconnect for silence of a kind that brought none of it doubles the wait
    for that kind, so that a closed market is not dialed all night, nor a thin channel for the sake of a busy one.
    """

    limits: float | dict[str, float] = 0.0
    floor_s: float = 15.0
    cap_s: float = 3600.0
    _last: dict[bytes, int] = field(default_factory=dict)
    _longest: dict[bytes, int] = field(default_factory=dict)
    _patience: dict[bytes, float] = field(default_factory=dict)

    def begin(self, now_ns: int) -> None:
        """A connection has opened: what was heard before does not count as silence."""
        named = (name.encode() for name in self.limits) if isinstance(self.limits, dict) else ()
        self._last = dict.fromkeys((b"", *named, *self._last), now_ns)

    def heard(self, channel: bytes, now_ns: int) -> None:
        before = self._last.get(channel)
        self._last[channel] = self._last[b""] = now_ns
        if before is not None and now_ns - before > self._longest.get(channel, 0):
            self._longest[channel] = now_ns - before
        if self._patience:
            self._patience.pop(channel, None)
            self._patience.pop(b"", None)

    def doubt(self, channel: str) -> None:
        """A reconnect for the sake of this kind of data is under way: wait twice as long for it the next time."""
        name = channel.encode()
        self._patience[name] = min(self._patience.get(name, 1.0) * 2, 256.0)

    def mute(self, now_ns: int) -> tuple[str, float] | None:
        """(kind of data, seconds of silence) where silence has lasted too long; "" is all data."""
        for channel, last in self._last.items():
            if channel not in self._longest and channel != b"" and not self._set_limit(channel):
                continue  # heard once: nothing to learn from yet
            silent_s = (now_ns - last) / NS_PER_S
            if silent_s > self._limit(channel) * self._patience.get(channel, 1.0):
                return channel.decode("utf-8", "replace"), silent_s
        return None

    def _set_limit(self, channel: bytes) -> float:
        """What the configuration says; 0: nothing."""
        if isinstance(self.limits, dict):
            return self.limits.get(channel.decode("utf-8", "replace"), 0.0)
        return self.limits

    def _limit(self, channel: bytes) -> float:
        if limit := self._set_limit(channel):
            return limit
        longest = max(self._longest.values(), default=0) if channel == b"" else self._longest.get(channel, 0)
        return min(self.cap_s, max(self.floor_s, 10 * longest / NS_PER_S))


@dataclass(slots=True)
class LineState:
    """What a line has been through, for the status page."""

    connected: bool = False
    connects: int = 0
    frames: int = 0
    last_data_ns: int = 0
    trouble: str = ""
    stopped: bool = False


class _Listener(WSListener):
    """One socket: frames go to the recorder first, then to the session."""

    def __init__(self, line: Line, connection: str) -> None:
        self.line = line
        self.connection = connection
        self.session: Session = line.plan.session()
        self.transport: WSTransport | None = None
        self.parts: list[bytes] = []
        self.parts_size = 0
        self.close_reason: dict[str, Any] = {}
        self.trouble: Trouble | None = None
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
            line.silence.heard(channel, now_ns)
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
        if reply.trouble is not None:
            self.handle(reply.trouble)

    def handle(self, trouble: Trouble) -> None:
        if trouble.action == "warn":
            log.warning("%s: %s", self.line.plan.name, trouble.message)
            self.line.state.trouble = trouble.message
            return
        self.trouble = trouble
        self.end({"by": "tapeline", "reason": trouble.message})

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


@dataclass(slots=True)
class Pace:
    """Keeps dials of one provider apart, however many lines it has, and heeds what any process of this address was told to wait."""

    every_s: float = 1.1
    #: What processes share of the dials to one place; none: each line goes by what it was told itself.
    shared: Callable[[str], Quota] | None = None
    _next: float = 0.0
    _quotas: dict[str, Quota] = field(default_factory=dict)

    async def wait(self, url: str, random: Random) -> None:
        now = asyncio.get_running_loop().time()
        at = max(now, self._next)
        self._next = at + self.every_s
        await asyncio.sleep(at - now)
        quota = self._quota(url)
        while quota is not None and (early_s := quota.take(1)) > 0:
            why = "the provider has asked this address for a pause, or it has dialed often enough for a minute"
            log.info("%s is not dialed for %.0f s: %s.", urlsplit(url).hostname, early_s, why)
            await asyncio.sleep(early_s + random.uniform(0.0, self.every_s))  # so that all do not come at once

    def told_to_wait(self, url: str, seconds: float) -> None:
        """The other side wants nobody of this address for so long."""
        quota = self._quota(url)
        if quota is not None:
            quota.pause(seconds)

    def _quota(self, url: str) -> Quota | None:
        if self.shared is None:
            return None
        place = url.partition("?")[0]  # one limit holds for an address, whatever is asked of it
        if place not in self._quotas:
            self._quotas[place] = self.shared(place)
        return self._quotas[place]


class Line:
    """One planned connection, kept open until it is stopped or the provider says that only a person can help."""

    def __init__(
        self,
        plan: Plan,
        recorder: Recorder,
        clock: Callable[[], int],
        random: Random,
        pace: Pace,
        silence: Silence,
        tls: ssl.SSLContext | None = None,
        limits: Limits = Limits(),
    ) -> None:
        self.plan = plan
        self.recorder = recorder
        self.clock = clock
        self.random = random
        self.pace = pace
        self.silence = silence
        self.tls = tls
        self.limits = limits
        self.state = LineState()
        self.paused = False
        self._waits = limits.waits(random)
        self._least_wait_s = 0.0
        self._open: set[_Listener] = set()
        self._stopping = asyncio.Event()

    def data_flows(self) -> None:
        """Data has arrived: the next trouble is a new one."""
        self._waits = self.limits.waits(self.random)
        self.state.trouble = ""

    def stop(self) -> None:
        self._stopping.set()

    def clock_leapt(self, leap: Leap) -> None:
        """Put on record that the times of a stretch mean nothing; where they come once more, each connection is replaced by a new one."""
        for listener in list(self._open):
            if leap.by_ns < 0:
                listener.end({"by": "tapeline", "reason": str(leap)})
            else:
                told = {"from_ns": leap.before_ns, "to_ns": leap.after_ns, "reason": str(leap)}
                self.recorder.record(self.plan, listener.connection, "leapt", leap.after_ns, msgspec.json.encode(told))

    def _pause(self, pause: bool) -> None:
        self.paused = pause
        for listener in self._open:
            listener.pause(pause)

    async def keep(self) -> None:
        """Dial, and dial again, until stopped. Returns when stopped, by the user or for good by the provider."""
        self.recorder.on_pause(self._pause)
        successor: asyncio.Task[_Listener | None] | None = None
        while not self._stopping.is_set():
            dialing = successor or asyncio.create_task(self._dial())
            listener = await self._unless_stopped(dialing)
            successor = None
            if listener is not None:
                successor = await self._live(listener)
                self._least_wait_s = self._after(listener)
            if self.state.stopped:
                break
            if successor is None:
                await self._rest(max(self._least_wait_s, next(self._waits)))
        if successor is not None:
            await self._unless_stopped(successor)
        for last in list(self._open):
            await self._close(last, "stopped")

    async def _unless_stopped(self, dialing: asyncio.Task[_Listener | None]) -> _Listener | None:
        """The connection that is being dialed, once it is open; None where the line is stopped before."""
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({dialing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not dialing.done():
            dialing.cancel()
            await asyncio.wait({dialing})
            return None
        return dialing.result()

    def _after(self, listener: _Listener) -> float:
        """Take note of why a connection ended; the least wait before the next."""
        trouble = listener.trouble
        if trouble is None:
            return 0.0
        self.state.trouble = trouble.message
        if trouble.action == "stop":
            self.state.stopped = True
            log.error("%s stopped: %s Nothing received was lost; the other feeds go on.", self.plan.name, trouble.message)
        else:
            log.warning("%s: %s", self.plan.name, trouble.message)
        return trouble.wait_s

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _dial(self) -> _Listener | None:
        await self._wait_for_turn()
        self._least_wait_s = 0.0
        now_ns = self.clock()
        listener = _Listener(self, f"{self.plan.name}-{now_ns}")
        try:
            await ws_connect(
                lambda: listener,
                self.plan.url,
                ssl_context=self.tls if self.plan.url.startswith("wss:") else None,
                extra_headers=dict(self.plan.headers),
                websocket_handshake_timeout=_HANDSHAKE_TIMEOUT_S,
                enable_auto_ping=True,
                auto_ping_idle_timeout=self.limits.ping_after_s,
                auto_ping_reply_timeout=self.limits.ping_after_s,
                max_frame_size=self.limits.frame_bytes,
                max_redirects=0,  # a key goes to no host that was not configured
            )
        except WSInvalidStatusError as error:
            self._refused(error)
            return None
        except WSInvalidURL as error:
            self._no_address(error)
            return None
        except (OSError, TimeoutError, WSError) as error:  # before ValueError: a certificate that has lapsed is both
            self.state.trouble = f"cannot connect to {self.plan.url}: {error or type(error).__name__}"
            log.warning("%s: %s. It is tried again.", self.plan.name, self.state.trouble)
            return None
        except ValueError as error:
            self._no_address(error)
            return None
        return listener

    async def _wait_for_turn(self) -> None:
        try:
            await self.pace.wait(self.plan.url, self.random)
        except DiskTrouble as error:  # recording counts more than politeness
            log.warning("%s: %s It is dialed all the same.", self.plan.name, error)

    def _told_to_wait(self, seconds: float) -> None:
        """The other side wants nothing of this address for so long; other processes hear of it."""
        self._least_wait_s = seconds
        try:
            self.pace.told_to_wait(self.plan.url, seconds)
        except DiskTrouble as error:
            log.warning("%s: %s Other processes of this address do not know that they are to wait.", self.plan.name, error)

    def opened(self, listener: _Listener) -> None:
        """A socket is open: record it, and hand over what the session says first."""
        self.state.connects += 1
        self.state.connected = True
        self._open.add(listener)
        listener.pause(self.paused)
        now_ns = self.clock()
        opened = {"url": self.plan.url, "topics": list(self.plan.topics)}
        self.recorder.record(self.plan, listener.connection, "opened", now_ns, msgspec.json.encode(opened))
        self.silence.begin(now_ns)
        for message in listener.session.opened():
            listener.outbox.put_nowait(message)

    def _no_address(self, error: Exception) -> None:
        self.state.trouble = f"{self.plan.url} is no address to connect to: {error}"
        self.state.stopped = True
        log.error("%s stopped: %s", self.plan.name, self.state.trouble)

    def _refused(self, error: WSInvalidStatusError) -> None:
        """The upgrade was answered with another HTTP status than 101."""
        status = int(error.response.status) if error.response is not None else 0
        trouble = self.plan.refusal(status, _words_of(error), self.state.connects > 0)
        self.state.trouble = f"{self.plan.url} {trouble.message}"
        if status in TOO_FAST:
            after = str(error.response.headers.get("Retry-After", "")) if error.response is not None else ""
            self._told_to_wait(max(self.limits.too_fast_s, min(float(after), LONGEST_BAN_S) if after.isdecimal() else 0.0))
            log.warning("%s: %s Not before %.0f s.", self.plan.name, self.state.trouble, self._least_wait_s)
        elif trouble.action == "stop":
            self.state.stopped = True
            log.error("%s stopped: %s The other feeds go on.", self.plan.name, self.state.trouble)
        else:
            self._least_wait_s = trouble.wait_s
            log.warning("%s: %s", self.plan.name, self.state.trouble)

    async def _live(self, listener: _Listener) -> asyncio.Task[_Listener | None] | None:
        """See a connection to its end. Returns the task that dials its successor, where it was replaced."""
        sender = asyncio.create_task(self._send(listener))
        confirmer = asyncio.create_task(self._confirm(listener))
        gone = asyncio.create_task(listener.transport.wait_disconnected()) if listener.transport is not None else None
        successor: asyncio.Task[_Listener | None] | None = None
        replace_ns = self.clock() + int(self.plan.rotate_after_s * NS_PER_S) if self.plan.rotate_after_s else 0
        try:
            while gone is not None and not gone.done():
                await asyncio.wait([gone], timeout=self.limits.look_every_s)
                now_ns = self.clock()
                if self._stopping.is_set():
                    break
                if listener.unsent > _MOST_UNSENT_BYTES:
                    self._cut(listener)
                    break
                if self.paused:  # nothing can be heard: neither silence nor a successor's data
                    self.silence.begin(now_ns)
                    continue
                mute = self.silence.mute(now_ns)
                if mute is not None:
                    self._give_up_on_silence(listener, *mute)
                    break
                if listener.successor_asked:
                    listener.successor_asked, replace_ns = False, now_ns
                if replace_ns and now_ns >= replace_ns:
                    successor = asyncio.create_task(self._replace(listener, gone))
                    if await successor is not None:
                        break
                    again_s = max(self.limits.replace_again_s, self._least_wait_s)
                    successor, replace_ns = None, self.clock() + int(again_s * NS_PER_S)
        finally:
            for task in (sender, confirmer):
                task.cancel()
            await asyncio.gather(sender, confirmer, return_exceptions=True)
            if gone is not None and gone.done() and not listener.close_reason and (error := gone.exception()) is not None:
                listener.close_reason = {"by": "tapeline", "reason": str(error)}
            await self._close(listener, "stopped" if self._stopping.is_set() else "ended")
            if gone is not None:
                gone.cancel()
        return successor

    def _cut(self, listener: _Listener) -> None:
        """Of a peer that asks and never reads, at once: a close would wait behind the answers."""
        reason = f"the peer reads nothing: {listener.unsent:,} bytes of answers to it wait"
        log.warning("%s: %s; dialing again.", self.plan.name, reason)
        listener.close_reason = {"by": "tapeline", "reason": reason}
        if listener.transport is not None:
            listener.transport.underlying_transport.abort()

    def _give_up_on_silence(self, listener: _Listener, channel: str, silent_s: float) -> None:
        self.silence.doubt(channel)
        what = f"channel {channel}" if channel else "data"
        reason = f"mute: no {what} for {silent_s:.1f} s on an open socket"
        log.warning("%s: %s; dialing again.", self.plan.name, reason)
        listener.close_reason = {"by": "tapeline", "reason": reason}
        if not channel or self.clock() - self.state.last_data_ns > NS_PER_S:  # there may be nobody to agree to an end
            listener.end(listener.close_reason)

    async def _replace(self, old: _Listener, old_gone: asyncio.Task[None]) -> _Listener | None:
        """Open the next connection while the old one still delivers, and wait until the new one has data."""
        new = await self._dial()
        if new is None:
            return None
        sender = asyncio.create_task(self._send(new))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.overlap_s
        while not (old_gone.done() or new.gone or self._stopping.is_set()):
            waiting = not new.got_data or new.outbox.qsize() or new.session.missing()
            if not self.paused and not (waiting and loop.time() < deadline):
                break
            await asyncio.sleep(0.02)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        if new.gone and not old_gone.done():
            await self._close(new, "ended")
            self.state.trouble = new.trouble.message if new.trouble is not None else self.state.trouble
            self._least_wait_s = new.trouble.wait_s if new.trouble is not None else 0.0
            log.warning("%s: the connection to replace the old one ended (%s); the old one goes on.", self.plan.name, new.close_reason)
            return None
        if not old.close_reason:
            old.close_reason = {"by": "tapeline", "reason": f"replaced by {new.connection}"}
        return new

    async def _send(self, listener: _Listener) -> None:
        kind = WSMsgType.BINARY if self.plan.binary else WSMsgType.TEXT
        while True:
            message = await listener.outbox.get()
            if listener.transport is None or listener.transport.is_disconnected:
                return
            listener.transport.send(kind, message)
            await asyncio.sleep(self.plan.pace_s)

    async def _confirm(self, listener: _Listener) -> None:
        """Record what was asked for, and say what of it the provider never confirmed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.confirm_within_s + self.plan.pace_s * len(self.plan.topics)
        while listener.session.missing() and loop.time() < deadline:
            await asyncio.sleep(0.05)
        missing: Sequence[str] = listener.session.missing()
        asked = {"asked": list(self.plan.topics), "missing": list(missing)}
        self.recorder.record(self.plan, listener.connection, "subscribed", self.clock(), msgspec.json.encode(asked))
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            self.state.trouble = f"not confirmed by {self.plan.provider}: {shown}"
            log.warning("%s: %s. Check the names and the plan; the others go on.", self.plan.name, self.state.trouble)

    async def _close(self, listener: _Listener, why: str) -> None:
        """Close the socket if it is open, and record the close."""
        if listener not in self._open:
            return
        self._open.discard(listener)
        if listener.transport is not None and not listener.transport.is_disconnected:
            listener.finish({"by": "tapeline", "reason": why})
            try:
                await asyncio.wait_for(listener.transport.wait_disconnected(), 2.0)
            except (TimeoutError, OSError, WSError):
                listener.transport.disconnect(graceful=False)
        reason = listener.close_reason or {"by": "network", "reason": "the connection broke without a close"}
        self.recorder.record(self.plan, listener.connection, "closed", self.clock(), msgspec.json.encode(reason))
        self.state.connected = bool(self._open)


def _words_of(error: WSInvalidStatusError) -> str:
    """What a refusal says, as far as it is text for a person; of a redirect where it leads, which is not followed."""
    where = str(error.response.headers.get("Location", "")) if error.response is not None else ""
    if where:
        parts = urlsplit(where)
        return f"a redirect to {parts.scheme}://{parts.hostname}, which was not asked: nothing goes there"
    body = bytes(getattr(error, "raw_body", None) or b"")[:_LONGEST_WORDS].decode("utf-8", "replace")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in body).split())


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """The system's certificate authorities, and `ca_file` where given."""
    context = ssl.create_default_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """A provider's check with the TLS it needs."""

    check: Check
    tls: ssl.SSLContext | None = None


async def reach(plan: Plan, tls: ssl.SSLContext | None) -> float:
    """Open the plan's websocket and close it again; seconds that took. Raises Unavailable that says what stood in the way."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        transport, _ = await ws_connect(
            WSListener,
            plan.url,
            ssl_context=tls if plan.url.startswith("wss:") else None,
            extra_headers=dict(plan.headers),
            websocket_handshake_timeout=_HANDSHAKE_TIMEOUT_S,
            max_redirects=0,
        )
    except (OSError, TimeoutError, WSError) as error:
        raise Unavailable(f"cannot be reached: {error or type(error).__name__}. Check the url and the network.") from error
    took = loop.time() - began
    transport.disconnect()
    await transport.wait_disconnected()
    return took
