"""The ledger in PostgreSQL, if PostgreSQL is one of the stores: the same facts, and views that any SQL client can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec
import pyarrow as pa
from adbc_driver_manager import dbapi

from tapeline.ledger import INTERVALS, Lives, connection_before, pieces_of, rows_of
from tapeline.ledger.facts import ConnectionRecord, Facts, Key, Past, Piece, Run, State
from tapeline.ledger.folding import Changes
from tapeline.stores.postgres.database import Database
from tapeline.stores.postgres.schema import Schema
from tapeline.stores.postgres.statements import Statements, load

#: The table versions that introduced the ledger, the lives of topics, the past of keys, and the name `dropped` in connections.
_WITH_LEDGER: Final = 2
_WITH_LIVES: Final = 4
_WITH_PASTS: Final = 6
_WITH_DROPPED: Final = 7
_CONNECTION: Final = msgspec.json.Decoder(ConnectionRecord)


class PostgresLedger:
    """The ledger in the database that a `postgresql://` address names. Connects at the first call."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._schema = Schema(database.shown)
        self._sql: Final[Statements] = load("ledger.sql")

    def load(self) -> tuple[Facts, dict[int, int]]:
        with self._database.transaction() as cursor:
            if (version := self._schema.version(cursor) or 0) < _WITH_LEDGER:
                return Facts(), {}
            cursor.execute(self._sql.one("lives"))
            connection_of = _CONNECTION.decode if version >= _WITH_DROPPED else connection_before
            connections = {name: connection_of(body) for name, body in cursor.fetchall()}
            cursor.execute(self._sql.one("runs"))
            runs = {Key(*row[:4]): msgspec.json.decode(row[4], type=list[Run]) for row in cursor.fetchall()}
            pasts: dict[Key, Past] = {}
            past_connections: dict[str, int] = {}
            if version >= _WITH_PASTS:
                cursor.execute(self._sql.one("pasts"))
                pasts = {Key(*row[:4]): msgspec.json.decode(row[4], type=Past) for row in cursor.fetchall()}
                cursor.execute(self._sql.one("past_connections"))
                past_connections = {str(name): int(at_ns) for name, at_ns in cursor.fetchall()}
            cursor.execute(self._sql.one("positions"))
            positions = {int(partition): int(position) for partition, position in cursor.fetchall()}
        return Facts.of(runs, connections, pasts, past_connections), positions

    def pieces(self, key: Key, numbers: range) -> list[Piece]:
        with self._database.transaction() as cursor:
            if not self._with_pasts(cursor):
                return []
            cursor.execute(self._sql.one("pieces"), (*key, numbers.start, numbers.stop))
            return [msgspec.json.decode(body, type=Piece) for (body,) in cursor.fetchall()]

    def lives(self) -> Lives | None:
        with self._database.transaction() as cursor:
            if (self._schema.version(cursor) or 0) < _WITH_LIVES:
                return None
            cursor.execute(self._sql.one("topics"))
            return {(str(topic), int(partition)): int(begun) for topic, partition, begun in cursor.fetchall()} or None

    def save(self, facts: Facts, changes: Changes, positions: Mapping[int, int], lives: Lives | None = None) -> None:
        condensed = [(name, facts.past_connections[name]) for name in facts.condensed_connections if name in facts.past_connections]
        with self._database.transaction() as cursor:
            self._schema.migrate(cursor)
            written = {
                "forget_life": [(name,) for name in facts.condensed_connections],
                "add_past_connection": condensed,
                "forget_past_connections": [(min(facts.past_connections.values()),)] if condensed else [],
                "set_life": [(name, msgspec.json.encode(facts.connections[name]).decode()) for name in facts.touched_connections],
                "set_runs": [(*key, msgspec.json.encode(facts.runs[key]).decode()) for key in facts.touched_runs],
                "set_past": [(*key, msgspec.json.encode(facts.pasts[key]).decode()) for key in facts.touched_pasts],
                "forget_pieces": [(*key, number) for key, number in facts.restored.items()],
                "add_piece": [
                    (*key, number, piece.before_ns, msgspec.json.encode(piece).decode()) for key, number, piece in pieces_of(facts)
                ],
                "forget_intervals": [(*key, same) for key, (same, _) in changes.items()],
                "add_interval": list(rows_of(changes)),
                "set_position": list(positions.items()),
                "set_topic": [(*place, begun) for place, begun in (lives or {}).items()],
            }
            for name, rows in written.items():
                if rows:
                    cursor.executemany(self._sql.one(name), rows)

    def prune(self, archived: Mapping[Key, int], before_ns: int) -> dict[Key, Counter[State]]:
        removed: dict[Key, Counter[State]] = {}
        with self._database.transaction() as cursor:
            for key, number in archived.items():
                old = (*key, number, before_ns)
                cursor.execute(self._sql.one("old_states"), old)
                if gone := Counter[State](dict(cursor.fetchall())):
                    removed[key] = gone
                    cursor.execute(self._sql.one("prune_intervals"), old)
                cursor.execute(self._sql.one("prune_pieces"), (*key, before_ns))
        return removed

    def forget(self, keys: Iterable[Key]) -> None:
        with self._database.transaction() as cursor:
            if not self._there(cursor) or not (gone := list(keys)):
                return
            self._schema.migrate(cursor)
            for name in ("forget_runs", "forget_pasts"):
                cursor.executemany(self._sql.one(name), gone)
            cursor.executemany(self._sql.one("forget_pieces"), [(*key, 0) for key in gone])

    def keys(self) -> list[Key]:
        with self._database.transaction() as cursor:
            if not self._there(cursor):
                return []
            cursor.execute(self._sql.one("keys"))
            return sorted(Key(*row) for row in cursor.fetchall())

    def intervals(self, symbols: Collection[str] = (), states: Collection[State] = ()) -> pa.Table:
        with self._database.transaction() as cursor:
            if not self._there(cursor):
                return INTERVALS.empty_table()
            cursor.execute(self._sql.one("intervals"), [msgspec.json.encode(list(some)).decode() for some in (symbols, states)])
            table = cursor.fetch_arrow_table()
            return pa.table([table[name].cast(INTERVALS.field(name).type) for name in INTERVALS.names], schema=INTERVALS)

    def _there(self, cursor: dbapi.Cursor) -> bool:
        """Return whether the tables are of a version that has a ledger."""
        return (self._schema.version(cursor) or 0) >= _WITH_LEDGER

    def _with_pasts(self, cursor: dbapi.Cursor) -> bool:
        return (self._schema.version(cursor) or 0) >= _WITH_PASTS
