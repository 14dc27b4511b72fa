"""The rules for all providers' events, checked on columns. An event that breaks a rule is rejected; an impossible bar is only counted."""

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

#: A column, the rows that keep the rule (None: all rows), and the text of a broken rule.
_Rule: TypeAlias = tuple[str, "npt.NDArray[np.bool_] | None", str]
_ZERO_TRADES: Final = pa.scalar(0)
#: The most bytes that a text of a tick or bar may have. A longer one may be too large for a stream's message or a store's index.
LONGEST_TEXT: Final = 1_024


def suspect(bars: Columns) -> int:
    """The number of impossible bars: the open or close lies outside low to high, or the count of trades is below zero."""
    prices = {name: bars[name] for name in ("open", "high", "low", "close")}
    low, high = prices["low"], prices["high"]
    strange = pc.or_(pc.less(prices["open"], low), pc.greater(prices["open"], high))
    strange = pc.or_(strange, pc.or_(pc.less(prices["close"], low), pc.greater(prices["close"], high)))
    if isinstance(trades := bars.get("trades"), pa.Array):
        strange = pc.or_(strange, pc.fill_null(pc.less(trades, _ZERO_TRADES), False))
    return int(pc.sum(strange).as_py() or 0)


def problems(columns: Mapping[str, Any], rules: Iterable[_Rule], wire: Sequence[object] | None) -> list[tuple[int, str]]:
    """(row, reason) for each row that breaks a rule. The first broken rule gives the reason.

    `wire` holds the rows' wire events, from which the reason quotes the original text; None if there are none."""
    reasons: dict[int, str] = {}
    for name, fine, rule in rules:
        if fine is None or fine.all():
            continue
        for at in np.flatnonzero(~fine).tolist():
            if at not in reasons:
                value = columns[name][at].as_py()
                if (value is None or value != value) and wire is not None:  # the event may have a text that could not be converted
                    value = _written(wire[at], name)
                reasons[at] = f"{_SPOKEN.get(name, name)} {rule} ({value})"
    return sorted(reasons.items())


def _written(event: object, column: str) -> str:
    """The text in a wire event that could not be converted into a column; empty if the event has none."""
    inner = event if column == "symbol" else getattr(event, "k", event)
    value = next((getattr(inner, name) for name in _WIRE_NAMES.get(column, ()) if hasattr(inner, name)), None)
    return "" if value is None else repr(_ADDRESS.sub("", str(value))[:_LONGEST_WRITTEN])


#: The memory address in Python's default text of an object. It differs each time, so it is removed.
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_LONGEST_WRITTEN: Final = 60
#: Column to the wire fields that it may come from; the first that the event has counts. (Binance's `t` is an id, and its times are `T`.)
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
#: Column to its name in a reject's reason.
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
    """The rules for every event of a kind, checked on these columns."""
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
    """The rules that no text column has a text longer than `LONGEST_TEXT` bytes."""
    for name, column in columns.items():
        if isinstance(column, pa.Array) and pa.types.is_string(column.type):
            yield name, lengths(column) <= LONGEST_TEXT, f"has more than {LONGEST_TEXT} bytes"


def _present(values: pa.Array) -> npt.NDArray[np.bool_] | None:
    return None if values.null_count == 0 else values.is_valid().to_numpy(zero_copy_only=False)


def _finite(values: pa.Array, *, from_zero: bool, or_null: bool = False) -> npt.NDArray[np.bool_]:
    """Which values are finite and above zero, or with `from_zero` zero or more. A null is allowed only with `or_null`."""
    number: npt.NDArray[np.float64] = values.to_numpy(zero_copy_only=False)  # a null becomes NaN, for which every comparison is false
    fine: npt.NDArray[np.bool_] = ((number >= 0) if from_zero else (number > 0)) & (number < np.inf)
    if or_null and values.null_count:
        fine |= values.is_null().to_numpy(zero_copy_only=False)
    return fine
