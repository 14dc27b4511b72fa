"""How long to wait before the next attempt: longer each time, up to a cap, and never two processes alike."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random


def backoff(random: Random, first_s: float = 0.5, cap_s: float = 60.0) -> Iterator[float]:
    """Seconds to wait before each attempt: doubling to the cap, each drawn between half of it and all of it."""
    ceiling = first_s
    while True:
        yield ceiling * (0.5 + random.random() / 2)
        ceiling = min(cap_s, ceiling * 2)
