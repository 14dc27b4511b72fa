"""The simulator's REST history of Polygon.io: all events, even those sent to no socket, with keys, limits and faults."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_left, bisect_right, insort
from collections import deque
from datetime import UTC, date, datetime
from itertools import count
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from tapeline.simulators.bars import DAY_NS
from tapeline.simulators.events import Topic
from tapeline.simulators.rate_limiter import RateLimiter
from tapeline.simulators.session import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tapeline.simulators.events import Event
    from tapeline.simulators.faults import Faults
    from tapeline.simulators.polygon.lists import PolygonLists
    from tapeline.simulators.session import Request

#: How many events of a stream are kept. The oldest are removed first.
_MOST_KEPT: Final = 500_000
_MOST_ROWS: Final = 50_000
_USUAL_TICKS, _USUAL_BARS = 1_000, 5_000
_MINUTE_NS: Final = 60 * 1_000_000_000
_NS_PER_MS: Final = 1_000_000
#: The link to the next page names the provider's own host, whichever host was asked.
_HOST: Final = "https://api.massive.com"
_JSON: Final = {"Content-Type": "application/json"}
_TICKS: Final = re.compile(r"/v3/(trades|quotes)/([^/]+)")
_BARS: Final = re.compile(r"/v2/aggs/ticker/([^/]+)/range/(\d+)/(\w+)/([\d-]+)/([\d-]+)")
_CHANNELS: Final = {"trades": ("T", "XT"), "quotes": ("Q", ""), "minute": ("AM", "XA"), "second": ("A", "XAS")}  # second: crypto's name
#: The channels of bars.
_WINDOWS: Final = frozenset({"AM", "A", "XA", "XAS"})
_LATEST: Final = 1 << 62


_Kept = TypeVar("_Kept")


class _Cursor(msgspec.Struct):
    """Where the next page starts: behind `after` (time and number; for bars, the window's start), in the order of the first page."""

    low: int
    high: int
    limit: int
    descending: bool
    after: tuple[int, int] | None = None


class PolygonHistory:
    """Trades, quotes and bars by ticker, in REST's form."""

    def __init__(self, faults: Faults, clock: Callable[[], int]) -> None:
        self._ticks: dict[Topic, list[tuple[int, int, Event]]] = {}  # in order of time and number
        self._bars: dict[Topic, dict[int, dict[str, Any]]] = {}  # by the window's start
        self._numbers = count()
        self._clock = clock
        self._busy, self._broken = RateLimiter(faults.number("rest_429")), RateLimiter(faults.number("rest_error"))
        self._repeated, self._cut = RateLimiter(faults.number("rest_repeat")), RateLimiter(faults.number("rest_cut"))
        self._a_minute = faults.number("rest_limit")
        self._request_times: deque[int] = deque()
        self._not_authorized = faults.text("not_authorized")
        self._status = "DELAYED" if "delayed_plan" in faults else "OK"

    def keep(self, event: Event) -> None:
        """Note a trade or a quote that happened."""
        if event.topic.channel not in _ROWS:
            return
        rows = self._ticks.setdefault(event.topic, [])
        one = (event.ns, next(self._numbers), event)
        if rows and rows[-1][0] > event.ns:  # a late report
            insort(rows, one, key=itemgetter(0, 1))
        else:
            rows.append(one)
        if len(rows) > 2 * _MOST_KEPT:
            del rows[:_MOST_KEPT]

    def keep_bar(self, topic: Topic, row: dict[str, Any]) -> None:
        """Note the current values of a bar. They replace earlier ones of the same window."""
        bars = self._bars.setdefault(topic, {})
        bars[row["t"]] = row
        if len(bars) > _MOST_KEPT:
            del bars[next(iter(bars))]

    def rows(self, feed: str, channel: str, start_ns: int, end_ns: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows of [start_ns, end_ns) for files: the ticker and the row of each event, by ticker and then by time."""
        if channel in _WINDOWS:
            for topic, bars in sorted(self._bars.items()):
                if topic[:2] == (feed, channel):
                    for start_ms in sorted(bars):
                        if start_ns <= start_ms * _NS_PER_MS < end_ns:
                            yield topic.symbol, _filed_bar(bars[start_ms])
            return
        for topic, ticks in sorted(self._ticks.items()):
            if topic[:2] == (feed, channel):
                first, end = (bisect_left(ticks, ns, key=itemgetter(0)) for ns in (start_ns, end_ns))
                for _, _, event in ticks[first:end]:
                    yield topic.symbol, _ROWS[channel](event)

    def edges(self, feed: str, channel: str) -> tuple[int, int] | None:
        """The first and the last time (ns) of a feed's channel. None if it has no events."""
        if channel in _WINDOWS:
            starts = [ms * _NS_PER_MS for topic, bars in self._bars.items() if topic[:2] == (feed, channel) for ms in bars]
            return (min(starts), max(starts)) if starts else None
        series = [ticks for topic, ticks in self._ticks.items() if topic[:2] == (feed, channel) and ticks]
        return (min(ticks[0][0] for ticks in series), max(ticks[-1][0] for ticks in series)) if series else None

    def answer(self, request: Request, lists: PolygonLists) -> Reply | None:
        """A page of history, or of a list of instruments. None for any other path."""
        ticks, bars = _TICKS.fullmatch(request.path), _BARS.fullmatch(request.path)
        try:
            if request.path.startswith("/v3/reference/"):
                return self._refused(request) or self._page_of_list(request, lists)
            if ticks is not None:
                return self._refused(request) or self._page_of_ticks(request, *ticks.groups())
            return (self._refused(request) or self._page_of_bars(request, bars)) if bars is not None else None
        except (ValueError, msgspec.MsgspecError) as error:
            return _error(400, str(error))

    def _refused(self, request: Request) -> Reply | None:
        if self._broken.take():
            return _error(500, "internal error")
        key = request.headers.get("authorization", "").removeprefix("Bearer ") or request.query.get("apiKey", "")
        if not key or key.startswith("bad"):
            return _error(401, "Unknown API Key")
        if self._busy.take() or not self._affords():
            return _error(429, "You've exceeded the maximum requests per minute, please wait or upgrade your subscription to continue.")
        return None

    def _affords(self) -> bool:
        """Whether another request is within the limit per minute, if there is one. If so, it is counted."""
        if self._a_minute is None:
            return True
        now_ns = self._clock()
        while self._request_times and self._request_times[0] <= now_ns - _MINUTE_NS:
            self._request_times.popleft()
        if len(self._request_times) >= self._a_minute:
            return False
        self._request_times.append(now_ns)
        return True

    def _page_of_list(self, request: Request, lists: PolygonLists) -> Reply | None:
        body = lists.page(request.path, request.query, repeat=self._repeated.left)
        if body is None:
            return None
        if "next_url" in body:
            self._repeated.take()
        text = msgspec.json.encode(body)
        return Reply(200, text[: len(text) // 2] if self._cut.take() else text, _JSON)

    def _page_of_ticks(self, request: Request, what: str, ticker: str) -> Reply:
        feed, symbol = _named(ticker)
        channel = _CHANNELS[what][feed == "crypto"]
        if channel == self._not_authorized:
            body = {
                "status": "NOT_AUTHORIZED",
                "request_id": "0",
                "message": "You are not entitled to this data. Please upgrade your plan.",
            }
            return Reply(403, msgspec.json.encode(body), _JSON)
        cursor = _from(request.query) or _cursor_for_ticks(request.query)
        rows = self._ticks.get(Topic(feed, channel, symbol), [])
        return self._page(request, cursor, rows, _ROWS.get(channel, _quote), {})

    def _page_of_bars(self, request: Request, match: re.Match[str]) -> Reply:
        ticker, multiplier, width, low, high = match.groups()
        feed, symbol = _named(ticker)
        if multiplier != "1" or width not in ("minute", "second"):
            raise ValueError(f"this simulator keeps bars of 1 minute and 1 second, not of {multiplier} {width}")
        channel = _CHANNELS[width][feed == "crypto"]
        cursor = _from(request.query)
        if cursor is None:
            bounds = _day_or(low, _NS_PER_MS)[0] // _NS_PER_MS, _day_or(high, _NS_PER_MS)[1] // _NS_PER_MS
            cursor = _Cursor(*bounds, _limit(request.query, _USUAL_BARS), request.query.get("sort") == "desc")
        bars = self._bars.get(Topic(feed, channel, symbol), {})
        rows = [(start, 0, bars[start]) for start in sorted(bars)]
        return self._page(request, cursor, rows, dict, {"ticker": ticker, "adjusted": request.query.get("adjusted") != "false"})

    def _page(
        self,
        request: Request,
        cursor: _Cursor,
        rows: list[tuple[int, int, _Kept]],
        as_json: Callable[[_Kept], dict[str, Any]],
        more: dict[str, Any],
    ) -> Reply:
        first = bisect_left(rows, cursor.low, key=itemgetter(0))
        end = bisect_left(rows, cursor.high, key=itemgetter(0))
        if cursor.after is not None and cursor.descending:
            end = min(end, bisect_left(rows, cursor.after, key=itemgetter(0, 1)))
        elif cursor.after is not None:
            first = max(first, bisect_right(rows, cursor.after, key=itemgetter(0, 1)))
        some = rows[max(first, end - cursor.limit) : end][::-1] if cursor.descending else rows[first : min(end, first + cursor.limit)]
        body: dict[str, Any] = {**more, "status": self._status, "request_id": f"{next(self._numbers):032x}"}
        if more:
            body |= {"queryCount": len(some), "resultsCount": len(some)}
        if end - first > cursor.limit:
            query = {"cursor": urlsafe_b64encode(msgspec.json.encode(msgspec.structs.replace(cursor, after=some[-1][:2]))).decode()}
            if self._repeated.take():
                query = dict(request.query)
            body["next_url"] = f"{_HOST}{quote(request.path, safe='/:')}?{urlencode(query)}"
        if some or not more:  # a page without bars has no `results`
            body["results"] = [as_json(row) for _, _, row in some]
        text = msgspec.json.encode(body)
        return Reply(200, text[: len(text) // 2] if self._cut.take() else text, _JSON)


def _named(ticker: str) -> tuple[str, str]:
    """The feed of a ticker, and its symbol in that feed. A pair may come without its dash."""
    if ticker.startswith("X:"):
        pair = ticker[2:].replace("-", "")
        return "crypto", f"{pair[:-3]}-{pair[-3:]}"
    return ("options" if ticker.startswith("O:") else "stocks"), ticker


def _from(query: Mapping[str, str]) -> _Cursor | None:
    return msgspec.json.decode(urlsafe_b64decode(query["cursor"]), type=_Cursor) if "cursor" in query else None


def _cursor_for_ticks(query: Mapping[str, str]) -> _Cursor:
    low, high = 0, _LATEST
    for name, value in query.items():
        if name == "timestamp" or name.startswith("timestamp."):
            begin, end = _day_or(value, 1)
            match name.partition(".")[2]:
                case "gte":
                    low = max(low, begin)
                case "gt":
                    low = max(low, end)
                case "lte":
                    high = min(high, end)
                case "lt":
                    high = min(high, begin)
                case _:
                    low, high = max(low, begin), min(high, end)
    return _Cursor(low, high, _limit(query, _USUAL_TICKS), query.get("order", "desc") != "asc")


def _day_or(text: str, unit_ns: int) -> tuple[int, int]:
    """The start and the end (ns) of a date, or of one unit, counted since 1970."""
    if "-" in text:
        day = date.fromisoformat(text)
        begin = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000_000
        return begin, begin + DAY_NS
    return int(text) * unit_ns, (int(text) + 1) * unit_ns


def _limit(query: Mapping[str, str], usual: int) -> int:
    return max(1, min(_MOST_ROWS, int(query.get("limit", usual))))


def _trade(event: Event) -> dict[str, Any]:
    live = event.fields
    row: dict[str, Any] = {"conditions": live["c"]} if "c" in live else {}
    row |= {"exchange": live["x"], "participant_timestamp": event.ns - 300_017, "price": live["p"], "sequence_number": live["q"]}
    row |= {"sip_timestamp": event.ns, "size": live["s"]}
    if "i" in live:
        row |= {"correction": 0, "decimal_size": live["ds"], "id": live["i"], "tape": live["z"]}
    if "trfi" in live:
        row |= {"trf_id": live["trfi"], "trf_timestamp": live["trft"] * _NS_PER_MS}
    return row


def _quote(event: Event) -> dict[str, Any]:
    live = event.fields
    row: dict[str, Any] = {"bid_exchange": live["bx"], "bid_price": live["bp"], "bid_size": live["bs"]}
    row |= {"ask_exchange": live["ax"], "ask_price": live["ap"], "ask_size": live["as"]}
    row |= {"participant_timestamp": event.ns - 300_017, "sequence_number": live["q"], "sip_timestamp": event.ns}
    if "i" in live:
        row |= {"conditions": [live["c"]], "indicators": live["i"]}
    return row | ({"tape": live["z"]} if "z" in live else {})


def _filed_bar(row: dict[str, Any]) -> dict[str, Any]:
    """A bar with the column names of files."""
    names = {"volume": "v", "open": "o", "close": "c", "high": "h", "low": "l", "transactions": "n"}
    return {name: row[short] for name, short in names.items()} | {"window_start": row["t"] * _NS_PER_MS}


def _crypto_trade(event: Event) -> dict[str, Any]:
    live = event.fields
    row = {"conditions": live["c"], "exchange": live["x"], "id": live["i"], "participant_timestamp": event.ns, "price": live["p"]}
    return row | {"received_timestamp": live["r"] * _NS_PER_MS, "size": live["s"]}


_ROWS: Final[dict[str, Callable[[Event], dict[str, Any]]]] = {"T": _trade, "Q": _quote, "XT": _crypto_trade}


def _error(status: int, message: str) -> Reply:
    return Reply(status, msgspec.json.encode({"status": "ERROR", "request_id": "0", "error": message}), _JSON)
