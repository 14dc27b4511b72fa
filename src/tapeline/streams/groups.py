"""Partition assignment by leases: members of a group take a fair share of the partitions and take over from members that died.

It serves streams that have no consumer groups to assign partitions. A lease only decides which member works on a partition. A lease
does not prevent a double commit; the commit itself does: it moves the group's position from where the chunk began, or does nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from tapeline.errors import Busy, Unavailable
from tapeline.records import Chunk, Topic
from tapeline.streams import Outputs, PartitionLost, Totals

#: A lease that is not renewed for this long is free.
LEASE_S: Final = 3.0
_RENEW_EVERY_S: Final = LEASE_S / 4


class LeaseBook(Protocol):
    """Where leases are stored. Each call is one atomic step."""

    def take(self, name: str, token: str, seconds: float) -> bool:
        """Take a free lease or renew one's own. Returns False if another token holds it."""

    def drop(self, name: str, token: str) -> None:
        """Release the lease if `token` holds it."""

    def taken(self, prefix: str) -> dict[str, str]:
        """Return the leases that are held now, as a mapping of name to token."""


class BookLease:
    """One lease, which its holder keeps renewing."""

    def __init__(self, book: LeaseBook, name: str, what: str) -> None:
        self._book, self._name, self._what = book, name, what
        self._token = uuid.uuid4().hex
        self.keep()

    def keep(self) -> None:
        """As `Lease.keep`, but a lease that has expired is taken again if nobody else holds it."""
        if not self._book.take(self._name, self._token, LEASE_S):
            raise Busy(f"Another process holds {self._what}. Stop that process. If it has died, this one can start in {LEASE_S:.0f} s.")

    def drop(self) -> None:
        self._book.drop(self._name, self._token)


class Shares:
    """The partitions that one member of a group works on."""

    def __init__(
        self, book: LeaseBook, group: str, topic: str, count: int, name: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._book, self._count, self._clock = book, count, clock
        self._token = name or uuid.uuid4().hex
        self._members = f"member/{group}/{topic}/"
        self._prefix = f"partition/{group}/{topic}/"
        self._mine: list[int] = []
        self._due = 0.0

    def now(self) -> Sequence[int]:
        """Return this member's partitions. Consults the lease book only as often as leases need it."""
        now = self._clock()
        if now >= self._due:
            self._due = now + _RENEW_EVERY_S
            self._mine = self._settle()
        return self._mine

    def lost(self) -> None:
        """Note that another member has taken over some partitions. The next call of `now` consults the lease book."""
        self._due = 0.0

    def _settle(self) -> list[int]:
        self._book.take(self._members + self._token, self._token, LEASE_S)
        mine = [partition for partition in self._mine if self._book.take(f"{self._prefix}{partition}", self._token, LEASE_S)]
        members = sorted(self._book.taken(self._members).values())
        if self._token not in members:
            return mine
        # If the partitions do not divide evenly, the first members in the order of their tokens take one more.
        share = self._count // len(members) + (members.index(self._token) < self._count % len(members))
        for partition in mine[share:]:
            self._book.drop(f"{self._prefix}{partition}", self._token)
        mine = mine[:share]
        for partition in range(self._count):
            if len(mine) >= share:
                break
            if partition not in mine and self._book.take(f"{self._prefix}{partition}", self._token, LEASE_S):
                mine.append(partition)
        return sorted(mine)

    def close(self) -> None:
        """Release all leases of this member. Raises Unavailable; what was not released expires within `LEASE_S`."""
        for partition in self._mine:
            self._book.drop(f"{self._prefix}{partition}", self._token)
        self._book.drop(self._members + self._token, self._token)
        self._mine = []


class Groups(Protocol):
    """What a stream stores about its groups."""

    def positions(self, group: str, topic: Topic) -> dict[int, int]:
        """Return where `group` reads each partition next."""

    def commit(self, group: str, chunk: Chunk, outputs: Outputs, totals: Totals) -> None:
        """As `Member.commit`. Raises PartitionLost if the group's position is not where the chunk begins."""


class SharedMember:
    """A member of a group that works on the partitions whose leases it holds."""

    def __init__(
        self, stream: Groups, group: str, topic: Topic, shares: Shares, read: Callable[[Topic, Mapping[int, int], int], Chunk | None]
    ) -> None:
        """`read` returns the next records of a topic from the given positions on, up to about the given number of rows."""
        self._stream, self._group, self._topic, self._shares, self._read = stream, group, topic, shares, read
        self._positions: dict[int, int] = {}

    @property
    def partitions(self) -> tuple[int, ...]:
        return tuple(self._positions)

    def poll(self, max_rows: int) -> Chunk | None:
        mine = self._shares.now()
        if tuple(mine) != self.partitions:
            positions = self._stream.positions(self._group, self._topic)
            self._positions = {partition: self._positions.get(partition, positions[partition]) for partition in mine}
        return self._read(self._topic, self._positions, max_rows) if self._positions else None

    def commit(self, chunk: Chunk, outputs: Outputs, totals: Totals) -> None:
        try:
            self._stream.commit(self._group, chunk, outputs, totals)
        except PartitionLost:
            self._positions = {}
            self._shares.lost()
            raise
        except Unavailable:
            # The commit may have succeeded although no answer came. The group's own position shows which.
            self._positions = {}
            raise
        self._positions |= chunk.next

    def close(self) -> None:
        self._shares.close()
