"""An export is the rows as they were kept, to the nanosecond, in files that any program reads; all of it is there, or nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

import tapeline
from made import BAR, DAY, NOON, bars, ticks
from proving import PROVE, proof
from tapeline.cli import app
from tapeline.errors import Busy, ConfigError, DiskProblem
from tapeline.jobs import export as export_module
from tapeline.jobs.export import Form, export
from tapeline.local.locks import own
from tapeline.providers.registry import identity
from tapeline.records import BARS_TOPIC, TICKS, TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake

FORMS: tuple[Form, ...] = ("parquet", "csv", "arrow")
DAYS = [date(2024, 3, 15), date(2024, 3, 16), date(2024, 3, 18)]
SCHEMA = pa.schema([*TICKS, pa.field("ts", pa.timestamp("ns", "UTC"))])
MIDNIGHT = NOON // DAY * DAY
#: A last and a first nanosecond of a day, and one that no double holds.
TIMES = [NOON + 1, NOON + 123_456_789, MIDNIGHT + DAY - 1, MIDNIGHT + DAY, MIDNIGHT + DAY + 1, MIDNIGHT + 3 * DAY + 987_654_321]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A lake with trades and quotes of two symbols over three days, and bars."""
    root = tmp_path / "lake"
    rows: list[dict[str, Any]] = []
    for at, ts_ns in enumerate(TIMES):
        common = {"ts_ns": ts_ns, "received_ns": ts_ns + 7, "sequence": at + 1, "raw_offset": at}
        rows.append({**common, "last": 0.1 + at, "conditions": [None, "", 'a,"b"\n', "币"][at % 4]})
        rows.append({**common, "channel": "aggTrade", "last": 5e-324, "raw_index": 1})
        quote = {"kind": "quote", "channel": "bookTicker", "bid": 1e300, "ask": None, "last": None, "volume": None, "trade_id": None}
        rows.append({**common, **quote, "raw_index": 2})
        rows.append({**common, "symbol": "ETH/USDT", "raw_index": 3})
    lake = Lake(root, identity)
    lake.write(Chunk.dense(TICKS_TOPIC, 0, 0, ticks(*rows)))
    lake.write(
        Chunk.dense(BARS_TOPIC, 0, 0, bars(BAR, {**BAR, "ts_ns": NOON + DAY, "close": 2.5}, {**BAR, "close": 3.0, "received_ns": NOON + 9}))
    )
    path = tmp_path / "tapeline.toml"
    path.write_text(f'data_dir = "{tmp_path}"\n')
    return path


def asked(config: Path, to: Path, *words: str, symbol: str = "BTC/USDT") -> Result:
    start, end = ("--start", "2024-03-15"), ("--end", "2024-03-20")
    return CliRunner().invoke(app, ["export", symbol, *start, *end, "--to", str(to), *words, "--config", str(config)])


def kept(config: Path, **asked: Any) -> pa.Table:
    return tapeline.ticks("BTC/USDT", "2024-03-15", "2024-03-20", config=config, **asked).arrow()


def read_parquet(path: Path) -> pa.Table:
    return pq.read_table(path, partitioning=None)


def read_csv(path: Path) -> pa.Table:
    types = {field.name: field.type for field in SCHEMA} | {"interval": pa.string()}
    options = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False)
    return pa_csv.read_csv(path, parse_options=pa_csv.ParseOptions(newlines_in_values=True), convert_options=options)


def read_arrow(path: Path) -> pa.Table:
    return pa.ipc.open_file(path).read_all()


READERS: dict[Form, Callable[[Path], pa.Table]] = {"parquet": read_parquet, "csv": read_csv, "arrow": read_arrow}


def read(folder: Path, form: Form, name: str = "ticks") -> list[dict[str, Any]]:
    """Every row of an export, day by day."""
    found = [READERS[form](folder / f"date={day}" / f"{name}.{form}") for day in DAYS if (folder / f"date={day}").exists()]
    for table in found:
        assert table["ts"].type == pa.timestamp("ns", "UTC")
        assert table["ts"].cast(pa.int64()).equals(table["ts_ns"])
    return [row for table in found for row in table.drop_columns(["ts"]).to_pylist()]


@pytest.mark.parametrize("form", FORMS)
def test_each_format_holds_the_rows_as_they_were_kept_by_day(config: Path, tmp_path: Path, form: Form) -> None:
    done = asked(config, tmp_path / "out", "--as", form)
    assert done.exit_code == 0, done.output
    assert "18 rows in 3 files" in done.output
    rows = kept(config).drop_columns(["ts"]).to_pylist()
    assert len(rows) == 18
    assert read(tmp_path / "out", form) == rows
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()} == {
        f"date={day}/ticks.{form}" for day in DAYS
    }
    assert not list(tmp_path.glob(".*"))


def test_only_what_is_asked_for_is_written(config: Path, tmp_path: Path) -> None:
    for name, words in {
        "quotes": ("--kind", "quote"),
        "trades": ("--kind", "trade", "--provider", "binance"),
        "aggregated": ("--channel", "aggTrade"),
    }.items():
        assert asked(config, tmp_path / name, *words).exit_code == 0
    everything = kept(config).drop_columns(["ts"]).to_pylist()
    assert read(tmp_path / "quotes", "parquet") == [row for row in everything if row["kind"] == "quote"]
    assert read(tmp_path / "trades", "parquet") == [row for row in everything if row["kind"] == "trade"]
    assert read(tmp_path / "aggregated", "parquet") == [row for row in everything if row["channel"] == "aggTrade"]
    assert asked(config, tmp_path / "bars", "--kind", "bar", symbol="AAPL").exit_code == 0
    assert [row["close"] for row in read(tmp_path / "bars", "parquet", "bars")] == [3.0, 2.5]  # the last revision of each


def test_duckdb_reads_it_as_a_table_divided_by_date(config: Path, tmp_path: Path) -> None:
    asked(config, tmp_path / "out")
    with duckdb.connect() as db:
        found = db.sql(
            f"SELECT date, count(*) FROM read_parquet('{tmp_path}/out/**/*.parquet', hive_partitioning = true) GROUP BY ALL ORDER BY ALL"
        )
        assert found.fetchall() == [(DAYS[0], 9), (DAYS[1], 6), (DAYS[2], 3)]


def test_a_folder_that_holds_anything_is_refused_and_left_alone(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert asked(config, tmp_path / "empty").exit_code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for target in (tmp_path / "empty", tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        before = sorted(tmp_path.rglob("*"))
        done = asked(config, target)
        assert isinstance(done.exception, ConfigError)
        assert ("is a file" if target.is_file() else "is not empty") in str(done.exception)
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_csv_holds_no_formula(tmp_path: Path) -> None:
    rows = ticks(*[{"ts_ns": NOON + at, "conditions": text} for at, text in enumerate(("=1+1", "-5", "a"))])
    batch = pa.RecordBatch.from_arrays([*rows.columns, rows["ts_ns"].cast(pa.timestamp("ns", "UTC"))], schema=SCHEMA)
    export(SCHEMA, [batch], tmp_path / "out", "ticks", "csv", lambda *_: None)
    (file,) = (tmp_path / "out").rglob("*.csv")
    assert read_csv(file)["conditions"].to_pylist() == ["'=1+1", "-5", "a"]


def test_a_range_without_rows_is_an_empty_folder_and_says_so(config: Path, tmp_path: Path) -> None:
    done = asked(config, tmp_path / "out", "--channel", "updatedBars")
    assert done.exit_code == 0
    assert "0 rows in 0 files" in done.output
    assert list((tmp_path / "out").iterdir()) == []


def test_a_channel_that_no_provider_has_is_refused(config: Path, tmp_path: Path) -> None:
    done = asked(config, tmp_path / "out", "--channel", "trdae")
    assert isinstance(done.exception, ConfigError)
    assert "'trdae' is not a channel of any provider. Channels: A, AM," in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_changed_byte_is_not_exported_as_another_value(config: Path, tmp_path: Path) -> None:
    whole = kept(config)
    for path in sorted((tmp_path / "lake" / "ticks").rglob("*.parquet")):
        good = path.read_bytes()
        for at in range(4, len(good), max(1, len(good) // 20)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
            done = asked(config, tmp_path / "out")
            assert isinstance(done.exception, DiskProblem), at
            assert not (tmp_path / "out").exists()
        path.write_bytes(good)
    assert asked(config, tmp_path / "out").exit_code == 0
    assert kept(config).equals(whole)


def made_batches(count: int) -> Iterator[pa.RecordBatch]:
    for at in range(count):
        rows = ticks(*({"ts_ns": NOON + (at * 10 + row) * DAY // 40, "sequence": at * 10 + row} for row in range(10)))
        yield rows.append_column(SCHEMA.field("ts"), rows["ts_ns"].cast(pa.timestamp("ns", "UTC")))


@pytest.mark.parametrize("group", [1, 7, 1_000])
def test_however_the_rows_come_each_is_there_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(export_module, "_GROUP_ROWS", group)
    told: list[tuple[int, int]] = []
    done = export(SCHEMA, made_batches(20), tmp_path / "out", "ticks", "parquet", lambda *some: told.append(some))
    found = [read_parquet(path) for path in sorted((tmp_path / "out").rglob("*.parquet"))]
    assert [number for table in found for number in table["sequence"].to_pylist()] == list(range(200))
    assert (done.rows, done.files, done.bytes) == (
        200,
        len(found),
        sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.parquet")),
    )
    for path in (tmp_path / "out").rglob("*.parquet"):
        assert {str(day) for day in read_parquet(path)["ts"].cast(pa.date32()).to_pylist()} == {path.parent.name.removeprefix("date=")}
    assert told == sorted(told)
    assert told[-1][0] == 200


def test_a_reading_that_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield from made_batches(3)
        raise DiskProblem("the lake's disk died")

    with pytest.raises(DiskProblem, match="the lake's disk died"):
        export(SCHEMA, failing(), tmp_path / "out", "ticks", "csv", lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_two_exports_to_one_folder_at_once_are_refused(tmp_path: Path) -> None:
    with own(tmp_path / ".out.exporting" / "lock", "an export"), pytest.raises(Busy, match="an export, process"):
        export(SCHEMA, made_batches(1), tmp_path / "out", "ticks", "csv", lambda *_: None)


DYING = """
import os, signal, sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_export import SCHEMA, made_batches
from tapeline.jobs import export
left = int(sys.argv[2])
def passed(frame, event, argument):
    global left
    if frame.f_code.co_filename in (export.__file__, {pathlib!r}) and event in ("call", "return"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(passed)
export.export(SCHEMA, made_batches(8), Path(sys.argv[1]), "ticks", "parquet", lambda *_: None)
sys.setprofile(None)
print(int(sys.argv[2]) - left)
"""


@proof("lake")
def test_killed_at_any_point_it_has_left_nothing_under_the_name_or_all_of_it_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    import pathlib

    code = DYING.format(tests=str(Path(__file__).parent), pathlib=pathlib.__file__)

    def dying_after(points: int, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, str(folder), str(points)], capture_output=True, text=True, check=False)

    points = int(dying_after(1_000_000, tmp_path / "counted").stdout)
    expected = read_all(tmp_path / "counted")
    assert len(expected) == 80
    rng = Random(None if PROVE else 8)
    for point in range(1, points) if PROVE else [*rng.sample(range(1, points), 3), points - 5]:
        folder = tmp_path / f"out-{point}"
        assert dying_after(point, folder).returncode == -signal.SIGKILL
        assert not folder.exists() or read_all(folder) == expected, f"killed at point {point}"
        if not folder.exists():
            export(SCHEMA, made_batches(8), folder, "ticks", "parquet", lambda *_: None)
        assert read_all(folder) == expected, f"killed at point {point}"


def read_all(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.rglob("*.parquet")) for row in read_parquet(path).drop_columns(["ts"]).to_pylist()]
