"""The keys in Redis, and the end of a partition with its last jump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tapeline.records import Topic


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of all keys, each with the same prefix."""

    prefix: str

    def stream(self, topic: Topic, partition: int) -> str:
        """Return the key of one partition's Redis Stream."""
        return f"{self.prefix}{topic.name}:{partition}"

    def end(self, topic: Topic, partition: int) -> str:
        """Return the key of the hash that says where a partition ends: next offset, last jump, present life and its records."""
        return self._ours(f"end:{topic.name}:{partition}")

    def totals(self, group: str) -> str:
        """Return the key of the hash that maps the names of a group's totals to their values."""
        return self._ours(f"totals:{group}")

    def writer(self, name: str) -> str:
        """Return the key of the number of a writer's last batch. It expires 30 days after that batch.

        `bar.lua` sets it above every number, so that Redis writes nothing more of a dead writer.
        """
        return self._ours(f"writer:{name}")

    def writer_end(self, name: str) -> str:
        """Return the key of the number that a barred writer had come to. It exists from then on, for 30 days."""
        return self._ours(f"writer-end:{name}")

    def lease(self, name: str) -> str:
        """Return the key whose value is the token of the lease's holder. An empty name gives the prefix of all leases."""
        return self._ours(f"lease:{name}")

    @property
    def facts(self) -> str:
        """The key of the hash with the stream's format, its number of partitions, and its notes."""
        return self._ours("facts")

    def _ours(self, name: str) -> str:
        return f"{self.prefix}tapeline:{name}"


class End(NamedTuple):
    """Where a partition ends, and its last jump: offset `since` followed directly after `before`."""

    next: int
    before: int
    since: int

    def records(self, position: int) -> int:
        """Return the number of records from a position on. There must be at least one."""
        jumped = self.since - max(self.before, position)
        return max(1, self.next - position - max(0, jumped))

    def back(self, rows: int) -> int:
        """Return the position that has `rows` records after it."""
        position = self.next - rows
        return max(0, position if position >= self.since else position - (self.since - self.before))


def literal(text: str) -> str:
    """Return a pattern that matches only this text."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in text)
