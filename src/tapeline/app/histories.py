"""Opens the histories of the configured providers: over REST, and as files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final
from urllib.parse import urlsplit

from tapeline.app.feeds import feed_of
from tapeline.config import Config, ProviderConfig, files_secrets, secret
from tapeline.jobs.backfill import fetching
from tapeline.jobs.backfill.archive import Archive
from tapeline.jobs.backfill.day_files import DayFiles
from tapeline.net.http import REST_TRIES, Endpoint, Rest
from tapeline.net.rate_limit import RateLimiter
from tapeline.net.tls import tls_context
from tapeline.providers.registry import ARCHIVES, HISTORIES, PROVIDERS
from tapeline.providers.session import rest_of
from tapeline.secret import NO_SECRET

#: The folder of the rate limits, in the data folder.
_QUOTAS: Final = "quotas"


def has_history(config: Config) -> bool:
    """Whether a configured feed has a history that can fill gaps."""
    return any(feed_of(some) in HISTORIES[some.name].channels for some in config.providers if some.name in HISTORIES)


def open_histories(
    config: Config,
    environ: Mapping[str, str],
    random: Random,
    sleep: Callable[[float], object] = time.sleep,
    tries: int = REST_TRIES,
) -> dict[tuple[str, str], fetching.Source]:
    """The REST histories of the configured feeds: (provider, feed) -> source. If several blocks configure a feed, the first one is used.

    `sleep` takes seconds and returns True if it was interrupted. `tries`: how often a request is sent if its answers are errors. Raises
    ConfigError that names a missing key."""
    sources: dict[tuple[str, str], fetching.Source] = {}
    clients: dict[tuple[str, ...], Rest] = {}  # limits are per account, whichever feed is requested
    for some in config.providers:
        provider, feed = PROVIDERS[some.name], feed_of(some)
        history = provider.history
        if history is None or feed not in history.channels or (some.name, feed) in sources:
            continue
        secrets = {kind: secret(some, kind, environ) for kind in provider.secrets}
        headers = history.headers(secrets.get("key", NO_SECRET), secrets.get("secret", NO_SECRET))
        url = some.rest_url or stand_in(some) or provider.feeds[feed].history_url
        account = (url, *headers.values())
        if account not in clients:
            clients[account] = client(config, some, history.weight_a_minute, Endpoint(url, headers=headers), Asking(random, sleep, tries))
        sources[some.name, feed] = fetching.Source(history, getter(clients[account]), latest=_latest(clients[account]))
    return sources


def open_archives(
    config: Config, environ: Mapping[str, str], folder: Path, random: Random, sleep: Callable[[float], object] = time.sleep
) -> dict[tuple[str, str], fetching.Source]:
    """As `open_histories`, but from the providers' files of whole days and months. `folder`: where files are kept while they are read.

    From files that hold all symbols, only the configured symbols are kept."""
    sources: dict[tuple[str, str], fetching.Source] = {}
    for some in config.providers:
        archived, feed = ARCHIVES.get(some.name), feed_of(some)
        if archived is None or feed not in archived.history.channels or (some.name, feed) in sources:
            continue
        url = some.files_url or stand_in(some) or archived.url
        get: fetching.Get
        if archived.bucket:
            from tapeline.net.s3 import Bucket, S3Reader

            bucket = Bucket(url, archived.bucket, *files_secrets(some, environ), some.ca_file)
            get = DayFiles(S3Reader(bucket, sleep=sleep), folder / some.name, _tickers(config, some.name, feed), archived.moment)
        else:
            get = Archive(client(config, some, archived.history.weight_a_minute, Endpoint(url), Asking(random, sleep)), folder)
        sources[some.name, feed] = fetching.Source(archived.history, get)
    return sources


def _tickers(config: Config, provider: str, feed: str) -> set[str]:
    """The configured symbols of a feed, by the names that the provider's files use."""
    written = {symbol for some in config.providers if (some.name, feed_of(some)) == (provider, feed) for symbol in some.symbols}
    known = {PROVIDERS[provider].symbol_of(feed, symbol) for symbol in written}
    return {ARCHIVES[provider].ticker(feed, symbol) for symbol in known if symbol is not None}


@dataclass(frozen=True, slots=True)
class Asking:
    """How a client waits, and how often it sends a request whose answers are errors. `sleep` takes seconds and returns True if it was
    interrupted."""

    random: Random
    sleep: Callable[[float], object]
    tries: int = REST_TRIES


def client(config: Config, some: ProviderConfig, weight_a_minute: int, endpoint: Endpoint, asking: Asking) -> Rest:
    """The client for a provider's REST address. Clients of the same address and key share the limit, also with other processes."""
    url = endpoint.url.rstrip("/")
    digest = hashlib.sha256(" ".join((url, *endpoint.headers.values())).encode()).hexdigest()[:16]
    limiter = RateLimiter(weight_a_minute, config.root / _QUOTAS / f"{some.name}-{digest}.json")
    endpoint = replace(endpoint, url=url, tls=tls_context(some.ca_file), passing=PROVIDERS[some.name].passing)
    return Rest(endpoint, asking.random, limiter, tries=asking.tries, sleep=asking.sleep)


def quotas_of(config: Config, provider: str) -> list[Path]:
    """The files through which this machine's processes share the rate limits of a provider's addresses."""
    return sorted((config.root / _QUOTAS).glob(f"{provider}-*.json"))


def stand_in(some: ProviderConfig, url: str | None = None) -> str:
    """The HTTP address of a stand-in server that the configuration names; empty if it names the provider itself.

    `url`: the configured address to look at; None: that of the stream."""
    feed, url = PROVIDERS[some.name].feeds[feed_of(some)], some.url if url is None else url
    other = url and _owner(url) not in (_owner(feed.history_url), _owner(feed.stream_url))
    return rest_of(url) if other else ""


def getter(client: Rest) -> fetching.Get:
    """The function that sends a request through a client."""
    return lambda request: client.get(request.path, request.weight)


def _latest(client: Rest) -> Callable[[], int]:
    return lambda: client.latest_ns


def _owner(url: str) -> str:
    """The domain of an address: the last two labels of its host name."""
    return ".".join((urlsplit(url).hostname or "").split(".")[-2:])
