"""Lives of a stream: a stream that starts again after losing its data never reuses an offset.

A Redis that comes back empty, or a stream folder that was removed, has forgotten where its offsets were. Stores, groups and the ledger
still hold the earlier positions. So each life of a partition begins at a number derived from the time of its start. That number is
above every number of an earlier life, so a position alone shows which life it belongs to. A reader whose position lies before the
present life continues with what is there, and knows that what it had not read yet is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from tapeline.records import NS_PER_MS, Chunk, Topic
from tapeline.streams import Stream, Totals

#: A life may give this many numbers for each millisecond that it lasts. At a higher rate its numbers could meet those of the next life.
_PER_MS: Final = 1 << 10
_NOT_YET: Final = 1 << 62


def birth(now_ns: int) -> int:
    """Return the first offset of a life that begins now.

    It stays below 2^53 until the year 2248, because Redis' scripts count in float64.
    """
    return now_ns // NS_PER_MS * _PER_MS


def crossed(chunk: Chunk, lives: Callable[[Topic], Mapping[int, int]]) -> list[int]:
    """Return the partitions in which the chunk continues in a later life than that of the position it was read from.

    `lives` works as `Stream.lives`. It is called only if offsets jump: rarely, except on Kafka, where they jump from message to message
    and `lives` answers from memory."""
    leaps = [p for p in _jumping(chunk) if 0 < chunk.begin[p] < chunk.next[p]]
    if not leaps:
        return []
    begun = lives(chunk.topic)
    return [partition for partition in leaps if chunk.begin[partition] < begun.get(partition, 0) <= chunk.next[partition]]


def rows_of(chunk: Chunk, lives: Mapping[int, int]) -> int:
    """Return how many records of a chunk belong to the present lives.

    The counts of a present life do not include records read in an earlier life.

    A partition whose life is 0 has had nothing written since, so none of its records count."""
    begun = np.array([lives.get(partition, 0) or _NOT_YET for partition in range(max(chunk.next, default=0) + 1)], np.int64)
    return int(np.count_nonzero(chunk.offset >= begun[chunk.partition]))


def read_of(totals: Totals, partition: int, since: int) -> int | None:
    """Return how many records a group has read of the partition's life that begins at offset `since`.

    None: the group has not counted all of them.
    """
    return totals.get(_read(partition, since), 0) if totals.get(_from_first(partition, since)) == 1 else None


def _read(partition: int, since: int) -> str:
    return f"read@{partition}@{since}"


def _from_first(partition: int, since: int) -> str:
    """Return the name of the total that is 1 if the life is counted from its first record on.

    If totals were lost in the middle of a life, this one is missing, which shows the loss.
    """
    return f"from-first@{partition}@{since}"


class ReadOfLives:
    """Counts what a group reads of each partition's present life, for comparison with what was written to it (`Stream.written`).

    A life is counted from its first record on, or not at all. A group that lost its position counts again from the first record, if
    that record is still there."""

    def __init__(self, stream: Stream, group: str) -> None:
        self._stream, self._group = stream, group
        self._at: dict[int, int] = {}
        #: The first offset of the life that is counted. None: the partition's life is not counted.
        self._since: dict[int, int | None] = {}

    def of(self, chunk: Chunk) -> Totals:
        """Return what to add to the group's totals when it commits the chunk.

        The stream is asked only if a life may have begun or another member may have read in between."""
        jumping = set(_jumping(chunk))
        doubtful = [p for p, begin in chunk.begin.items() if begin != self._at.get(p) or p in jumping]
        written = self._stream.written(chunk.topic) if doubtful else {}
        totals = self._stream.totals(self._group) if written else {}
        more: dict[str, int] = {}
        for partition in doubtful:
            self._since[partition] = None
            if partition in written:
                more |= self._begin(chunk, partition, written[partition].since, totals)
        for partition, since in self._since.items():
            if since is not None and partition in chunk.begin:
                name = _read(partition, since)
                more[name] = more.get(name, 0) + int(np.count_nonzero(_offsets(chunk, partition) >= since))
        self._at |= chunk.next
        return more

    def _begin(self, chunk: Chunk, partition: int, since: int, totals: Totals) -> Totals:
        """Decide whether a life is counted, and return what to add so that its total is right before the chunk is counted."""
        read, whole = _read(partition, since), _from_first(partition, since)
        if chunk.next[partition] <= since:
            return {}  # the chunk has not reached this life yet
        if chunk.begin[partition] > since:
            self._since[partition] = since if read_of(totals, partition, since) is not None else None
            return {}
        if since not in _offsets(chunk, partition):
            return {whole: -totals.get(whole, 0)}
        self._since[partition] = since
        return {whole: 1 - totals.get(whole, 0), read: -totals.get(read, 0)}


def _offsets(chunk: Chunk, partition: int) -> np.ndarray:
    offsets: np.ndarray = chunk.offset[chunk.partition == partition]
    return offsets


def _jumping(chunk: Chunk) -> list[int]:
    """Return the partitions of which the chunk does not hold every offset from its begin to its end."""
    counts = np.bincount(chunk.partition, minlength=max(chunk.begin, default=0) + 1)
    return [p for p, begin in chunk.begin.items() if counts[p] != chunk.next[p] - begin]
