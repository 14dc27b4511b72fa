"""Lives of a stream: one that was begun anew, because what it held is gone, gives no number that was ever given before.

A Redis that comes back empty and a removed folder forget where their offsets were; stores, groups and the ledger still hold positions
of before. So each life of a partition begins at a number that follows from its first moment: it lies above every number of an earlier
life, and a position says by itself which life it is of. A reader whose position lies before the present life goes on with what is
there, and knows that what it had not read yet is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from tapeline.records import NS_PER_MS, Chunk, Topic
from tapeline.streams import Stream, Totals

#: A life may give so many numbers for each millisecond that it lasts before the next one could meet them.
_PER_MS: Final = 1 << 10
_NOT_YET: Final = 1 << 62


def birth(now_ns: int) -> int:
    """The first offset of a life that begins now. Below 2^53 until the year 2248: Redis' scripts count in float64."""
    return now_ns // NS_PER_MS * _PER_MS


def crossed(chunk: Chunk, lives: Callable[[Topic], Mapping[int, int]]) -> list[int]:
    """The partitions in which a chunk goes on in a later life than that of the position it was read from.

    `lives`: as `Stream.lives`; asked only where offsets jump, which is seldom."""
    leaps = [p for p, position in chunk.begin.items() if 0 < position < chunk.next[p] and not _dense(chunk, p)]
    if not leaps:
        return []
    begun = lives(chunk.topic)
    return [partition for partition in leaps if chunk.begin[partition] < begun.get(partition, 0) <= chunk.next[partition]]


def rows_of(chunk: Chunk, lives: Mapping[int, int]) -> int:
    """How many records of a chunk are of the present lives: what was read in an earlier one is not in their counts.

    Of a partition to which nothing has been written since (0) there are none."""
    begun = np.array([lives.get(partition, 0) or _NOT_YET for partition in range(max(chunk.next, default=0) + 1)], np.int64)
    return int(np.count_nonzero(chunk.offset >= begun[chunk.partition]))


def read_of(totals: Totals, partition: int, since: int) -> int | None:
    """How many records a group has read of the life of a partition that begins at the offset `since`; None: it has not counted them all."""
    return totals.get(_read(partition, since), 0) if totals.get(_from_first(partition, since)) == 1 else None


def _read(partition: int, since: int) -> str:
    return f"read@{partition}@{since}"


def _from_first(partition: int, since: int) -> str:
    """The total that is 1 where the life is counted from its first record on: totals that were lost in the midst of it are told by that."""
    return f"from-first@{partition}@{since}"


class ReadOfLives:
    """Counts what a group reads of each partition's present life, to be held against what was written to it (`Stream.written`).

    A life is counted from its first record on, or not at all. A group whose place was lost counts again from the first record, where
    that is still there."""

    def __init__(self, stream: Stream, group: str) -> None:
        self._stream, self._group = stream, group
        self._at: dict[int, int] = {}
        #: The life that is counted, by its first offset; None: not this one.
        self._since: dict[int, int | None] = {}

    def of(self, chunk: Chunk) -> Totals:
        """What is to be added to the group's totals when it commits the chunk. The stream is asked only where a life may have begun, or
        another member may have read in between."""
        doubtful = [p for p, begin in chunk.begin.items() if begin != self._at.get(p) or not _dense(chunk, p)]
        written = self._stream.written(chunk.topic) if doubtful else {}
        totals = self._stream.totals(self._group) if written else {}
        found: dict[str, int] = {}
        for partition in doubtful:
            self._since[partition] = None
            if partition in written:
                found |= self._begin(chunk, partition, written[partition].since, totals)
        for partition, since in self._since.items():
            if since is not None and partition in chunk.begin:
                name = _read(partition, since)
                found[name] = found.get(name, 0) + int(np.count_nonzero(_offsets(chunk, partition) >= since))
        self._at |= chunk.next
        return found

    def _begin(self, chunk: Chunk, partition: int, since: int, totals: Totals) -> Totals:
        """Decide whether a life is counted. What is to be added so that its total is right before the chunk is counted."""
        read, whole = _read(partition, since), _from_first(partition, since)
        if chunk.next[partition] <= since:
            return {}  # it has not come yet
        if chunk.begin[partition] > since:
            self._since[partition] = since if read_of(totals, partition, since) is not None else None
            return {}
        if since not in _offsets(chunk, partition):
            return {whole: -totals.get(whole, 0)}
        self._since[partition] = since
        return {whole: 1 - totals.get(whole, 0), read: -totals.get(read, 0)}


def _offsets(chunk: Chunk, partition: int) -> np.ndarray:
    found: np.ndarray = chunk.offset[chunk.partition == partition]
    return found


def _dense(chunk: Chunk, partition: int) -> bool:
    """Whether a chunk has each offset from its begin to its end."""
    return len(_offsets(chunk, partition)) == chunk.next[partition] - chunk.begin[partition]
