"""The simulator's lists of instruments of Massive: tickers of stocks and crypto, and contracts of options, a page at a time."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tapeline.simulators.market import Instrument

_TICKERS: Final = "/v3/reference/tickers"
_CONTRACTS: Final = "/v3/reference/options/contracts"
_MOST_ROWS: Final = 1_000
_USUAL_ROWS: Final = {_TICKERS: 100, _CONTRACTS: 10}
_HOST: Final = "https://api.massive.com"
_FUNDS: Final = frozenset({"SPY"})


class _Cursor(msgspec.Struct):
    """Which list is read, and how many rows came before."""

    market: str
    active: bool
    limit: int
    after: int = 0


class PolygonLists:
    """Rows by market, as they are on the wire. Tests change them."""

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        make = {"stocks": _stock, "options": _contract, "crypto": _pair}
        self.rows: dict[str, list[dict[str, Any]]] = {market: [] for market in make}
        for one in instruments:
            self.rows[one.feed].append(make[one.feed](one.symbol))

    def page(self, path: str, query: Mapping[str, str], *, repeat: bool) -> dict[str, Any] | None:
        """The body of a page. None for another path. `repeat`: the page names itself as the next one. ValueError for a wrong query."""
        if path not in _USUAL_ROWS:
            return None
        cursor = _from(path, query)
        rows = [row for row in self.rows.get(cursor.market, ()) if row.get("active", True) == cursor.active]
        rows.sort(key=lambda row: str(row["ticker"]))
        some = rows[cursor.after : cursor.after + cursor.limit]
        body: dict[str, Any] = {"results": some, "status": "OK", "request_id": "0"}
        if path == _TICKERS:
            body["count"] = len(some)
        if cursor.after + len(some) < len(rows):
            following = msgspec.structs.replace(cursor, after=cursor.after + len(some))
            words = dict(query) if repeat else {"cursor": urlsafe_b64encode(msgspec.json.encode(following)).decode()}
            body["next_url"] = f"{_HOST}{path}?{urlencode(words)}"
        return body


def _from(path: str, query: Mapping[str, str]) -> _Cursor:
    if "cursor" in query:
        return msgspec.json.decode(urlsafe_b64decode(query["cursor"]), type=_Cursor)
    limit = int(query.get("limit", _USUAL_ROWS[path]))
    if not 0 < limit <= _MOST_ROWS:
        raise ValueError(f"limit must be from 1 to {_MOST_ROWS}")
    if path == _CONTRACTS:
        return _Cursor("options", query.get("expired", "false") == "false", limit)
    return _Cursor(query.get("market", "stocks"), query.get("active", "true") == "true", limit)


def _stock(ticker: str) -> dict[str, Any]:
    return {
        "ticker": ticker,
        "name": f"{ticker} Inc.",
        "market": "stocks",
        "locale": "us",
        "primary_exchange": "ARCX" if ticker in _FUNDS else "XNAS",
        "type": "ETF" if ticker in _FUNDS else "CS",
        "active": True,
        "currency_name": "usd",
        "composite_figi": f"BBG000{ticker:0>6}",
        "last_updated_utc": "2026-01-05T00:00:00Z",
    }


def _pair(symbol: str) -> dict[str, Any]:
    base, _, price = symbol.partition("-")
    return {
        "ticker": f"X:{base}{price}",
        "name": f"{base} - {price}",
        "market": "crypto",
        "locale": "global",
        "active": True,
        "currency_symbol": price,
        "base_currency_symbol": base,
        "last_updated_utc": "2026-01-05T00:00:00Z",
    }


def _contract(ticker: str) -> dict[str, Any]:
    name = ticker.removeprefix("O:")
    return {
        "ticker": ticker,
        "underlying_ticker": name[:-15],
        "contract_type": "call" if name[-9] == "C" else "put",
        "expiration_date": f"20{name[-15:-13]}-{name[-13:-11]}-{name[-11:-9]}",
        "primary_exchange": "BATO",
        "shares_per_contract": 100,
        "strike_price": int(name[-8:]) / 1_000,
        "exercise_style": "american",
        "cfi": "OCASPS",
    }
