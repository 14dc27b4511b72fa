"""Bars built from the trades that a simulator made: open, high, low, close and sums over a window of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tapeline.simulators.market import Trade

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
DAY_NS = 86_400 * SECOND_NS


@dataclass(slots=True)
class Bar:
    """The bar of one window [start_ns, end_ns). Prices are in ticks, volumes in lots, values in ticks times lots, so all are exact."""

    start_ns: int
    end_ns: int
    open: int = 0
    high: int = 0
    low: int = 0
    close: int = 0
    volume: int = 0
    value: int = 0
    buy_volume: int = 0
    buy_value: int = 0
    trades: int = 0
    first_id: int = -1
    last_id: int = -1

    def add(self, trade: Trade, trade_id: int = -1) -> None:
        """Take in one trade."""
        price, size = trade.price, trade.size
        if not self.trades:
            self.open = self.high = self.low = price
            self.first_id = trade_id
        elif price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        if not self.trades or not trade.late:
            self.close = price
        self.last_id = trade_id
        self.trades += 1
        self.volume += size
        self.value += price * size
        if trade.buy:
            self.buy_volume += size
            self.buy_value += price * size

    @classmethod
    def flat(cls, start_ns: int, end_ns: int, price: int) -> Bar:
        """A window without trades: every price is the last one known."""
        return cls(start_ns, end_ns, price, price, price, price)


@dataclass(slots=True)
class _Window:
    bar: Bar
    due_ns: int | None  # when the bar is due; None: nothing new to send
    sent: bool = False


class Windows:
    """Windows of equal width. A bar is sent `delay_ns` after its end, and again `again_ns` after a late trade.

    Windows that ended more than `keep_ns` ago are forgotten, so that memory is bounded. Trades of windows that ended by `since_ns` are
    ignored: otherwise a late trade would make a bar of its own in place of a fuller one.
    """

    def __init__(self, width_ns: int, delay_ns: int, again_ns: int, keep_ns: int, since_ns: int) -> None:
        self._width = width_ns
        self._delay = delay_ns
        self._again = again_ns
        self._keep = keep_ns
        self._since = since_ns
        self._windows: dict[int, _Window] = {}

    def add(self, trade: Trade, now_ns: int) -> None:
        """Take in one trade. A trade that is older than the windows kept is ignored."""
        start = trade.ns - trade.ns % self._width
        window = self._windows.get(start)
        if window is None:
            end = start + self._width
            if end <= self._since or end + self._keep < now_ns:
                return
            window = self._windows[start] = _Window(Bar(start, end), max(end + self._delay, now_ns))
        elif window.due_ns is None:
            window.due_ns = now_ns + self._again
        window.bar.add(trade)

    def due(self, now_ns: int) -> Iterator[tuple[Bar, bool]]:
        """The bars to send now, oldest first. Each comes with a flag: true if it was sent before and is now a revision."""
        for start in sorted(self._windows):
            window = self._windows[start]
            if window.due_ns is not None and window.due_ns <= now_ns:
                window.due_ns = None
                again, window.sent = window.sent, True
                yield window.bar, again
            elif window.due_ns is None and window.bar.end_ns + self._keep < now_ns:
                del self._windows[start]
