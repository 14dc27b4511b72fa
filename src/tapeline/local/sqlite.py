"""SQLite files: opened in one way, made ready for several processes, and left alone where a newer version wrote them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

from tapeline.errors import NewerData

#: Read and made if it is not there; read and written; only read.
Mode = Literal["rwc", "rw", "ro"]


def connect(path: Path, mode: Mode = "rwc", *, wait_s: float = 5.0, threads: bool = False) -> sqlite3.Connection:
    """Every statement commits by itself, but within BEGIN and COMMIT. Raises sqlite3.Error.

    `wait_s`: how long another process's lock is waited for. `threads`: threads take turns with it."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=wait_s, check_same_thread=not threads)


def format_of(db: sqlite3.Connection, path: Path, newest: int) -> int:
    """The format that a file was written in; 0: nothing was written yet. Raises NewerData where it is above `newest`."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > newest:
        raise NewerData(
            f"{path} was written by a newer Tapeline (format {version}, this one reads up to {newest}). "
            "Nothing was touched. Upgrade Tapeline, or set another data_dir."
        )
    return int(version)


def log_ahead(db: sqlite3.Connection) -> None:
    """Write-ahead logging: readers go on while another process writes. A power cut may cost the last moments, never consistency."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
