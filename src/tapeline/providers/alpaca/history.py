"""Alpaca's history over REST: which pages to request, and which events a page holds. Pure: this module sends nothing.

Facts: Alpaca's market data API documentation, "Historical" of stocks, options and crypto.

- Each kind of event has one endpoint. `start` and `end` are both inclusive.
- A page has at most 10,000 rows, sorted by time. It may have fewer rows although more pages follow.
- The next page has the same query and the `next_page_token` of the page before. The last page's token is null.
- A symbol without rows is missing from the map.
- There is no history of option quotes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlencode

import msgspec
import numpy as np

from tapeline.providers.alpaca.wire import Bar, Quote, Trade, UpdatedBar
from tapeline.providers.columns import rfc3339
from tapeline.providers.decoding import whole_numbers
from tapeline.providers.events import UNREADABLE, Int64, Kind, Notice, Reject
from tapeline.providers.history import Page, Request, Span, WrongPage, each_row, readable, unreadable
from tapeline.records import NS_PER_MS, NS_PER_S, amending
from tapeline.secret import Secret

#: Half of the smallest plan's limit, because one minute of ours can overlap two minutes of the provider.
WEIGHT_A_MINUTE: Final = 100
SETTLED_NS: Final = 20 * NS_PER_S
_ALL: Final[dict[str, Kind]] = {"trades": "trade", "quotes": "quote", "bars": "bar", "dailyBars": "bar"}
_OPTIONS: Final[dict[str, Kind]] = {"trades": "trade"}
CHANNELS: Final[dict[str, dict[str, Kind]]] = {
    "iex": _ALL,
    "sip": _ALL,
    "delayed_sip": _ALL,
    "opra": _OPTIONS,
    "indicative": _OPTIONS,
    "crypto": _ALL,
}
Event: TypeAlias = "Trade | Quote | Bar | Notice | Reject"
#: Turns the exchange letter of a row into the name of the exchange in the feed's ticks.
Exchange: TypeAlias = Callable[[str | None], str]
PAGE_ROWS: Final = 10_000
_PATHS: Final = {"opra": "/v1beta1/options", "indicative": "/v1beta1/options", "crypto": "/v1beta3/crypto/us"}
_STOCKS: Final = "/v2/stocks"
#: Channel to the last part of its path, which is also the key of the rows in a page.
_NAMES: Final = {"trades": "trades", "quotes": "quotes", "bars": "bars", "dailyBars": "bars"}
#: Channel of bars to its interval, and the longest length of a window in ns. (Days are New York's, and one day of the year has 25 hours.)
_WINDOWS: Final = {"bars": ("1Min", 60 * NS_PER_S), "dailyBars": ("1Day", 25 * 3_600 * NS_PER_S)}
#: A bar is not revised later than this after the end of its window. Revisions come half a minute after the end.
_REVISED_NS: Final = 120 * NS_PER_S
#: The age of the events that the delayed feed sends. Its history is the history of `sip`.
DELAY_NS: Final = 15 * 60 * NS_PER_S


def headers(key: Secret, secret: Secret) -> Mapping[str, str]:
    """The headers with the account's key and secret."""
    return {"APCA-API-KEY-ID": key.reveal(), "APCA-API-SECRET-KEY": secret.reveal()}


def settled_ns(channel: str) -> int:
    """The delay (ns) until the history is final. For bars it includes the window and the time in which they are revised."""
    return SETTLED_NS + (_WINDOWS[channel][1] + _REVISED_NS if channel in _WINDOWS else 0)


def first(span: Span) -> Request:
    """The request for the first page of a span."""
    return Request(_path(span))


def page(span: Span, request: Request, body: bytes, time_ms: int) -> Page:
    """Check a page and find the next request. Raises WrongPage.

    The rows must be of the requested symbol, and their times must rise from the requested start or from the page before."""
    del time_ms
    try:
        everything, token = _rows(span.channel, span.symbol, body)
        rows = readable(everything)
        times = rfc3339([row.t for row in rows])
    except UNREADABLE as error:
        raise WrongPage(f"{request.path} cannot be read: {error}. None of it was kept.") from error
    if times.null_count:
        wrong = next(row.t for row, known in zip(rows, times.is_valid().to_pylist(), strict=True) if not known)
        raise WrongPage(f"{request.path} gave the time {wrong!r}, which cannot be read. None of it was kept.")
    ns = times.to_numpy()
    least = int(request.after or _start_ns(span))
    if len(ns) and (ns[0] < least or np.any(ns[1:] < ns[:-1])):
        raise WrongPage(f"{request.path} gave times {rows[0].t} to {rows[-1].t} that do not rise from {_text(least)}. None of it was kept.")
    last = int(ns[-1]) if len(ns) else 0
    following = Request(_path(span, token), after=str(last or least)) if token else None
    if following is not None and following.path == request.path:
        raise WrongPage(f"{request.path} names itself as the next page: the provider repeats its cursor. The pages before it are kept.")
    width = _WINDOWS[span.channel][1] if span.channel in _WINDOWS and last else 0
    return Page(len(everything), last + width, following, unreadable=unreadable(everything))


def _path(span: Span, token: str = "") -> str:
    query = {"symbols": span.symbol, "start": _text(_start_ns(span)), "end": _text(span.end_ns - 1), "limit": PAGE_ROWS, "sort": "asc"}
    if span.channel in _WINDOWS:
        query["timeframe"] = _WINDOWS[span.channel][0]
    path = _PATHS.get(span.feed, _STOCKS)
    if path == _STOCKS:
        query["feed"] = "sip" if span.feed == "delayed_sip" else span.feed
        if span.channel in _WINDOWS:
            query["adjustment"] = "raw"
    if token:
        query["page_token"] = token
    return f"{path}/{_NAMES[span.channel]}?{urlencode(query, quote_via=quote, safe='')}"


def _start_ns(span: Span) -> int:
    """The start of the requested time. Bars begin one window earlier, so that the window which contains the start is included.

    The delayed feed begins 15 minutes earlier, with the events that it sent at the start."""
    earlier = _WINDOWS[span.channel][1] if span.channel in _WINDOWS else 0
    return span.start_ns - earlier - (DELAY_NS if span.feed == "delayed_sip" else 0)


def _text(ns: int) -> str:
    seconds, rest = divmod(ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


#: The values of `u` for a trade that was taken back.
_TAKEN_BACK: Final = ("canceled", "incorrect")


class _Trade(msgspec.Struct):
    """`{"t":"2022-01-03T09:00:00.086175744Z","x":"P","p":178.26,"s":246,"c":["@","T"],"i":1,"z":"C"}`.

    `u` is canceled, incorrect or corrected. Options: `c` is one text, and there is no `i`.
    Crypto: `{"t":"2022-05-18T12:01:00.537052Z","p":29791,"s":0.0016,"tks":"S","i":31455289}`."""

    t: str
    p: float
    s: float
    x: str | None = None
    i: int | None = None
    c: list[str] | str | None = None
    tks: str | None = None
    u: str | None = None


class _Quote(msgspec.Struct):
    """`{"t":"2022-01-03T09:00:00.028160898Z","ax":" ","ap":0,"as":0,"bx":"Q","bp":177.92,"bs":4,"c":["Y"],"z":"C"}`"""

    t: str
    bp: float | None = None
    bs: float | None = None
    ap: float | None = None
    as_: float | None = msgspec.field(default=None, name="as")
    bx: str | None = None
    ax: str | None = None
    c: list[str] | str | None = None


class _Bar(msgspec.Struct):
    """`{"t":"2022-01-03T09:00:00Z","o":178.26,"h":178.26,"l":178.21,"c":178.21,"v":1118,"n":65,"vw":178.235733}`"""

    t: str
    o: float
    h: float
    l: float  # noqa: E741 the wire's own name
    c: float
    v: float
    n: Int64 | None = None
    vw: float | None = None


def _page_of(name: str, row: Any) -> Callable[[bytes], Any]:
    """A function that decodes `{"<name>":{"AAPL":[<row>,...]},"next_page_token":"QUFQTHwy..."}`. The map may be null, which means empty."""
    fields = [("symbols", dict[str, list[row]] | None), ("next_page_token", str | None)]
    page_of = msgspec.defstruct(f"PageOf{name.title()}", fields, rename={"symbols": name})
    return whole_numbers.reading(msgspec.json.Decoder(page_of).decode)


def _pages(name: str, row: Any) -> Callable[[bytes], Any]:
    """As `_page_of`, but a row that cannot be read becomes a reject, and the others are kept."""
    one: Callable[[bytes], Any] = whole_numbers.reading(msgspec.json.Decoder(row).decode)
    whole, raw = _page_of(name, row), _page_of(name, msgspec.Raw)

    def page_of(body: bytes) -> Any:
        try:
            return whole(body)
        except msgspec.ValidationError:
            page_with_rejects = raw(body)
            page_with_rejects.symbols = {symbol: each_row(rows, one) for symbol, rows in (page_with_rejects.symbols or {}).items()}
            return page_with_rejects

    return page_of


_PAGES: Final = {name: _pages(name, row) for name, row in (("trades", _Trade), ("quotes", _Quote), ("bars", _Bar))}
_RAW_PAGES: Final = {name: _page_of(name, msgspec.Raw) for name in _PAGES}


def _rows(channel: str, symbol: str, body: bytes, pages: Mapping[str, Callable[[bytes], Any]] = _PAGES) -> tuple[list[Any], str]:
    """The rows of a page, rejects among them, and the token of the next page (empty if there is none).

    Raises the errors in UNREADABLE; among them ValueError if the page has another symbol's rows."""
    decoded = pages[_NAMES[channel]](body)
    strange = [name for name in decoded.symbols or () if name != symbol]
    if strange:
        raise ValueError(f"it holds rows of {strange[0]!r} instead of {symbol!r}")
    return (decoded.symbols or {}).get(symbol, []), decoded.next_page_token or ""


def events_of(channel: str, symbol: str, time_ms: int, body: bytes, exchange: Exchange) -> Sequence[Event]:
    """The events of a page as the stream would have sent them. A notice behind a trade says that it was canceled or corrected.

    `symbol` is canonical. `time_ms` is the time of the fetch. Raises the errors in UNREADABLE if the page cannot be read, and KeyError
    for an unknown channel."""
    if not body:
        return []
    rows, _ = _rows(channel, symbol, body)
    if channel == "trades":
        return _trades(symbol, rows, body, exchange)
    return _quotes(symbol, rows) if channel == "quotes" else _bars(channel, symbol, time_ms, rows)


def _trades(symbol: str, rows: Sequence[_Trade | Reject], body: bytes, exchange: Exchange) -> Sequence[Event]:
    trades = [row if isinstance(row, Reject) else Trade(symbol, row.t, row.p, row.s, row.x, row.i, row.c, row.tks) for row in rows]
    marked = {at: row for at, row in enumerate(rows) if not isinstance(row, Reject) and row.u}
    if not marked:
        return trades
    events: list[Event] = list(trades)
    texts, _ = _rows("trades", symbol, body, _RAW_PAGES)
    times = rfc3339([row.t for row in marked.values()]).to_pylist()
    for (at, row), ns in zip(reversed(marked.items()), reversed(times), strict=True):
        text = bytes(texts[at]).decode("utf-8", "replace")
        if row.u in _TAKEN_BACK and row.i is not None:  # a trade marked `corrected` is the valid one that replaces another
            text = amending(text, exchange(row.x), str(row.i))
        events.insert(at + 1, Notice("cancel" if row.u == "canceled" else "correction", text, symbol, ns))
    return events


def _quotes(symbol: str, rows: Sequence[_Quote | Reject]) -> Sequence[Event]:
    return [
        row if isinstance(row, Reject) else Quote(symbol, row.t, row.bp, row.bs, row.ap, row.as_, row.bx, row.ax, row.c) for row in rows
    ]


def _bars(channel: str, symbol: str, time_ms: int, rows: Sequence[_Bar | Reject]) -> Sequence[Event]:
    """The bars of a page. A bar is final if it was fetched late enough after its window; it is then an `UpdatedBar`, as on the stream."""
    settled_ns = time_ms * NS_PER_MS - _WINDOWS[channel][1] - _REVISED_NS

    def bar(row: _Bar, ns: int | None) -> Bar:
        kind = UpdatedBar if ns is not None and ns < settled_ns else Bar
        return kind(symbol, row.t, row.o, row.h, row.l, row.c, row.v, row.n, row.vw)

    times = iter(rfc3339([row.t for row in readable(rows)]).to_pylist())
    return [row if isinstance(row, Reject) else bar(row, next(times)) for row in rows]
