"""The definition of a provider: one object that says what it sends, how to connect to it, and which history it keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from tapeline.providers.decoding.native import MakeNative
from tapeline.providers.events import Channel, Decode
from tapeline.providers.history import FileHistory, History
from tapeline.providers.instruments import Instruments
from tapeline.providers.session import FeedSettings, Plan

#: The provider's own name of a symbol to the canonical symbol, split as the exchange itself splits it.
Listed = Mapping[str, str]


class NoOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The options type of a provider that has no options."""


class Subscription(Protocol):
    """Returns the channel and the canonical symbol that a plan's topic subscribes to; None if no plan has such a topic."""

    def __call__(self, feed: str, topic: str, names: Listed = ...) -> tuple[str, str] | None: ...


class NameProblem(Protocol):
    """Returns the reason why events of a canonical symbol would not be kept under that name; empty if they would."""

    def __call__(self, feed: str, symbol: str, names: Listed = ...) -> str: ...


class SymbolOf(Protocol):
    """Returns the canonical symbol for a canonical symbol or for the provider's own name; None if the text cannot be either."""

    def __call__(self, feed: str, symbol: str, names: Listed = ...) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One market of a provider, with its addresses."""

    #: Channels by the provider's own names.
    channels: Mapping[str, Channel]
    #: The address of its websockets: `wss://host`.
    stream_url: str
    #: The address for the second of two lines; empty if there is none.
    second_url: str = ""
    #: The address of its history over REST; empty if it has none.
    history_url: str = ""
    #: The calendar of its market: the MIC of an exchange that the package exchange_calendars knows, such as `XNYS`. In the regular
    #: sessions of this calendar the feed should bring data. Empty: the market never closes.
    calendar: str = ""
    #: The age of its events when it sends them, in ns: 15 minutes for a delayed feed.
    delay_ns: int = 0
    #: Other addresses of its websockets at which events are older when they are sent, and how old, in ns.
    delayed_urls: Mapping[str, int] = field(default_factory=dict)

    def delay_at(self, url: str) -> int:
        """Return the age of its events (ns) when a websocket's address sends them. An unknown address sends as `stream_url` does."""
        return next((delay_ns for known, delay_ns in self.delayed_urls.items() if url.startswith(known)), self.delay_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """A provider's files of past days or months: where they are and how to read them."""

    url: str
    history: FileHistory
    #: The name of the S3 bucket, which has keys of its own. Empty: the files come over plain HTTP without a key.
    bucket: str = ""
    #: The environment variables of the access key and of its secret.
    secrets: tuple[str, str] = ("", "")
    #: (feed, canonical symbol) to the symbol's name in a bucket's files, each of which holds all symbols.
    ticker: Callable[[str, str], str] = lambda _, symbol: symbol
    #: (header, line) to the moment of a line in such a file. Lines with the same moment always stay in one piece.
    moment: Callable[[str, bytes], str] = lambda _header, _line: ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Everything that Tapeline knows about a provider. The package that defines it registers it as an entry point `tapeline.providers`."""

    name: str
    #: Feeds by name. The first is the default.
    feeds: Mapping[str, Feed]
    #: Sorts the frames of one feed into events.
    decode: Decode
    #: The decoders of its feeds in the native core. None: the core knows none of them.
    native: MakeNative | None = None
    #: The connections to keep open for a feed.
    plans: Callable[[FeedSettings], list[Plan]]
    subscription: Subscription
    name_problem: NameProblem
    symbol_of: SymbolOf
    #: The secrets that it needs (`key`, `secret`), each with the environment variables that may hold it. The first is Tapeline's own.
    secrets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: The type of the `options` setting of its blocks.
    options: type[msgspec.Struct] = NoOptions
    #: Whether the provider limits an account to one connection, or a few, to an endpoint.
    one_connection: bool = False
    #: Whether each frame is an array of events.
    arrays: bool = False
    #: Whether its symbols do not show where the base ends and the quote begins, so that the setting `names` may be needed.
    splits_names: bool = False
    #: HTTP statuses that come from a firewall for a short time and say nothing about the request.
    passing: frozenset[int] = frozenset()
    #: The lengths of its bars' windows, such as `1m`.
    intervals: Sequence[str] = ()
    history: History | None = None
    files: Files | None = None
    #: Its lists of instruments. None: it has none.
    instruments: Instruments | None = None
    #: Symbols and channels that need no key. They are used when there is no configuration. None: everything needs a key.
    sample: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    @property
    def default_feed(self) -> str:
        """The feed of a configuration block that names none."""
        return next(iter(self.feeds))
