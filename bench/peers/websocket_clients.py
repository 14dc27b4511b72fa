"""CPU time a frame in three websocket clients, each reading the same local simulator; run in an environment that has them all.

python bench/peers/websocket_clients.py ws://127.0.0.1:9101   (of: tapeline simulate binance --rate 500000)
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine

import aiohttp
import picows
import uvloop
import websockets

Client = Callable[[str], Coroutine[None, None, None]]

FRAMES = 200_000
SUBSCRIBE = json.dumps({"method": "SUBSCRIBE", "params": ["btcusdt@trade", "btcusdt@bookTicker"], "id": 1})


async def by_picows(url: str) -> None:
    done = asyncio.Event()

    class Listener(picows.WSListener):
        seen = 0

        def on_ws_connected(self, transport: picows.WSTransport) -> None:
            transport.send(picows.WSMsgType.TEXT, SUBSCRIBE.encode())

        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            frame.get_payload_as_bytes()
            self.seen += 1
            if self.seen == FRAMES:
                done.set()
                transport.disconnect()

    await picows.ws_connect(Listener, url)
    await done.wait()


async def by_websockets(url: str) -> None:
    async with websockets.connect(url, compression=None) as socket:
        await socket.send(SUBSCRIBE)
        for _ in range(FRAMES):
            await socket.recv(decode=False)


async def by_aiohttp(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
        await socket.send_str(SUBSCRIBE)
        for _ in range(FRAMES):
            await socket.receive()


def main() -> None:
    url = f"{sys.argv[1]}/stream"
    clients: dict[str, Client] = {"picows": by_picows, "websockets": by_websockets, "aiohttp": by_aiohttp}
    for _ in range(3):
        for name, client in clients.items():
            before = time.process_time()
            uvloop.run(client(url))
            print(f"{name:12} {(time.process_time() - before) / FRAMES * 1e6:.2f} us of CPU a frame")


if __name__ == "__main__":
    main()
