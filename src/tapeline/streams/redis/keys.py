"""The keys in Redis, and what an end says: where a partition ends, and its last jump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tapeline.records import Topic


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of all keys, each behind the same prefix."""

    prefix: str

    def stream(self, topic: Topic, partition: int) -> str:
        """The Redis Stream of one partition."""
        return f"{self.prefix}{topic.name}:{partition}"

    def end(self, topic: Topic, partition: int) -> str:
        return self._ours(f"end:{topic.name}:{partition}")

    def totals(self, group: str) -> str:
        return self._ours(f"totals:{group}")

    def writer(self, name: str) -> str:
        return self._ours(f"writer:{name}")

    def writer_end(self, name: str) -> str:
        return self._ours(f"writer-end:{name}")

    def lease(self, name: str) -> str:
        return self._ours(f"lease:{name}")

    @property
    def facts(self) -> str:
        return self._ours("facts")

    def _ours(self, name: str) -> str:
        return f"{self.prefix}tapeline:{name}"


class End(NamedTuple):
    """Where a partition ends, and its last jump: behind `before` came `since`."""

    next: int
    before: int
    since: int

    def records(self, position: int) -> int:
        """From a position on, where there is at least one."""
        jumped = self.since - max(self.before, position)
        return max(1, self.next - position - max(0, jumped))

    def back(self, rows: int) -> int:
        """The position with so many records behind it."""
        position = self.next - rows
        return max(0, position if position >= self.since else position - (self.since - self.before))


def literal(text: str) -> str:
    """A text as a pattern that matches it alone."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in text)
