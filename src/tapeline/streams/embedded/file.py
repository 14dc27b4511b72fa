"""One SQLite file: its connection, its transactions, and the checkpoints of its write-ahead log, which run outside the writer's path."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pyarrow as pa

from tapeline.errors import DiskProblem, Unavailable
from tapeline.local.sqlite import connect, format_of
from tapeline.streams.embedded.tables import FORMAT, SCHEMA, end_of, floor_of

#: How long a statement waits for another process.
_LOCK_WAIT_S: Final = 30.0
_WAL_CHECK_EVERY_S: Final = 1.0
#: If the write-ahead log is larger than this, the writer itself checkpoints it, and then waits for readers.
_WAL_BOUND: Final = 256 * 1024 * 1024
#: More offsets than a power cut can take back.
_SKIP: Final = 1 << 30
_TRIM_EVERY_S: Final = 10.0


def _make(path: Path) -> None:
    """Make an empty file and remove what is left of a removed file's log. SQLite would take that log for the new file's own."""
    with path.with_suffix(".making").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not path.exists():
            for log_name in (f"{path}-wal", f"{path}-shm"):
                Path(log_name).unlink(missing_ok=True)
            path.touch()


def _inode(path: Path) -> tuple[int, int] | None:
    """Return the device and inode that a path leads to, or None if it leads to no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


class StreamFile:
    """One SQLite file: its connection, its transactions and the checkpoints of its write-ahead log.

    A thread of its own checkpoints the log, so the writer does not wait for that.
    """

    def __init__(self, path: Path, born: int) -> None:
        """`born` is the first offset if the file has to be made."""
        self.path = path
        with self.errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _make(path)
            self.db = connect(path, wait_s=_LOCK_WAIT_S, threads=True)
            self._prepare(born)
            self._inode = _inode(path)
        self.writes = False
        self._folder: threading.Thread | None = None
        self._stop = threading.Event()

    def there(self) -> bool:
        """Return whether the path still leads to the open file."""
        return _inode(self.path) == self._inode

    def _prepare(self, born: int) -> None:
        version = format_of(self.db, self.path, FORMAT)
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute("PRAGMA wal_autocheckpoint = 0")
        if version < FORMAT:
            self._begin_log()
            self.db.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
            if version == 0:
                self.db.execute("INSERT OR IGNORE INTO facts VALUES ('born', ?)", (str(born),))
            self.db.execute("COMMIT")

    def _begin_log(self) -> None:
        """Turn write-ahead logging on.

        Retry, because SQLite itself does not wait here for another process that does the same at this moment.
        """
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
        """Prepare the file for the first write of this process. `places` lists the file's topics and partitions.

        Offsets that lie below `born` continue from `born`, because the file may be an older copy of itself. If the machine has started
        since the last write, offsets begin far ahead of the end. The new floors are on disk before the first offset is given out."""
        with self.errors():
            self.db.execute("PRAGMA synchronous = FULL")
        with self.transaction() as db:
            row = db.execute("SELECT value FROM facts WHERE name = 'boot'").fetchone()
            started = row is not None and row[0] != boot
            db.execute("INSERT INTO facts VALUES ('boot', ?) ON CONFLICT DO UPDATE SET value = excluded.value", (boot,))
            for topic, part in places:
                end = end_of(db, topic, part)
                ahead = max(end, floor_of(db, topic, part)) + (_SKIP if started or (row is None and end) else 0)
                if max(ahead, born) > end:
                    db.execute("REPLACE INTO floors VALUES (?, ?, ?)", (topic, part, max(ahead, born)))
        with self.errors():
            self.db.execute("PRAGMA synchronous = NORMAL")
        self.writes = True
        self._folder = threading.Thread(target=self._fold, args=(trim,), name=f"fold {self.path.name}", daemon=True)
        self._folder.start()

    def closing(self, wait_s: float) -> bool:
        """Wait up to `wait_s` seconds, and return whether the file is about to be closed."""
        return self._stop.wait(wait_s)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block in one write transaction. It commits at the end of the block, and rolls back if the block raises.

        Raises Unavailable if another process holds the lock for 30 s, and DiskProblem for other problems with the file. A raised
        error means that nothing was committed.
        """
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
            # The transaction is committed, so nothing may be raised: the caller would write the same once more. If the disk is the
            # problem, the next transaction meets it.
            with suppress(sqlite3.OperationalError):
                self.db.execute("PRAGMA wal_checkpoint(RESTART)")

    def _fold(self, trim: Callable[[], None]) -> None:
        """Checkpoint the log into the file every second, so that a commit never waits for the disk to sync. Trim every ten seconds."""
        try:
            db = connect(self.path, "rw", wait_s=1.0)
        except sqlite3.OperationalError:
            return  # the file was removed: the next call makes a new file, which starts its own thread
        trim_at = time.monotonic() + _TRIM_EVERY_S
        while not self._stop.wait(_WAL_CHECK_EVERY_S):
            # The writer meets the same disk problem on its own path and reports it there.
            with suppress(sqlite3.OperationalError):
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            if time.monotonic() >= trim_at:
                trim_at = time.monotonic() + _TRIM_EVERY_S
                with suppress(Unavailable):
                    trim()
        db.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Translate errors into messages that say what happened, what was not lost, and what to do."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise Unavailable(
                    f"Another process has locked {self.path} for over {_LOCK_WAIT_S:.0f} s. Wait until it is done, or stop it."
                ) from error
            raise DiskProblem(
                f"{self.path}: {text}. Records that were written before are safe. "
                "Free disk space or make the folder writable. A running stage retries."
            ) from error
        except (sqlite3.DatabaseError, EOFError, pa.ArrowException) as error:
            raise DiskProblem(
                f"{self.path} is damaged or not a Tapeline stream: {error}. Restore it from a backup. Or move it away: Tapeline then "
                "creates a new one, and the records that no stage had read are lost (a gap). The stores keep what they have."
            ) from error

    def close(self) -> None:
        """Stop the thread that checkpoints and trims, wait for its end, and close the connection."""
        self._stop.set()
        if self._folder is not None:
            self._folder.join()
        self.db.close()
