"""The simulator's REST history of Binance: all events, even those sent to no socket, with limits and faults."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tapeline.simulators.rate_limiter import RateLimiter
from tapeline.simulators.session import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tapeline.simulators.events import Event
    from tapeline.simulators.faults import Faults
    from tapeline.simulators.session import Request

#: How many events of a stream are kept. The oldest are removed first, as at the exchange.
_MOST_KEPT: Final = 500_000
_MOST_ROWS: Final = 1_000
_USUAL_ROWS: Final = 500
_MINUTE_NS: Final = 60 * 1_000_000_000
_JSON: Final = {"Content-Type": "application/json;charset=UTF-8"}


class BinanceHistory:
    """Trades, aggregated trades and closed klines by symbol, in REST's form."""

    def __init__(self, faults: Faults, clock: Callable[[], int], weight_a_minute: int) -> None:
        self._rows: dict[tuple[str, str], list[dict[str, Any]]] = {}  # channel, symbol
        self._clock, self._weight_a_minute = clock, weight_a_minute
        self._busy = RateLimiter(faults.number("rest_429"))
        self._broken = RateLimiter(faults.number("rest_error"))
        self._spent = 0
        self._minute_ns = clock()

    def keep(self, event: Event) -> None:
        """Note an event that happened."""
        fields = event.fields
        if event.topic.channel.startswith("kline_") and not fields["k"]["x"]:
            return
        rows = self._rows.setdefault((event.topic.channel, event.topic.symbol), [])
        rows.append(fields)
        if len(rows) > 2 * _MOST_KEPT:
            del rows[:_MOST_KEPT]

    def rows(self, channel: str, symbol: str) -> list[dict[str, Any]]:
        """The fields of the events, in order."""
        return self._rows.get((channel, symbol), [])

    def refused(self, weight: int) -> Reply | None:
        """The refusal of a request of this weight; None if it is allowed."""
        if self._broken.take():
            return _json({"code": -1000, "msg": "An unknown error occurred while processing the request."}, 500)
        if self._clock() - self._minute_ns > _MINUTE_NS:
            self._minute_ns, self._spent = self._clock(), 0
        self._spent += weight
        if self._busy.take() or self._spent > self._weight_a_minute:
            reply = _json({"code": -1003, "msg": "Too many requests; current limit of IP is exceeded."}, 429)
            return Reply(reply.status, reply.body, {**reply.headers, "Retry-After": "1"})
        return None

    @property
    def spent(self) -> int:
        """The weight used in this minute."""
        return self._spent

    def trades(self, request: Request) -> Reply:
        """`historicalTrades`: by id, or the latest."""
        query, rows = request.query, self._of("trade", request.query)
        if rows is None:
            return _invalid_symbol()
        limit = _limit(query)
        at = bisect_left(rows, int(query["fromId"]), key=lambda row: row["t"]) if "fromId" in query else max(0, len(rows) - limit)
        return _json([_trade(row) for row in rows[at : at + limit]])

    def agg_trades(self, request: Request) -> Reply:
        """`aggTrades`: by id, from a time on, up to a time (both bounds are included), or the latest."""
        query, rows = request.query, self._of("aggTrade", request.query)
        if rows is None:
            return _invalid_symbol()
        limit = _limit(query)
        if "fromId" in query:
            at = bisect_left(rows, int(query["fromId"]), key=lambda row: row["a"])
        elif "startTime" in query:
            at = bisect_left(rows, int(query["startTime"]), key=lambda row: row["T"])
        else:
            at = max(0, bisect_right(rows, int(query.get("endTime", 1 << 62)), key=lambda row: row["T"]) - limit)
        last = int(query.get("endTime", 1 << 62))
        return _json([{name: row[name] for name in "apqflTmM"} for row in rows[at : at + limit] if row["T"] <= last])

    def klines(self, request: Request) -> Reply:
        """`klines`: closed klines by their open time, or the latest."""
        query = request.query
        rows = self._of(f"kline_{query.get('interval', '')}", query)
        if rows is None:
            return _invalid_symbol()
        first, last = int(query.get("startTime", 0)), int(query.get("endTime", 1 << 62))
        bars = [row["k"] for row in rows if first <= row["k"]["t"] <= last]
        limit = _limit(query)
        return _json([_kline(k) for k in (bars[:limit] if "startTime" in query else bars[-limit:])])

    def _of(self, channel: str, query: Mapping[str, str]) -> list[dict[str, Any]] | None:
        symbol = query.get("symbol", "")
        rows = self._rows.get((channel, symbol))
        return rows if rows is not None else [] if any(known == symbol for _, known in self._rows) else None


def _limit(query: Mapping[str, str]) -> int:
    return min(_MOST_ROWS, int(query.get("limit", _USUAL_ROWS)))


def _trade(row: dict[str, Any]) -> dict[str, Any]:
    quoted = float(row["p"]) * float(row["q"])
    return {
        "id": row["t"],
        "price": row["p"],
        "qty": row["q"],
        "quoteQty": f"{quoted:.8f}",
        "time": row["T"],
        "isBuyerMaker": row["m"],
        "isBestMatch": True,
    }


def _kline(k: dict[str, Any]) -> list[Any]:
    return [k["t"], k["o"], k["h"], k["l"], k["c"], k["v"], k["T"], k["q"], k["n"], k["V"], k["Q"], "0"]


def _invalid_symbol() -> Reply:
    return _json({"code": -1121, "msg": "Invalid symbol."}, 400)


def _json(value: object, status: int = 200) -> Reply:
    return Reply(status, msgspec.json.encode(value), _JSON)
