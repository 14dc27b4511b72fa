"""Seals a day of the lake: its many small files become a few sorted ones, verified against the old before one commit swaps them.

The new files are written aside, under names that no reader takes for Parquet. Row count, a checksum of each column, of the ids and of whole
rows must equal those of the old files, read back from disk; then the files get their names, one Delta commit removes the old and adds the
new, and the old are deleted. Whoever dies on the way leaves files that the log does not name, which the next seal removes: readers of the
log see all of the old or all of the new.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from tapeline.errors import DiskTrouble, TapelineError
from tapeline.locks import own
from tapeline.records import NORMALIZED_TOPICS, Topic
from tapeline.stores.lake import check_format
from tapeline.stores.lake_reading import NO_DOWNLOADS

#: How a sealed file's name begins; a day whose files all do is sealed.
_SEALED: Final = "sealed-"
#: What is being written, inside a table's folder: the leading point hides it from readers of folders, and no name in it ends in .parquet.
_ASIDE: Final = ".sealing"
#: A file holds whole symbols, about so many rows of them: what sorting needs of memory, and how few files a reader of one symbol opens.
_FILE_ROWS: Final = 4_000_000
#: Rows that are read together: small enough to find an hour of a symbol, large enough to compress.
_GROUP_ROWS: Final = 65_536
#: No store takes so long between writing a file and committing it.
_FORGOTTEN_AFTER_S: Final = 3_600.0
_MEMORY: Final = "2GB"
#: Rows stand in this order, as far as a table has the columns.
_ORDER: Final = ("symbol", "ts_ns", "received_ns", "raw_partition", "raw_offset", "raw_index")
_IDS: Final = ("raw_partition", "raw_offset", "raw_index")
#: Columns whose range within a file stands in the log, for readers to choose files by.
_RANGED: Final = ("symbol", "ts_ns", "kind", "interval", "exchange", "provider", "feed", "channel", "received_ns", "ts")

#: Told the table, the rows done and the rows there are, as it goes on.
Progress = Callable[[str, int, int], None]


class SealFailed(TapelineError):
    """What was written is not what was there; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What became of one table's day."""

    table: str
    day: date
    rows: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int

    @property
    def changed(self) -> bool:
        """Whether there was anything to do."""
        return self.files_before > 0


def seal(root: Path, day: date, progress: Progress) -> list[Sealed]:
    """Seal one UTC day of every table of the lake under `root`; a day that is sealed stays as it is.

    Raises SealFailed where what was written does not equal what was there, Busy while another process seals, DiskTrouble, NewerData.
    """
    with own(root / _ASIDE, "tapeline seal"):
        return [_seal(root / topic.table, topic, day, progress) for topic in NORMALIZED_TOPICS if (root / topic.table).exists()]


def _seal(folder: Path, topic: Topic, day: date, progress: Progress) -> Sealed:
    with _disk_trouble(folder):
        try:
            table = DeltaTable(str(folder))
        except TableNotFoundError:
            return Sealed(topic.table, day, 0, 0, 0, 0, 0)
        check_format(table, folder)
        _sweep(folder, table, day)
        old = _files_of(table, day)
        if all(Path(path).name.startswith(_SEALED) for path in old["path"].to_pylist()):
            return Sealed(topic.table, day, 0, 0, old.num_rows, 0, _sum(old, "size_bytes"))
        aside = folder / _ASIDE
        try:
            new = _write(folder, topic, [str(folder / path) for path in old["path"].to_pylist()], aside, progress)
            names = _place(folder, day, new)
            _swap(table, day, old, names)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        table.update_incremental()
        _delete_replaced(folder, table, day)
        table.create_checkpoint()  # who opens the table then reads one file of its log
        sizes = sum(path.stat().st_size for path in names)
        return Sealed(topic.table, day, _sum(old, "num_records"), old.num_rows, len(names), _sum(old, "size_bytes"), sizes)


def _files_of(table: DeltaTable, day: date) -> pa.Table:
    """The day's files in the log."""
    actions = pa.table(table.get_add_actions(flatten=True))
    return actions.filter(pc.equal(actions["partition.date"].cast(pa.string()), str(day)))


def _sum(files: pa.Table, name: str) -> int:
    return int(pc.sum(files[name]).as_py() or 0)


def _write(folder: Path, topic: Topic, old: Sequence[str], aside: Path, progress: Progress) -> list[Path]:
    """The rows of the old files, sorted, in files aside; verified."""
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    settings = NO_DOWNLOADS | {"temp_directory": str(aside / "spilled"), "memory_limit": _MEMORY, "preserve_insertion_order": True}
    names = ", ".join(f'"{name}"' for name in (*topic.schema.names, "ts"))
    order = ", ".join(name for name in _ORDER if name in topic.schema.names)
    new: list[Path] = []
    with duckdb.connect(config=settings) as db:
        rows = int(db.sql("SELECT count(*) FROM read_parquet($files, hive_partitioning = false)", params={"files": old}).fetchall()[0][0])
        for condition, values, count in _parts(db, topic, old, rows):
            progress(topic.table, sum(pq.read_metadata(path).num_rows for path in new), rows)
            text = f"SELECT {names} FROM read_parquet($files, hive_partitioning = false) WHERE {condition} ORDER BY {order}"  # noqa: S608
            path = aside / f"{len(new):04}.part"
            db.sql(text, params={"files": old, **values}).write_parquet(str(path), compression="zstd", row_group_size=_GROUP_ROWS)
            if (written := pq.read_metadata(path).num_rows) != count:
                raise SealFailed(f"{path} holds {written} rows of {count}. Nothing was changed.")
            new.append(path)
        was, now = _fingerprint(db, topic, old), _fingerprint(db, topic, [str(path) for path in new])
    differing = [name for name in was if was[name] != now[name]]
    if differing:
        raise SealFailed(f"{folder}: the sorted copy differs from what was there in {', '.join(differing)}. Nothing was changed.")
    progress(topic.table, rows, rows)
    return new


def _parts(db: duckdb.DuckDBPyConnection, topic: Topic, files: Sequence[str], rows: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """(condition, its parameters, rows) of each file that is to be: neighbouring symbols together, none in two files."""
    if topic.schema.names[0] != "symbol":
        yield "true", {}, rows
        return
    counted = "SELECT symbol, count(*) FROM read_parquet($files, hive_partitioning = false) GROUP BY symbol ORDER BY symbol"
    first, last, held = "", "", 0
    for symbol, count in db.sql(counted, params={"files": files}).fetchall():
        if held and held + count > _FILE_ROWS:
            yield "symbol BETWEEN $first AND $last", {"first": first, "last": last}, held
            held = 0
        first, last, held = symbol if not held else first, symbol, held + count
    if held:
        yield "symbol BETWEEN $first AND $last", {"first": first, "last": last}, held


def _fingerprint(db: duckdb.DuckDBPyConnection, topic: Topic, files: Sequence[str]) -> dict[str, int]:
    """What equal rows in any order have in common: their number, and sums of hashes of each column, of the ids and of whole rows."""
    columns = [f'"{name}"' for name in (*topic.schema.names, "ts")]
    sums = [f"sum(hash({name}))" for name in columns]
    sums += [f"sum(hash({', '.join(_IDS)}))", f"sum(hash({', '.join(columns)}))"]
    text = f"SELECT count(*), {', '.join(sums)} FROM read_parquet($files, hive_partitioning = false)"  # noqa: S608 our own names
    (row,) = db.sql(text, params={"files": files}).fetchall()
    names = ["the number of rows", *(f"column {name}" for name in (*topic.schema.names, "ts")), "the ids", "whole rows"]
    return dict(zip(names, row, strict=True))


def _place(folder: Path, day: date, new: Sequence[Path]) -> list[Path]:
    """Give the files their names, on disk for good."""
    run = uuid.uuid4().hex[:12]
    partition = folder / f"date={day}"
    placed = []
    for at, path in enumerate(new):
        _sync(path)
        placed.append(path.rename(partition / f"{_SEALED}{at:04}-{run}.parquet"))
    _sync(partition)
    return placed


def _swap(table: DeltaTable, day: date, old: pa.Table, new: Sequence[Path]) -> None:
    """One commit; it fails where another has removed one of the old files since, and lets others' additions stand."""
    partition: dict[str, str | None] = {"date": str(day)}
    now_ms = time.time_ns() // 1_000_000
    actions: list[AddAction | RemoveAction] = [
        RemoveAction(path, data_change=False, deletion_timestamp=now_ms, size=size, partition_values=partition)
        for path, size in zip(old["path"].to_pylist(), old["size_bytes"].to_pylist(), strict=True)
    ]
    for path in new:
        name = f"date={day}/{path.name}"
        actions.append(AddAction(name, path.stat().st_size, partition, now_ms, data_change=False, stats=_stats(path)))
    table.create_write_transaction(actions, mode="append", schema=table.schema(), partition_by=["date"])
    _sync(Path(table.table_uri.removeprefix("file://")) / "_delta_log")


def _stats(path: Path) -> str:
    """What Delta's log says of a file: the number of rows, and the ranges of what readers choose files by."""
    metadata = pq.read_metadata(path)
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    for at in range(metadata.num_columns):
        name = metadata.schema.column(at).name
        groups = [metadata.row_group(group).column(at).statistics for group in range(metadata.num_row_groups)]
        if name in _RANGED and all(group is not None and group.has_min_max for group in groups):
            edges = [group.min for group in groups], [group.max for group in groups]
            least[name], most[name] = (
                edge.isoformat().replace("+00:00", "Z") if name == "ts" else edge for edge in (min(edges[0]), max(edges[1]))
            )
    return json.dumps({"numRecords": metadata.num_rows, "minValues": least, "maxValues": most, "nullCount": {}})


def _in_the_log(edge: object) -> object:
    """A time as Delta's statistics have it; anything else as it is."""
    return edge.isoformat().replace("+00:00", "Z") if isinstance(edge, datetime) else edge


def _sweep(folder: Path, table: DeltaTable, day: date) -> None:
    """Remove what a seal that died has left: what it wrote aside, and on either side of its commit, files that the log does not name."""
    shutil.rmtree(folder / _ASIDE, ignore_errors=True)
    named = {Path(path).name for path in _files_of(table, day)["path"].to_pylist()}
    all_sealed = all(name.startswith(_SEALED) for name in named)
    for file in (folder / f"date={day}").glob("*.parquet"):
        # What a store has written and not committed yet is young; the log forgets what it called removed after a week.
        forgotten = all_sealed and named and time.time() - file.stat().st_mtime > _FORGOTTEN_AFTER_S
        if file.name not in named and (file.name.startswith(_SEALED) or forgotten):
            file.unlink()
    _delete_replaced(folder, table, day)


def _delete_replaced(folder: Path, table: DeltaTable, day: date) -> None:
    """Delete the day's files that the log calls removed. One that it does not know yet may be a store's, just before its commit."""
    for name in table.vacuum(retention_hours=0, dry_run=True, enforce_retention_duration=False):
        if name.startswith(f"date={day}/"):
            (folder / name).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have a file, or a folder's names, on disk before what is built on it."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _disk_trouble(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, DeltaError, duckdb.Error, pa.ArrowException) as error:
        raise DiskTrouble(
            f"{folder} was not sealed: {error}. Readers see what they saw before, whole; nothing was lost. Seal the day again."
        ) from error
