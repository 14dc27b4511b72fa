"""The ingest stage reads the sockets and writes every frame to the stream as it came, whatever state the stream is in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeAlias

import msgspec
import pyarrow as pa

from tapeline import times
from tapeline.errors import Refused, TapelineError, Unavailable
from tapeline.local.clock import ClockWatch, Leap
from tapeline.net import http as rest
from tapeline.net.http import CheckRequest
from tapeline.net.websocket import FeedConnection
from tapeline.providers.events import UNREADABLE
from tapeline.providers.session import Plan
from tapeline.records import RAW, RawKind
from tapeline.retry.backoff import backoff
from tapeline.stages.ingest.arbitration import Arbitration
from tapeline.stages.ingest.delivery import AWAY, Delivery
from tapeline.stages.ingest.report import status_of
from tapeline.streams import Lease
from tapeline.telemetry.status import Rate, StatusFile

log = logging.getLogger(__name__)

#: The least time between two batches. Frames that come faster share a batch. A frame after a pause is written at once.
_FLUSH_EVERY_S: Final = 0.001
#: How often `Delivery.turn` is called while records are on their way.
_TURN_EVERY_S: Final = 0.01
#: A batch is closed at this size. So only a single frame above it makes a message larger than Kafka's usual limit of 1 MiB.
_BATCH_BYTES: Final = 900 * 1024
#: The estimated size of a record in a batch without its payload.
_RECORD_BYTES: Final = 128
#: How much is held in memory while the stream takes nothing and there is no spool. Above it, the sockets are not read.
_HOLD_BYTES: Final = 64 * 1024 * 1024
_LEASE_EVERY_S: Final = 1.0
#: At the start, ingest waits at most this long for the exchange's list of symbols.
_LIST_WITHIN_S: Final = 3.0
#: The status shows this many of the latest clock leaps.
_MOST_LEAPS: Final = 5
#: At the end, ingest waits this long for the sockets to close, and this long for the stream to take the held records.
_CLOSE_WITHIN_S: Final = 4.0
_LAST_FLUSH_S: Final = 5.0

_TYPES: Final = tuple(RAW.types)
_Columns: TypeAlias = "tuple[list[str], list[str], list[str], list[str], list[int], list[bytes]]"


@dataclass(slots=True)
class _Gathered:
    """The records of one batch, as columns."""

    columns: _Columns = field(default_factory=lambda: ([], [], [], [], [], []))
    bytes: int = 0


class StreamRecorder:
    """Collects the raw records of each millisecond into batches and gives them to `delivery`. It runs on the event loop.

    If `delivery` cannot take a batch, because the embedded stream's disk is full, the sockets are not read. The received records stay in
    memory, in order, and are tried again.
    """

    def __init__(self, delivery: Delivery, partitions: Mapping[str, int], random: Random) -> None:
        """`partitions`: plan name -> partition of its records. The records of other plans go to partition 0."""
        self.delivery = delivery
        self._partitions = partitions
        self._random = random
        self._gathered: dict[int, deque[_Gathered]] = {}
        self._bytes = 0
        self._timer: asyncio.Handle | None = None
        self._turner: asyncio.Handle | None = None
        self._waits = backoff(random, cap_s=5.0)
        self._pausers: list[Callable[[bool], None]] = []
        self._paused = False
        self._flushed_at = 0.0
        self._problem = ""
        self._failure: Exception | None = None
        self.records = 0

    @property
    def problem(self) -> str:
        return self._problem or self.delivery.problem

    @property
    def failure(self) -> Exception | None:
        """An error that waiting cannot end; the stage must stop. None if there is none."""
        return self._failure or self.delivery.failure

    @property
    def held(self) -> int:
        """Records that were received and not yet given to `delivery`."""
        return sum(len(one.columns[0]) for gathered in self._gathered.values() for one in gathered)

    def on_pause(self, pause: Callable[[bool], None]) -> None:
        self._pausers.append(pause)

    def record(self, plan: Plan, connection: str, kind: RawKind, received_ns: int, payload: bytes) -> None:
        partition = self._partitions.get(plan.name, 0)
        size = len(payload) + _RECORD_BYTES
        gathered = self._gathered.get(partition)
        if gathered is None:
            gathered = self._gathered[partition] = deque()
        if not gathered or gathered[-1].bytes + size > _BATCH_BYTES:
            gathered.append(_Gathered())
        gathered[-1].bytes += size
        provider, feed, connections, kinds, received, payloads = gathered[-1].columns
        provider.append(plan.provider)
        feed.append(plan.feed)
        connections.append(connection)
        kinds.append(kind)
        received.append(received_ns)
        payloads.append(payload)
        self._bytes += size
        if self._timer is None:
            loop = asyncio.get_running_loop()
            early_s = self._flushed_at + _FLUSH_EVERY_S - loop.time()
            self._timer = loop.call_later(early_s, self._flush_or_wait) if early_s > 0 else loop.call_soon(self._flush_or_wait)
        elif self._bytes > _BATCH_BYTES and not self._problem:
            self._timer.cancel()
            self._flush_or_wait()
        elif self._bytes > _HOLD_BYTES and not self._paused:
            self._pause(True)

    def _flush_or_wait(self) -> None:
        self._timer = None
        try:
            self.flush()
        except AWAY as error:
            delay = next(self._waits)
            self._problem = str(error)
            log.error("%s %d received records are held in memory. Nothing is lost. Next attempt in %.1f s.", error, self.held, delay)
            self._pause(True)
            self._timer = asyncio.get_running_loop().call_later(delay, self._flush_or_wait)
        except Exception as error:  # noqa: BLE001 the event loop would only log it; the stage must stop
            self._failure = error
            self._pause(True)

    def flush(self) -> None:
        """Give the collected records to `delivery`. Raises the errors of `Delivery.put`; records that were not taken are still held."""
        for partition, gathered in self._gathered.items():
            while gathered:
                columns = gathered[0].columns
                arrays = [pa.array(column, kind) for column, kind in zip(columns, _TYPES, strict=True)]
                self.delivery.put(partition, pa.RecordBatch.from_arrays(arrays, schema=RAW))
                self.records += len(columns[0])
                gathered.popleft()
        self._bytes = 0
        loop = asyncio.get_running_loop()
        self._flushed_at = loop.time()
        if self._problem:
            log.warning("The stream accepts records again. The held records follow in order.")
            self._problem, self._waits = "", backoff(self._random, cap_s=5.0)
        if self._paused:
            self._pause(False)
        self.look_after()

    def look_after(self) -> None:
        """Call `Delivery.turn` every 10 ms until nothing is on its way."""
        if self._turner is None and self.delivery.busy:
            self._turner = asyncio.get_running_loop().call_later(_TURN_EVERY_S, self._turn)

    def _turn(self) -> None:
        self._turner = None
        self.delivery.turn()
        self.look_after()

    def _pause(self, pause: bool) -> None:
        self._paused = pause
        for pauser in self._pausers:
            pauser(pause)


@dataclass(frozen=True, slots=True)
class Share:
    """What one process of ingest has to keep up."""

    lines: Sequence[FeedConnection]
    #: The requests that check a feed's symbols, by the feed.
    checks: Mapping[str, CheckRequest]
    #: The rights to the only connection of an account.
    leases: Sequence[Lease] = ()
    #: The arbitrations of lines that carry the same events.
    arbitrations: Sequence[Arbitration] = ()


async def ingest(share: Share, recorder: StreamRecorder, status: StatusFile, stop: asyncio.Event, watch: ClockWatch | None = None) -> None:
    """Keep every line open and every lease held until `stop` is set.

    Raises Refused when every provider has refused for good, Busy when another process has taken over a lease, `StreamRecorder.failure`
    when waiting cannot end it, and Unavailable when records are lost at the end."""
    lines, checks = share.lines, share.checks
    checked = [asyncio.Event() for _ in checks]
    checkers = [asyncio.create_task(_check(*check, lines, recorder, once)) for check, once in zip(checks.items(), checked, strict=True)]
    # The exchange's symbol list should lie before its events in the stream. Do not wait long for a slow answer.
    await _unless_stopped(stop, asyncio.create_task(_all_set(checked)), _LIST_WITHIN_S)
    keepers = [asyncio.create_task(line.keep(), name=line.plan.name) for line in lines]
    rate, leaps = Rate(), deque[Leap](maxlen=_MOST_LEAPS)
    counted = 0
    watch = watch or ClockWatch()
    leases_due = time.monotonic() + _LEASE_EVERY_S
    recorder.look_after()
    try:
        while not stop.is_set() and recorder.failure is None and _any_goes_on(keepers):
            await _until(stop, keepers, 0.5)
            if (leap := watch.look()) is not None:
                leaps.append(leap)
                _report_leap(leap, lines)
            frames = sum(line.state.frames for line in lines)
            rate.add(frames - counted)
            counted = frames
            status.maybe(lambda: status_of(lines, share.arbitrations, recorder, rate.take(), leaps, watch.found))
            if time.monotonic() >= leases_due:
                leases_due = time.monotonic() + _LEASE_EVERY_S
                _keep(share.leases)
    finally:
        await _close(lines, keepers, checkers)
        await _last_flush(recorder)
        for lease in share.leases:
            lease.drop()
        status.write(status_of(lines, share.arbitrations, recorder, rate.take(), leaps, watch.found))
    if recorder.failure is not None:
        raise recorder.failure
    for keeper in filter(_failed, keepers):
        keeper.result()
    if lines and all(line.state.stopped for line in lines):
        raise Refused("Every provider refused: " + "; ".join(f"{line.plan.name}: {line.state.problem}" for line in lines))


def _any_goes_on(keepers: Sequence[asyncio.Task[None]]) -> bool:
    """Whether at least one connection is still kept open, and none has failed."""
    return not all(keeper.done() for keeper in keepers) and not any(map(_failed, keepers))


def _report_leap(leap: Leap, lines: Sequence[FeedConnection]) -> None:
    log.error("At %s %s. The time in between counts as a gap. Synchronize the clock with NTP.", times.text(leap.before_ns), leap)
    for line in lines:
        line.clock_leapt(leap)


async def _close(lines: Sequence[FeedConnection], keepers: Sequence[asyncio.Task[None]], checkers: Sequence[asyncio.Task[None]]) -> None:
    """Close every connection by the provider's protocol. Cancel those that take longer than 4 s."""
    for line in lines:
        line.stop()
    for checker in checkers:
        checker.cancel()
    await asyncio.wait(keepers, timeout=_CLOSE_WITHIN_S)
    for keeper in keepers:
        keeper.cancel()  # it may still be dialing an address that does not answer
    await asyncio.gather(*keepers, return_exceptions=True)


def _keep(leases: Sequence[Lease]) -> None:
    for lease in leases:
        try:
            lease.keep()
        except AWAY as error:
            # No other process can take the lease meanwhile: it cannot ask the stream either.
            log.warning("A lease could not be renewed: %s", error)


async def _until(stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    waiter = asyncio.create_task(stop.wait())
    pending = [task for task in tasks if not task.done()]
    await asyncio.wait([waiter, *pending], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()


async def _all_set(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _unless_stopped(stop: asyncio.Event, waiting: asyncio.Task[None], seconds: float) -> None:
    """Wait for `waiting` until it ends, `stop` is set or `seconds` have passed. Then cancel it."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({waiting, stopping}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        stopping.cancel()


def _failed(keeper: asyncio.Task[None]) -> bool:
    return keeper.done() and not keeper.cancelled() and keeper.exception() is not None


async def _last_flush(recorder: StreamRecorder) -> None:
    """Try for up to 5 s to give the held records to the stream.

    Raises Unavailable when records are lost, and the flush's own error when it fails (RuntimeError in place of errors that are not
    Tapeline's). The message says how many records are lost."""
    deadline = time.monotonic() + _LAST_FLUSH_S
    while recorder.problem and recorder.held and recorder.failure is None and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    try:
        recorder.flush()
        lost = recorder.delivery.close(max(0.5, deadline - time.monotonic()))
    except Exception as error:
        lost = recorder.held + recorder.delivery.close(0.0)
        text = f"{error} {lost} records that were received just before the end could not be kept and are lost."
        raise (type(error) if isinstance(error, TapelineError) else RuntimeError)(text) from error
    if lost:
        why = recorder.problem.rstrip(".") or "the stream accepted none before ingest stopped"
        raise Unavailable(f"{lost} received records could not be kept: {why}.")


async def _check(name: str, request: CheckRequest, lines: Sequence[FeedConnection], recorder: StreamRecorder, once: asyncio.Event) -> None:
    """Ask the provider whether the configured symbols exist. Log those that do not, and record how the provider splits the others.

    Events are recorded whatever the answer is. `once` is set after the first answer or failure."""
    for delay in backoff(Random(), first_s=5.0, cap_s=600.0):
        try:
            body = await rest.get(request.check.url, request.tls)
            problems, names = list(request.check.problems(body)), dict(request.check.names(body))
            break
        except (Unavailable, *UNREADABLE) as error:
            text = "%s: the symbols could not be checked: %s. Data flows meanwhile. Tapeline checks them again in %.0f s."
            log.warning(text, name, str(error).rstrip("."), delay)
            once.set()
        await asyncio.sleep(delay)
    of = next(line.plan for line in lines if line.plan.name == name)
    for line in lines:
        if (line.plan.provider, line.plan.feed) == (of.provider, of.feed):  # a record per line: lines may have different partitions
            recorder.record(line.plan, "", "listed", time.time_ns(), msgspec.json.encode({"url": request.check.url, "names": names}))
    once.set()
    for problem in problems:
        log.error("%s", problem)
    for line in lines:
        if problems and line.plan.name == name:
            line.state.problem = "; ".join(problems)
