"""The one place that knows concrete classes: from the configuration to streams, stores and connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from tapeline import net
from tapeline.config import Config, ProviderConfig, StoreConfig, StreamConfig, secret
from tapeline.errors import ConfigError
from tapeline.providers import CHANNELS, PROVIDERS, identity
from tapeline.providers.session import FeedSettings, Plan
from tapeline.stores import Store
from tapeline.stores.lake import Lake
from tapeline.streams import Stream
from tapeline.streams.embedded import EmbeddedStream


def open_stream(config: Config) -> Stream:
    """Raises ConfigError for an address that no stream has."""
    stream: StreamConfig = config.stream
    if stream.url != "embedded:":
        raise ConfigError(f'stream.url = "{stream.url}" is no stream that this version has. Use "embedded:".')
    return EmbeddedStream(config.root / "stream")


def store_name(store: StoreConfig) -> str:
    """`lake` for `lake:` and so on: the store's name in commands and on the status page."""
    return store.url.partition(":")[0]


def open_store(config: Config, store: StoreConfig) -> Store:
    """Raises ConfigError for an address that no store has."""
    if store.url != "lake:" and not store.url.startswith("lake:/"):
        raise ConfigError(f'stores.url = "{store.url}" is no store that this version has. Use "lake:" or "lake:/a/folder".')
    return Lake(_lake_folder(config, store), identity)


def lake_folder(config: Config) -> Path:
    """Where the configuration's lake is; the usual place where it has none."""
    return next((_lake_folder(config, store) for store in config.stores if store_name(store) == "lake"), config.root / "lake")


def _lake_folder(config: Config, store: StoreConfig) -> Path:
    return config.root / (store.url.removeprefix("lake:") or "lake")


def open_stores(config: Config) -> dict[str, Store]:
    stores = {store_name(store): open_store(config, store) for store in config.stores}
    if len(stores) < len(config.stores):
        raise ConfigError("Two [[stores]] are of one kind; each kind can be used once.")
    return stores


def plans(config: Config, environ: Mapping[str, str]) -> list[tuple[ProviderConfig, Plan]]:
    """The connections that the configuration asks for. Raises ConfigError that names the feed, channel or secret at fault."""
    found: list[tuple[ProviderConfig, Plan]] = []
    for provider in config.providers:
        module = PROVIDERS[provider.name]
        feeds = CHANNELS[provider.name]
        feed = provider.feed or module.DEFAULT_FEED
        if feed not in feeds:
            raise ConfigError(f"{provider.name} has no feed {feed!r}. It has: {', '.join(feeds)}.")
        wrong = [channel for channel in provider.channels if channel not in feeds[feed]]
        if wrong:
            raise ConfigError(f"{provider.name} {feed} has no channel {wrong[0]!r}. It has: {', '.join(feeds[feed])}.")
        if not provider.symbols or not provider.channels:
            raise ConfigError(f"{provider.name} {feed} needs symbols and channels: nothing would arrive without.")
        secrets = {kind: secret(provider, kind, environ) for kind in module.SECRET_KINDS}
        settings = FeedSettings(
            feed=feed,
            symbols=tuple(dict.fromkeys(provider.symbols)),
            channels=tuple(dict.fromkeys(provider.channels)),
            url=provider.url.rstrip("/"),
            rest_url=provider.rest_url.rstrip("/"),
            time_unit=provider.time_unit,
            codec=provider.codec,
            rotate_after_s=provider.rotate_after,
            **secrets,
        )
        found += [(provider, plan) for plan in module.plans(settings)]
    return found


def lines(
    planned: Sequence[tuple[ProviderConfig, Plan]], recorder: net.Recorder, clock: Callable[[], int], random: Random
) -> list[net.Line]:
    paces: dict[str, net.Pace] = {}
    return [
        net.Line(
            plan,
            recorder,
            clock,
            random,
            paces.setdefault(provider.name, net.Pace()),
            net.Silence(provider.mute_after),
            net.tls_context(provider.ca_file),
        )
        for provider, plan in planned
    ]


def checks(planned: Sequence[tuple[ProviderConfig, Plan]]) -> dict[str, net.CheckRequest]:
    return {
        plan.name: net.CheckRequest(plan.check, net.tls_context(provider.ca_file)) for provider, plan in planned if plan.check is not None
    }
