"""The tables of a PostgreSQL database, migrated forward one version at a time, never back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from adbc_driver_manager import dbapi

from tapeline.errors import NewerData
from tapeline.stores.postgres.statements import Statements, load, migrations

log = logging.getLogger(__name__)

_AGGREGATES: Final = (
    {"name": "1s", "width": "1 second", "back": "1 hour", "every": "10 seconds"},
    {"name": "1m", "width": "1 minute", "back": "1 day", "every": "1 minute"},
    {"name": "1h", "width": "1 hour", "back": "7 days", "every": "1 hour"},
)


class Schema:
    """The versions of the tables in one database. `shown` names the database in messages."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._sql: Final[Statements] = load("postgres.sql")

    def version(self, cursor: dbapi.Cursor) -> int | None:
        """Return the version of the tables, or None if there are none. Raises NewerData."""
        cursor.execute(self._sql.one("has_version"))
        if not _only(cursor):
            return None
        cursor.execute(self._sql.one("version"))
        version = int(_only(cursor))
        known = len(migrations())
        if version > known:
            raise NewerData(
                f"The tables in {self._shown} were written by a newer Tapeline (version {version}, this one knows {known}). "
                "Nothing was changed. Upgrade Tapeline, or set another database."
            )
        return version

    def has(self, cursor: dbapi.Cursor, table: str) -> bool:
        """Return whether a table of this version is there. `table` is a name of our own. Raises NewerData."""
        if self.version(cursor) is None:
            return False
        cursor.execute(self._sql.one("has_table"), (table,))
        return bool(_only(cursor))

    def migrate(self, cursor: dbapi.Cursor) -> bool:
        """Bring the tables to this version, in the caller's transaction. Return whether TimescaleDB partitions them by time."""
        cursor.execute(self._sql.one("has_timescale"))
        timescale = bool(_only(cursor))
        steps = migrations(by_time="" if timescale else "PARTITION BY RANGE (ts)")
        if self.version(cursor) == len(steps):
            return timescale
        cursor.execute(self._sql.one("alone"))
        version = self.version(cursor) or 0  # the process that held the lock may have done it
        for step in steps[version:]:
            for statement in step:
                cursor.execute(statement)
        if version < len(steps):
            cursor.execute(self._sql.one("begin_version"))
            cursor.execute(self._sql.one("set_version"), (len(steps),))
            log.info("The tables in %s are at version %d%s.", self._shown, len(steps), ", with TimescaleDB" if timescale else "")
        if version == 0 and timescale:
            for statement in self._sql.each("hypertables"):
                cursor.execute(statement)
            for names in _AGGREGATES:
                for statement in self._sql.each("trade_bars", **names):
                    cursor.execute(statement)
        return timescale


def _only(cursor: dbapi.Cursor) -> Any:
    row: Sequence[Any] | None = cursor.fetchone()
    assert row is not None, "this query returns one row"
    return row[0]
