"""Is this data complete? The ledger of what raw records and their events prove of it, and what they leave open.

`absorbing` takes chunks of the raw topic with what the normalizer made of them and keeps *facts*: which runs of ids have been seen of a
symbol, and how long each connection lived and was heard. Facts only ever join, so it is the same in which chunks the records come, and
the same when they come again. `intervals` says what the facts mean for one symbol of one channel:

- Where ids have no holes at their source, a run of ids is `proven`, and what lies between two runs is `open`: so many events are missing.
- Elsewhere, and where no id has come yet, nothing tells one lost event from a quiet market. While a connection was subscribed and heard it
  is `unprovable`; between two connections, and where a socket was stale, it is `open`; behind the last one it is `open` and goes on.

Nothing but evidence closes a gap: events with the ids that were missing, or a reading of the provider's own history. `answers` says it of
a stretch of time, `folding` keeps the cost of it all flat, and `sqlite` and `postgres` keep it, behind the `Ledger` of this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final, Protocol

import pyarrow as pa

from tapeline.ledger.facts import ONGOING, Facts, Interval, Key, Piece, State
from tapeline.ledger.folding import Changes

#: The rows of the views `coverage` and `gaps`; `end_ns` is null where an interval goes on.
INTERVALS: Final = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in Key._fields),
        pa.field("start_ns", pa.int64(), nullable=False),
        pa.field("end_ns", pa.int64()),
        pa.field("state", pa.string(), nullable=False),
        pa.field("evidence", pa.string(), nullable=False),
        pa.field("first_id", pa.int64()),
        pa.field("last_id", pa.int64()),
    ]
)
_ROWS_AT_ONCE: Final = 50_000
#: Topic's name and partition to where its life began.
Lives = Mapping[tuple[str, int], int]


class Ledger(Protocol):
    """Where facts and what follows from them are kept."""

    def load(self) -> tuple[Facts, dict[int, int]]:
        """The facts but for what was archived, and where to read each partition of the raw topic next. Raises Unavailable, NewerData."""

    def pieces(self, key: Key) -> list[Piece]:
        """What was archived of a key. Raises Unavailable, NewerData."""

    def lives(self) -> Lives | None:
        """Where the life of each partition of the topics began, as last saved; None: never. Raises Unavailable, NewerData."""

    def save(self, facts: Facts, changes: Changes, positions: Mapping[int, int], lives: Lives | None = None) -> None:
        """Keep the facts that were touched, the intervals that changed, the positions and the lives, in one transaction.

        Raises Unavailable."""

    def prune(self, archived: Mapping[Key, int], before_ns: int) -> dict[Key, Counter[State]]:
        """Remove the intervals that ended before a time, of those of each key that are archived, and the pieces: which states they had.

        `archived`: how many intervals of a key that are. Raises Unavailable."""

    def forget(self, keys: Iterable[Key]) -> None:
        """Remove the facts of keys, but for connections; of those that have none, nothing. Raises Unavailable."""

    def keys(self) -> list[Key]:
        """Those of which an interval is known; in order. Raises Unavailable, NewerData."""

    def intervals(self, symbols: Collection[str] = (), states: Collection[State] = ()) -> pa.Table:
        """Intervals by key and time, as `INTERVALS`: of some symbols, or all; in some states, or all. Raises Unavailable, NewerData."""


def read_intervals(table: pa.Table) -> dict[Key, list[Interval]]:
    """The intervals of each key, from a table as `Ledger.intervals` gives it."""
    found: dict[Key, list[Interval]] = {}
    for batch in table.to_batches(_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            end_ns = ONGOING if row["end_ns"] is None else row["end_ns"]
            one = Interval(row["start_ns"], end_ns, row["state"], row["evidence"], row["first_id"], row["last_id"])
            found.setdefault(Key(*(row[name] for name in Key._fields)), []).append(one)
    return found


def rows_of(changes: Changes) -> Iterable[tuple[str | int | None, ...]]:
    """The rows to write: key, number, and the interval's own."""
    for key, (same, found) in changes.items():
        for number, one in enumerate(found, same):
            end_ns = None if one.end_ns == ONGOING else one.end_ns
            yield (*key, number, one.start_ns, end_ns, one.state, one.evidence, one.first_id, one.last_id)


def pieces_of(facts: Facts) -> Iterable[tuple[Key, int, Piece]]:
    """The pieces to write: key, number, and what was archived."""
    for key, pieces in facts.archived.items():
        edge = facts.pasts[key].edge
        for number, piece in enumerate(pieces, (edge.pieces if edge is not None else 0) - len(pieces)):
            yield key, number, piece
