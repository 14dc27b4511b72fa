"""The runs of jobs and the alerts in PostgreSQL, where every machine of a pipeline sees them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from adbc_driver_manager import dbapi

from tapeline.orchestration.database import Transaction, Value
from tapeline.stores.postgres.database import Database
from tapeline.stores.postgres.schema import Schema

#: The version of the tables that introduced these ones.
_WITH_RUNS: Final = 8
_NOW: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000"


@dataclass(frozen=True, slots=True)
class _PostgresTransaction:
    cursor: dbapi.Cursor
    now_ns: int

    def rows(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        numbers = count(1)
        self.cursor.execute(re.sub(r"\?", lambda _: f"${next(numbers)}", statement), list(values) or None)
        return self.cursor.fetchall() if self.cursor.description else []


class PostgresDatabase:
    """The tables in the database that is a store.

    `clock` (ns, UTC) is the server's own if left out: a claim must not look old because the clocks of two machines differ."""

    def __init__(self, database: Database, clock: Callable[[], int] | None = None) -> None:
        self._database, self._clock = database, clock
        self._schema = Schema(database.shown)
        self._there = self._migrated = False

    def exists(self) -> bool:
        if not self._there:
            with self._database.transaction() as cursor:
                self._there = (self._schema.version(cursor) or 0) >= _WITH_RUNS
        return self._there

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with self._database.transaction() as cursor:
            if not self._migrated:
                self._schema.migrate(cursor)
            if self._clock is not None:
                now_ns = self._clock()
            else:
                cursor.execute(_NOW)
                now_ns = int((cursor.fetchone() or (0,))[0])
            yield _PostgresTransaction(cursor, now_ns)
        self._there = self._migrated = True  # only now: a transaction that failed has made no tables
