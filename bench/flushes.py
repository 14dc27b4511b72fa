"""A day of small flushes into the lake: what a write costs as the day's files add up, and what a reader pays to open the lake."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from bench import history
from bench.machine import describe, resident_mib, scratch, table, write_reading_config
from tapeline.providers.registry import identity
from tapeline.records import NS_PER_S, TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake.compacting import merge
from tapeline.stores.lake.due import small

#: A flush every five seconds of one UTC day, as the store writes by default.
_FLUSHES: Final = 17_280
_FLUSH_NS: Final = 5 * NS_PER_S
_ROWS: Final = 1_000
#: After so many flushes it is looked at what they cost: the median and the slowest of the last ones.
_LOOKS: Final = (100, 1_000, 3_000, 10_000, _FLUSHES)
_LAST: Final = 100
#: After so many flushes their files are merged by a process of its own, as under `tapeline store`; young files stay.
_MERGED: Final = 720
_YOUNG: Final = 120
#: What the log keeps of itself, in flushes: an hour.
_LOGGED: Final = 720
_READERS: Final = 3
_READER: Final = """
import time
from pathlib import Path
import tapeline, duckdb, pyarrow
from tapeline import config as settings
from tapeline.reading import sql as query, api as reading
import tapeline.app.stores
config = settings.load(Path("{config}"), {{}})
began = time.perf_counter()
db = tapeline.connect(config=config)
rows = db.sql("SELECT count(*) FROM ticks").fetchall()[0][0]
opened = time.perf_counter()
db.sql("SELECT max(ts_ns) FROM ticks WHERE symbol = '{symbol}'").fetchall()
print(opened - began, time.perf_counter() - opened, rows)
"""


def run(looks: tuple[int, ...] = _LOOKS) -> str:
    """The section of the report."""
    with scratch() as folder:
        return _measured(folder, looks)


def _measured(folder: Path, looks: tuple[int, ...]) -> str:
    config = write_reading_config(folder)
    # A process of its own: what it holds of memory is the store's.
    command = [sys.executable, "-m", "bench.flushes", "write", str(folder), str(looks[-1])]
    rows: list[list[str]] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for look in looks:
            writer.stdin.write(f"{look}\n")
            writer.stdin.flush()
            report = json.loads(writer.stdout.readline())
            opened, queried = _read(config, look * _ROWS)
            numbers = [
                report["median_ms"],
                report["cpu_ms"],
                report["slowest_ms"],
                report["mib"],
                report["files"],
                report["log_entries"],
                opened,
                queried,
            ]
            rows.append([f"{look:,}", *(f"{number:,.0f}" for number in numbers)])
            print(rows[-1], file=sys.stderr, flush=True)
    columns = ["flushes", "ms a flush, median", "processor ms", "slowest", "store's MiB", "files", "log's files"]
    columns += ["open, ms", "a symbol's newest, ms"]
    return (
        f"One UTC day has a flush of {_ROWS:,} ticks of {len(history.SYMBOLS)} symbols every {_FLUSH_NS // NS_PER_S} s. The lake's writer"
        f" writes them one after the other. After each {_MERGED} flushes, another process merges their files. Each row shows the last"
        f" {_LAST} flushes: the median time, the median processor time, and the slowest. Then a new process opens the lake"
        " (`tapeline.connect` and a count of all rows) and asks for the newest time of a symbol: medians of"
        f" {_READERS}.\n\n" + table(columns, rows)
    )


def _write(folder: Path, flushes: int) -> None:
    """Write up to the number of flushes that stdin names, and say what the last ones took."""
    lake = Lake(folder / "lake", identity)
    market = history.Market(np.random.default_rng(7))
    log = folder / "lake" / "ticks" / "_delta_log"
    start_ns = history.midnight_ns(history.FIRST_DAY)
    done = 0
    times: list[float] = []
    worked: list[float] = []
    merging: subprocess.Popen[bytes] | None = None
    while done < flushes:
        until = int(sys.stdin.readline())
        while done < until:
            batch = _of_two(market.ticks(_ROWS, start_ns + done * _FLUSH_NS, _FLUSH_NS, done * _ROWS))
            began, busy = time.perf_counter(), time.process_time()
            written = lake.write(Chunk.dense(TICKS_TOPIC, 0, done * _ROWS, batch))
            times.append(time.perf_counter() - began)
            worked.append(time.process_time() - busy)
            assert written.rows == _ROWS, written
            done += 1
            _age(log, done - _LOGGED)
            if done >= _MERGED + _YOUNG and (done - _YOUNG) % _MERGED == 0:
                assert merging is None or merging.wait() == 0
                merging = subprocess.Popen([sys.executable, "-m", "bench.flushes", "merge", str(folder)])
        report = {
            "median_ms": statistics.median(times[-_LAST:]) * 1e3,
            "cpu_ms": statistics.median(worked[-_LAST:]) * 1e3,
            "slowest_ms": max(times[-_LAST:]) * 1e3,
            "mib": resident_mib("self"),
            "files": sum(1 for _ in log.parent.glob("date=*/*.parquet")),
            "log_entries": sum(1 for _ in log.iterdir()),
        }
        print(json.dumps(report), flush=True)


def _age(log: Path, version: int) -> None:
    """A flush takes less than five seconds here: an entry of the log that would be older than it may be is made so."""
    for name in (f"{version:020}.json", f"{version:020}.checkpoint.parquet"):
        if version >= 0 and (log / name).exists():
            os.utime(log / name, (time.time() - 2 * 3_600,) * 2)


def _merge(folder: Path) -> None:
    os.nice(10)
    ticks = lake_files.opened(folder / "lake" / "ticks")
    assert ticks is not None
    times = sorted(small(lake_files.files_of(ticks), time.time_ns())["modification_time"].to_pylist())
    done = merge(folder / "lake", TICKS_TOPIC, history.FIRST_DAY, times[-_YOUNG])
    print(f"merged {done.files_before} files into {done.files_after}", file=sys.stderr)


def _of_two(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Half of the ticks as those of a provider whose ids do not rise, so that the lake is asked for them."""
    other = np.arange(batch.num_rows) % 2 == 0
    trade = np.array(batch["kind"].to_pylist()) == "trade"
    for name, value, some in (("provider", "alpaca", other), ("feed", "sip", other), ("channel", "trades", other & trade)):
        column = pa.array(np.where(some, value, np.array(batch[name].to_pylist())))
        batch = batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), column)
    quotes = pa.array(np.where(other & ~trade, "quotes", np.array(batch["channel"].to_pylist())))
    return batch.set_column(batch.schema.get_field_index("channel"), batch.schema.field("channel"), quotes)


def _read(config: Path, rows: int) -> tuple[float, float]:
    """Milliseconds until a new process has counted all rows, and those of one answer more."""
    opened, queried = [], []
    for _ in range(_READERS):
        code = _READER.format(config=config, symbol=history.SYMBOLS[20])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        first, second, counted = done.stdout.split()
        assert int(counted) == rows, (counted, rows)
        opened.append(float(first) * 1e3)
        queried.append(float(second) * 1e3)
    return statistics.median(opened), statistics.median(queried)


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        _write(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["merge"]:
        _merge(Path(sys.argv[2]))
    else:
        print(describe(), run(tuple(map(int, sys.argv[1:])) or _LOOKS), sep="\n\n")
