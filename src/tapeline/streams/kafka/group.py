"""One process of a consumer group: Kafka assigns its partitions, and it commits outputs and offsets in transactions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from confluent_kafka import OFFSET_STORED, Consumer, KafkaError, KafkaException, Message, TopicPartition

from tapeline.errors import TapelineError, Unavailable
from tapeline.records import Chunk, Topic
from tapeline.streams import Outputs, PartitionLost, Totals
from tapeline.streams.kafka.cluster import Cluster
from tapeline.streams.kafka.messages import chunk_of, place, read_position, read_totals, write_metadata
from tapeline.streams.kafka.numbering import Numbering
from tapeline.streams.kafka.reading import MOST_MESSAGES, MOVED, go_on_after
from tapeline.streams.kafka.transactions import Transactions

log = logging.getLogger(__name__)

#: How long (s) a member waits for another's transaction to end before it checks its own.
_PENDING_S: Final = 15.0
SESSION_S: Final = 6.0
_POLL_S: Final = 0.05
#: What a broker answers to a member that the group has left behind.
_GONE_ON: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._ASSIGNMENT_LOST,
    }
)


class GroupMember:
    """One member of a consumer group. Kafka assigns its partitions.

    Its commits carry the group's generation, so the commits of a dead member are void.
    """

    def __init__(self, cluster: Cluster, numbering: Numbering, group: str, topic: Topic, name: str, commit_every_s: float) -> None:
        self._cluster, self._numbering, self._group, self._topic = cluster, numbering, group, topic
        self._mine: dict[int, int] = {}
        self._offsets: dict[int, int] = {}  # Kafka's offsets of the positions, and after what was given out
        self._version = numbering.version
        self._totals: dict[int, dict[str, int]] = {}
        self._rewind_due = self._given = False
        self._rows_each = 1.0
        self._before: dict[int, int] = {}  # its positions in a life that is gone
        self._name, self._commit_every_s = cluster.owned(f"{group}-{name}"), commit_every_s
        self._consumer, self._transactions = self._joined()

    def _joined(self) -> tuple[Consumer, Transactions]:
        consumer = self._cluster.consumer(
            self._group,
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=int(SESSION_S * 1000),
            heartbeat_interval_ms=int(SESSION_S * 1000 / 3),
            max_poll_interval_ms=300_000,
        )
        with self._cluster.errors():
            consumer.subscribe([self._cluster.name(self._topic)], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost_all)
        return consumer, Transactions(self._cluster, consumer, self._name, self._commit_every_s)

    def _join_again(self) -> None:
        """Join again with new clients after Kafka has forgotten something.

        A client rejects any leader whose epoch is below one that it has seen.
        """
        self._before |= self._mine
        self._transactions.leave()
        with self._cluster.errors():
            self._consumer.close()
        self._mine, self._offsets, self._totals = {}, {}, {}
        self._version, self._rewind_due, self._given = self._numbering.version, False, False
        self._consumer, self._transactions = self._joined()

    @property
    def partitions(self) -> Sequence[int]:
        return sorted(self._mine)

    def poll(self, max_rows: int) -> Chunk | None:
        if self._given:  # given out but not committed: something failed in between, so read it again
            self._rewind_due, self._given = True, False
        try:
            messages = self._messages(max_rows)
        except PartitionLost as lost:
            log.info("%s This worker continues from the last commit.", lost)
            return None
        except Exception:
            self._rewind_due = True  # what came before the error is not lost with it, but read again
            raise
        if not messages:
            return None
        begin = {partition: self._mine[partition] for partition in {place(message)[0] for message in messages}}
        try:
            chunk, behind = chunk_of(self._topic, messages, begin, self._numbering.stretch)
        except TapelineError:
            self._rewind_due = True
            raise
        self._offsets |= behind
        self._rows_each = max(1.0, 0.5 * (self._rows_each + chunk.rows / len(messages)))
        self._given = True
        return chunk

    def _messages(self, max_rows: int) -> list[Message]:
        """Return the messages that have come from the member's own partitions, from its position in each."""
        if self._version != self._numbering.version:
            self._join_again()
        self._watch()
        with self._cluster.errors():
            first = self._consumer.poll(_POLL_S)
            most = max(1, min(MOST_MESSAGES, int(max_rows / self._rows_each)))
            came = [first, *self._consumer.consume(most, 0.0)] if first is not None else []
        if self._watch():
            return []  # what came lies after what has to be read again
        messages = []
        for message in came:
            error = message.error()
            if error is None:
                partition, offset = place(message)
                if partition in self._mine and offset >= self._offsets.get(partition, 0):
                    messages.append(message)
            elif error.code() in MOVED:
                self._numbering.look()
                self._take_up_again()
                return []
            elif error.code() != KafkaError._PARTITION_EOF:
                go_on_after(self._cluster, error)
        if messages:
            self._numbering.fresh()
        else:
            self._numbering.glance()
        # If the version has changed, the messages are from a life that is gone, or lie after what has still to be read.
        return messages if self._version == self._numbering.version else []

    def commit(self, chunk: Chunk, outputs: Outputs, totals: Totals) -> None:
        """As `Member.commit`, but the transaction ends later, in a thread of its own, every `stream.commit_ms`.

        If it fails there, a later call handles that: `poll` returns None or raises, or `commit` raises. Then everything since the last
        transaction that succeeded is read again.
        """
        self._given = False
        if self._watch() or any(self._mine.get(partition) != position for partition, position in chunk.begin.items()):
            raise self._taken_over()
        counted = self._totals.setdefault(min(chunk.next), {})  # any partition will do: only the sum is ever asked for
        for name, value in totals.items():
            if value:
                counted[name] = counted.get(name, 0) + value
        self._mine |= chunk.next
        offsets = [
            TopicPartition(
                self._cluster.name(self._topic),
                partition,
                self._offsets[partition],
                write_metadata(position, self._totals.get(partition, {})),
            )
            for partition, position in chunk.next.items()
        ]
        try:
            self._transactions.add(outputs, offsets)
        except KafkaException as error:
            self._failed(error)

    def close(self) -> None:
        """Commit what is open, waiting up to 20 s, and leave the group. The next worker repeats what was not committed.

        Raises Unavailable or Refused if the commit failed. The group is left all the same.
        """
        with self._cluster.errors():
            try:
                self._transactions.finish()
            except KafkaException as error:
                if error.args[0].code() not in {*_GONE_ON, KafkaError._FENCED}:
                    raise
                log.info("The next worker repeats what was not committed: %s", error)
            finally:
                self._transactions.leave()
                self._consumer.close()

    def _watch(self) -> bool:
        """Handle what has failed meanwhile. Return whether everything is read again from what is committed."""
        if not self._rewind_due:
            try:
                self._transactions.check()
            except KafkaException as error:
                self._failed(error)
        else:
            # A client joins its group anew only when it is polled. The rewind reads the dropped message again.
            with self._cluster.errors():
                self._consumer.poll(0.0)
            self._rewind()
            return True
        return False

    def _failed(self, error: KafkaException) -> None:
        """Undo the open transactions, so that the next call continues from what was committed. Raises what the error means."""
        self._rewind_due = True
        inner: KafkaError = error.args[0]
        if inner.code() in _GONE_ON:
            raise self._taken_over() from error
        if inner.code() == KafkaError._FENCED:
            raise PartitionLost(
                f"Kafka has ended a transaction of {self._group}: it was open for too long, or another worker has the same name."
            ) from error
        with self._cluster.errors():
            raise error

    def _taken_over(self) -> PartitionLost:
        return PartitionLost(f"Kafka has assigned partitions of {self._cluster.name(self._topic)} to another worker of {self._group}.")

    def _rewind(self) -> None:
        self._renew()
        self._load(sorted(self._mine))
        self._place()
        self._rewind_due = False

    def _take_up_again(self) -> None:
        """Go to the positions again after a log has changed."""
        for partition, one in self._numbering.find(self._topic, self._mine, reading=True).items():
            self._offsets[partition] = one.offset
        self._place()

    def _place(self) -> None:
        """Move the client to the position of every partition. Raises Unavailable.

        The partitions are assigned anew: a seek is impossible in one that the client does not fetch, be it because its log has changed,
        or because no broker answered when it asked for the group's position. No partition is left out: what came from it together with
        another's error was not given out, so it has to come again.
        """
        name = self._cluster.name(self._topic)
        with self._cluster.errors():
            self._consumer.incremental_unassign(self._consumer.assignment())
            self._consumer.incremental_assign([TopicPartition(name, partition, self._offsets[partition]) for partition in self._mine])

    def _anew(self) -> Transactions:
        return Transactions(self._cluster, self._consumer, self._name, self._commit_every_s)

    def _renew(self) -> None:
        """Replace the transactions. Afterwards the outcome of all earlier ones is settled."""
        self._transactions.leave()
        self._transactions = self._anew()
        with self._cluster.errors():
            self._transactions.start()

    def _load(self, partitions: Sequence[int]) -> None:
        """Load the group's positions and totals."""
        if not partitions:
            return
        try:
            committed = self._cluster.committed(self._consumer, self._topic, partitions, _PENDING_S)
        except Unavailable as error:
            with self._cluster.errors():
                self._transactions.sweep(self._topic, partitions)
            log.warning("%s Tapeline has aborted this worker's transactions that the broker had left open, and repeats them.", error)
            committed = self._cluster.committed(self._consumer, self._topic, partitions, _PENDING_S)
        self._numbering.fresh()
        begun = self._numbering.begun(self._topic)
        for one in committed:
            before, position = self._before.get(one.partition, 0), read_position(one.metadata)
            if one.offset < 0:  # a group forgets its position in a topic that is removed
                position = before if before < begun[one.partition] else 0
            elif position is None:
                position = self._numbering.number_at(self._topic, one.partition, one.offset)
            where = self._numbering.find(self._topic, {one.partition: position}, reading=True)[one.partition].offset
            low = self._cluster.watermarks(self._consumer, self._topic, one.partition)[0] if where < 0 else where
            self._mine[one.partition], self._offsets[one.partition] = position, low
            self._totals[one.partition] = read_totals(one.metadata)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        new = [partition.partition for partition in partitions]
        try:
            if not self._transactions.started:
                self._renew()
            self._load(new)
        except TapelineError as error:
            # The partitions are ours all the same. Where to read is determined again before anything of them is read.
            log.warning("%s", error)
            self._rewind_due = True
        consumer.incremental_assign([TopicPartition(self._cluster.name(self._topic), p, self._offsets.get(p, OFFSET_STORED)) for p in new])
        for partition in new:
            self._mine.setdefault(partition, 0)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit what was made of these partitions before another member reads on."""
        try:
            self._transactions.finish()
        except KafkaException as error:
            log.info("The next worker repeats what was not committed: %s", error)
            self._rewind_due = True
        self._let_go(consumer, partitions)

    def _lost_all(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Drop everything: another member has the partitions already."""
        self._transactions.leave()
        self._rewind_due = True
        self._let_go(consumer, partitions)

    def _let_go(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._mine.pop(partition.partition, None)
            self._offsets.pop(partition.partition, None)
            self._totals.pop(partition.partition, None)
        consumer.incremental_unassign(partitions)
