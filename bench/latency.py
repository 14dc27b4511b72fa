"""From a frame's receipt to its tick being readable by another process, and what a tick costs; alone and beside a busy program."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.machine import pipeline, simulator, table, write_config
from tapeline.records import TICKS_TOPIC
from tapeline.streams.embedded import EmbeddedStream

_RATE = 10_000
_SLOW = 1_000
_SECONDS = 30
_WARM_UP_S = 5
_ROUNDS = 3
_STAGES = ("ingest", "normalize", "lake", "ledger")
COLUMNS = ("ticks", "p50 ms", "p99 ms", "p99.9 ms")


@dataclass(frozen=True, slots=True)
class _Run:
    """What one run measured."""

    waited_ns: npt.NDArray[np.int64]
    cpu_us: dict[str, float]  # stage to its processor time a tick


def run() -> str:
    """The section of the report."""
    kinds = ((f"{_RATE:,}/s", _RATE, False), (f"{_RATE:,}/s, one core busy", _RATE, True), (f"{_SLOW:,}/s", _SLOW, False))
    runs: dict[str, list[_Run]] = {what: [] for what, _, _ in kinds}
    for _ in range(_ROUNDS):
        for what, rate, busy in kinds:
            runs[what].append(_once(rate, busy=busy))
    rows = [[f"{what}, run {at}", *cells(one.waited_ns)] for what, some in runs.items() for at, one in enumerate(some, 1)]
    return (
        "`tapeline simulate binance` sends, and all stages run, the lake included. A reader polls the normalized topic every 0.5 ms. The"
        " time of a tick begins with the receipt of its frame, and ends when the reader has the tick. Each measurement lasts"
        f" {_SECONDS} s, after {_WARM_UP_S} s of warm-up. Where one core is busy, a program that does nothing else keeps it so.\n\n"
        + table(["", *COLUMNS], rows)
        + "\n\nThe processor time (user and system) that each stage takes for a tick, in µs, median of the runs:\n\n"
        + table(["", *_STAGES, "all"], [[what, *_costs(some)] for what, some in runs.items()])
    )


def cells(waited_ns: npt.NDArray[np.int64]) -> list[object]:
    """What a row of a table says of the times of its ticks, under COLUMNS."""
    return [len(waited_ns), *(f"{ns / 1e6:.2f}" for ns in np.percentile(waited_ns, [50, 99, 99.9]))]


def _costs(runs: Sequence[_Run]) -> list[str]:
    by_stage = [statistics.median(one.cpu_us[stage] for one in runs) for stage in _STAGES]
    return [f"{cost:.1f}" for cost in (*by_stage, sum(by_stage))]


@contextmanager
def _busy_program() -> Iterator[None]:
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        program.kill()
        program.wait()


def _cpu_s(root: Path) -> dict[str, float]:
    """The processor time of each stage until its last report."""
    spent = dict.fromkeys(_STAGES, 0.0)
    for path in (root / "status").glob("*.json"):
        stage = path.stem.partition("-")[0]
        if stage in spent:
            metrics = json.loads(path.read_text())["metrics"]
            spent[stage] += next(value for name, _, value in metrics if name == "tapeline_cpu_seconds_total")
    return spent


def _once(rate: int, *, busy: bool) -> _Run:
    with tempfile.TemporaryDirectory() as folder, simulator("binance", "--rate", str(rate)) as (url, _):
        root = Path(folder)
        with pipeline(write_config(root, url)), _busy_program() if busy else nullcontext():
            stream = EmbeddedStream(root / "stream")
            while (chunk := stream.read(TICKS_TOPIC, {}, 1)) is None:
                time.sleep(0.05)
            positions = dict(chunk.next)
            delays: list[npt.NDArray[np.int64]] = []
            begin = time.monotonic() + _WARM_UP_S
            before: dict[str, float] = {}
            while time.monotonic() < begin + _SECONDS:
                chunk = stream.read(TICKS_TOPIC, positions, 32_768)
                if chunk is None:
                    time.sleep(0.0005)
                    continue
                positions |= chunk.next
                waited = time.time_ns() - chunk.batch["received_ns"].to_numpy()  # always: the first time pyarrow loads pandas
                if time.monotonic() >= begin:
                    before = before or _cpu_s(root)
                    delays.append(waited)
            stream.close()
            waited_ns, after = np.concatenate(delays), _cpu_s(root)
    return _Run(waited_ns, {stage: (after[stage] - before[stage]) / len(waited_ns) * 1e6 for stage in _STAGES})
