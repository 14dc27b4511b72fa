"""Keeps the lake within its days and its size: removes the oldest whole UTC days first, and whatever no reader of the log needs.

The decision which days go is written to a file before the first table is changed, and deleted after the last. If the process dies in
between, the next one finishes what was decided. The rows of a removed day stay counted as kept, and count as removed as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import Transaction

from tapeline.local.files import write
from tapeline.records import INSTRUMENTS_TABLE, NORMALIZED_TOPICS, Topic
from tapeline.stores.lake import count_id, removing, totals_of
from tapeline.stores.lake import files as lake_files

#: A file next to the tables with the days to remove. It exists from before the first commit until after the last.
_DECIDED: Final = ".pruning"
_REMEDY: Final = "Run `tapeline lake prune` again."


@dataclass(frozen=True, slots=True)
class Keep:
    """How much stays. 0: everything."""

    days: int = 0  # days before today (UTC)
    gigabytes: float = 0.0  # of all tables together, in units of 10**9 bytes


@dataclass(frozen=True, slots=True)
class Pruned:
    """One day of one table that was removed, or would be."""

    table: str
    day: date
    rows: int
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """How many files and bytes were deleted in one table, and how many old entries of its log."""

    table: str
    files: int
    bytes: int
    log_entries: int


def prune(root: Path, keep: Keep, today: date, *, dry_run: bool = False) -> list[Pruned]:
    """Remove the days that are not kept, from every table.

    `today` (UTC) and later days are always kept. `dry_run`: only return which days would go.

    Raises Busy while another process changes the lake's files, DiskProblem and NewerData.
    """
    if dry_run:
        held = _held(root)
        return _of(held, _decided(root) | _doomed(held, keep, today))
    with lake_files.changing(root, "tapeline lake prune"):
        held = _held(root)
        days = _decided(root) | _doomed(held, keep, today)
        if not days:
            return []
        _decide(root, days)
        for topic in NORMALIZED_TOPICS:
            _remove(root / topic.table, topic, days)
        (root / _DECIDED).unlink(missing_ok=True)
        return _of(held, days)


def vacuum(root: Path) -> list[Vacuumed]:
    """Delete the files that the latest version of their table does not name, and old entries of the tables' logs.

    Raises Busy while another process changes the lake's files, DiskProblem and NewerData.
    """
    results = []
    with lake_files.changing(root, "tapeline lake vacuum"):
        for name in (*(topic.table for topic in NORMALIZED_TOPICS), INSTRUMENTS_TABLE):
            folder = root / name
            with lake_files.disk_problem(folder, "vacuumed", "Run `tapeline lake vacuum` again."):
                table = lake_files.opened(folder)
                if table is None:
                    continue
                files, size = removing.delete_unnamed(folder, table)
                before = _entries(folder)
                table.create_checkpoint()
                table.cleanup_metadata()
                results.append(Vacuumed(name, files, size, len(before - _entries(folder))))
    return results


def _held(root: Path) -> list[Pruned]:
    """Return every day of every table, with what it holds."""
    held = []
    for topic in NORMALIZED_TOPICS:
        folder = root / topic.table
        with lake_files.disk_problem(folder, "pruned", _REMEDY):
            table = lake_files.opened(folder)
            if table is None:
                continue
            days = lake_files.files_of(table).group_by("day").aggregate([("num_records", "sum"), ("path", "count"), ("size_bytes", "sum")])
            for row in days.to_pylist():
                day = date.fromisoformat(row["day"])
                held.append(Pruned(topic.table, day, row["num_records_sum"], row["path_count"], row["size_bytes_sum"]))
    return held


def _doomed(held: Iterable[Pruned], keep: Keep, today: date) -> set[date]:
    """Return the days that are too old, and then the oldest other days until the rest fits the size limit."""
    sizes: dict[date, int] = {}
    for one in held:
        sizes[one.day] = sizes.get(one.day, 0) + one.bytes
    gone = {day for day in sizes if keep.days and day < today - timedelta(days=keep.days)}
    if keep.gigabytes:
        left = sum(size for day, size in sizes.items() if day not in gone)
        for day in sorted(day for day in sizes if day < today and day not in gone):
            if left <= keep.gigabytes * 1e9:
                break
            gone.add(day)
            left -= sizes[day]
    return gone


def _of(held: Iterable[Pruned], days: set[date]) -> list[Pruned]:
    return sorted((one for one in held if one.day in days), key=lambda one: one.day)


def _remove(folder: Path, topic: Topic, days: set[date]) -> None:
    """Take the days' files out of a table and count their rows, in one commit. Then delete the files."""
    with lake_files.disk_problem(folder, "pruned", _REMEDY):
        table = lake_files.opened(folder)
        if table is None:
            return
        files = lake_files.files_of(table)
        files = files.filter(pc.is_in(files["day"], pa.array([str(day) for day in days], pa.string())))
        if files.num_rows:
            removed = totals_of(table, topic).removed + lake_files.total(files, "num_records")
            lake_files.commit(folder, table, files, [], [Transaction(count_id(topic, "removed"), removed)], data_change=True)
        removing.delete_removed(folder, table)


def _decide(root: Path, days: set[date]) -> None:
    with lake_files.disk_problem(root, "pruned", _REMEDY):
        write(root / _DECIDED, json.dumps(sorted(map(str, days))).encode())


def _decided(root: Path) -> set[date]:
    """Return the days that a process that died had decided to remove."""
    path = root / _DECIDED
    with lake_files.disk_problem(root, "pruned", _REMEDY):
        try:
            return {date.fromisoformat(day) for day in json.loads(path.read_text(encoding="utf-8"))}
        except FileNotFoundError:
            return set()
        except ValueError as error:
            raise OSError(f"{path} is damaged ({error}). Delete it: Tapeline then finds the days to remove again") from error


def _entries(folder: Path) -> set[str]:
    return {path.name for path in (folder / "_delta_log").iterdir()}
