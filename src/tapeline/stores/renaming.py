"""Correcting a symbol that was kept under a wrong name: the interface of every store, and its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final, Protocol

from tapeline.records import NORMALIZED_TOPICS, Topic

#: The topics whose records name a symbol.
NAMING: Final = tuple(topic for topic in NORMALIZED_TOPICS if "symbol" in topic.schema.names)
#: Called with what is being worked on, the rows done and the rows in total.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Renaming:
    """Which records to rename, and their new name."""

    provider: str
    feed: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """What became, or would become, of one UTC day of one table."""

    store: str
    table: str
    day: date
    rows: int  # rows that have the new name now
    # rows under either name that were removed, because their event came earlier under the other name
    duplicates: int


class Renames(Protocol):
    """A store that can rename a symbol, one day of a table at a time.

    After a crash the finished days stay done, and the call is repeated.
    """

    @property
    def name(self) -> str:
        """The store's name, as used in commands."""

    def positions(self, topic: Topic) -> Mapping[int, int]:
        """Return where the store reads each partition of a topic next; 0 for partitions that are not listed.

        Raises Unavailable or NewerData.
        """

    def rename(self, renaming: Renaming, progress: Progress, *, dry_run: bool) -> Iterator[Renamed]:
        """Rename each UTC day that has rows under the old name, and yield its result. `dry_run`: nothing is changed.

        The store must not write meanwhile. Raises Busy, Unavailable or NewerData; the days yielded before are done."""
