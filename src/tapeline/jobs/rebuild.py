"""Rebuilds the lake's rows: reads the raw records that the stream still has and normalizes them again with the current code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa

from tapeline.errors import Unavailable
from tapeline.providers.events import Decode, Names
from tapeline.records import RAW_TOPIC, Chunk, Topic
from tapeline.stages.names import KnownNames
from tapeline.stages.normalize import normalize_all
from tapeline.streams import Stream

_CHUNK_ROWS: Final = 24_576
_LAST: Final = (1 << 63) - 2


class RawRecords:
    """Reads a stream for the repair of the lake. Its methods raise Unavailable when the stream does not answer or gives too little."""

    def __init__(self, stream: Stream, decoders: Mapping[str, Decode], configured: Names = MappingProxyType({})) -> None:
        """`configured`: the symbol names from the configuration."""
        self._stream, self._decoders, self._names = stream, decoders, KnownNames(stream, configured)

    def again(self, topic: Topic, places: Mapping[int, tuple[int, int]] | None) -> Iterator[pa.RecordBatch]:
        """Normalize raw records again and yield the rows for one topic. `places`: partition -> (first, last offset); None: all records."""
        ends = self._stream.ends(RAW_TOPIC)
        everywhere = dict.fromkeys(ends, (0, _LAST))
        wanted = everywhere if places is None else {partition: place for partition, place in places.items() if partition in ends}
        for chunk in self._read(RAW_TOPIC, wanted):
            yield normalize_all(chunk, self._decoders, names=self._names.of(chunk)).batches[topic]

    def waiting(self, topic: Topic, positions: Mapping[int, int]) -> Iterator[pa.RecordBatch]:
        """The records of a topic from these positions (0 for a partition that is not given) up to the current ends."""
        for chunk in self._read(topic, {partition: (positions.get(partition, 0), _LAST) for partition in self._stream.ends(topic)}):
            yield chunk.batch

    def _read(self, topic: Topic, wanted: Mapping[int, tuple[int, int]]) -> Iterator[Chunk]:
        """The records of a topic between two offsets of each wanted partition, both included."""
        oldest, ends = self._stream.tail_positions(topic, 1 << 62), self._stream.ends(topic)
        until = {partition: min(last + 1, ends[partition]) for partition, (_, last) in wanted.items()}
        # The other partitions start at their ends: only records that arrive meanwhile are read, and they are filtered out.
        at = dict(ends) | {partition: max(first, oldest.get(partition, 0)) for partition, (first, _) in wanted.items()}
        while left := [partition for partition, end in until.items() if at[partition] < end]:
            chunk = self._stream.read(topic, at, _CHUNK_ROWS)
            if chunk is None:
                waiting = self._stream.lag(topic, at)
                if any(waiting.get(partition) for partition in left):
                    raise Unavailable(f"The stream did not return all its records of {topic.name}. Nothing was changed. Try again.")
                return
            at |= chunk.next
            inside = np.zeros(chunk.rows, bool)
            for partition, end in until.items():
                inside |= (chunk.partition == partition) & (chunk.offset >= wanted[partition][0]) & (chunk.offset < end)
            if inside.any():
                batch = chunk.batch if inside.all() else chunk.batch.filter(pa.array(inside))
                yield Chunk(topic, batch, chunk.partition[inside], chunk.offset[inside], chunk.begin, chunk.next)
