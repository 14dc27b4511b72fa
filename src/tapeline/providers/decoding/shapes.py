"""Reads frames that differ only in a few values straight into columns, without a Python object for each frame.

A `Shape` is the text of such a frame, with `<kind:name>` in place of each value. Reading checks every byte of many frames at once, eight
bytes to a machine word. A fixed part must be equal, and a value must be written as its kind says. If any byte of a frame differs, the
ordinary decoder reads the frame instead. So this is only a faster way to the same result.

    <text:s>     up to 16 characters of [A-Za-z0-9], before a quotation mark
    <int:t>      an integer from 0, at most 16 digits, before a comma
    <decimal:p>  one to seven digits, a point, exactly eight digits, before a quotation mark
    <bool:m>     true or false

A decimal becomes the nearest float64: its digits, at most fifteen, are an exact integer, and the one division by 10^8 rounds once.
Eight digits at a time become a number by the well-known method of three multiplications.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]
Mask: TypeAlias = npt.NDArray[np.bool_]
#: The values of many frames, by the names in the shape.
Fields: TypeAlias = Mapping[str, pa.Array]

_U: Final = np.uint64
_ONES: Final = _U(0x0101010101010101)
_HIGHS: Final = _U(0x8080808080808080)
_DIGITS: Final = _U(0x3030303030303030)
_OVER_NINE: Final = _U(0x7676767676767676)
_ALL: Final = _U(0xFFFFFFFFFFFFFFFF)
_POWERS: Final = 10 ** np.arange(9, dtype=np.uint64)
_PIECE: Final = re.compile(r"<(text|int|decimal|bool):(\w+)>")
#: No shape is longer than this. Reading may run this far past the end of a frame that is shorter than its shape.
_PAD: Final = 1024
_PLAIN: Final = re.compile(rb"[A-Za-z0-9]+")


class Text:
    """The bytes of many frames, one after the other. They can be read as 8-byte words that start at any byte."""

    def __init__(self, payload: pa.BinaryArray) -> None:
        n = len(payload)
        offsets = np.frombuffer(payload.buffers()[1], np.int32)[payload.offset : payload.offset + n + 1].astype(np.int64)
        data = payload.buffers()[2]
        held = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if n and data is not None else np.zeros(0, np.uint8)
        padded = np.zeros(len(held) + _PAD, np.uint8)
        padded[: len(held)] = held
        self.starts: Ints = offsets[:-1] - offsets[0]
        self.ends: Ints = offsets[1:] - offsets[0]
        self._words: Words = np.ndarray((len(padded) - 7,), np.dtype("<u8"), padded, strides=(1,))

    def at(self, where: Ints) -> Words:
        """Return the little-endian 8-byte words that start at the byte offsets `where`. A word may run on into the next frame.

        An offset may lie up to 1,016 bytes behind the last frame. The bytes there are zero.
        """
        words: Words = self._words[where]
        return words


class Shape:
    """The text of a frame with the places of its values. `read` turns many such frames into columns."""

    def __init__(self, template: str) -> None:
        self._steps: list[Callable[[_Reading], None]] = []
        at = 0
        for piece in _PIECE.finditer(template):
            self._literal(template[at : piece.start()])
            self._steps.append(_KINDS[piece[1]](piece[2]))
            at = piece.end()
        self._literal(template[at:])

    def _literal(self, text: str) -> None:
        if text:
            self._steps.append(_literal(text.encode()))

    def read(self, text: Text, where: Ints, ends: Ints) -> tuple[Mask, Callable[[Mask], Fields]]:
        """Check which frames have this shape between the bytes `where` and `ends`.

        Returns a mask of these frames, and a function from a mask of frames to their values."""
        reading = _Reading(text, where.copy())
        for step in self._steps:
            step(reading)
        fine = reading.fine & (reading.where == ends)
        return fine, lambda keep: {name: value(keep) for name, value in reading.values.items()}


class _Reading:
    """The state of reading: how far each frame has been read, which frames still match, and the values so far."""

    def __init__(self, text: Text, where: Ints) -> None:
        self.text = text
        self.where = where
        self.fine: Mask = np.ones(len(where), bool)
        self.values: dict[str, Callable[[Mask], pa.Array]] = {}


def _literal(expected: bytes) -> Callable[[_Reading], None]:
    """A step that compares fixed bytes, one word at a time. Of the last word it compares only the bytes that are left."""
    parts: list[tuple[int, np.uint64, np.uint64]] = []
    for at in range(0, len(expected), 8):
        some = expected[at : at + 8]
        mask = _ALL if len(some) == 8 else _U((1 << (8 * len(some))) - 1)
        parts.append((at, mask, _U(int.from_bytes(some, "little"))))

    def step(reading: _Reading) -> None:
        for at, mask, value in parts:
            word = reading.text.at(reading.where + at)
            reading.fine &= (word if mask == _ALL else word & mask) == value
        reading.where += len(expected)

    return step


def _find(word: Words, byte: int) -> Ints:
    """The place (0 to 7) of the first such byte in each word; 8 if there is none."""
    other = word ^ (_ONES * _U(byte))
    hit = (other - _ONES) & ~other & _HIGHS
    place: Ints = (np.bitwise_count(hit ^ (hit - _U(1))) >> 3).astype(np.int64) - (hit != 0)
    return place


def _leading(word: Words, count: Ints) -> Words:
    """The first `count` (1 to 8) characters, moved to the end of the word, with the character "0" before them."""
    shift = ((8 - count) << 3).astype(np.uint64)
    return (word << shift) | (_DIGITS & ~(_ALL << shift))


def _number(word: Words) -> tuple[Words, Mask]:
    """The value of each word's eight digits, and a mask of the words whose eight characters are all digits."""
    digit = word ^ _DIGITS
    fine = ((digit + _OVER_NINE) | digit) & _HIGHS == 0
    digit = (digit * _U(2561)) >> _U(8)
    digit = ((digit & _U(0x00FF00FF00FF00FF)) * _U(6553601)) >> _U(16)
    return ((digit & _U(0x0000FFFF0000FFFF)) * _U(42949672960001)) >> _U(32), fine


def _int(name: str) -> Callable[[_Reading], None]:
    comma, zero = ord(","), _U(ord("0"))

    def step(reading: _Reading) -> None:
        first, second = reading.text.at(reading.where), reading.text.at(reading.where + 8)
        length = _find(first, comma)
        long = length == 8
        rest = np.where(long, _find(second, comma), 0)
        high, high_fine = _number(_leading(first, np.maximum(length, 1)))
        low, low_fine = _number(np.where(rest > 0, _leading(second, np.maximum(rest, 1)), _DIGITS))
        padded = (first & _U(0xFF) == zero) & (length > 1)  # JSON does not allow leading zeros
        reading.fine &= high_fine & low_fine & (length > 0) & (rest < 8) & ~padded
        value = (high * _POWERS[rest] + low).astype(np.int64)
        reading.values[name] = lambda keep: pa.array(value[keep])
        reading.where += length + rest

    return step


def _decimal(name: str) -> Callable[[_Reading], None]:
    point = ord(".")

    def step(reading: _Reading) -> None:
        first = reading.text.at(reading.where)
        length = _find(first, point)
        whole, whole_fine = _number(_leading(first, np.maximum(length, 1)))
        part, part_fine = _number(reading.text.at(reading.where + length + 1))
        reading.fine &= whole_fine & part_fine & (length > 0) & (length < 8)
        value = (whole * _POWERS[8] + part).astype(np.int64) / 1e8
        reading.values[name] = lambda keep: pa.array(value[keep])
        reading.where += length + 9

    return step


def _bool(name: str) -> Callable[[_Reading], None]:
    true, false = _U(int.from_bytes(b"true", "little")), _U(int.from_bytes(b"false", "little"))

    def step(reading: _Reading) -> None:
        word = reading.text.at(reading.where)
        is_true = word & _U(0xFFFFFFFF) == true
        reading.fine &= is_true | (word & _U(0xFFFFFFFFFF) == false)
        reading.values[name] = lambda keep: pa.array(is_true[keep])
        reading.where += 5 - is_true

    return step


def _text(name: str, end: int = ord('"')) -> Callable[[_Reading], None]:
    def step(reading: _Reading) -> None:
        first = reading.text.at(reading.where)
        length = _find(first, end)
        reading.fine &= length > 0
        first = _upto(first, length)
        second = rest = None
        if (length == 8).any():
            second = reading.text.at(reading.where + 8)
            rest = np.where(length == 8, _find(second, end), 0)
            reading.fine &= rest < 8
            second = _upto(second, rest)
        codes, known = _encode(first, second)
        reading.fine &= np.array([text is not None for text in known], bool)[codes]
        names = pa.array([text or "" for text in known], pa.string())
        reading.values[name] = lambda keep: pa.DictionaryArray.from_arrays(pa.array(codes[keep]), names)
        reading.where += length if rest is None else length + rest

    return step


def _upto(word: Words, count: Ints) -> Words:
    """The first `count` (0 to 8) characters, with zero bytes after them."""
    kept: Words = np.where(count > 0, word & (_ALL >> ((8 - np.maximum(count, 1)) << 3).astype(np.uint64)), 0)
    return kept


def _encode(first: Words, second: Words | None) -> tuple[npt.NDArray[np.int64], list[str | None]]:
    """A code for each pair of words, and the text of each code; None for a text that is not plain letters and digits."""
    low = pa.array(first).dictionary_encode()
    if second is not None and second.any():
        high = pa.array(second).dictionary_encode()
        both = pa.array(low.indices.to_numpy().astype(np.int64) * len(high.dictionary) + high.indices.to_numpy()).dictionary_encode()
        pairs = [divmod(code, len(high.dictionary)) for code in both.dictionary.to_pylist()]
        words = [(low.dictionary[a].as_py(), high.dictionary[b].as_py()) for a, b in pairs]
        codes = both.indices
    else:
        words = [(word, 0) for word in low.dictionary.to_pylist()]
        codes = low.indices
    texts = [(a.to_bytes(8, "little") + b.to_bytes(8, "little")).rstrip(b"\0") for a, b in words]
    return codes.to_numpy().astype(np.int64), [text.decode() if _PLAIN.fullmatch(text) else None for text in texts]


_KINDS: Final[dict[str, Callable[[str], Callable[[_Reading], None]]]] = {
    "text": _text,
    "int": _int,
    "decimal": _decimal,
    "bool": _bool,
}


_HEAD: Final = _literal(b'{"stream":"')
_STREAM_SYMBOL: Final = _text("symbol", ord("@"))


class CombinedShapes:
    """Shapes of `{"stream":"<symbol>@<channel>","data":{...}}`. The channel's name decides which shape a frame is checked against."""

    def __init__(self, shapes: Mapping[str, str]) -> None:
        """`shapes`: channel to the rest of the frame's text from the channel's name on: `trade","data":{...}}`."""
        self._shapes = {f"@{channel}": Shape(f"@{template}") for channel, template in shapes.items()}
        self._heads = {
            name: (_U((1 << (8 * min(8, len(name)))) - 1) if len(name) < 8 else _ALL, _U(int.from_bytes(name.encode()[:8], "little")))
            for name in self._shapes
        }

    def read(self, payload: pa.BinaryArray, rows: Ints | None) -> tuple[list[tuple[str, Ints, Fields]], Ints]:
        """(channel, rows, values) for the frames that have a shape, and the rows of all other frames. `rows` None means all rows."""
        text = Text(payload)
        some = np.arange(len(payload)) if rows is None else rows
        head = _Reading(text, text.starts[some])
        _HEAD(head)
        _STREAM_SYMBOL(head)
        name = text.at(head.where)
        left: Mask = np.ones(len(some), bool)
        shaped: list[tuple[str, Ints, Fields]] = []
        for channel, shape in self._shapes.items():
            mask, value = self._heads[channel]
            mine = np.flatnonzero(head.fine & (name & mask == value))
            if not len(mine):
                continue
            fine, values = shape.read(text, head.where[mine], text.ends[some[mine]])
            if fine.any():
                chosen = mine[fine]
                left[chosen] = False
                shaped.append((channel[1:], some[chosen], values(fine)))
        return shaped, some[left]
