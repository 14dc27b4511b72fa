"""Stores keep records for good, each at its own pace, behind one small interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tapeline.records import Chunk, Topic


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the records of one write: read = rows + duplicates."""

    rows: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What a store holds of a topic, at one moment: read = rows + duplicates."""

    #: Where to read each partition of the stream next; 0 for those that are not named.
    positions: dict[int, int]
    read: int
    rows: int
    duplicates: int


class Store(Protocol):
    """Rows and the positions in the stream are written in one transaction of the store: a crash loses and doubles nothing."""

    def write(self, chunk: Chunk) -> Written:
        """Keep the records that are not kept yet, and move on behind them. Raises `Unavailable`: then nothing was written."""

    def totals(self, topic: Topic) -> Totals:
        """Positions and counts of all writes so far, from one commit, also while another process writes.

        Raises `Unavailable`, `NewerData`."""
