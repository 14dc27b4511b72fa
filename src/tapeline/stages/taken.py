"""Finds how far in the raw topic every store has all events, so that the ledger may count them as present.

The ledger's claims are about what a reader finds in the stores, so the ledger follows behind them. First, the position of normalize in the
raw topic is read. Then the ends of the normalized topics are read. When every store has read up to those ends, the stores have everything
up to that raw position. If a topic lost records in the meantime, nobody knows what normalize or a store had not read of it. Then nothing
before the current position of normalize is counted as present.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tapeline.records import NORMALIZED_TOPICS, NS_PER_S, RAW_TOPIC, Topic
from tapeline.streams import Stream

_LOOK_EVERY_NS: Final = NS_PER_S // 4
#: (topic name, partition) -> offset.
Places = Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class Reach:
    """How far the ledger may read, as positions of the raw topic: partition -> offset."""

    #: Normalize has read everything before this, and every store has taken the events.
    settled: Mapping[int, int]
    #: Everything before this may have been lost before every store had it.
    doubtful: Mapping[int, int]


class Taken:
    """Tracks how far every store has read. It queries the stream at most four times a second."""

    def __init__(self, stream: Stream, normalize: str, stores: Sequence[str], clock: Callable[[], int]) -> None:
        """`normalize`, `stores`: the names of the consumer groups. `clock`: UTC, ns."""
        self._stream, self._normalize, self._stores, self._clock = stream, normalize, stores, clock
        self._reach = Reach({}, {})
        #: The offset at which each partition's present life begins, as of the last query; None before the first.
        self.lives: Places | None = None
        self._open: tuple[Mapping[int, int], Places] | None = None
        self._due_ns = 0

    def begin(self, lives: Places | None) -> None:
        """Continue with the lives that an earlier process saw last; None if there were none."""
        self.lives = lives

    def reach(self, *, now: bool = False) -> Reach:
        """The reach as of the last query. `now=True` queries the stream first. Raises Unavailable while the stream is away."""
        if not now and self._clock() < self._due_ns:
            return self._reach
        self._due_ns = self._clock() + _LOOK_EVERY_NS
        begun = self._lives()
        if self.lives is not None and any(place in self.lives and life != self.lives[place] for place, life in begun.items()):
            self._open = None
            self._reach = Reach(self._reach.settled, self._stream.positions(self._normalize, RAW_TOPIC))
        self.lives = begun
        if self._open is None:
            # Position first, ends second: then the events of all records before the position lie before the ends.
            at = self._stream.positions(self._normalize, RAW_TOPIC)
            self._open = (at, self._by_place(self._stream.ends))
        reached, ends = self._open
        # A topic may have begun anew since `begun` was read. Then the position of normalize says nothing about the life before.
        if all(self._has(store, topic, ends) for store in self._stores for topic in NORMALIZED_TOPICS) and self._lives() == begun:
            self._reach, self._open = Reach(reached, self._reach.doubtful), None
        return self._reach

    def _lives(self) -> Places:
        """The lives of the normalized topics and of the raw topic. Raw records may be lost before normalize reads them."""
        raw = {(RAW_TOPIC.name, partition): life for partition, life in self._stream.lives(RAW_TOPIC).items()}
        return {**self._by_place(self._stream.lives), **raw}

    def _by_place(self, query: Callable[[Topic], Mapping[int, int]]) -> Places:
        return {(topic.name, partition): offset for topic in NORMALIZED_TOPICS for partition, offset in query(topic).items()}

    def _has(self, store: str, topic: Topic, ends: Places) -> bool:
        """Whether a store has read all of a topic up to `ends`.

        A position may stay below an end although nothing is left to read, because some offsets hold no record. So the lag decides."""
        positions = self._stream.positions(store, topic)
        short = [partition for (name, partition), end in ends.items() if name == topic.name and positions.get(partition, 0) < end]
        if not short:
            return True
        waiting = self._stream.lag(topic, positions)
        return not any(waiting[partition] for partition in short)
