"""Polygon.io's history: what is asked for, which pages are refused, and that a fetched event is the one that came live."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames import anything, raw_batch, rows, spoiled
from made import NOON
from tapeline.jobs.backfill.fetching import Source, fetch, raw_record
from tapeline.providers.history import Page, PageHeader, Request, Span, WrongPage
from tapeline.providers.normalizing import Normalized, normalize
from tapeline.providers.polygon.history import PAGE_ROWS, headers
from tapeline.providers.registry import DECODERS, HISTORIES, identity
from tapeline.records import BARS_TOPIC, NS_PER_MS, NS_PER_S, RAW_TOPIC, TICKS_TOPIC, Chunk, Topic
from tapeline.secret import NO_SECRET, Secret
from tapeline.stores import Store, Written
from tapeline.stores.lake import Lake
from tapeline.stores.postgres import Postgres

HISTORY = HISTORIES["polygon"]
T0 = NOON // NS_PER_MS
FETCHED_NS = NOON + 3600 * NS_PER_S
SYMBOLS = {"stocks": "AAPL", "options": "SPY251219C00650000", "crypto": "BTC/USD"}
EACH = [(feed, channel) for feed, channels in HISTORY.channels.items() for channel in channels]
EACH_CHANNEL = pytest.mark.parametrize(("feed", "channel"), EACH)
#: Some ns behind a millisecond.
RAGGED = (0, 7, 999_999)


def span(feed: str, channel: str, seconds: int = 60) -> Span:
    return Span(feed, channel, SYMBOLS[feed], NOON, NOON + seconds * NS_PER_S)


def past(feed: str, channel: str, at: int) -> dict[str, Any]:
    """The `at`th event of a minute as REST gives it."""
    ns = NOON + at * NS_PER_S + RAGGED[at % 3]
    if channel in ("A", "AM", "XA", "XAS"):
        width_ms = 60_000 if channel in ("AM", "XA") else 1_000
        return {"c": 2.5, "h": 3.0, "l": 1.0, "n": 4, "o": 1.5, "t": T0 + at * width_ms, "v": 100, "vw": 2.125}
    if channel == "XT":
        row = {"conditions": [1 + at % 2], "exchange": 1, "id": str(at), "participant_timestamp": ns, "price": 35059.99}
        return row | {"received_timestamp": ns + 9, "size": 0.0058883}
    sip = {"participant_timestamp": ns - 5, "sip_timestamp": ns, "sequence_number": 1063 + at}
    if channel == "Q":
        ask = {"ask_exchange": 11, "ask_price": 171.6, "ask_size": 100}
        bid = {"bid_exchange": 12, "bid_price": 171.5, "bid_size": 200}
        return [ask | bid, ask, bid | {"conditions": [1], "indicators": [604]}][at % 3] | sip
    if feed == "options":
        return {"conditions": [209], "exchange": 302, "price": 7.2, "size": 1} | sip | ({"sequence_number": 0} if at == 3 else {})
    trade = {"correction": 0, "decimal_size": "100.5", "exchange": 11, "id": str(at), "price": 171.55, "size": 100, "tape": 3} | sip
    return trade | [{}, {"conditions": [12, 41]}, {"exchange": 4, "trf_id": 201, "trf_timestamp": ns - 5}][at % 3]


def live(feed: str, channel: str, at: int) -> dict[str, Any]:
    """The same event as the stream sends it."""
    row = past(feed, channel, at)
    ms = (NOON + at * NS_PER_S) // NS_PER_MS
    pair = {"ev": channel, "pair": "BTC-USD"}
    if channel in ("A", "AM", "XA", "XAS"):
        head = pair if feed == "crypto" else {"ev": channel, "sym": ticker(feed)}
        return head | {name: row[name] for name in ("c", "h", "l", "o", "v", "vw")} | {"z": 25, "s": row["t"], "e": row["t"] + 1}
    if channel == "XT":
        return pair | {"p": row["price"], "t": ms, "s": row["size"], "c": row["conditions"], "i": row["id"], "x": 1, "r": ms + 1}
    head = {"ev": channel, "sym": ticker(feed), "t": ms, "q": row["sequence_number"]}
    names = {"bp": "bid_price", "bs": "bid_size", "bx": "bid_exchange", "ap": "ask_price", "as": "ask_size", "ax": "ask_exchange"}
    names |= {"x": "exchange", "p": "price", "s": "size", "i": "id", "ds": "decimal_size", "z": "tape", "trfi": "trf_id"}
    names |= {} if channel == "Q" else {"c": "conditions"}
    return head | {short: row[long] for short, long in names.items() if long in row} | ({"c": 0} if channel == "Q" else {})


def ticker(feed: str) -> str:
    return ("O:" if feed == "options" else "") + SYMBOLS[feed]


def body(some: Sequence[dict[str, Any]], **more: Any) -> bytes:
    return json.dumps({"status": "OK", "request_id": "a47d", "results": some, **more}).encode()


def next_url(cursor: str) -> str:
    return f"https://api.massive.com/v3/trades/AAPL?cursor={cursor}"


class Provider:
    """Answers with prepared pages, one after the other, and remembers what it was asked for."""

    def __init__(self, *pages: bytes) -> None:
        self.pages, self.asked = list(pages), list[str]()

    def __call__(self, request: Request) -> bytes:
        self.asked.append(request.path)
        return self.pages.pop(0)


def fetched(wanted: Span, *pages: bytes, at_ns: int = FETCHED_NS, get: Provider | None = None) -> Normalized:
    """What the pages of a span become."""
    source = Source(HISTORY, get or Provider(*pages), lambda: at_ns)
    records = [raw_record("polygon", wanted.feed, "repair-1", one) for one in fetch(source, wanted)]
    return normalize(Chunk.dense(RAW_TOPIC, 0, 100, pa.concat_batches(records)), DECODERS)


def streamed(feed: str, events: Sequence[dict[str, Any]]) -> Normalized:
    return normalize(Chunk.dense(RAW_TOPIC, 0, 0, raw_batch("polygon", feed, [json.dumps(events).encode()], received_ns=NOON)), DECODERS)


# What a page becomes


@EACH_CHANNEL
def test_a_fetched_event_is_the_row_that_the_stream_would_have_made_but_for_its_finer_time(feed: str, channel: str) -> None:
    from_history = fetched(span(feed, channel, 600), body([past(feed, channel, at) for at in range(6)]))
    from_stream = streamed(feed, [live(feed, channel, at) for at in range(6)])
    table = "bars" if HISTORY.channels[feed][channel] == "bar" else "ticks"
    own = {"received_ns", "latency_ns", "raw_offset", "raw_index", "ts_ns"} | ({"conditions"} if channel == "Q" else set())
    own |= {"trades", "final"} if table == "bars" else set()
    old, new = rows(from_stream)[table], rows(from_history)[table]
    assert len(new) == 6
    assert [{name: row[name] for name in row if name not in own} for row in new] == [
        {name: row[name] for name in row if name not in own} for row in old
    ]
    assert [row["ts_ns"] // NS_PER_MS for row in new] == [row["ts_ns"] // NS_PER_MS for row in old]
    if table == "ticks":
        assert [row["ts_ns"] % NS_PER_MS for row in new] == [*RAGGED, *RAGGED]
    (count,) = from_history.counts.values()
    assert (count.seen, count.ticks + count.bars, count.notices, count.rejected) == (7, 6, 1, 0)


def test_a_bar_is_final_once_late_trades_can_no_longer_revise_it() -> None:
    def finals(channel: str, after_s: int) -> list[bool]:
        page = body([past("stocks", channel, at) for at in range(3)], ticker="AAPL")
        result = fetched(span("stocks", channel, 600), page, at_ns=NOON + after_s * NS_PER_S)
        return [row["final"] for row in rows(result)["bars"]]

    assert finals("AM", 20 * 60) == [False, False, False]
    assert finals("AM", 22 * 60 + 1) == [True, True, False]
    assert finals("A", 20 * 60 + 3) == [True, True, False]


def test_a_bar_counts_its_trades_in_history() -> None:
    (row,) = rows(fetched(span("stocks", "AM"), body([past("stocks", "AM", 0)], ticker="AAPL")))["bars"]
    assert (row["trades"], row["ts_ns"], row["interval"], row["vwap"]) == (4, NOON, "1m", 2.125)


def test_a_trade_that_was_corrected_has_a_notice_beside_it_with_the_row() -> None:
    some = [past("stocks", "T", at) | {"correction": at % 2} for at in range(4)]
    result = fetched(span("stocks", "T"), body(some))
    found = rows(result)
    notices = [row for row in found["notices"] if row["kind"] == "correction"]
    assert [json.loads(row["detail"]) for row in notices] == [some[1], some[3]]
    places = {(row["raw_offset"], row["raw_index"]): row for row in found["ticks"]}
    assert len(places) == 4
    for notice in notices:
        trade = places[notice["raw_offset"], notice["raw_index"]]
        assert (trade["symbol"], trade["ts_ns"], trade["trade_id"]) == (
            notice["symbol"],
            notice["ts_ns"],
            json.loads(notice["detail"])["id"],
        )
    (count,) = result.counts.values()
    assert count.seen == count.ticks + count.notices == 4 + 2 + 1


def test_a_row_of_a_page_that_no_table_takes_is_one_reject_told_as_an_event() -> None:
    some = [past("stocks", "T", at) for at in range(3)]
    some[1]["price"] = -1
    (reject,) = rows(fetched(span("stocks", "T"), body(some)))["rejected"]
    told = json.loads(reject["payload"])
    assert (told["ev"], told["p"], told["i"], reject["raw_index"]) == ("T", -1.0, some[1]["id"], 1)


# Both stores


def write(store: Store, topic: Topic, batch: pa.RecordBatch) -> Written:
    return store.write(Chunk.dense(topic, 0, store.totals(topic).positions.get(0, 0), batch))


@pytest.mark.parametrize("fetched_first", [False, True], ids=["live first", "fetched first"])
@pytest.mark.parametrize(("feed", "channel"), [one for one in EACH if one[1] in ("T", "Q", "XT")])
def test_what_came_live_and_was_fetched_is_one_row_in_both_stores(
    feed: str, channel: str, fetched_first: bool, tmp_path: Path, database: str
) -> None:
    page = fetched(span(feed, channel, 600), body([past(feed, channel, at) for at in range(7)])).batches[TICKS_TOPIC]
    some = streamed(feed, [live(feed, channel, at) for at in range(1, 6)]).batches[TICKS_TOPIC]
    first, second = (page, some) if fetched_first else (some, page)
    with closing(Postgres(database, NO_SECRET, identity)) as postgres:
        for store in (Lake(tmp_path / "lake", identity), postgres):
            assert write(store, TICKS_TOPIC, first) == Written(first.num_rows, 0)
            assert write(store, TICKS_TOPIC, second) == Written(7 - first.num_rows, 5 if not fetched_first else second.num_rows)
            assert write(store, TICKS_TOPIC, page) == Written(0, 7)  # as when a job was killed and asks again


def test_a_bar_that_was_fetched_is_a_later_revision_and_the_same_one_once(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", identity)
    batches = [streamed("stocks", [live("stocks", "AM", 0)]), *[fetched(span("stocks", "AM"), body([past("stocks", "AM", 0)]))] * 2]
    assert [write(lake, BARS_TOPIC, some.batches[BARS_TOPIC]).rows for some in batches] == [1, 1, 0]


# What is asked for


def test_ticks_are_asked_for_in_ns_and_in_order() -> None:
    for feed, channel, path in (
        ("stocks", "T", "/v3/trades/AAPL"),
        ("stocks", "Q", "/v3/quotes/AAPL"),
        ("options", "T", "/v3/trades/O:SPY251219C00650000"),
        ("options", "Q", "/v3/quotes/O:SPY251219C00650000"),
        ("crypto", "XT", "/v3/trades/X:BTC-USD"),
    ):
        asked = urlsplit(HISTORY.first(span(feed, channel)).path)
        assert asked.path == path
        assert parse_qs(asked.query) == {
            "timestamp.gte": [str(NOON)],
            "timestamp.lt": [str(NOON + 60 * NS_PER_S)],
            "order": ["asc"],
            "sort": ["timestamp"],
            "limit": [str(PAGE_ROWS)],
        }


def test_bars_are_asked_for_unadjusted_from_the_window_on_that_the_start_lies_in() -> None:
    begin, end = NOON + 61 * NS_PER_S + 5, NOON + 180 * NS_PER_S
    for feed, channel, name, start_ms in (
        ("stocks", "AM", "AAPL/range/1/minute", T0 + 60_000),
        ("options", "A", "O:SPY251219C00650000/range/1/second", T0 + 61_000),
        ("crypto", "XA", "X:BTCUSD/range/1/minute", T0 + 60_000),
        ("crypto", "XAS", "X:BTCUSD/range/1/second", T0 + 61_000),
    ):
        path = HISTORY.first(Span(feed, channel, SYMBOLS[feed], begin, end)).path
        assert path == f"/v2/aggs/ticker/{name}/{start_ms}/{T0 + 179_999}?adjusted=false&sort=asc&limit={PAGE_ROWS}"


def test_quotes_of_crypto_have_no_history() -> None:
    assert "XQ" not in HISTORY.channels["crypto"]


def test_the_key_goes_in_a_header() -> None:
    assert headers(Secret("K"), Secret("")) == {"Authorization": "Bearer K"}


@pytest.mark.parametrize("symbol", ["A B", "A/../B", "A?x=1", "A\r\nX: y", "币"])
def test_no_symbol_is_more_than_a_symbol(symbol: str) -> None:
    for feed, channel in EACH:
        path = HISTORY.first(Span(feed, channel, symbol, 0, 10)).path
        assert path.isascii()
        assert not any(letter.isspace() for letter in path)
        assert path.partition("?")[0].count("/") == (9 if "/aggs/" in path else 3)


def test_pages_follow_one_another_at_whoever_was_asked_until_one_names_none() -> None:
    provider = Provider(
        body([past("stocks", "T", 0), past("stocks", "T", 1)], next_url=next_url("YWN0aXZl")),
        body([], next_url=next_url("bW9y")),
        body([past("stocks", "T", 1), past("stocks", "T", 2)]),  # it may go on at the very time
    )
    result = fetched(span("stocks", "T"), get=provider)
    assert provider.asked[1:] == ["/v3/trades/AAPL?cursor=YWN0aXZl", "/v3/trades/AAPL?cursor=bW9y"]
    assert [row["trade_id"] for row in rows(result)["ticks"]] == ["0", "1", "1", "2"]
    dones = [json.loads(row["detail"])["done"] for row in rows(result)["notices"]]
    assert dones == [False, False, True]


def test_a_page_tells_how_far_it_has_come() -> None:
    wanted = span("stocks", "T")
    page = HISTORY.page(wanted, HISTORY.first(wanted), body([past("stocks", "T", 0), past("stocks", "T", 4)]), T0)
    assert page == Page(2, NOON + 4 * NS_PER_S + 7, None)
    bars = span("stocks", "AM", 600)
    page = HISTORY.page(bars, HISTORY.first(bars), body([past("stocks", "AM", 2)], ticker="AAPL", status="DELAYED"), T0 + 3_600_000)
    with pytest.raises(WrongPage, match="which this plan sends late"):
        HISTORY.page(bars, HISTORY.first(bars), body([], ticker="AAPL", status="DELAYED"), T0 + 900_000)
    assert page == Page(1, NOON + 180 * NS_PER_S, None)
    assert HISTORY.page(bars, HISTORY.first(bars), b'{"status":"OK","ticker":"AAPL","resultsCount":0}', T0) == Page(0, 0, None)


TRADES = [past("stocks", "T", at) for at in range(3)]
LATER = {"sip_timestamp": NOON + 60 * NS_PER_S}


@pytest.mark.parametrize(
    ("channel", "page", "said"),
    [
        ("T", b"<html>busy</html>", "cannot be read"),
        ("T", b"", "cannot be read"),
        ("T", body(TRADES)[:-40], "cannot be read"),
        ("T", b"[]", "cannot be read"),
        ("T", body([{"price": 1}]), "cannot be read"),
        ("T", body([], status="ERROR", error="no such thing"), r"status 'ERROR' \(no such thing\)"),
        ("T", b"{}", "status ''"),
        ("T", body(TRADES[::-1]), "do not rise"),
        ("T", body([TRADES[0] | {"sip_timestamp": NOON - 1}]), "do not rise"),
        ("T", body([TRADES[0] | LATER]), "but only times before"),
        ("T", body([], next_url="no address"), "is not a valid address"),
        ("T", body([], next_url="https://api.massive.com/a b"), "is not a valid address"),
        ("T", body([], next_url="https://[/"), "cannot be read"),
        ("AM", body([past("stocks", "AM", 0)], ticker="MSFT"), "has rows of MSFT, not of AAPL"),
        ("AM", body([past("stocks", "AM", 0)] * 2, ticker="AAPL"), "do not rise"),
        ("AM", body([past("stocks", "AM", 1)], ticker="AAPL"), "but only times before"),
    ],
)
def test_a_page_that_is_not_what_was_asked_for_is_named(channel: str, page: bytes, said: str) -> None:
    with pytest.raises(WrongPage, match=said):
        fetched(span("stocks", channel), page)


@pytest.mark.parametrize(
    "pages",
    [
        [body(TRADES, next_url=next_url("a")), body(TRADES, next_url=next_url("b"))],
        [body(TRADES, next_url=next_url("a")), body([TRADES[2]], next_url=next_url("a"))],
        [body([], next_url=next_url("a")), body([], next_url=next_url("b")), body([], next_url=next_url("a"))],
    ],
    ids=["the same page under another cursor", "a cursor that leads to itself", "cursors that go round"],
)
def test_a_provider_that_repeats_itself_is_named(pages: list[bytes]) -> None:
    with pytest.raises(WrongPage, match=r"do not rise|repeats its cursor"):
        fetched(span("stocks", "T"), *pages)


# Any bytes

PAGES: dict[tuple[str, str], list[bytes]] = {
    (feed, channel): [
        body([past(feed, channel, at) for at in range(3)], next_url=next_url("a")),
        body([past(feed, channel, 0) | {"correction": 1}, past(feed, channel, 1)]),
    ]
    for feed, channel in EACH
}


@EACH_CHANNEL
@given(data=st.data())
def test_any_bytes_are_a_page_or_a_wrong_one(feed: str, channel: str, data: st.DataObject) -> None:
    some = data.draw(spoiled(PAGES[feed, channel]) | anything(), "page")
    wanted = span(feed, channel, 600)
    with suppress(WrongPage):
        page = HISTORY.page(wanted, HISTORY.first(wanted), some, T0)
        assert page.reached_ns == 0 or page.reached_ns > wanted.start_ns - 60 * NS_PER_S


@EACH_CHANNEL
@given(data=st.data())
def test_any_bytes_as_a_page_are_accounted_for(feed: str, channel: str, data: st.DataObject) -> None:
    some = data.draw(st.lists(spoiled(PAGES[feed, channel]) | anything(), min_size=1, max_size=3), "pages")
    asked = PageHeader(channel, data.draw(st.sampled_from([SYMBOLS[feed], ""])), "/x", T0, 0, 0)
    result = normalize(Chunk.dense(RAW_TOPIC, 0, 0, raw_batch("polygon", feed, [head(asked) + one for one in some], "fetched")), DECODERS)
    found = rows(result)
    (count,) = result.counts.values()
    assert count.seen == sum(map(len, found.values())) == count.ticks + count.bars + count.notices + count.rejected
    for reject in found["rejected"]:
        assert reject["reason"].startswith("page: ") is (reject["payload"] == some[reject["raw_offset"]])


def head(asked: PageHeader) -> bytes:
    return json.dumps({name: getattr(asked, name) for name in asked.__struct_fields__}).encode() + b"\n"
