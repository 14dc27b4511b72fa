"""Simulators that misbehave, against the whole pipeline: the lake holds what they sent, and what nobody can read is rejected."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from processes import block

from proving import PROVE, proof
from tapeline.demo.verify import compare
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import Home, SimulatorProcess

pytestmark = proof("crashes")

KEYS = {"TAPELINE_POLYGON_KEY": "k", "TAPELINE_ALPACA_KEY": "k", "TAPELINE_ALPACA_SECRET": "s"}
EVENTS = 6000 if PROVE else 800
DATA_FAULTS = ("garbage", "truncated", "wrong_types", "unknown_event", "duplicate", "reorder", "split")


def blocks(binance: str, polygon: str, alpaca: str, **more: str | float) -> str:
    """One feed of each provider."""
    return (
        block("binance", binance, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker", "kline_1s"], **more)
        + block("polygon", polygon, ["AAPL", "NVDA"], ["T", "Q", "A"], **more)
        + block("alpaca", alpaca, ["BTC/USD", "ETH/USD"], ["trades", "quotes"], feed="crypto", **more)
    )


def lines(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def test_faulty_data_harms_nothing_but_itself(home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    # Of frames: on a busy machine a provider packs its events into few of them.
    faults = [f"--fault={name}:{0.3 if name == 'duplicate' else 0.03}" for name in DATA_FAULTS]
    simulators = [
        simulator(name, "--rate", "600", "--limit", str(EVENTS), "--seed", "7", *faults) for name in ("binance", "polygon", "alpaca")
    ]
    home.env = KEYS
    home.configure(blocks(*(one.url for one in simulators)))
    assert home.run("--until-idle", "0.8") == 0
    for one in simulators:
        one.stop()

    found = compare(home.lake, [one.journal for one in simulators], once=True)
    assert (found.missing, found.extra) == ([], [])
    assert found.sent == 3 * EVENTS
    told = [line for one in simulators for line in lines(one.journal)]
    malformed = [line["text"].encode() if "text" in line else bytes.fromhex(line["hex"]) for line in told if line.get("raw")]
    rejects = home.rows("SELECT payload, reason, raw_offset, raw_index FROM rejected")
    payloads = [payload for payload, *_ in rejects]
    for data in sorted(malformed, key=len, reverse=True):
        match = next((payload for payload in payloads if data in payload), None)
        assert match is not None, f"not among the rejected: {data!r}"
        payloads.remove(match)
    assert payloads == []
    assert all(reason for _, reason, *_ in rejects)
    assert len({(offset, index) for *_, offset, index in rejects}) == len(rejects)

    repeats = Counter(line["provider"] for line in told if line.get("repeat") and not line.get("raw"))
    assert all(repeats[name] for name in ("binance", "polygon", "alpaca"))
    status = home.status()
    assert all(entry["balanced"] for entry in status["equations"])
    assert sum(entry.get("duplicates", 0) for entry in status["equations"]) == repeats.total()
    assert sum(provider["rejected"] for provider in status["providers"].values()) == len(rejects) == found.rejected
    assert found.exact


def test_broken_connections_cost_nothing_that_the_provider_sends_again(home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    events = 500
    options = ("--rate", "250", "--limit", str(events), "--fault", "rewind:all", "--fault")
    simulators = [
        simulator("binance", *options, "reset:1"),
        simulator("polygon", *options, "close:1"),
        simulator("alpaca", *options, "stale:1"),
    ]
    journals = [one.journal for one in simulators]
    home.env = KEYS
    home.configure(blocks(*(one.url for one in simulators), stale_after=1.0))
    run = home.start("run")

    def everything() -> bool:
        time.sleep(0.3)
        found = compare(home.lake, journals, once=True)
        return found.sent == found.kept == 3 * events and not found.missing

    until(everything, "not everything has come")
    closes = "SELECT count(*) FROM notices WHERE kind = 'closed' AND provider = '{}' AND detail LIKE '%{}%'"
    how = {"binance": "network", "polygon": "1001", "alpaca": "stale: no data"}
    for provider, word in how.items():
        query = closes.format(provider, word)
        until(lambda query=query: home.rows(query) > [(0,)], f"no close of {provider}")  # type: ignore[misc]
    run.send(signal.SIGTERM)
    assert run.ends() == 0, run.said
    for one in simulators:
        one.stop()
    found = compare(home.lake, journals, once=True)
    assert (found.missing, found.extra, found.rejected) == ([], [], 0)
    assert all(entry["balanced"] for entry in home.status()["equations"])


@pytest.mark.parametrize("way", ["rotate_after", "day_end"])
def test_connections_that_overlap_neither_double_nor_lose_an_event(
    way: str, home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    events = 1200
    options = ("--day-seconds", "2.5") if way == "day_end" else ()
    market = simulator("binance", "--rate", "300", "--limit", str(events), *options)
    more = {} if way == "day_end" else {"rotate_after": 1.5}
    home.configure(block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker"], **more))
    assert home.run("--until-idle", "0.8") == 0
    market.stop()
    found = compare(home.lake, [market.journal], once=True)
    assert (found.missing, found.extra, found.rejected, found.sent) == ([], [], 0, events)

    told = lines(market.journal)
    (_, *_, ticks) = [entry for entry in home.status()["equations"] if entry["what"] in ("ticks", "events of binance/spot")]
    assert len({line["connection"] for line in told}) >= 2
    assert ticks["duplicates"] <= len(told) - events
    assert ticks["rows"] == events
    ((replaced,),) = home.rows("SELECT count(*) FROM notices WHERE kind = 'closed' AND detail LIKE '%replaced by%'")
    # At the end of a day the provider may be the first to close, before the two connections had an event in common.
    assert (replaced and ticks["duplicates"]) or way == "day_end"
