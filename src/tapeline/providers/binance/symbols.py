"""Binance's symbols: how one splits into base and quote, and which names stand for themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from tapeline.providers.events import (
    NO_NAMES,
)

#: Assets that Binance quotes prices in: where its own list (exchangeInfo) was never had, the longest that ends a symbol splits it.
QUOTE_ASSETS: Final = frozenset(
    "AEUR ARS AUD BIDR BKRW BNB BRL BTC BUSD BVND COP CZK DAI DOGE DOT ETH EUR EURI FDUSD GBP GYEN IDR IDRT JPY MXN NGN PAX PLN"
    " RLUSD RON RUB SOL TRX TRY TUSD U UAH USD1 USDC USDE USDP USDS USDT UST VAI XRP XUSD ZAR".split()
)
_LONGEST_QUOTE: Final = max(map(len, QUOTE_ASSETS))
_PAIR: Final = re.compile(r"[^\s/a-z]+/[^\s/a-z]+")


def canonical(symbol: str, names: Mapping[str, str] = NO_NAMES) -> str | None:
    """`BTCUSDT` to `BTC/USDT`: as `names` has it, else by the table; None where no known quote asset ends it. A canonical one is itself."""
    return symbol if "/" in symbol else names.get(symbol) or _by_table(symbol)


@lru_cache(maxsize=65_536)
def _by_table(symbol: str) -> str | None:
    for length in range(min(_LONGEST_QUOTE, len(symbol) - 1), 0, -1):
        if symbol[-length:] in QUOTE_ASSETS:
            return f"{symbol[:-length]}/{symbol[-length:]}"
    return None


def symbol_of(feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str | None:
    """The canonical symbol, of itself or of the provider's own name for it; None where no known quote asset ends the name."""
    del feed
    return symbol if "/" in symbol else canonical(symbol.upper(), names)


def name_problem(feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """Why events of a canonical symbol would not be kept under that name; empty: they are."""
    del feed
    if not _PAIR.fullmatch(symbol):
        return "a pair is written such as BTC/USDT"
    name = symbol.replace("/", "")
    again = canonical(name, names)
    if again is None:
        return "no known quote asset ends it"
    return "" if again == symbol else f"events of {name} are kept as {again}"
