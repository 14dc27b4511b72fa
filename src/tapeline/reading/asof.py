"""Finds the quote in force at each trade: an as-of join of the ticks with themselves, batch by batch, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import TICKS

#: A quote is in force only for trades that agree with it in these columns.
KEY: Final = ("symbol", "provider", "feed")
#: The columns taken from the quote. Its time is `quote_ts_ns`.
QUOTE: Final = ("bid", "ask", "bid_size", "ask_size")
#: The columns of the ticks that `quotes_at_trades` always needs.
NEEDED: Final = (*KEY, "ts_ns", "kind", *QUOTE)
#: A trade's columns. The columns of `QUOTE`, which are empty for a trade, hold the quote in force.
QUOTED: Final = pa.schema([*(field for field in TICKS if field.name != "kind"), pa.field("quote_ts_ns", pa.int64())])

_QUOTES: Final = pa.schema([TICKS.field(name) for name in (*KEY, "ts_ns", *QUOTE)])

#: Given (provider, feed, symbols), returns the last quote of each symbol before the first tick. The columns are those of the ticks.
Before = Callable[[str, str, tuple[str, ...]], pa.Table]


def quotes_at_trades(ticks: Iterator[pa.RecordBatch], before: Before, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Each trade with the latest quote of its symbol, provider and feed whose `ts_ns` is at or before the trade's.

    If several quotes have the same nanosecond, the last one is in force. `ticks`: trades and quotes in order of time. `schema`: the
    result's columns, out of `QUOTED`. `before` is called once for each key whose first trade comes before its first quote.
    """
    force = _InForce(before)
    for batch in _whole_moments(ticks):
        trades = force.at_trades(batch, schema)
        if trades.num_rows:
            yield trades


def _whole_moments(ticks: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows, in batches that do not split a nanosecond: a quote that follows a trade may have the trade's time, and is in force."""
    held: list[pa.RecordBatch] = []
    for batch in ticks:
        if not batch.num_rows:
            continue
        ts = batch["ts_ns"].to_numpy()
        cut = int(np.searchsorted(ts, ts[-1], "left"))
        if cut or (held and held[-1]["ts_ns"][-1].as_py() != int(ts[0])):
            yield pa.concat_batches([*held, batch.slice(0, cut)])
            held = []
        held.append(batch.slice(cut))
    if held:
        yield pa.concat_batches(held)


class _InForce:
    """Keeps the last quote of each key so far."""

    def __init__(self, before: Before) -> None:
        self._before = before
        self._last = pa.RecordBatch.from_pylist([], _QUOTES)
        self._looked_up: set[tuple[str, ...]] = set()

    def at_trades(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        """The trades of a batch with their quotes. The batch's quotes are kept for the next batches."""
        chosen, quotes, trades = self._matched(batch)
        unquoted = batch.filter(pa.array(trades & (chosen < 0))).select(list(KEY))
        if self._look_up({tuple(row.values()) for row in pa.table(unquoted).group_by(list(KEY)).aggregate([]).to_pylist()}):
            chosen, quotes, trades = self._matched(batch)
        rows = pa.array(np.where(trades)[0])
        at = pa.array(chosen[trades], mask=chosen[trades] < 0)
        columns = []
        for field in schema:
            if field.name in (*QUOTE, "quote_ts_ns"):
                columns.append(quotes["ts_ns" if field.name == "quote_ts_ns" else field.name].take(at))
            else:
                columns.append(batch[field.name].take(rows))
        self._last = self._latest(quotes)
        return pa.record_batch(columns, schema=schema)

    def _matched(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], pa.RecordBatch, npt.NDArray[np.bool_]]:
        """(index, quotes, trades): for each row of the batch, the index into `quotes` of the quote in force (-1: none), and whether it is a
        trade."""
        is_quote = pc.equal(batch["kind"], "quote").to_numpy(zero_copy_only=False)
        quotes = pa.concat_batches([self._last, batch.filter(pa.array(is_quote)).select(_QUOTES.names).cast(_QUOTES)])
        key = _codes(pa.concat_batches([quotes.select(list(KEY)), batch.select(list(KEY)).cast(pa.schema(list(_QUOTES)[: len(KEY)]))]))
        ts = np.concatenate([quotes["ts_ns"].to_numpy(), batch["ts_ns"].to_numpy()])
        count = quotes.num_rows
        place = np.arange(len(ts))
        # Quotes are sorted before trades of the same time. Among quotes of the same time, the later one wins.
        order = np.lexsort((place, place >= count, ts, key))
        in_force = np.maximum.accumulate(np.where(order < count, np.arange(len(order)), -1))
        quote = np.where(in_force >= 0, order[in_force], -1)
        quote[(in_force >= 0) & (key[quote] != key[order])] = -1
        indices = np.empty(len(ts), np.int64)
        indices[order] = quote
        return indices[count:], quotes, ~is_quote

    def _look_up(self, keys: set[tuple[str, ...]]) -> bool:
        """Look up the earlier quotes of keys that have none yet. Returns whether a key was looked up for the first time."""
        new = sorted(keys - self._looked_up)
        self._looked_up |= keys
        for provider, feed in sorted({(provider, feed) for _, provider, feed in new}):
            symbols = tuple(symbol for symbol, *rest in new if rest == [provider, feed])
            quotes = self._before(provider, feed, symbols).select(_QUOTES.names).cast(_QUOTES)
            self._last = pa.concat_batches([self._last, *quotes.to_batches()])
        return bool(new)

    def _latest(self, quotes: pa.RecordBatch) -> pa.RecordBatch:
        """The last row of each key. The rows of a key are in order of time, because those from earlier batches come first."""
        rows = {code: row for row, code in enumerate(_codes(quotes.select(list(KEY))).tolist())}
        return quotes.take(pa.array(rows.values(), pa.int64()))


def _codes(keys: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """A number for each row. Rows with equal keys have equal numbers."""
    combined = np.zeros(keys.num_rows, np.int64)
    for name in keys.schema.names:
        coded = keys[name].dictionary_encode()
        combined = combined * max(len(coded.dictionary), 1) + coded.indices.to_numpy()
    return combined
