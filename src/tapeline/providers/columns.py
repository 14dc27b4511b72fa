"""Functions that turn the values of wire events into Arrow columns. Every provider's channels are built from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.providers.decoding.inexact import in_texts
from tapeline.records import (
    NS_PER_MS,
    NS_PER_US,
)

# These scalars are made once. Each time pyarrow makes a scalar from a Python value it looks for an optional module, which takes 0.1 ms.
_ZERO: Final = pa.scalar(0.0)
_NO_FLOAT: Final = pa.scalar(None, pa.float64())
_NO_TIME: Final = pa.scalar(None, pa.int64())
_NOT_A_NUMBER: Final = pa.scalar(float("nan"))
_EARLIEST_NS: Final = 631_152_000 * 1_000_000_000  # 1990-01-01
_LATEST_NS: Final = 4_102_444_800 * 1_000_000_000  # 2100-01-01
_EARLIEST: Final = pa.scalar(_EARLIEST_NS)
_LATEST: Final = pa.scalar(_LATEST_NS)


def texts(values: Iterable[str | None]) -> pa.Array:
    """Return a string column. None becomes null."""
    return pa.array(list(values), pa.string())


def integers(values: Iterable[int | None]) -> pa.Array:
    """Return an int64 column. None becomes null. Raises OverflowError for a number that does not fit."""
    return pa.array(list(values), pa.int64())


def floats(values: Iterable[float | None]) -> pa.Array:
    """Return a float64 column. None becomes null."""
    return pa.array(list(values), pa.float64())


def flags(values: Iterable[bool]) -> pa.Array:
    """Return a boolean column."""
    return pa.array(list(values), pa.bool_())


def ratio(amount: pa.Array, by: pa.Array) -> pa.Array:
    """`amount / by`, null where `by` is zero."""
    return pc.divide(amount, pc.if_else(pc.equal(by, _ZERO), _NO_FLOAT, by))


def but_zero(values: pa.Array) -> pa.Array:
    """`values` with null in place of zero. Some bars of few shares carry an average price of zero, which means that there is none."""
    return pc.if_else(pc.equal(values, _ZERO), _NO_FLOAT, values)


def decimals(values: Iterable[str]) -> pa.Array:
    """Decimal texts as the nearest float64. A text that is not a number becomes NaN, which the checks reject."""
    return _nearest(pa.array(list(values), pa.string()))


def counted_decimals(values: Iterable[str]) -> tuple[pa.Array, int]:
    """As `decimals`, and the number of texts that float64 does not hold exactly."""
    written = pa.array(list(values), pa.string())
    return _nearest(written), in_texts(written)


def _nearest(written: pa.Array) -> pa.Array:
    return _each(written, lambda some: pc.cast(some, pa.float64()), _NOT_A_NUMBER)


def rfc3339(values: Iterable[str]) -> pa.Array:
    """RFC 3339 times as ns since 1970, UTC. A time needs a zone and may have up to nine digits after the second.

    A time that cannot be read, or lies outside 1990 to 2100, becomes null."""
    written = pa.array(list(values), pa.string())
    ns = _each(written, lambda some: pc.cast(pc.cast(some, pa.timestamp("ns", "UTC")), pa.int64()), _NO_TIME)
    return in_range(ns)


def epoch_ns(values: pa.Array) -> pa.Array:
    """Counts of milliseconds or microseconds since 1970 as ns; null outside 1990 to 2100.

    The size of a count decides its unit: see `MICROSECONDS_FROM`."""
    count = values.to_numpy()
    unit = np.where(count >= MICROSECONDS_FROM, NS_PER_US, NS_PER_MS)
    readable = (count > _EARLIEST_NS // unit) & (count < _LATEST_NS // unit)
    return pa.array(np.where(readable, count, 0) * unit, mask=None if readable.all() else ~readable)


def in_range(ns: pa.Array) -> pa.Array:
    """Times in ns since 1970; null in place of those outside 1990 to 2100."""
    inside = pc.and_(pc.greater(ns, _EARLIEST), pc.less(ns, _LATEST))
    return ns if pc.all(inside).as_py() and inside.null_count == 0 else pc.if_else(inside, ns, _NO_TIME)


def side_of(price: pa.Array, size: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Price and size of one side of a quote. If the price is zero or absent, that side is empty and both become null."""
    here = pc.not_equal(price, _ZERO)
    if here.null_count == 0 and pc.all(here).as_py() is not False:
        return price, size
    return pc.if_else(here, price, _NO_FLOAT), pc.if_else(here, size, _NO_FLOAT)


def joined(codes: Iterable[Sequence[object] | None]) -> pa.Array:
    """Condition codes joined by commas; null if there are none."""
    return pa.array([",".join(map(str, some)) if some else None for some in codes], pa.string())


def _each(values: pa.Array, convert: Callable[[pa.Array], pa.Array], otherwise: pa.Scalar) -> pa.Array:
    """Convert all values at once. If that fails, convert them one by one, and use `otherwise` for those that cannot be converted."""
    try:
        return convert(values)
    except pa.ArrowInvalid:
        one_by_one = []
        for at in range(len(values)):
            try:
                one_by_one.append(convert(values.slice(at, 1))[0].as_py())
            except pa.ArrowInvalid:
                one_by_one.append(otherwise.as_py())
        return pa.array(one_by_one, otherwise.type)


#: A count since 1970 of this size or more is in microseconds; a smaller one is in milliseconds (PROVIDERS: Binance archives).
MICROSECONDS_FROM: Final = 10**14
