"""Counts the refusals that a fault still has to make."""

from __future__ import annotations


class RateLimiter:
    """The number of refusals left: infinite if all requests are refused, 0 if the fault was not chosen."""

    def __init__(self, number: float | None) -> None:
        self._left = number or 0.0

    @property
    def left(self) -> bool:
        """Whether the next request would be refused."""
        return self._left >= 1

    def take(self) -> bool:
        """Whether to refuse this request. If so, one refusal is used up."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
