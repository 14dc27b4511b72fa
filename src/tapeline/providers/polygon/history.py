"""Polygon.io's history over REST: which pages to request, and which events a page holds. Pure: this module sends nothing.

Facts: Polygon.io's REST documentation.

- `/v3/trades/{ticker}` and `/v3/quotes/{ticker}` take times in ns. By default the latest row comes first.
- `/v2/aggs/ticker/{ticker}/range/...` takes times in ms. By default bars are adjusted for splits; the stream's bars are not.
- A page names the next page (`next_url`, on the provider's own host). A page without `next_url` is the last one.
- There is no history of crypto quotes.
- Depending on the plan, a key may request 5 pages a minute, or any number below 100 a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from tapeline.providers.columns import in_range, integers
from tapeline.providers.decoding import whole_numbers
from tapeline.providers.events import UNREADABLE, Int64, Kind, Notice, Reject
from tapeline.providers.history import Page, Request, Span, WrongPage, each_row, readable, unreadable
from tapeline.providers.polygon.wire import CryptoTrade, PastBar, Quote, Trade
from tapeline.records import NS_PER_MS, NS_PER_S
from tapeline.secret import Secret

#: Half of the rate that the provider asks its users to stay below. A plan with a lower limit answers 429, and the client then waits.
WEIGHT_A_MINUTE: Final = 3_000
SETTLED_NS: Final = 20 * NS_PER_S
_SHARES: Final[dict[str, Kind]] = {"T": "trade", "Q": "quote", "AM": "bar", "A": "bar"}
CHANNELS: Final[dict[str, dict[str, Kind]]] = {
    "stocks": _SHARES,
    "options": _SHARES,
    "crypto": {"XT": "trade", "XA": "bar", "XAS": "bar"},
}
#: A page is one record of the raw topic. With this many rows it has at most about 4 MB.
PAGE_ROWS: Final = 10_000
#: Channel of bars to the window's name in the path, and its length in ns.
_WINDOWS: Final = {
    "AM": ("minute", 60 * NS_PER_S),
    "XA": ("minute", 60 * NS_PER_S),
    "A": ("second", NS_PER_S),
    "XAS": ("second", NS_PER_S),
}
#: Late trades revise a bar for about 15 minutes. This is a little more.
_REVISED_NS: Final = 20 * 60 * NS_PER_S
#: The statuses of a good page. DELAYED comes on a plan that gives everything 15 minutes late.
_GOOD: Final = frozenset({"OK", "DELAYED"})
_DELAYED_NS: Final = 16 * 60 * NS_PER_S
Event: TypeAlias = "Trade | Quote | CryptoTrade | PastBar"


def headers(key: Secret, secret: Secret) -> Mapping[str, str]:
    """The header with the API key. There is no secret."""
    del secret
    return {"Authorization": f"Bearer {key.reveal()}"}


def settled_ns(channel: str) -> int:
    """The delay (ns) until the history is final. For bars it includes the window and the time in which late trades revise them."""
    return SETTLED_NS + (_WINDOWS[channel][1] + _REVISED_NS if channel in _WINDOWS else 0)


def first(span: Span) -> Request:
    """The first request of a span: from its start. Bars begin with the window that contains the start, because its bar comes later."""
    ticker = quote(_ticker(span), safe=":")
    if span.channel in _WINDOWS:
        name, width_ns = _WINDOWS[span.channel]
        start_ms, end_ms = span.start_ns // width_ns * width_ns // NS_PER_MS, (span.end_ns - 1) // NS_PER_MS
        path = f"/v2/aggs/ticker/{ticker}/range/1/{name}/{start_ms}/{end_ms}?adjusted=false&sort=asc&limit={PAGE_ROWS}"
        return Request(path, after=str(start_ms * NS_PER_MS))
    what = "quotes" if span.channel == "Q" else "trades"
    window = f"timestamp.gte={span.start_ns}&timestamp.lt={span.end_ns}"
    return Request(f"/v3/{what}/{ticker}?{window}&order=asc&sort=timestamp&limit={PAGE_ROWS}", after=str(span.start_ns))


def page(span: Span, request: Request, body: bytes, time_ms: int) -> Page:
    """Check a page and find the next request. Raises WrongPage.

    The page must be for the requested ticker and time, and its times must rise from where the page before it ended."""
    try:
        answer = _ANSWERS[span.channel](body)
        following = None if answer.next_url is None else path_of(answer.next_url)
    except UNREADABLE as error:
        raise WrongPage(f"{request.path} cannot be read: {error}. {_NOTHING_KEPT}") from error
    if answer.status not in _GOOD:
        message = answer.error or answer.message
        raise WrongPage(f"{request.path} came with status {answer.status!r}{message and f' ({message})'}. {_NOTHING_KEPT}")
    if answer.ticker not in ("", _ticker(span)):
        raise WrongPage(f"{request.path} has rows of {answer.ticker}, not of {_ticker(span)}. {_NOTHING_KEPT}")
    times, least_ns = [row.time_ns for row in readable(answer.results)], int(request.after)
    bars = span.channel in _WINDOWS
    if any(b < a + bars for a, b in pairwise((least_ns - bars, *times))):
        raise WrongPage(f"{request.path} gave times {times[0]} to {times[-1]} that do not rise from {least_ns}. {_NOTHING_KEPT}")
    if times and times[-1] >= span.end_ns:
        raise WrongPage(f"{request.path} gave times up to {times[-1]}, but only times before {span.end_ns} were requested. {_NOTHING_KEPT}")
    if answer.status == "DELAYED" and span.end_ns > time_ms * NS_PER_MS - _DELAYED_NS:
        raise WrongPage(f"{request.path} covers the last 15 minutes, which this plan sends late. Request it again in 15 minutes.")
    if following is not None and following.partition("?")[0] != request.path.partition("?")[0]:
        raise WrongPage(f"{request.path} names {following} as its next page, which belongs to another request. {_NOTHING_KEPT}")
    if following == request.path:
        raise WrongPage(f"{request.path} names itself as the next page: the provider repeats its cursor. {_NOTHING_KEPT}")
    width_ns = _WINDOWS[span.channel][1] if bars else 0
    reached_ns = times[-1] + width_ns if times else 0
    after = times[-1] + bars if times else least_ns
    rest = None if following is None else Request(following, after=str(after))
    return Page(len(answer.results), reached_ns, rest, unreadable=unreadable(answer.results))


_NOTHING_KEPT: Final = "None of it was kept."


def path_of(url: str) -> str:
    """Path and query of the next page. The host is dropped, because it is the provider's own whichever address was asked.

    Raises ValueError if the text is not such an address."""
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}"
    if not parts.path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise ValueError(f"next_url {url!r} is not a valid address")
    return path


def _ticker(span: Span) -> str:
    """The provider's own spelling of a canonical symbol. Crypto pairs have two spellings: `X:BTCUSD` for bars, `X:BTC-USD` otherwise."""
    if span.feed == "crypto":
        return "X:" + span.symbol.replace("/", "" if span.channel in _WINDOWS else "-")
    return f"O:{span.symbol}" if span.feed == "options" else span.symbol


class TradeRow(msgspec.Struct):
    """`{"conditions":[12,41],"correction":0,"decimal_size":"100.0","exchange":11,"id":"1","participant_timestamp":1517562000015577000,
    "price":171.55,"sequence_number":1063,"sip_timestamp":1517562000016036600,"size":100,"tape":3,"trf_id":201,...}`. Times are in ns.
    Options have no `id`."""

    exchange: int
    price: float
    size: float
    sip_timestamp: Int64  # the same time as the stream's `t`
    sequence_number: Int64 | None = None
    id: str | None = None
    decimal_size: str | None = None
    conditions: list[int] | None = None
    trf_id: int | None = None
    correction: int | None = None

    @property
    def time_ns(self) -> int:
        """Return the time at which the SIP got the trade, in ns since 1970. Pages are sorted by it."""
        return self.sip_timestamp


class QuoteRow(msgspec.Struct):
    """`{"ask_exchange":11,"ask_price":171.6,"ask_size":100,"bid_exchange":12,"bid_price":171.5,"bid_size":200,"conditions":[1],
    "indicators":[604],"participant_timestamp":...,"sequence_number":1063,"sip_timestamp":...,"tape":3}`. Either side may be absent."""

    sip_timestamp: Int64
    ask_exchange: int | None = None
    ask_price: float | None = None
    ask_size: float | None = None
    bid_exchange: int | None = None
    bid_price: float | None = None
    bid_size: float | None = None
    conditions: list[int] | None = None
    sequence_number: Int64 | None = None

    @property
    def time_ns(self) -> int:
        """Return the time at which the SIP got the quote, in ns since 1970. Pages are sorted by it."""
        return self.sip_timestamp


class _CryptoTrade(msgspec.Struct):
    """`{"conditions":[2],"exchange":1,"id":"191450341","participant_timestamp":...,"price":35059.99,"received_timestamp":...,
    "size":0.0058883}`"""

    exchange: int
    price: float
    size: float
    participant_timestamp: Int64  # the same time as the stream's `t`
    id: str | None = None
    conditions: list[int] | None = None
    correction: int | None = None

    @property
    def time_ns(self) -> int:
        return self.participant_timestamp


class PastBarRow(msgspec.Struct):
    """`{"c":75.0875,"h":75.15,"l":73.7975,"n":1,"o":74.06,"t":1577941200000,"v":135647456,"vw":74.6099}`. `t` is the window's start
    in ms."""

    t: Int64
    o: float
    h: float
    l: float  # noqa: E741 the wire's own name
    c: float
    v: float
    vw: float | None = None
    n: Int64 | None = None

    @property
    def time_ns(self) -> int:
        """Return the start of the bar's window in ns since 1970. Pages are sorted by it."""
        return self.t * NS_PER_MS


_Row = TypeVar("_Row")


class _Answer(msgspec.Struct, Generic[_Row]):
    """`{"status":"OK","request_id":"a47d..","next_url":"https://api.massive.com/v3/trades/AAPL?cursor=YWN0...","results":[...]}`. A page
    of bars names its `ticker`. If there are no bars, it has no `results`."""

    status: str = ""
    results: list[_Row] = []
    next_url: str | None = None
    ticker: str = ""
    error: str = ""
    message: str = ""


_RAW_ROWS: Final = whole_numbers.reading(msgspec.json.Decoder(_Answer[msgspec.Raw]).decode)


def _answers(row: Any) -> Callable[[bytes], _Answer[Any]]:
    """A function that decodes a page of such rows. A row that cannot be read becomes a reject; the others are kept."""
    whole = whole_numbers.reading(msgspec.json.Decoder(_Answer[row]).decode)
    one: Callable[[bytes], Any] = whole_numbers.reading(msgspec.json.Decoder(row).decode)

    def answer(body: bytes) -> _Answer[Any]:
        try:
            return whole(body)
        except msgspec.ValidationError:
            decoded: _Answer[Any] = _RAW_ROWS(body)
            decoded.results = each_row(decoded.results, one)
            return decoded

    return answer


_ANSWERS: Final[dict[str, Callable[[bytes], _Answer[Any]]]] = {
    "T": _answers(TradeRow),
    "Q": _answers(QuoteRow),
    "XT": _answers(_CryptoTrade),
    **dict.fromkeys(_WINDOWS, _answers(PastBarRow)),
}


def events_of(channel: str, symbol: str, time_ms: int, body: bytes) -> Sequence[Event | Notice | Reject]:
    """The events of a page as the stream would have sent them, but with trades' and quotes' times in ns.

    `symbol` is canonical. `time_ms` is the time of the fetch.

    A notice says that the trade before it has been corrected since. A reject stands for an event that cannot be read. Raises the errors
    in UNREADABLE if the page cannot be read, and KeyError for an unknown channel."""
    rows = _ANSWERS[channel](body).results
    events = as_events(channel, symbol, time_ms, rows)
    if not any(row.correction for row in readable(rows) if hasattr(row, "correction")):
        return events
    return marked(symbol, events, rows, [bytes(text).decode("utf-8", "replace") for text in _RAW_ROWS(body).results])


def as_events(channel: str, symbol: str, time_ms: int, rows: Sequence[Any]) -> list[Event | Reject]:
    """The events of rows; a rejected row stays a reject. `time_ms` is the time of the fetch.

    A bar is final if, at that time, late trades could no longer revise it."""
    if channel in _WINDOWS:
        revised_ns = time_ms * NS_PER_MS - _REVISED_NS - _WINDOWS[channel][1]
        return [row if isinstance(row, Reject) else _past_bar(symbol, row, revised_ns) for row in rows]
    to_event: Callable[[str, Any], Event] = _quote if channel == "Q" else _crypto_trade if channel == "XT" else _trade
    return [row if isinstance(row, Reject) else to_event(symbol, row) for row in rows]


def _past_bar(symbol: str, row: PastBarRow, revised_ns: int) -> PastBar:
    return PastBar(symbol, row.t, row.o, row.h, row.l, row.c, row.v, row.vw, n=row.n, final=row.time_ns < revised_ns)


def _trade(symbol: str, row: TradeRow) -> Trade:
    return Trade(
        sym=symbol,
        x=row.exchange,
        p=row.price,
        s=row.size,
        t=row.sip_timestamp,
        q=row.sequence_number,
        i=row.id,
        ds=row.decimal_size,
        c=row.conditions,
        trfi=row.trf_id,
    )


def _crypto_trade(symbol: str, row: _CryptoTrade) -> CryptoTrade:
    return CryptoTrade(pair=symbol, p=row.price, s=row.size, t=row.participant_timestamp, x=row.exchange, i=row.id, c=row.conditions)


def _quote(symbol: str, row: QuoteRow) -> Quote:
    return Quote(
        sym=symbol,
        t=row.sip_timestamp,
        bx=row.bid_exchange,
        bp=row.bid_price,
        bs=row.bid_size,
        ax=row.ask_exchange,
        ap=row.ask_price,
        as_=row.ask_size,
        c=row.conditions,
        q=row.sequence_number,
    )


def marked(symbol: str, events: Sequence[Event | Reject], rows: Sequence[Any], texts: Sequence[str]) -> list[Event | Notice | Reject]:
    """The events with a notice behind each trade that was corrected, as the row's `correction` says.

    `texts` holds the rows as they came; a notice quotes its row."""
    times = in_range(integers([None if isinstance(row, Reject) else row.time_ns for row in rows])).to_pylist()
    marked: list[Event | Notice | Reject] = []
    for event, row, ns, text in zip(events, rows, times, texts, strict=True):
        marked.append(event)
        if not isinstance(row, Reject) and row.correction:
            marked.append(Notice("correction", text, symbol or None, ns))
    return marked
