"""The last hour on disk: each look at the pipeline, so that a page that is opened later shows what happened."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tapeline.errors import DiskProblem
from tapeline.local import sqlite
from tapeline.records import NS_PER_S

KEPT_NS: Final = 3_600 * NS_PER_S
_FORMAT: Final = 1


class Past:
    """A ring of JSON texts by their time (ns, UTC). Several threads may use it, one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def add(self, at_ns: int, body: bytes) -> None:
        """Keep a text, and forget those that are older than an hour. Raises DiskProblem."""
        with self._opened() as db:
            db.execute("INSERT OR REPLACE INTO looks VALUES (?, ?)", (at_ns, zlib.compress(body, 1)))
            # After a clock was set back, what lies in the future would never be forgotten.
            db.execute("DELETE FROM looks WHERE at_ns < ? OR at_ns > ?", (at_ns - KEPT_NS, at_ns))

    def at(self, at_ns: int) -> bytes | None:
        """Return the last text at or before a time; None if there is none. Raises DiskProblem."""
        with self._opened() as db:
            row = db.execute("SELECT body FROM looks WHERE at_ns <= ? ORDER BY at_ns DESC LIMIT 1", (at_ns,)).fetchone()
        return zlib.decompress(row[0]) if row is not None else None

    def between(self, start_ns: int, end_ns: int, every: int) -> Iterator[bytes]:
        """Yield the texts in [start, end), in order, of each `every` that follow each other the last. Raises DiskProblem."""
        with self._opened() as db:
            times = [
                at for (at,) in db.execute("SELECT at_ns FROM looks WHERE at_ns >= ? AND at_ns < ? ORDER BY at_ns", (start_ns, end_ns))
            ]
            for at_ns in times[every - 1 :: every]:
                (body,) = db.execute("SELECT body FROM looks WHERE at_ns = ?", (at_ns,)).fetchone()
                yield zlib.decompress(body)

    def count(self, start_ns: int, end_ns: int) -> int:
        """Return how many texts there are in [start, end). Raises DiskProblem."""
        with self._opened() as db:
            (count,) = db.execute("SELECT count(*) FROM looks WHERE at_ns >= ? AND at_ns < ?", (start_ns, end_ns)).fetchone()
        return int(count)

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._db is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._db = sqlite.connect(self._path, threads=True)
                sqlite.format_of(self._db, self._path, _FORMAT)
                self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
                sqlite.log_ahead(self._db)
                self._db.execute("CREATE TABLE IF NOT EXISTS looks (at_ns INTEGER PRIMARY KEY, body BLOB NOT NULL)")
                self._db.execute(f"PRAGMA user_version = {_FORMAT}")
            yield self._db
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise DiskProblem(
                f"{self._path} cannot be used: {error}. The dashboard shows the present without it. Free disk space, or remove the file."
            ) from error
