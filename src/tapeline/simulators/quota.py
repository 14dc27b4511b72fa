"""How often a refusal is still to happen."""

from __future__ import annotations


class RateLimiter:
    """A number of refusals left: infinite for all, none when the fault was not chosen."""

    def __init__(self, number: float | None) -> None:
        self._left = number or 0.0

    def take(self) -> bool:
        """Whether to refuse this time."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
