"""The providers' lists of instruments: what each moment's list had is what both stores say of it, whatever breaks off or is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from adbc_driver_postgresql import dbapi  # type: ignore[import-untyped]  # it carries no types
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import tapeline
from made import NOON
from tapeline.app.instruments import open_instruments, open_lists
from tapeline.app.streams import open_stream
from tapeline.app.tasks import FailedList, symbols
from tapeline.cli import app
from tapeline.config import Config, JobConfig, ProviderConfig, StoreConfig, load
from tapeline.errors import Barred, ConfigError, Unavailable, WrongArgument
from tapeline.jobs.symbols import Lists, Symbols, WholeList, compare, keep, one_of_each_name, read, table_of
from tapeline.orchestration.catalog import jobs_of
from tapeline.orchestration.database import SqliteDatabase
from tapeline.orchestration.running import Request as RunRequest
from tapeline.orchestration.running import run
from tapeline.orchestration.runs import Runs
from tapeline.providers.history import Request, WrongPage, readable
from tapeline.providers.instruments import Instrument, ListHeader
from tapeline.providers.registry import DECODERS, LISTS
from tapeline.records import INSTRUMENTS, LISTED, NORMALIZED_TOPICS, NOTICES_TOPIC, NS_PER_S, RAW_TOPIC
from tapeline.simulators import Simulator, SimulatorOptions
from tapeline.stages.normalize import normalize_all
from tapeline.stores.duplicates import BY_RAW
from tapeline.stores.instruments import InstrumentStore, Versions, in_order
from tapeline.stores.lake.checking import check
from tapeline.stores.lake.instruments import LakeInstruments
from tapeline.stores.lake.retention import vacuum

if TYPE_CHECKING:
    from collections.abc import Callable

Row = dict[str, Any]
FEEDS = {"binance": "spot", "polygon": "stocks", "alpaca": "iex"}
WHOSE = ("binance", "spot")


# A provider on a real socket, whose list a test changes


class Market:
    """A simulator in a thread of its own."""

    def __init__(self, name: str, *faults: str) -> None:
        self.name, self._simulator = name, Simulator(SimulatorOptions(name=name, faults=faults))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._simulator.start(), self._loop).result(60)

    @property
    def lists(self) -> dict[str, list[Row]]:
        return self._simulator.listings

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._simulator.stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Market]]:
    for name in ("TAPELINE_POLYGON_KEY", "TAPELINE_ALPACA_KEY", "TAPELINE_ALPACA_SECRET"):
        monkeypatch.setenv(name, "key")
    made: list[Market] = []

    def start(name: str, *faults: str) -> Market:
        made.append(Market(name, *faults))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def config(folder: Path, *markets: Market, feeds: Mapping[str, str] | None = None, database: str = "") -> Config:
    stores = (StoreConfig(), *([StoreConfig(database)] if database else ()))
    chosen = FEEDS | dict(feeds or {})
    blocks = tuple(ProviderConfig(name=one.name, feed=chosen[one.name], url=one.url, symbols=("X",), channels=("x",)) for one in markets)
    return Config(data_dir=str(folder / "data"), providers=blocks, stores=stores)


def done(settings: Config, **more: Any) -> list[Symbols]:
    """What a run of the task did. No list may fail."""
    found = list(symbols(settings, threading.Event(), **more))
    failed = [one for one in found if isinstance(one, FailedList)]
    assert failed == [], failed
    return [one for one in found if isinstance(one, Symbols)]


def counts(settings: Config, **more: Any) -> tuple[int, int, int, int]:
    """Listed, delisted, renamed and changed."""
    (one,) = done(settings, **more)
    return one.listed, one.delisted, one.renamed, one.changed


def failures(settings: Config, **more: Any) -> list[FailedList]:
    return [one for one in symbols(settings, threading.Event(), **more) if isinstance(one, FailedList)]


def held(settings: Config) -> list[Row]:
    """Every version. All configured stores must have the same."""
    first, *others = [store.versions(Versions()) for store in open_instruments(settings)]
    for other in others:
        assert other.to_pylist() == first.to_pylist()
    rows: list[Row] = first.to_pylist()
    return rows


def valid(settings: Config, at: int | None = None) -> list[Row]:
    """The versions that are valid at a moment, without their times; None: now."""
    rows = [row for row in held(settings) if (row["valid_to_ns"] is None if at is None else _valid(row, at))]
    return [{name: row[name] for name in LISTED.names} for row in rows]


def _valid(row: Row, at: int) -> bool:
    return bool(row["valid_from_ns"] <= at and (row["valid_to_ns"] is None or at < row["valid_to_ns"]))


def names(settings: Config) -> list[str]:
    return [row["symbol"] for row in valid(settings) if row["listed"]]


def the(settings: Config, symbol: str) -> Row:
    (found,) = [row for row in valid(settings) if row["symbol"] == symbol]
    return found


# What each provider lists


def test_binance_s_list_is_kept_with_its_steps_and_its_own_word_for_the_status(market: Callable[..., Market], tmp_path: Path) -> None:
    binance = market("binance")
    binance.lists["spot"][0]["status"] = "BREAK"
    settings = config(tmp_path, binance)
    assert counts(settings) == (8, 0, 0, 0)
    assert the(settings, "BTC/USDT") == {
        "symbol": "BTC/USDT",
        "native": "BTCUSDT",
        "id": None,
        "name": None,
        "kind": "crypto",
        "base": "BTC",
        "quote": "USDT",
        "exchange": "binance",
        "status": "BREAK",
        "listed": True,
        "tick_size": 0.01,
        "lot_size": 0.00001,
    }
    assert the(settings, "ETH/BTC")["status"] == "TRADING"


def test_a_step_of_zero_is_no_step(market: Callable[..., Market], tmp_path: Path) -> None:
    binance = market("binance")
    binance.lists["spot"][0]["filters"] = [{"filterType": "PRICE_FILTER", "tickSize": "0.00000000"}]
    settings = config(tmp_path, binance)
    done(settings)
    assert (the(settings, "BTC/USDT")["tick_size"], the(settings, "BTC/USDT")["lot_size"]) == (None, None)


def test_polygon_s_tickers_are_kept_those_that_were_delisted_too(market: Callable[..., Market], tmp_path: Path) -> None:
    polygon = market("polygon")
    gone = {"ticker": "TWTR", "name": "Twitter, Inc.", "market": "stocks", "locale": "us", "active": False, "delisted_utc": "2022-11-08"}
    polygon.lists["stocks"].append(gone)
    settings = config(tmp_path, polygon)
    assert counts(settings) == (8, 1, 0, 0)
    assert the(settings, "SPY") == {
        "symbol": "SPY",
        "native": "SPY",
        "id": "BBG000000SPY",
        "name": "SPY Inc.",
        "kind": "etf",
        "base": None,
        "quote": "USD",
        "exchange": "ARCX",
        "status": "active",
        "listed": True,
        "tick_size": None,
        "lot_size": None,
    }
    assert the(settings, "TWTR") == {
        **dict.fromkeys(LISTED.names),
        "symbol": "TWTR",
        "native": "TWTR",
        "name": "Twitter, Inc.",
        "status": "inactive",
        "listed": False,
    }


def test_polygon_s_options_and_pairs_have_the_names_of_the_ticks(market: Callable[..., Market], tmp_path: Path) -> None:
    polygon = market("polygon")
    # The documentation leaves open which of the two symbols is the base.
    polygon.lists["crypto"][1] |= {"base_currency_symbol": "USD", "currency_symbol": "ETH"}
    blocks = tuple(ProviderConfig(name="polygon", feed=feed, url=polygon.url) for feed in ("options", "crypto"))
    settings = Config(data_dir=str(tmp_path), providers=blocks)
    assert [(one.market, one.listed) for one in done(settings)] == [("options", 8), ("crypto", 8)]
    assert the(settings, "AAPL271217P00200000") == {
        **dict.fromkeys(LISTED.names),
        "symbol": "AAPL271217P00200000",
        "native": "O:AAPL271217P00200000",
        "kind": "option",
        "base": "AAPL",
        "exchange": "BATO",
        "listed": True,
    }
    pair = the(settings, "ETH/USD")
    assert (pair["native"], pair["base"], pair["quote"], pair["kind"]) == ("X:ETHUSD", "ETH", "USD", "crypto")


def test_alpaca_s_assets_are_kept_with_their_lasting_ids(market: Callable[..., Market], tmp_path: Path) -> None:
    alpaca = market("alpaca", "rest_page:3")
    alpaca.lists["stocks"][0] |= {"status": "inactive", "exchange": "OTC"}
    blocks = tuple(ProviderConfig(name="alpaca", feed=feed, url=alpaca.url) for feed in ("iex", "sip", "opra", "crypto"))
    settings = Config(data_dir=str(tmp_path), providers=blocks)
    assert [(one.market, one.listed, one.delisted, one.pages) for one in done(settings)] == [
        *(("stocks", 7, 1, 2), ("options", 8, 0, 3), ("crypto", 8, 0, 2))
    ]
    ids = {row["symbol"]: row["id"] for some in alpaca.lists.values() for row in some}
    assert the(settings, "AAPL") == {
        **dict.fromkeys(LISTED.names),
        "symbol": "AAPL",
        "native": "AAPL",
        "id": ids["AAPL"],
        "name": "AAPL Inc. Common Stock",
        "kind": "equity",
        "exchange": "OOTC",
        "status": "inactive",
        "listed": False,
    }
    bitcoin, option = the(settings, "BTC/USD"), the(settings, "SPY271217C00650000")
    assert [bitcoin[name] for name in ("base", "quote", "exchange", "tick_size", "lot_size")] == ["BTC", "USD", "alpaca", 0.01, 1e-8]
    assert [option[name] for name in ("kind", "base", "id", "status")] == ["option", "SPY", ids["SPY271217C00650000"], "active"]


def test_a_list_of_several_pages_is_read_to_its_end_through_limits_and_errors(market: Callable[..., Market], tmp_path: Path) -> None:
    polygon = market("polygon", "rest_error:1")
    polygon.lists["stocks"] = [{"ticker": f"T{at:04}", "name": "x", "market": "stocks", "locale": "us"} for at in range(2_345)]
    settings = config(tmp_path, polygon)
    (one,) = done(settings)
    assert (one.listed, one.pages) == (2_345, 4)  # the last is that of the delisted
    assert names(settings) == [f"T{at:04}" for at in range(2_345)]


# What changes


@pytest.mark.parametrize("name", FEEDS)
def test_listed_delisted_relisted_and_changed_are_told_apart_and_each_moment_has_its_list(
    name: str, market: Callable[..., Market], tmp_path: Path, database: str
) -> None:
    one = market(name)
    settings = config(tmp_path, one, database=database)
    kind = FEEDS[name] if name != "alpaca" else "stocks"
    rows = one.lists[kind]
    key = "ticker" if name == "polygon" else "symbol"
    moments: list[tuple[int, list[Row]]] = []

    def step(expected: tuple[int, int, int, int]) -> None:
        assert counts(settings) == expected
        newest = max(max(row["valid_from_ns"], row["valid_to_ns"] or 0) for row in held(settings))
        moments.append((newest, valid(settings)))

    step((8, 0, 0, 0))
    first, last = rows[0], rows.pop()
    step((0, 1, 0, 0))
    rows.append(last)
    step((1, 0, 0, 0))
    first["status" if name == "binance" else "name"] = "HALT"
    step((0, 0, 0, 1))
    new = dict(last) | {key: "NEWUSDT", "baseAsset": "NEW", "quoteAsset": "USDT", "id": "new", "composite_figi": "BBG000000NEW"}
    rows[:] = [row for row in rows if row is not first] + [new]
    step((1, 1, 0, 0))
    assert counts(settings) == (0, 0, 0, 0)

    for (since, then), until in zip(moments, [*(at for at, _ in moments[1:]), None], strict=True):
        for at in (since, since + 1, *([until - 1] if until is not None else [])):
            assert valid(settings, at) == then
    assert valid(settings, moments[0][0] - 1) == []
    relisted = [row for row in held(settings) if row["native"] == last[key]]
    assert [row["valid_to_ns"] for row in relisted] == [moments[1][0], None]
    assert [row["valid_from_ns"] for row in relisted] == [moments[0][0], moments[2][0]]


def test_polygon_s_own_word_of_a_delisting_counts_as_one_and_the_name_stays_visible(market: Callable[..., Market], tmp_path: Path) -> None:
    polygon = market("polygon")
    settings = config(tmp_path, polygon)
    done(settings)
    polygon.lists["stocks"][0]["active"] = False
    assert counts(settings) == (0, 1, 0, 0)
    assert the(settings, "AAPL")["listed"] is False
    polygon.lists["stocks"][0]["active"] = True
    assert counts(settings) == (1, 0, 0, 0)


@pytest.mark.parametrize("name", ["polygon", "alpaca"])
def test_a_new_name_with_the_same_id_is_a_renaming_even_where_the_old_name_is_used_again(
    name: str, market: Callable[..., Market], tmp_path: Path
) -> None:
    one = market(name)
    key, id_ = ("ticker", "composite_figi") if name == "polygon" else ("symbol", "id")
    settings = config(tmp_path, one)
    done(settings)
    rows = one.lists["stocks"]
    row = next(row for row in rows if row[key] == "MSFT")
    row[key] = "WNDW"
    assert counts(settings) == (0, 0, 1, 0)
    assert {row["symbol"]: row["renamed_from"] for row in held(settings) if row["renamed_from"]} == {"WNDW": "MSFT"}
    assert "MSFT" not in names(settings)
    assert "WNDW" in names(settings)
    rows.append(dict(row) | {key: "MSFT", id_: "another"})
    assert counts(settings) == (1, 0, 0, 0)
    # A chain: the name of one goes to another, whose own name is free now.
    next(row for row in rows if row[key] == "WNDW")[key] = "WIND"
    next(row for row in rows if row[key] == "MSFT")[key] = "WNDW"
    assert counts(settings) == (0, 0, 2, 0)
    newest = max(row["valid_from_ns"] for row in held(settings))
    assert {row["symbol"]: row["renamed_from"] for row in held(settings) if row["valid_from_ns"] == newest} == {
        "WNDW": "MSFT",
        "WIND": "WNDW",
    }


def test_binance_has_no_lasting_ids_so_a_renaming_is_a_delisting_and_a_listing(market: Callable[..., Market], tmp_path: Path) -> None:
    binance = market("binance")
    settings = config(tmp_path, binance)
    done(settings)
    binance.lists["spot"][0] |= {"symbol": "NEWUSDT", "baseAsset": "NEW"}
    assert counts(settings) == (1, 1, 0, 0)


def test_a_name_that_another_instrument_takes_over_counts_as_both(market: Callable[..., Market], tmp_path: Path) -> None:
    alpaca = market("alpaca")
    settings = config(tmp_path, alpaca)
    done(settings)
    alpaca.lists["stocks"][0]["id"] = "another"
    assert counts(settings) == (1, 1, 0, 0)


def test_an_id_of_several_names_claims_no_renaming() -> None:
    before = fold([[Instrument("A", "A", "1"), Instrument("B", "B", "1")]])
    changes = compare(before, whole([Instrument("C", "C", "1")]), NOON, WHOSE)
    assert (changes.symbols.listed, changes.symbols.delisted, changes.symbols.renamed) == (1, 2, 0)


@pytest.mark.parametrize(("before", "now"), [(["A 1", "B"], ["B 1"]), (["A 1"], ["A", "B 1"])])
def test_a_name_that_is_listed_without_an_id_claims_no_renaming(before: list[str], now: list[str]) -> None:
    """The id may have been missing from the list, or it may belong to another instrument."""

    def of(texts: list[str]) -> list[Instrument]:
        return [Instrument(text[0], text[0], text[2:] or None) for text in texts]

    symbols = compare(fold([of(before)]), whole(of(now)), NOON, WHOSE).symbols
    assert (symbols.listed, symbols.delisted, symbols.renamed, symbols.changed) == (len(now) - 1, len(before) - 1, 0, 1)


# What proves nothing


def test_a_list_that_breaks_off_delists_nothing(market: Callable[..., Market], tmp_path: Path, database: str) -> None:
    polygon = market("polygon")
    polygon.lists["stocks"] = [{"ticker": f"T{at:04}", "name": "x", "market": "stocks", "locale": "us"} for at in range(1_500)]
    settings = config(tmp_path, polygon, database=database)
    done(settings)
    before = held(settings)
    for fault in ("rest_repeat:1", "rest_cut:1"):
        broken = market("polygon", fault)
        broken.lists["stocks"] = [row | {"name": "y"} for row in polygon.lists["stocks"]]
        (failed,) = failures(config(tmp_path, broken, database=database))
        assert isinstance(failed.error, WrongPage), failed.error
        assert held(settings) == before

    (some,) = open_lists(settings, os.environ, Random())
    pages: list[Request] = []

    def breaks(request: Request) -> bytes:
        if pages:
            raise Unavailable("The provider is away.")
        pages.append(request)
        return some.get(request)

    with closing(open_stream(settings)) as stream, pytest.raises(Unavailable):
        read(replace(some, get=breaks), stream)
    assert held(settings) == before
    assert counts(settings) == (0, 0, 0, 0)


def test_a_run_that_is_stopped_between_two_pages_changes_nothing_and_the_next_one_does(
    market: Callable[..., Market], tmp_path: Path
) -> None:
    binance = market("binance", "rest_429:1")
    settings, stop = config(tmp_path, binance), threading.Event()
    stop.set()
    (one,) = symbols(settings, stop)
    assert isinstance(one, FailedList)
    assert isinstance(one.error, Unavailable)
    assert held(settings) == []
    assert counts(settings) == (8, 0, 0, 0)


@pytest.mark.parametrize("name", FEEDS)
def test_an_answer_that_was_cut_or_is_empty_is_refused(name: str, market: Callable[..., Market], tmp_path: Path) -> None:
    settings = config(tmp_path, market(name))
    done(settings)
    before = held(settings)
    cut, empty = market(name, "list_cut:1" if name == "binance" else "rest_cut:1"), market(name)
    for rows in empty.lists.values():
        rows.clear()
    for broken in (cut, empty):
        (failed,) = failures(config(tmp_path, broken))
        assert isinstance(failed.error, WrongPage)
        assert "not used" in str(failed.error)
        assert held(settings) == before


def test_a_list_that_has_lost_more_than_half_is_used_only_when_a_person_says_so(market: Callable[..., Market], tmp_path: Path) -> None:
    polygon = market("polygon")
    rows = [{"ticker": f"T{at:02}", "name": "x", "market": "stocks", "locale": "us"} for at in range(50)]
    polygon.lists["stocks"] = rows
    settings = config(tmp_path, polygon)
    done(settings)
    polygon.lists["stocks"] = rows[:24]
    (failed,) = failures(settings)
    assert "has 24 instruments, but the last one had 50" in str(failed.error)
    assert "accept_fewer = true" in str(failed.error)
    assert len(names(settings)) == 50
    assert counts(settings, accept_fewer=True) == (0, 26, 0, 0)
    polygon.lists["stocks"] = rows[:12]
    assert counts(settings) == (0, 12, 0, 0)


def test_with_a_row_that_cannot_be_read_nothing_counts_as_delisted_and_all_else_is_used(
    market: Callable[..., Market], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    binance = market("binance")
    settings = config(tmp_path, binance)
    done(settings)
    rows = binance.lists["spot"]
    rows[0] |= {"symbol": 7}
    rows[1]["status"] = "HALT"
    rows[2] |= {"symbol": "NEWUSDT", "baseAsset": "NEW"}
    (one,) = done(settings)
    assert (one.listed, one.delisted, one.changed, one.unreadable) == (1, 0, 1, 1)
    assert "1 of 8 rows of page 1 cannot be read" in caplog.text
    assert len(names(settings)) == 9
    rows[0]["symbol"] = "BTCUSDT"
    assert counts(settings) == (0, 1, 0, 0)


@pytest.mark.parametrize("wrong", ["X\0USDT", "X" * 1_025])
def test_a_name_that_no_store_can_hold_is_a_row_that_cannot_be_read(wrong: str, market: Callable[..., Market], tmp_path: Path) -> None:
    binance = market("binance")
    binance.lists["spot"][0]["symbol"] = wrong
    settings = config(tmp_path, binance)
    (one,) = done(settings)
    assert (one.listed, one.unreadable) == (7, 1)


def test_of_several_rows_of_a_name_the_listed_one_counts_whatever_their_order() -> None:
    rows = [Instrument("A", "A", "1", listed=False), Instrument("A", "A", "2"), Instrument("A", "A", "3", listed=False)]
    for some in (rows, rows[::-1]):
        found, hidden = one_of_each_name(table_of(some))
        assert [row["id"] for row in found.to_pylist()] == ["2"]
        assert hidden == 2


def test_a_refused_key_says_what_to_do_and_the_other_providers_go_on(
    market: Callable[..., Market], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPELINE_ALPACA_KEY", "bad")
    settings = config(tmp_path, market("alpaca"), market("binance"))
    failed, kept = symbols(settings, threading.Event())
    assert isinstance(failed, FailedList)
    assert isinstance(failed.error, Barred)
    assert 'lists_url = "https://paper-api.alpaca.markets"' in str(failed.error)
    assert isinstance(kept, Symbols)
    assert (kept.provider, kept.listed) == ("binance", 8)


# Killed


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from tapeline.app.tasks import symbols
from tapeline.config import load
from tapeline.stores.lake import files
from tapeline.stores.lake.instruments import LakeInstruments
from tapeline.stores.postgres.instruments import PostgresInstruments

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv[2]
if where == "before the lake's commit":
    files.commit = die
if where == "after the lake's commit":
    whole = files.commit
    files.commit = lambda *some, **more: (whole(*some, **more), die())
if where == "between the stores":
    PostgresInstruments.put = die
list(symbols(load(Path(sys.argv[1]), os.environ), threading.Event()))
"""
POINTS = ("before the lake's commit", "after the lake's commit", "between the stores")


@pytest.mark.parametrize("again", ["the same list", "another list"])
@pytest.mark.parametrize("where", POINTS)
def test_killed_anywhere_the_next_run_makes_both_stores_equal_and_no_version_is_lost(
    where: str, again: str, market: Callable[..., Market], tmp_path: Path, database: str
) -> None:
    binance = market("binance")
    settings = config(tmp_path, binance, database=database)
    path = tmp_path / "tapeline.toml"
    block = f'[[providers]]\nname = "binance"\nurl = "{binance.url}"\n[[stores]]\nurl = "lake:"\n[[stores]]\nurl = "{database}"\n'
    path.write_text(f'data_dir = "{tmp_path / "data"}"\n{block}')
    done(settings)
    first = held(settings)
    gone = binance.lists["spot"].pop()
    binance.lists["spot"][0]["status"] = "HALT"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), where], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if again == "another list":
        binance.lists["spot"].append(gone)
    lake, other = open_instruments(settings)
    half = lake.versions(Versions()).to_pylist()
    assert (half == first) == (where == "before the lake's commit")
    assert other.versions(Versions()).to_pylist() == first
    done(settings)
    rows = held(settings)
    keys = [(row["native"], row["valid_from_ns"]) for row in rows]
    assert {(row["native"], row["valid_from_ns"]) for row in half} <= set(keys)
    assert len(set(keys)) == len(keys)
    listed = {row["symbol"]: row["status"] for row in valid(settings)}
    assert listed == {f"{row['baseAsset']}/{row['quoteAsset']}": row["status"] for row in binance.lists["spot"]}
    assert counts(settings) == (0, 0, 0, 0)


def test_a_store_that_is_added_later_gets_all_versions(market: Callable[..., Market], tmp_path: Path, database: str) -> None:
    binance = market("binance")
    alone = config(tmp_path, binance)
    done(alone)
    binance.lists["spot"].pop()
    done(alone)
    both = config(tmp_path, binance, database=database)
    assert counts(both) == (0, 0, 0, 0)
    assert held(both) == held(alone)
    assert len(held(both)) == 8


def test_the_same_list_again_writes_nothing(market: Callable[..., Market], tmp_path: Path, database: str) -> None:
    settings = config(tmp_path, market("polygon"), database=database)
    done(settings)

    def state() -> tuple[int, list[Any], list[Path]]:
        folder = settings.root / "lake" / "instruments"
        with closing(dbapi.connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT xmin::text, native FROM tapeline_instruments ORDER BY native")
            return DeltaTable(str(folder)).version(), cursor.fetchall(), sorted(folder.rglob("*.parquet"))

    before = state()
    assert counts(settings) == (0, 0, 0, 0)
    assert state() == before


def test_the_lake_keeps_no_file_that_its_log_does_not_name_and_its_log_stays_short(tmp_path: Path) -> None:
    lake = LakeInstruments(tmp_path)
    for step in range(45):
        keep([lake], SOME, whole([Instrument("A", "A", name=str(step)), Instrument("B", "B")], NOON + step * NS_PER_S))
    assert len(lake.versions(Versions())) == 46
    folder = tmp_path / "instruments"
    table = DeltaTable(str(folder))
    assert sorted(path.name for path in folder.rglob("part-*")) == [Path(uri).name for uri in table.file_uris()]
    assert (folder / "_delta_log" / "_last_checkpoint").exists()


def test_check_names_a_damaged_file_and_two_versions_at_a_time_and_vacuum_deletes_what_no_log_names(tmp_path: Path) -> None:
    lake = LakeInstruments(tmp_path)
    for step in range(3):
        keep([lake], SOME, whole([Instrument("A", "A", name=str(step)), Instrument("B", "B")], NOON + step * NS_PER_S))

    def found() -> list[tuple[str, str, str]]:
        (one,) = check(tmp_path, lambda *_: BY_RAW, None, lambda *_: None)
        return [(each.problem, each.file or "", each.detail) for each in one.findings]

    assert found() == []
    (path,) = (tmp_path / "instruments").rglob("part-*")
    left = path.with_name("part-left.parquet")
    left.write_bytes(b"left by a process that died")
    os.utime(left, (0, 0))
    assert [(one.table, one.files) for one in vacuum(tmp_path)] == [("instruments", 1)]
    assert not left.exists()
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    ((problem, file, detail),) = found()
    assert (problem, file) == ("damaged", str(path.relative_to(tmp_path / "instruments")))
    assert "bytes were changed" in detail
    assert "restore the file from a backup" in detail
    path.write_bytes(good)
    row = lake.versions(Versions(open=True)).filter(pc.equal(lake.versions(Versions(open=True))["native"], "A")).to_pylist()[0]
    lake.put(pa.Table.from_pylist([row | {"valid_from_ns": NOON + NS_PER_S // 2}], INSTRUMENTS))
    assert [one[0] for one in found()] == ["version twice", "version twice"]


def test_a_clock_that_jumped_back_makes_no_version_that_ends_before_it_begins(tmp_path: Path) -> None:
    lake = LakeInstruments(tmp_path)
    for step, name in enumerate("xyz"):
        keep([lake], SOME, whole([Instrument("A", "A", name=name)], NOON - step * NS_PER_S))
    rows = lake.versions(Versions()).to_pylist()
    assert [(row["name"], row["valid_from_ns"], row["valid_to_ns"]) for row in rows] == [
        *(("x", NOON, NOON + 1), ("y", NOON + 1, NOON + 2), ("z", NOON + 2, None))
    ]


def test_a_table_of_the_user_s_with_that_name_stays_as_it_is(market: Callable[..., Market], tmp_path: Path, database: str) -> None:
    with closing(dbapi.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE instruments (mine text)")
        cursor.execute("INSERT INTO instruments VALUES ('x')")
        connection.commit()
    settings = config(tmp_path, market("binance"), database=database)
    done(settings)
    assert len(held(settings)) == 8
    with closing(dbapi.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM instruments")
        assert cursor.fetchall() == [("x",)]


# Whatever lists come


SOME = Lists("binance", "spot", "spot", LISTS["binance"], lambda _: b"")
_TEXTS = st.sampled_from([None, "", "x", "é"])
_INSTRUMENTS = st.builds(
    lambda native, id_, name, listed, step: Instrument(f"{native}/Q", native, id_, name, listed=listed, tick_size=step),
    st.sampled_from("abcdef"),
    st.sampled_from([None, "1", "2", "3"]),
    _TEXTS,
    st.booleans(),
    st.sampled_from([None, 0.1, 0.01]),
)
_LISTS = st.lists(st.lists(_INSTRUMENTS, min_size=1, max_size=7), min_size=1, max_size=6)


def whole(instruments: Sequence[Instrument], at: int = NOON) -> WholeList:
    rows, hidden = one_of_each_name(table_of(instruments))
    return WholeList(rows, at, 1, hidden)


def fold(lists: Sequence[Sequence[Instrument]]) -> pa.Table:
    """The versions after some lists that came one second after another."""
    versions = INSTRUMENTS.empty_table()
    for step, instruments in enumerate(lists):
        open_ = versions.filter(versions["valid_to_ns"].is_null())
        changes = compare(open_, whole(instruments), NOON + step * NS_PER_S, WHOSE).versions.to_pylist()
        rows = {(row["native"], row["valid_from_ns"]): row for row in (*versions.to_pylist(), *changes)}
        versions = pa.Table.from_pylist(list(rows.values()), INSTRUMENTS)
    return in_order(versions)


def as_listed(instruments: Sequence[Instrument]) -> list[Row]:
    return sorted(whole(instruments).rows.to_pylist(), key=lambda row: row["native"])


@given(_LISTS)
def test_any_lists_give_at_each_moment_exactly_the_list_of_that_moment(lists: list[list[Instrument]]) -> None:
    rows = fold(lists).to_pylist()
    for step, instruments in enumerate(lists):
        for at in (NOON + step * NS_PER_S, NOON + (step + 1) * NS_PER_S - 1):
            then = [{name: row[name] for name in LISTED.names} for row in rows if _valid(row, at)]
            assert sorted(then, key=lambda row: row["native"]) == as_listed(instruments)
    assert not any(_valid(row, NOON - 1) for row in rows)


@given(_LISTS)
def test_any_lists_every_difference_is_counted_and_the_same_list_again_is_none(lists: list[list[Instrument]]) -> None:
    before = fold(lists[:-1]) if lists[:-1] else INSTRUMENTS.empty_table()
    before = before.filter(before["valid_to_ns"].is_null())
    found, at = whole(lists[-1]), NOON + 60 * NS_PER_S
    changes = compare(before, found, at, WHOSE)
    was = {row["native"]: row for row in before.to_pylist()}
    now = {row["native"]: row for row in found.rows.to_pylist()}
    assert changes.symbols.instruments == sum(row["listed"] for row in now.values())
    listed_before = sum(row["listed"] for row in was.values())
    newly_known = sum(not row["listed"] and name not in was for name, row in now.items())
    assert changes.symbols.instruments == listed_before + changes.symbols.listed - changes.symbols.delisted + newly_known
    differ = {
        name for name in {*was, *now} if name not in was or name not in now or any(was[name][c] != now[name][c] for c in LISTED.names)
    }
    assert {row["native"] for row in changes.versions.to_pylist()} == differ
    assert bool(differ) == any((changes.symbols.listed, changes.symbols.delisted, changes.symbols.renamed, changes.symbols.changed))


def test_both_stores_hold_what_any_lists_give(tmp_path: Path, database: str) -> None:
    random = Random(1)
    settings = Config(data_dir=str(tmp_path), stores=(StoreConfig(), StoreConfig(database)))
    stores = open_instruments(settings)
    lists = [
        [
            Instrument(
                f"{name}/Q", name, random.choice((None, "1", "2")), random.choice((None, "é", "\U0001f600")), listed=random.random() < 0.8
            )
            for name in "abcdefgh"
            if random.random() < 0.7
        ]
        or [Instrument("a", "a")]
        for _ in range(12)
    ]
    for step, instruments in enumerate(lists):
        keep(stores[:1] if step % 3 == 1 else stores[::-1], SOME, whole(instruments, NOON + step * NS_PER_S), accept_fewer=True)
    keep(stores, SOME, whole(lists[-1], NOON + 60 * NS_PER_S), accept_fewer=True)
    expected = fold(lists).to_pylist()
    for store in stores:
        assert store.versions(Versions()).to_pylist() == expected
        for wanted in some_of(expected):
            found = store.versions(wanted).to_pylist()
            assert found == [row for row in expected if _wanted(row, wanted)]
    assert store_columns(database) == {*INSTRUMENTS.names, "valid_from", "valid_to"}


def some_of(rows: list[Row]) -> list[Versions]:
    middle = NOON + 5 * NS_PER_S
    return [
        *(Versions("binance"), Versions("polygon"), Versions("binance", "spot"), Versions(market="futures")),
        *(Versions(symbols=(rows[0]["symbol"], "none")), Versions(symbols=()), Versions(open=True)),
        *(Versions(at_ns=middle), Versions(at_ns=middle - 1), Versions(since_ns=middle), Versions("binance", "spot", since_ns=middle)),
    ]


def _wanted(row: Row, wanted: Versions) -> bool:
    later = wanted.since_ns is None or row["valid_from_ns"] > wanted.since_ns or (row["valid_to_ns"] or 0) > wanted.since_ns
    return (
        wanted.provider in (None, row["provider"])
        and wanted.market in (None, row["market"])
        and (wanted.symbols is None or row["symbol"] in wanted.symbols)
        and (wanted.at_ns is None or _valid(row, wanted.at_ns))
        and (not wanted.open or row["valid_to_ns"] is None)
        and later
    )


def store_columns(database: str) -> set[str]:
    with closing(dbapi.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM instruments LIMIT 0")
        return set(cursor.fetch_arrow_table().schema.names)


PAGES = [(name, market) for name, how in LISTS.items() for market in sorted(set(how.markets.values()))]


@pytest.mark.parametrize(("name", "kind"), PAGES)
@given(data=st.data())
def test_any_bytes_are_a_page_or_are_refused(name: str, kind: str, data: st.DataObject) -> None:
    from frames import anything, spoiled

    how, good = LISTS[name], good_pages(name, kind)
    (request, *_) = how.first(kind)
    body = data.draw(anything() | spoiled(good))
    with suppress(WrongPage):
        page = how.page(kind, request, body)
        table_of(readable(page.rows)).validate(full=True)
        assert page.following is None or page.following.path.startswith("/")


def good_pages(name: str, kind: str) -> list[bytes]:
    rows = Simulator(SimulatorOptions(name=name)).listings[kind][:2]
    if name == "binance":
        return [json.dumps({"symbols": rows}).encode()]
    if name == "polygon":
        return [json.dumps({"status": "OK", "results": rows, "next_url": "https://api.massive.com/v3/reference/tickers?cursor=a"}).encode()]
    return [json.dumps({"option_contracts": rows, "next_page_token": "MTA="} if kind == "options" else rows).encode()]


# The raw records


def test_the_raw_records_alone_give_the_same_list_and_are_accounted_for(market: Callable[..., Market], tmp_path: Path) -> None:
    alpaca = market("alpaca", "rest_page:3")
    settings = config(tmp_path, alpaca, feeds={"alpaca": "opra"})
    done(settings)
    with closing(open_stream(settings)) as stream:
        chunk = stream.read(RAW_TOPIC, {}, 100)
    assert chunk is not None
    records = chunk.batch.to_pylist()
    assert {(row["provider"], row["feed"], row["connection"], row["kind"]) for row in records} == {("alpaca", "opra", "", "instruments")}
    heads, bodies = zip(*(row["payload"].split(b"\n", 1) for row in records), strict=True)
    headers = [json.loads(head) for head in heads]
    assert [(one["page"], one["done"]) for one in headers] == [(1, False), (2, False), (3, False), (3, True)]
    assert set(headers[0]) == set(ListHeader.__struct_fields__)
    assert [json.loads(body)["option_contracts"] for body in bodies[:3]] == [
        sorted(alpaca.lists["options"], key=lambda row: str(row["symbol"]))[at : at + 3] for at in (0, 3, 6)
    ]
    found: list[Instrument] = []
    for head, body in zip(headers[:3], bodies, strict=False):
        found += readable(LISTS["alpaca"].page(head["market"], Request(head["path"]), body).rows)
    again = WholeList(one_of_each_name(table_of(found))[0], records[-1]["received_ns"])
    versions = compare(INSTRUMENTS.empty_table(), again, again.read_ns, ("alpaca", "options")).versions
    assert versions.to_pylist() == held(settings)

    normalized = normalize_all(chunk, DECODERS)
    assert {topic.table: normalized.batches[topic].num_rows for topic in NORMALIZED_TOPICS if topic is not NOTICES_TOPIC} == {
        "ticks": 0,
        "bars": 0,
        "rejected": 0,
    }
    notices = normalized.batches[NOTICES_TOPIC].to_pylist()
    assert [(row["kind"], json.loads(row["detail"])) for row in notices] == [("instruments", head) for head in headers]
    count = normalized.counts["alpaca", "opra"]
    assert count.seen == count.notices == 4


# The job, the commands and the reading


def test_the_job_runs_daily_where_a_feed_has_a_list_and_its_record_says_what_it_did(market: Callable[..., Market], tmp_path: Path) -> None:
    settings = config(tmp_path, market("binance"), market("polygon"))
    job = jobs_of(settings)["symbols"]
    assert job.schedule.cron == "0 5 * * *"
    runs = Runs(SqliteDatabase(tmp_path / "runs.sqlite", lambda: NOON))
    outcome = run(settings, job, RunRequest(), runs, threading.Event(), lambda: NOON, Random(1))
    assert outcome.state == "succeeded", outcome.error
    assert {name: outcome.result[name] for name in ("instruments", "listed", "delisted", "renamed", "changed", "failed")} == {
        "instruments": 16,
        "listed": 16,
        "delisted": 0,
        "renamed": 0,
        "changed": 0,
        "failed": [],
    }
    (kept,) = [one for one in outcome.result["lists"] if one["provider"] == "polygon"]
    assert kept == asdict(Symbols("polygon", "stocks", 8, listed=8, pages=2))


def test_a_feed_without_a_list_has_no_such_job_and_asking_for_one_says_so(tmp_path: Path) -> None:
    settings = Config(data_dir=str(tmp_path), providers=(ProviderConfig(name="alpaca", feed="test"),))
    assert "symbols" not in jobs_of(settings)
    with pytest.raises(ConfigError, match="No configured feed has a list of instruments"):
        list(symbols(settings, threading.Event()))
    with pytest.raises(ConfigError, match="'meridian' is not a provider with a list"):
        list(symbols(settings, threading.Event(), "meridian"))
    asked = JobConfig(job="symbols", arguments={"provider": "binance", "accept_fewer": True})
    assert jobs_of(Config(jobs=(asked,)))["symbols"].settings.arguments == asked.arguments


def test_the_key_goes_only_to_the_address_of_the_lists_or_of_the_stand_in(market: Callable[..., Market], tmp_path: Path) -> None:
    alpaca = market("alpaca")
    http = alpaca.url.replace("ws", "http", 1)
    for block in ({"url": alpaca.url}, {"rest_url": http}, {"lists_url": http, "rest_url": "http://127.0.0.1:1"}):
        settings = Config(data_dir=str(tmp_path / "-".join(block)), providers=(ProviderConfig(name="alpaca", feed="iex", **block),))
        assert counts(settings) == (8, 0, 0, 0)


def test_sql_the_api_and_the_command_show_the_list_of_any_moment(market: Callable[..., Market], tmp_path: Path, database: str) -> None:
    binance = market("binance")
    settings = config(tmp_path, binance, database=database)
    with closing(tapeline.connect(config=settings)) as db:
        assert db.sql("SELECT * FROM instruments").fetchall() == []
    assert tapeline.instruments(config=settings).arrow().num_rows == 0
    done(settings)
    then = held(settings)[0]["valid_from_ns"]
    binance.lists["spot"] = binance.lists["spot"][1:]
    done(settings)
    question = "SELECT symbol FROM instruments WHERE valid_from_ns <= {t} AND (valid_to_ns IS NULL OR {t} < valid_to_ns) ORDER BY symbol"
    now = max(row["valid_to_ns"] or 0 for row in held(settings))
    with closing(tapeline.connect(config=settings)) as db:
        assert len(db.sql(question.format(t=then)).fetchall()) == 8
        assert len(db.sql(question.format(t=now)).fetchall()) == 7
        assert db.sql("SELECT epoch_us(valid_to) FROM instruments WHERE valid_to_ns IS NOT NULL").fetchall() == [(now // 1_000,)]
    for source in ("lake", "postgresql"):
        every = tapeline.instruments(config=settings, source=source).arrow()
        assert every["symbol"].to_pylist() == names(settings)
        (bitcoin,) = tapeline.instruments("BTC/USDT", at=then, provider="binance", config=settings, source=source).arrow().to_pylist()
        assert (bitcoin["native"], bitcoin["valid_to_ns"]) == ("BTCUSDT", now)
        assert every["valid_from"].cast(pa.int64()).to_pylist() == every["valid_from_ns"].to_pylist()
        assert tapeline.instruments("BTC/USDT", config=settings, source=source).arrow().num_rows == 0
        assert tapeline.instruments(at=then - 1, config=settings, source=source).arrow().num_rows == 0
    with pytest.raises(WrongArgument, match="source = 'redis'"):
        tapeline.instruments(config=settings, source="redis")
    path = tmp_path / "tapeline.toml"
    path.write_text(f'data_dir = "{settings.data_dir}"\n')
    assert load(path, {}).root == settings.root
    shown = CliRunner().invoke(app, ["symbols", "--config", str(path), "--format", "json"])
    assert shown.exit_code == 0, shown.output
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["symbol"] for row in rows] == names(settings)
    shown = CliRunner().invoke(app, ["symbols", "BTC/USDT", "--at", str(then), "--config", str(path)])
    assert "BTC/USDT" in shown.stdout


def test_each_store_says_which_it_is(tmp_path: Path, database: str) -> None:
    stores: list[InstrumentStore] = open_instruments(Config(data_dir=str(tmp_path), stores=(StoreConfig(), StoreConfig(database))))
    assert [store.name for store in stores] == ["lake", "postgresql"]
    assert [store.changed_ns("binance", "spot") for store in stores] == [0, 0]
    with pytest.raises(ConfigError, match="no store 'postgresql'"):
        open_instruments(Config(data_dir=str(tmp_path)), "postgresql")
