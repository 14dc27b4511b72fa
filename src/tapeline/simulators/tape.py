"""The tape: turns the market's trades and quotes into one provider's events, and the passing of time into bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tapeline.simulators.events import Event
    from tapeline.simulators.market import Instrument, Quote, Trade


class Tape(Protocol):
    """One provider's way to tell the market."""

    def instruments(self) -> list[Instrument]:
        """Everything that trades here, in every feed."""

    def kinds(self, channels: frozenset[str]) -> tuple[bool, bool]:
        """Whether these channels tell of trades, and of quotes."""

    def tell(self, tick: Trade | Quote, channels: frozenset[str], out: list[Event]) -> None:
        """Append the events of one trade or quote that the channels wanted tell of."""

    def listen(self, plan: Mapping[Instrument, frozenset[str]], now_ns: int) -> None:
        """From now on these channels of these instruments are wanted."""

    def due(self, now_ns: int, out: list[Event]) -> None:
        """Append the events that time brings: bars."""

    def stranger(self, like: Event) -> Event:
        """An event of a type that nobody knows, in the place of a usual one."""
