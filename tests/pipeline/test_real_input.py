"""What an exchange really sent: two recordings, replayed through sockets into the lake, equal in content."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from processes import block, kept

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import Home, Quote, SimulatorProcess, Trade

#: Counted apart from this project, in the README of the recordings.
TRADES = {"BTC/USDT": 9_757, "ETH/USDT": 6_106}
QUOTES = {"BTC/USDT": 28_040, "ETH/USDT": 24_077}
TRADE_IDS = {"BTC/USDT": (3735683259, 3735693015), "ETH/USDT": (1520538925, 1520545030)}
TURNOVER = {"BTC/USDT": Decimal("13084074.1123886"), "ETH/USDT": Decimal("6066483.27618")}


def test_the_lake_holds_exactly_what_was_recorded(
    home: Home,
    simulator: Callable[..., SimulatorProcess],
    captures: list[Path],
    recordings: tuple[list[Trade], list[Quote]],
) -> None:
    replay = simulator("binance", *(f"--capture={path}" for path in captures), "--speed", "0")
    home.configure(block("binance", replay.url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker"]))
    assert home.run("--until-idle", "1") == 0

    trades, quotes = kept(home.lake)
    assert trades == recordings[0]
    assert quotes == recordings[1]
    for symbol, count in TRADES.items():
        mine = [trade for trade in trades if trade.symbol == symbol]
        first, last = TRADE_IDS[symbol]
        assert [int(trade.trade_id) for trade in mine] == list(range(first, last + 1))
        assert len(mine) == count
        assert sum(trade.price * trade.size for trade in mine) == TURNOVER[symbol]
        assert sum(quote.symbol == symbol for quote in quotes) == QUOTES[symbol]
    others = "SELECT count(*) FROM bars UNION ALL SELECT count(*) FROM rejected"
    assert home.rows(others) == [(0,), (0,)]
    assert all(entry["balanced"] for entry in home.status()["equations"])
