"""A websocket client for tests of the simulators: it keeps every frame, and answers pings and closes unless told not to."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from waiting import PATIENCE_S

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from tapeline.simulators import Simulator


class Client(WSListener):
    """One socket. `messages` holds (kind, payload) of each data frame, `close_code` the server's once it came."""

    def __init__(self, *, answers_pings: bool = True, answers_closes: bool = True) -> None:
        self.messages: list[tuple[WSMsgType, bytes]] = []
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.close_code: int | None = None
        self.close_reason = ""
        self.gone = False
        self.transport: WSTransport
        self._answers_pings = answers_pings
        self._answers_closes = answers_closes
        self._news = asyncio.Event()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.PING:
            self.pings.append(frame.get_payload_as_bytes())
            if self._answers_pings:
                transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.PONG:
            self.pongs.append(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            payload = frame.get_payload_as_bytes()
            self.close_code, self.close_reason = int.from_bytes(payload[:2], "big"), payload[2:].decode()
            if self._answers_closes:
                transport.send_close(frame.get_close_code())
                transport.disconnect()
        else:
            self.messages.append((frame.msg_type, frame.get_payload_as_bytes()))
        self._news.set()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.gone = True
        self._news.set()

    def say(self, message: object) -> None:
        """Send JSON text."""
        self.transport.send(WSMsgType.TEXT, message if isinstance(message, bytes) else json.dumps(message).encode())

    def say_packed(self, message: object) -> None:
        """Send msgpack, in fragments with an empty last one."""
        data = msgspec.msgpack.encode(message)
        self.transport.send(WSMsgType.BINARY, data[:9], fin=False)
        self.transport.send(WSMsgType.CONTINUATION, data[9:], fin=False)
        self.transport.send(WSMsgType.CONTINUATION, b"", fin=True)

    def parsed(self) -> list[Any]:
        """Every message so far, decoded."""
        return [json.loads(data) for _, data in self.messages]

    async def until(self, true: Callable[[], object]) -> None:
        """Wait until the messages make something true; TimeoutError where they do not."""
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                self._news.clear()
                await self._news.wait()

    async def count(self, messages: int) -> list[Any]:
        """Wait for so many messages and decode them."""
        await self.until(lambda: len(self.messages) >= messages)
        return self.parsed()


async def connect(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    answers_pings: bool = True,
    answers_closes: bool = True,
    ssl_context: ssl.SSLContext | None = None,
) -> Client:
    """Open a websocket."""
    _, client = await ws_connect(
        lambda: Client(answers_pings=answers_pings, answers_closes=answers_closes),
        url,
        extra_headers=headers,
        enable_auto_pong=False,
        ssl_context=ssl_context,
    )
    assert isinstance(client, Client)
    return client


@asynccontextmanager
async def running(simulator: Simulator) -> AsyncIterator[str]:
    """A started simulator's url; it is stopped in the end."""
    url = await simulator.start()
    try:
        yield url
    finally:
        await simulator.stop()


def told(journal: Path) -> list[dict[str, Any]]:
    """The journal's lines."""
    return [json.loads(line) for line in journal.read_text().splitlines()]


def fast_clock(times: int) -> Callable[[], int]:
    """A clock that runs so many times faster than the real one, from now."""
    began = time.time_ns()
    return lambda: began + (time.time_ns() - began) * times
