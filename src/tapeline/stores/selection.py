"""What a reader asks of a store, and how every store answers it: the same rows with the same columns in the same order."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self, runtime_checkable

import pyarrow as pa

from tapeline.records import Topic

_NEAR: Final = 3
#: The order of every answer, ascending; text by its bytes (in SQL: COLLATE "C"). The raw position makes it a total order of ticks.
ORDER: Final = ("ts_ns", "symbol", "raw_partition", "raw_offset", "raw_index")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows and columns of a topic; every value was checked. None: whatever it is."""

    symbols: tuple[str, ...]  # canonical, at least one, none twice
    start_ns: int  # ns since 1970; the range is [start_ns, end_ns)
    end_ns: int
    columns: tuple[str, ...]  # of the topic's schema, at least one; the answer has them in this order
    provider: str | None = None
    feed: str | None = None
    kind: str | None = None  # of ticks: trade | quote
    interval: str | None = None  # of bars


@runtime_checkable
class Source(Protocol):
    """A store that can be read, by one thread. Every call raises `Unavailable` or `NewerData`, and a reader while it is read."""

    @property
    def place(self) -> str:
        """For messages: which store this is, and where; no password in it."""

    def now(self) -> Self:
        """The store as it is now, for one answer: what was dear to open is shared with the source that was asked."""

    def ticks(self, selection: Selection) -> pa.RecordBatchReader:
        """The ticks by `ORDER`, in batches of bounded size; nothing is read before the reader is."""

    def bars(self, selection: Selection) -> pa.RecordBatchReader:
        """The last revision of each bar (provider, feed, symbol, interval, ts) by `ORDER`, as `ticks`."""

    def last(self, selection: Selection) -> pa.Table:
        """Of each symbol the one tick of the selection that is last by `ORDER`; none for a symbol without one. In no order."""

    def newest_ns(self) -> int | None:
        """No tick is later; None where there are no ticks at all."""

    def unknown(self, topic: Topic, symbols: tuple[str, ...]) -> Mapping[str, list[str]]:
        """Those of which the topic holds nothing at any time, each with some symbols that it does hold and that look alike."""


def alike(symbol: str, known: Sequence[str]) -> list[str]:
    """Symbols that one may have meant: the same letters first (BTCUSDT, btc-usdt: BTC/USDT), then those that differ a little."""
    by_letters = {_letters(name): name for name in sorted(known)}
    near = difflib.get_close_matches(_letters(symbol), list(by_letters), n=_NEAR, cutoff=0.5)
    return [by_letters[letters] for letters in near]


def _letters(symbol: str) -> str:
    return "".join(filter(str.isalnum, symbol)).upper()
