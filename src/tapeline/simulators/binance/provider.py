"""Binance spot as a provider: the paths of its websockets, and the HTTP requests that the same port answers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tapeline.simulators.binance.archive import BinanceArchive
from tapeline.simulators.binance.history import BinanceHistory
from tapeline.simulators.binance.session import MADE, BinanceSession, Terms
from tapeline.simulators.binance.tape import FEED, BinanceTape, split_symbol
from tapeline.simulators.rate_limiter import RateLimiter
from tapeline.simulators.session import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tapeline.simulators.events import Event, Topic
    from tapeline.simulators.faults import Faults
    from tapeline.simulators.market import Instrument
    from tapeline.simulators.options import SimulatorOptions
    from tapeline.simulators.session import Request, Session

_LONGEST_PATH: Final = 8_000
_UNITS: Final = {"": False, "MILLISECOND": False, "millisecond": False, "MICROSECOND": True, "microsecond": True}
_RAW: Final = re.compile(r"/ws(/.*)?")
_JSON: Final = {"Content-Type": "application/json;charset=UTF-8"}
_WEIGHT_A_MINUTE: Final = 6_000
_LIMITS: Final = (
    {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": _WEIGHT_A_MINUTE},
    {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 300_000},
)


class Binance:
    """See session.Provider."""

    def __init__(self, options: SimulatorOptions, faults: Faults, clock: Callable[[], int]) -> None:
        self.tape = BinanceTape(options.symbols)
        self._listed = {one.symbol: one for one in self.tape.instruments()}
        #: The rows of exchangeInfo, as they are on the wire. Tests change them.
        self.listings: dict[str, list[dict[str, Any]]] = {FEED: [_symbol_info(one) for one in self._listed.values()]}
        self._everything = bool(options.captures)  # a recording may hold any symbol
        self._day_s = faults.number("day_end") or options.day_seconds
        self._ack_delay_s = faults.number("ack_after_data")
        self._reject_unknown = "unknown_symbol" in faults
        self._forbidden = RateLimiter(faults.number("auth_refused"))
        self._too_many = RateLimiter(faults.number("connection_limit"))
        self._clock = clock
        self._cut = RateLimiter(faults.number("list_cut"))
        self.history = BinanceHistory(faults, clock, _WEIGHT_A_MINUTE)
        self._archive = BinanceArchive(faults, self.history.rows)
        self._routes: dict[str, tuple[int, Callable[[Request], Reply]]] = {  # path -> weight and handler
            "/api/v3/aggTrades": (4, self.history.agg_trades),
            "/api/v3/historicalTrades": (25, self.history.trades),
            "/api/v3/trades": (25, self.history.trades),
            "/api/v3/klines": (2, self.history.klines),
            "/api/v3/ping": (1, lambda _: _json({})),
            "/api/v3/time": (1, lambda _: _json({"serverTime": self._clock() // 1_000_000})),
            "/api/v3/exchangeInfo": (20, self._exchange_info),
        }

    def enter(self, request: Request) -> Session | Reply:
        """Let a client in on `/ws/..` or `/stream?streams=..`. `timeUnit` chooses milliseconds (the default) or microseconds.

        Other paths get 404, stream names of more than 8,000 characters 414, and another `timeUnit` 400. Faults bring 403 or 429, because
        Binance has no logins and so refuses at the upgrade.
        """
        combined = request.path == "/stream"
        raw = _RAW.fullmatch(request.path)
        if not (combined or raw):
            return Reply(404, b"404 Not Found")
        if self._forbidden.take():
            return Reply(403, b"403 Forbidden")
        if self._too_many.take():
            return Reply(429, b"429 Too Many Requests", {"Retry-After": "120"})
        names = request.query.get("streams", "") if combined else request.path.removeprefix("/ws")
        if len(names) > _LONGEST_PATH:
            return Reply(414, b"414 URI Too Long")
        unit = request.query.get("timeUnit", "")
        if unit not in _UNITS:
            return Reply(400, b"400 Bad Request")
        return BinanceSession(
            [name for name in names.split("/") if name],
            Terms(combined, _UNITS[unit], self._day_s, self._ack_delay_s, self._reject_unknown),
            knows=lambda symbol: self._everything or symbol in self._listed,
            serves=lambda channel: self._everything or MADE.fullmatch(channel) is not None,
            clock=self._clock,
        )

    def get(self, request: Request) -> Reply | None:
        """Answer a REST request, or one for a file of the archive.

        As at Binance, each REST reply names the weight used in this minute (`X-MBX-USED-WEIGHT-1M`), and too much of it brings 429.
        """
        route = self._routes.get(request.path)
        if route is None:
            return self._archive.get(request.path)
        weight, answer = route
        try:
            reply = self.history.refused(weight) or answer(request)
        except ValueError:
            reply = _json({"code": -1100, "msg": "Illegal characters found in a parameter."}, 400)
        return Reply(reply.status, reply.body, {**reply.headers, "X-MBX-USED-WEIGHT-1M": str(self.history.spent)})

    def happened(self, events: Sequence[Event]) -> None:
        """Note the events for the history and the archive. `bookTicker` is left out, because Binance has no history of it."""
        for event in (*self.tape.unheard, *events):
            if event.topic.channel != "bookTicker":
                self.history.keep(event)
        self.tape.unheard.clear()

    def resolve(self, topic: Topic) -> list[Topic]:
        """Return the topic itself, because Binance has no wildcards."""
        return [topic]

    def _exchange_info(self, request: Request) -> Reply:
        rows = {row["symbol"]: row for row in self.listings[FEED]}
        wanted = request.query.get("symbol")
        names = [wanted] if wanted else list(rows)
        if request.query.get("symbols"):
            names = msgspec.json.decode(request.query["symbols"], type=list[str])
        if not all(name in rows for name in names):
            return _json({"code": -1121, "msg": "Invalid symbol."}, 400)
        bare: dict[str, Any] = {"permissionSets": []} if request.query.get("showPermissionSets") == "false" else {}
        body = {
            "timezone": "UTC",
            "serverTime": self._clock() // 1_000_000,
            "rateLimits": _LIMITS,
            "exchangeFilters": [],
            "symbols": [rows[name] | bare for name in names],
        }
        reply = _json(body)
        return Reply(200, reply.body[: len(reply.body) // 2], reply.headers) if self._cut.take() else reply


def _symbol_info(instrument: Instrument) -> dict[str, Any]:
    base, quote = split_symbol(instrument.symbol)
    tick, step = f"{10**-instrument.price_decimals:.8f}", f"{10**-instrument.size_decimals:.8f}"
    return {
        "symbol": instrument.symbol,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000.00000000", "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": step, "maxQty": "9000000.00000000", "stepSize": step},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }


def _json(value: object, status: int = 200) -> Reply:
    return Reply(status, msgspec.json.encode(value), _JSON)
