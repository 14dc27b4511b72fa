"""The stream on Apache Kafka: topics in partitions over many machines, and each step of a stage in a transaction.

A position is a message's number times 2^16 plus the row in the message, because a message holds a batch (Arrow) or one record (protobuf).
The number is the message's offset plus what its stretch adds (numbering.py), so no two lives of a topic give the same number.

Normalize commits outputs, offsets and totals in one transaction. Its totals travel as the offsets' metadata. Outputs are handed over
as soon as they are made. A transaction ends every `stream.commit_ms`, in a thread of its own, while the next one is already open. A
reader of committed records waits for that end. A reader of uncommitted records does not; docs/streams.md says what it has to do
instead.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition

from tapeline.config import StreamConfig
from tapeline.errors import Unavailable
from tapeline.local.threads import concurrently
from tapeline.records import RAW_TOPIC, Chunk, Topic
from tapeline.secret import NO_SECRET, Secret
from tapeline.streams import Lease, Member, Producer, Written
from tapeline.streams.kafka.cluster import Cluster
from tapeline.streams.kafka.group import GroupMember
from tapeline.streams.kafka.lease import GroupLease
from tapeline.streams.kafka.messages import packed, read_position, read_totals, unpacked, write_metadata
from tapeline.streams.kafka.numbering import Numbering
from tapeline.streams.kafka.producing import RawProducer
from tapeline.streams.kafka.reading import Reader
from tapeline.streams.partitioning import split

#: If the end lies at most this far ahead, there may be nothing but the markers that transactions leave. A read then checks.
_MARKS: Final = 10_000
#: Calls that only look wait this long (s) for a broker. Ingest opens no socket before it knows the partitions, or that nobody answers.
_GLANCE_S: Final = 3.0
#: Up to this many records before the end are counted exactly.
_COUNTED: Final = 10_000


class KafkaStream:
    """Topics on the brokers that a `kafka://` or `kafkas://` (TLS) address names. Connects at the first call."""

    def __init__(self, config: StreamConfig, password: Secret = NO_SECRET, *, soon: bool = False) -> None:
        """`soon`: what is read is shown, so it does not wait until there is much. Raises ConfigError if the address is invalid."""
        self._soon = soon
        self._cluster = Cluster(config, password)
        self._numbering = Numbering(self._cluster)
        self._version = (0, 0)
        self._commit_every_s = config.commit_ms / 1000
        self._producer: RawProducer | None = None
        self._readers: dict[tuple[Topic, str], Reader] = {}
        self._lookers: dict[str, Consumer] = {}
        self._nothing_at: dict[tuple[Topic, int], tuple[int, int]] = {}
        self._last_lag_at: dict[tuple[Topic, int], int] = {}

    @property
    def partitions(self) -> int:
        try:
            return self._cluster.count(RAW_TOPIC)
        except Unavailable:
            return self._cluster.usual_partitions

    @property
    def counts_records(self) -> bool:
        return False

    def append(self, topic: Topic, batch: pa.RecordBatch, partition: int | None = None) -> None:
        """As `Stream.append`. It waits up to 40 s for delivery. If it raises Unavailable, some of the records may have been written."""
        if self._producer is None:
            self._producer = RawProducer(self._cluster, "")
        count = self._cluster.count(topic)
        parts = split(topic, batch, count) if partition is None else [(partition, batch)] if batch.num_rows else []
        self._producer.write(topic, list(parts))

    def read(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        """As `Stream.read`. It waits until records have come or every partition has reported its end.

        If neither happens within 5 s, it raises Unavailable or Refused if a client has met an error before. Otherwise it returns None.
        """
        return self._reader(topic, "read").read({p: positions.get(p, 0) for p in range(self._cluster.count(topic))}, max_rows)

    def producer(self, writer: str) -> Producer:
        return RawProducer(self._cluster, writer)

    def join(self, group: str, topic: Topic, name: str = "") -> Member:
        self._cluster.count(topic)
        return GroupMember(self._cluster, self._numbering, group, topic, name or uuid.uuid4().hex, self._commit_every_s)

    def hold(self, name: str) -> Lease:
        """As `Stream.hold`. Raises Unavailable if it is not known after 18 s who holds `name`."""
        self._cluster.count(RAW_TOPIC)
        return GroupLease(self._cluster, name)

    def acknowledge(self, group: str, topic: Topic, positions: Mapping[int, int], counted: tuple[int | None, int] | None = None) -> bool:
        del counted
        if not positions:
            return True
        self._cluster.count(topic)
        places = [
            TopicPartition(
                self._cluster.name(topic), partition, self._numbering.about(topic, partition, position), write_metadata(position)
            )
            for partition, position in positions.items()
        ]
        self._cluster.move(group, places)
        return True

    def positions(self, group: str, topic: Topic) -> dict[int, int]:
        positions = {}
        for one in self._committed(group, topic):
            position = read_position(one.metadata)
            if position is None:
                position = 0 if one.offset <= 0 else self._numbering.number_at(topic, one.partition, one.offset)
            positions[one.partition] = position
        return positions

    def totals(self, group: str) -> dict[str, int]:
        totals: dict[str, int] = {}
        for offset in self._committed(group, RAW_TOPIC):
            for name, value in read_totals(offset.metadata).items():
                totals[name] = totals.get(name, 0) + value
        return totals

    def ends(self, topic: Topic) -> dict[int, int]:
        self._cluster.count(topic, _GLANCE_S)
        return self._numbering.ends(topic)

    def lives(self, topic: Topic) -> dict[int, int]:
        self._cluster.count(topic, _GLANCE_S)
        return self._numbering.begun(topic)

    def written(self, topic: Topic) -> dict[int, Written]:
        del topic
        return {}

    def tail_positions(self, topic: Topic, rows: int) -> dict[int, int]:
        return {partition: self._back(topic, partition, low, high, rows) for partition, (low, high) in self._watermarks(topic).items()}

    def _back(self, topic: Topic, partition: int, low: int, high: int, rows: int) -> int:
        """Return the position `rows` records before the end.

        Transaction markers take offsets too, so the records are counted, unless there are too many of them.
        """
        span = 2 * rows
        while 0 < rows <= _COUNTED and high - span > low:
            reader, offsets = self._reader(topic, "look").anew(), np.zeros(0, np.int64)
            position = self._numbering.least_at(topic, partition, high - span)
            while (chunk := reader.read({partition: position}, rows, {partition: high - span})) is not None:
                position, offsets = chunk.next[partition], np.concatenate([offsets, chunk.offset])[-rows:]
            if len(offsets) == rows:
                return int(offsets[0])
            span *= 4
        return self._numbering.number_at(topic, partition, max(low, high - span))

    def lag(self, topic: Topic, positions: Mapping[int, int]) -> dict[int, int]:
        lags = {}
        suspects = {}
        marks = self._watermarks(topic)
        self._numbering.fresh()
        where = self._numbering.find(topic, {partition: positions.get(partition, 0) for partition in marks})
        for partition, (low, high) in marks.items():
            position = max(where[partition].offset, low)
            lags[partition] = max(0, high - position)
            stands = self._last_lag_at.get((topic, partition)) == position  # a reader that moves finds something
            self._last_lag_at[topic, partition] = position
            if lags[partition] and (stands or lags[partition] <= _MARKS):
                if self._nothing_at.get((topic, partition)) == (position, high):
                    lags[partition] = 0
                else:
                    suspects[partition] = (position, high)
        for partition, (position, high) in suspects.items():
            if self._reader(topic, "look").anew().read({partition: positions.get(partition, 0)}, 1, {partition: position}) is None:
                # If the end lies after the last stable offset, a transaction is still open and its records may come.
                _, stable = self._cluster.watermarks(self._looker("stable", "read_committed"), topic, partition)
                if stable >= high:
                    self._nothing_at[topic, partition] = (position, high)
                    lags[partition] = 0
        return lags

    def note(self, name: str, text: str) -> None:
        # The text is the offset metadata of a group that reads nothing. Kafka keeps it as long as it keeps such groups (a week without a
        # new commit).
        self._cluster.count(RAW_TOPIC)
        self._cluster.move(f"note-{name}", [TopicPartition(self._cluster.name(RAW_TOPIC), 0, 0, packed(text))])

    def noted(self, name: str) -> str:
        self._cluster.count(RAW_TOPIC)
        (offset,) = self._cluster.committed(self._looker(f"note-{name}"), RAW_TOPIC, [0])
        return unpacked(offset.metadata)

    def largest(self, topic: Topic) -> int:
        return self._cluster.largest(topic)

    def risks(self) -> list[str]:
        return [f"WARNING: {warning}"] if (warning := self._cluster.too_small()) else []

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        for looker in self._lookers.values():
            looker.close()
        if self._producer is not None:
            self._producer.close(0.0)
        self._numbering.close()
        self._cluster.close()
        self._readers, self._lookers, self._producer = {}, {}, None

    def _watermarks(self, topic: Topic) -> dict[int, tuple[int, int]]:
        count = self._cluster.count(topic, _GLANCE_S)
        looker = self._looker("look")
        return {partition: self._cluster.watermarks(looker, topic, partition) for partition in range(count)}

    def _committed(self, group: str, topic: Topic) -> list[TopicPartition]:
        return self._cluster.committed(self._looker(group), topic, range(self._cluster.count(topic)))

    def _looker(self, group: str, isolation: str = "read_uncommitted") -> Consumer:
        """Return a consumer that can ask and set a group's position without being a member of the group."""
        version = (self._numbering.version, self._cluster.unanswered)
        if self._version != version:
            # A client rejects any leader whose epoch is below one that it has seen. It may also know no broker any more.
            for old in self._lookers.values():
                concurrently(old.close, "close")
            self._version, self._lookers, self._nothing_at = version, {}, {}
        looker = self._lookers.get(group)
        if looker is None:
            looker = self._lookers[group] = self._cluster.consumer(group, isolation_level=isolation)
        return looker

    def _reader(self, topic: Topic, purpose: str) -> Reader:
        reader = self._readers.get((topic, purpose))
        if reader is None:
            reader = Reader(self._cluster, self._numbering, topic, at_once=purpose == "look", soon=self._soon)
            self._readers[topic, purpose] = reader
        return reader
