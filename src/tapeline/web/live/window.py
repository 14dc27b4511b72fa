"""A window: the records that were read together, by symbol, with the positions before and after. And the latest values of every symbol."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

import pyarrow as pa

from tapeline.records import Chunk
from tapeline.web.live.messages import ROWS, Latest, encoded
from tapeline.web.live.position import Position


@dataclass(slots=True)
class Part:
    """A window's records of one table."""

    chunk: Chunk
    #: Symbol to its rows, in the order of the stream. Python's garbage collector does not look at tuples of numbers again and again: with
    #: lists, it stopped everything for up to 0.2 s because of the windows that are kept.
    by_symbol: dict[str, tuple[int, ...]]
    _rows: list[bytes] = field(default_factory=list)
    _joined: dict[str, bytes] = field(default_factory=dict)

    @staticmethod
    def of(chunk: Chunk) -> Part:
        """Sort a chunk's records by symbol."""
        by_symbol: dict[str, list[int]] = {}
        for at, symbol in enumerate(chunk.batch["symbol"].to_pylist()):
            by_symbol.setdefault(symbol, []).append(at)
        return Part(chunk, {symbol: tuple(rows) for symbol, rows in by_symbol.items()})

    def rows(self, symbol: str) -> bytes:
        """Return the symbol's records as JSON objects with commas between them. They are encoded once, at the first call."""
        joined = self._joined.get(symbol)
        if joined is None:
            rows = self._encoded()
            joined = self._joined[symbol] = b",".join([rows[at] for at in self.by_symbol[symbol]])
        return joined

    def places(self, symbols: Iterable[str], since: tuple[int, ...] = ()) -> list[int]:
        """Return which rows are of some symbols, in the order of the stream; only those at or after the offsets `since`, by partition."""
        found = sorted(at for symbol in symbols for at in self.by_symbol.get(symbol, ()))
        partition, offset = self.chunk.partition, self.chunk.offset
        return [at for at in found if offset[at] >= since[partition[at]]] if since else found

    def rows_at(self, places: Iterable[int]) -> list[bytes]:
        """Return some records as JSON."""
        rows = self._encoded()
        return [rows[at] for at in places]

    def batch_at(self, places: list[int]) -> pa.RecordBatch:
        """Return some records as an Arrow batch."""
        return self.chunk.batch.take(pa.array(places, pa.int64()))

    def _encoded(self) -> list[bytes]:
        if not self._rows:
            self._rows = ROWS[self.chunk.topic.table](self.chunk.batch)
        return self._rows


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Window:
    """The records that arrived between two positions, by table."""

    before: Position
    after: Position
    parts: Mapping[str, Part]

    @property
    def size(self) -> int:
        """About how many bytes it takes in memory, when it is encoded."""
        return sum(_BYTES_OF_A_PART + part.chunk.rows * _BYTES_OF_A_ROW for part in self.parts.values())


#: A row as Arrow and as JSON takes about this; and a batch of few rows so much, for its many columns (measured: 23 kB with one row).
_BYTES_OF_A_ROW: Final = 700
_BYTES_OF_A_PART: Final = 22_000


class Ring:
    """The last windows, in bounded memory, for clients that come back."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes."""
        self._limit = limit
        self._size = 0
        self._windows: deque[Window] = deque()

    def add(self, window: Window) -> None:
        """Keep a window, and forget the oldest ones if there is no room."""
        self._windows.append(window)
        self._size += window.size
        while self._size > self._limit and len(self._windows) > 1:
            self._size -= self._windows.popleft().size

    def since(self, position: Position) -> list[Window] | None:
        """Return the windows with everything after a position; None if some of it was forgotten, or if the position is not of this stream.

        The first of them may also hold records from before the position."""
        if not self._windows or not position.reaches(self._windows[0].before) or not self._windows[-1].after.reaches(position):
            return None
        return [window for window in self._windows if not position.reaches(window.after)]


_TRADE: Final = {
    "last": "last",
    "volume": "volume",
    "side": "side",
    "trade_ts_ns": "ts_ns",
    "trade_provider": "provider",
    "trade_feed": "feed",
}
_QUOTE: Final = {
    "bid": "bid",
    "ask": "ask",
    "bid_size": "bid_size",
    "ask_size": "ask_size",
    "quote_ts_ns": "ts_ns",
    "quote_provider": "provider",
    "quote_feed": "feed",
}
_TAKEN: Final = {"trade": _TRADE, "quote": _QUOTE}


class LatestValues:
    """The last trade and the last quote of each symbol, by the time of the event: a repaired event of the past changes nothing.

    Most values are replaced before anybody wants them. So a value is encoded when it is requested."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], int] = {}
        #: By symbol and kind, in the order of _TAKEN[kind].
        self._values: dict[tuple[str, str], tuple[Any, ...]] = {}
        self._encoded: dict[str, bytes] = {}

    def add(self, part: Part) -> set[str]:
        """Take the ticks of a window in, and return the symbols whose values changed."""
        columns = {name: part.chunk.batch[name].to_pylist() for name in ("symbol", "kind", *_TRADE.values(), *_QUOTE.values())}
        newest: dict[tuple[str, str], int] = {}
        for at, (symbol, kind, ts_ns) in enumerate(zip(columns["symbol"], columns["kind"], columns["ts_ns"], strict=True)):
            if ts_ns >= self._times.get((symbol, kind), ts_ns):
                self._times[symbol, kind] = ts_ns
                newest[symbol, kind] = at
        taken = {kind: [columns[name] for name in names.values()] for kind, names in _TAKEN.items()}
        for (symbol, kind), at in newest.items():
            self._values[symbol, kind] = tuple([column[at] for column in taken[kind]])
            self._encoded.pop(symbol, None)
        return {symbol for symbol, _ in newest}

    def rows(self, symbols: Iterable[str]) -> list[bytes]:
        """Return the values of some symbols as JSON, those that there are."""
        return [row for symbol in symbols if (row := self._encoded.get(symbol) or self._row(symbol))]

    def _row(self, symbol: str) -> bytes:
        """Encode a symbol's values; empty if there are none."""
        found: dict[str, Any] = {
            name: str(value) if column == "ts_ns" else value
            for kind, names in _TAKEN.items()
            for (name, column), value in zip(names.items(), self._values.get((symbol, kind), ()), strict=False)
        }
        if not found:
            return b""
        row = self._encoded[symbol] = encoded(Latest(symbol, **found))
        return row


def position_of(next_offsets: Mapping[str, Mapping[int, int]]) -> Position:
    """Return the position for the next offset of each partition, by table. Every table has its partitions from 0 on."""
    return Position({table: tuple(map(itemgetter(1), sorted(parts.items()))) for table, parts in next_offsets.items()})


def window_of(before: Position, chunks: Iterable[Chunk]) -> Window:
    """Return the window of chunks that were read from a position on: one chunk a table at most."""
    parts = {chunk.topic.table: Part.of(chunk) for chunk in chunks}
    after = {
        table: tuple(parts[table].chunk.next.get(at, offset) for at, offset in enumerate(offsets)) if table in parts else offsets
        for table, offsets in before.next.items()
    }
    return Window(before, Position(after), parts)
