"""What a reader asks of a store, and how every store answers it: the same rows with the same columns in the same order."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import AMENDING, AMENDS, NS_PER_S, TICKS, Topic

_NEAR: Final = 3
#: The order of every answer, ascending; text by its bytes (in SQL: COLLATE "C"). The raw position makes it a total order of ticks.
ORDER: Final = ("ts_ns", "symbol", "raw_partition", "raw_offset", "raw_index")

#: What a trade that was taken back is known by: columns of its tick, and the UTC day of its time in days since 1970.
AMENDED: Final = pa.schema(
    [*(TICKS.field(name) for name in ("provider", "feed", "symbol", "exchange")), TICKS.field("trade_id"), ("day", pa.int64())]
)
_NOTICE: Final = ("provider", "feed", "kind", "symbol", "ts_ns", "detail")
_DAY_NS: Final = 86_400 * NS_PER_S
_LEAST: Final = -(1 << 63)
_MOST: Final = (1 << 63) - 1


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

    def verified(self) -> Self:
        """The same store, which holds what it reads ticks and bars from against checksums, where it keeps some itself."""

    def ticks(self, selection: Selection) -> pa.RecordBatchReader:
        """The ticks by `ORDER`, in batches of bounded size; nothing is read before the reader is."""

    def bars(self, selection: Selection) -> pa.RecordBatchReader:
        """The last revision of each bar (provider, feed, symbol, interval, ts) by `ORDER`, as `ticks`."""

    def last(self, selection: Selection) -> pa.Table:
        """Of each symbol the one tick of the selection that is last by `ORDER`; none for a symbol without one. In no order."""

    def amended(self, selection: Selection) -> pa.Table:
        """The trades of the selection's symbols and UTC days that notices take back, as `AMENDED`. In no order, some more than once."""

    def newest_ns(self) -> int | None:
        """No tick is later; None where there are no ticks at all."""

    def unknown(self, topic: Topic, symbols: tuple[str, ...]) -> Mapping[str, list[str]]:
        """Those of which the topic holds nothing at any time, each with some symbols that it does hold and that look alike."""


def notices_about(selection: Selection) -> Selection:
    """The notices that may take back ticks of a selection: those of the UTC days that it touches."""
    start_ns = max(selection.start_ns // _DAY_NS * _DAY_NS, _LEAST)
    end_ns = min(-(-selection.end_ns // _DAY_NS) * _DAY_NS, _MOST)
    return replace(selection, start_ns=start_ns, end_ns=end_ns, columns=_NOTICE, kind=None, interval=None)


def amended_by(notices: pa.Table) -> pa.Table:
    """The trades that some notices take back, as `AMENDED`."""
    found = notices.filter(pc.is_in(notices["kind"], pa.array(AMENDING)))
    named = pc.extract_regex(found["detail"], AMENDS)
    found = found.append_column("day", pa.array(found["ts_ns"].to_numpy() // _DAY_NS))
    for name in ("exchange", "trade_id"):
        found = found.append_column(name, pc.struct_field(named, name))
    return found.filter(pc.is_valid(named)).select(AMENDED.names).cast(AMENDED)


def alike(symbol: str, known: Sequence[str]) -> list[str]:
    """Symbols that one may have meant: the same letters first (BTCUSDT, btc-usdt: BTC/USDT), then those that differ a little."""
    by_letters = {_letters(name): name for name in sorted(known)}
    near = difflib.get_close_matches(_letters(symbol), list(by_letters), n=_NEAR, cutoff=0.5)
    return [by_letters[letters] for letters in near]


def _letters(symbol: str) -> str:
    return "".join(filter(str.isalnum, symbol)).upper()
