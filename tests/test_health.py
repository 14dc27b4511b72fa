"""Who runs, by what a stage itself has said: also from another container, whose process ids mean nothing here."""

from __future__ import annotations

import json
import os
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tapeline.app.process_names import stage_names
from tapeline.config import Config, ProviderConfig, StoreConfig
from tapeline.local.machine import process_space
from tapeline.monitor.health import snapshot
from tapeline.monitor.terminal import line, tables
from tapeline.records import NS_PER_S
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry.status import StatusFile

NOW = 1_800_000_000 * NS_PER_S


def speak(root: Path, stage: str, **word: Any) -> None:
    (root / "status").mkdir(exist_ok=True)
    (root / "status" / f"{stage}.json").write_text(
        json.dumps({"stage": stage, "started_ns": NOW - 60 * NS_PER_S, "updated_ns": NOW, **word})
    )


def running(root: Path, stages: set[str] | None = None) -> dict[str, bool]:
    return {name: stage["running"] for name, stage in snapshot(root, None, {}, clock_ns=NOW, stages=stages)["stages"].items()}


@pytest.mark.parametrize(("silent_s", "runs"), [(0, True), (10, True), (20, False)])
@pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1], ids=["a number that is in use here", "one that is not"])
def test_a_stage_in_another_container_runs_while_it_speaks(silent_s: int, runs: bool, pid: int, tmp_path: Path) -> None:
    speak(tmp_path, "normalize", pid=pid, space="another start pid:[1]", updated_ns=NOW - silent_s * NS_PER_S)
    assert running(tmp_path) == {"normalize": runs}


def test_a_stage_of_this_machine_runs_while_its_process_does(tmp_path: Path) -> None:
    speak(tmp_path, "lake", pid=os.getpid(), space=process_space(), updated_ns=NOW - 60 * NS_PER_S)
    speak(tmp_path, "ledger", pid=2**22 + 1, space=process_space())
    assert running(tmp_path) == {"lake": True, "ledger": False}


def test_a_stage_that_the_configuration_has_no_more_is_shown_only_while_it_runs(tmp_path: Path) -> None:
    config = Config(
        providers=(ProviderConfig(name="binance", process="crypto"),),
        stores=(StoreConfig(),),
        ledger=False,
        normalize_workers=2,
    )
    known = stage_names(config)
    assert known == {"run", "repair", "schedule", "normalize", "normalize-2", "ingest-crypto", "lake"}
    for stage in (*known, "postgresql"):
        speak(tmp_path, stage, pid=2**22 + 1, space=process_space())
    speak(tmp_path, "ledger", pid=os.getpid(), space=process_space())
    assert running(tmp_path, known) == {**dict.fromkeys(sorted(known), False), "ledger": True}


def shown(root: Path) -> str:
    said = StringIO()
    Console(file=said, width=160).print(tables(snapshot(root, None, {}, clock_ns=NOW)))
    return said.getvalue()


def test_a_running_stage_that_has_not_spoken_for_long_is_shown_so(tmp_path: Path) -> None:
    own = {"pid": os.getpid(), "space": process_space()}
    speak(tmp_path, "lake", **own, updated_ns=NOW - 40 * NS_PER_S)
    speak(tmp_path, "ledger", **own, updated_ns=NOW - 12 * NS_PER_S)
    assert shown(tmp_path).count("silent for") == 1
    assert "lake        yes  60 s, silent for 40 s" in shown(tmp_path)


def test_a_status_that_cannot_be_written_is_said_once_and_once_more_when_it_can(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = [NOW]
    status = StatusFile(tmp_path, "lake", lambda: now[0])
    for blocked in (True, False, True):
        folder = tmp_path / "status"
        if blocked:
            shutil.rmtree(folder, ignore_errors=True)
            folder.write_text("no folder")
        else:
            folder.unlink()
        caplog.clear()
        for _ in range(30):
            now[0] += NS_PER_S
            status.maybe(dict)
        (said,) = [record.getMessage() for record in caplog.records]
        assert ("could not be written" in said and "Free disk space" in said) if blocked else "is written again" in said


def test_a_clock_that_leapt_or_is_not_the_provider_s_is_told(tmp_path: Path) -> None:
    line = {"provider": "binance", "connected": True, "connects": 1, "problem": ""}
    own = {"pid": os.getpid(), "space": process_space()}
    speak(tmp_path, "ingest", **own, lines={"binance-spot-0": line})
    pace = {"ticks_per_s": 1.0, "p50_ms": 1.0, "p99_ms": 2.0}
    speak(tmp_path, "normalize", **own, providers={"binance": {**pace, "clock_off_s": None}})
    assert "clock" not in shown(tmp_path)
    leap = {"before_ns": NOW, "after_ns": NOW + 7200 * NS_PER_S, "by_ns": 7200 * NS_PER_S}
    speak(tmp_path, "ingest", **own, lines={"binance-spot-0": line}, leaps=[leap])
    speak(tmp_path, "normalize", **own, providers={"binance": {**pace, "clock_off_s": 2.5}})
    speak(tmp_path, "normalize-2", **own, providers={"binance": {**pace, "clock_off_s": -3.25}})
    said = shown(tmp_path)
    assert "clock: at 2027-01-15 08:00:00 UTC the clock leapt ahead by 7,200.0 s (tapeline gaps)" in said
    assert "clock: binance's times are 3.2 s ahead of this machine's: synchronize the clock with NTP" in said


def test_partitions_that_another_run_reads_are_told_beside_the_rates_that_lack_them(tmp_path: Path) -> None:
    stream = EmbeddedStream(tmp_path / "stream", 4)
    own = {"pid": os.getpid(), "space": process_space(), "providers": {}}

    def told() -> tuple[str, str]:
        said, found = StringIO(), snapshot(tmp_path, stream, {}, clock_ns=NOW)
        Console(file=said, width=300).print(tables(found))
        return said.getvalue(), line(found)

    speak(tmp_path, "normalize", **own, partitions=[0, 2])
    table, text = told()
    assert "2 of 4 partitions are not read by this run: another run on the same stream reads them" in table
    assert "2 of 4 partitions not read here" in text
    speak(tmp_path, "normalize-2", **own, partitions=[1, 3])
    assert "partitions" not in "".join(told()).replace("by partition", "")
    for stage in ("normalize", "normalize-2"):  # of what no longer runs, nothing is said
        speak(tmp_path, stage, **{**own, "pid": 2**22 + 1}, partitions=[0])
    assert "partitions" not in "".join(told()).replace("by partition", "")
    stream.close()
