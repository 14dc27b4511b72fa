"""A clock that a test sets."""

from __future__ import annotations

from dataclasses import dataclass

from made import NOON


@dataclass(slots=True)
class SetClock:
    """Called, it gives its moment (ns, UTC)."""

    ns: int = NOON

    def __call__(self) -> int:
        return self.ns
