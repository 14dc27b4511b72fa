"""The two ways to a client: server-sent events, which any proxy lets through, and a websocket, on which it can change its subscription."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Message as Event
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from tapeline.errors import Unavailable, WrongArgument
from tapeline.web.live.binary import check
from tapeline.web.live.client import Client
from tapeline.web.live.hub import Hub
from tapeline.web.live.messages import Error, encoded
from tapeline.web.live.subscription import Request, requested

#: How long a client waits for the server to read up to where the client is already.
_ARRIVING_S: Final = 2.0
#: After a client's request, the next one waits this many times as long as it took: who changes much delays nobody else.
_REST: Final = 10
_RECONNECT_MS: Final = 1_000
#: Close codes of RFC 6455: what was asked is wrong, so that asking again does not help; and: too many clients, or too slow.
_WRONG: Final = 1008
_LATER: Final = 1013
_decode: Final = msgspec.json.Decoder(Request).decode


class EventStream(Response):
    """The messages of one client as server-sent events, until it leaves."""

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, client: Client) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._hub, self._client = hub, client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the client leaves or takes nothing any more."""
        del scope
        try:
            await _until_it_leaves(self._client, self._send_all(send), _http_leaves(receive))
        finally:
            self._hub.leave(self._client)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        body = b"retry: %d\n\n" % _RECONNECT_MS
        while True:
            event: Event = {"type": "http.response.body", "body": body, "more_body": True}
            await send(event)
            body = b"".join([message.event_stream() for message in await self._client.take()])


async def event_stream(request: HttpRequest, hub: Hub) -> Response:
    """Answer a request for server-sent events. Raises WrongArgument, and Unavailable: come back later."""
    subscription = requested(request.query_params)
    if subscription.form != "json":
        raise WrongArgument("format is for a websocket: server-sent events are text. Leave it out.")
    since = request.headers.get("last-event-id") or request.query_params.get("since", "")
    await hub.arrived(since, _ARRIVING_S)
    return EventStream(hub, hub.join(subscription, since))


async def websocket(socket: WebSocket, hub: Hub) -> None:
    """Serve a websocket until the client leaves."""
    try:
        subscription = requested(socket.query_params)
        check(subscription.form)
        since = socket.query_params.get("since", "")
        await hub.arrived(since, _ARRIVING_S)
        client = hub.join(subscription, since)
    except (WrongArgument, Unavailable) as error:
        await _refuse(socket, str(error), _WRONG if isinstance(error, WrongArgument) else _LATER)
        return
    try:
        await socket.accept()
        await _until_it_leaves(client, _send_all(socket, client), _listen(socket, hub, client))
    finally:
        hub.leave(client)
    with suppress(RuntimeError, WebSocketDisconnect):  # it has closed already, or it is gone
        await socket.close(_LATER)


async def _send_all(socket: WebSocket, client: Client) -> None:
    while True:
        for message in await client.take():
            await _send(socket, message.body.decode(), message.binary)


async def _send(socket: WebSocket, text: str, binary: bytes = b"") -> None:
    """Send a message. Raises WebSocketDisconnect if the client is gone, or was cut off for a frame that is too long."""
    try:
        await socket.send_text(text)
        if binary:
            await socket.send_bytes(binary)
    except RuntimeError:  # what uvicorn and Starlette raise after a close
        raise WebSocketDisconnect from None


async def _listen(socket: WebSocket, hub: Hub, client: Client) -> None:
    """Change the subscription as the client asks, until it leaves."""
    while True:
        received = await socket.receive()
        if received["type"] == "websocket.disconnect":
            return
        began = time.monotonic()
        try:
            hub.change(client, _decode(received.get("text") or b""))
        except WrongArgument as error:
            await _send(socket, encoded(Error("error", str(error))).decode())
        except msgspec.DecodeError as error:
            await _send(socket, encoded(Error("error", f"The request is wrong: {error}. Send text: JSON.")).decode())
        await asyncio.sleep(_REST * (time.monotonic() - began))


async def _refuse(socket: WebSocket, text: str, code: int) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.accept()
        await socket.send_text(encoded(Error("error", text)).decode())
        await socket.close(code)


async def _http_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until_it_leaves(client: Client, *running: Awaitable[object]) -> None:
    """Run until one of them ends, or the client takes nothing any more. Neither is an error of ours."""
    tasks = [asyncio.ensure_future(one) for one in (*running, client.gone.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, OSError, WebSocketDisconnect):
                await task
