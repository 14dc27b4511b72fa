"""A simulator whose frames were made beforehand, so that the load costs little beside what is measured.

`record` lets `tapeline simulate binance` make its market once, and keeps the frames as they came over the socket. `python -m bench.prepared
FILE` is then a process that acknowledges what is asked for, and sends them once, as fast as the client reads, or so many frames a second.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_connect, ws_create_server

from bench.machine import STREAMS, listening, simulator

_PIECE = 128 * 1024
_PACE_S = 0.001
#: The first bytes of a server's text frame, by the length of its payload (RFC 6455).
_SHORT, _MEDIUM = 125, 0xFFFF


class _Recorder(WSListener):
    """Writes every data frame down, head and all."""

    def __init__(self, path: Path, events: int) -> None:
        self.whole = asyncio.Event()
        self._file, self._left = path.open("wb"), events

    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, msgspec.json.encode({"method": "SUBSCRIBE", "params": STREAMS, "id": 1}))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        if frame.msg_type != WSMsgType.TEXT or not payload.startswith(b'{"stream"'):
            return
        size = len(payload)
        self._file.write(bytes([0x81, size]) if size <= _SHORT else b"\x81\x7e" + size.to_bytes(2, "big"))
        self._file.write(payload)
        self._left -= 1
        if not self._left:
            self._file.close()
            self.whole.set()
            transport.disconnect()


async def _record(url: str, path: Path, events: int) -> None:
    recorder = _Recorder(path, events)
    await ws_connect(lambda: recorder, f"{url}/stream")
    await recorder.whole.wait()


def record(path: Path, events: int) -> Path:
    """So many events of a market, as frames."""
    with simulator("binance", "--rate", "500000", "--limit", str(events)) as (url, _):
        asyncio.run(_record(url, path, events))
    return path


class _Recording:
    """What is left to send, whoever reads it."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0

    def take(self) -> memoryview:
        """As it comes: a frame may lie in two pieces."""
        return self._until(min(self._at + _PIECE, len(self._data)))

    def frames(self, count: int) -> memoryview:
        """So many whole frames."""
        end = self._at
        for _ in range(count):
            if end < len(self._data):
                size = self._data[end + 1]
                end += 2 + size if size <= _SHORT else 4 + int.from_bytes(self._data[end + 2 : end + 4], "big")
        return self._until(end)

    def _until(self, end: int) -> memoryview:
        piece = self._data[self._at : end]
        self._at = end
        return piece


class _Server(WSListener):
    """Acknowledges requests, and sends once everything is subscribed."""

    def __init__(self, recording: _Recording, rate: int) -> None:
        self._recording, self._rate, self._wanted = recording, rate, set[str]()
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        if frame.msg_type != WSMsgType.TEXT:
            return
        request = json.loads(frame.get_payload_as_bytes())
        transport.send(WSMsgType.TEXT, msgspec.json.encode({"result": None, "id": request["id"]}))
        self._wanted |= set(request["params"])
        if self._wanted >= set(STREAMS) and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._send(transport))

    def on_ws_disconnected(self, _: WSTransport) -> None:
        if self._task is not None:
            self._task.cancel()  # what is left is for the next connection

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def _send(self, transport: WSTransport) -> None:
        if self._rate:
            await self._send_evenly(transport)
        while piece := self._recording.take():
            await self._writable.wait()
            transport.underlying_transport.write(piece)
            await asyncio.sleep(0)

    async def _send_evenly(self, transport: WSTransport) -> None:
        loop = asyncio.get_running_loop()
        began, sent = loop.time(), 0
        while True:
            due = int((loop.time() - began) * self._rate) - sent
            piece = self._recording.frames(due)
            if due and not piece:
                return
            transport.underlying_transport.write(piece)
            sent += due
            await asyncio.sleep(_PACE_S)


async def _serve(recording: _Recording, rate: int) -> None:
    def enter(_: WSUpgradeRequest) -> WSListener:
        return _Server(recording, rate)

    server = await ws_create_server(enter, "127.0.0.1", 0)
    print(f"prepared simulator at ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


@contextmanager
def serving(path: Path, rate: int = 0) -> Iterator[str]:
    """A process that sends a recording, at an even pace where a rate is given; its url."""
    with listening("bench.prepared", str(path), str(rate)) as (url, _):
        yield url


if __name__ == "__main__":
    asyncio.run(_serve(_Recording(Path(sys.argv[1]).read_bytes()), int(sys.argv[2])))
