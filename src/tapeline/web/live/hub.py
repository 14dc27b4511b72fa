"""The hub: it gives each window to the clients whose subscriptions match, and keeps what a new client is sent first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Final
from weakref import ref

from tapeline.errors import Unavailable
from tapeline.records import NS_PER_S, TICKS_TOPIC
from tapeline.web.live import position as positions
from tapeline.web.live.binary import binary_message
from tapeline.web.live.client import LIMIT, ROOM, Client, Room
from tapeline.web.live.messages import ROWS, STATES, Alive, Hello, Message, encoded, message, state
from tapeline.web.live.position import Position
from tapeline.web.live.subscription import Request, Subscription
from tapeline.web.live.window import LatestValues, Part, Ring, Window

#: How much of the past is kept for clients that come back, in bytes.
_RING_BYTES: Final = 128_000_000
_TICKS: Final = TICKS_TOPIC.table
_LOOK_EVERY_S: Final = 0.025


@dataclass(eq=False, slots=True)
class _Audience:
    """The clients with one subscription: each message is made once for all of them."""

    subscription: Subscription
    clients: set[Client] = field(default_factory=set)
    #: The known symbols that the subscription matches.
    symbols: set[str] = field(default_factory=set)
    #: Those whose values changed since the last message of the kind `latest`, and when (ns) the next one is due.
    changed: set[str] = field(default_factory=set)
    due_ns: int = 0

    def send(self, message: Message) -> None:
        for client in self.clients:
            client.put(message)


class Hub:
    """All clients, and what they may get. All methods belong to the event loop."""

    def __init__(
        self,
        most_clients: int,
        clock: Callable[[], int],
        ring_bytes: int = _RING_BYTES,
        client_bytes: int = LIMIT,
        all_bytes: int = ROOM,
    ) -> None:
        """`clock`: monotonic, ns. `ring_bytes`: how much is kept for clients that come back. `client_bytes`: how much waits for one.

        `all_bytes`: how much waits for all of them together."""
        self._most, self._clock, self._client_bytes = most_clients, clock, client_bytes
        self._room = Room(all_bytes)
        self._ring = Ring(ring_bytes)
        self._latest = LatestValues()
        self._position = self._first = Position(dict.fromkeys(ROWS, ()))
        self._audiences: dict[Subscription, _Audience] = {}
        self._of_symbol: dict[str, list[_Audience]] = {}
        self._states: dict[str, bytes] = {}
        self._left_skipped = 0

    @property
    def position(self) -> Position:
        """How far the topics were read."""
        return self._position

    @property
    def first(self) -> Position:
        """Where the records of the topics began when reading began."""
        return self._first

    @property
    def clients(self) -> int:
        """How many there are."""
        return sum(len(audience.clients) for audience in self._audiences.values())

    @property
    def skipped(self) -> int:
        """How many events slow clients did not get."""
        return self._left_skipped + sum(client.skipped for audience in self._audiences.values() for client in audience.clients)

    @property
    def symbols(self) -> Collection[str]:
        """All symbols that were seen."""
        return self._of_symbol.keys()

    def latest(self, symbols: Collection[str]) -> list[bytes]:
        """Return the latest values of symbols, as JSON."""
        return self._latest.rows(symbols)

    def join(self, subscription: Subscription, since: str) -> Client:
        """Return the queue of a new client. `since`: the id of the last message that it got; empty if it is new.

        Raises WrongArgument if `since` is not an id, and Unavailable if there are too many clients, or if nothing can be read yet: a client
        that is told so comes back later with the same `since`."""
        if self.clients >= self._most:
            raise Unavailable(f"There are {self._most} clients, and no more are allowed. Try later, or raise [dashboard] clients.")
        wanted = positions.parse(since).begun(self._first) if since else None
        if wanted is not None and not self._position.known:
            raise Unavailable("The stream cannot be read yet, so nobody knows what was missed. Try later.")
        client = Client(subscription, self._conflated, self._clock, self._client_bytes, self._room)
        audience = self._enter(client)
        windows = None if wanted is None else [] if wanted == self._position else self._ring.since(wanted)
        missed = "" if wanted is None or windows is not None else "The events since then are no longer kept, or the stream was replaced."
        # Whoever is lost after the first message has got nothing of what it missed, so it stands where it was.
        at = str(self._position if windows is None else wanted)
        hello = Hello("hello", at, windows is not None, missed, sorted(audience.symbols))
        # Only the ring keeps windows: a client that takes nothing would keep them all.
        kept = list(map(ref, windows or ()))
        earlier = self._earlier(client, audience, kept, wanted) if wanted is not None else iter(())
        client.begin(Message("hello", hello.id, encoded(hello)), earlier)
        # The ticks that were missed follow. Of the latest values, the present ones are enough.
        if windows is None or "latest" in subscription.kinds:
            self._snapshot(client, audience.symbols)
        self._present(client, subscription.kinds)
        return client

    async def arrived(self, since: str, patience_s: float) -> None:
        """Wait until reading has reached `since`, but not longer than `patience_s`. Raises WrongArgument if it is not an id.

        A store may be ahead by a moment, and a server that was just started reads the last records again."""
        wanted, until_ns = positions.parse(since) if since else None, self._clock() + int(patience_s * NS_PER_S)
        while wanted is not None and not self._position.reaches(wanted) and self._clock() < until_ns:
            await asyncio.sleep(_LOOK_EVERY_S)

    def leave(self, client: Client) -> None:
        """Forget a client."""
        self._left_skipped += client.skipped
        client.leave()
        self._exit(client)

    def change(self, client: Client, request: Request) -> None:
        """Change a client's subscription, and send it the present values of what is new. Raises WrongArgument."""
        before, after = client.subscription, client.subscription.changed(request)
        seen = set(self._audiences[before].symbols)
        self._exit(client)
        client.subscription = after
        audience = self._enter(client)
        self._snapshot(client, audience.symbols - seen if before.kinds & {"ticks", "latest"} else audience.symbols)
        self._present(client, after.kinds - before.kinds)

    def begin(self, position: Position, first: Position) -> None:
        """Note where reading begins, and where the records of the topics begin."""
        self._position, self._first = position, first

    def publish(self, window: Window) -> None:
        """Give a window to those who want it."""
        self._position = window.after
        self._ring.add(window)
        for table, part in window.parts.items():
            changed = self._latest.add(part) if table == _TICKS else set()
            found: dict[_Audience, list[str]] = {}
            for symbol in part.by_symbol:
                for audience in self._audiences_of(symbol):
                    if table in audience.subscription.kinds:
                        found.setdefault(audience, []).append(symbol)
                    if symbol in changed and "latest" in audience.subscription.kinds:
                        audience.changed.add(symbol)
            for audience, symbols in found.items():
                audience.send(self._events(audience.subscription, table, part, symbols))

    def publish_state(self, kind: str, body: bytes) -> None:
        """Give a new state (health, gaps, jobs, alerts) to those who want it. `body`: a JSON object; one that is as before is not sent."""
        if self._states.get(kind) == body:
            return
        self._states[kind] = body
        told = state(kind, str(self._position), body)
        for audience in self._audiences.values():
            if kind in audience.subscription.kinds:
                audience.send(told)

    def publish_latest(self) -> None:
        """Send the values that changed to those who want them and whose time it is. Call it some 20 times a second."""
        now_ns = self._clock()
        for audience in self._audiences.values():
            if not audience.changed or now_ns < audience.due_ns:
                continue
            audience.send(message("latest", str(self._position), self._latest.rows(sorted(audience.changed))))
            audience.due_ns = now_ns + int(NS_PER_S / audience.subscription.rate)
            audience.changed.clear()

    def tend(self) -> None:
        """Give a sign of life to clients that wait for long, and give those up that take nothing. Call it about once a second."""
        at = str(self._position)
        alive = Message("alive", at, encoded(Alive("alive", at)))
        for audience in self._audiences.values():
            for client in audience.clients:
                client.tend(alive)

    def _enter(self, client: Client) -> _Audience:
        audience = self._audiences.get(client.subscription)
        if audience is None:
            audience = self._audiences[client.subscription] = _Audience(client.subscription)
            for symbol in self._of_symbol:
                self._introduce(audience, symbol)
        audience.clients.add(client)
        return audience

    def _exit(self, client: Client) -> None:
        audience = self._audiences[client.subscription]
        audience.clients.discard(client)
        if not audience.clients:
            del self._audiences[client.subscription]
            for symbol in audience.symbols:
                self._of_symbol[symbol].remove(audience)

    def _introduce(self, audience: _Audience, symbol: str) -> None:
        if audience.subscription.matches(symbol):
            audience.symbols.add(symbol)
            self._of_symbol[symbol].append(audience)

    def _audiences_of(self, symbol: str) -> list[_Audience]:
        """Those who want a symbol. A symbol that was never seen is introduced to all of them."""
        if symbol not in self._of_symbol:
            self._of_symbol[symbol] = []
            for audience in self._audiences.values():
                self._introduce(audience, symbol)
        return self._of_symbol[symbol]

    def _events(self, subscription: Subscription, table: str, part: Part, symbols: Collection[str]) -> Message:
        if subscription.form != "json":
            batch = part.batch_at(part.places(symbols))
            return binary_message(table, str(self._position), batch, part.chunk.topic, subscription.form)
        events = sum(len(part.by_symbol[symbol]) for symbol in symbols)
        return message(table, str(self._position), [part.rows(symbol) for symbol in symbols], events=events)

    def _earlier(self, client: Client, audience: _Audience, windows: list[ref[Window]], since: Position) -> Iterator[Message]:
        """What a client missed, window by window, made when it is sent. If a window is forgotten before, the client is cut off."""
        symbols, subscription = set(audience.symbols), audience.subscription
        for one in windows:
            window = one()
            if window is None:
                client.cut_off()
                return
            made = list(_missed(window, symbols, subscription, since))
            del window
            yield from made

    def _snapshot(self, client: Client, symbols: Collection[str]) -> None:
        if client.subscription.kinds & {"ticks", "latest"}:
            client.put(message("latest", str(self._position), self._latest.rows(sorted(symbols))))

    def _present(self, client: Client, kinds: Collection[str]) -> None:
        for kind in STATES:
            if kind in kinds and kind in self._states:
                client.put(state(kind, str(self._position), self._states[kind]))

    def _conflated(self, client: Client, skipped: int) -> Message:
        symbols = sorted(self._audiences[client.subscription].symbols) if client.subscription in self._audiences else []
        return message("conflated", str(self._position), self._latest.rows(symbols), numbers={"skipped": skipped})


def _missed(window: Window, symbols: set[str], subscription: Subscription, since: Position) -> Iterator[Message]:
    for table, part in window.parts.items():
        places = part.places(symbols, since.next[table]) if table in subscription.kinds else []
        if places and subscription.form != "json":
            yield binary_message(table, str(window.after), part.batch_at(places), part.chunk.topic, subscription.form)
        elif places:
            yield message(table, str(window.after), part.rows_at(places), events=len(places))
