"""The embedded stream keeps order and positions, commits all or nothing, and is read by many while one writes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made import NOON, raws, rejects, ticks
from tapeline.errors import DiskTrouble, NewerData, Unavailable
from tapeline.records import BARS, BARS_TOPIC, NORMALIZED_TOPICS, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk
from tapeline.streams import embedded
from tapeline.streams.embedded import EmbeddedStream


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
    with pytest.raises(DiskTrouble, match="disk is full"):
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
    monkeypatch.setattr(embedded, "_WAL_BOUND", 2_000_000)
    stream = EmbeddedStream(tmp_path)
    largest = 0
    for at in range(60):
        stream.append(RAW_TOPIC, raws(at, 1, os.urandom(200_000)))
        largest = max(largest, (tmp_path / "raw.sqlite-wal").stat().st_size)
    assert largest < 2_000_000 + 3 * 250_000
    assert len(everything(stream)) == 60
    stream.close()


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
    with pytest.raises(DiskTrouble, match=r"raw\.sqlite"):
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
    with pytest.raises(DiskTrouble, match=r"raw\.sqlite"):
        stream.read(RAW_TOPIC, {0: 0}, 10)
    stream.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    stream = EmbeddedStream(tmp_path / "file" / "stream")
    with pytest.raises(DiskTrouble, match="file"):
        stream.append(RAW_TOPIC, raws(0, 1))


def test_a_file_that_another_process_holds_is_unavailable_for_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = EmbeddedStream(tmp_path)
    stream.append(RAW_TOPIC, raws(0, 1))
    holder = sqlite3.connect(tmp_path / "raw.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    stream._file(RAW_TOPIC).db.execute("PRAGMA busy_timeout = 100")
    with pytest.raises(Unavailable, match="another process"):
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
