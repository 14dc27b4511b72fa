"""Compacts a day of the lake: a few sorted files replace its many small ones.

The new files are verified against the old ones before one commit swaps them. The small files of a day that is still running are merged in
the same way, once they have lain for a while.

New files are written aside, under names that no reader takes for Parquet. They are read back from disk, and their row count and the
checksums of each column, of the ids and of whole rows must equal those of the old files. Then the files get their names, one Delta
commit removes the old ones and adds the new ones, and the old files are deleted. A process that dies on the way leaves files that the
log does not name; the next compaction removes them. Readers of the log see either all of the old files or all of the new ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from tapeline.errors import TapelineError
from tapeline.records import NORMALIZED_TOPICS, Topic
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake import removing
from tapeline.stores.lake.damage import damage
from tapeline.stores.lake.due import small
from tapeline.stores.lake.engine import NO_DOWNLOADS
from tapeline.stores.lake.files import ASIDE, COMPACTED, IDS, MERGED, disk_problem, is_compacted, names_of

#: A file holds whole symbols, about this many rows of them. The number bounds the memory for sorting and how few files a reader of one
#: symbol opens.
_FILE_ROWS: Final = 4_000_000
#: Few groups make a small footer, which every reader of a file reads first. Small pages let a reader of an hour decode little of a group.
_GROUP_ROWS: Final = 131_072
_PAGE_BYTES: Final = 128 * 1024
_COPY: Final = f"TO $path (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_GROUP_ROWS}, DATA_PAGE_SIZE_LIMIT {_PAGE_BYTES})"
#: The memory for sorting and comparing; the rest is spilled to disk.
MEMORY: Final = "2GB"
#: The order of rows, as far as a table has the columns.
_ORDER: Final = ("symbol", "ts_ns", "received_ns", "raw_partition", "raw_offset", "raw_index")

#: Fewer files are not worth a merge.
_FEWEST: Final = 2
_REMEDY: Final = "Try again. If a file is damaged, run `tapeline lake repair`."

#: Called repeatedly with the table, the rows done and the rows in total.
Progress = Callable[[str, int, int], None]


class CompactionFailed(TapelineError):
    """The new files do not hold the same rows as the old files. The table was not changed."""


@dataclass(frozen=True, slots=True)
class Compacted:
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


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that a sorted copy has to hold: those of some files as they are, or as a query makes them."""

    #: The parameters of the query: `files`, and whatever else it needs.
    values: Mapping[str, str | list[str]]
    text: str = "SELECT * FROM read_parquet($files, hive_partitioning = false)"

    @staticmethod
    def of(files: Sequence[str | Path]) -> Rows:
        """Return the rows of some files as they are."""
        return Rows({"files": lake_files.for_duckdb(files)})


def compact(root: Path, day: date, progress: Progress) -> list[Compacted]:
    """Compact one UTC day of every table of the lake under `root`.

    A day that is compacted already, or has no rows any more, stays as it is.

    Raises CompactionFailed if the new files do not hold the same rows as the old files, Busy while another process changes the lake's
    files, DiskProblem and NewerData.
    """
    with lake_files.changing(root, "tapeline compact"):
        return [_compact(root / topic.table, topic, day, progress) for topic in NORMALIZED_TOPICS if (root / topic.table).exists()]


def merge(root: Path, topic: Topic, day: date, older_than_ms: int) -> Compacted:
    """Merge the files that the store wrote for one day of one table before a moment (ms since 1970) into one file or a few.

    Raises as `compact` does.
    """
    folder = root / topic.table
    with lake_files.changing(root, "tapeline lake tidy"), disk_problem(folder, "merged", _REMEDY, duckdb.Error):
        table = lake_files.opened(folder)
        if table is None:
            return Compacted(topic.table, day, 0, 0, 0, 0, 0)
        removing.sweep(folder, table, day)
        old = small(lake_files.files_of(table, day), older_than_ms)
        if old.num_rows < _FEWEST:
            return Compacted(topic.table, day, 0, 0, old.num_rows, 0, lake_files.total(old, "size_bytes"))
        return _replace(folder, table, topic, day, old, MERGED, lambda *_: None)


def sweep(root: Path, topic: Topic) -> None:
    """Remove what a compaction or merge that died has left in a table. Raises Busy or DiskProblem."""
    folder = root / topic.table
    with lake_files.changing(root, "tapeline lake tidy"), disk_problem(folder, "tidied", _REMEDY):
        if (table := lake_files.opened(folder)) is not None:
            removing.sweep(folder, table)


def _compact(folder: Path, topic: Topic, day: date, progress: Progress) -> Compacted:
    with disk_problem(folder, "compacted", _REMEDY, duckdb.Error):
        table = lake_files.opened(folder)
        if table is None:
            return Compacted(topic.table, day, 0, 0, 0, 0, 0)
        removing.sweep(folder, table, day)
        old = lake_files.files_of(table, day)
        if all(map(is_compacted, old["path"].to_pylist())):
            return Compacted(topic.table, day, 0, 0, old.num_rows, 0, lake_files.total(old, "size_bytes"))
        done = _replace(folder, table, topic, day, old, COMPACTED, progress)
        table.create_checkpoint()  # whoever opens the table then reads one file of its log
        return done


def _replace(folder: Path, table: DeltaTable, topic: Topic, day: date, old: pa.Table, prefix: str, progress: Progress) -> Compacted:
    """Replace some files of a day with a sorted copy."""
    # Look for damage first: the copy gets a checksum of its own, which would hide the damage.
    for path, held, rows in zip(*(old[name].to_pylist() for name in ("path", "size_bytes", "num_records")), strict=True):
        if (wrong := damage(folder, path, held, rows)) is not None:
            raise OSError(f"{folder / path} {wrong}")
    aside = folder / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    added: list[lake_files.Added] = []
    try:
        new = sorted_copy(folder, topic, Rows.of([folder / path for path in old["path"].to_pylist()]), aside, progress)
        added = lake_files.place(folder, day, new, prefix)
        lake_files.move_on(table, old)
        lake_files.commit(folder, table, old, added, [], data_change=False)
        removing.delete_removed(folder, table, day)
    except Exception:
        lake_files.discard(folder, added)
        raise
    finally:
        # This comes last: a folder that still exists shows that a process died on the way, and files may remain to be deleted.
        shutil.rmtree(aside, ignore_errors=True)
    sizes = sum(file.size for file in added)
    return Compacted(
        topic.table,
        day,
        lake_files.total(old, "num_records"),
        old.num_rows,
        len(added),
        lake_files.total(old, "size_bytes"),
        sizes,
    )


def sorted_copy(folder: Path, topic: Topic, rows: Rows, aside: Path, progress: Progress) -> list[Path]:
    """Return files, written aside, that hold the rows sorted.

    They were read back and compared. Raises CompactionFailed if they differ.
    """
    settings = NO_DOWNLOADS | {"temp_directory": str(aside / "spilled"), "memory_limit": MEMORY, "preserve_insertion_order": True}
    names, order = names_of(topic), order_of(topic)
    new: list[Path] = []
    with duckdb.connect(config=settings) as db:
        total = int(db.sql(f"SELECT count(*) FROM ({rows.text})", params=dict(rows.values)).fetchall()[0][0])  # noqa: S608 our own text
        for condition, values, count in _parts(db, topic, rows, total):
            progress(topic.table, sum(pq.read_metadata(path).num_rows for path in new), total)
            text = f"SELECT {names} FROM ({rows.text}) WHERE {condition} ORDER BY {order}"  # noqa: S608
            path = aside / f"{len(new):04}.part"
            write_rows(db, text, {**rows.values, **values}, path)
            if (written := pq.read_metadata(path).num_rows) != count:
                raise CompactionFailed(f"{path} holds {written} of {count} rows. Nothing was changed.")
            new.append(path)
        if not new:
            return []
        was, now = _fingerprint(db, topic, rows), _fingerprint(db, topic, Rows.of(new))
    differing = [name for name in was if was[name] != now[name]]
    if differing:
        raise CompactionFailed(f"The sorted copy of {folder} differs from the original in {', '.join(differing)}. Nothing was changed.")
    progress(topic.table, total, total)
    return new


def write_rows(db: duckdb.DuckDBPyConnection, text: str, values: Mapping[str, str | list[str]], path: Path) -> None:
    """Write the rows of a query, in their order, as a compacted file is."""
    db.execute(f"COPY ({text}) {_COPY}", {**values, "path": str(path)}).fetchall()


def order_of(topic: Topic) -> str:
    """Return the order of the rows in a compacted file, for SQL."""
    return ", ".join(name for name in _ORDER if name in topic.schema.names)


def _parts(db: duckdb.DuckDBPyConnection, topic: Topic, rows: Rows, total: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield (condition, its parameters, number of rows) for each new file.

    A file holds neighbouring symbols, and no symbol is in two files.
    """
    if topic.schema.names[0] != "symbol":
        if total:
            yield "true", {}, total
        return
    counted = f"SELECT symbol, count(*) FROM ({rows.text}) GROUP BY symbol ORDER BY symbol"  # noqa: S608
    first, last, held = "", "", 0
    for symbol, count in db.sql(counted, params=dict(rows.values)).fetchall():
        if held and held + count > _FILE_ROWS:
            yield "symbol BETWEEN $first AND $last", {"first": first, "last": last}, held
            held = 0
        first, last, held = symbol if not held else first, symbol, held + count
    if held:
        yield "symbol BETWEEN $first AND $last", {"first": first, "last": last}, held


def _fingerprint(db: duckdb.DuckDBPyConnection, topic: Topic, rows: Rows) -> dict[str, int]:
    """Return values that are the same for equal rows in any order.

    They are the row count, and sums of hashes of each column, of the ids and of whole rows.
    """
    columns = [f'"{name}"' for name in (*topic.schema.names, "ts")]
    sums = [f"sum(hash({name}))" for name in columns]
    sums += [f"sum(hash({', '.join(IDS)}))", f"sum(hash({', '.join(columns)}))"]
    (row,) = db.sql(f"SELECT count(*), {', '.join(sums)} FROM ({rows.text})", params=dict(rows.values)).fetchall()  # noqa: S608 our own names
    names = ["the number of rows", *(f"column {name}" for name in (*topic.schema.names, "ts")), "the ids", "whole rows"]
    return dict(zip(names, row, strict=True))
