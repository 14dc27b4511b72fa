"""The embedded stream keeps order and positions, commits all or nothing, and is read by many while one writes."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made import NOON, raws, rejects, ticks
from tapeline.errors import DiskProblem, NewerData, Unavailable
from tapeline.records import BARS, BARS_TOPIC, NORMALIZED_TOPICS, NS_PER_S, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk, Topic
from tapeline.streams import PartitionLost, embedded
from tapeline.streams.embedded import EmbeddedStream, file
from waiting import until


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[EmbeddedStream]:
    opened = EmbeddedStream(tmp_path)
    yield opened
    opened.close()


def everything(stream: EmbeddedStream, position: int = 0, max_rows: int = 1_000) -> list[bytes]:
    """The payloads of the raw topic from a position on, with every chunk's offsets checked on the way."""
    found: list[bytes] = []
    while (chunk := stream.read(RAW_TOPIC, {0: position}, max_rows)) is not None:
        assert chunk.offset[0] == position
        assert chunk.next[0] == position + chunk.batch.num_rows
        assert chunk.batch.schema == RAW_TOPIC.schema
        found += chunk.batch["payload"].to_pylist()
        position = chunk.next[0]
    return found


def source(first: int, count: int) -> Chunk:
    return Chunk.dense(RAW_TOPIC, 0, first, raws(first, count))


def test_an_empty_stream_has_nothing_to_read_and_begins_at_zero(stream: EmbeddedStream) -> None:
    assert stream.read(RAW_TOPIC, {0: 0}, 100) is None
    assert stream.positions("normalize", RAW_TOPIC)[0] == 0
    assert stream.totals("normalize") == {}
    assert [stream.ends(topic) for topic in (RAW_TOPIC, *NORMALIZED_TOPICS)] == [{0: 0}] * 5


@pytest.mark.parametrize("payload", [b"", b"." * 50_000], ids=["plain", "compressed"])
def test_records_are_read_in_order_from_any_position_in_chunks_of_any_size(stream: EmbeddedStream, payload: bytes) -> None:
    written, at = [], 0
    for count in (1, 2, 7, 1, 30, 3):
        batch = raws(at, count, payload)
        stream.append(RAW_TOPIC, batch)
        written += batch["payload"].to_pylist()
        at += count
    assert stream.ends(RAW_TOPIC) == {0: len(written)}
    for position in (0, 1, 2, 5, 10, 11, 40, len(written) - 1, len(written)):
        for max_rows in (1, 5, 1_000):
            assert everything(stream, position, max_rows) == written[position:]
    assert stream.read(RAW_TOPIC, {0: len(written) + 5}, 10) is None


@settings(max_examples=settings().max_examples // 3)
@given(st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=5), min_size=1, max_size=5))
def test_any_bytes_come_back_as_they_were(batches: list[list[bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stream = EmbeddedStream(Path(folder))
        for payloads in batches:
            batch = raws(0, len(payloads)).set_column(5, RAW_TOPIC.schema.field(5), pa.array(payloads, pa.binary()))
            stream.append(RAW_TOPIC, batch)
        assert everything(stream) == [payload for payloads in batches for payload in payloads]
        stream.close()


def test_records_of_five_megabytes_come_back_whole(stream: EmbeddedStream) -> None:
    payload = os.urandom(5_000_000)
    for at in range(4):
        stream.append(RAW_TOPIC, raws(at, 1, payload))
    assert everything(stream) == [b"%d " % at + payload for at in range(4)]


def test_a_chunk_of_large_records_is_bounded_in_bytes_too(stream: EmbeddedStream) -> None:
    for at in range(12):
        stream.append(RAW_TOPIC, raws(at, 1, os.urandom(5_000_000)))
    chunk = stream.read(RAW_TOPIC, {0: 0}, 1_000_000)
    assert chunk is not None
    assert chunk.batch.nbytes < 60_000_000 * 0.7
    assert len(everything(stream, max_rows=1_000_000)) == 12


def test_the_topics_do_not_mix(stream: EmbeddedStream) -> None:
    stream.append(TICKS_TOPIC, ticks({"last": 1.0}))
    stream.append(REJECTED_TOPIC, rejects(3))
    stream.append(TICKS_TOPIC, ticks({"last": 2.0}))
    chunk = stream.read(TICKS_TOPIC, {0: 0}, 10)
    assert chunk is not None
    assert chunk.batch["last"].to_pylist() == [1.0, 2.0]
    assert stream.ends(REJECTED_TOPIC) == {0: 3}
    assert stream.read(BARS_TOPIC, {0: 0}, 10) is None


def test_a_commit_is_outputs_position_and_totals_together(stream: EmbeddedStream) -> None:
    outputs = [(TICKS_TOPIC, ticks({}, {})), (BARS_TOPIC, pa.RecordBatch.from_pylist([], BARS))]
    stream.commit("normalize", source(0, 5), outputs, {"binance/spot/ticks": 2, "binance/spot/bars": 0})
    stream.commit("normalize", source(5, 2), [(TICKS_TOPIC, ticks({}))], {"binance/spot/ticks": 1})
    assert stream.positions("normalize", RAW_TOPIC)[0] == 7
    assert stream.totals("normalize") == {"binance/spot/ticks": 3}
    assert stream.ends(TICKS_TOPIC) == {0: 3}
    assert stream.ends(BARS_TOPIC) == {0: 0}
    assert stream.positions("another", RAW_TOPIC)[0] == 0
    assert stream.totals("another") == {}


def test_a_commit_that_fails_half_way_leaves_nothing(stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch) -> None:
    stream.commit("normalize", source(0, 1), [(TICKS_TOPIC, ticks({}))], {"a": 1})
    real, calls = embedded.encode, []

    def failing(batch: pa.RecordBatch) -> memoryview:
        calls.append(batch)
        if len(calls) == 2:
            raise sqlite3.OperationalError("database or disk is full")
        return real(batch)

    monkeypatch.setattr(embedded, "encode", failing)
    with pytest.raises(DiskProblem, match="disk is full"):
        stream.commit("normalize", source(1, 1), [(TICKS_TOPIC, ticks({})), (REJECTED_TOPIC, rejects(1))], {"a": 1})
    monkeypatch.undo()
    assert (stream.positions("normalize", RAW_TOPIC)[0], stream.ends(TICKS_TOPIC), stream.totals("normalize")) == (1, {0: 1}, {"a": 1})
    stream.commit("normalize", source(1, 1), [(TICKS_TOPIC, ticks({})), (REJECTED_TOPIC, rejects(1))], {"a": 1})
    assert (stream.positions("normalize", RAW_TOPIC)[0], stream.ends(TICKS_TOPIC), stream.totals("normalize")) == (2, {0: 2}, {"a": 2})


def test_what_was_written_is_there_after_the_stream_was_opened_anew(tmp_path: Path) -> None:
    first = EmbeddedStream(tmp_path)
    first.append(RAW_TOPIC, raws(0, 3))
    first.commit("normalize", source(0, 3), [(TICKS_TOPIC, ticks({}))], {"a": 1})
    first.close()
    first.close()
    second = EmbeddedStream(tmp_path)
    assert len(everything(second)) == 3
    assert second.positions("normalize", RAW_TOPIC)[0] == 3
    second.append(RAW_TOPIC, raws(3, 1))
    assert second.ends(RAW_TOPIC) == {0: 4}
    second.close()


WRITER = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from made import raws, ticks, rejects
from tapeline.records import RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk
from tapeline.streams.embedded import EmbeddedStream
stream = EmbeddedStream(Path(sys.argv[1]))
at, limit = stream.positions("normalize", RAW_TOPIC)[0], int(sys.argv[2])
print("ready", flush=True)
while at < limit:
    stream.append(RAW_TOPIC, raws(stream.ends(RAW_TOPIC)[0], 2))
    outputs = [(TICKS_TOPIC, ticks(*[dict(sequence=at * 3 + n) for n in range(3)])), (REJECTED_TOPIC, rejects(1))]
    stream.commit("normalize", Chunk.dense(RAW_TOPIC, 0, at, raws(at, 2)), outputs, {{"ticks": 3, "rejected": 1}})
    at += 2
stream.close()
"""


def writer(folder: Path, limit: int) -> subprocess.Popen[bytes]:
    """A process that appends and commits, in twos, until its position reaches the limit."""
    code = WRITER.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(limit)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


def assert_consistent(stream: EmbeddedStream) -> int:
    """Position, outputs and totals tell the same story; the position."""
    position = stream.positions("normalize", RAW_TOPIC)[0]
    totals = stream.totals("normalize")
    assert position % 2 == 0
    assert totals.get("ticks", 0) == stream.ends(TICKS_TOPIC)[0] == position // 2 * 3
    assert totals.get("rejected", 0) == stream.ends(REJECTED_TOPIC)[0] == position // 2
    raw = everything(stream)
    assert len(raw) % 2 == 0
    assert raw == [b"%d " % at for at in range(len(raw))]
    assert len(raw) >= position
    return position


def test_a_writer_killed_at_any_moment_leaves_whole_commits_and_the_next_goes_on(tmp_path: Path) -> None:
    position = 0
    for after_s in (0.05, 0.11, 0.17):
        process = writer(tmp_path, 10**9)
        with closing(EmbeddedStream(tmp_path)) as watching:
            while watching.positions("normalize", RAW_TOPIC)[0] <= position:
                time.sleep(0.005)
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stream = EmbeddedStream(tmp_path)
        now = assert_consistent(stream)
        stream.close()
        assert now > position
        position = now


def test_readers_in_several_processes_see_whole_commits_in_order_while_one_writes(tmp_path: Path) -> None:
    process = writer(tmp_path, 300)
    reader = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from tapeline.records import TICKS_TOPIC
from tapeline.streams.embedded import EmbeddedStream
stream, at, found = EmbeddedStream(Path(sys.argv[1])), 0, []
while at < 450:
    chunk = stream.read(TICKS_TOPIC, {{0: at}}, 50)
    if chunk is not None:
        assert chunk.offset[0] == at
        assert chunk.batch.num_rows % 3 == 0
        found += chunk.batch["sequence"].to_pylist()
        at = chunk.next[0]
stream.close()
print(len(found), all(found[n] % 3 == n % 3 for n in range(450)))
"""
    readers = [subprocess.Popen([sys.executable, "-c", reader, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in readers]
    process.wait(60)
    assert said == [b"450 True\n"] * 2
    stream = EmbeddedStream(tmp_path)
    assert assert_consistent(stream) == 300
    stream.close()


def test_a_reader_s_view_does_not_change_under_it(tmp_path: Path) -> None:
    writing, reading = EmbeddedStream(tmp_path), EmbeddedStream(tmp_path)
    writing.append(RAW_TOPIC, raws(0, 2))
    chunk = reading.read(RAW_TOPIC, {0: 0}, 10)
    writing.append(RAW_TOPIC, raws(2, 2))
    assert chunk is not None
    assert chunk.batch.num_rows == 2
    assert everything(reading) == [b"0 ", b"1 ", b"2 ", b"3 "]
    writing.close()
    reading.close()


def test_the_write_ahead_log_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_WAL_BOUND", 2_000_000)
    stream = EmbeddedStream(tmp_path)
    largest = 0
    for at in range(60):
        stream.append(RAW_TOPIC, raws(at, 1, os.urandom(200_000)))
        largest = max(largest, (tmp_path / "raw.sqlite-wal").stat().st_size)
    assert largest < 2_000_000 + 3 * 250_000
    assert len(everything(stream)) == 60
    stream.close()


def test_a_log_that_cannot_be_folded_does_not_make_a_done_write_look_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that is told of a failed write writes again. No real disk fails for the checkpoint alone, so the connection says so."""
    monkeypatch.setattr(file, "_WAL_BOUND", 0)
    with closing(EmbeddedStream(tmp_path)) as stream:
        stream.append(RAW_TOPIC, raws(0, 1))
        opened = stream._file(RAW_TOPIC)
        done: list[str] = []

        class Full:
            """The file's connection, on a disk that has no room for a checkpoint."""

            def __init__(self, db: sqlite3.Connection) -> None:
                self._db = db

            def __getattr__(self, name: str) -> object:
                return getattr(self._db, name)

            def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
                if "wal_checkpoint" in sql:
                    done.append(sql)
                    raise sqlite3.OperationalError("database or disk is full")
                return self._db.execute(sql, *values)

        monkeypatch.setattr(opened, "db", Full(opened.db))
        stream.append(RAW_TOPIC, raws(1, 1))
        assert done
        assert [payload.split()[0] for payload in everything(stream)] == [b"0", b"1"]


@pytest.mark.parametrize("name", ["raw.sqlite", "normalized.sqlite"])
def test_a_file_of_a_newer_format_is_refused_untouched(tmp_path: Path, name: str) -> None:
    first = EmbeddedStream(tmp_path)
    first.append(RAW_TOPIC, raws(0, 1))
    first.append(TICKS_TOPIC, ticks({}))
    first.close()
    db = sqlite3.connect(tmp_path / name)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = (tmp_path / name).read_bytes()
    stream = EmbeddedStream(tmp_path)
    with pytest.raises(NewerData, match=name.replace(".", r"\.")) as caught:
        stream.append(RAW_TOPIC if name.startswith("raw") else TICKS_TOPIC, raws(0, 1))
    assert "99" in str(caught.value)
    assert "Upgrade" in str(caught.value)
    assert (tmp_path / name).read_bytes() == before
    stream.close()


@pytest.mark.parametrize("damage", ["garbage", "half", "overwritten"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    first = EmbeddedStream(tmp_path)
    for at in range(20):
        first.append(RAW_TOPIC, raws(at, 1, os.urandom(20_000)))
    first.close()
    path = tmp_path / "raw.sqlite"
    content = path.read_bytes()
    wrecks = {
        "garbage": b"no database at all" * 100,
        "half": content[: len(content) // 2],
        "overwritten": content[:16384] + b"\xff" * 300_000,
    }
    path.write_bytes(wrecks[damage])
    for leftover in ("raw.sqlite-wal", "raw.sqlite-shm"):
        (tmp_path / leftover).unlink(missing_ok=True)
    stream = EmbeddedStream(tmp_path)
    with pytest.raises(DiskProblem, match=r"raw\.sqlite"):
        everything(stream)
    stream.close()


@pytest.mark.parametrize("data", [b"", b"\x00" * 50, b"\xff\xff\xff\xff\x10\x00\x00\x00"])
def test_a_batch_that_cannot_be_read_names_its_file(tmp_path: Path, data: bytes) -> None:
    stream = EmbeddedStream(tmp_path)
    stream.append(RAW_TOPIC, raws(0, 2))
    stream.close()
    db = sqlite3.connect(tmp_path / "raw.sqlite")
    with db:
        db.execute("UPDATE batches SET data = ?", (data,))
    db.close()
    stream = EmbeddedStream(tmp_path)
    with pytest.raises(DiskProblem, match=r"raw\.sqlite"):
        stream.read(RAW_TOPIC, {0: 0}, 10)
    stream.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    stream = EmbeddedStream(tmp_path / "file" / "stream")
    with pytest.raises(DiskProblem, match="file"):
        stream.append(RAW_TOPIC, raws(0, 1))


def test_a_file_that_another_process_holds_is_unavailable_for_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = EmbeddedStream(tmp_path)
    stream.append(RAW_TOPIC, raws(0, 1))
    holder = sqlite3.connect(tmp_path / "raw.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    stream._file(RAW_TOPIC).db.execute("PRAGMA busy_timeout = 100")
    with pytest.raises(Unavailable, match="Another process"):
        stream.append(RAW_TOPIC, raws(1, 1))
    holder.execute("ROLLBACK")
    holder.close()
    stream.append(RAW_TOPIC, raws(1, 1))
    assert everything(stream) == [b"0 ", b"1 "]
    stream.close()


def test_ticks_keep_every_value_bit_by_bit(stream: EmbeddedStream) -> None:
    batch = ticks(
        {"last": 5e-324, "volume": -0.0, "ts_ns": -1}, {"last": None, "bid": 1.7976931348623157e308}, {"ts_ns": NOON * 2, "symbol": "币/安"}
    )
    stream.append(TICKS_TOPIC, batch)
    chunk = stream.read(TICKS_TOPIC, {0: 0}, 10)
    assert chunk is not None
    assert repr(chunk.batch.to_pylist()) == repr(batch.to_pylist())


# Partitions


def test_a_stream_keeps_the_partitions_that_it_was_made_with(tmp_path: Path) -> None:
    with closing(EmbeddedStream(tmp_path, 3)) as stream:
        assert stream.partitions == 3
    with closing(EmbeddedStream(tmp_path, 5)) as stream:
        assert stream.partitions == 3
        assert stream.ends(TICKS_TOPIC) == {0: 0, 1: 0, 2: 0}


def test_records_go_to_the_partition_of_their_key_and_stay_in_order_there(tmp_path: Path) -> None:
    with closing(EmbeddedStream(tmp_path, 4)) as stream:
        symbols = [f"S{at * 7 % 11}" for at in range(200)]
        for first in range(0, 200, 20):
            stream.append(TICKS_TOPIC, ticks(*[{"symbol": symbols[at], "sequence": at} for at in range(first, first + 20)]))
        assert sum(stream.ends(TICKS_TOPIC).values()) == 200
        places: dict[str, set[int]] = {}
        found: dict[int, list[int]] = {}
        positions: dict[int, int] = {}
        while (chunk := stream.read(TICKS_TOPIC, positions, 30)) is not None:
            assert chunk.begin == {partition: positions.get(partition, 0) for partition in chunk.next}
            positions |= chunk.next
            for partition, row in zip(chunk.partition.tolist(), chunk.batch.to_pylist(), strict=True):
                places.setdefault(row["symbol"], set()).add(partition)
                found.setdefault(partition, []).append(row["sequence"])
        assert positions == stream.ends(TICKS_TOPIC)
        assert len(found) > 1
        assert all(len(partitions) == 1 for partitions in places.values())
        assert all(numbers == sorted(numbers) for numbers in found.values())
        assert sorted(number for numbers in found.values() for number in numbers) == list(range(200))


def test_a_partition_that_is_asked_for_takes_the_batch_whole(tmp_path: Path) -> None:
    with closing(EmbeddedStream(tmp_path, 3)) as stream:
        stream.append(RAW_TOPIC, raws(0, 5), 2)
        stream.append(RAW_TOPIC, raws(5, 1), 0)
        stream.append(RAW_TOPIC, raws(0, 0), 1)
        assert stream.ends(RAW_TOPIC) == {0: 1, 1: 0, 2: 5}
        chunk = stream.read(RAW_TOPIC, {2: 3}, 100)
        assert chunk is not None
        assert sorted(zip(chunk.partition.tolist(), chunk.offset.tolist(), strict=True)) == [(0, 0), (2, 3), (2, 4)]
        assert (chunk.begin, chunk.next) == ({0: 0, 2: 3}, {0: 1, 2: 5})
        assert stream.lag(RAW_TOPIC, {2: 3}) == {0: 1, 1: 0, 2: 2}
        assert stream.tail_positions(RAW_TOPIC, 2) == {0: 0, 1: 0, 2: 3}


def test_no_partition_keeps_the_others_waiting(tmp_path: Path) -> None:
    with closing(EmbeddedStream(tmp_path, 2)) as stream:
        for at in range(100):
            stream.append(RAW_TOPIC, raws(at, 1), 0)
        stream.append(RAW_TOPIC, raws(100, 1), 1)
        chunk = stream.read(RAW_TOPIC, {}, 10)
        assert chunk is not None
        assert set(chunk.next) == {0, 1}


def test_a_commit_from_where_the_group_is_not_writes_nothing(stream: EmbeddedStream) -> None:
    stream.commit("g", source(0, 5), [(TICKS_TOPIC, ticks({}))], {"a": 1})
    for wrong in (source(0, 5), source(3, 4), source(6, 1)):
        with pytest.raises(PartitionLost, match=r"changed the position of g in market-data\.raw 0"):
            stream.commit("g", wrong, [(TICKS_TOPIC, ticks({}))], {"a": 1})
    assert (stream.positions("g", RAW_TOPIC), stream.ends(TICKS_TOPIC), stream.totals("g")) == ({0: 5}, {0: 1}, {"a": 1})


def test_of_a_commit_of_several_partitions_none_moves_where_one_is_lost(tmp_path: Path) -> None:
    with closing(EmbeddedStream(tmp_path, 2)) as stream:
        both = Chunk.join([Chunk.dense(RAW_TOPIC, 0, 0, raws(0, 2)), Chunk.dense(RAW_TOPIC, 1, 0, raws(2, 2))])
        stream.commit("g", Chunk.dense(RAW_TOPIC, 1, 0, raws(2, 1)), [(TICKS_TOPIC, ticks({}))], {})
        with pytest.raises(PartitionLost):
            stream.commit("g", both, [(TICKS_TOPIC, ticks({}))], {"a": 1})
        assert (stream.positions("g", RAW_TOPIC), sum(stream.ends(TICKS_TOPIC).values()), stream.totals("g")) == ({0: 0, 1: 1}, 1, {})


WORKER = """
import sys, time; sys.path.insert(0, {tests!r})
from pathlib import Path
from made import ticks
from tapeline.records import RAW_TOPIC, TICKS_TOPIC
from tapeline.streams import PartitionLost
from tapeline.streams.embedded import EmbeddedStream
stream = EmbeddedStream(Path(sys.argv[1]))
member = stream.join("g", RAW_TOPIC)
print("ready", flush=True)
while True:
    chunk = member.poll(40)
    if chunk is None:
        time.sleep(0.01)
        continue
    numbers = [int(payload.split()[0]) for payload in chunk.batch["payload"].to_pylist()]
    rows = [dict(symbol=f"P{{p}}", sequence=n, raw_partition=p) for p, n in zip(chunk.partition.tolist(), numbers)]
    time.sleep(0.02)
    try:
        member.commit(chunk, [(TICKS_TOPIC, ticks(*rows))], {{"ticks": chunk.rows}})
    except PartitionLost:
        print("lost", flush=True)
"""


def worker(folder: Path) -> subprocess.Popen[bytes]:
    """A process that works as a member of the group until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", WORKER.format(tests=str(Path(__file__).parent)), str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_members_in_several_processes_lose_and_double_nothing_however_often_one_is_killed(tmp_path: Path) -> None:
    random = Random(7)
    number = 0
    written: list[list[int]] = [[] for _ in range(4)]
    with closing(EmbeddedStream(tmp_path, 4)) as stream:

        def write(batches: int) -> None:
            nonlocal number
            for _ in range(batches):
                partition, count = random.randrange(4), random.randrange(1, 20)
                stream.append(RAW_TOPIC, raws(number, count), partition)
                written[partition] += range(number, number + count)
                number += count

        def done() -> int:
            return sum(stream.positions("g", RAW_TOPIC).values())

        assert stream.partitions == 4
        workers = [worker(tmp_path) for _ in range(3)]
        try:
            for _ in range(4):
                write(60)
                before = done()
                until(lambda: done() >= before + 100)  # noqa: B023
                time.sleep(random.random() * 0.1)
                victim = workers.pop(random.randrange(3))
                victim.kill()
                victim.communicate()
                workers.append(worker(tmp_path))
            until(lambda: done() >= number)
        finally:
            for process in workers:
                process.kill()
                process.communicate()
        assert stream.totals("g") == {"ticks": number}
        chunk = stream.read(TICKS_TOPIC, {}, 1_000_000)
        assert chunk is not None
        found: list[list[int]] = [[] for _ in range(4)]
        for row in chunk.batch.select(["raw_partition", "sequence"]).to_pylist():
            found[row["raw_partition"]].append(row["sequence"])
        assert found == written


# Retention


class Clock:
    """A clock that is set."""

    s = 1_000

    def __call__(self) -> int:
        return self.s * NS_PER_S


@pytest.fixture
def trimming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old batches are looked for all the time, and a few at once."""
    monkeypatch.setattr(file, "_TRIM_EVERY_S", 0.0)
    monkeypatch.setattr(file, "_WAL_CHECK_EVERY_S", 0.02)
    monkeypatch.setattr(embedded, "_TRIM_BATCHES", 2)


def first_kept(stream: EmbeddedStream, topic: Topic = RAW_TOPIC, partition: int = 0) -> int:
    chunk = stream.read_some(topic, {partition: 0}, 1)
    assert chunk is not None
    return int(chunk.offset[0])


@pytest.mark.usefixtures("trimming")
def test_what_is_old_and_acknowledged_by_all_goes_and_the_rest_stays(tmp_path: Path) -> None:
    clock = Clock()
    groups = {"one": (RAW_TOPIC,), "two": (RAW_TOPIC,), "of other topics": (TICKS_TOPIC,)}
    with closing(EmbeddedStream(tmp_path, 2, groups=groups, retain_s=100, clock=clock)) as stream:
        for at in range(20):
            stream.append(RAW_TOPIC, raws(at * 10, 10), 0)
        for _ in range(3):
            stream.append(RAW_TOPIC, raws(0, 1), 1)
        clock.s += 101
        for at in range(20, 25):
            stream.append(RAW_TOPIC, raws(at * 10, 10), 0)
        stream.acknowledge("one", RAW_TOPIC, {0: 250})
        time.sleep(0.3)
        assert first_kept(stream) == 0  # the other has read nothing yet
        stream.acknowledge("two", RAW_TOPIC, {0: 75})
        until(lambda: first_kept(stream) == 70)
        time.sleep(0.2)
        assert first_kept(stream) == 70  # for it is half unread
        assert first_kept(stream, partition=1) == 0  # nobody acknowledged any of it
        stream.acknowledge("two", RAW_TOPIC, {0: 250})
        until(lambda: first_kept(stream) == 200)
        time.sleep(0.2)
        assert first_kept(stream) == 200  # acknowledged, and young
        assert stream.lag(RAW_TOPIC, {0: 10}) == {0: 50, 1: 3}
        chunk = stream.read_some(RAW_TOPIC, {0: 0}, 1_000)
        assert chunk is not None
        assert chunk.offset.tolist() == list(range(200, 250))


@pytest.mark.usefixtures("trimming")
def test_the_last_batch_stays_however_old_so_that_offsets_go_on(tmp_path: Path) -> None:
    clock = Clock()
    with closing(EmbeddedStream(tmp_path, groups={"one": (RAW_TOPIC,)}, retain_s=100, clock=clock)) as stream:
        for at in range(3):
            stream.append(RAW_TOPIC, raws(at, 1))
        stream.acknowledge("one", RAW_TOPIC, {0: 3})
        clock.s += 1_000_000
        until(lambda: first_kept(stream) == 2)
        time.sleep(0.2)
        assert first_kept(stream) == 2
    with closing(EmbeddedStream(tmp_path, groups={"one": (RAW_TOPIC,)}, retain_s=100, clock=clock)) as stream:
        assert stream.ends(RAW_TOPIC) == {0: 3}
        assert stream.positions("one", RAW_TOPIC) == {0: 3}
        stream.append(RAW_TOPIC, raws(3, 1))
        assert everything(stream, 3) == [b"3 "]


@pytest.mark.usefixtures("trimming")
def test_a_group_s_own_commits_count_as_acknowledgement(tmp_path: Path) -> None:
    clock = Clock()
    with closing(EmbeddedStream(tmp_path, groups={"g": (RAW_TOPIC,)}, retain_s=100, clock=clock)) as stream:
        for at in range(0, 50, 5):
            stream.append(RAW_TOPIC, raws(at, 5))
        clock.s += 200
        member = stream.join("g", RAW_TOPIC)
        chunk = member.poll(20)
        assert chunk is not None
        member.commit(chunk, [(TICKS_TOPIC, ticks({}))], {})
        until(lambda: first_kept(stream) == 20)
        rest = member.poll(1_000)
        assert rest is not None
        assert rest.offset.tolist() == list(range(20, 50))


def test_without_a_time_to_keep_records_everything_stays(tmp_path: Path, trimming: None) -> None:
    clock = Clock()
    with closing(EmbeddedStream(tmp_path, clock=clock)) as stream:
        for at in range(4):
            stream.append(RAW_TOPIC, raws(at, 1))
        clock.s += 10**9
        time.sleep(0.3)
        assert len(everything(stream)) == 4


# Power cuts: SQLite may then forget the last commits, as a copy of the files that was made before them has.


class Machine:
    """The files of a stream on a machine that is switched off and on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._disk, self._boots = folder / "stream", folder / "disk", 0

    def open(self, partitions: int = 1) -> EmbeddedStream:
        return EmbeddedStream(self.folder, partitions, boot=lambda: f"start {self._boots}")

    def reaches_the_disk(self) -> None:
        """What is in the files now outlives the next power cut; what comes after does not."""
        shutil.rmtree(self._disk, ignore_errors=True)
        shutil.copytree(self.folder, self._disk)

    def power_cut(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self._disk, self.folder)
        self._boots += 1


def offsets(stream: EmbeddedStream, topic: Topic = RAW_TOPIC) -> list[tuple[int, int]]:
    chunk = stream.read(topic, {}, 1_000_000)
    return list(zip(chunk.partition.tolist(), chunk.offset.tolist(), strict=True)) if chunk is not None else []


@pytest.mark.parametrize("kept", [0, 10])
def test_no_offset_that_was_given_out_before_a_power_cut_is_given_again(tmp_path: Path, kept: int) -> None:
    machine = Machine(tmp_path)
    given: set[tuple[int, int]] = set()
    survived: list[tuple[int, int]] = []
    for _ in range(4):
        with closing(machine.open(2)) as stream:
            stream.acknowledge("g", RAW_TOPIC, {})  # the first write, which is on the disk when it returns
            for partition in (0, 1):
                if kept:
                    stream.append(RAW_TOPIC, raws(0, kept), partition)
            known = offsets(stream)
            assert not given & set(known) - set(survived)
            given |= set(known)
        survived = known
        machine.reaches_the_disk()
        with closing(machine.open()) as stream:
            stream.append(RAW_TOPIC, raws(0, 7), 0)
            stream.append(RAW_TOPIC, raws(0, 3), 1)
            new = set(offsets(stream)) - set(known)
            assert len(new) == 10
            assert not new & given
            given |= new
        machine.power_cut()
    with closing(machine.open()) as stream:
        assert offsets(stream) == survived


def test_a_start_of_the_machine_without_any_loss_skips_too_and_a_restart_of_the_process_does_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    with closing(machine.open()) as stream:
        stream.append(RAW_TOPIC, raws(0, 2))
    with closing(machine.open()) as stream:
        stream.append(RAW_TOPIC, raws(2, 2))
        assert [offset for _, offset in offsets(stream)] == [0, 1, 2, 3]
    machine.reaches_the_disk()
    machine.power_cut()
    with closing(machine.open()) as stream:
        assert stream.ends(RAW_TOPIC) == {0: 4}
        stream.append(RAW_TOPIC, raws(4, 2))
        assert [offset for _, offset in offsets(stream)] == [0, 1, 2, 3, 4 + file._SKIP, 5 + file._SKIP]


def test_what_is_noted_before_the_first_write_is_synced_to_the_disk(tmp_path: Path) -> None:
    with closing(EmbeddedStream(tmp_path)) as stream:
        said: list[str] = []
        stream._file(RAW_TOPIC).db.set_trace_callback(said.append)
        stream.append(RAW_TOPIC, raws(0, 1))
        full, normal = said.index("PRAGMA synchronous = FULL"), said.index("PRAGMA synchronous = NORMAL")
        assert full < next(at for at, text in enumerate(said) if "'boot'" in text) < said.index("COMMIT") < normal


@pytest.mark.parametrize("damage", ["cut off", "half written", "zeros"])
def test_of_a_write_that_was_torn_nothing_is_left_and_what_came_before_it_is_whole(tmp_path: Path, damage: str) -> None:
    """The log as a crash of the machine may leave it: its end missing, or some of it never written."""
    random = Random(damage)
    machine = Machine(tmp_path)
    written: list[bytes] = []
    with closing(machine.open()) as stream:
        for at in range(40):
            batch = raws(at, 1, os.urandom(random.randrange(10, 9_000)))
            stream.append(RAW_TOPIC, batch)
            written += batch["payload"].to_pylist()
        machine.reaches_the_disk()  # the log is not folded back yet
    log = next(machine._disk.glob("raw.sqlite-wal"))
    whole = log.read_bytes()
    assert len(whole) > 100_000
    kept = set()
    for at in sorted(random.sample(range(40, len(whole)), 30)):
        torn = {
            "cut off": whole[:at],
            "half written": whole[:at] + os.urandom(min(4_096, len(whole) - at)) + whole[at + 4_096 :],
            "zeros": whole[:at] + bytes(len(whole) - at),
        }[damage]
        log.write_bytes(torn)
        machine.power_cut()
        with closing(machine.open()) as stream:
            found = everything(stream)
            assert found == written[: len(found)]
            kept.add(len(found))
            end = stream.ends(RAW_TOPIC)[0]
            assert end == len(found)
            stream.append(RAW_TOPIC, raws(1000, 1))
            assert stream.lag(RAW_TOPIC, {0: end}) == {0: 1}
    assert min(kept) < 20 < max(kept) <= 40


def jumping(folder: Path) -> tuple[EmbeddedStream, int]:
    """A stream of offsets 0 to 9, and 5 more far ahead; the first of those."""
    machine = Machine(folder)
    with closing(machine.open()) as stream:
        stream.append(RAW_TOPIC, raws(0, 6))
        stream.append(RAW_TOPIC, raws(6, 4))
    machine.reaches_the_disk()
    machine.power_cut()
    stream = machine.open()
    stream.append(RAW_TOPIC, raws(10, 2))
    stream.append(RAW_TOPIC, raws(12, 3))
    return stream, 10 + file._SKIP


@pytest.mark.parametrize("max_rows", [1, 4, 100])
def test_a_reader_goes_across_a_jump_in_the_offsets(tmp_path: Path, max_rows: int) -> None:
    stream, jump = jumping(tmp_path)
    wanted = [*range(10), *range(jump, jump + 5)]
    for position, left in ((0, 15), (4, 11), (10, 5), (11, 5), (jump - 1, 5), (jump, 5), (jump + 3, 2), (jump + 5, 0)):
        positions, found, payloads = {0: position}, [], []
        while (chunk := stream.read(RAW_TOPIC, positions, max_rows)) is not None:
            assert chunk.begin == positions
            found += chunk.offset.tolist()
            payloads += chunk.batch["payload"].to_pylist()
            positions = dict(chunk.next)
        assert found == wanted[15 - left :]
        assert payloads == [b"%d " % at for at in range(15 - left, 15)]
        assert stream.lag(RAW_TOPIC, {0: position}) == {0: left}
    for rows in (1, 3, 5, 7, 15, 100):
        (at,) = stream.tail_positions(RAW_TOPIC, rows).values()
        assert stream.lag(RAW_TOPIC, {0: at}) == {0: min(rows, 15)}
    stream.close()


def test_a_group_commits_across_a_jump_in_the_offsets(tmp_path: Path) -> None:
    stream, jump = jumping(tmp_path)
    member = stream.join("g", RAW_TOPIC)
    seen = []
    while (chunk := member.poll(4)) is not None:
        member.commit(chunk, [(TICKS_TOPIC, ticks(*[{"raw_offset": at} for at in chunk.offset.tolist()]))], {"ticks": chunk.rows})
        seen += chunk.offset.tolist()
    assert seen == [*range(10), *range(jump, jump + 5)]
    assert stream.positions("g", RAW_TOPIC) == {0: jump + 5}
    assert stream.totals("g") == {"ticks": 15}
    member.close()
    stream.close()


def test_an_append_of_nothing_writes_nothing(stream: EmbeddedStream) -> None:
    for partition in (None, 0):
        stream.append(RAW_TOPIC, raws(0, 0), partition)
        stream.append(RAW_TOPIC, raws(0, 0), partition)
    assert stream.ends(RAW_TOPIC) == {0: 0}
    assert stream.read(RAW_TOPIC, {}, 10) is None
