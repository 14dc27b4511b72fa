"""What waits on local disk while the stream is away: raw batches in order, in one SQLite file, up to a bound."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from tapeline.errors import DiskProblem, TapelineError
from tapeline.local.sqlite import connect, log_ahead
from tapeline.records import RAW

log = logging.getLogger(__name__)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY,  -- rises over all writers
    writer TEXT NOT NULL,        -- under whose name it is sent
    part INTEGER NOT NULL,
    records INTEGER NOT NULL,
    spooled_ns INTEGER NOT NULL,
    data BLOB NOT NULL           -- an Arrow IPC message of the raw schema
);
"""


#: An empty spool's file over this size is made anew.
_WORTH_RETURNING: Final = 64 * 1024 * 1024


class SpoolFull(DiskProblem):
    """The batch does not fit: it was not taken, what is held is kept."""


class SpoolDamaged(TapelineError):
    """The file is damaged and was set aside. A process that has put records there must end.

    Otherwise its next records would follow a hole that nobody sees. A connection that ends without a close is a gap in the ledger."""

    exit_status = DiskProblem.exit_status


@dataclass(frozen=True, slots=True)
class Spooled:
    """One batch that waits."""

    number: int
    partition: int
    batch: pa.RecordBatch


class Spool:
    """Raw batches that are not in the stream yet. A batch that was taken outlives the process."""

    def __init__(self, path: Path, max_bytes: int, clock: Callable[[], int] = time.time_ns) -> None:
        self.path, self._max_bytes, self._clock = path, max_bytes, clock
        self._opened: sqlite3.Connection | None = None
        self._damaged = ""
        self.bytes = self.records = self.last = 0

    def open(self) -> None:
        """Find what an earlier process has left; what is damaged is set aside. Raises DiskProblem."""
        try:
            self._open()
        except SpoolDamaged as error:
            log.error("%s", error)
            self._damaged = ""
            self._open()

    def _open(self) -> None:
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = connect(self.path)
            log_ahead(db)
            db.executescript(_SCHEMA)
            row = db.execute("SELECT coalesce(sum(length(data)), 0), coalesce(sum(records), 0), coalesce(max(number), 0) FROM batches")
            self.bytes, self.records, last = row.fetchone()
            self.last = max(self.last, last)
            self._opened = db

    def _set_aside(self, error: Exception) -> SpoolDamaged:
        """Keep a damaged file under another name, for a person to look at."""
        if self._opened is not None:
            self._opened.close()
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        for end in ("-wal", "-shm", ""):
            with suppress(OSError):
                Path(f"{self.path}{end}").rename(f"{aside}{end}")
        self._damaged = (
            f"The spool {self.path} is damaged: {error}. It is {aside} now. What waited in it and had not reached the stream is lost, and "
            "is a gap; ingest goes on with a new one."
        )
        self._opened, self.bytes, self.records = None, 0, 0
        return SpoolDamaged(self._damaged)

    def put(self, writer: str, number: int, partition: int, batch: pa.RecordBatch) -> None:
        """Take a batch. Raises SpoolFull, DiskProblem: then it was not taken."""
        data = memoryview(batch.serialize())
        if self.bytes + len(data) > self._max_bytes:
            raise SpoolFull(
                f"The spool {self.path} is full: {self.bytes / 1e6:,.0f} MB of {self._max_bytes / 1e6:,.0f} MB (stream.spool_mb)."
            )
        with self._errors():
            self._db.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", (number, writer, partition, batch.num_rows, self._clock(), data)
            )
        self.bytes += len(data)
        self.records += batch.num_rows
        self.last = number

    def after(self, number: int) -> Iterator[Spooled]:
        """The batches behind a number, in order."""
        with self._errors():
            for found, partition, data in self._db.execute(
                "SELECT number, part, data FROM batches WHERE number > ? ORDER BY number LIMIT 64", (number,)
            ).fetchall():
                yield Spooled(found, partition, pa.ipc.read_record_batch(pa.py_buffer(data), RAW))

    def drop(self, until: int) -> None:
        """Forget what is in the stream by now: all batches up to a number."""
        with self._errors():
            (size, records) = self._db.execute(
                "SELECT coalesce(sum(length(data)), 0), coalesce(sum(records), 0) FROM batches WHERE number <= ?", (until,)
            ).fetchone()
            if records:
                self._db.execute("DELETE FROM batches WHERE number <= ?", (until,))
                self.bytes -= size
                self.records -= records
            if not self.records and self.path.stat().st_size > _WORTH_RETURNING:
                self._begin_anew()

    def drop_of(self, writer: str, partition: int, numbers: Container[int]) -> None:
        """Forget what is in the stream by now: of one writer in one partition, the batches of these numbers."""
        with self._errors():
            rows = self._db.execute(
                "SELECT number, records, length(data) FROM batches WHERE writer = ? AND part = ?", (writer, partition)
            ).fetchall()
            gone = [row for row in rows if row[0] in numbers]
            left = json.dumps([number for number, _, _ in gone])
            self._db.execute("DELETE FROM batches WHERE number IN (SELECT value FROM json_each(?))", (left,))
            self.records -= sum(records for _, records, _ in gone)
            self.bytes -= sum(size for _, _, size in gone)

    def writers(self) -> dict[str, int]:
        """Under whose names the batches were sent, each with the time (ns) of its first."""
        with self._errors():
            return dict(self._db.execute("SELECT writer, min(spooled_ns) FROM batches GROUP BY writer").fetchall())

    def inherit(self, writer: str) -> None:
        """From now on everything is sent under this name."""
        with self._errors():
            self._db.execute("UPDATE batches SET writer = ?", (writer,))

    def _begin_anew(self) -> None:
        """Give the disk space of an empty spool back: quicker than SQLite's vacuum, for which the sockets would have to wait."""
        self.close()
        for end in ("-wal", "-shm", ""):
            Path(f"{self.path}{end}").unlink(missing_ok=True)
        self.open()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _db(self) -> sqlite3.Connection:
        if self._opened is None:
            self.open()
        assert self._opened is not None
        return self._opened

    @contextmanager
    def _errors(self) -> Iterator[None]:
        if self._damaged:
            raise DiskProblem(self._damaged)
        try:
            yield
        except (sqlite3.DatabaseError, OSError, EOFError, pa.ArrowException) as error:
            if not isinstance(error, (sqlite3.OperationalError, OSError)):
                raise self._set_aside(error) from error
            raise DiskProblem(f"The spool {self.path}: {error}. Free disk space or make the folder writable; it is tried again.") from error
