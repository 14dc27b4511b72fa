"""The tape: it turns the market's trades and quotes into one provider's events, and makes bars as time passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tapeline.simulators.events import Event
    from tapeline.simulators.market import Instrument, Quote, Trade


class Tape(Protocol):
    """One provider's form of the market's events."""

    def instruments(self) -> list[Instrument]:
        """All instruments, of every feed."""

    def kinds(self, channels: frozenset[str]) -> tuple[bool, bool]:
        """Whether these channels need trades, and whether they need quotes."""

    def add_events(self, tick: Trade | Quote, channels: frozenset[str], out: list[Event]) -> None:
        """Append the events that one trade or quote causes on these channels."""

    def listen(self, plan: Mapping[Instrument, frozenset[str]], now_ns: int) -> None:
        """From now on these channels of these instruments are wanted."""

    def due(self, now_ns: int, out: list[Event]) -> None:
        """Append the events that are due by the clock: bars."""

    def stranger(self, like: Event) -> Event:
        """An event of an unknown type, modeled on a usual one."""
