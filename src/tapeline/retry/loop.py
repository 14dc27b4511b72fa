"""The one loop of a stage that reads and commits: step while there is work, rest while there is none, retry what may pass."""

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
    """Call `step` until `stop` is set and it has no more work; it says whether it did something.

    `Unavailable` is met with the waits given, for `patience_s` in a row; then it is raised, for the supervisor to deal with. `Refused` is
    raised where the stage has never worked. Later it is waited out without bound: a password or a right that is taken away for a while
    must not stop the other stages. After `stop`, work that is already there is finished, within `drain_s`.
    """
    begun = False
    trouble_since: float | None = None
    away_since: float | None = None
    delays = waits()
    stopping_since: float | None = None
    while True:
        if stop.is_set():
            stopping_since = stopping_since or clock()
            if clock() - stopping_since > drain_s:
                log.warning("Stopped with work left after %.0f s; it is kept in the stream and goes on at the next start.", drain_s)
                return
        try:
            worked = step()
        except (Unavailable, Refused) as error:
            now = clock()
            trouble_since = trouble_since or now
            away_since = None if isinstance(error, Refused) else away_since or now
            fatal = not begun if away_since is None else now - away_since > patience_s
            if stop.is_set() or fatal:
                raise
            delay = next(delays)
            log.warning("%s Next try in %.1f s.", error, delay)
            stop.wait(delay)
            continue
        begun = True
        if trouble_since is not None:
            log.warning("Recovered after %.1f s.", clock() - trouble_since)
            trouble_since, away_since, delays = None, None, waits()
        if not worked:
            if stopping_since is not None:
                return
            stop.wait(rest_s)
