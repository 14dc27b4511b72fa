"""Alpaca's own client of history: `history.py KIND URL SYMBOLS` prints all trades, quotes and bars, a JSON line each."""

import sys
from datetime import UTC, datetime

from alpaca.data.historical import CryptoHistoricalDataClient, OptionHistoricalDataClient, StockHistoricalDataClient
from alpaca.data.requests import (
    CryptoBarsRequest,
    CryptoQuoteRequest,
    CryptoTradesRequest,
    OptionTradesRequest,
    StockBarsRequest,
    StockQuotesRequest,
    StockTradesRequest,
)
from alpaca.data.timeframe import TimeFrame


def main() -> None:
    kind, url, symbols = sys.argv[1:]
    wanted = {"symbol_or_symbols": symbols.split(","), "start": datetime(2020, 1, 1, tzinfo=UTC)}
    if kind == "options":
        options = OptionHistoricalDataClient("demo", "secret", url_override=url)
        read = [options.get_option_trades(OptionTradesRequest(**wanted))]
    elif kind == "crypto":
        crypto = CryptoHistoricalDataClient("demo", "secret", url_override=url)
        read = [
            crypto.get_crypto_trades(CryptoTradesRequest(**wanted)),
            crypto.get_crypto_quotes(CryptoQuoteRequest(**wanted)),
            crypto.get_crypto_bars(CryptoBarsRequest(**wanted, timeframe=TimeFrame.Minute)),
        ]
    else:
        stocks = StockHistoricalDataClient("demo", "secret", url_override=url)
        read = [
            stocks.get_stock_trades(StockTradesRequest(**wanted, feed="iex")),
            stocks.get_stock_quotes(StockQuotesRequest(**wanted, feed="iex")),
            stocks.get_stock_bars(StockBarsRequest(**wanted, feed="iex", timeframe=TimeFrame.Minute)),
        ]
    for found in read:
        for rows in found.data.values():
            for row in rows:
                print(f'{{"type":"{type(row).__name__}","parsed":{row.model_dump_json()}}}')


main()
