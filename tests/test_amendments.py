"""A trade that was corrected or canceled stays as it was sent, is named by what took it back, and can be left out: the same everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapeline
from frames import normalized, rows
from made import DAY, NOON, TRADE
from tapeline.config import Config, StoreConfig
from tapeline.providers.registry import identity
from tapeline.reading.sql import connect
from tapeline.records import AMENDS, NOTICES, NOTICES_TOPIC, TICKS, TICKS_TOPIC, Chunk, Topic, amending
from tapeline.secret import NO_SECRET
from tapeline.simulators.alpaca.session import timestamp
from tapeline.simulators.alpaca.tape import rfc3339
from tapeline.stores import Store
from tapeline.stores.lake import Lake
from tapeline.stores.postgres import Postgres

if TYPE_CHECKING:
    from services.postgres import PostgresServer

Codec = Literal["json", "msgpack"]
Row = dict[str, Any]

CORRECTION: Row = {"T": "c", "S": "EEM", "x": "M", "oi": 27, "op": 39.1582, "os": 440000, "oc": [" ", "7"], "ci": 26, "cp": 39.1809}
CORRECTION |= {"cs": 430000, "cc": ["@", "7"], "z": "B", "t": NOON + 542_305_024}
CANCEL: Row = {"T": "x", "S": "EEM", "i": 465, "x": "D", "p": 105.31, "s": 300, "a": "C", "z": "C", "t": NOON + 240_000_000}


# What the stream sends


def frame(codec: Codec, *events: Row) -> bytes:
    if codec == "msgpack":
        return msgspec.msgpack.encode([{**event, "t": timestamp(event["t"])} if "t" in event else event for event in events])
    return msgspec.json.encode([{**event, "t": rfc3339(event["t"])} if "t" in event else event for event in events])


def without(event: Row, *names: str) -> Row:
    return {name: value for name, value in event.items() if name not in names}


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(("feed", "exchange"), [("sip", "XCHI"), ("iex", "XCHI"), ("opra", "XMIO"), ("crypto", "alpaca")])
def test_a_correction_names_the_trade_it_takes_back_and_brings_the_right_one(codec: Codec, feed: str, exchange: str) -> None:
    trade = {"T": "t", "S": "EEM", "x": "M", "i": 26, "p": 39.1809, "s": 430000, "c": ["@", "7"], "t": CORRECTION["t"]}
    plain = {"T": "t", "S": "EEM", "x": "M", "i": 1, "p": 1.5, "s": 1, "t": NOON}
    found = rows(normalized("alpaca", feed, [frame(codec, plain, CORRECTION, plain)]))
    (notice,) = found["notices"]
    assert (notice["kind"], notice["symbol"], notice["ts_ns"], notice["raw_index"]) == ("correction", "EEM", CORRECTION["t"], 1)
    assert json.loads(notice["detail"])["amends"] == {"exchange": exchange, "trade_id": "27"}
    assert found["ticks"] == rows(normalized("alpaca", feed, [frame(codec, plain, trade, plain)]))["ticks"]
    assert found["ticks"][1]["trade_id"] == "26"
    assert found["rejected"] == []


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_cancel_names_its_trade_and_brings_none(codec: Codec) -> None:
    found = rows(normalized("alpaca", "sip", [frame(codec, CANCEL)]))
    (notice,) = found["notices"]
    assert (notice["kind"], notice["ts_ns"]) == ("cancel", CANCEL["t"])
    detail = json.loads(notice["detail"])
    assert list(detail)[-1] == "amends"
    assert detail.pop("amends") == {"exchange": "FINR", "trade_id": "465"}
    assert without(detail, "t") == without(CANCEL, "t")
    assert found["ticks"] == []


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("missing", ["ci", "cp", "cs", "t", "S"])
def test_a_correction_that_does_not_say_what_is_right_is_a_notice_alone(codec: Codec, missing: str) -> None:
    result = normalized("alpaca", "sip", [frame(codec, without(CORRECTION, missing))])
    found = rows(result)
    assert [json.loads(row["detail"])["amends"]["trade_id"] for row in found["notices"]] == ["27"]
    assert (found["ticks"], found["rejected"]) == ([], [])
    assert result.counts["alpaca", "sip"].seen == 1


@pytest.mark.parametrize(("event", "name"), [(CORRECTION, "oi"), (CANCEL, "i")])
def test_one_that_names_no_trade_is_a_notice_as_it_was_sent(event: Row, name: str) -> None:
    (sent,) = msgspec.json.decode(frame("json", without(event, name)), type=list[msgspec.Raw])
    assert [row["detail"] for row in rows(normalized("alpaca", "sip", [frame("json", without(event, name))]))["notices"]] == [
        bytes(sent).decode()
    ]


def test_a_right_trade_that_cannot_be_is_rejected_beside_the_notice() -> None:
    result = normalized("alpaca", "sip", [frame("json", CORRECTION | {"cp": -1.0})])
    found = rows(result)
    assert len(found["notices"]) == 1
    assert ["(-1.0)" in row["reason"] for row in found["rejected"]] == [True]
    count = result.counts["alpaca", "sip"]
    assert (count.seen, count.notices, count.rejected) == (2, 1, 1)


PLAIN = st.text(st.characters(exclude_characters='"\\', exclude_categories=["Cs", "Cc"]))


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5)), PLAIN, PLAIN.filter(bool), st.sampled_from(["", " ", "\n"]))
def test_what_is_named_is_read_again_by_arrow_and_duckdb(sent: Row, exchange: str, trade_id: str, blank: str) -> None:
    detail = amending(json.dumps({"T": "x", **sent}) + blank, exchange, trade_id)
    assert json.loads(detail) == {"T": "x", **sent, "amends": {"exchange": exchange, "trade_id": trade_id}}
    named = {"exchange": exchange, "trade_id": trade_id}
    assert pa.compute.extract_regex(pa.array([detail]), AMENDS).to_pylist() == [named]
    (found,) = duckdb.execute("SELECT regexp_extract($1, '" + AMENDS + "', ['exchange', 'trade_id'])", [detail]).fetchall()
    assert found == (named,)


# What the stores give


SYMBOLS = ("AAPL", "EEM", "MSFT")
PLACES = ("XNYS", "XASE")
FEEDS = (("alpaca", "sip"), ("alpaca", "iex"), ("polygon", "stocks"))
MIDNIGHT = NOON // DAY * DAY


def market() -> tuple[list[Row], list[Row]]:
    """Trades with ids that repeat between symbols, exchanges, feeds and days, at the edges of days too; and notices about some."""
    trades = [
        {**TRADE, "symbol": symbol, "exchange": place, "provider": provider, "feed": feed, "channel": "trades", "trade_id": str(number)}
        | {"sequence": None, "ts_ns": MIDNIGHT + day * DAY + edge}
        for symbol in SYMBOLS
        for place in PLACES
        for provider, feed in FEEDS
        for number in (1, 2)
        for day in (0, 1)
        for edge in (0, DAY - 1)
    ]
    # Of one day an id is one trade: those at the two edges of it have ids of their own.
    for at, row in enumerate(trades):
        row |= {"trade_id": row["trade_id"] + ("e" if at % 2 else ""), "raw_offset": at, "last": float(at + 1)}
    quotes = [{**trades[0], "kind": "quote", "channel": "quotes", "trade_id": None, "last": None, "bid": 1.0, "raw_offset": 1_000}]
    empty = dict.fromkeys(NOTICES.names)
    notices = []
    for at, row in enumerate(trades):
        if at % 3 == 0:
            detail = amending('{"T":"x"}', row["exchange"], row["trade_id"])
            kind = ("correction", "cancel", "luld")[at // 3 % 3]
            about = {"provider": row["provider"], "feed": row["feed"], "symbol": row["symbol"], "ts_ns": row["ts_ns"] // DAY * DAY + at}
            notices.append({**empty, **about, "connection": "c", "kind": kind, "detail": detail})
    strange = [
        {"detail": '{"T":"c"}'},
        {"detail": "no JSON", "symbol": None},
        {"detail": '{"amends":{"exchange":"XNYS","trade_id":""}}'},
        {"detail": '{"amends":{"exchange":"XNYS","trade_id":"1"}} '},
        {"detail": '{"u":"\\u0000\\ud800","n":1e999999}'},
    ]
    notices += [{**notices[0], "kind": "correction", **other} for other in strange]
    notices.append(notices[0])  # a page that was fetched twice brings its notices twice
    for at, row in enumerate(notices):
        notices[at] = {**row, "received_ns": NOON, "raw_partition": 0, "raw_offset": 2_000 + at, "raw_index": 0}
    return trades + quotes, notices


def key(row: Row, exchange: str, trade_id: str) -> tuple[Any, ...]:
    return row["provider"], row["feed"], row["symbol"], row["ts_ns"] // DAY, exchange, trade_id


def remaining(ticks: Sequence[Row], notices: Sequence[Row]) -> list[Row]:
    """The rule once more, row by row."""
    gone = set()
    for row in notices:
        _, is_there, named = row["detail"].partition('"amends":')
        if row["kind"] in ("correction", "cancel") and is_there and named.endswith("}}"):
            amended = json.loads(named[:-1])
            gone.add(key(row, amended["exchange"], amended["trade_id"]))
    return [row for row in ticks if key(row, row["exchange"], row["trade_id"]) not in gone]


def write(stores: Sequence[Store], topic: Topic, found: list[Row]) -> None:
    batch = pa.RecordBatch.from_pylist(found, topic.schema)
    for store in stores:
        assert store.write(Chunk.dense(topic, 0, 0, batch)).rows == len(found)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Config]:
    """A lake and a database that hold one market and what took back some of its trades."""
    root = tmp_path_factory.mktemp("amended")
    postgres_server.ask("CREATE DATABASE amendments")
    url = postgres_server.url.rpartition("/")[0] + "/amendments"
    postgres = Postgres(url, NO_SECRET, identity)
    ticks, notices = market()
    write([Lake(root / "lake", identity), postgres], TICKS_TOPIC, ticks)
    write([Lake(root / "lake", identity), postgres], NOTICES_TOPIC, notices)
    yield Config(data_dir=str(root), stores=(StoreConfig(), StoreConfig(url=url)))
    postgres.close()
    postgres_server.ask("DROP DATABASE amendments WITH (FORCE)")


EDGES = st.sampled_from([MIDNIGHT + day * DAY + by for day in (-1, 0, 1, 2) for by in (-1, 0, 1, 7, DAY // 2)])


@given(
    symbols=st.lists(st.sampled_from(SYMBOLS), min_size=1, unique=True),
    moments=st.tuples(EDGES, EDGES),
    provider=st.sampled_from([None, "alpaca", "polygon"]),
    kind=st.sampled_from([None, "trade", "quote"]),
    columns=st.sampled_from([None, ["ts", "last"], ["trade_id", "symbol"]]),
)
@settings(max_examples=40)
def test_both_stores_leave_out_the_same_trades_and_those_alone(
    both: Config, symbols: list[str], moments: tuple[int, int], provider: str | None, kind: str | None, columns: list[str] | None
) -> None:
    asked: dict[str, Any] = {"provider": provider, "kind": kind, "config": both}
    start, end = sorted(moments)
    lake, database = (
        tapeline.ticks(symbols, start, end, columns=columns, corrected=True, source=source, **asked).arrow()
        for source in ("lake", "postgresql")
    )
    assert database.schema == lake.schema
    assert database.to_pylist() == lake.to_pylist()
    sent = tapeline.ticks(symbols, start, end, **asked).arrow()
    wanted = remaining(sent.to_pylist(), market()[1])
    names = columns or sent.schema.names
    assert lake.to_pylist() == [{name: row[name] for name in names} for row in wanted]


def test_as_it_was_sent_is_what_comes_if_not_asked_otherwise(both: Config) -> None:
    ticks, notices = market()
    whole = (MIDNIGHT, MIDNIGHT + 2 * DAY)
    assert tapeline.ticks(SYMBOLS, *whole, config=both).arrow().num_rows == len(ticks)
    extremes = (-(1 << 63), (1 << 63) - 1)
    for source in ("lake", "postgresql"):
        found = tapeline.ticks(SYMBOLS, *extremes, corrected=True, source=source, config=both).arrow()
        assert 0 < found.num_rows == len(remaining(ticks, notices)) < len(ticks)


def test_the_views_say_the_same_in_both_databases(both: Config, postgres_server: PostgresServer) -> None:
    from adbc_driver_postgresql import dbapi  # type: ignore[import-untyped]  # it carries no types

    ticks, notices = market()
    trades = "SELECT {} FROM trades ORDER BY raw_offset".format(", ".join(f'"{name}"' for name in TICKS.names))
    names = "provider, feed, symbol, date, exchange, trade_id, kind, ts_ns, detail"
    amendments = f"SELECT {names} FROM amendments ORDER BY ts_ns, detail, symbol"
    with connect(Path(both.data_dir) / "lake") as db, dbapi.connect(both.stores[1].url) as connection, connection.cursor() as cursor:
        for query in (trades, amendments):
            lake = db.sql(query).to_arrow_table().to_pylist()
            cursor.execute(query)
            assert cursor.fetch_arrow_table().to_pylist() == lake
            assert lake
        assert db.sql(trades).to_arrow_table().to_pylist() == [row for row in remaining(ticks, notices) if row["kind"] == "trade"]
        named = db.sql("SELECT provider, feed, symbol, ts_ns, exchange, trade_id, date FROM amendments").to_arrow_table().to_pylist()
    gone = {key(row, row["exchange"], row["trade_id"]) for row in named}
    assert [row for row in ticks if key(row, row["exchange"], row["trade_id"]) not in gone] == remaining(ticks, notices)


def test_an_empty_lake_has_the_views_too(tmp_path: Path) -> None:
    with connect(tmp_path) as db:
        assert db.sql("SELECT * FROM trades").columns == db.sql("SELECT * FROM ticks").columns
        assert db.sql("SELECT count(*) FROM trades ANTI JOIN amendments USING (trade_id)").fetchall() == [(0,)]


def test_a_database_that_has_a_table_of_that_name_keeps_it(database: str, postgres_server: PostgresServer) -> None:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE trades (mine text)")
        connection.commit()
        store = Postgres(database, NO_SECRET, identity)
        write([store], TICKS_TOPIC, market()[0][:2])
        store.close()
        cursor.execute("SELECT mine FROM trades")
        assert cursor.fetchall() == []
        cursor.execute("SELECT count(*) FROM amendments")
        assert cursor.fetchall() == [(0,)]
        connection.commit()
