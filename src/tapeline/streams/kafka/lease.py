"""A lease by Kafka's own means: a group with one partition, which only one member can have."""

from __future__ import annotations

import re
import time
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tapeline.errors import Busy
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
                    elsewhere = self._held_elsewhere()
                    due, rest_s = now + rest_s, min(2 * rest_s, _LONGEST_REST_S)
        if not self._have and not elsewhere:
            raise cluster.silent(f"the holder of {name} was not reported within {3 * SESSION_S:.0f} s")
        self.keep()

    def _held_elsewhere(self) -> bool:
        """Return whether the group says that another member has the partition."""
        held = self._cluster.holders(self._group)
        return bool(held - {self._consumer.memberid()})

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.answered, self._have = True, self._have or bool(partitions)
        consumer.incremental_assign([TopicPartition(some.topic, some.partition, OFFSET_BEGINNING) for some in partitions])

    def _gone(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._have = False
        consumer.incremental_unassign(partitions)

    def keep(self) -> None:
        """As `Lease.keep`. If the lease was lost, this also drops it, and must not be called again."""
        with self._cluster.errors():
            self._consumer.poll(0)
        if not self._have:
            self.drop()
            raise Busy(f"Another process holds {self._name}. Stop that process. If it has died, this one can start in {SESSION_S:.0f} s.")

    def drop(self) -> None:
        self._consumer.close()
