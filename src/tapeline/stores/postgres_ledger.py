"""The ledger of what is complete in PostgreSQL, where that is a store: the same facts, and views that anybody's SQL reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import pyarrow as pa
from adbc_driver_manager import dbapi

from tapeline.completeness import Facts, Key, Life, Run
from tapeline.stores.database import Database
from tapeline.stores.ledger import INTERVALS, Changes, Lives, rows_of
from tapeline.stores.schema import Schema
from tapeline.stores.statements import Statements, load

#: The version of the tables that brought the lives of topics.
_WITH_LIVES: Final = 4


class PostgresLedger:
    """The ledger in the database that a `postgresql://` address names. Nothing is connected before the first call."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._schema = Schema(database.shown)
        self._sql: Final[Statements] = load("ledger.sql")

    def load(self) -> tuple[Facts, dict[int, int]]:
        with self._database.transaction() as cursor:
            if not self._there(cursor):
                return Facts(), {}
            cursor.execute(self._sql.one("lives"))
            lives = {name: msgspec.json.decode(body, type=Life) for name, body in cursor.fetchall()}
            cursor.execute(self._sql.one("runs"))
            runs = {Key(*row[:4]): msgspec.json.decode(row[4], type=list[Run]) for row in cursor.fetchall()}
            cursor.execute(self._sql.one("positions"))
            positions = {int(partition): int(position) for partition, position in cursor.fetchall()}
        return Facts.of(runs, lives), positions

    def lives(self) -> Lives | None:
        with self._database.transaction() as cursor:
            if (self._schema.version(cursor) or 0) < _WITH_LIVES:
                return None
            cursor.execute(self._sql.one("topics"))
            return {(str(topic), int(partition)): int(begun) for topic, partition, begun in cursor.fetchall()} or None

    def save(self, facts: Facts, changes: Changes, positions: Mapping[int, int], lives: Lives | None = None) -> None:
        with self._database.transaction() as cursor:
            self._schema.migrate(cursor)
            written = {
                "set_life": [(name, msgspec.json.encode(facts.lives[name]).decode()) for name in facts.touched_lives],
                "set_runs": [(*key, msgspec.json.encode(facts.runs[key]).decode()) for key in facts.touched_runs],
                "forget_intervals": [(*key, same) for key, (same, _) in changes.items()],
                "add_interval": list(rows_of(changes)),
                "set_position": list(positions.items()),
                "set_topic": [(*place, begun) for place, begun in (lives or {}).items()],
            }
            for name, rows in written.items():
                if rows:
                    cursor.executemany(self._sql.one(name), rows)

    def forget(self, keys: Iterable[Key]) -> None:
        with self._database.transaction() as cursor:
            if self._there(cursor) and (gone := list(keys)):
                cursor.executemany(self._sql.one("forget_runs"), gone)

    def intervals(self) -> pa.Table:
        with self._database.transaction() as cursor:
            if not self._there(cursor):
                return INTERVALS.empty_table()
            cursor.execute(self._sql.one("intervals"))
            found = cursor.fetch_arrow_table()
            return pa.table([found[name].cast(INTERVALS.field(name).type) for name in INTERVALS.names], schema=INTERVALS)

    def _there(self, cursor: dbapi.Cursor) -> bool:
        """Whether the tables are of a version that has a ledger."""
        return (self._schema.version(cursor) or 0) >= 2
