"""The default symbols of the stock, option and crypto feeds of both US vendors."""

from __future__ import annotations

from typing import Final

from tapeline.simulators.market import Instrument

#: symbol, price, typical size
STOCKS: Final = (
    ("AAPL", 228.87, 100),
    ("MSFT", 417.32, 80),
    ("SPY", 591.15, 200),
    ("NVDA", 141.95, 300),
    ("TSLA", 345.16, 120),
    ("AMD", 137.60, 150),
    ("BRK.B", 470.02, 20),
    ("GTE", 0.45, 500),
)
#: OCC symbols without a prefix
OPTIONS: Final = (
    ("SPY271217C00650000", 9.74, 12),
    ("SPY271217P00600000", 18.35, 9),
    ("AAPL271217C00250000", 4.05, 7),
    ("AAPL271217P00200000", 2.84, 5),
    ("NVDA271217C00150000", 7.12, 15),
    ("SPXW271215P04925000", 3.46, 38),
    ("TSLA271217C00400000", 11.20, 6),
    ("AMD271217P00120000", 1.54, 4),
)
#: base and quote, price, price decimals, typical size in units of 10**-8
CRYPTO: Final = (
    (("BTC", "USD"), 97_781.02, 2, 1_200_000),
    (("ETH", "USD"), 3_354.55, 2, 25_000_000),
    (("SOL", "USD"), 256.40, 2, 300_000_000),
    (("AVAX", "USD"), 42.299, 3, 2_000_000_000),
    (("LTC", "USD"), 89.52, 2, 500_000_000),
    (("DOGE", "USD"), 0.3858, 5, 90_000_000_000),
    (("XRP", "USD"), 1.4021, 4, 40_000_000_000),
    (("BAT", "USD"), 0.21718, 5, 70_000_000_000),
)

_POWERS: Final[tuple[int, ...]] = tuple(10**decimals for decimals in range(12))


def stocks(feed: str, symbols: tuple[str, ...]) -> list[Instrument]:
    """Stocks: prices in cents (below a dollar in hundredths of a cent), whole shares."""
    known = {symbol: (price, lots) for symbol, price, lots in STOCKS}
    made = []
    for symbol in symbols:
        price, lots = known.get(symbol, (100.0, 100))
        decimals = 2 if price >= 1 else 4
        made.append(Instrument(feed, symbol, round(price * 10**decimals), decimals, 0, lots))
    return made


def options(feed: str, symbols: tuple[str, ...], prefix: str = "") -> list[Instrument]:
    """Options: prices in cents, whole contracts."""
    known = {prefix + symbol: (price, lots) for symbol, price, lots in OPTIONS}
    made = []
    for symbol in symbols:
        price, lots = known.get(symbol, (5.0, 10))
        made.append(Instrument(feed, symbol, round(price * 100), 2, 0, lots))
    return made


def crypto(feed: str, symbols: tuple[str, ...], separator: str) -> list[Instrument]:
    """Crypto pairs: sizes down to 10**-8 of a coin."""
    known = {separator.join(pair): row for pair, *row in CRYPTO}
    made = []
    for symbol in symbols:
        price, decimals, lots = known.get(symbol, (100.0, 2, 100_000_000))
        ticks = round(float(price) * 10**decimals)
        made.append(Instrument(feed, symbol, ticks, int(decimals), 8, int(lots)))
    return made


def number(units: int, decimals: int) -> float:
    """`units` times 10**-decimals, as the nearest float. It prints as the same decimal number."""
    return units / _POWERS[decimals]
