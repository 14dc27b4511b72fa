"""The whole pipeline into the lake and PostgreSQL at once: the same rows in both, whatever is killed on the way."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from adbc_driver_postgresql import dbapi  # type: ignore[import-untyped]  # it carries no types
from processes import block

from proving import PROVE, proof
from tapeline.demo.verify import compare
from tapeline.reading.sql import connect
from tapeline.records import NORMALIZED_TOPICS
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import Home, SimulatorProcess
    from services.postgres import PostgresServer

pytestmark = proof("crashes")

ORDER = "raw_partition, raw_offset, raw_index"
EVENTS = 60_000 if PROVE else 20_000
TABLES = [*(topic.table for topic in NORMALIZED_TOPICS), "bar_revisions"]


def columns(table: str) -> str:
    schema = next(topic for topic in NORMALIZED_TOPICS if topic.table == table.replace("bar_revisions", "bars")).schema
    return ", ".join(f'"{name}"' for name in [*schema.names, "ts"])


def kept(url: str, table: str) -> list[dict[str, Any]]:
    with closing(dbapi.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET timezone = 'UTC'")
        cursor.execute(f"SELECT {columns(table)} FROM {table} ORDER BY {ORDER}")
        found: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
    return found


def counted(url: str) -> int:
    """Ticks that PostgreSQL says it has."""
    with closing(dbapi.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(sum(rows), 0)::bigint FROM tapeline_counts WHERE topic LIKE '%normalized'")
        return int(cursor.fetchone()[0])


def test_both_hold_the_same_rows_digit_for_digit_whatever_is_killed(
    own_postgres: Callable[..., PostgresServer], home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    server = own_postgres()
    markets = {
        "binance": simulator("binance", "--rate", "1500", "--limit", str(EVENTS), "--fault", "rewind:all"),
        "polygon": simulator("polygon", "--rate", "800", "--limit", str(EVENTS // 2), "--fault", "garbage:0.02"),
        "alpaca": simulator("alpaca", "--rate", "800", "--limit", str(EVENTS // 2)),
    }
    feeds = (
        block("binance", markets["binance"].url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker", "kline_1m"])
        + block("polygon", markets["polygon"].url, ["AAPL", "NVDA"], ["T", "Q", "A"])
        + block("alpaca", markets["alpaca"].url, ["BTC/USD", "ETH/USD"], ["trades", "quotes", "bars"], feed="crypto")
    )
    second = f'[[stores]]\nurl = "{server.url}"\nflush_seconds = 0.2\nflush_rows = 2000\n'
    home.configure(feeds + second, flush_seconds=0.3, flush_rows=3000)
    home.env = {"MASSIVE_API_KEY": "key", "APCA_API_KEY_ID": "key", "APCA_API_SECRET_KEY": "secret"}
    run = home.start("run", "--until-idle", "2")

    until(lambda: home.word("postgresql").get("tables", {}).get("ticks", {}).get("rows", 0) > 500, "PostgreSQL keeps nothing")
    before = counted(server.url)
    home.kill("postgresql")
    until(lambda: counted(server.url) > before, "the store does not go on after it was killed")
    server.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name <> 'psql' AND pid <> pg_backend_pid()")
    before = counted(server.url)
    until(lambda: counted(server.url) > before, "the store does not go on after its backend was killed")
    server.kill()
    lake = home.word("lake")["tables"]["ticks"]["rows"]
    until(lambda: home.word("lake")["tables"]["ticks"]["rows"] > lake, "the lake waits for PostgreSQL")
    server.start()

    assert run.ends(120.0) == 0, run.said[-4000:]
    for market in markets.values():
        market.stop()
    found = compare(home.lake, [market.journal for market in markets.values()])
    assert (found.missing, found.extra) == ([], [])
    assert found.rejected
    with connect(home.lake) as db:
        for table in TABLES:
            wanted = db.sql(f"SELECT {columns(table)} FROM {table} ORDER BY {ORDER}").to_arrow_table().to_pylist()
            assert kept(server.url, table) == wanted
            assert wanted, f"{table}: nothing was compared"
    status = home.status()
    assert all(entry["balanced"] for entry in status["equations"])
    assert {entry["stage"] for entry in status["equations"]} >= {"lake", "postgresql"}


@pytest.mark.skipif(os.geteuid() != 0, reason="signals another user's process")
def test_a_server_that_stands_still_holds_up_nothing_else(
    own_postgres: Callable[..., PostgresServer], home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    server = own_postgres()
    market = simulator("binance", "--rate", "1000", "--limit", "8000")
    second = f'[[stores]]\nurl = "{server.url}"\nflush_seconds = 0.2\n'
    home.configure(block("binance", market.url, ["BTCUSDT"], ["trade"]) + second)
    run = home.start("run", "--until-idle", "1")
    until(lambda: home.word("postgresql").get("tables", {}).get("ticks", {}).get("rows", 0) > 200, "PostgreSQL keeps nothing")
    server.pause()
    lake = home.word("lake")["tables"]["ticks"]["rows"]
    until(lambda: home.word("lake")["tables"]["ticks"]["rows"] > lake + 2000, "the lake waits for PostgreSQL")
    server.resume()
    assert run.ends() == 0, run.said[-4000:]
    market.stop()
    with connect(home.lake) as db:
        wanted = db.sql(f"SELECT {columns('ticks')} FROM ticks ORDER BY {ORDER}").to_arrow_table().to_pylist()
    assert kept(server.url, "ticks") == wanted
    assert len(wanted) == 8000


def test_a_stop_is_heard_while_a_lock_is_held(database: str, home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    market = simulator("binance", "--rate", "500")
    home.configure(block("binance", market.url, ["BTCUSDT"], ["trade"]) + f'[[stores]]\nurl = "{database}"\nflush_seconds = 0.1\n')
    run = home.start("run")
    until(lambda: home.word("postgresql").get("tables", {}).get("ticks", {}).get("rows", 0) > 100, "PostgreSQL keeps nothing")
    with closing(dbapi.connect(database)) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE ticks IN ACCESS EXCLUSIVE MODE")
        run.send(signal.SIGTERM)
        assert run.ends(100.0) in (0, 69, 70), run.said[-3000:]
        other.rollback()
    market.halt()
    again = home.start("run", "--until-idle", "1")
    assert again.ends() == 0, again.said[-3000:]
    market.stop()
    with connect(home.lake) as db:
        wanted = db.sql(f"SELECT {columns('ticks')} FROM ticks ORDER BY {ORDER}").to_arrow_table().to_pylist()
    assert kept(database, "ticks") == wanted
