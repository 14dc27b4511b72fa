"""Opens the providers' lists of instruments, and the tables of instruments in the configured stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from random import Random

from tapeline.app.feeds import feed_of
from tapeline.app.histories import Asking, client, getter, stand_in
from tapeline.app.process_names import store_name
from tapeline.app.stores import lake_folder, needs_package
from tapeline.config import Config, environment, secret, store_password
from tapeline.errors import ConfigError
from tapeline.jobs.symbols import Lists
from tapeline.net.http import Endpoint
from tapeline.providers.registry import LISTS, PROVIDERS
from tapeline.secret import NO_SECRET
from tapeline.stores.instruments import InstrumentStore


def open_lists(
    config: Config, environ: Mapping[str, str], random: Random, provider: str | None = None, sleep: Callable[[float], object] = time.sleep
) -> list[Lists]:
    """The lists of the configured feeds, each market of a provider once. `provider`: only its lists.

    `sleep` takes seconds and returns True if it was interrupted. Raises ConfigError that names a missing key, and if there is no list."""
    if provider is not None and provider not in LISTS:
        raise ConfigError(f"{provider!r} is not a provider with a list of instruments. Providers with one: {', '.join(LISTS)}.")
    found: dict[tuple[str, str], Lists] = {}
    for some in config.providers:
        how, feed = LISTS.get(some.name), feed_of(some)
        if how is None or feed not in how.markets or provider not in (None, some.name) or (some.name, how.markets[feed]) in found:
            continue
        secrets = {kind: secret(some, kind, environ) for kind in PROVIDERS[some.name].secrets}
        headers = how.headers(secrets.get("key", NO_SECRET), secrets.get("secret", NO_SECRET))
        url = some.lists_url or stand_in(some, some.rest_url) or stand_in(some) or how.url
        rest = client(config, some, how.weight_a_minute, Endpoint(url, headers=headers), Asking(random, sleep))
        found[some.name, how.markets[feed]] = Lists(some.name, feed, how.markets[feed], how, getter(rest))
    if not found:
        of = f" of {provider}" if provider is not None else ""
        raise ConfigError(f"No configured feed{of} has a list of instruments. Providers with one: {', '.join(LISTS)}.")
    return list(found.values())


def open_instruments(config: Config, name: str | None = None, environ: Mapping[str, str] | None = None) -> list[InstrumentStore]:
    """The tables of instruments in the configured stores, or in the one of this name. Nothing is connected yet.

    Raises ConfigError if there is no such store, or if its package is not installed."""
    stores: list[InstrumentStore] = []
    for store in config.stores:
        if name not in (None, store_name(store)):
            continue
        if store_name(store) == "lake":
            from tapeline.stores.lake.instruments import LakeInstruments

            stores.append(LakeInstruments(lake_folder(config)))
            continue
        try:
            from tapeline.stores.postgres.database import Database
            from tapeline.stores.postgres.instruments import PostgresInstruments
        except ModuleNotFoundError as error:
            raise needs_package(store, error) from None
        password = store_password(store, environment() if environ is None else environ)
        stores.append(PostgresInstruments(Database(store.url, password)))
    if not stores:
        what = f"store {name!r}" if name is not None else "store"
        raise ConfigError(f"The configuration has no {what}. Add a [[stores]] block, or use another --config.")
    return stores
