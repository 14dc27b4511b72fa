"""`tapeline jobs`: a person lists the jobs, runs one, sees what it did, and pauses it; a scheduler alone runs what is due."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from made import NOON, ticks
from tapeline.cli import app
from tapeline.errors import ConfigError
from tapeline.orchestration.database import SqliteDatabase
from tapeline.orchestration.runs import Runs
from tapeline.providers.registry import identity
from tapeline.records import NS_PER_S, TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake
from waiting import until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration with a lake of one tick, and a job that was due in each minute of the last half hour. No provider answers."""
    Lake(tmp_path / "data" / "lake", identity).write(Chunk.dense(TICKS_TOPIC, 0, 0, ticks({"ts_ns": NOON})))
    jobs = '[[jobs]]\njob = "vacuum"\nevery = "1m"\ncatch_up = "all"\n[[jobs]]\njob = "compact"\ntimezone = "America/New_York"\n'
    provider = '[[providers]]\nname = "binance"\nsymbols = ["BTCUSDT"]\nchannels = ["trade"]\nrest_url = "http:/nowhere"\n'
    long_ago = SqliteDatabase(tmp_path / "data" / "runs.sqlite", lambda: time.time_ns() - 1_800 * NS_PER_S)
    Runs(long_ago).since("vacuum")
    (tmp_path / "tapeline.toml").write_text(f'data_dir = "{tmp_path / "data"}"\n{jobs}{provider}')
    return tmp_path


def ask(folder: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["jobs", *words, "--config", str(folder / "tapeline.toml")])


def lines(folder: Path, *words: str) -> list[dict[str, Any]]:
    answer = ask(folder, *words, "--format", "json")
    assert answer.exit_code == 0, answer.output
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_the_jobs_are_listed_with_their_schedule_and_their_last_run(folder: Path) -> None:
    listed = {row["job"]: row for row in lines(folder, "list")}
    assert list(listed) == ["vacuum", "compact", "reconcile", "symbols", "check_lake"]
    assert (listed["vacuum"]["schedule"], listed["vacuum"]["result"]) == ("every 60 s", "never ran")
    assert (listed["compact"]["schedule"], listed["compact"]["timezone"]) == ("10 1 * * *", "America/New_York")
    assert ask(folder, "run", "vacuum").exit_code == 0
    assert {row["job"]: row["result"] for row in lines(folder, "list")}["vacuum"] == "succeeded"
    assert ask(folder, "list").exit_code == 0


def test_without_a_further_word_the_jobs_are_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    listed = CliRunner().invoke(app, ["jobs"])
    assert listed.exit_code == 0
    assert listed.stdout == ask(folder, "list").stdout
    assert "check_lake" in listed.stdout


def test_a_run_says_what_it_did_and_is_in_the_history(folder: Path) -> None:
    done = json.loads(ask(folder, "run", "compact", "--day", "2026-01-05", "--format", "json").stdout)
    assert (done["job"], done["state"], done["exit_status"], done["result"]["day"]) == ("compact", "succeeded", 0, "2026-01-05")
    (seen,) = lines(folder, "history")
    assert (seen["job"], seen["of"], seen["by"], seen["attempt"], seen["state"]) == ("compact", "2026-01-05", "person", "1", "succeeded")
    assert lines(folder, "history", "vacuum") == []


def test_another_scheduler_is_told_which_runs_are_due(folder: Path) -> None:
    assert {json.loads(line)["job"] for line in ask(folder, "due").stdout.splitlines()} <= {"vacuum"}, "it repeats all the time"
    with closing(sqlite3.connect(folder / "data" / "runs.sqlite")) as db:
        three_days_ago = time.time_ns() - 3 * 86_400 * 10**9
        db.execute("UPDATE tapeline_jobs SET since_ns = ? WHERE job = 'compact'", (three_days_ago,))
        db.commit()
    due = [row for row in map(json.loads, ask(folder, "due").stdout.splitlines()) if row["job"] == "compact"]
    assert [row["attempt"] for row in due] == [1, 1, 1]
    assert len({row["of"] for row in due}) == 3
    first = due[0]
    done = ask(folder, "run", "compact", "--by", "prefect", "--due-ns", str(first["due_ns"]), "--format", "json")
    assert json.loads(done.stdout)["result"]["day"] == first["of"]
    left = [row["due_ns"] for row in map(json.loads, ask(folder, "due").stdout.splitlines()) if row["job"] == "compact"]
    assert left == [row["due_ns"] for row in due[1:]]
    assert ask(folder, "pause", "compact").exit_code == 0
    assert not [line for line in ask(folder, "due").stdout.splitlines() if json.loads(line)["job"] == "compact"]


def test_the_list_says_which_arguments_a_job_takes_and_how_long_after_its_moment_it_is_late(folder: Path) -> None:
    path = folder / "tapeline.toml"
    path.write_text(path.read_text() + '[[jobs]]\njob = "symbols"\nschedule = "30 6 * * *"\ndeadline = "08:00"\n')
    listed = {row["job"]: row for row in lines(folder, "list")}
    assert set(listed["reconcile"]["schema"]["properties"]) == {"provider", "symbols", "channels", "day", "revised"}
    assert listed["symbols"]["deadline_s"] == 5_400.0
    assert listed["reconcile"]["deadline_s"] is None


def test_arguments_replace_the_configured_ones_and_wrong_ones_are_named(folder: Path) -> None:
    done = ask(folder, "run", "compact", "--arguments", '{"day": "2026-01-05"}', "--format", "json")
    assert json.loads(done.stdout)["result"]["day"] == "2026-01-05"
    for wrong, says in (("{", "is not JSON"), ("[1]", "is not an object"), ('{"dya": "x"}', "The arguments of compact are: day.")):
        answer = ask(folder, "run", "compact", "--arguments", wrong)
        assert isinstance(answer.exception, ConfigError)
        assert says in str(answer.exception)


def test_a_run_that_fails_ends_with_the_status_of_its_error_and_says_why(folder: Path) -> None:
    failed = ask(folder, "run", "reconcile", "--day", "2026-01-05", "--by", "airflow", "--by-id", "dag-7")
    assert failed.exit_code in (69, 77, 78), failed.output
    (seen,) = lines(folder, "history", "reconcile")
    assert (seen["state"], seen["by"]) == ("failed", "airflow")
    assert seen["error"]


@pytest.mark.parametrize("words", [("run", "vacum"), ("pause", "vacum"), ("history", "vacum"), ("run", "compact", "--day", "monday")])
def test_a_wrong_name_or_day_is_named(folder: Path, words: tuple[str, ...]) -> None:
    wrong = ask(folder, *words)
    assert isinstance(wrong.exception, ConfigError)
    assert "The jobs are: vacuum, compact, reconcile," in str(wrong.exception) or "'monday'" in str(wrong.exception)


def last_look_ns(runs: Runs) -> int:
    age_ns = runs.last_look_age_ns()
    return 0 if age_ns is None else time.time_ns() - age_ns


def no_new_run_within_five_seconds(runs: Runs) -> bool:
    count, from_ns = len(runs.of("vacuum", 1_000)), time.time_ns()
    until(lambda: last_look_ns(runs) > from_ns + 5 * 10**9, "it looks for five seconds more")
    return len(runs.of("vacuum", 1_000)) == count


def test_the_scheduler_runs_what_is_due_and_rests_while_it_is_paused(folder: Path) -> None:
    runs = Runs(SqliteDatabase(folder / "data" / "runs.sqlite", time.time_ns))
    command = [sys.executable, "-m", "tapeline", "schedule", "--config", str(folder / "tapeline.toml")]
    with ExitStack() as ends:
        second = ends.enter_context(subprocess.Popen(command, env={**os.environ, "TAPELINE_LOG": f"supervised {os.getpid()}"}))
        ends.callback(second.kill)  # where the test fails, nothing waits for what goes on
        process = ends.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        ends.callback(process.kill)
        until(lambda: sum(one.state == "succeeded" for one in runs.of("vacuum")) >= 2, "it ran twice")
        assert "stopped" not in {one.state for one in runs.of("vacuum")}, "a scheduler's children are its own, not its supervisor's"
        assert {one.origin for one in runs.of("vacuum")} == {"schedule"}
        assert ask(folder, "pause", "vacuum").exit_code == 0
        # A child that was started before may not have claimed its run yet.
        until(lambda: no_new_run_within_five_seconds(runs), "it looks and looks, and starts nothing")
        assert {row["job"]: row["next run"] for row in lines(folder, "list")}["vacuum"] == "paused"
        count = len(runs.of("vacuum", 1_000))
        assert ask(folder, "resume", "vacuum").exit_code == 0
        until(lambda: len(runs.of("vacuum", 1_000)) > count, "it goes on")
        for one in (second, process):
            one.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
        assert second.wait(60) == 0
    assert process.returncode == 0, said
    moments = [one.due_ns for one in runs.of("vacuum", 1_000) if one.state == "succeeded"]
    assert len(moments) == len(set(moments)), "two schedulers ran no moment twice"
