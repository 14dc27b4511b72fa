"""The scheduler: whatever is killed, whatever the clock does, each moment of a schedule has one run that succeeds, and no two overlap."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from made import NOON, ticks
from set_clock import SetClock
from tapeline.config import Config, JobConfig, ProviderConfig
from tapeline.errors import Busy, ConfigError, Unavailable
from tapeline.orchestration.catalog import Job, for_provider, jobs_of, with_arguments
from tapeline.orchestration.database import SqliteDatabase
from tapeline.orchestration.running import Request, run, wait_s
from tapeline.orchestration.runs import Claim, Runs
from tapeline.orchestration.scheduler import Scheduler, due
from tapeline.orchestration.work import WORK
from tapeline.providers.registry import identity
from tapeline.records import NS_PER_S, TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MINUTE_NS = 60 * NS_PER_S
HOUR_NS = 60 * MINUTE_NS


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def runs(tmp_path: Path, clock: SetClock) -> Runs:
    return Runs(SqliteDatabase(tmp_path / "data" / "runs.sqlite", clock))


def job(**settings: Any) -> Job:
    return next(iter(jobs_of(Config(jobs=(JobConfig(**{"job": "vacuum", "schedule": "", "every": "1h", **settings}),))).values()))


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * NS_PER_S


def ended(runs: Runs, one: Job, moment: int, attempt: int, state: Any = "succeeded", retry_ns: int | None = None) -> None:
    claim = Claim(job=one.name, thing=one.thing(moment), due_ns=moment, arguments={}, origin="schedule", attempt=attempt, process="p")
    number = runs.claim(claim)
    assert number is not None
    assert runs.end(number, state, exit_status=0, result={}, retry_ns=retry_ns)


def needed(runs: Runs, one: Job, clock: SetClock, started_ns: int = 0) -> list[tuple[int, int]]:
    return due(one, runs.of(one.name, 1_000), runs.since(one.name), started_ns, clock.ns)[0]


# What is due.


def test_a_job_is_due_for_no_moment_before_it_was_first_met(runs: Runs, clock: SetClock) -> None:
    clock.ns = NOON + 1
    one = job()
    assert needed(runs, one, clock) == []
    clock.ns = NOON + HOUR_NS
    assert needed(runs, one, clock) == [(NOON + HOUR_NS, 1)]


def test_after_three_missed_days_all_are_made_up_for_or_the_latest_or_none(runs: Runs, clock: SetClock) -> None:
    days = [NOON + day * 24 * HOUR_NS for day in (1, 2, 3)]
    every, latest, never = (job(name=name, catch_up=name, every="", schedule="0 12 * * *") for name in ("all", "latest", "none"))
    for one in (every, latest, never):
        ended(runs, one, NOON, 1) if runs.since(one.name) else None
    clock.ns = days[-1] + 5
    assert needed(runs, every, clock) == [(day, 1) for day in days]
    assert needed(runs, latest, clock) == [(days[-1], 1)]
    assert needed(runs, never, clock, started_ns=clock.ns) == []
    assert needed(runs, never, clock, started_ns=days[-1]) == [(days[-1], 1)]


def test_a_failed_run_is_tried_again_when_its_wait_is_over_and_not_for_ever(runs: Runs, clock: SetClock) -> None:
    one = job(retries=2)
    runs.since(one.name)
    ended(runs, one, NOON, 1, "failed", NOON + 30)
    clock.ns = NOON + 29
    assert needed(runs, one, clock) == []
    clock.ns = NOON + 30
    assert needed(runs, one, clock) == [(NOON, 2)]
    ended(runs, one, NOON, 2, "failed", NOON + 40)
    clock.ns = NOON + 40
    ended(runs, one, NOON, 3, "failed", NOON + 50)
    clock.ns = NOON + HOUR_NS - 1
    assert needed(runs, one, clock) == []


def test_a_run_that_was_stopped_continues_however_often(runs: Runs, clock: SetClock) -> None:
    one = job(retries=1)
    runs.since(one.name)
    for attempt in range(1, 6):
        assert needed(runs, one, clock) == [(NOON, attempt)]
        ended(runs, one, NOON, attempt, "stopped", NOON)
    ended(runs, one, NOON, 6, "failed", NOON)
    assert needed(runs, one, clock) == [(NOON, 7)]
    ended(runs, one, NOON, 7, "killed", NOON)
    assert needed(runs, one, clock) == []


def two_providers(**settings: Any) -> Job:
    """A reconcile of two providers that have a history."""
    providers = tuple(ProviderConfig(name=name, symbols=("X",), channels=("trades",)) for name in ("alpaca", "binance"))
    return jobs_of(Config(providers=providers, jobs=(JobConfig(job="reconcile", schedule="0 12 * * *", **settings),)))["reconcile"]


def test_a_run_for_one_provider_is_no_run_for_all_but_runs_for_each_are(runs: Runs, clock: SetClock) -> None:
    one = two_providers()
    runs.since(one.name)
    ended(runs, for_provider(one, "binance"), NOON, 1)
    assert needed(runs, one, clock) == [(NOON, 1)]
    ended(runs, for_provider(one, "alpaca"), NOON + 5, 1)
    assert needed(runs, one, clock) == []


def test_a_day_that_a_person_ran_after_its_moment_is_done_and_before_it_is_not(runs: Runs, clock: SetClock) -> None:
    one = two_providers()
    runs.since(one.name)
    done = with_arguments(one, {"day": str(one.day(NOON + 24 * HOUR_NS))})
    for at, still in ((NOON, [(NOON, 1), (NOON + 24 * HOUR_NS, 1)]), (NOON + 25 * HOUR_NS, [(NOON, 1)])):
        clock.ns = at
        number = runs.claim(Claim(job=one.name, thing=done.thing(at), arguments={}, origin="person", process="p"))
        assert number is not None
        assert runs.end(number, "succeeded", exit_status=0, result={})
        clock.ns = NOON + 26 * HOUR_NS
        assert needed(runs, one, clock) == still


def test_a_job_has_a_run_of_its_own_only_for_a_provider_that_it_names() -> None:
    assert two_providers().providers == ("alpaca", "binance")
    assert two_providers(arguments={"provider": "binance"}).providers == ("binance",)
    with pytest.raises(ConfigError, match=r"reconcile has no run for the provider 'polygon' alone. Use one of: alpaca, binance."):
        for_provider(two_providers(), "polygon")
    with pytest.raises(ConfigError, match=r"Leave out the provider\."):
        for_provider(job(), "binance")


def test_what_cannot_succeed_is_not_tried_again(runs: Runs, clock: SetClock) -> None:
    one = job()
    runs.since(one.name)
    ended(runs, one, NOON, 1, "failed", None)
    clock.ns = NOON + HOUR_NS - 1
    assert needed(runs, one, clock) == []


def test_what_is_over_is_not_looked_at_again_and_what_is_not_is(runs: Runs, clock: SetClock) -> None:
    one = job(catch_up="all")
    runs.since(one.name)
    clock.ns = NOON + 4 * HOUR_NS + 7

    def look() -> tuple[list[tuple[int, int]], int]:
        return due(one, runs.of(one.name), NOON, 0, clock.ns)

    assert look() == ([(NOON + hour * HOUR_NS, 1) for hour in range(5)], NOON)
    ended(runs, one, NOON, 1)
    ended(runs, one, NOON + HOUR_NS, 1, "failed", clock.ns + 5)
    ended(runs, one, NOON + 2 * HOUR_NS, 1)
    assert look() == ([(NOON + 3 * HOUR_NS, 1), (NOON + 4 * HOUR_NS, 1)], NOON + HOUR_NS)
    clock.ns += 5
    ended(runs, one, NOON + HOUR_NS, 2)
    ended(runs, one, NOON + 3 * HOUR_NS, 1)
    ended(runs, one, NOON + 4 * HOUR_NS, 1, "failed", None)
    assert look() == ([], clock.ns)


@pytest.mark.parametrize("night", ["2026-03-07T20:00:00-05:00", "2026-10-31T20:00:00-04:00"])
@pytest.mark.parametrize("cron", ["30 1 * * *", "30 2 * * *", "0 * * * *"])
def test_through_both_nights_of_daylight_saving_each_moment_has_one_run(runs: Runs, clock: SetClock, night: str, cron: str) -> None:
    one = job(every="", schedule=cron, timezone="America/New_York", catch_up="all")
    clock.ns = ns(night) + 1
    runs.since(one.name)
    met: list[int] = []
    for _ in range(24 * 12):
        clock.ns += 5 * MINUTE_NS
        for moment, attempt in needed(runs, one, clock):
            ended(runs, one, moment, attempt)
            met.append(moment)
    assert len(met) == len(set(met)) == (24 if cron == "0 * * * *" else 1)


def test_a_clock_that_goes_back_and_forth_runs_nothing_twice(runs: Runs, clock: SetClock) -> None:
    one = job(catch_up="all")
    runs.since(one.name)
    met = []
    for at in (0, 3, 1, 5, 2, 4, 6, 0, 6):
        clock.ns = NOON + at * HOUR_NS
        for moment, attempt in needed(runs, one, clock):
            ended(runs, one, moment, attempt)
            met.append(moment)
    assert sorted(met) == [NOON + at * HOUR_NS for at in range(7)]


# A run.


@pytest.fixture
def configured(tmp_path: Path) -> Config:
    """A lake with one day, so that there is something to do."""
    Lake(tmp_path / "data" / "lake", identity).write(
        Chunk.dense(TICKS_TOPIC, 0, 0, ticks({"ts_ns": NOON}, {"ts_ns": NOON + 1, "sequence": 2}))
    )
    (tmp_path / "tapeline.toml").write_text(f'data_dir = "{tmp_path / "data"}"\n[[jobs]]\njob = "vacuum"\nevery = "1h"\n')
    return Config(data_dir=str(tmp_path / "data"), jobs=(JobConfig(job="vacuum", every="1h"),))


def test_a_run_records_what_it_did(configured: Config, runs: Runs, clock: SetClock) -> None:
    one = jobs_of(configured)["vacuum"]
    outcome = run(configured, one, Request("airflow", "dag-7", "http://127.0.0.1:8080/7"), runs, threading.Event(), clock, Random(1))
    assert (outcome.state, outcome.exit_status, outcome.error) == ("succeeded", 0, "")
    (seen,) = runs.of("vacuum")
    assert (seen.state, seen.origin, seen.origin_id, seen.origin_url) == ("succeeded", "airflow", "dag-7", "http://127.0.0.1:8080/7")
    assert seen.result == outcome.result
    assert {table["table"] for table in seen.result["tables"]} >= {"ticks"}


def test_a_run_that_fails_says_whether_it_is_tried_again(
    tmp_path: Path, runs: Runs, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(data_dir=str(tmp_path / "data"), jobs=(JobConfig(job="vacuum", retries=1),))
    one = jobs_of(config)["vacuum"]
    outcome = run(config, one, Request(), runs, threading.Event(), clock, Random(1))
    assert (outcome.state, outcome.exit_status, outcome.retry_ns) == ("failed", 78, None), "there is no lake"
    assert "There is no lake" in outcome.error

    def away(*_: object) -> dict[str, Any]:
        raise Unavailable("The provider is away.")

    monkeypatch.setitem(WORK, "vacuum", away)
    one = jobs_of(config)["vacuum"]
    first = run(config, one, Request(), runs, threading.Event(), clock, Random(1))
    assert (first.exit_status, first.error) == (69, "The provider is away.")
    assert first.retry_ns is not None
    assert 15 * NS_PER_S <= first.retry_ns - NOON <= 30 * NS_PER_S


def test_the_waits_grow_up_to_an_hour_and_differ() -> None:
    waits = [[wait_s(attempt, Random(seed)) for attempt in range(1, 12)] for seed in range(20)]
    assert all(15 <= some[0] <= 30 for some in waits)
    assert all(1_800 <= some[-1] <= 3_600 for some in waits)
    assert len({some[3] for some in waits}) == 20


def test_the_same_never_runs_twice_at_once(configured: Config, runs: Runs, clock: SetClock) -> None:
    one = jobs_of(configured)["vacuum"]
    assert runs.claim(Claim(job="vacuum", thing="", arguments={}, origin="person", process="another")) is not None
    with pytest.raises(Busy, match="runs already"):
        run(configured, one, Request(), runs, threading.Event(), clock, Random(1))


def test_a_run_that_is_stopped_says_so(tmp_path: Path, runs: Runs, clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()

    def stopped(work: Any, _: object) -> dict[str, Any]:
        stop.set()
        assert work.stop.is_set()
        return {"pages": 1}

    monkeypatch.setitem(WORK, "vacuum", stopped)
    config = Config(data_dir=str(tmp_path), jobs=(JobConfig(job="vacuum"),))
    outcome = run(config, jobs_of(config)["vacuum"], Request(), runs, stop, clock, Random(1))
    assert (outcome.state, outcome.exit_status, outcome.retry_ns) == ("stopped", 75, NOON)


def test_a_run_that_takes_too_long_is_told_to_stop_and_continues_later(
    tmp_path: Path, runs: Runs, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(work: Any, _: object) -> dict[str, Any]:
        work.progress({"pages": 3})
        assert work.stop.wait(60)
        return {"pages": 3}

    monkeypatch.setitem(WORK, "vacuum", endless)
    config = Config(data_dir=str(tmp_path), jobs=(JobConfig(job="vacuum", timeout="200ms"),))
    outcome = run(config, jobs_of(config)["vacuum"], Request(), runs, threading.Event(), clock, Random(1))
    assert (outcome.state, outcome.exit_status) == ("failed", 75)
    assert "longer than its timeout" in outcome.error
    assert outcome.retry_ns is not None
    assert runs.of()[0].result == {"pages": 3}


# A job that repeats within a minute.


def repeating(tmp_path: Path, **settings: Any) -> tuple[Config, Job]:
    config = Config(data_dir=str(tmp_path), jobs=(JobConfig(**{"job": "vacuum", "every": "20ms", **settings}),))
    return config, jobs_of(config)["vacuum"]


def test_one_run_of_it_does_the_work_again_and_again_and_what_may_pass_does_not_end_it(
    tmp_path: Path, runs: Runs, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, times = threading.Event(), list[int]()

    def work(given: Any, _: object) -> dict[str, Any]:
        times.append(len(times))
        if len(times) == 2:
            raise Unavailable("It is away.")
        if len(times) == 4:
            stop.set()
        return {"pages": len(times)}

    monkeypatch.setitem(WORK, "vacuum", work)
    monkeypatch.setattr("tapeline.orchestration.running.backoff", lambda *_: iter([0.01] * 10))
    config, one = repeating(tmp_path)
    assert one.continuous
    outcome = run(config, one, Request("schedule", due_ns=NOON), runs, stop, clock, Random(1))
    assert (outcome.state, outcome.result, times) == ("stopped", {"times": 3}, [0, 1, 2, 3])
    (seen,) = runs.of()
    assert seen.state == "stopped"


def test_what_cannot_pass_ends_it(tmp_path: Path, runs: Runs, clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(given: Any, _: object) -> dict[str, Any]:
        raise ConfigError("The key is wrong. Correct it.")

    monkeypatch.setitem(WORK, "vacuum", work)
    config, one = repeating(tmp_path)
    outcome = run(config, one, Request("schedule", due_ns=NOON), runs, threading.Event(), clock, Random(1))
    assert (outcome.state, outcome.exit_status, outcome.retry_ns) == ("failed", 78, None)


@pytest.mark.parametrize(
    ("last", "later_ns", "started"),
    [
        (None, 0, 1),
        (("stopped", 0, NOON), 0, 1),
        (("killed", 1, NOON), 0, 2),
        (("failed", 3, NOON + 5), 4, None),
        (("failed", 3, NOON + 5), 5, 4),
        (("failed", 1, None), 5, None),
    ],
)
def test_the_scheduler_keeps_it_running(
    last: tuple[Any, int, int | None] | None, later_ns: int, started: int | None, tmp_path: Path, runs: Runs, clock: SetClock
) -> None:
    _, one = repeating(tmp_path)
    begun: list[int] = []

    def command(name: str, due_ns: int, attempt: int) -> list[str]:
        begun.append(attempt)
        return ["sleep", "60"]

    scheduler = Scheduler({"vacuum": one}, runs, command, clock, "test")
    scheduler._started_ns = NOON
    if last is not None:
        ended(runs, one, NOON, last[1], last[0], last[2])
    clock.ns = NOON + later_ns
    scheduler.step()
    scheduler.step()
    scheduler.finish(1.0)
    assert begun == ([] if started is None else [started])


# Real children.


@pytest.fixture
def scheduler(configured: Config, tmp_path: Path, runs: Runs, clock: SetClock) -> Iterator[Scheduler]:
    found = scheduler_of(configured, tmp_path, runs, clock)
    yield found
    found.finish(5.0)


def scheduler_of(config: Config, tmp_path: Path, runs: Runs, clock: Callable[[], int], first: str = "") -> Scheduler:
    start = [sys.executable, *(["-c", first] if first else ["-m", "tapeline"])]
    arguments = ["jobs", "run", "--by", "schedule", "--config", str(tmp_path / "tapeline.toml")]
    known = {"vacuum": jobs_of(config)["vacuum"]}
    command = [*start, *arguments]
    return Scheduler(known, runs, lambda name, at, attempt: [*command, "--due-ns", str(at), "--attempt", str(attempt), name], clock, "test")


def test_what_is_due_is_run_by_a_child_once(scheduler: Scheduler, runs: Runs, clock: SetClock) -> None:
    def step_until(count: int) -> None:
        until(lambda: scheduler.step() or sum(one.state == "succeeded" for one in runs.of()) >= count, f"{count} runs")

    step_until(1)
    for _ in range(20):
        scheduler.step()
    clock.ns += HOUR_NS
    step_until(2)
    assert [(one.due_ns, one.attempt, one.state) for one in reversed(runs.of())] == [
        (NOON, 1, "succeeded"),
        (NOON + HOUR_NS, 1, "succeeded"),
    ]


def test_the_runs_of_a_job_whose_moments_are_settled_are_not_read_again(
    scheduler: Scheduler, runs: Runs, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: scheduler.step() or any(one.state == "succeeded" for one in runs.of()), "it has run")
    until(lambda: scheduler.step() or not scheduler.status()["running"], "its process has ended")
    clock.ns += 1
    scheduler.step()
    with monkeypatch.context() as patch:
        patch.setattr(Runs, "of", lambda *_: pytest.fail("nothing can be due"))
        for _ in range(3):
            clock.ns += 1
            scheduler.step()
    clock.ns += HOUR_NS
    until(lambda: scheduler.step() or len(runs.of()) == 2, "it is due again")


def test_two_schedulers_at_once_run_each_moment_once(configured: Config, tmp_path: Path, clock: SetClock) -> None:
    both = []
    for _ in range(2):
        own = Runs(SqliteDatabase(tmp_path / "data" / "runs.sqlite", clock))
        both.append((scheduler_of(configured, tmp_path, own, clock), own))
    runs = both[0][1]
    for hour in range(3):
        clock.ns = NOON + hour * HOUR_NS

        def done(hour: int = hour) -> bool:
            for one, _ in both:
                one.step()
            return sum(one.state == "succeeded" for one in runs.of()) > hour

        until(done, f"hour {hour}")
    for one, _ in both:
        one.finish(30.0)
    assert [(one.due_ns, one.attempt, one.state) for one in reversed(runs.of())] == [
        (NOON + at * HOUR_NS, 1, "succeeded") for at in range(3)
    ]


#: A child that claims and is then killed amid its work.
_DIES = """
import os, signal, sys
from tapeline.orchestration.work import WORK
def die(work, arguments):
    os.kill(os.getpid(), signal.SIGKILL)
WORK["vacuum"] = die
sys.argv[0] = "tapeline"
from tapeline.cli import main
main()
"""


def test_a_run_that_is_killed_is_seen_and_taken_up_again(configured: Config, tmp_path: Path, runs: Runs, clock: SetClock) -> None:
    """The child's clock is the real one, so the scheduler's is too."""
    clock.ns = time.time_ns()
    configured = Config(data_dir=configured.data_dir, jobs=(JobConfig(job="vacuum", every="20000d"),))  # one moment for all of the test
    dying = scheduler_of(configured, tmp_path, runs, clock, _DIES)
    Runs(SqliteDatabase(tmp_path / "data" / "runs.sqlite", lambda: 0)).since("vacuum")  # the job has been known for long
    until(lambda: dying.step() or runs.of() != [], "it runs")
    dying.finish(30.0)
    runs = Runs(SqliteDatabase(tmp_path / "data" / "runs.sqlite", time.time_ns))
    living = scheduler_of(configured, tmp_path, runs, time.time_ns)
    until(lambda: living.step() or [one.state for one in runs.of()] == ["succeeded", "killed"], "it is taken up")
    living.finish(5.0)
    first, second = reversed(runs.of())
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.due_ns == second.due_ns


#: A child whose work hangs and hears nothing.
_HANGS = """
import sys, time
from tapeline.orchestration import running
from tapeline.orchestration.work import WORK
WORK["vacuum"] = lambda work, arguments: time.sleep(600)
running.GRACE_S = 0.3
sys.argv[0] = "tapeline"
from tapeline.cli import main
main()
"""


def test_a_run_that_hangs_is_ended_by_force_and_due_again(configured: Config, tmp_path: Path) -> None:
    text = (tmp_path / "tapeline.toml").read_text().replace('every = "1h"', 'every = "1h"\ntimeout = "200ms"')
    (tmp_path / "tapeline.toml").write_text(text)
    command = [sys.executable, "-c", _HANGS, "jobs", "run", "vacuum", "--config", str(tmp_path / "tapeline.toml")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 75, ended.stderr
    (seen,) = Runs(SqliteDatabase(tmp_path / "data" / "runs.sqlite", time.time_ns)).of()
    assert (seen.state, seen.exit_status) == ("failed", 75)
    assert 10 * NS_PER_S < (seen.retry_ns or 0) - (seen.ended_ns or 0) < 60 * NS_PER_S, "it waits as after any other failure"
    assert "longer than its timeout" in seen.error


def test_the_children_stop_with_the_scheduler(configured: Config, tmp_path: Path, runs: Runs, clock: SetClock) -> None:
    sleeps = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(0)); print('up', flush=True); time.sleep(60)"
    one = scheduler_of(configured, tmp_path, runs, clock, sleeps)
    one.step()
    (process,) = one.status()["running"].values()
    one.finish(10.0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


# The configuration.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"job": "compress"}, r'job = "compress" is not a job. The jobs are: backfill, '),
        ({"job": "vacuum", "arguments": {"day": "2026-01-05"}}, "The arguments of vacuum are: none"),
        ({"job": "reconcile", "arguments": {"day": "yesterday"}}, "The arguments of reconcile are: provider, symbols, channels, day"),
        ({"job": "export"}, "arguments: Object missing required field `symbol`"),
        ({"job": "vacuum", "timeout": "soon"}, 'timeout = "soon" is not a duration'),
    ],
)
def test_a_wrong_job_is_named_with_the_remedy(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        jobs_of(Config(jobs=(JobConfig(**settings),)))


def test_what_a_block_leaves_out_is_the_job_s_usual_value() -> None:
    found = jobs_of(
        Config(jobs=(JobConfig(job="reconcile", retries=1), JobConfig(job="check_lake", catch_up="none"), JobConfig(job="repair")))
    )
    assert (found["reconcile"].schedule.cron, found["reconcile"].settings.catch_up) == ("30 6 * * *", "all")
    assert (found["check_lake"].settings.timeout, found["check_lake"].settings.catch_up) == ("12h", "none")
    assert (found["repair"].schedule.period_ns, found["repair"].settings.timeout) == (5 * MINUTE_NS, "2h")


def test_two_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two jobs 'vacuum'"):
        jobs_of(Config(jobs=(JobConfig(job="vacuum"), JobConfig(job="vacuum"))))
    assert list(jobs_of(Config(jobs=(JobConfig(job="vacuum"), JobConfig(job="vacuum", name="second"))))) == [
        "vacuum",
        "second",
        "check_lake",
    ]


def test_a_job_of_a_day_works_on_the_day_that_is_over_in_its_time_zone() -> None:
    one = job(job="reconcile", schedule="30 6 * * *", every="", timezone="America/New_York")
    assert one.thing(ns("2026-11-29T06:30:00-05:00")) == "2026-11-28"
    assert one.thing(ns("2026-11-29T23:30:00-05:00")) == "2026-11-28"
    assert with_arguments(one, {"day": "2026-01-05"}).thing(NOON) == "2026-01-05"
