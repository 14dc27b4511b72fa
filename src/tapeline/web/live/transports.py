"""The two ways to a client: server-sent events, which any proxy lets through, and a websocket, on which it can change its subscription."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from tapeline.errors import Unavailable, WrongArgument
from tapeline.web.live.binary import check
from tapeline.web.live.client import Client
from tapeline.web.live.hub import Hub
from tapeline.web.live.messages import Error, Message, encoded
from tapeline.web.live.subscription import Request, requested

#: How long a client waits for the server to read up to where the client is already.
_ARRIVING_S: Final = 2.0
#: After a client's request, the next one waits this many times as long as it took: who changes much delays nobody else.
_REST: Final = 10
#: How long a connection that is closed may take for what is under way.
_GOODBYE_S: Final = 10.0
_RECONNECT_MS: Final = 1_000
#: Where the server keeps a connection's transport, in the state of its ASGI scope: a client that takes nothing cannot be closed politely.
TRANSPORT: Final = "transport"
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
        self._client.sever = _abort(scope)
        try:
            await _until_it_leaves(self._send_all(send), _http_leaves(receive))
        finally:
            _forget(self._hub, self._client)
        await _http_leaves(receive)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        body = b"retry: %d\n\n" % _RECONNECT_MS
        while True:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            del body  # what was sent is not kept while nothing comes
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
        client.sever = _abort(socket.scope)
    except (WrongArgument, Unavailable) as error:
        await _refuse(socket, str(error), _WRONG if isinstance(error, WrongArgument) else _LATER)
        return
    try:
        await socket.accept()
        await _until_it_leaves(_send_all(socket, client), _listen(socket, hub, client))
    finally:
        _forget(hub, client)
    with suppress(RuntimeError, WebSocketDisconnect):  # it has closed already, or it is gone
        await socket.close(_LATER)


async def _send_all(socket: WebSocket, client: Client) -> None:
    while True:
        await _send_each(socket, await client.take())


async def _send_each(socket: WebSocket, messages: list[Message]) -> None:
    for message in messages:
        await _send(socket, message.body.decode(), message.binary)


def _forget(hub: Hub, client: Client) -> None:
    """Forget a client that has left. Its connection is closed, and ended if it does not take what is under way."""
    hub.leave(client)
    asyncio.get_running_loop().call_later(_GOODBYE_S, client.sever)


def _abort(scope: Scope) -> Callable[[], None]:
    """Return what ends a connection at once. To close it would wait until the client has taken what is under way, so for ever."""
    abort: Callable[[], None] = scope["state"][TRANSPORT].abort
    return abort


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


async def _until_it_leaves(sending: Awaitable[None], leaving: Awaitable[None]) -> None:
    """Run both until one ends. A client that is too slow, or gone, is no error of ours."""
    tasks = [asyncio.ensure_future(sending), asyncio.ensure_future(leaving)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, OSError, WebSocketDisconnect):
                await task
