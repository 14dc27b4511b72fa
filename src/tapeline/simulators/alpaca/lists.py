"""The simulator's lists of instruments of Alpaca's trading API: assets of stocks and crypto, and contracts of options."""

from __future__ import annotations

import base64
import uuid
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tapeline.simulators.market import Instrument

_ASSETS: Final = "/v2/assets"
_CONTRACTS: Final = "/v2/options/contracts"
#: The paths of the lists.
LISTS: Final = frozenset({_ASSETS, _CONTRACTS})
_USUAL_ROWS: Final = 100
_MOST_ROWS: Final = 10_000
_FUNDS: Final = frozenset({"SPY"})


class AlpacaLists:
    """Rows by market, as they are on the wire. Tests change them. `most`: the most rows of a page of contracts."""

    def __init__(self, instruments: Sequence[Instrument], most: int = _MOST_ROWS) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {"stocks": [], "options": [], "crypto": []}
        self._most = most
        seen: set[str] = set()
        for one in instruments:
            if one.feed != "test" and one.symbol not in seen:  # several feeds have the same stocks
                seen.add(one.symbol)
                market, row = _row(one)
                self.rows[market].append(row)

    def page(self, path: str, query: Mapping[str, str], *, repeat: bool) -> Any:
        """The body of a page. None for another path. `repeat`: the page names itself as the next one. ValueError for a wrong query."""
        if path == _ASSETS:
            market = {"us_equity": "stocks", "crypto": "crypto"}.get(query.get("asset_class", "us_equity"))
            if market is None:
                raise ValueError("invalid asset_class")
            return [row for row in self.rows[market] if query.get("status") in (None, row["status"])]
        if path != _CONTRACTS:
            return None
        rows = [row for row in self.rows["options"] if row["status"] == query.get("status", "active")]
        rows = [row for row in rows if row["expiration_date"] <= query.get("expiration_date_lte", "2027-01-01")]
        rows.sort(key=lambda row: str(row["symbol"]))
        limit = min(int(query.get("limit", _USUAL_ROWS)), self._most)
        begin = int(base64.b64decode(query["page_token"])) if "page_token" in query else 0
        end = begin + limit
        token = base64.b64encode(str(begin if repeat else end).encode()).decode() if end < len(rows) else None
        return {"option_contracts": rows[begin:end], "next_page_token": token}


def _row(one: Instrument) -> tuple[str, dict[str, Any]]:
    symbol = one.symbol
    row: dict[str, Any] = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, symbol)),
        "symbol": symbol,
        "name": f"{symbol} pair" if "/" in symbol else f"{symbol} Inc. Common Stock",
        "status": "active",
        "tradable": True,
    }
    if one.feed in ("opra", "indicative"):
        row |= {
            "expiration_date": f"20{symbol[-15:-13]}-{symbol[-13:-11]}-{symbol[-11:-9]}",
            "root_symbol": symbol[:-15],
            "underlying_symbol": symbol[:-15],
            "type": "call" if symbol[-9] == "C" else "put",
            "style": "american",
            "strike_price": f"{int(symbol[-8:]) / 1_000:g}",
        }
        return "options", row
    if "/" in symbol:
        step = f"{10**-one.size_decimals:.{one.size_decimals}f}"
        row |= {"class": "crypto", "exchange": "CRYPTO", "min_order_size": step, "min_trade_increment": step}
        return "crypto", row | {"price_increment": f"{10**-one.price_decimals:.{one.price_decimals}f}"}
    return "stocks", row | {"class": "us_equity", "exchange": "ARCA" if symbol in _FUNDS else "NASDAQ", "fractionable": True}
