"""Alpaca's own client: `client.py KIND URL SYMBOLS` prints every trade, quote and bar it parsed as a JSON line."""

import sys

from alpaca.data.live import CryptoDataStream, OptionDataStream, StockDataStream

KINDS = {"stocks": StockDataStream, "options": OptionDataStream, "crypto": CryptoDataStream}


async def show(event: object) -> None:
    print(f'{{"type":"{type(event).__name__}","parsed":{event.model_dump_json()}}}', flush=True)


def main() -> None:
    kind, url, symbols = sys.argv[1:]
    stream = KINDS[kind]("demo", "secret", url_override=url)
    names = symbols.split(",")
    stream.subscribe_trades(show, *names)
    stream.subscribe_quotes(show, *names)
    if kind != "options":
        stream.subscribe_bars(show, *names)
    stream.run()


main()
