"""The embedded stream: topics in two SQLite files, nothing to install, many processes on one machine.

`raw.sqlite` is written by ingest, `normalized.sqlite` by normalize: so neither waits for the other, and each commit of a stage
(outputs, position, totals) is one SQLite transaction in one file. Write-ahead logging lets readers in other processes go on while a
writer commits. `synchronous=NORMAL`: a killed process loses nothing; a power cut may cost the last moments before it, never
consistency (https://www.sqlite.org/pragma.html#pragma_synchronous). Offsets that a power cut took back are never given again: the
first write after the machine started skips far ahead of them, so that no store passes over a new record as one it has. A file that
was removed is made anew by whoever looks for it next, also by a process that had it open, and begins a new life (lives.py).
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pyarrow as pa

from tapeline.errors import DiskTrouble, NewerData, Unavailable
from tapeline.local.machine import boot_id
from tapeline.records import NORMALIZED_TOPICS, NS_PER_S, RAW_TOPIC, TOPICS, Chunk, Topic
from tapeline.streams import APPENDED, Lease, Member, Outputs, PartitionLost, Producer, Totals, Written
from tapeline.streams.codecs.arrow import decode, encode, pieces
from tapeline.streams.groups import BookLease, SharedMember, Shares
from tapeline.streams.partitioning import split

log = logging.getLogger(__name__)

_FORMAT: Final = 3
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
CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, token TEXT NOT NULL, until_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS floors (   -- no record gets an offset below, since the machine started as `boot`
    topic TEXT NOT NULL, part INTEGER NOT NULL, floor INTEGER NOT NULL, PRIMARY KEY (topic, part)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS written (  -- of a partition whose first record, at the offset `since`, was counted
    topic TEXT NOT NULL, part INTEGER NOT NULL, since INTEGER NOT NULL, records INTEGER NOT NULL, PRIMARY KEY (topic, part)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {_FORMAT};
"""
#: How long a statement waits for another process.
_LOCK_WAIT_S: Final = 30.0
_WAL_CHECK_EVERY_S: Final = 1.0
#: A write-ahead log over this size is folded back by the writer itself, which then waits for readers.
_WAL_BOUND: Final = 256 * 1024 * 1024
#: A chunk ends after this many stored bytes, however few records they are.
_CHUNK_BYTES: Final = 32 * 1024 * 1024
#: More offsets than a power cut can take back.
_SKIP: Final = 1 << 30
_TRIM_EVERY_S: Final = 10.0
_TRIM_BATCHES: Final = 500


class EmbeddedStream:
    """Topics under `directory`. One object per process and thread; open read-only for looking on."""

    def __init__(
        self,
        directory: Path,
        partitions: int = 1,
        *,
        groups: Mapping[str, tuple[Topic, ...]] | None = None,
        retain_s: float = float("inf"),
        boot: Callable[[], str] = boot_id,
        clock: Callable[[], int] = time.time_ns,
        born: Callable[[int], int] = lambda _now_ns: 0,
    ) -> None:
        """`groups`: who reads which topics; what one of them has not acknowledged is kept however old it is.

        `born`: from the time in ns, the least offset of what is written from then on (`lives.birth`)."""
        self.directory = directory
        self._asked_partitions = partitions
        self._groups = groups or {}
        self._retain_s = retain_s
        self._boot = boot
        self._clock = clock
        self._born = born
        self._files: dict[str, _File] = {}
        self._count = 0

    @property
    def partitions(self) -> int:
        """As many as the stream was made with: a later setting changes no stream that exists."""
        if not self._count:
            file = self._file(RAW_TOPIC)
            with file.errors():
                row = file.db.execute("SELECT value FROM facts WHERE name = 'partitions'").fetchone()
                if row is None:
                    file.db.execute("INSERT OR IGNORE INTO facts VALUES ('partitions', ?)", (str(self._asked_partitions),))
                    row = file.db.execute("SELECT value FROM facts WHERE name = 'partitions'").fetchone()
            self._count = int(row[0])
        return self._count

    @property
    def counts_records(self) -> bool:
        return True

    def append(self, topic: Topic, batch: pa.RecordBatch, partition: int | None = None) -> None:
        file = self._writing(topic)
        with file.transaction() as db:
            self._append(db, topic, batch, partition)
            _add(db, APPENDED, {topic.table: batch.num_rows} if topic.table else {})

    def append_as(self, writer: str, number: int, partition: int, batch: pa.RecordBatch) -> None:
        """Write a raw batch, and in the same step that the writer has come to this number."""
        with self._writing(RAW_TOPIC).transaction() as db:
            self._append(db, RAW_TOPIC, batch, partition)
            _move(db, writer, RAW_TOPIC, partition, number)

    def numbers(self, writer: str) -> dict[int, int]:
        """The highest number of a writer in each partition that has one."""
        file = self._file(RAW_TOPIC)
        with file.errors():
            rows = file.db.execute("SELECT part, next FROM positions WHERE consumer = ? AND topic = ?", (writer, RAW_TOPIC.name))
            return dict(rows.fetchall())

    def read(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        return self.read_some(topic, {partition: positions.get(partition, 0) for partition in range(self.partitions)}, max_rows)

    def read_some(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        """As `read`, of the partitions given alone."""
        share = -(-max_rows // max(1, len(positions)))  # so that no partition keeps the others waiting
        found = [self._read(topic, partition, position, share) for partition, position in positions.items()]
        chunks = [chunk for chunk in found if chunk is not None]
        return Chunk.join(chunks) if chunks else None

    def _read(self, topic: Topic, partition: int, position: int, max_rows: int) -> Chunk | None:
        file = self._file(topic)
        found: list[Chunk] = []
        rows = size = 0
        with file.errors():
            cursor = file.db.execute(
                "SELECT first, data FROM batches WHERE topic = ? AND part = ? AND next > ? ORDER BY next",
                (topic.name, partition, position),
            )
            for first, data in cursor:
                chunk = Chunk.dense(topic, partition, first, decode(data, topic.schema)).after({partition: position})
                found.append(chunk)
                rows += chunk.rows
                size += len(data)
                if rows >= max_rows or size >= _CHUNK_BYTES:
                    break
            cursor.close()
        if not found:
            return None
        joined = Chunk.join(found)
        return Chunk(topic, joined.batch, joined.partition, joined.offset, {partition: position}, joined.next)

    def producer(self, writer: str) -> Producer:
        return _Producer(self, writer)

    def join(self, group: str, topic: Topic, name: str = "") -> Member:
        return SharedMember(self, group, topic, Shares(self._leases(), group, topic.name, self.partitions, name), self.read_some)

    def hold(self, name: str) -> Lease:
        return BookLease(self._leases(), f"hold/{name}", name)

    def commit(self, group: str, chunk: Chunk, outputs: Outputs, totals: Totals) -> None:
        """As `Member.commit`. Whoever else has moved the group since the chunk was read makes it raise PartitionLost."""
        file = self._writing(outputs[0][0] if outputs else NORMALIZED_TOPICS[0])
        with file.transaction() as db:
            for partition, position in chunk.next.items():
                row = db.execute(
                    "SELECT next FROM positions WHERE consumer = ? AND topic = ? AND part = ?", (group, chunk.topic.name, partition)
                ).fetchone()
                if (row[0] if row else 0) != chunk.begin[partition]:
                    raise PartitionLost(f"{group} has moved on in {chunk.topic.name} {partition} without this process.")
                _move(db, group, chunk.topic, partition, position)
            for topic, batch in outputs:
                self._append(db, topic, batch, None)
            _add(db, group, {name: value for name, value in totals.items() if value})

    def acknowledge(self, group: str, topic: Topic, positions: Mapping[int, int], counted: tuple[int | None, int] | None = None) -> bool:
        name = f"{topic.table}/read"
        with self._writing(topic).transaction() as db:
            if counted is not None:
                has, more = counted
                (now,) = db.execute("SELECT max(value) FROM totals WHERE consumer = ? AND name = ?", (group, name)).fetchone()
                if now != has:
                    return False
                _add(db, group, {name: more})
            for partition, position in positions.items():
                _move(db, group, topic, partition, position)
        return True

    def positions(self, group: str, topic: Topic) -> dict[int, int]:
        found = dict.fromkeys(range(self.partitions), 0)
        for file in self._both():
            with file.errors():
                found |= dict(
                    file.db.execute("SELECT part, next FROM positions WHERE consumer = ? AND topic = ?", (group, topic.name)).fetchall()
                )
        return found

    def totals(self, group: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for file in self._both():
            with file.errors():
                found |= dict(file.db.execute("SELECT name, value FROM totals WHERE consumer = ?", (group,)).fetchall())
        return found

    def ends(self, topic: Topic) -> dict[int, int]:
        file = self._file(topic)
        with file.errors():
            return {partition: _end(file.db, topic.name, partition) for partition in range(self.partitions)}

    def before_end(self, topic: Topic, rows: int) -> dict[int, int]:
        file = self._file(topic)
        found = {}
        with file.errors():
            for partition in range(self.partitions):
                left, position = rows, 0
                cursor = file.db.execute(
                    "SELECT first, next FROM batches WHERE topic = ? AND part = ? ORDER BY next DESC", (topic.name, partition)
                )
                for first, end in cursor:  # offsets may jump: records are counted, not offsets
                    position = max(first, end - left)
                    left -= end - position
                    if not left:
                        break
                cursor.close()
                found[partition] = position
        return found

    def waiting(self, topic: Topic, positions: Mapping[int, int]) -> dict[int, int]:
        file = self._file(topic)
        found = {}
        with file.errors():
            for partition in range(self.partitions):
                position = positions.get(partition, 0)
                (count,) = file.db.execute(
                    "SELECT coalesce(sum(next - max(first, ?)), 0) FROM batches WHERE topic = ? AND part = ? AND next > ?",
                    (position, topic.name, partition, position),
                ).fetchone()
                found[partition] = int(count)
        return found

    def lives(self, topic: Topic) -> dict[int, int]:
        file = self._file(topic)
        with file.errors():
            return dict.fromkeys(range(self.partitions), _born(file.db))

    def written(self, topic: Topic) -> dict[int, Written]:
        file = self._file(topic)
        with file.errors():
            rows = file.db.execute("SELECT part, since, records FROM written WHERE topic = ?", (topic.name,)).fetchall()
        return {partition: Written(since, records) for partition, since, records in rows}

    def note(self, name: str, text: str) -> None:
        with self._writing(RAW_TOPIC).transaction() as db:
            db.execute("REPLACE INTO facts VALUES (?, ?)", (f"note {name}", text))

    def noted(self, name: str) -> str:
        file = self._file(RAW_TOPIC)
        with file.errors():
            row = file.db.execute("SELECT value FROM facts WHERE name = ?", (f"note {name}",)).fetchone()
        return str(row[0]) if row is not None else ""

    def largest(self, topic: Topic) -> int:
        return self._file(topic).db.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)

    def risks(self) -> list[str]:
        return []

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, db: sqlite3.Connection, topic: Topic, batch: pa.RecordBatch, partition: int | None) -> None:
        if not batch.num_rows:
            return
        parts = split(topic, batch, self.partitions) if partition is None else [(partition, batch)]
        most = db.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) // 2
        for at, piece in ((at, piece) for at, part in parts for piece in pieces(part, most)):
            end = _end(db, topic.name, at)
            first = max(end, _floor(db, topic.name, at))
            _count(db, topic.name, at, first if not end else None, piece.num_rows)
            db.execute(
                "INSERT INTO batches (topic, part, first, next, appended_ns, data) VALUES (?, ?, ?, ?, ?, ?)",
                (topic.name, at, first, first + piece.num_rows, self._clock(), encode(piece)),
            )

    def _file(self, topic: Topic) -> _File:
        return self._open(_file_of(topic))

    def _writing(self, topic: Topic) -> _File:
        """The topic's file, made ready to be written: offsets that a power cut took back are skipped, old batches trimmed."""
        file = self._file(topic)
        if not file.writes:
            self.partitions  # noqa: B018 known before the transaction that asks for it
            places = [
                (topic.name, part) for topic in TOPICS.values() if _file_of(topic) == file.path.name for part in range(self.partitions)
            ]
            file.begin_writing(self._boot(), self._born(self._clock()), places, lambda: self._trim(file))
        return file

    def _both(self) -> Iterator[_File]:
        return (self._open(name) for name in ("normalized.sqlite", "raw.sqlite"))

    def _open(self, name: str) -> _File:
        file = self._files.get(name)
        if file is not None and not file.there():
            log.error(
                "%s was removed or replaced while it was in use. What it held that was not read yet is gone; what comes from now on is "
                "kept. `tapeline gaps` shows what is missing.",
                file.path,
            )
            file.close()
            file = None
            self._count = 0
        if file is None:
            file = self._files[name] = _File(self.directory / name, self._born(self._clock()))
        return file

    def _leases(self) -> _Leases:
        return _Leases(lambda: self._open("normalized.sqlite"), self._clock)

    def _trim(self, file: _File) -> None:
        """Remove what is older than retention and acknowledged by every group; runs beside the writer, on connections of its own."""
        if self._retain_s == float("inf"):
            return
        with EmbeddedStream(self.directory, clock=self._clock, born=self._born)._closing() as own:
            for topic in (RAW_TOPIC, *NORMALIZED_TOPICS):
                if _file_of(topic) != file.path.name:
                    continue
                readers = [own.positions(group, topic) for group, topics in self._groups.items() if topic in topics]
                for partition in range(own.partitions):
                    until = min((positions[partition] for positions in readers), default=1 << 62)
                    before_ns = self._clock() - int(self._retain_s * NS_PER_S)
                    while own._trim_some(topic, partition, until, before_ns) and not file.closing(0.01):  # the writer goes between
                        pass

    def _trim_some(self, topic: Topic, partition: int, until: int, before_ns: int) -> bool:
        """Remove some batches; the last one stays, for it says where the offsets are. Whether there may be more."""
        file = self._file(topic)
        with file.errors():
            file.db.execute("PRAGMA busy_timeout = 1000")
            removed = file.db.execute(
                "DELETE FROM batches WHERE id IN (SELECT id FROM batches WHERE topic = :topic AND part = :part AND next <= :until"
                " AND appended_ns < :before AND next < (SELECT max(next) FROM batches WHERE topic = :topic AND part = :part)"
                " ORDER BY next LIMIT :most)",
                {"topic": topic.name, "part": partition, "until": until, "before": before_ns, "most": _TRIM_BATCHES},
            ).rowcount
        return removed == _TRIM_BATCHES

    @contextmanager
    def _closing(self) -> Iterator[EmbeddedStream]:
        try:
            yield self
        finally:
            self.close()


def _file_of(topic: Topic) -> str:
    return "raw.sqlite" if topic is RAW_TOPIC else "normalized.sqlite"


def _end(db: sqlite3.Connection, topic: str, partition: int) -> int:
    (end,) = db.execute("SELECT max(next) FROM batches WHERE topic = ? AND part = ?", (topic, partition)).fetchone()
    return int(end or 0)


def _floor(db: sqlite3.Connection, topic: str, partition: int) -> int:
    row = db.execute("SELECT floor FROM floors WHERE topic = ? AND part = ?", (topic, partition)).fetchone()
    return int(row[0]) if row else _born(db)


def _born(db: sqlite3.Connection) -> int:
    """Where the file's life begins; 0 for one of a version that had no lives."""
    row = db.execute("SELECT value FROM facts WHERE name = 'born'").fetchone()
    return int(row[0]) if row else 0


def _count(db: sqlite3.Connection, topic: str, partition: int, begins: int | None, records: int) -> None:
    """Count what is written. `begins`: the offset, where these are the partition's first records; what began uncounted stays so."""
    if begins is not None:
        db.execute("REPLACE INTO written VALUES (?, ?, ?, 0)", (topic, partition, begins))
    db.execute("UPDATE written SET records = records + ? WHERE topic = ? AND part = ?", (records, topic, partition))


def _add(db: sqlite3.Connection, group: str, totals: Totals) -> None:
    db.executemany(
        "INSERT INTO totals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
        [(group, name, value) for name, value in totals.items()],
    )


def _make(path: Path) -> None:
    """An empty file, without what one that was removed has left of its log: SQLite would take that for its own."""
    with path.with_suffix(".making").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not path.exists():
            for log_name in (f"{path}-wal", f"{path}-shm"):
                Path(log_name).unlink(missing_ok=True)
            path.touch()


def _inode(path: Path) -> tuple[int, int] | None:
    """Which file a path leads to; None: to none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _move(db: sqlite3.Connection, group: str, topic: Topic, partition: int, position: int) -> None:
    db.execute(
        "INSERT INTO positions VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET next = excluded.next",
        (group, topic.name, partition, position),
    )


class _Producer:
    """Each batch is in the file when `send` returns."""

    def __init__(self, stream: EmbeddedStream, writer: str) -> None:
        self._stream, self._writer = stream, f"writer {writer}"
        self._settled = 0

    def send(self, number: int, partition: int, batch: pa.RecordBatch) -> None:
        self._stream.append_as(self._writer, number, partition, batch)
        self._settled = number

    def settled(self) -> int:
        return self._settled

    @property
    def refused(self) -> Collection[int]:
        return ()

    @property
    def trouble(self) -> str:
        return ""

    def recovered(self, writer: str, since_ns: int) -> Mapping[int, Container[int]]:
        del since_ns
        return {partition: range(1, number + 1) for partition, number in self._stream.numbers(f"writer {writer}").items()}

    def close(self, wait_s: float) -> None:
        """Nothing is on its way."""


class _Leases:
    """The lease book in `normalized.sqlite`. All its users share one machine, and so one clock."""

    def __init__(self, file: Callable[[], _File], clock: Callable[[], int]) -> None:
        """`file`: the one that is there now; it may have been removed and made anew."""
        self._file, self._clock = file, clock

    def take(self, name: str, token: str, seconds: float) -> bool:
        now_ns = self._clock()
        with self._file().transaction() as db:
            return (
                db.execute(
                    "INSERT INTO leases VALUES (:name, :token, :until) ON CONFLICT DO UPDATE"
                    " SET token = excluded.token, until_ns = excluded.until_ns WHERE token = excluded.token OR until_ns < :now",
                    {"name": name, "token": token, "until": now_ns + int(seconds * NS_PER_S), "now": now_ns},
                ).rowcount
                == 1
            )

    def drop(self, name: str, token: str) -> None:
        with self._file().transaction() as db:
            db.execute("DELETE FROM leases WHERE name = ? AND token = ?", (name, token))

    def taken(self, prefix: str) -> dict[str, str]:
        file = self._file()
        with file.errors():
            file.db.execute("DELETE FROM leases WHERE until_ns < ?", (self._clock() - 3600 * NS_PER_S,))
            return dict(
                file.db.execute(
                    "SELECT name, token FROM leases WHERE substr(name, 1, length(?1)) = ?1 AND until_ns >= ?2", (prefix, self._clock())
                ).fetchall()
            )


class _File:
    """One SQLite file: its connection, its transactions, and the folding back of its write-ahead log off the writer's path."""

    def __init__(self, path: Path, born: int) -> None:
        """`born`: the first offset, if the file has to be made."""
        self.path = path
        with self.errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _make(path)
            self.db = sqlite3.connect(path, isolation_level=None, timeout=_LOCK_WAIT_S, check_same_thread=False)
            self._prepare(born)
            self._inode = _inode(path)
        self.writes = False
        self._folder: threading.Thread | None = None
        self._stop = threading.Event()

    def there(self) -> bool:
        """Whether the path still leads to the file that is open."""
        return _inode(self.path) == self._inode

    def _prepare(self, born: int) -> None:
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
            self.db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}")
            if version == 0:
                self.db.execute("INSERT OR IGNORE INTO facts VALUES ('born', ?)", (str(born),))
            self.db.execute("COMMIT")

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

    def begin_writing(self, boot: str, born: int, places: Sequence[tuple[str, int]], trim: Callable[[], None]) -> None:
        """Before the first write of this process. Offsets go on from `born`, if they lie below: the file may be an older copy of itself.

        Where the machine has started since the last write, they begin far ahead of the end. `places`: the topics and partitions of this
        file. What is noted here is on the disk before the first offset is given out."""
        with self.errors():
            self.db.execute("PRAGMA synchronous = FULL")
        with self.transaction() as db:
            row = db.execute("SELECT value FROM facts WHERE name = 'boot'").fetchone()
            started = row is not None and row[0] != boot
            db.execute("INSERT INTO facts VALUES ('boot', ?) ON CONFLICT DO UPDATE SET value = excluded.value", (boot,))
            for topic, part in places:
                end = _end(db, topic, part)
                ahead = max(end, _floor(db, topic, part)) + (_SKIP if started or (row is None and end) else 0)
                if max(ahead, born) > end:
                    db.execute("REPLACE INTO floors VALUES (?, ?, ?)", (topic, part, max(ahead, born)))
        with self.errors():
            self.db.execute("PRAGMA synchronous = NORMAL")
        self.writes = True
        self._folder = threading.Thread(target=self._fold, args=(trim,), name=f"fold {self.path.name}", daemon=True)
        self._folder.start()

    def closing(self, wait_s: float) -> bool:
        """Whether the file is about to be closed, by so many seconds from now."""
        return self._stop.wait(wait_s)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
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

    def _fold(self, trim: Callable[[], None]) -> None:
        """Copy the log back into the file every second, so that a commit never waits for the disk to sync; trim now and then."""
        try:
            db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=1.0)
        except sqlite3.OperationalError:
            return  # removed meanwhile: the next call makes the file anew, and another of these
        trim_at = time.monotonic() + _TRIM_EVERY_S
        while not self._stop.wait(_WAL_CHECK_EVERY_S):
            # The writer meets the same trouble with the disk on its own path and reports it there.
            with suppress(sqlite3.OperationalError):
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            if time.monotonic() >= trim_at:
                trim_at = time.monotonic() + _TRIM_EVERY_S
                with suppress(Unavailable):
                    trim()
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
                f"{self.path} is damaged or no Tapeline stream: {error}. Restore it from a backup, or move it away: a new one is begun. "
                "What no stage had read of it is then lost, and is a gap; the stores keep what they have."
            ) from error

    def close(self) -> None:
        self._stop.set()
        if self._folder is not None:
            self._folder.join()
        self.db.close()
