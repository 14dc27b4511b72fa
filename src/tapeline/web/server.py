"""The server of the dashboard, the live feed and the history: opens the parts, puts them together and serves them until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvicorn
from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tapeline.app.streams import open_stream_with_data
from tapeline.config import Config, dashboard_tokens, environment
from tapeline.errors import ConfigError, Unavailable
from tapeline.streams import Stream
from tapeline.telemetry.status import StatusFile
from tapeline.web.access import Guarded, Rules, rules_of
from tapeline.web.actions import Actions
from tapeline.web.address import bound
from tapeline.web.description import asyncapi, openapi
from tapeline.web.history import History
from tapeline.web.live.hub import Hub
from tapeline.web.live.reader import Reader
from tapeline.web.live.transports import TRANSPORT
from tapeline.web.observing import Observer
from tapeline.web.parts import Parts
from tapeline.web.past import Past
from tapeline.web.recent import Looks
from tapeline.web.routes import routes
from tapeline.web.site import PUBLIC, pages

log = logging.getLogger(__name__)

#: How many questions about the history are answered at once. The others wait.
_AT_ONCE: Final = 4
#: How often values that changed are sent to those whose time it is.
_LATEST_EVERY_S: Final = 0.05
_TEND_EVERY_S: Final = 1.0
_GRACE_S: Final = 2
#: How many bytes a transport holds before whoever sends has to wait for the client.
_HELD: Final = 16_000
#: How long (s) the first client waits at most until the live feed has read what was there. A stream that is away is not waited for longer.
_CATCH_UP_S: Final = 5.0
#: The name of this process, as `tapeline status` shows it.
DASHBOARD: Final = "dashboard"


def check(config: Config) -> Rules:
    """Return who may do what. Raises ConfigError for an address that would let anybody in, and for a token or a file that is wrong."""
    rules = rules_of(config.dashboard, *dashboard_tokens(config.dashboard, environment()))
    for path in (config.dashboard.tls_certificate, config.dashboard.tls_key):
        if path and not Path(path).expanduser().is_file():
            raise ConfigError(f"[dashboard] {path} is not a file. Name the certificate and its key.")
    return rules


async def serve(config: Config, path: Path | None, stop: threading.Event, ready: Callable[[str], None]) -> None:
    """Serve until `stop` is set. `path`: the configuration's file. `ready`: called with the address when it answers.

    Raises ConfigError, and Busy if the address cannot be used."""
    rules, place = check(config), bound(config.dashboard.listen)
    hub = Hub(config.dashboard.clients, time.monotonic_ns, all_bytes=config.dashboard.clients_mb * 1_000_000)
    reader = Reader(partial(_stream, config), hub.begin, hub.publish)
    history = History(config, lambda: hub.first, time.time_ns)
    looks = Looks(
        Observer(config, lambda: (hub.clients, hub.skipped), reader.away, time.time_ns),
        Past(config.root / "dashboard.sqlite"),
        partial(_tell, hub, asyncio.get_running_loop()),
        StatusFile(config.root, DASHBOARD),
        history.metrics,
    )
    actions = Actions(config, path)
    parts = Parts(config, hub, looks, history, actions, CapacityLimiter(_AT_ONCE), time.time_ns)
    server = uvicorn.Server(_settings(config, application(parts, rules)))
    await asyncio.to_thread(looks.start)
    reader.start(asyncio.get_running_loop())
    await asyncio.to_thread(reader.caught_up.wait, _CATCH_UP_S)
    tasks = [asyncio.create_task(_stop_with(stop, server)), *_tending(hub)]
    scheme = "https" if rules.tls else "http"
    ready(f"{scheme}://{place.getsockname()[0]}:{place.getsockname()[1]}")
    try:
        await server.serve(sockets=[place])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(reader.stop)
        await asyncio.to_thread(looks.stop)
        await asyncio.to_thread(actions.stop)


def application(parts: Parts, rules: Rules) -> ASGIApp:
    """Return the application, behind the rules."""
    descriptions = [
        Route("/v1/openapi.json", partial(_constant, openapi())),
        Route("/v1/asyncapi.json", partial(_constant, asyncapi())),
    ]
    return Guarded(Starlette(routes=[*routes(parts), *descriptions, *pages(rules, parts.looks.snapshot)]), rules, PUBLIC)


async def _constant(body: Mapping[str, Any], request: Request) -> Response:
    del request
    return JSONResponse(body)


def _tell(hub: Hub, loop: asyncio.AbstractEventLoop, health: bytes, gaps: bytes, jobs: bytes, alerts: bytes) -> None:
    def publish() -> None:
        for kind, body in (("health", health), ("gaps", gaps), ("jobs", jobs), ("alerts", alerts)):
            hub.publish_state(kind, body)

    if not loop.is_closed():
        loop.call_soon_threadsafe(publish)


def _stream(config: Config) -> Stream:
    stream = open_stream_with_data(config)
    if stream is None:
        raise Unavailable(f"There is no data in {config.root} yet. Start `tapeline run`.")
    return stream


class _Connection(H11Protocol):
    """A connection, also one that becomes a websocket: its transport holds little, and can be ended by who sends."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(_HELD)
        self.app_state = {**self.app_state, TRANSPORT: transport}


def _settings(config: Config, app: ASGIApp) -> uvicorn.Config:
    some = config.dashboard
    return uvicorn.Config(
        app,
        http=_Connection,
        ws="websockets-sansio",
        ws_per_message_deflate=False,  # a batch every 25 ms to a thousand clients would be compressed for each
        ws_max_size=1 << 20,
        lifespan="off",
        log_config=None,
        log_level="warning",  # two lines for each connection say nothing to the one who reads the pipeline's log
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=str(Path(some.tls_certificate).expanduser()) if some.tls_certificate else None,
        ssl_keyfile=str(Path(some.tls_key).expanduser()) if some.tls_key else None,
    )


async def _stop_with(stop: threading.Event, server: uvicorn.Server) -> None:
    while not stop.is_set():
        await asyncio.sleep(0.2)
    server.should_exit = True


def _tending(hub: Hub) -> list[asyncio.Task[None]]:
    async def again(every_s: float, call: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(every_s)
            call()

    return [asyncio.create_task(again(_LATEST_EVERY_S, hub.publish_latest)), asyncio.create_task(again(_TEND_EVERY_S, hub.tend))]
