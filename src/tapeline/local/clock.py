"""Detects jumps of the machine's wall clock by comparing it with a steady clock. Times around a jump cannot be trusted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from tapeline.records import NS_PER_S

#: Smaller differences also come from a clock that is slewed, or from a busy machine. They do not count as jumps.
_LEAST_NS: Final = NS_PER_S


class Leap(NamedTuple):
    """One jump of the wall clock: its time (ns since 1970) at the last look before the jump, and at the first look after it."""

    before_ns: int
    after_ns: int
    #: How much more time passed on the wall clock than in reality (ns). Below zero: the clock was set back.
    by_ns: int

    def __str__(self) -> str:
        seconds = abs(self.by_ns) / NS_PER_S
        return f"the clock was set back by {seconds:,.1f} s" if self.by_ns < 0 else f"the clock leapt ahead by {seconds:,.1f} s"


class ClockWatch:
    """Reports each jump of the wall clock once. `look` must be called often.

    A machine that slept counts as a jump too, because nothing was received meanwhile."""

    def __init__(self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = time.monotonic_ns) -> None:
        #: How many jumps were reported.
        self.found = 0
        self._wall, self._steady = wall, steady
        self._last = (wall(), steady())

    def look(self) -> Leap | None:
        """Return the jump since the last look, or None if both clocks moved on by the same time, to within 1 s."""
        (wall, steady), self._last = self._last, (self._wall(), self._steady())
        by_ns = self._last[0] - wall - (self._last[1] - steady)
        if abs(by_ns) <= _LEAST_NS:
            return None
        self.found += 1
        return Leap(wall, self._last[0], by_ns)
