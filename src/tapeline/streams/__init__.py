"""The streaming layer: topics of Arrow batches, read by position, behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from tapeline.records import Topic


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of one partition, as one batch. A record's offset is `first` plus its row."""

    topic: Topic
    partition: int
    first: int
    batch: pa.RecordBatch

    @property
    def next(self) -> int:
        """The position after the last record: where to read on."""
        return self.first + int(self.batch.num_rows)


#: Running totals that are committed with the outputs they count: name of the total to what to add.
Totals = Mapping[str, int]


class Stream(Protocol):
    """What every stream offers. Calls block; they raise `Unavailable` (try again, nothing was done) and never half succeed."""

    def append(self, topic: Topic, batch: pa.RecordBatch) -> None:
        """Write one batch; when this returns, a crash of this process cannot lose it."""

    def read(self, topic: Topic, partition: int, position: int, max_rows: int) -> Chunk | None:
        """The next records at or after `position`, as many as there are up to about `max_rows`; None when there are none yet."""

    def commit(self, group: str, source: Chunk, outputs: Sequence[tuple[Topic, pa.RecordBatch]], totals: Totals) -> None:
        """In one atomic step: write the outputs, add to the totals, and move `group` to `source.next`."""

    def position(self, group: str, topic: Topic, partition: int) -> int:
        """Where `group` reads next."""

    def totals(self, group: str) -> dict[str, int]:
        """The totals that `group` has committed."""

    def ends(self, topic: Topic) -> dict[int, int]:
        """For each partition of the topic, the position after its last record."""

    def close(self) -> None:
        """Release files and connections; idempotent."""
