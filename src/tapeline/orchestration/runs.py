"""The record of every run of a job, whoever started it: one row a run, in one SQLite file, which also keeps two runs apart.

A run claims its job and the thing that it works on. While it runs, it renews its claim every few seconds. If a claim is not renewed, its
process was killed: the next claim ends that run as `killed` and takes its place. All changes are single transactions, so any number of
processes of one machine may use the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec

from tapeline.errors import DiskProblem, Unavailable
from tapeline.local.sqlite import connect, format_of, log_ahead
from tapeline.records import NS_PER_S

#: `stopped`: by a person or with the scheduler, before it was done. `killed`: its process ended without a word.
State = Literal["running", "succeeded", "failed", "stopped", "killed"]
#: Who started a run.
Origin = Literal["schedule", "person", "prefect", "airflow"]

#: A run that has not renewed its claim for so long was killed.
CLAIM_NS: Final = 30 * NS_PER_S
#: A run that is told to stop and goes on for so long is ended by force.
GRACE_S: Final = 30.0
#: How many of a job's latest runs are kept.
KEPT: Final = 5_000
#: How often a run renews its claim.
RENEW_S: Final = 5.0
_FORMAT: Final = 1
_SCHEMA: Final = """
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
"""
_COLUMNS: Final = (
    "id, job, thing, due_ns, arguments, origin, origin_id, origin_url, attempt, process, started_ns, renewed_ns, ended_ns, state,"
    " exit_status, retry_ns, progress, result, error"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A run that is about to begin. `job` and `thing` are what no other run may work on meanwhile."""

    job: str
    thing: str
    #: The moment (ns, UTC) of the schedule that the run is for; None if a person asked for it.
    due_ns: int | None = None
    arguments: Mapping[str, Any]
    origin: Origin
    #: The other system's own name and address of this run.
    origin_id: str = ""
    origin_url: str = ""
    attempt: int = 1
    #: What runs it: host and process.
    process: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run. Times are ns, UTC."""

    id: int
    job: str
    thing: str
    due_ns: int | None
    arguments: dict[str, Any]
    origin: Origin
    origin_id: str
    origin_url: str
    attempt: int
    process: str
    started_ns: int
    renewed_ns: int
    ended_ns: int | None
    state: State
    exit_status: int | None
    #: When the run is due again, if its job has retries left; None if a retry cannot help.
    retry_ns: int | None
    progress: dict[str, Any]
    result: dict[str, Any]
    error: str


class Runs:
    """The file `runs.sqlite`. Its methods raise Unavailable if another process holds the file for long, DiskProblem and NewerData."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._path, self._clock = path, clock

    def claim(self, claim: Claim) -> int | None:
        """Record the beginning of a run and return its id.

        Return None if a run of the same job and thing is under way, or if this attempt for the moment `due_ns` was made already: then
        another scheduler was faster. An earlier run that has stopped renewing its claim ends as `killed`."""
        now_ns = self._clock()
        with self._transaction() as db:
            self._end_killed(db, now_ns)
            row = (claim.job, claim.thing, claim.due_ns, _text(claim.arguments), claim.origin, claim.origin_id, claim.origin_url)
            try:
                cursor = db.execute(
                    "INSERT INTO runs (job, thing, due_ns, arguments, origin, origin_id, origin_url, attempt, process, started_ns,"
                    " renewed_ns, state, progress, result, error) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'running', '{}', '{}', '')",
                    (*row, claim.attempt, claim.process, now_ns, now_ns),
                )
            except sqlite3.IntegrityError:
                return None
            db.execute(
                "DELETE FROM runs WHERE job = ? AND started_ns < (SELECT started_ns FROM runs WHERE job = ? ORDER BY started_ns DESC"
                " LIMIT 1 OFFSET ?) AND state != 'running'",
                (claim.job, claim.job, KEPT),
            )
            return cast("int", cursor.lastrowid)

    def renew(self, run: int, progress: Mapping[str, Any]) -> bool:
        """Renew a run's claim. Return False if the run has lost it: then it must stop."""
        with self._transaction() as db:
            values = (self._clock(), _text(progress), run)
            return db.execute("UPDATE runs SET renewed_ns = ?, progress = ? WHERE id = ? AND state = 'running'", values).rowcount == 1

    def end(
        self, run: int, state: State, *, exit_status: int | None, result: Mapping[str, Any], error: str = "", retry_ns: int | None = None
    ) -> bool:
        """Record the end of a run. Return False if it was ended before, as a killed one is."""
        with self._transaction() as db:
            values = (self._clock(), state, exit_status, retry_ns, _text(result), error, run)
            done = db.execute(
                "UPDATE runs SET ended_ns = ?, state = ?, exit_status = ?, retry_ns = ?, result = ?, error = ? WHERE id = ?"
                " AND state = 'running'",
                values,
            )
            return done.rowcount == 1

    def of(self, job: str | None = None, limit: int = 50) -> list[Run]:
        """Return the latest runs, of one job or of all, the latest first."""
        if not self._path.exists():
            return []
        with self._transaction() as db:
            self._end_killed(db, self._clock())
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM runs WHERE ? IS NULL OR job = ? ORDER BY started_ns DESC, id DESC LIMIT ?",  # noqa: S608 fixed
                (job, job, limit),
            ).fetchall()
        return [_run(row) for row in rows]

    def since(self, job: str) -> int:
        """Return when the scheduler first met the job (ns, UTC). It is not due for any earlier moment."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO jobs VALUES (?, ?, 0)", (job, self._clock()))
            return int(db.execute("SELECT since_ns FROM jobs WHERE job = ?", (job,)).fetchone()[0])

    def pause(self, job: str, *, paused: bool) -> None:
        """Pause or resume a job's schedule. A person may still run it."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO jobs VALUES (?, ?, 0)", (job, self._clock()))
            db.execute("UPDATE jobs SET paused = ? WHERE job = ?", (int(paused), job))

    def paused(self) -> set[str]:
        """Return the names of the paused jobs."""
        if not self._path.exists():
            return set()
        with self._transaction() as db:
            return {job for (job,) in db.execute("SELECT job FROM jobs WHERE paused = 1")}

    def looked(self, scheduler: str) -> None:
        """Record that a scheduler is alive."""
        with self._transaction() as db:
            db.execute("REPLACE INTO looks VALUES (?, ?)", (scheduler, self._clock()))

    def last_look_ns(self) -> int | None:
        """Return when a scheduler last looked for due jobs (ns, UTC), or None if none ever did."""
        if not self._path.exists():
            return None
        with self._transaction() as db:
            found = db.execute("SELECT max(at_ns) FROM looks").fetchone()[0]
        return None if found is None else int(found)

    def _end_killed(self, db: sqlite3.Connection, now_ns: int) -> None:
        db.execute(
            "UPDATE runs SET state = 'killed', ended_ns = renewed_ns, retry_ns = ?, error = 'The process of this run was killed.'"
            " WHERE state = 'running' AND renewed_ns < ?",
            (now_ns, now_ns - CLAIM_NS),
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with closing(connect(self._path, wait_s=10.0)) as db:
                if format_of(db, self._path, _FORMAT) < _FORMAT:
                    log_ahead(db)
                db.execute("BEGIN IMMEDIATE")
                try:
                    if format_of(db, self._path, _FORMAT) < _FORMAT:
                        for statement in filter(None, map(str.strip, _SCHEMA.split(";"))):
                            db.execute(statement)
                        db.execute(f"PRAGMA user_version = {_FORMAT}")
                    yield db
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


def _text(values: Mapping[str, Any]) -> str:
    return msgspec.json.encode(values).decode()


def _run(row: tuple[Any, ...]) -> Run:
    values = list(row)
    for at in (4, 16, 17):
        values[at] = msgspec.json.decode(values[at])
    return Run(*values)
