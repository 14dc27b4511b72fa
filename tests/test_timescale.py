"""With TimescaleDB the same store keeps the same rows, in hypertables that are compressed, and sums trades up by itself."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from adbc_driver_postgresql import dbapi  # type: ignore[import-untyped]  # it carries no types
from services import postgres

from made import DAY, NOON, bars, ticks
from tapeline.providers.registry import identity
from tapeline.records import BARS_TOPIC, NS_PER_S, TICKS, TICKS_TOPIC, Chunk, Topic
from tapeline.secret import NO_SECRET
from tapeline.stores import Written
from tapeline.stores.postgres import Postgres
from tapeline.stores.postgres.database import Database
from tapeline.stores.postgres.renaming import PostgresRenaming
from tapeline.stores.renaming import Renaming

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.postgres import PostgresServer


@pytest.fixture
def url(own_postgres: Callable[..., PostgresServer]) -> str:
    """The address of a database that has the extension."""
    if not postgres.has_extension("timescaledb"):
        pytest.skip("timescaledb cannot be had here: the extension is not installed beside PostgreSQL")
    server = own_postgres(settings={"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"})
    server.ask("CREATE EXTENSION timescaledb")
    return server.url


def run(url: str, *statements: str) -> list[dict[str, Any]]:
    with closing(dbapi.connect(url, autocommit=True)) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        found: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
    return found


def write(store: Postgres, topic: Topic, batch: pa.RecordBatch) -> Written:
    return store.write(Chunk.dense(topic, 0, store.totals(topic).positions.get(0, 0), batch))


def test_the_tables_are_hypertables_and_keep_what_was_written(url: str) -> None:
    batch = ticks(*[{"sequence": n, "raw_offset": n, "ts_ns": NOON + n * DAY // 2 + 1} for n in range(5)])
    with closing(Postgres(url, NO_SECRET, identity)) as store:
        assert write(store, TICKS_TOPIC, batch) == Written(5, 0)
        assert write(store, TICKS_TOPIC, batch) == Written(0, 5)
    tables = run(url, "SELECT hypertable_name AS name, num_chunks AS chunks FROM timescaledb_information.hypertables ORDER BY 1")
    assert {row["name"] for row in tables} >= {"ticks", "bars", "bar_revisions", "notices", "rejected"}
    assert next(row["chunks"] for row in tables if row["name"] == "ticks") == 3
    names = ", ".join(f'"{name}"' for name in TICKS.names)
    assert run(url, f"SELECT {names} FROM ticks ORDER BY raw_offset") == batch.to_pylist()


def test_a_copy_that_comes_after_its_day_was_compressed_is_known_and_what_is_new_is_kept(url: str) -> None:
    """`ON CONFLICT DO NOTHING` has lost rows on compressed chunks; there is none."""
    with closing(Postgres(url, NO_SECRET, identity)) as store:
        write(store, TICKS_TOPIC, ticks(*[{"sequence": n, "raw_offset": n, "ts_ns": NOON + n} for n in range(100)]))
        run(url, "SELECT compress_chunk(c)::text FROM show_chunks('ticks') c")
    late = ticks(*[{"sequence": n, "raw_offset": 200 + n, "ts_ns": NOON + n} for n in range(50, 150)])
    with closing(Postgres(url, NO_SECRET, identity)) as store:
        assert write(store, TICKS_TOPIC, late) == Written(50, 50)
    assert [row["sequence"] for row in run(url, "SELECT sequence FROM ticks ORDER BY sequence")] == list(range(150))
    (chunk,) = run(url, "SELECT is_compressed FROM timescaledb_information.chunks WHERE hypertable_name = 'ticks'")
    assert chunk["is_compressed"]


def test_how_long_ticks_are_kept_is_a_policy(url: str) -> None:
    question = "SELECT config->>'drop_after' AS after FROM timescaledb_information.jobs WHERE proc_name = 'policy_retention'"
    for keep_days, wanted in ((30, ["30 days"]), (7, ["7 days"]), (0, [])):
        with closing(Postgres(url, NO_SECRET, identity, keep_days)) as store:
            write(store, TICKS_TOPIC, ticks({"sequence": keep_days}))
        assert [row["after"] for row in run(url, question)] == wanted


def test_a_bar_that_is_revised_is_replaced(url: str) -> None:
    with closing(Postgres(url, NO_SECRET, identity)) as store:
        write(store, BARS_TOPIC, bars({"close": 1.0, "received_ns": NOON}))
        write(store, BARS_TOPIC, bars({"close": 2.0, "received_ns": NOON + 1, "raw_offset": 5}))
    assert [row["close"] for row in run(url, "SELECT close FROM bars")] == [2.0]


def test_trades_become_bars_of_a_second_a_minute_and_an_hour(url: str) -> None:
    rows = [
        {"sequence": n, "raw_offset": n, "ts_ns": NOON + at * NS_PER_S, "last": last, "volume": 2.0}
        for n, (at, last) in enumerate([(0, 10.0), (0.5, 12.0), (1, 9.0), (61, 11.0), (3600, 20.0)])
    ]
    quote = {"kind": "quote", "channel": "bookTicker", "last": None, "volume": None, "bid": 1.0, "ask": 99.0, "raw_offset": 9}
    with closing(Postgres(url, NO_SECRET, identity)) as store:
        write(store, TICKS_TOPIC, ticks(*[{**row, "ts_ns": int(row["ts_ns"])} for row in rows], quote))
    for name, count in (("1s", 4), ("1m", 3), ("1h", 2)):
        found = run(url, f"SELECT * FROM trade_bars_{name} ORDER BY ts")
        assert len(found) == count
        assert sum(row["trades"] for row in found) == 5
    (first, *_) = run(url, "SELECT open, high, low, close, volume, vwap, trades FROM trade_bars_1m ORDER BY ts")
    assert first == {"open": 10.0, "high": 12.0, "low": 9.0, "close": 9.0, "volume": 6.0, "vwap": 62.0 / 6.0, "trades": 3}
    views = run(url, "CALL refresh_continuous_aggregate('trade_bars_1s', NULL, NULL)", "SELECT count(*) AS n FROM trade_bars_1s")
    assert views == [{"n": 4}]


def test_a_symbol_is_renamed_in_days_that_are_compressed_too(url: str) -> None:
    old, new = {"symbol": "AD/AEUR"}, {"symbol": "ADA/EUR"}
    with closing(Postgres(url, NO_SECRET, identity)) as store:
        write(store, TICKS_TOPIC, ticks(*[{**old, "sequence": n, "raw_offset": n, "ts_ns": NOON + n} for n in range(50)]))
        write(store, TICKS_TOPIC, ticks({**new, "sequence": 49, "raw_offset": 99, "received_ns": NOON + DAY, "ts_ns": NOON + 49}))
        run(url, "SELECT compress_chunk(c)::text FROM show_chunks('ticks') c")
    renaming = PostgresRenaming(Database(url, NO_SECRET), identity)
    done = list(renaming.rename(Renaming("binance", "spot", "AD/AEUR", "ADA/EUR"), lambda *_: None, dry_run=False))
    assert [(one.rows, one.duplicates) for one in done] == [(50, 1)]
    found = run(url, "SELECT symbol, raw_offset FROM ticks ORDER BY raw_offset")
    assert found == [{"symbol": "ADA/EUR", "raw_offset": n} for n in range(50)]
