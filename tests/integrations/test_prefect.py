"""Tapeline's jobs in a real Prefect, against the local simulator: whatever fails, hangs or is killed, the day is complete in the end."""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect_process import START_S, YESTERDAY, PastMarket, Prefect
from rest_between import Between

from proving import PROVE, proof
from tapeline.reading.sql import connect
from tapeline.records import NS_PER_S
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.timeout(900), proof("crashes")]

DAY_NS = 86_400 * NS_PER_S
CONFIG = """
data_dir = "{data}"
scheduler = "prefect"
repair = false
[[providers]]
name = "binance"
live = false
url = "{ws}/ws"
rest_url = "{rest}"
lists_url = "{rest}"
symbols = ["BTCUSDT"]
channels = ["trade"]
[[stores]]
url = "lake:"
flush_seconds = 0.3
[[jobs]]
job = "backfill"
schedule = "0 0 1 1 *"
retries = 3
timeout = "20m"
[[jobs]]
job = "reconcile"
retries = 4
timeout = "{timeout}"
deadline = "08:00"
catch_up = "all"
[[jobs]]
job = "compact"
schedule = "0 0 1 1 *"
[[jobs]]
job = "repair"
every = "10s"
"""


@pytest.fixture(scope="module")
def market() -> Iterator[PastMarket]:
    made = PastMarket(YESTERDAY, 2_500 if PROVE else 500)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def prefect(market: PastMarket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """The pipeline, Prefect's server and the serving process. They start once for all tests of this file, which go on from each other."""
    folder = tmp_path_factory.mktemp("prefect")
    rest = Between(market.rest)
    rest.start()
    served = Prefect(folder, rest)
    served.config.write_text(CONFIG.format(data=folder / "data", ws=market.url, rest=rest.url, timeout="30s"))
    served.tapeline()
    try:
        served.start("--late-after", "20")
        yield served
    finally:
        rest.mode = ""
        served.stop()
        rest.stop()


def stored(prefect: Prefect) -> list[int]:
    """The ids of the trades in the lake, in order."""
    with closing(connect(prefect.folder / "data" / "lake")) as db:
        return [number for (number,) in db.execute("SELECT sequence FROM ticks ORDER BY sequence").fetchall()]


def lake_holds(prefect: Prefect, ids: list[int]) -> bool:
    return (prefect.folder / "data" / "lake" / "ticks").exists() and len(stored(prefect)) >= len(ids)


def texts(prefect: Prefect, run: str) -> str:
    lines = prefect.ask("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"})
    return "\n".join(line["message"] for line in lines)


def artifacts(prefect: Prefect, run: str) -> dict[str, Any]:
    """The tables of a run, by their keys."""
    found = prefect.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    return {one["key"]: json.loads(one["data"]) for one in found}


def test_each_job_has_a_deployment_with_its_schedule_its_limit_and_its_parameters(prefect: Prefect) -> None:
    found = {one["name"]: one for one in prefect.ask("/flows/filter", {})}
    assert set(found) == {"backfill", "reconcile", "compact", "symbols", "vacuum", "check_lake"}
    reconcile = prefect.deployment("reconcile")
    (schedule,) = reconcile["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("30 6 * * *", "UTC")
    assert reconcile["global_concurrency_limit"]["limit"] == 2
    assert prefect.deployment("vacuum")["global_concurrency_limit"]["limit"] == 1
    assert set(reconcile["tags"]) == {"tapeline", "reconcile"}
    asked_for = reconcile["parameter_openapi_schema"]["properties"]["arguments"]["properties"]
    assert set(asked_for) == {"provider", "symbols", "channels", "day", "revised"}
    titles = {one["name"] for one in prefect.ask("/automations/filter", {"limit": 200})}
    assert {f"Tapeline (tapeline): {job} is {what}" for job in found for what in ("late", "on time")} == titles


def test_the_health_check_says_whether_the_jobs_are_served(prefect: Prefect) -> None:
    until(lambda: prefect.ready("tapeline") == (0, "The deployments called tapeline are served."), "the jobs are served")
    assert prefect.ready("another") == (1, "Prefect has no deployment called another.")


def test_nothing_is_sent_to_anybody_and_nothing_listens_on_another_address(prefect: Prefect) -> None:
    (server,) = prefect.children("tapeline_prefect.server")
    settings = set(Path(f"/proc/{server}/environ").read_bytes().split(b"\0"))
    assert {b"DO_NOT_TRACK=1", b"PREFECT_SERVER_ANALYTICS_ENABLED=false", b"PREFECT_SERVER_API_HOST=127.0.0.1"} <= settings
    assert prefect.ask("/admin/settings")["server"]["analytics_enabled"] is False


def test_tapeline_leaves_these_jobs_alone_and_keeps_those_that_repeat_within_a_minute(prefect: Prefect) -> None:
    until(lambda: prefect.of("repair"), "the embedded scheduler starts what repeats")
    assert {run.origin for run in prefect.of("repair")} == {"schedule"}
    assert {run.origin for job in ("reconcile", "backfill", "compact", "vacuum") for run in prefect.of(job)} <= {"prefect"}


def test_a_day_is_backfilled_reconciled_and_compacted_without_a_doubled_row(prefect: Prefect, market: PastMarket) -> None:
    ids = market.ids()
    loaded = prefect.run("backfill", history_from=str(YESTERDAY))
    assert prefect.end_of(loaded)["state_name"] == "Completed"
    until(lambda: lake_holds(prefect, ids), "the lake has the day")
    assert {row["what"]: row["value"] for row in artifacts(prefect, loaded)["backfill-result"]}["events"] == len(ids)
    for job in ("reconcile", "compact"):
        run = prefect.run(job, day=str(YESTERDAY))
        end = prefect.end_of(run)
        assert (end["state_type"], end["state_name"]) == ("COMPLETED", "Completed"), end["state"]
        (recorded,) = prefect.of(job)
        assert (recorded.origin, recorded.origin_id, recorded.thing, recorded.state) == ("prefect", run, str(YESTERDAY), "succeeded")
        assert recorded.origin_url.endswith(f"/runs/flow-run/{run}")
    assert stored(prefect) == ids


def test_a_difference_that_is_filled_is_said(prefect: Prefect, market: PastMarket) -> None:
    before = len(market.ids())
    market.trade(200)
    ids = market.ids()
    run = prefect.run("reconcile", day=str(YESTERDAY))
    end = prefect.end_of(run)
    assert (end["state_type"], end["state_name"]) == ("COMPLETED", "Filled"), end["state"]
    assert "The store lacked events of BTC/USDT trade." in end["state"]["message"]
    until(lambda: lake_holds(prefect, ids), "the lake has all of the day")
    assert stored(prefect) == ids
    tables = artifacts(prefect, run)
    assert {row["what"]: row["value"] for row in tables["reconcile-result"]}["filled"] == len(ids) - before
    assert "reconcile-gaps" in tables


def test_a_difference_that_no_fill_mends_is_no_success(prefect: Prefect) -> None:
    prefect.rest.change = lambda body: re.sub(rb'"qty":"(\d)', rb'"qty":"9\1', body, count=1)
    end = prefect.end_of(prefect.run("reconcile", day=str(YESTERDAY)))
    prefect.rest.change = lambda body: body
    assert (end["state_type"], end["state_name"]) == ("FAILED", "Differences"), end["state"]
    assert "BTC/USDT trade" in end["state"]["message"]
    assert end["run_count"] == 1


def test_a_wrong_parameter_is_named_and_not_tried_again(prefect: Prefect) -> None:
    run = prefect.run("reconcile", provider="kraken")
    end = prefect.end_of(run)
    assert (end["state_type"], end["state_name"]) == ("FAILED", "Failed")
    assert "kraken" in end["state"]["message"]
    tasks = prefect.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert [task["run_count"] for task in tasks] == [1]


@pytest.mark.parametrize("modes", [("500", "429", "hang") if PROVE else ("429",)], ids=" ".join)
def test_rest_that_fails_and_hangs_is_tried_again_with_growing_waits(prefect: Prefect, modes: tuple[str, ...]) -> None:
    before = len(prefect.of("reconcile"))
    prefect.rest.mode = modes[0]
    run = prefect.run("reconcile", day=str(YESTERDAY))
    for number, mode in enumerate((*modes[1:], ""), 1):
        until(lambda: sum(one.state == "failed" for one in prefect.of("reconcile")[before:]) >= number, "it fails", START_S)  # noqa: B023
        prefect.rest.mode = mode
    end = prefect.end_of(run)
    assert end["state_type"] == "COMPLETED", end["state"]
    made = prefect.of("reconcile")[before:]
    assert [one.state for one in made] == [*("failed" for _ in modes), "succeeded"]
    assert [one.attempt for one in made] == list(range(1, len(modes) + 2))
    waits = [(after.started_ns - (one.ended_ns or 0)) / NS_PER_S for one, after in itertools.pairwise(made)]
    for number, wait_s in enumerate(waits):
        assert wait_s > 0.6 * 2**number, waits
    assert "Tapeline tried 6 times" in texts(prefect, run)


def open_alerts(prefect: Prefect) -> list[str]:
    """The texts of the open alerts, in Tapeline's own record."""
    with closing(sqlite3.connect(prefect.folder / "data" / "runs.sqlite")) as db:
        return [text for (text,) in db.execute("SELECT text FROM tapeline_alerts WHERE resolved_ns IS NULL AND name LIKE 'prefect-%'")]


def said(prefect: Prefect, what: str) -> int:
    """How often Tapeline was told to raise or to resolve the alert of a late reconcile."""
    return sum(f"alerts {what} prefect-reconcile-late" in line for line in prefect.said_to_alerts())


def test_a_run_that_is_late_raises_an_alert_and_a_run_that_succeeds_resolves_it(prefect: Prefect) -> None:
    raised, resolved = said(prefect, "raise"), said(prefect, "resolve")
    prefect.rest.mode = "hang"
    run = prefect.run("reconcile", day=str(YESTERDAY))
    until(lambda: said(prefect, "raise") > raised, "the alert")
    until(lambda: any("has not succeeded within 20 s" in text for text in open_alerts(prefect)), "it is in Tapeline's record")
    prefect.rest.mode = ""
    assert prefect.end_of(run)["state_name"] == "Completed"
    until(lambda: said(prefect, "resolve") > resolved, "the alert is resolved")
    until(lambda: open_alerts(prefect) == [], "it is resolved in Tapeline's record")


def begun(prefect: Prefect, run: str) -> bool:
    return any(one.origin_id == run and one.state == "running" for one in prefect.of("reconcile"))


@pytest.mark.parametrize("victim", ["run", "server", "all"] if PROVE else ["run"])
def test_what_is_killed_in_the_middle_of_a_job_goes_on_and_doubles_nothing(prefect: Prefect, market: PastMarket, victim: str) -> None:
    prefect.rest.mode = "slow"
    run = prefect.run("reconcile", day=str(YESTERDAY))
    until(lambda: begun(prefect, run), "the job runs")
    flows = prefect.children("multiprocessing.spawn")
    servers = prefect.children("tapeline_prefect.server")
    assert flows
    assert servers
    prefect.kill(*{"run": flows, "server": servers, "all": [prefect.serving.pid, *servers, *flows]}[victim])
    prefect.rest.mode = ""
    if victim == "all":
        prefect.start("--late-after", "20")
    end = prefect.end_of(run)
    assert end["state_type"] == "COMPLETED", end["state"]
    until(lambda: lake_holds(prefect, market.ids()), "the lake has the day")
    assert stored(prefect) == market.ids()
    mine = [one for one in prefect.of("reconcile") if one.origin_id == run]
    assert mine[-1].state == "succeeded"


def days_due(prefect: Prefect) -> set[str]:
    """The days that Tapeline says have to be reconciled now."""
    command = [sys.executable, "-m", "tapeline", "jobs", "due", "--config", str(prefect.config)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = map(json.loads, said.splitlines())
    return {row["of"] for row in rows if row["job"] == "reconcile"}


def test_days_that_were_missed_are_made_up_for_and_a_killed_run_goes_on(prefect: Prefect, market: PastMarket) -> None:
    prefect.rest.mode = "slow"
    run = prefect.run("reconcile", day=str(YESTERDAY))
    until(lambda: begun(prefect, run), "the job runs")
    # The serving process alone: Prefect's server and the runs are its children, and end with it or without it.
    prefect.kill()
    prefect.serving.wait()
    with closing(sqlite3.connect(prefect.folder / "data" / "runs.sqlite")) as db:
        db.execute("UPDATE tapeline_jobs SET since_ns = ? WHERE job = 'reconcile'", (time.time_ns() - 3 * DAY_NS,))
        db.commit()
    prefect.rest.mode = ""
    before = len(prefect.of("reconcile"))
    needed = days_due(prefect)
    assert len(needed) >= 2
    prefect.start("--late-after", "20")
    missed = lambda: [one for one in prefect.of("reconcile")[before:] if one.due_ns is not None]  # noqa: E731
    until(lambda: {one.thing for one in missed() if one.state == "succeeded"} >= needed, "the missed days are made up for", START_S)
    assert sorted(one.thing for one in missed()) == sorted(needed), "each day has one run"
    assert prefect.end_of(run)["state_type"] == "COMPLETED"
    until(lambda: lake_holds(prefect, market.ids()), "the lake has the day")
    assert stored(prefect) == market.ids()
    late = [one for one in prefect.of_prefect("reconcile") if "catch-up" in one["tags"]]
    assert len(late) == len(needed)
    assert all(one["name"] == f"reconcile {one['expected_start_time'][:16].replace('T', ' ')}" for one in late)
