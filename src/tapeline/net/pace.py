"""Keeps dials of one provider apart, however many lines it has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from urllib.parse import urlsplit

from tapeline.net.rate_limit import RateLimiter

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Pace:
    """Keeps dials of one provider apart, however many lines it has, and heeds what any process of this address was told to wait."""

    every_s: float = 1.1
    #: What processes share of the dials to one place; none: each line goes by what it was told itself.
    shared: Callable[[str], RateLimiter] | None = None
    _next: float = 0.0
    _quotas: dict[str, RateLimiter] = field(default_factory=dict)

    async def wait(self, url: str, random: Random) -> None:
        now = asyncio.get_running_loop().time()
        at = max(now, self._next)
        self._next = at + self.every_s
        await asyncio.sleep(at - now)
        quota = self._quota(url)
        while quota is not None and (early_s := quota.take(1)) > 0:
            why = "the provider has asked this address for a pause, or it has dialed often enough for a minute"
            log.info("%s is not dialed for %.0f s: %s.", urlsplit(url).hostname, early_s, why)
            await asyncio.sleep(early_s + random.uniform(0.0, self.every_s))  # so that all do not come at once

    def told_to_wait(self, url: str, seconds: float) -> None:
        """The other side wants nobody of this address for so long."""
        quota = self._quota(url)
        if quota is not None:
            quota.pause(seconds)

    def _quota(self, url: str) -> RateLimiter | None:
        if self.shared is None:
            return None
        place = url.partition("?")[0]  # one limit holds for an address, whatever is asked of it
        if place not in self._quotas:
            self._quotas[place] = self.shared(place)
        return self._quotas[place]
