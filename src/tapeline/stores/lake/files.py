"""The lake's files: each under a name that holds its own checksum, put into Delta's log and taken out of it in one commit.

A file is written aside, under a name that no reader takes for Parquet, and gets its name when it is whole. What a commit takes out of the
log is deleted after the commit. Who dies on the way leaves files that the log does not name, which the next change or a vacuum removes.
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

#: The lake's own format, kept in each table's description; a newer one is refused.
_FORMAT: Final = 1
_DESCRIPTION: Final = "Tapeline lake, format "
_CHECKPOINT: Final = 20
#: A flush every few seconds makes a long log. Each write lists the log's folder, so old entries go after an hour: a checkpoint holds what
#: they said. Files that were removed stay named for a day, for the next change to find what one that died did not delete.
_LOG: Final = {
    "delta.checkpointInterval": str(_CHECKPOINT),
    "delta.logRetentionDuration": "interval 1 hours",
    "delta.deletedFileRetentionDuration": "interval 1 days",
}
#: How the names of files begin: a flush of the store; many of those, merged; one made again, from the raw topic or with another name of a
#: symbol; a compacted one. A day with no others is compacted.
PART: Final = "part-"
MERGED: Final = "merged-"
MADE: Final = "made-"
COMPACTED: Final = "sealed-"
#: What is being written, inside a table's folder: the leading point hides it from readers of folders, and no name in it ends in .parquet.
ASIDE: Final = ".compacting"
#: Rows that are read together: small enough to find an hour of a symbol, large enough to compress.
GROUP_ROWS: Final = 65_536
#: Rows of a flush are read together up to so many.
_PART_GROUP_ROWS: Final = 128 * 1024
#: Columns whose range within a file stands in the log, for readers to choose files by, and to know what a file held that is lost.
RANGED: Final = (
    *("symbol", "ts_ns", "kind", "interval", "exchange", "provider", "feed", "channel", "received_ns", "ts"),
    *("raw_partition", "raw_offset"),
)
#: An event's own id.
IDS: Final = ("raw_partition", "raw_offset", "raw_index")


def said(error: Exception) -> str:
    """What an error of delta-rs says, without the colors, the calls and the Rust structures that it prints; where it is a hole in the log,
    what to do."""
    text = _COLOR.sub("", _CALLS.split(str(error))[0])
    text = " ".join(text.split()).replace(" \N{DOWNWARDS ARROW WITH TIP RIGHTWARDS} ", ": ")
    if gap := _HOLE.search(text):
        first, second = (path.rpartition("/")[2] for path in _LOGGED.findall(gap[0])[:2] or ("", ""))
        return (
            f"its log has a hole: between {first} and {second} an entry is missing from _delta_log. Restore it from a backup; the rows are "
            "in the other files, and nothing is written until then"
        )
    return _RUST.sub("...", text)[:_LONGEST_WORDS]


#: As delta-rs tells a hole, and the paths of the log that it names.
_HOLE: Final = re.compile(r"Expected contiguous commit files.*")
_LOGGED: Final = re.compile(r'path: "([^"]+)"')
_RUST: Final = re.compile(r"\w+ \{.*\}")
_COLOR: Final = re.compile(r"\x1b\[[0-9;]*m")
_CALLS: Final = re.compile(r"\n\s*0: ")
_LONGEST_WORDS: Final = 300


@dataclass(frozen=True, slots=True)
class Added:
    """A file that has its name and is in no commit yet."""

    path: str  # within the table's folder, as the log names it
    day: date
    size: int
    stats: str


_NOT_ADDRESSED: Final = re.compile(r"[\[\]\\\x00-\x1f\x7f]|%[0-9A-Fa-f]{2}")


def table_at(folder: Path) -> DeltaTable:
    """The table's log. Raises what Delta does."""
    return DeltaTable(_uri(folder))


def _uri(folder: Path) -> str:
    """A folder as Delta takes it: it reads text as an address, in which `#`, `?` and `%` mean something else.

    Raises ConfigError for the few names that it cannot address at all (delta-rs 1.6)."""
    if wrong := _NOT_ADDRESSED.search(str(folder.absolute())):
        raise ConfigError(
            f"A lake cannot lie in {str(folder)!r}: its name holds {wrong[0]!r}, which Delta cannot address. Set another data_dir."
        )
    return folder.absolute().as_uri()


def for_duckdb(paths: Iterable[Path | str]) -> list[str]:
    """Files as DuckDB takes them: it reads text as a pattern, in which `*`, `?` and `[` stand for other files too."""
    return [re.sub(r"[*?\[]", r"[\g<0>]", str(path)) for path in paths]


def create(folder: Path, schema: pa.Schema) -> DeltaTable:
    """A table without rows; the one that is there, if another has just made it."""
    return DeltaTable.create(
        _uri(folder), schema, mode="ignore", partition_by=["date"], description=f"{_DESCRIPTION}{_FORMAT}", configuration=_LOG
    )


def keep_log_short(table: DeltaTable) -> None:
    """Have a table that an earlier version made keep its log as those of today do. For the store alone: it is a commit."""
    if any(table.metadata().configuration.get(name) != value for name, value in _LOG.items()):
        table.alter.set_table_properties(dict(_LOG))
        table.update_incremental()


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


def opened(folder: Path) -> DeltaTable | None:
    """The table as it now is; None where there is none. Raises NewerData, ConfigError, and what Delta does."""
    if not folder.exists():
        return None
    try:
        table = table_at(folder)
    except TableNotFoundError:
        return None
    check_format(table, folder)
    return table


def files_of(table: DeltaTable, day: date | None = None) -> pa.Table:
    """The files in the log, of one day or all, with what the log says of each; `day` is a text."""
    actions = pa.table(table.get_add_actions(flatten=True))
    actions = actions.append_column("day", actions["partition.date"].cast(pa.string()))
    return actions if day is None else actions.filter(pc.equal(actions["day"], str(day)))


def total(files: pa.Table, name: str) -> int:
    return int(pc.sum(files[name]).as_py() or 0)


# Writing


def write(folder: Path, day: date, rows: pa.Table) -> Added:
    """Write a file of a day's rows, without the column `date`; it is on disk for good when this returns."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", compression_level=1, row_group_size=_PART_GROUP_ROWS, write_page_checksum=True)
    content = sink.getvalue()
    path = folder / f"date={day}" / f"{PART}{uuid.uuid4().hex}-{zlib.crc32(content):08x}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, memoryview(content))
    return _added(folder, day, path)


def discard(folder: Path, added: Sequence[Added]) -> None:
    """Delete files whose commit has failed, but for those that the log names all the same; where it cannot be read, none."""
    try:
        table = opened(folder)
        named = {Path(path).name for path in files_of(table)["path"].to_pylist()} if table is not None else set()
    except (OSError, DeltaError, TapelineError):
        return  # they are removed once they are old
    delete([folder / one.path for one in added if Path(one.path).name not in named])


def place(folder: Path, day: date, new: Sequence[Path], prefix: str) -> list[Added]:
    """Give files that were written aside their names, on disk for good."""
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
    """What Delta's log says of a file: the number of rows, and the ranges of what readers choose files by."""
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
    """A time as Delta's statistics have it; anything else as it is."""
    return edge.isoformat().replace("+00:00", "Z") if isinstance(edge, datetime) else edge


# Changing the log


@contextmanager
def changing(root: Path, what: str) -> Iterator[None]:
    """Be the only one that replaces or removes files of the lake; the store may add some meanwhile. Raises Busy."""
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
    """One commit: these files out, those in, and these numbers; `table` is then as it left it.

    It fails where another has removed one of the files since, or set one of the numbers, and lets others' additions stand. And where one of
    those that go in is gone: a process that stood still for an hour finds its file forgotten, and removed.
    `data_change`: whether there are other rows than before."""
    for one in added:
        if not (folder / one.path).exists():
            raise FileNotFoundError(f"{one.path} was removed before it was in the log: it had lain there for too long")
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
        # Old entries of the log are the store's to remove: of two that do so at once, one would find them gone, and fail. And not with
        # each commit, for looking for them lists the log.
        post_commithook_properties=PostCommitHookProperties(
            create_checkpoint=removed is None, cleanup_expired_logs=removed is None and (table.version() + 1) % _CHECKPOINT == 0
        ),
    )
    table.update_incremental()


def move_on(table: DeltaTable, removed: pa.Table) -> None:
    """Have a table stand at the latest commit before files are taken out that took long to copy: what was committed since the table was
    opened may be in its log no more. Only for who changes the lake alone. Raises OSError where one of the files is out already."""
    table.update_incremental()
    named = set(files_of(table)["path"].to_pylist())
    if gone := [path for path in removed["path"].to_pylist() if path not in named]:
        raise OSError(f"{gone[0]} was taken out of the log meanwhile")


def delete(paths: Sequence[Path]) -> tuple[int, int]:
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
    try:
        partition.rmdir()
    except OSError:  # it is gone, or holds something: a store may have come back to it
        return


@contextmanager
def disk_problem(folder: Path, what: str, remedy: str, *also: type[Exception]) -> Iterator[None]:
    """What the disk, Delta, Arrow and `also` raise, as DiskProblem that says what was not done."""
    try:
        yield
    except (OSError, DeltaError, pa.ArrowException, *also) as error:
        whole = f"Readers see what they saw before, whole; nothing was lost. {remedy}" if _readable(folder) else "Nothing was changed."
        raise DiskProblem(f"{folder} was not {what}: {said(error)}{damaged_entry(folder)}. {whole}") from error


def _readable(folder: Path) -> bool:
    """Whether readers find the table's files, as far as its log goes."""
    try:
        table_at(folder)
    except TableNotFoundError:
        return True
    except (OSError, DeltaError):
        return False
    return True


def damaged_entry(folder: Path) -> str:
    """Which entry of a table's log is damaged, and what to do, to stand behind what Delta says of it; empty where each can be read."""
    for entry in sorted((folder / "_delta_log").glob("*.json")):
        try:
            for line in entry.read_bytes().splitlines():
                json.loads(line)
        except (OSError, ValueError):
            return (
                f": {entry.name} of its _delta_log is damaged. Restore it from a backup; the rows are in the other files, and nothing is "
                "written until then"
            )
    return ""


def unreadable(folder: Path, error: Exception) -> DiskProblem:
    """What an error in opening a table means."""
    return DiskProblem(f"The lake's table {folder} cannot be read: {said(error)}{damaged_entry(folder)}.")


def names_of(topic: Topic) -> str:
    """The columns of a topic's files, in their order, for SQL."""
    return ", ".join(f'"{name}"' for name in (*topic.schema.names, "ts"))
