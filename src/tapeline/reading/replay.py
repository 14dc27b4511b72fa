"""Replays events at their original pace or another: yields those that are due in slices, and sleeps until the next is due."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import pyarrow as pa

from tapeline.errors import Unavailable
from tapeline.records import NS_PER_S, TICKS_TOPIC
from tapeline.retry import loop
from tapeline.retry.backoff import backoff
from tapeline.streams import Stream

#: A slice has at most this many events, however many are due.
_SLICE_ROWS = 8_192


def paced(
    batches: Iterator[pa.RecordBatch], speed: float, *, sleep: Callable[[float], object], clock: Callable[[], int]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of `batches`, none before it is due. The batches must have the column `ts_ns` and be in its order.

    The first row is due at once. A later row is due when the time between it and the first row, divided by `speed`, has passed. With
    `speed` 0, all rows are due at once. `clock` returns monotonic nanoseconds. `sleep` takes seconds; the replay ends if it returns True,
    as `Event.wait` does when the event is set. A consumer that is too slow gets the overdue rows without a pause until it has caught up.
    """
    first, begun = None, 0
    for batch in batches:
        if not batch.num_rows:
            continue
        ts = batch["ts_ns"].to_numpy()
        if first is None:
            first, begun = int(ts[0]), clock()
        # Times as float seconds would be wrong by some hundred ns. Differences as float nanoseconds are exact for 100 days.
        due = (ts - first) / speed if speed else np.zeros(len(ts))
        at = 0
        while at < len(ts):
            passed = clock() - begun
            end = min(int(np.searchsorted(due, passed, "right")), at + _SLICE_ROWS)
            if end <= at:
                if sleep(max(float(due[at]) - passed, 1.0) / NS_PER_S) is True:
                    return
                continue
            yield batch.slice(at, end - at)
            at = end


def publish(batches: Iterator[pa.RecordBatch], stream: Stream, stop: threading.Event, random: Random) -> int:
    """Append batches of ticks to the stream's normalized topic until there are no more, or `stop` is set. Returns the number of ticks.

    While the stream is away, it tries again for five minutes, then raises Unavailable. If `batches` raises Unavailable, it is raised at
    once. Each tick is appended once, unless this process is killed and started again.
    """
    published = 0
    held: list[pa.RecordBatch] = []
    unread: list[Unavailable] = []
    done = threading.Event()

    def taken() -> pa.RecordBatch | None:
        try:
            return next(batches, None)
        except Unavailable as error:  # an iterator that has raised is at its end: a retry would silently skip the rest
            unread.append(error)
            return None

    def step() -> bool:
        nonlocal published
        batch = None if stop.is_set() else held.pop() if held else taken()
        if batch is None:
            done.set()
            return False
        held.append(batch)  # kept until the stream has it, so that a retry sends the same batch
        stream.append(TICKS_TOPIC, batch)
        published += held.pop().num_rows
        return True

    loop.run(step, done, rest_s=0.0, waits=lambda: backoff(random, cap_s=5.0))
    if unread:
        raise unread[0]
    return published
