"""Batches as Kafka messages and messages as chunks: the meaning of a position, and what each codec makes of a batch."""

from __future__ import annotations

import json
import logging
import time
import zlib
from base64 import b85decode, b85encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tapeline.records import Chunk, Topic
from tapeline.streams import codecs
from tapeline.streams.codecs import arrow, protobuf
from tapeline.streams.kafka.cluster import ASK_S, Cluster
from tapeline.streams.partitioning import partitions_of, split

log = logging.getLogger(__name__)

#: The one name in an offset's metadata that is not a total: the position.
_AT: Final = "at"
#: Longer texts are compressed: a broker takes 4 KiB of metadata with an offset.
_METADATA_BYTES: Final = 3_500


@dataclass(frozen=True, slots=True)
class Stretch:
    """Messages of a partition that are numbered alike. A stretch reaches from the one before it up to a leader's epoch (numbering.py)."""

    epoch: int
    base: int
    bits: int
    #: Where the partition ended when the stretch was recorded. The stretch begins there or before.
    end: int

    def position(self, offset: int) -> int:
        """Return the position of the first row in the message at Kafka's `offset`."""
        return self.base + (offset << self.bits)

    def offset(self, position: int) -> int:
        """Return Kafka's offset of the message that holds `position`. It means nothing if another stretch gave the position."""
        return (position - self.base) >> self.bits


#: Returns the stretch for a topic, a partition and a leader's epoch.
Numbers = Callable[[Topic, int, int | None], Stretch]


def place(message: Message) -> tuple[int, int]:
    """Return the partition and offset of a message that has come from a broker."""
    partition, offset = message.partition(), message.offset()
    assert partition is not None, "a message that came has a place"
    assert offset is not None
    return partition, offset


def chunk_of(topic: Topic, messages: Sequence[Message], begin: Mapping[int, int], numbers: Numbers) -> tuple[Chunk, dict[int, int]]:
    """Return the messages as one chunk, and for each partition Kafka's offset after its last message.

    The messages of each partition must be in order.
    """
    places = [place(message) for message in messages]
    values = [message.value() or b"" for message in messages]
    batch, counts = codecs.decode(topic, values, lambda at: f"The message at offset {places[at][1]} of partition {places[at][0]}")
    where = np.array([some for some, _ in places], np.int32)
    offsets = np.array([some for _, some in places], np.int64)
    first, ends = np.empty(len(places), np.int64), dict(begin)
    behind = {}
    for partition in np.unique(where).tolist():
        mine = np.flatnonzero(where == partition)
        behind[partition] = int(offsets[mine[-1]]) + 1
        # All messages between two messages of one leader's epoch belong to that epoch.
        epoch = messages[mine[-1]].leader_epoch()
        stretch = numbers(topic, partition, epoch)
        ends[partition] = stretch.position(behind[partition])
        if messages[mine[0]].leader_epoch() == epoch:
            first[mine] = (offsets[mine] << stretch.bits) + stretch.base
        else:
            first[mine] = [numbers(topic, partition, messages[at].leader_epoch()).position(places[at][1]) for at in mine.tolist()]
    rows = np.array(counts, np.int64)
    begins = np.repeat(np.cumsum(rows) - rows, rows)  # where each row's message begins
    offset = np.repeat(first, counts) + np.arange(len(begins), dtype=np.int64) - begins
    return Chunk(topic, batch, np.repeat(where, counts), offset, dict(begin), ends), behind


def produce(producer: Producer, topic: Topic, batch: pa.RecordBatch, cluster: Cluster) -> None:
    """Send one batch to its topic, in the topic's codec: one message for each record, or for each partition."""
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
    """Raises KafkaException if a message is too large or the client's queue stays full."""
    deadline = time.monotonic() + ASK_S
    given: list[dict[str, Any]] = [*messages]
    while producer.produce_batch(topic, given, partition) < len(given):
        left = [message for message in given if "_error" in message]
        for error in (message["_error"] for message in left):
            if error.code() != KafkaError._QUEUE_FULL or time.monotonic() > deadline:
                raise KafkaException(error)
        given = [{name: message[name] for name in ("value", "key") if name in message} for message in left]
        producer.poll(0.01)  # the queue empties as the broker takes messages from it


def write_metadata(position: int, totals: Mapping[str, int] | None = None) -> str:
    """Return the metadata to store with a group's offset: the position and the totals.

    The position is needed because an offset does not say which life it belongs to.
    """
    return packed(json.dumps({_AT: position, **(totals or {})}, separators=(",", ":")))


def _metadata(text: str | None) -> dict[str, int]:
    try:
        values = json.loads(unpacked(text) or "{}")
    except (ValueError, zlib.error):  # written by another program
        return {}
    return values if isinstance(values, dict) else {}


def read_totals(text: str | None) -> dict[str, int]:
    """Return the totals in an offset's metadata; none if there is no metadata or another program wrote it."""
    return {name: value for name, value in _metadata(text).items() if name != _AT}


def read_position(text: str | None) -> int | None:
    """Return the position, or None if the offset was written before stretches existed or by another program."""
    return _metadata(text).get(_AT)


def packed(text: str) -> str:
    """Return a JSON text in a form that fits in an offset's metadata."""
    return text if len(text) < _METADATA_BYTES else "z" + b85encode(zlib.compress(text.encode())).decode()


def unpacked(text: str | None) -> str:
    """Return the text that `packed` made fit, or an empty string for none.

    Raises ValueError or zlib.error if another program wrote a text that begins with "z".
    """
    if not text:
        return ""
    return zlib.decompress(b85decode(text[1:])).decode() if text.startswith("z") else text
