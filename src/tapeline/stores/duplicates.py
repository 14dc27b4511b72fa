"""Duplicate detection: which events of a batch a store does not hold yet.

Two events of a channel are the same if the channel's identity columns are equal. Time alone never decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import BARS_TOPIC, NS_PER_MS, TICKS_TOPIC, Identity, Topic

_NO_MS: Final = pa.scalar(None, pa.int64())
#: Provider, feed, channel.
Channel = tuple[str, str, str]
#: Maps (provider, feed, channel) to the rule that makes two of its events the same.
IdentityRule = Callable[[str, str, str], Identity]
#: Returns the rows a store holds that may equal some of the given records, of one channel, or of all for records without a channel. The
#: table has at least the identity's columns, and ts_ns if the identity uses it.
Held = Callable[[Topic, pa.RecordBatch, Identity, Channel | None], pa.Table | None]
#: The identity of records that no provider has numbered: their place in the raw topic. Such records arrive twice if normalize lost its
#: own position.
BY_RAW: Final = Identity(("raw_partition", "raw_offset", "raw_index"))


def fresh_of(batch: pa.RecordBatch, topic: Topic, rule: IdentityRule, held: Held) -> pa.RecordBatch:
    """Return the records whose events neither the store nor an earlier record of the batch holds."""
    if not batch.num_rows:
        return batch
    if topic not in (TICKS_TOPIC, BARS_TOPIC):
        return batch.filter(pa.array(_first_seen(batch, BY_RAW, held(topic, batch, BY_RAW, None))))
    keep = np.ones(batch.num_rows, bool)
    for channel, rows in by_channel(batch):
        identity = rule(*channel)
        if identity.id and not (identity.else_by_ms or identity.counted) and batch[identity.id].null_count:
            rows = rows[batch[identity.id].is_valid().to_numpy(zero_copy_only=False)[rows]]
        if identity.columns and len(rows):
            some = batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))
            keep[rows] = _first_seen(some, identity, held(topic, some, identity, channel))
    return batch if keep.all() else batch.filter(pa.array(keep))


def _first_seen(some: pa.RecordBatch, identity: Identity, held: pa.Table | None) -> npt.NDArray[np.bool_]:
    """Return which records are the first of their event.

    Rows the store holds (origin -1) and new rows (origin: row number) are grouped by identity.
    """
    if identity.counted and (some[identity.id].null_count or (held is not None and held[identity.id].null_count)):
        return _first_counted(some, identity, held)
    new = identity_columns(pa.table(some), identity)
    if identity.values and (held is None or not held.num_rows) and _all_apart(new, identity):
        return np.ones(some.num_rows, bool)
    columns = new.schema.names
    everything = new.append_column("origin", pa.array(np.arange(some.num_rows)))
    if held is not None and held.num_rows:
        held = identity_columns(held, identity).cast(new.schema).append_column("origin", pa.array(np.full(held.num_rows, -1)))
        everything = pa.concat_tables([held, everything])
    first = everything.group_by(columns, use_threads=False).aggregate([("origin", "min")])["origin_min"].to_numpy()
    keep = np.zeros(some.num_rows, bool)
    keep[first[first >= 0]] = True
    return keep


def _all_apart(rows: pa.Table, identity: Identity) -> bool:
    """Return whether the columns alone distinguish all rows, as they nearly always do."""
    return bool(
        rows.select(list(identity.columns)).group_by(list(identity.columns), use_threads=False).aggregate([]).num_rows == rows.num_rows
    )


def _first_counted(some: pa.RecordBatch, identity: Identity, held: pa.Table | None) -> npt.NDArray[np.bool_]:
    """As `_first_seen`, for channels in which some events have the id and others do not.

    The id identifies events that have one. An event without an id counts as a copy as long as there are other events, equal except for
    the id, that it could be a copy of. Each raw record brings its first, second and third equal event, and the store holds as many of
    them as it holds rows."""
    of_number, of_ms, ids = _as_numbers(some, identity, held)
    new = len(of_ms) - some.num_rows
    numbered, held_row = ids.is_valid().to_numpy(zero_copy_only=False), np.arange(len(of_ms)) < new
    first = np.zeros(len(of_ms), bool)
    first[np.flatnonzero(numbered)[_firsts(of_number[numbered], ids.drop_null().to_numpy())]] = True
    bare = _counts(of_ms, held_row & ~numbered)
    fresh = first & ~held_row
    fresh[np.flatnonzero(fresh)] = ranks(of_ms[fresh]) >= bare[of_ms[fresh]]
    there = bare + _counts(of_ms, fresh | (first & held_row))
    others = np.flatnonzero(~numbered & ~held_row)
    at = others - new
    rank = ranks(of_ms[others], *(some[name].to_numpy()[at] for name in ("raw_partition", "raw_offset")))
    more = np.flatnonzero(rank >= there[of_ms[others]])
    fresh[others[more[_firsts(of_ms[others[more]], rank[more])]]] = True
    keep: npt.NDArray[np.bool_] = fresh[new:]
    return keep


def lacking_counted(came: pa.RecordBatch, identity: Identity, held: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Return which of the records that came the store once held and has lost. It replays the store's rule in the order of arrival.

    None of the records that came is among those the store still holds. Both batches have the raw positions and `received_ns` in
    addition to the identity's columns."""
    both = pa.Table.from_batches([held, came.select(held.schema.names).cast(held.schema)])
    (batch,) = both.combine_chunks().to_batches()
    of_number, of_ms, ids = _as_numbers(batch, identity, None)
    by_time = both.select(["received_ns", "raw_partition", "raw_offset", "raw_index"]).append_column("row", pa.array(np.arange(len(of_ms))))
    order = by_time.sort_by([(name, "ascending") for name in by_time.schema.names])["row"].to_pylist()
    records = groups(both.select(["raw_partition", "raw_offset"])).tolist()
    numbers = list(zip(of_number.tolist(), ids.to_pylist(), strict=True))
    seen = {number for number in numbers[: held.num_rows] if number[1] is not None}
    known: dict[int, _Equal] = {}
    lacking = np.zeros(came.num_rows, bool)
    for row in order:
        one, mine = known.setdefault(int(of_ms[row]), _Equal()), row < held.num_rows
        if numbers[row][1] is None:
            new = one.take_bare(records[row], held=mine)
        elif mine or numbers[row] not in seen:
            new = one.take_numbered(held=mine)
            seen.add(numbers[row])
        else:
            new = False
        if new and not mine:
            lacking[row - held.num_rows] = True
    return lacking


@dataclass(slots=True)
class _Equal:
    """Equal events of one millisecond, in the order in which they came."""

    numbered: int = 0
    bare: int = 0
    matched: int = 0  # bare events whose number has come since
    record: int = -1  # the record that now brings bare events; below, the index of its next one and how many events there were before it
    next: int = 0
    before: int = 0

    def take_numbered(self, *, held: bool) -> bool:
        """Count one more event with another number. Return whether it is a new event."""
        new = held or self.matched == self.bare
        self.numbered += new
        self.matched += not new
        return new

    def take_bare(self, record: int, *, held: bool) -> bool:
        """Count one more event without a number. Return whether it is a new event."""
        if record != self.record:
            self.record, self.next, self.before = record, 0, self.numbered + self.bare
        new = held or self.next >= self.before
        self.next += 1
        self.bare += new
        return new


def _as_numbers(
    some: pa.RecordBatch, identity: Identity, held: pa.Table | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], pa.ChunkedArray]:
    """Return three arrays over the rows a store holds, followed by the given rows.

    They are a group number for rows that are equal except for the id, a group number that also distinguishes the millisecond, and the
    ids."""
    rows = bare_identity_columns(pa.table(some), identity).append_column(identity.id, some[identity.id])
    if held is not None:
        before = bare_identity_columns(held, identity).append_column(identity.id, held[identity.id]).cast(rows.schema)
        rows = pa.concat_tables([before, rows])
    names = [name for name in rows.schema.names if name not in ("ms", identity.id)]
    return groups(rows.select(names)), groups(rows.select([*names, "ms"])), rows[identity.id]


def groups(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Return the same number for rows that are equal."""
    numbered = rows.append_column("row", pa.array(np.arange(rows.num_rows)))
    lists = numbered.group_by(rows.schema.names, use_threads=False).aggregate([("row", "list")])["row_list"].combine_chunks()
    numbers = np.empty(rows.num_rows, np.int64)
    numbers[pc.list_flatten(lists).to_numpy()] = pc.list_parent_indices(lists).to_numpy()
    return numbers


def _counts(groups: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return how many of the chosen rows each group has."""
    return np.bincount(groups[chosen], minlength=int(groups.max(initial=-1)) + 1)


def _firsts(*columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the first row of each group of rows that are equal in these columns."""
    return np.flatnonzero(ranks(*columns) == 0)


def ranks(*columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return each row's rank among the rows that are equal in these columns: 0 for the first, 1 for the next, and so on."""
    order = np.lexsort(columns)  # stable: equal rows keep their order
    begins = np.ones(len(order), bool)
    begins[1:] = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    begin = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    result = np.empty(len(order), np.int64)
    result[order] = np.arange(len(order)) - begin
    return result


def bare_identity_columns(rows: pa.Table, identity: Identity) -> pa.Table:
    """Return the columns that identify events in a channel where some have no id: every column but the id, plus the millisecond."""
    compared = rows.select([name for name in identity.compared if name != identity.id])
    return compared.append_column("ms", pc.divide(rows["ts_ns"], NS_PER_MS))


def identity_columns(rows: pa.Table, identity: Identity) -> pa.Table:
    """Return the columns that identify events. If the identity says so, rows without the id get the millisecond as well."""
    compared = rows.select(list(identity.compared))
    if not identity.else_by_ms:
        return compared
    ms = pc.if_else(pc.is_valid(rows[identity.id]), _NO_MS, pc.divide(rows["ts_ns"], NS_PER_MS))
    return compared.append_column("ms", ms)


def by_channel(batch: pa.RecordBatch) -> Iterator[tuple[Channel, npt.NDArray[np.int64]]]:
    """Yield the channels of a batch, each with its row indexes."""
    codes = [batch[key].dictionary_encode() for key in ("provider", "feed", "channel")]
    combined = np.zeros(batch.num_rows, np.int64)
    for code in codes:
        combined = combined * len(code.dictionary) + code.indices.to_numpy()
    for value in np.unique(combined):
        rows = np.flatnonzero(combined == value)
        first = int(rows[0])
        yield (batch["provider"][first].as_py(), batch["feed"][first].as_py(), batch["channel"][first].as_py()), rows


def in_sql(identity: Identity) -> tuple[list[str], str]:
    """Return the same rule as SQL over a table.

    The first item lists the expressions that are equal, or null in both, for two copies of an event. The second is the condition for
    the rows to which the rule applies.
    """
    columns = ["ts_ns // 86400000000000" if name == "date" else f'"{name}"' for name in identity.compared]
    if identity.else_by_ms:
        return [*columns, f'CASE WHEN "{identity.id}" IS NULL THEN ts_ns // {NS_PER_MS} END'], "true"
    return columns, f'"{identity.id}" IS NOT NULL' if identity.id else "true"


class HighestIds:
    """The highest id of each symbol in channels whose ids only grow at their source. Every event above it is new."""

    def __init__(self) -> None:
        self._highest: dict[tuple[Channel, str], int] = {}

    def clear(self) -> None:
        """Forget all ids. Until `put` or `note` brings a symbol's id, every record of it counts as above."""
        self._highest.clear()

    def above(self, some: pa.RecordBatch, identity: Identity, channel: Channel) -> npt.NDArray[np.bool_]:
        """Return which records of one channel have an id above the highest known one."""
        coded = some["symbol"].dictionary_encode()
        highest = np.array([self._highest.get((channel, symbol), -1) for symbol in coded.dictionary.to_pylist()], np.int64)
        above: npt.NDArray[np.bool_] = some[identity.id].to_numpy() > highest[coded.indices.to_numpy()]
        return above

    def note(self, kept: pa.RecordBatch, rule: IdentityRule) -> None:
        """Take note of records that the store now holds."""
        for channel, rows in by_channel(kept):
            identity = rule(*channel)
            if identity.rising:
                some = pa.table((kept if len(rows) == kept.num_rows else kept.take(pa.array(rows))).select(["symbol", identity.id]))
                top = some.group_by("symbol").aggregate([(identity.id, "max")])
                self.put(channel, dict(zip(top["symbol"].to_pylist(), top[f"{identity.id}_max"].to_pylist(), strict=True)))

    def put(self, channel: Channel, highest: dict[str, int | None]) -> None:
        """Set the highest id of some symbols. None: the symbol has no id yet."""
        for symbol, value in highest.items():
            if value is not None:
                self._highest[channel, symbol] = max(value, self._highest.get((channel, symbol), -1))
