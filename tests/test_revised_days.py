"""Reconcile compares a day again if the lake got rows of it after it was last compared."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from made import ticks
from set_clock import SetClock
from tapeline.app import tasks
from tapeline.app.history_jobs import Wanted
from tapeline.config import Config
from tapeline.orchestration.catalog import HistoryArguments
from tapeline.orchestration.database import SqliteDatabase
from tapeline.orchestration.runs import Claim, Runs
from tapeline.orchestration.work import WORK, Work
from tapeline.providers.registry import identity
from tapeline.records import NS_PER_S, TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake

HOUR_NS = 3_600 * NS_PER_S
OVER = date(2026, 1, 8)


def noon_ns(day: int) -> int:
    return int(datetime(2026, 1, day, 12, tzinfo=UTC).timestamp()) * NS_PER_S


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake", identity)


def stored(lake: Lake, day: int, received_ns: int, offset: int) -> None:
    """A trade of a day that was received at some time is in the lake."""
    rows = ticks({"ts_ns": noon_ns(day), "received_ns": received_ns, "sequence": offset, "trade_id": str(offset)})
    lake.write(Chunk.dense(TICKS_TOPIC, 0, offset, rows))


CLOCK = SetClock()


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(SqliteDatabase(tmp_path / "runs.sqlite", CLOCK))


def compared(runs: Runs, thing: str, at_ns: int, state: Any = "succeeded", job: str = "reconcile", revised: Sequence[str] = ()) -> None:
    CLOCK.ns = at_ns
    number = runs.claim(Claim(job=job, thing=thing, due_ns=at_ns, arguments={}, origin="schedule", process="p"))
    assert number is not None
    runs.end(number, state, exit_status=0, result={"revised": list(revised)})


def days(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> list[date]:
    """The days that a run of reconcile compares."""
    asked: list[date] = []

    def reconcile(config: Config, wanted: Wanted, span_ns: tuple[int, int], stop: threading.Event) -> Iterator[Any]:
        asked.append(datetime.fromtimestamp(span_ns[0] / NS_PER_S, UTC).date())
        yield from ()

    monkeypatch.setattr(tasks, "reconcile", reconcile)
    work = Work(Config(data_dir=str(tmp_path)), OVER, threading.Event(), lambda _: None, runs, "reconcile")
    done = WORK["reconcile"](work, HistoryArguments(**arguments))
    assert [done["day"], *done["revised"]] == [str(day) for day in asked]
    return asked


def test_a_day_that_got_rows_after_it_was_compared_is_compared_again(
    tmp_path: Path, lake: Lake, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for offset, day in enumerate((4, 5, 6, 7)):
        stored(lake, day, noon_ns(day), offset)
        if day != 4:  # a day that was never compared is for the catch-up, or for a person
            compared(runs, f"2026-01-0{day}", noon_ns(day) + 18 * HOUR_NS)
    assert days(tmp_path, runs, monkeypatch) == [OVER]
    stored(lake, 4, noon_ns(8), 10)
    stored(lake, 5, noon_ns(8), 11)
    stored(lake, 7, noon_ns(7) + 17 * HOUR_NS, 12)
    assert days(tmp_path, runs, monkeypatch) == [OVER, date(2026, 1, 5)]
    compared(runs, "2026-01-05", noon_ns(9), "failed")
    compared(runs, "2026-01-05", noon_ns(9) + 1, job="another")
    assert days(tmp_path, runs, monkeypatch) == [OVER, date(2026, 1, 5)]
    compared(runs, "2026-01-05 binance", noon_ns(9) + 2)
    assert days(tmp_path, runs, monkeypatch) == [OVER, date(2026, 1, 5)], "it has compared one provider alone"
    assert days(tmp_path, runs, monkeypatch, provider="binance") == [OVER]
    compared(runs, str(OVER), noon_ns(9) + 3, revised=["2026-01-05"])
    assert days(tmp_path, runs, monkeypatch) == [OVER], "the run of another day has compared it again"


def test_a_person_may_ask_for_one_day_alone_or_for_more_or_fewer_days(
    tmp_path: Path, lake: Lake, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared(runs, "2026-01-01", noon_ns(2))
    compared(runs, "2026-01-07", noon_ns(8))
    stored(lake, 1, noon_ns(9), 0)
    stored(lake, 7, noon_ns(9), 1)
    assert days(tmp_path, runs, monkeypatch, day=date(2026, 1, 3)) == [date(2026, 1, 3)]
    assert days(tmp_path, runs, monkeypatch, revised=0) == [OVER]
    assert days(tmp_path, runs, monkeypatch, revised=6) == [OVER, date(2026, 1, 7)]
    assert days(tmp_path, runs, monkeypatch, revised=30) == [OVER, date(2026, 1, 7), date(2026, 1, 1)]
