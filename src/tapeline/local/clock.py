"""The machine's wall clock against the time that really passes: where it leapt, what it says of that stretch means nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from tapeline.records import NS_PER_S

#: Smaller differences are those of a clock that is being slewed, and of a machine that is busy.
_LEAST_NS: Final = NS_PER_S


class Leap(NamedTuple):
    """What the wall clock said, ns since 1970: at the last look before it leapt, and at the first one after."""

    before_ns: int
    after_ns: int
    #: How much further than time itself it went; below zero: it was set back.
    by_ns: int

    def __str__(self) -> str:
        seconds = abs(self.by_ns) / NS_PER_S
        return f"the clock was set back by {seconds:,.1f} s" if self.by_ns < 0 else f"the clock leapt ahead by {seconds:,.1f} s"


class ClockWatch:
    """Looked at often, it tells each leap once. A machine that slept is one too: nothing was heard meanwhile."""

    def __init__(self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = time.monotonic_ns) -> None:
        self._wall, self._steady = wall, steady
        self._last = (wall(), steady())

    def look(self) -> Leap | None:
        (wall, steady), self._last = self._last, (self._wall(), self._steady())
        by_ns = self._last[0] - wall - (self._last[1] - steady)
        return Leap(wall, self._last[0], by_ns) if abs(by_ns) > _LEAST_NS else None
