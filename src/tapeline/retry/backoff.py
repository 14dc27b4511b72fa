"""The waits between attempts. They grow up to a cap, and are random, so that processes do not retry at the same moment."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random


def backoff(random: Random, first_s: float = 0.5, cap_s: float = 60.0) -> Iterator[float]:
    """Seconds to wait before each attempt, without end.

    The ceiling starts at `first_s` and doubles up to `cap_s`. Each wait is random between half the ceiling and the ceiling."""
    ceiling = first_s
    while True:
        yield ceiling * (0.5 + random.random() / 2)
        ceiling = min(cap_s, ceiling * 2)
