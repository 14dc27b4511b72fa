"""The embedded stream: topics in two SQLite files, with nothing to install, for many processes on one machine.

Ingest writes `raw.sqlite` and normalize writes `normalized.sqlite`, so neither waits for the other. Each commit of a stage (outputs,
position, totals) is one SQLite transaction in one file. Write-ahead logging lets readers in other processes continue while a writer
commits.

With `synchronous=NORMAL` a killed process loses nothing. A power cut may lose the last moments before it, but never consistency
(https://www.sqlite.org/pragma.html#pragma_synchronous). Offsets that a power cut took back are never given again: the first write after
the machine started skips far ahead of them, so no store mistakes a new record for one it already has.

If a file was removed, the next process that looks for it makes it anew, even a process that had it open. The new file begins a new
life (lives.py).
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyarrow as pa

from tapeline.local.machine import boot_id
from tapeline.records import NORMALIZED_TOPICS, NS_PER_S, RAW_TOPIC, TOPICS, Chunk, Topic
from tapeline.streams import APPENDED, Lease, Member, Outputs, PartitionLost, Producer, Totals, Written
from tapeline.streams.codecs.arrow import decode, encode, pieces
from tapeline.streams.embedded.file import StreamFile
from tapeline.streams.embedded.leases import EmbeddedLeases
from tapeline.streams.embedded.tables import add_totals, born_of, count_written, end_of, file_of, floor_of, move
from tapeline.streams.groups import BookLease, SharedMember, Shares
from tapeline.streams.partitioning import split

log = logging.getLogger(__name__)

#: A chunk ends after this many stored bytes, however few records they hold.
_CHUNK_BYTES: Final = 32 * 1024 * 1024
_TRIM_BATCHES: Final = 500


class EmbeddedStream:
    """Topics under `directory`. Use one object per process and thread."""

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
        """`groups` maps each group to the topics it reads. Records that a group has not acknowledged are kept however old they are.

        `born` maps the current time (ns, UTC) to the least offset of what is written from then on (`lives.birth`)."""
        self.directory = directory
        self._wanted_partitions = partitions
        self._groups = groups or {}
        self._retain_s = retain_s
        self._boot = boot
        self._clock = clock
        self._born = born
        self._files: dict[str, StreamFile] = {}
        self._count = 0

    @property
    def partitions(self) -> int:
        """The number of partitions the stream was made with. A later setting does not change an existing stream."""
        if not self._count:
            file = self._file(RAW_TOPIC)
            with file.errors():
                row = file.db.execute("SELECT value FROM facts WHERE name = 'partitions'").fetchone()
                if row is None:
                    file.db.execute("INSERT OR IGNORE INTO facts VALUES ('partitions', ?)", (str(self._wanted_partitions),))
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
            add_totals(db, APPENDED, {topic.table: batch.num_rows} if topic.table else {})

    def append_as(self, writer: str, number: int, partition: int, batch: pa.RecordBatch) -> None:
        """Write a raw batch and, in the same transaction, record that the writer has come to this number."""
        with self._writing(RAW_TOPIC).transaction() as db:
            self._append(db, RAW_TOPIC, batch, partition)
            move(db, writer, RAW_TOPIC, partition, number)

    def numbers(self, writer: str) -> dict[int, int]:
        """Return a writer's highest number in each partition that has one."""
        file = self._file(RAW_TOPIC)
        with file.errors():
            rows = file.db.execute("SELECT part, next FROM positions WHERE consumer = ? AND topic = ?", (writer, RAW_TOPIC.name))
            return dict(rows.fetchall())

    def read(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        return self.read_some(topic, {partition: positions.get(partition, 0) for partition in range(self.partitions)}, max_rows)

    def read_some(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        """As `read`, but only from the given partitions."""
        share = -(-max_rows // max(1, len(positions)))  # so that no partition keeps the others waiting
        parts = [self._read(topic, partition, position, share) for partition, position in positions.items()]
        chunks = [chunk for chunk in parts if chunk is not None]
        return Chunk.join(chunks) if chunks else None

    def _read(self, topic: Topic, partition: int, position: int, max_rows: int) -> Chunk | None:
        file = self._file(topic)
        chunks: list[Chunk] = []
        rows = size = 0
        with file.errors():
            cursor = file.db.execute(
                "SELECT first, data FROM batches WHERE topic = ? AND part = ? AND next > ? ORDER BY next",
                (topic.name, partition, position),
            )
            for first, data in cursor:
                chunk = Chunk.dense(topic, partition, first, decode(data, topic.schema)).after({partition: position})
                chunks.append(chunk)
                rows += chunk.rows
                size += len(data)
                if rows >= max_rows or size >= _CHUNK_BYTES:
                    break
            cursor.close()
        if not chunks:
            return None
        joined = Chunk.join(chunks)
        return Chunk(topic, joined.batch, joined.partition, joined.offset, {partition: position}, joined.next)

    def producer(self, writer: str) -> Producer:
        return _Producer(self, writer)

    def join(self, group: str, topic: Topic, name: str = "") -> Member:
        return SharedMember(self, group, topic, Shares(self._leases(), group, topic.name, self.partitions, name), self.read_some)

    def hold(self, name: str) -> Lease:
        return BookLease(self._leases(), f"hold/{name}", name)

    def commit(self, group: str, chunk: Chunk, outputs: Outputs, totals: Totals) -> None:
        """As `Member.commit`. Raises PartitionLost if anyone else has moved the group since the chunk was read."""
        file = self._writing(outputs[0][0] if outputs else NORMALIZED_TOPICS[0])
        with file.transaction() as db:
            for partition, position in chunk.next.items():
                row = db.execute(
                    "SELECT next FROM positions WHERE consumer = ? AND topic = ? AND part = ?", (group, chunk.topic.name, partition)
                ).fetchone()
                if (row[0] if row else 0) != chunk.begin[partition]:
                    raise PartitionLost(f"Another process has changed the position of {group} in {chunk.topic.name} {partition}.")
                move(db, group, chunk.topic, partition, position)
            for topic, batch in outputs:
                self._append(db, topic, batch, None)
            add_totals(db, group, {name: value for name, value in totals.items() if value})

    def acknowledge(self, group: str, topic: Topic, positions: Mapping[int, int], counted: tuple[int | None, int] | None = None) -> bool:
        name = f"{topic.table}/read"
        with self._writing(topic).transaction() as db:
            if counted is not None:
                has, more = counted
                (now,) = db.execute("SELECT max(value) FROM totals WHERE consumer = ? AND name = ?", (group, name)).fetchone()
                if now != has:
                    return False
                add_totals(db, group, {name: more})
            for partition, position in positions.items():
                move(db, group, topic, partition, position)
        return True

    def positions(self, group: str, topic: Topic) -> dict[int, int]:
        positions = dict.fromkeys(range(self.partitions), 0)
        for file in self._both():
            with file.errors():
                positions |= dict(
                    file.db.execute("SELECT part, next FROM positions WHERE consumer = ? AND topic = ?", (group, topic.name)).fetchall()
                )
        return positions

    def totals(self, group: str) -> dict[str, int]:
        totals: dict[str, int] = {}
        for file in self._both():
            with file.errors():
                totals |= dict(file.db.execute("SELECT name, value FROM totals WHERE consumer = ?", (group,)).fetchall())
        return totals

    def ends(self, topic: Topic) -> dict[int, int]:
        file = self._file(topic)
        with file.errors():
            return {partition: end_of(file.db, topic.name, partition) for partition in range(self.partitions)}

    def tail_positions(self, topic: Topic, rows: int) -> dict[int, int]:
        file = self._file(topic)
        tails = {}
        with file.errors():
            for partition in range(self.partitions):
                left, position = rows, 0
                cursor = file.db.execute(
                    "SELECT first, next FROM batches WHERE topic = ? AND part = ? ORDER BY next DESC", (topic.name, partition)
                )
                for first, end in cursor:  # offsets may jump, so this counts records
                    position = max(first, end - left)
                    left -= end - position
                    if not left:
                        break
                cursor.close()
                tails[partition] = position
        return tails

    def lag(self, topic: Topic, positions: Mapping[int, int]) -> dict[int, int]:
        file = self._file(topic)
        lags = {}
        with file.errors():
            for partition in range(self.partitions):
                position = positions.get(partition, 0)
                (count,) = file.db.execute(
                    "SELECT coalesce(sum(next - max(first, ?)), 0) FROM batches WHERE topic = ? AND part = ? AND next > ?",
                    (position, topic.name, partition, position),
                ).fetchone()
                lags[partition] = int(count)
        return lags

    def lives(self, topic: Topic) -> dict[int, int]:
        file = self._file(topic)
        with file.errors():
            return dict.fromkeys(range(self.partitions), born_of(file.db))

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
            end = end_of(db, topic.name, at)
            first = max(end, floor_of(db, topic.name, at))
            count_written(db, topic.name, at, first if not end else None, piece.num_rows)
            db.execute(
                "INSERT INTO batches (topic, part, first, next, appended_ns, data) VALUES (?, ?, ?, ?, ?, ?)",
                (topic.name, at, first, first + piece.num_rows, self._clock(), encode(piece)),
            )

    def _file(self, topic: Topic) -> StreamFile:
        return self._open(file_of(topic))

    def _writing(self, topic: Topic) -> StreamFile:
        """Return the topic's file, ready to be written: offsets that a power cut took back are skipped, and old batches are trimmed."""
        file = self._file(topic)
        if not file.writes:
            self.partitions  # noqa: B018 it must be known before the transaction that needs it
            places = [
                (topic.name, part) for topic in TOPICS.values() if file_of(topic) == file.path.name for part in range(self.partitions)
            ]
            file.begin_writing(self._boot(), self._born(self._clock()), places, lambda: self._trim(file))
        return file

    def _both(self) -> Iterator[StreamFile]:
        return (self._open(name) for name in ("normalized.sqlite", "raw.sqlite"))

    def _open(self, name: str) -> StreamFile:
        file = self._files.get(name)
        if file is not None and not file.there():
            log.error(
                "%s was removed or replaced while it was in use. The records in it that no stage had read are lost. New records are kept. "
                "`tapeline gaps` shows what is missing.",
                file.path,
            )
            file.close()
            file = None
            self._count = 0
        if file is None:
            file = self._files[name] = StreamFile(self.directory / name, self._born(self._clock()))
        return file

    def _leases(self) -> EmbeddedLeases:
        return EmbeddedLeases(lambda: self._open("normalized.sqlite"), self._clock)

    def _trim(self, file: StreamFile) -> None:
        """Remove batches that are older than the retention and that every group has acknowledged.

        It runs concurrently with the writer, on connections of its own.
        """
        if self._retain_s == float("inf"):
            return
        with EmbeddedStream(self.directory, clock=self._clock, born=self._born)._closing() as own:
            for topic in (RAW_TOPIC, *NORMALIZED_TOPICS):
                if file_of(topic) != file.path.name:
                    continue
                readers = [own.positions(group, topic) for group, topics in self._groups.items() if topic in topics]
                for partition in range(own.partitions):
                    until = min((positions[partition] for positions in readers), default=1 << 62)
                    before_ns = self._clock() - int(self._retain_s * NS_PER_S)
                    while own._trim_some(topic, partition, until, before_ns) and not file.closing(0.01):  # lets the writer in
                        pass

    def _trim_some(self, topic: Topic, partition: int, until: int, before_ns: int) -> bool:
        """Remove some batches, and return whether there may be more.

        The last batch stays, because it shows where the offsets continue.
        """
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


class _Producer:
    """A producer whose batch is in the file when `send` returns."""

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
    def problem(self) -> str:
        return ""

    def last_acknowledged(self, writer: str, since_ns: int) -> Mapping[int, Container[int]]:
        del since_ns
        return {partition: range(1, number + 1) for partition, number in self._stream.numbers(f"writer {writer}").items()}

    def close(self, wait_s: float) -> None:
        """Do nothing: no batch is in flight."""
