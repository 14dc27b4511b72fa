"""The tables of the two files: batches, positions, totals, leases, and where offsets continue."""

from __future__ import annotations

import sqlite3
from typing import Final

from tapeline.records import RAW_TOPIC, Topic
from tapeline.streams import Totals

FORMAT: Final = 3
SCHEMA: Final = f"""
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
PRAGMA user_version = {FORMAT};
"""


def file_of(topic: Topic) -> str:
    """Return the name of the file that holds a topic. Only the raw topic has a file of its own."""
    return "raw.sqlite" if topic is RAW_TOPIC else "normalized.sqlite"


def end_of(db: sqlite3.Connection, topic: str, partition: int) -> int:
    """Return the offset after the partition's last record, or 0 if it holds none."""
    (end,) = db.execute("SELECT max(next) FROM batches WHERE topic = ? AND part = ?", (topic, partition)).fetchone()
    return int(end or 0)


def floor_of(db: sqlite3.Connection, topic: str, partition: int) -> int:
    """Return the offset below which no new record may lie. Without a floor of the partition, it is where the file's life begins."""
    row = db.execute("SELECT floor FROM floors WHERE topic = ? AND part = ?", (topic, partition)).fetchone()
    return int(row[0]) if row else born_of(db)


def born_of(db: sqlite3.Connection) -> int:
    """Return where the file's life begins, or 0 for a file of a version without lives."""
    row = db.execute("SELECT value FROM facts WHERE name = 'born'").fetchone()
    return int(row[0]) if row else 0


def count_written(db: sqlite3.Connection, topic: str, partition: int, begins: int | None, records: int) -> None:
    """Count records that are written. `begins` is the offset of the partition's first records, if these are the first.

    A life that began uncounted stays uncounted.
    """
    if begins is not None:
        db.execute("REPLACE INTO written VALUES (?, ?, ?, 0)", (topic, partition, begins))
    db.execute("UPDATE written SET records = records + ? WHERE topic = ? AND part = ?", (records, topic, partition))


def add_totals(db: sqlite3.Connection, group: str, totals: Totals) -> None:
    """Add the amounts to the group's totals, which begin at 0. Call it inside a transaction."""
    db.executemany(
        "INSERT INTO totals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
        [(group, name, value) for name, value in totals.items()],
    )


def move(db: sqlite3.Connection, group: str, topic: Topic, partition: int, position: int) -> None:
    """Set the group's position, forwards or back. Call it inside a transaction.

    `group` may also be a producer's name. Its position is then the number of its last batch.
    """
    db.execute(
        "INSERT INTO positions VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET next = excluded.next",
        (group, topic.name, partition, position),
    )
