"""The embedded stream: topics in two SQLite files, nothing to install, many processes on one machine.

`raw.sqlite` is written by ingest, `normalized.sqlite` by normalize: one writer each, so that neither waits for the other, and
each commit of a stage (outputs, position, totals) is one SQLite transaction in one file. Write-ahead logging lets readers in other
processes go on while a writer commits. `synchronous=NORMAL`: a killed process loses nothing; a power cut may cost the last moments
before it, never consistency (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyarrow as pa

from tapeline.errors import DiskTrouble, NewerData, Unavailable
from tapeline.records import RAW_TOPIC, Topic
from tapeline.streams import Chunk, Totals

_FORMAT: Final = 1
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    part INTEGER NOT NULL,
    first INTEGER NOT NULL,      -- offset of the first record
    next INTEGER NOT NULL,       -- offset after the last record
    appended_ns INTEGER NOT NULL,
    data BLOB NOT NULL           -- one Arrow IPC record batch of the topic's schema
);
CREATE UNIQUE INDEX IF NOT EXISTS batches_by_position ON batches (topic, part, next);
CREATE TABLE IF NOT EXISTS positions (
    consumer TEXT NOT NULL, topic TEXT NOT NULL, part INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (consumer, topic, part)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    consumer TEXT NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL,
    PRIMARY KEY (consumer, name)
) WITHOUT ROWID;
PRAGMA user_version = {_FORMAT};
"""
#: How long a statement waits for another process.
_LOCK_WAIT_S: Final = 30.0
#: Batches over this size are compressed: below it the call costs more than the bytes saved.
_COMPRESS_FROM: Final = 32 * 1024
_WAL_CHECK_EVERY_S: Final = 1.0
#: A write-ahead log over this size is folded back by the writer itself, which then waits for readers.
_WAL_BOUND: Final = 256 * 1024 * 1024
#: A chunk ends after this many stored bytes, however few records they are.
_CHUNK_BYTES: Final = 32 * 1024 * 1024
_LZ4: Final = pa.ipc.IpcWriteOptions(compression="lz4")


def encode(batch: pa.RecordBatch) -> memoryview:
    options = _LZ4 if batch.nbytes >= _COMPRESS_FROM else None
    return memoryview(batch.serialize() if options is None else _serialize(batch, options))


def _serialize(batch: pa.RecordBatch, options: pa.ipc.IpcWriteOptions) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def decode(data: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """A stored batch: a bare record batch message, or a whole IPC stream where it is compressed."""
    buffer = pa.py_buffer(data)
    message = pa.ipc.read_message(buffer)
    if message.type == "record batch":
        return pa.ipc.read_record_batch(message, schema)
    return pa.ipc.open_stream(buffer).read_next_batch()


class EmbeddedStream:
    """Topics under `directory`. One object per process and thread; open read-only for looking on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, _File] = {}

    def append(self, topic: Topic, batch: pa.RecordBatch) -> None:
        file = self._file(topic)
        with file.transaction() as db:
            _append(db, topic, batch)

    def read(self, topic: Topic, partition: int, position: int, max_rows: int) -> Chunk | None:
        file = self._file(topic)
        found: list[pa.RecordBatch] = []
        first = position
        rows = size = 0
        with file.errors():
            cursor = file.db.execute(
                "SELECT first, next, data FROM batches WHERE topic = ? AND part = ? AND next > ? ORDER BY next",
                (topic.name, partition, position),
            )
            for start, end, data in cursor:
                if not found:
                    first = max(start, position)
                elif start != first + rows:
                    break  # a jump in the offsets ends the chunk
                batch = decode(data, topic.schema)
                found.append(batch.slice(first - start) if not rows and start < first else batch)
                rows = end - first
                size += len(data)
                if rows >= max_rows or size >= _CHUNK_BYTES:
                    break
            cursor.close()
        if not found:
            return None
        return Chunk(topic, partition, first, found[0] if len(found) == 1 else pa.concat_batches(found))

    def commit(self, group: str, source: Chunk, outputs: Sequence[tuple[Topic, pa.RecordBatch]], totals: Totals) -> None:
        file = self._file(outputs[0][0])
        with file.transaction() as db:
            for topic, batch in outputs:
                if batch.num_rows:
                    _append(db, topic, batch)
            db.execute(
                "INSERT INTO positions VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET next = excluded.next",
                (group, source.topic.name, source.partition, source.next),
            )
            db.executemany(
                "INSERT INTO totals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
                [(group, name, value) for name, value in totals.items() if value],
            )

    def position(self, group: str, topic: Topic, partition: int) -> int:
        for file in self._both():
            with file.errors():
                row = file.db.execute(
                    "SELECT next FROM positions WHERE consumer = ? AND topic = ? AND part = ?", (group, topic.name, partition)
                ).fetchone()
            if row is not None:
                return int(row[0])
        return 0

    def totals(self, group: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for file in self._both():
            with file.errors():
                found |= dict(file.db.execute("SELECT name, value FROM totals WHERE consumer = ?", (group,)).fetchall())
        return found

    def ends(self, topic: Topic) -> dict[int, int]:
        file = self._file(topic)
        with file.errors():
            # Partition 0 is the only one that one machine needs.
            row = file.db.execute("SELECT max(next) FROM batches WHERE topic = ? AND part = 0", (topic.name,)).fetchone()
        return {0: int(row[0] or 0)}

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, topic: Topic) -> _File:
        return self._open("raw.sqlite" if topic is RAW_TOPIC else "normalized.sqlite")

    def _both(self) -> Iterator[_File]:
        return (self._open(name) for name in ("normalized.sqlite", "raw.sqlite"))

    def _open(self, name: str) -> _File:
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = _File(self.directory / name)
        return file


def _append(db: sqlite3.Connection, topic: Topic, batch: pa.RecordBatch) -> None:
    (end,) = db.execute("SELECT max(next) FROM batches WHERE topic = ? AND part = 0", (topic.name,)).fetchone()
    first = end or 0
    db.execute(
        "INSERT INTO batches (topic, part, first, next, appended_ns, data) VALUES (?, 0, ?, ?, ?, ?)",
        (topic.name, first, first + batch.num_rows, time.time_ns(), encode(batch)),
    )


class _File:
    """One SQLite file: its connection, its transactions, and the folding back of its write-ahead log off the writer's path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, isolation_level=None, timeout=_LOCK_WAIT_S, check_same_thread=False)
            self._prepare()
        self._folder: threading.Thread | None = None
        self._stop = threading.Event()

    def _prepare(self) -> None:
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if version > _FORMAT:
            raise NewerData(
                f"{self.path} was written by a newer Tapeline (format {version}, this one reads up to {_FORMAT}). "
                "Nothing was touched. Upgrade Tapeline, or set another data_dir."
            )
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute("PRAGMA wal_autocheckpoint = 0")
        if version < _FORMAT:
            self._begin_log()
            self.db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")

    def _begin_log(self) -> None:
        """Turn write-ahead logging on. SQLite does not wait here for another process that does the same just now."""
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                self.db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        if self._folder is None:
            self._folder = threading.Thread(target=self._fold, name=f"fold {self.path.name}", daemon=True)
            self._folder.start()
        with self.errors():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise
            self._bound_log()

    def _bound_log(self) -> None:
        try:
            size = os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return
        if size > _WAL_BOUND:
            self.db.execute("PRAGMA wal_checkpoint(RESTART)")

    def _fold(self) -> None:
        """Copy the log back into the file every second, so that a commit never waits for the disk to sync."""
        db = sqlite3.connect(self.path, isolation_level=None, timeout=1.0)
        while not self._stop.wait(_WAL_CHECK_EVERY_S):
            try:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.OperationalError:
                # The writer meets the same trouble with the disk on its own path and reports it there.
                continue
        db.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Say what happened, what was not lost, and what to do."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise Unavailable(
                    f"{self.path} is locked by another process for over {_LOCK_WAIT_S:.0f} s. Nothing was written."
                ) from error
            raise DiskTrouble(
                f"{self.path}: {text}. What was written before is safe, this write did not happen. "
                "Free disk space or make the folder writable; it is tried again."
            ) from error
        except (sqlite3.DatabaseError, EOFError, pa.ArrowException) as error:
            raise DiskTrouble(
                f"{self.path} is damaged or no Tapeline stream: {error}. Move it aside and restore it from a backup; "
                "the lake is not affected."
            ) from error

    def close(self) -> None:
        self._stop.set()
        if self._folder is not None:
            self._folder.join()
        self.db.close()
