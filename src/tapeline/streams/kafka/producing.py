"""The raw producer on Kafka: idempotent, so librdkafka keeps the order of batches and retries for ever without duplicates."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from tapeline.errors import Unavailable
from tapeline.local.threads import concurrently
from tapeline.records import RAW_TOPIC, Topic
from tapeline.retry.backoff import backoff
from tapeline.streams.codecs import arrow, protobuf
from tapeline.streams.kafka.cluster import ASK_S, Cluster
from tapeline.streams.kafka.messages import place
from tapeline.streams.kafka.settings import MESSAGE_BYTES

log = logging.getLogger(__name__)

#: A batch may have been sent this long before it was spooled.
_SENT_BEFORE_MS = 120_000
#: A broker that answers has processed what reached it this long before.
_SETTLES_S = 1.0
#: If a broker is asked what has arrived and says nothing for this long, no more is expected.
_SILENT_S = 60.0
_RECOVER_MOST_S = 30.0


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch that was handed to a client."""

    number: int
    partition: int
    data: bytes
    sent_ns: int


class RawProducer:
    """Sends raw batches with an idempotent producer: librdkafka keeps their order and retries for ever without duplicates."""

    def __init__(
        self, cluster: Cluster, writer: str, sleep: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster, self._writer, self._sleep, self._clock = cluster, writer, sleep, clock
        self._producer: Producer | None = None
        self._clients = 0
        self._open: deque[_Sent] = deque()
        self._again: deque[_Sent] = deque()  # what the previous client has not delivered
        self._arrived: set[int] = set()
        self._settled = 0
        self._failed: KafkaError | None = None
        self._forgot = cluster.forgot
        self._recovery: Future[Mapping[int, Container[int]]] | None = None
        self._recover_at = 0.0
        self._waits = backoff(Random(), cap_s=_RECOVER_MOST_S)
        self.refused: set[int] = set()
        self.problem = ""

    def send(self, number: int, partition: int, batch: pa.RecordBatch) -> None:
        if self._failed is not None or self._again:
            raise Unavailable(self.problem or "Tapeline first sends the batches that an earlier Kafka client did not deliver.")
        one = _Sent(number, partition, bytes(arrow.encode(batch)), time.time_ns())
        self._put(one)
        self._open.append(one)

    def settled(self) -> int:
        if self._producer is not None:
            self._producer.poll(0)
        self._cluster.glance()
        if self._forgot != self._cluster.forgot:
            # A client rejects any leader whose epoch is below one that it has seen, and would wait for ever.
            self._forgot = self._cluster.forgot
            if self._producer is not None and self._failed is None:
                self._failed = KafkaError(KafkaError._FATAL, "it no longer knows any broker, or the broker has lost data")
                self.problem = f"Kafka's client has given up: {self._failed.str()}. A new client sends the batches that have not arrived."
        if self._failed is not None:
            self._begin_again(self._failed)
        with suppress(Unavailable):  # its queue is full: the rest follows later
            while self._failed is None and self._again:
                self._put(self._again[0])
                self._again.popleft()
        while self._open and self._open[0].number in self._arrived:
            self._settled = self._open.popleft().number
            self._arrived.discard(self._settled)
        return self._settled

    def _put(self, one: _Sent) -> None:
        if not self._cluster.known():
            raise Unavailable(f"Tapeline does not know Kafka's topics yet{': ' + self._cluster.problem if self._cluster.problem else ''}.")
        if self._producer is None:
            self._clients += 1
        producer, client = self._made(timeout_s=0.0), self._clients
        name, key = self._cluster.name(RAW_TOPIC), f"{self._writer}/{one.number}".encode()
        try:
            producer.produce(name, one.data, key, one.partition, lambda error, _: self._delivered(client, one, error))
        except BufferError:
            why = f": {self._cluster.problem}" if self._cluster.problem else ""
            raise Unavailable(f"Kafka's client accepts no more for now{why}.") from None
        except KafkaException as error:
            self._delivered(client, one, error.args[0])
        producer.poll(0)

    def _delivered(self, client: int, one: _Sent, error: KafkaError | None) -> None:
        if client != self._clients or (self._failed is not None and error is not None):
            return  # from a client that was given up: what became of its messages is asked separately
        if error is None:
            self._arrived.add(one.number)
            self._waits = backoff(Random(), cap_s=_RECOVER_MOST_S)
        elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self.problem = (
                f"Kafka's topic {self._cluster.name(RAW_TOPIC)} does not accept a message of {len(one.data):,} bytes. "
                f"Set its max.message.bytes to {MESSAGE_BYTES:,}."
            )
            self._arrived.add(one.number)
            self.refused.add(one.number)
        else:
            self._failed = error
            self.problem = f"Kafka's client has given up: {error.str()}. A new client sends the batches that have not arrived."

    def _begin_again(self, error: KafkaError) -> None:
        """Replace a client that has given up for good, for example because a broker lost data. A new client sends what has not arrived.

        Another thread asks what has arrived. That may take a minute, and the caller has sockets to read."""
        if self._recovery is None:
            if self._clock() < self._recover_at:
                return
            self._recover_at = self._clock() + next(self._waits)
            log.warning("%s", self.problem)
            given_up, self._producer = self._producer, None
            self._clients += 1
            since_ns = self._open[0].sent_ns if self._open else time.time_ns()
            self._recovery = concurrently(lambda: self._left_by(given_up, since_ns), "recovery")
        if not self._recovery.done():
            return
        recovery, self._recovery = self._recovery, None
        if (failed := recovery.exception()) is not None:
            self.problem = f"Kafka's client has given up: {error.str()}. Tapeline does not know yet which batches have arrived: {failed}"
            return
        arrived = recovery.result()
        self._arrived |= {one.number for one in self._open if one.number in arrived.get(one.partition, ())}
        self._again = deque(one for one in self._open if one.number not in self._arrived)
        self._failed, self.problem = None, ""

    def _left_by(self, given_up: Producer | None, since_ns: int) -> Mapping[int, Container[int]]:
        if given_up is not None:
            given_up.purge()  # else it might go on sending alongside the new one
        return self.last_acknowledged(self._writer, since_ns)

    def write(self, topic: Topic, parts: Sequence[tuple[int, pa.RecordBatch]]) -> None:
        """Write and wait for delivery. Raises Unavailable."""
        if self._forgot != self._cluster.forgot:
            self._forgot, self._producer = self._cluster.forgot, None
        producer = self._made(timeout_s=30.0)
        failed: list[KafkaError] = []

        def heard(error: KafkaError | None, _: object) -> None:
            if error is not None:
                failed.append(error)

        for partition, part in parts:
            if self._cluster.codec(topic) == "arrow":
                for piece in arrow.pieces(part):
                    producer.produce(self._cluster.name(topic), bytes(arrow.encode(piece)), b"", partition, heard)
            else:
                keys = part[topic.key].to_pylist()
                for key, value in zip(keys, protobuf.encode(topic, part), strict=True):
                    producer.produce(self._cluster.name(topic), value, key.encode(), partition, heard)
        left = producer.flush(ASK_S + 30.0)
        if failed or left:
            with self._cluster.errors():
                raise KafkaException(failed[0] if failed else KafkaError(KafkaError._TIMED_OUT))

    def last_acknowledged(self, writer: str, since_ns: int) -> Mapping[int, Container[int]]:
        """Read the keys of everything written to the raw topic since `since_ns` (ns, UTC), until nothing more comes.

        Messages of a writer that was killed may still wait in the broker's queue while later requests are answered already."""
        numbers = self._numbers_of(writer, since_ns)
        while True:
            self._sleep(_SETTLES_S)
            before, numbers = numbers, self._numbers_of(writer, since_ns)
            if numbers == before:
                return numbers

    def _numbers_of(self, writer: str, since_ns: int) -> dict[int, set[int]]:
        """Return the numbers of the writer that are there now, for each partition that has any."""
        consumer = self._cluster.consumer("recovery", isolation_level="read_uncommitted")
        numbers: dict[int, set[int]] = {}
        try:
            since_ms = since_ns // 1_000_000 - _SENT_BEFORE_MS
            times = [TopicPartition(self._cluster.name(RAW_TOPIC), p, since_ms) for p in range(self._cluster.count(RAW_TOPIC))]
            offsets = self._cluster.request(lambda: consumer.offsets_for_times(times, timeout=ASK_S))
            with self._cluster.errors():
                starts = [some for some in offsets if some.offset >= 0]
                consumer.assign(starts)
                ended: set[int] = set()
                deadline = time.monotonic() + _SILENT_S
                while len(ended) < len(starts):
                    messages = consumer.consume(1000, 0.1)
                    if messages:
                        deadline = time.monotonic() + _SILENT_S
                    elif time.monotonic() > deadline:
                        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                    for message in messages:
                        error = message.error()
                        if error is not None:
                            if error.code() == KafkaError._PARTITION_EOF:
                                ended.add(place(message)[0])
                            continue
                        name, _, number = (message.key() or b"").decode("utf-8", "replace").rpartition("/")
                        if name == writer and number.isdecimal():
                            numbers.setdefault(place(message)[0], set()).add(int(number))
        finally:
            consumer.close()
        return numbers

    def close(self, wait_s: float) -> None:
        if self._producer is not None:
            self._producer.flush(wait_s)
            self._producer = None

    def _made(self, timeout_s: float) -> Producer:
        """Return the producer. After `timeout_s` seconds it gives a message up; 0: never."""
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
                )
            )
        return self._producer
