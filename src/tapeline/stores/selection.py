"""What a reader requests from a store. Every store answers with the same rows, the same columns and the same order."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from tapeline.errors import WrongArgument
from tapeline.records import AMENDING, AMENDS, NS_PER_S, TICKS, Topic

_NEAR: Final = 3
#: The order of every answer, ascending; text is compared by its bytes (in SQL: COLLATE "C"). The raw position makes this a total order of
#: ticks.
ORDER: Final = ("ts_ns", "symbol", "raw_partition", "raw_offset", "raw_index")

#: The columns that identify a trade that was taken back: columns of its tick, and the UTC day of its time in days since 1970.
AMENDED: Final = pa.schema(
    [*(TICKS.field(name) for name in ("provider", "feed", "symbol", "exchange")), TICKS.field("trade_id"), ("day", pa.int64())]
)
_NOTICE: Final = ("provider", "feed", "kind", "symbol", "ts_ns", "detail")
_DAY_NS: Final = 86_400 * NS_PER_S
_LEAST: Final = -(1 << 63)
_MOST: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows and columns of a topic to read. Every value was checked. None: any value."""

    symbols: tuple[str, ...]  # canonical, at least one, none twice
    start_ns: int  # ns since 1970 (UTC); the range is [start_ns, end_ns)
    end_ns: int
    columns: tuple[str, ...]  # columns of the topic's schema, at least one; the answer has them in this order
    provider: str | None = None
    feed: str | None = None
    kind: str | None = None  # for ticks: trade | quote
    interval: str | None = None  # for bars


@runtime_checkable
class Source(Protocol):
    """A store that can be read, by one thread.

    Every call may raise `Unavailable` or `NewerData`; so may a reader while it is being read.
    """

    @property
    def place(self) -> str:
        """Which store this is, and where, for messages. It contains no password."""

    def now(self) -> Self:
        """Return the store as it is now, for one answer. It shares whatever is expensive to open with this source."""

    def verified(self) -> Self:
        """Return the same store with checks: it compares the data it reads ticks and bars from with checksums, if it keeps any itself."""

    def ticks(self, selection: Selection) -> pa.RecordBatchReader:
        """Return the ticks in the order `ORDER`, in batches of bounded size. Nothing is read before the reader is."""

    def bars(self, selection: Selection) -> pa.RecordBatchReader:
        """Return the last revision of each bar (provider, feed, symbol, interval, ts) in the order `ORDER`, as `ticks` does."""

    def last(self, selection: Selection) -> pa.Table:
        """Return each symbol's last tick of the selection by `ORDER`. A symbol without ticks has no row. The rows are unordered."""

    def amended(self, selection: Selection) -> pa.Table:
        """Return the trades that notices take back on the selection's symbols and UTC days, as `AMENDED`.

        Unordered; some appear more than once.
        """

    def newest_ns(self) -> int | None:
        """Return a time (ns, UTC) that no tick is later than, or None if there are no ticks at all."""

    def unknown(self, topic: Topic, symbols: tuple[str, ...]) -> Mapping[str, list[str]]:
        """Return the symbols of which the topic has never held anything, each with some similar symbols that it does hold."""


def known_name(opened: Source, topic: Topic, symbols: tuple[str, ...]) -> None:
    """Raise WrongArgument if the source has never held one of the symbols in the topic. The message suggests similar symbols.

    Raises Unavailable and NewerData as the source does.
    """
    unknown = opened.unknown(topic, symbols)
    if not unknown:
        return
    symbol, near = next(iter(unknown.items()))
    others = f", nor of {len(unknown) - 1} more" if len(unknown) > 1 else ""
    remedy = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Check the symbol, and that this is the right configuration."
    raise WrongArgument(f"The {opened.place} has no {topic.table} of {symbol!r} at any time{others}. {remedy}")


def notices_about(selection: Selection) -> Selection:
    """Return the selection of notices that may take back ticks of the given selection: those of the UTC days that it touches."""
    start_ns = max(selection.start_ns // _DAY_NS * _DAY_NS, _LEAST)
    end_ns = min(-(-selection.end_ns // _DAY_NS) * _DAY_NS, _MOST)
    return replace(selection, start_ns=start_ns, end_ns=end_ns, columns=_NOTICE, kind=None, interval=None)


def amended_by(notices: pa.Table) -> pa.Table:
    """Return the trades that the notices take back, as `AMENDED`."""
    rows = notices.filter(pc.is_in(notices["kind"], pa.array(AMENDING)))
    named = pc.extract_regex(rows["detail"], AMENDS)
    rows = rows.append_column("day", pa.array(rows["ts_ns"].to_numpy() // _DAY_NS))
    for name in ("exchange", "trade_id"):
        rows = rows.append_column(name, pc.struct_field(named, name))
    return rows.filter(pc.is_valid(named)).select(AMENDED.names).cast(AMENDED)


def alike(symbol: str, known: Sequence[str]) -> list[str]:
    """Return known symbols that the user may have meant.

    Symbols with the same letters come first (BTCUSDT and btc-usdt find BTC/USDT), then those that differ a little.
    """
    by_letters = {_letters(name): name for name in sorted(known)}
    near = difflib.get_close_matches(_letters(symbol), list(by_letters), n=_NEAR, cutoff=0.5)
    return [by_letters[letters] for letters in near]


def _letters(symbol: str) -> str:
    return "".join(filter(str.isalnum, symbol)).upper()
