"""Reads the live topics on a thread of its own, and gives the event loop one window after the other."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import inf
from random import Random
from typing import Final

from tapeline.errors import TapelineError
from tapeline.records import BARS_TOPIC, NS_PER_S, TICKS_TOPIC, Chunk, Topic
from tapeline.retry import loop as retrying
from tapeline.retry.backoff import backoff
from tapeline.streams import Stream
from tapeline.web.live.position import Position
from tapeline.web.live.window import Window, position_of, window_of

log = logging.getLogger(__name__)

TOPICS: Final = (TICKS_TOPIC, BARS_TOPIC)
#: How long records are collected for one window. It bounds the latency, and how many messages a second a client gets.
WINDOW_S: Final = 0.025
#: The most records of a topic in one window.
_MOST_ROWS: Final = 20_000
#: How many records of the past are read at the start: for the latest values, and for clients that come back after a restart.
_WARM_ROWS: Final = 100_000
#: How often two counts are compared that a writer may change in between.
_TRIES: Final = 5
_FIRST_WAIT_S: Final = 0.3
_LONGEST_WAIT_S: Final = 5.0
#: A reading that takes so long does not work, even if it says nothing.
_STUCK_NS: Final = 10 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Away:
    """The stream cannot be read: since when (ns, UTC), and why."""

    since_ns: int
    why: str


class Reader:
    """Reads from `start` to `stop`. While the stream is away, it tries again and again."""

    def __init__(
        self, open_stream: Callable[[], Stream], begin: Callable[[Position, Position], None], publish: Callable[[Window], None]
    ) -> None:
        """`begin` and `publish` are called in the event loop, one call at a time."""
        self._open, self._begin, self._publish = open_stream, begin, publish
        self._stop = threading.Event()
        #: Set when everything that was there at the start has been read: a client that comes back before that would be told that it is too
        #: late.
        self.caught_up = threading.Event()
        self._thread: threading.Thread | None = None
        self._read_ns, self._why = 0, ""

    def away(self, now_ns: int) -> Away | None:
        """Return what keeps the stream from being read; None if it is read, or if reading has not begun. `now_ns`: UTC."""
        since_ns, why = self._read_ns, self._why
        if not since_ns or not (why or now_ns - since_ns > _STUCK_NS):
            return None
        return Away(since_ns, why or "Reading takes very long, or it has ended by an error that the log tells.")

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to read, for this event loop."""
        self._read_ns = time.time_ns()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="live feed", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the reading."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LONGEST_WAIT_S)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        delays, logged = backoff(Random(), _FIRST_WAIT_S, _LONGEST_WAIT_S), ""
        while not self._stop.is_set():
            try:
                with closing(self._open()) as stream:
                    delays, logged = backoff(Random(), _FIRST_WAIT_S, _LONGEST_WAIT_S), ""
                    self._read(stream, loop)
            except TapelineError as error:
                self._why = str(error)
                if str(error) != logged:
                    log.warning("%s The live feed waits for it.", error)
                logged = str(error)
                self._stop.wait(next(delays))

    def _read(self, stream: Stream, loop: asyncio.AbstractEventLoop) -> None:
        before: Position | None = None
        positions: dict[str, dict[int, int]] = {}

        def step() -> bool:
            nonlocal before
            began = time.monotonic()
            if before is None:
                first = {topic.table: dict(stream.lives(topic)) for topic in TOPICS}
                positions.update({topic.table: _beginnings(stream, topic, first[topic.table]) for topic in TOPICS})
                before = position_of(positions)
                self._hand_over(loop, partial(self._begin, before, position_of(first)))
            chunks = self._chunks(stream, positions)
            self._read_ns, self._why = time.time_ns(), ""
            if chunks:
                window = window_of(before, chunks)
                before = window.after
                self._hand_over(loop, partial(self._publish, window))
            if sum(chunk.rows for chunk in chunks) < _MOST_ROWS:
                self.caught_up.set()
            self._stop.wait(max(0.0, WINDOW_S - (time.monotonic() - began)))
            return False

        def noted() -> bool:
            try:
                return step()
            except TapelineError as error:
                self._why = str(error)
                raise

        # It goes on where it was, however long the stream is away: clients continue in what it has read.
        retrying.run(noted, self._stop, rest_s=0.0, waits=lambda: backoff(Random(), cap_s=_LONGEST_WAIT_S), patience_s=inf)

    def _chunks(self, stream: Stream, positions: dict[str, dict[int, int]]) -> list[Chunk]:
        """Read on in each topic. If one of them cannot be read, the positions of all stay, so what was read of the others comes again."""
        read = [stream.read(topic, positions[topic.table], _MOST_ROWS) for topic in TOPICS]
        chunks = [chunk for chunk in read if chunk is not None]
        for chunk in chunks:
            positions[chunk.topic.table].update(chunk.next)
        return chunks

    def _hand_over(self, loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
        """Call a function in the event loop, and wait until it is done: if the loop has much to do, the next window becomes larger."""
        done = threading.Event()

        def call() -> None:
            try:
                what()
            finally:
                done.set()

        loop.call_soon_threadsafe(call)
        while not done.wait(1.0) and not self._stop.is_set():
            pass


def _beginnings(stream: Stream, topic: Topic, first: Mapping[int, int]) -> dict[int, int]:
    """Where reading begins: some records before the end; where everything of a life is still there and is not much, at its beginning.

    `first`: where the lives of the partitions began. Offsets jump, so a life's first record may be far behind that. Who had read up to a
    place before it has missed nothing."""
    tail = {part: max(at, first.get(part, 0)) for part, at in stream.tail_positions(topic, _WARM_ROWS).items()}
    whole: set[int] = set()
    for _ in range(_TRIES):
        written, there = stream.written(topic), stream.lag(topic, first)
        whole = {p for p, one in written.items() if there.get(p) == one.records <= _WARM_ROWS}
        if len(whole) == len(tail):
            break  # otherwise a writer came in between, or something is gone
    return {part: first[part] if part in whole else at for part, at in tail.items()}
