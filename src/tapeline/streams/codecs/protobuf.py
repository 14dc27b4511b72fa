"""The protobuf codec: encodes and decodes whole columns at a time, not one message after another.

A message consists of its fields in the order of their numbers; null fields are absent. Encoding joins, row by row, one column's pieces
(tag and value) to the next column's. Arrow does this for whole columns.

Decoding keeps a cursor for each message, and all cursors move together. For each field, it checks whether the tag under the cursor is
that field's. If so, it notes where the value is and steps over it. All common writers order fields by their numbers, and a later
version's new fields come last. A message may legally do otherwise: use another order, repeat a field, or hold longer numbers than
necessary. Such a message is first rewritten by itself, the slow way. Values are read only after that.

`proto/market_data.proto` describes the same messages to other languages. Tests keep the two in agreement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import Topic
from tapeline.streams.codecs.protobuf_wire import LENGTH, VARINT, Field, fields, rewritten

Ints: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

#: The value of an absent field in a column that is not nullable.
_DEFAULTS: Final = {kind: pa.scalar(0, kind) for kind in (pa.float64(), pa.int64(), pa.int32())} | {
    pa.bool_(): pa.scalar(False),
    pa.string(): pa.scalar(""),
    pa.binary(): pa.scalar(b""),
}

#: By wire type: whether a value can be skipped without reading into it, and its width in bytes if that is fixed.
_SKIPPED: Final = np.array([True, True, True, False, False, True, False, False])
_WIDTHS: Final = np.array([0, 8, 0, 0, 0, 4, 0, 0])
#: Up to this many fields of a later version are skipped in all messages at once. Beyond that, each message is handled by itself.
_MOST_NEWER: Final = 32
#: How a value of fixed width is encoded.
_FORMATS: Final = {"double": "<f8", "sfixed64": "<i8", "sfixed32": "<i4", "bool": "u1"}
#: A length of this many bytes (under 256 MiB) is read together with all others of its column.
_LENGTH_BYTES: Final = 4
_MOST_BYTES: Final = (1 << 31) - (1 << 20)
_NOTHING: Final = pa.scalar(b"")


# ---- encoding


def encode(topic: Topic, batch: pa.RecordBatch) -> list[bytes]:
    """Return one message for each row."""
    n = batch.num_rows
    if not n:
        return []
    joined = pc.binary_join_element_wise(*_pieces(topic, batch, n), _NOTHING, null_handling="skip")
    messages: list[bytes] = joined.to_numpy(zero_copy_only=False).tolist()
    return messages


def _pieces(topic: Topic, batch: pa.RecordBatch, n: int) -> Iterator[pa.Array]:
    """Yield the arrays from which each row's message is joined.

    Neighbouring parts are one array if they have the same width in every row and are null in the same rows.
    """
    run: list[tuple[str, Any]] = []  # each part's numpy type and its values
    where: bytes | None = None  # bitmap of the run's rows that are not null
    for field in fields(topic):
        column = batch.column(field.column)
        nulls = column.null_count
        if nulls == n:
            continue
        valid = _validity(column) if nulls else None
        if run and valid != where:
            yield _fixed(run, n, where)
            run = []
        where = valid
        run.append((f"<u{len(field.tag)}", int.from_bytes(field.tag, "little")))
        if field.wire != LENGTH:
            run.append((_FORMATS[field.kind], _values(column, field)))
            continue
        offsets = _held(column, np.dtype(np.int32), n + 1)
        lengths = offsets[1:] - offsets[:-1]
        least, most = int(lengths.min()), int(lengths.max())
        if most < 128:
            run.append(("u1", lengths))
            if least == most > 0:
                run.append((f"V{most}", np.frombuffer(column.buffers()[2], f"V{most}", n, int(offsets[0]))))
                continue
        yield _fixed(run, n, valid)
        run = []
        if most > 127:
            yield _varints(lengths, n, valid)
        if most:
            yield pa.Array.from_buffers(pa.binary(), n, column.buffers(), nulls, column.offset)
    if run:
        yield _fixed(run, n, where)


def _fixed(run: Sequence[tuple[str, Any]], n: int, valid: bytes | None) -> pa.Array:
    """Return the parts side by side, with the same number of bytes in each row, null where not valid."""
    layout = _layout(tuple([kind for kind, _ in run]))
    table = np.empty(n, layout)
    for name, (_, values) in zip(layout.names or (), run, strict=True):
        table[name] = values
    offsets = np.arange(n + 1, dtype=np.int32) * np.int32(layout.itemsize)
    return _texts(offsets, table, valid)


@lru_cache(1024)
def _layout(kinds: tuple[str, ...]) -> np.dtype[np.void]:
    return np.dtype([(f"p{at}", kind) for at, kind in enumerate(kinds)])


def _varints(values: npt.NDArray[np.int32], n: int, valid: bytes | None) -> pa.Array:
    rest = values[:, None] >> np.arange(0, 35, 7, dtype=np.int64)
    more = rest >> 7 > 0
    written = np.hstack([np.ones((n, 1), bool), more[:, :-1]])
    table = (rest & 0x7F | more << 7).astype(np.uint8)
    offsets = np.zeros(n + 1, np.int32)
    np.cumsum(written.sum(axis=1), out=offsets[1:])
    return _texts(offsets, table[written], valid)


def _texts(offsets: npt.NDArray[np.int32], data: npt.NDArray[Any], valid: bytes | None) -> pa.Array:
    some = None if valid is None else pa.py_buffer(valid)
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [some, pa.py_buffer(offsets), pa.py_buffer(data)])


def _values(column: pa.Array, field: Field) -> npt.NDArray[Any]:
    """Return the numbers of a column. They are arbitrary where the column is null."""
    return _held(column.cast(pa.uint8()) if field.kind == "bool" else column, np.dtype(_FORMATS[field.kind]), len(column))


def _held(column: pa.Array, kind: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """Return the numbers or offsets in a column's own memory, without a copy."""
    return np.frombuffer(column.buffers()[1], kind, count, column.offset * kind.itemsize)


def _validity(column: pa.Array) -> bytes:
    """Return a column's validity bitmap, starting at its own first row."""
    held = np.frombuffer(column.buffers()[0], np.uint8)
    if not column.offset:
        return held[: (len(column) + 7) // 8].tobytes()
    return _bitmap(np.unpackbits(held, bitorder="little")[column.offset : column.offset + len(column)])


def _bitmap(valid: npt.NDArray[Any]) -> bytes:
    return np.packbits(valid, bitorder="little").tobytes()


# ---- decoding


def decode(topic: Topic, messages: Sequence[bytes]) -> pa.RecordBatch:
    """Return one row for each message, with the topic's schema. Raises ValueError that says which message is invalid, and why."""
    if not len(messages):
        return pa.RecordBatch.from_pylist([], topic.schema)
    reading = _Reading(topic, messages)
    odd = np.flatnonzero(reading.where != reading.ends)
    if len(odd):
        plain = list(messages)
        for at in odd.tolist():
            plain[at] = _told(topic, at, messages[at])
        reading = _Reading(topic, plain)
        if (reading.where != reading.ends).any():
            raise ValueError(f"a text of {1 << (7 * _LENGTH_BYTES):,} bytes or more")
    try:
        return reading.batch()
    except pa.ArrowInvalid:
        for at, message in enumerate(messages):
            _told(topic, at, message)
        raise


def _told(topic: Topic, at: int, message: bytes) -> bytes:
    try:
        return rewritten(topic, message)
    except ValueError as error:
        raise ValueError(f"message {at}: {error}") from None


class _Reading:
    """A cursor for each message, moved over all fields in the order of their numbers.

    If a cursor does not reach its message's end, nothing read from that message counts.
    """

    def __init__(self, topic: Topic, messages: Sequence[bytes]) -> None:
        self._schema = topic.schema
        self._fields = fields(topic)
        n = len(messages)
        lengths = np.fromiter(map(len, messages), np.int64, n)
        # A zero byte stands between two messages. It is no tag, so no cursor reads past it. The zeros at the end leave room to run past
        # it.
        self._bytes = b"\0".join([*messages, bytes(160 * (len(self._fields) + 1))])
        if len(self._bytes) > _MOST_BYTES:
            raise ValueError(f"{len(self._bytes):,} bytes are too many at once")
        self._views: dict[str, npt.NDArray[Any]] = {}  # the bytes seen as numbers that may start at any byte
        self.ends: Ints = np.cumsum(lengths + 1) - 1
        self.where: Ints = self.ends - lengths
        self._out = int(self.ends[-1]) + 1  # an index at which no message ends
        self._every_second = pa.array(np.arange(0, 2 * n, 2))
        self._values: dict[str, tuple[Field, Mask, Any, Any]] = {}
        for field in self._fields:
            here = self._at(f"<u{len(field.tag)}", self.where) == int.from_bytes(field.tag, "little")
            step = self._text if field.wire == LENGTH else self._number
            if np.count_nonzero(here):
                step(field, here)
        if np.count_nonzero(self.where < self.ends):
            self._skip_newer()

    def _at(self, kind: str, where: Ints) -> npt.NDArray[Any]:
        """Return the values at these byte indexes."""
        view = self._views.get(kind)
        if view is None:
            size = len(self._bytes) - int(kind[-1]) + 1
            view = self._views[kind] = np.ndarray((size,), np.dtype(kind), self._bytes, strides=(1,))
        found: npt.NDArray[Any] = view[where]
        return found

    def _number(self, field: Field, here: Mask) -> None:
        kind = _FORMATS[field.kind]
        values = self._at(kind, self.where + len(field.tag))
        if kind == "u1":
            here &= values < 2
        self._values[field.column] = field, here, values, None
        self.where = self.where + here * (len(field.tag) + int(kind[-1]))

    def _text(self, field: Field, here: Mask) -> None:
        length, start, fine = self._varints(self.where + len(field.tag), here, _LENGTH_BYTES)
        here &= fine
        end = start + length
        if np.count_nonzero(here) < len(here):
            start, end = np.where(here, start, self.where), np.where(here, end, self.where)
        self._values[field.column] = field, here, start, end
        self.where = np.minimum(end, self._out)

    def _varints(self, start: Ints, some: Mask, most: int) -> tuple[Ints, Ints, Mask]:
        """Return the varints that start here in the rows `some`, the indexes after them, and which of them end within `most` bytes."""
        value = self._at("u1", start).astype(np.int64)
        after = start + 1
        more = some & (value > 127)
        if not np.count_nonzero(more):
            return value, after, ~more
        value &= 0x7F
        for at in range(1, most):
            byte = self._at("u1", after).astype(np.int64)
            value += np.where(more, (byte & 0x7F) << (7 * at), 0)
            after += more
            more &= byte > 127
        return value, after, ~more

    def _skip_newer(self) -> None:
        """Skip fields with higher numbers than the known ones. A later version writes them last."""
        for _ in range(_MOST_NEWER):
            rows = np.flatnonzero(self.where < self.ends)
            start = self.where[rows]
            tag, body, fine = self._varints(start, np.ones(len(rows), bool), _LENGTH_BYTES)
            wire = tag & 7
            fine &= (tag >> 3 > len(self._fields)) & _SKIPPED[wire]
            if not np.count_nonzero(fine):
                return
            is_text = wire == LENGTH
            value, after, ended = self._varints(body, fine & (is_text | (wire == VARINT)), 10)
            fine &= ended & ~(is_text & (value >> 31 != 0))
            end = np.where(is_text, after + value, np.where(wire == VARINT, after, body + _WIDTHS[wire]))
            self.where[rows] = np.where(fine, np.minimum(end, self._out), start)

    def batch(self) -> pa.RecordBatch:
        """Return the values as a batch. Call it once every cursor has reached its end."""
        return pa.RecordBatch.from_arrays([self._column(column) for column in self._schema], schema=self._schema)

    def _column(self, column: pa.Field) -> pa.Array:
        n = len(self.ends)
        if column.name not in self._values:
            return pa.nulls(n, column.type) if column.nullable else pa.repeat(_DEFAULTS[column.type], n)
        field, here, found, end = self._values[column.name]
        whole = np.count_nonzero(here) == n
        valid = None if whole or not column.nullable else pa.py_buffer(_bitmap(here))
        if field.wire == LENGTH:
            return self._texts(column, found, end, valid)
        values = found if whole else np.where(here, found, 0)
        data = pa.py_buffer(_bitmap(values) if field.kind == "bool" else values)
        return pa.Array.from_buffers(column.type, n, [valid, data])

    def _texts(self, column: pa.Field, start: Ints, end: Ints, valid: pa.Buffer | None) -> pa.Array:
        """Return the bytes from each start to its end.

        All starts and ends cut the bytes into pieces, and every second piece is a text.
        """
        n = len(start)
        cuts = np.empty(2 * n, np.int32)
        cuts[0::2], cuts[1::2] = start, end
        pieces = pa.Array.from_buffers(column.type, 2 * n - 1, [None, pa.py_buffer(cuts), pa.py_buffer(self._bytes)])
        texts = pieces.take(self._every_second)
        texts.validate(full=True)
        return texts if valid is None else pa.Array.from_buffers(column.type, n, [valid, *texts.buffers()[1:]])
