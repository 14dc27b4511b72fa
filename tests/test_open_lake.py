"""The lake is an open format: what others' libraries read of it, without Tapeline, is what was written."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from made import BAR, DAY, NOON, TRADE
from tapeline.providers import identity
from tapeline.records import BARS, BARS_TOPIC, TICKS, TICKS_TOPIC, Chunk, Topic
from tapeline.stores.lake import Lake

Row = dict[str, Any]

#: What is hard to carry over: a time of odd nanoseconds, an integer that is no float64, the smallest float, text beyond ASCII, nulls.
ODD: Row = {
    "ts_ns": NOON + 123_456_789,
    "sequence": (1 << 53) + 1,
    "last": 5e-324,
    "conditions": "币,1",
    "trade_id": None,
    "latency_ns": -7,
}
TRADES: list[Row] = [
    {**TRADE, **(ODD if at == 3 else {"ts_ns": NOON + at // 2 * DAY + at, "sequence": at + 1, "trade_id": str(at)}), "raw_offset": at}
    for at in range(6)
]
WINDOWS: list[Row] = [{**BAR, "ts_ns": NOON + at, "vwap": 1.5 if at else None, "trades": at or None, "raw_offset": at} for at in range(3)]
#: The columns that the lake adds to the records'.
DATES = {row["raw_offset"]: date(2024, 3, 15 + (row["ts_ns"] - NOON) // DAY) for row in TRADES}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("open") / "lake"
    store = Lake(root, identity)
    written: list[tuple[Topic, list[Row]]] = [(TICKS_TOPIC, TRADES[:2]), (TICKS_TOPIC, TRADES[2:]), (BARS_TOPIC, WINDOWS)]
    for topic, rows in written:
        first = store.totals(topic).positions.get(0, 0)
        assert store.write(Chunk.dense(topic, 0, first, pa.RecordBatch.from_pylist(rows, topic.schema))).rows == len(rows)
    return root


def same(found: pa.Table, schema: pa.Schema, rows: list[Row]) -> None:
    """Each column of the records, exactly; and those that the lake adds."""
    table = found.sort_by("raw_offset")
    assert pa.table([table[name].cast(schema.field(name).type) for name in schema.names], schema=schema).to_pylist() == rows
    assert table["ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_pylist() == [row["ts_ns"] // 1_000 for row in rows]
    if rows is TRADES:
        assert [str(value) for value in table["date"].to_pylist()] == [str(DATES[row["raw_offset"]]) for row in rows]


def test_duckdb_reads_the_files(lake: Path) -> None:
    with duckdb.connect() as db:
        for topic, rows in ((TICKS_TOPIC, TRADES), (BARS_TOPIC, WINDOWS)):
            found = db.sql(f"SELECT * FROM read_parquet('{lake}/{topic.table}/date=*/*.parquet', hive_partitioning = true)")
            same(found.to_arrow_table(), topic.schema, rows)
        day = f"SELECT raw_offset FROM read_parquet('{lake}/ticks/date=*/*.parquet', hive_partitioning = true) WHERE date = '2024-03-16'"
        assert sorted(db.sql(day).fetchall()) == [(row["raw_offset"],) for row in TRADES if DATES[row["raw_offset"]] == date(2024, 3, 16)]


def test_pandas_reads_the_folder(lake: Path) -> None:
    for topic, rows in ((TICKS_TOPIC, TRADES), (BARS_TOPIC, WINDOWS)):
        frame = pd.read_parquet(lake / topic.table, dtype_backend="pyarrow")
        same(pa.Table.from_pandas(frame), topic.schema, rows)
    some = pd.read_parquet(lake / "ticks", columns=["ts_ns", "last"], filters=[("symbol", "==", "BTC/USDT"), ("ts_ns", "<", NOON + 1)])
    assert some.to_dict("records") == [{"ts_ns": NOON, "last": 1.5}]


def test_polars_reads_the_table_and_the_files(lake: Path) -> None:
    for topic, rows in ((TICKS_TOPIC, TRADES), (BARS_TOPIC, WINDOWS)):
        files = pl.scan_parquet(lake / topic.table / "date=*" / "*.parquet", hive_partitioning=True)
        same(files.collect().to_arrow(), topic.schema, rows)
        same(pl.scan_delta(str(lake / topic.table)).collect().to_arrow(), topic.schema, rows)
    odd = pl.scan_delta(str(lake / "ticks")).filter(pl.col("ts_ns") == ODD["ts_ns"]).select("sequence", "last").collect()
    assert odd.rows() == [(ODD["sequence"], ODD["last"])]


def test_delta_and_arrow_read_the_table(lake: Path) -> None:
    for topic, rows in ((TICKS_TOPIC, TRADES), (BARS_TOPIC, WINDOWS)):
        table = DeltaTable(str(lake / topic.table))
        part = ds.partitioning(pa.schema([("date", pa.date32())]), flavor="hive")
        same(ds.dataset(table.file_uris(), partitioning=part).to_table(), topic.schema, rows)
    assert {schema.names[0] for schema in (TICKS, BARS)} == {"symbol"}
