"""The REST client `massive`: `history.py HTTP-URL TRADES QUOTES BARS` prints every row of the history of three tickers as a JSON line."""

import json
import sys
from collections.abc import Iterable

from massive import RESTClient


def show(what: str, rows: Iterable) -> None:
    for row in rows:
        print(json.dumps({"what": what, **vars(row)}), flush=True)


def main() -> None:
    url, trades, quotes, bars = sys.argv[1:]
    client = RESTClient(api_key="demo", base=url)
    show("trades", client.list_trades(trades, timestamp_gte="2020-01-01", order="asc", sort="timestamp", limit=20))
    show("latest", client.list_trades(trades, limit=20))
    show("quotes", client.list_quotes(quotes, timestamp_gte="2020-01-01", order="asc", sort="timestamp", limit=50))
    show("bars", client.list_aggs(bars, 1, "second", "2020-01-01", "2099-01-01", adjusted=False, sort="asc", limit=2))


main()
