"""Stores keep records for good, each at its own pace, behind one small interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import NS_PER_S, NS_PER_US, Chunk, Topic

_DAY_NS: Final = 86_400 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the records of one write: read = rows + duplicates + refused."""

    rows: int
    duplicates: int
    #: What the store cannot hold, such as a text with a zero character in PostgreSQL; each is reported.
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """What a store has kept of a topic, until one moment: read = rows + duplicates + refused."""

    #: Where to read each partition of the stream next; 0 for those that are not named.
    positions: dict[int, int]
    read: int
    rows: int
    duplicates: int
    refused: int = 0
    #: Of the rows, those that the store's own retention has taken out again, and those that were given up with a damaged file: both were
    #: kept once, and stay among the rows.
    removed: int = 0
    lost: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """What became of what was read."""
        return {"rows": self.rows, "duplicates": self.duplicates, **({"rejected": self.refused} if self.refused else {})}


class Store(Protocol):
    """Rows and the positions in the stream are written in one transaction of the store: a crash loses and doubles nothing."""

    def write(self, chunk: Chunk) -> Written:
        """Keep the records that are not kept yet, and move on behind them. Raises `Unavailable`: then nothing was written."""

    def totals(self, topic: Topic) -> Totals:
        """Positions and counts of all writes so far, from one commit, also while another process writes.

        Raises `Unavailable`, `NewerData`."""


def with_dates(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns of every store: the schema's own, with the UTC `date` and `ts` (microseconds, for people and pruning)."""
    ts_ns = (batch["ts_ns"] if "ts_ns" in batch.schema.names else batch["received_ns"]).to_numpy()
    ts = pc.cast(pa.array(np.floor_divide(ts_ns, NS_PER_US)), pa.timestamp("us", "UTC"))
    days = pc.cast(pc.cast(pa.array(np.floor_divide(ts_ns, _DAY_NS)), pa.int32()), pa.date32())
    return batch.append_column("date", days).append_column("ts", ts)
