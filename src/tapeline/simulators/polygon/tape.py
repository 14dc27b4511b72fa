"""Polygon.io's events: T, Q, A, AM for stocks and options, XT, XQ, XA, XAS for crypto."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tapeline.simulators import equities
from tapeline.simulators.bars import DAY_NS, MINUTE_NS, SECOND_NS, Bar, Windows
from tapeline.simulators.equities import number
from tapeline.simulators.events import Event, Topic
from tapeline.simulators.market import Trade

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tapeline.simulators.faults import Faults
    from tapeline.simulators.market import Instrument, Quote

#: The channels that carry data, for each feed.
CHANNELS: Final[dict[str, tuple[str, ...]]] = {
    "stocks": ("T", "Q", "A", "AM"),
    "options": ("T", "Q", "A", "AM"),
    "crypto": ("XT", "XQ", "XAS", "XA"),
}
_TRADES: Final = ("T", "XT")
_QUOTES: Final = ("Q", "XQ")
#: channel -> width, delay after the end, delay of a re-send after a late trade, how long a window may be revised
_BARS: Final = {
    "A": (SECOND_NS, 2 * SECOND_NS, 5 * SECOND_NS, 120 * SECOND_NS),
    "AM": (MINUTE_NS, SECOND_NS, 10 * SECOND_NS, 15 * MINUTE_NS),
    "XAS": (SECOND_NS, 2 * SECOND_NS, 5 * SECOND_NS, 120 * SECOND_NS),
    "XA": (MINUTE_NS, SECOND_NS, 10 * SECOND_NS, 15 * MINUTE_NS),
}
_VENUES: Final = {"stocks": (4, 8, 10, 11, 12, 15, 19, 21), "options": (302, 308), "crypto": (1, 2, 6, 10, 23)}
_FINRA: Final = 4  # trades off exchange carry the reporting facility's id and time
_CONDITIONS: Final = ((), (), (37,), (14, 41), (12, 37), (10, 41))
_BLOCK: Final = 4096
_BETWEEN_NS: Final = 50_000_000  # how often due bars are looked for


def listed(symbols: tuple[str, ...]) -> list[Instrument]:
    """The instruments that trade: the named ones, each in the feed that fits its form, or each feed's default set."""
    chosen = symbols or (
        *(symbol for symbol, *_ in equities.STOCKS),
        *(f"O:{symbol}" for symbol, *_ in equities.OPTIONS),
        *("-".join(pair) for pair, *_ in equities.CRYPTO),
    )
    contracts = tuple(symbol for symbol in chosen if symbol.startswith("O:"))
    pairs = tuple(symbol for symbol in chosen if "-" in symbol)
    shares = tuple(symbol for symbol in chosen if symbol not in contracts and symbol not in pairs)
    return [
        *equities.stocks("stocks", shares),
        *equities.options("options", contracts, "O:"),
        *equities.crypto("crypto", pairs, "-"),
    ]


@dataclass(slots=True)
class _Book:
    """The counters of one ticker."""

    sequence: int
    trades: int
    topics: dict[str, Topic]
    windows: dict[str, Windows] = field(default_factory=dict)
    day: Bar = field(default_factory=lambda: Bar(0, 0))


class PolygonTape:
    """Trades and quotes in Polygon.io's form. `q` increases for each ticker, unless a fault breaks that."""

    def __init__(self, symbols: tuple[str, ...], seed: int, faults: Faults) -> None:
        self._instruments = listed(symbols)
        self._random = np.random.default_rng([seed, 2])
        self._same, self._lower = faults.chance("duplicate_q"), faults.chance("regressing_q")
        self._dice: list[int] = []
        self._plan: Mapping[Instrument, frozenset[str]] = {}
        #: Bars in the order in which they came due, with or without a listener. The history gets them.
        self.ended: list[tuple[Topic, dict[str, Any]]] = []
        self._now_ns = 0
        self._next_due_ns = 0
        self._books = {
            one: _Book(
                3_681_328 + 1_000 * n,
                52_983 + 31 * n,
                {name: Topic(one.feed, name, one.symbol) for name in CHANNELS[one.feed]},
            )
            for n, one in enumerate(self._instruments)
        }

    def instruments(self) -> list[Instrument]:
        return self._instruments

    def kinds(self, channels: frozenset[str]) -> tuple[bool, bool]:
        return bool(channels - set(_QUOTES)), not channels.isdisjoint(_QUOTES)

    def add_events(self, tick: Trade | Quote, channels: frozenset[str], out: list[Event]) -> None:
        """Append a trade or a quote; those of stocks and options carry the ticker's next `q`. A trade also enters the ticker's bars."""
        book = self._books[tick.instrument]
        crypto = tick.instrument.feed == "crypto"
        if isinstance(tick, Trade):
            book.trades += 1
            if not channels.isdisjoint(_TRADES):
                out.append(self._crypto_trade(tick, book) if crypto else self._trade(tick, book))
            for windows in book.windows.values():
                windows.add(tick, self._now_ns)
            book.day.add(tick)
        elif not channels.isdisjoint(_QUOTES):
            out.append(self._crypto_quote(tick, book) if crypto else self._quote(tick, book))

    def due(self, now_ns: int, out: list[Event]) -> None:
        """Append second bars 2 s after their end and minute bars 1 s after it. After a late trade a bar is sent again, 5 s or 10 s later.

        Every bar also goes to `ended`, with or without a listener. A ticker has no bars of a channel until a client first subscribes to it.
        """
        self._now_ns = now_ns
        if now_ns < self._next_due_ns:
            return
        self._next_due_ns = now_ns + _BETWEEN_NS
        for instrument, book in self._books.items():
            wanted = self._plan.get(instrument, frozenset())
            if book.day.end_ns <= now_ns:
                book.day = Bar(now_ns - now_ns % DAY_NS, now_ns - now_ns % DAY_NS + DAY_NS)
            for name, windows in book.windows.items():
                bars = [bar for bar, _ in windows.due(now_ns)]
                self.ended.extend((book.topics[name], _past(instrument, bar)) for bar in bars)
                if name in wanted:
                    out.extend(self._bar(instrument, book, name, bar, now_ns) for bar in bars)

    def stranger(self, like: Event) -> Event:
        topic = Topic(like.topic.feed, "ZZ", like.topic.symbol)
        return Event(topic, None, like.ns, {"ev": "ZZ", "sym": topic.symbol, "t": like.ns // 1_000_000}, raw=True)

    def listen(self, plan: Mapping[Instrument, frozenset[str]], now_ns: int) -> None:
        self._plan = plan
        # A bar channel that was once wanted goes on without listeners, so that no bar is sent in part.
        for instrument, wanted in plan.items():
            windows = self._books[instrument].windows
            for name, shape in _BARS.items():
                if name in wanted and name not in windows:
                    windows[name] = Windows(*shape, since_ns=now_ns)

    def _die(self) -> int:
        if not self._dice:
            self._dice = self._random.integers(0, 1 << 30, _BLOCK).tolist()
        return self._dice.pop()

    def _next(self, book: _Book) -> int:
        """The ticker's next sequence number. It is higher than the last, but not always by one."""
        if self._same and self._random.random() < self._same:
            return book.sequence
        if self._lower and self._random.random() < self._lower:
            return book.sequence - 1 - self._die() % 50
        book.sequence += 1 + self._die() % 3
        return book.sequence

    def _trade(self, trade: Trade, book: _Book) -> Event:
        instrument = trade.instrument
        stock = instrument.feed == "stocks"
        die = self._die()
        venue = _VENUES[instrument.feed][die % len(_VENUES[instrument.feed])]
        time = trade.ns // 1_000_000
        fields: dict[str, Any] = {"ev": "T", "sym": instrument.symbol, "x": venue}
        if stock:
            fields |= {"i": str(book.trades), "z": _tape(instrument.symbol)}
        fields |= {"p": number(trade.price, instrument.price_decimals), "s": trade.size}
        if stock:
            fields["ds"] = f"{trade.size}.0"
            conditions = _CONDITIONS[(die >> 8) % len(_CONDITIONS)]
        else:
            conditions = (209,)
        if conditions:
            fields["c"] = conditions
        fields |= {"t": time, "q": self._next(book)}
        if venue == _FINRA:
            fields |= {"trfi": 201 + (die >> 16) % 3, "trft": time - 4}
        topic = book.topics["T"]
        return Event(topic, fields["i"] if stock else fields["q"], trade.ns, fields)

    def _quote(self, quote: Quote, book: _Book) -> Event:
        instrument = quote.instrument
        venues = _VENUES[instrument.feed]
        die, decimals = self._die(), instrument.price_decimals
        fields: dict[str, Any] = {
            "ev": "Q",
            "sym": instrument.symbol,
            "bx": venues[die % len(venues)],
            "bp": number(quote.bid, decimals),
            "bs": quote.bid_size,
            "ax": venues[(die >> 8) % len(venues)],
            "ap": number(quote.ask, decimals),
            "as": quote.ask_size,
        }
        if instrument.feed == "stocks":
            fields |= {"c": 1, "i": (604,)} if (die >> 16) % 4 == 0 else {"c": 0}
        fields |= {"t": quote.ns // 1_000_000, "q": self._next(book)}
        if instrument.feed == "stocks":
            fields["z"] = _tape(instrument.symbol)
        return Event(book.topics["Q"], fields["q"], quote.ns, fields)

    def _crypto_trade(self, trade: Trade, book: _Book) -> Event:
        instrument, time, die = trade.instrument, trade.ns // 1_000_000, self._die()
        identity = str(14_272_084 + book.trades)
        fields = {
            "ev": "XT",
            "pair": instrument.symbol,
            "p": number(trade.price, instrument.price_decimals),
            "t": time,
            "s": number(trade.size, instrument.size_decimals),
            "c": (2 if trade.buy else 1,),
            "i": identity,
            "x": _VENUES["crypto"][die % 5],
            "r": time + die % 150,
        }
        return Event(book.topics["XT"], identity, trade.ns, fields)

    def _crypto_quote(self, quote: Quote, book: _Book) -> Event:
        instrument, time, die = quote.instrument, quote.ns // 1_000_000, self._die()
        fields = {
            "ev": "XQ",
            "pair": instrument.symbol,
            "bp": number(quote.bid, instrument.price_decimals),
            "bs": number(quote.bid_size, instrument.size_decimals),
            "ap": number(quote.ask, instrument.price_decimals),
            "as": number(quote.ask_size, instrument.size_decimals),
            "t": time,
            "x": _VENUES["crypto"][die % 5],
            "r": time + die % 15,
        }
        return Event(book.topics["XQ"], None, quote.ns, fields)

    def _bar(self, instrument: Instrument, book: _Book, channel: str, bar: Bar, now_ns: int) -> Event:
        decimals, lots = instrument.price_decimals, instrument.size_decimals
        crypto = instrument.feed == "crypto"
        volume = number(bar.volume, lots) if crypto else bar.volume
        fields: dict[str, Any] = {"ev": channel, "pair" if crypto else "sym": instrument.symbol, "v": volume}
        if not crypto:
            fields |= {"av": book.day.volume, "op": number(book.day.open, decimals)}
        fields |= {
            "vw": _average(bar, decimals),
            "o": number(bar.open, decimals),
            "c": number(bar.close, decimals),
            "h": number(bar.high, decimals),
            "l": number(bar.low, decimals),
        }
        if not crypto:
            fields |= {"a": _average(book.day, decimals), "z": bar.volume // bar.trades}
        else:
            fields["z"] = int(volume / bar.trades)
        fields |= {"s": bar.start_ns // 1_000_000, "e": bar.end_ns // 1_000_000}
        return Event(book.topics[channel], None, now_ns, fields)


def _past(instrument: Instrument, bar: Bar) -> dict[str, Any]:
    """A bar in the history's form."""
    decimals = instrument.price_decimals
    return {
        "c": number(bar.close, decimals),
        "h": number(bar.high, decimals),
        "l": number(bar.low, decimals),
        "n": bar.trades,
        "o": number(bar.open, decimals),
        "t": bar.start_ns // 1_000_000,
        "v": number(bar.volume, instrument.size_decimals),
        "vw": _average(bar, decimals),
    }


def _average(bar: Bar, decimals: int) -> float:
    """The volume-weighted average price, to four decimals."""
    return round(bar.value / bar.volume / 10**decimals, 4) if bar.volume else 0.0


def _tape(symbol: str) -> int:
    return {"SPY": 2, "GTE": 2, "BRK.B": 1}.get(symbol, 3)
