"""Reading a topic from positions that the caller keeps, and going on where retention or a broker stood in the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tapeline.records import Chunk, Topic
from tapeline.streams.kafka.cluster import ASK_S, Cluster
from tapeline.streams.kafka.messages import ROW_BITS, chunk_of, place

log = logging.getLogger(__name__)

#: A store is in no hurry: the broker gathers so much for each answer, or what comes in a tenth of a second.
_MUCH: Final = {"fetch_min_bytes": 256 * 1024, "fetch_wait_max_ms": 100}
#: Who only looks whether there is something wants to know at once.
_AT_ONCE: Final = {"fetch_min_bytes": 1, "fetch_wait_max_ms": 10}
#: Messages that are taken from the client at once.
MOST_MESSAGES: Final = 10_000
#: Makes of a position the one of its message.
_WHOLE: Final = -1 << ROW_BITS


class Reader:
    """Reads the partitions of a topic from positions that the caller keeps."""

    def __init__(self, cluster: Cluster, topic: Topic, *, at_once: bool = False) -> None:
        self._cluster, self._topic = cluster, topic
        self._fetch = _AT_ONCE if at_once else _MUCH
        self._consumer: Consumer | None = None
        self._at: dict[int, int] = {}
        self._ended: set[int] = set()
        self._rows_each = 1.0

    def anew(self) -> Reader:
        """Forget what the client knows of ends: the next read asks the broker."""
        self._at = {}
        return self

    def read(self, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        try:
            return self._read(positions, max_rows)
        except Exception:
            self._at = {}  # what had come before the error is not lost with it: the client begins again where the caller is
            raise

    def _read(self, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        consumer = self._consumer = self._consumer or self._cluster.consumer("reader", **self._fetch)
        begin = dict(positions)
        if begin != self._at:
            with self._cluster.told():
                consumer.assign([TopicPartition(self._cluster.name(self._topic), p, max(0, at >> ROW_BITS)) for p, at in begin.items()])
            self._at, self._ended = begin, set()
        deadline = time.monotonic() + ASK_S
        wait_s = 0.0
        while True:
            most = max(1, min(MOST_MESSAGES, int(max_rows / self._rows_each)))
            with self._cluster.told():
                messages = self._sorted_out(consumer, consumer.consume(most, wait_s))
            if messages:
                break
            if len(self._ended) >= len(begin):
                return None
            if time.monotonic() > deadline:
                if self._cluster.trouble:
                    with self._cluster.told():
                        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                return None
            wait_s = 0.02
        chunk = chunk_of(self._topic, messages, {p: at & _WHOLE for p, at in begin.items()}).after(begin)
        self._rows_each = max(1.0, 0.5 * (self._rows_each + chunk.rows / len(messages)))
        self._at = dict(chunk.next)
        return chunk

    def _sorted_out(self, consumer: Consumer, messages: Sequence[Message]) -> list[Message]:
        """The records among what came; ends are noted, and where retention has removed what was to be read, that is said."""
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
                self._ended.discard(place(message)[0])
            elif error.code() == KafkaError._PARTITION_EOF:
                self._ended.add(place(message)[0])
            else:
                go_on_after(self._cluster, consumer, self._topic, message)
        return records

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def go_on_after(cluster: Cluster, consumer: Consumer, topic: Topic, message: Message) -> None:
    """Meet an error that came in the place of a record. Raises what it means, unless it is one to go on after."""
    error = message.error()
    if error is None:
        return
    if error.code() == KafkaError._AUTO_OFFSET_RESET:
        partition, _ = place(message)
        low, _ = cluster.watermarks(consumer, topic, partition)
        log.error(
            "%s %d: what was to be read next is gone: the topic's retention has removed it, or the topic was made anew or cut short. It "
            "goes on at offset %d; what lay before and was not read is lost to this stage. Keep more (retention.ms), or read faster.",
            cluster.name(topic),
            partition,
            low,
        )
        with cluster.told():
            consumer.incremental_unassign([TopicPartition(cluster.name(topic), partition)])  # a partition in this state cannot be sought in
            consumer.incremental_assign([TopicPartition(cluster.name(topic), partition, low)])
        return
    if not error.retriable() and error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
        with cluster.told():
            raise KafkaException(error)
