"""Reads a topic from positions that the caller keeps, and continues where retention or a broker stood in the way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tapeline.local.threads import concurrently
from tapeline.records import Chunk, Topic
from tapeline.streams.kafka.cluster import Cluster
from tapeline.streams.kafka.messages import chunk_of, place
from tapeline.streams.kafka.numbering import Numbering

#: A store is in no hurry: the broker gathers this many bytes for each answer, or whatever comes within a tenth of a second.
_MUCH: Final = {"fetch_min_bytes": 256 * 1024, "fetch_wait_max_ms": 100}
#: A screen shows what arrives: a window of the live feed is about as long as this.
_SOON: Final = {"fetch_min_bytes": 256 * 1024, "fetch_wait_max_ms": 20}
#: A caller that only checks whether there is something wants the answer at once.
_AT_ONCE: Final = {"fetch_min_bytes": 1, "fetch_wait_max_ms": 10}
#: The most messages taken from the client at once.
MOST_MESSAGES: Final = 10_000
#: Errors that come in place of records if a log does not continue as a client knew it.
MOVED: Final = frozenset(
    {
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError._LOG_TRUNCATION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.OFFSET_OUT_OF_RANGE,
    }
)
_TRIES_EVERY_S: Final = 0.05
#: How long to wait for an answer. A process that is told to stop waits for it.
_WAIT_S: Final = 5.0


class Reader:
    """Reads the partitions of a topic from positions that the caller keeps."""

    def __init__(self, cluster: Cluster, numbering: Numbering, topic: Topic, *, at_once: bool = False, soon: bool = False) -> None:
        """`at_once`: it only checks whether there is something. `soon`: it shows what arrives."""
        self._cluster, self._numbering, self._topic = cluster, numbering, topic
        self._fetch, self._looks = _AT_ONCE if at_once else _SOON if soon else _MUCH, at_once
        self._consumer: Consumer | None = None
        self._at: dict[int, int] = {}
        self._version = 0
        self._ended: set[int] = set()
        self._uncut: set[int] = set()  # partitions from which nothing has come yet: a position may lie inside a message
        self._rows_each = 1.0

    def anew(self) -> Reader:
        """Forget what the client knows about ends, so that the next read asks the broker."""
        self._at = {}
        return self

    def read(self, positions: Mapping[int, int], max_rows: int, offsets: Mapping[int, int] | None = None) -> Chunk | None:
        """Return the next records at or after the positions, about `max_rows`, or None if there are none. Raises Unavailable.

        `offsets`: Kafka's offsets of the positions, if the caller knows them already.
        """
        try:
            return self._read(positions, max_rows, offsets)
        except Exception:
            self._at = {}  # what came before the error is not lost with it: the client starts again from the caller's positions
            raise

    def _read(self, positions: Mapping[int, int], max_rows: int, offsets: Mapping[int, int] | None) -> Chunk | None:
        begin = dict(positions)
        deadline = time.monotonic() + _WAIT_S
        wait_s = 0.0
        while True:
            if self._consumer is None or begin != self._at or self._version != self._numbering.version:
                self._assign(begin, offsets)
            most = max(1, min(MOST_MESSAGES, int(max_rows / self._rows_each)))
            with self._cluster.errors():
                messages = self._sorted_out(self._client().consume(most, wait_s))
            if messages is not None:
                if messages:
                    self._numbering.fresh()
                else:
                    self._numbering.glance()
                if self._version != self._numbering.version:
                    continue  # what came is from a life that is gone, or lies after what has still to be read
            if messages:
                break
            if messages is not None and len(self._ended) >= len(begin):
                return None
            if time.monotonic() > deadline:
                if self._cluster.problem:
                    with self._cluster.errors():
                        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                return None
            if messages is None:
                time.sleep(_TRIES_EVERY_S)
            wait_s = 0.02
        floor = begin
        if self._uncut:
            came = {place(message)[0] for message in messages}
            floor = begin if self._uncut.isdisjoint(came) else dict.fromkeys(begin, 0)
            self._uncut -= came
        chunk, behind = chunk_of(self._topic, messages, floor, self._numbering.stretch)
        chunk = chunk.after(begin)
        self._rows_each = max(1.0, 0.5 * (self._rows_each + chunk.rows / len(messages)))
        self._at = dict(chunk.next)
        for partition, offset in behind.items():
            self._numbering.remember(self._topic, partition, chunk.next[partition], offset)
        return chunk

    def _client(self) -> Consumer:
        self._consumer = self._consumer or self._cluster.consumer("reader", **self._fetch)
        return self._consumer

    def _assign(self, begin: dict[int, int], offsets: Mapping[int, int] | None) -> None:
        self._numbering.fresh()
        version = self._numbering.version  # read once: a look in another thread may change it at any moment
        if self._version != version and self._consumer is not None:
            # A client rejects any leader whose epoch is below one that it has seen.
            concurrently(self._consumer.close, "close")
            self._consumer = None
        self._version = version
        starts = offsets or {p: one.offset for p, one in self._numbering.find(self._topic, begin, reading=not self._looks).items()}
        name = self._cluster.name(self._topic)
        with self._cluster.errors():
            self._client().assign([TopicPartition(name, partition, offset) for partition, offset in starts.items()])
        self._at, self._ended, self._uncut = begin, set(), set(begin)

    def _sorted_out(self, messages: Sequence[Message]) -> list[Message] | None:
        """Return the records among what came, or None if the log has changed and the positions have to be found again."""
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
                self._ended.discard(place(message)[0])
            elif error.code() == KafkaError._PARTITION_EOF:
                self._ended.add(place(message)[0])
            elif error.code() in MOVED:
                self._at = {}
                self._numbering.look()
                return None
            else:
                go_on_after(self._cluster, error)
        return records

    def close(self) -> None:
        """Close the client. A later `read` opens a new one."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def go_on_after(cluster: Cluster, error: KafkaError) -> None:
    """Handle an error that came in place of a record. Raises what it means, unless reading can continue after it."""
    if not error.retriable() and error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
        with cluster.errors():
            raise KafkaException(error)
