"""What a provider is: one object that says what it sends, how it is asked, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from tapeline.providers.events import Channel, Decode
from tapeline.providers.history import FileHistory, History
from tapeline.providers.session import FeedSettings, Plan

#: By the provider's own name of a symbol, the canonical one: how the exchange itself splits it.
Listed = Mapping[str, str]


class NoOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The options of a provider that has none."""


class Subscription(Protocol):
    """The channel and the canonical symbol that a topic of a plan asks for; None for a topic that no plan has."""

    def __call__(self, feed: str, topic: str, names: Listed = ...) -> tuple[str, str] | None: ...


class NameProblem(Protocol):
    """Why events of a canonical symbol would not be kept under that name; empty: they are."""

    def __call__(self, feed: str, symbol: str, names: Listed = ...) -> str: ...


class SymbolOf(Protocol):
    """The canonical symbol, of itself or of the provider's own name for it; None where that cannot be one."""

    def __call__(self, feed: str, symbol: str, names: Listed = ...) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One market of a provider, with its addresses."""

    #: By the provider's own names.
    channels: Mapping[str, Channel]
    #: Where a websocket is opened: `wss://host`.
    stream_url: str
    #: Where the second of two lines goes; empty where there is no second address.
    second_url: str = ""
    #: Where its history is asked for; empty where it has none.
    history_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where the files are that a provider keeps of past days or months, and how they are read."""

    url: str
    history: FileHistory
    #: Of S3's protocol, with keys of its own; empty: plain HTTP without a key.
    bucket: str = ""
    #: Where the access key and its secret are looked for in the environment.
    secrets: tuple[str, str] = ("", "")
    #: Feed and canonical symbol to the name by which a bucket's files, which are of all symbols, have it.
    ticker: Callable[[str, str], str] = lambda _, symbol: symbol
    #: Of a line of such a file, under its header: rows of one such moment are never parted.
    moment: Callable[[str, bytes], str] = lambda _header, _line: ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A provider, found by the entry point `tapeline.providers` of the package that brings it."""

    name: str
    #: The first is the usual one.
    feeds: Mapping[str, Feed]
    #: Sorts the frames of one feed into events.
    decode: Decode
    #: The connections to keep open for a feed.
    plans: Callable[[FeedSettings], list[Plan]]
    subscription: Subscription
    name_problem: NameProblem
    symbol_of: SymbolOf
    #: Which secrets it needs, `key` or `secret`, and where each is looked for in the environment, ours first.
    secrets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: What can be set in `options` of its blocks.
    options: type[msgspec.Struct] = NoOptions
    #: Whether an account may have one connection to an endpoint alone, or a few.
    one_connection: bool = False
    #: Whether each frame is an array of events.
    arrays: bool = False
    #: Whether its names do not show where base and quote meet, so that `names` may have to say it.
    splits_names: bool = False
    #: HTTP statuses by which a moment's firewall answers, and which say nothing of what was asked.
    passing: frozenset[int] = frozenset()
    #: How long the windows of its bars are.
    intervals: Sequence[str] = ()
    history: History | None = None
    files: Files | None = None
    #: Symbols and channels that anybody may have without a key, for who has no configuration yet.
    sample: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    @property
    def default_feed(self) -> str:
        """The feed of a block that names none."""
        return next(iter(self.feeds))
