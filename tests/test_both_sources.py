"""PostgreSQL gives a program the same rows as the lake, in the same order, digit for digit, whatever is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapeline
from made import BAR, NOON, bars, ticks
from tapeline.config import Config, StoreConfig
from tapeline.errors import Unavailable, WrongArgument
from tapeline.providers.registry import identity
from tapeline.records import BARS_TOPIC, NS_PER_S, TICKS, TICKS_TOPIC, Chunk, Topic
from tapeline.secret import NO_SECRET
from tapeline.stores import Store
from tapeline.stores.lake import Lake
from tapeline.stores.postgres import Postgres
from test_reading import MOMENTS, SYMBOLS, market

if TYPE_CHECKING:
    from services.postgres import PostgresServer


def write(stores: list[Store], topic: Topic, batch: pa.RecordBatch) -> None:
    for store in stores:
        store.write(Chunk.dense(topic, 0, store.totals(topic).positions.get(0, 0), batch))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Config]:
    """A lake and a database that hold one market."""
    root = tmp_path_factory.mktemp("both")
    postgres_server.ask("CREATE DATABASE both_sources")
    url = postgres_server.url.rpartition("/")[0] + "/both_sources"
    stores: list[Store] = [Lake(root / "lake", identity), Postgres(url, NO_SECRET, identity)]
    for rows in market():
        write(stores, TICKS_TOPIC, pa.RecordBatch.from_pylist(rows, TICKS))
    some = [{"close": 1.0}, {"close": 2.0, "received_ns": NOON + 99, "raw_offset": 5}, {"symbol": "Z", "ts_ns": NOON - 1, "raw_offset": 6}]
    write(stores, BARS_TOPIC, bars(*some, {"interval": "1d", "ts_ns": NOON - 2, "raw_offset": 7}))
    yield Config(data_dir=str(root), stores=(StoreConfig(), StoreConfig(url=url)))
    stores[1].close()  # type: ignore[attr-defined]  # a Postgres
    postgres_server.ask("DROP DATABASE both_sources WITH (FORCE)")


def same(one: tapeline.Result, other: tapeline.Result) -> pa.Table:
    lake, database = one.arrow(), other.arrow()
    assert database.schema == lake.schema
    assert database.to_pylist() == lake.to_pylist()
    return lake


@given(
    symbols=st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=3, unique=True),
    moments=st.tuples(MOMENTS, MOMENTS),
    provider=st.sampled_from([None, "binance", "alpaca", "polygon"]),
    kind=st.sampled_from([None, "trade", "quote"]),
    columns=st.sampled_from([None, ["ts", "last"], ["raw_offset", "symbol", "ts_ns"]]),
)
@settings(max_examples=60)
def test_ticks_are_the_same(
    both: Config, symbols: list[str], moments: tuple[int, int], provider: str | None, kind: str | None, columns: list[str] | None
) -> None:
    asked: dict[str, Any] = {"provider": provider, "kind": kind, "columns": columns, "config": both}
    same(tapeline.ticks(symbols, *sorted(moments), **asked), tapeline.ticks(symbols, *sorted(moments), source="postgresql", **asked))


def test_everything_is_the_same_and_there_is_something(both: Config) -> None:
    whole = (NOON - 400 * 86_400 * NS_PER_S, NOON + 400 * 86_400 * NS_PER_S)
    found = same(*[tapeline.ticks(SYMBOLS, *whole, source=source, config=both) for source in ("lake", "postgresql")])
    assert found.num_rows == sum(map(len, market()))
    extremes = (-(1 << 63), (1 << 63) - 1)
    assert same(*[tapeline.ticks("Z", *extremes, source=source, config=both) for source in ("lake", "postgresql")]).num_rows
    for interval in (None, "1d", BAR["interval"]):
        found = same(
            *[tapeline.bars([BAR["symbol"], "Z"], *whole, interval=interval, source=s, config=both) for s in ("lake", "postgresql")]
        )
        assert found.num_rows == {None: 3, "1d": 1}.get(interval, 2)


@given(before=st.one_of(st.none(), MOMENTS), provider=st.sampled_from([None, "alpaca"]), days=st.sampled_from([1, 7]))
@settings(max_examples=30)
def test_the_latest_and_the_quotes_in_force_are_the_same(both: Config, before: int | None, provider: str | None, days: int) -> None:
    asked: dict[str, Any] = {"provider": provider, "days": days, "config": both}
    same(*[tapeline.latest(SYMBOLS, before=before, source=source, **asked) for source in ("lake", "postgresql")])
    until = before if before is not None else NOON
    same(*[tapeline.quotes_at_trades(SYMBOLS, until - NS_PER_S, until + NS_PER_S, source=s, **asked) for s in ("lake", "postgresql")])


def test_a_replay_is_the_same(both: Config) -> None:
    day = (NOON - 86_400 * NS_PER_S, NOON + 86_400 * NS_PER_S)
    one, other = (list(tapeline.replay(SYMBOLS, *day, None, source=source, config=both)) for source in ("lake", "postgresql"))
    assert one == other
    assert one


@pytest.mark.parametrize(
    ("call", "meant", "there"), [(tapeline.ticks, "BTCUSDT", "BTC/USDT"), (tapeline.bars, f"{BAR['symbol']}X", BAR["symbol"])]
)
def test_a_symbol_that_is_not_there_is_named_with_what_looks_like_it(both: Config, call: Any, meant: str, there: str) -> None:
    for source in ("lake", "postgresql"):
        with pytest.raises(WrongArgument, match=f"'{there}'"):
            call(meant, NOON, NOON + 1, source=source, config=both)


def test_a_database_that_no_store_has_written_to_has_no_symbols(database: str, tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path), stores=(StoreConfig(url=database),))
    with pytest.raises(WrongArgument, match="Z"):
        tapeline.ticks("Z", NOON, NOON + 1, source="postgresql", config=config)


def test_a_server_that_is_away_is_named_without_the_password(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path), stores=(StoreConfig(url="postgresql://me:secret@127.0.0.1:1/x"),))
    with pytest.raises(Unavailable) as said:
        tapeline.ticks("Z", NOON, NOON + 1, source="postgresql", config=config)
    assert "secret" not in str(said.value)


def test_what_does_not_fit_in_memory_streams(database: str, tmp_path: Path) -> None:
    """The first rows come although the last were not fetched: the answer is read as it is taken."""
    with closing(Postgres(database, NO_SECRET, identity)) as store:
        rows = 200_000
        one = pa.table(ticks({"raw_offset": 0, "conditions": "x" * 200})).combine_chunks()
        many = one.take(pa.array([0] * rows))
        numbers = pa.array(range(rows))
        for name in ("sequence", "raw_offset"):
            many = many.set_column(many.schema.get_field_index(name), many.schema.field(name), numbers)
        store.write(Chunk.dense(TICKS_TOPIC, 0, 0, many.combine_chunks().to_batches()[0]))
    config = Config(data_dir=str(tmp_path), stores=(StoreConfig(url=database),))
    reader = tapeline.ticks("BTC/USDT", NOON, NOON + 1, source="postgresql", config=config).batches()
    first = next(iter(reader))
    assert 0 < first.num_rows < rows
    before = pa.total_allocated_bytes()
    assert sum(batch.num_rows for batch in reader) + first.num_rows == rows
    assert pa.total_allocated_bytes() - before < 100_000_000
