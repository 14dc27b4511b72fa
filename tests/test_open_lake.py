"""The lake is an open format: what others' libraries read of it, without Tapeline, is what was written."""

from __future__ import annotations

import json
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pytest
from deltalake import DeltaTable

from environments import python_of
from made import BAR, DAY, NOON, TRADE
from proving import proof
from tapeline.providers.registry import identity
from tapeline.records import BARS, BARS_TOPIC, TICKS, TICKS_TOPIC, Chunk, Topic
from tapeline.stores.lake import Lake
from tapeline.stores.lake.compacting import compact

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


@pytest.fixture(scope="module", params=["as written", "with a compacted day"])
def lake(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    root = tmp_path_factory.mktemp("open") / "lake"
    store = Lake(root, identity)
    written: list[tuple[Topic, list[Row]]] = [(TICKS_TOPIC, TRADES[:2]), (TICKS_TOPIC, TRADES[2:]), (BARS_TOPIC, WINDOWS)]
    for topic, rows in written:
        first = store.totals(topic).positions.get(0, 0)
        assert store.write(Chunk.dense(topic, 0, first, pa.RecordBatch.from_pylist(rows, topic.schema))).rows == len(rows)
    if request.param == "with a compacted day":
        compact(root, date(2024, 3, 15), lambda *_: None)
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


# On a store of objects, and in Spark: each in an environment of its own

READERS = Path(__file__).parent / "readers"


@pytest.mark.timeout(600)  # the first run fetches the server
def test_a_copy_of_the_lake_on_s3_is_read_where_it_lies(lake: Path, s3_url: str) -> None:
    remote = fs.S3FileSystem(
        access_key="k", secret_key="s", region="us-east-1", endpoint_override=s3_url, allow_bucket_creation=True, request_timeout=30
    )
    remote.create_dir("market")
    fs.copy_files(str(lake), "market/lake", destination_filesystem=remote)
    options = {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_url,
        "AWS_ALLOW_HTTP": "true",
    }
    for topic, rows in ((TICKS_TOPIC, TRADES), (BARS_TOPIC, WINDOWS)):
        place = f"s3://market/lake/{topic.table}"
        same(pl.scan_delta(place, storage_options=options).collect().to_arrow(), topic.schema, rows)
        files = [uri.removeprefix("s3://") for uri in DeltaTable(place, storage_options=options).file_uris()]
        part = ds.partitioning(pa.schema([("date", pa.date32())]), flavor="hive")
        same(ds.dataset(files, filesystem=remote, partitioning=part).to_table(), topic.schema, rows)


@proof("readers", quick=False)  # it is half a gigabyte
@pytest.mark.timeout(900)
def test_spark_reads_the_folder(lake: Path) -> None:
    for topic, rows in ((TICKS_TOPIC, TRADES), (BARS_TOPIC, WINDOWS)):
        command = [python_of(READERS / "spark"), str(READERS / "spark" / "read.py"), str(lake / topic.table)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
        found = [json.loads(line) for line in shown.splitlines()]
        assert [{name: row[name] for name in topic.schema.names} for row in found] == rows
        assert [row["ts_us"] for row in found] == [row["ts_ns"] // 1_000 for row in rows]
        if rows is TRADES:
            assert [row["date"] for row in found] == [str(DATES[row["raw_offset"]]) for row in rows]
