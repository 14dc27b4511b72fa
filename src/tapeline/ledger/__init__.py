"""The ledger of completeness: what the raw records and their events prove about the data, and what they leave open.

`absorbing` takes chunks of the raw topic, with what the normalizer made of them, and keeps *facts*: which runs of ids have been seen for
a symbol, how long each connection lived, and when it was heard. Facts only ever join. So the result does not depend on how records are
divided into chunks, or on whether they come again. `intervals` says what the facts mean for one symbol of one channel:

- Where ids have no holes at their source, a run of ids is `proven`. The span between two runs is `open`: a known number of events is
  missing.
- Elsewhere, and where no id has come yet, nothing distinguishes one lost event from a quiet market. The time while a connection was
  subscribed and heard is `unprovable`. The time between two connections, and the time when a socket was stale, is `open`. The time
  after the last connection is `open` and ongoing.

Only evidence closes a gap: events with the missing ids, or a read of the provider's own history. `answers` decides whether a stretch
of time is complete, `folding` keeps the cost of the ledger flat, and `sqlite` and `postgres` store it behind the `Ledger` of this
module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final, Protocol

import msgspec
import pyarrow as pa

from tapeline.ledger.facts import ONGOING, ConnectionRecord, Facts, Interval, Key, Piece, State
from tapeline.ledger.folding import Changes

#: The rows of the views `coverage` and `gaps`. `end_ns` is null if an interval is ongoing.
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
#: Maps a topic's name and partition to where its life began.
Lives = Mapping[tuple[str, int], int]


class Ledger(Protocol):
    """Where facts, and the intervals that follow from them, are stored."""

    def load(self) -> tuple[Facts, dict[int, int]]:
        """Return the facts except those that were archived, and where to read each partition of the raw topic next.

        Raises Unavailable or NewerData.
        """

    def pieces(self, key: Key, numbers: range) -> list[Piece]:
        """Return what was archived of a key under these numbers, in order. Raises Unavailable or NewerData."""

    def lives(self) -> Lives | None:
        """Return where the life of each partition of the topics began, as last saved, or None if it was never saved.

        Raises Unavailable or NewerData.
        """

    def save(self, facts: Facts, changes: Changes, positions: Mapping[int, int], lives: Lives | None = None) -> None:
        """Store the touched facts, the changed intervals, the positions and the lives, in one transaction. Raises Unavailable."""

    def prune(self, archived: Mapping[Key, int], before_ns: int) -> dict[Key, Counter[State]]:
        """Remove archived intervals that ended before `before_ns` (ns, UTC), and archived pieces from before it.

        Return the states of the removed intervals, by key. `archived`: how many intervals of each key are archived. Raises
        Unavailable."""

    def forget(self, keys: Iterable[Key]) -> None:
        """Remove the facts of these keys, except connections. Keys without facts are ignored. Raises Unavailable."""

    def keys(self) -> list[Key]:
        """Return the keys that have an interval, in order. Raises Unavailable or NewerData."""

    def intervals(self, symbols: Collection[str] = (), states: Collection[State] = ()) -> pa.Table:
        """Return intervals by key and time, with the schema `INTERVALS`. An empty collection means all symbols, or all states.

        Raises Unavailable or NewerData.
        """


def read_intervals(table: pa.Table) -> dict[Key, list[Interval]]:
    """Return the intervals of each key, from a table that `Ledger.intervals` returned."""
    by_key: dict[Key, list[Interval]] = {}
    for batch in table.to_batches(_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            end_ns = ONGOING if row["end_ns"] is None else row["end_ns"]
            one = Interval(row["start_ns"], end_ns, row["state"], row["evidence"], row["first_id"], row["last_id"])
            by_key.setdefault(Key(*(row[name] for name in Key._fields)), []).append(one)
    return by_key


def rows_of(changes: Changes) -> Iterable[tuple[str | int | None, ...]]:
    """Yield the rows to write: the key, the interval's number and the interval itself."""
    for key, (same, changed) in changes.items():
        for number, one in enumerate(changed, same):
            end_ns = None if one.end_ns == ONGOING else one.end_ns
            yield (*key, number, one.start_ns, end_ns, one.state, one.evidence, one.first_id, one.last_id)


class _Before(msgspec.Struct):
    """What a stored connection holds under a name that has changed since."""

    refused: list[tuple[int, int]] = []  # now `dropped`


def connection_before(body: bytes | str) -> ConnectionRecord:
    """Return a connection that an earlier version stored.

    A ledger can be read before its first write migrates it. Read by today's names alone, what was dropped would count as received."""
    before = msgspec.json.decode(body, type=_Before)
    return msgspec.structs.replace(msgspec.json.decode(body, type=ConnectionRecord), dropped=before.refused)


def pieces_of(facts: Facts) -> Iterable[tuple[Key, int, Piece]]:
    """Yield the pieces to write: the key, the piece's number and the piece."""
    for key, pieces in facts.archived.items():
        edge = facts.pasts[key].edge
        for number, piece in enumerate(pieces, (edge.pieces if edge is not None else 0) - len(pieces)):
            yield key, number, piece
