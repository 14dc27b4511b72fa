"""Two lines to one market, over endpoints that die and stall: nothing is lost, nothing comes twice, no gap opens."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from endpoint import Endpoint
from processes import block, ledger, records

from proving import PROVE, proof
from tapeline.demo.verify import compare
from tapeline.ledger.facts import ONGOING, Interval, Key
from tapeline.ledger.intervals import COVERED
from tapeline.providers.binance.session import content
from tapeline.records import RAW_TOPIC, TICKS_TOPIC
from tapeline.telemetry import families
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import Home, SimulatorProcess

pytestmark = proof("chaos")

SEEDS = range(6) if PROVE else range(1)
ROUNDS = 12 if PROVE else 3
CHANNELS = ("trade", "bookTicker", "kline_1s")


def holes(home: Home) -> list[tuple[Key, Interval]]:
    """What the ledger misses, but for what has no end yet after the last line has closed."""
    return [(key, one) for key, found in ledger(home).items() for one in found if one.state not in COVERED]


@pytest.mark.parametrize("seed", SEEDS)
def test_killing_or_stalling_either_line_at_any_moment_loses_nothing_and_opens_no_gap(
    seed: int, home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    random = Random(seed)
    market = simulator("binance", "--rate", "500", "--seed", str(seed + 1))
    with ExitStack() as stack:
        ends = [Endpoint(market.url, stack) for _ in range(2)]
        home.configure(
            "repair = false\n" + block("binance", ends[0].url, ["BTCUSDT", "ETHUSDT"], CHANNELS, lines=2, second_url=ends[1].url),
            ledger=True,
        )
        run = home.start("run")
        names = ("binance-spot-0", "binance-spot-0-second")

        def status_of(line: int) -> dict[str, Any]:
            found: dict[str, Any] = home.word("ingest").get("lines", {}).get(names[line], {})
            return found

        def brought(line: int) -> int:
            told = status_of(line)
            return int(told["arbitration"]["events"]) if told.get("connected") else 0

        def no_gap_stays() -> None:
            """Between two records of the one line, a moment of the other may not be covered yet as far as the ledger has read."""
            until(lambda: not holes(home), "no gap is known")

        def flows(line: int, events: int = 100) -> None:
            """It brings what is new, more than what had waited, so that the other one may die."""
            before = until(lambda: brought(line), "the line is connected")
            until(lambda: brought(line) > before + events, "the line brings events")

        flows(0), flows(1)
        word = home.word("ingest")
        counted = {labels[2]: count for metric, labels, count in word["metrics"] if metric == families.LINE_EVENTS.name}
        assert counted == {name: word["lines"][name]["arbitration"]["events"] for name in names}, "the metrics say the same"
        until(lambda: len(ledger(home)) == 2 * len(CHANNELS) and not holes(home), "the ledger knows of every channel, and of no gap")
        for turn in range(ROUNDS):
            line = random.randrange(2)
            time.sleep(random.random() / 2)
            if turn % 2:
                ends[line].send(signal.SIGSTOP)
                time.sleep(random.random())
                no_gap_stays()
                ends[line].send(signal.SIGCONT)
            else:
                connects = status_of(line)["connects"]
                ends[line].kill()
                time.sleep(random.random())
                no_gap_stays()
                ends[line].start()
                until(lambda line=line, connects=connects: status_of(line)["connects"] > connects, "it is dialed again")  # type: ignore[misc]
            flows(line, 600 if turn % 2 else 100)
            no_gap_stays()
        run.send(signal.SIGTERM)
        assert run.ends() == 0, run.said
        market.stop()

    missed = holes(home)
    assert [(one.end_ns, one.evidence) for _, one in missed] == [(ONGOING, "closed by tapeline: stopped")] * 2 * len(CHANNELS), missed
    stopped_ns = max(row["received_ns"] for row in records(home.stream(), RAW_TOPIC) if row["kind"] == "frame")
    found = compare(home.lake, [market.journal], once=True)
    assert found.extra == []
    # What the simulator said while the lines were closing reached nobody: it is behind everything that is kept.
    kept = home.rows("SELECT channel, replace(symbol, '/', ''), max(sequence) FROM ticks GROUP BY ALL")
    last = {(channel, symbol): number for channel, symbol, number in kept}
    assert len(last) == 4
    assert all(int(row["id"]) > last[row["channel"], row["symbol"]] for row in found.missing if row["kind"] != "bar")
    assert all(row["ts_ns"] > stopped_ns - 2_000_000_000 for row in found.missing if row["kind"] == "bar")

    ticks = Counter((row["channel"], row["symbol"], row["sequence"]) for row in records(home.stream(), TICKS_TOPIC))
    assert set(ticks.values()) == {1}  # who reads the topic sees each tick once
    raw = records(home.stream(), RAW_TOPIC)
    assert {row["at"] for row in raw if row["kind"] in ("frame", "repeated")} == {0}
    frames = [row["payload"] for row in raw if row["kind"] == "frame"]
    copies = [row["payload"] for row in raw if row["kind"] == "repeated"]
    assert len(copies) > len(frames) / 3
    status = home.status()
    assert set(status["lines"]) == set(names)
    assert sum(line["first"] for line in status["lines"].values()) == sum(frame.startswith(b'{"stream"') for frame in frames)
    assert sum(line["reconnects"] for line in status["lines"].values()) >= ROUNDS / 2
    assert all(entry["balanced"] for entry in status["equations"])
    (normalize,) = [entry for entry in status["equations"] if entry["stage"] == "normalize"]
    assert normalize["duplicates"] == len(copies)
    assert "lines that carry the same" in home.ask("status").stdout


def test_what_either_line_brings_is_kept_once_and_what_neither_brings_is_the_gap(
    home: Home, simulator: Callable[..., SimulatorProcess], captures: list[Path]
) -> None:
    options = (
        f"--capture={captures[0]}",
        "--speed",
        "0",
        "--limit",
        "5000",
        "--fault",
        "skip:0.1",
        "--fault",
        "duplicate:0.02",
        "--fault",
        "garbage:0.01",
    )
    markets = [simulator("binance", *options, "--seed", seed) for seed in ("1", "2")]
    home.configure(
        "repair = false\n" + block("binance", markets[0].url, ["BTCUSDT"], ["trade", "bookTicker"], lines=2, second_url=markets[1].url),
        ledger=True,
    )
    assert home.run("--until-idle", "2.5") == 0
    for market in markets:
        market.stop()
    found = compare(home.lake, [market.journal for market in markets], once=True)
    assert (found.missing, found.extra, found.exact) == ([], [], True)

    told = [[json.loads(line) for line in market.journal.read_text().splitlines()] for market in markets]
    had = [{one["event"]["t"] for one in some if one.get("channel") == "trade" and not one.get("skipped")} for some in told]
    lost = {one["event"]["t"] for some in told for one in some if one.get("channel") == "trade"} - had[0] - had[1]
    everything = had[0] | had[1]
    opened = [
        number
        for one in ledger(home)[Key("binance", "spot", "trade", "BTC/USDT")]
        if one.first_id is not None and one.state == "open"
        for number in range(one.first_id, (one.last_id or 0) + 1)
    ]
    assert set(opened) == {number for number in lost if min(everything) < number < max(everything)}
    assert opened
    lines = home.status()["lines"]
    events = [{(one["channel"], one["id"]) for one in some if not one.get("skipped") and not one.get("raw")} for some in told]
    assert [line["events"] for line in lines.values()] == [len(some) for some in events]
    assert sum(line["first"] for line in lines.values()) == len(events[0] | events[1])
    ticks = Counter((row["channel"], row["sequence"]) for row in records(home.stream(), TICKS_TOPIC))
    assert set(ticks.values()) == {1}


@pytest.mark.parametrize("seed", SEEDS)
def test_when_ingest_is_killed_no_later_copy_is_kept_without_the_first(
    seed: int, home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    random = Random(seed)
    market = simulator("binance", "--rate", "600", "--fault", "rewind:all")
    again = market.url.replace("127.0.0.1", "localhost")
    home.configure(block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker"], lines=2, second_url=again))
    run = home.start("run", "--until-idle", "1.5")
    for _ in range(4 if PROVE else 2):
        until(lambda: len(home.word("ingest").get("lines", {})) == 2 and home.pid("ingest"), "ingest runs")
        time.sleep(random.random())
        home.kill("ingest")
    until(lambda: len(home.word("ingest").get("lines", {})) == 2 and home.pid("ingest"), "ingest runs")
    market.halt()
    assert run.ends() == 0, run.said
    market.stop()
    found = compare(home.lake, [market.journal], once=True)
    assert (found.missing, found.extra, found.rejected) == ([], [], 0)
    first, copies = set[bytes | None](), 0
    for row in records(home.stream(), RAW_TOPIC):
        if row["kind"] == "frame":
            first.add(content(row["payload"]))
        elif row["kind"] == "repeated":
            copies += 1
            assert content(row["payload"]) in first
    assert copies > 100
    assert all(entry["balanced"] for entry in home.status()["equations"])
