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
    """What became of the records of one write. The number of records read equals rows + duplicates + refused."""

    rows: int
    duplicates: int
    #: Records the store cannot hold, for example a text with a zero character in PostgreSQL. Each one is reported.
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """What a store has kept of a topic up to one moment. read = rows + duplicates + refused."""

    #: Where to read each partition of the stream next; 0 for partitions that are not listed.
    positions: dict[int, int]
    read: int
    rows: int
    duplicates: int
    refused: int = 0
    #: Rows that were kept once and still count in `rows`: `removed` ones were deleted by the store's own retention, `lost` ones were
    #: given up with a damaged file.
    removed: int = 0
    lost: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """The counts of what became of the records that were read."""
        return {"rows": self.rows, "duplicates": self.duplicates, **({"rejected": self.refused} if self.refused else {})}


class Store(Protocol):
    """Writes rows and the positions in the stream in one transaction of the store, so a crash loses and duplicates nothing."""

    def write(self, chunk: Chunk) -> Written:
        """Keep the records that are not kept yet, and move the position past them. Raises `Unavailable` if nothing was written."""

    def totals(self, topic: Topic) -> Totals:
        """Return the positions and counts of all writes so far, from one commit, even while another process writes.

        Raises `Unavailable` or `NewerData`."""


def with_dates(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Add the columns that every store has in addition to the schema's own: the UTC `date`, and `ts` (UTC, microseconds).

    They serve people and pruning.
    """
    ts_ns = (batch["ts_ns"] if "ts_ns" in batch.schema.names else batch["received_ns"]).to_numpy()
    ts = pc.cast(pa.array(np.floor_divide(ts_ns, NS_PER_US)), pa.timestamp("us", "UTC"))
    days = pc.cast(pc.cast(pa.array(np.floor_divide(ts_ns, _DAY_NS)), pa.int32()), pa.date32())
    return batch.append_column("date", days).append_column("ts", ts)
