"""Opens the record of runs and alerts that the configuration names: PostgreSQL if that is a store, otherwise a file in the data folder."""

from __future__ import annotations

import time

from tapeline.app.stores import needs_package, postgres_store
from tapeline.config import Config, environment, store_password
from tapeline.orchestration.database import Database, SqliteDatabase


def open_database(config: Config) -> Database:
    """The record of runs and alerts. It is not connected yet.

    Raises ConfigError if the package for PostgreSQL is not installed or the password cannot be read."""
    store = postgres_store(config)
    if store is None:
        return SqliteDatabase(config.root / "runs.sqlite", time.time_ns)
    try:
        from tapeline.orchestration.postgres import PostgresDatabase
        from tapeline.stores.postgres.database import Database as Server
    except ModuleNotFoundError as error:
        raise needs_package(store, error) from None
    return PostgresDatabase(Server(store.url, store_password(store, environment())))
