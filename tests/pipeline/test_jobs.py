"""Jobs on a real pipeline: a day is backfilled, compared and compacted, whoever is killed, and whatever the provider answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from processes import Home, block, environment

from proving import proof
from tapeline.orchestration.database import SqliteDatabase
from tapeline.orchestration.runs import Runs
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import SimulatorProcess

pytestmark = proof("crashes")

#: A scheduler for which it is tomorrow, so that the day that is over is the one in which the simulator sent something.
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
JOBS = "".join(
    f'[[jobs]]\njob = "{name}"\nevery = "1d"\nretries = 50\ncatch_up = "latest"\n' for name in ("backfill", "reconcile", "compact")
)
CHANNELS = ["trade", "aggTrade", "kline_1s"]


def kept(home: Home) -> list[tuple[str, str, int]]:
    ticks = home.rows("SELECT channel, symbol, sequence FROM ticks") if (home.lake / "ticks").exists() else []
    bars = home.rows("SELECT channel, symbol, ts_ns FROM bars") if (home.lake / "bars").exists() else []
    return ticks + bars


def test_a_day_is_complete_in_the_end_whoever_is_killed_and_whatever_the_provider_answers(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("binance", "--rate", "1000", "--fault", "rest_error:14", "--fault", "rest_429:2")
    home.configure(block("binance", market.url, ["BTCUSDT", "ETHUSDT"], CHANNELS))
    listening = home.start("ingest")
    until(lambda: market.journal.exists() and market.journal.read_text().count("\n") > 6_000, "something happens")
    listening.end()

    later = Home(home.root.with_name("later"), home.spawn)
    settings = 'repair = false\nscheduler = "none"\n' + JOBS
    later.configure(settings + block("binance", market.url, ["BTCUSDT", "ETHUSDT"], CHANNELS, live=False), ledger=True)
    path = later.root / "runs.sqlite"
    for name in ("backfill", "reconcile", "compact"):
        Runs(SqliteDatabase(path, lambda: 0)).since(name)
    run = later.start("run")
    runs = Runs(SqliteDatabase(path, time.time_ns))

    def succeeded() -> set[str]:
        return {one.job for one in runs.of(limit=500) if one.state == "succeeded"}

    runs.pause("compact", paused=True)  # there is no lake yet
    for patience_s in (2.5, 4.0, None):
        with subprocess.Popen([sys.executable, "-c", SCHEDULER, str(later.config)], env=environment()) as scheduler:
            try:
                if patience_s is None:
                    until(lambda: kept(later), "the lake has something")
                    runs.pause("compact", paused=False)
                    until(lambda: succeeded() == {"backfill", "reconcile", "compact"}, "all three have succeeded")
                else:
                    time.sleep(patience_s)
            finally:
                scheduler.kill()
    assert {one.due_ns for one in runs.of(limit=500)} == {runs.of()[0].due_ns}, "it is the same day for all"
    assert any(one.attempt > 1 for one in runs.of("backfill")), "the faults and the kills ended some attempts"

    today = f"{datetime.now(UTC):%Y-%m-%d}"

    def compared() -> dict[str, object]:
        asked = later.ask("jobs", "run", "reconcile", "--day", today, "--format", "json")
        result: dict[str, object] = json.loads(asked.stdout.splitlines()[-1])["result"]
        return result

    until(lambda: (found := compared())["compared"] == found["equal"] == 6, "the lake holds the whole history")
    rows = kept(later)
    assert len(rows) == len(set(rows)) > 6_000, "and nothing twice"
    run.end()
