"""Alpaca's lists of instruments: the assets of stocks and crypto, and the contracts of options. Pure: this module sends nothing.

Facts: Alpaca's trading API documentation, "Assets" and "Option contracts".

- The lists are on the host of the trading API, not on that of the market data. A paper account has another host than a live one.
- `/v2/assets` gives a class's assets of one status, active or inactive, in one answer.
- `/v2/options/contracts` has at most 10,000 contracts a page, and names the next page (`next_page_token`). Without a date it has those that
  expire within a week. Expired contracts are left out.
- An asset keeps its `id` when its symbol changes. A symbol that is used again has another `id`.
- `us_equity` is the class of stocks and of funds. The list does not say which of the two an asset is.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import msgspec

from tapeline.providers.events import UNREADABLE
from tapeline.providers.history import Request, WrongPage
from tapeline.providers.instruments import Instrument, ListPage, instruments_of, step

URL: Final = "https://api.alpaca.markets"
ADVICE: Final = 'The keys of a paper account need lists_url = "https://paper-api.alpaca.markets" in the [[providers]] block.'
MARKETS: Final = {
    **dict.fromkeys(("iex", "sip", "delayed_sip"), "stocks"),
    **dict.fromkeys(("opra", "indicative"), "options"),
    "crypto": "crypto",
}
_CLASSES: Final = {"stocks": "us_equity", "crypto": "crypto"}
_CONTRACTS: Final = "/v2/options/contracts?status=active&expiration_date_lte=2099-12-31&limit=10000"
#: The exchanges of assets to their MICs. Another name stays as it is.
_EXCHANGES: Final = {
    "AMEX": "XASE",
    "ARCA": "ARCX",
    "NYSEARCA": "ARCX",
    "BATS": "BATS",
    "NYSE": "XNYS",
    "NASDAQ": "XNAS",
    "OTC": "OOTC",
}


class _Asset(msgspec.Struct):
    """`{"id":"904837e3-3b76-47ec-b432-046db621571b","class":"us_equity","exchange":"NASDAQ","symbol":"AAPL",
    "name":"Apple Inc. Common Stock","status":"active","tradable":true,...}`. Crypto has `min_trade_increment` and `price_increment`."""

    id: str
    symbol: str
    status: str
    name: str | None = None
    exchange: str | None = None
    min_trade_increment: str | None = None
    price_increment: str | None = None


class _Contract(msgspec.Struct):
    """`{"id":"f8df3699-b0a4-4666-9bd9-ebf129dcdab3","symbol":"AA251114C00024000","name":"AA Nov 14 2025 24 Call","status":"active",
    "tradable":true,"expiration_date":"2025-11-14","root_symbol":"AA","underlying_symbol":"AA","type":"call","strike_price":"24",...}`"""

    id: str
    symbol: str
    status: str
    name: str | None = None
    underlying_symbol: str | None = None


class _Contracts(msgspec.Struct):
    option_contracts: list[msgspec.Raw]
    next_page_token: str | None = None


_ASSETS: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_ASSET: Final = msgspec.json.Decoder(_Asset).decode
_CONTRACT_PAGE: Final = msgspec.json.Decoder(_Contracts).decode
_CONTRACT: Final = msgspec.json.Decoder(_Contract).decode


def first(market: str) -> list[Request]:
    """The first request of each part: the assets that are active, and those that are not. Options have one part."""
    if market == "options":
        return [Request(_CONTRACTS)]
    return [Request(f"/v2/assets?asset_class={_CLASSES[market]}&status={status}") for status in ("active", "inactive")]


def page(market: str, request: Request, body: bytes) -> ListPage:
    """The instruments of a page, and the request for the next page. Raises WrongPage."""
    try:
        if market != "options":
            return ListPage(instruments_of(_ASSETS(body), _stock if market == "stocks" else _pair))
        answer = _CONTRACT_PAGE(body)
        rows = instruments_of(answer.option_contracts, _option)
    except UNREADABLE as error:
        raise WrongPage(f"{request.path} cannot be read: {error}. The list was not used.") from error
    token = answer.next_page_token
    return ListPage(rows, Request(f"{_CONTRACTS}&page_token={quote(token, safe='')}") if token else None)


def _stock(text: bytes) -> Instrument:
    row = _ASSET(text)
    exchange = _EXCHANGES.get(row.exchange or "", row.exchange) or None
    return Instrument(
        row.symbol, row.symbol, row.id, row.name or None, "equity", None, None, exchange, row.status, listed=row.status == "active"
    )


def _pair(text: bytes) -> Instrument:
    row = _ASSET(text)
    base, slash, price = row.symbol.partition("/")
    if not (base and slash and price):
        raise ValueError(f"{row.symbol!r} is not a pair")
    return Instrument(
        row.symbol,
        row.symbol,
        row.id,
        row.name or None,
        "crypto",
        base,
        price,
        "alpaca",
        row.status,
        row.status == "active",
        step(row.price_increment),
        step(row.min_trade_increment),
    )


def _option(text: bytes) -> Instrument:
    row = _CONTRACT(text)
    return Instrument(
        row.symbol,
        row.symbol,
        row.id,
        row.name or None,
        "option",
        row.underlying_symbol or None,
        status=row.status,
        listed=row.status == "active",
    )
