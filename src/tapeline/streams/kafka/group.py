"""One process of a consumer group: Kafka assigns its partitions, and outputs and offsets are committed in transactions."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, OFFSET_STORED, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tapeline.errors import Busy, TapelineError, Unavailable
from tapeline.records import Chunk, Topic
from tapeline.streams import Outputs, PartitionLost, Totals
from tapeline.streams.kafka.cluster import ASK_S, LEASES, MESSAGE_BYTES, Cluster
from tapeline.streams.kafka.messages import ROW_BITS, chunk_of, place, produce, read_totals, write_totals
from tapeline.streams.kafka.reading import MOST_MESSAGES, go_on_after

log = logging.getLogger(__name__)

#: A transaction whose process has died holds back readers of committed records for so long, unless its worker comes back before.
_TRANSACTION_TIMEOUT_S: Final = 10.0
#: So long one waits for the end of another's transaction before looking at one's own.
_PENDING_S: Final = 15.0
_SESSION_S: Final = 6.0
_POLL_S: Final = 0.05
#: What a broker says to a member that the group has gone on without.
_GONE_ON: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._ASSIGNMENT_LOST,
    }
)


class GroupMember:
    """One of a consumer group: Kafka assigns its partitions, and its commits carry the group's generation, so a dead one's are void."""

    def __init__(self, cluster: Cluster, group: str, topic: Topic, name: str, commit_every_s: float) -> None:
        self._cluster, self._group, self._topic = cluster, group, topic
        self._mine: dict[int, int] = {}
        self._totals: dict[int, dict[str, int]] = {}
        self._rewind_due = False
        self._rows_each = 1.0
        self._consumer = cluster.consumer(
            group,
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=int(_SESSION_S * 1000),
            heartbeat_interval_ms=int(_SESSION_S * 1000 / 3),
            max_poll_interval_ms=300_000,
        )
        self._transactions = _Transactions(cluster, self._consumer, f"tapeline-{group}-{name}", commit_every_s)
        with cluster.told():
            self._consumer.subscribe([topic.name], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost_all)

    @property
    def partitions(self) -> Sequence[int]:
        return sorted(self._mine)

    def poll(self, max_rows: int) -> Chunk | None:
        try:
            messages = self._messages(max_rows)
        except PartitionLost as lost:
            log.info("%s It goes on from what is committed.", lost)
            return None
        except Exception:
            self._rewind_due = True  # what had come before the error is not lost with it: it is read again
            raise
        if not messages:
            return None
        begin = {partition: self._mine[partition] for partition in {place(message)[0] for message in messages}}
        chunk = chunk_of(self._topic, messages, begin)
        self._rows_each = max(1.0, 0.5 * (self._rows_each + chunk.rows / len(messages)))
        return chunk

    def _messages(self, max_rows: int) -> list[Message]:
        """What has come of the member's own partitions, from where it is in each."""
        self._watch()
        with self._cluster.told():
            first = self._consumer.poll(self._transactions.rest_s(_POLL_S))
            most = max(1, min(MOST_MESSAGES, int(max_rows / self._rows_each)))
            came = [first, *self._consumer.consume(most, 0.0)] if first is not None else []
        if self._watch():
            return []  # what came lies behind what is to be read again
        messages = []
        for message in came:
            error = message.error()
            if error is None:
                partition, offset = place(message)
                if partition in self._mine and offset << ROW_BITS >= self._mine[partition]:
                    messages.append(message)
            elif error.code() != KafkaError._PARTITION_EOF:
                go_on_after(self._cluster, self._consumer, self._topic, message)
        return messages

    def commit(self, chunk: Chunk, outputs: Outputs, totals: Totals) -> None:
        if self._watch() or any(self._mine.get(partition) != position for partition, position in chunk.begin.items()):
            raise self._taken_over()
        counted = self._totals.setdefault(min(chunk.next), {})  # any of them: what is asked for is the sum
        for name, value in totals.items():
            if value:
                counted[name] = counted.get(name, 0) + value
        self._mine |= chunk.next
        offsets = [
            TopicPartition(self._topic.name, partition, position >> ROW_BITS, write_totals(self._totals.get(partition, {})))
            for partition, position in chunk.next.items()
        ]
        try:
            self._transactions.add(outputs, offsets)
        except KafkaException as error:
            self._failed(error)

    def close(self) -> None:
        with self._cluster.told():
            try:
                self._transactions.finish()
            except KafkaException as error:
                if error.args[0].code() not in _GONE_ON:
                    raise
                log.info("What was not committed is made again by the next member: %s", error)
            finally:
                self._transactions.abort()
                self._consumer.close()
                self._transactions.close()

    def _watch(self) -> bool:
        """End what is due, and meet what has failed meanwhile. Whether it is all read again from what is committed."""
        try:
            self._transactions.turn()
        except KafkaException as error:
            self._failed(error)
        if self._rewind_due:
            self._rewind()
            return True
        return False

    def _failed(self, error: KafkaException) -> None:
        """Nothing of the open transactions was committed: read on from what was. Raises what the error means."""
        self._rewind_due = True
        inner: KafkaError = error.args[0]
        if inner.code() in _GONE_ON:
            raise self._taken_over() from error
        with self._cluster.told():
            raise error

    def _taken_over(self) -> PartitionLost:
        return PartitionLost(f"Kafka has given part of {self._topic.name} to another member of {self._group}.")

    def _rewind(self) -> None:
        self._transactions.abort()
        partitions = sorted(self._mine)
        if partitions:
            self._load(partitions)
            with self._cluster.told():
                for partition in partitions:
                    self._consumer.seek(TopicPartition(self._topic.name, partition, self._mine[partition] >> ROW_BITS))
        self._rewind_due = False

    def _load(self, partitions: Sequence[int]) -> None:
        """Where the group is, and what it has counted."""
        if not partitions:
            return
        try:
            found = self._cluster.committed(self._consumer, self._topic, partitions, _PENDING_S)
        except Unavailable as error:
            log.warning("%s Offsets that transactions of this worker may have left pending are cleared.", error)
            with self._cluster.told():
                self._transactions.clear(self._topic, partitions)
            found = self._cluster.committed(self._consumer, self._topic, partitions, _PENDING_S)
        for offset in found:
            low = self._cluster.watermarks(self._consumer, self._topic, offset.partition)[0] if offset.offset < 0 else offset.offset
            self._mine[offset.partition] = low << ROW_BITS
            self._totals[offset.partition] = read_totals(offset.metadata)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        new = [partition.partition for partition in partitions]
        try:
            self._load(new)
        except TapelineError as error:
            # They are ours all the same: where to read is asked again before anything of them is.
            log.warning("%s", error)
            self._rewind_due = True
        consumer.incremental_assign(
            [TopicPartition(self._topic.name, p, self._mine[p] >> ROW_BITS if p in self._mine else OFFSET_STORED) for p in new]
        )
        for partition in new:
            self._mine.setdefault(partition, 0)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit what was made of them before another member reads on."""
        try:
            self._transactions.finish()
        except KafkaException as error:
            log.info("What was not committed is made again by the next member: %s", error)
            self._rewind_due = True
        self._let_go(consumer, partitions)

    def _lost_all(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Another member has them already."""
        self._rewind_due = True
        self._let_go(consumer, partitions)

    def _let_go(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._mine.pop(partition.partition, None)
            self._totals.pop(partition.partition, None)
        consumer.incremental_unassign(partitions)


class _Transactions:
    """Outputs and offsets, some chunks to a transaction, over two producers in turn.

    While one producer's transaction is being committed, the outputs of the next chunks go out by the other, so that a reader of
    uncommitted records never waits for a commit. The second is committed only after the first: offsets never overtake outputs.
    """

    def __init__(self, cluster: Cluster, consumer: Consumer, name: str, every_s: float) -> None:
        self._cluster, self._consumer, self._name, self._every_s = cluster, consumer, name, every_s
        self._producers: list[Producer] = []
        self._turn = 0
        self._offsets: dict[int, TopicPartition] = {}
        self._since = 0.0
        self._ending: _Ending | None = None

    def rest_s(self, most: float) -> float:
        """How long one may wait for records before `turn` has something to do."""
        if self._ending is not None:
            return min(most, 0.002)
        return min(most, max(0.0, self._since + self._every_s - time.monotonic())) if self._offsets else most

    def add(self, outputs: Outputs, offsets: Sequence[TopicPartition]) -> None:
        """Hand over outputs under the open transaction. Raises KafkaException: then `abort` is to follow."""
        producer = self._producer()
        if not self._offsets:
            if self._ending is not None:
                self._ending.flushed.wait()  # so that each partition keeps the order
            producer.begin_transaction()
            self._since = time.monotonic()
        for topic, batch in outputs:
            if batch.num_rows:
                produce(producer, topic, batch, self._cluster)
        self._offsets |= {offset.partition: offset for offset in offsets}
        self.turn()

    def turn(self) -> None:
        """Begin to end the open transaction when it is due and the one before it has ended. Raises what that one met."""
        if self._ending is not None and self._ending.done.is_set():
            ended, self._ending = self._ending, None
            if ended.error is not None:
                raise ended.error
        if self._offsets and self._ending is None and time.monotonic() - self._since >= self._every_s:
            self._end()

    def finish(self) -> None:
        """Commit everything, now."""
        if self._ending is not None:
            self._ending.done.wait()
            self.turn()
        if self._offsets and self._ending is None:
            self._end()
        if self._ending is not None:
            self._ending.done.wait()
            self.turn()

    def abort(self) -> None:
        """Undo what is not committed. What stays open holds back every reader of committed records until it times out."""
        if self._ending is not None:
            self._ending.done.wait()
        self._offsets, self._ending = {}, None
        for producer in self._producers:
            try:
                producer.abort_transaction(ASK_S)
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE:  # there was none
                    # Fenced, or broken: new ones under the same names abort it as they begin.
                    self.close()
                    self._producer()
                    return

    def clear(self, topic: Topic, partitions: Sequence[int]) -> None:
        """End for good what transactions of these producers may have left pending of the group's offsets.

        A coordinator that has rolled a transaction back may not have told the group (seen after a restart of a single node): then
        nobody can learn the offsets. A transaction of the same producer that is aborted takes the pending offsets with it.
        """
        for _ in self._producers or [self._producer()]:
            producer = self._producer()
            producer.begin_transaction()
            offsets = [TopicPartition(topic.name, partition, 0) for partition in partitions]
            producer.send_offsets_to_transaction(offsets, self._consumer.consumer_group_metadata(), ASK_S)
            producer.abort_transaction(ASK_S)
            self._turn ^= 1

    def close(self) -> None:
        for producer in self._producers:
            producer.purge()
        self._producers = []

    def _end(self) -> None:
        self._ending = _Ending(self._producer(), list(self._offsets.values()), self._consumer.consumer_group_metadata())
        threading.Thread(target=self._ending.run, name="commit", daemon=True).start()
        self._offsets = {}
        self._turn ^= 1

    def _producer(self) -> Producer:
        if not self._producers:
            # Under the same names as before: what a predecessor has left open is aborted at once.
            self._producers = [
                Producer(
                    self._cluster.client(
                        transactional_id=f"{self._name}-{side}",
                        transaction_timeout_ms=int(_TRANSACTION_TIMEOUT_S * 1000),
                        linger_ms=0,
                        compression_type="lz4",
                        message_max_bytes=MESSAGE_BYTES,
                        queue_buffering_max_messages=2_000_000,
                        queue_buffering_max_kbytes=262_144,
                    )
                )
                for side in ("a", "b")
            ]
            for producer in self._producers:
                producer.init_transactions(30.0)
        return self._producers[self._turn]


class _Ending:
    """The end of one transaction, on a thread of its own."""

    def __init__(self, producer: Producer, offsets: list[TopicPartition], group: object) -> None:
        self._producer, self._offsets, self._group = producer, offsets, group
        self.flushed, self.done = threading.Event(), threading.Event()
        self.error: KafkaException | None = None

    def run(self) -> None:
        try:
            self._producer.flush(30.0)
            self.flushed.set()
            self._again(lambda: self._producer.send_offsets_to_transaction(self._offsets, self._group, 30.0))
            self._again(lambda: self._producer.commit_transaction(30.0))
        except KafkaException as error:
            self.error = error
        finally:
            self.flushed.set()
            self.done.set()

    @staticmethod
    def _again(call: Callable[[], None]) -> None:
        """librdkafka backs off by itself; what it calls retriable after that is asked a few times more."""
        for left in (3, 2, 1, 0):
            try:
                call()
            except KafkaException as error:
                if not error.args[0].retriable() or not left:
                    raise
            else:
                return


class GroupLease:
    """A lease by Kafka's own means: a group whose one partition only one of its members can have."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self._name = cluster, name
        self._answered = self._have = False
        self._consumer = cluster.consumer(
            f"lease-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}",
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=int(_SESSION_S * 1000),
            heartbeat_interval_ms=int(_SESSION_S * 1000 / 3),
            max_poll_interval_ms=300_000,
        )
        with cluster.told():
            self._consumer.subscribe([LEASES], on_assign=self._assigned, on_revoke=self._gone, on_lost=self._gone)
            deadline = time.monotonic() + 3 * _SESSION_S
            while not self._answered and time.monotonic() < deadline:
                self._consumer.poll(0.1)
        if not self._answered:
            self.drop()
            raise Unavailable(f"Kafka has not said within {3 * _SESSION_S:.0f} s who holds {name}.")
        self.keep()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._answered, self._have = True, self._have or bool(partitions)
        consumer.incremental_assign([TopicPartition(some.topic, some.partition, OFFSET_BEGINNING) for some in partitions])

    def _gone(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._have = False
        consumer.incremental_unassign(partitions)

    def keep(self) -> None:
        with self._cluster.told():
            self._consumer.poll(0)
        if not self._have:
            self.drop()
            raise Busy(f"Another process holds {self._name}. Stop that one; if it has died, this can start in {_SESSION_S:.0f} s.")

    def drop(self) -> None:
        self._consumer.close()
