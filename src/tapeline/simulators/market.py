"""A seeded market: prices walk at random, and trades at the bid or the ask come in bursts.

Prices are whole ticks and sizes whole lots, so that every provider can print them exactly. With the same seed and the same demand, the
n-th draw is the same, at any speed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BLOCK = 4096
_TRADES = 0.25  # the share of trades, for an instrument whose trades and quotes are both wanted
_LATEST_NS = 90 * 1_000_000_000  # the most that a late report can be late


@dataclass(slots=True, eq=False)
class Instrument:
    """An instrument and its state. A tick is 10**-price_decimals, and a lot is 10**-size_decimals."""

    feed: str
    symbol: str
    price: int  # the middle of the market, in ticks
    price_decimals: int = 2
    size_decimals: int = 0
    lots: int = 100  # the typical size
    spread: int = 2  # ask - bid, in ticks
    floor: int = field(init=False)  # the lowest price; the walk turns here
    taker: tuple[bool, int] | None = field(init=False, default=None)  # an unfinished order: buys, price

    def __post_init__(self) -> None:
        self.floor = max(self.price // 4, 16)


class Trade(NamedTuple):
    """A fill. `done`: it is the last fill of its taker's order."""

    instrument: Instrument
    ns: int
    price: int  # ticks
    size: int  # lots
    buy: bool  # the aggressor bought
    done: bool
    late: bool = False  # reported long after `ns`


class Quote(NamedTuple):
    """The best bid and ask: prices in ticks, sizes in lots."""

    instrument: Instrument
    ns: int
    bid: int
    ask: int
    bid_size: int
    ask_size: int


class Demand(NamedTuple):
    """An instrument that some client listens to, and which kinds of event it wants."""

    instrument: Instrument
    trades: bool
    quotes: bool


_Draw = tuple[float, float, int, bool, bool, int, float, float, float]


class Market:
    """Makes trades and quotes on demand; `late` is the share of trades reported late."""

    def __init__(self, seed: int, *, late: float = 0.0) -> None:
        self._random = np.random.default_rng(seed)
        self._late = late
        self._draws: Iterator[_Draw] = iter(())

    def draw(self, count: int, demand: Sequence[Demand], start_ns: int, end_ns: int) -> list[Trade | Quote]:
        """The next `count` trades and quotes, spread evenly over (start_ns, end_ns]."""
        made: list[Trade | Quote] = []
        span = max(end_ns - start_ns, count)
        for index in range(1, count + 1):
            drawn = next(self._draws, None) or self._refill()
            # Squaring favors the first instruments, so that some are busier than others.
            chosen = demand[int(drawn[0] * drawn[0] * len(demand))]
            ns = start_ns + span * index // count
            if chosen.quotes and (drawn[1] >= _TRADES or not chosen.trades):
                made.append(_quote(chosen.instrument, ns, drawn))
            else:
                made.append(self._trade(chosen.instrument, ns, drawn))
        return made

    def _refill(self) -> _Draw:
        random = self._random
        self._draws = zip(
            random.random(_BLOCK).tolist(),  # which instrument
            random.random(_BLOCK).tolist(),  # trade or quote
            random.integers(-1, 2, _BLOCK).tolist(),  # the walk's step
            (random.random(_BLOCK) < 0.5).tolist(),  # the aggressor buys
            (random.random(_BLOCK) < 0.35).tolist(),  # the order goes on: a burst
            random.integers(1, 5, _BLOCK).tolist(),  # the spread
            np.exp(random.normal(0.0, 1.0, _BLOCK)).tolist(),  # a size
            np.exp(random.normal(0.0, 1.0, _BLOCK)).tolist(),  # another size
            random.random(_BLOCK).tolist(),  # whether it is late, and how late
            strict=True,
        )
        return next(self._draws)

    def _trade(self, instrument: Instrument, ns: int, drawn: _Draw) -> Trade:
        _, _, step, buy, more, _, size, _, lateness = drawn
        if instrument.taker is not None:
            buy, price = instrument.taker
        else:
            _walk(instrument, step)
            half = instrument.spread >> 1
            price = instrument.price + (instrument.spread - half if buy else -half)
        instrument.taker = (buy, price) if more else None
        late = lateness < self._late
        if late:
            ns -= int(lateness / self._late * _LATEST_NS)
        return Trade(instrument, ns, price, int(instrument.lots * size) + 1, buy, not more, late)


def _quote(instrument: Instrument, ns: int, drawn: _Draw) -> Quote:
    _walk(instrument, drawn[2])
    instrument.spread = drawn[5]
    bid = instrument.price - (instrument.spread >> 1)
    bid_size, ask_size = int(instrument.lots * drawn[6]) + 1, int(instrument.lots * drawn[7]) + 1
    return Quote(instrument, ns, bid, bid + instrument.spread, bid_size, ask_size)


def _walk(instrument: Instrument, step: int) -> None:
    instrument.price += step * (1 + instrument.price // 100_000)
    if instrument.price < instrument.floor:
        instrument.price = instrument.floor
