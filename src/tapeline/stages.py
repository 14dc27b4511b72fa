"""The three stages, each a few lines around one loop: ingest records, normalize interprets, store keeps."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from random import Random
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tapeline import flow, net
from tapeline.errors import Refused, Unavailable
from tapeline.monitor.status import Latencies, Rate, StatusFile
from tapeline.providers.normalizing import Count, Decode, Events, Normalized, Reject, normalize
from tapeline.providers.session import Plan
from tapeline.records import NORMALIZED_TOPICS, NS_PER_S, RAW, RAW_TOPIC, TICKS_TOPIC, RawKind, Topic
from tapeline.stores import Store
from tapeline.streams import Chunk, Stream

log = logging.getLogger(__name__)

#: The consumer group of the normalize stage.
NORMALIZE: Final = "normalize"
#: Commits are at least this far apart: frames that come faster share one, a frame after a pause waits for nothing.
_FLUSH_EVERY_S: Final = 0.001
#: Frames held in memory while the stream takes none; past it the sockets are not read.
_HOLD_BYTES: Final = 64 * 1024 * 1024
_CHUNK_ROWS: Final = 24_576
_NORMALIZE_REST_S: Final = 0.0005
_STORE_REST_S: Final = 0.05
#: At the end: so long for the sockets to close, and so long for a stream that takes nothing to take what is held.
_CLOSE_WITHIN_S: Final = 15.0
_LAST_FLUSH_S: Final = 20.0


class StreamRecorder:
    """Gathers the raw records of a millisecond and appends them to the stream, on the event loop itself.

    While the loop writes it reads no socket, so the only queue is the kernel's, and a slow stream slows the sender down. While the
    stream takes nothing, reading pauses and what has been received is held, in order, and tried again.
    """

    def __init__(self, stream: Stream, random: Random) -> None:
        self._stream = stream
        self._random = random
        self._columns: tuple[list[str], list[str], list[str], list[str], list[int], list[bytes]] = ([], [], [], [], [], [])
        self._bytes = 0
        self._timer: asyncio.Handle | None = None
        self._waits = net.backoff(random, cap_s=5.0)
        self._pausers: list[Callable[[bool], None]] = []
        self._paused = False
        self._flushed_at = 0.0
        self.records = 0
        self.trouble = ""

    @property
    def held(self) -> int:
        """Records that are received and not yet in the stream."""
        return len(self._columns[0])

    def on_pause(self, pause: Callable[[bool], None]) -> None:
        self._pausers.append(pause)

    def record(self, plan: Plan, connection: str, kind: RawKind, received_ns: int, payload: bytes) -> None:
        provider, feed, connections, kinds, received, payloads = self._columns
        provider.append(plan.provider)
        feed.append(plan.feed)
        connections.append(connection)
        kinds.append(kind)
        received.append(received_ns)
        payloads.append(payload)
        self._bytes += len(payload)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            early_s = self._flushed_at + _FLUSH_EVERY_S - loop.time()
            self._timer = loop.call_later(early_s, self._flush_or_wait) if early_s > 0 else loop.call_soon(self._flush_or_wait)
        elif self._bytes > _HOLD_BYTES and not self._paused:
            self._pause(True)

    def _flush_or_wait(self) -> None:
        self._timer = None
        try:
            self.flush()
        except Unavailable as error:
            delay = next(self._waits)
            self.trouble = str(error)
            log.error("%s %d received records are held in memory, none is lost; next try in %.1f s.", error, self.held, delay)
            self._pause(True)
            self._timer = asyncio.get_running_loop().call_later(delay, self._flush_or_wait)

    def flush(self) -> None:
        """Append what has been gathered. Raises Unavailable: then it is still held."""
        if not self._columns[0]:
            return
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, RAW, strict=True)]
        self._stream.append(RAW_TOPIC, pa.RecordBatch.from_arrays(arrays, schema=RAW))
        self.records += len(self._columns[0])
        for column in self._columns:
            column.clear()
        self._bytes = 0
        self._flushed_at = asyncio.get_running_loop().time()
        if self.trouble:
            log.warning("The stream takes records again; nothing was lost.")
            self.trouble, self._waits = "", net.backoff(self._random, cap_s=5.0)
        if self._paused:
            self._pause(False)

    def _pause(self, pause: bool) -> None:
        self._paused = pause
        for pauser in self._pausers:
            pauser(pause)


async def ingest(
    lines: Sequence[net.Line],
    recorder: StreamRecorder,
    checks: Mapping[str, net.CheckRequest],
    status: StatusFile,
    stop: asyncio.Event,
) -> None:
    """Keep every line open until `stop`. Raises Refused when every provider has said no for good."""
    keepers = [asyncio.create_task(line.keep(), name=line.plan.name) for line in lines]
    checkers = [asyncio.create_task(_check(name, request, lines)) for name, request in checks.items()]
    rate = Rate()
    counted = 0
    try:
        while not stop.is_set() and not all(keeper.done() for keeper in keepers) and not any(map(_failed, keepers)):
            await _until(stop, keepers, 0.5)
            frames = sum(line.state.frames for line in lines)
            rate.add(frames - counted)
            counted = frames
            status.maybe(lambda: _ingest_report(lines, recorder, rate))
    finally:
        for line in lines:
            line.stop()
        for checker in checkers:
            checker.cancel()
        await asyncio.wait(keepers, timeout=_CLOSE_WITHIN_S)
        for keeper in keepers:
            keeper.cancel()  # one that still dials: nobody answers there
        await asyncio.gather(*keepers, return_exceptions=True)
        await _last_flush(recorder)
        status.write(_ingest_report(lines, recorder, rate))
    for keeper in filter(_failed, keepers):
        keeper.result()
    if lines and all(line.state.stopped for line in lines):
        raise Refused("Every provider has refused: " + "; ".join(f"{line.plan.name}: {line.state.trouble}" for line in lines))


async def _until(stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    waiter = asyncio.create_task(stop.wait())
    pending = [task for task in tasks if not task.done()]
    await asyncio.wait([waiter, *pending], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()


def _failed(keeper: asyncio.Task[None]) -> bool:
    return keeper.done() and not keeper.cancelled() and keeper.exception() is not None


async def _last_flush(recorder: StreamRecorder) -> None:
    """What is held while the stream takes nothing is tried for a while yet. Raises Unavailable that counts what is lost."""
    deadline = time.monotonic() + _LAST_FLUSH_S
    while recorder.trouble and recorder.held and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    try:
        recorder.flush()
    except Unavailable as error:
        lost = f"{recorder.held} records that were received just before the end could not be kept and are lost."
        raise type(error)(f"{error} {lost}") from error


async def _check(name: str, request: net.CheckRequest, lines: Sequence[net.Line]) -> None:
    """Ask the provider whether what is configured exists; say what does not. Data flows whatever the answer."""
    try:
        problems = list(request.check.problems(await net.get(request.check.url, request.tls)))
    except (Unavailable, ValueError) as error:
        log.warning("%s: the symbols could not be checked: %s", name, error)
        return
    for problem in problems:
        log.error("%s", problem)
    for line in lines:
        if problems and line.plan.name == name:
            line.state.trouble = "; ".join(problems)


def _ingest_report(lines: Sequence[net.Line], recorder: StreamRecorder, rate: Rate) -> dict[str, Any]:
    return {
        "records": recorder.records,
        "frames_per_s": rate.take(),
        "trouble": recorder.trouble,
        "last_data_ns": max((line.state.last_data_ns for line in lines), default=0),
        "lines": {line.plan.name: asdict(line.state) | {"provider": line.plan.provider} for line in lines},
    }


class Normalize:
    """Raw records in; ticks, bars, notices and rejects out, with the position, in one commit."""

    def __init__(self, stream: Stream, decoders: Mapping[str, Decode], status: StatusFile, clock: Callable[[], int] = time.time_ns):
        self._stream = stream
        self._decoders = decoders
        self._status = status
        self._clock = clock
        self._next = stream.position(NORMALIZE, RAW_TOPIC, 0)
        self._latencies: dict[str, Latencies] = {}
        self._rates: dict[str, Rate] = {}

    def step(self) -> bool:
        self._status.maybe(self._report)
        chunk = self._stream.read(RAW_TOPIC, 0, self._next, _CHUNK_ROWS)
        if chunk is None:
            return False
        normalized = _normalize_all(chunk.batch, chunk.partition, chunk.first, self._decoders)
        outputs = [(topic, normalized.batches[topic]) for topic in NORMALIZED_TOPICS]
        self._stream.commit(NORMALIZE, chunk, outputs, totals_of(normalized.counts))
        self._next = chunk.next
        self._observe(normalized)
        return True

    def _observe(self, normalized: Normalized) -> None:
        ticks = normalized.batches[TICKS_TOPIC]
        late = self._clock() - ticks["received_ns"].to_numpy()
        for (provider, _), count in normalized.counts.items():
            self._rates.setdefault(provider, Rate(self._clock)).add(count.ticks)
        for provider in {provider for provider, _ in normalized.counts}:
            only = len({name for name, _ in normalized.counts}) == 1
            mine = late if only else late[np.array(ticks["provider"].to_pylist(), dtype=object) == provider]
            if len(mine):
                self._latencies.setdefault(provider, Latencies(self._clock)).add(mine)

    def _report(self) -> dict[str, Any]:
        return {
            "position": self._next,
            "providers": {
                name: {
                    "ticks_per_s": self._rates[name].take(),
                    "p50_ms": (found := self._latencies.get(name)) and found.ms(0.50),
                    "p99_ms": found and found.ms(0.99),
                }
                for name in self._rates
            },
        }

    def finish(self) -> None:
        self._status.write(self._report())


def _normalize_all(raw: pa.RecordBatch, partition: int, first: int, decoders: Mapping[str, Decode]) -> Normalized:
    """As `normalize`; but a record that makes a decoder fail is found by halving, and rejected alone."""
    try:
        return normalize(raw, partition, first, decoders)
    except Exception as error:  # noqa: BLE001 whatever a decoder raises: one record must not stop all that come after it
        if raw.num_rows == 1:
            reason = f"the decoder failed: {type(error).__name__}: {error}"
            log.error("Raw record %d of partition %d is rejected: %s", first, partition, reason)
            return normalize(raw, partition, first, dict.fromkeys(decoders, _refuse(reason)))
    half = raw.num_rows // 2
    left = _normalize_all(raw.slice(0, half), partition, first, decoders)
    right = _normalize_all(raw.slice(half), partition, first + half, decoders)
    counts = {key: left.counts.get(key, Count()) + right.counts.get(key, Count()) for key in {**left.counts, **right.counts}}
    return Normalized({topic: pa.concat_batches([left.batches[topic], right.batches[topic]]) for topic in left.batches}, counts)


def _refuse(reason: str) -> Decode:
    """A decoder that rejects every frame."""

    def decode(feed: str, frames: Iterable[tuple[int, bytes]], events: Events) -> None:
        del feed
        for row, frame in frames:
            events.seen += 1
            events.rejects.add(Reject(reason, frame), row, 0)

    return decode


def totals_of(counts: Mapping[tuple[str, str], Count]) -> dict[str, int]:
    """`binance/spot/ticks` and so on: the accounting as the stream keeps it."""
    return {
        f"{provider}/{feed}/{part.name}": getattr(count, part.name) for (provider, feed), count in counts.items() for part in fields(Count)
    }


class KeepIn:
    """Normalized topics into one store, each from the position that the store itself holds."""

    def __init__(
        self,
        stream: Stream,
        store: Store,
        status: StatusFile,
        stop: threading.Event,
        *,
        flush_rows: int,
        flush_s: float,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._stream, self._store, self._status, self._stop, self._clock = stream, store, status, stop, clock
        self._flush_rows, self._flush_ns = flush_rows, int(flush_s * NS_PER_S)
        self._read = {topic: store.position(topic, 0) for topic in NORMALIZED_TOPICS}
        self._held: dict[Topic, list[Chunk]] = {topic: [] for topic in NORMALIZED_TOPICS}
        self._since: dict[Topic, int] = {}
        self._rate = Rate(clock)

    def step(self) -> bool:
        self._status.maybe(self._report)
        worked = False
        for topic in NORMALIZED_TOPICS:
            held = self._held[topic]
            rows = sum(chunk.batch.num_rows for chunk in held)
            chunk = self._stream.read(topic, 0, self._read[topic], self._flush_rows - rows) if rows < self._flush_rows else None
            if chunk is not None:
                self._since.setdefault(topic, self._clock())
                held.append(chunk)
                self._read[topic] = chunk.next
                rows += chunk.batch.num_rows
                worked = worked or rows >= self._flush_rows
            full = rows >= self._flush_rows
            old = held and self._clock() - self._since[topic] >= self._flush_ns
            if full or old or (held and self._stop.is_set() and chunk is None):
                self._flush(topic)
                worked = True
        return worked

    def _flush(self, topic: Topic) -> None:
        held = self._held[topic]
        batch = pa.concat_batches([chunk.batch for chunk in held])
        written = self._store.write(topic, 0, batch, held[-1].next)
        self._rate.add(written.rows)
        held.clear()
        del self._since[topic]

    def _report(self) -> dict[str, Any]:
        return {
            "rows_per_s": self._rate.take(),
            "tables": {topic.table: asdict(self._store.totals(topic, 0)) for topic in NORMALIZED_TOPICS},
        }

    def finish(self) -> None:
        self._status.write(self._report())


def run_normalize(stage: Normalize, stop: threading.Event, random: Random) -> None:
    flow.run(stage.step, stop, rest_s=_NORMALIZE_REST_S, waits=lambda: net.backoff(random, cap_s=5.0))
    stage.finish()


def run_store(stage: KeepIn, stop: threading.Event, random: Random) -> None:
    flow.run(stage.step, stop, rest_s=_STORE_REST_S, waits=lambda: net.backoff(random, cap_s=5.0), drain_s=60.0)
    stage.finish()
