"""The spool keeps raw batches on local disk while the stream is away: in order, in one SQLite file, up to a size limit."""

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


#: If the spool is empty and its file is larger than this, the file is recreated.
_WORTH_RETURNING: Final = 64 * 1024 * 1024


class SpoolFull(DiskProblem):
    """The batch does not fit and was not taken. The batches in the spool are kept."""


class SpoolDamaged(TapelineError):
    """The spool file is damaged and was renamed. A process that has put records into it must end.

    If it went on, its next records would follow a gap that nobody sees. When it ends, its connections end without a close record, and the
    ledger counts that as a gap."""

    exit_status = DiskProblem.exit_status


@dataclass(frozen=True, slots=True)
class Spooled:
    """One batch in the spool."""

    number: int
    partition: int
    batch: pa.RecordBatch


class Spool:
    """Raw batches that are not in the stream yet. A batch that was taken survives the process."""

    def __init__(self, path: Path, max_bytes: int, clock: Callable[[], int] = time.time_ns) -> None:
        self.path, self._max_bytes, self._clock = path, max_bytes, clock
        self._opened: sqlite3.Connection | None = None
        self._damaged = ""
        self.bytes = self.records = self.last = 0

    def open(self) -> None:
        """Open the file and count what an earlier process left. A damaged file is renamed, and a new one is begun. Raises DiskProblem."""
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
        """Rename a damaged file, so that a person can examine it."""
        if self._opened is not None:
            self._opened.close()
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        for end in ("-wal", "-shm", ""):
            with suppress(OSError):
                Path(f"{self.path}{end}").rename(f"{aside}{end}")
        self._damaged = (
            f"The spool {self.path} is damaged: {error}. Tapeline renamed it to {aside}. The records in it that had not reached the stream "
            "are lost and become a gap. Ingest continues with a new spool. Check the disk."
        )
        self._opened, self.bytes, self.records = None, 0, 0
        return SpoolDamaged(self._damaged)

    def put(self, writer: str, number: int, partition: int, batch: pa.RecordBatch) -> None:
        """Take a batch, to be sent under the name `writer`; `number` must be above all earlier numbers.

        Raises SpoolFull, DiskProblem and SpoolDamaged; then the batch was not taken."""
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
        """The batches with a number above `number`, in order, at most 64. Raises DiskProblem and SpoolDamaged."""
        with self._errors():
            for batch_number, partition, data in self._db.execute(
                "SELECT number, part, data FROM batches WHERE number > ? ORDER BY number LIMIT 64", (number,)
            ).fetchall():
                yield Spooled(batch_number, partition, pa.ipc.read_record_batch(pa.py_buffer(data), RAW))

    def remove(self, until: int) -> None:
        """Remove all batches with a number up to `until`: they are in the stream."""
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

    def remove_of(self, writer: str, partition: int, numbers: Container[int]) -> None:
        """Remove one writer's batches with these numbers in one partition: they are in the stream."""
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
        """The writers under whose names the batches are sent: name -> time of its first batch (ns, UTC)."""
        with self._errors():
            return dict(self._db.execute("SELECT writer, min(spooled_ns) FROM batches GROUP BY writer").fetchall())

    def inherit(self, writer: str) -> None:
        """Assign all batches to `writer`. They are sent under that name from now on."""
        with self._errors():
            self._db.execute("UPDATE batches SET writer = ?", (writer,))

    def _begin_anew(self) -> None:
        """Recreate the file of an empty spool to free its disk space. SQLite's vacuum is slower, and the sockets would wait for it."""
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
            raise DiskProblem(f"The spool {self.path}: {error}. Free disk space or make the folder writable. Tapeline retries.") from error
