"""The page log keeps a backfill's progress on disk: its spans, and the next page of each.

A page is logged before it is sent. After a crash in between, the next process asks the stream by the name of the writer whether the page
arrived. So no page is in the stream twice, and none is missing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Final

import msgspec

from tapeline.errors import DiskProblem, NewerData
from tapeline.local.sqlite import connect, format_of, log_ahead
from tapeline.providers.history import Request, Span

_FORMAT: Final = 2
_SCHEMA: Final = f"""
BEGIN;
CREATE TABLE spans (
    number INTEGER PRIMARY KEY,
    span BLOB NOT NULL,
    next BLOB,                 -- the page to ask for; null: the first
    done INTEGER NOT NULL DEFAULT 0,
    pages INTEGER NOT NULL DEFAULT 0,
    events INTEGER NOT NULL DEFAULT 0,
    reached_ns INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE sent (            -- pages that may or may not have arrived
    number INTEGER PRIMARY KEY,
    writer TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    span INTEGER NOT NULL,
    next BLOB,
    events INTEGER NOT NULL,
    reached_ns INTEGER NOT NULL
);
CREATE TABLE writers (number INTEGER PRIMARY KEY);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = {_FORMAT};
COMMIT;
"""


#: The upgrade from each earlier format. Format 1 also logged lookup pages, so it could continue at a request whose answer had changed.
_MIGRATIONS: Final = {
    1: """
BEGIN;
DELETE FROM sent WHERE NOT kept;
ALTER TABLE sent DROP COLUMN kept;
UPDATE spans SET next = NULL WHERE NOT pages;
PRAGMA user_version = 2;
COMMIT;
"""
}


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of one span."""

    number: int
    span: Span
    #: The request for the next page; None: the first page.
    following: Request | None
    done: bool
    pages: int
    events: int
    #: The time of its last event (ns, UTC); 0 if none has arrived.
    reached_ns: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A page that was handed to the stream, or is about to be.

    Lookup pages carry no events and are not logged; after a crash they are requested again."""

    number: int
    span: int
    #: The request for the next page of its span; None if it is the last page.
    following: Request | None
    events: int
    reached_ns: int


class PageLog:
    """The log file of one backfill. All methods raise DiskProblem; then nothing was logged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: sqlite3.Connection | None = None

    def open(self, spans: Sequence[Span]) -> None:
        """Open the log. `spans` is stored if the log is new; otherwise the log's own spans stay."""
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._opened = db = connect(self.path)
            version = format_of(db, self.path, _FORMAT)
            # Not more durable than the embedded stream's files: after a power cut, the log must not be ahead of them.
            log_ahead(db)
            if not version:
                db.executescript(_SCHEMA)
            elif version < _FORMAT:
                db.executescript(_MIGRATIONS[version])
            db.execute("INSERT OR IGNORE INTO facts VALUES ('name', lower(hex(randomblob(8))))")
            if not db.execute("SELECT count(*) FROM spans").fetchone()[0]:
                with self._transaction():
                    db.executemany("INSERT INTO spans (span) VALUES (?)", [(msgspec.json.encode(span),) for span in spans])

    def whole(self) -> bool:
        """Whether all spans are done and all pages have arrived. Call it only if the log is not open and no process writes to it.

        Raises NewerData if the log has another format, older or newer."""
        with self._errors():
            self._opened = db = connect(self.path, "ro")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != _FORMAT:
                raise NewerData(f"{self.path} has a format ({version}) that this Tapeline does not use. Nothing was changed.")
            (open_,) = db.execute("SELECT (SELECT count(*) FROM spans WHERE NOT done) + (SELECT count(*) FROM sent)").fetchone()
            return not open_

    def forget(self) -> None:
        """Delete the log, so that the job begins anew. Call it only if the log is not open."""
        with self._errors():
            for end in ("-wal", "-shm", ""):
                Path(f"{self.path}{end}").unlink(missing_ok=True)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def name(self) -> str:
        """A random name that no other log has. A log of the same job that was begun anew has another name."""
        with self._errors():
            return str(self._db.execute("SELECT value FROM facts WHERE name = 'name'").fetchone()[0])

    def spans(self) -> list[Progress]:
        with self._errors():
            rows = self._db.execute("SELECT number, span, next, done, pages, events, reached_ns FROM spans ORDER BY number").fetchall()
        return [
            Progress(number, msgspec.json.decode(span, type=Span), _request(following), bool(done), pages, events, reached_ns)
            for number, span, following, done, pages, events, reached_ns in rows
        ]

    def begin_writing(self) -> int:
        """A number for this process. No other process of this log has it, now or later."""
        with self._errors(), self._transaction():
            return int(self._db.execute("INSERT INTO writers DEFAULT VALUES RETURNING number").fetchone()[0])

    def note(self, writer: str, at_ns: int, page: Sent) -> None:
        """Log a page that is about to be sent under the name `writer`. `at_ns`: now (UTC)."""
        following = None if page.following is None else msgspec.json.encode(page.following)
        row = (page.number, writer, at_ns, page.span, following, page.events, page.reached_ns)
        with self._errors():
            self._db.execute("INSERT INTO sent VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def settle(self, until: int) -> None:
        """Log that all pages with a number up to `until` have arrived. Their spans move past them."""
        with self._errors(), self._transaction():
            self._settle("number <= ?", (until,))

    def writers(self) -> dict[str, int]:
        """The writers with pages that may or may not have arrived: name -> time of the first such page (ns, UTC)."""
        with self._errors():
            return dict(self._db.execute("SELECT writer, min(at_ns) FROM sent GROUP BY writer").fetchall())

    def recover(self, writer: str, arrived: Callable[[Span, int], bool]) -> None:
        """Settle the pages that an earlier process sent under the name `writer`. `arrived(span, number)`: whether a page is in the stream.

        In each span, the pages before the first one that has not arrived are done. The others are requested again."""
        with self._errors(), self._transaction():
            rows = self._db.execute(
                "SELECT sent.number, sent.span, spans.span FROM sent JOIN spans ON spans.number = sent.span WHERE writer = ?"
                " ORDER BY sent.span, sent.number",
                (writer,),
            ).fetchall()
            past = [
                number
                for _, of_span in groupby(rows, key=itemgetter(1))
                for number, _, span in takewhile(lambda row: arrived(msgspec.json.decode(row[2], type=Span), row[0]), of_span)
            ]
            self._settle("writer = ? AND number IN (SELECT value FROM json_each(?))", (writer, json.dumps(past)))
            self._db.execute("DELETE FROM sent WHERE writer = ?", (writer,))

    def _settle(self, where: str, key: tuple[int | str, ...]) -> None:
        # `where` is one of the two constant texts in `settle` and `recover`, so the SQL is safe.
        rows = self._db.execute(
            f"SELECT next, next IS NULL, events, reached_ns, span FROM sent WHERE {where} ORDER BY number",  # noqa: S608
            key,
        ).fetchall()
        self._db.executemany(
            "UPDATE spans SET next = ?, done = ?, pages = pages + 1, events = events + ?, reached_ns = max(reached_ns, ?) WHERE number = ?",
            rows,
        )
        self._db.execute(f"DELETE FROM sent WHERE {where}", key)  # noqa: S608

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._opened is not None, "open the page log first"
        return self._opened

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise DiskProblem(
                f"The page log {self.path} of the backfill failed: {error}. The pages that were sent are in the stream. Free disk space or "
                "make the folder writable. Then start the same command again: it continues where it stopped."
            ) from error


def _request(text: bytes | None) -> Request | None:
    return None if text is None else msgspec.json.decode(text, type=Request)
