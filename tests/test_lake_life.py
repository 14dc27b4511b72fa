"""The lake's own life: what is too old or too much goes by whole days, what is damaged is found, and is made again as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner, Result

import tapeline
import test_rejects
from frames import raw_batch
from made import DAY, NOON, rejects, ticks
from proving import PROVE, proof
from tapeline.app.stores import lake_retention, open_store
from tapeline.app.streams import open_stream
from tapeline.cli import app
from tapeline.config import Config, StoreConfig, StreamConfig, load
from tapeline.errors import Busy, ConfigError, DiskProblem
from tapeline.jobs.rebuild import RawRecords
from tapeline.monitor.health import equations
from tapeline.providers.registry import DECODERS, identity
from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk, Topic
from tapeline.stages.normalize import Normalize, run_normalize
from tapeline.stages.store import Maintenance, StoreWriter, Writing, run_store
from tapeline.stores import with_dates
from tapeline.stores.lake import Lake
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake.checking import Checked, Finding, check
from tapeline.stores.lake.compacting import compact
from tapeline.stores.lake.damage import damage
from tapeline.stores.lake.reading import LakeSource
from tapeline.stores.lake.repairing import Repaired, repair
from tapeline.stores.lake.retention import Keep, prune, vacuum
from tapeline.stores.selection import Selection
from tapeline.telemetry.status import StatusFile

FIRST = date(2024, 3, 15)
DAYS = [FIRST + timedelta(days=at) for at in range(4)]
TODAY = DAYS[-1]
SYMBOLS = ("BTC/USDT", "ETH/USDT")


def silent(*_: object) -> None:
    """No progress bar."""


def write(root: Path, topic: Topic, batch: pa.RecordBatch) -> None:
    lake = Lake(root, identity)
    lake.write(Chunk.dense(topic, 0, lake.totals(topic).positions.get(0, 0), batch))


def fill(root: Path, flushes: int = 2, first: int = 0) -> None:
    """Some flushes for each of four days, of ticks and of rejected events; some events come twice."""
    for day in range(len(DAYS)):
        for flush in range(first, first + flushes):
            number = (day * 1_000 + flush) * 20
            rows = [
                {
                    "symbol": SYMBOLS[at % 2],
                    "ts_ns": NOON + day * DAY + flush * 1_000 + at // 2,
                    "sequence": number + at // 2 * 2,
                    "raw_offset": number + at,
                    "last": 0.1 * at,
                }
                for at in range(20)
            ]
            write(root, TICKS_TOPIC, ticks(*rows, {**rows[0], "raw_offset": number + 500_000}))
            some = [{**row, "received_ns": NOON + day * DAY, "raw_offset": number + at} for at, row in enumerate(rejects(3).to_pylist())]
            write(root, REJECTED_TOPIC, pa.RecordBatch.from_pylist(some, REJECTED_TOPIC.schema))


def rows_of(files: list[str]) -> list[tuple[Any, ...]]:
    """Every row of some files, in an order of its own."""
    if not files:
        return []
    with duckdb.connect() as db:
        found = db.read_parquet(files, hive_partitioning=True).to_arrow_table()
    return sorted((tuple(sorted(row.items())) for row in found.to_pylist()), key=repr)


def logged(root: Path, topic: Topic = TICKS_TOPIC) -> list[tuple[Any, ...]]:
    """What a reader of the log sees."""
    folder = root / topic.table
    return rows_of(DeltaTable(str(folder)).file_uris()) if folder.exists() else []


def globbed(root: Path, topic: Topic = TICKS_TOPIC) -> list[tuple[Any, ...]]:
    """What a reader of the folder sees, that knows of no log."""
    return rows_of([str(path) for path in (root / topic.table).glob("date=*/**/*.parquet")])


def days(root: Path, topic: Topic = TICKS_TOPIC) -> list[date]:
    return sorted({dict(row)["date"] for row in logged(root, topic)})


def files(root: Path, topic: Topic = TICKS_TOPIC) -> list[Path]:
    return sorted(Path(name) for name in DeltaTable(str(root / topic.table)).file_uris())


def findings(root: Path, day: date | None = None) -> list[Finding]:
    return [finding for one in check(root, identity, day, silent) for finding in one.findings]


def checked(root: Path) -> dict[str, Checked]:
    return {one.table: one for one in check(root, identity, None, silent)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path / "lake")
    return tmp_path / "lake"


# Retention


def test_days_that_are_too_old_go_whole_from_every_table_and_their_files_with_them(root: Path) -> None:
    kept = {topic: [row for row in logged(root, topic) if dict(row)["date"] >= DAYS[2]] for topic in NORMALIZED_TOPICS}
    done = prune(root, Keep(days=1), TODAY)
    assert [(one.day, one.table, one.rows, one.files) for one in done] == [
        (DAYS[0], "ticks", 40, 2),
        (DAYS[0], "rejected", 6, 2),
        (DAYS[1], "ticks", 40, 2),
        (DAYS[1], "rejected", 6, 2),
    ]
    assert {topic: logged(root, topic) for topic in NORMALIZED_TOPICS} == kept
    assert {topic: globbed(root, topic) for topic in NORMALIZED_TOPICS} == kept
    assert not (root / "ticks" / f"date={DAYS[0]}").exists()


def test_where_the_lake_is_too_large_the_oldest_days_go_first_and_today_never(root: Path) -> None:
    of_day = {day: sum(file.stat().st_size for file in root.glob(f"*/date={day}/*")) for day in DAYS}
    two = of_day[DAYS[2]] + of_day[DAYS[3]]
    prune(root, Keep(gigabytes=(two + 1) / 1e9), TODAY)
    assert days(root) == days(root, REJECTED_TOPIC) == DAYS[2:]
    prune(root, Keep(gigabytes=1e-9), TODAY)
    assert days(root) == days(root, REJECTED_TOPIC) == [TODAY]
    prune(root, Keep(days=1, gigabytes=1e-9), TODAY - timedelta(days=30))
    assert days(root) == [TODAY]


def test_a_dry_run_says_the_same_and_removes_nothing(root: Path) -> None:
    before = {topic: (logged(root, topic), globbed(root, topic)) for topic in NORMALIZED_TOPICS}
    said = prune(root, Keep(days=2), TODAY, dry_run=True)
    assert {topic: (logged(root, topic), globbed(root, topic)) for topic in NORMALIZED_TOPICS} == before
    assert said == prune(root, Keep(days=2), TODAY)
    assert {one.day for one in said} == {DAYS[0]}


def test_pruning_twice_is_harmless_and_a_lake_that_keeps_everything_is_left_alone(root: Path) -> None:
    prune(root, Keep(days=1), TODAY)
    versions = [DeltaTable(str(root / name)).version() for name in ("ticks", "rejected")]
    before = {topic: logged(root, topic) for topic in NORMALIZED_TOPICS}
    assert prune(root, Keep(days=1), TODAY) == []
    assert prune(root, Keep(), TODAY + timedelta(days=999)) == []
    assert [DeltaTable(str(root / name)).version() for name in ("ticks", "rejected")] == versions
    assert {topic: logged(root, topic) for topic in NORMALIZED_TOPICS} == before


def test_removed_rows_are_no_lost_rows_the_equation_holds_and_duplicates_are_known_as_before(root: Path) -> None:
    before = Lake(root, identity).totals(TICKS_TOPIC)
    prune(root, Keep(days=1), TODAY)
    lake = Lake(root, identity)
    after = lake.totals(TICKS_TOPIC)
    assert (after.positions, after.read, after.rows, after.duplicates) == (before.positions, before.read, before.rows, before.duplicates)
    assert (before.removed, after.removed, after.lost) == (0, 80, 0)
    assert after.rows - after.removed == len(logged(root))
    held = ticks({"symbol": SYMBOLS[0], "sequence": 3_000 * 20, "ts_ns": NOON + 3 * DAY, "raw_offset": 900_000, "last": 0.0})
    assert lake.write(Chunk.dense(TICKS_TOPIC, 0, after.positions[0], held)).duplicates == 1
    late = ticks({"symbol": SYMBOLS[0], "sequence": 0, "ts_ns": NOON, "raw_offset": 900_001})
    assert lake.write(Chunk.dense(TICKS_TOPIC, 0, after.positions[0] + 1, late)).rows == 1
    totals = lake.totals(TICKS_TOPIC)
    assert totals.read == totals.rows + totals.duplicates == before.read + 2
    assert prune(root, Keep(days=1), TODAY)[0].rows == 1
    assert lake.totals(TICKS_TOPIC).removed == 81
    assert findings(root) == []
    assert checked(root)["ticks"].removed == 81


def test_a_day_that_was_removed_is_not_compacted_back_into_being(root: Path) -> None:
    prune(root, Keep(days=1), TODAY)
    assert [(one.changed, one.files_after, one.rows) for one in compact(root, DAYS[0], silent)] == [(False, 0, 0)] * 2
    assert days(root) == DAYS[2:]
    compact(root, DAYS[2], silent)
    prune(root, Keep(days=0, gigabytes=1e-9), TODAY)
    assert days(root) == [TODAY]
    assert findings(root) == []


def test_a_reader_that_has_begun_in_a_day_that_is_removed_is_told_and_one_elsewhere_goes_on(root: Path) -> None:
    names = ("ts_ns", "raw_offset")
    everything, later = LakeSource(root), LakeSource(root)
    readers = [
        everything.ticks(Selection(SYMBOLS, 0, NOON + 9 * DAY, names)),
        later.ticks(Selection(SYMBOLS, NOON + 2 * DAY, NOON + 9 * DAY, names)),
    ]
    prune(root, Keep(days=1), TODAY)
    with pytest.raises(DiskProblem, match="Try again"):
        readers[0].read_all()
    assert readers[1].read_all().num_rows == 80
    assert everything.now().ticks(Selection(SYMBOLS, 0, NOON + 9 * DAY, names)).read_all().num_rows == 80


def test_nothing_is_removed_while_a_compact_runs(root: Path) -> None:
    with lake_files.changing(root, "tapeline compact"), pytest.raises(Busy, match="tapeline compact, process"):
        prune(root, Keep(days=1), TODAY)
    assert days(root) == DAYS


def test_a_store_that_writes_while_days_are_removed_loses_nothing(root: Path) -> None:
    stop, problem = threading.Event(), list[Exception]()

    def writes() -> None:
        lake, number = Lake(root, identity), 0
        try:
            while not stop.is_set() or number < 5:
                batch = ticks(
                    *({"sequence": 800_000 + number * 4 + at, "ts_ns": NOON + 3 * DAY, "raw_offset": number * 4 + at} for at in range(4))
                )
                position = lake.totals(TICKS_TOPIC).positions[0]
                try:
                    lake.write(Chunk.dense(TICKS_TOPIC, 0, position, batch))
                except DiskProblem:  # a file that it read was removed just then: a store tries again
                    continue
                number += 1
        except Exception as error:  # noqa: BLE001 the test's own thread: what went wrong is raised below
            problem.append(error)

    writer = threading.Thread(target=writes)
    writer.start()
    try:
        for day in DAYS[1:]:
            prune(root, Keep(days=1), day)
            vacuum(root)
    finally:
        stop.set()
        writer.join()
    assert not problem
    totals = Lake(root, identity).totals(TICKS_TOPIC)
    assert totals.removed == 80
    assert totals.rows - totals.removed == len(logged(root)) == len(set(logged(root)))
    assert findings(root) == []


DYING = """
import os, signal, sys
from datetime import date
from pathlib import Path
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake import {module}
root, left = Path(sys.argv[1]), int(sys.argv[2])
{before}
def passed(frame, event, argument):
    global left
    if frame.f_code.co_filename in (lake_files.__file__, {module}.__file__, {pathlib!r}) and event in ("call", "return"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(passed)
{what}
sys.setprofile(None)
print(int(sys.argv[2]) - left)
"""


def dying_after(root: Path, points: int, module: str, before: str, what: str) -> subprocess.CompletedProcess[str]:
    """`what`, that changes the lake, killed when it has passed so many points."""
    import pathlib

    code = DYING.format(pathlib=pathlib.__file__, module=module, before=before, what=what)
    return subprocess.run([sys.executable, "-c", code, str(root), str(points)], capture_output=True, text=True, check=False)


@proof("lake")
def test_killed_at_any_point_a_prune_is_as_if_it_never_ran_or_is_finished_by_the_next(tmp_path: Path) -> None:
    fill(tmp_path / "counted")
    of_day = sum(file.stat().st_size for file in (tmp_path / "counted").glob(f"*/date={DAYS[3]}/*"))
    # What is left of the day that goes, once its ticks are gone, would no longer be too much.
    keep = Keep(gigabytes=(3 * of_day + 1_000) / 1e9)
    prunes = ("retention", "", f"retention.prune(root, retention.{keep}, date(2024, 3, 18))")
    points = int(dying_after(tmp_path / "counted", 1_000_000, *prunes).stdout)
    assert days(tmp_path / "counted") == days(tmp_path / "counted", REJECTED_TOPIC) == DAYS[1:]
    fill(tmp_path / "filled")
    for point in range(1, points) if PROVE else sorted(Random(3).sample(range(points // 4, points), 6)):
        root = tmp_path / f"lake-{point}"
        shutil.copytree(tmp_path / "filled", root)
        assert dying_after(root, point, *prunes).returncode == -signal.SIGKILL
        touched = days(root) != DAYS or days(root, REJECTED_TOPIC) != DAYS
        done = days(root) == days(root, REJECTED_TOPIC) == DAYS[1:]
        assert (root / ".pruning").exists() or not touched or done, f"killed at point {point}"
        prune(root, keep, TODAY)
        assert days(root) == days(root, REJECTED_TOPIC) == DAYS[1:], f"killed at point {point}"
        assert globbed(root) == logged(root)
        assert findings(root) == []
        assert Lake(root, identity).totals(TICKS_TOPIC).removed == 40


def test_the_store_stage_keeps_the_lake_to_its_days_by_itself_once_an_hour(tmp_path: Path) -> None:
    fill(tmp_path / "lake")
    store = StoreConfig(keep_days=30)
    config = Config(data_dir=str(tmp_path), stores=(store,))
    assert lake_retention(config, StoreConfig()) is None
    assert lake_retention(config, StoreConfig("postgresql://u@h/d", keep_days=3)) is None
    removes = lake_retention(config, store)
    assert removes is not None
    now = [NOON]
    calls = list[int]()

    def counted() -> None:
        calls.append(now[0])
        if len(calls) == 1:
            raise Busy("a compaction runs")
        removes()

    stop = threading.Event()
    stage = StoreWriter(
        open_stream(config, {}),
        Lake(tmp_path / "lake", identity),
        Writing("lake", 10, 0.0),
        StatusFile(tmp_path, "lake"),
        stop,
        Maintenance(counted),
        clock=lambda: now[0],
    )
    for minutes in (0, 10, 50, 61, 70):
        now[0] = NOON + minutes * 60 * 10**9
        stage.step()
    assert calls == [NOON, NOON + 61 * 60 * 10**9]
    assert logged(tmp_path / "lake") == []
    assert Lake(tmp_path / "lake", identity).totals(TICKS_TOPIC).removed == 160


def test_a_decision_that_cannot_be_read_is_named_and_nothing_is_removed(root: Path) -> None:
    (root / ".pruning").write_text('["2024-03-1')
    with pytest.raises(DiskProblem, match=r"\.pruning is damaged .* Delete it"):
        prune(root, Keep(days=1), TODAY)
    assert days(root) == DAYS


def test_a_size_is_of_the_lake_alone() -> None:
    with pytest.raises(ConfigError, match="keep_gb works only for the lake"):
        open_store(Config(), StoreConfig("postgresql://u@h/d", keep_gb=3.0))


# Vacuum


def test_vacuum_removes_what_no_log_names_and_not_what_a_store_may_be_about_to_commit(root: Path) -> None:
    compact(root, DAYS[0], silent)
    before = logged(root)
    folder = root / "ticks" / f"date={DAYS[1]}"
    for name in ("part-old.parquet", ".part-old.aside", "sealed-0000-dead.parquet", "compacted-0000-dead.parquet"):
        (folder / name).write_bytes(b"left behind")
    for name in ("part-old.parquet", ".part-old.aside"):
        os.utime(folder / name, (0, 0))
    (folder / "part-young.parquet").write_bytes(b"being written")
    (root / "ticks" / "date=2001-01-01").mkdir()
    (found,) = [one for one in vacuum(root) if one.table == "ticks"]
    assert (found.files, found.bytes) == (4, 44)
    assert {path.name for path in folder.iterdir()} == {*(path.name for path in files(root) if path.parent == folder), "part-young.parquet"}
    assert not (root / "ticks" / "date=2001-01-01").exists()
    assert logged(root) == before
    assert {one.files for one in vacuum(root)} == {0}


def test_a_store_that_stood_still_for_hours_before_its_commit_names_no_file_that_is_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine was suspended between the file and the commit, and a vacuum came by."""
    commit, standing = lake_files.commit, [True]

    def late(*arguments: Any, **more: Any) -> None:
        if standing.pop() if standing else False:
            for path in (root / "ticks").rglob("*.parquet"):
                os.utime(path, (0, 0))
            vacuum(root)
        commit(*arguments, **more)

    monkeypatch.setattr(lake_files, "commit", late)
    store, before = Lake(root, identity), len(rows_of([str(path) for path in files(root)]))
    chunk = Chunk.dense(TICKS_TOPIC, 0, 900_000, ticks({"ts_ns": NOON, "sequence": 900_000, "raw_offset": 900_000}))
    with pytest.raises(DiskProblem, match="was deleted before it was committed"):
        store.write(chunk)
    assert len(rows_of([str(path) for path in files(root)])) == before
    assert store.write(chunk).rows == 1, "it is tried again"
    assert len(rows_of([str(path) for path in files(root)])) == before + 1
    assert findings(root) == []


def test_vacuum_removes_old_entries_of_the_log_and_positions_stay(root: Path) -> None:
    log = root / "ticks" / "_delta_log"
    before = (Lake(root, identity).totals(TICKS_TOPIC), logged(root))
    for path in log.iterdir():
        os.utime(path, (0, 0))
    vacuum(root)
    fill(root, 1, first=50)  # an entry that came after the checkpoint
    for path in log.iterdir():
        os.utime(path, (0, 0))
    found = {one.table: one.log_entries for one in vacuum(root)}
    assert found["ticks"] > 0
    assert Lake(root, identity).totals(TICKS_TOPIC).read == before[0].read + 84
    assert set(before[1]) < set(logged(root))
    assert findings(root) == []


# A compacted day without the log


def test_a_compacted_day_read_without_the_log_has_each_row_once(root: Path) -> None:
    expected = logged(root)
    for day in DAYS[:2]:
        compact(root, day, silent)
    with duckdb.connect() as db:
        names = f"read_parquet('{root}/ticks/date=*/**/*.parquet', hive_partitioning = true)"
        ((rows, distinct),) = db.sql(f"SELECT count(*), count(DISTINCT (raw_partition, raw_offset, raw_index)) FROM {names}").fetchall()
    assert rows == distinct == len(expected)
    assert globbed(root) == expected


# Check


def test_a_lake_that_is_whole_gives_no_finding_compacted_or_not(root: Path) -> None:
    assert findings(root) == []
    compact(root, DAYS[0], silent)
    assert findings(root) == []
    (one,) = [one for one in check(root, identity, DAYS[0], silent) if one.table == "ticks"]
    assert (one.files, one.rows) == (1, 40)
    assert {name: (one.rows, one.files) for name, one in checked(root).items()} == {"ticks": (160, 7), "rejected": (24, 7)}


def deleted(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    """One bit of a page of data, which many readers do not notice."""
    content = bytearray(path.read_bytes())
    footer = pq.read_metadata(path).row_group(0).column(7)
    content[footer.data_page_offset + footer.total_compressed_size - 3] ^= 1
    path.write_bytes(content)


def exchanged(path: Path) -> None:
    """Another file of the same table, whole in itself."""
    other = next(file for file in sorted(path.parent.iterdir()) if file != path)
    path.write_bytes(other.read_bytes())


DAMAGES = [deleted, truncated, emptied, zeroed, flipped, exchanged]


@pytest.mark.parametrize("damage", DAMAGES, ids=[damage.__name__ for damage in DAMAGES])
def test_every_damage_to_a_file_is_found_and_the_file_is_named(root: Path, damage: Callable[[Path], None]) -> None:
    path = files(root)[3]
    damage(path)
    (found,) = findings(root)
    assert (found.table, found.problem, found.day) == ("ticks", "damaged", DAYS[1])
    assert found.file == f"date={DAYS[1]}/{path.name}"
    assert findings(root, DAYS[0]) == []
    assert len(findings(root, DAYS[1])) == 1


@proof("lake")
def test_any_flipped_bit_is_found(root: Path) -> None:
    path = files(root)[0]
    content = path.read_bytes()
    rng = Random(None if PROVE else 5)
    for at in rng.sample(range(len(content) * 8), 400 if PROVE else 40):
        spoiled = bytearray(content)
        spoiled[at // 8] ^= 1 << at % 8
        path.write_bytes(spoiled)
        assert damage(root / "ticks", str(path.relative_to(root / "ticks")), len(content), 20) is not None, at
    path.write_bytes(content)
    assert findings(root) == []


def test_a_file_that_an_earlier_version_named_is_read_whole(root: Path) -> None:
    folder = root / "ticks"
    table = lake_files.opened(folder)
    assert table is not None
    path = files(root)[0]
    old = lake_files.files_of(table).filter(pc.equal(lake_files.files_of(table)["path"], str(path.relative_to(folder))))
    earlier = path.with_name("part-00001-0b3aa4c1-0000-4000-8000-000000000000-c000.zstd.parquet")
    path.rename(earlier)
    added = lake_files.Added(str(earlier.relative_to(folder)), DAYS[0], earlier.stat().st_size, lake_files._stats(earlier))
    lake_files.commit(folder, table, old, [added], [], data_change=False)
    assert findings(root) == []
    flipped(earlier)
    assert [one.file for one in findings(root)] == [f"date={DAYS[0]}/{earlier.name}"]


def planted(root: Path, day: date, batch: pa.RecordBatch) -> None:
    """Rows that come into the lake past the store."""
    table = lake_files.opened(root / "ticks")
    assert table is not None
    rows = pa.table(with_dates(batch)).drop_columns(["date"])
    lake_files.commit(root / "ticks", table, None, [lake_files.write(root / "ticks", day, rows)], [], data_change=True)


def test_what_no_store_writes_is_found(root: Path) -> None:
    first = {"symbol": SYMBOLS[0], "sequence": 0, "ts_ns": NOON, "raw_offset": 0, "last": 0.0}
    planted(root, DAYS[0], ticks({**first, "raw_offset": 777_777}))
    planted(root, DAYS[1], ticks({"symbol": "SOL/USDT", "sequence": 1, "ts_ns": NOON + DAY, "raw_offset": 1_000 * 20}))
    planted(root, DAYS[2], ticks({"symbol": "SOL/USDT", "sequence": 2, "ts_ns": NOON + 3 * DAY, "raw_offset": 888_888}))
    (root / "ticks" / f"date={DAYS[3]}" / "part-copy.parquet").write_bytes(files(root)[-1].read_bytes())
    os.utime(root / "ticks" / f"date={DAYS[3]}" / "part-copy.parquet", (0, 0))
    found = {(one.problem, one.day): one.detail for one in findings(root)}
    assert set(found) == {("event twice", DAYS[0]), ("position twice", DAYS[1]), ("date", DAYS[2]), ("unnamed", DAYS[3]), ("totals", None)}
    assert "BTC/USDT" in found["event twice", DAYS[0]]
    assert "0-20000-0" in found["position twice", DAYS[1]]
    assert "163 rows, but the store counted 160" in found["totals", None]


def test_files_whose_log_is_gone_are_found(root: Path) -> None:
    shutil.rmtree(root / "ticks" / "_delta_log")
    (finding,) = findings(root)
    assert (finding.table, finding.problem, finding.day) == ("ticks", "unnamed", None)
    assert f"has {len(list((root / 'ticks').rglob('*.parquet')))} files, but the log (_delta_log) that names them is gone" in finding.detail


def test_statistics_that_do_not_hold_are_found(root: Path) -> None:
    table = lake_files.opened(root / "ticks")
    assert table is not None
    rows = pa.table(with_dates(ticks({"symbol": "SOL/USDT", "sequence": 9, "raw_offset": 999_999}))).drop_columns(["date"])
    good = lake_files.write(root / "ticks", DAYS[0], rows)
    lie = lake_files.Added(good.path, good.day, good.size, good.stats.replace("SOL/USDT", "SOL/USDC"))
    lake_files.commit(root / "ticks", table, None, [lie], [], data_change=True)
    found = [one for one in findings(root) if one.problem == "statistics"]
    assert [one.file for one in found] == [good.path] * 2
    assert "'SOL/USDT', but the log says 'SOL/USDC'" in found[0].detail


def test_compacting_does_not_take_a_damaged_value_for_a_good_one(root: Path) -> None:
    path = files(root)[0]
    flipped(path)
    with pytest.raises(DiskProblem, match=f"{path.name}.*tapeline lake repair"):
        compact(root, DAYS[0], silent)


# Repair


class Pipeline:
    """A stream and a lake, whose stages run when a test says so."""

    def __init__(self, root: Path, partitions: int = 1) -> None:
        (root / "tapeline.toml").write_text(
            f'data_dir = "{root}"\n[stream]\npartitions = {partitions}\n[[providers]]\nname = "binance"\nsymbols = ["BTCUSDT"]\n'
            'channels = ["trade"]\n'
        )
        self.folder, self.root = root, root / "lake"
        self.config = load(root / "tapeline.toml", {})
        self.stream = open_stream(self.config, {})
        self.lake = Lake(self.root, identity)

    def received(self, *payloads: bytes, partition: int = 0, received_ns: int = NOON) -> None:
        self.stream.append(RAW_TOPIC, raw_batch("binance", "spot", payloads, received_ns=received_ns), partition)

    def normalize(self) -> None:
        stop = threading.Event()
        stop.set()
        run_normalize(Normalize(self.stream, DECODERS, StatusFile(self.folder, "normalize"), name="test"), stop, Random(1))

    def keep(self) -> None:
        stop = threading.Event()
        stop.set()
        status = StatusFile(self.folder, "lake")
        run_store(StoreWriter(self.stream, self.lake, Writing("lake", 10_000, 0.0), status, stop), stop, Random(1))

    def repaired(self, *, drop: bool = False) -> list[Repaired]:
        return list(repair(self.root, identity, RawRecords(self.stream, DECODERS), silent, drop=drop))

    def balanced(self) -> None:
        assert all(one.balanced for one in equations(self.stream, {"lake": self.lake}))


def trade(number: int, day: int = 0, symbol: str = "BTCUSDT") -> bytes:
    time_ms = (NOON + day * DAY) // 10**6 + number
    event = {"e": "trade", "s": symbol, "t": number, "p": f"{number}.25", "q": "2", "T": time_ms, "m": True}
    return json.dumps({"stream": f"{symbol.lower()}@trade", "data": event}, separators=(",", ":")).encode()


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """Five flushes over two days, in two partitions: trades of two symbols, each also by a second line, and frames that nobody can read."""
    made = Pipeline(tmp_path, partitions=2)
    for flush in range(5):
        numbers = range(flush * 20, flush * 20 + 20)
        some = [trade(number, number % 2, symbol) for number in numbers for symbol in ("BTCUSDT", "ETHUSDT")]
        made.received(*some[:30], b"no json %d" % flush)
        made.received(*some[30:], partition=1)
        made.received(*some[4:12])  # the second line, at once ...
        made.received(*some[32:], partition=1)
        made.normalize()
        made.keep()
        made.received(*some[:8], *some[36:], received_ns=NOON + 10**9)  # ... and late
        made.normalize()
        made.keep()
    yield made
    made.stream.close()


@pytest.mark.parametrize("damage", DAMAGES, ids=[damage.__name__ for damage in DAMAGES])
def test_a_damaged_file_is_made_again_from_the_raw_topic_as_it_was(pipeline: Pipeline, damage: Callable[[Path], None]) -> None:
    root = pipeline.root
    before = {topic: logged(root, topic) for topic in NORMALIZED_TOPICS}
    totals = {topic: pipeline.lake.totals(topic) for topic in NORMALIZED_TOPICS}
    path = files(root)[2]
    damage(path)
    (done,) = pipeline.repaired()
    assert (done.table, done.files, done.lost, done.problem) == ("ticks", (f"{path.parent.name}/{path.name}",), 0, "")
    assert done.found == done.rows > 0
    assert {topic: logged(root, topic) for topic in NORMALIZED_TOPICS} == before
    assert {topic: globbed(root, topic) for topic in NORMALIZED_TOPICS} == before
    assert {topic: Lake(root, identity).totals(topic) for topic in NORMALIZED_TOPICS} == totals
    assert findings(root) == []
    assert pipeline.repaired() == []
    pipeline.balanced()


def test_everything_that_the_lake_holds_is_made_again_from_nothing_but_the_raw_topic(pipeline: Pipeline) -> None:
    root = pipeline.root
    compact(root, DAYS[0], silent)
    before = {topic: logged(root, topic) for topic in NORMALIZED_TOPICS}
    assert len(before[TICKS_TOPIC]) == 200
    for topic in NORMALIZED_TOPICS:
        for path in files(root, topic) if before[topic] else ():
            truncated(path)
    done = pipeline.repaired()
    assert {(one.table, one.day) for one in done} == {("ticks", DAYS[0]), ("ticks", DAYS[1]), ("rejected", DAYS[0])}
    assert {topic: logged(root, topic) for topic in NORMALIZED_TOPICS} == before
    assert findings(root) == []
    names = [path.name for path in files(root) if path.parent.name == f"date={DAYS[0]}"]
    assert len(names) == 1
    assert names[0].startswith("compacted-")  # it was, and is sorted as it was


def test_what_the_store_has_still_to_read_is_not_taken_for_what_was_lost(pipeline: Pipeline) -> None:
    root, symbols = pipeline.root, [f"{letter}USDT" for letter in "ABCDEFGH"]
    pipeline.received(*(trade(number, 0, symbol) for number in range(500, 505) for symbol in symbols))
    pipeline.normalize()
    both = pipeline.stream.read(TICKS_TOPIC, pipeline.lake.totals(TICKS_TOPIC).positions, 10_000)
    assert both is not None
    assert set(both.partition) == {0, 1}
    mine = both.partition == 1  # the store has come to one of two partitions, whose rows came of the same raw records
    batch, begin, end = both.batch.filter(pa.array(mine)), {1: both.begin[1]}, {1: both.next[1]}
    written = pipeline.lake.write(Chunk(TICKS_TOPIC, batch, both.partition[mine], both.offset[mine], begin, end))
    before = logged(root)
    (path,) = [path for path in files(root) if pq.read_table(path, partitioning=None)["symbol"].to_pylist()[0] not in SYMBOLS]
    deleted(path)
    (done,) = pipeline.repaired()
    assert (done.found, done.problem) == (written.rows, "")
    assert logged(root) == before
    pipeline.keep()
    assert len(logged(root)) == len(before) + both.rows - written.rows
    assert findings(root) == []
    pipeline.balanced()


@proof("streams")
@pytest.mark.parametrize("server", ["redis", *(["kafka"] if PROVE else [])])
def test_a_damaged_file_is_made_again_from_every_stream(server: str, shared: Callable[..., StreamConfig], tmp_path: Path) -> None:
    made = test_rejects.Pipeline(tmp_path / "data", shared(server, partitions=2))
    root = made.root / "lake"
    with closing(made.stream):
        for first in (0, 10, 20):
            made.received(*(test_rejects.trade(number) for number in range(first, first + 8)), b"?")
            made.received(*(test_rejects.trade(number) for number in range(first + 5, first + 10)), partition=1)
            made.normalize()
            made.keep()
        before = {topic: logged(root, topic) for topic in NORMALIZED_TOPICS}
        assert len(before[TICKS_TOPIC]) == 30
        for path in (files(root)[1], files(root, REJECTED_TOPIC)[1]):
            truncated(path)
        done = list(repair(root, identity, RawRecords(made.stream, DECODERS), silent))
    assert [(one.table, one.problem, one.lost) for one in done] == [("ticks", "", 0), ("rejected", "", 0)]
    assert {topic: logged(root, topic) for topic in NORMALIZED_TOPICS} == before
    assert findings(root) == []


def test_where_the_raw_records_are_gone_it_says_so_and_gives_up_only_what_it_is_told_to(pipeline: Pipeline) -> None:
    root = pipeline.root
    before = logged(root)
    path = files(root)[1]
    gone = rows_of([str(path)])
    truncated(path)
    (root.parent / "other").mkdir()
    bare = Pipeline(root.parent / "other", partitions=2)  # a stream that has let everything go
    origin = RawRecords(bare.stream, DECODERS)
    (said,) = repair(root, identity, origin, silent)
    assert said.problem == f"the raw records of {len(gone)} rows are gone. Use --drop to give up those rows and keep the rest"
    assert path in files(root)
    assert [one.problem for one in findings(root)] == ["damaged"]
    (done,) = repair(root, identity, origin, silent, drop=True)
    assert (done.found, done.lost, done.problem) == (0, len(gone), "")
    assert logged(root) == globbed(root) == [row for row in before if row not in gone]
    assert findings(root) == []
    totals = Lake(root, identity).totals(TICKS_TOPIC)
    assert (totals.lost, totals.read) == (len(gone), totals.rows + totals.duplicates)
    assert checked(root)["ticks"].lost == len(gone)
    bare.stream.close()


@proof("lake")
def test_a_repair_that_is_killed_anywhere_changed_nothing_or_is_done(pipeline: Pipeline) -> None:
    root = pipeline.root
    made = (
        "repairing",
        "from tapeline.config import load; from tapeline.app.streams import open_stream; from tapeline.jobs.rebuild import RawRecords\n"
        "from tapeline.providers.registry import DECODERS, identity\n"
        "stream = open_stream(load(root.parent / 'tapeline.toml', {}), {})",
        "list(repairing.repair(root, identity, RawRecords(stream, DECODERS), lambda *_: None))",
    )
    before = logged(root)
    truncated(files(root)[0])
    points = int(dying_after(root, 1_000_000, *made).stdout)
    rng = Random(None if PROVE else 6)
    for point in range(1, points) if PROVE else sorted(rng.sample(range(points // 2, points), 4)):
        truncated(files(root)[0])
        dying_after(root, point, *made)
        broken = [one.file for one in findings(root) if one.problem == "damaged"]
        assert len(broken) <= 1
        pipeline.repaired()
        assert logged(root) == before, f"killed at point {point}"
        vacuum(root)
        assert globbed(root) == before, f"killed at point {point}"
        assert findings(root) == []


# The commands


def asked(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--config", str(folder / "tapeline.toml")])


def test_the_commands_say_what_they_find_and_do(pipeline: Pipeline) -> None:
    folder, root = pipeline.folder, pipeline.root
    fine = asked(folder, "lake", "check")
    assert fine.exit_code == 0, fine.stderr
    assert "ticks: 200 rows in" in fine.stdout
    path = files(root)[0]
    flipped(path)
    damaged = asked(folder, "lake", "check", str(DAYS[0]), "--format", "json")
    assert damaged.exit_code == 1
    found = [json.loads(line) for line in damaged.stdout.splitlines()]
    assert [one["file"] for table in found for one in table["findings"]] == [f"{path.parent.name}/{path.name}"]
    made = asked(folder, "lake", "repair")
    assert made.exit_code == 0, made.stderr
    assert f"{path.name}: " in made.stdout
    assert "rows rebuilt" in made.stdout
    assert asked(folder, "lake", "check").exit_code == 0
    kept = asked(folder, "lake", "prune")
    assert (kept.exit_code, kept.stdout) == (0, "Nothing to remove.\n")
    assert "keeps everything" in kept.stderr
    with (folder / "tapeline.toml").open("a") as file:
        file.write('[[stores]]\nurl = "lake:"\nkeep_days = 3\n')
    dry = asked(folder, "lake", "prune", "--dry-run", "--format", "json")
    assert {json.loads(line)["day"] for line in dry.stdout.splitlines()} == {str(DAYS[0]), str(DAYS[1])}
    assert len(logged(root)) == 200
    assert "rows in" in asked(folder, "lake", "prune").stdout
    assert logged(root) == []
    assert "entries of the log" in asked(folder, "lake", "vacuum").stdout
    assert asked(folder, "lake", "check").exit_code == 0
    status = asked(folder, "status", "--format", "json")
    assert status.exit_code == 0, status.stdout
    with pytest.raises(ConfigError, match="no ticks"):
        tapeline.ticks("BTC/USDT", "2024-03-15", "2024-03-16", config=folder / "tapeline.toml")
