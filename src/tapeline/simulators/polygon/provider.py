"""Polygon.io as a provider: three clusters, and accounts with a limit on connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tapeline.simulators.accounts import Accounts
from tapeline.simulators.polygon.files import PolygonFiles
from tapeline.simulators.polygon.history import PolygonHistory
from tapeline.simulators.polygon.lists import PolygonLists
from tapeline.simulators.polygon.session import PolygonSession, Rules
from tapeline.simulators.polygon.tape import CHANNELS, PolygonTape
from tapeline.simulators.rate_limiter import RateLimiter
from tapeline.simulators.session import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapeline.simulators.events import Event, Topic
    from tapeline.simulators.faults import Faults
    from tapeline.simulators.options import SimulatorOptions
    from tapeline.simulators.session import Request, Session


class Polygon:
    """See session.Provider."""

    def __init__(self, options: SimulatorOptions, faults: Faults, clock: Callable[[], int]) -> None:
        if "evict_oldest" in faults and "refuse_newcomer" in faults:
            raise ValueError("evict_oldest and refuse_newcomer contradict each other: choose one")
        self.tape = PolygonTape(options.symbols, options.seed, faults)
        self._symbols: dict[str, list[str]] = {feed: [] for feed in CHANNELS}
        for one in self.tape.instruments():
            self._symbols[one.feed].append(one.symbol)
        self._rules = Rules(
            accounts=Accounts(options.max_connections),
            evict_oldest="refuse_newcomer" not in faults,
            refused_logins=RateLimiter(faults.number("auth_refused")),
            refused_connections=RateLimiter(faults.number("connection_limit")),
            not_authorized=faults.text("not_authorized"),
            delayed_plan="delayed_plan" in faults,
        )
        self._history = PolygonHistory(faults, clock)
        self._lists = PolygonLists(self.tape.instruments())
        self.files = PolygonFiles(faults, self._history.rows, self._history.edges).answer

    @property
    def listings(self) -> dict[str, list[dict[str, Any]]]:
        return self._lists.rows

    def enter(self, request: Request) -> Session | Reply:
        """Let a client in on the path of a cluster (`/stocks`, `/options`, `/crypto`). Any other path gets 404."""
        feed = request.path.strip("/")
        return PolygonSession(feed, self._rules) if feed in CHANNELS else Reply(404, b"404 Not Found")

    def get(self, request: Request) -> Reply | None:
        return self._history.answer(request, self._lists)

    def happened(self, events: Sequence[Event]) -> None:
        """Note trades and quotes for the history. Crypto quotes are left out, because Polygon.io has no history of them.

        Bars come from the tape, which also has those that no client listened to.
        """
        for event in events:
            self._history.keep(event)
        for topic, row in self.tape.ended:
            self._history.keep_bar(topic, row)
        self.tape.ended.clear()

    def resolve(self, topic: Topic) -> list[Topic]:
        if topic.symbol != "*":
            return [topic]
        return [topic._replace(symbol=symbol) for symbol in self._symbols[topic.feed]]
