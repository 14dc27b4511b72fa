"""From the configuration to the stores and the ledger: opened, kept to their size, renamed."""

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
    return next((some for some in config.stores if store_name(some) == "postgresql"), None)


def open_store(config: Config, store: StoreConfig, environ: Mapping[str, str] | None = None) -> Store:
    """The configured store; nothing is connected yet. Raises ConfigError for an address that no store has."""
    if store.url == "lake:" or store.url.startswith("lake:/"):
        return Lake(_lake_folder(config, store), identity)
    if store_name(store) == "postgresql":
        if store.keep_gb:
            raise ConfigError("keep_gb is a setting of the lake alone. Set keep_days for PostgreSQL.")
        try:
            from tapeline.stores.postgres import Postgres
        except ModuleNotFoundError as error:
            raise needs_package(store, error) from None
        return Postgres(store.url, store_password(store, environment() if environ is None else environ), identity, store.keep_days)
    raise ConfigError(
        f'stores.url = "{store.shown}" is no store that this version has. Use "lake:", "lake:/a/folder" or "postgresql://user@host/database".'
    )


def lake_keep(config: Config) -> Keep:
    """How much the configuration's lake keeps."""
    return next((Keep(some.keep_days, some.keep_gb) for some in config.stores if store_name(some) == "lake"), Keep())


def lake_retention(config: Config, store: StoreConfig) -> Callable[[], None] | None:
    """What keeps a store to its days and its size, to be called now and again; None where it does so by itself, or keeps everything."""
    keep = Keep(store.keep_days, store.keep_gb)
    if store_name(store) != "lake" or keep == Keep():
        return None
    root = _lake_folder(config, store)

    def prune_lake() -> None:
        if root.exists():
            for one in prune(root, keep, datetime.now(UTC).date()):
                log.info(
                    "The lake's %s of %s are removed: %d rows, %d bytes (keep_days, keep_gb).", one.table, one.day, one.rows, one.bytes
                )

    return prune_lake


def lake_upkeep(config: Config, store: StoreConfig, path: Path | None) -> Upkeep | None:
    """What compacts a lake's days while its store runs; None where the configuration, which is at `path`, does not want that."""
    if store_name(store) != "lake" or not store.compact:
        return None
    root = _lake_folder(config, store)
    command = [sys.executable, "-m", "tapeline", "lake", "tidy", *(["--config", str(path)] if path is not None else [])]
    return Upkeep("lake", command, lambda: bool(due(root, datetime.now(UTC))))


def postgres_source(config: Config, environ: Mapping[str, str] | None = None) -> Source:
    """The configuration's database, to be read. Raises ConfigError where it has none."""
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
    return ConfigError(f"{store.shown} needs the package {error.name}. Install it: pip install 'tapeline[postgres]'.")


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


def open_renames(config: Config, environ: Mapping[str, str] | None = None) -> list[Renames]:
    """What gives a symbol another name in each of the configured stores; nothing is connected yet. Raises ConfigError."""
    open_stores(config)  # an address that no store has and a package that is missing are named there
    found: list[Renames] = []
    for store in config.stores:
        if store_name(store) == "lake":
            from tapeline.stores.lake.renaming import LakeRenaming

            found.append(LakeRenaming(_lake_folder(config, store), identity))
        else:
            from tapeline.stores.postgres.database import Database
            from tapeline.stores.postgres.renaming import PostgresRenaming

            password = store_password(store, environment() if environ is None else environ)
            found.append(PostgresRenaming(Database(store.url, password), identity))
    return found


#: Each store that can be read, by the name that `source` has; the one place to add one.
SOURCES: Final[Mapping[str, Callable[[Config], Source]]] = {
    "lake": lambda config: LakeSource(lake_folder(config)),
    "postgresql": postgres_source,
}


def open_source(config: Config, name: str) -> Source:
    """A store to be read. Raises WrongArgument for a name that no source has, ConfigError where its package is not installed."""
    if name not in SOURCES:
        raise WrongArgument(f"source = {name!r} is no source. Use one of: {', '.join(SOURCES)}.")
    return SOURCES[name](config)
