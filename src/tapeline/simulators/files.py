"""Serves a simulator's files over plain HTTP on a port of their own: whole files, ranges, and HEAD requests.

The websocket port answers only GET requests, because a websocket begins with one. Clients of object stores send HEAD requests too.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, unquote

from tapeline.simulators.session import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_HEAD: Final = 64 * 1024
_IDLE_S: Final = 60.0


class FileServer:
    """Answers GET and HEAD requests until it is closed, on the loopback interface."""

    def __init__(self, answer: Callable[[Request], Reply]) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self, host: str, port: int) -> str:
        """Listen and return the base url. OSError when the port is taken."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_LONGEST_HEAD)
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close the port and its connections."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            async with asyncio.timeout(None) as patience:
                while True:
                    patience.reschedule(asyncio.get_running_loop().time() + _IDLE_S)
                    head = await reader.readuntil(b"\r\n\r\n")
                    if not await self._reply(head.decode("latin-1"), writer):
                        return
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, TimeoutError):
            return  # the client has left, or does not speak HTTP
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _reply(self, head: str, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can serve another request."""
        line, *lines = head.rstrip("\r\n").split("\r\n")
        method, _, rest = line.partition(" ")
        target, _, _ = rest.partition(" ")
        path, _, query = target.partition("?")
        fields = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
        headers = {name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
        if method in ("GET", "HEAD"):
            reply = self._answer(Request(unquote(path), fields, headers, method))
        else:
            reply = Reply(405, b"405 Method Not Allowed")
        reply_headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        text = f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\n"
        writer.write((text + "".join(f"{name}: {value}\r\n" for name, value in reply_headers.items()) + "\r\n").encode("latin-1"))
        if method != "HEAD":
            writer.write(reply.body)
        await writer.drain()
        # After a body that breaks off, the connection must end.
        return method == "HEAD" or reply_headers["Content-Length"] == str(len(reply.body))
