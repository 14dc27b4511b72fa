"""Stores keep records for good, each at its own pace, behind one small interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from tapeline.records import Topic


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the records of one write: read = rows + duplicates."""

    rows: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What a store holds of a topic, at one moment: position = rows + duplicates."""

    position: int
    rows: int
    duplicates: int


class Store(Protocol):
    """Rows and the position in the stream are written in one transaction of the store: a crash loses and doubles nothing."""

    def position(self, topic: Topic, partition: int) -> int:
        """Where to read the topic next. Raises `Unavailable`, `NewerData`."""

    def write(self, topic: Topic, partition: int, batch: pa.RecordBatch, next_position: int) -> Written:
        """Keep the records before `next_position` that are not kept yet. Raises `Unavailable`: then nothing was written."""

    def totals(self, topic: Topic, partition: int) -> Totals:
        """Position, rows and duplicates of all writes so far, from one commit, also while another process writes."""
