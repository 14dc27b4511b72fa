"""Spaces out the connection attempts (dials) to one provider, however many connections it has."""

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
    """Spaces out the connection attempts to one provider, and keeps the pauses that the provider has asked for.

    `wait` returns when a url may be dialed. If a limiter is shared, it also waits for the pauses that a provider asked other processes
    for, and raises DiskProblem if the limiter's file cannot be read or written."""

    every_s: float = 1.1
    #: Url (without its query) to the rate limiter that all processes of this machine share for it. None: processes share nothing.
    shared: Callable[[str], RateLimiter] | None = None
    _next: float = 0.0
    _limiters: dict[str, RateLimiter] = field(default_factory=dict)

    async def wait(self, url: str, random: Random) -> None:
        """Return when a connection to this address may be dialed."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._next)
        self._next = at + self.every_s
        await asyncio.sleep(at - now)
        limiter = self._limiter(url)
        while limiter is not None and (early_s := limiter.take(1)) > 0:
            why = "the provider asked for a pause, or Tapeline reached its limit of connection attempts per minute"
            log.info("Waiting %.0f s before connecting to %s: %s.", early_s, urlsplit(url).hostname, why)
            await asyncio.sleep(early_s + random.uniform(0.0, self.every_s))  # random, so that not all processes dial at once

    def pause(self, url: str, seconds: float) -> None:
        """Record that the provider accepts no connection from this machine's address for so many seconds. Raises DiskProblem."""
        limiter = self._limiter(url)
        if limiter is not None:
            limiter.pause(seconds)

    def _limiter(self, url: str) -> RateLimiter | None:
        if self.shared is None:
            return None
        place = url.partition("?")[0]  # the limit is for the address, whatever the query
        if place not in self._limiters:
            self._limiters[place] = self.shared(place)
        return self._limiters[place]
