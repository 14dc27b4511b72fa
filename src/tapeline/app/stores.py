"""Opens the stores that the configuration names: to write, to read, to prune, to compact and to rename symbols in."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tapeline.app.process_names import store_name
from tapeline.config import Config, StoreConfig, environment, store_password
from tapeline.errors import ConfigError, WrongArgument
from tapeline.providers.registry import identity
from tapeline.stages.upkeep import Upkeep
from tapeline.stores import Store
from tapeline.stores.lake import Lake
from tapeline.stores.lake.due import due
from tapeline.stores.lake.reading import LakeSource
from tapeline.stores.lake.retention import Keep, prune
from tapeline.stores.renaming import Renames
from tapeline.stores.selection import Source

log = logging.getLogger(__name__)


def postgres_store(config: Config) -> StoreConfig | None:
    """Return the configuration of the PostgreSQL store, or None if none is configured."""
    return next((some for some in config.stores if store_name(some) == "postgresql"), None)


def open_store(config: Config, store: StoreConfig, environ: Mapping[str, str] | None = None) -> Store:
    """A configured store. It is not connected yet.

    Raises ConfigError for an address of no known kind, a package that is not installed, and a setting that the store does not have."""
    if store.url == "lake:" or store.url.startswith("lake:/"):
        return Lake(_lake_folder(config, store), identity)
    if store_name(store) == "postgresql":
        if store.keep_gb:
            raise ConfigError("keep_gb works only for the lake. Set keep_days for PostgreSQL.")
        try:
            from tapeline.stores.postgres import Postgres
        except ModuleNotFoundError as error:
            raise needs_package(store, error) from None
        return Postgres(store.url, store_password(store, environment() if environ is None else environ), identity, store.keep_days)
    raise ConfigError(
        f'stores.url = "{store.shown}" is not a store of this version. Use "lake:", "lake:/a/folder" or "postgresql://user@host/database".'
    )


def lake_keep(config: Config) -> Keep:
    """How much the configured lake keeps, in days and in GB. Without a lake, the default, which keeps everything."""
    return next((Keep(some.keep_days, some.keep_gb) for some in config.stores if store_name(some) == "lake"), Keep())


def lake_retention(config: Config, store: StoreConfig) -> Callable[[], None] | None:
    """A function that removes old data by keep_days and keep_gb; call it from time to time.

    None if the store removes old data by itself, or keeps everything."""
    keep = Keep(store.keep_days, store.keep_gb)
    if store_name(store) != "lake" or keep == Keep():
        return None
    root = _lake_folder(config, store)

    def prune_lake() -> None:
        if root.exists():
            for one in prune(root, keep, datetime.now(UTC).date()):
                log.info("Removed %s of %s from the lake: %d rows, %d bytes (keep_days, keep_gb).", one.table, one.day, one.rows, one.bytes)

    return prune_lake


def lake_upkeep(config: Config, store: StoreConfig, path: Path | None) -> Upkeep | None:
    """The upkeep that compacts a lake's days while its store runs. None if the store is no lake or `compact` is off.

    `path`: the configuration's file; it is passed to the child process."""
    if store_name(store) != "lake" or not store.compact:
        return None
    root = _lake_folder(config, store)
    command = [sys.executable, "-m", "tapeline", "lake", "tidy", *(["--config", str(path)] if path is not None else [])]
    return Upkeep("lake", command, lambda: bool(due(root, datetime.now(UTC))))


def postgres_source(config: Config, environ: Mapping[str, str] | None = None) -> Source:
    """The configured PostgreSQL database, for reading. Raises ConfigError if none is configured or its package is not installed."""
    store = postgres_store(config)
    if store is None:
        raise ConfigError(
            'The configuration has no store in PostgreSQL. Add one ([[stores]] url = "postgresql://..."), or use source="lake".'
        )
    try:
        from tapeline.stores.postgres.database import Database
        from tapeline.stores.postgres.reading import PostgresSource
    except ModuleNotFoundError as error:
        raise needs_package(store, error) from None
    return PostgresSource(Database(store.url, store_password(store, environment() if environ is None else environ)))


def needs_package(store: StoreConfig, error: ModuleNotFoundError) -> ConfigError:
    """Return the error that says which package the store lacks and how to install it. The caller raises it."""
    return ConfigError(f"{store.shown} needs the package {error.name}. Install it: pip install 'tapeline[postgres]'.")


def lake_folder(config: Config) -> Path:
    """The folder of the configured lake; `lake` in the data folder if no lake is configured."""
    return next((_lake_folder(config, store) for store in config.stores if store_name(store) == "lake"), config.root / "lake")


def _lake_folder(config: Config, store: StoreConfig) -> Path:
    return config.root / (store.url.removeprefix("lake:") or "lake")


def open_stores(config: Config) -> dict[str, Store]:
    """Return every configured store by its name, such as `lake`. No store is connected yet.

    Raises ConfigError as `open_store`, and if two stores are of the same kind.
    """
    stores = {store_name(store): open_store(config, store) for store in config.stores}
    if len(stores) < len(config.stores):
        raise ConfigError("Two [[stores]] are of the same kind. Remove one: each kind can be used once.")
    return stores


def open_renames(config: Config, environ: Mapping[str, str] | None = None) -> list[Renames]:
    """The renaming of symbols in each configured store. Nothing is connected yet. Raises ConfigError as `open_store`."""
    open_stores(config)  # raises ConfigError for an unknown address or a missing package
    renames: list[Renames] = []
    for store in config.stores:
        if store_name(store) == "lake":
            from tapeline.stores.lake.renaming import LakeRenaming

            renames.append(LakeRenaming(_lake_folder(config, store), identity))
        else:
            from tapeline.stores.postgres.database import Database
            from tapeline.stores.postgres.renaming import PostgresRenaming

            password = store_password(store, environment() if environ is None else environ)
            renames.append(PostgresRenaming(Database(store.url, password), identity))
    return renames


#: The stores that can be read: the name for `source` -> a function that opens it. A new source is added here and nowhere else.
SOURCES: Final[Mapping[str, Callable[[Config], Source]]] = {
    "lake": lambda config: LakeSource(lake_folder(config)),
    "postgresql": postgres_source,
}


def open_source(config: Config, name: str) -> Source:
    """Open a store for reading. Raises WrongArgument for an unknown name, and ConfigError if the store's package is not installed."""
    if name not in SOURCES:
        raise WrongArgument(f"source = {name!r} is not a source. Use one of: {', '.join(SOURCES)}.")
    return SOURCES[name](config)
