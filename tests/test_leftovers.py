"""What backfills leave on disk does not add up: it goes once nobody can need it, and never before."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from tapeline.errors import Busy
from tapeline.jobs.backfill.leftovers import BEGUN_S, DONE_S, FILES_S, lock_of, log_of, remove_old_files, remove_old_logs
from tapeline.jobs.backfill.page_log import Sent
from tapeline.local.locks import own
from tapeline.providers.history import Span

DAY_S = 86_400.0


def log(root: Path, job: str, age_s: float, *, done: bool = True, unsettled: bool = False) -> Path:
    """A backfill's log that was last written to so long ago."""
    made = log_of(root, job)
    made.open([Span("spot", "trade", "BTC/USDT", 0, 1)])
    if done or unsettled:
        made.note("some", 1, Sent(1, made.spans()[0].number, None, 1, 1))
    if done:
        made.settle(1)
    made.close()
    with own(lock_of(root, job), "a backfill"):
        pass
    os.utime(made.path, (time.time() - age_s,) * 2)
    return made.path


def test_a_backfill_is_forgotten_a_month_after_it_was_done_with_its_lock_and_one_that_was_not_is_kept_for_a_year(tmp_path: Path) -> None:
    log(tmp_path, "old", DONE_S + DAY_S)
    young = log(tmp_path, "young", DONE_S - DAY_S)
    begun = log(tmp_path, "begun", DONE_S + DAY_S, done=False)
    unsettled = log(tmp_path, "unsettled", DONE_S + DAY_S, done=False, unsettled=True)
    log(tmp_path, "given-up", BEGUN_S + DAY_S, done=False)
    assert remove_old_logs(tmp_path, time.time(), 72 * 3_600.0) == ["given-up", "old"]
    assert {path for path in (tmp_path / "backfill").iterdir() if path.suffix == ".sqlite"} == {young, begun, unsettled}
    assert not lock_of(tmp_path, "old").exists()
    assert lock_of(tmp_path, "young").exists()
    assert remove_old_logs(tmp_path, time.time(), 72 * 3_600.0) == []


def test_nothing_is_forgotten_while_the_stream_may_hold_its_pages(tmp_path: Path) -> None:
    log(tmp_path, "done", DONE_S + DAY_S)
    log(tmp_path, "begun", BEGUN_S + DAY_S, done=False)
    assert remove_old_logs(tmp_path, time.time(), 1e9) == []
    assert remove_old_logs(tmp_path, time.time(), BEGUN_S) == ["begun"]


def test_what_runs_and_what_cannot_be_read_stays(tmp_path: Path) -> None:
    running = log(tmp_path, "running", DONE_S + DAY_S)
    with own(lock_of(tmp_path, "running"), "this tapeline backfill"):
        assert remove_old_logs(tmp_path, time.time(), 0.0) == []
    with own(lock_of(tmp_path, "files"), "a tapeline backfill from files"):
        assert remove_old_logs(tmp_path, time.time(), 0.0) == []
    assert running.exists()
    other = tmp_path / "backfill" / "other.sqlite"
    other.write_bytes(b"no database")
    os.utime(other, (time.time() - DONE_S - DAY_S,) * 2)
    assert remove_old_logs(tmp_path, time.time(), 0.0) == ["running"]
    assert other.read_bytes() == b"no database"


def test_rows_of_files_that_nobody_reads_on_go_after_a_month(tmp_path: Path) -> None:
    old, young = tmp_path / "polygon" / "2024" / "old.csv", tmp_path / "polygon" / "2025" / "young.csv"
    for path, age_s in ((old, FILES_S + DAY_S), (young, FILES_S - DAY_S)):
        path.parent.mkdir(parents=True)
        path.write_text("x")
        os.utime(path, (time.time() - age_s,) * 2)
    remove_old_files(tmp_path, time.time())
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "polygon", young.parent, young]
    remove_old_files(tmp_path / "none", time.time())


def test_a_lock_that_its_holder_removes_is_held_by_one_at_a_time_all_the_same(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "locks" / "some", list[int](), list[int]()

    def hold() -> None:
        for _ in range(60):
            try:
                with own(path, "a test", 5.0):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.0005)
                    inside.pop()
                    path.unlink()  # the last that a holder does: whoever comes then has the lock
            except Busy:
                continue

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) > 60
