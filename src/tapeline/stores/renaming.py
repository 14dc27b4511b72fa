"""A symbol that was kept under a wrong name gets its right one: what every store does of it, and what it says of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final, Protocol

from tapeline.records import NORMALIZED_TOPICS, Topic

#: The topics whose records name a symbol.
NAMING: Final = tuple(topic for topic in NORMALIZED_TOPICS if "symbol" in topic.schema.names)
#: Told what is worked on, the rows done and the rows there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Renaming:
    """Which records are meant, and the name that they get."""

    provider: str
    feed: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """What became of one UTC day of one table, or would."""

    store: str
    table: str
    day: date
    rows: int  # that have the new name now
    duplicates: int  # rows under either name that were removed: their event came earlier under the other one


class Renames(Protocol):
    """A store that can do it, a day of a table at a time: who is killed in between has done the days before, and is called again."""

    @property
    def name(self) -> str:
        """The store's name, as in commands."""

    def positions(self, topic: Topic) -> Mapping[int, int]:
        """Where the store reads each partition of a topic next; 0 for those that are not named. Raises Unavailable, NewerData."""

    def rename(self, renaming: Renaming, progress: Progress, *, dry_run: bool) -> Iterator[Renamed]:
        """Each day with rows under the old name. `dry_run`: nothing is changed. The store must not write meanwhile.

        Raises Busy, Unavailable, NewerData: what came before is done."""
