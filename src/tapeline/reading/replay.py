"""Events at the pace at which they happened, or another: what is due now, in slices, and sleep until the next is."""

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

#: So many events at most are handed on together, however many are due.
_SLICE_ROWS = 8_192


def paced(
    batches: Iterator[pa.RecordBatch], speed: float, *, sleep: Callable[[float], object], clock: Callable[[], int]
) -> Iterator[pa.RecordBatch]:
    """The rows of `batches`, which have `ts_ns` and are in its order, each no earlier than it is due.

    The first is due at once; a later one when the time between the two, divided by `speed`, has passed. `speed` 0: all at once. `clock`
    gives nanoseconds that only grow, `sleep` takes seconds; where it returns True, as the `wait` of an event that is set does, the replay
    ends. Who takes the rows more slowly than they are due is given what is overdue without a pause until he has caught up.
    """
    first, begun = None, 0
    for batch in batches:
        if not batch.num_rows:
            continue
        ts = batch["ts_ns"].to_numpy()
        if first is None:
            first, begun = int(ts[0]), clock()
        # Times as float seconds would be some hundred ns off; differences as float nanoseconds are not, for 100 days.
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
    """Append batches of ticks to the stream's normalized topic until there are no more or `stop` is set; how many ticks it took.

    While the stream is away it is tried again, for five minutes; then Unavailable is raised, as at once where `batches` raises it. Each
    tick is appended once, unless this process is killed and started again.
    """
    published = 0
    held: list[pa.RecordBatch] = []
    unread: list[Unavailable] = []
    done = threading.Event()

    def taken() -> pa.RecordBatch | None:
        try:
            return next(batches, None)
        except Unavailable as error:  # an iterator that has raised has ended: to go on would be to leave out the rest
            unread.append(error)
            return None

    def step() -> bool:
        nonlocal published
        batch = None if stop.is_set() else held.pop() if held else taken()
        if batch is None:
            done.set()
            return False
        held.append(batch)  # until the stream has it
        stream.append(TICKS_TOPIC, batch)
        published += held.pop().num_rows
        return True

    loop.run(step, done, rest_s=0.0, waits=lambda: backoff(random, cap_s=5.0))
    if unread:
        raise unread[0]
    return published
