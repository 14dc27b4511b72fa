"""Finds the simulated provider by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapeline.simulators.alpaca.provider import Alpaca
from tapeline.simulators.binance.provider import Binance
from tapeline.simulators.polygon.provider import Polygon

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapeline.simulators.faults import Faults
    from tapeline.simulators.options import SimulatorOptions
    from tapeline.simulators.session import Provider


def provider_of(options: SimulatorOptions, faults: Faults, clock: Callable[[], int]) -> Provider:
    """The provider that the options name. ValueError if it cannot do what the options request."""
    if options.captures and options.name != "binance":
        raise ValueError(f"Only binance can replay recordings. {options.name} cannot.")
    if options.name == "binance":
        return Binance(options, faults, clock)
    return Polygon(options, faults, clock) if options.name == "polygon" else Alpaca(options, faults, clock)
