"""Symbols that a table of quote assets splits wrongly: by the exchange's own list they are right everywhere, and so by a setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from processes import block, ledger

from tapeline.demo.verify import compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import Home, SimulatorProcess

SYMBOLS = ["ADAEUR", "THETAEUR", "BTCUSDT"]
RIGHT = {"ADA/EUR", "BTC/USDT", "THETA/EUR"}
NAMES = 'names = { ADAEUR = "ADA/EUR", THETAEUR = "THETA/EUR" }\n'


@pytest.mark.parametrize("by", ["the list", "a setting"])
def test_every_event_is_kept_counted_and_proven_under_the_name_that_the_exchange_gives(
    by: str, home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("binance", "--rate", "300", "--limit", "900", "--symbols", ",".join(SYMBOLS))
    settings = {"rest_url": "http://127.0.0.1:1"} if by == "a setting" else {}
    blocks = block("binance", market.url, SYMBOLS, ["trade", "kline_1m"], **settings) + (NAMES if by == "a setting" else "")
    home.configure("repair = false\n" + blocks, ledger=True, flush_seconds=0.2)
    run = home.start("run", "--until-idle", "2")
    assert run.ends() == 0, run.said[-3000:]
    market.stop()
    assert {symbol for (symbol,) in home.rows("SELECT DISTINCT symbol FROM ticks")} == RIGHT
    found = compare(home.lake, [market.journal])
    assert (found.missing, found.extra) == ([], [])
    assert {key.symbol for key in ledger(home)} == RIGHT
    noticed = home.rows("SELECT count(*) FROM notices WHERE kind = 'listed'")[0][0]
    assert bool(noticed) == (by == "the list")


def test_what_is_asked_of_history_is_asked_and_kept_under_the_exchange_s_name(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("binance", "--rate", "200", "--limit", "300", "--symbols", ",".join(SYMBOLS))
    home.configure("repair = false\n" + block("binance", market.url, SYMBOLS, ["trade"]), ledger=True, flush_seconds=0.2)
    run = home.start("run", "--until-idle", "2")
    assert run.ends() == 0, run.said[-3000:]
    for written in ("ADAEUR", "ADA/EUR"):
        asked = home.ask("backfill", "--symbols", written, "--start", "2026-01-05", "--end", "2026-01-06", "--dry-run", "--format", "json")
        assert asked.returncode == 0, asked.stderr
        assert '"ADA/EUR"' in asked.stdout
    wrong = home.ask("backfill", "--symbols", "AD/AEUR", "--start", "2026-01-05", "--end", "2026-01-06", "--dry-run")
    assert (wrong.returncode, "as ADA/EUR" in wrong.stderr) == (78, True)
    market.stop()
