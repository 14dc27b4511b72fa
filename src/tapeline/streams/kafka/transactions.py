"""Transactions over two producers in turn: each commits the outputs and offsets of some chunks."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from tapeline.records import TOPICS, Topic
from tapeline.streams import Outputs
from tapeline.streams.kafka.cluster import ASK_S, Cluster
from tapeline.streams.kafka.messages import produce
from tapeline.streams.kafka.settings import OUTPUT_BYTES

#: If its process has died, a transaction holds back readers of committed records for this long, unless its worker comes back before.
_TRANSACTION_TIMEOUT_S: Final = 10.0


class Transactions:
    """Outputs and offsets of some chunks in each transaction, over two producers in turn, committed by a thread of its own.

    While one producer's transaction is being committed, the other producer sends the outputs of the next chunks. So a reader of
    uncommitted records never waits for a commit. The second transaction is committed only after the first, so offsets never overtake
    outputs. An open transaction is committed when it is due, whether or not anybody polls, because Kafka ends by itself what stays
    open for too long.
    """

    def __init__(self, cluster: Cluster, consumer: Consumer, name: str, every_s: float) -> None:
        self._cluster, self._consumer, self._name, self._every_s = cluster, consumer, name, every_s
        self._producers: list[Producer] = []
        self._turn = 0
        self._open: _Open | None = None
        self._flushing = self._committing = self._left = False
        self._error: Exception | None = None
        self._changed = threading.Condition()

    @property
    def started(self) -> bool:
        """Whether `start` has succeeded. This stays true after `leave`."""
        return bool(self._producers)

    def start(self) -> None:
        """Undo or complete what transactions of this name have left open. Raises KafkaException; these transactions are then unusable.

        A new producer of the same name waits for the end of a commit that the broker has begun. It aborts what its predecessor, or the
        same worker in an earlier life, has left open, and bars what may still be in flight. After this, the group's offsets are final.
        """
        producers = [
            Producer(
                self._cluster.client(
                    transactional_id=f"{self._name}-{side}",
                    transaction_timeout_ms=int(_TRANSACTION_TIMEOUT_S * 1000),
                    linger_ms=0,
                    compression_type="lz4",
                    message_max_bytes=OUTPUT_BYTES,
                    queue_buffering_max_messages=2_000_000,
                    queue_buffering_max_kbytes=262_144,
                )
            )
            for side in ("a", "b")
        ]
        for producer in producers:
            producer.init_transactions(ASK_S)
        self._producers = producers
        threading.Thread(target=self._run, name="commit", daemon=True).start()

    def add(self, outputs: Outputs, offsets: Sequence[TopicPartition]) -> None:
        """Hand over outputs in the open transaction. Raises KafkaException; a new `Transactions` must then continue."""
        group = self._consumer.consumer_group_metadata()
        if not self._consumer.memberid():
            # Kafka would accept offsets from no particular member, and another member may have continued from the old ones.
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID))
        with self._changed:
            # This wait keeps the order in each partition.
            flushed = self._changed.wait_for(lambda: self._open is not None or not self._flushing, 2 * _TRANSACTION_TIMEOUT_S)
            self._raise()
            if not flushed:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            producer = self._producers[self._turn]
            try:
                if self._open is None:
                    producer.begin_transaction()
                    self._open = _Open(producer, time.monotonic() + self._every_s)
                for topic, batch in outputs:
                    if batch.num_rows:
                        produce(producer, topic, batch, self._cluster)
            except BaseException:
                self._open = None  # a half of the outputs must not be committed
                raise
            self._open.group = group
            self._open.offsets |= {offset.partition: offset for offset in offsets}
            self._changed.notify_all()

    def check(self) -> None:
        """Raises KafkaException if a transaction has failed since; a new `Transactions` must then continue."""
        with self._changed:
            self._raise()

    def finish(self) -> None:
        """Commit everything now. Raises KafkaException; a new `Transactions` must then continue."""
        with self._changed:
            if self._open is not None:
                self._open.due = 0.0
                self._changed.notify_all()
            ended = self._changed.wait_for(
                lambda: self._error is not None or (self._open is None and not self._committing), 2 * _TRANSACTION_TIMEOUT_S
            )
            self._raise()
        if not ended:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def leave(self) -> None:
        """Commit nothing that is not being committed already. Does not wait, because librdkafka may block while a broker is away."""
        with self._changed:
            self._open, self._left = None, True
            self._changed.notify_all()
        for producer in self._producers:
            producer.purge()

    def sweep(self, topic: Topic, partitions: Sequence[int]) -> None:
        """End for good what the broker wrongly believes to have ended. Raises KafkaException.

        A broker that goes down alone, or comes up, may call a transaction ended although it could not write the transaction's markers
        in partitions without a leader at that moment (Kafka 4.3.1: seen in the logs of a single node). The outputs of that transaction
        then stay invisible, with everything after them, and the group's offsets cannot be read. Only a marker of the same producer
        helps. So this begins a transaction that touches everything the hanging one can have touched, and aborts it. That undoes the
        hanging one as a whole. The records written for this have no value.
        """
        offsets = [TopicPartition(self._cluster.name(topic), partition, 0) for partition in partitions]
        outputs = [some for some in TOPICS.values() if some is not topic]
        for producer in self._producers:
            producer.begin_transaction()
            for output in outputs:
                for partition in range(self._cluster.count(output)):
                    producer.produce(self._cluster.name(output), partition=partition)
            producer.flush(ASK_S)
            producer.send_offsets_to_transaction(offsets, self._consumer.consumer_group_metadata(), ASK_S)
            producer.abort_transaction(ASK_S)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (due := self._due()) is not None:
            try:
                due.producer.flush(_TRANSACTION_TIMEOUT_S)
                with self._changed:
                    self._flushing = False
                    self._changed.notify_all()
                due.producer.send_offsets_to_transaction(list(due.offsets.values()), due.group, _TRANSACTION_TIMEOUT_S)
                due.producer.commit_transaction(_TRANSACTION_TIMEOUT_S)
            except Exception as error:  # noqa: BLE001 it is raised where the member works; else the member would wait for a dead thread
                self._error = error
            with self._changed:
                if self._error is not None:
                    self._open = None  # what came after it is undone too
                self._flushing = self._committing = False
                self._changed.notify_all()

    def _due(self) -> _Open | None:
        """Return the open transaction when it is due, or None once the transactions are left."""
        with self._changed:
            while not self._left:
                if self._open is None or self._error is not None:
                    self._changed.wait()
                elif (rest := self._open.due - time.monotonic()) > 0:
                    self._changed.wait(rest)
                else:
                    due, self._open = self._open, None
                    self._flushing = self._committing = True
                    self._turn ^= 1
                    return due
        return None


class _Open:
    """An open transaction and what its end needs."""

    def __init__(self, producer: Producer, due: float) -> None:
        self.producer, self.due = producer, due
        self.offsets: dict[int, TopicPartition] = {}
        self.group: object = None
