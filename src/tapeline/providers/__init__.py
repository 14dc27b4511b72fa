"""The registry of providers: one line each. A provider is one module; what it offers is listed here."""

from __future__ import annotations

from typing import Final

from tapeline.providers import alpaca, binance, polygon
from tapeline.providers.normalizing import Channel, Decode, Identity

_MODULES: Final = {"binance": binance, "polygon": polygon, "alpaca": alpaca}

#: Provider to the function that sorts its frames into events.
DECODERS: Final[dict[str, Decode]] = {name: module.decode for name, module in _MODULES.items()}
#: Provider, feed, channel name to channel.
CHANNELS: Final[dict[str, dict[str, dict[str, Channel]]]] = {name: module.CHANNELS for name, module in _MODULES.items()}


def identity(provider: str, feed: str, channel: str) -> Identity:
    """The columns that make two events of this channel the same event; empty where none ever are."""
    known = CHANNELS.get(provider, {}).get(feed, {}).get(channel)
    return known.identity if known is not None else ()
