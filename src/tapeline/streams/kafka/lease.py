"""A lease by Kafka's own means: a group with one partition, which only one member can have."""

from __future__ import annotations

import re
import time
from concurrent.futures import Future
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tapeline.errors import Busy
from tapeline.local.threads import concurrently
from tapeline.streams.kafka.cluster import Cluster
from tapeline.streams.kafka.group import SESSION_S

#: The first interval between two requests for the holder of a lease. It doubles up to the longest one.
_FIRST_REST_S: Final = 0.1
_LONGEST_REST_S: Final = 1.0


class GroupLease:
    """A lease by Kafka's own means: a group with one partition, which only one member can have."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self._name = cluster, name
        self._group = f"lease-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}"
        self.answered = self._have = False
        #: The ids under which the group has known this process. It gets a new one when it joins again.
        self._ids: set[str] = set()
        self._question: Future[set[str]] | None = None
        self._consumer = cluster.consumer(
            self._group,
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=int(SESSION_S * 1000),
            heartbeat_interval_ms=int(SESSION_S * 1000 / 3),
            max_poll_interval_ms=300_000,
        )
        try:
            self._ask(name)
        except BaseException:
            self.drop()  # a member left behind could be given the lease, and then nobody would have it
            raise

    def _ask(self, name: str) -> None:
        """Wait for the group's answer. Raises Busy, Unavailable or Refused."""
        cluster = self._cluster
        with cluster.errors():
            self._consumer.subscribe([cluster.leases], on_assign=self._assigned, on_revoke=self._gone, on_lost=self._gone)
            deadline = time.monotonic() + 3 * SESSION_S
            elsewhere, due, rest_s = False, 0.0, _FIRST_REST_S
            while not self._have and not elsewhere and (now := time.monotonic()) < deadline:
                self._consumer.poll(_FIRST_REST_S)
                # A group that has only just learned of the topic assigns nothing at first. That does not mean that another member has the
                # lease.
                if self.answered and not self._have and now >= due:
                    elsewhere = self._not_ours(self._holders())
                    due, rest_s = now + rest_s, min(2 * rest_s, _LONGEST_REST_S)
        if not self._have and not elsewhere:
            raise cluster.silent(f"the holder of {name} was not reported within {3 * SESSION_S:.0f} s")
        if not self._have:
            raise self._busy()

    def _holders(self) -> set[str]:
        """Return the members of the group that have the partition. Raises Unavailable."""
        return self._cluster.holders(self._group)

    def _not_ours(self, holders: set[str]) -> bool:
        """Whether another process is among these members. A group that was away for a while may know this one by an earlier id."""
        self._ids.add(self._consumer.memberid())
        return bool(holders - self._ids)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.answered, self._have = True, self._have or bool(partitions)
        self._ids.add(consumer.memberid())
        consumer.incremental_assign([TopicPartition(some.topic, some.partition, OFFSET_BEGINNING) for some in partitions])

    def _gone(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._have = self.answered = False
        consumer.incremental_unassign(partitions)

    def keep(self) -> None:
        """As `Lease.keep`. If another process has the lease, this also drops it, and must not be called again.

        A member that does not reach its group for a session loses the partition, also if the brokers were away and nobody else could get
        it. Then it joins again by itself. The lease counts as lost only if the group then gives the partition to another member."""
        with self._cluster.errors():
            self._consumer.poll(0)
        if self._have:
            self._question = None
            return
        if self._question is None and self.answered:  # not earlier: a request to a group that is away may end the process
            self._question = concurrently(self._holders, "lease")
        if self._question is None or not self._question.done():
            return
        question, self._question = self._question, None
        if self._not_ours(question.result()):
            self.drop()
            raise self._busy()

    def _busy(self) -> Busy:
        return Busy(f"Another process holds {self._name}. Stop that process. If it has died, this one can start in {SESSION_S:.0f} s.")

    def drop(self) -> None:
        self._consumer.close()
