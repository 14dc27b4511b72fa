"""A websocket server that does what a test's script says, byte by byte."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True) -> bytes:
    """A server's frame."""
    size = len(payload)
    head = bytes(((0x80 if fin else 0) | opcode,))
    if size < 126:
        return head + bytes((size,)) + payload
    return head + (b"\x7e" + size.to_bytes(2, "big") if size < 65536 else b"\x7f" + size.to_bytes(8, "big")) + payload


class Peer:
    """One connection, counted from 1."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.opened_s = asyncio.get_running_loop().time()
        self.reader = reader
        self.writer = writer

    async def accept(self, first: bytes = b"") -> None:
        """Answer the upgrade; `first` leaves in the same segment."""
        request = await self.reader.readuntil(b"\r\n\r\n")
        key = next(line.split(b": ")[1] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept
        self.writer.write(answer + b"\r\n\r\n" + first)

    async def refuse(self, status: str, headers: str = "", body: bytes = b"") -> None:
        """Answer the upgrade with another status."""
        await self.reader.readuntil(b"\r\n\r\n")
        self.writer.write(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        self.writer.close()

    def say(self, *texts: bytes) -> None:
        for text in texts:
            self.writer.write(frame(text))

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear(self) -> tuple[int, bytes]:
        """The client's next frame: opcode and payload."""
        first, second = await self.reader.readexactly(2)
        size = second & 0x7F
        if size > 125:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
        mask = await self.reader.readexactly(4)
        masked = await self.reader.readexactly(size)
        return first & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))

    async def say_goodbye(self, code: int = 1000, reason: bytes = b"") -> None:
        """A clean close: wait for the client's."""
        self.writer.write(frame(code.to_bytes(2, "big") + reason, CLOSE))
        while (await self.hear())[0] != CLOSE:
            continue
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    """A server's address while it runs the script for each connection; a script's own failure fails the test."""
    running: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []
    count = 0

    async def serve(peer: Peer) -> None:
        try:
            await script(peer)
            while await peer.reader.read(65536):
                continue
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:  # noqa: BLE001 handed to the test
            failures.append(error)
        finally:
            peer.writer.close()

    def entered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        task = asyncio.create_task(serve(Peer(count, reader, writer)))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(entered, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if failures:
        raise failures[0]
