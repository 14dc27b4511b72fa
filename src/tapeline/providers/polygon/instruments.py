"""Massive's lists of instruments: the tickers of stocks and crypto, and the contracts of options. Pure: this module sends nothing.

Facts: Massive's REST documentation, "All Tickers" and "All Contracts".

- `/v3/reference/tickers` has a market's tickers, at most 1,000 a page: with `active=true` those that are traded, with `active=false` those
  that were delisted. `market` has no value for options.
- `/v3/reference/options/contracts` has the contracts, at most 1,000 a page. Expired ones are left out, because there are many millions.
- A page names the next page (`next_url`). A page without it is the last one.
- `composite_figi` stays when a ticker is renamed. Old tickers often have none, and some changes of a company bring a new one.
- Whether a ticker that is used again appears more than once among the delisted is not documented, so it may.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tapeline.providers.events import UNREADABLE
from tapeline.providers.history import Request, WrongPage
from tapeline.providers.instruments import Instrument, ListPage, instruments_of
from tapeline.providers.polygon.history import path_of

#: Feed to the market of its list. The names are the same.
MARKETS: Final = {name: name for name in ("stocks", "options", "crypto")}
_PAGE_ROWS: Final = 1_000
_ORDER: Final = f"order=asc&sort=ticker&limit={_PAGE_ROWS}"
#: The codes of "Ticker Types" to our kinds. Any other code is `other`.
_KINDS: Final = {
    **dict.fromkeys(("CS", "ADRC", "NYRS", "OS", "GDR"), "stock"),
    "ETF": "etf",
    "ETN": "etn",
    "FUND": "fund",
    "UNIT": "unit",
    "BOND": "bond",
    "INDEX": "index",
    **dict.fromkeys(("PFD", "ADRP"), "preferred"),
    **dict.fromkeys(("WARRANT", "ADRW"), "warrant"),
    **dict.fromkeys(("RIGHT", "ADRR"), "right"),
}


class _Ticker(msgspec.Struct):
    """`{"ticker":"A","name":"Agilent Technologies Inc.","market":"stocks","locale":"us","primary_exchange":"XNYS","type":"CS",
    "active":true,"currency_name":"usd","cik":"0001090872","composite_figi":"BBG000BWQYZ5","share_class_figi":"BBG001SCTQY4",...}`.

    Crypto has `currency_symbol` and `base_currency_symbol`. A delisted ticker has `delisted_utc`."""

    ticker: str
    name: str | None = None
    type: str | None = None
    active: bool = True
    primary_exchange: str | None = None
    currency_name: str | None = None
    currency_symbol: str | None = None
    base_currency_symbol: str | None = None
    composite_figi: str | None = None
    share_class_figi: str | None = None


class _Contract(msgspec.Struct):
    """`{"ticker":"O:AAPL211119C00085000","underlying_ticker":"AAPL","contract_type":"call","expiration_date":"2021-11-19",
    "primary_exchange":"BATO","shares_per_contract":100,"strike_price":85,"exercise_style":"american","cfi":"OCASPS"}`"""

    ticker: str
    underlying_ticker: str | None = None
    primary_exchange: str | None = None


class _Answer(msgspec.Struct):
    status: str = ""
    results: list[msgspec.Raw] = []
    count: int | None = None
    next_url: str | None = None
    error: str = ""
    message: str = ""


_PAGE: Final = msgspec.json.Decoder(_Answer).decode
_TICKER: Final = msgspec.json.Decoder(_Ticker).decode
_CONTRACT: Final = msgspec.json.Decoder(_Contract).decode
_GOOD: Final = frozenset({"OK", "DELAYED"})


def first(market: str) -> list[Request]:
    """The first request of each part: the tickers that are traded, and those that were delisted. Options have one part."""
    if market == "options":
        return [Request(f"/v3/reference/options/contracts?expired=false&{_ORDER}")]
    return [Request(f"/v3/reference/tickers?market={market}&active={active}&{_ORDER}") for active in ("true", "false")]


def page(market: str, request: Request, body: bytes) -> ListPage:
    """The instruments of a page, and the request for the next page. Raises WrongPage."""
    try:
        answer = _PAGE(body)
        following = None if answer.next_url is None else path_of(answer.next_url)
        rows = instruments_of(answer.results, _KIND_OF_ROW[market])
    except UNREADABLE as error:
        raise WrongPage(f"{request.path} cannot be read: {error}. The list was not used.") from error
    if answer.status not in _GOOD:
        message = answer.error or answer.message
        raise WrongPage(f"{request.path} came with status {answer.status!r}{message and f' ({message})'}. The list was not used.")
    if answer.count is not None and answer.count != len(rows):
        raise WrongPage(f"{request.path} says that it has {answer.count} rows, but it has {len(rows)}. The list was not used.")
    if following is not None and following.partition("?")[0] != request.path.partition("?")[0]:
        raise WrongPage(f"{request.path} names {following} as its next page, which belongs to another list. The list was not used.")
    return ListPage(rows, None if following is None else Request(following))


def _stock(text: bytes) -> Instrument:
    row = _TICKER(text)
    return Instrument(
        row.ticker,
        row.ticker,
        row.composite_figi or row.share_class_figi or None,
        row.name or None,
        _KINDS.get(row.type, "other") if row.type else None,
        quote=(row.currency_symbol or row.currency_name or "").upper() or None,
        exchange=row.primary_exchange or None,
        status="active" if row.active else "inactive",
        listed=row.active,
    )


def _pair(text: bytes) -> Instrument:
    row = _TICKER(text)
    name, one, other = row.ticker.removeprefix("X:"), row.base_currency_symbol or "", row.currency_symbol or ""
    # The documentation leaves open which of the two is the base. The ticker shows it.
    base, quote = (one, other) if one + other == name else (other, one)
    if not (base and quote) or base + quote != name:
        raise ValueError(f"{row.ticker!r} is not made of {one!r} and {other!r}")
    status = "active" if row.active else "inactive"
    return Instrument(
        f"{base}/{quote}", row.ticker, None, row.name or None, "crypto", base, quote, "composite", status=status, listed=row.active
    )


def _option(text: bytes) -> Instrument:
    row = _CONTRACT(text)
    return Instrument(
        row.ticker.removeprefix("O:"), row.ticker, kind="option", base=row.underlying_ticker or None, exchange=row.primary_exchange or None
    )


_KIND_OF_ROW: Final = {"stocks": _stock, "options": _option, "crypto": _pair}
