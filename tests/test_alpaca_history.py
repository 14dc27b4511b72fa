"""Alpaca's history: pages are checked before they are kept, and what was fetched meets what came live as one row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames import NASTY_JSON, anything, raw_batch, rows
from made import NOON
from tapeline.jobs.backfill.fetching import Source, fetch
from tapeline.providers.alpaca import history as alpaca_history
from tapeline.providers.alpaca.history import SETTLED_NS, WEIGHT_A_MINUTE
from tapeline.providers.history import Page, PageHeader, Request, Span, WrongPage
from tapeline.providers.normalizing import Normalized, normalize
from tapeline.providers.registry import DECODERS, HISTORIES, identity
from tapeline.records import BARS_TOPIC, NS_PER_MS, NS_PER_S, RAW_TOPIC, TICKS_TOPIC, Chunk
from tapeline.secret import NO_SECRET, Secret
from tapeline.simulators.alpaca.session import timestamp
from tapeline.simulators.alpaca.tape import rfc3339
from tapeline.stores import Store
from tapeline.stores.lake import Lake
from tapeline.stores.postgres import Postgres

MINUTE = 60 * NS_PER_S
TRADES = Span("iex", "trades", "AAPL", NOON, NOON + MINUTE)
CRYPTO = Span("crypto", "trades", "BTC/USD", NOON, NOON + MINUTE)
OPTION = Span("opra", "trades", "AAPL240315C00172500", NOON, NOON + MINUTE)
QUOTES = Span("sip", "quotes", "AAPL", NOON, NOON + MINUTE)
BARS = Span("iex", "bars", "AAPL", NOON, NOON + 5 * MINUTE)
SPANS = [TRADES, CRYPTO, OPTION, QUOTES, BARS, Span("crypto", "dailyBars", "BTC/USD", NOON, NOON + MINUTE)]

TRADE: dict[str, Any] = {"t": NOON + 86_175_744, "x": "V", "p": 178.26, "s": 246, "c": ["@", "T"], "i": 1, "z": "C"}
QUOTE: dict[str, Any] = {"t": NOON + 28_160_898, "ax": " ", "ap": 0, "as": 0, "bx": "Q", "bp": 177.92, "bs": 4, "c": ["Y"], "z": "C"}
BAR: dict[str, Any] = {"t": NOON, "o": 178.26, "h": 178.26, "l": 178.21, "c": 178.21, "v": 1118, "n": 65, "vw": 178.235733}
CRYPTO_TRADE: dict[str, Any] = {"t": NOON + 537_052_000, "p": 29791, "s": 0.0016, "tks": "S", "i": -31_455_289}
OPTION_TRADE: dict[str, Any] = {"t": NOON + 563_394_560, "x": "B", "p": 0.37, "s": 1, "c": "I"}
ROW = {"trades": TRADE, "quotes": QUOTE, "bars": BAR, "dailyBars": BAR}
TAG = {"trades": "t", "quotes": "q", "bars": "b", "dailyBars": "d"}


def texted(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "t": rfc3339(row["t"]) if isinstance(row["t"], int) else row["t"]}


def body(span: Span, *found: dict[str, Any], token: str | None = None, symbol: str = "") -> bytes:
    """A page as REST gives it; a symbol without rows is missing from the map."""
    name = "bars" if span.channel == "dailyBars" else span.channel
    return json.dumps({name: {symbol or span.symbol: list(map(texted, found))} if found else {}, "next_page_token": token}).encode()


def fetched(span: Span, page: bytes, time_ns: int = NOON + 100 * MINUTE) -> Normalized:
    """What normalize makes of a page."""
    head = PageHeader(span.channel, span.symbol, "/x", time_ns // NS_PER_MS, span.start_ns, span.end_ns, done=True)
    record = msgspec.json.encode(head) + b"\n" + page
    return normalize(Chunk.dense(RAW_TOPIC, 0, 0, raw_batch("alpaca", span.feed, [record], "fetched", time_ns)), DECODERS)


def live(span: Span, *found: dict[str, Any], packed: bool = False, tag: str = "") -> Normalized:
    """What normalize makes of the same events as the stream sends them."""
    events = [{"T": tag or TAG[span.channel], "S": span.symbol, **row} for row in found]
    if packed:
        frame = msgspec.msgpack.encode([{**event, "t": timestamp(event["t"])} for event in events])
    else:
        frame = msgspec.json.encode([texted(event) for event in events])
    return normalize(Chunk.dense(RAW_TOPIC, 0, 1, raw_batch("alpaca", span.feed, [frame], received_ns=NOON + MINUTE)), DECODERS)


# What is asked for


def asked(request: Request) -> tuple[str, dict[str, str]]:
    parts = urlsplit(request.path)
    return parts.path, dict(parse_qsl(parts.query, strict_parsing=True))


def test_a_span_is_asked_for_to_the_nanosecond_with_both_ends_inclusive() -> None:
    path, query = asked(alpaca_history.first(Span("iex", "trades", "AAPL", NOON + 1, NOON + 10)))
    assert path == "/v2/stocks/trades"
    assert query == {
        "symbols": "AAPL",
        "start": "2024-03-15T12:00:00.000000001Z",
        "end": "2024-03-15T12:00:00.000000009Z",
        "limit": "10000",
        "sort": "asc",
        "feed": "iex",
    }


def test_each_feed_and_channel_is_asked_for_at_its_endpoint() -> None:
    found = {
        (feed, channel): asked(alpaca_history.first(Span(feed, channel, "BTC/USD", NOON, NOON + 1)))
        for feed, channels in alpaca_history.CHANNELS.items()
        for channel in channels
    }
    assert {key: path for key, (path, _) in found.items()} == {
        **{(feed, name): f"/v2/stocks/{name}" for feed in ("iex", "sip", "delayed_sip") for name in ("trades", "quotes", "bars")},
        **{(feed, "dailyBars"): "/v2/stocks/bars" for feed in ("iex", "sip", "delayed_sip")},
        **{(feed, "trades"): "/v1beta1/options/trades" for feed in ("opra", "indicative")},
        **{("crypto", name): f"/v1beta3/crypto/us/{name}" for name in ("trades", "quotes", "bars")},
        ("crypto", "dailyBars"): "/v1beta3/crypto/us/bars",
    }
    assert {feed: query.get("feed") for (feed, _), (_, query) in found.items()} == {
        "iex": "iex",
        "sip": "sip",
        "delayed_sip": "sip",
        **dict.fromkeys(("opra", "indicative", "crypto")),
    }
    bars = {key: query for key, (_, query) in found.items() if "ars" in key[1]}
    assert {(name, query["timeframe"]) for (_, name), query in bars.items()} == {("bars", "1Min"), ("dailyBars", "1Day")}
    assert {feed: query.get("adjustment") for (feed, _), query in bars.items()} == {
        **dict.fromkeys(("iex", "sip", "delayed_sip"), "raw"),
        "crypto": None,
    }


@pytest.mark.parametrize("symbol", ["BTC/USD", "BRK.B", "A,B", "A&feed=otc", "A\r\nX: y", "ä"])
def test_no_symbol_is_more_than_a_symbol(symbol: str) -> None:
    request = alpaca_history.first(Span("crypto", "trades", symbol, NOON, NOON + 1))
    assert asked(request)[1]["symbols"] == symbol
    assert request.path.isascii()
    assert not any(letter.isspace() for letter in request.path)
    assert "/" not in request.path.partition("?")[2]


def test_of_bars_the_window_that_holds_the_start_is_asked_for_too_and_of_the_delayed_feed_what_it_sent_then() -> None:
    def start(feed: str, channel: str) -> str:
        return asked(alpaca_history.first(Span(feed, channel, "AAPL", NOON + 30 * NS_PER_S, NOON + MINUTE)))[1]["start"]

    assert start("iex", "bars") == "2024-03-15T11:59:30.000000000Z"
    assert start("iex", "dailyBars") == "2024-03-14T11:00:30.000000000Z"
    assert start("delayed_sip", "trades") == "2024-03-15T11:45:30.000000000Z"


def test_the_account_s_keys_go_along_and_less_is_asked_than_the_smallest_plan_allows() -> None:
    assert alpaca_history.headers(Secret("k"), Secret("s")) == {"APCA-API-KEY-ID": "k", "APCA-API-SECRET-KEY": "s"}
    assert 0 < 2 * WEIGHT_A_MINUTE <= 200
    assert SETTLED_NS == 20 * NS_PER_S


# Pages


def pages_of(span: Span, *bodies: bytes) -> tuple[list[str], list[bytes | None]]:
    """Fetch what is there: the tokens that were asked for, and what was kept."""
    waiting, tokens = list(bodies), []

    def get(request: Request) -> bytes:
        tokens.append(asked(request)[1].get("page_token", ""))
        return waiting.pop(0)

    kept = [page.payload for page in fetch(Source(HISTORIES["alpaca"], get, lambda: NOON + 100 * MINUTE), span)]
    return tokens, kept


def test_the_token_is_followed_until_there_is_none_whatever_a_page_holds() -> None:
    first, last = body(TRADES, TRADE, token="a+/="), body(TRADES, {**TRADE, "i": 2})
    tokens, kept = pages_of(TRADES, first, body(TRADES, token="b"), last)
    assert tokens == ["", "a+/=", "b"]
    assert [page.partition(b"\n")[2] for page in kept if page] == [first, body(TRADES, token="b"), last]
    assert [json.loads(page.partition(b"\n")[0])["done"] for page in kept if page] == [False, False, True]


def test_a_page_says_how_far_it_came() -> None:
    found = alpaca_history.page(TRADES, alpaca_history.first(TRADES), body(TRADES, TRADE, {**TRADE, "t": NOON + 7 * NS_PER_S}), 0)
    assert found == Page(2, NOON + 7 * NS_PER_S, None)
    assert alpaca_history.page(BARS, alpaca_history.first(BARS), body(BARS, BAR), 0).reached_ns == NOON + MINUTE
    assert alpaca_history.page(TRADES, alpaca_history.first(TRADES), body(TRADES), 0) == Page(0, 0, None)
    assert alpaca_history.page(TRADES, alpaca_history.first(TRADES), b'{"trades":null,"next_page_token":null}', 0) == Page(0, 0, None)


WHOLE = body(TRADES, TRADE, token="x")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (WHOLE[: len(WHOLE) // 2], "cannot be read"),
        (b"", "cannot be read"),
        (b"<html>busy</html>", "cannot be read"),
        (b'{"message":"forbidden."}', "cannot be read"),
        (b'{"trades":{}}', "next_page_token"),
        (body(QUOTES, QUOTE), "trades"),
        (body(TRADES, TRADE, symbol="MSFT"), "rows of 'MSFT' instead of 'AAPL'"),
        (body(TRADES, {**TRADE, "p": None}), "cannot be read"),
        (body(TRADES, {**TRADE, "t": "yesterday"}), "the time 'yesterday'"),
        (body(TRADES, {**TRADE, "t": "2606-01-01T00:00:00Z"}), "the time '2606"),
        (body(TRADES, {**TRADE, "t": NOON - 1}), "do not rise from 2024-03-15T12:00:00.000000000Z"),
        (body(TRADES, TRADE, {**TRADE, "t": TRADE["t"] - 1}), "do not rise"),
    ],
)
def test_a_page_that_is_not_what_was_asked_for_is_named_and_nothing_of_it_is_kept(wrong: bytes, said: str) -> None:
    with pytest.raises(WrongPage, match=said):
        alpaca_history.page(TRADES, alpaca_history.first(TRADES), wrong, 0)
    with pytest.raises(WrongPage, match=said):
        pages_of(TRADES, body(TRADES, token="first"), wrong)


def test_a_page_that_goes_back_behind_the_one_before_is_named() -> None:
    later = {**TRADE, "t": TRADE["t"] + 1}
    with pytest.raises(WrongPage, match="do not rise"):
        pages_of(TRADES, body(TRADES, later, token="a"), body(TRADES, TRADE))


@pytest.mark.parametrize("tokens", ["aa", "aba", "abcb"])
@pytest.mark.parametrize("moving", [False, True], ids=["empty pages", "pages with rows"])
def test_tokens_that_go_in_a_circle_end_in_an_error(tokens: str, moving: bool) -> None:
    row = [{**TRADE, "t": NOON + at} for at in range(len(tokens))]
    by_token = {
        before: body(TRADES, *row[at : at + 1] if moving else [], token=token)
        for at, (before, token) in enumerate(zip(["", *tokens], tokens, strict=False))
    }
    source = Source(HISTORIES["alpaca"], lambda request: by_token[asked(request)[1].get("page_token", "")], lambda: NOON + 100 * MINUTE)
    with pytest.raises(WrongPage, match=r"repeats its cursor|do not rise"):
        for _ in fetch(source, TRADES):
            pass


@given(span=st.sampled_from(SPANS), data=st.data())
def test_any_bytes_are_a_page_or_a_wrong_one_and_normalize_never_raises(span: Span, data: st.DataObject) -> None:
    good = body(span, ROW[span.channel], token="x")
    token = data.draw(st.sampled_from(NASTY_JSON))
    at = data.draw(st.integers(0, len(good)))
    cut = good[:at] + data.draw(st.sampled_from([b"", token])) + good[data.draw(st.integers(at, len(good))) :]
    name = data.draw(st.sampled_from(list(ROW[span.channel])))
    replaced = good.replace(json.dumps(texted(ROW[span.channel])[name]).encode(), token, 1)
    page = data.draw(st.sampled_from([cut, replaced]) | anything())
    try:
        found = alpaca_history.page(span, alpaca_history.first(span), page, NOON // NS_PER_MS)
    except WrongPage:
        found = None
    result = fetched(span, page)
    (count,) = result.counts.values()
    told = rows(result)
    assert count.seen == sum(map(len, told.values())) == count.ticks + count.bars + count.notices + count.rejected
    assert [row["kind"] for row in told["notices"]][-1] == "fetched"
    if found is not None:  # what was kept is read, event by event
        assert found.rows == count.ticks + count.bars + count.rejected
        assert not any(row["reason"].startswith("page") for row in told["rejected"])


def test_an_event_of_a_page_that_breaks_a_rule_is_one_reject_that_can_be_tried_again() -> None:
    bad = {**TRADE, "p": -1.0, "i": 2}
    result = rows(fetched(TRADES, body(TRADES, TRADE, bad, {**TRADE, "i": 3})))
    assert [(row["trade_id"], row["raw_index"]) for row in result["ticks"]] == [("1", 0), ("3", 2)]
    (reject,) = result["rejected"]
    assert (reject["raw_index"], reject["reason"]) == (1, "price is not a finite number above zero (-1.0)")
    again = json.loads(reject["payload"])
    assert {name: again[name] for name in ("T", "S", "t", "p", "i")} == {"T": "t", "S": "AAPL", "t": rfc3339(bad["t"]), "p": -1.0, "i": 2}


# Live and fetched


OWN = ("received_ns", "latency_ns", "raw_partition", "raw_offset", "raw_index")


@pytest.mark.parametrize("packed", [False, True], ids=["JSON", "msgpack"])
@pytest.mark.parametrize(
    ("span", "row"),
    [(TRADES, TRADE), (CRYPTO, CRYPTO_TRADE), (OPTION, OPTION_TRADE), (QUOTES, QUOTE), (BARS, BAR)],
    ids=lambda value: f"{value.feed} {value.channel}" if isinstance(value, Span) else "",
)
def test_what_was_fetched_is_the_row_that_the_stream_would_have_made(span: Span, row: dict[str, Any], packed: bool) -> None:
    early = NOON + 2 * MINUTE
    table = "bars" if span.channel == "bars" else "ticks"
    (one,), (other,) = rows(fetched(span, body(span, row), early))[table], rows(live(span, row, packed=packed))[table]
    assert {name: value for name, value in one.items() if name not in OWN} == {n: v for n, v in other.items() if n not in OWN}


@pytest.fixture(params=["lake", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "lake":
        yield Lake(tmp_path / "lake", identity)
    else:
        with closing(Postgres(request.getfixturevalue("database"), NO_SECRET, identity)) as found:
            yield found


def kept(store: Store, *results: Normalized) -> list[tuple[int, int]]:
    """Of each batch the rows that were kept, and the duplicates."""
    found = []
    for result in results:
        written = [
            store.write(Chunk.dense(topic, 0, store.totals(topic).positions.get(0, 0), result.batches[topic]))
            for topic in (TICKS_TOPIC, BARS_TOPIC)
            if result.batches[topic].num_rows
        ]
        found.append((sum(one.rows for one in written), sum(one.duplicates for one in written)))
    return found


@pytest.mark.parametrize(
    ("span", "row"),
    [(TRADES, TRADE), (CRYPTO, CRYPTO_TRADE), (OPTION, OPTION_TRADE), (QUOTES, QUOTE)],
    ids=lambda value: f"{value.feed} {value.channel}" if isinstance(value, Span) else "",
)
def test_live_and_fetched_copies_of_one_event_are_one_row(store: Store, span: Span, row: dict[str, Any]) -> None:
    other = {**row, "t": row["t"] + 1, **({"i": row["i"] + 1} if "i" in row else {})}
    page = fetched(span, body(span, row, other))
    assert kept(store, live(span, row, packed=True), live(span, row), page, page) == [(1, 0), (0, 1), (1, 1), (0, 2)]


def test_a_bar_that_was_fetched_long_after_its_window_is_final_and_its_last_revision(store: Store) -> None:
    page = body(BARS, BAR, {**BAR, "t": NOON + MINUTE})
    soon, late = fetched(BARS, page, NOON + 3 * MINUTE + 1), fetched(BARS, page, NOON + 4 * MINUTE + NS_PER_MS)
    assert [row["final"] for row in rows(soon)["bars"]] == [False, False]
    assert [row["final"] for row in rows(late)["bars"]] == [True, True]
    # The first is there; then it is told again as final, once.
    assert kept(store, live(BARS, BAR), soon, late, late) == [(1, 0), (1, 1), (2, 0), (0, 2)]
    day = Span("iex", "dailyBars", "AAPL", NOON, NOON + MINUTE)
    for time_ns, final in ((NOON + 24 * 60 * MINUTE, False), (NOON + 26 * 60 * MINUTE, True)):
        (bar,) = rows(fetched(day, body(day, BAR), time_ns))["bars"]
        assert (bar["final"], bar["interval"], bar["channel"]) == (final, "1d", "dailyBars")


@pytest.mark.parametrize(("mark", "kind"), [("canceled", "cancel"), ("incorrect", "correction"), ("corrected", "correction")])
def test_a_trade_that_was_taken_back_has_a_notice_beside_it(mark: str, kind: str) -> None:
    marked = {**TRADE, "i": 2, "u": mark}
    result = fetched(TRADES, body(TRADES, TRADE, marked, {**TRADE, "i": 3}))
    told = rows(result)
    assert [(row["trade_id"], row["raw_index"]) for row in told["ticks"]] == [("1", 0), ("2", 1), ("3", 2)]
    notice, line = told["notices"]
    assert (notice["kind"], notice["symbol"], notice["ts_ns"], notice["raw_index"]) == (kind, "AAPL", TRADE["t"], 1)
    # What a trade was corrected to holds; the others are named, as their ticks are.
    amends = {} if mark == "corrected" else {"amends": {"exchange": told["ticks"][1]["exchange"], "trade_id": "2"}}
    assert json.loads(notice["detail"]) == texted(marked) | amends
    assert line["kind"] == "fetched"
    (count,) = result.counts.values()
    assert (count.seen, count.ticks, count.notices) == (5, 3, 2)


def test_what_a_trade_was_corrected_to_is_one_row_live_and_fetched(store: Store) -> None:
    correction = {
        "x": "V",
        "oi": 1,
        "op": 178.26,
        "os": 246,
        "oc": ["@"],
        "ci": 2,
        "cp": 178.27,
        "cs": 240,
        "cc": ["@", "T"],
        "t": TRADE["t"],
    }
    right = {**TRADE, "i": 2, "p": 178.27, "s": 240}
    page = fetched(TRADES, body(TRADES, {**TRADE, "u": "incorrect"}, {**right, "u": "corrected"}))
    (one,), (_, other) = rows(live(TRADES, correction, tag="c"))["ticks"], rows(page)["ticks"]
    assert {name: value for name, value in one.items() if name not in OWN} == {n: v for n, v in other.items() if n not in OWN}
    assert kept(store, live(TRADES, TRADE), live(TRADES, correction, tag="c"), page) == [(1, 0), (1, 0), (0, 2)]
