"""How far in the raw topic every store has taken what normalize made of it: what the ledger may call there.

A claim about data is one about what a reader of the stores finds. So the ledger follows behind them: it looks where normalize is in the raw
topic, then where the normalized topics end, and once every store is behind those ends, it has everything up to that place. Where one
of the topics has lost what it held meanwhile, nobody knows what normalize or a store had not read of it: then nothing up to where
normalize is by then is called there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tapeline.records import NORMALIZED_TOPICS, NS_PER_S, RAW_TOPIC, Topic
from tapeline.streams import Stream

_LOOK_EVERY_NS: Final = NS_PER_S // 4
#: By the topic's name and the partition.
Places = Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class Reach:
    """How far the ledger may read: positions of the raw topic."""

    #: Everything before is dealt with: normalize has read it, and no store has anything of it still to take.
    settled: Mapping[int, int]
    #: Of that, what lies before may have been forgotten before every store had it.
    doubtful: Mapping[int, int]


class Taken:
    """Asks the stream, a few times a second at most."""

    def __init__(self, stream: Stream, normalize: str, stores: Sequence[str], clock: Callable[[], int]) -> None:
        """`normalize`, `stores`: the names of their groups."""
        self._stream, self._normalize, self._stores, self._clock = stream, normalize, stores, clock
        self._reach = Reach({}, {})
        #: Where the life of each partition of the topics began, at the last look.
        self.lives: Places | None = None
        self._open: tuple[Mapping[int, int], Places] | None = None
        self._due_ns = 0

    def begin(self, lives: Places | None) -> None:
        """Take up what another process saw last."""
        self.lives = lives

    def reach(self, *, now: bool = False) -> Reach:
        """As of the last look; `now`: as of this moment."""
        if not now and self._clock() < self._due_ns:
            return self._reach
        self._due_ns = self._clock() + _LOOK_EVERY_NS
        begun = self._lives()
        if self.lives is not None and any(place in self.lives and life != self.lives[place] for place, life in begun.items()):
            self._open = None
            self._reach = Reach(self._reach.settled, self._stream.positions(self._normalize, RAW_TOPIC))
        self.lives = begun
        if self._open is None:
            # In this order: what was made of the records before the one lies before the others.
            at = self._stream.positions(self._normalize, RAW_TOPIC)
            self._open = (at, self._asked(self._stream.ends))
        reached, ends = self._open
        # A topic may have begun anew since the first question: then normalize may stand in a life that says nothing of the one before.
        if all(self._has(store, topic, ends) for store in self._stores for topic in NORMALIZED_TOPICS) and self._lives() == begun:
            self._reach, self._open = Reach(reached, self._reach.doubtful), None
        return self._reach

    def _lives(self) -> Places:
        """Of the raw topic too: what was read of it and lost before normalize had read it is not there."""
        raw = {(RAW_TOPIC.name, partition): life for partition, life in self._stream.lives(RAW_TOPIC).items()}
        return {**self._asked(self._stream.lives), **raw}

    def _asked(self, question: Callable[[Topic], Mapping[int, int]]) -> Places:
        return {(topic.name, partition): found for topic in NORMALIZED_TOPICS for partition, found in question(topic).items()}

    def _has(self, store: str, topic: Topic, ends: Places) -> bool:
        """Whether a store has read a topic up to the ends, or up to where nothing follows: not all that takes an offset is a record."""
        positions = self._stream.positions(store, topic)
        short = [partition for (name, partition), end in ends.items() if name == topic.name and positions.get(partition, 0) < end]
        if not short:
            return True
        waiting = self._stream.lag(topic, positions)
        return not any(waiting[partition] for partition in short)
