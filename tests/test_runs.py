"""The record of runs: two runs of one job never overlap, a killed one is seen and taken up, and every process sees the same."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from made import NOON
from set_clock import SetClock
from tapeline.errors import DiskProblem, NewerData
from tapeline.local.machine import process_space
from tapeline.orchestration.database import VERSIONS, Database, SqliteDatabase
from tapeline.orchestration.postgres import PostgresDatabase
from tapeline.orchestration.runs import CLAIM_NS, Claim, Runs
from tapeline.records import NS_PER_S
from tapeline.secret import NO_SECRET
from tapeline.stores.postgres.database import Database as Postgres


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture(params=["file", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, clock: SetClock) -> Database:
    """Where the runs are kept."""
    if request.param == "file":
        return SqliteDatabase(tmp_path / "data" / "runs.sqlite", clock)
    return PostgresDatabase(Postgres(request.getfixturevalue("database"), NO_SECRET), clock)


@pytest.fixture
def runs(kept: Database) -> Runs:
    return Runs(kept)


def claim(job: str = "reconcile", thing: str = "2026-11-28", **more: Any) -> Claim:
    return Claim(job=job, thing=thing, **{"arguments": {"day": thing}, "origin": "schedule", "process": "a host, process 7", **more})


def test_a_run_is_recorded_from_its_beginning_to_its_end(runs: Runs, clock: SetClock) -> None:
    run = runs.claim(claim(due_ns=NOON - 5, attempt=2, origin="prefect", origin_id="x1", origin_url="http://127.0.0.1:4200/x1"))
    assert run is not None
    clock.ns += NS_PER_S
    assert runs.renew(run, {"pages": 3})
    (seen,) = runs.of("reconcile")
    assert (seen.state, seen.progress, seen.ended_ns) == ("running", {"pages": 3}, None)
    clock.ns += NS_PER_S
    assert runs.end(run, "failed", exit_status=75, result={"rows": 9}, error="The provider is away.", retry_ns=NOON + 60)
    (seen,) = runs.of()
    assert (seen.job, seen.thing, seen.due_ns, seen.arguments) == ("reconcile", "2026-11-28", NOON - 5, {"day": "2026-11-28"})
    assert (seen.origin, seen.origin_id, seen.origin_url, seen.attempt) == ("prefect", "x1", "http://127.0.0.1:4200/x1", 2)
    assert (seen.started_ns, seen.ended_ns, seen.state, seen.exit_status) == (NOON, NOON + 2 * NS_PER_S, "failed", 75)
    assert (seen.result, seen.error, seen.retry_ns) == ({"rows": 9}, "The provider is away.", NOON + 60)
    assert not runs.end(run, "succeeded", exit_status=0, result={}), "an end is final"


def test_the_oldest_runs_go(runs: Runs, clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapeline.orchestration.runs.KEPT", 3)
    for due_ns in range(6):
        clock.ns += 1
        run = runs.claim(claim(due_ns=due_ns))
        assert run is not None
        runs.end(run, "succeeded", exit_status=0, result={})
    runs.claim(claim(job="compact"))
    assert [seen.due_ns for seen in runs.of("reconcile")] == [5, 4, 3, 2]
    assert len(runs.of("compact")) == 1


def test_two_runs_of_the_same_thing_never_overlap_and_of_others_do(runs: Runs) -> None:
    first = runs.claim(claim())
    assert first is not None
    assert runs.claim(claim(origin="person")) is None
    assert runs.claim(claim(thing="2026-11-27")) is not None
    assert runs.claim(claim(job="compact")) is not None
    runs.end(first, "succeeded", exit_status=0, result={})
    assert runs.claim(claim()) is not None


def test_a_run_that_stops_renewing_was_killed_and_its_thing_is_free(runs: Runs, clock: SetClock) -> None:
    first = runs.claim(claim())
    assert first is not None
    clock.ns += CLAIM_NS
    assert runs.claim(claim()) is None, "not a moment too early"
    assert runs.renew(first, {})
    clock.ns += CLAIM_NS + 1
    (seen,) = runs.of()
    assert (seen.state, seen.ended_ns, seen.error) == ("killed", NOON + CLAIM_NS, "The process of this run was killed.")
    assert not runs.renew(first, {}), "who wakes up again is told to stop"
    assert not runs.end(first, "succeeded", exit_status=0, result={})
    assert runs.claim(claim(attempt=2)) is not None


#: The database that the arguments name, in a process of its own.
_OPEN = """
import sys, time
from pathlib import Path
from tapeline.orchestration.database import SqliteDatabase
from tapeline.orchestration.postgres import PostgresDatabase
from tapeline.orchestration.runs import Claim, Runs
from tapeline.secret import NO_SECRET
from tapeline.stores.postgres.database import Database
kind, place = sys.argv[1:]
database = SqliteDatabase(Path(place), time.time_ns) if kind == "file" else PostgresDatabase(Database(place, NO_SECRET))
"""


@pytest.fixture(params=["file", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The arguments that name a database to another process."""
    return request.param, str(tmp_path / "runs.sqlite") if request.param == "file" else request.getfixturevalue("database")


def test_a_process_of_this_machine_that_is_gone_need_not_be_waited_for(runs: Runs) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        mine = runs.claim(claim(pid=process.pid, space=process_space()))
        other = runs.claim(claim(thing="2026-11-27", pid=process.pid, space="another machine"))
        assert runs.claim(claim()) is None
        process.kill()
        process.wait()
        assert runs.claim(claim()) is not None
        assert runs.claim(claim(thing="2026-11-27")) is None
    assert {one.id: one.state for one in runs.of() if one.id in (mine, other)} == {mine: "killed", other: "running"}


def test_of_many_processes_that_claim_at_once_one_gets_it(place: tuple[str, str]) -> None:
    claims = "print(Runs(database).claim(Claim(job='repair', thing='', arguments={}, origin='schedule', process='p')) is not None)"
    command = [sys.executable, "-c", _OPEN + claims, *place]
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip(), range(8)))
    assert sorted(said) == ["False"] * 7 + ["True"]


def test_a_process_that_is_killed_amid_a_claim_leaves_no_half_of_it(place: tuple[str, str]) -> None:
    program = (
        "with database.transaction() as kept:\n"
        "    kept.rows('INSERT INTO tapeline_jobs (job, since_ns, paused) VALUES (?, ?, ?)', ('half', 1, 1))\n"
        "    print('in', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", _OPEN + program, *place], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        process.send_signal(signal.SIGKILL)
    kind, where = place
    found = Runs(SqliteDatabase(Path(where), SetClock()) if kind == "file" else PostgresDatabase(Postgres(where, NO_SECRET)))
    assert found.paused() == set()
    assert found.claim(claim()) is not None


def test_machines_whose_clocks_differ_share_the_clock_of_postgresql(database: str) -> None:
    before_ns = time.time_ns()
    run = Runs(PostgresDatabase(Postgres(database, NO_SECRET))).claim(claim())
    (seen,) = Runs(PostgresDatabase(Postgres(database, NO_SECRET))).of()
    assert seen.id == run
    assert before_ns - NS_PER_S < seen.started_ns < time.time_ns() + NS_PER_S  # the server of the test runs on this machine


def test_a_file_of_the_version_before_is_read(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "runs.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(VERSIONS[0])
        db.execute("PRAGMA user_version = 1")
        db.execute(
            "INSERT INTO runs VALUES (7, 'compact', '2026-11-28', NULL, '{}', 'person', '', '', 1, 'p', 5, 5, 6, 'succeeded', 0, NULL,"
            " '{}', '{\"rows\": 3}', '')"
        )
        db.execute("INSERT INTO jobs VALUES ('compact', 5, 1)")
    runs = Runs(SqliteDatabase(path, clock))
    (seen,) = runs.of()
    assert (seen.id, seen.job, seen.result, runs.paused()) == (7, "compact", {"rows": 3}, {"compact"})
    assert runs.claim(claim()) == 8


def test_a_job_is_known_from_the_moment_it_was_first_met_and_may_be_paused(runs: Runs, clock: SetClock) -> None:
    assert runs.since("compact") == NOON
    clock.ns += 5
    assert runs.since("compact") == NOON
    runs.pause("compact", paused=True)
    runs.pause("prune", paused=True)
    assert runs.paused() == {"compact", "prune"}
    runs.pause("prune", paused=False)
    assert runs.paused() == {"compact"}
    assert runs.since("compact") == NOON


def test_the_last_look_of_any_scheduler_is_known(runs: Runs, clock: SetClock) -> None:
    assert runs.last_look_age_ns() is None
    runs.looked("one")
    clock.ns += 7
    runs.looked("two")
    clock.ns += 4
    assert runs.last_look_age_ns() == 4


def test_who_only_reads_makes_nothing(runs: Runs, kept: Database, tmp_path: Path) -> None:
    assert (runs.of(), runs.paused(), runs.last_look_age_ns()) == ([], set(), None)
    assert not kept.exists()
    assert not (tmp_path / "data").exists()


def test_a_file_of_a_newer_tapeline_and_a_damaged_one_are_named(tmp_path: Path, clock: SetClock) -> None:
    runs = Runs(SqliteDatabase(tmp_path / "data" / "runs.sqlite", clock))
    runs.since("compact")
    path = tmp_path / "data" / "runs.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(NewerData, match="newer Tapeline"):
        runs.claim(claim())
    path.write_bytes(b"no database at all, but long enough to be read as the head of one" * 20)
    (tmp_path / "data" / "runs.sqlite-wal").unlink(missing_ok=True)
    with pytest.raises(DiskProblem, match=r"runs.sqlite: .*not changed"):
        runs.claim(claim())
