"""The PostgreSQL store, with TimescaleDB if the database has it: rows, positions and counts in one transaction, rows by binary COPY.

Duplicates are removed before the write, by the same rule as in the lake. The store queries the database around a batch's times only
for records whose id is not above all known ids. So no index has to be unique, and a COPY goes straight into the table.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Final

import adbc_driver_manager as adbc
import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_manager import dbapi

from tapeline.records import BARS_TOPIC, NS_PER_US, TICKS_TOPIC, Chunk, Identity, Topic
from tapeline.secret import Secret
from tapeline.stores import Totals, Written, with_dates
from tapeline.stores.duplicates import Channel, HighestIds, IdentityRule, fresh_of
from tapeline.stores.postgres.database import CannotHold, Database
from tapeline.stores.postgres.schema import Schema
from tapeline.stores.postgres.statements import Statements, load

log = logging.getLogger(__name__)

#: Bars are kept with all their revisions in this table. The table `bars` has the last revision of each.
_TABLES: Final = {"bars": "bar_revisions"}
#: Rows that are encoded at once. The server works on some while the next ones are encoded.
_PIECE_ROWS: Final = 16_384
#: Tables that are partitioned by day. The others are partitioned by month.
_BY_DAY: Final = frozenset({"ticks"})


class Postgres:
    """Tables in the database that a `postgresql://` address names. Connects at the first call."""

    def __init__(self, url: str, password: Secret, identity: IdentityRule, keep_days: int = 0, lock_wait_s: float = 10.0) -> None:
        """`keep_days`: ticks of earlier days are removed; 0: never.

        `lock_wait_s`: how long (s) a statement waits for a lock of others.
        """
        self._database = Database(url, password, lock_wait_s)
        self._schema = Schema(self._database.shown)
        self._identity, self._keep_days = identity, keep_days
        self._sql: Final[Statements] = load("postgres.sql")
        self._connection: dbapi.Connection | None = None
        self._newest = False
        self._timescale = False
        self._parts: set[str] = set()
        self._looked_for_old = False
        self._highest = HighestIds()
        self._since: dict[tuple[Channel, str], int] = {}
        self._read: dict[Topic, int] = {}

    def totals(self, topic: Topic) -> Totals:
        with self._transaction() as cursor:
            if self._schema.version(cursor) is None:
                return Totals({}, 0, 0, 0)
            return self._totals(cursor, topic)

    def write(self, chunk: Chunk) -> Written:
        try:
            return self._write(chunk, {})
        except CannotHold as error:
            bad = self._cannot_hold(chunk.topic, _with_ids(with_dates(chunk.batch)), error)
        for name, reason in bad.items():
            log.error(
                "%s cannot store the record %s of %s: %s. It is in tapeline_refused and in the other stores. Tapeline stores all others.",
                self._database.shown,
                name,
                chunk.topic.name,
                reason,
            )
        return self._write(chunk, bad)

    def _write(self, chunk: Chunk, bad: Mapping[str, str]) -> Written:
        """`bad` maps the ids of records that cannot be held to the reason."""
        topic = chunk.topic
        with self._transaction() as cursor:
            cursor.execute(self._sql.one("alone"))
            self._migrate(cursor)
            before = self._totals(cursor, topic)
            if before.read != self._read.get(topic):
                self._forget()  # another process has written since, or this one has just begun
            # An earlier try may have been committed although its answer did not come back.
            chunk = chunk.after(before.positions)
            if not chunk.rows:
                return Written(0, 0)
            fresh = fresh_of(_with_ids(with_dates(chunk.batch)), topic, self._identity, lambda *request: self._held(cursor, *request))
            good = fresh.filter(pc.invert(pc.is_in(fresh["id"], pa.array(list(bad), pa.string())))) if bad else fresh
            self._keep(cursor, topic, good)
            written = Written(good.num_rows, chunk.rows - fresh.num_rows, fresh.num_rows - good.num_rows)
            if written.refused:
                for row in fresh.filter(pc.is_in(fresh["id"], pa.array(list(bad), pa.string()))).to_pylist():
                    cursor.execute(self._sql.one("refuse"), (topic.name, row["id"], bad[row["id"]], json.dumps(row, default=str)))
            read = before.read + chunk.rows
            counts = (read, before.rows + written.rows, before.duplicates + written.duplicates, before.refused + written.refused)
            cursor.execute(self._sql.one("set_counts"), (topic.name, *counts))
            for partition, position in chunk.next.items():
                cursor.execute(self._sql.one("set_position"), (topic.name, partition, position))
        self._newest = True
        self._read[topic] = read
        if not self._looked_for_old:
            self._remove_old()
        if topic is TICKS_TOPIC:
            self._highest.note(good, self._identity)
        return written

    def close(self) -> None:
        """Close the connection. Idempotent. A later call of another method connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Writing.

    def _keep(self, cursor: dbapi.Cursor, topic: Topic, rows: pa.RecordBatch) -> None:
        """Copy rows to their tables, ordered by symbol and time."""
        if not rows.num_rows:
            return
        order = [(name, "ascending") for name in ("symbol", "ts_ns") if name in rows.schema.names and not rows[name].null_count]
        rows = rows.sort_by(order) if order else rows
        table = table_of(topic)
        for divided in () if self._timescale else (table, "bars") if topic is BARS_TOPIC else (table,):
            self._divide(cursor, divided, rows)
        kept = rows.drop_columns(["date"])
        cursor.adbc_ingest(table, _in_pieces(kept), mode="append")
        if topic is BARS_TOPIC:
            cursor.execute(self._sql.one("copy_of", name="new_bars", table="bars"))
            cursor.adbc_ingest("new_bars", kept, mode="append", temporary=True)
            cursor.execute(self._sql.one("replace_bars"))

    def _remove_old(self) -> None:
        """Remove ticks older than `keep_days`, by whole partitions. TimescaleDB does this by itself once it is configured."""
        with self._transaction() as cursor:
            if self._timescale:
                for statement in self._sql.each("old_chunks" if self._keep_days else "keep_chunks", days=str(self._keep_days)):
                    cursor.execute(statement)
            elif self._keep_days:
                cursor.execute(self._sql.one("old_parts"), (self._keep_days,))
                self._parts.clear()
                for (part,) in cursor.fetchall():
                    cursor.execute(self._sql.one("drop_part", part=part))
                    log.info("%s: Removed %s. Tapeline keeps ticks for %d days (keep_days).", self._database.shown, part, self._keep_days)
        self._looked_for_old = True

    def _cannot_hold(self, topic: Topic, rows: pa.RecordBatch, error: CannotHold) -> dict[str, str]:
        """Find, by halving, the rows that the database does not take. Return their ids with the reason."""
        if rows.num_rows == 1:
            return {rows["id"][0].as_py(): error.reason}
        reasons: dict[str, str] = {}
        half = rows.num_rows // 2
        for part in (rows.slice(0, half), rows.slice(half)):
            try:
                with self._transaction() as cursor:
                    self._migrate(cursor)
                    cursor.execute(self._sql.one("copy_of", name="tried", table=table_of(topic)))
                    cursor.adbc_ingest("tried", part.drop_columns(["date"]), mode="append", temporary=True)
            except CannotHold as again:
                reasons |= self._cannot_hold(topic, part, again)
        return reasons

    def _divide(self, cursor: dbapi.Cursor, table: str, rows: pa.RecordBatch) -> None:
        """Create the partitions of a table that the rows need."""
        for day in rows["date"].unique().to_pylist():
            begin, end = _part(table, day)
            part = f"{table}_{begin:%Y%m%d}"
            if part in self._parts:
                continue
            cursor.execute(self._sql.one("known_parts", table=table))
            known = {str(name) for (name,) in cursor.fetchall()}
            if part not in known:
                for statement in self._sql.each("new_part", table=table, part=part, begin=_moment(begin), end=_moment(end)):
                    cursor.execute(statement)
                self._looked_for_old = False
            else:
                self._parts |= known

    # What the database holds.

    def _held(
        self, cursor: dbapi.Cursor, topic: Topic, some: pa.RecordBatch, identity: Identity, channel: Channel | None
    ) -> pa.Table | None:
        """Return the identities the database holds around the times of a batch, for one channel or for all."""
        if channel is None:
            columns = ", ".join(f'"{name}"' for name in identity.compared)
            times = pc.min_max(some["ts"]).as_py()
            cursor.execute(self._sql.one("held_of_all", columns=columns, table=table_of(topic)), (times["min"], times["max"]))
            return cursor.fetch_arrow_table()
        if identity.rising:
            self._learn(cursor, some, identity, channel)
            some = some.filter(pa.array(~self._highest.above(some, identity, channel)))
        if not some.num_rows:
            return None
        low, high = pc.min(some["ts_ns"]).as_py() - identity.drift_ns, pc.max(some["ts_ns"]).as_py() + identity.drift_ns
        names = [name for name in dict.fromkeys((*identity.compared, "ts_ns")) if name != "date"]
        question = self._sql.one("held", columns=", ".join(f'"{name}"' for name in names), table=table_of(topic))
        cursor.execute(question, (*channel, _time(low), _time(high + NS_PER_US)))
        rows = cursor.fetch_arrow_table()
        return _with_day(rows) if "date" in identity.columns else rows

    def _learn(self, cursor: dbapi.Cursor, some: pa.RecordBatch, identity: Identity, channel: Channel) -> None:
        """Query the highest id of each symbol for which it is not known that far back.

        A copy of an event is older by at most the drift.
        """
        earliest = pa.table(some.select(["symbol", "ts_ns"])).group_by("symbol").aggregate([("ts_ns", "min")])
        since = dict(zip(earliest["symbol"].to_pylist(), earliest["ts_ns_min"].to_pylist(), strict=True))
        unknown = {symbol: ts for symbol, ts in since.items() if ts < self._since.get((channel, symbol), ts + 1)}
        if not unknown:
            return
        low = min(unknown.values())
        question = self._sql.one("highest", id=f'"{identity.id}"', table="ticks")
        cursor.execute(question, (*channel, _time(low - identity.drift_ns), list(unknown)))
        self._highest.put(channel, dict(cursor.fetchall()))
        self._since |= {(channel, symbol): low for symbol in unknown}

    def _totals(self, cursor: dbapi.Cursor, topic: Topic) -> Totals:
        cursor.execute(self._sql.one("positions"), (topic.name,))
        positions: dict[int, int] = dict(cursor.fetchall())
        cursor.execute(self._sql.one("counts"), (topic.name,))
        return Totals(positions, *(cursor.fetchone() or (0, 0, 0)))

    def _forget(self) -> None:
        self._highest.clear()
        self._since.clear()

    # The database.

    def _migrate(self, cursor: dbapi.Cursor) -> None:
        """Bring the tables to this version, in the transaction of the write."""
        if not self._newest:
            self._timescale = self._schema.migrate(cursor)

    @contextmanager
    def _transaction(self) -> Iterator[dbapi.Cursor]:
        """A transaction that commits at the end.

        If it raises Unavailable or a like error, with PostgreSQL's message, nothing was written.
        """
        try:
            if self._connection is None:
                self._connection = self._database.connect()
            with self._connection.cursor() as cursor:
                yield cursor
            self._connection.commit()
        except adbc.Error as error:
            self._leave()
            raise self._database.meaning(error) from error
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        """Roll back by closing the connection. Whatever its state, the next call starts on a new one."""
        connection, self._connection = self._connection, None
        self._newest = False
        self._parts.clear()
        self._forget()
        if connection is not None:
            try:
                connection.close()
            except adbc.Error as error:
                log.debug("The connection did not close: %s", error)


def table_of(topic: Topic) -> str:
    """Return the table to which all records of a topic go."""
    return _TABLES.get(topic.table, topic.table)


def _with_ids(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Add the column `id`, the event's own id: its raw position, in the form that `tapeline audit` takes."""
    parts = [pc.cast(rows[name], pa.string()) for name in ("raw_partition", "raw_offset", "raw_index")]
    return rows.append_column("id", pc.binary_join_element_wise(*parts, "-"))


def _in_pieces(rows: pa.RecordBatch) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(rows.schema, (rows.slice(at, _PIECE_ROWS) for at in range(0, rows.num_rows, _PIECE_ROWS)))


def _with_day(rows: pa.Table) -> pa.Table:
    """Add the UTC date, which is part of some identities."""
    days = pc.cast(pc.cast(pc.divide(rows["ts_ns"], 86_400_000_000_000), pa.int32()), pa.date32())
    return rows.append_column("date", days)


def _part(table: str, day: date) -> tuple[date, date]:
    """Return the first day of the partition of a table that a day belongs to, and of the next partition."""
    if table in _BY_DAY:
        return day, day + timedelta(days=1)
    first = day.replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1)


def _moment(day: date) -> str:
    return f"{day:%Y-%m-%d} 00:00:00"


def _time(ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // NS_PER_US)
