"""Corrections and cancels through the whole pipeline: what holds in the lake is what holds by the simulator's own journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from processes import block

from proving import PROVE, proof
from tapeline.demo.verify import compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import Home, SimulatorProcess

pytestmark = proof("crashes")

EVENTS = 200_000 if PROVE else 40_000


def test_the_trades_that_hold_are_those_that_hold_by_the_journal(home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    market = simulator("alpaca", "--rate", "8000", "--limit", str(EVENTS), "--seed", "7")
    home.env = {"TAPELINE_ALPACA_KEY": "k", "TAPELINE_ALPACA_SECRET": "s"}
    home.configure("repair = false\n" + block("alpaca", market.url, ["AAPL", "MSFT"], ["trades"], feed="sip"))
    assert home.run("--until-idle", "1.5") == 0
    market.stop()

    holds: dict[tuple[str, int], float] = {}
    corrected, canceled = 0, 0
    for line in map(json.loads, market.journal.read_text().splitlines()):
        event = line["event"]
        if event["T"] == "t":
            holds[event["S"], event["i"]] = event["p"]
        elif event["T"] == "c":
            corrected += 1
            del holds[event["S"], event["oi"]]
            holds[event["S"], event["ci"]] = event["cp"]
        elif event["T"] == "x":
            canceled += 1
            del holds[event["S"], event["i"]]
    assert corrected
    assert canceled
    assert home.rows("SELECT symbol, trade_id::BIGINT, last FROM trades ORDER BY ALL") == sorted((*key, at) for key, at in holds.items())
    assert home.rows("SELECT kind, count(*) FROM amendments GROUP BY kind ORDER BY kind") == [
        ("cancel", canceled),
        ("correction", corrected),
    ]
    found = compare(home.lake, [market.journal])
    assert (found.missing, found.extra, found.rejected) == ([], [], 0)
    assert home.rows("SELECT count(*) FROM ticks") == [(len(holds) + corrected + canceled,)]
    assert all(entry["balanced"] for entry in home.status()["equations"])
