"""The mapping of keys to partitions: the same on every stream, and the same as in Kafka's own clients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tapeline.records import Topic

_WORD: Final = 0xFFFFFFFF
_M: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C


@lru_cache(maxsize=65_536)
def partition_of(key: str, partitions: int) -> int:
    """Return the partition of a key, as Kafka's default partitioner computes it.

    It is murmur2 of the key's UTF-8 bytes, sign bit cleared, modulo the number of partitions
    (org.apache.kafka.common.utils.Utils.murmur2; librdkafka's `murmur2_random`)."""
    data = key.encode()
    length = len(data)
    h = _SEED ^ length
    whole = length - length % 4
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _WORD
        k = (k ^ k >> 24) * _M & _WORD
        h = h * _M & _WORD ^ k
    if length % 4:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _WORD
    h = (h ^ h >> 13) * _M & _WORD
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions


def partitions_of(topic: Topic, batch: pa.RecordBatch, partitions: int) -> npt.NDArray[np.int32]:
    """Return the partition of each record."""
    if partitions == 1:
        return np.zeros(batch.num_rows, np.int32)
    coded = batch[topic.key].dictionary_encode()
    where = np.array([partition_of(key, partitions) for key in coded.dictionary.to_pylist()], np.int32)
    of_rows: npt.NDArray[np.int32] = where[coded.indices.to_numpy()]
    return of_rows


def split(topic: Topic, batch: pa.RecordBatch, partitions: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the batch by partition. Each part keeps the batch's order."""
    if not batch.num_rows:
        return
    if partitions == 1:
        yield 0, batch
        return
    where = partitions_of(topic, batch, partitions)
    present = np.unique(where)
    if len(present) == 1:
        yield int(present[0]), batch
        return
    for partition in present.tolist():
        yield partition, batch.take(pa.array(np.flatnonzero(where == partition)))
