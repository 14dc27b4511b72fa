"""The simulator: one port, its clients, and the loop that hands the market's events to the clients that want them."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter, deque
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote

import numpy as np
from picows import (
    WSListener,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,
)

from tapeline.simulators import wire
from tapeline.simulators.connection import Connection
from tapeline.simulators.faults import Faults
from tapeline.simulators.files import FileServer
from tapeline.simulators.journal import Journal
from tapeline.simulators.mischief import Mischief, huge
from tapeline.simulators.polygon.provider import Polygon
from tapeline.simulators.providers import provider_of
from tapeline.simulators.replay import Replay
from tapeline.simulators.session import Reply, Request
from tapeline.simulators.source import BATCH, Generated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapeline.simulators.events import Event, Frame, Topic
    from tapeline.simulators.options import SimulatorOptions
    from tapeline.simulators.source import Source

_TICK_S: Final = 0.005  # between two turns of a generator that keeps up
_IDLE_S: Final = 0.02
_CHORES_S: Final = 0.05  # how often the sockets' timers are checked
_FLUSH_S: Final = 0.5
_FAREWELL_S: Final = 2.0  # the time that clients have to answer a close
_MOST_KEPT: Final = 500_000  # events of a stream kept for `rewind:all`
#: A certificate for tests with TLS. It is valid for the loopback interface only, because its key is published too.
CERTIFICATE: Final = Path(__file__).with_name("loopback_test_only.crt")
_KEY: Final = Path(__file__).with_name("loopback_test_only.key")


class Simulator:
    """A local simulator of one provider. `clock` gives nanoseconds since the epoch."""

    def __init__(self, options: SimulatorOptions, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._options = options
        self._faults = Faults.parse(options.faults, options.name)
        self._provider = provider_of(options, self._faults, clock)
        self._journal = Journal(options.journal, options.name)
        self._source: Source | None = None
        self._clock = clock
        self._random = np.random.default_rng([options.seed, 4])
        self._numbers = count(1)
        self._connections: list[Connection] = []
        self._audience: dict[Topic, tuple[Connection, ...]] = {}
        self._kept: dict[Topic, deque[tuple[int, Event]]] = {}
        self._keep = _to_keep(self._faults.text("rewind"))
        self._skip = self._faults.chance("skip")
        self._halted = False
        self._order = count()
        self._sent: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._files = FileServer(self._provider.files) if isinstance(self._provider, Polygon) else None
        #: The url of the provider's files; empty if none are served.
        self.files_url = ""
        self._pump: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._deserted = asyncio.Event()  # the last client has left
        self._latest: deque[Event] = deque(maxlen=64)
        self._due: dict[tuple[Connection, str], float] = {}

    @property
    def sent(self) -> dict[str, int]:
        """The number of events handed to sockets so far, by channel. It includes events that are malformed on purpose or repeated."""
        return dict(self._sent)

    @property
    def listings(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of the provider's lists of instruments by market, as they are on the wire. A change is in the next answer."""
        return self._provider.listings

    async def start(self) -> str:
        """Listen and return the base url. OSError if the port is taken or a recording cannot be read."""
        options = self._options
        context = _server_context() if options.tls else None
        self._source = source = self._opened_source()
        try:
            self._journal.open()
            self._server = await ws_create_server(self._enter, options.host, options.port, enable_auto_pong=False, ssl=context)
            if self._files is not None and options.files_port is not None:
                self.files_url = await self._files.start(options.host, options.files_port)
        except OSError:
            source.close()
            self._journal.close()
            raise
        self._pump = asyncio.get_running_loop().create_task(self._run())
        host = f"[{options.host}]" if ":" in options.host else options.host
        return f"{'wss' if options.tls else 'ws'}://{host}:{self._server.sockets[0].getsockname()[1]}"

    def halt(self) -> None:
        """Close the market: no more events happen. Connections and histories stay."""
        self._halted = True

    async def broken(self) -> None:
        """Wait until the simulator can no longer send, and raise the reason. Without a failure, this waits for ever."""
        assert self._pump is not None, "start the simulator first"
        await asyncio.shield(self._pump)

    async def stop(self) -> None:
        """Close every connection and the port, and complete the journal. If the simulator had failed, raise the reason."""
        if self._server is not None:
            self._server.close()
        if self._files is not None:
            await self._files.stop()
        broken: BaseException | None = None
        if self._pump is not None:
            self._pump.cancel()
            (broken,) = await asyncio.gather(self._pump, return_exceptions=True)
        for connection in list(self._connections):
            connection.close(1001, "going away") if connection.listens else connection.drop()
        if self._connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._deserted.wait()
        for connection in list(self._connections):
            connection.drop()
        if self._source is not None:
            self._source.close()
        self._journal.close()
        if isinstance(broken, Exception):
            raise broken

    # what connections call

    def now(self) -> float:
        """Monotonic seconds."""
        return asyncio.get_running_loop().time()

    def wake(self) -> None:
        """A slow client has caught up."""
        self._wake.set()

    def entered(self, connection: Connection) -> None:
        """A websocket has opened."""
        self._connections.append(connection)
        self._deserted.clear()
        for name in ("close", "reset", "stale", "half_open", "day_end", "huge"):
            seconds = self._faults.number(name)
            if seconds is not None and not (name == "day_end" and self._options.name == "binance"):
                self._due[connection, name] = connection.opened_s + seconds

    def left(self, connection: Connection) -> None:
        """A websocket is gone."""
        self._connections.remove(connection)
        for key in [key for key in self._due if key[0] is connection]:
            del self._due[key]
        if not self._connections:
            self._deserted.set()
        self.wake()

    def subscribed(self, connection: Connection, added: Sequence[Topic]) -> None:
        """A client's subscriptions have changed."""
        singles = [single for topic in added for single in self._provider.resolve(topic)]
        if self._keep and singles:
            again = [item for topic in singles for item in self._kept.get(topic, ())]
            connection.backlog.extend(event for _, event in sorted(again, key=lambda item: item[0]))
        self.audience_changed()
        self.wake()

    def handed_over(self, connection: Connection, frames: Sequence[Frame], *, repeat: bool) -> None:
        """Frames were handed to a socket: count and record their events."""
        sent, write, number = self._sent, self._journal.write, connection.number
        for frame in frames:
            again = repeat or frame.repeat
            for event, text in frame.entries:
                sent[event.topic.channel] += 1
                write(event, text, number, repeat=again)

    def _opened_source(self) -> Source:
        if not self._options.captures:
            return Generated(self._options, self._provider.tape, self._faults, self._clock)
        replay = Replay(self._options)
        replay.open()
        return replay

    # HTTP

    def _enter(self, upgrade: WSUpgradeRequest) -> WSListener | WSUpgradeResponseWithListener:
        path, _, query = upgrade.path.decode("latin-1").partition("?")
        fields = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in upgrade.headers.items()}
        request = Request(unquote(path), fields, headers)
        if headers.get("upgrade", "").lower() != "websocket":
            return _http(self._provider.get(request) or Reply(404, b"404 Not Found"))
        answer = self._provider.enter(request)
        if isinstance(answer, Reply):
            return _http(answer)
        mischief = Mischief(self._faults, self._random, self._provider.tape.stranger)
        connection = Connection(self, answer, next(self._numbers), mischief)
        extra = {"Sec-WebSocket-Extensions": wire.DEFLATE_REPLY} if answer.deflate else None
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(extra), connection)

    # the loop

    async def _run(self) -> None:
        chores_due = flush_due = 0.0
        while True:
            now = self.now()
            if now >= chores_due:
                chores_due = now + _CHORES_S
                self._chores(now)
            if now >= flush_due:
                flush_due = now + _FLUSH_S
                self._journal.flush()
            await self._turn(now)

    async def _turn(self, now: float) -> None:
        assert self._source is not None
        if any(connection.full for connection in self._connections):
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CHORES_S):
                    await self._wake.wait()
            return
        if self._repeat_backlogs():
            await asyncio.sleep(0)
            return
        events = [] if self._halted else self._source.take(now)
        self._distribute(events)
        if self._source.behind:
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(_TICK_S if self._audience else _IDLE_S)

    def _repeat_backlogs(self) -> bool:
        """Send the next part of the events that are to be repeated. Returns whether there were any."""
        waiting = [one for one in self._connections if one.backlog and one.listens]
        for connection in waiting:
            backlog = connection.backlog
            connection.deliver([backlog.popleft() for _ in range(min(BATCH, len(backlog)))], repeat=True)
        return bool(waiting)

    def _distribute(self, events: list[Event]) -> None:
        audience = self._audience
        batches: dict[Connection, list[Event]] = {}
        self._provider.happened(events)
        for event in events:
            listeners = audience.get(event.topic, ())
            if self._skip and self._random.random() < self._skip:
                for connection in listeners:
                    self._journal.write(event, event.json(), connection.number, skipped=True)
                continue
            for connection in listeners:
                batches.setdefault(connection, []).append(event)
            if self._keep and listeners:
                kept = self._kept.setdefault(event.topic, deque(maxlen=self._keep))
                kept.append((next(self._order), event))
        self._latest.extend(events[-8:])
        for connection, batch in batches.items():
            connection.deliver(batch)
        for connection in self._connections:
            if connection.listens and connection.mischief.waits() and connection not in batches:
                connection.deliver([])

    def audience_changed(self) -> None:
        """Compute again which connections listen to which topics."""
        assert self._source is not None
        audience: dict[Topic, list[Connection]] = {}
        for connection in self._connections:
            if connection.listens:
                singles = {single for topic in connection.session.topics for single in self._provider.resolve(topic)}
                for single in singles:
                    audience.setdefault(single, []).append(connection)
        self._audience = {topic: tuple(listeners) for topic, listeners in audience.items()}
        self._source.heard(frozenset(self._audience), self.now())

    # sockets in time

    def _chores(self, now: float) -> None:
        for connection in list(self._connections):
            connection.session.tick(now)
            self._kick_if_slow(connection, now)
        for (connection, name), due in list(self._due.items()):
            if now >= due and self._strike(connection, name):
                self._due.pop((connection, name), None)

    def _kick_if_slow(self, connection: Connection, now: float) -> None:
        patience = self._faults.number("slow_consumer")
        if patience is None or connection.full_since is None or now - connection.full_since < patience:
            return
        if connection.listens:
            connection.session.slow()
            connection.hang_up()

    def _strike(self, connection: Connection, name: str) -> bool:
        """Make a timed fault happen. False if it must wait for data."""
        if name == "huge":
            event = next((kept for kept in self._latest if connection in self._audience.get(kept.topic, ())), None)
            if event is None or connection.full:
                return False
            connection.transmit([huge(connection.session, event)])
            return True
        if name == "close":
            connection.close(1001, "")
        elif name == "reset":
            connection.reset()
        elif name == "stale":
            connection.stale()
        elif name == "half_open":
            connection.play_dead()
        else:
            connection.session.day_end()
        return True


def _to_keep(text: str | None) -> int:
    if text is None:
        return 0
    return _MOST_KEPT if text == "all" else int(float(text))


def _server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE, _KEY)
    return context


def _http(reply: Reply) -> WSUpgradeResponseWithListener:
    headers = {"Content-Type": "text/plain", **reply.headers}
    if reply.status >= 400:
        response = WSUpgradeResponse.create_error_response(reply.status, reply.body, headers)
    else:
        response = WSUpgradeResponse.create_ok_response(reply.body, headers)
    return WSUpgradeResponseWithListener(response, None)
