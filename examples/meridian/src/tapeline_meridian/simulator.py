"""Meridian on real sockets: a market that never rests, the websocket that tells of it, and its history over HTTP.

    python -m tapeline_meridian.simulator [--rate 200] [--lose 50] [--of 1500]

It says where it listens, in one line of JSON. Of the first `--of` deals every `--lose`th is kept from the
websocket, though the history has it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from bisect import bisect_left
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from random import Random
from urllib.parse import parse_qs, urlsplit

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from tapeline_meridian.history import PAGE_ROWS
from tapeline_meridian.wire import base36, ns, written

SYMBOLS = ("XAU-CHF", "XPT-JPY")
_KEY = "gold"


class Market:
    """Deals and changes of the best price, of each symbol in order."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._prices = {"XAU-CHF": 3_500.0, "XPT-JPY": 240_000.0}
        self._books = dict.fromkeys(SYMBOLS, 0)
        self.deals: dict[str, list[tuple[str, str]]] = {symbol: [] for symbol in SYMBOLS}  # time and line

    def next(self) -> list[tuple[str, str, str]]:
        """Channel, symbol and line of what happens now."""
        symbol = self._random.choice(SYMBOLS)
        self._prices[symbol] *= 1 + self._random.uniform(-1e-4, 1e-4)
        price, at = self._prices[symbol], written(time.time_ns())
        self._books[symbol] += self._random.randint(1, 3)
        number, size, side = len(self.deals[symbol]) + 1, self._random.randint(1, 40) / 8, self._random.choice("SB")
        deal = f"deal;{symbol};{at};{base36(number)};{price:.2f};{size};{side}"
        best = f"{price - 0.5:.2f};{self._random.randint(1, 9)};{price + 0.5:.2f};4"
        book = f"book;{symbol};{at};{base36(self._books[symbol])};{best}"
        self.deals[symbol].append((at, deal))
        return [("deal", symbol, deal), ("book", symbol, book)]


class Client(WSListener):
    """One websocket."""

    def __init__(self, clients: set[Client]) -> None:
        self._clients = clients
        self._transport: WSTransport | None = None
        self.wants: set[tuple[str, str]] = set()

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Keep the transport for `say`. The client gets data after its first accepted `want`."""
        self._transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Handle each line of a text frame, and disconnect at a close frame."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT:
            for line in frame.get_payload_as_utf8_text().splitlines():
                self._heard(line)

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002 the library gives it
        """Send this client nothing more."""
        self._clients.discard(self)

    def _heard(self, line: str) -> None:
        command, *rest = line.split(";")
        if command == "key":
            if rest[0] != _KEY:
                self.say("locked")
            return
        channel, symbol = rest
        if symbol in SYMBOLS:
            self.wants.add((channel, symbol))
            self._clients.add(self)
        self.say(f"{'ok' if symbol in SYMBOLS else 'no'};{channel};{symbol}")

    def say(self, text: str) -> None:
        """Send a text frame. Before the socket is open, nothing is sent."""
        if self._transport is not None:
            self._transport.send(WSMsgType.TEXT, text.encode())


def history_of(market: Market) -> type[BaseHTTPRequestHandler]:
    """What answers requests for deals."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            known = market.deals.get(query.get("symbol", ""), [])
            if self.headers.get("X-Meridian-Key") != _KEY:
                self._answer(401, "locked")
                return
            begin = int(query["from"], 36) - 1 if "from" in query else bisect_left([ns(at) for at, _ in known], ns(query["since"]))
            end = int(query["to"], 36) if "to" in query else len(known)
            self._answer(200, "\n".join(line for _, line in known[begin : min(end, begin + PAGE_ROWS)]))

        def _answer(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 the name of the method that it replaces
            """It says nothing."""

    return Answers


async def serve(rate: float, lose: int, of: int) -> None:
    """Until it is told to stop."""
    market, clients = Market(1), set[Client]()

    def upgrade(request: WSUpgradeRequest) -> WSListener | None:
        return Client(clients) if request.path == b"/metals" else None

    server = await ws_create_server(upgrade, "127.0.0.1", 0)
    history = ThreadingHTTPServer(("127.0.0.1", 0), history_of(market))
    threading.Thread(target=history.serve_forever, daemon=True).start()
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"ws://127.0.0.1:{port}", "rest_url": f"http://127.0.0.1:{history.server_port}"}), flush=True)
    for number in count(1):
        for channel, symbol, line in market.next():
            if channel != "deal" or number % lose or number > of:
                for client in list(clients):
                    if (channel, symbol) in client.wants:
                        client.say(line)
        await asyncio.sleep(1 / rate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--lose", type=int, default=50)
    parser.add_argument("--of", type=int, default=1_500)
    options = parser.parse_args()
    asyncio.run(serve(options.rate, options.lose, options.of))
