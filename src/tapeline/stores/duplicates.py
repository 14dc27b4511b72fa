"""Which events of a batch a store does not hold yet: by the columns that make two events of a channel the same, never by time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import BARS_TOPIC, NS_PER_MS, TICKS_TOPIC, Identity, Topic

_NO_MS: Final = pa.scalar(None, pa.int64())
#: Provider, feed, channel.
Channel = tuple[str, str, str]
#: (provider, feed, channel) to what makes two of its events the same.
IdentityRule = Callable[[str, str, str], Identity]
#: What a store holds of one channel (or, for records that are of none, of all) that may equal some of the records given: a table with at
#: least the identity's columns, and ts_ns where the identity goes by it.
Held = Callable[[Topic, pa.RecordBatch, Identity, Channel | None], pa.Table | None]
#: What tells apart records that no provider has numbered: where in the raw topic they come from. They come twice where normalize's own
#: place was lost.
BY_RAW: Final = Identity(("raw_partition", "raw_offset", "raw_index"))


def fresh_of(batch: pa.RecordBatch, topic: Topic, rule: IdentityRule, held: Held) -> pa.RecordBatch:
    """The records whose events neither the store nor an earlier record of the batch holds."""
    if not batch.num_rows:
        return batch
    if topic not in (TICKS_TOPIC, BARS_TOPIC):
        return batch.filter(pa.array(_first_seen(batch, BY_RAW, held(topic, batch, BY_RAW, None))))
    keep = np.ones(batch.num_rows, bool)
    for channel, rows in by_channel(batch):
        identity = rule(*channel)
        if identity.id and not identity.else_by_ms and batch[identity.id].null_count:
            rows = rows[batch[identity.id].is_valid().to_numpy(zero_copy_only=False)[rows]]
        if identity.columns and len(rows):
            some = batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))
            keep[rows] = _first_seen(some, identity, held(topic, some, identity, channel))
    return batch if keep.all() else batch.filter(pa.array(keep))


def _first_seen(some: pa.RecordBatch, identity: Identity, held: pa.Table | None) -> npt.NDArray[np.bool_]:
    """Which records are the first of their event: group what the store holds (-1) and what is new (row) by identity."""
    new = told_by(pa.table(some), identity)
    if identity.values and (held is None or not held.num_rows) and _all_apart(new, identity):
        return np.ones(some.num_rows, bool)
    columns = new.schema.names
    everything = new.append_column("origin", pa.array(np.arange(some.num_rows)))
    if held is not None and held.num_rows:
        held = told_by(held, identity).cast(new.schema).append_column("origin", pa.array(np.full(held.num_rows, -1)))
        everything = pa.concat_tables([held, everything])
    first = everything.group_by(columns, use_threads=False).aggregate([("origin", "min")])["origin_min"].to_numpy()
    keep = np.zeros(some.num_rows, bool)
    keep[first[first >= 0]] = True
    return keep


def _all_apart(rows: pa.Table, identity: Identity) -> bool:
    """Whether the columns alone tell all rows apart, as nearly always."""
    return bool(
        rows.select(list(identity.columns)).group_by(list(identity.columns), use_threads=False).aggregate([]).num_rows == rows.num_rows
    )


def told_by(rows: pa.Table, identity: Identity) -> pa.Table:
    """The columns that tell events apart; of those without the id, where so asked, the millisecond too."""
    found = rows.select(list(identity.told))
    if not identity.else_by_ms:
        return found
    ms = pc.if_else(pc.is_valid(rows[identity.id]), _NO_MS, pc.divide(rows["ts_ns"], NS_PER_MS))
    return found.append_column("ms", ms)


def by_channel(batch: pa.RecordBatch) -> Iterator[tuple[Channel, npt.NDArray[np.int64]]]:
    """The channels of a batch, each with its rows."""
    codes = [batch[key].dictionary_encode() for key in ("provider", "feed", "channel")]
    combined = np.zeros(batch.num_rows, np.int64)
    for code in codes:
        combined = combined * len(code.dictionary) + code.indices.to_numpy()
    for value in np.unique(combined):
        rows = np.flatnonzero(combined == value)
        first = int(rows[0])
        yield (batch["provider"][first].as_py(), batch["feed"][first].as_py(), batch["channel"][first].as_py()), rows


def in_sql(identity: Identity) -> tuple[list[str], str]:
    """The same rule for SQL over a table: what is equal, or null in both, for two copies of an event; and which rows have copies at all."""
    columns = ["ts_ns // 86400000000000" if name == "date" else f'"{name}"' for name in identity.told]
    if identity.else_by_ms:
        return [*columns, f'CASE WHEN "{identity.id}" IS NULL THEN ts_ns // {NS_PER_MS} END'], "true"
    return columns, f'"{identity.id}" IS NOT NULL' if identity.id else "true"


class HighestIds:
    """The highest id of each symbol, of the channels whose ids only grow at their source: above it, every event is new."""

    def __init__(self) -> None:
        self._highest: dict[tuple[Channel, str], int] = {}

    def clear(self) -> None:
        self._highest.clear()

    def above(self, some: pa.RecordBatch, identity: Identity, channel: Channel) -> npt.NDArray[np.bool_]:
        """Which records of one channel lie above what is known."""
        coded = some["symbol"].dictionary_encode()
        highest = np.array([self._highest.get((channel, symbol), -1) for symbol in coded.dictionary.to_pylist()], np.int64)
        above: npt.NDArray[np.bool_] = some[identity.id].to_numpy() > highest[coded.indices.to_numpy()]
        return above

    def note(self, kept: pa.RecordBatch, rule: IdentityRule) -> None:
        """Records that the store holds now."""
        for channel, rows in by_channel(kept):
            identity = rule(*channel)
            if identity.rising:
                some = pa.table((kept if len(rows) == kept.num_rows else kept.take(pa.array(rows))).select(["symbol", identity.id]))
                top = some.group_by("symbol").aggregate([(identity.id, "max")])
                self.put(channel, dict(zip(top["symbol"].to_pylist(), top[f"{identity.id}_max"].to_pylist(), strict=True)))

    def put(self, channel: Channel, highest: dict[str, int | None]) -> None:
        """The highest id of some symbols; none where a symbol has none."""
        for symbol, value in highest.items():
            if value is not None:
                self._highest[channel, symbol] = max(value, self._highest.get((channel, symbol), -1))
