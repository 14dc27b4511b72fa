"""PostgreSQL holds each event once, with the position it stands for, whatever ends in the middle; and the same rows as the lake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from adbc_driver_postgresql import dbapi  # type: ignore[import-untyped]  # it carries no types
from services import postgres
from services.container import Image

from made import BAR, DAY, NOON, bars, rejects, ticks
from proving import PROVE, proof
from tapeline.errors import DiskProblem, NewerData, Refused, Unavailable
from tapeline.providers.registry import identity
from tapeline.reading.sql import connect
from tapeline.records import BARS_TOPIC, NORMALIZED_TOPICS, NS_PER_S, REJECTED_TOPIC, TICKS_TOPIC, Chunk, Topic
from tapeline.secret import NO_SECRET
from tapeline.stores import Store, Written
from tapeline.stores.lake import Lake
from tapeline.stores.postgres import Postgres
from tapeline.stores.postgres.statements import migrations

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.postgres import PostgresServer

Row = dict[str, Any]


@pytest.fixture
def store(database: str) -> Iterator[Postgres]:
    with closing(Postgres(database, NO_SECRET, identity)) as found:
        yield found


def write(store: Store, topic: Topic, batch: pa.RecordBatch, partition: int = 0) -> Written:
    """Write what comes next in a partition."""
    return store.write(Chunk.dense(topic, partition, store.totals(topic).positions.get(partition, 0), batch))


def asked(url: str, question: str) -> pa.Table:
    with closing(dbapi.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetch_arrow_table()


def rows(url: str, table: str = "ticks", columns: str = "*") -> list[Row]:
    found: list[Row] = asked(url, f"SELECT {columns} FROM {table} ORDER BY raw_partition, raw_offset, raw_index").to_pylist()
    return found


def test_an_empty_database_begins_at_zero(store: Postgres) -> None:
    totals = store.totals(TICKS_TOPIC)
    assert (totals.positions, totals.read, totals.rows, totals.duplicates) == ({}, 0, 0, 0)


@pytest.mark.parametrize("topic", NORMALIZED_TOPICS, ids=lambda topic: topic.table)
def test_its_columns_are_those_of_the_records(store: Postgres, database: str, topic: Topic) -> None:
    write(store, TICKS_TOPIC, ticks({}))
    table = "bar_revisions" if topic.table == "bars" else topic.table
    found = asked(database, f"SELECT * FROM {table} LIMIT 0").schema
    wanted = {field.name: field.type for field in topic.schema} | {"id": pa.string(), "ts": pa.timestamp("us", "UTC")}
    assert {field.name: field.type for field in found} == wanted
    needed = asked(database, f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0 AND attnotnull")[
        "attname"
    ].to_pylist()
    assert set(needed) == {field.name for field in topic.schema if not field.nullable} | {"id", "ts"}


def test_every_value_comes_back_as_it_was(store: Postgres, database: str) -> None:
    batch = ticks(
        {"ts_ns": NOON + 1, "last": 0.1 + 0.2, "volume": 1e-8, "sequence": 2**63 - 1, "conditions": "a,é,\U0001f600"},
        {"ts_ns": NOON - 1, "last": None, "volume": float("inf"), "sequence": None, "raw_offset": 7, "raw_index": 3, "side": None},
        {"ts_ns": -1, "received_ns": -1, "last": 123456789.012345, "raw_offset": 8, "sequence": 3, "latency_ns": -(2**62)},
    )
    write(store, TICKS_TOPIC, batch)
    found = rows(database)
    assert [{name: row[name] for name in batch.schema.names} for row in found] == batch.to_pylist()
    assert [row["id"] for row in found] == ["0-0-0", "0-7-3", "0-8-0"]
    assert [row["ts"].isoformat() for row in found] == [
        "2024-03-15T12:00:00+00:00",
        "2024-03-15T11:59:59.999999+00:00",
        "1969-12-31T23:59:59.999999+00:00",
    ]


def test_rows_and_position_are_one_write(store: Postgres) -> None:
    assert write(store, TICKS_TOPIC, ticks({"sequence": 1}, {"sequence": 2})) == Written(2, 0)
    assert write(store, TICKS_TOPIC, ticks({"sequence": 3}), partition=2) == Written(1, 0)
    totals = store.totals(TICKS_TOPIC)
    assert (dict(totals.positions), totals.read, totals.rows, totals.duplicates) == ({0: 2, 2: 1}, 3, 3, 0)


def test_a_chunk_that_was_kept_already_is_not_kept_again(store: Postgres, database: str) -> None:
    chunk = Chunk.dense(TICKS_TOPIC, 0, 0, ticks({"sequence": 1}, {"sequence": 2}))
    assert store.write(chunk) == Written(2, 0)
    assert store.write(chunk) == Written(0, 0)
    assert [row["sequence"] for row in rows(database)] == [1, 2]
    assert store.totals(TICKS_TOPIC).read == 2


def test_rows_go_to_the_part_of_their_day_or_month(store: Postgres, database: str) -> None:
    write(store, TICKS_TOPIC, ticks({"sequence": 1}, {"sequence": 2, "ts_ns": NOON + DAY}))
    write(store, BARS_TOPIC, bars({}, {"ts_ns": NOON + 20 * DAY}))
    found = asked(database, "SELECT tableoid::regclass::text AS part FROM ticks ORDER BY ts")["part"].to_pylist()
    assert found == ["ticks_20240315", "ticks_20240316"]
    found = asked(database, "SELECT tableoid::regclass::text AS part FROM bars ORDER BY ts")["part"].to_pylist()
    assert found == ["bars_20240301", "bars_20240401"]


def test_days_that_are_older_than_they_are_kept_are_removed(database: str) -> None:
    today = time.time_ns() // DAY * DAY
    batch = ticks(*[{"sequence": n, "raw_offset": n, "ts_ns": today - (n - 4) * DAY} for n in (0, 3, 4, 5, 6, 7)])
    with closing(Postgres(database, NO_SECRET, identity, keep_days=2)) as store:
        assert write(store, TICKS_TOPIC, batch) == Written(6, 0)
    assert [row["sequence"] for row in rows(database)] == [0, 3, 4, 5, 6]
    with closing(Postgres(database, NO_SECRET, identity)) as store:
        write(store, TICKS_TOPIC, ticks({"sequence": 99, "ts_ns": NOON, "raw_offset": 9}))
    assert [row["sequence"] for row in rows(database)] == [0, 3, 4, 5, 6, 99]


#: Batches that arrive one after another, each as a store's process gets them; some by a process that has just begun.
POLYGON: Row = {"provider": "polygon", "feed": "stocks", "channel": "T", "symbol": "AAPL", "exchange": "XNAS", "side": None}
QUOTE: Row = {**POLYGON, "channel": "Q", "kind": "quote", "last": None, "volume": None, "trade_id": None, "bid": 1.0, "ask": 2.0}
OPTION: Row = {**POLYGON, "provider": "alpaca", "feed": "opra", "channel": "trades", "trade_id": None, "sequence": None}
ARRIVALS: list[tuple[str, list[list[Row]]]] = [
    ("a number again, later and by another way", [[{"sequence": 7}], [{"sequence": 7, "received_ns": NOON + 99, "raw_offset": 50}]]),
    ("a number again in one batch", [[{"sequence": 7}, {"sequence": 7, "raw_offset": 1}]]),
    ("an older number that was never there", [[{"sequence": 7}, {"sequence": 9}], [{"sequence": 8}, {"sequence": 9}, {"sequence": 10}]]),
    ("the same number of another symbol", [[{"sequence": 7}], [{"sequence": 7, "symbol": "ETH/USDT"}]]),
    ("the same number a day later", [[{"sequence": 7}], [{"sequence": 7, "ts_ns": NOON + DAY}]]),
    (
        "older than anything asked about so far",
        [[{"sequence": 5, "ts_ns": NOON}], [{"sequence": 9, "ts_ns": NOON + DAY}], [{"sequence": 5, "ts_ns": NOON}, {"sequence": 6}]],
    ),
    ("a trade id again on its day", [[{**POLYGON, "trade_id": "x"}], [{**POLYGON, "trade_id": "x", "ts_ns": NOON + 1}]]),
    ("a trade id again the next day", [[{**POLYGON, "trade_id": "x"}], [{**POLYGON, "trade_id": "x", "ts_ns": NOON + DAY}]]),
    ("a quote again", [[QUOTE], [{**QUOTE, "received_ns": NOON + 7}], [{**QUOTE, "bid": 1.1}]]),
    ("equal trades without an id", [[OPTION, OPTION], [OPTION]]),
    (
        "a quote again, in ns",
        [[QUOTE, {**QUOTE, "ask": None}], [{**QUOTE, "ts_ns": NOON + 999, "conditions": "1"}, {**QUOTE, "ask": None}]],
    ),
    (
        "quotes without a number, by the millisecond",
        [[{**QUOTE, "sequence": None}], [{**QUOTE, "sequence": None, "ts_ns": NOON + ns} for ns in (999_999, 1_000_000)]],
    ),
]


@pytest.mark.parametrize("anew", [False, True], ids=["one process", "a process for each batch"])
@pytest.mark.parametrize("arrivals", [pytest.param(batches, id=name) for name, batches in ARRIVALS])
def test_it_keeps_what_the_lake_keeps(database: str, tmp_path: Path, arrivals: list[list[Row]], anew: bool) -> None:
    lake, store = Lake(tmp_path / "lake", identity), Postgres(database, NO_SECRET, identity)
    for count, some in enumerate(arrivals):
        batch = ticks(*[{"raw_offset": 10 * count + at, **row} for at, row in enumerate(some)])
        if anew:
            store.close()
            store = Postgres(database, NO_SECRET, identity)
        assert write(store, TICKS_TOPIC, batch) == write(lake, TICKS_TOPIC, batch)
    store.close()
    assert same_rows(database, lake, "ticks")


def same_rows(database: str, lake: Lake, table: str) -> list[Row]:
    """The rows of both stores, which have to be equal."""
    names = next(topic for topic in NORMALIZED_TOPICS if topic.table == table).schema.names
    order = "raw_partition, raw_offset, raw_index"
    chosen = ", ".join(f'"{name}"' for name in [*names, "ts"])
    with connect(lake.root) as db:
        wanted: list[Row] = db.sql(f"SELECT {chosen} FROM {table} ORDER BY {order}").to_arrow_table().to_pylist()
    found = rows(database, table, chosen)
    assert found == wanted
    return found


def test_a_bar_that_is_revised_is_replaced(store: Postgres, database: str, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", identity)
    first = {"close": 1.0, "received_ns": NOON + 1, "raw_offset": 1}
    batches = [
        bars(first, {"symbol": "ETH/USDT", "raw_offset": 2}),
        bars({"close": 2.0, "received_ns": NOON + 2, "raw_offset": 3}, {"close": 3.0, "received_ns": NOON + 3, "raw_offset": 4}),
        bars({"close": 9.0, "received_ns": NOON, "raw_offset": 5}),  # late: no revision of what came after it
        bars({**first, "received_ns": NOON + 9, "raw_offset": 6}),  # the first again, by another way
    ]
    for batch in batches:
        assert write(store, BARS_TOPIC, batch) == write(lake, BARS_TOPIC, batch)
    assert {row["symbol"]: row["close"] for row in same_rows(database, lake, "bars")}[BAR["symbol"]] == 3.0
    assert [row["raw_offset"] for row in rows(database, "bar_revisions")] == [1, 2, 3, 4, 5]


def test_a_record_that_cannot_be_kept_is_set_aside_alone(store: Postgres, database: str, caplog: pytest.LogCaptureFixture) -> None:
    some = [{"sequence": n, "raw_offset": n} for n in range(20)]
    some[13]["conditions"] = "zero\x00inside"
    assert write(store, TICKS_TOPIC, ticks(*some)) == Written(19, 0, 1)
    assert [row["sequence"] for row in rows(database)] == [n for n in range(20) if n != 13]
    totals = store.totals(TICKS_TOPIC)
    assert (totals.read, totals.parts) == (20, {"rows": 19, "duplicates": 0, "rejected": 1})
    (refused,) = asked(database, "SELECT topic, id, reason, record FROM tapeline_refused").to_pylist()
    assert (refused["topic"], refused["id"]) == ("market-data.normalized", "0-13-0")
    assert "0x00" in refused["reason"]
    assert json.loads(refused["record"])["conditions"] == "zero\x00inside"
    assert "0-13-0" in caplog.text
    assert write(store, BARS_TOPIC, bars({"channel": "a\x00"}, {"raw_offset": 2})) == Written(1, 0, 1)


def test_bytes_that_were_rejected_are_kept_as_they_are(store: Postgres, database: str) -> None:
    batch = rejects(3)
    assert write(store, REJECTED_TOPIC, batch) == Written(3, 0)
    assert [row["payload"] for row in rows(database, "rejected")] == batch["payload"].to_pylist()


def test_tables_of_a_newer_version_are_refused(store: Postgres, database: str) -> None:
    write(store, TICKS_TOPIC, ticks({}))
    with closing(dbapi.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE tapeline_schema SET version = 99")
        connection.commit()
    with closing(Postgres(database, NO_SECRET, identity)) as newer:
        with pytest.raises(NewerData, match="version 99"):
            newer.totals(TICKS_TOPIC)
        with pytest.raises(NewerData, match="Upgrade"):
            newer.write(Chunk.dense(TICKS_TOPIC, 0, 1, ticks({"sequence": 2})))
    assert len(rows(database)) == 1


@pytest.mark.parametrize("version", range(len(migrations())))
def test_tables_of_each_version_before_are_brought_to_this_one(database: str, version: int) -> None:
    with closing(dbapi.connect(database)) as connection, connection.cursor() as cursor:
        for step in migrations(by_time="PARTITION BY RANGE (ts)")[:version]:
            for statement in step:
                cursor.execute(statement)
        if version:
            cursor.execute("CREATE TABLE tapeline_schema (version integer NOT NULL)")
            cursor.execute(f"INSERT INTO tapeline_schema VALUES ({version})")
        connection.commit()
    with closing(Postgres(database, NO_SECRET, identity)) as store:
        assert write(store, TICKS_TOPIC, ticks({})) == Written(1, 0)
    assert asked(database, "SELECT version FROM tapeline_schema")["version"].to_pylist() == [len(migrations())]
    assert len(rows(database)) == 1


def test_an_address_that_does_not_answer_or_refuses_says_so_without_the_password(database: str) -> None:
    away = Postgres("postgresql://me:secret@127.0.0.1:1/x", NO_SECRET, identity)
    with pytest.raises(Unavailable, match="Unwritten records stay in the stream") as said:
        away.totals(TICKS_TOPIC)
    assert "secret" not in str(said.value)
    with pytest.raises(Refused, match="does not exist"):
        Postgres(database.rpartition("/")[0] + "/nowhere", NO_SECRET, identity).totals(TICKS_TOPIC)


def test_the_statements_of_the_documentation_run(store: Postgres, database: str) -> None:
    docs = Path(__file__).parent.parent / "docs"
    begin = 1_767_621_600 * NS_PER_S  # 2026-01-05 14:00 UTC
    write(store, TICKS_TOPIC, ticks({"ts_ns": begin - 1}, {"ts_ns": begin + 1, "sequence": 2, "last": 7.0}))
    (statement,) = re.findall(r"```sql\n(.*?)```", (docs / "postgres.md").read_text(), re.DOTALL)
    assert asked(database, statement.strip().removesuffix(";"))["last"].to_pylist() == [7.0]
    tables = asked(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")["tablename"].to_pylist()
    page = (docs / "reference" / "storage.md").read_text()
    assert all(f"`{table}`" in page for table in tables if not re.search(r"_\d{8}$|_schema$", table))


@pytest.mark.parametrize(
    "url", ["postgresql://me:secret@[::1/x", "postgresql://me:secret@127.0.0.1:port/x", "postgresql://me:secret@a/x?y=z"]
)
def test_an_address_that_cannot_be_one_is_named_without_the_password(url: str) -> None:
    with pytest.raises((Unavailable, Refused)) as said:
        Postgres(url, NO_SECRET, identity).totals(TICKS_TOPIC)
    assert "secret" not in str(said.value)


def test_a_day_that_was_removed_and_comes_again_is_no_record_that_cannot_be_held(database: str, caplog: pytest.LogCaptureFixture) -> None:
    now = time.time_ns()
    with closing(Postgres(database, NO_SECRET, identity, keep_days=2)) as store:
        for number, ts in enumerate([now, now - 9 * DAY, now, now - 9 * DAY]):
            assert write(store, TICKS_TOPIC, ticks({"sequence": number, "raw_offset": number, "ts_ns": ts})) == Written(1, 0)
    assert [row["sequence"] for row in rows(database)] == [0, 2]
    assert "cannot store the record" not in caplog.text


# What ends in the middle.


def test_a_backend_that_is_killed_costs_one_try(store: Postgres, database: str, postgres_server: PostgresServer) -> None:
    write(store, TICKS_TOPIC, ticks({"sequence": 1}))
    postgres_server.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'tapeline_%'")
    chunk = Chunk.dense(TICKS_TOPIC, 0, 1, ticks({"sequence": 2}, {"sequence": 1}))
    with pytest.raises(Unavailable):
        store.write(chunk)
    assert store.write(chunk) == Written(1, 1)
    assert [row["sequence"] for row in rows(database)] == [1, 2]


def test_a_server_that_restarts_costs_one_try(own_postgres: Callable[..., PostgresServer]) -> None:
    server = own_postgres()
    with closing(Postgres(server.url, NO_SECRET, identity)) as store:
        write(store, TICKS_TOPIC, ticks({"sequence": 1}))
        server.kill()
        chunk = Chunk.dense(TICKS_TOPIC, 0, 1, ticks({"sequence": 2}))
        with pytest.raises(Unavailable):
            store.write(chunk)
        with pytest.raises(Unavailable):
            store.write(chunk)
        server.start()
        assert store.write(chunk) == Written(1, 0)
    assert [row["sequence"] for row in rows(server.url)] == [1, 2]


@proof("timeouts")
def test_a_lock_that_others_hold_is_waited_for_and_then_tried_again(database: str) -> None:
    wait_s, held_s = (10.0, 60.0) if PROVE else (0.5, 1.5)
    with closing(Postgres(database, NO_SECRET, identity, lock_wait_s=wait_s)) as store:
        _is_waited_for(store, database, held_s)


def _is_waited_for(store: Postgres, database: str, held_s: float) -> None:
    write(store, TICKS_TOPIC, ticks({"sequence": 1}))
    chunk = Chunk.dense(TICKS_TOPIC, 0, 1, ticks({"sequence": 2}))
    with closing(dbapi.connect(database)) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE ticks IN ACCESS EXCLUSIVE MODE")
        since = time.monotonic()
        threading.Timer(held_s, other.rollback).start()
        tries, said = 0, ""
        while True:
            tries += 1
            try:
                assert store.write(chunk) == Written(1, 0)
                break
            except Unavailable as error:
                said = str(error)
        assert time.monotonic() - since >= held_s - 0.5
        assert tries > 1
        assert "lock" in said
    assert [row["sequence"] for row in rows(database)] == [1, 2]


WRITER = """
import sys, json
sys.path[:0] = json.loads(sys.argv[2])
from made import NOON, ticks
from tapeline.providers.registry import identity
from tapeline.records import TICKS_TOPIC, Chunk
from tapeline.secret import NO_SECRET
from tapeline.stores.postgres import Postgres
store = Postgres(sys.argv[1], NO_SECRET, identity)
while True:
    at = store.totals(TICKS_TOPIC).positions.get(0, 0)
    some = [{"sequence": n, "raw_offset": n, "ts_ns": NOON + n} for n in range(at, at + 500)]
    store.write(Chunk.dense(TICKS_TOPIC, 0, at, ticks(*some)))
    print(at + 500, flush=True)
"""


@proof("crashes")
def test_a_store_that_is_killed_at_any_moment_loses_and_doubles_nothing(database: str) -> None:
    for delay in [0.001 * 7**k % 0.11 for k in range(30 if PROVE else 6)]:
        process = subprocess.Popen([sys.executable, "-c", WRITER, database, json.dumps(sys.path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, "it writes"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with closing(Postgres(database, NO_SECRET, identity)) as store:
        position = store.totals(TICKS_TOPIC).positions[0]
        found = [row["sequence"] for row in rows(database, columns="sequence, raw_partition, raw_offset, raw_index")]
        assert found == list(range(position))
        assert store.totals(TICKS_TOPIC).rows == position


def test_two_stores_of_one_database_write_one_after_another(database: str) -> None:
    """Both read the same stream from the same place: each record is kept once, by whoever comes first."""
    done: list[int] = []

    def work() -> None:
        with closing(Postgres(database, NO_SECRET, identity)) as store:
            for first in range(0, 200, 10):
                while store.totals(TICKS_TOPIC).positions.get(0, 0) < first + 10:
                    batch = ticks(*[{"sequence": n, "raw_offset": n} for n in range(first, first + 10)])
                    done.append(store.write(Chunk.dense(TICKS_TOPIC, 0, first, batch)).rows)

    both = [threading.Thread(target=work) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sum(done) == 200
    assert [row["sequence"] for row in rows(database)] == list(range(200))


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of a few megabytes for the user postgres."""
    if isinstance(postgres.find(), Image):
        pytest.skip("a small file system cannot be mounted for a server in a container")
    folder = Path("/dev/shm") / f"tapeline-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("a small file system cannot be mounted: that takes root, with the right to mount")
    shutil.chown(folder, "postgres", "postgres")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def test_a_disk_that_is_full_says_so_and_nothing_is_lost(small_disk: Path, own_postgres: Callable[..., PostgresServer]) -> None:
    server = own_postgres()
    server.ask(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    server.ask("ALTER ROLE tapeline SET default_tablespace = 'small'")
    with closing(Postgres(server.url, NO_SECRET, identity)) as store:
        at = 0
        while (full := until_full(store, at)) is None:
            at += 5_000
        assert isinstance(full, DiskProblem)
        assert "Free disk space" in str(full)
        assert at
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        assert write(store, TICKS_TOPIC, some_ticks(at, 5_000)) == Written(5_000, 0)
    found = asked(server.url, "SELECT sequence FROM ticks ORDER BY sequence")["sequence"].to_pylist()
    assert found == list(range(at + 5_000))
    server.kill()


def until_full(store: Store, at: int) -> Unavailable | None:
    try:
        write(store, TICKS_TOPIC, some_ticks(at, 5_000))
    except Unavailable as error:
        return error
    return None


def some_ticks(first: int, count: int) -> pa.RecordBatch:
    return ticks(*[{"sequence": n, "raw_offset": n, "ts_ns": NOON + n * NS_PER_S // 1_000} for n in range(first, first + count)])
