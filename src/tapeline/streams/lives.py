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

#: A life may give so many numbers for each millisecond that it lasts before the next one could meet them.
_PER_MS: Final = 1 << 10
_NOT_YET: Final = 1 << 62


def birth(now_ns: int) -> int:
    """The first offset of a life that begins now. Below 2^53 until the year 2248: Redis' scripts count in float64."""
    return now_ns // NS_PER_MS * _PER_MS


def crossed(chunk: Chunk, lives: Callable[[Topic], Mapping[int, int]]) -> list[int]:
    """The partitions in which a chunk goes on in a later life than that of the position it was read from.

    `lives`: as `Stream.lives`; asked only where offsets jump, which is seldom."""
    leaps = [
        partition
        for partition, position in chunk.begin.items()
        if 0 < position < chunk.next[partition] and _first(chunk, partition) > position
    ]
    if not leaps:
        return []
    begun = lives(chunk.topic)
    return [partition for partition in leaps if chunk.begin[partition] < begun.get(partition, 0) <= chunk.next[partition]]


def _first(chunk: Chunk, partition: int) -> int:
    """The first offset that a chunk has of a partition; where it has none, the position to which it leads."""
    offsets = chunk.offset[chunk.partition == partition]
    return int(offsets[0]) if len(offsets) else chunk.next[partition]


def rows_of(chunk: Chunk, lives: Mapping[int, int]) -> int:
    """How many records of a chunk are of the present lives: what was read in an earlier one is not in their counts.

    Of a partition to which nothing has been written since (0) there are none."""
    begun = np.array([lives.get(partition, 0) or _NOT_YET for partition in range(max(chunk.next, default=0) + 1)], np.int64)
    return int(np.count_nonzero(chunk.offset >= begun[chunk.partition]))
