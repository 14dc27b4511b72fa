"""The loop of every stage that reads and commits: step while there is work, rest while there is none, retry after a temporary error."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

from tapeline.errors import Refused, Unavailable

log = logging.getLogger(__name__)


def run(
    step: Callable[[], bool],
    stop: threading.Event,
    *,
    rest_s: float,
    waits: Callable[[], Iterator[float]],
    patience_s: float = 300.0,
    drain_s: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Call `step` until `stop` is set and there is no more work. `step` returns whether it did something.

    After `Unavailable`, the step is retried with the given waits. If the error lasts for `patience_s` seconds, it is raised, and the
    supervisor handles it. `Refused` is raised if the stage has never worked. Otherwise it is retried without a time limit, because a
    password or a right that is missing for a while must not stop the other stages. After `stop`, work that is already there is finished
    within `drain_s` seconds; an error is then raised at once. `rest_s` is the pause when there is no work.
    """
    begun = False
    failing_since: float | None = None
    away_since: float | None = None
    delays = waits()
    stopping_since: float | None = None
    while True:
        if stop.is_set():
            stopping_since = stopping_since or clock()
            if clock() - stopping_since > drain_s:
                log.warning("Stopped with work left after %.0f s. The stream keeps it, and the next start continues with it.", drain_s)
                return
        try:
            worked = step()
        except (Unavailable, Refused) as error:
            now = clock()
            failing_since = failing_since or now
            away_since = None if isinstance(error, Refused) else away_since or now
            fatal = not begun if away_since is None else now - away_since > patience_s
            if stop.is_set() or fatal:
                raise
            delay = next(delays)
            log.warning("%s Next attempt in %.1f s.", error, delay)
            stop.wait(delay)
            continue
        begun = True
        if failing_since is not None:
            log.warning("Recovered after %.1f s.", clock() - failing_since)
            failing_since, away_since, delays = None, None, waits()
        if not worked:
            if stopping_since is not None:
                return
            stop.wait(rest_s)
