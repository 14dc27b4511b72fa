"""The lake: one Delta table for each topic, with Parquet files by UTC date. DuckDB, Spark, Polars and pandas open it as it is.

A write is one Delta commit of the rows, the stream position and the running counts (Delta's application transactions). So a crash at
any instruction leaves either all of it or none of it. Duplicates are found in the lake itself: the files whose times overlap the batch
are read back, with the columns that make two events of a channel the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable, Transaction
from deltalake.exceptions import DeltaError

from tapeline.errors import DiskProblem
from tapeline.records import TICKS_TOPIC, Chunk, Identity, Topic
from tapeline.stores import Totals, Written, with_dates
from tapeline.stores.duplicates import Channel, HighestIds, IdentityRule, fresh_of
from tapeline.stores.lake import files as lake_files

#: The counts of each topic, in the order of `Totals`.
_COUNTS: Final = ("read", "rows", "duplicates")
#: Files are merged or compacted at most a few times an hour. A write that meets such a change starts again.
_TRIES: Final = 3


class Lake:
    """Tables under `root`, one for each topic that normalize writes."""

    def __init__(self, root: Path, identity: IdentityRule) -> None:
        self.root = root
        self._identity = identity
        self._tables: dict[str, DeltaTable] = {}
        self._own = _OwnWrites()

    def totals(self, topic: Topic) -> Totals:
        table = self._table(topic)
        return totals_of(table, topic) if table is not None else Totals({}, 0, 0, 0)

    def write(self, chunk: Chunk) -> Written:
        for _ in range(_TRIES):
            try:
                return self._write(chunk)
            except _Replaced:
                continue  # since the table was opened, a file was replaced by one with the same rows
        return self._write(chunk)

    def _write(self, chunk: Chunk) -> Written:
        topic = chunk.topic
        before = self.totals(topic)
        # An earlier try may have been committed although it raised, for example if only Delta's checkpoint after the commit failed.
        chunk = chunk.after(before.positions)
        if not chunk.rows:
            return Written(0, 0)
        fresh = fresh_of(with_dates(chunk.batch), topic, self._identity, self._held)
        written = Written(fresh.num_rows, chunk.rows - fresh.num_rows)
        now = (before.read + chunk.rows, before.rows + written.rows, before.duplicates + written.duplicates)
        transactions = [Transaction(count_id(topic, name), count) for name, count in zip(_COUNTS, now, strict=True)]
        transactions += [Transaction(_position_id(topic, partition), position) for partition, position in chunk.next.items()]
        transactions.append(Transaction(count_id(topic, "partitions"), max({*chunk.next, *before.positions}) + 1))
        order = [(name, "ascending") for name in ("symbol", "ts_ns") if name in fresh.schema.names]
        try:
            self._commit(topic, fresh.sort_by(order) if order else fresh, transactions)
        except (OSError, DeltaError) as error:
            self._tables.pop(topic.table, None)
            raise DiskProblem(
                f"A write to the lake at {self.root} failed: {lake_files.message_of(error)}. The {chunk.rows} records stay in the stream. "
                "Free disk space or make the folder writable. A running stage retries."
            ) from error
        if topic is TICKS_TOPIC:
            self._note(fresh)
        return written

    def _commit(self, topic: Topic, rows: pa.RecordBatch, transactions: list[Transaction]) -> None:
        folder = self.root / topic.table
        table = self._tables.get(topic.table)
        if table is None:
            table = self._tables[topic.table] = lake_files.create(folder, rows.schema)
        lake_files.keep_log_short(table)
        whole = pa.table(rows)
        added: list[lake_files.Added] = []
        try:
            added.extend(  # one by one, so that files written before an error are known
                lake_files.write(folder, day, whole.filter(pc.equal(whole["date"], day)).drop_columns(["date"]))
                for day in sorted(rows["date"].unique().to_pylist())
            )
            lake_files.commit(folder, table, None, added, transactions, data_change=True)
        except Exception:
            lake_files.discard(folder, added)  # at once: on a full disk, each try would fill it further
            raise

    def _table(self, topic: Topic) -> DeltaTable | None:
        """Return the topic's table as it is now, or None while it does not exist."""
        table = self._tables.get(topic.table)
        try:
            if table is not None:
                table.update_incremental()
                return table
            table = lake_files.opened(self.root / topic.table)
        except (OSError, DeltaError) as error:
            raise lake_files.unreadable(self.root / topic.table, error) from error
        if table is not None:
            self._tables[topic.table] = table
        return table

    def _held(self, topic: Topic, some: pa.RecordBatch, identity: Identity, channel: Channel | None) -> pa.Table | None:
        """Return the identities the lake holds around the times of a batch, for one channel or for all.

        It uses the commit that the write began from. Looking for a later one lists the log, which costs more than everything else
        here."""
        table = self._tables.get(topic.table)
        if table is None:
            return None
        files: set[tuple[str, Any]] = set()
        if channel is None:
            files = _overlapping(pa.table(table.get_add_actions(flatten=True)), some["received_ns"], 0, by="received_ns")
            parts = [self._read(topic, path, list(identity.compared)) for path, _ in sorted(files, key=str)]
            return pa.concat_tables(parts) if parts else None
        if identity.rising:
            self._own.begin(table)
            above = self._own.highest.above(some, identity, channel)
            files |= _overlapping(self._own.before, some["ts_ns"].filter(pa.array(above)), identity.drift_ns)
            some = some.filter(pa.array(~above))
        if some.num_rows:
            files |= _overlapping(pa.table(table.get_add_actions(flatten=True)), some["ts_ns"], identity.drift_ns)
        times = ("ts_ns",) if identity.else_by_ms or identity.counted else ()
        names = [name for name in dict.fromkeys((*identity.compared, *times, "provider", "feed", "channel")) if name != "date"]
        parts = []
        for path, date in sorted(files, key=str):
            part = self._read(topic, path, names)
            if "date" in identity.columns:
                part = part.append_column("date", pa.array([date] * part.num_rows, pa.date32()))
            inside = pa.scalar(True)
            for name, value in zip(("provider", "feed", "channel"), channel, strict=True):
                inside = pc.and_(inside, pc.equal(part[name], value))
            parts.append(part.filter(inside))
        return pa.concat_tables(parts) if parts else None

    def _note(self, kept: pa.RecordBatch) -> None:
        """Remember the highest ids of the committed rows."""
        table = self._tables.get(TICKS_TOPIC.table)
        if table is None or not self._own.committed(table):
            return
        self._own.highest.note(kept, self._identity)

    def _read(self, topic: Topic, name: str, names: list[str]) -> pa.Table:
        path = self.root / topic.table / name
        try:
            table = pq.read_table(path, columns=names, partitioning=None, page_checksum_verification=True)
            # In compacted files every column is nullable, in the others not. Tables must have one schema to be joined.
            return pa.table(table.columns, table.schema.names)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, FileNotFoundError) and not self._names(topic, name):
                raise _Replaced from error
            raise DiskProblem(
                f"The lake file {path} cannot be read: {error}. Nothing was written. The records stay in the stream. "
                "Run `tapeline lake repair` to rebuild the file from the raw topic. A running stage retries."
            ) from error

    def _names(self, topic: Topic, name: str) -> bool:
        """Return whether the log as it is now still names a file."""
        table = self._table(topic)
        return table is not None and name in lake_files.files_of(table)["path"].to_pylist()


class _Replaced(Exception):
    """Raised if a file that was to be read has been replaced by another one."""


def totals_of(table: DeltaTable, topic: Topic) -> Totals:
    """Return the positions and counts at the commit that the table object stands at."""
    # Delta cannot list application transactions, so the number of partitions is stored as one of them.
    partitions = range(int(table.transaction_version(count_id(topic, "partitions")) or 1))
    numbers = {partition: table.transaction_version(_position_id(topic, partition)) for partition in partitions}
    positions = {partition: int(number) for partition, number in numbers.items() if number is not None}
    read, rows, duplicates, removed, lost = (
        int(table.transaction_version(count_id(topic, name)) or 0) for name in (*_COUNTS, "removed", "lost")
    )
    return Totals(positions, read, rows, duplicates, removed=removed, lost=lost)


def _overlapping(actions: pa.Table, ts_ns: pa.Array, drift_ns: int, by: str = "ts_ns") -> set[tuple[str, Any]]:
    """Return (path, date) of the files that may hold times within `drift_ns` of the given ones, by the column's statistics in the log."""
    if not actions.num_rows or not len(ts_ns):
        return set()
    low, high = pc.min(ts_ns).as_py() - drift_ns, pc.max(ts_ns).as_py() + drift_ns
    names = actions.schema.names
    inside = pc.and_(
        pc.less_equal(pc.coalesce(actions[f"min.{by}"], low), high) if f"min.{by}" in names else pa.scalar(True),
        pc.greater_equal(pc.coalesce(actions[f"max.{by}"], high), low) if f"max.{by}" in names else pa.scalar(True),
    )
    chosen = actions.filter(inside)
    return set(zip(chosen["path"].to_pylist(), chosen["partition.date"].to_pylist(), strict=True))


class _OwnWrites:
    """What this process itself has added to the ticks since it began, as long as nobody else has added any.

    An event above its symbol's highest id is in none of the process's own files, however many there are. Then only the files from
    before have to be read.
    """

    def __init__(self) -> None:
        self.before: pa.Table = pa.table({})
        self.highest = HighestIds()
        self._version = -1

    def begin(self, table: DeltaTable) -> None:
        """Start again if others have committed since the last call."""
        if table.version() != self._version:
            self._version = table.version()
            self.before = pa.table(table.get_add_actions(flatten=True))
            self.highest.clear()

    def committed(self, table: DeltaTable) -> bool:
        """Count a commit of our own. Return False if another commit came in between."""
        alone = self._version >= 0 and table.version() == self._version + 1
        if alone:
            self._version += 1
        return alone


def _position_id(topic: Topic, partition: int) -> str:
    return f"tapeline/{topic.name}/{partition}"


def count_id(topic: Topic, name: str) -> str:
    """Return the name of the application transaction that holds one of a topic's counts."""
    return f"tapeline/{topic.name}/{name}"
