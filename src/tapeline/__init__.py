"""Tapeline: market data from the providers' sockets to a stream and a lake, every event accounted for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapeline.reading.api import Tick, bars, connect, instruments, latest, open_source, quotes_at_trades, replay, ticks
    from tapeline.reading.result import Result

__all__ = ["Result", "Tick", "bars", "connect", "instruments", "latest", "open_source", "quotes_at_trades", "replay", "ticks"]


def __getattr__(name: str) -> object:
    """Import the reading API when it is first used. The stages do not need it, and so start faster."""
    if name not in __all__:
        raise AttributeError(f"module 'tapeline' has no attribute {name!r}")
    from tapeline.reading import api as reading

    return getattr(reading, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
