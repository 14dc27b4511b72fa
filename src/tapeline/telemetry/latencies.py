"""Latencies in exponential buckets: as percentiles of the last seconds, and counted since the process began."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypedDict

import numpy as np
import numpy.typing as npt

from tapeline.records import NS_PER_S

#: The schema of Prometheus' native histograms: a bucket is 2 ** (2 ** -SCHEMA) times as wide as the one before, here 4.4 %.
SCHEMA: Final = 4
_AN_OCTAVE: Final = 1 << SCHEMA
#: The number of the first bucket that is kept (below 1 ns), and how many there are (up to some 9 hours).
_FIRST: Final = -30 * _AN_OCTAVE
_BUCKETS: Final = 45 * _AN_OCTAVE
#: The upper bounds of a classic histogram's buckets, in seconds.
BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BOUNDS_NS: Final = np.array([bound * NS_PER_S for bound in BOUNDS_S], np.int64)
#: The most latencies that are kept before they are sorted into buckets.
_FRESH: Final = 65_536


class Buckets(TypedDict):
    """How many latencies there were since the process began."""

    sum_s: float
    #: For each of BOUNDS_S, those that are not above it and above the one before; at the end, those above the last.
    classic: list[int]
    #: (number of a native bucket, how many are in it), for those that are not empty. Bucket n ends at 2 ** (n / 2 ** SCHEMA) seconds.
    native: list[tuple[int, int]]


class Latencies:
    """Counts latencies, in bounded memory."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock`: ns, UTC."""
        self._clock = clock
        self._fresh: list[npt.NDArray[np.int64]] = []
        self._fresh_count = 0
        self._now = np.zeros(_BUCKETS, np.int64)
        self._before = np.zeros(_BUCKETS, np.int64)
        self._earlier = np.zeros(_BUCKETS, np.int64)
        self._classic = np.zeros(len(BOUNDS_S) + 1, np.int64)
        self._sum_ns = 0
        self._turn_ns = clock() + 5 * NS_PER_S

    def add(self, ns: npt.NDArray[np.int64]) -> None:
        """Count latencies (ns). Values below 1 ns count as 1 ns. The array is kept, so do not change it afterwards."""
        self._fresh.append(ns)
        self._fresh_count += len(ns)
        if self._fresh_count > _FRESH:
            self._sort()

    def ms(self, quantile: float) -> float | None:
        """The latency in ms that the fraction `quantile` (0 to 1) of the events of the last five to ten seconds did not exceed.

        None without events. The result is at most one bucket too high."""
        self._sort()
        both = self._now + self._before
        total = int(both.sum())
        if not total:
            return None
        bucket = int(np.searchsorted(np.cumsum(both), quantile * total)) + _FIRST
        return float(2.0 ** (bucket / _AN_OCTAVE)) * 1e3

    def since_start(self) -> Buckets:
        """Everything that was counted since the process began."""
        self._sort()
        counted = self._now + self._before + self._earlier
        filled = np.flatnonzero(counted)
        native = list(zip((filled + _FIRST).tolist(), counted[filled].tolist(), strict=True))
        return {"sum_s": self._sum_ns / NS_PER_S, "classic": self._classic.tolist(), "native": native}

    def _sort(self) -> None:
        """Sort the new latencies into buckets. Every 5 s, the current buckets become the previous ones."""
        if self._clock() >= self._turn_ns:
            self._earlier += self._before
            self._before, self._now = self._now, np.zeros(_BUCKETS, np.int64)
            self._turn_ns = self._clock() + 5 * NS_PER_S
        if self._fresh:
            ns = np.maximum(np.concatenate(self._fresh), 1)
            bucket = np.ceil((np.log2(ns) - np.log2(NS_PER_S)) * _AN_OCTAVE).astype(np.int64) - _FIRST
            self._now += np.bincount(np.clip(bucket, 0, _BUCKETS - 1), minlength=_BUCKETS)
            self._classic += np.bincount(np.searchsorted(_BOUNDS_NS, ns), minlength=len(BOUNDS_S) + 1)
            self._sum_ns += int(ns.sum())
        self._fresh, self._fresh_count = [], 0
