"""Opens websockets and keeps them open. This is the only module that opens one.

`FeedConnection` keeps one planned connection open for ever. It dials, runs the provider's session, records every frame before anything
else uses it, and detects silence. It dials again with capped, jittered backoff. The backoff starts again only after data has arrived.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final
from urllib.parse import urlsplit

import msgspec
from picows import (
    WSError,
    WSInvalidStatusError,
    WSInvalidURL,
    WSListener,
    WSMsgType,
    ws_connect,
)

from tapeline.errors import DiskProblem, Unavailable
from tapeline.local.clock import Leap
from tapeline.net.listener import USUAL_LIMITS, ConnectionState, Limits, Listener, Recorder
from tapeline.net.pace import Pace
from tapeline.net.rate_limit import LONGEST_BAN_S, TOO_FAST
from tapeline.net.staleness import StalenessWatchdog
from tapeline.providers.session import Plan
from tapeline.records import NS_PER_S

log = logging.getLogger(__name__)

#: The most bytes (pongs and requests) that may wait in the send buffer. A peer that reads nothing exceeds it, and is cut off.
_MOST_UNSENT_BYTES: Final = 4 * 1024 * 1024
_HANDSHAKE_TIMEOUT_S: Final = 10.0
#: Binance accepts 300 connections in five minutes from one address (PROVIDERS). The other providers publish no limit.
DIALS_A_MINUTE: Final = 60
#: The most bytes of a refusal's text that a message shows.
_LONGEST_TEXT: Final = 300


@dataclass(frozen=True, slots=True)
class Dialing:
    """How connections are made, and made again: how many in what time, with what TLS, limits and jitter."""

    pace: Pace
    random: Random
    tls: ssl.SSLContext | None = None
    limits: Limits = USUAL_LIMITS


class FeedConnection:
    """One planned connection, kept open until it is stopped or the provider says that only a person can help."""

    def __init__(
        self,
        plan: Plan,
        recorder: Recorder,
        clock: Callable[[], int],
        watchdog: StalenessWatchdog,
        dialing: Dialing,
    ) -> None:
        self.plan = plan
        self.recorder = recorder
        self.clock = clock
        self.watchdog = watchdog
        self.random, self.pace, self.tls, self.limits = dialing.random, dialing.pace, dialing.tls, dialing.limits
        self.state = ConnectionState()
        self.paused = False
        self._waits = self.limits.waits(self.random)
        self._least_wait_s = 0.0
        self._open: set[Listener] = set()
        self._stopping = asyncio.Event()

    def data_flows(self) -> None:
        """Data has arrived, so the next problem is a new one: the backoff starts again."""
        self._waits = self.limits.waits(self.random)
        self.state.problem = ""

    def stop(self) -> None:
        self._stopping.set()

    def clock_leapt(self, leap: Leap) -> None:
        """React to a jump of the machine's clock.

        After a jump ahead, a record says that nothing is known about the skipped time. If the clock was set back, times occur twice, so
        each open connection ends and a new one replaces it."""
        for listener in list(self._open):
            if leap.by_ns < 0:
                listener.end({"by": "tapeline", "reason": str(leap)})
            else:
                detail = {"from_ns": leap.before_ns, "to_ns": leap.after_ns, "reason": str(leap)}
                self.recorder.record(self.plan, listener.connection, "leapt", leap.after_ns, msgspec.json.encode(detail))

    def _pause(self, pause: bool) -> None:
        self.paused = pause
        for listener in self._open:
            listener.pause(pause)

    async def keep(self) -> None:
        """Keep the connection open. Returns after `stop`, or when the provider reports a problem that only a person can fix."""
        self.recorder.on_pause(self._pause)
        successor: asyncio.Task[Listener | None] | None = None
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

    async def _unless_stopped(self, dialing: asyncio.Task[Listener | None]) -> Listener | None:
        """Wait for a connection that is being dialed, and return it. None if dialing failed, or `stop` was called before it was open."""
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({dialing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not dialing.done():
            dialing.cancel()
            await asyncio.wait({dialing})
            return None
        return dialing.result()

    def _after(self, listener: Listener) -> float:
        """Report why a connection ended. Returns the least wait (s) before the next attempt."""
        problem = listener.problem
        if problem is None:
            return 0.0
        self.state.problem = problem.message
        if problem.action == "stop":
            self.state.stopped = True
            log.error("%s stopped: %s Nothing received was lost. The other feeds keep running.", self.plan.name, problem.message)
        else:
            log.warning("%s: %s", self.plan.name, problem.message)
        return problem.wait_s

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _dial(self) -> Listener | None:
        await self._wait_for_turn()
        self._least_wait_s = 0.0
        now_ns = self.clock()
        listener = Listener(self, f"{self.plan.name}-{now_ns}")
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
                max_redirects=0,  # the key must not go to a host that was not configured
            )
        except WSInvalidStatusError as error:
            self._refused(error)
            return None
        except WSInvalidURL as error:
            self._no_address(error)
            return None
        except (OSError, TimeoutError, WSError) as error:  # must come before ValueError: the error of an expired certificate is both
            self.state.problem = f"cannot connect to {self.plan.url}: {error or type(error).__name__}"
            log.warning("%s: %s. Tapeline retries.", self.plan.name, self.state.problem)
            return None
        except ValueError as error:
            self._no_address(error)
            return None
        return listener

    async def _wait_for_turn(self) -> None:
        try:
            await self.pace.wait(self.plan.url, self.random)
        except DiskProblem as error:  # recording data is more important than keeping the dials apart
            log.warning("%s: %s Tapeline connects anyway.", self.plan.name, error)

    def _postpone(self, seconds: float) -> None:
        """Make the next attempt wait so many seconds, and share the pause with other processes of this machine."""
        self._least_wait_s = seconds
        try:
            self.pace.pause(self.plan.url, seconds)
        except DiskProblem as error:
            log.warning("%s: %s Other processes on this machine do not know that they must wait.", self.plan.name, error)

    def opened(self, listener: Listener) -> None:
        """Record that a socket is open, and queue the session's first messages."""
        self.state.connects += 1
        self.state.connected = True
        self._open.add(listener)
        listener.pause(self.paused)
        now_ns = self.clock()
        opened = {"url": self.plan.url, "topics": list(self.plan.subscriptions)}
        self.recorder.record(self.plan, listener.connection, "opened", now_ns, msgspec.json.encode(opened))
        self.watchdog.begin(now_ns)
        for message in listener.session.opened():
            listener.outbox.put_nowait(message)

    def _no_address(self, error: Exception) -> None:
        self.state.problem = f"{self.plan.url} is not a valid websocket address: {error}"
        self.state.stopped = True
        log.error("%s stopped: %s. Correct its url.", self.plan.name, self.state.problem)

    def _refused(self, error: WSInvalidStatusError) -> None:
        """React to an HTTP status other than 101 in answer to the upgrade."""
        status = int(error.response.status) if error.response is not None else 0
        problem = self.plan.refusal(status, _text_of(error), self.state.connects > 0)
        self.state.problem = f"{self.plan.url} {problem.message}"
        self.state.failed(str(status))
        if status in TOO_FAST:
            after = str(error.response.headers.get("Retry-After", "")) if error.response is not None else ""
            self._postpone(max(self.limits.too_fast_s, min(float(after), LONGEST_BAN_S) if after.isdecimal() else 0.0))
            log.warning("%s: %s Next attempt in %.0f s or later.", self.plan.name, self.state.problem, self._least_wait_s)
        elif problem.action == "stop":
            self.state.stopped = True
            log.error("%s stopped: %s The other feeds keep running.", self.plan.name, self.state.problem)
        else:
            self._least_wait_s = problem.wait_s
            log.warning("%s: %s", self.plan.name, self.state.problem)

    async def _live(self, listener: Listener) -> asyncio.Task[Listener | None] | None:
        """Look after an open connection until it ends. Returns the task that opened its successor, or None if it was not replaced."""
        sender = asyncio.create_task(self._send(listener))
        confirmer = asyncio.create_task(self._confirm(listener))
        gone = asyncio.create_task(listener.transport.wait_disconnected()) if listener.transport is not None else None
        successor: asyncio.Task[Listener | None] | None = None
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
                if self.paused:  # nothing is read, so neither silence nor a successor's data can be noticed
                    self.watchdog.begin(now_ns)
                    continue
                stale = self.watchdog.stale(now_ns)
                if stale is not None:
                    self._give_up_on_silence(listener, *stale)
                    break
                if listener.successor_requested:
                    listener.successor_requested, replace_ns = False, now_ns
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

    def _cut(self, listener: Listener) -> None:
        """End the connection to a peer that sends but does not read. It ends at once, because a close would wait in the send buffer."""
        reason = f"the peer reads nothing: {listener.unsent:,} bytes of answers to it wait"
        log.warning("%s: %s. Reconnecting.", self.plan.name, reason)
        listener.close_reason = {"by": "tapeline", "reason": reason}
        if listener.transport is not None:
            listener.transport.underlying_transport.abort()

    def _give_up_on_silence(self, listener: Listener, channel: str, silent_s: float) -> None:
        self.watchdog.doubt(channel)
        self.state.stale += 1
        what = f"channel {channel}" if channel else "data"
        reason = f"stale: no {what} for {silent_s:.1f} s on an open socket"
        log.warning("%s: %s. Reconnecting.", self.plan.name, reason)
        listener.close_reason = {"by": "tapeline", "reason": reason, "stale": channel}
        if not channel or self.clock() - self.state.last_data_ns > NS_PER_S:  # the peer may be gone and never answer a close
            listener.end(listener.close_reason)

    async def _replace(self, old: Listener, old_gone: asyncio.Task[None]) -> Listener | None:
        """Open the next connection while the old one still delivers, and wait until the new one has data.

        Returns None if the new connection failed while the old one is still open."""
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
            self.state.problem = new.problem.message if new.problem is not None else self.state.problem
            self._least_wait_s = new.problem.wait_s if new.problem is not None else 0.0
            log.warning(
                "%s: the new connection ended before it replaced the old one (%s). The old one stays open.",
                self.plan.name,
                new.close_reason,
            )
            return None
        if not old.close_reason:
            old.close_reason = {"by": "tapeline", "reason": f"replaced by {new.connection}"}
        return new

    async def _send(self, listener: Listener) -> None:
        kind = WSMsgType.BINARY if self.plan.binary else WSMsgType.TEXT
        while True:
            message = await listener.outbox.get()
            if listener.transport is None or listener.transport.is_disconnected:
                return
            listener.transport.send(kind, message)
            await asyncio.sleep(self.plan.pace_s)

    async def _confirm(self, listener: Listener) -> None:
        """Record the requested subscriptions, and warn about those that the provider did not confirm in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.confirm_within_s + self.plan.pace_s * len(self.plan.subscriptions)
        while listener.session.missing() and loop.time() < deadline:
            await asyncio.sleep(0.05)
        missing: Sequence[str] = listener.session.missing()
        detail = {"asked": list(self.plan.subscriptions), "missing": list(missing)}
        self.recorder.record(self.plan, listener.connection, "subscribed", self.clock(), msgspec.json.encode(detail))
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            self.state.problem = f"not confirmed by {self.plan.provider}: {shown}"
            log.warning("%s: %s. Check the names and the plan. The other subscriptions keep running.", self.plan.name, self.state.problem)

    async def _close(self, listener: Listener, why: str) -> None:
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


def _text_of(error: WSInvalidStatusError) -> str:
    """The printable text of a refusal. For a redirect, which is not followed, it is the host that the redirect leads to."""
    where = str(error.response.headers.get("Location", "")) if error.response is not None else ""
    if where:
        parts = urlsplit(where)
        return f"a redirect to {parts.scheme}://{parts.hostname}, which Tapeline does not follow"
    body = bytes(getattr(error, "raw_body", None) or b"")[:_LONGEST_TEXT].decode("utf-8", "replace")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in body).split())


async def reach(plan: Plan, tls: ssl.SSLContext | None) -> float:
    """Open the plan's websocket, close it again, and return the seconds that opening took. Raises Unavailable with the reason."""
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
