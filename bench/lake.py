"""A lake of many gigabytes, read as people read it, beside DuckDB on the same rows laid out by hand as well as one can."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

import duckdb

from bench import history
from bench.machine import describe, scratch, table, write_reading_config

_ROWS: Final = 105_000_000
_DAYS: Final = 5
_ROUNDS: Final = 9
_DAY: Final = history.days(_DAYS)[2]
_NOON: Final = f"{_DAY}T12:00:00Z"
_ONE: Final = f"{_DAY}T13:00:00Z"
_NEXT: Final = _DAY + timedelta(days=1)
#: Neither one of the busiest symbols nor a quiet one.
_SYMBOL: Final = history.SYMBOLS[20]
_BARS: Final = (
    "SELECT time_bucket(INTERVAL 1 MINUTE, ts) AS minute, arg_min(last, ts_ns), max(last), min(last), arg_max(last, ts_ns), sum(volume)"
    f" FROM {{ticks}} WHERE symbol = '{_SYMBOL}' AND date = '{_DAY}' AND kind = 'trade' GROUP BY minute ORDER BY minute"
)
_COUNT: Final = f"SELECT symbol, count(*) FROM {{ticks}} WHERE date = '{_DAY}' GROUP BY symbol ORDER BY symbol"

#: What is asked of a new process, and what is asked again of what it has opened.
_OPENED: Final = "lake = tapeline.open_source('lake', config=config); "
_CONNECTED: Final = "db = tapeline.connect(config=config); "
_AGAIN: Final = {
    "open": "db.sql('SELECT symbol FROM ticks LIMIT 0').fetchall()",
    "last price of a symbol": f"tapeline.latest({_SYMBOL!r}, source=lake).arrow()",
    "an hour of a symbol's ticks": f"tapeline.ticks({_SYMBOL!r}, {_NOON!r}, {_ONE!r}, source=lake).arrow()",
    "a day of a symbol to 1 minute bars": f"db.sql({_BARS.format(ticks='ticks')!r}).to_arrow_table()",
    "ticks by symbol, one day": f"db.sql({_COUNT.format(ticks='ticks')!r}).to_arrow_table()",
}
_LAST: Final = "SELECT * FROM {{one}} WHERE kind = '{kind}' AND symbol = '{symbol}' ORDER BY ts_ns DESC LIMIT 1"
_HOUR: Final = f"SELECT * FROM {{one}} WHERE symbol = '{_SYMBOL}' AND ts >= '{_NOON}' AND ts < '{_ONE}' ORDER BY ts_ns"


def _theirs(layout: str) -> dict[str, str]:
    """The same by hand: only the files that hold the answer are named."""
    by_symbol = layout == "by day and symbol"
    one_symbol = f"symbol={_SYMBOL.replace('/', '%2F')}/" if by_symbol else ""
    each_symbol = "*/" if by_symbol else ""

    def files(days: str, symbols: str) -> str:
        return f"read_parquet('{{hand}}/{days}/{symbols}*.parquet', hive_partitioning=true)"

    everything, that_day = files("*", each_symbol), files(f"date={_DAY}", each_symbol)
    one, newest = files(f"date={_DAY}", one_symbol), files(f"date={history.days(_DAYS)[-1]}", one_symbol)
    last = [_LAST.format(kind=kind, symbol=_SYMBOL).format(one=newest) for kind in ("trade", "quote")]
    return {
        "open": f"duckdb.sql(\"CREATE VIEW ticks AS FROM {everything}\"); duckdb.sql('SELECT symbol FROM ticks LIMIT 0').fetchall()",
        "last price of a symbol": "; ".join(f'duckdb.sql("{text}").to_arrow_table()' for text in last),
        "an hour of a symbol's ticks": f'duckdb.sql("{_HOUR.format(one=one)}").to_arrow_table()',
        "a day of a symbol to 1 minute bars": f'duckdb.sql("{_BARS.format(ticks=one)}").to_arrow_table()',
        "ticks by symbol, one day": f'duckdb.sql("{_COUNT.format(ticks=that_day)}").to_arrow_table()',
    }


_OUR_PROCESS: Final = """
import time
from pathlib import Path
import tapeline, pyarrow, duckdb
from tapeline.reading import api as reading, sql as query
import tapeline.app.stores
from tapeline import config as settings
from tapeline.stores.lake import reading as lake_reading
config = settings.load(Path("{config}"), {{}})
ready = time.perf_counter()
{what}
opened = time.perf_counter()
{again}
print(opened - ready, time.perf_counter() - opened)
"""
_THEIR_PROCESS: Final = """
import time
import pyarrow, duckdb
ready = time.perf_counter()
{what}
opened = time.perf_counter()
{again}
print(opened - ready, time.perf_counter() - opened)
"""


def run(folder: Path | None = None) -> str:
    """The section of the report; `folder` keeps what is built for another time."""
    if folder is not None:
        return _measured(folder)
    with scratch() as new:
        return _measured(new)


def _measured(folder: Path) -> str:
    built = _build(folder)
    config = write_reading_config(folder)
    rows: list[list[str]] = []
    again: list[list[str]] = []
    for name, query in _AGAIN.items():
        opening = _OPENED if "source=lake" in query else _CONNECTED
        programs = {"Tapeline": _OUR_PROCESS.format(config=config, what=opening + query, again=query)}
        for layout in ("by day", "by day and symbol"):
            theirs = _theirs(layout)[name].format(hand=folder / layout.replace(" ", "-"))
            programs[layout] = _THEIR_PROCESS.format(what=theirs, again=theirs.rpartition("; ")[2] if name == "open" else theirs)
        timings: dict[str, list[tuple[float, float]]] = {program: [] for program in programs}
        for _ in range(_ROUNDS + 1):
            for program, code in programs.items():
                timings[program].append(_timed(code))
        for at, lines in enumerate((rows, again)):
            ms = {program: statistics.median(times[at] for times in runs[1:]) * 1e3 for program, runs in timings.items()}
            best = min(ms["by day"], ms["by day and symbol"])
            lines.append([name, *(f"{value:.1f}" for value in ms.values()), f"{ms['Tapeline'] / best:.2f}"])
    columns = ["ms, median", "Tapeline", "DuckDB, by day", "DuckDB, by day and symbol", "Tapeline / the faster DuckDB"]
    return f"{built}{table(columns, rows)}\n\nThe second answer of the same process takes:\n\n{table(columns, again)}"


def _build(folder: Path) -> str:
    note = folder / "built.json"
    if not note.exists():
        began = time.monotonic()
        if not (folder / "lake" / "ticks").exists():
            history.build(folder / "lake", _ROWS, _DAYS)
        seconds = time.monotonic() - began
        for layout, columns in (("by day", "date"), ("by day and symbol", "date, symbol")):
            _by_hand(folder, folder / layout.replace(" ", "-"), columns)
        files = list((folder / "lake" / "ticks").rglob("*.parquet"))
        with duckdb.connect() as db:
            ((rows,),) = db.sql("SELECT count(*) FROM read_parquet($files)", params={"files": [str(path) for path in files]}).fetchall()
        note.write_text(
            json.dumps({"rows": rows, "files": len(files), "bytes": sum(path.stat().st_size for path in files), "seconds": seconds})
        )
    facts = json.loads(note.read_text())
    return (
        f"The lake has {facts['rows']:,} ticks of {len(history.SYMBOLS)} symbols over {_DAYS} days, in {facts['files']} Parquet files of"
        f" {facts['bytes'] / 1e9:.1f} GB together. The lake's own writer wrote them, and they are compacted. Each figure is the median of"
        f" {_ROUNDS} new processes, and the three ways take turns. The time begins after the imports, and the files are in the system's"
        " cache.\n\n"
        "DuckDB reads the same rows from files that were laid out by hand, sorted by symbol and time. *By day* has a folder for each day."
        " *By day and symbol* has a folder for each day and symbol. The queries name only the files that hold the answer.\n\n"
    )


def _by_hand(folder: Path, target: Path, columns: str) -> None:
    with duckdb.connect(config={"temp_directory": str(folder / "spilled"), "memory_limit": "4GB"}) as db:
        for day in history.days(_DAYS):
            source = f"read_parquet('{folder}/lake/ticks/date={day}/*.parquet', hive_partitioning = true)"
            ordered = f"SELECT * FROM {source} ORDER BY symbol, ts_ns"
            if columns == "date":
                (target / f"date={day}").mkdir(parents=True)
                db.execute(f"COPY ({ordered}) TO '{target}/date={day}/ticks.parquet' (FORMAT parquet, COMPRESSION zstd)")
            else:
                db.execute(f"COPY ({ordered}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY ({columns}), APPEND)")


def _timed(code: str) -> tuple[float, float]:
    """Seconds that the first and the second answer took."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{code}\n{done.stderr}")
    first, second = map(float, done.stdout.split())
    return first, second


if __name__ == "__main__":
    chosen: Sequence[str] = sys.argv[1:]
    print(describe(), run(Path(chosen[0]) if chosen else None), sep="\n\n")
