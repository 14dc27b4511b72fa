"""The ledger beside the running pipeline: what the simulator knows that it never sent is what the ledger says is missing, whoever dies."""

from __future__ import annotations

import json
import signal
import time
from collections import defaultdict
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from processes import Home, block, ledger

from proving import PROVE, proof
from tapeline.app.histories import open_histories
from tapeline.config import load
from tapeline.demo.verify import compare
from tapeline.jobs.repair import repair, wanted
from tapeline.ledger.facts import ONGOING, Interval, Key
from tapeline.ledger.intervals import COVERED
from tapeline.records import NS_PER_S
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import SimulatorProcess

pytestmark = proof("crashes")

EVENTS = 20_000 if PROVE else 3_000


def settled() -> int:
    """A minute from now: what has happened by now is in the history for good."""
    return time.time_ns() + 60 * NS_PER_S


def lost_and_sent(journal: Path) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """The trade ids of each symbol that the simulator never sent, and those that it did."""
    lost, sent = defaultdict(set), defaultdict(set)
    for line in map(json.loads, journal.read_text().splitlines()):
        event: dict[str, Any] = line["event"]
        if event.get("e") == "trade":
            (lost if line.get("skipped") else sent)[f"{event['s'][:-4]}/USDT"].add(int(event["t"]))
    return lost, sent


def missing(found: list[Interval]) -> set[int]:
    return {
        number
        for one in found
        if one.state == "open" and one.first_id is not None and one.last_id is not None
        for number in range(one.first_id, one.last_id + 1)
    }


def test_exactly_what_was_never_sent_is_missing_although_the_ledger_is_killed(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator(
        "binance", "--rate", "600", "--limit", str(EVENTS), "--fault", "skip:0.08", "--fault", "duplicate:0.02", "--seed", "5"
    )
    home.configure("repair = false\n" + block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker"]), ledger=True)
    run = home.start("run", "--until-idle", "1.5")
    for _ in range(6 if PROVE else 2):
        time.sleep(0.8)
        home.kill("ledger")
    assert run.ends() == 0, run.said
    market.stop()
    lost, sent = lost_and_sent(market.journal)
    found = ledger(home)
    for symbol in ("BTC/USDT", "ETH/USDT"):
        between = {number for number in lost[symbol] if min(sent[symbol]) < number < max(sent[symbol])}
        assert between
        assert missing(found[Key("binance", "spot", "trade", symbol)]) == between
        proven = [one for one in found[Key("binance", "spot", "trade", symbol)] if one.state == "proven"]
        assert {number for one in proven for number in range(one.first_id or 0, (one.last_id or 0) + 1)} == sent[symbol]

    # The same from the beginning, as a ledger that was lost is made again.
    (home.root / "ledger.sqlite").unlink()
    for extra in home.root.glob("ledger.sqlite-*"):
        extra.unlink()
    again = home.start("ledger")
    until(lambda: ledger(home) == found, "a replay of the raw topic makes the same ledger")
    again.send(signal.SIGTERM)
    assert again.ends() == 0, again.said

    counted = "SELECT coalesce(sum(last_id - first_id + 1), 0) FROM gaps WHERE channel = 'trade'"
    told = home.ask("sql", counted, "--format", "csv")
    assert told.stdout.splitlines()[1] == str(sum(len(missing(some)) for some in found.values())), told.stderr


def test_gaps_fill_by_themselves_from_the_provider_s_history_whoever_dies(home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    faults = [f"--fault={fault}" for fault in ("skip:0.02", "reset:2.5", "rest_429:1", "rest_error:2")]
    market = simulator("binance", "--rate", "500", "--limit", str(EVENTS), "--seed", "9", *faults)
    home.configure(block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "aggTrade", "kline_1s"]), ledger=True)
    run = home.start("run")
    for stage in ("ledger", "repair", "normalize", "ingest", "lake") * (3 if PROVE else 1):
        time.sleep(0.7)
        home.kill(stage)

    def happened() -> set[tuple[str, str, int]]:
        """All but what was never sent at either end, of which nobody can know: no later id tells."""
        told = [json.loads(line) for line in market.journal.read_text().splitlines() if line.endswith("}")]
        events = [(one["event"], bool(one.get("skipped"))) for one in told if one["event"]["e"] in ("trade", "aggTrade")]
        ids = [((one["e"], one["s"]), one.get("t", one.get("a")), skipped) for one, skipped in events]
        sent = {stream: [number for of, number, skipped in ids if of == stream and not skipped] for stream, _, _ in ids}
        return {(*of, number) for of, number, _ in ids if sent[of] and min(sent[of]) <= number <= max(sent[of])}

    def kept() -> set[tuple[str, str, int]]:
        found = home.rows("SELECT channel, replace(symbol, '/', ''), sequence FROM ticks")
        assert len(found) == len(set(found))
        return set(found)

    until(lambda: len(happened()) > EVENTS / 2 and happened() <= kept(), "everything that happened is kept")
    run.send(signal.SIGTERM)
    assert run.ends() == 0, run.said
    market.stop()
    assert happened() <= kept()
    for symbol in ("BTCUSDT", "ETHUSDT"):
        for channel in ("trade", "aggTrade"):
            ids = sorted(number for name, of, number in kept() if (name, of) == (channel, symbol))
            assert ids == list(range(ids[0], ids[-1] + 1))
            found = ledger(home)[Key("binance", "spot", channel, f"{symbol[:3]}/USDT")]
            assert missing(found) == set()
    bars = home.rows("SELECT symbol, ts_ns FROM bars WHERE final ORDER BY symbol, ts_ns")
    for symbol in ("BTC/USDT", "ETH/USDT"):
        at = [ns for name, ns in bars if name == symbol]
        assert at == list(range(at[0], at[-1] + 1, 1_000_000_000))
    assert all(entry["balanced"] for entry in home.status()["equations"])


def test_what_alpaca_sent_while_nobody_listened_is_read_from_its_history_and_is_there_once(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("alpaca", "--rate", "150", "--seed", "3")
    blocks = block("alpaca", market.url, ["AAPL"], ["trades", "quotes"], feed="iex")
    blocks += block("alpaca", market.url, ["BTC/USD"], ["trades"], feed="crypto")
    home.env = {"TAPELINE_ALPACA_KEY": "k", "TAPELINE_ALPACA_SECRET": "s"}
    home.configure("repair = false\n" + blocks, ledger=True)
    run = home.start("run")
    until(lambda: home.lake.exists() and len(home.rows("SELECT DISTINCT feed, channel FROM ticks")) == 3, "everything flows")
    # Another account listens too: so the market goes on while we do not.
    other = Home(home.root.with_name("other"), home.spawn, {"TAPELINE_ALPACA_KEY": "o", "TAPELINE_ALPACA_SECRET": "s"})
    other.configure(blocks)
    listener = other.start("ingest")
    until(lambda: [line["connected"] for line in other.word("ingest").get("lines", {}).values()] == [True, True], "the other listens")
    home.kill("ingest")
    keys = [Key("alpaca", "iex", "trades", "AAPL"), Key("alpaca", "iex", "quotes", "AAPL"), Key("alpaca", "crypto", "trades", "BTC/USD")]

    def states() -> list[set[str]]:
        return [{one.state for one in ledger(home).get(key, []) if one.end_ns != ONGOING} for key in keys]

    until(lambda: all("open" in some for some in states()), "the break is a gap of each")

    stream, sources = home.stream(), open_histories(load(home.config, home.env), home.env, Random(1))
    gaps = wanted(ledger(home), sources, settled())
    assert {key for key, _, _ in gaps} == set(keys)
    for key, _, span in gaps:
        assert repair(key, span, replace(sources[key[:2]], clock=settled), stream, "repair-1").events
    stream.close()
    until(lambda: states() == [{"unprovable", "reconciled"}] * 3, "each gap is reconciled")
    assert wanted(ledger(home), sources, settled()) == []

    market.stop()

    def differences() -> list[dict[str, Any]]:
        found = compare(home.lake, [market.journal], once=True)
        return [row for row in (*found.missing, *found.extra) if row["kind"] != "notice"]

    until(lambda: not differences(), "the lake holds what was sent, each once")
    for process in (listener, run):
        process.send(signal.SIGTERM)
        assert process.ends() == 0, process.said
    assert differences() == []
    came = "SELECT DISTINCT t.feed, t.channel FROM ticks t JOIN notices n USING (raw_partition, raw_offset) WHERE n.kind = 'fetched'"
    assert set(home.rows(came)) == {(key.feed, key.channel) for key in keys}  # nothing but the history had them
    assert all(entry["balanced"] for entry in home.status()["equations"])


def test_every_break_opens_a_gap_where_nothing_can_be_counted_and_the_commands_say_so(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("alpaca", "--rate", "200", "--fault", "reset:3", "--seed", "3")
    home.env = {"TAPELINE_ALPACA_KEY": "k", "TAPELINE_ALPACA_SECRET": "s"}
    home.configure("repair = false\n" + block("alpaca", market.url, ["BTC/USD"], ["quotes"], feed="crypto"), ledger=True)
    run = home.start("run")
    key = Key("alpaca", "crypto", "quotes", "BTC/USD")
    until(lambda: [one.state for one in ledger(home).get(key, [])].count("open") >= 2, "two breaks were noticed")
    until(lambda: any(line["connected"] for line in home.word("ingest")["lines"].values()), "it is connected again")
    home.kill("ingest")
    killed = len(ledger(home)[key])
    until(lambda: len(ledger(home)[key]) >= killed + 2, "the restart was noticed")
    if not any("as when the process was killed" in one.evidence for one in ledger(home)[key]):  # a reset came just before the kill
        until(lambda: any(line["connected"] for line in home.word("ingest")["lines"].values()), "it is connected again")
        home.kill("ingest")
        until(lambda: any("as when the process was killed" in one.evidence for one in ledger(home)[key]), "the kill was noticed")
    run.send(signal.SIGTERM)
    assert run.ends() == 0, run.said
    market.stop()
    found = ledger(home)[key]
    opens = [one for one in found if one.state not in COVERED]
    assert {one.evidence for one in opens} >= {
        "the connection broke without a close",
        "the connection ended without a word, as when the process was killed",
    }
    assert (opens[-1], opens[-1].end_ns) == (found[-1], ONGOING)
    heard = [(one.start_ns, one.end_ns) for one in found if one.state == "unprovable"]
    events = [ns for (ns,) in home.rows("SELECT received_ns FROM ticks")]
    assert all(any(start <= ns <= end for start, end in heard) for ns in events)

    status = home.status()
    assert status["gaps"] == {"open": len(opens)}
    assert f"gaps: {len(opens)} open" in home.ask("status").stdout
    shown = home.ask("gaps")
    assert shown.returncode == 1
    assert "BTC/USD, alpaca crypto quotes" in shown.stdout
    assert "the connection broke without a close" in shown.stdout
    day = time.strftime("%Y-%m-%d", time.gmtime(found[0].start_ns / 1e9))
    assert home.ask("complete", "BTC/USD", day).returncode == 1
    asked = home.ask("complete", "BTC-USD", day)
    assert asked.returncode == 78
    assert "Did you mean 'BTC/USD'?" in asked.stderr
    answer = json.loads(home.ask("complete", "BTC/USD", day, "--format", "json").stdout)
    assert answer["verdict"] == "incomplete"
    assert [one["state"] for one in answer["intervals"]][1:] == [one.state for one in found]
    assert home.ask("gaps", "--symbol", "ETH/USD").returncode == 78
