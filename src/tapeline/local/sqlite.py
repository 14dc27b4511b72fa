"""Opens SQLite files in one way, for use by several processes, and refuses files that a newer Tapeline wrote."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

from tapeline.errors import NewerData

#: rwc: read, write, and create the file if it does not exist. rw: read and write. ro: only read.
Mode = Literal["rwc", "rw", "ro"]


def connect(path: Path, mode: Mode = "rwc", *, wait_s: float = 5.0, threads: bool = False) -> sqlite3.Connection:
    """Open a SQLite file. Each statement commits by itself, except between BEGIN and COMMIT. Raises sqlite3.Error.

    `wait_s` is how long to wait for another process's lock. Set `threads` if several threads use the connection, one at a time."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=wait_s, check_same_thread=not threads)


def format_of(db: sqlite3.Connection, path: Path, newest: int) -> int:
    """The number of the format that a file was written in; 0 if nothing was written yet. Raises NewerData if it is above `newest`."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > newest:
        raise NewerData(
            f"{path} was written by a newer Tapeline (format {version}, this one reads up to {newest}). "
            "Nothing was changed. Upgrade Tapeline, or set another data_dir."
        )
    return int(version)


def log_ahead(db: sqlite3.Connection) -> None:
    """Turn on write-ahead logging, so that readers go on while another process writes.

    A power cut may lose the last moments, but never makes the file inconsistent."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
