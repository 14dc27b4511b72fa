"""What the dashboard says of a pipeline: the worst first, in words, with what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from made import NOON
from tapeline.monitor.lag import Lag
from tapeline.orchestration.alerts import Alert
from tapeline.records import NS_PER_S, RAW_TOPIC, TICKS_TOPIC
from tapeline.telemetry import families
from tapeline.web.arranging import Observed, Rates, arranged
from tapeline.web.live.reader import Away
from tapeline.web.overview import Overview
from tapeline.web.recent import lines_of

STAGES = ("dashboard", "ingest", "lake", "ledger", "normalize", "schedule")
CONNECTION = ("binance", "spot", "binance-spot-0")


def status(stage: str, *metrics: Any) -> dict[str, Any]:
    return {"stage": stage, "metrics": [[name, list(labels), value] for name, labels, value in metrics], "lines": {}}


def snapshot(**changes: Any) -> dict[str, Any]:
    running = {"running": True, "pid": 1, "uptime_s": 60.0, "silent_s": 0.5}
    return {
        "stages": {name: dict(running) for name in STAGES},
        "providers": {"binance": {"p50_ms": 2.0, "p99_ms": 9.0}},
        "equations": [
            {
                "stage": "normalize",
                "what": "events of binance/spot",
                "read": 1_000,
                "ticks": 990,
                "rejected": 10,
                "balanced": True,
                "text": "==",
            },
            {"stage": "lake", "what": "ticks", "read": 500, "balanced": True, "text": "=="},
        ],
        "gaps": {},
        "spool": {"spooled": 0, "spooled_bytes": 0, "dropped": 0},
        "leaps": [],
    } | changes


def seen(**changes: Any) -> Observed:
    ingest = status("ingest", families.CONNECTED.at(1, *CONNECTION), families.FRAMES.at(1_000, *CONNECTION), families.RECORDED.at(1_000))
    usual: dict[str, Any] = {
        "at_ns": NOON,
        "snapshot": snapshot(),
        "statuses": {"ingest": ingest},
        "stages": STAGES,
        "needed": frozenset({"ingest", "normalize", "lake"}),
        "feeds": [("binance", "spot")],
        "lags": [Lag("normalize", RAW_TOPIC, 0, 0, 0), Lag("ledger", RAW_TOPIC, 0, 3, NS_PER_S), Lag("lake", TICKS_TOPIC, 0, 0, 0)],
        "samples": [families.COVERAGE.at(0.5, "binance", "spot"), families.MISSING.at(7, "binance", "spot"), families.DISK_FREE.at(10)],
        "alerts": [],
        "late_jobs": [],
        "problem": "",
    }
    return Observed(**usual | changes)


def shown(look: Observed) -> Overview:
    return arranged(look, Rates())


def without(stage: str) -> dict[str, Any]:
    stages = snapshot()["stages"]
    stages[stage] = {**stages[stage], "running": False}
    return snapshot(stages=stages)


def test_all_is_well() -> None:
    found = shown(seen())
    assert (found.verdict.state, found.verdict.problems) == ("well", [])
    feed = found.feeds[0]
    assert (feed.provider, feed.ticks, feed.rejected, feed.coverage, feed.missing, feed.p99_ms) == ("binance", 990, 10, 0.5, 7, 9.0)
    assert [(one.name, one.connected, one.frames) for one in feed.connections] == [("binance-spot-0", True, 1_000)]
    assert [(box.name, box.kind) for box in found.flow.boxes] == [
        *(("ingest", "stage"), ("raw", "topic"), ("normalize", "stage"), ("normalized", "topic"), ("ledger", "stage"), ("lake", "store"))
    ]
    assert [(arrow.start, arrow.end) for arrow in found.flow.arrows] == [
        *(("ingest", "raw"), ("raw", "normalize"), ("normalize", "normalized"), ("raw", "ledger"), ("normalized", "lake"))
    ]


def test_rates_are_of_the_time_between_two_looks() -> None:
    rates = Rates()
    arranged(seen(), rates)
    later = snapshot()
    later["equations"][0]["read"], later["equations"][1]["read"] = 1_400, 600
    ingest = status("ingest", families.CONNECTED.at(1, *CONNECTION), families.RECORDED.at(1_600))
    found = arranged(seen(at_ns=NOON + 2 * NS_PER_S, snapshot=later, statuses={"ingest": ingest}), rates)
    assert found.feeds[0].events_per_s == 200.0
    assert {(arrow.start, arrow.end): arrow.per_s for arrow in found.flow.arrows} == {
        ("ingest", "raw"): 300.0,
        ("raw", "normalize"): 300.0,
        ("raw", "ledger"): 300.0,
        ("normalize", "normalized"): 200.0,
        ("normalized", "lake"): 50.0,
    }
    begun_anew = arranged(seen(at_ns=NOON + 3 * NS_PER_S), rates)
    assert begun_anew.feeds[0].events_per_s == 0.0, "a count that fell is of a stream that began anew"


def test_a_stage_that_data_needs_is_a_problem_and_another_one_needs_attention() -> None:
    needed, other = shown(seen(snapshot=without("normalize"))), shown(seen(snapshot=without("ledger")))
    assert (needed.verdict.state, needed.verdict.text) == ("problem", "normalize does not run.")
    assert (other.verdict.state, other.verdict.text) == ("attention", "ledger does not run. Data flows all the same.")
    assert [(box.name, box.running, box.problem) for box in needed.flow.boxes if not box.running] == [
        ("normalize", False, "normalize does not run")
    ]


def test_a_connection_that_is_down_is_named_and_a_dead_ingest_has_none() -> None:
    down = status("ingest", families.CONNECTED.at(0, *CONNECTION))
    down["lines"] = {"binance-spot-0": {"problem": "refused"}}
    assert shown(seen(statuses={"ingest": down})).verdict.text == "binance spot is not connected (binance-spot-0): refused"
    dead = shown(seen(snapshot=without("ingest")))
    assert [one.connected for one in dead.feeds[0].connections] == [False]
    assert next(one.text for one in dead.verdict.problems) == "ingest does not run."


def test_the_worst_comes_first_and_the_rest_is_counted() -> None:
    late = [Lag("lake", TICKS_TOPIC, 0, 10, 30 * NS_PER_S), Lag("lake", TICKS_TOPIC, 1, 10, 60 * NS_PER_S)]
    broken = snapshot(equations=[{**snapshot()["equations"][0], "balanced": False, "text": "normalize: 3 ≠ 2"}])
    found = shown(seen(lags=late, snapshot=broken, late_jobs=["reconcile"]))
    assert found.verdict.text == "The accounting does not balance: normalize: 3 ≠ 2 And 2 more."
    assert [one.state for one in found.verdict.problems] == ["problem", "attention", "attention"]
    assert "lake is 60 s behind." in [one.text for one in found.verdict.problems]
    assert next(box for box in found.flow.boxes if box.name == "lake").lag_s == 60.0


def test_an_open_alert_is_a_problem_and_one_that_is_over_is_not() -> None:
    alert = Alert(1, "fresh", NOON, NOON, None, "too old", "docs/alerts.md#freshness", (), {})
    found = shown(seen(alerts=[alert, replace(alert, name="over", resolved_ns=NOON)]))
    assert [(one.text, one.runbook, one.since_ns) for one in found.verdict.problems] == [
        ("fresh: too old", "docs/alerts.md#freshness", str(NOON))
    ]
    assert [one.name for one in found.alerts] == ["fresh", "over"]


def test_what_cannot_be_asked_is_unknown_and_not_well() -> None:
    found = shown(seen(problem="The stream is away."))
    assert (found.verdict.state, found.verdict.text) == ("unknown", "The pipeline cannot be asked: The stream is away.")


def test_a_live_feed_that_waits_for_the_stream_is_a_problem_with_its_reason_and_what_to_do() -> None:
    verdict = shown(seen(away=Away(NOON - NS_PER_S, "Redis at 127.0.0.1:6379 does not answer."))).verdict
    assert verdict.state == "problem"
    assert verdict.text == "The live feed waits for the stream. Redis at 127.0.0.1:6379 does not answer."
    (problem,) = verdict.problems
    assert problem.remedy.startswith("Start the stream")
    assert (problem.runbook, problem.since_ns) == ("docs/alerts.md#the-live-feed-waits", str(NOON - NS_PER_S))


def test_looks_become_lines_with_holes_where_a_feed_was_not_there() -> None:
    first, second = shown(seen()), shown(seen(at_ns=NOON + NS_PER_S, feeds=[]))
    lines = lines_of([first, second])
    assert lines.at_ns == [str(NOON), str(NOON + NS_PER_S)]
    assert lines.feeds["binance/spot"].p99_ms == [9.0, None]
    assert lines.lag_s["ledger"] == [1.0, 1.0]
    assert set(lines.lag_s) == {"ingest", "normalize", "ledger", "lake"}
