"""Which clients are logged in, and the limit on the connections of each key and endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

Member = TypeVar("Member")


class Accounts(Generic[Member]):
    """The members of each account, oldest first, and the slots that stay taken although their member is gone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._members: dict[Hashable, list[Member]] = {}
        self._zombies: dict[Hashable, list[float]] = {}

    def join(self, account: Hashable, member: Member) -> None:
        """Take a slot."""
        self._members.setdefault(account, []).append(member)

    def leave(self, account: Hashable, member: Member, counted_until: float | None = None) -> None:
        """Give the slot back: now, or at `counted_until` (a zombie slot)."""
        members = self._members.get(account, [])
        if member in members:
            members.remove(member)
            if counted_until is not None:
                self._zombies.setdefault(account, []).append(counted_until)

    def excess(self, account: Hashable, now: float) -> int:
        """How many connections there are beyond the limit."""
        zombies = [until for until in self._zombies.get(account, ()) if until > now]
        self._zombies[account] = zombies
        return len(self._members.get(account, ())) + len(zombies) - self._most

    def oldest(self, account: Hashable) -> Member:
        """The member that has been there longest."""
        return self._members[account][0]
