"""What a stream says and gives when it has forgotten: numbers above all before, places that begin anew, and a warning beforehand."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from places import Place, column, nothing, polled

from made import raws, ticks
from tapeline.errors import DiskProblem
from tapeline.providers.registry import identity
from tapeline.records import NS_PER_MS, NS_PER_S, RAW_TOPIC, TICKS_TOPIC, Chunk
from tapeline.stages.normalize import NORMALIZE
from tapeline.stages.store import StoreWriter, Writing
from tapeline.stages.taken import Taken
from tapeline.stores.lake import Lake
from tapeline.streams.embedded import EmbeddedStream
from tapeline.streams.lives import birth, crossed
from tapeline.telemetry.status import StatusFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapeline.records import Topic

NOW_NS = time.time_ns()


def test_a_later_life_begins_above_a_million_records_a_second_of_the_one_before() -> None:
    assert birth(NOW_NS + 1000 * NS_PER_MS) - birth(NOW_NS) > 1_000_000
    assert birth(8_700_000_000 * 10**9) < 2**53, "Redis' scripts count in float64"


def chunk_of(begin: int, offsets: list[int]) -> Chunk:
    return Chunk(RAW_TOPIC, raws(0, len(offsets)), np.zeros(len(offsets), np.int32), np.array(offsets), {0: begin}, {0: offsets[-1] + 1})


@pytest.mark.parametrize(
    ("begin", "first", "life", "found"),
    [
        (5, 100, 100, [0]),  # it was read in the life before
        (5, 101, 100, [0]),  # and the first records of the new one are gone too
        (5, 100, 3, []),  # a jump within one life: a power cut
        (5, 5, 100, []),  # no jump: nobody is asked
        (0, 100, 100, []),  # who begins has missed nothing
        (100, 100, 100, []),
    ],
)
def test_a_reader_crosses_where_its_position_lies_before_the_present_life(begin: int, first: int, life: int, found: list[int]) -> None:
    assert crossed(chunk_of(begin, [first, first + 1]), lambda _: {0: life}) == found


def test_a_chunk_without_records_crosses_too() -> None:
    """As the ledger's does while the stores have nothing of the new life yet."""
    held_back = chunk_of(5, [100, 101]).before({0: 100})
    assert (held_back.rows, held_back.next) == (0, {0: 100})
    assert crossed(held_back, lambda _: {0: 100}) == [0]
    assert crossed(held_back, lambda _: {0: 3}) == []
    assert crossed(chunk_of(5, [100, 101]).before({0: 50}), lambda _: {0: 100}) == []


def test_a_chunk_is_cut_before_positions_as_it_is_after_them() -> None:
    whole = chunk_of(10, [10, 20, 21, 30])
    for at in (0, 10, 15, 20, 21, 22, 30, 31, 99):
        before, after = whole.before({0: at}), whole.after({0: at})
        assert before.offset.tolist() + after.offset.tolist() == [10, 20, 21, 30]
        assert before.begin == {0: 10}
        assert after.next == {0: max(31, at)}
        assert before.next[0] == min(31, max(10, at))
        assert before.batch["payload"].to_pylist() + after.batch["payload"].to_pylist() == whole.batch["payload"].to_pylist()
    assert whole.before({}).rows == 0


@pytest.fixture
def forgetful(own_place: Callable[..., tuple[Place, Any]]) -> tuple[Place, Any]:
    return own_place("redis-arrow")


@pytest.mark.parametrize(
    "forget",
    [("FLUSHALL",), ("DEL", "market-data.raw:1", "market-data.normalized:1", "market-data.normalized:0", "market-data.normalized:2")],
    ids=["everything", "streams"],
)
def test_a_redis_that_has_forgotten_gives_numbers_above_all_before(forgetful: tuple[Place, Any], forget: tuple[str, ...]) -> None:
    place, server = forgetful
    stream = place.open()
    for _ in range(2):
        before = stream.ends(RAW_TOPIC)[1]
        lives = stream.lives(RAW_TOPIC)
        stream.append(RAW_TOPIC, raws(0, 3), 1)
        member = stream.join("normalize", RAW_TOPIC, "one")
        chunk = polled(member)
        assert (chunk.batch["payload"].to_pylist(), min(chunk.offset) >= before) == ([b"0 ", b"1 ", b"2 "], True)
        member.commit(chunk, [(TICKS_TOPIC, ticks({"symbol": "A"})), *nothing()[1:]], {"in": 3})
        member.close()
        assert stream.lives(RAW_TOPIC)[1] > lives[1]
        after = stream.ends(RAW_TOPIC)[1]
        server.ask(*forget)
        assert stream.positions("normalize", RAW_TOPIC)[1] == 0
        assert stream.read(RAW_TOPIC, {1: after}, 10) is None
        assert column(stream, TICKS_TOPIC, "symbol") == []


def test_a_redis_that_has_lost_one_of_its_notes_goes_on(forgetful: tuple[Place, Any]) -> None:
    place, server = forgetful
    stream = place.open()
    for number, note in enumerate(("facts", "end:market-data.raw:1", "end:market-data.raw:0")):
        stream.append(RAW_TOPIC, raws(2 * number, 1), 1)
        stream.append(RAW_TOPIC, raws(2 * number + 1, 1), 2)
        server.ask("DEL", f"tapeline:{note}")
        stream = place.open(partitions=1)
        assert stream.partitions == 3
    stream.append(RAW_TOPIC, raws(6, 1), 1)
    assert sorted(column(stream, RAW_TOPIC, "payload")) == [b"%d " % n for n in range(7)]


def test_trimmed_to_nothing_is_not_forgotten(forgetful: tuple[Place, Any]) -> None:
    place, server = forgetful
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 3), 1)
    life, end = stream.lives(RAW_TOPIC), stream.ends(RAW_TOPIC)
    server.ask("XTRIM", "market-data.raw:1", "MAXLEN", "0")
    stream.append(RAW_TOPIC, raws(3, 1), 1)
    assert (stream.lives(RAW_TOPIC), stream.ends(RAW_TOPIC)) == (life, {**end, 1: end[1] + 1})


def test_what_a_redis_may_lose_is_said_beforehand(forgetful: tuple[Place, Any]) -> None:
    place, server = forgetful
    stream = place.open()
    assert stream.risks() == []
    server.ask("CONFIG", "SET", "appendonly", "no")
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    told = stream.risks()
    assert ["appendonly yes" in told[0], "noeviction" in told[1]] == [True, True]


@pytest.mark.parametrize("kind", ["embedded", "redis-arrow"])
def test_a_store_counts_nothing_of_before_though_the_stream_forgets_just_before_its_word(
    kind: str, own_place: Callable[..., tuple[Place, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, server = own_place(kind) if kind != "embedded" else (Place(kind, tmp_path / "own", {"partitions": 3}), None)
    stream = place.open()
    status, stop = StatusFile(tmp_path, "lake"), threading.Event()
    keep = StoreWriter(stream, Lake(tmp_path / "lake", identity), Writing("lake", 10_000, 0.0), status, stop)
    acknowledge = stream.acknowledge

    def forgetting(*said: Any) -> bool:
        if said[2:] and said[-1][1] and not forgot:
            forgot.append(said)
            if server is None:
                shutil.rmtree(tmp_path / "own" / "stream")
            else:
                server.ask("FLUSHALL")
        return acknowledge(*said)

    forgot: list[Any] = []
    monkeypatch.setattr(stream, "acknowledge", forgetting)
    for number in range(3):
        stream.append(TICKS_TOPIC, ticks({"symbol": "A", "id": str(number)}), 0)
        keep.step()
    assert forgot
    assert stream.totals("lake")["ticks/read"] == stream.totals("appended")["ticks"] == 2


@pytest.mark.parametrize("heard", [False, True])
def test_a_store_counts_what_it_has_written_once_though_its_word_has_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, heard: bool
) -> None:
    place = Place("embedded", tmp_path / "own", {"partitions": 3})
    stream = place.open()
    status, stop = StatusFile(tmp_path, "lake"), threading.Event()
    keep = StoreWriter(stream, Lake(tmp_path / "lake", identity), Writing("lake", 10_000, 0.0), status, stop)
    acknowledge = stream.acknowledge

    def interrupted(*said: Any) -> bool:
        if heard:
            acknowledge(*said)
        raise DiskProblem("the disk is full")

    for number in range(3):
        stream.append(TICKS_TOPIC, ticks({"symbol": "A", "id": str(number)}), 0)
        if number == 1:
            with monkeypatch.context() as patch:
                patch.setattr(stream, "acknowledge", interrupted)
                with pytest.raises(DiskProblem):
                    keep.step()
                with suppress(DiskProblem):
                    keep.step()
        keep.step()
    assert stream.totals("lake")["ticks/read"] == 3
    assert stream.positions("lake", TICKS_TOPIC) == stream.ends(TICKS_TOPIC)
    place.close()


def test_a_stage_that_stands_behind_the_end_of_its_stream_says_so_and_a_right_clock_heals_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1_790_000_000 * NS_PER_S]

    def opened() -> EmbeddedStream:
        return EmbeddedStream(tmp_path / "stream", 1, born=birth, clock=lambda: now[0])

    def stepped(stream: EmbeddedStream) -> StoreWriter:
        status, stop = StatusFile(tmp_path, "lake"), threading.Event()
        lake = Lake(tmp_path / "lake", identity)
        keep = StoreWriter(stream, lake, Writing("lake", 10, 0.0), status, stop, clock=lambda: now[0])
        for _ in range(2):
            keep.step()
        return keep

    def kept() -> list[int]:
        return sorted(pa.table(DeltaTable(tmp_path / "lake" / "ticks").to_pyarrow_dataset().to_table())["sequence"].to_pylist())

    with closing(opened()) as stream:
        stream.append(TICKS_TOPIC, ticks({"symbol": "A", "sequence": 1}), 0)
        assert stepped(stream)._forgotten.ahead == []
    shutil.rmtree(tmp_path / "stream")
    with closing(opened()) as stream:
        assert stepped(stream)._forgotten.ahead == [], "nothing has been written yet: that tells nothing"
    shutil.rmtree(tmp_path / "stream")
    right, now[0] = now[0] + 60 * NS_PER_S, 0
    with closing(opened()) as stream:
        stream.append(TICKS_TOPIC, ticks({"symbol": "A", "sequence": 2}), 0)
        assert stepped(stream)._forgotten.ahead == [(TICKS_TOPIC.name, 0)]
        assert "ends before the position of lake" in caplog.text
    now[0] = right
    with closing(opened()) as stream:
        stream.append(TICKS_TOPIC, ticks({"symbol": "A", "sequence": 3}), 0)
        assert stepped(stream)._forgotten.ahead == []
    assert kept() == [1, 3]


@pytest.mark.parametrize("when", ["before the ledger looks", "while it looks"])
def test_what_the_ledger_has_read_of_a_raw_topic_that_is_gone_is_doubtful(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Normalize stands in the new life: that says nothing of records of the old one, which it may never have read."""
    now = [1_790_000_000 * NS_PER_S]
    with closing(EmbeddedStream(tmp_path / "stream", 1, born=birth, clock=lambda: now[0])) as stream:
        member = stream.join(NORMALIZE, RAW_TOPIC)
        stream.append(RAW_TOPIC, raws(0, 1), 0)
        member.commit(polled(member), [], {})
        taken = Taken(stream, NORMALIZE, [], lambda: now[0])
        assert taken.reach(now=True).settled == stream.positions(NORMALIZE, RAW_TOPIC)
        stream.append(RAW_TOPIC, raws(1, 3), 0)
        held = stream.ends(RAW_TOPIC)[0]  # the ledger has read so far

        def begin_anew() -> None:
            for file in (tmp_path / "stream").glob("raw.sqlite*"):
                file.unlink()
            now[0] += 60 * NS_PER_S
            stream.append(RAW_TOPIC, raws(4, 1), 0)
            member.commit(polled(member), [], {})

        if when == "before the ledger looks":
            begin_anew()
        else:
            positions = stream.positions

            def late(group: str, topic: Topic) -> dict[int, int]:
                monkeypatch.setattr(stream, "positions", positions)
                begin_anew()
                return positions(group, topic)

            monkeypatch.setattr(stream, "positions", late)
            assert taken.reach(now=True).settled[0] < held
        reach = taken.reach(now=True)
        assert (reach.settled[0] > held, reach.doubtful.get(0, 0) > held) == (True, True)
        member.close()
