"""The record of every run of a job, whoever started it: one row a run, which also keeps two runs apart.

A run claims its job and the thing that it works on. While it runs, it renews its claim every few seconds. If a claim is not renewed, its
process was killed: the next claim ends that run as `killed` and takes its place. It need not wait if it sees that the process is gone.
All changes are single transactions, so any number of processes may use the record: those of one machine if it is a file, those of all
machines if it is in PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from tapeline.local.machine import is_gone
from tapeline.orchestration.database import Database, Transaction
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
    #: What runs it, for people.
    process: str
    #: Its process id, and the space in which that is valid (see `local.machine`).
    pid: int = 0
    space: str = ""


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
    """The record of the runs in a database. Its methods raise what the database raises: Unavailable, DiskProblem, Refused, NewerData."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def claim(self, claim: Claim) -> int | None:
        """Record the beginning of a run and return its id.

        Return None if a run of the same job and thing is under way, or if this attempt for the moment `due_ns` was made already: then
        another scheduler was faster. An earlier run that has stopped renewing its claim ends as `killed`."""
        with self.database.transaction() as kept:
            _end_killed(kept)
            row = (claim.job, claim.thing, claim.due_ns, _text(claim.arguments), claim.origin, claim.origin_id, claim.origin_url)
            begun = kept.rows(
                "INSERT INTO tapeline_runs (job, thing, due_ns, arguments, origin, origin_id, origin_url, attempt, process, pid, space,"
                " started_ns, renewed_ns, state, progress, result, error) VALUES"
                " (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'running', '{}', '{}', '')"
                " ON CONFLICT DO NOTHING RETURNING id",
                (*row, claim.attempt, claim.process, claim.pid, claim.space, kept.now_ns, kept.now_ns),
            )
            if not begun:
                return None
            kept.rows(
                "DELETE FROM tapeline_runs WHERE job = ? AND started_ns < (SELECT started_ns FROM tapeline_runs WHERE job = ?"
                " ORDER BY started_ns DESC LIMIT 1 OFFSET ?) AND state != 'running'",
                (claim.job, claim.job, KEPT),
            )
            return int(begun[0][0])

    def renew(self, run: int, progress: Mapping[str, Any]) -> bool:
        """Renew a run's claim. Return False if the run has lost it: then it must stop."""
        with self.database.transaction() as kept:
            statement = "UPDATE tapeline_runs SET renewed_ns = ?, progress = ? WHERE id = ? AND state = 'running' RETURNING id"
            return bool(kept.rows(statement, (kept.now_ns, _text(progress), run)))

    def end(
        self, run: int, state: State, *, exit_status: int | None, result: Mapping[str, Any], error: str = "", retry_ns: int | None = None
    ) -> bool:
        """Record the end of a run. Return False if it was ended before, as a killed one is."""
        with self.database.transaction() as kept:
            done = kept.rows(
                "UPDATE tapeline_runs SET ended_ns = ?, state = ?, exit_status = ?, retry_ns = ?, result = ?, error = ? WHERE id = ?"
                " AND state = 'running' RETURNING id",
                (kept.now_ns, state, exit_status, retry_ns, _text(result), error, run),
            )
            return bool(done)

    def of(self, job: str | None = None, limit: int = 50) -> list[Run]:
        """Return the latest runs, of one job or of all, the latest first."""
        if not self.database.exists():
            return []
        some, values = ("WHERE job = ? ", (job, limit)) if job is not None else ("", (limit,))
        with self.database.transaction() as kept:
            _end_killed(kept)
            rows = kept.rows(f"SELECT {_COLUMNS} FROM tapeline_runs {some}ORDER BY started_ns DESC, id DESC LIMIT ?", values)  # noqa: S608 fixed
        return [_run(row) for row in rows]

    def done(self, job: str, thing: str, due_ns: int) -> Run | None:
        """Return the run of a job over a thing that succeeded for a moment of the schedule (ns, UTC), or None."""
        if not self.database.exists():
            return None
        with self.database.transaction() as kept:
            rows = kept.rows(
                f"SELECT {_COLUMNS} FROM tapeline_runs WHERE job = ? AND thing = ? AND due_ns = ? AND state = 'succeeded'",  # noqa: S608 fixed
                (job, thing, due_ns),
            )
        return _run(rows[0]) if rows else None

    def since(self, job: str) -> int:
        """Return when a scheduler first met the job (ns, UTC). It is not due for any earlier moment."""
        with self.database.transaction() as kept:
            kept.rows(_MEET, (job, kept.now_ns))
            return int(kept.rows("SELECT since_ns FROM tapeline_jobs WHERE job = ?", (job,))[0][0])

    def pause(self, job: str, *, paused: bool) -> None:
        """Pause or resume a job's schedule. A person may still run it."""
        with self.database.transaction() as kept:
            kept.rows(_MEET, (job, kept.now_ns))
            kept.rows("UPDATE tapeline_jobs SET paused = ? WHERE job = ?", (int(paused), job))

    def paused(self) -> set[str]:
        """Return the names of the paused jobs."""
        if not self.database.exists():
            return set()
        with self.database.transaction() as kept:
            return {str(job) for (job,) in kept.rows("SELECT job FROM tapeline_jobs WHERE paused = 1")}

    def looked(self, scheduler: str) -> None:
        """Record that a scheduler is alive."""
        with self.database.transaction() as kept:
            kept.rows(
                "INSERT INTO tapeline_schedulers (scheduler, at_ns) VALUES (?, ?)"
                " ON CONFLICT (scheduler) DO UPDATE SET at_ns = excluded.at_ns",
                (scheduler, kept.now_ns),
            )

    def last_look_age_ns(self) -> int | None:
        """Return how long ago (ns) a scheduler last looked for due jobs, or None if none ever did."""
        if not self.database.exists():
            return None
        with self.database.transaction() as kept:
            found = kept.rows("SELECT max(at_ns) FROM tapeline_schedulers")[0][0]
            return None if found is None else kept.now_ns - int(found)


_MEET: Final = "INSERT INTO tapeline_jobs (job, since_ns, paused) VALUES (?, ?, 0) ON CONFLICT DO NOTHING"


def _end_killed(kept: Transaction) -> None:
    running = kept.rows("SELECT id, pid, space, renewed_ns FROM tapeline_runs WHERE state = 'running'")
    for run, pid, space, renewed_ns in running:
        if renewed_ns < kept.now_ns - CLAIM_NS or is_gone(pid, space):
            kept.rows(
                "UPDATE tapeline_runs SET state = 'killed', ended_ns = renewed_ns, retry_ns = ?,"
                " error = 'The process of this run was killed.' WHERE id = ? AND state = 'running' AND renewed_ns = ?",
                (kept.now_ns, run, renewed_ns),
            )


def _text(values: Mapping[str, Any]) -> str:
    return msgspec.json.encode(values).decode()


def _run(row: tuple[Any, ...]) -> Run:
    values = list(row)
    for at in (4, 16, 17):
        values[at] = msgspec.json.decode(values[at])
    return Run(*values)
