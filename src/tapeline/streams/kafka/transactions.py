"""Outputs and offsets, some chunks to a transaction, over two producers in turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from tapeline.records import TOPICS, Topic
from tapeline.streams import Outputs
from tapeline.streams.kafka.cluster import ASK_S, OUTPUT_BYTES, Cluster
from tapeline.streams.kafka.messages import produce

#: A transaction whose process has died holds back readers of committed records for so long, unless its worker comes back before.
_TRANSACTION_TIMEOUT_S: Final = 10.0


class Transactions:
    """Outputs and offsets, some chunks to a transaction, over two producers in turn, committed by a thread of its own.

    While one producer's transaction is being committed, the outputs of the next chunks go out by the other, so that a reader of
    uncommitted records never waits for a commit. The second is committed only after the first: offsets never overtake outputs. An
    open transaction is committed when it is due, whether or not anybody polls: Kafka ends by itself what stays open for too long.
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
        return bool(self._producers)

    def start(self) -> None:
        """Undo what transactions of this name have left open, or see it through. Raises KafkaException: then these cannot be used.

        A new producer of the same name waits for the end of a commit that the broker has begun, aborts what its predecessor, or the
        same worker in an earlier life, has left open, and bars what may still be on its way: after this, the group's offsets hold.
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
        """Hand over outputs under the open transaction. Raises KafkaException: then others have to go on."""
        group = self._consumer.consumer_group_metadata()
        if not self._consumer.memberid():
            # Kafka would take offsets from nobody in particular, and another may have gone on from the old ones.
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID))
        with self._changed:
            # So that each partition keeps the order.
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
                self._open = None  # half of the outputs is not to be committed
                raise
            self._open.group = group
            self._open.offsets |= {offset.partition: offset for offset in offsets}
            self._changed.notify_all()

    def check(self) -> None:
        """Raises KafkaException when a transaction has failed since: then others have to go on."""
        with self._changed:
            self._raise()

    def finish(self) -> None:
        """Commit everything, now. Raises KafkaException: then others have to go on."""
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
        """Commit nothing that is not being committed already. Waits for nothing: librdkafka may block while a broker is away."""
        with self._changed:
            self._open, self._left = None, True
            self._changed.notify_all()
        for producer in self._producers:
            producer.purge()

    def sweep(self, topic: Topic, partitions: Sequence[int]) -> None:
        """End for good what the broker believes to have ended. Raises KafkaException.

        A broker that goes down alone, or comes up, calls a transaction ended though its marks were not written where partitions had
        no leader at that moment (Kafka 4.3.1: seen in the logs of a single node). Its outputs then stay invisible, all behind them
        too, and the group's offsets cannot be read. Only a mark of the same producer helps: a transaction that touches everything
        the hanging one can have touched, and is aborted, undoes it as a whole. The records that touch have no value.
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
            except Exception as error:  # noqa: BLE001 it is raised where the member works; a thread that died of it would be waited for
                self._error = error
            with self._changed:
                if self._error is not None:
                    self._open = None  # what came after is undone with it
                self._flushing = self._committing = False
                self._changed.notify_all()

    def _due(self) -> _Open | None:
        """The open transaction, when its time has come; none once it is left."""
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
    """A transaction that is not ended, and what belongs to its end."""

    def __init__(self, producer: Producer, due: float) -> None:
        self.producer, self.due = producer, due
        self.offsets: dict[int, TopicPartition] = {}
        self.group: object = None
