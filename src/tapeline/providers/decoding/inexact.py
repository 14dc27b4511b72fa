"""Counts the prices and sizes that float64 does not hold exactly.

Float64 gives back a number of at most 15 significant digits as it was written. So only texts of 16 characters or more are examined.
When a decoder turns a JSON number into a float, its text is lost. So the frames themselves are searched for long runs of digits, many
bytes at a time. A frame with such a run is then searched by key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Marks: TypeAlias = npt.NDArray[np.bool_]
#: The fewest characters that are examined. A shorter text has at most 15 digits, and so has a text of this length with a point in it.
LONG: Final = 16
#: The number of bytes that are searched at once.
_PIECE: Final = 120_000
_PAIR: Final = np.uint16(0x0101)
_NONE: Final = np.zeros(1, np.int32)
_FIRST: Final = np.uint8(ord("."))
_SPAN: Final = np.uint8(ord("9") - ord("."))
#: The end of the keys of times in nanoseconds, such as `sip_timestamp`. Every row of a page has such a time, with 19 digits.
_TIME_KEY: Final = np.uint32(int.from_bytes(b'mp":', "little"))
#: A frame whose first byte is this or more is MessagePack. Its numbers are float64 already.
_BINARY: Final = 0x80


def is_inexact(text: str) -> bool:
    """Whether float64 changes the number: the shortest decimal text of the nearest float64 is a different number."""
    try:
        number, near = Decimal(text), float(text)
    except (InvalidOperation, ValueError):
        return False  # it is not a number, so its event is rejected
    return math.isfinite(near) and number.is_finite() and Decimal(repr(near)) != number


def in_texts(written: pa.Array) -> int:
    """The number of decimal texts that are inexact. None of `written` may be null."""
    length = lengths(written)
    if not len(length) or length.max() < LONG:
        return 0
    long = written.filter(pa.array(length >= LONG))
    points = pc.match_substring(long, ".").to_numpy(zero_copy_only=False)
    long = long.filter(pa.array(lengths(long) - points >= LONG))
    digits = pc.ascii_ltrim(pc.ascii_rtrim(long, "0"), "0.")  # zeros at the ends are no significant digits, and are common
    return sum(map(is_inexact, long.filter(pa.array(lengths(digits) >= LONG)).to_pylist()))


def lengths(values: pa.Array) -> npt.NDArray[np.int32]:
    """The length of each text or binary value in bytes. It is computed from the array's offsets, which is faster than Arrow's kernel."""
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1] if len(values) else _NONE
    return np.diff(offsets)


class JsonNumbers:
    """Finds the inexact numbers under certain keys of JSON."""

    def __init__(self, keys: Iterable[str]) -> None:
        names = "|".join(map(re.escape, keys)).encode()
        self._long = re.compile(rb'"(?:' + names + rb')"\s*:\s*"?(-?[0-9.]{%d,}(?:[eE][+-]?[0-9]+)?)' % LONG)

    def inexact(self, payload: pa.BinaryArray) -> int:
        """The number of inexact values in all frames and pages. A number in quotation marks counts too."""
        data = payload.buffers()[2]
        if data is None or not len(payload):
            return 0
        offsets = np.frombuffer(payload.buffers()[1], np.int32)[payload.offset : payload.offset + len(payload) + 1]
        places = _long_numbers(np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]])
        rows = np.unique(np.searchsorted(offsets, places + offsets[0], "right") - 1) if len(places) else places
        return sum(self._in(payload[row].as_py()) for row in rows.tolist())

    def _in(self, frame: bytes) -> int:
        if frame[0] >= _BINARY:
            return 0
        return sum(is_inexact(match[1].decode()) for match in self._long.finditer(frame))


def _long_numbers(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The places where runs of at least `LONG` digits and points begin, without those of times in nanoseconds."""
    held = _sevens(data)
    if not len(held):
        return held
    edge = np.flatnonzero(held[1:] - held[:-1] > 2)
    starts, ends = held[np.append(0, edge + 1)], held[np.append(edge, len(held) - 1)] + 14
    # Runs were found in pairs of bytes, so a run may have one more byte at either end.
    starts = starts - (_marked(data[np.maximum(starts - 1, 0)]) & (starts > 0))
    ends = ends + (_marked(data[np.minimum(ends, len(data) - 1)]) & (ends < len(data)))
    starts = starts[ends - starts >= LONG]
    outside_times: npt.NDArray[np.int64] = starts[~_after_time_key(data, starts)]
    return outside_times


def _sevens(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The even places where seven pairs of bytes begin that are all digits or points.

    Every run that is long enough contains seven such pairs, wherever it begins. A time in milliseconds contains at most six. The data is
    searched piece by piece, and each piece is small enough for the processor's cache."""
    above = np.empty(min(len(data), _PIECE + 14), np.uint8)
    places = []
    for begin in range(0, len(data), _PIECE):
        some = data[begin : begin + _PIECE + 14]
        some = some[: len(some) // 2 * 2]
        np.subtract(some, _FIRST, out=above[: len(some)])
        pairs = (above[: len(some)] <= _SPAN).view(np.uint16) == _PAIR
        pairs = pairs[:-1] & pairs[1:]
        pairs = pairs[:-2] & pairs[2:]
        pairs = pairs[:-3] & pairs[3:]
        if pairs.any():
            places.append(2 * np.flatnonzero(pairs) + begin)
    return np.concatenate(places) if places else np.zeros(0, np.int64)


def _marked(some: npt.NDArray[np.uint8]) -> Marks:
    return (some - _FIRST) <= _SPAN


def _after_time_key(data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]) -> Marks:
    """Which of the places directly follow the key of a time in nanoseconds."""
    words = np.ndarray((len(data) - 3,), np.dtype("<u4"), data, strides=(1,))
    follows: Marks = (words[np.maximum(starts - 4, 0)] == _TIME_KEY) & (starts >= 4)
    return follows
