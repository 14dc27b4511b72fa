"""Where the runs of jobs and the alerts are kept: a file of this machine, or PostgreSQL if that is a store.

Both run the same statements, in the part of SQL that they share, with `?` for each value.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tapeline.errors import DiskProblem, Unavailable
from tapeline.local.sqlite import connect, format_of, log_ahead

Value = int | str | None

#: For each version of the file, the statements that make it out of the one before.
VERSIONS: Final = (
    """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    job TEXT NOT NULL,
    thing TEXT NOT NULL,
    due_ns INTEGER,
    arguments TEXT NOT NULL,
    origin TEXT NOT NULL,
    origin_id TEXT NOT NULL,
    origin_url TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    process TEXT NOT NULL,
    started_ns INTEGER NOT NULL,
    renewed_ns INTEGER NOT NULL,
    ended_ns INTEGER,
    state TEXT NOT NULL,
    exit_status INTEGER,
    retry_ns INTEGER,
    progress TEXT NOT NULL,
    result TEXT NOT NULL,
    error TEXT NOT NULL
);
CREATE UNIQUE INDEX one_at_a_time ON runs (job, thing) WHERE state = 'running';
CREATE UNIQUE INDEX one_attempt ON runs (job, thing, due_ns, attempt) WHERE due_ns IS NOT NULL;
CREATE INDEX by_job ON runs (job, started_ns);
CREATE TABLE jobs (job TEXT PRIMARY KEY, since_ns INTEGER NOT NULL, paused INTEGER NOT NULL);
CREATE TABLE looks (scheduler TEXT PRIMARY KEY, at_ns INTEGER NOT NULL);
""",
    """
ALTER TABLE runs RENAME TO tapeline_runs;
ALTER TABLE tapeline_runs ADD COLUMN pid INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tapeline_runs ADD COLUMN space TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs RENAME TO tapeline_jobs;
ALTER TABLE looks RENAME TO tapeline_schedulers;
CREATE TABLE tapeline_alerts (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    raised_ns INTEGER NOT NULL,
    seen_ns INTEGER NOT NULL,
    resolved_ns INTEGER,
    text TEXT NOT NULL,
    runbook TEXT NOT NULL,
    receivers TEXT NOT NULL,
    sent TEXT NOT NULL
);
CREATE UNIQUE INDEX one_alert ON tapeline_alerts (name) WHERE resolved_ns IS NULL;
""",
)


class Transaction(Protocol):
    """A transaction that is open."""

    @property
    def now_ns(self) -> int:
        """The moment of the transaction (ns, UTC), by the clock that all users of the database share."""

    def rows(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Run a statement, and return the rows that it gives, if any."""


class Database(Protocol):
    """The tables `tapeline_runs`, `tapeline_jobs`, `tapeline_schedulers` and `tapeline_alerts`, made when they are first needed."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """A transaction that commits at its end, and changes nothing if it raises. Transactions that change the same rows wait for each
        other. Raises Unavailable, DiskProblem, Refused and NewerData."""

    def exists(self) -> bool:
        """Whether anything was ever written. A reader need not make the tables. Raises as `transaction`."""


@dataclass(frozen=True, slots=True)
class _SqliteTransaction:
    db: sqlite3.Connection
    now_ns: int

    def rows(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        return self.db.execute(statement, values).fetchall()


class SqliteDatabase:
    """The file `runs.sqlite` in the data folder, for all processes of one machine. `clock`: ns, UTC."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._path, self._clock = path, clock

    def exists(self) -> bool:
        return self._path.exists()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with closing(connect(self._path, wait_s=10.0)) as db:
                if format_of(db, self._path, len(VERSIONS)) == 0:
                    log_ahead(db)
                db.execute("BEGIN IMMEDIATE")
                try:
                    self._migrate(db)
                    yield _SqliteTransaction(db, self._clock())
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error) or "busy" in str(error):
                raise Unavailable(f"Another process has locked {self._path} for over 10 s. Wait until it is done, or stop it.") from error
            raise DiskProblem(
                f"{self._path}: {error}. The record of the runs was not changed. Free disk space or make the folder writable."
            ) from error

    def _migrate(self, db: sqlite3.Connection) -> None:
        version = format_of(db, self._path, len(VERSIONS))
        for text in VERSIONS[version:]:
            for statement in filter(None, map(str.strip, text.split(";"))):
                db.execute(statement)
        if version < len(VERSIONS):
            db.execute(f"PRAGMA user_version = {len(VERSIONS)}")
