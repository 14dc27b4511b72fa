"""Renames a symbol in PostgreSQL, each UTC day of a table in one transaction.

An event may exist under both names. Then the row that came first stays, as if both had come under one name. From then on, the other
row counts as a duplicate. Everything else of a row stays.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final

from adbc_driver_manager import dbapi

from tapeline.records import BARS_TOPIC, NS_PER_MS, NS_PER_US, TICKS_TOPIC, Identity, Topic
from tapeline.stores.duplicates import BY_RAW, IdentityRule
from tapeline.stores.postgres import table_of
from tapeline.stores.postgres.database import Database
from tapeline.stores.postgres.schema import Schema
from tapeline.stores.postgres.statements import load
from tapeline.stores.renaming import NAMING, Progress, Renamed, Renaming

log = logging.getLogger(__name__)

#: Parameters of a statement.
_Values = tuple[str | datetime, ...]


class PostgresRenaming:
    """The tables in a database. Connects at the first call."""

    def __init__(self, database: Database, rule: IdentityRule) -> None:
        self._database, self._rule = database, rule
        self._schema = Schema(database.shown)
        self._sql: Final = load("renaming.sql")
        self._general: Final = load("postgres.sql")

    @property
    def name(self) -> str:
        return "postgresql"

    def positions(self, topic: Topic) -> Mapping[int, int]:
        with self._database.transaction() as cursor:
            if self._schema.version(cursor) is None:
                return {}
            cursor.execute(self._general.one("positions"), (topic.name,))
            return dict(cursor.fetchall())

    def rename(self, renaming: Renaming, progress: Progress, *, dry_run: bool) -> Iterator[Renamed]:
        for topic in NAMING:
            days = self._days(topic, renaming)
            total, done = sum(days.values()), 0
            for day, rows in days.items():
                progress(f"{topic.table} in postgresql", done, total)
                with self._database.transaction() as cursor:
                    renamed = self._of_day(cursor, topic, renaming, day, rows, dry_run=dry_run)
                done += rows
                progress(f"{topic.table} in postgresql", done, total)
                yield renamed
            if days and not dry_run and topic is TICKS_TOPIC:
                self._warn_of_sums(renaming, min(days), max(days))

    def _days(self, topic: Topic, renaming: Renaming) -> dict[date, int]:
        """Return the UTC days that have rows under the old name, with the number of those rows."""
        with self._database.transaction() as cursor:
            if self._schema.version(cursor) is None:
                return {}
            cursor.execute(self._sql.one("days", table=table_of(topic)), (renaming.provider, renaming.feed, renaming.old))
            return dict(cursor.fetchall())

    def _of_day(self, cursor: dbapi.Cursor, topic: Topic, renaming: Renaming, day: date, rows: int, *, dry_run: bool) -> Renamed:
        """`rows`: how many rows the day had under the old name when it was queried."""
        one = (renaming.provider, renaming.feed, renaming.old, renaming.new)
        begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
        end = begin + timedelta(days=1)
        if not dry_run:
            cursor.execute(self._general.one("alone"))
        old = new = 0
        for same, drift_ns, channel in self._identities(cursor, topic, renaming, begin, end):
            drift = timedelta(microseconds=-(-drift_ns // NS_PER_US))
            ask = self._copies if dry_run else self._without_copies
            some, others = ask(cursor, topic, same, (*one, begin, end), (begin - drift, end + drift), channel)
            old, new = old + some, new + others
        if not dry_run:
            if topic is BARS_TOPIC:
                cursor.execute(self._sql.one("forget_bars"), (*one, begin, end))
            cursor.execute(self._sql.one("rename", table=table_of(topic)), (*one, begin, end))
            if topic is BARS_TOPIC:
                cursor.execute(self._sql.one("last_bars"), (renaming.provider, renaming.feed, renaming.new, begin, end))
            cursor.execute(self._sql.one("more_duplicates"), (topic.name, old + new))
        return Renamed("postgresql", topic.table, day, rows - old, old + new)

    def _copies(self, cursor: dbapi.Cursor, topic: Topic, same: str, day: _Values, near: _Values, channel: _Values) -> tuple[int, int]:
        """Return how many rows under the old name, and how many under the new one, are copies of an event kept under the other name."""
        same += " AND n.channel = $9 AND o.channel = $9" if channel else ""
        cursor.execute(self._sql.one("copies", table=table_of(topic), same=same), (*day, *near, *channel))
        ((old, new),) = cursor.fetchall()
        return int(old), int(new)

    def _without_copies(
        self, cursor: dbapi.Cursor, topic: Topic, same: str, day: _Values, near: _Values, channel: _Values
    ) -> tuple[int, int]:
        """As `_copies`, and delete those rows."""
        named = " AND n.channel = $7 AND o.channel = $7" if channel else ""
        cursor.execute(self._sql.one("remove_later", table=table_of(topic), same=same + named), (*day, *channel))
        new = _number(cursor)
        named = " AND n.channel = $9 AND o.channel = $9" if channel else ""
        cursor.execute(self._sql.one("remove_copies", table=table_of(topic), same=same + named), (*day, *near, *channel))
        return _number(cursor), new

    def _identities(
        self, cursor: dbapi.Cursor, topic: Topic, renaming: Renaming, begin: datetime, end: datetime
    ) -> Iterator[tuple[str, int, _Values]]:
        """Yield, for each channel, what makes two of a day's events the same.

        An item holds a condition for SQL, the largest distance of the two events (ns), and the channel.
        """
        if topic not in (TICKS_TOPIC, BARS_TOPIC):
            yield _same(topic, BY_RAW), 0, ()
            return
        text = self._sql.one("channels", table=table_of(topic))
        cursor.execute(text, (renaming.provider, renaming.feed, renaming.old, begin, end))
        for (channel,) in cursor.fetchall():
            rule = self._rule(renaming.provider, renaming.feed, channel)
            if rule.columns:
                yield _same(topic, rule), rule.drift_ns, (channel,)

    def _warn_of_sums(self, renaming: Renaming, first: date, last: date) -> None:
        with self._database.transaction() as cursor:
            cursor.execute(self._general.one("has_timescale"))
            if _number(cursor):
                log.warning(
                    "%s: trade_bars_1s, _1m and _1h from %s to %s still hold the sums of %s. Refresh them as docs/postgres.md shows.",
                    self._database.shown,
                    first,
                    last,
                    renaming.old,
                )


def _same(topic: Topic, identity: Identity) -> str:
    """Return the SQL condition that a row `n` is the same event as a row `o` of another symbol."""
    conditions = []
    for name in identity.compared:
        if name == "date":
            conditions.append("(n.ts AT TIME ZONE 'UTC')::date = (o.ts AT TIME ZONE 'UTC')::date")
        elif name != "symbol":
            # Only plain equality lets PostgreSQL find the other row without comparing all rows.
            plain = not topic.schema.field(name).nullable or (name == identity.id and not identity.else_by_ms)
            conditions.append(f'n."{name}" {"=" if plain else "IS NOT DISTINCT FROM"} o."{name}"')
    if identity.else_by_ms:
        both = [f'CASE WHEN {row}."{identity.id}" IS NULL THEN {row}.ts_ns / {NS_PER_MS} END' for row in ("n", "o")]
        conditions.append(" IS NOT DISTINCT FROM ".join(both))
    return " AND ".join(conditions)


def _number(cursor: dbapi.Cursor) -> int:
    ((number,),) = cursor.fetchall()
    return int(number)
