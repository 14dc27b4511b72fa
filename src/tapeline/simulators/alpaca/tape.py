"""Alpaca's events: trades, quotes and bars of stocks, options and crypto, with corrections, cancels and halts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tapeline.simulators import equities
from tapeline.simulators.bars import DAY_NS, MINUTE_NS, SECOND_NS, Bar, Windows
from tapeline.simulators.equities import number
from tapeline.simulators.events import Event, Topic
from tapeline.simulators.market import Trade

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tapeline.simulators.market import Instrument, Quote

#: feed -> the channels that a client can subscribe to, in the order in which they are acknowledged
_STOCK_CHANNELS: Final = ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds", "imbalances")
CHANNELS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("iex", "sip", "delayed_sip", "test"), _STOCK_CHANNELS),
    **dict.fromkeys(("opra", "indicative"), ("trades", "quotes")),
    "crypto": ("trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars"),
}
STOCK_FEEDS: Final = ("iex", "sip", "delayed_sip", "test")
OPTION_FEEDS: Final = ("opra", "indicative")
OCC: Final = re.compile(r"[A-Z]{1,6}\d{6}[CP]\d{8}")
_BAR_CHANNELS: Final = frozenset(("bars", "updatedBars", "dailyBars"))
_NEWS: Final = ("statuses", "lulds", "imbalances")
_DELAY_NS: Final = 15 * MINUTE_NS  # the delay of the delayed_sip feed
_BLOCK: Final = 4096
_BETWEEN_NS: Final = 50_000_000  # how often due bars are looked for
_RARE: Final = 2_000  # one trade in this many is corrected or canceled; a halt, a band or an imbalance is as frequent


def listed(symbols: tuple[str, ...]) -> list[Instrument]:
    """The instruments that trade: the named ones, in every feed that fits their form, or the default set."""
    chosen = symbols or (
        *(symbol for symbol, *_ in equities.STOCKS),
        *(symbol for symbol, *_ in equities.OPTIONS),
        *("/".join(pair) for pair, *_ in equities.CRYPTO),
    )
    contracts = tuple(symbol for symbol in chosen if OCC.fullmatch(symbol))
    pairs = tuple(symbol for symbol in chosen if "/" in symbol)
    shares = tuple(s for s in chosen if s not in contracts and s not in pairs and s != "FAKEPACA")
    made = [one for feed in ("iex", "sip", "delayed_sip") for one in equities.stocks(feed, shares)]
    made += equities.stocks("test", ("FAKEPACA",))
    made += [one for feed in OPTION_FEEDS for one in equities.options(feed, contracts)]
    return made + equities.crypto("crypto", pairs, "/")


@dataclass(slots=True)
class _Book:
    """The counters of one symbol of one feed."""

    trades: int
    topics: dict[str, Topic]
    last: dict[str, Any] | None = None
    minutes: Windows | None = None
    quoted: int = 0  # crypto: the minute up to which bars were made from quotes alone
    day: Bar = field(default_factory=lambda: Bar(0, 0))
    day_due_ns: int = 0


class AlpacaTape:
    """Trades and quotes in Alpaca's form. Fields hold times as text; a msgpack socket sends them as timestamps."""

    def __init__(self, symbols: tuple[str, ...], seed: int) -> None:
        self._instruments = listed(symbols)
        self._random = np.random.default_rng([seed, 3])
        self._dice: list[int] = []
        self._plan: Mapping[Instrument, frozenset[str]] = {}
        self._now_ns = 0
        self._next_due_ns = 0
        #: Bars that no client listened to when they ended. The history gets them.
        self.unheard: list[Event] = []
        self._books = {
            one: _Book(52_983_525_027_000 + 1_000 * n, {name: Topic(one.feed, name, one.symbol) for name in CHANNELS[one.feed]})
            for n, one in enumerate(self._instruments)
        }

    def instruments(self) -> list[Instrument]:
        return self._instruments

    def kinds(self, channels: frozenset[str]) -> tuple[bool, bool]:
        return bool(channels - {"quotes", "orderbooks"}), "quotes" in channels

    def add_events(self, tick: Trade | Quote, channels: frozenset[str], out: list[Event]) -> None:
        """Append a trade or a quote. On `delayed_sip`, its time is 15 minutes ago.

        About one stock trade in 2,000 has a sequel: it is corrected or canceled, and a halt, price limits or an imbalance may follow.
        """
        instrument = tick.instrument
        book = self._books[instrument]
        if instrument.feed == "delayed_sip":
            tick = tick._replace(ns=tick.ns - _DELAY_NS)
        if isinstance(tick, Trade):
            if "trades" in channels:
                out.append(self._trade(tick, book))
            if book.minutes is not None:
                book.minutes.add(tick, self._clock(instrument))
                book.day.add(tick)
            if instrument.feed in STOCK_FEEDS and self._die() % _RARE == 0:
                self._aftermath(tick, book, channels, out)
        elif "quotes" in channels:
            out.append(self._quote(tick, book))

    def due(self, now_ns: int, out: list[Event]) -> None:
        """Append minute bars 50 ms after their end, revised ones 30 s after a late trade, and the day's bar so far each minute.

        As at Alpaca, crypto has a bar even for a minute without trades. Bars without a listener go to `unheard`. A symbol has no bars until
        a client first subscribes to one of its bar channels.
        """
        self._now_ns = now_ns
        if now_ns < self._next_due_ns:
            return
        self._next_due_ns = now_ns + _BETWEEN_NS
        for instrument, book in self._books.items():
            wanted = self._plan.get(instrument, frozenset())
            now_ns = self._clock(instrument)
            if book.minutes is None:
                continue
            if book.day.end_ns <= now_ns:
                book.day = Bar(now_ns - now_ns % DAY_NS, now_ns - now_ns % DAY_NS + DAY_NS)
            self._minutes(instrument, book, wanted, now_ns, out)
            if book.day_due_ns <= now_ns:
                book.day_due_ns = (now_ns // MINUTE_NS + 1) * MINUTE_NS
                if book.day.trades:
                    to = out if "dailyBars" in wanted else self.unheard
                    to.append(self._bar(instrument, book, "dailyBars", "d", book.day))

    def stranger(self, like: Event) -> Event:
        topic = Topic(like.topic.feed, "zz", like.topic.symbol)
        return Event(topic, None, like.ns, {"T": "zz", "S": topic.symbol, "t": rfc3339(like.ns)}, raw=True)

    def listen(self, plan: Mapping[Instrument, frozenset[str]], now_ns: int) -> None:
        self._plan, self._now_ns = plan, now_ns
        # A bar channel that was once wanted goes on without listeners, so that no bar is sent in part.
        for instrument, wanted in plan.items():
            book, now_ns = self._books[instrument], self._clock(instrument)
            if book.minutes is None and not wanted.isdisjoint(_BAR_CHANNELS):
                book.minutes = Windows(MINUTE_NS, 50_000_000, 30 * SECOND_NS, 15 * MINUTE_NS, since_ns=now_ns)
                book.quoted, book.day_due_ns = now_ns // MINUTE_NS, (now_ns // MINUTE_NS + 1) * MINUTE_NS

    def _clock(self, instrument: Instrument) -> int:
        """The current time of a feed. The delayed feed is behind."""
        return self._now_ns - (_DELAY_NS if instrument.feed == "delayed_sip" else 0)

    def _die(self) -> int:
        if not self._dice:
            self._dice = self._random.integers(0, 1 << 62, _BLOCK).tolist()
        return self._dice.pop()

    def _minutes(self, instrument: Instrument, book: _Book, wanted: frozenset[str], now_ns: int, out: list[Event]) -> None:
        assert book.minutes is not None
        traded = set()
        for bar, again in book.minutes.due(now_ns):
            traded.add(bar.start_ns // MINUTE_NS)
            channel, kind = ("updatedBars", "u") if again else ("bars", "b")
            (out if channel in wanted else self.unheard).append(self._bar(instrument, book, channel, kind, bar))
        minute = (now_ns - 50_000_000) // MINUTE_NS
        if instrument.feed == "crypto" and minute > book.quoted:
            # Crypto has a bar in every minute, even without trades. Its prices are then the middle of the market.
            for quiet in range(book.quoted, minute):
                if quiet not in traded:
                    bar = Bar.flat(quiet * MINUTE_NS, (quiet + 1) * MINUTE_NS, instrument.price)
                    (out if "bars" in wanted else self.unheard).append(self._bar(instrument, book, "bars", "b", bar))
            book.quoted = minute

    def _trade(self, trade: Trade, book: _Book) -> Event:
        instrument, die = trade.instrument, self._die()
        feed = instrument.feed
        price, time = number(trade.price, instrument.price_decimals), rfc3339(trade.ns)
        identity: int | None = None
        fields: dict[str, Any] = {"T": "t", "S": instrument.symbol}
        if feed == "crypto":
            identity = die  # looks random on the wire
            size = number(trade.size, instrument.size_decimals)
            fields |= {"p": price, "s": size, "t": time, "i": identity, "tks": "B" if trade.buy else "S"}
        elif feed in OPTION_FEEDS:
            fields |= {"t": time, "p": price, "s": trade.size, "x": "ABCIMNQWXZ"[die % 10], "c": "IaS"[die % 3]}
        else:
            book.trades += 1
            identity = book.trades
            conditions = ("@", "I") if trade.size < 100 else ("@",)
            fields |= {"i": identity, "x": _place(feed, die), "p": price, "s": trade.size, "c": conditions}
            fields |= {"t": time, "z": _tape(instrument.symbol)}
            book.last = fields
        return Event(book.topics["trades"], identity, trade.ns, fields)

    def _quote(self, quote: Quote, book: _Book) -> Event:
        instrument, die = quote.instrument, self._die()
        feed, decimals = instrument.feed, instrument.price_decimals
        bid, ask, time = number(quote.bid, decimals), number(quote.ask, decimals), rfc3339(quote.ns)
        fields: dict[str, Any] = {"T": "q", "S": instrument.symbol}
        if feed == "crypto":
            lots = instrument.size_decimals
            fields |= {"bp": bid, "bs": number(quote.bid_size, lots), "ap": ask, "as": number(quote.ask_size, lots)}
            fields["t"] = time
        elif feed in OPTION_FEEDS:
            place, other = "ABCIMNQWXZ"[die % 10], "ABCIMNQWXZ"[(die >> 8) % 10]
            fields |= {"t": time, "bx": place, "bp": bid, "bs": quote.bid_size}
            fields |= {"ax": other, "ap": ask, "as": quote.ask_size, "c": "A"}
        else:
            fields |= {"bx": _place(feed, die), "bp": bid, "bs": quote.bid_size}
            fields |= {"ax": _place(feed, die >> 8), "ap": ask, "as": quote.ask_size}
            fields |= {"c": ("R",), "z": _tape(instrument.symbol), "t": time}
        return Event(book.topics["quotes"], None, quote.ns, fields)

    def _aftermath(self, trade: Trade, book: _Book, channels: frozenset[str], out: list[Event]) -> None:
        """Sometimes correct or cancel a trade, or send a halt, new price bands or an imbalance of a stock."""
        instrument, die, last = trade.instrument, self._die(), book.last
        symbol, feed, time, tape = instrument.symbol, instrument.feed, rfc3339(trade.ns), _tape(instrument.symbol)
        if last is not None and "trades" in channels:
            if die % 2:
                book.trades += 1
                name, fields = "corrections", {"T": "c", "S": symbol, "x": last["x"]}
                fields |= {"oi": last["i"], "op": last["p"], "os": last["s"], "oc": last["c"], "ci": book.trades}
                fields |= {"cp": round(last["p"] + 0.01, 4), "cs": last["s"], "cc": last["c"], "z": tape, "t": time}
                identity = last["i"]
            else:
                name, fields = "cancelErrors", {"T": "x", "S": symbol, "i": last["i"], "x": last["x"]}
                fields |= {"p": last["p"], "s": last["s"], "a": "CE"[die >> 8 & 1], "z": tape, "t": time}
                identity = last["i"]
            out.append(Event(Topic(feed, name, symbol), identity, trade.ns, fields))
            book.last = None
        name = _NEWS[(die >> 16) % 3]
        if name in channels:
            out.append(Event(book.topics[name], None, trade.ns, _news(name, trade, time, tape)))

    def _bar(self, instrument: Instrument, book: _Book, channel: str, kind: str, bar: Bar) -> Event:
        decimals = instrument.price_decimals
        crypto = instrument.feed == "crypto"
        average = round(bar.value / bar.volume / 10**decimals, 6) if bar.volume else 0
        fields: dict[str, Any] = {"T": kind, "S": instrument.symbol}
        for key, price in (("o", bar.open), ("h", bar.high), ("l", bar.low), ("c", bar.close)):
            fields[key] = number(price, decimals)
        fields["v"] = number(bar.volume, instrument.size_decimals) if crypto and bar.volume else bar.volume
        fields |= {"t": rfc3339(bar.start_ns), "n": bar.trades, "vw": average}
        return Event(book.topics[channel], None, bar.start_ns, fields)


def _news(name: str, trade: Trade, time: str, tape: str) -> dict[str, Any]:
    fields: dict[str, Any]
    symbol, price = trade.instrument.symbol, number(trade.price, trade.instrument.price_decimals)
    if name == "statuses":
        fields = {
            "T": "s",
            "S": symbol,
            "sc": "H",
            "sm": "Trading Halt",
            "rc": "T12",
            "rm": "Trading Halted",
            "t": time,
        }
    elif name == "lulds":
        fields = {"T": "l", "S": symbol, "u": round(price * 1.1, 2), "d": round(price * 0.9, 2), "i": "B", "t": time}
    else:
        fields = {"T": "i", "S": symbol, "p": price, "t": time}
    return fields | {"z": tape}


def _place(feed: str, die: int) -> str:
    return "V" if feed == "iex" else "ABCDHJKMNPQUVXYZ"[die % 16]


def _tape(symbol: str) -> str:
    return {"SPY": "B", "GTE": "B", "BRK.B": "A"}.get(symbol, "C")


def rfc3339(ns: int) -> str:
    """A time in nanoseconds since the epoch as RFC 3339 text, in UTC, without trailing zeros."""
    seconds, rest = divmod(ns, SECOND_NS)
    return f"{_second(seconds)}.{rest:09d}".rstrip("0") + "Z" if rest else _second(seconds) + "Z"


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
