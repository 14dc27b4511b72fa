"""The registry of providers: one line each. A provider is one module; what it offers is listed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol, cast

from tapeline.providers.alpaca import history as alpaca_history
from tapeline.providers.alpaca import normalize as alpaca
from tapeline.providers.binance import files as binance_archive
from tapeline.providers.binance import history as binance_history
from tapeline.providers.binance import normalize as binance
from tapeline.providers.history import FileHistory, History
from tapeline.providers.normalizing import NO_NAMES, Channel, Decode, Events, Frames
from tapeline.providers.polygon import files as polygon_files
from tapeline.providers.polygon import history as polygon_history
from tapeline.providers.polygon import normalize as polygon
from tapeline.providers.session import FeedSettings, Plan
from tapeline.records import Identity


class Provider(Protocol):
    """What a provider's module offers."""

    #: Feed to channel name to channel.
    CHANNELS: Mapping[str, Mapping[str, Channel]]
    DEFAULT_FEED: str
    STREAM_URL: str
    #: Where the second of two lines goes; empty where an account may have one connection alone.
    SECOND_URL: str
    #: Where its history is asked for.
    HISTORY_URL: str
    #: Whether an account may have one connection to an endpoint alone, or a few.
    ONE_CONNECTION: bool
    #: Which secrets it needs: `key`, `secret`.
    SECRET_KINDS: tuple[str, ...]
    #: HTTP statuses by which a moment's firewall answers, and which say nothing of what was asked.
    PASSING: frozenset[int]

    def decode(self, feed: str, frames: Frames, events: Events) -> None:
        """Sort the frames of one feed into events."""

    def plans(self, settings: FeedSettings) -> list[Plan]:
        """The connections to keep open for a feed."""

    def subscription(self, feed: str, topic: str, names: Mapping[str, str] = NO_NAMES) -> tuple[str, str] | None:
        """The channel and the canonical symbol that a topic of a plan asks for; None for a topic that no plan has."""

    def name_problem(self, feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str:
        """Why events of a canonical symbol would not be kept under that name; empty: they are."""

    def symbol_of(self, feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str | None:
        """The canonical symbol, of itself or of the provider's own name for it; None where that cannot be one."""


PROVIDERS: Final[dict[str, Provider]] = {
    "binance": cast("Provider", binance),
    "polygon": cast("Provider", polygon),
    "alpaca": cast("Provider", alpaca),
}

#: Provider to the function that sorts its frames into events.
DECODERS: Final[dict[str, Decode]] = {name: provider.decode for name, provider in PROVIDERS.items()}
#: Provider, feed, channel name to channel.
CHANNELS: Final[dict[str, Mapping[str, Mapping[str, Channel]]]] = {name: provider.CHANNELS for name, provider in PROVIDERS.items()}

#: Whose history can be asked for.
HISTORIES: Final[dict[str, History]] = {
    "binance": cast("History", binance_history),
    "polygon": cast("History", polygon_history),
    "alpaca": cast("History", alpaca_history),
}


class Archived(NamedTuple):
    """Where a provider's files are, and how they are read."""

    url: str
    history: FileHistory
    #: Of S3's protocol, with keys of its own; empty: plain HTTP without a key.
    bucket: str = ""
    #: Feed and canonical symbol to the name by which a bucket's files, which are of all symbols, have it.
    ticker: Callable[[str, str], str] = lambda _, symbol: symbol


#: Whose history can be had as files, a day or a month each.
ARCHIVES: Final[dict[str, Archived]] = {
    "binance": Archived(binance.ARCHIVE_URL, cast("FileHistory", binance_archive)),
    "polygon": Archived(polygon.FILES_URL, cast("FileHistory", polygon_files), polygon.FILES_BUCKET, polygon_files.ticker),
}


def identity(provider: str, feed: str, channel: str) -> Identity:
    """What makes two events of this channel the same event."""
    known = CHANNELS.get(provider, {}).get(feed, {}).get(channel)
    return known.identity if known is not None else Identity()
