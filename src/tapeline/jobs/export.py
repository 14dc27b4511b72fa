"""Exports rows to plain files for other programs: one folder for each UTC day, and either the whole export or nothing.

The files are written to a hidden folder beside the target. When all of them are complete and on disk, the folder is renamed to the target's
name. So a killed export leaves no partial file in the target, and the next export to the same folder begins anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from tapeline.errors import ConfigError, DiskProblem
from tapeline.local.files import sync
from tapeline.local.locks import own
from tapeline.local.output import without_formulas
from tapeline.records import NS_PER_S

Form = Literal["parquet", "csv", "arrow"]
#: Called with the number of rows written so far and the time of the last one (ns, UTC).
Progress = Callable[[int, int], None]

#: How many rows are written as one group. This bounds the memory that is used.
_GROUP_ROWS: Final = 131_072
_DAY_NS: Final = 86_400 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export: its folder, and how many files, rows and bytes were written."""

    folder: Path
    files: int
    rows: int
    bytes: int


class _Writer(Protocol):
    def write_table(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


def _parquet(file: pa.NativeFile, schema: pa.Schema) -> _Writer:
    writer: _Writer = pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)
    return writer


class _Csv:
    """Writes CSV that is safe to open in a spreadsheet: no cell is a formula."""

    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        self._writer = pa_csv.CSVWriter(file, schema)

    def write_table(self, table: pa.Table) -> None:
        self._writer.write_table(without_formulas(table))

    def close(self) -> None:
        self._writer.close()


def _arrow(file: pa.NativeFile, schema: pa.Schema) -> _Writer:
    writer: _Writer = pa.ipc.new_file(file, schema)
    return writer


_WRITERS: Final[Mapping[Form, Callable[[pa.NativeFile, pa.Schema], _Writer]]] = {"parquet": _parquet, "csv": _Csv, "arrow": _arrow}


def export(schema: pa.Schema, batches: Iterable[pa.RecordBatch], folder: Path, name: str, form: Form, progress: Progress) -> Exported:
    """Write batches, which are in order of `ts_ns`, to `folder/date=YYYY-MM-DD/name.form`. The date is the UTC day of `ts_ns`.

    Raises ConfigError when the folder is a file or not empty, Busy while another export writes to it, DiskProblem when writing fails, and
    what reading the batches raises. Then the folder is as it was."""
    folder = folder.expanduser().absolute()
    aside = folder.parent / f".{folder.name}.exporting"
    with _disk_problem(folder), own(aside / "lock", f"an export to {folder}"):
        try:
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"{folder} is a file. Nothing was written. Name a folder that is new or empty.")
            if folder.exists() and any(folder.iterdir()):
                raise ConfigError(f"{folder} is not empty. Nothing was written. Name a folder that is new or empty.")
            draft = aside / "rows"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            done = _write(schema, batches, draft, f"{name}.{form}", form, progress)
            draft.rename(folder)
            sync(folder.parent)
            return Exported(folder, *done)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _write(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], folder: Path, name: str, form: Form, progress: Progress
) -> tuple[int, int, int]:
    files = rows = size = 0
    day: int | None = None
    path, writer, sink = folder, None, None
    try:
        for group, of_day in _groups(schema, batches):
            if of_day != day or writer is None:
                size += _end(path, writer, sink)
                writer = None
                day = of_day
                path = folder / f"date={pa.scalar(of_day, pa.int32()).cast(pa.date32()).as_py()}" / name
                path.parent.mkdir()
                sink = pa.OSFile(str(path), "wb")
                writer = _WRITERS[form](sink, schema)
                files += 1
            writer.write_table(group)
            rows += group.num_rows
            progress(rows, group["ts_ns"][-1].as_py())
    finally:
        size += _end(path, writer, sink)
    return files, rows, size


def _end(path: Path, writer: _Writer | None, sink: pa.NativeFile | None) -> int:
    """Close a file, sync it to disk and return its size in bytes; 0 if none is open."""
    if writer is None or sink is None:
        return 0
    writer.close()
    sink.close()
    sync(path)
    sync(path.parent)
    return path.stat().st_size


def _groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.Table, int]]:
    """Tables of one UTC day each, written as one group, with the day as a number of days since 1970."""
    held: list[pa.RecordBatch] = []
    count, day = 0, 0
    for batch in batches:
        for part, of_day in _by_day(batch):
            if held and (of_day != day or count + part.num_rows > _GROUP_ROWS):
                yield pa.Table.from_batches(held, schema).combine_chunks(), day
                held, count = [], 0
            day = of_day
            held.append(part)
            count += part.num_rows
    if held:
        yield pa.Table.from_batches(held, schema).combine_chunks(), day


def _by_day(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Split a batch, which is in order of time, by UTC day: (rows, days since 1970)."""
    at = 0
    while at < batch.num_rows:
        day = batch["ts_ns"][at].as_py() // _DAY_NS
        rows = int(pc.sum(pc.less(batch["ts_ns"], (day + 1) * _DAY_NS)).as_py()) - at
        yield batch.slice(at, rows), day
        at += rows


@contextmanager
def _disk_problem(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DiskProblem(
            f"{folder} was not written: {error}. The folder and the store are unchanged. Free disk space or make the folder writable."
        ) from error
