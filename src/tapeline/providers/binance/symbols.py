"""Splits Binance's symbols into base and quote, and checks canonical names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from tapeline.providers.events import (
    NO_NAMES,
)

#: The assets that Binance quotes prices in. They split a symbol if Binance's own list (exchangeInfo) was never received: the longest asset
#: at the symbol's end is the quote.
QUOTE_ASSETS: Final = frozenset(
    "AEUR ARS AUD BIDR BKRW BNB BRL BTC BUSD BVND COP CZK DAI DOGE DOT ETH EUR EURI FDUSD GBP GYEN IDR IDRT JPY MXN NGN PAX PLN"
    " RLUSD RON RUB SOL TRX TRY TUSD U UAH USD1 USDC USDE USDP USDS USDT UST VAI XRP XUSD ZAR".split()
)
_LONGEST_QUOTE: Final = max(map(len, QUOTE_ASSETS))
_PAIR: Final = re.compile(r"[^\s/a-z]+/[^\s/a-z]+")


def canonical(symbol: str, names: Mapping[str, str] = NO_NAMES) -> str | None:
    """The canonical symbol: `BTCUSDT` becomes `BTC/USDT`. `names` has priority over the table of quote assets.

    A canonical symbol stays as it is. None if the symbol ends in no known quote asset."""
    return symbol if "/" in symbol else names.get(symbol) or _by_table(symbol)


@lru_cache(maxsize=65_536)
def _by_table(symbol: str) -> str | None:
    for length in range(min(_LONGEST_QUOTE, len(symbol) - 1), 0, -1):
        if symbol[-length:] in QUOTE_ASSETS:
            return f"{symbol[:-length]}/{symbol[-length:]}"
    return None


def symbol_of(feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str | None:
    """The canonical symbol for a canonical symbol or for the provider's own name; None if the name ends in no known quote asset."""
    del feed
    return symbol if "/" in symbol else canonical(symbol.upper(), names)


def name_problem(feed: str, symbol: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """Why events of a canonical symbol would not be kept under that name; empty if they would."""
    del feed
    if not _PAIR.fullmatch(symbol):
        return "a pair is written like BTC/USDT"
    name = symbol.replace("/", "")
    again = canonical(name, names)
    if again is None:
        return "it ends in no known quote asset"
    return "" if again == symbol else f"Tapeline stores events of {name} as {again}"
