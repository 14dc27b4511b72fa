"""The ledger in one SQLite file next to the data, with nothing to install."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa

from tapeline.errors import DiskProblem
from tapeline.ledger import INTERVALS, Lives, connection_before, pieces_of, rows_of
from tapeline.ledger.facts import ConnectionRecord, Facts, Key, Past, Piece, Run, State
from tapeline.ledger.folding import Changes
from tapeline.local.sqlite import connect, format_of

_FORMAT: Final = 4
#: Until format 3, `dropped` of a connection was called `refused`.
_RENAME: Final = """
UPDATE lives SET body = CAST(
    json_remove(json_set(CAST(body AS TEXT), '$.dropped', json_extract(CAST(body AS TEXT), '$.refused')), '$.refused') AS BLOB
) WHERE json_type(CAST(body AS TEXT), '$.refused') IS NOT NULL
"""
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS positions (part INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS topics (
    topic TEXT NOT NULL, part INTEGER NOT NULL, begun INTEGER NOT NULL, PRIMARY KEY (topic, part)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lives (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    provider TEXT NOT NULL, feed TEXT NOT NULL, channel TEXT NOT NULL, symbol TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (provider, feed, channel, symbol)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pasts (
    provider TEXT NOT NULL, feed TEXT NOT NULL, channel TEXT NOT NULL, symbol TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (provider, feed, channel, symbol)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS past_connections (name TEXT PRIMARY KEY, at_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pieces (
    provider TEXT NOT NULL, feed TEXT NOT NULL, channel TEXT NOT NULL, symbol TEXT NOT NULL, number INTEGER NOT NULL,
    before_ns INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (provider, feed, channel, symbol, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS intervals (
    provider TEXT NOT NULL, feed TEXT NOT NULL, channel TEXT NOT NULL, symbol TEXT NOT NULL, number INTEGER NOT NULL,
    start_ns INTEGER NOT NULL, end_ns INTEGER, state TEXT NOT NULL, evidence TEXT NOT NULL, first_id INTEGER, last_id INTEGER,
    PRIMARY KEY (provider, feed, channel, symbol, number)
) WITHOUT ROWID;
{_RENAME};
PRAGMA user_version = {_FORMAT};
COMMIT;
"""
#: The formats that introduced the lives of topics, the past of keys, and the name `dropped` in connections.
_WITH_LIVES: Final = 2
_WITH_PASTS: Final = 3
_WITH_DROPPED: Final = 4
_CONNECTION: Final = msgspec.json.Decoder(ConnectionRecord)
_KEY: Final = "provider = ? AND feed = ? AND channel = ? AND symbol = ?"
_LOCK_WAIT_S: Final = 30.0
_ROWS_AT_ONCE: Final = 10_000


class LedgerFile:
    """The ledger in one SQLite file. It is opened at the first call."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> tuple[Facts, dict[int, int]]:
        with self._read() as db:
            if db is None:
                return Facts(), {}
            version = format_of(db, self._path, _FORMAT)
            connection_of = _CONNECTION.decode if version >= _WITH_DROPPED else connection_before
            connections = {name: connection_of(body) for name, body in db.execute("SELECT name, body FROM lives")}
            runs = {Key(*row[:4]): msgspec.json.decode(row[4], type=list[Run]) for row in db.execute("SELECT * FROM runs")}
            pasts: dict[Key, Past] = {}
            past_connections: dict[str, int] = {}
            if version >= _WITH_PASTS:
                pasts = {Key(*row[:4]): msgspec.json.decode(row[4], type=Past) for row in db.execute("SELECT * FROM pasts")}
                past_connections = {name: int(at_ns) for name, at_ns in db.execute("SELECT name, at_ns FROM past_connections")}
            positions = {int(part): int(following) for part, following in db.execute("SELECT part, next FROM positions")}
        return Facts.of(runs, connections, pasts, past_connections), positions

    def pieces(self, key: Key, numbers: range) -> list[Piece]:
        with self._read() as db:
            if db is None or format_of(db, self._path, _FORMAT) < _WITH_PASTS:
                return []
            query = f"SELECT body FROM pieces WHERE {_KEY} AND number >= ? AND number < ? ORDER BY number"  # noqa: S608 our own columns
            rows = db.execute(query, (*key, numbers.start, numbers.stop))
            return [msgspec.json.decode(body, type=Piece) for (body,) in rows]

    def lives(self) -> Lives | None:
        with self._read() as db:
            if db is None or format_of(db, self._path, _FORMAT) < _WITH_LIVES:
                return None
            return {(topic, part): begun for topic, part, begun in db.execute("SELECT topic, part, begun FROM topics")} or None

    def save(self, facts: Facts, changes: Changes, positions: Mapping[int, int], lives: Lives | None = None) -> None:
        with self._written() as db:
            db.executemany("INSERT OR REPLACE INTO topics VALUES (?, ?, ?)", [(*place, begun) for place, begun in (lives or {}).items()])
            db.executemany("DELETE FROM lives WHERE name = ?", [(name,) for name in facts.condensed_connections])
            condensed = [(name, facts.past_connections[name]) for name in facts.condensed_connections if name in facts.past_connections]
            db.executemany("INSERT OR REPLACE INTO past_connections VALUES (?, ?)", condensed)
            if condensed:
                db.execute("DELETE FROM past_connections WHERE at_ns < ?", (min(facts.past_connections.values()),))
            sockets = [(name, msgspec.json.encode(facts.connections[name])) for name in facts.touched_connections]
            db.executemany("INSERT OR REPLACE INTO lives VALUES (?, ?)", sockets)
            runs = [(*key, msgspec.json.encode(facts.runs[key])) for key in facts.touched_runs]
            db.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)", runs)
            pasts = [(*key, msgspec.json.encode(facts.pasts[key])) for key in facts.touched_pasts]
            db.executemany("INSERT OR REPLACE INTO pasts VALUES (?, ?, ?, ?, ?)", pasts)
            db.executemany(f"DELETE FROM pieces WHERE {_KEY} AND number >= ?", [(*key, number) for key, number in facts.restored.items()])  # noqa: S608
            pieces = [(*key, number, piece.before_ns, msgspec.json.encode(piece)) for key, number, piece in pieces_of(facts)]
            db.executemany("INSERT INTO pieces VALUES (?, ?, ?, ?, ?, ?, ?)", pieces)
            ends = [(*key, same + len(changed)) for key, (same, changed) in changes.items()]
            db.executemany(f"DELETE FROM intervals WHERE {_KEY} AND number >= ?", ends)  # noqa: S608
            db.executemany("INSERT OR REPLACE INTO intervals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows_of(changes))
            db.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?)", list(positions.items()))

    def prune(self, archived: Mapping[Key, int], before_ns: int) -> dict[Key, Counter[State]]:
        removed: dict[Key, Counter[State]] = {}
        with self._written() as db:
            for key, number in archived.items():
                old = (*key, number, before_ns)
                states = db.execute(f"SELECT state, count(*) FROM intervals WHERE {_KEY} AND number < ? AND end_ns < ? GROUP BY state", old)  # noqa: S608
                if gone := Counter[State](dict(states.fetchall())):
                    removed[key] = gone
                    db.execute(f"DELETE FROM intervals WHERE {_KEY} AND number < ? AND end_ns < ?", old)  # noqa: S608
                db.execute(f"DELETE FROM pieces WHERE {_KEY} AND before_ns < ?", (*key, before_ns))  # noqa: S608
        return removed

    def forget(self, keys: Iterable[Key]) -> None:
        gone = list(keys)
        with self._written() as db:
            for table in ("runs", "pasts", "pieces"):
                db.executemany(f"DELETE FROM {table} WHERE {_KEY}", gone)  # noqa: S608 our own names

    def keys(self) -> list[Key]:
        with self._read() as db:
            rows = db.execute("SELECT DISTINCT provider, feed, channel, symbol FROM intervals").fetchall() if db is not None else []
        return sorted(Key(*row) for row in rows)

    def intervals(self, symbols: Collection[str] = (), states: Collection[State] = ()) -> pa.Table:
        wanted = [(name, list[str](some)) for name, some in (("symbol", symbols), ("state", states)) if some]
        where = " AND ".join(f"{name} IN ({', '.join('?' * len(some))})" for name, some in wanted) or "true"
        query = f"SELECT {', '.join(INTERVALS.names)} FROM intervals WHERE {where} ORDER BY provider, feed, symbol, channel, number"  # noqa: S608
        values = [value for _, some in wanted for value in some]
        batches: list[pa.RecordBatch] = []
        with self._read() as db:
            rows = db.execute(query, values) if db is not None else None
            while rows is not None and (some := rows.fetchmany(_ROWS_AT_ONCE)):
                columns = [pa.array(column, field.type) for column, field in zip(zip(*some, strict=True), INTERVALS, strict=True)]
                batches.append(pa.RecordBatch.from_arrays(columns, schema=INTERVALS))
        return pa.Table.from_batches(batches, INTERVALS)

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection | None]:
        """A connection for reading, or None if nothing has been stored yet."""
        try:
            if not self._path.exists():
                yield None
                return
            with closing(connect(self._path, "ro", wait_s=_LOCK_WAIT_S)) as db:
                db.execute("BEGIN")
                yield db if format_of(db, self._path, _FORMAT) else None
        except sqlite3.OperationalError as error:  # the disk or another process is the cause: the file itself may be intact
            raise DiskProblem(
                f"The ledger {self._path} cannot be read for now: {error}. Nothing of it is lost. Leave it there. Free disk space, or make "
                "it readable. A running stage retries."
            ) from error
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        """A transaction that ends with the block."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(connect(self._path, wait_s=_LOCK_WAIT_S)) as db:
                if format_of(db, self._path, _FORMAT) < _FORMAT:
                    db.execute("PRAGMA journal_mode = WAL")
                    db.executescript(_SCHEMA)
                db.execute("BEGIN")
                with db:
                    yield db
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                raise self._damaged(error) from error
            raise DiskProblem(
                f"The ledger {self._path} cannot be written: {error}. The records stay in the stream. Free disk space, or make the folder "
                "writable. A running stage retries."
            ) from error

    def _damaged(self, error: sqlite3.Error) -> DiskProblem:
        return DiskProblem(
            f"The ledger {self._path} is damaged: {error}. Restore it from a backup. If you have none, move it away. Tapeline then "
            "rebuilds it from the raw topic, as far as that reaches back. The proof for earlier days is lost."
        )
