"""Deleting files from the lake: those the log calls removed, and those it does not name."""

from __future__ import annotations

import shutil
import time
from datetime import date
from pathlib import Path
from typing import Final

from deltalake import DeltaTable

from tapeline.local.files import sync
from tapeline.stores.lake.files import ASIDE, COMPACTED, COMPACTED_BEFORE, MADE, MERGED, delete, files_of, remove_if_empty

#: Prefixes of files that only a process that changes the lake alone can create.
_ALONE: Final = (MERGED, MADE, COMPACTED, COMPACTED_BEFORE)
#: No store takes this long (s) between writing a file and committing it.
_FORGOTTEN_AFTER_S: Final = 3_600.0


def delete_removed(folder: Path, table: DeltaTable, day: date | None = None) -> tuple[int, int]:
    """Delete the files that the log calls removed, of one day or all, and empty folders. Return (files, bytes).

    A file the log does not know yet stays: a store may be about to commit it."""
    log = folder / "_delta_log"
    for path in (log / f"{table.version():020}.json", log):
        if path.exists():
            sync(path)
    begins = "date=" if day is None else f"date={day}/"
    names = table.vacuum(retention_hours=0, dry_run=True, enforce_retention_duration=False)
    paths = [folder / name for name in names if name.startswith(begins)]
    return delete(paths)


def sweep(folder: Path, table: DeltaTable, day: date | None = None) -> None:
    """Remove what a change that died has left, of one day or all: files written aside, and files from before or after its commit."""
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    named = {Path(path).name for path in files_of(table, day)["path"].to_pylist()}
    # Files that a store has written and not committed yet are young. The log forgets after a day which files it called removed.
    delete(unnamed(folder, named, day))
    delete_removed(folder, table, day)


def delete_unnamed(folder: Path, table: DeltaTable) -> tuple[int, int]:
    """Delete every file that the log does not name, except those that a store may be about to commit. Return (files, bytes)."""
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    removed = delete_removed(folder, table)
    left = delete(unnamed(folder, {Path(path).name for path in files_of(table)["path"].to_pylist()}))
    for partition in folder.glob("date=*"):
        remove_if_empty(partition)
    return removed[0] + left[0], removed[1] + left[1]


def unnamed(folder: Path, named: set[str], day: date | None = None) -> list[Path]:
    """Return the files in the day folders that are not in `named` and that no store is about to commit.

    Only a process that changes the lake alone may call this. Otherwise the result would include files that others write aside or
    compact now."""
    paths = []
    for path in folder.glob("date=*/*" if day is None else f"date={day}/*"):
        if path.name not in named:
            try:
                old = time.time() - path.stat().st_mtime > _FORGOTTEN_AFTER_S
            except FileNotFoundError:
                continue
            if old or path.name.startswith(_ALONE):
                paths.append(path)
    return sorted(paths)
