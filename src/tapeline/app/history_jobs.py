"""Turns a request for history into jobs: which feeds, channels and symbols, and the source of each."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from msgspec.structs import replace

from tapeline.app.feeds import feed_of
from tapeline.app.histories import open_archives, open_histories
from tapeline.app.symbol_names import known_names
from tapeline.config import Config, ProviderConfig, environment
from tapeline.errors import ConfigError
from tapeline.jobs.backfill.backfill import Job
from tapeline.jobs.backfill.fetching import Source
from tapeline.net.http import REST_TRIES
from tapeline.providers.events import NO_NAMES
from tapeline.providers.history import History
from tapeline.providers.provider import Listed
from tapeline.providers.registry import ARCHIVES, HISTORIES, PROVIDERS

#: The common names of channels, which work for every provider, and the kind of each.
_KINDS: Final = {"trades": "trade", "quotes": "quote", "bars": "bar"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which history is requested. A field that is left out is taken from the configuration."""

    provider: str | None = None
    symbols: tuple[str, ...] = ()  # canonical, or the provider's own
    channels: tuple[str, ...] = ()  # trades, quotes, bars, or the provider's own names
    #: Read the provider's files of whole days and months instead of its REST API.
    files: bool = False
    feed: str | None = None


def history_jobs(
    config: Config, wanted: Wanted, start_ns: int, end_ns: int, stop: threading.Event, tries: int = REST_TRIES
) -> list[tuple[Job, Source]]:
    """One job, with its source, for each feed that is configured or requested and has a history. The range is [start_ns, end_ns), UTC.

    `tries`: how often a request over REST is sent if its answers are errors.

    Raises ConfigError for an unknown provider, channel or symbol, and if nothing is left to fetch; its message lists what there is."""
    if wanted.provider is not None and wanted.provider not in HISTORIES:
        raise ConfigError(f"{wanted.provider!r} is not a provider with a history. Providers with a history: {', '.join(HISTORIES)}.")
    blocks = [some for some in config.providers if wanted.provider in (None, some.name) and some.name in HISTORIES]
    blocks = [some for some in blocks if wanted.feed in (None, feed_of(some))]
    if not blocks and wanted.provider is not None:
        blocks = [ProviderConfig(name=wanted.provider, feed=wanted.feed or "")]
    jobs = []
    names = known_names(config)
    for (name, feed), source in _sources(config, wanted, blocks, stop, tries).items():
        mine = [some for some in blocks if some.name == name and feed_of(some) == feed]
        requested = wanted.symbols or tuple(dict.fromkeys(symbol for some in mine for symbol in some.symbols))
        configured = tuple(dict.fromkeys(channel for some in mine for channel in some.channels))
        channels = _channels(name, feed, source.history, configured, wanted.channels)
        symbols = _symbols(name, feed, requested, names.get((name, feed), NO_NAMES))
        if symbols and channels:
            jobs.append((Job(name, feed, channels, symbols, start_ns, end_ns, wanted.files), source))
    if not jobs:
        raise ConfigError(
            "Nothing to fetch: no configured feed has symbols and channels with a history. Set --provider, --symbols and --channels."
        )
    return jobs


def _sources(
    config: Config, wanted: Wanted, blocks: Sequence[ProviderConfig], stop: threading.Event, tries: int
) -> dict[tuple[str, str], Source]:
    if not wanted.files:
        return open_histories(replace(config, providers=tuple(blocks)), environment(), Random(), stop.wait, tries)
    narrowed = replace(config, providers=tuple(replace(some, symbols=wanted.symbols or some.symbols) for some in blocks))
    sources = open_archives(narrowed, environment(), config.root / "backfill" / "files", Random(), stop.wait)
    if not sources:
        raise ConfigError(f"None of the chosen feeds has history files. Providers with files: {', '.join(ARCHIVES)}. Remove --from files.")
    return sources


def _symbols(name: str, feed: str, requested: Sequence[str], split: Listed) -> tuple[str, ...]:
    """The requested symbols by their canonical names, each once. Raises ConfigError for an unknown symbol."""
    provider = PROVIDERS[name]
    canonical = [provider.symbol_of(feed, symbol, split) for symbol in requested]
    unknown = [symbol for symbol, known in zip(requested, canonical, strict=True) if known is None]
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is not a symbol of {name} {feed}. Use the provider's own name, or a canonical one like BTC/USDT."
        )
    unique = tuple(dict.fromkeys(symbol for symbol in canonical if symbol is not None))
    for symbol in unique:
        if problem := provider.name_problem(feed, symbol, split):
            raise ConfigError(f"{symbol!r} is not a name under which Tapeline stores {name} {feed}: {problem}. Nothing was fetched.")
    return unique


def _channels(name: str, feed: str, history: History, configured: Iterable[str], requested: Sequence[str]) -> tuple[str, ...]:
    """The requested channels by the provider's own names. If none are requested, the configured channels that have a history.

    Raises ConfigError for a channel without a history."""
    known = history.channels[feed]
    if not requested:
        return tuple(channel for channel in configured if channel in known)
    channels: list[str] = []
    for choice in requested:
        of_kind = [channel for channel, kind in known.items() if kind == _KINDS.get(choice)]
        if choice in known:
            channels.append(choice)
        elif of_kind:
            channels += [channel for channel in configured if channel in of_kind] or of_kind[:1]
        else:
            raise ConfigError(f"{name} has no history of {choice!r} for {feed}. It has: {', '.join(known)}.")
    return tuple(dict.fromkeys(channels))
