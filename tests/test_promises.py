"""Promises: each check says kept, broken or unknown, from what the stream, the ledger, the stages and the record of runs say."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from made import NOON, bars, ticks
from set_clock import SetClock
from tapeline.app.promises import Promises, day_before, promises_of
from tapeline.config import Config, NotifyConfig, ProviderConfig, SlaConfig
from tapeline.errors import ConfigError
from tapeline.ledger.answers import Answer, answer
from tapeline.ledger.facts import Interval, Key
from tapeline.monitor import promises
from tapeline.monitor.freshness import Match, Newest, NewestEvents
from tapeline.monitor.promises import Finding
from tapeline.orchestration.preflight import check_configuration, checks
from tapeline.records import BARS_TOPIC, NS_PER_MS, NS_PER_S, TICKS_TOPIC
from tapeline.streams.embedded import EmbeddedStream

MINUTE_NS = 60 * NS_PER_S
HOUR_NS = 60 * MINUTE_NS
KEY = Key("binance", "spot", "trade", "BTC/USDT")


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * NS_PER_S


def always(start_ns: int, end_ns: int) -> int:
    return max(0, end_ns - start_ns)


# The newest event.


@pytest.fixture
def stream(tmp_path: Path) -> EmbeddedStream:
    return EmbeddedStream(tmp_path / "data" / "stream", 2)


def tick(at_ns: int, **more: Any) -> dict[str, Any]:
    return {"ts_ns": at_ns, "received_ns": at_ns + 5, **more}


ANY, SLOW = Match(), Match(symbols=("SLOW/USDT",))


def test_the_newest_event_of_each_match_is_found_however_far_back_it_is(stream: EmbeddedStream) -> None:
    look = NewestEvents(stream, [ANY, SLOW, Match(provider="alpaca"), Match(channels=("AM",))])
    stream.append(TICKS_TOPIC, ticks(tick(NOON, symbol="SLOW/USDT")))
    stream.append(TICKS_TOPIC, ticks(*(tick(NOON + at) for at in range(1, 20_000))))
    stream.append(BARS_TOPIC, bars({"ts_ns": NOON, "received_ns": NOON + 90 * NS_PER_S}))
    look.look()
    assert look.newest[SLOW] == Newest(NOON, NOON)
    assert look.newest[Match(provider="alpaca")] == Newest(None, None), "there is none at all"
    bar = NOON + MINUTE_NS  # its window ended then
    assert look.newest[Match(channels=("AM",))] == Newest(bar, bar)
    assert look.newest[ANY] == Newest(bar, bar)


def test_an_old_event_that_a_backfill_brings_is_not_fresh(stream: EmbeddedStream) -> None:
    look = NewestEvents(stream, [ANY])
    stream.append(TICKS_TOPIC, ticks(tick(NOON), {"ts_ns": NOON - HOUR_NS, "received_ns": NOON + HOUR_NS}))
    look.look()
    assert look.newest[ANY].seen_ns == NOON


def test_each_look_reads_on_from_the_last(stream: EmbeddedStream) -> None:
    look = NewestEvents(stream, [ANY, SLOW])
    stream.append(TICKS_TOPIC, ticks(tick(NOON, symbol="SLOW/USDT")))
    look.look()
    stream.append(TICKS_TOPIC, ticks(*(tick(NOON + HOUR_NS + at) for at in range(10_000))))
    look.look()
    assert look.newest[SLOW] == Newest(NOON, NOON), "all in between was read: there was none"
    assert look.newest[ANY].seen_ns == NOON + HOUR_NS + 9_999


def test_a_bar_that_lies_behind_many_others_is_found_though_a_tick_of_the_symbol_is_not_far(stream: EmbeddedStream) -> None:
    both = Match(symbols=("SLOW/USDT",), channels=("trade", "kline_1m"))
    look = NewestEvents(stream, [both])
    stream.append(TICKS_TOPIC, ticks(tick(NOON, symbol="SLOW/USDT")))
    slow = {"symbol": "SLOW/USDT", "channel": "kline_1m", "ts_ns": NOON + HOUR_NS, "received_ns": NOON + 2 * HOUR_NS}
    stream.append(BARS_TOPIC, bars(slow, *({"ts_ns": NOON, "received_ns": NOON} for _ in range(2_000))))
    look.look()
    assert look.newest[both].seen_ns == NOON + HOUR_NS + MINUTE_NS


def test_each_channel_is_looked_for_in_its_own_topic() -> None:
    assert Match(channels=("kline_1m", "AM")).topics == (BARS_TOPIC,)
    assert Match(channels=("trade",)).topics == (TICKS_TOPIC,)
    assert Match(channels=("trade", "AM")).topics == Match().topics == Match(channels=("foreign",)).topics == (TICKS_TOPIC, BARS_TOPIC)


def test_two_promises_about_rejects_have_windows_of_their_own(
    tmp_path: Path, stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, totals = SetClock(), {"binance/spot/seen": 0, "binance/spot/rejected": 0}
    monkeypatch.setattr("tapeline.app.promises.of_feeds", lambda _: dict(totals))
    some = (sla("rejects", name="short", at_most=0.1, within="1m"), sla("rejects", name="long", at_most=0.1, within="1h"))
    stream.append(TICKS_TOPIC, ticks(tick(NOON)))
    with Promises(Config(data_dir=str(tmp_path / "data"), sla=some), clock, lambda _: None) as look:
        look.look()
        totals |= {"binance/spot/seen": 100, "binance/spot/rejected": 50}
        clock.ns += 10 * NS_PER_S
        look.look()
        for _ in range(20):
            clock.ns += 10 * NS_PER_S
            found = {one.name: one.kept for one in look.look()}
    assert found == {"short": True, "long": False}


def test_what_was_not_read_may_hold_an_event(stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapeline.monitor.freshness._ROWS", (10, 100))
    look = NewestEvents(stream, [SLOW])
    stream.append(TICKS_TOPIC, ticks(tick(NOON, symbol="SLOW/USDT")))
    look.look()
    stream.append(TICKS_TOPIC, ticks(*(tick(NOON + at * NS_PER_S) for at in range(1, 1_000))))
    look.look()
    found = look.newest[SLOW]
    assert found.seen_ns == NOON
    assert found.until_ns is not None
    assert NOON + 800 * NS_PER_S < found.until_ns < NOON + 950 * NS_PER_S


# The decisions.


@pytest.mark.parametrize(
    ("seen_s", "until_s", "kept"),
    [(-5, -5, True), (-10, -10, True), (-11, -11, False), (-60, -11, False), (-60, -3, None), (None, -3, None), (None, -30, False)],
)
def test_freshness(seen_s: int | None, until_s: int, kept: bool | None) -> None:
    newest = Newest(None if seen_s is None else NOON + seen_s * NS_PER_S, NOON + until_s * NS_PER_S)
    assert promises.fresh("f", newest, 10 * NS_PER_S, NOON, always).kept is kept


def test_freshness_counts_only_the_time_in_which_the_market_is_open() -> None:
    opens = NOON - 7 * NS_PER_S

    def open_time(start_ns: int, end_ns: int) -> int:
        return max(0, end_ns - max(start_ns, opens))

    yesterday = NOON - 20 * HOUR_NS
    assert promises.fresh("f", Newest(yesterday, yesterday), 10 * NS_PER_S, NOON, open_time).kept
    late = promises.fresh("f", Newest(yesterday, yesterday), 10 * NS_PER_S, NOON + 4 * NS_PER_S, open_time)
    assert (late.kept, "promised is at most 10 s" in late.text) == (False, True)
    assert promises.fresh("f", Newest(), 10 * NS_PER_S, NOON, open_time).kept, "it has just opened"
    assert not promises.fresh("f", Newest(), 10 * NS_PER_S, NOON + 4 * NS_PER_S, open_time).kept


def test_latency_and_lag() -> None:
    assert promises.quick("l", {"binance": 4.0, "alpaca": None}, 10 * NS_PER_MS).kept
    slow = promises.quick("l", {"binance": 12.5}, 10 * NS_PER_MS)
    assert (slow.kept, slow.text) == (False, "Latency, 99th percentile: binance 12.5 ms; promised is at most 10 ms.")
    assert promises.quick("l", {}, 10 * NS_PER_MS).kept is None
    assert promises.caught_up("b", {}, NS_PER_S).kept
    assert promises.caught_up("b", {"lake": 90 * NS_PER_S}, MINUTE_NS) == Finding("b", False, "Lag: lake 90 s; promised is at most 60 s.")


def an_answer(*intervals: Interval) -> Answer:
    return answer(KEY, intervals, NOON, NOON + HOUR_NS)


def test_completeness_names_what_is_missing() -> None:
    whole = an_answer(Interval(NOON, NOON + HOUR_NS, "proven", ""))
    hole = an_answer(Interval(NOON, NOON + MINUTE_NS, "reconciled", ""))
    quotes = an_answer(Interval(NOON, NOON + HOUR_NS, "unprovable", ""))
    assert promises.complete("c", [whole, whole], "2024-03-15") == Finding("c", True, "All 2 are proven or reconciled, 2024-03-15.")
    assert promises.complete("c", [whole, hole, quotes], "2024-03-15").text == (
        "BTC/USDT trade of binance is incomplete: 1 gaps, the first at 2024-03-15 12:01:00.000 UTC; "
        "BTC/USDT trade of binance cannot be proven, 2024-03-15."
    )
    assert promises.complete("c", [], "2024-03-15").kept is False


def test_uptime_counts_gaps_within_the_market_s_time() -> None:
    gap = Interval(NOON, NOON + 36 * NS_PER_S, "unrecoverable", "")
    known = Interval(NOON + 36 * NS_PER_S, NOON + HOUR_NS, "proven", "")
    missing = promises.missing_ns([gap, known], [(NOON - 10, NOON + HOUR_NS)])
    assert missing == 36 * NS_PER_S
    assert promises.missing_ns([gap], [(NOON - HOUR_NS, NOON), (NOON + HOUR_NS, NOON + 2 * HOUR_NS)]) == 0
    assert promises.covered("u", {KEY: missing}, HOUR_NS, 0.99).kept
    assert promises.covered("u", {KEY: missing}, HOUR_NS, 0.991).text == (
        "BTC/USDT trade of binance is covered 99.000% of the time; promised is at least 99.100%."
    )
    assert promises.covered("u", {KEY: 0}, 0, 1.0).kept, "the market was closed"


def test_jobs_disk_and_rejects() -> None:
    assert promises.done("j", "reconcile", HOUR_NS, 24 * HOUR_NS).kept
    assert promises.done("j", "reconcile", None, 24 * HOUR_NS) == Finding(
        "j", False, "reconcile has never succeeded; promised is once every 24.0 h."
    )
    assert promises.roomy("d", 5 * 10**9, 4.9, "/data").kept
    assert promises.accepted("r", 10_000, 10, 0.001).kept
    assert promises.accepted("r", 10_000, 11, 0.001).text == "11 of 10,000 events were rejected (0.110%); promised is at most 0.100%."
    assert promises.accepted("r", 0, 0, 0.0).kept


@pytest.mark.parametrize(
    ("now", "day"),
    [
        ("2026-01-06T07:59-05:00", "2026-01-04"),
        ("2026-01-06T08:00-05:00", "2026-01-05"),
        ("2026-03-08T08:00-04:00", "2026-03-07"),
        ("2026-03-08T07:59-04:00", "2026-03-06"),
        ("2026-11-01T08:00-05:00", "2026-10-31"),
    ],
)
def test_the_day_that_must_be_complete_changes_at_the_promised_time(now: str, day: str) -> None:
    assert str(day_before(ns(now), "08:00", "America/New_York")) == day


# All of it, on a data folder.


def sla(check: str, **settings: Any) -> SlaConfig:
    return SlaConfig(**{"name": check, "check": check, **settings})


def found(config: Config, clock: SetClock) -> dict[str, bool | None]:
    config.root.mkdir(parents=True, exist_ok=True)
    with Promises(config, clock, lambda _: None) as look:
        return {one.name: one.kept for one in look.look()}


def test_every_check_is_looked_up_in_what_the_stages_left(tmp_path: Path, stream: EmbeddedStream) -> None:
    clock = SetClock(NOON + 5 * NS_PER_S)
    config = Config(
        data_dir=str(tmp_path / "data"),
        providers=(ProviderConfig(name="binance", symbols=("BTCUSDT",), channels=("trade",)),),
        sla=(
            sla("freshness", within="10s"),
            sla("latency", within="10ms"),
            sla("backlog", within="1m"),
            sla("completeness", by="08:00"),
            sla("job", job="reconcile", within="1d"),
            sla("disk", at_least=0.001),
            sla("uptime", at_least=0.5),
            sla("rejects", at_most=0.1),
        ),
    )
    stream.append(TICKS_TOPIC, ticks(tick(NOON)))
    (tmp_path / "data" / "status").mkdir()
    pace = {"binance": {"ticks_per_s": 1, "p50_ms": 1.0, "p99_ms": 20.0}}
    status = {"stage": "normalize", "space": "elsewhere", "updated_ns": clock.ns, "providers": pace}
    (tmp_path / "data" / "status" / "normalize.json").write_text(json.dumps(status))
    assert found(config, clock) == {
        "freshness": True,
        "latency": False,
        "backlog": True,
        "completeness": False,
        "job": False,
        "disk": True,
        "uptime": None,
        "rejects": True,
    }
    clock.ns += HOUR_NS
    later = found(config, clock)
    assert (later["freshness"], later["backlog"]) == (False, False), "the lake has not read the tick for an hour"


@pytest.mark.parametrize(
    ("name", "feed", "url", "late"),
    [
        ("alpaca", "delayed_sip", "", True),
        ("polygon", "stocks", "wss://delayed.massive.com", True),
        ("polygon", "stocks", "", False),
        ("alpaca", "sip", "", False),
    ],
)
def test_a_feed_that_is_delayed_by_its_plan_is_fresh_all_the_same(
    name: str, feed: str, url: str, late: bool, tmp_path: Path, stream: EmbeddedStream
) -> None:
    event = NOON + 3 * HOUR_NS  # New York's market is open
    received = event + 15 * MINUTE_NS
    block = ProviderConfig(name=name, feed=feed, url=url, symbols=("AAPL",), channels=("trades" if name == "alpaca" else "T",))
    config = Config(data_dir=str(tmp_path / "data"), providers=(block,), sla=(sla("freshness", within="10s"),))
    stream.append(TICKS_TOPIC, ticks({**tick(event), "received_ns": received, "provider": name, "feed": feed, "symbol": "AAPL"}))
    clock = SetClock(received + 5 * NS_PER_S)
    assert found(config, clock) == {"freshness": late}
    clock.ns += 10 * NS_PER_S
    assert found(config, clock) == {"freshness": False}


def test_without_a_stream_what_needs_one_is_unknown(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path / "data"), sla=(sla("freshness", within="10s"), sla("disk", at_least=0.001)))
    assert found(config, SetClock()) == {"freshness": None, "disk": True}


# The configuration.


@pytest.mark.parametrize(
    ("some", "said"),
    [
        (sla("freshness"), r"\[\[sla\]\] freshness: check = 'freshness' needs within"),
        (sla("disk", at_least=1.0, within="1h"), "check = 'disk' has no within"),
        (sla("latency", within="soon"), 'within = "soon" is not a duration'),
        (sla("completeness", by="25:00"), 'by = "25:00" is not a time of the day'),
        (sla("completeness", by="08:00", timezone="Mars/Base"), 'timezone = "Mars/Base" is not known'),
        (sla("freshness", within="10s", provider="binanse"), "'binanse' is not a provider"),
        (sla("freshness", within="10s", notify=("ops",)), r"there is no \[\[notify\]\] block 'ops'"),
        (sla("job", job="reconsile", within="1d"), "there is no job 'reconsile'"),
    ],
)
def test_a_wrong_promise_is_named_with_the_remedy(some: SlaConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_configuration(Config(sla=(some,)))


def test_two_promises_of_one_name_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="two promises 'disk'"):
        promises_of(Config(sla=(sla("disk", at_least=1.0),) * 2))
    assert promises_of(Config(notify=(NotifyConfig(name="ops", urls_file="f"),), sla=(sla("disk", at_least=1.0, notify=("ops",)),)))


def test_a_dead_scheduler_is_seen_by_check(tmp_path: Path) -> None:
    import time

    from tapeline.orchestration.database import SqliteDatabase
    from tapeline.orchestration.runs import Runs
    from tapeline.telemetry.status import StatusFile

    config = Config(data_dir=str(tmp_path))
    assert {one.what: one.status for one in checks(config)} == {"jobs": 0, "scheduler": 0}
    Runs(SqliteDatabase(tmp_path / "runs.sqlite", time.time_ns)).looked("one")
    assert "looked for due jobs" in list(checks(config))[1].found
    Runs(SqliteDatabase(tmp_path / "runs.sqlite", lambda: time.time_ns() - HOUR_NS)).looked("one")
    assert list(checks(config))[1].status == 0, "nothing runs"
    StatusFile(tmp_path, "run").write({})
    (_, dead) = checks(config)
    assert (dead.status, "Restart" in dead.found) == (69, True)
    wrong = Config(data_dir=str(tmp_path), sla=(sla("disk"),))
    assert [one.status for one in checks(wrong)] == [78]
