"""The protobuf codec: a batch's rows as messages of `proto/market_data.proto`, and messages as a batch.

ptars moves whole columns at a time, so no Python object is made for a message. docs/decisions/0021-ptars.md has the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

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


@dataclass(frozen=True, slots=True)
class Field:
    """One column and its field in the .proto."""

    column: str
    name: str
    number: int
    kind: str  # the .proto type
    optional: bool


@lru_cache
def fields(topic: Topic) -> tuple[Field, ...]:
    """Return the fields of a topic's messages, in the order of their numbers."""
    result = []
    for number, name in enumerate(MESSAGES[topic][1], 1):
        column = topic.schema.field(name)
        result.append(Field(name, NAMES.get(name, name), number, TYPES[column.type], column.nullable))
    return tuple(result)


class _Handler(Protocol):
    """What ptars makes of a message's description. It is compiled, and says no types."""

    def list_to_record_batch(self, messages: list[bytes]) -> pa.RecordBatch: ...

    def record_batch_to_array(self, batch: pa.RecordBatch) -> pa.BinaryArray: ...


def encode(topic: Topic, batch: pa.RecordBatch) -> list[bytes]:
    """Return one message for each row. Null is absent. A zero in a column that is not nullable is absent too, -0.0 included."""
    messages: list[bytes] = _handler(topic).record_batch_to_array(batch).to_pylist()
    return messages


def decode(topic: Topic, messages: Sequence[bytes]) -> pa.RecordBatch:
    """Return one row for each message, with the topic's schema. Raises ValueError that says which message is invalid, and why."""
    handler = _handler(topic)
    try:
        batch = handler.list_to_record_batch([*messages])
    except ValueError:
        for at, message in enumerate(messages):
            try:
                handler.list_to_record_batch([message])
            except ValueError as error:
                raise ValueError(f"message {at}: {error}") from None
        raise
    return pa.RecordBatch.from_arrays([batch.column(name) for name in topic.schema.names], schema=topic.schema)


@lru_cache
def _handler(topic: Topic) -> _Handler:
    """Return what reads and writes a topic's messages. Its fields have the columns' names: names do not travel.

    The imports are here because most processes use the embedded stream, which needs none of this.
    """
    from google.protobuf import descriptor_pool
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
    from ptars import HandlerPool

    file = FileDescriptorProto(name="market_data.proto", package="tapeline.v1", syntax="proto3")
    message = file.message_type.add(name=MESSAGES[topic][0])
    for field in fields(topic):
        kind = FieldDescriptorProto.Type.Value(f"TYPE_{field.kind.upper()}")
        made = message.field.add(name=field.column, number=field.number, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL)
        if field.optional:  # proto3 describes such a field as the only one of a oneof
            made.proto3_optional, made.oneof_index = True, len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field.column}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    described = pool.FindMessageTypeByName(f"{file.package}.{message.name}")
    handler: _Handler = HandlerPool([described.file]).get_for_message(described)
    return handler
