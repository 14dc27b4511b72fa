"""The source of a simulator's events, at the chosen pace: the generated market (here) or a recording (replay.py)."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from tapeline.simulators.market import Demand, Market

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapeline.simulators.events import Event, Topic
    from tapeline.simulators.faults import Faults
    from tapeline.simulators.market import Instrument
    from tapeline.simulators.options import SimulatorOptions
    from tapeline.simulators.tape import Tape

BATCH: Final = 512  # the most events made at once, so that the sockets are served in between
_DEBT_S: Final = 0.25  # a delayed generator catches up at most this many seconds
_BURST: Final = 10_000
_CALM, _BUSY, _BUSY_SHARE = 0.8, 4.0, 1 / 16  # intensities with a mean of one
_NATURALLY_LATE: Final = {"binance": 0.0, "polygon": 0.0005, "alpaca": 0.0005}  # the share of trades


class Source(Protocol):
    """Events in the order in which a simulator sends them."""

    behind: bool  # more events are due already

    def heard(self, wanted: frozenset[Topic], now_s: float) -> None:
        """From now on (loop seconds), clients listen to these topics. Empty: no client listens."""

    def take(self, now_s: float) -> list[Event]:
        """The events that are due now (loop seconds), at most some hundreds."""

    def close(self) -> None:
        """Close the files, if any are open."""


class Generated:
    """The market's events for the wanted topics, in bursts, at `rate` a second on average."""

    def __init__(self, options: SimulatorOptions, tape: Tape, faults: Faults, clock: Callable[[], int]) -> None:
        self.behind = False
        self._tape = tape
        self._rate = options.rate
        self._left = options.limit
        self._market = Market(options.seed, late=faults.number("late_report") or _NATURALLY_LATE[options.name])
        self._random = np.random.default_rng([options.seed, 1])
        self._clock = clock
        self._skew_ns = int((faults.number("clock_skew") or 0.0) * 1e9)
        self._burst_s = faults.number("burst")
        self._next_burst_s = 0.0
        self._plan: dict[Instrument, frozenset[str]] = {}
        self._demand: list[Demand] = []
        self._owed = 0.0
        self._burst = 0.0  # how much of what is owed is a burst's
        self._last_s = 0.0
        self._last_ns = 0

    def heard(self, wanted: frozenset[Topic], now_s: float) -> None:
        """Change the demand. While no client listens, the market stands still, and nothing is made up for later."""
        if not self._demand:  # while no client listened, nothing was generated, and it is not made up for
            self._last_s, self._owed, self._burst = now_s, 0.0, 0.0
            self._last_ns = max(self._now_ns(), self._last_ns)
            self._next_burst_s = now_s + (self._burst_s or 0.0)
        self._plan = _plan(self._tape.instruments(), wanted)
        kinds = {one: self._tape.kinds(channels) for one, channels in self._plan.items()}
        self._tape.listen(self._plan, self._last_ns)
        self._demand = [Demand(one, *wants) for one, wants in kinds.items() if any(wants)]

    def take(self, now_s: float) -> list[Event]:
        """Return the bars that are due, then at most about 512 trades and quotes. After `limit` events, return nothing.

        If the loop was held up, events of at most 0.25 s are made up for (but always up to 512).
        """
        if not self._demand or self._left == 0:
            self.behind = False
            return []
        self._owe(now_s)
        now_ns = self._now_ns()
        made: list[Event] = []
        # Every trade up to the last tick is out, so a bar that ended by then holds all its trades.
        self._tape.due(self._last_ns, made)
        timed = len(made)
        due = int(min(self._owed, BATCH))
        while len(made) - timed < due:
            had = len(made)
            ticks = self._market.draw(due - (had - timed), self._demand, self._last_ns, now_ns)
            self._last_ns = max(now_ns, ticks[-1].ns)
            for tick in ticks:
                self._tape.add_events(tick, self._plan[tick.instrument], made)
            self._owed -= max(len(made) - had, 1)
            if len(made) == had:  # bars only: the trades happen, but are not sent one by one
                self._owed -= len(ticks) - 1
                break
        self._burst = max(0.0, min(self._burst - (len(made) - timed), self._owed))
        self._last_ns = max(self._last_ns, now_ns)
        self.behind = self._owed >= 1
        return self._within_limit(made)

    def close(self) -> None:
        """Nothing to do: a generated market has no files."""

    def _owe(self, now_s: float) -> None:
        intensity = _BUSY if self._random.random() < _BUSY_SHARE else _CALM
        elapsed, self._last_s = now_s - self._last_s, now_s
        self._owed += float(self._random.poisson(min(self._rate * elapsed * intensity, 1e9)))
        self._owed = min(self._owed, max(self._rate * _DEBT_S, BATCH) + self._burst)
        if self._burst_s is not None and now_s >= self._next_burst_s:
            self._next_burst_s = now_s + self._burst_s
            self._owed += _BURST
            self._burst += _BURST

    def _within_limit(self, made: list[Event]) -> list[Event]:
        if self._left is None:
            return made
        kept = list(islice(made, self._left))
        self._left -= len(kept)
        return kept

    def _now_ns(self) -> int:
        return self._clock() + self._skew_ns


def _plan(instruments: list[Instrument], wanted: frozenset[Topic]) -> dict[Instrument, frozenset[str]]:
    channels: dict[tuple[str, str], set[str]] = {}
    for topic in wanted:
        channels.setdefault((topic.feed, topic.symbol), set()).add(topic.channel)
    return {one: frozenset(channels[one.feed, one.symbol]) for one in instruments if (one.feed, one.symbol) in channels}
