"""The simulator's REST history of Alpaca: all events of its market, even those sent to no socket, with limits and faults."""

from __future__ import annotations

import base64
import binascii
import re
from bisect import bisect_left, bisect_right, insort
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from tapeline.simulators.alpaca.lists import LISTS
from tapeline.simulators.bars import DAY_NS, MINUTE_NS, SECOND_NS
from tapeline.simulators.rate_limiter import RateLimiter
from tapeline.simulators.session import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tapeline.simulators.alpaca.lists import AlpacaLists
    from tapeline.simulators.events import Event
    from tapeline.simulators.faults import Faults
    from tapeline.simulators.session import Request

#: How many events of a kind and a symbol are kept. The oldest are removed first.
_MOST_KEPT: Final = 500_000
_MOST_ROWS: Final = 10_000
_USUAL_ROWS: Final = 1_000
_REQUESTS_A_MINUTE: Final = 200
_RECENT_NS: Final = 15 * MINUTE_NS
_STOCKS: Final = re.compile(r"/v2/stocks(?:/([A-Z0-9.]+))?/(trades|quotes|bars)")
_OTHERS: Final = re.compile(r"/(?:v1beta1/(options)/(trades|bars)|v1beta3/(crypto)/us/(trades|quotes|bars))")
_SYMBOL: Final = re.compile(r"[A-Z0-9./]{1,24}")
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?)?")
_BARS: Final = {"1Min": "bars", "1Day": "dailyBars"}
#: The feeds whose events an endpoint serves. If there are two, the first that has events is used.
_FEEDS: Final = {"sip": ("sip", "delayed_sip"), "iex": ("iex",), "options": ("opra", "indicative"), "crypto": ("crypto",)}
_JSON: Final = {"Content-Type": "application/json; charset=UTF-8"}
_MARKS: Final = {"corrections": "incorrect", "cancelErrors": "canceled"}


class _Row(NamedTuple):
    """An event in its order: by time, and at the same time by arrival."""

    ns: int
    number: int
    fields: dict[str, Any]


class _RefusedError(Exception):
    """A refused request, with the HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class AlpacaHistory:
    """Trades, quotes and bars by feed, channel and symbol, a page at a time."""

    def __init__(self, faults: Faults, clock: Callable[[], int]) -> None:
        self._rows: dict[tuple[str, str, str], list[_Row]] = {}
        self._clock = clock
        self._number = 0
        self._busy = RateLimiter(faults.number("rest_429"))
        self._broken = RateLimiter(faults.number("rest_error"))
        self._cut = RateLimiter(faults.number("rest_cut"))
        self._repeat = RateLimiter(faults.number("rest_repeat"))
        self._most = int(faults.number("rest_page") or _MOST_ROWS)
        self._limit = int(faults.number("rest_limit") or _REQUESTS_A_MINUTE)
        self._old_sip_only = "recent_sip" in faults
        self._spent: dict[str, tuple[int, int]] = {}  # account: the minute's start (ns), and the requests in it

    def keep(self, event: Event) -> None:
        """Note an event that happened."""
        feed, channel, symbol = event.topic
        if channel in _MARKS:
            self._mark(feed, symbol, event)
        elif channel in ("trades", "quotes"):
            self._add(self._of(feed, channel, symbol), event.ns, event.fields)
        elif channel in ("bars", "updatedBars", "dailyBars"):
            rows = self._of(feed, "dailyBars" if channel == "dailyBars" else "bars", symbol)
            at = bisect_left(rows, (event.ns,))
            if at < len(rows) and rows[at].ns == event.ns:  # a revision replaces the bar
                rows[at] = rows[at]._replace(fields=event.fields)
            else:
                self._add(rows, event.ns, event.fields)

    def _of(self, feed: str, channel: str, symbol: str) -> list[_Row]:
        return self._rows.setdefault((feed, channel, symbol), [])

    def _add(self, rows: list[_Row], ns: int, fields: dict[str, Any]) -> None:
        self._number += 1
        row = _Row(ns, self._number, fields)
        if rows and ns < rows[-1].ns:  # a late report goes before others
            insort(rows, row)
        else:
            rows.append(row)
        if len(rows) > 2 * _MOST_KEPT:
            del rows[:_MOST_KEPT]

    def _mark(self, feed: str, symbol: str, event: Event) -> None:
        """Mark a trade that was canceled or corrected. It stays, and the corrected trade becomes a row of its own."""
        rows, about = self._of(feed, "trades", symbol), event.fields
        for at in range(len(rows) - 1, -1, -1):
            row = rows[at]
            if row.fields["i"] == event.id:
                rows[at] = row._replace(fields=row.fields | {"u": _MARKS[event.topic.channel]})
                if "ci" in about:
                    new = {"p": about["cp"], "s": about["cs"], "c": about["cc"], "i": about["ci"], "u": "corrected"}
                    self._add(rows, row.ns, row.fields | new)
                return

    def answer(self, request: Request, lists: AlpacaLists) -> Reply | None:
        """The reply to a request for history or for a list of instruments. None if nothing is served at the path."""
        stocks, other = _STOCKS.fullmatch(request.path), _OTHERS.fullmatch(request.path)
        if stocks is not None:
            symbol, kind = stocks.groups()
            endpoint = request.query.get("feed", "sip")
        elif other is not None:
            symbol, endpoint, kind = "", other[1] or other[3], other[2] or other[4]
        elif request.path in LISTS:
            symbol = endpoint = kind = ""
        else:
            return None
        key, secret = (request.headers.get(f"apca-api-{name}", "") for name in ("key-id", "secret-key"))
        if endpoint != "crypto" and not (key and secret):
            return _json({"message": "forbidden."}, 401)
        if key.startswith("bad"):
            return _json({"message": "forbidden."}, 403)
        if self._broken.take():
            return _json({"message": "internal server error"}, 500)
        limits, allowed = self._limits(key)
        if not allowed:
            return _json({"message": "too many requests."}, 429, limits)
        try:
            page = self._page(endpoint, kind, symbol or "", request.query) if endpoint else self._page_of_list(request, lists)
            return Reply(200, page, {**_JSON, **limits})
        except _RefusedError as refusal:
            return _json({"message": str(refusal)}, refusal.status, limits)

    def _limits(self, key: str) -> tuple[dict[str, str], bool]:
        """Count this request. Returns the account's limit as headers, and whether the request is within it."""
        now_ns = self._clock()
        since_ns, spent = self._spent.get(key, (now_ns, 0))
        if now_ns - since_ns >= MINUTE_NS:
            since_ns, spent = now_ns, 0
        spent += 1
        self._spent[key] = (since_ns, spent)
        busy = self._busy.take()
        reset_ns = now_ns if busy else since_ns + MINUTE_NS
        left = 0 if busy else max(0, self._limit - spent)
        numbers = {"Limit": self._limit, "Remaining": left, "Reset": reset_ns // SECOND_NS + 1}
        return {f"X-RateLimit-{name}": str(value) for name, value in numbers.items()}, not busy and spent <= self._limit

    def _page_of_list(self, request: Request, lists: AlpacaLists) -> bytes:
        repeat = self._repeat.left and "page_token" in request.query
        try:
            body = msgspec.json.encode(lists.page(request.path, request.query, repeat=repeat))
        except ValueError as error:
            raise _RefusedError(str(error), 422) from error
        if repeat:
            self._repeat.take()
        return body[: len(body) // 2] if self._cut.take() else body

    def _page(self, endpoint: str, kind: str, symbol: str, query: Mapping[str, str]) -> bytes:
        if endpoint not in _FEEDS:
            raise _RefusedError(f"invalid feed: {endpoint}")
        symbols = [symbol] if symbol else sorted(filter(None, query.get("symbols", "").split(",")))
        wrong = [one for one in symbols if not _SYMBOL.fullmatch(one)]
        if wrong or not symbols:
            raise _RefusedError(f"invalid symbol: {''.join(wrong[:1])}")
        now_ns = self._clock()
        start_ns = _time_ns(query["start"]) if "start" in query else now_ns - now_ns % DAY_NS
        end_ns = _time_ns(query["end"]) if "end" in query else now_ns
        if self._old_sip_only and endpoint == "sip" and end_ns > now_ns - _RECENT_NS:
            raise _RefusedError("subscription does not permit querying recent SIP data", 403)
        channel = kind
        if kind == "bars":
            if query.get("timeframe") not in _BARS:
                raise _RefusedError(f"invalid timeframe: {query.get('timeframe', '')}")
            channel = _BARS[query["timeframe"]]
        limit = query.get("limit", str(_USUAL_ROWS))
        if not limit.isdecimal() or not 0 < int(limit) <= _MOST_ROWS:
            raise _RefusedError(f"invalid limit: {limit}")
        after = _place(query["page_token"]) if "page_token" in query else ("", 0, 0)
        by_symbol, following = self._page_rows(endpoint, channel, symbols, (start_ns, end_ns), after, min(int(limit), self._most))
        if following and "page_token" in query and self._repeat.take():
            following = query["page_token"]
        rows: Any = by_symbol.get(symbol, []) if symbol else by_symbol
        body = msgspec.json.encode({kind: rows, **({"symbol": symbol} if symbol else {}), "next_page_token": following})
        return body[: len(body) // 2] if self._cut.take() else body

    def _page_rows(
        self, endpoint: str, channel: str, symbols: list[str], span: tuple[int, int], after: tuple[str, int, int], limit: int
    ) -> tuple[dict[str, list[dict[str, Any]]], str | None]:
        """The rows of a page, by symbol and then by time, and the token of the next page."""
        by_symbol: dict[str, list[dict[str, Any]]] = {}
        for symbol in symbols:
            if symbol < after[0]:
                continue
            rows = next((some for feed in _FEEDS[endpoint] if (some := self._rows.get((feed, channel, symbol)))), [])
            begin = bisect_right(rows, after[1:], key=_where) if symbol == after[0] else bisect_left(rows, span[0], key=_when)
            end = bisect_right(rows, span[1], key=_when)
            taken = rows[begin : min(end, begin + limit)]
            if taken:
                by_symbol[symbol] = [{name: value for name, value in row.fields.items() if name not in ("T", "S")} for row in taken]
                limit -= len(taken)
                last = _token(symbol, taken[-1])
            if begin + len(taken) < end:
                return by_symbol, last
        return by_symbol, None


def _when(row: _Row) -> int:
    return row.ns


def _where(row: _Row) -> tuple[int, int]:
    return row.ns, row.number


def _token(symbol: str, row: _Row) -> str:
    return base64.b64encode(f"{symbol}|{row.ns}|{row.number}".encode()).decode()


def _place(token: str) -> tuple[str, int, int]:
    """The row that a page ended with."""
    try:
        symbol, ns, number = base64.b64decode(token, validate=True).decode().split("|")
        return symbol, int(ns), int(number)
    except (ValueError, binascii.Error):
        raise _RefusedError("invalid page_token") from None


def _time_ns(text: str) -> int:
    """A date, or an RFC 3339 time with up to nine digits of a second."""
    parts = _TIME.fullmatch(text)
    try:
        day, time, fraction, zone = parts.groups() if parts is not None else ("", "", "", "")
        moment = datetime.fromisoformat(f"{day}T{time or '00:00:00'}{zone or '+00:00'}")
    except ValueError:
        raise _RefusedError(f"invalid time: {text}") from None
    return int(moment.timestamp()) * SECOND_NS + int((fraction or "").ljust(9, "0"))


def _json(value: object, status: int, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, msgspec.json.encode(value), {**_JSON, **(headers or {})})
