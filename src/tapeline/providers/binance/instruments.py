"""Binance spot's list of instruments: one page, `exchangeInfo`. Pure: this module sends nothing.

Facts: Binance's public spot API documentation, "Exchange information" and "Filters".

- One answer of weight 20 has every symbol, also those that do not trade now. `status` is TRADING, HALT or BREAK, among others.
- BREAK is the status of a symbol in a pause, and of one that was delisted. Only the absence of a symbol proves that it was delisted.
- A symbol has no id beside its name, so a renaming cannot be told from a delisting and a listing.
- A filter whose step is zero sets no rule.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tapeline.providers.events import UNREADABLE
from tapeline.providers.history import Request, WrongPage
from tapeline.providers.instruments import Instrument, ListPage, instruments_of, step

MARKETS: Final = {"spot": "spot"}


class _Filter(msgspec.Struct):
    filterType: str = ""  # noqa: N815 the wire's own name
    tickSize: str | None = None  # noqa: N815
    stepSize: str | None = None  # noqa: N815


class _Symbol(msgspec.Struct):
    """`{"symbol":"ETHBTC","status":"TRADING","baseAsset":"ETH","quoteAsset":"BTC","filters":[{"filterType":"PRICE_FILTER",
    "minPrice":"0.00000100","maxPrice":"100000.00000000","tickSize":"0.00000100"},...],...}`"""

    symbol: str
    status: str
    baseAsset: str  # noqa: N815 the wire's own name
    quoteAsset: str  # noqa: N815
    filters: list[_Filter] = []


class _ExchangeInfo(msgspec.Struct):
    symbols: list[msgspec.Raw]


_PAGE: Final = msgspec.json.Decoder(_ExchangeInfo).decode
_ROW: Final = msgspec.json.Decoder(_Symbol).decode


def first(market: str) -> list[Request]:
    """The one request. It leaves out the sets of permissions, which would be most of the answer."""
    del market
    return [Request("/api/v3/exchangeInfo?showPermissionSets=false", 20)]


def page(market: str, request: Request, body: bytes) -> ListPage:
    """The instruments of the page. Raises WrongPage."""
    del market
    try:
        return ListPage(instruments_of(_PAGE(body).symbols, _instrument))
    except UNREADABLE as error:
        raise WrongPage(f"{request.path} cannot be read: {error}. The list was not used.") from error


def _instrument(text: bytes) -> Instrument:
    row = _ROW(text)
    if not (row.baseAsset and row.quoteAsset):
        raise ValueError("it has no base or no quote asset")
    steps = {one.filterType: one for one in row.filters}
    price, size = steps.get("PRICE_FILTER"), steps.get("LOT_SIZE")
    return Instrument(
        f"{row.baseAsset}/{row.quoteAsset}",
        row.symbol,
        kind="crypto",
        base=row.baseAsset,
        quote=row.quoteAsset,
        exchange="binance",
        status=row.status,
        tick_size=step(price.tickSize) if price is not None else None,
        lot_size=step(size.stepSize) if size is not None else None,
    )
