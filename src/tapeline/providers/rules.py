"""The rules that hold for all providers' events, checked on their columns: what breaks one is rejected, what no market has is suspect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.providers.decoding.inexact import lengths
from tapeline.providers.events import Columns, Kind

#: A column, which rows keep the rule (None: all of them), and what the rule says.
_Rule: TypeAlias = tuple[str, "npt.NDArray[np.bool_] | None", str]
_ZERO_TRADES: Final = pa.scalar(0)
#: A text of a tick or bar has at most so many bytes: a longer one may be too large for a stream's message or a store's index.
LONGEST_TEXT: Final = 1_024


def suspect(bars: Columns) -> int:
    """How many bars have an open or close outside of their low and high, or a count of trades below zero."""
    prices = {name: bars[name] for name in ("open", "high", "low", "close")}
    low, high = prices["low"], prices["high"]
    strange = pc.or_(pc.less(prices["open"], low), pc.greater(prices["open"], high))
    strange = pc.or_(strange, pc.or_(pc.less(prices["close"], low), pc.greater(prices["close"], high)))
    if isinstance(trades := bars.get("trades"), pa.Array):
        strange = pc.or_(strange, pc.fill_null(pc.less(trades, _ZERO_TRADES), False))
    return int(pc.sum(strange).as_py() or 0)


def problems(columns: Mapping[str, Any], rules: Iterable[_Rule], wire: Sequence[object] | None) -> list[tuple[int, str]]:
    """(row, reason) for each row that breaks a rule, the first broken rule naming the reason."""
    reasons: dict[int, str] = {}
    for name, fine, rule in rules:
        if fine is None or fine.all():
            continue
        for at in np.flatnonzero(~fine).tolist():
            if at not in reasons:
                value = columns[name][at].as_py()
                if (value is None or value != value) and wire is not None:  # it was written, and means nothing
                    value = _written(wire[at], name)
                reasons[at] = f"{_SPOKEN.get(name, name)} {rule} ({value})"
    return sorted(reasons.items())


def _written(event: object, column: str) -> str:
    """What a wire event has in the place of a column that could not be made of it; empty where it has nothing."""
    inner = event if column == "symbol" else getattr(event, "k", event)
    found = next((getattr(inner, name) for name in _WIRE_NAMES.get(column, ()) if hasattr(inner, name)), None)
    return "" if found is None else repr(_ADDRESS.sub("", str(found))[:_LONGEST_WRITTEN])


#: What Python says of an object that has no words: where in memory it lies, which is another place each time.
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_LONGEST_WRITTEN: Final = 60
#: Where a wire event may have what a column is made of; the first that it has. (Binance's `t` is an id: its times are `T`.)
_WIRE_NAMES: Final = {
    "symbol": ("sym", "pair", "S", "s"),
    "ts_ns": ("T", "t", "s"),
    "last": ("p",),
    "bid": ("bp", "b"),
    "ask": ("ap", "a"),
    "bid_size": ("bs", "B"),
    "ask_size": ("as_", "A"),
    "volume": ("ds", "dv", "q", "v", "s"),
    "open": ("o",),
    "high": ("h",),
    "low": ("l",),
    "close": ("c",),
    "vwap": ("vw",),
}
#: What a column is called in a reject's reason.
_SPOKEN: Final = {
    "last": "price",
    "bid": "bid price",
    "ask": "ask price",
    "bid_size": "bid size",
    "ask_size": "ask size",
    "volume": "size or volume",
    "ts_ns": "time",
}


def rules_of(kind: Kind, columns: Mapping[str, Any]) -> Iterator[_Rule]:
    """What every event of a kind has to keep."""
    yield "symbol", _present(columns["symbol"]), "is empty, or ends in no known quote asset"
    yield "ts_ns", _present(columns["ts_ns"]), "cannot be read, or lies outside 1990 to 2100"
    above, from_zero = "is not a finite number above zero", "is not a finite number of zero or more"
    prices: tuple[str, ...]
    if kind == "quote":
        for name in ("bid", "ask", "bid_size", "ask_size"):
            yield name, _finite(columns[name], from_zero=True, or_null=True), from_zero
        return
    prices = ("last",) if kind == "trade" else ("open", "high", "low", "close")
    for name in prices:
        yield name, _finite(columns[name], from_zero=False), above
    yield "volume", _finite(columns["volume"], from_zero=True), from_zero
    if "vwap" in columns:
        yield "vwap", _finite(columns["vwap"], from_zero=False, or_null=True), above


def short(columns: Mapping[str, Any]) -> Iterator[_Rule]:
    """That no text is longer than streams and stores are made for."""
    for name, column in columns.items():
        if isinstance(column, pa.Array) and pa.types.is_string(column.type):
            yield name, lengths(column) <= LONGEST_TEXT, f"has more than {LONGEST_TEXT} bytes"


def _present(values: pa.Array) -> npt.NDArray[np.bool_] | None:
    return None if values.null_count == 0 else values.is_valid().to_numpy(zero_copy_only=False)


def _finite(values: pa.Array, *, from_zero: bool, or_null: bool = False) -> npt.NDArray[np.bool_]:
    """Which are numbers above zero (or from zero on) and below infinity; a null only where `or_null`."""
    number: npt.NDArray[np.float64] = values.to_numpy(zero_copy_only=False)  # a null becomes NaN, which no comparison holds for
    fine: npt.NDArray[np.bool_] = ((number >= 0) if from_zero else (number > 0)) & (number < np.inf)
    if or_null and values.null_count:
        fine |= values.is_null().to_numpy(zero_copy_only=False)
    return fine
