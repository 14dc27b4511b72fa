"""Binance's own client: `client.py WS-URL HTTP-URL SYMBOL` prints every event of four streams as a JSON line, and some of their history.

The first line is what its REST client says of the symbol.
"""

import asyncio
import json
import sys

from binance_common.configuration import ConfigurationRestAPI, ConfigurationWebSocketStreams
from binance_sdk_spot.spot import Spot


def show(stream: str):
    return lambda event: print(json.dumps({"stream": stream, "parsed": event.to_dict()}), flush=True)


async def main() -> None:
    stream_url, rest_url, symbol = sys.argv[1:]
    client = Spot(
        config_rest_api=ConfigurationRestAPI(base_path=rest_url),
        config_ws_streams=ConfigurationWebSocketStreams(stream_url=stream_url),
    )
    information = client.rest_api.exchange_info(symbol=symbol.upper()).data().symbols[0]
    print(
        json.dumps([information.symbol, information.status, information.base_asset, information.quote_asset]),
        flush=True,
    )
    connection = await client.websocket_streams.create_connection()
    for name, handle in (
        ("trade", await connection.trade(symbol=symbol)),
        ("aggTrade", await connection.agg_trade(symbol=symbol)),
        ("bookTicker", await connection.book_ticker(symbol=symbol)),
        ("kline_1s", await connection.kline(symbol=symbol, interval="1s")),
    ):
        handle.on("message", show(name))
    await asyncio.sleep(2)
    name = symbol.upper()
    for stream, page in (
        ("trade", client.rest_api.historical_trades(symbol=name, limit=50)),
        ("aggTrade", client.rest_api.agg_trades(symbol=name, limit=50)),
        ("kline_1s", client.rest_api.klines(symbol=name, interval="1s", limit=2)),
    ):
        rows = [row if isinstance(row, list) else row.to_dict() for row in page.data()]
        print(json.dumps({"stream": f"history of {stream}", "parsed": rows}), flush=True)
    await asyncio.sleep(60)


asyncio.run(main())
