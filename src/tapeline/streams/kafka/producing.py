"""Raw batches by an idempotent producer: librdkafka keeps their order, and tries for ever without doubling."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from tapeline.errors import Unavailable
from tapeline.records import RAW_TOPIC, Topic
from tapeline.streams import arrow, protobuf
from tapeline.streams.kafka.cluster import ASK_S, MESSAGE_BYTES, Cluster
from tapeline.streams.kafka.messages import place

log = logging.getLogger(__name__)

#: A batch may have been sent so long before it was spooled.
_SENT_BEFORE_MS = 120_000
#: A broker that answers has seen to what reached it so long before.
_SETTLES_S = 1.0


class RawProducer:
    """Raw batches by an idempotent producer: librdkafka keeps their order, and tries for ever without doubling."""

    def __init__(self, cluster: Cluster, writer: str, sleep: Callable[[float], object] = time.sleep) -> None:
        self._cluster, self._writer, self._sleep = cluster, writer, sleep
        self._producer: Producer | None = None
        self._open: deque[tuple[int, int, bytes]] = deque()  # number, partition, data
        self._arrived: set[int] = set()
        self._settled = 0
        self._began_ns = time.time_ns()
        self._failed: KafkaError | None = None

    def send(self, number: int, partition: int, batch: pa.RecordBatch) -> None:
        data = bytes(arrow.encode(batch))
        self._put(number, partition, data)
        self._open.append((number, partition, data))

    def settled(self) -> int:
        if self._producer is not None:
            self._producer.poll(0)
        if self._failed is not None:
            self._begin_again(self._failed)
        while self._open and self._open[0][0] in self._arrived:
            self._settled, _, _ = self._open.popleft()
            self._arrived.discard(self._settled)
        return self._settled

    def _put(self, number: int, partition: int, data: bytes) -> None:
        if not self._cluster.known():
            raise Unavailable(f"Kafka's topics are not known yet{': ' + self._cluster.trouble if self._cluster.trouble else ''}.")
        producer = self._made(timeout_s=0.0)
        key = f"{self._writer}/{number}".encode()
        try:
            producer.produce(self._cluster.name(RAW_TOPIC), data, key, partition, lambda error, _: self._delivered(number, error))
        except BufferError:
            raise Unavailable(f"Kafka takes no more for now{': ' + self._cluster.trouble if self._cluster.trouble else ''}.") from None
        producer.poll(0)

    def _delivered(self, number: int, error: KafkaError | None) -> None:
        if error is None:
            self._arrived.add(number)
        elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            log.error("Kafka takes no message as large as raw batch %d: its records are lost. Raise the topic's max.message.bytes.", number)
            self._arrived.add(number)
        else:
            self._failed = error

    def _begin_again(self, error: KafkaError) -> None:
        """The client has given up for good, as when a broker has lost what it had: a new one sends what has not arrived."""
        log.warning("Kafka's client has given up: %s. A new one sends what has not arrived.", error.str())
        arrived = self.recovered(self._writer, self._began_ns)
        self._failed, self._producer = None, None
        for number, partition, data in self._open:
            if number <= arrived.get(partition, 0):
                self._arrived.add(number)
            elif number not in self._arrived:
                self._put(number, partition, data)

    def write(self, topic: Topic, parts: Sequence[tuple[int, pa.RecordBatch]]) -> None:
        """Write and wait. Raises Unavailable."""
        producer = self._made(timeout_s=30.0)
        failed: list[KafkaError] = []

        def heard(error: KafkaError | None, _: object) -> None:
            if error is not None:
                failed.append(error)

        for partition, part in parts:
            if self._cluster.codec(topic) == "arrow":
                producer.produce(self._cluster.name(topic), bytes(arrow.encode(part)), b"", partition, heard)
            else:
                keys = part[topic.key].to_pylist()
                for key, value in zip(keys, protobuf.encode(topic, part), strict=True):
                    producer.produce(self._cluster.name(topic), value, key.encode(), partition, heard)
        left = producer.flush(ASK_S + 30.0)
        if failed or left:
            with self._cluster.told():
                raise KafkaException(failed[0] if failed else KafkaError(KafkaError._TIMED_OUT))

    def recovered(self, writer: str, since_ns: int) -> Mapping[int, int]:
        """Looks at the keys of what the raw topic was given since then, until nothing more comes.

        What a writer that was killed had sent may still wait in the broker's queue while later requests are answered already."""
        found = self._found(writer, since_ns)
        while True:
            self._sleep(_SETTLES_S)
            before, found = found, self._found(writer, since_ns)
            if found == before:
                return found

    def _found(self, writer: str, since_ns: int) -> dict[int, int]:
        """The highest number of the writer in each partition that has one, now."""
        consumer = self._cluster.consumer("recovery", isolation_level="read_uncommitted")
        highest: dict[int, int] = {}
        try:
            since_ms = since_ns // 1_000_000 - _SENT_BEFORE_MS
            asked = [TopicPartition(self._cluster.name(RAW_TOPIC), p, since_ms) for p in range(self._cluster.count(RAW_TOPIC))]
            found = self._cluster.asked(lambda: consumer.offsets_for_times(asked, timeout=ASK_S))
            with self._cluster.told():
                starts = [some for some in found if some.offset >= 0]
                consumer.assign(starts)
                ended: set[int] = set()
                deadline = time.monotonic() + 60.0
                while len(ended) < len(starts):
                    if time.monotonic() > deadline:
                        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                    for message in consumer.consume(1000, 0.1):
                        error = message.error()
                        if error is not None:
                            if error.code() == KafkaError._PARTITION_EOF:
                                ended.add(place(message)[0])
                            continue
                        name, _, number = (message.key() or b"").decode("utf-8", "replace").rpartition("/")
                        if name == writer and number.isdecimal():
                            partition, _ = place(message)
                            highest[partition] = max(highest.get(partition, 0), int(number))
        finally:
            consumer.close()
        return highest

    def close(self, wait_s: float) -> None:
        if self._producer is not None:
            self._producer.flush(wait_s)
            self._producer = None

    def _made(self, timeout_s: float) -> Producer:
        """The producer. `timeout_s`: after so long a message is given up; 0: never."""
        if self._producer is None:
            self._producer = Producer(
                self._cluster.client(
                    enable_idempotence=True,
                    acks="all",
                    linger_ms=0,
                    compression_type="lz4",
                    message_timeout_ms=int(timeout_s * 1000),
                    message_max_bytes=MESSAGE_BYTES,
                    queue_buffering_max_kbytes=131_072,
                    reconnect_backoff_max_ms=2_000,
                )
            )
        return self._producer
