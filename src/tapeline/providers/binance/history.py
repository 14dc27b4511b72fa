"""Binance spot's history over REST: which pages to request, and which events a page holds. Pure: this module sends nothing.

Facts: Binance's public spot API documentation, "Market Data endpoints".

- `aggTrades` (weight 4) takes an id or a start time; `historicalTrades` (weight 25) takes an id only; `klines` (weight 2) takes times.
  Without an id or a time, each gives the latest rows.
- A page has at most 1,000 rows. No key is needed. An address may use a weight of 6,000 a minute.
- Old single trades are not available. If an old id is requested, the page begins with a later id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec

from tapeline.providers.binance.wire import INTERVALS, AggTrade, Kline, KlineBody, Trade
from tapeline.providers.columns import MICROSECONDS_FROM
from tapeline.providers.decoding import whole_numbers
from tapeline.providers.events import UNREADABLE, Int64, Kind, Reject
from tapeline.providers.history import Page, Request, Span, WrongPage, each_row, readable, unreadable
from tapeline.records import NS_PER_MS, NS_PER_S, NS_PER_US
from tapeline.secret import Secret

#: Half of the limit for an address, because other programs behind the same address may use it too.
WEIGHT_A_MINUTE: Final = 3_000
CHANNELS: Final[dict[str, dict[str, Kind]]] = {
    "spot": {"trade": "trade", "aggTrade": "trade", "kline_1m": "bar", **{f"kline_{interval}": "bar" for interval in INTERVALS}}
}
SETTLED_NS: Final = 5 * NS_PER_S
PAGE_ROWS: Final = 1_000
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400, "M": 31 * 86_400}
Event: TypeAlias = "Trade | AggTrade | Kline"
_Row = TypeVar("_Row")
_PATHS: Final = {"trade": ("/api/v3/historicalTrades", 25), "aggTrade": ("/api/v3/aggTrades", 4)}
#: The purposes of a request. `Request.after` holds the purpose, a colon, and the requested number if there is one.
#:
#: `_FROM`: events from a number on. `_NAMED`: the same, and an aggregated trade says that an event with this number exists. `_AGAIN`: the
#: same request once more, because a page was empty although later events are known.
_FROM, _NAMED, _AGAIN = "from", "named", "again"
#: Lookups of the first trade id of a time. Single trades cannot be requested by time, but aggregated trades can, and they name the ids of
#: their single trades. `_BEFORE`: the last aggregated trade before the start. `_AFTER`: if there is none, the first one after the start.
_BEFORE, _AFTER = "before", "after"
#: A lookup of the latest event, which shows whether an empty page was the end.
_LATEST: Final = "latest"
_NOTHING_KEPT: Final = "None of it was kept."


def headers(key: Secret, secret: Secret) -> Mapping[str, str]:
    """No headers, because the history needs no key."""
    del key, secret
    return {}


def settled_ns(channel: str) -> int:
    """The delay (ns) until the history is final. For bars it includes the window."""
    return SETTLED_NS + (_width_ns(channel) if channel.startswith("kline_") else 0)


def _width_ns(channel: str) -> int:
    """The longest length (ns) of a window of a bar channel."""
    interval = channel.removeprefix("kline_")
    return int(interval[:-1]) * _SECONDS[interval[-1]] * NS_PER_S


def first(span: Span) -> Request:
    """The first request of a span: from its first number, or else from its start. Bars begin with the window that contains the start.

    For single trades by time, the first request only looks up the first trade's id."""
    if span.channel.startswith("kline_"):
        return _bars(span, (span.start_ns - _width_ns(span.channel)) // NS_PER_MS + 1 if span.first is None else span.first)
    if span.first is not None:
        return _by_id(span, span.first)
    if span.channel == "trade":
        return _aggregated(span, f"endTime={_start_ms(span) - 1}&limit=1", _BEFORE)
    return _aggregated(span, f"startTime={_start_ms(span)}&limit={PAGE_ROWS}", _FROM)


def page(span: Span, request: Request, body: bytes, time_ms: int) -> Page:
    """Check a page and find the next request. Raises WrongPage.

    The numbers must rise from the requested one. An empty page is an error if later events are known."""
    why, _, number = request.after.partition(":")
    try:
        if why in (_BEFORE, _AFTER):
            return _beginning(span, why, _AGG_TRADES(body))
        rows = events_of(span.channel, span.symbol, time_ms, body)
    except UNREADABLE as error:
        raise WrongPage(f"{request.path} cannot be read: {error}. {_NOTHING_KEPT}") from error
    events: Sequence[Event] = readable(rows)
    if why == _LATEST:
        return _end(span, number, events)
    numbers, least = [number_of(event) for event in events], int(number or -1)
    if any(number < least for number in numbers) or sorted(set(numbers)) != numbers:
        raise WrongPage(f"{request.path} gave numbers {numbers[:1]} to {numbers[-1:]} that do not rise from {least}. {_NOTHING_KEPT}")
    if not numbers:
        if span.last is not None or why in (_NAMED, _AGAIN):
            # A gap lies between known events. So the requested numbers exist, and an empty page cannot be right.
            raise WrongPage(f"{request.path} is empty, although later events are known. The gap stays open.")
        return Page(0, 0, _latest(span, number), keep=False)
    if why == _NAMED and numbers[0] != least:
        raise WrongPage(
            f"{request.path} begins with trade {numbers[0]}, because this address has no older trades. The requested time begins with "
            f"trade {least}. None of it was kept. Use the provider's files (--from files), or a later start."
        )
    following, reached_ns = numbers[-1] + 1, time_of(events[-1])
    bars = span.channel.startswith("kline_")
    done = following > span.last if span.last is not None else reached_ns >= span.end_ns - (NS_PER_MS if bars else 0)
    return Page(len(rows), reached_ns, None if done else _from(span, following), unreadable=unreadable(rows))


def _beginning(span: Span, why: str, trades: Sequence[_AggTrade]) -> Page:
    if trades and (why == _BEFORE or _ns(trades[0].T) < span.end_ns):
        return Page(0, 0, _by_id(span, trades[0].f, _NAMED), keep=False)
    if trades:
        return Page(0, 0, None, keep=False)  # the first one comes after the end
    after = _aggregated(span, f"startTime={_start_ms(span)}&limit=1", _AFTER)
    return Page(0, 0, after if why == _BEFORE else _latest(span, ""), keep=False)


def _end(span: Span, number: str, latest: Sequence[Event]) -> Page:
    """Decide, from the latest event, whether an empty page was the end. An answer that lost all its rows looks the same."""
    if number:
        later = any(number_of(event) >= int(number) for event in latest)
        return Page(0, 0, _from(span, int(number), _AGAIN) if later else None, keep=False)
    if not any(time_of(event) >= span.start_ns for event in latest):
        return Page(0, 0, None, keep=False)
    if span.channel == "trade":
        raise WrongPage(
            f"Binance's aggTrades have no trade of {span.symbol} from the requested start on, but single trades exist. {_NOTHING_KEPT}"
        )
    begin = first(span)
    return Page(0, 0, Request(begin.path, begin.weight, f"{_AGAIN}:"), keep=False)


def _latest(span: Span, number: str) -> Request:
    """The request for the latest event; for bars, for the last bar of the span's time."""
    symbol, after = _symbol(span), f"{_LATEST}:{number}"
    if span.channel.startswith("kline_"):
        window = f"interval={span.channel.removeprefix('kline_')}&endTime={(span.end_ns - 1) // NS_PER_MS}"
        return Request(f"/api/v3/klines?symbol={symbol}&{window}&limit=1", 2, after)
    path, weight = _PATHS[span.channel]
    return Request(f"{path}?symbol={symbol}&limit=1", weight, after)


def _start_ms(span: Span) -> int:
    """The span's start, rounded up to a whole millisecond."""
    return -(-span.start_ns // NS_PER_MS)


def _aggregated(span: Span, which: str, after: str) -> Request:
    path, weight = _PATHS["aggTrade"]
    return Request(f"{path}?symbol={_symbol(span)}&{which}", weight, f"{after}:")


def _from(span: Span, number: int, why: str = _FROM) -> Request:
    return _bars(span, number, why) if span.channel.startswith("kline_") else _by_id(span, number, why)


def _by_id(span: Span, number: int, why: str = _FROM) -> Request:
    path, weight = _PATHS[span.channel]
    rows = PAGE_ROWS if span.last is None else min(PAGE_ROWS, span.last - number + 1)
    return Request(f"{path}?symbol={_symbol(span)}&fromId={number}&limit={rows}", weight, f"{why}:{number}")


def _bars(span: Span, start_ms: int, why: str = _FROM) -> Request:
    end_ms = (span.end_ns - 1) // NS_PER_MS if span.last is None else span.last
    interval = span.channel.removeprefix("kline_")
    window = f"startTime={start_ms}&endTime={end_ms}&limit={PAGE_ROWS}"
    return Request(f"/api/v3/klines?symbol={_symbol(span)}&interval={interval}&{window}", 2, f"{why}:{start_ms}")


def _symbol(span: Span) -> str:
    return quote(provider_symbol(span.symbol), safe="")


def provider_symbol(symbol: str) -> str:
    """The provider's own spelling of a canonical symbol."""
    return symbol.replace("/", "")


class _Trade(msgspec.Struct):
    """`{"id":28457,"price":"4.00000100","qty":"12.00000000","quoteQty":"48.000012","time":1499865549590,"isBuyerMaker":true,...}`"""

    id: Int64
    price: str
    qty: str
    time: Int64
    isBuyerMaker: bool  # noqa: N815 the wire's own name


class _AggTrade(msgspec.Struct):
    """`{"a":26129,"p":"0.01633102","q":"4.70443515","f":27781,"l":27781,"T":1498793709153,"m":true,"M":true}`"""

    a: Int64
    p: str
    q: str
    f: Int64
    T: Int64
    m: bool


class _Bar(msgspec.Struct, array_like=True):
    """`[1499040000000,"0.0163","0.8000","0.0157","0.0157","148976.11",1499644799999,"2434.19",308,"1756.87","28.46","0"]`"""

    open_ms: Int64
    open: str
    high: str
    low: str
    close: str
    volume: str
    close_ms: Int64
    quote_volume: str
    trades: Int64


_AGG_TRADES: Final = whole_numbers.reading(msgspec.json.Decoder(list[_AggTrade]).decode)
_ELEMENTS: Final = msgspec.json.Decoder(list[msgspec.Raw])


def _rows_of(row: type[_Row]) -> Callable[[bytes], list[_Row | Reject]]:
    """A function that decodes a page of such rows. A row that cannot be read becomes a reject; the others are kept."""
    one = whole_numbers.reading(msgspec.json.Decoder(row).decode)
    many: Callable[[bytes], list[_Row]] = whole_numbers.reading(msgspec.json.Decoder(list[row]).decode)  # type: ignore[valid-type]  # a class

    def rows(body: bytes) -> list[_Row | Reject]:
        try:
            return [*many(body)]
        except msgspec.ValidationError:
            return each_row(_ELEMENTS.decode(body), one)

    return rows


_TRADE_ROWS: Final = _rows_of(_Trade)
_AGG_TRADE_ROWS: Final = _rows_of(_AggTrade)
_BAR_ROWS: Final = _rows_of(_Bar)


def events_of(channel: str, symbol: str, time_ms: int, body: bytes) -> list[Event | Reject]:
    """The events of a page as the stream would have sent them. A row that cannot be read becomes a reject.

    `symbol` is canonical. `time_ms` is the time of the fetch. Raises the errors in UNREADABLE if the page cannot be read, and KeyError
    for an unknown channel."""
    symbol = provider_symbol(symbol)
    if channel == "trade":
        return [_trade(symbol, row) if isinstance(row, _Trade) else row for row in _TRADE_ROWS(body)]
    if channel == "aggTrade":
        return [_agg_trade(symbol, row) if isinstance(row, _AggTrade) else row for row in _AGG_TRADE_ROWS(body)]
    if not channel.startswith("kline_"):
        raise KeyError(channel)
    interval = channel.removeprefix("kline_")
    return [_bar(symbol, interval, time_ms, row) if isinstance(row, _Bar) else row for row in _BAR_ROWS(body)]


def _trade(symbol: str, row: _Trade) -> Trade:
    return Trade("trade", symbol, row.id, row.price, row.qty, row.time, row.isBuyerMaker)


def _agg_trade(symbol: str, row: _AggTrade) -> AggTrade:
    return AggTrade("aggTrade", symbol, row.a, row.p, row.q, row.T, row.m)


def _bar(symbol: str, interval: str, time_ms: int, row: _Bar) -> Kline:
    prices = (row.open, row.high, row.low, row.close, row.volume)
    return bar_of(symbol, interval, time_ms, (row.open_ms, row.close_ms), prices, row.quote_volume, row.trades)


def bar_of(
    symbol: str, interval: str, time_ms: int, window: tuple[int, int], prices: Sequence[str], quote_volume: str, trades: int
) -> Kline:
    """A bar as the stream would have sent it at `time_ms`. It is final if its window had ended by then.

    `window` holds its open time and close time, in ms or µs. `prices` holds open, high, low, close and the volume."""
    open_, high, low, close, volume = prices
    open_time, close_time = window
    ended = _ns(close_time) < time_ms * NS_PER_MS
    body = KlineBody(open_time, interval, open_, close, high, low, volume, quote_volume, trades, ended)
    return Kline("kline", close_time, symbol, body)


def number_of(event: Event) -> int:
    """The number by which pages are requested: the id of a trade, or the start (ms since 1970) of a bar's window."""
    if isinstance(event, Kline):
        return _ns(event.k.t) // NS_PER_MS
    return event.t if isinstance(event, Trade) else event.a


def time_of(event: Event) -> int:
    """The time (ns since 1970) of a trade, or the end of a bar's window."""
    return _ns(event.E if isinstance(event, Kline) else event.T)


def _ns(count: int) -> int:
    """A count of milliseconds or microseconds as nanoseconds. Its size decides the unit: see `MICROSECONDS_FROM`."""
    return count * NS_PER_MS if count < MICROSECONDS_FROM else count * NS_PER_US
