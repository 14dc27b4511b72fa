"""Jobs on a real pipeline: a day is backfilled, compared and compacted, whoever is killed, and whatever the provider answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from processes import Home, block, environment

from proving import PROVE, proof
from tapeline.orchestration.database import SqliteDatabase
from tapeline.orchestration.runs import Runs
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from processes import SimulatorProcess

pytestmark = proof("crashes")

#: A scheduler for which it is tomorrow: the day that is over is the one in which the simulator sent something. It does not wait before it
#: tries again.
SCHEDULER = """
import sys, time
from pathlib import Path
from tapeline.config import environment, load
from tapeline.orchestration.catalog import jobs_of
from tapeline.orchestration.opening import open_database
from tapeline.orchestration.runs import Runs
from tapeline.orchestration.scheduler import Scheduler
config = load(Path(sys.argv[1]), environment())
command = [sys.executable, "-m", "tapeline", "jobs", "run", "--by", "schedule", "--config", sys.argv[1]]
scheduler = Scheduler(
    {name: job for name, job in jobs_of(config).items() if job.schedule.period_ns},
    Runs(open_database(config)),
    lambda name, due_ns, attempt: [*command, "--due-ns", str(due_ns), "--attempt", str(attempt), name],
    lambda: time.time_ns() + 86_400 * 10**9,
    "test",
)
while True:
    scheduler.step()
    time.sleep(0.1)
"""
JOB_NAMES = ("backfill", "reconcile", "compact")
JOBS = "".join(f'[[jobs]]\njob = "{name}"\nevery = "1d"\nretries = 50\ncatch_up = "latest"\n' for name in JOB_NAMES)
SYMBOLS = ["BTCUSDT", "ETHUSDT"]
CHANNELS = ["trade", "aggTrade", "kline_1s"]


def kept(home: Home) -> list[tuple[str, str, int]]:
    ticks = home.rows("SELECT channel, symbol, sequence FROM ticks") if (home.lake / "ticks").exists() else []
    bars = home.rows("SELECT channel, symbol, ts_ns FROM bars") if (home.lake / "bars").exists() else []
    return ticks + bars


def the_day_after(home: Home, market: SimulatorProcess) -> Home:
    """A data directory whose jobs have a day to load in which the market traded, and that has not seen it."""
    home.configure(block("binance", market.url, SYMBOLS, CHANNELS))
    listening = home.start("ingest")
    until(lambda: market.journal.exists() and market.journal.read_text().count("\n") > 6_000, "something happens")
    listening.end()
    later = Home(home.root.with_name("later"), home.spawn)
    settings = 'repair = false\nscheduler = "none"\n' + JOBS
    later.configure(settings + block("binance", market.url, SYMBOLS, CHANNELS, live=False), ledger=True)
    for name in JOB_NAMES:  # they are due since ever
        Runs(SqliteDatabase(later.root / "runs.sqlite", lambda: 0)).since(name)
    return later


def the_record(home: Home) -> Runs:
    return Runs(SqliteDatabase(home.root / "runs.sqlite", time.time_ns))


def holds_the_whole_history_once(home: Home) -> None:
    today = f"{datetime.now(UTC):%Y-%m-%d}"

    def compared() -> dict[str, object]:
        asked = home.ask("jobs", "run", "reconcile", "--day", today, "--format", "json")
        result: dict[str, object] = json.loads(asked.stdout.splitlines()[-1])["result"]
        return result

    until(lambda: (found := compared())["compared"] == found["equal"] == len(SYMBOLS) * len(CHANNELS), "the lake holds the whole history")
    rows = kept(home)
    assert len(rows) == len(set(rows)) > 6_000, "and nothing twice"


@contextmanager
def scheduling(home: Home) -> Iterator[None]:
    """The scheduler is killed with -9 at the end, and its children by it."""
    with subprocess.Popen([sys.executable, "-c", SCHEDULER, str(home.config)], env=environment()) as scheduler:
        try:
            yield
        finally:
            scheduler.kill()


def test_a_day_is_complete_in_the_end_whoever_is_killed_and_whatever_the_provider_answers(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("binance", "--rate", "1000", "--fault", "rest_error:14", "--fault", "rest_429:2")
    later = the_day_after(home, market)
    runs = the_record(later)
    run = later.start("run")

    def succeeded() -> set[str]:
        return {one.job for one in runs.of(limit=500) if one.state == "succeeded"}

    runs.pause("compact", paused=True)  # there is no lake yet
    for patience_s in (2.5, 4.0, None):
        with scheduling(later):
            if patience_s is None:
                until(lambda: kept(later), "the lake has something")
                runs.pause("compact", paused=False)
                until(lambda: succeeded() == {*JOB_NAMES}, "all three have succeeded")
            else:
                time.sleep(patience_s)
    assert {one.due_ns for one in runs.of(limit=500)} == {runs.of()[0].due_ns}, "it is the same day for all"
    assert any(one.attempt > 1 for one in runs.of("backfill")), "the faults and the kills ended some attempts"

    holds_the_whole_history_once(later)
    run.end()


def test_rest_that_hangs_costs_an_attempt_its_time_and_waits_that_grow(home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    market = simulator("binance", "--rate", "1000")
    later = the_day_after(home, market)
    text = later.config.read_text()
    later.config.write_text(text.replace('job = "backfill"\n', 'job = "backfill"\ntimeout = "3s"\n', 1))
    runs = the_record(later)
    for name in ("reconcile", "compact"):
        runs.pause(name, paused=True)
    market.halt()
    market.process.send(signal.SIGSTOP)  # its sockets are open, and nobody answers
    hangs = 2 if PROVE else 1
    run = later.start("run")
    with scheduling(later):
        until(lambda: sum(one.state == "failed" for one in runs.of("backfill")) == hangs, "it failed")
        market.process.send(signal.SIGCONT)
        later.config.write_text(text)
        until(lambda: runs.of("backfill")[0].state == "succeeded", "an attempt has succeeded")
    attempts = runs.of("backfill")[::-1]
    assert [one.attempt for one in attempts] == list(range(1, hangs + 2))
    assert [one.state for one in attempts] == ["failed"] * hangs + ["succeeded"]
    assert all("took longer than its timeout of 3 s" in one.error for one in attempts[:-1])
    waits_s = [((one.retry_ns or 0) - (one.ended_ns or 0)) / 1e9 for one in attempts[:-1]]
    assert all(wait_s > 10.0 * 2**number for number, wait_s in enumerate(waits_s)), waits_s
    holds_the_whole_history_once(later)
    run.end()
