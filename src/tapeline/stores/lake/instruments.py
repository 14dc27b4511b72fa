"""The lake's table of instruments: a Delta table with files by the UTC day on which its versions began.

Closing a version rewrites the files of its day. The old files leave and the new ones enter the table in one commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from tapeline.errors import DiskProblem
from tapeline.records import INSTRUMENTS, INSTRUMENTS_TABLE
from tapeline.stores.instruments import KEY, ORDER, Versions, in_order, with_times
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake import removing

#: After so many commits, a checkpoint sums up the table's log, and old entries of it are removed.
_CHECKPOINT: Final = 20


class LakeInstruments:
    """The table in the lake under `root`."""

    def __init__(self, root: Path) -> None:
        self._folder = root / INSTRUMENTS_TABLE

    @property
    def name(self) -> str:
        return "lake"

    def changed_ns(self, provider: str, market: str) -> int:
        rows = self.versions(Versions(provider, market))
        times = [pc.max(rows[name]).as_py() or 0 for name in ("valid_from_ns", "valid_to_ns")]
        return int(max(times))

    def versions(self, wanted: Versions) -> pa.Table:
        table = self._table()
        if table is None:
            return INSTRUMENTS.empty_table()
        parts = [_chosen(part, wanted) for part in self._read(lake_files.files_of(table)["path"].to_pylist())]
        return in_order(pa.concat_tables([INSTRUMENTS.empty_table(), *parts]))

    def put(self, versions: pa.Table) -> None:
        if not versions.num_rows:
            return
        with lake_files.disk_problem(self._folder, "changed", "Run the job again."):
            self._put(with_times(versions))

    def _put(self, versions: pa.Table) -> None:
        table = self._table() or lake_files.create(self._folder, versions.schema)
        known = lake_files.files_of(table)
        days = sorted(versions["date"].unique().to_pylist())
        removed = known.filter(pc.is_in(known["day"], pa.array([str(day) for day in days], pa.string())))
        added: list[lake_files.Added] = []
        try:
            for day in days:
                rows = versions.filter(pc.equal(versions["date"], day)).drop_columns(["date"])
                added.append(lake_files.write(self._folder, day, self._merged(removed, day, rows)))
            lake_files.commit(self._folder, table, removed if removed.num_rows else None, added, [], data_change=True)
        except Exception:
            lake_files.discard(self._folder, added)
            raise
        removing.delete_removed(self._folder, table)
        if table.version() % _CHECKPOINT == 0:
            table.create_checkpoint()
            table.cleanup_metadata()

    def _merged(self, removed: pa.Table, day: date, rows: pa.Table) -> pa.Table:
        """Return the rows of a day with `rows` in place of those of the same key."""
        old = self._read(removed.filter(pc.equal(removed["day"], str(day)))["path"].to_pylist())
        kept = [part.select(rows.schema.names).cast(rows.schema).join(rows.select(KEY), KEY, join_type="left anti") for part in old]
        merged = pa.concat_tables([part.select(rows.schema.names).cast(rows.schema) for part in (*kept, rows)])
        return merged.sort_by([(name, "ascending") for name in ORDER])

    def _table(self) -> DeltaTable | None:
        try:
            return lake_files.opened(self._folder)
        except (OSError, DeltaError) as error:
            raise lake_files.unreadable(self._folder, error) from error

    def _read(self, names: Sequence[str]) -> list[pa.Table]:
        try:
            return [pq.read_table(self._folder / name, partitioning=None, page_checksum_verification=True) for name in names]
        except (OSError, pa.ArrowException) as error:
            raise DiskProblem(
                f"The lake table {self._folder} cannot be read: {error}. Try again if a file was replaced meanwhile. Otherwise restore the "
                "file from a backup."
            ) from error


def _chosen(rows: pa.Table, wanted: Versions) -> pa.Table:
    """Return the versions that are wanted."""
    begun, ended = pc.field("valid_from_ns"), pc.field("valid_to_ns")
    conditions = []
    if wanted.provider is not None:
        conditions.append(pc.field("provider") == wanted.provider)
    if wanted.market is not None:
        conditions.append(pc.field("market") == wanted.market)
    if wanted.symbols is not None:
        conditions.append(pc.field("symbol").isin(pa.array(wanted.symbols, pa.string())))
    if wanted.at_ns is not None:
        conditions.append((begun <= wanted.at_ns) & (ended.is_null() | (ended > wanted.at_ns)))
    if wanted.open:
        conditions.append(ended.is_null())
    if wanted.since_ns is not None:
        conditions.append((begun > wanted.since_ns) | (ended.is_valid() & (ended > wanted.since_ns)))
    for condition in conditions:
        rows = rows.filter(condition)
    return rows.select(INSTRUMENTS.names).cast(INSTRUMENTS)
