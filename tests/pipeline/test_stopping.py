"""How a run ends: by itself, when it is told to, when another is there already, and when a stage cannot go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from itertools import repeat
from typing import TYPE_CHECKING, Any

import pytest
from processes import block

from tapeline.app.supervisor import Stage, StageFailed, Supervisor
from tapeline.demo.verify import compare
from tapeline.errors import Refused, Unavailable
from tapeline.retry import loop
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import Home, SimulatorProcess

SYMBOLS = ["BTCUSDT", "ETHUSDT"]
CHANNELS = ["trade", "bookTicker", "kline_1s"]


def test_a_run_until_idle_ends_when_everything_has_come_even_through_an_ingest_that_died(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("binance", "--rate", "500", "--fault", "rewind:all")
    home.configure(block("binance", market.url, SYMBOLS, CHANNELS), flush_seconds=0.05)
    run = home.start("run", "--until-idle", "0.6")
    first = until(lambda: home.word("ingest").get("last_data_ns") and home.word("ingest")["pid"], "data flows")
    home.kill("ingest")
    until(lambda: home.word("ingest").get("pid") != first and home.word("ingest").get("last_data_ns"), "data flows again")
    market.halt()
    assert run.ends() == 0, run.said
    assert "ingest was killed by SIGKILL" in run.said
    assert sum(market.stop().values()) > 100
    found = compare(home.lake, [market.journal], once=True)
    assert (found.missing, found.extra, found.rejected) == ([], [], 0)


def test_signals_stop_a_run_with_everything_kept_that_had_arrived(home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    market = simulator("binance", "--rate", "1500", "--fault", "rewind:all")
    home.configure(block("binance", market.url, SYMBOLS, CHANNELS), flush_seconds=30.0)
    for number in (signal.SIGTERM, signal.SIGINT):
        run = home.start("run")
        until(lambda pid=run.popen.pid: home.word("run").get("pid") == pid and home.pid("ingest"), "no ingest")  # type: ignore[misc]
        until(lambda: home.word("ingest").get("pid") == home.pid("ingest") and home.word("ingest")["records"] > 500, "no data")
        if number is signal.SIGTERM:
            second = home.start("run")
            assert second.ends() == 75
            assert f"tapeline run, process {run.popen.pid}" in second.said
            assert run.running
        run.send(number)
        assert run.ends() == 0, run.said
        assert "Traceback" not in run.said

        status = home.status()
        assert not any(entry["records"] for entry in status["backlog"])
        assert not any(stage["running"] for stage in status["stages"].values())
        assert all(entry["balanced"] for entry in status["equations"])
    market.stop()
    found = compare(home.lake, [market.journal], once=True)
    assert not found.extra
    # What is missing was still on its way when the socket was closed: the end of each stream, and no hole in the middle.
    for symbol, channel, last in home.rows("SELECT replace(symbol, '/', ''), channel, max(sequence) FROM ticks GROUP BY ALL"):
        missing = [row for row in found.missing if (row["symbol"], row["channel"]) == (symbol, channel)]
        assert all(int(row["id"]) > last for row in missing)


def _stage(script: str, *arguments: str) -> Stage:
    return Stage("some", [sys.executable, "-c", script, *arguments], place=0)


def _supervise(stage: Stage, ends: Callable[[], bool] = lambda: False) -> None:
    """Supervise one stage, without waits, until `ends`."""
    Supervisor([stage], lambda: repeat(0.0), lambda _: None, os.environ).run(threading.Event(), ends, lambda _: None)


def test_a_stage_that_dies_is_started_again(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    stage = _stage("import sys, os; f = open(sys.argv[1], 'a'); f.write('x'); f.close(); os.kill(os.getpid(), 9)", str(marks))
    _supervise(stage, lambda: marks.exists() and len(marks.read_text()) >= 3)
    assert stage.restarts >= 2


@pytest.mark.parametrize(("script", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 70)])
def test_a_stage_that_always_dies_is_given_up_with_its_status(script: str, status: int) -> None:
    with pytest.raises(StageFailed, match=r"9 times in a row\. Tapeline gives up") as failure:
        _supervise(_stage(script))
    assert failure.value.status == status


@pytest.mark.parametrize("status", [65, 75, 77, 78])
def test_a_stage_that_only_a_person_can_help_is_not_started_again(status: int) -> None:
    stage = _stage(f"raise SystemExit({status})")
    with pytest.raises(StageFailed) as failure:
        _supervise(stage)
    assert (failure.value.status, stage.restarts) == (status, 0)


def test_looking_on_in_vain_does_not_stop_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    from tapeline.app import supervisor
    from tapeline.errors import DiskProblem

    monkeypatch.setattr(supervisor, "_LOOK_AGAIN_S", 0.0)
    answers: list[Any] = [DiskProblem("the lake cannot be read"), Refused("the password is another one"), False, True]

    def idle() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    stage = _stage("import time; time.sleep(60)")
    _supervise(stage, idle)
    assert (answers, stage.restarts) == ([], 0)


_ENDS_SLOWLY = """
import signal, sys, time
journal, name, seconds, status = sys.argv[1:]
def say(what):
    with open(journal, "a") as file:
        file.write(f"{name} {what}\\n")
def end(*_):
    say("told")
    time.sleep(float(seconds))
    say("ends")
    sys.exit(int(status))
signal.signal(signal.SIGTERM, end)
say("runs")
time.sleep(60)
"""


def _order_of_ends(journal: Path, *stages: tuple[str, int, float, int]) -> list[str]:
    """Run stages of these names, places, times to end and statuses, stop them, and say in which order they were told to end, and did."""
    made = [
        Stage(name, [sys.executable, "-c", _ENDS_SLOWLY, str(journal), name, str(seconds), str(status)], place)
        for name, place, seconds, status in stages
    ]
    Supervisor(made, lambda: repeat(0.0), lambda _: None, os.environ).run(
        threading.Event(), lambda: journal.exists() and journal.read_text().count("runs") == len(stages), lambda _: None
    )
    return [line for line in journal.read_text().splitlines() if not line.endswith("runs")]


def test_stages_of_one_place_end_together_and_those_behind_them_after_all_of_them(tmp_path: Path) -> None:
    order = _order_of_ends(tmp_path / "journal", ("a", 0, 0.0, 0), ("b", 1, 1.0, 0), ("c", 1, 0.5, 0), ("d", 2, 0.0, 0))
    assert order[:2] == ["a told", "a ends"]
    assert sorted(order[2:4]) == ["b told", "c told"]
    assert order[4:] == ["c ends", "b ends", "d told", "d ends"]


@pytest.mark.parametrize("status", [69, 74, 77])
def test_where_a_stage_could_not_finish_none_of_those_behind_it_waits_for_another(status: int, tmp_path: Path) -> None:
    order = _order_of_ends(tmp_path / "journal", ("a", 0, 0.0, status), ("b", 1, 1.0, 0), ("c", 2, 0.5, 0), ("d", 3, 0.2, 0))
    assert order[:2] == ["a told", "a ends"]
    assert sorted(order[2:5]) == ["b told", "c told", "d told"]
    assert order[5:] == ["d ends", "c ends", "b ends"]


class _Steps:
    """A stage's step, with what each of its calls does: an error to raise, or whether it has worked."""

    def __init__(self, *does: Exception | bool) -> None:
        self.does = list(does)

    def __call__(self) -> bool:
        does = self.does.pop(0)
        if isinstance(does, Exception):
            raise does
        return does


def test_a_refusal_ends_a_stage_that_has_never_worked_and_is_waited_out_by_one_that_has() -> None:
    no, away = Refused("The password is another one."), Unavailable("Nobody is there.")
    never = _Steps(away, no, True)
    with pytest.raises(Refused):
        loop.run(never, threading.Event(), rest_s=0.0, waits=lambda: repeat(0.0))
    stop = threading.Event()
    has = _Steps(False, *[no] * 5, away, no, True, False)
    hours = iter(range(100))

    def step() -> bool:
        if not has.does:
            stop.set()
            return False
        return has()

    loop.run(step, stop, rest_s=0.0, waits=lambda: repeat(0.0), clock=lambda: 3_600.0 * next(hours), drain_s=1e9)
    assert has.does == []


def test_while_a_look_at_the_stream_has_no_answer_the_dead_are_started_again_and_a_stop_is_heard(tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    script = "import sys, time; open(sys.argv[1], 'a').write('x'); time.sleep(60 if len(open(sys.argv[1]).read()) > 2 else 0)"
    stage = Stage("ingest", [sys.executable, "-c", script, str(lives)], place=0)
    stop, answered = threading.Event(), threading.Event()

    def asks() -> bool:
        return answered.wait(120.0)

    def stopped_in_its_third_life() -> None:
        until(lambda: lives.exists() and len(lives.read_text()) == 3, "it is started again twice")
        stop.set()
        until(lambda: stage.process is None or stage.process.poll() is not None, "it is ended")
        answered.set()

    other = threading.Thread(target=stopped_in_its_third_life)
    other.start()
    Supervisor([stage], lambda: repeat(0.0), lambda _: None, os.environ).run(stop, asks, lambda _: None)
    other.join()
    assert (stage.restarts, lives.read_text(), answered.is_set()) == (2, "xxx", True)
