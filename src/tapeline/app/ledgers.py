"""Opens the ledger that the configuration names, and reads its intervals."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import pyarrow as pa

from tapeline.app.stores import needs_package, postgres_store
from tapeline.config import Config, environment, store_password
from tapeline.errors import ConfigError, Unavailable
from tapeline.ledger import Ledger, read_intervals
from tapeline.ledger.facts import Interval, Key, State
from tapeline.ledger.sqlite import LedgerFile
from tapeline.stores.selection import alike

log = logging.getLogger(__name__)


def known_intervals(
    config: Config, symbols: Collection[str], provider: str | None, states: Collection[State] = ()
) -> dict[Key, list[Interval]]:
    """The ledger's intervals by key. An empty `symbols` or `states`, or None as `provider`, selects all.

    Raises ConfigError if there is no ledger yet, and for a symbol or a provider that the ledger does not know."""
    ledger = open_ledger(config)
    keys = ledger.keys()
    if not keys:
        why = "Remove `ledger = false`" if not config.ledger else "Start `tapeline run` (or `tapeline ledger`)"
        raise ConfigError(f"There is no ledger in {config.root} yet. {why}, or use another --config.")
    there = sorted({key.symbol for key in keys})
    for symbol in symbols:
        if symbol not in there:
            near = alike(symbol, there)
            remedy = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ConfigError(f"The ledger does not know the symbol {symbol!r}.{remedy}")
    names = sorted({key.provider for key in keys})
    if provider is not None and provider not in names:
        raise ConfigError(f"The ledger does not know the provider {provider!r}. It knows: {', '.join(names)}.")
    intervals = read_intervals(ledger.intervals(symbols, states))
    return {key: some for key, some in intervals.items() if provider in (None, key.provider)}


def open_ledger(config: Config, environ: Mapping[str, str] | None = None) -> Ledger:
    """The configured ledger: in PostgreSQL if that is a store, otherwise a file in the data folder. It is not connected yet.

    Raises ConfigError if the package for PostgreSQL is not installed or the password cannot be read."""
    store = postgres_store(config)
    if store is None:
        return LedgerFile(config.root / "ledger.sqlite")
    try:
        from tapeline.ledger.postgres import PostgresLedger
        from tapeline.stores.postgres.database import Database
    except ModuleNotFoundError as error:
        raise needs_package(store, error) from None
    return PostgresLedger(Database(store.url, store_password(store, environment() if environ is None else environ)))


def ledger_rows(config: Config) -> pa.Table | None:
    """The ledger's rows for SQL over the lake. None, with a warning, while the ledger is away: the lake can still be read."""
    try:
        return open_ledger(config).intervals()
    except Unavailable as error:
        log.warning("%s This query runs without the tables coverage and gaps.", error)
        return None
