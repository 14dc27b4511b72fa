"""Binance's events: trade, aggTrade, bookTicker and klines. Their ids are contiguous where the exchange's are."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tapeline.simulators.bars import DAY_NS, MINUTE_NS, SECOND_NS, Bar
from tapeline.simulators.events import Event, Topic
from tapeline.simulators.market import Instrument, Trade

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tapeline.simulators.market import Quote

FEED: Final = "spot"
_HOUR_NS: Final = 60 * MINUTE_NS
#: The width of each fixed kline, and its grid's offset from the epoch (the epoch was a Thursday, and weeks start on Monday).
_WIDTHS: Final[dict[str, tuple[int, int]]] = {
    "1s": (SECOND_NS, 0),
    **{f"{n}m": (n * MINUTE_NS, 0) for n in (1, 3, 5, 15, 30)},
    **{f"{n}h": (n * _HOUR_NS, 0) for n in (1, 2, 4, 6, 8, 12)},
    "1d": (DAY_NS, 0),
    "3d": (3 * DAY_NS, 0),
    "1w": (7 * DAY_NS, 4 * DAY_NS),
}
INTERVALS: Final = (*_WIDTHS, "1M")
_MOST_UNHEARD_NS: Final = _HOUR_NS
_LAG_NS: Final = 300_000  # the delay from the trade to its event
#: symbol, price, price decimals, size decimals (together at most 8, so that 8 decimals hold their product), typical lots
_LISTED: Final = (
    ("BTCUSDT", 61_837.63, 2, 5, 2_000),
    ("ETHUSDT", 2_683.78, 2, 4, 3_000),
    ("BNBUSDT", 511.20, 2, 3, 900),
    ("SOLUSDT", 154.31, 2, 3, 5_000),
    ("XRPUSDT", 0.6122, 4, 1, 4_000),
    ("ADAUSDT", 0.3391, 4, 1, 9_000),
    ("DOGEUSDT", 0.10412, 5, 0, 2_500),
    ("ETHBTC", 0.04341, 5, 3, 700),
)
_QUOTE_ASSETS: Final = ("FDUSD", "USDT", "USDC", "TUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "BRL", "JPY")


def listed(symbols: tuple[str, ...]) -> list[Instrument]:
    """The instruments that trade: the named ones, or the default set."""
    known = {name: row for name, *row in _LISTED}
    made = []
    for symbol in symbols or tuple(known):
        price, decimals, size_decimals, lots = known.get(symbol, (100.0, 2, 4, 5_000))
        ticks = round(float(price) * 10**decimals)
        made.append(Instrument(FEED, symbol, ticks, int(decimals), int(size_decimals), int(lots)))
    return made


def split_symbol(symbol: str) -> tuple[str, str]:
    """Base and quote asset of a pair: the longest quote asset that fits."""
    for quote in sorted(_QUOTE_ASSETS, key=len, reverse=True):
        if symbol.endswith(quote) and symbol != quote:
            return symbol.removesuffix(quote), quote
    return symbol[:-3], symbol[-3:]


def window(interval: str, ns: int, offset_ns: int = 0) -> tuple[int, int]:
    """Start and end of the kline that holds `ns`, on a grid shifted by `offset_ns` (the stream's time zone)."""
    local = ns + offset_ns
    if interval == "1M":
        first = (datetime.fromtimestamp(0, UTC) + timedelta(seconds=local // SECOND_NS)).replace(
            day=1, hour=0, minute=0, second=0, microsecond=0
        )
        following = (first + timedelta(days=32)).replace(day=1)
        return int(first.timestamp()) * SECOND_NS - offset_ns, int(following.timestamp()) * SECOND_NS - offset_ns
    width, origin = _WIDTHS[interval]
    start = local - (local - origin) % width - offset_ns
    return start, start + width


@dataclass(slots=True)
class _Kline:
    topic: Topic
    interval: str
    every_ns: int
    offset_ns: int
    bar: Bar
    due_ns: int
    wanted: bool = True


@dataclass(slots=True)
class _Book:
    """The counters of one symbol."""

    trade_id: int
    aggregate_id: int
    update_id: int
    last: int
    topics: dict[str, Topic] = field(default_factory=dict)
    order: list[Trade] = field(default_factory=list)  # the fills of an unfinished order
    klines: dict[str, _Kline] = field(default_factory=dict)


class BinanceTape:
    """Trades and quotes in Binance spot's form. Each symbol has ids of its own."""

    def __init__(self, symbols: tuple[str, ...]) -> None:
        self._instruments = listed(tuple(symbol.upper() for symbol in symbols))
        self._books = {
            one: _Book(3_735_683_259 + 7_919 * n, 2_961_000_000 + 5_003 * n, 50_093_239_000 + 104_729 * n, one.price, {})
            for n, one in enumerate(self._instruments)
        }
        #: Trades and aggregated trades that no client wanted, and klines that closed without a listener. The history gets them.
        self.unheard: list[Event] = []
        self._scales = {one: (10 ** (8 - one.price_decimals), 10 ** (8 - one.size_decimals)) for one in self._instruments}

    def instruments(self) -> list[Instrument]:
        return self._instruments

    def kinds(self, channels: frozenset[str]) -> tuple[bool, bool]:
        trades = any(name in ("trade", "aggTrade") or name.startswith("kline_") for name in channels)
        return trades, "bookTicker" in channels

    def add_events(self, tick: Trade | Quote, channels: frozenset[str], out: list[Event]) -> None:
        """Append a trade, its order's aggregate at the last fill, and the final klines of windows that end before it; or a quote.

        Trades and aggregates of channels without a listener go to `unheard`, so that the history has every id.
        """
        if isinstance(tick, Trade):
            self._trade(tick, channels, out)
        elif "bookTicker" in channels:
            self._quote(tick, out)

    def due(self, now_ns: int, out: list[Event]) -> None:
        """Append the final klines of windows that have ended, and updates of open ones: every second for `kline_1s`, else every 2 s.

        A window without trades has a kline too. Final klines without a listener go to `unheard`. A channel has no klines until a client
        first subscribes to it.
        """
        for instrument, book in self._books.items():
            for kline in book.klines.values():
                self._advance(instrument, book, kline, now_ns, out)
                if kline.due_ns <= now_ns:
                    kline.due_ns = now_ns + kline.every_ns
                    if kline.wanted:
                        out.append(self._kline(instrument, kline, now_ns, final=False))

    def stranger(self, like: Event) -> Event:
        topic = Topic(FEED, "premonition", like.topic.symbol)
        return Event(topic, None, like.ns, {"e": "premonition", "E": like.ns // 1_000_000, "s": topic.symbol}, raw=True)

    def listen(self, plan: Mapping[Instrument, frozenset[str]], now_ns: int) -> None:
        # A kline channel that was once wanted goes on without listeners, so that no kline is sent in part.
        for instrument, book in self._books.items():
            channels = plan.get(instrument, frozenset())
            for name, kline in book.klines.items():
                if not kline.wanted:
                    self._advance(instrument, book, kline, now_ns, [])
                kline.wanted = name in channels
            for name in channels:
                if name.startswith("kline_") and name not in book.klines:
                    book.klines[name] = _opened(self._topic(instrument, name), book.last, now_ns)

    def _topic(self, instrument: Instrument, channel: str) -> Topic:
        topics = self._books[instrument].topics
        return topics.get(channel) or topics.setdefault(channel, Topic(FEED, channel, instrument.symbol))

    def _trade(self, trade: Trade, channels: frozenset[str], out: list[Event]) -> None:
        instrument = trade.instrument
        book = self._books[instrument]
        book.trade_id += 1
        book.last = trade.price
        sent_ms, done_ms = (trade.ns + _LAG_NS) // 1_000_000, trade.ns // 1_000_000
        fields = {
            "e": "trade",
            "E": sent_ms,
            "s": instrument.symbol,
            "t": book.trade_id,
            **self._price_and_size(instrument, trade.price, trade.size),
            "T": done_ms,
            "m": not trade.buy,
            "M": True,
        }
        to = out if "trade" in channels else self.unheard
        to.append(Event(self._topic(instrument, "trade"), book.trade_id, trade.ns, fields))
        book.order.append(trade)
        if trade.done:
            self._aggregate(instrument, book, channels, out)
        for kline in book.klines.values():
            self._advance(instrument, book, kline, trade.ns, out)
            kline.bar.add(trade, book.trade_id)

    def _aggregate(self, instrument: Instrument, book: _Book, channels: frozenset[str], out: list[Event]) -> None:
        """Add the aggregate of one taker's order: all its fills have the same price and side."""
        book.aggregate_id += 1
        fills, last = book.order, book.order[-1]
        fields = {
            "e": "aggTrade",
            "E": (last.ns + _LAG_NS) // 1_000_000,
            "s": instrument.symbol,
            "a": book.aggregate_id,
            **self._price_and_size(instrument, last.price, sum(fill.size for fill in fills)),
            "f": book.trade_id - len(fills) + 1,
            "l": book.trade_id,
            "T": last.ns // 1_000_000,
            "m": not last.buy,
            "M": True,
        }
        to = out if "aggTrade" in channels else self.unheard
        to.append(Event(self._topic(instrument, "aggTrade"), book.aggregate_id, last.ns, fields))
        book.order.clear()

    def _quote(self, quote: Quote, out: list[Event]) -> None:
        instrument = quote.instrument
        book = self._books[instrument]
        # Most updates of a book do not change its top, so the ids of those that do are not contiguous.
        book.update_id += 1 + quote.bid_size % 7
        price, size = self._scales[instrument]
        fields = {
            "u": book.update_id,
            "s": instrument.symbol,
            "b": decimal(quote.bid * price),
            "B": decimal(quote.bid_size * size),
            "a": decimal(quote.ask * price),
            "A": decimal(quote.ask_size * size),
        }
        out.append(Event(self._topic(instrument, "bookTicker"), book.update_id, quote.ns, fields))

    def _price_and_size(self, instrument: Instrument, price: int, size: int) -> dict[str, str]:
        price_scale, size_scale = self._scales[instrument]
        return {"p": decimal(price * price_scale), "q": decimal(size * size_scale)}

    def _advance(self, instrument: Instrument, book: _Book, kline: _Kline, ns: int, out: list[Event]) -> None:
        """Close every window that ended by `ns`. The grid has no holes while a symbol trades."""
        while ns >= kline.bar.end_ns:
            (out if kline.wanted else self.unheard).append(self._kline(instrument, kline, ns, final=True))
            # After a long time without listeners, the windows in between are skipped, in the history too.
            close = kline.wanted or ns - kline.bar.end_ns < _MOST_UNHEARD_NS
            start, end = window(kline.interval, kline.bar.end_ns if close else ns, kline.offset_ns)
            kline.bar = Bar.flat(start, end, kline.bar.close or book.last)

    def _kline(self, instrument: Instrument, kline: _Kline, now_ns: int, *, final: bool) -> Event:
        bar = kline.bar
        price, size = self._scales[instrument]
        value = 10 ** (8 - instrument.price_decimals - instrument.size_decimals)
        inner: dict[str, Any] = {
            "t": bar.start_ns // 1_000_000,
            "T": bar.end_ns // 1_000_000 - 1,
            "s": instrument.symbol,
            "i": kline.interval,
            "f": bar.first_id,
            "L": bar.last_id,
            "o": decimal(bar.open * price),
            "c": decimal(bar.close * price),
            "h": decimal(bar.high * price),
            "l": decimal(bar.low * price),
            "v": decimal(bar.volume * size),
            "n": bar.trades,
            "x": final,
            "q": decimal(bar.value * value),
            "V": decimal(bar.buy_volume * size),
            "Q": decimal(bar.buy_value * value),
            "B": "0",
        }
        fields = {"e": "kline", "E": now_ns // 1_000_000, "s": instrument.symbol, "k": inner}
        return Event(kline.topic, None, now_ns, fields)


def _opened(topic: Topic, last: int, now_ns: int) -> _Kline:
    interval, _, zone = topic.channel.removeprefix("kline_").partition("@")
    offset_ns = 0
    if zone:
        hours, _, minutes = zone[1:].partition(":")
        offset_ns = (int(hours) * 60 + int(minutes)) * MINUTE_NS * (-1 if zone[0] == "-" else 1)
    every_ns = SECOND_NS if interval == "1s" else 2 * SECOND_NS
    start, end = window(interval, now_ns, offset_ns)
    return _Kline(topic, interval, every_ns, offset_ns, Bar.flat(start, end, last), now_ns + every_ns)


def decimal(e8: int) -> str:
    """A number of units of 10**-8 as text with 8 decimals, as Binance prints it."""
    return f"{e8 // 100_000_000}.{e8 % 100_000_000:08d}"


def in_microseconds(event: Event) -> dict[str, Any]:
    """The fields with every time in microseconds, for a socket opened with `timeUnit=MICROSECOND`."""
    fields = dict(event.fields)
    if "T" in fields:
        exact = event.ns // 1_000 // 1_000 == fields["T"]
        fields["T"] = event.ns // 1_000 if exact else fields["T"] * 1_000
    if "E" in fields:
        sent = (event.ns + _LAG_NS) // 1_000
        fields["E"] = sent if sent // 1_000 == fields["E"] else fields["E"] * 1_000
    if "k" in fields:
        inner = dict(fields["k"])
        fields["k"] = inner | {"t": inner["t"] * 1_000, "T": inner["T"] * 1_000 + 999}
    return fields
