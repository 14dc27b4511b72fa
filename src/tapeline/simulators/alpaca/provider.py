"""Alpaca as a provider: a path for each feed, the codec by header, accounts with a limit on connections, and its history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tapeline.simulators.accounts import Accounts
from tapeline.simulators.alpaca.history import AlpacaHistory
from tapeline.simulators.alpaca.lists import AlpacaLists
from tapeline.simulators.alpaca.session import AlpacaSession, Rules
from tapeline.simulators.alpaca.tape import CHANNELS, AlpacaTape
from tapeline.simulators.rate_limiter import RateLimiter
from tapeline.simulators.session import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapeline.simulators.events import Event, Topic
    from tapeline.simulators.faults import Faults
    from tapeline.simulators.options import SimulatorOptions
    from tapeline.simulators.session import Request, Session

_PATHS: Final = {
    "/v2/iex": "iex",
    "/v2/sip": "sip",
    "/v2/delayed_sip": "delayed_sip",
    "/v2/test": "test",
    "/v1beta1/opra": "opra",
    "/v1beta1/indicative": "indicative",
    "/v1beta3/crypto/us": "crypto",
}
#: A subscription to a stock's trades brings their corrections and cancels too.
_FOLLOWERS: Final = ("trades", "corrections", "cancelErrors")


class Alpaca:
    """See session.Provider."""

    def __init__(self, options: SimulatorOptions, faults: Faults, clock: Callable[[], int]) -> None:
        self.tape = AlpacaTape(options.symbols, options.seed)
        self._symbols: dict[str, list[str]] = {feed: [] for feed in CHANNELS}
        for one in self.tape.instruments():
            self._symbols[one.feed].append(one.symbol)
        error, limit = faults.number("error"), faults.number("symbol_limit")
        self._rules = Rules(
            accounts=Accounts(options.max_connections),
            refused_logins=RateLimiter(faults.number("auth_refused")),
            refused_connections=RateLimiter(faults.number("connection_limit")),
            zombie_s=faults.number("zombie_slot"),
            symbol_limit=None if limit is None else int(limit),
            error=None if error is None else int(error),
            close_after_error="close_after_error" in faults,
            keep_after_error="keep_after_error" in faults,
        )
        self._too_often = RateLimiter(faults.number("http_429"))
        self.history = AlpacaHistory(faults, clock)
        self._lists = AlpacaLists(self.tape.instruments(), int(faults.number("rest_page") or 10_000))

    @property
    def listings(self) -> dict[str, list[dict[str, Any]]]:
        return self._lists.rows

    def enter(self, request: Request) -> Session | Reply:
        """Let a client in on the path of a feed. Any other path gets 404, and the fault `http_429` brings 429.

        As at Alpaca, the header Content-Type chooses MessagePack or JSON, and the key may come in headers. Data is compressed if the client
        offers permessage-deflate.
        """
        feed = _PATHS.get(request.path.rstrip("/"))
        if feed is None:
            return Reply(404, b"404 Not Found")
        if self._too_often.take():
            return Reply(429, b"429 Too Many Requests")
        return AlpacaSession(
            feed,
            self._rules,
            msgpack="application/msgpack" in request.headers.get("content-type", ""),
            deflate="permessage-deflate" in request.headers.get("sec-websocket-extensions", ""),
            key=request.headers.get("apca-api-key-id"),
            secret=request.headers.get("apca-api-secret-key"),
        )

    def get(self, request: Request) -> Reply | None:
        return self.history.answer(request, self._lists)

    def happened(self, events: Sequence[Event]) -> None:
        """Note the events for the history, and before them the bars that no client listened to."""
        for event in (*self.tape.unheard, *events):
            self.history.keep(event)
        self.tape.unheard.clear()

    def resolve(self, topic: Topic) -> list[Topic]:
        """Return every symbol of the feed for `*`. As at Alpaca, a stock's trades bring their corrections and cancels too."""
        feed, channel, symbol = topic
        symbols = self._symbols[feed] if symbol == "*" else [symbol]
        stocks = "statuses" in CHANNELS[feed]
        channels = _FOLLOWERS if channel == "trades" and stocks else (channel,)
        return [topic._replace(channel=name, symbol=one) for one in symbols for name in channels]
