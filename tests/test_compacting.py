"""Compacting a day changes how its rows lie on disk, and never which rows there are, whoever dies or reads or writes meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import tapeline
from made import BAR, DAY, NOON, bars, rejects, ticks
from proving import PROVE, proof
from tapeline.errors import Busy, DiskProblem
from tapeline.local.locks import own
from tapeline.providers.registry import identity
from tapeline.records import BARS_TOPIC, NORMALIZED_TOPICS, REJECTED_TOPIC, TICKS_TOPIC, Chunk, Topic
from tapeline.stores.lake import Lake
from tapeline.stores.lake import compacting as lake_compacting
from tapeline.stores.lake.compacting import Compacted, CompactionFailed, Rows, compact
from tapeline.stores.lake.reading import LakeSource
from tapeline.stores.selection import Selection

TODAY, TOMORROW = date(2024, 3, 15), date(2024, 3, 16)
SYMBOLS = ("BTC/USDT", "ETH/USDT", "O'K\"/USDT", "币/USDT")


def write(root: Path, topic: Topic, batch: pa.RecordBatch) -> None:
    for tries_left in range(4, -1, -1):
        try:
            lake = Lake(root, identity)
            lake.write(Chunk.dense(topic, 0, lake.totals(topic).positions.get(0, 0), batch))
            return
        except DiskProblem:  # a file that it read was replaced just then: a store tries again
            if not tries_left:
                raise


def fill(root: Path, flushes: int = 6, first: int = 0) -> None:
    """Flushes of ticks in no order of symbols, over two days; and some of everything else."""
    rng = Random(first + 1)
    for flush in range(first, first + flushes):
        rows: list[dict[str, Any]] = []
        for at in range(40):
            number = flush * 40 + at + 1
            rows.append(
                {
                    "symbol": rng.choice(SYMBOLS),
                    "ts_ns": NOON + rng.randrange(0, 2 * DAY - DAY // 2) // 7 * 7,
                    "sequence": number,
                    "raw_offset": number,
                    "last": rng.choice([5e-324, 0.1, 64_123.01, 1e300]),
                    "conditions": rng.choice([None, "", "币,1"]),
                }
            )
        write(root, TICKS_TOPIC, ticks(*rows))
        write(root, BARS_TOPIC, bars({**BAR, "ts_ns": NOON + flush, "raw_offset": flush}, {**BAR, "raw_offset": 1000 + flush}))
        write(root, REJECTED_TOPIC, rejects(3, first=3 * flush))


def quietly(root: Path, day: date = TODAY) -> list[Compacted]:
    return compact(root, day, lambda *_: None)


def rows_of(files: list[str]) -> list[tuple[Any, ...]]:
    """Every row of some files, in an order of its own."""
    if not files:
        return []
    with duckdb.connect() as db:
        found = db.read_parquet(files, hive_partitioning=True).to_arrow_table()
    return sorted((tuple(sorted(row.items())) for row in found.to_pylist()), key=repr)


def logged(root: Path, topic: Topic) -> list[tuple[Any, ...]]:
    """What a reader of the log sees."""
    folder = root / topic.table
    return rows_of(DeltaTable(str(folder)).file_uris()) if folder.exists() else []


def globbed(root: Path, topic: Topic) -> list[tuple[Any, ...]]:
    """What a reader of the folder sees."""
    return rows_of([str(path) for path in (root / topic.table).glob("date=*/**/*.parquet")])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path / "lake")
    return tmp_path / "lake"


def test_a_compacted_day_has_the_same_rows_in_one_sorted_file_and_the_other_day_is_left_alone(root: Path) -> None:
    before = {topic: logged(root, topic) for topic in NORMALIZED_TOPICS}
    others = sorted((root / "ticks" / f"date={TOMORROW}").iterdir())
    done = {one.table: one for one in quietly(root)}
    assert done["ticks"].files_before == 6
    assert done["ticks"].files_after == 1
    assert done["bars"].rows == 6  # one more is the same in every flush
    assert done["rejected"].rows == 18
    assert {topic: logged(root, topic) for topic in NORMALIZED_TOPICS} == before
    assert {topic: globbed(root, topic) for topic in NORMALIZED_TOPICS} == before
    assert sorted((root / "ticks" / f"date={TOMORROW}").iterdir()) == others
    (path,) = (root / "ticks" / f"date={TODAY}").iterdir()
    order = pq.read_table(path, columns=["symbol", "ts_ns", "raw_offset"], partitioning=None).to_pylist()
    assert [tuple(row.values()) for row in order] == sorted(tuple(row.values()) for row in order)


def test_compacting_twice_is_harmless_and_late_rows_are_compacted_in(root: Path) -> None:
    quietly(root)
    version = DeltaTable(str(root / "ticks")).version()
    files = sorted((root / "ticks").rglob("*"))
    assert not any(one.changed for one in quietly(root))
    assert DeltaTable(str(root / "ticks")).version() == version
    assert sorted((root / "ticks").rglob("*")) == files
    write(root, TICKS_TOPIC, ticks({"sequence": 9_999, "raw_offset": 9_999, "symbol": "AAA/USDT"}))
    before = logged(root, TICKS_TOPIC)
    assert {one.table: one.files_before for one in quietly(root)}["ticks"] == 2
    assert logged(root, TICKS_TOPIC) == globbed(root, TICKS_TOPIC) == before


def test_positions_counts_and_duplicates_are_as_before(root: Path) -> None:
    before = Lake(root, identity).totals(TICKS_TOPIC)
    quietly(root)
    after = Lake(root, identity)
    assert after.totals(TICKS_TOPIC) == before
    again = ticks(
        {"sequence": 1, "raw_offset": 5_000, "symbol": SYMBOLS[0]}, {"sequence": 7_777, "raw_offset": 5_001, "symbol": SYMBOLS[0]}
    )
    held = {row["sequence"] for row in tapeline_rows(root) if row["symbol"] == SYMBOLS[0]}
    written = after.write(Chunk.dense(TICKS_TOPIC, 0, before.positions[0], again))
    assert written.rows == (1 if 1 in held else 2)


def tapeline_rows(root: Path) -> list[dict[str, Any]]:
    names = tuple(TICKS_TOPIC.schema.names)
    return LakeSource(root).ticks(Selection(SYMBOLS, 0, NOON + 9 * DAY, names)).read_all().to_pylist()


def test_a_day_of_many_rows_becomes_files_of_whole_symbols(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_compacting, "_FILE_ROWS", 60)
    before = logged(root, TICKS_TOPIC)
    quietly(root)
    found = [
        set(pq.read_table(path, columns=["symbol"], partitioning=None)["symbol"].to_pylist())
        for path in root.glob("ticks/date=2024-03-15/*")
    ]
    assert len(found) > 1
    assert sorted(symbol for symbols in found for symbol in symbols) == sorted(SYMBOLS)
    assert logged(root, TICKS_TOPIC) == before
    least = DeltaTable(str(root / "ticks")).get_add_actions(flatten=True)
    assert pa.table(least)["min.symbol"].null_count == 0


def test_a_copy_that_differs_is_not_swapped_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = logged(root, TICKS_TOPIC)
    files = sorted(path for path in root.rglob("date=*/*.parquet"))
    real = lake_compacting._fingerprint
    monkeypatch.setattr(lake_compacting, "_fingerprint", lambda db, topic, rows: real(db, topic, Rows({"files": rows.values["files"][:1]})))
    with pytest.raises(CompactionFailed, match="the number of rows, column symbol"):
        quietly(root)
    assert logged(root, TICKS_TOPIC) == before
    assert sorted(path for path in root.rglob("date=*/*.parquet")) == files


def test_every_way_to_spoil_a_copy_is_seen(tmp_path: Path) -> None:
    rows = [{"symbol": symbol, "sequence": at, "last": 0.5 + at} for at, symbol in enumerate(SYMBOLS)]
    spoiled = {
        "a row twice": [*rows, rows[0]],
        "a row missing": rows[1:],
        "a digit": [{**rows[0], "last": 0.5000000000000001}, *rows[1:]],
        "values of two rows exchanged": [{**rows[0], "last": rows[1]["last"]}, {**rows[1], "last": rows[0]["last"]}, *rows[2:]],
        "a null for a text": [{**rows[0], "conditions": ""}, *rows[1:]],
    }
    with duckdb.connect() as db:

        def told(name: str, content: list[dict[str, Any]]) -> dict[str, int]:
            path = tmp_path / f"{name}.parquet"
            batch = ticks(*content)
            pq.write_table(pa.table(batch).append_column("ts", pa.array([0] * len(content), pa.timestamp("us", "UTC"))), path)
            return lake_compacting._fingerprint(db, TICKS_TOPIC, Rows.of([path]))

        fine = told("fine", rows)
        assert told("in another order", [{**row, "raw_offset": at} for at, row in reversed(list(enumerate(rows)))]) == fine
        assert all(told(name, content) != fine for name, content in spoiled.items())


def test_old_files_that_the_log_has_forgotten_are_removed_and_young_ones_are_not(root: Path) -> None:
    old = {path: path.read_bytes() for path in (root / "ticks" / f"date={TODAY}").iterdir()}
    quietly(root)
    for path, content in old.items():
        path.write_bytes(content)
    for path in list(old)[:3]:
        os.utime(path, (0, 0))
    for path in (root / "ticks" / "_delta_log").glob("*.json"):  # as after a week: only the checkpoint is left, and knows no removals
        path.unlink() if path.stem != f"{DeltaTable(str(root / 'ticks')).version():020}" else None
    (root / "ticks" / f"date={TODAY}" / "part-young.parquet").write_bytes(b"being written")
    quietly(root)
    left = {path.name for path in (root / "ticks" / f"date={TODAY}").iterdir()}
    assert "part-young.parquet" in left
    assert not left & {path.name for path in list(old)[:3]}


def test_two_compacts_at_once_are_refused_and_say_who_is_at_it(root: Path) -> None:
    with own(root / ".compacting", "tapeline compact"), pytest.raises(Busy, match=r"tapeline compact already runs here"):
        quietly(root)


def test_a_damaged_file_is_named_and_nothing_is_changed(root: Path) -> None:
    damaged = next(iter((root / "ticks" / f"date={TODAY}").iterdir()))
    damaged.write_bytes(damaged.read_bytes()[:100])
    version = DeltaTable(str(root / "ticks")).version()
    with pytest.raises(DiskProblem, match=damaged.name):
        quietly(root)
    assert DeltaTable(str(root / "ticks")).version() == version


# While it is compacted


DYING = """
import os, signal, sys
from datetime import date
from pathlib import Path
from tapeline.stores.lake import compacting as lake_compacting
left = int(sys.argv[2])
def passed(frame, event, argument):
    global left
    if frame.f_code.co_filename in (lake_compacting.__file__, {pathlib!r}) and event in ("call", "return"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(passed)
lake_compacting.compact(Path(sys.argv[1]), date(2024, 3, 15), lambda *_: None)
sys.setprofile(None)
print(int(sys.argv[2]) - left)
"""


def dying_after(root: Path, points: int) -> subprocess.CompletedProcess[str]:
    import pathlib

    code = DYING.format(pathlib=pathlib.__file__)
    return subprocess.run([sys.executable, "-c", code, str(root), str(points)], capture_output=True, text=True, check=False)


@proof("lake")
def test_killed_at_any_point_it_is_as_if_it_never_ran_or_done_and_the_next_compact_ends_it(tmp_path: Path) -> None:
    fill(tmp_path / "counted", 3)
    points = int(dying_after(tmp_path / "counted", 1_000_000).stdout)
    rng = Random(None if PROVE else 4)
    # The second half of the way is where files get their names, are swapped and deleted.
    chosen = range(1, points) if PROVE else sorted([*rng.sample(range(1, points), 4), *rng.sample(range(points // 2, points), 8)])
    root = tmp_path / "lake"
    fill(root, 3)
    first = 3
    for point in chosen:
        before = {topic: logged(root, topic) for topic in NORMALIZED_TOPICS}
        assert dying_after(root, point).returncode == -signal.SIGKILL
        assert {topic: logged(root, topic) for topic in NORMALIZED_TOPICS} == before, f"killed at point {point}"
        quietly(root)
        assert {topic: logged(root, topic) for topic in NORMALIZED_TOPICS} == before, f"killed at point {point}, then compacted"
        assert {topic: globbed(root, topic) for topic in NORMALIZED_TOPICS} == before, f"killed at point {point}, then compacted"
        assert not list(root.glob("*/.compacting"))
        fill(root, 2, first)
        first += 2


def test_a_reader_that_has_begun_goes_on_in_the_compacted_files(root: Path) -> None:
    wanted = Selection(SYMBOLS, 0, NOON + 9 * DAY, tuple(TICKS_TOPIC.schema.names))
    expected = LakeSource(root).ticks(wanted).read_all().to_pylist()
    source = LakeSource(root)
    reader = source.ticks(wanted)
    assert source.newest_ns() == expected[-1]["ts_ns"]
    quietly(root)
    write(root, TICKS_TOPIC, ticks({"sequence": 8_888, "raw_offset": 8_888, "ts_ns": NOON + DAY}))  # on the other day
    assert reader.read_all().to_pylist() == expected
    later = LakeSource(root)
    assert later.unknown(TICKS_TOPIC, ("BTC/USDT",)) == {}
    assert len(later.ticks(wanted).read_all()) == len(expected) + 1


def test_a_reader_in_the_middle_gets_each_row_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tapeline.stores.lake import reading as lake_reading

    monkeypatch.setattr(lake_reading, "_BATCH_ROWS", 16)
    monkeypatch.setattr(lake_reading, "_UNCOUNTED_ROWS", 50)
    monkeypatch.setattr(lake_reading, "_WINDOW_ROWS", 40)
    wanted = Selection(SYMBOLS, 0, NOON + 9 * DAY, ("raw_offset", "last"))
    expected = LakeSource(root).ticks(wanted).read_all().to_pylist()
    reader = LakeSource(root).ticks(wanted)
    rows = reader.read_next_batch().to_pylist()
    quietly(root)
    quietly(root, TOMORROW)
    rows += reader.read_all().to_pylist()
    assert rows == expected


def test_a_reader_whose_rows_are_gone_is_told(root: Path) -> None:
    source = LakeSource(root)
    assert source.newest_ns() is not None
    reader = source.ticks(Selection(SYMBOLS, 0, NOON + 9 * DAY, ("ts_ns",)))
    for path in (root / "ticks").glob("date=*/*.parquet"):
        path.unlink()
    with pytest.raises(DiskProblem, match="cannot be read"):
        reader.read_all()


@proof("lake")
def test_a_store_that_writes_meanwhile_loses_and_doubles_nothing(root: Path) -> None:
    stop = threading.Event()
    problem: list[Exception] = []
    flushes = 0

    def writes() -> None:
        nonlocal flushes
        try:
            while not stop.is_set():
                fill(root, 1, 100 + flushes)
                flushes += 1
        except Exception as error:  # noqa: BLE001 the test's own thread: what went wrong is raised below
            problem.append(error)

    writer = threading.Thread(target=writes)
    writer.start()
    try:
        for _ in range(6 if PROVE else 2):
            quietly(root)
    finally:
        stop.set()
        writer.join()
    assert not problem
    assert flushes
    rows = logged(root, TICKS_TOPIC)
    assert len(rows) == len(set(rows)) == 40 * (6 + flushes) == Lake(root, identity).totals(TICKS_TOPIC).rows
    quietly(root)
    quietly(root, TOMORROW)
    assert globbed(root, TICKS_TOPIC) == rows


def test_the_command_compacts_days_and_says_what_it_did(tmp_path: Path) -> None:
    fill(tmp_path / "lake")
    (tmp_path / "tapeline.toml").write_text(
        f'data_dir = "{tmp_path}"\n[[providers]]\nname = "binance"\nsymbols = ["BTCUSDT"]\nchannels = ["trade"]\n'
    )

    def asked(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tapeline", "compact", *words, "--config", str(tmp_path / "tapeline.toml")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = asked(str(TODAY), str(TOMORROW), "--format", "json")
    assert done.returncode == 0, done.stderr
    assert '{"day": "2024-03-15", "table": "ticks", "rows": ' in done.stdout
    assert len(tapeline.ticks(SYMBOLS, NOON - DAY, NOON + 9 * DAY, config=tmp_path / "tapeline.toml").arrow()) == 240
    assert "already compacted" in asked(str(TODAY)).stdout
    assert asked("2024-02-30").returncode == 78
    assert "2024-02-30" in asked("2024-02-30").stderr
