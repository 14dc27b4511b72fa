"""The lake's files: each name holds the file's checksum, and one commit puts files into Delta's log or takes them out.

A file is written aside, under a name that no reader takes for Parquet, and gets its own name when it is whole. Files that a commit
takes out of the log are deleted after the commit. A process that dies on the way leaves files that the log does not name. The next
change or a vacuum removes them.
"""

from __future__ import annotations

import json
import re
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from tapeline.errors import ConfigError, DiskProblem, NewerData, TapelineError
from tapeline.local.files import sync
from tapeline.local.files import write as write_whole
from tapeline.local.locks import own
from tapeline.records import Topic
from tapeline.stores.lake.damage import checksum

#: The lake's own format, stored in each table's description. A newer format is refused.
_FORMAT: Final = 1
_DESCRIPTION: Final = "Tapeline lake, format "
_CHECKPOINT: Final = 20
#: A flush every few seconds makes a long log, and each write lists the log's folder. So old entries are removed after an hour; a
#: checkpoint holds their content. Removed files stay named for a day, so that the next change finds what a process that died did not
#: delete.
_LOG: Final = {
    "delta.checkpointInterval": str(_CHECKPOINT),
    "delta.logRetentionDuration": "interval 1 hours",
    "delta.deletedFileRetentionDuration": "interval 1 days",
}
#: Prefixes of file names: a flush of the store; several flushes, merged; a file made again from the raw topic or with another name of a
#: symbol; a compacted file. A day that has other than compacted files is due for compaction.
PART: Final = "part-"
MERGED: Final = "merged-"
MADE: Final = "made-"
COMPACTED: Final = "compacted-"
#: What earlier versions called a compacted file. It stays as it is: to compact a whole lake once more would gain nothing.
COMPACTED_BEFORE: Final = "sealed-"
#: The folder inside a table's folder for files being written. The leading dot hides it from readers of folders, and no name in it ends in
#: .parquet.
ASIDE: Final = ".compacting"
#: The most rows in a row group of a flush.
_PART_GROUP_ROWS: Final = 128 * 1024
#: Columns whose range within a file is in the log. Readers choose files by it, and it shows what a lost file held.
RANGED: Final = (
    *("symbol", "ts_ns", "kind", "interval", "exchange", "provider", "feed", "channel", "received_ns", "ts"),
    *("raw_partition", "raw_offset"),
)
#: An event's own id.
IDS: Final = ("raw_partition", "raw_offset", "raw_index")


def message_of(error: Exception) -> str:
    """Return the message of a delta-rs error without the colors, call traces and Rust structures it prints.

    If the error is a hole in the log, the message says what to do."""
    text = _COLOR.sub("", _CALLS.split(str(error))[0])
    text = " ".join(text.split()).replace(" \N{DOWNWARDS ARROW WITH TIP RIGHTWARDS} ", ": ")
    if gap := _HOLE.search(text):
        first, second = (path.rpartition("/")[2] for path in _LOGGED.findall(gap[0])[:2] or ("", ""))
        return (
            f"its log is incomplete: _delta_log lacks an entry between {first} and {second}. Restore it from a backup. The rows are "
            "in the other files. Nothing is written until then"
        )
    return _RUST.sub("...", text)[:_LONGEST_MESSAGE]


#: How delta-rs reports a hole, and the log paths that it names.
_HOLE: Final = re.compile(r"Expected contiguous commit files.*")
_LOGGED: Final = re.compile(r'path: "([^"]+)"')
_RUST: Final = re.compile(r"\w+ \{.*\}")
_COLOR: Final = re.compile(r"\x1b\[[0-9;]*m")
_CALLS: Final = re.compile(r"\n\s*0: ")
_LONGEST_MESSAGE: Final = 300


@dataclass(frozen=True, slots=True)
class Added:
    """A file that has its name and is in no commit yet."""

    path: str  # path within the table's folder, as the log names it
    day: date
    size: int
    stats: str


_NOT_ADDRESSED: Final = re.compile(r"[\[\]\\\x00-\x1f\x7f]|%[0-9A-Fa-f]{2}")


def table_at(folder: Path) -> DeltaTable:
    """Return the table's log. Raises Delta's errors."""
    return DeltaTable(_uri(folder))


def _uri(folder: Path) -> str:
    """Return a folder as a URI. Delta reads text as an address, in which `#`, `?` and `%` mean something else.

    Raises ConfigError for the few names that Delta cannot address at all (delta-rs 1.6)."""
    if wrong := _NOT_ADDRESSED.search(str(folder.absolute())):
        raise ConfigError(
            f"The lake cannot be stored in {str(folder)!r}: the path has {wrong[0]!r}, which Delta cannot address. Set another data_dir."
        )
    return folder.absolute().as_uri()


def for_duckdb(paths: Iterable[Path | str]) -> list[str]:
    """Return paths escaped for DuckDB, which reads text as a pattern in which `*`, `?` and `[` match other files too."""
    return [re.sub(r"[*?\[]", r"[\g<0>]", str(path)) for path in paths]


def create(folder: Path, schema: pa.Schema) -> DeltaTable:
    """Return a new table without rows, or the existing one if another process has just made it."""
    return DeltaTable.create(
        _uri(folder), schema, mode="ignore", partition_by=["date"], description=f"{_DESCRIPTION}{_FORMAT}", configuration=_LOG
    )


def keep_log_short(table: DeltaTable) -> None:
    """Give a table that an earlier version made today's log settings. Only the store may call this, because it is a commit."""
    if any(table.metadata().configuration.get(name) != value for name, value in _LOG.items()):
        table.alter.set_table_properties(dict(_LOG))
        table.update_incremental()


def check_format(table: DeltaTable, path: Path) -> None:
    """Raises NewerData if a newer Tapeline wrote the table, ConfigError if Tapeline did not write it."""
    description = table.metadata().description or ""
    version = description.removeprefix(_DESCRIPTION)
    if not (description.startswith(_DESCRIPTION) and version.isdigit()):
        raise ConfigError(f"{path} is a Delta table that Tapeline did not create. Move it away, or set another data_dir.")
    if int(version) > _FORMAT:
        raise NewerData(
            f"{path} was written by a newer Tapeline (format {version}, this one knows {_FORMAT}). "
            "Nothing was changed. Upgrade Tapeline, or set another data_dir."
        )


def opened(folder: Path) -> DeltaTable | None:
    """Return the table as it is now, or None if there is none. Raises NewerData, ConfigError and Delta's errors."""
    if not folder.exists():
        return None
    try:
        table = table_at(folder)
    except TableNotFoundError:
        return None
    check_format(table, folder)
    return table


def files_of(table: DeltaTable, day: date | None = None) -> pa.Table:
    """Return the files in the log, of one day or all, with what the log says about each. The column `day` is text."""
    actions = pa.table(table.get_add_actions(flatten=True))
    actions = actions.append_column("day", actions["partition.date"].cast(pa.string()))
    return actions if day is None else actions.filter(pc.equal(actions["day"], str(day)))


def is_compacted(path: str) -> bool:
    """Return whether a file of the log, by its path, is a compacted one."""
    return Path(path).name.startswith((COMPACTED, COMPACTED_BEFORE))


def total(files: pa.Table, name: str) -> int:
    """Return the sum of one of the number columns of `files_of`, such as `num_records` or `size_bytes`. No files: 0."""
    return int(pc.sum(files[name]).as_py() or 0)


# Writing


def write(folder: Path, day: date, rows: pa.Table) -> Added:
    """Write a file of a day's rows, without the column `date`. The file is durable on disk when this returns."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", compression_level=1, row_group_size=_PART_GROUP_ROWS, write_page_checksum=True)
    content = sink.getvalue()
    path = folder / f"date={day}" / f"{PART}{uuid.uuid4().hex}-{zlib.crc32(content):08x}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, memoryview(content))
    return _added(folder, day, path)


def discard(folder: Path, added: Sequence[Added]) -> None:
    """Delete files whose commit has failed, except those that the log names nevertheless. If the log cannot be read, delete none."""
    try:
        table = opened(folder)
        named = {Path(path).name for path in files_of(table)["path"].to_pylist()} if table is not None else set()
    except (OSError, DeltaError, TapelineError):
        return  # a later change removes them once they are old
    delete([folder / one.path for one in added if Path(one.path).name not in named])


def place(folder: Path, day: date, new: Sequence[Path], prefix: str) -> list[Added]:
    """Give files that were written aside their names. They are durable on disk when this returns."""
    partition = folder / f"date={day}"
    partition.mkdir(exist_ok=True)
    run = uuid.uuid4().hex[:12]
    placed = []
    for at, path in enumerate(new):
        sync(path)
        placed.append(path.rename(partition / f"{prefix}{at:04}-{run}-{checksum(path):08x}.parquet"))
    sync(partition)
    return [_added(folder, day, path) for path in placed]


def _added(folder: Path, day: date, path: Path) -> Added:
    return Added(str(path.relative_to(folder)), day, path.stat().st_size, _stats(path))


def _stats(path: Path) -> str:
    """Return what Delta's log says about a file: its row count, and the ranges of the columns that readers choose files by."""
    metadata = pq.read_metadata(path)
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    for at in range(metadata.num_columns):
        name = metadata.schema.column(at).name
        groups = [metadata.row_group(group).column(at).statistics for group in range(metadata.num_row_groups)]
        if name in RANGED and groups and all(group is not None and group.has_min_max for group in groups):
            least[name] = _in_the_log(min(group.min for group in groups))
            most[name] = _in_the_log(max(group.max for group in groups))
    return json.dumps({"numRecords": metadata.num_rows, "minValues": least, "maxValues": most, "nullCount": {}})


def _in_the_log(edge: object) -> object:
    """Return a time in the form of Delta's statistics, and any other value unchanged."""
    return edge.isoformat().replace("+00:00", "Z") if isinstance(edge, datetime) else edge


# Changing the log


@contextmanager
def changing(root: Path, what: str) -> Iterator[None]:
    """Be the only process that replaces or removes files of the lake. The store may add files meanwhile. Raises Busy."""
    with own(root / ASIDE, what):
        yield


def commit(
    folder: Path,
    table: DeltaTable,
    removed: pa.Table | None,
    added: Sequence[Added],
    transactions: Sequence[Transaction],
    *,
    data_change: bool,
) -> None:
    """Make one commit that takes out `removed`, puts in `added` and sets the counts. Afterwards `table` stands at that commit.

    `data_change`: whether the rows differ from before. The commit fails if another process has removed one of the files or set one of
    the counts since. It tolerates files that others added. It also fails if an added file is gone: if a process stood still for an
    hour, its file counts as forgotten and was removed."""
    for one in added:
        if not (folder / one.path).exists():
            raise FileNotFoundError(f"{one.path} was deleted before it was committed, because it had waited too long")
    now_ms = time.time_ns() // 1_000_000
    actions: list[AddAction | RemoveAction] = []
    if removed is not None:
        for path, size, day in zip(*(removed[name].to_pylist() for name in ("path", "size_bytes", "day")), strict=True):
            partition: dict[str, str | None] = {"date": day}
            actions.append(RemoveAction(path, data_change=data_change, deletion_timestamp=now_ms, size=size, partition_values=partition))
    actions += [AddAction(one.path, one.size, {"date": str(one.day)}, now_ms, data_change=data_change, stats=one.stats) for one in added]
    table.create_write_transaction(
        actions,
        mode="append",
        schema=table.schema(),
        partition_by=["date"],
        commit_properties=CommitProperties(app_transactions=list(transactions)),
        # Only the store removes old entries of the log. If two processes did so at once, one would find them gone and fail. It does not
        # happen at each commit, because finding old entries lists the log.
        post_commithook_properties=PostCommitHookProperties(
            create_checkpoint=removed is None, cleanup_expired_logs=removed is None and (table.version() + 1) % _CHECKPOINT == 0
        ),
    )
    table.update_incremental()


def move_on(table: DeltaTable, removed: pa.Table) -> None:
    """Bring a table to the latest commit before files that took long to copy are taken out.

    Delta compares a commit with all commits since the table was opened, and the store may have removed those from the log. The caller
    must be the only process that changes the lake. Raises OSError if another process has taken one of the files out of the table."""
    table.update_incremental()
    named = set(files_of(table)["path"].to_pylist())
    if gone := [path for path in removed["path"].to_pylist() if path not in named]:
        raise OSError(f"{gone[0]} was removed from the log by another process meanwhile")


def delete(paths: Sequence[Path]) -> tuple[int, int]:
    """Delete files, and their folders if these are empty then. Return (files, bytes); a file that is already gone does not count.

    Raises OSError if a file cannot be deleted; the files before it are gone then.
    """
    files = size = 0
    for path in paths:
        try:
            held = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        files, size = files + 1, size + held
    for partition in {path.parent for path in paths}:
        remove_if_empty(partition)
    return files, size


def remove_if_empty(partition: Path) -> None:
    """Remove a day's folder. If it is gone, holds something or cannot be removed, do nothing."""
    try:
        partition.rmdir()
    except OSError:  # it is gone, or holds something: a store may have written to it again
        return


@contextmanager
def disk_problem(folder: Path, what: str, remedy: str, *also: type[Exception]) -> Iterator[None]:
    """Turn errors of the disk, Delta, Arrow and `also` into a DiskProblem that says what was not done."""
    try:
        yield
    except (OSError, DeltaError, pa.ArrowException, *also) as error:
        whole = f"Nothing was lost. Readers see the same rows as before. {remedy}" if _readable(folder) else "Nothing was changed."
        raise DiskProblem(f"{folder} was not {what}: {message_of(error)}{damaged_entry(folder)}. {whole}") from error


def _readable(folder: Path) -> bool:
    """Return whether readers find the table's files, as far as the log shows."""
    try:
        table_at(folder)
    except TableNotFoundError:
        return True
    except (OSError, DeltaError):
        return False
    return True


def damaged_entry(folder: Path) -> str:
    """Return which entry of a table's log is damaged and what to do, as an addition to Delta's message.

    Empty if every entry can be read.
    """
    for entry in sorted((folder / "_delta_log").glob("*.json")):
        try:
            for line in entry.read_bytes().splitlines():
                json.loads(line)
        except (OSError, ValueError):
            return (
                f": the entry {entry.name} of its _delta_log is damaged. Restore it from a backup. The rows are in the other files. "
                "Nothing is written until then"
            )
    return ""


def unreadable(folder: Path, error: Exception) -> DiskProblem:
    """Return the DiskProblem for an error while opening a table."""
    return DiskProblem(f"The lake table {folder} cannot be read: {message_of(error)}{damaged_entry(folder)}.")


def names_of(topic: Topic) -> str:
    """Return the columns of a topic's files, in their order, for SQL."""
    return ", ".join(f'"{name}"' for name in (*topic.schema.names, "ts"))
