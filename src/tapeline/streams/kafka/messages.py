"""Batches as Kafka messages, and messages as chunks: what a position is, and what each codec makes of a batch."""

from __future__ import annotations

import json
import logging
import time
import zlib
from base64 import b85decode, b85encode
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tapeline.records import Chunk, Topic
from tapeline.streams import arrow, codecs, protobuf
from tapeline.streams.kafka.cluster import ASK_S, Cluster
from tapeline.streams.partitioning import partitions_of, split

log = logging.getLogger(__name__)

#: Rows in a message are counted in so many bits of a position.
ROW_BITS: Final = 20
#: Texts of more bytes are compressed: a broker takes 4 KiB of metadata with an offset.
_METADATA_BYTES: Final = 3_500


def place(message: Message) -> tuple[int, int]:
    """Partition and offset of a message that has come from a broker."""
    partition, offset = message.partition(), message.offset()
    assert partition is not None, "a message that came has a place"
    assert offset is not None
    return partition, offset


def chunk_of(topic: Topic, messages: Sequence[Message], begin: Mapping[int, int]) -> Chunk:
    """Messages as one chunk, those of each partition in order."""
    places = [place(message) for message in messages]
    values = [message.value() or b"" for message in messages]
    batch, counts = codecs.decode(topic, values, lambda at: f"The message at offset {places[at][1]} of partition {places[at][0]}")
    partition = np.repeat(np.array([some for some, _ in places], np.int32), counts)
    offset = np.repeat(np.array([some for _, some in places], np.int64), counts) << ROW_BITS
    rows = np.array(counts, np.int64)
    first = np.repeat(np.cumsum(rows) - rows, rows)  # of each row's message
    ends = dict(begin) | {some: (at + 1) << ROW_BITS for some, at in places}
    return Chunk(topic, batch, partition, offset + np.arange(len(offset), dtype=np.int64) - first, dict(begin), ends)


def produce(producer: Producer, topic: Topic, batch: pa.RecordBatch, cluster: Cluster) -> None:
    """One batch to its topic, by its codec: a message for each record, or for each partition."""
    count = cluster.count(topic)
    if cluster.codec(topic) == "arrow":
        for partition, part in split(topic, batch, count):
            _put(producer, cluster.name(topic), [{"value": bytes(arrow.encode(piece))} for piece in arrow.pieces(part)], partition)
        return
    values = protobuf.encode(topic, batch)
    keys = [key.encode() for key in batch[topic.key].to_pylist()]
    where = partitions_of(topic, batch, count)
    for partition in np.unique(where).tolist():
        rows = np.flatnonzero(where == partition).tolist() if count > 1 else range(len(values))
        _put(producer, cluster.name(topic), [{"value": values[row], "key": keys[row]} for row in rows], partition)


def _put(producer: Producer, topic: str, messages: list[dict[str, bytes]], partition: int) -> None:
    """Raises KafkaException for a message that is too large, and where the client's queue stays full."""
    deadline = time.monotonic() + ASK_S
    given: list[dict[str, Any]] = [*messages]
    while producer.produce_batch(topic, given, partition) < len(given):
        left = [message for message in given if "_error" in message]
        for error in (message["_error"] for message in left):
            if error.code() != KafkaError._QUEUE_FULL or time.monotonic() > deadline:
                raise KafkaException(error)
        given = [{name: message[name] for name in ("value", "key") if name in message} for message in left]
        producer.poll(0.01)  # the queue empties as the broker takes what is in it


def write_totals(totals: Mapping[str, int]) -> str:
    return packed(json.dumps(totals, separators=(",", ":")))


def read_totals(text: str | None) -> dict[str, int]:
    found: dict[str, int] = json.loads(unpacked(text) or "{}")
    return found


def packed(text: str) -> str:
    """A JSON text as it fits beside an offset."""
    return text if len(text) < _METADATA_BYTES else "z" + b85encode(zlib.compress(text.encode())).decode()


def unpacked(text: str | None) -> str:
    if not text:
        return ""
    return zlib.decompress(b85decode(text[1:])).decode() if text.startswith("z") else text
