"""The lake keeps itself: days that are over are compacted, running ones merged, whoever dies, and a write costs what it did."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from deltalake import DeltaTable
from rich.console import Console
from services.process import lives

from made import DAY, NOON, ticks
from proving import PROVE, proof
from tapeline.app.stores import lake_upkeep
from tapeline.config import Config, StoreConfig
from tapeline.errors import Busy, DiskProblem
from tapeline.local.locks import own
from tapeline.monitor.health import snapshot
from tapeline.monitor.terminal import tables
from tapeline.providers.registry import identity
from tapeline.records import NORMALIZED_TOPICS, TICKS_TOPIC, Chunk
from tapeline.stages.upkeep import Upkeep
from tapeline.stores.lake import Lake
from tapeline.stores.lake import due as lake_due
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake.checking import check
from tapeline.stores.lake.compacting import Compacted
from tapeline.stores.lake.due import Due, due
from tapeline.stores.lake.reading import LakeSource
from tapeline.stores.lake.tidying import tidy
from tapeline.stores.selection import Selection
from tapeline.telemetry.status import StatusFile, read_status
from test_compacting import SYMBOLS, fill, quietly
from test_lake_life import globbed, logged, write
from waiting import until

FIRST, SECOND = date(2024, 3, 15), date(2024, 3, 16)
#: On the second of the two days that `fill` fills: neither is the files' own time.
EVENING = datetime(2024, 3, 16, 20, tzinfo=UTC)
EVERYTHING = Selection(SYMBOLS, 0, NOON + 9 * DAY, tuple(TICKS_TOPIC.schema.names))


@contextmanager
def written_at(moment: datetime) -> Iterator[None]:
    """What is committed meanwhile is dated as if it were that time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lake_files.time, "time_ns", lambda: int(moment.timestamp() * 1e9))
        yield


def fill_at(root: Path, moment: datetime, flushes: int = 6, first: int = 0) -> None:
    with written_at(moment):
        fill(root, flushes, first)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill_at(tmp_path / "lake", EVENING)
    return tmp_path / "lake"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six flushes are as many as an hour's."""
    monkeypatch.setattr(lake_due, "_FLUSHES", 6)


def names(root: Path, day: date, table: str = "ticks") -> list[str]:
    """What kinds of files a day of a table has in its folder."""
    return sorted(path.name.partition("-")[0] for path in (root / table / f"date={day}").iterdir())


def both(root: Path) -> dict[str, list[Any]]:
    """Every row, as readers of the log and readers of the folders see them; they see the same."""
    found = {topic.table: logged(root, topic) for topic in NORMALIZED_TOPICS}
    assert {topic.table: globbed(root, topic) for topic in NORMALIZED_TOPICS} == found
    return found


def tidied(root: Path, now: datetime) -> list[Compacted]:
    done: list[Compacted] = []
    tidy(root, now, done.append)
    return done


# When


def test_a_day_is_compacted_an_hour_after_its_end_and_the_one_that_runs_is_left_alone(root: Path) -> None:
    midnight = datetime(2024, 3, 17, tzinfo=UTC)
    assert due(root, midnight - timedelta(hours=2)) == [Due(FIRST)]
    assert due(root, midnight + timedelta(minutes=59)) == [Due(FIRST)]
    assert due(root, midnight + timedelta(hours=1)) == [Due(FIRST), Due(SECOND)]
    before = both(root)
    assert {(one.day, one.table) for one in tidied(root, midnight)} >= {(FIRST, "ticks"), (FIRST, "bars")}
    assert names(root, FIRST) == ["compacted"]
    assert names(root, SECOND) == ["part"] * 6
    assert due(root, midnight) == []
    tidied(root, midnight + timedelta(hours=1))
    assert names(root, SECOND) == ["compacted"]
    assert both(root) == before
    assert tidied(root, midnight + timedelta(hours=1)) == []


def test_a_day_to_which_rows_still_come_waits_until_it_is_quiet(root: Path) -> None:
    assert due(root, EVENING + timedelta(minutes=29)) == []
    fill_at(root, EVENING + timedelta(minutes=20), 1, 6)
    assert due(root, EVENING + timedelta(minutes=49)) == []
    assert due(root, EVENING + timedelta(minutes=50)) == [Due(FIRST)]


def test_what_comes_to_a_compacted_day_is_compacted_in_once_a_day_has_passed(root: Path) -> None:
    quietly(root, FIRST)
    fill_at(root, EVENING, 1, 6)
    assert due(root, EVENING + timedelta(hours=3)) == []
    late = EVENING + timedelta(days=1)
    assert Due(FIRST) in due(root, late)
    before = both(root)
    tidied(root, late)
    assert names(root, FIRST) == ["compacted"]
    assert both(root) == before


@pytest.mark.usefixtures("few")
def test_the_flushes_of_a_running_day_are_merged_when_they_are_many_and_have_lain_for_a_while(root: Path) -> None:
    quietly(root, FIRST)
    assert due(root, EVENING + timedelta(minutes=9)) == []
    now = EVENING + timedelta(minutes=11)
    fill_at(root, now, 2, 6)  # these are young
    before, totals = both(root), Lake(root, identity).totals(TICKS_TOPIC)
    assert due(root, now) == [Due(SECOND, TICKS_TOPIC)]
    assert [(one.files_before, one.files_after) for one in tidied(root, now)] == [(6, 1)]
    assert names(root, SECOND) == ["merged", "part", "part"]
    assert both(root) == before
    assert Lake(root, identity).totals(TICKS_TOPIC) == totals
    assert [finding for one in check(root, identity, None, lambda *_: None) for finding in one.findings] == []
    assert due(root, now) == []
    quietly(root, SECOND)
    assert names(root, SECOND) == ["compacted"]
    assert both(root) == before


def test_a_day_that_cannot_be_compacted_keeps_no_other_from_it_and_is_named(root: Path) -> None:
    bad = next((root / "ticks" / f"date={FIRST}").iterdir())
    bad.write_bytes(b"no Parquet")
    with pytest.raises(DiskProblem, match=bad.name):
        tidied(root, EVENING + timedelta(days=2))
    assert names(root, SECOND) == ["compacted"]
    assert names(root, FIRST) == ["part"] * 6


# Killed, and two at once


DYING = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from tapeline.stores.lake import due as lake_due, compacting as lake_compacting, tidying as lake_tidying
import pathlib
lake_due._FLUSHES = 3
left = int(sys.argv[2])
def passed(frame, event, argument):
    global left
    if frame.f_code.co_filename in (lake_compacting.__file__, pathlib.__file__) and event in ("call", "return"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(passed)
lake_tidying.tidy(Path(sys.argv[1]), datetime.fromisoformat(sys.argv[3]), lambda _: None)
sys.setprofile(None)
print(int(sys.argv[2]) - left)
"""


def dying_after(root: Path, points: int, now: datetime) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DYING, str(root), str(points), now.isoformat()]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@proof("lake")
def test_killed_at_any_point_nothing_is_lost_or_doubled_and_the_next_one_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_due, "_FLUSHES", 3)
    # The first day is over and compacted, the second is merged.
    now = EVENING + timedelta(hours=1)
    fill_at(tmp_path / "counted", EVENING, 3)
    points = int(dying_after(tmp_path / "counted", 1_000_000, now).stdout)
    rng = Random(None if PROVE else 4)
    chosen = range(1, points) if PROVE else sorted([*rng.sample(range(1, points), 3), *rng.sample(range(points // 2, points), 3)])
    root, first = tmp_path / "lake", 0
    for point in chosen:
        fill_at(root, EVENING - timedelta(days=2), 3, first)
        before = {topic: logged(root, topic) for topic in NORMALIZED_TOPICS}
        totals = {topic: Lake(root, identity).totals(topic) for topic in NORMALIZED_TOPICS}
        assert dying_after(root, point, now).returncode == -signal.SIGKILL
        assert {topic: logged(root, topic) for topic in NORMALIZED_TOPICS} == before, f"killed at point {point}"
        tidied(root, now)
        assert due(root, now) == []
        assert {topic: logged(root, topic) for topic in NORMALIZED_TOPICS} == before, f"killed at point {point}, then tidied"
        assert {topic: globbed(root, topic) for topic in NORMALIZED_TOPICS} == before, f"killed at point {point}, then tidied"
        assert {topic: Lake(root, identity).totals(topic) for topic in NORMALIZED_TOPICS} == totals
        first += 3


def test_old_files_that_one_could_not_delete_before_it_died_are_found_although_nothing_is_to_be_compacted(root: Path) -> None:
    (day,) = [one for one in (root / "ticks").glob("date=*") if one.name.endswith(str(FIRST))]
    old = {path: path.read_bytes() for path in day.iterdir()}
    quietly(root, FIRST)
    for path, content in old.items():
        path.write_bytes(content)  # as if it had been killed between its commit and this
    (root / "ticks" / lake_files.ASIDE).mkdir()
    assert globbed(root) != logged(root)
    now = EVENING + timedelta(minutes=1)
    assert due(root, now) == [Due(None, TICKS_TOPIC)]
    assert tidied(root, now) == []
    assert due(root, now) == []
    both(root)


def command(root: Path) -> list[str]:
    config = root.parent / "tapeline.toml"
    config.write_text(f'data_dir = "{root.parent}"\n[[providers]]\nname = "binance"\nsymbols = ["BTCUSDT"]\nchannels = ["trade"]\n')
    return [sys.executable, "-m", "tapeline", "lake", "tidy", "--config", str(config)]


def test_of_several_at_once_one_does_it_and_every_row_is_there_once(root: Path) -> None:
    before = both(root)
    running = [subprocess.Popen(command(root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate() for process in running]
    assert {process.returncode for process in running} <= {0, Busy.exit_status}, said
    lines = [line for out, _ in said for line in out.splitlines()]
    assert len([line for line in lines if line.startswith(f"{FIRST} ticks: ")]) == 1
    assert len([line for line in lines if line.startswith(f"{SECOND} ticks: ")]) == 1
    assert both(root) == before
    assert names(root, FIRST) == names(root, SECOND) == ["compacted"]


def test_while_another_changes_the_lake_it_ends_with_the_status_that_says_so(root: Path) -> None:
    with own(root / ".compacting", "tapeline lake check"):
        done = subprocess.run(command(root), capture_output=True, text=True, check=False)
    assert done.returncode == Busy.exit_status
    assert "tapeline lake check" in done.stderr


# Beside the store


def test_a_write_that_meets_a_merge_begins_anew_and_knows_its_duplicates(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(root, identity)
    position = lake.totals(TICKS_TOPIC).positions[0]
    held = [dict(row) for row in logged(root)]
    again = ticks(*({name: row[name] for name in TICKS_TOPIC.schema.names} for row in held))
    read, met = lake._read, list[str]()

    def meets_a_compact(topic: Any, name: str, columns: list[str]) -> Any:
        if not met:
            met.append(name)
            quietly(root, FIRST)
            quietly(root, SECOND)
        return read(topic, name, columns)

    monkeypatch.setattr(lake, "_read", meets_a_compact)
    written = lake.write(Chunk.dense(TICKS_TOPIC, 0, position, again))
    assert met
    assert (written.rows, written.duplicates) == (0, len(held))
    assert [dict(row) for row in logged(root)] == held


def test_a_write_looks_at_the_log_once_before_and_once_after_however_many_channels_it_has(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(root, identity)
    lake.totals(TICKS_TOPIC)
    looks: list[int] = []
    look = DeltaTable.update_incremental
    monkeypatch.setattr(DeltaTable, "update_incremental", lambda table: (looks.append(1), look(table))[1])
    rows = [{"sequence": 70_000 + at, "raw_offset": 70_000 + at, "channel": channel} for at, channel in enumerate(("trade", "bookTicker"))]
    rows.append({"provider": "alpaca", "feed": "sip", "channel": "trades", "trade_id": "9", "raw_offset": 70_009})
    assert lake.write(Chunk.dense(TICKS_TOPIC, 0, lake.totals(TICKS_TOPIC).positions[0], ticks(*rows))).rows == 3
    assert len(looks) == 3  # one of them is the test's own


def test_a_table_of_an_earlier_version_keeps_its_log_short_from_its_first_write_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(lake_files, "_LOG", {"delta.checkpointInterval": "20", "delta.logRetentionDuration": "interval 2 days"})
        fill(tmp_path / "lake", 1)
    fill(tmp_path / "lake", 2, 1)
    found = DeltaTable(str(tmp_path / "lake" / "ticks")).metadata()
    assert found.configuration == lake_files._LOG
    assert found.description == "Tapeline lake, format 1"
    log = tmp_path / "lake" / "ticks" / "_delta_log"
    for first in (100, 120):  # a checkpoint every twenty commits; what is older than one that is old itself goes with the next
        for number in range(first, first + 20):
            write(tmp_path / "lake", TICKS_TOPIC, ticks({"sequence": 10_000 + number, "raw_offset": 10_000 + number}))
        for path in log.iterdir():
            os.utime(path, (0, 0))
    assert not (log / f"{0:020}.json").exists()
    assert len(list(log.glob("*.json"))) < 30
    assert len(logged(tmp_path / "lake")) == 3 * 40 + 40


def test_a_reader_of_the_running_day_goes_on_in_the_merged_file_although_rows_have_come_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lake_due, "_FLUSHES", 6)
    quietly(root, FIRST)
    expected = LakeSource(root).ticks(EVERYTHING).read_all().to_pylist()
    source = LakeSource(root)
    reader = source.ticks(EVERYTHING)
    now = EVENING + timedelta(minutes=11)
    fill_at(root, now, 2, 6)
    tidied(root, now)
    assert reader.read_all().to_pylist() == expected
    assert len(source.now().ticks(EVERYTHING).read_all()) == len(expected) + 80


def test_a_reader_whose_file_was_merged_with_later_ones_is_told_to_ask_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_due, "_FLUSHES", 6)
    reader = LakeSource(root).ticks(EVERYTHING)
    fill_at(root, EVENING, 2, 6)
    tidied(root, EVENING + timedelta(minutes=11))
    with pytest.raises(DiskProblem, match="Try again"):
        reader.read_all()


def test_the_store_compacts_by_itself_what_is_over_says_so_and_ends_with_its_child(root: Path) -> None:
    before, home = both(root), root.parent
    arguments = [*command(root)[:3], "store", *command(root)[5:]]
    store = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        last = until(lambda: read_status(home).get("lake", {}).get("upkeep", {}).get("done"), "the days are compacted")
    finally:
        store.terminate()
    said = store.communicate()[1]
    assert store.returncode == 0, said
    assert f"lake: {FIRST} ticks: " in said
    assert "are now 1" in last
    assert names(root, FIRST) == names(root, SECOND) == ["compacted"]
    assert both(root) == before


def test_a_store_that_is_not_to_compact_does_not() -> None:
    assert lake_upkeep(Config(), StoreConfig(compact=False), None) is None
    assert lake_upkeep(Config(), StoreConfig("postgresql://u@h/d"), None) is None


def holder(root: Path) -> int | None:
    """Who changes the lake just now, by the lock's own words: to ask for the lock would keep others from it."""
    try:
        found = re.search(r"process (\d+)", (root / ".compacting").read_text())
    except FileNotFoundError:
        return None
    return int(found[1]) if found is not None and int(found[1]) != os.getpid() and lives(int(found[1])) else None


def test_a_store_and_its_child_that_are_killed_are_done_again_by_the_next(root: Path) -> None:
    before = both(root)
    arguments = [*command(root)[:3], "store", *command(root)[5:]]
    for _ in range(2):
        store = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        until(lambda: holder(root) or names(root, SECOND) == ["compacted"], "it compacts")
        child = holder(root)
        store.kill()
        if child is not None:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        store.wait()
    until(lambda: holder(root) is None, "the child is gone too")
    tidied(root, EVENING + timedelta(days=2))
    assert both(root) == before
    assert names(root, FIRST) == names(root, SECOND) == ["compacted"]


# What starts it


def test_upkeep_runs_one_at_a_time_and_after_trouble_waits_an_hour(tmp_path: Path) -> None:
    now, wanted = [0.0], [True]
    script = tmp_path / "script.py"
    script.write_text("print('all is well')")
    kept = Upkeep("lake", [sys.executable, str(script)], lambda: wanted[0], lambda: now[0])

    def ended() -> bool:
        kept.look()
        return not kept.running

    kept.look()
    assert kept.running
    assert kept.report()["since_ns"]
    until(ended, "it has ended")
    assert kept.report()["done"] == "all is well"
    script.write_text("raise SystemExit(74)")
    now[0] = 61.0
    kept.look()
    until(ended, "it has failed")
    assert "status 74" in kept.report()["failed"]
    now[0] = 3_600.0
    kept.look()
    assert not kept.running
    now[0] = 3_662.0
    script.write_text("import time; time.sleep(600)")
    kept.look()
    assert kept.running
    kept.stop()
    assert not kept.running


def test_the_status_page_says_in_a_line_what_came_of_it(tmp_path: Path) -> None:
    def line(**upkeep: Any) -> str:
        StatusFile(tmp_path, "lake").write({"upkeep": {"since_ns": None, **upkeep}})
        shown = io.StringIO()
        Console(width=200, file=shown, force_terminal=False).print(tables(snapshot(tmp_path, None, {})))
        found = [text for text in shown.getvalue().splitlines() if text.startswith("lake: ")]
        return "".join(found).strip()

    assert line() == ""
    assert line(since_ns=NOON) == "lake: being tidied since 2024-03-15 12:00:00 UTC"
    assert line(done="2024-03-14 ticks: 9 rows in 6 files", ended_ns=NOON) == (
        "lake: 2024-03-14 ticks: 9 rows in 6 files (2024-03-15 12:00:00 UTC)"
    )
    assert line(failed="it was killed by SIGKILL.", ended_ns=NOON) == (
        "lake: could not be tidied: it was killed by SIGKILL. (2024-03-15 12:00:00 UTC)"
    )


def test_trouble_with_finding_out_what_is_due_stops_nobody() -> None:
    def away() -> bool:
        raise DiskProblem("The disk is gone.")

    kept = Upkeep("lake", ["none"], away, lambda: 0.0)
    kept.look()
    assert not kept.running
    assert "The disk is gone." in kept.report()["failed"]
