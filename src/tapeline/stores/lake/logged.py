"""What the logs of the lake's tables say, without a look into the files: how large the tables are, and when their latest rows came."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow.compute as pc

from tapeline.records import NORMALIZED_TOPICS
from tapeline.stores.lake import files as lake_files


def size_of(folder: Path) -> tuple[int, int] | None:
    """Return how many files a table's log names, and their size in bytes. None if there is no table. Raises DiskProblem and NewerData."""
    with lake_files.disk_problem(folder, "read", "Free disk space, or make the folder readable."):
        table = lake_files.opened(folder)
        if table is None:
            return None
        files = lake_files.files_of(table)
        return files.num_rows, lake_files.total(files, "size_bytes")


def latest_receipt_ns(root: Path, day: date) -> int:
    """Return when the latest of the rows of a UTC day was received (ns, UTC), as the logs of all tables say; 0 if there are none.

    Raises DiskProblem and NewerData."""
    latest_ns = 0
    for topic in NORMALIZED_TOPICS:
        folder = root / topic.table
        with lake_files.disk_problem(folder, "read", "Free disk space, or make the folder readable."):
            table = lake_files.opened(folder)
            files = lake_files.files_of(table, day) if table is not None else None
        if files is not None and "max.received_ns" in files.schema.names:
            latest_ns = max(latest_ns, pc.max(files["max.received_ns"]).as_py() or 0)
    return latest_ns
