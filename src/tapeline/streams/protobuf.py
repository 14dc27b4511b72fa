"""Batches as protobuf messages and back, a column at a time: every field of all messages is placed at once, at its own offset in each.

A message is its fields one after the other, in the order of their numbers; fields that are null are absent. So writing is joining, row
by row, one column's pieces (tag and value) to the next one's, which Arrow does for whole columns. Reading is a cursor for each message,
and all cursors move together: is the tag under the cursor this field's? Then note where the value is, and step over it. All writers of
note order fields by their numbers; a message that does not (or holds unknown or repeated fields, or longer numbers than need be, all of
which is legal) is first rewritten by itself, the slow way, into the one that does. Only then are values read.

`proto/market_data.proto` describes the same messages to other languages; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Topic

Ints: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

#: Message and columns of each topic: a column's place, from 1, is its field's number. Only ever add at an end.
MESSAGES: Final[dict[Topic, tuple[str, tuple[str, ...]]]] = {
    topic: (message, tuple(columns.split()))
    for topic, message, columns in (
        (
            TICKS_TOPIC,
            "MarketData",
            "symbol ts_ns bid ask last volume kind bid_size ask_size side exchange provider feed channel sequence trade_id conditions"
            " received_ns latency_ns raw_partition raw_offset raw_index",
        ),
        (
            BARS_TOPIC,
            "Bar",
            "symbol ts_ns interval open high low close volume vwap trades final exchange provider feed channel received_ns latency_ns"
            " raw_partition raw_offset raw_index",
        ),
        (NOTICES_TOPIC, "Notice", "symbol ts_ns kind detail provider feed connection received_ns raw_partition raw_offset raw_index"),
        (REJECTED_TOPIC, "Rejected", "reason payload provider feed connection received_ns raw_partition raw_offset raw_index"),
    )
}
#: Columns whose fields are named otherwise.
NAMES: Final = {"ts_ns": "timestamp_ns", "last": "last_price"}
#: The .proto's type of a column's type.
TYPES: Final = {
    pa.float64(): "double",
    pa.int64(): "sfixed64",
    pa.int32(): "sfixed32",
    pa.bool_(): "bool",
    pa.string(): "string",
    pa.binary(): "bytes",
}

#: What an absent field means where the column knows no null.
_DEFAULTS: Final = {kind: pa.scalar(0, kind) for kind in (pa.float64(), pa.int64(), pa.int32())} | {
    pa.bool_(): pa.scalar(False),
    pa.string(): pa.scalar(""),
    pa.binary(): pa.scalar(b""),
}

_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = range(6)
_WIRE: Final = {"double": _FIXED64, "sfixed64": _FIXED64, "sfixed32": _FIXED32, "bool": _VARINT, "string": _LENGTH, "bytes": _LENGTH}
#: How a value of fixed width is written.
_FORMATS: Final = {"double": "<f8", "sfixed64": "<i8", "sfixed32": "<i4", "bool": "u1"}
#: A length in this many bytes is read with all others of its column: under 256 MiB.
_LENGTH_BYTES: Final = 4
_MOST_BYTES: Final = (1 << 31) - (1 << 20)
_MOST_NESTED: Final = 100


@dataclass(frozen=True, slots=True)
class Field:
    """One column and its place on the wire."""

    column: str
    name: str
    number: int
    kind: str  # the .proto's type
    wire: int
    tag: bytes


@lru_cache
def fields(topic: Topic) -> tuple[Field, ...]:
    """The fields of a topic's messages, by their numbers."""
    found = []
    for number, column in enumerate(MESSAGES[topic][1], 1):
        kind = TYPES[topic.schema.field(column).type]
        found.append(Field(column, NAMES.get(column, column), number, kind, _WIRE[kind], _varint(number << 3 | _WIRE[kind])))
    return tuple(found)


# ---- writing


def encode(topic: Topic, batch: pa.RecordBatch) -> list[bytes]:
    """One message a row."""
    n = batch.num_rows
    if not n:
        return []
    joined = pc.binary_join_element_wise(*_pieces(topic, batch, n), b"", null_handling="skip")
    messages: list[bytes] = joined.to_numpy(zero_copy_only=False).tolist()
    return messages


def _pieces(topic: Topic, batch: pa.RecordBatch, n: int) -> Iterator[pa.Array]:
    """What each row's message is joined from; neighbours that no row lacks and that are as wide in each row are one piece."""
    run: list[tuple[str, Any]] = []  # how a part is written, and its values
    for field in fields(topic):
        column = batch.column(field.column)
        if column.null_count == n:
            continue
        valid = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
        if valid is not None and run:
            yield _fixed(run, n)
            run = []
        run.append(_constant(field.tag))
        if field.wire != _LENGTH:
            run.append((_FORMATS[field.kind], _values(column)))
            if valid is not None:
                yield _fixed(run, n, valid)
                run = []
            continue
        lengths = np.diff(_offsets(column))
        if lengths.max() < 128:
            run.append(("u1", lengths))
            yield _fixed(run, n, valid)
        else:
            yield _fixed(run, n, valid)
            yield _varints(lengths, n, valid)
        run = []
        yield column.cast(pa.binary())
    if run:
        yield _fixed(run, n)


def _fixed(run: Sequence[tuple[str, Any]], n: int, valid: Mask | None = None) -> pa.Array:
    """The parts side by side, as many bytes in each row; null where not valid."""
    layout = _layout(tuple(kind for kind, _ in run))
    table = np.empty(n, layout)
    for name, (_, values) in zip(layout.names or (), run, strict=True):
        table[name] = values
    width = layout.itemsize
    offsets = np.arange(n + 1, dtype=np.int32) * np.int32(width)
    return pa.Array.from_buffers(pa.binary(), n, [None if valid is None else _bitmap(valid), pa.py_buffer(offsets), pa.py_buffer(table)])


@lru_cache(1024)
def _layout(kinds: tuple[str, ...]) -> np.dtype[np.void]:
    return np.dtype([(f"p{at}", kind) for at, kind in enumerate(kinds)])


def _constant(some: bytes) -> tuple[str, int]:
    return f"<u{len(some)}", int.from_bytes(some, "little")


def _varints(values: Ints, n: int, valid: Mask | None) -> pa.Array:
    """Numbers under 2^35 as varints."""
    shifts = np.arange(0, 35, 7)
    rest = values[:, None] >> shifts
    more = rest >> 7 > 0
    written = np.hstack([np.ones((n, 1), bool), more[:, :-1]])
    if valid is not None:
        written &= valid[:, None]
    table = (rest & 0x7F | more << 7).astype(np.uint8)
    offsets = np.zeros(n + 1, np.int32)
    np.cumsum(written.sum(axis=1), out=offsets[1:])
    return pa.Array.from_buffers(pa.binary(), n, [None, pa.py_buffer(offsets), pa.py_buffer(table[written])])


def _values(column: pa.Array) -> npt.NDArray[Any]:
    """The numbers of a column, anything where it is null."""
    column = column.cast(pa.uint8()) if column.type == pa.bool_() else column
    kind = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1], kind)[column.offset : column.offset + len(column)]


def _offsets(column: pa.Array) -> Ints:
    held = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    return held.astype(np.int64)


def _bitmap(valid: Mask) -> pa.Buffer:
    return pa.py_buffer(np.packbits(valid, bitorder="little"))


# ---- reading


def decode(topic: Topic, messages: Sequence[bytes]) -> pa.RecordBatch:
    """One row a message, of the topic's schema; a ValueError says which message is none, and why."""
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
    """A cursor for each message, moved over every field in the order of their numbers; one that does not reach its end read nothing."""

    def __init__(self, topic: Topic, messages: Sequence[bytes]) -> None:
        self._schema = topic.schema
        self._fields = fields(topic)
        n = len(messages)
        lengths = np.fromiter(map(len, messages), np.int64, n)
        # Between two messages stands a zero: no tag, so no cursor reads on. The end leaves room to run past it.
        self._bytes = b"\0".join([*messages, bytes(160 * (len(self._fields) + 1))])
        if len(self._bytes) > _MOST_BYTES:
            raise ValueError(f"{len(self._bytes):,} bytes are too many at once")
        self.ends: Ints = np.cumsum(lengths + 1) - 1
        self.where: Ints = self.ends - lengths
        self._values: dict[str, tuple[Field, Mask, Any, Any]] = {}
        for field in self._fields:
            here = self._at(f"<u{len(field.tag)}", self.where) == int.from_bytes(field.tag, "little")
            step = self._text if field.wire == _LENGTH else self._number
            if here.any():
                step(field, here)

    def _at(self, kind: str, where: Ints) -> npt.NDArray[Any]:
        """The values that stand at these bytes."""
        size = int(kind[-1])
        view = np.ndarray((len(self._bytes) - size + 1,), np.dtype(kind), self._bytes, strides=(1,))
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
        start = self.where + len(field.tag)
        length = self._at("u1", start).astype(np.int64)
        start += 1
        if ((length > 127) & here).any():
            more = here & (length > 127)
            length &= 0x7F
            for at in range(1, _LENGTH_BYTES):
                byte = self._at("u1", start).astype(np.int64)
                length += np.where(more, (byte & 0x7F) << (7 * at), 0)
                start += more
                more &= byte > 127
            here &= ~more
        start = np.where(here, start, self.where)
        end = np.where(here, start + length, self.where)
        self._values[field.column] = field, here, start, end
        self.where = np.minimum(end, self.ends[-1] + 1)

    def batch(self) -> pa.RecordBatch:
        """The values, once every cursor has reached its end."""
        return pa.RecordBatch.from_arrays([self._column(column) for column in self._schema], schema=self._schema)

    def _column(self, column: pa.Field) -> pa.Array:
        n = len(self.ends)
        if column.name not in self._values:
            return pa.nulls(n, column.type) if column.nullable else pa.repeat(_DEFAULTS[column.type], n)
        field, here, found, end = self._values[column.name]
        whole = bool(here.all())
        valid = None if whole or not column.nullable else _bitmap(here)
        if field.wire == _LENGTH:
            return self._texts(column, found, end, valid)
        values = found if whole else np.where(here, found, 0)
        data = _bitmap(values.astype(bool)) if field.kind == "bool" else pa.py_buffer(values)
        return pa.Array.from_buffers(column.type, n, [valid, data])

    def _texts(self, column: pa.Field, start: Ints, end: Ints, valid: pa.Buffer | None) -> pa.Array:
        """The bytes from starts to ends: every second one of the pieces that all these places cut the whole into."""
        n = len(start)
        cuts = np.empty(2 * n, np.int32)
        cuts[0::2], cuts[1::2] = start, end
        pieces = pa.Array.from_buffers(column.type, 2 * n - 1, [None, pa.py_buffer(cuts), pa.py_buffer(self._bytes)])
        texts = pieces.take(pa.array(np.arange(0, 2 * n, 2)))
        texts.validate(full=True)
        return texts if valid is None else pa.Array.from_buffers(column.type, n, [valid, *texts.buffers()[1:]])


# ---- one message by itself


def rewritten(topic: Topic, message: bytes) -> bytes:
    """The message with only the known fields, each once, in the order of their numbers; a ValueError says why it is none."""
    known = {field.number: field for field in fields(topic)}
    last: dict[int, bytes] = {}
    at = 0
    while at < len(message):
        number, wire, start = _read_tag(message, at)
        if wire == _END_GROUP:
            raise ValueError(f"the end of a group that did not begin, at byte {at}")
        begin, at = _value(message, number, wire, start)
        field = known.get(number)
        if field is None or field.wire != wire:
            continue
        value = bytes(message[begin:at])
        if field.kind == "bool":
            value = bytes([_read_varint(value, 0)[0] > 0])
        elif field.kind == "string":
            _check_text(field, value)
        last[number] = field.tag + (_varint(len(value)) if wire == _LENGTH else b"") + value
    return b"".join(last[number] for number in sorted(last))


def _check_text(field: Field, value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"field {field.name} is not UTF-8: {error.reason}") from None


def _read_tag(message: bytes, at: int) -> tuple[int, int, int]:
    """Number, wire type, and the place after the tag."""
    tag, start = _read_varint(message, at, 5)
    number, wire = tag >> 3, tag & 7
    if not 0 < number < 1 << 29 or wire > _FIXED32:
        raise ValueError(f"no tag at byte {at}")
    return number, wire, start


def _value(message: bytes, number: int, wire: int, at: int, depth: int = 0) -> tuple[int, int]:
    """Where the value that follows a tag begins and ends."""
    if wire == _VARINT:
        return at, _read_varint(message, at)[1]
    if wire == _LENGTH:
        length, at = _read_varint(message, at)
        end = at + length
    elif wire == _GROUP:
        end = _group_end(message, number, at, depth + 1)
    else:
        end = at + (8 if wire == _FIXED64 else 4)
    if end > len(message):
        raise ValueError(f"the value of field {number} at byte {at} ends {end - len(message)} bytes after the message")
    return at, end


def _group_end(message: bytes, number: int, at: int, depth: int) -> int:
    if depth > _MOST_NESTED:
        raise ValueError(f"groups within groups, more than {_MOST_NESTED} deep")
    while True:
        inner, wire, at = _read_tag(message, at)
        if wire == _END_GROUP:
            if inner != number:
                raise ValueError(f"group {number} ends as group {inner}")
            return at
        at = _value(message, inner, wire, at, depth)[1]


def _read_varint(message: bytes, at: int, most: int = 10) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(message[at : at + most]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + place + 1
    raise ValueError(f"a number at byte {at} does not end")


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
