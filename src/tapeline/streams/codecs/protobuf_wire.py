"""The wire format of one message: its fields and tags, and the rewriting of another program's message into our field order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import pyarrow as pa

from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Topic

#: The message and columns of each topic. A column's place, counted from 1, is its field's number. Only ever add columns at an end.
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
#: Columns whose fields have another name.
NAMES: Final = {"ts_ns": "timestamp_ns", "last": "last_price"}
#: The .proto type for each column type.
TYPES: Final = {
    pa.float64(): "double",
    pa.int64(): "sfixed64",
    pa.int32(): "sfixed32",
    pa.bool_(): "bool",
    pa.string(): "string",
    pa.binary(): "bytes",
}

#: The wire types.
VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)
_WIRE: Final = {"double": FIXED64, "sfixed64": FIXED64, "sfixed32": FIXED32, "bool": VARINT, "string": LENGTH, "bytes": LENGTH}
_MOST_NESTED: Final = 100


@dataclass(frozen=True, slots=True)
class Field:
    """One column and how it appears on the wire."""

    column: str
    name: str
    number: int
    kind: str  # the .proto type
    wire: int
    tag: bytes


@lru_cache
def fields(topic: Topic) -> tuple[Field, ...]:
    """Return the fields of a topic's messages, in the order of their numbers."""
    found = []
    for number, column in enumerate(MESSAGES[topic][1], 1):
        kind = TYPES[topic.schema.field(column).type]
        found.append(Field(column, NAMES.get(column, column), number, kind, _WIRE[kind], varint_of(number << 3 | _WIRE[kind])))
    return tuple(found)


def rewritten(topic: Topic, message: bytes) -> bytes:
    """Return the message with only the known fields, each once, in the order of their numbers.

    Raises ValueError that says why the bytes are not a valid message.
    """
    known = {field.number: field for field in fields(topic)}
    last: dict[int, bytes] = {}
    at = 0
    while at < len(message):
        number, wire, start = read_tag(message, at)
        if wire == END_GROUP:
            raise ValueError(f"the end of a group that did not begin, at byte {at}")
        begin, at = value_of(message, number, wire, start)
        field = known.get(number)
        if field is None or field.wire != wire:
            continue
        value = bytes(message[begin:at])
        if field.kind == "bool":
            value = bytes([read_varint(value, 0)[0] > 0])
        elif field.kind == "string":
            check_text(field, value)
        last[number] = field.tag + (varint_of(len(value)) if wire == LENGTH else b"") + value
    return b"".join(last[number] for number in sorted(last))


def check_text(field: Field, value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"field {field.name} is not UTF-8: {error.reason}") from None


def read_tag(message: bytes, at: int) -> tuple[int, int, int]:
    """Return the field number, the wire type and the index after the tag."""
    tag, start = read_varint(message, at, 5)
    number, wire = tag >> 3, tag & 7
    if not 0 < number < 1 << 29 or wire > FIXED32:
        raise ValueError(f"no tag at byte {at}")
    return number, wire, start


def value_of(message: bytes, number: int, wire: int, at: int, depth: int = 0) -> tuple[int, int]:
    """Return where the value that follows a tag begins and ends."""
    if wire == VARINT:
        return at, read_varint(message, at)[1]
    if wire == LENGTH:
        length, at = read_varint(message, at, 5)
        end = at + length
    elif wire == GROUP:
        end = group_end(message, number, at, depth + 1)
    else:
        end = at + (8 if wire == FIXED64 else 4)
    if end > len(message):
        raise ValueError(f"the value of field {number} at byte {at} ends {end - len(message)} bytes after the message")
    return at, end


def group_end(message: bytes, number: int, at: int, depth: int) -> int:
    if depth > _MOST_NESTED:
        raise ValueError(f"groups within groups, more than {_MOST_NESTED} deep")
    while True:
        inner, wire, at = read_tag(message, at)
        if wire == END_GROUP:
            if inner != number:
                raise ValueError(f"group {number} ends as group {inner}")
            return at
        at = value_of(message, inner, wire, at, depth)[1]


def read_varint(message: bytes, at: int, most: int = 10) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(message[at : at + most]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + place + 1
    raise ValueError(f"a number at byte {at} does not end")


def varint_of(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
