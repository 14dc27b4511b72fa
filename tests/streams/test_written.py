"""What was written to the raw topic is held against what normalize has read of it: what a stream loses on that way is missing there."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest
from places import Place, nothing, polled

from made import raws
from tapeline.monitor.health import into_normalize
from tapeline.records import RAW_TOPIC
from tapeline.streams import PartitionLost
from tapeline.streams.lives import ReadOfLives

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapeline.streams import Member, Stream

PARTITIONS = 2


class Damage:
    """What may happen to a stream behind Tapeline's back, done to the embedded one and to Redis."""

    def __init__(self, place: Place, server: Any, folder: Path) -> None:
        self.place, self._server, self._folder = place, server, folder

    def lose_unread(self) -> None:
        if self._server is None:
            self._sql("raw", "DELETE FROM batches WHERE id NOT IN (SELECT max(id) FROM batches GROUP BY part)")
        else:
            for partition in range(PARTITIONS):
                self._server.ask("XTRIM", self.place.name(RAW_TOPIC, partition), "MAXLEN", "1")

    def forget_everything(self) -> None:
        if self._server is None:
            shutil.rmtree(self._folder / "stream")
        else:
            self._server.ask("FLUSHALL")

    def lose_the_place(self) -> None:
        if self._server is None:
            self._sql("normalized", "DELETE FROM positions WHERE consumer = 'normalize'")
        else:
            for partition in range(PARTITIONS):
                self._server.ask("XGROUP", "SETID", self.place.name(RAW_TOPIC, partition), "normalize", "0")

    def lose_the_totals(self) -> None:
        if self._server is None:
            self._sql("normalized", "DELETE FROM totals WHERE consumer = 'normalize'")
        else:
            self._server.ask("DEL", f"{self.place.prefix}tapeline:totals:normalize")

    def _sql(self, file: str, statement: str) -> None:
        with closing(sqlite3.connect(self._folder / "stream" / f"{file}.sqlite")) as db, db:
            db.execute(statement)


@pytest.fixture(params=["embedded", "redis-arrow"])
def damage(request: pytest.FixtureRequest, own_place: Callable[..., tuple[Place, Any]], tmp_path: Path) -> Damage:
    settings = {"partitions": PARTITIONS}
    place, server = own_place(request.param) if request.param != "embedded" else (Place("embedded", tmp_path / "own", settings), None)
    return Damage(place, server, tmp_path / "own")


def write(stream: Stream, records: int) -> None:
    for partition in range(PARTITIONS):
        stream.append(RAW_TOPIC, raws(0, records), partition)


class Worker:
    """Reads as normalize does, with its count."""

    def __init__(self, place: Place, name: str) -> None:
        self.stream = place.open(partitions=PARTITIONS)
        self._read = ReadOfLives(self.stream, "normalize")
        self.member: Member = self.stream.join("normalize", RAW_TOPIC, name)

    def step(self) -> None:
        """One commit; what another has moved meanwhile is read again."""
        while True:
            chunk = polled(self.member)
            with suppress(PartitionLost):
                self.member.commit(chunk, nothing(), self._read.of(chunk))
                return


def line(stream: Stream) -> tuple[int, int, int]:
    """Written, taken, on the way."""
    equation = into_normalize(stream)
    assert equation is not None
    return equation.read, equation.parts["taken"], equation.parts["on the way"]


def test_what_was_written_is_taken_or_on_the_way_whoever_takes_it(damage: Damage) -> None:
    stream = damage.place.open(partitions=PARTITIONS)
    write(stream, 3)
    assert into_normalize(stream) is None, "normalize has not begun"
    one = Worker(damage.place, "one")
    one.step()
    write(stream, 5)
    assert line(stream) == (16, 6, 10)
    one.member.close()
    two = Worker(damage.place, "two")
    two.step()
    write(stream, 7)
    assert line(stream) == (30, 16, 14)
    two.member.close()
    again = Worker(damage.place, "one")
    again.step()
    assert line(stream) == (30, 30, 0)


def test_what_the_stream_loses_before_normalize_has_read_it_is_missing(damage: Damage) -> None:
    stream, worker = damage.place.open(partitions=PARTITIONS), Worker(damage.place, "one")
    write(stream, 3)
    worker.step()
    for _ in range(4):
        write(stream, 5)
    damage.lose_unread()
    assert line(stream) == (46, 6, 10)
    worker.step()
    equation = into_normalize(stream)
    assert equation is not None
    assert (str(equation), equation.balanced) == ("ingest to normalize: 46 raw records written ≠ 16 taken + 0 on the way", False)


def test_a_stream_that_begins_anew_is_counted_anew(damage: Damage) -> None:
    stream, worker = damage.place.open(partitions=PARTITIONS), Worker(damage.place, "one")
    write(stream, 3)
    worker.step()
    damage.forget_everything()
    write(stream, 4)
    worker.member.close()
    worker = Worker(damage.place, "two")
    worker.step()
    write(stream, 2)
    assert line(stream) == (12, 8, 4)
    worker.step()
    assert line(stream) == (12, 12, 0)


def test_who_has_lost_its_place_counts_again_from_the_first_record(damage: Damage) -> None:
    stream, worker = damage.place.open(partitions=PARTITIONS), Worker(damage.place, "one")
    write(stream, 3)
    worker.step()
    worker.member.close()
    damage.lose_the_place()
    worker = Worker(damage.place, "two")
    worker.step()
    assert line(stream) == (6, 6, 0)


@pytest.mark.parametrize("what", ["the place, and the first records are trimmed", "the totals"])
def test_what_cannot_be_counted_whole_is_not_held_against_anything(damage: Damage, what: str) -> None:
    stream, worker = damage.place.open(partitions=PARTITIONS), Worker(damage.place, "one")
    write(stream, 3)
    worker.step()
    write(stream, 2)
    worker.step()
    if what == "the totals":
        damage.lose_the_totals()
    else:
        damage.lose_unread()
        damage.lose_the_place()
    assert into_normalize(stream) is None
    write(stream, 2)
    worker.member.close()
    worker = Worker(damage.place, "two")
    worker.step()
    write(stream, 2)
    worker.step()
    assert into_normalize(stream) is None


def test_a_stream_of_a_version_that_did_not_count_is_not_counted_before_it_begins_anew(tmp_path: Path) -> None:
    damage = Damage(Place("embedded", tmp_path / "own", {"partitions": PARTITIONS}), None, tmp_path / "own")
    with closing(damage.place.open()) as old:
        write(old, 3)
    with closing(sqlite3.connect(tmp_path / "own" / "stream" / "raw.sqlite")) as db:
        db.executescript("DROP TABLE written; PRAGMA user_version = 2;")
    stream, worker = damage.place.open(), Worker(damage.place, "one")
    write(stream, 3)
    worker.step()
    assert (stream.written(RAW_TOPIC), into_normalize(stream)) == ({}, None)
    damage.forget_everything()
    write(stream, 3)
    worker.step()
    assert line(stream) == (6, 6, 0)
