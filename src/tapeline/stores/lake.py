"""The lake: one Delta table a topic, Parquet files by UTC date, opened as it is by DuckDB, Spark, Polars and pandas.

A write is one Delta commit of the rows, the stream position and the running count of duplicates (Delta's application transactions),
so a crash at any instruction leaves either all of it or none of it. Duplicates are found against the lake itself: the files whose
times overlap the batch are read back, by the columns that make two events of a channel the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from tapeline.errors import ConfigError, DiskTrouble, NewerData
from tapeline.records import BARS_TOPIC, NS_PER_S, NS_PER_US, TICKS_TOPIC, Chunk, Identity, Topic
from tapeline.stores import Totals, Written

#: (provider, feed, channel) to what makes two of its events the same.
IdentityRule = Callable[[str, str, str], Identity]

#: The lake's own format, kept in each table's description; a newer one is refused.
_FORMAT: Final = 1
_DESCRIPTION: Final = "Tapeline lake, format "
_WRITER: Final = WriterProperties(compression="ZSTD", compression_level=1, max_row_group_size=128 * 1024)
#: What is counted of each topic, in the order of `Totals`.
_COUNTS: Final = ("read", "rows", "duplicates")
_US: Final = pa.scalar(NS_PER_US, pa.int64())
_DAY: Final = pa.scalar(86_400 * NS_PER_S, pa.int64())


class Lake:
    """Tables under `root`, one for each topic that normalize writes."""

    def __init__(self, root: Path, identity: IdentityRule) -> None:
        self.root = root
        self._identity = identity
        self._tables: dict[str, DeltaTable] = {}
        self._own = _OwnWrites()

    def totals(self, topic: Topic) -> Totals:
        table = self._table(topic)
        if table is None:
            return Totals({}, 0, 0, 0)
        # Delta lists no application transactions: which partitions there are is one of them.
        partitions = range(int(table.transaction_version(_count_id(topic, "partitions")) or 1))
        numbers = {partition: table.transaction_version(_position_id(topic, partition)) for partition in partitions}
        positions = {partition: int(number) for partition, number in numbers.items() if number is not None}
        return Totals(positions, *(int(table.transaction_version(_count_id(topic, name)) or 0) for name in _COUNTS))

    def write(self, chunk: Chunk) -> Written:
        topic = chunk.topic
        before = self.totals(topic)
        # An earlier try may have been committed although it raised, as when only Delta's checkpoint after the commit failed.
        chunk = chunk.after(before.positions)
        if not chunk.rows:
            return Written(0, 0)
        fresh = self._fresh(topic, with_dates(chunk.batch))
        written = Written(fresh.num_rows, chunk.rows - fresh.num_rows)
        now = (before.read + chunk.rows, before.rows + written.rows, before.duplicates + written.duplicates)
        transactions = [Transaction(_count_id(topic, name), count) for name, count in zip(_COUNTS, now, strict=True)]
        transactions += [Transaction(_position_id(topic, partition), position) for partition, position in chunk.next.items()]
        transactions.append(Transaction(_count_id(topic, "partitions"), max({*chunk.next, *before.positions}) + 1))
        order = [(name, "ascending") for name in ("symbol", "ts_ns") if name in fresh.schema.names]
        try:
            self._commit(topic, fresh.sort_by(order) if order else fresh, transactions)
        except (OSError, DeltaError) as error:
            self._tables.pop(topic.table, None)
            raise DiskTrouble(
                f"The lake at {self.root} took no write: {error}. The {chunk.rows} records stay in the stream; free disk space or "
                "make the folder writable. It is tried again."
            ) from error
        if topic is TICKS_TOPIC:
            self._note(fresh)
        return written

    def _commit(self, topic: Topic, rows: pa.RecordBatch, transactions: list[Transaction]) -> None:
        table = self._table(topic)
        write_deltalake(
            table if table is not None else str(self.root / topic.table),
            rows,
            mode="append",
            partition_by=["date"],
            description=f"{_DESCRIPTION}{_FORMAT}" if table is None else None,
            writer_properties=_WRITER,
            commit_properties=CommitProperties(app_transactions=transactions),
        )

    def _table(self, topic: Topic) -> DeltaTable | None:
        """The topic's table as it now is; None while it does not exist."""
        table = self._tables.get(topic.table)
        try:
            if table is not None:
                table.update_incremental()
                return table
            table = DeltaTable(str(self.root / topic.table))
        except TableNotFoundError:
            return None
        except (OSError, DeltaError) as error:
            raise DiskTrouble(f"The lake's table {self.root / topic.table} cannot be read: {error}") from error
        check_format(table, self.root / topic.table)
        self._tables[topic.table] = table
        return table

    def _fresh(self, topic: Topic, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows whose events neither the lake nor an earlier row of the batch holds."""
        if topic not in (TICKS_TOPIC, BARS_TOPIC) or not batch.num_rows:
            return batch
        keep = np.ones(batch.num_rows, bool)
        for (provider, feed, channel), rows in _by_channel(batch):
            identity = self._identity(provider, feed, channel)
            if identity.id and batch[identity.id].null_count:
                rows = rows[batch[identity.id].is_valid().to_numpy(zero_copy_only=False)[rows]]
            if identity.columns and len(rows):
                keep[rows] = self._first_seen(topic, batch, rows, identity, (provider, feed, channel))
        return batch if keep.all() else batch.filter(pa.array(keep))

    def _first_seen(
        self, topic: Topic, batch: pa.RecordBatch, rows: npt.NDArray[np.int64], identity: Identity, channel: tuple[str, str, str]
    ) -> npt.NDArray[np.bool_]:
        """Which of `rows` are the first of their event: group what the lake holds (-1) and what is new (row) by identity."""
        columns = list(identity.columns)
        some = batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))
        new = pa.table(some.select(columns))
        everything = new.append_column("origin", pa.array(np.arange(len(rows))))
        held = self._held(topic, some, identity, channel)
        if held is not None and held.num_rows:
            held = held.select(columns).cast(new.schema).append_column("origin", pa.array(np.full(held.num_rows, -1)))
            everything = pa.concat_tables([held, everything])
        first = everything.group_by(columns, use_threads=False).aggregate([("origin", "min")])["origin_min"].to_numpy()
        keep = np.zeros(len(rows), bool)
        keep[first[first >= 0]] = True
        return keep

    def _held(self, topic: Topic, some: pa.RecordBatch, identity: Identity, channel: tuple[str, str, str]) -> pa.Table | None:
        """The identities that the lake holds of one channel around the times of a batch."""
        table = self._table(topic)
        if table is None:
            return None
        files: set[tuple[str, Any]] = set()
        if identity.rising:
            self._own.begin(table)
            above = self._own.above(some, identity, channel)
            files |= _overlapping(self._own.before, some["ts_ns"].filter(pa.array(above)), identity.drift_ns)
            some = some.filter(pa.array(~above))
        if some.num_rows:
            files |= _overlapping(pa.table(table.get_add_actions(flatten=True)), some["ts_ns"], identity.drift_ns)
        names = [name for name in dict.fromkeys((*identity.columns, "provider", "feed", "channel")) if name != "date"]
        parts = []
        for path, date in sorted(files, key=str):
            part = self._read(self.root / topic.table / path, names)
            if "date" in identity.columns:
                part = part.append_column("date", pa.array([date] * part.num_rows, pa.date32()))
            inside = pa.scalar(True)
            for name, value in zip(("provider", "feed", "channel"), channel, strict=True):
                inside = pc.and_(inside, pc.equal(part[name], value))
            parts.append(part.filter(inside))
        return pa.concat_tables(parts) if parts else None

    def _note(self, kept: pa.RecordBatch) -> None:
        """Remember the highest ids of what has been committed."""
        table = self._table(TICKS_TOPIC)
        if table is None or not self._own.committed(table):
            return
        for channel, rows in _by_channel(kept):
            identity = self._identity(*channel)
            if identity.rising:
                self._own.note(kept if len(rows) == kept.num_rows else kept.take(pa.array(rows)), identity, channel)

    def _read(self, path: Path, names: list[str]) -> pa.Table:
        try:
            return pq.read_table(path, columns=names, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise DiskTrouble(
                f"The lake's file {path} cannot be read: {error}. Nothing was written; the records stay in the stream. "
                "Restore the file. It is tried again."
            ) from error


def check_format(table: DeltaTable, path: Path) -> None:
    """Raises NewerData where a newer Tapeline wrote the table, ConfigError where none did."""
    description = table.metadata().description or ""
    version = description.removeprefix(_DESCRIPTION)
    if not (description.startswith(_DESCRIPTION) and version.isdigit()):
        raise ConfigError(f"{path} is a Delta table that Tapeline did not make. Move it away, or set another data_dir.")
    if int(version) > _FORMAT:
        raise NewerData(
            f"{path} was written by a newer Tapeline (format {version}, this one knows {_FORMAT}). "
            "Nothing was touched. Upgrade Tapeline, or set another data_dir."
        )


def with_dates(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The lake's columns: the schema's own, with `date` (the partition) and `ts` (microseconds, for people and pruning)."""
    ts_ns = batch["ts_ns"] if "ts_ns" in batch.schema.names else batch["received_ns"]
    ts = pc.cast(_floor_divide(ts_ns, _US), pa.timestamp("us", "UTC"))
    days = pc.cast(pc.cast(_floor_divide(ts_ns, _DAY), pa.int32()), pa.date32())
    return batch.append_column("date", days).append_column("ts", ts)


def _floor_divide(values: pa.Array, by: pa.Scalar) -> pa.Array:
    return pa.array(np.floor_divide(values.to_numpy(), by.as_py()))


def _by_channel(batch: pa.RecordBatch) -> list[tuple[tuple[str, str, str], npt.NDArray[np.int64]]]:
    keys = ["provider", "feed", "channel"]
    codes = [batch[key].dictionary_encode() for key in keys]
    combined = np.zeros(batch.num_rows, np.int64)
    for code in codes:
        combined = combined * len(code.dictionary) + code.indices.to_numpy()
    found = []
    for value in np.unique(combined):
        rows = np.flatnonzero(combined == value)
        first = int(rows[0])
        found.append(((batch["provider"][first].as_py(), batch["feed"][first].as_py(), batch["channel"][first].as_py()), rows))
    return found


def _overlapping(actions: pa.Table, ts_ns: pa.Array, drift_ns: int) -> set[tuple[str, Any]]:
    """(path, date) of the files that may hold times within `drift_ns` of those given, by the statistics in the log."""
    if not actions.num_rows or not len(ts_ns):
        return set()
    low, high = pc.min(ts_ns).as_py() - drift_ns, pc.max(ts_ns).as_py() + drift_ns
    names = actions.schema.names
    inside = pc.and_(
        pc.less_equal(pc.coalesce(actions["min.ts_ns"], low), high) if "min.ts_ns" in names else pa.scalar(True),
        pc.greater_equal(pc.coalesce(actions["max.ts_ns"], high), low) if "max.ts_ns" in names else pa.scalar(True),
    )
    chosen = actions.filter(inside)
    return set(zip(chosen["path"].to_pylist(), chosen["partition.date"].to_pylist(), strict=True))


class _OwnWrites:
    """What this process itself has added to the ticks since it began, as far as nobody else has: the highest id of each symbol.

    Where ids only grow at their source, an event above its symbol's highest is in none of the process's own files, however many
    they are; then only the files from before have to be asked.
    """

    def __init__(self) -> None:
        self.before: pa.Table = pa.table({})
        self._version = -1
        self._highest: dict[tuple[tuple[str, str, str], str], int] = {}

    def begin(self, table: DeltaTable) -> None:
        """Where others have committed since the last time, begin anew."""
        if table.version() != self._version:
            self._version = table.version()
            self.before = pa.table(table.get_add_actions(flatten=True))
            self._highest.clear()

    def committed(self, table: DeltaTable) -> bool:
        """Count a commit of our own; False where another one came between."""
        alone = self._version >= 0 and table.version() == self._version + 1
        if alone:
            self._version += 1
        return alone

    def above(self, some: pa.RecordBatch, identity: Identity, channel: tuple[str, str, str]) -> npt.NDArray[np.bool_]:
        coded = some["symbol"].dictionary_encode()
        highest = np.array([self._highest.get((channel, symbol), -1) for symbol in coded.dictionary.to_pylist()], np.int64)
        above: npt.NDArray[np.bool_] = some[identity.id].to_numpy() > highest[coded.indices.to_numpy()]
        return above

    def note(self, kept: pa.RecordBatch, identity: Identity, channel: tuple[str, str, str]) -> None:
        top = pa.table(kept.select(["symbol", identity.id])).group_by("symbol").aggregate([(identity.id, "max")])
        for symbol, highest in zip(top["symbol"].to_pylist(), top[f"{identity.id}_max"].to_pylist(), strict=True):
            if highest is not None:
                self._highest[channel, symbol] = max(highest, self._highest.get((channel, symbol), -1))


def _position_id(topic: Topic, partition: int) -> str:
    return f"tapeline/{topic.name}/{partition}"


def _count_id(topic: Topic, name: str) -> str:
    return f"tapeline/{topic.name}/{name}"
