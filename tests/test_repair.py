"""Gaps are asked for at the provider's history, and what comes is checked: a page that is not what was asked for fills nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from frames import rows
from made import DAY, NOON
from tapeline.errors import Barred, Refused, Unavailable
from tapeline.jobs.backfill.fetching import Get, Source
from tapeline.jobs.repair import GapRepairer, repair, span_of, wanted
from tapeline.ledger.absorbing import absorb
from tapeline.ledger.facts import Facts, Interval, Key
from tapeline.ledger.intervals import intervals
from tapeline.providers.binance.history import SETTLED_NS
from tapeline.providers.history import Request, Span, WrongPage
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS, HISTORIES
from tapeline.records import NS_PER_MS, NS_PER_S, RAW_TOPIC, Chunk
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry.status import StatusFile
from test_completeness import bar, chunk, opened, told, trade

TRADES = Key("binance", "spot", "trade", "BTC/USDT")
BARS = Key("binance", "spot", "kline_1s", "BTC/USDT")
T0 = NOON // NS_PER_MS


def page(first: int, last: int) -> bytes:
    """Single trades as REST gives them; those that `trade` of the other tests makes of the stream."""
    row = {"price": "1.5", "qty": "2", "quoteQty": "3", "isBuyerMaker": True, "isBestMatch": True}
    return json.dumps([{"id": number, **row, "time": T0 + number * 1000} for number in range(first, last + 1)]).encode()


class Provider:
    """Answers with prepared pages, one after the other, and remembers what it was asked for."""

    def __init__(self, *pages: bytes) -> None:
        self.pages, self.asked = list(pages), list[str]()

    def __call__(self, request: Request) -> bytes:
        self.asked.append(request.path)
        return self.pages.pop(0)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[EmbeddedStream]:
    found = EmbeddedStream(tmp_path / "stream")
    yield found
    found.close()


def gap(first: int, last: int) -> tuple[Key, Interval]:
    return TRADES, Interval(NOON, NOON + NS_PER_S, "open", "", first, last)


def fetched(stream: EmbeddedStream) -> list[bytes]:
    some = stream.read(RAW_TOPIC, {}, 1_000)
    return [payload.partition(b"\n")[2] for payload in some.batch["payload"].to_pylist()] if some is not None else []


def filled(stream: EmbeddedStream, gap: tuple[Key, Interval], get: Get) -> tuple[int, int]:
    """The pages and events that came."""
    key, span = gap[0], span_of(*gap)
    assert span is not None
    done = repair(key, span, Source(HISTORIES["binance"], get, lambda: NOON + 100 * NS_PER_S), stream, "repair-1")
    assert done is not None
    return done.pages, done.events


def test_a_fetched_trade_is_the_row_that_the_stream_would_have_made(stream: EmbeddedStream) -> None:
    filled(stream, gap(7, 9), get=Provider(page(7, 9)))
    some = stream.read(RAW_TOPIC, {}, 10)
    assert some is not None
    from_history = rows(normalize(some, DECODERS))
    live = rows(normalize(chunk([trade(7, 7), trade(8, 8), trade(9, 9)]), DECODERS))
    own = ("received_ns", "latency_ns", "raw_offset", "raw_index", "raw_partition")
    assert [{k: v for k, v in row.items() if k not in own} for row in from_history["ticks"]] == [
        {k: v for k, v in row.items() if k not in own} for row in live["ticks"]
    ]
    assert [(row["raw_offset"], row["raw_index"]) for row in from_history["ticks"]] == [(0, 0), (0, 1), (0, 2)]
    (notice,) = from_history["notices"]
    assert (notice["kind"], json.loads(notice["detail"])["done"]) == ("fetched", True)
    (count,) = normalize(some, DECODERS).counts.values()
    assert (count.seen, count.ticks, count.notices, count.rejected) == (4, 3, 1, 0)


def test_a_fetched_bar_is_final_once_its_window_had_ended(stream: EmbeddedStream) -> None:
    at = [T0 + 1000 * second for second in (5, 6, 99, 100)]
    body = [[ms, "1.0", "1.0", "1.0", "1.0", "1", ms + 999, "1", 1, "0", "0", "0"] for ms in at]
    missing = (BARS, Interval(NOON + 5 * NS_PER_S, NOON + 101 * NS_PER_S, "open", "", 1, 2))
    provider = Provider(json.dumps(body).encode(), json.dumps([[T0 + 101_000, *body[0][1:6], T0 + 101_999, *body[0][7:]]]).encode())
    filled(stream, missing, get=provider)
    assert f"startTime={T0 + 5_000}&endTime={T0 + 101_000}" in provider.asked[0]  # the window behind the gap is known: no page is empty
    some = stream.read(RAW_TOPIC, {}, 10)
    assert some is not None
    found = rows(normalize(some, DECODERS))["bars"]
    assert [row["final"] for row in found] == [True, True, True, False, False]
    live = rows(normalize(chunk([bar(5)]), DECODERS))["bars"][0]
    same = ("symbol", "ts_ns", "interval", "open", "high", "low", "close", "volume", "vwap", "trades", "final", "exchange", "channel")
    assert {name: found[0][name] for name in same} == {name: live[name] for name in same}


def test_pages_follow_one_another_until_everything_was_asked_for(stream: EmbeddedStream) -> None:
    provider = Provider(page(1, 1000), page(1001, 1400), page(1401, 1500))
    assert filled(stream, gap(1, 1500), get=provider) == (3, 1500)
    assert [path.partition("fromId=")[2] for path in provider.asked] == ["1&limit=1000", "1001&limit=500", "1401&limit=100"]
    assert fetched(stream) == [page(1, 1000), page(1001, 1400), page(1401, 1500)]  # the second was cut short, and not taken for the last


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (page(1, 3), "do not rise from 4"),
        (json.dumps([*json.loads(page(5, 5)), *json.loads(page(4, 4))]).encode(), "do not rise"),
        (json.dumps(json.loads(page(4, 4)) * 2).encode(), "do not rise"),
        (b"[]", "is empty"),
        (b"<html>busy</html>", "cannot be read"),
        (b'{"code":-1121,"msg":"Invalid symbol."}', "cannot be read"),
        (page(4, 4)[:-5], "cannot be read"),
    ],
)
def test_a_page_that_is_not_what_was_asked_for_is_named_and_fills_nothing(body: bytes, said: str, stream: EmbeddedStream) -> None:
    with pytest.raises(WrongPage, match=said):
        filled(stream, gap(4, 9), get=Provider(body))
    assert fetched(stream) == []


def test_what_is_being_fetched_is_being_repaired_and_what_the_history_does_not_hold_is_unrecoverable() -> None:
    facts = Facts()
    live = chunk([*opened(0), trade(1, 1), trade(6, 6)])
    absorb(facts, live, normalize(live, DECODERS))
    head = {"channel": "trade", "symbol": "BTC/USDT", "path": "", "time_ms": T0, "start_ns": 0, "end_ns": 0, "first": 2, "last": 5}
    first_page = ("repair-1", "fetched", NOON + 9 * NS_PER_S, json.dumps(head | {"done": False, "page": 1}).encode() + b"\n" + page(3, 3))
    some = chunk([first_page], 100)
    absorb(facts, some, normalize(some, DECODERS))
    assert [(one.state, one.first_id, one.last_id) for one in intervals(facts, TRADES)[1:6]] == [
        ("proven", 1, 1),
        ("repairing", 2, 2),
        ("proven", 3, 3),
        ("repairing", 4, 5),
        ("proven", 6, 6),
    ]
    last_page = ("repair-1", "fetched", NOON + 10 * NS_PER_S, json.dumps(head | {"done": True, "page": 2}).encode() + b"\n" + page(5, 6))
    some = chunk([last_page], 101)
    absorb(facts, some, normalize(some, DECODERS))
    assert [(one.state, one.first_id, one.last_id) for one in intervals(facts, TRADES)[1:6]] == [
        ("proven", 1, 1),
        ("unrecoverable", 2, 2),
        ("proven", 3, 3),
        ("unrecoverable", 4, 4),
        ("proven", 5, 6),
    ]
    assert "not in the provider's history" in intervals(facts, TRADES)[2].evidence


def test_gaps_are_wanted_that_have_numbers_and_have_come_to_rest_the_latest_first() -> None:
    def one(at_s: int, state: Any = "open", first_id: int | None = 1) -> Interval:
        return Interval(at_s * NS_PER_S, (at_s + 1) * NS_PER_S, state, "", first_id, first_id)

    known = {
        TRADES: [one(1), one(2, "proven"), one(3, "unrecoverable"), one(9), one(20)],
        Key("alpaca", "iex", "trades", "AAPL"): [one(1)],
        TRADES._replace(channel="bookTicker"): [one(1, first_id=None)],
    }
    found = wanted(known, {("binance", "spot")}, 21 * NS_PER_S + SETTLED_NS)
    assert [gap[:2] for gap in found] == [(TRADES, one(9)), (TRADES, one(1))]


# Requests


@pytest.mark.parametrize(
    ("symbol", "path"), [("币安人生USDT", "%E5%B8%81"), ("A B", "A%20B"), ("A&fromId=1&x=", "A%26fromId%3D1"), ("A\r\nX: y", "A%0D%0AX")]
)
def test_no_symbol_is_more_than_a_symbol(symbol: str, path: str) -> None:
    for channel in ("trade", "aggTrade", "kline_1s"):
        asked = HISTORIES["binance"].first(Span("spot", channel, symbol, 0, 10, 1, 2)).path
        assert f"symbol={path}" in asked
        assert asked.isascii()
        assert not any(letter.isspace() for letter in asked)


def test_a_repair_that_died_in_the_middle_is_taken_up_again() -> None:
    key = Key("alpaca", "iex", "trades", "AAPL")
    gap = Interval(NOON, NOON + NS_PER_S, "repairing", "closed by the network; being fetched")
    assert [one for _, one, _ in wanted({key: [gap]}, {("alpaca", "iex")}, NOON + 100 * NS_PER_S)] == [gap]


def records_of(*pages: tuple[int, bool, bytes], connection: str = "repair-1", **span: Any) -> Chunk:
    """Records of one reading: number, whether it is the last, body."""
    head = {
        "channel": "trade",
        "symbol": "BTC/USDT",
        "path": "",
        "time_ms": T0 + 60_000,
        "start_ns": NOON,
        "end_ns": NOON + 9 * NS_PER_S,
        **span,
    }
    lines = [json.dumps({**head, "page": number, "done": done}).encode() + b"\n" + body for number, done, body in pages]
    return chunk([(connection, "fetched", NOON + 60 * NS_PER_S, line) for line in lines], 100)


@pytest.mark.parametrize(
    "pages",
    [
        [(2, True, page(4, 5))],
        [(1, False, page(2, 3)), (3, True, page(5, 5))],
        [(1, False, b"no page"), (2, True, page(4, 5))],
        [(1, True, b"no page")],
        [(0, True, page(2, 2))],
    ],
)
def test_a_reading_of_which_a_page_is_missing_or_could_not_be_read_proves_nothing(pages: list[tuple[int, bool, bytes]]) -> None:
    facts = Facts()
    for some in (chunk([*opened(0), trade(1, 1), trade(9, 8)]), records_of(*pages)):
        absorb(facts, some, normalize(some, DECODERS))
    states = {one.state for one in intervals(facts, TRADES) if one.first_id is not None}
    assert "unrecoverable" not in states
    assert "reconciled" not in {one.state for one in intervals(facts, TRADES)}


def test_what_may_not_have_been_in_the_history_yet_is_not_claimed() -> None:
    facts = Facts()
    some = records_of((1, True, b"[]"), time_ms=T0 + 7_000)
    absorb(facts, some, normalize(some, DECODERS))
    assert [(one.start_ns, one.end_ns, one.state) for one in intervals(facts, TRADES)] == [(NOON, NOON + 2 * NS_PER_S, "unprovable")]


def test_a_reading_of_which_an_event_was_rejected_proves_nothing_and_is_not_asked_for_again() -> None:
    """The event is in the history and in no store: neither was everything read, nor has the history lost it."""
    rows = json.loads(page(1, 3))
    rows[1]["price"] = "-1"
    gap = [told("closed", 2, by="network", reason=""), *opened(4, "line-2")]
    for first, last, body in ((None, None, json.dumps(rows).encode()), (2, 5, json.dumps(rows[1:]).encode())):
        facts = Facts()
        for some in (chunk([*opened(0), trade(1, 1), *gap, trade(6, 5, "line-2")]), records_of((1, True, body), first=first, last=last)):
            absorb(facts, some, normalize(some, DECODERS))
        found = [one for one in intervals(facts, TRADES) if one.state not in ("proven", "unprovable")]
        assert {(one.state, one.first_id) for one in found if one.first_id} == {("unrecoverable", 2), ("unrecoverable", 4)}
        assert all("events of it were rejected" in one.evidence for one in found if one.first_id == 2)
        assert wanted({TRADES: found}, {("binance", "spot")}, NOON + DAY) == []
        read = records_of((1, True, page(1, 5)), first=first, last=last)
        absorb(facts, read, normalize(read, DECODERS))
        assert [one.state for one in intervals(facts, TRADES) if one.first_id] == ["proven"], "what comes closes it all the same"


def test_a_rejected_event_between_readings_of_time_in_which_nobody_listened_is_not_asked_for_again() -> None:
    """Repair would otherwise ask for the same events with each look."""
    rows = json.loads(page(1, 1))
    rows[0]["price"] = "-1"
    facts = Facts()
    for number, body in enumerate((b"[]", json.dumps(rows).encode(), json.dumps(rows).encode(), b"[]")):
        start_ns = NOON + 2 * number * NS_PER_S
        some = records_of((1, True, body), connection=f"repair-{number}", start_ns=start_ns, end_ns=start_ns + 2 * NS_PER_S)
        absorb(facts, some, normalize(some, DECODERS))
    found = intervals(facts, TRADES)
    assert [((one.start_ns - NOON) // NS_PER_S, (one.end_ns - NOON) // NS_PER_S) for one in found] == [(0, 2), (2, 6), (6, 8)]
    assert [one.state for one in found] == ["unprovable", "unrecoverable", "unprovable"]
    assert "events of it were rejected" in found[1].evidence
    assert wanted({TRADES: found}, {("binance", "spot")}, NOON + DAY) == []


@pytest.mark.parametrize(
    "wrong", [{"start_ns": -(10**30)}, {"end_ns": 10**30}, {"time_ms": 10**30}, {"first": 2**70, "last": 2**70}, {"symbol": 7}]
)
def test_a_line_that_no_reading_has_written_says_nothing(wrong: dict[str, Any]) -> None:
    facts = Facts()
    some = records_of((1, True, b"[]"), **wrong)
    absorb(facts, some, normalize(some, DECODERS))
    assert intervals(facts, TRADES) == []


def test_a_gap_that_was_broken_off_goes_on_with_the_page_at_which_it_was(stream: EmbeddedStream) -> None:
    _, span = TRADES, Span("spot", "trade", "BTC/USDT", NOON, NOON + NS_PER_S, 1, 2_500)
    begun: dict[Span, Any] = {}
    provider = Provider(page(1, 1000), b"<html>busy</html>", page(1001, 2000), page(2001, 2500))
    source = Source(HISTORIES["binance"], provider, lambda: NOON + DAY)
    with pytest.raises(WrongPage):
        repair(TRADES, span, source, stream, "repair-1", begun)
    done = repair(TRADES, span, source, stream, "repair-1", begun)
    assert done is not None
    assert done.pages == 2
    assert fetched(stream) == [page(1, 1000), page(1001, 2000), page(2001, 2500)]
    some = stream.read(RAW_TOPIC, {}, 10)
    assert some is not None
    heads = [json.loads(payload.partition(b"\n")[0]) for payload in some.batch["payload"].to_pylist()]
    assert [(head["page"], head["done"]) for head in heads] == [(1, False), (2, False), (3, True)]
    assert begun == {}


def test_a_gap_whose_cursor_is_refused_is_begun_anew(stream: EmbeddedStream, tmp_path: Path) -> None:
    """The provider forgets its cursors overnight."""
    now, forgotten, asked = [NOON + DAY], set[str](), list[int]()

    def get(request: Request) -> bytes:
        first = int(parse_qs(urlsplit(request.path).query)["fromId"][0])
        asked.append(first)
        if first > 1 and not forgotten:
            forgotten.add("1001")
            raise Unavailable("The network is away.")
        if str(first) in forgotten and asked.count(1) < 2:
            raise Refused("No such cursor.")
        return page(first, first + 999)

    gaps = {TRADES: [Interval(NOON, NOON + 100, "open", "", 1, 2_500)]}
    sources = {("binance", "spot"): Source(HISTORIES["binance"], get)}
    keep = GapRepairer(stream, lambda: gaps, sources, StatusFile(tmp_path, "repair"), threading.Event(), lambda: now[0])
    for _ in range(3):
        keep.step()
        now[0] += 700 * NS_PER_S
    assert asked == [1, 1_001, 1_001, 1, 1_001, 2_001], "not at the refused cursor for ever"


def test_a_provider_that_gives_nothing_of_a_channel_is_asked_once_and_not_for_every_gap(stream: EmbeddedStream, tmp_path: Path) -> None:
    now, asked = [NOON + DAY], list[str]()

    def get(request: Request) -> bytes:
        asked.append(request.path.partition("?")[0])
        if "historicalTrades" in request.path:
            raise Barred("HTTP 403: not in the plan.")
        raise Unavailable("The network is away.")

    other = Key("binance", "spot", "aggTrade", "BTC/USDT")
    gaps = {key: [Interval(NOON + at, NOON + at + 1, "open", "", 10 * at + 1, 10 * at + 5) for at in range(5)] for key in (TRADES, other)}
    sources = {("binance", "spot"): Source(HISTORIES["binance"], get)}
    keep = GapRepairer(stream, lambda: gaps, sources, StatusFile(tmp_path, "repair"), threading.Event(), lambda: now[0])
    keep.step()
    assert sorted(asked) == ["/api/v3/aggTrades", "/api/v3/historicalTrades"]
    for _ in range(5):
        now[0] += 100 * NS_PER_S
        keep.step()
    assert asked.count("/api/v3/historicalTrades") == 1
    now[0] += 200 * NS_PER_S
    keep.step()
    assert asked.count("/api/v3/historicalTrades") == 2


def test_a_gap_that_shrinks_while_it_is_filled_keeps_no_other_waiting(stream: EmbeddedStream, tmp_path: Path) -> None:
    now, asked, reached = [NOON + DAY], list[str](), [0]

    def slow(request: Request) -> bytes:
        now[0] += NS_PER_S // 2
        query = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
        asked.append(query["symbol"])
        first = int(query["fromId"])
        if query["symbol"] == "BTCUSDT":
            reached[0] = first + int(query["limit"]) - 1
        return page(first, first + int(query["limit"]) - 1)

    others = [TRADES._replace(symbol=f"{name}/USDT") for name in ("ETH", "SOL")]

    def known() -> dict[Key, list[Interval]]:
        left = Interval(NOON + 5 + reached[0], NOON + 300_000, "open", "", reached[0] + 1, 200_000)
        return {TRADES: [left], **{key: [Interval(NOON, NOON + 100, "open", "", 1, 2)] for key in others}}

    sources = {("binance", "spot"): Source(HISTORIES["binance"], slow)}
    keep = GapRepairer(stream, known, sources, StatusFile(tmp_path, "repair"), threading.Event(), lambda: now[0])
    keep.step()
    keep.step()
    assert set(asked[10:]) == {"ETHUSDT", "SOLUSDT"}


def test_of_gaps_within_one_moment_each_is_asked_for(stream: EmbeddedStream, tmp_path: Path) -> None:
    asked = list[int]()

    def get(request: Request) -> bytes:
        asked.append(int(parse_qs(urlsplit(request.path).query)["fromId"][0]))
        return page(asked[-1], asked[-1])

    gaps = {TRADES: [Interval(NOON, NOON, "open", "", number, number) for number in (2, 4, 6)]}
    sources = {("binance", "spot"): Source(HISTORIES["binance"], get)}
    keep = GapRepairer(stream, lambda: gaps, sources, StatusFile(tmp_path, "repair"), threading.Event(), lambda: NOON + DAY)
    keep.step()
    keep.step()
    assert sorted(asked) == [2, 4, 6]


def test_a_long_gap_keeps_no_other_waiting_and_can_be_stopped(stream: EmbeddedStream, tmp_path: Path) -> None:
    """A page costs half a second, and the long gap has two hundred."""
    now, stop, asked = [NOON + DAY], threading.Event(), list[str]()

    def slow(request: Request) -> bytes:
        now[0] += NS_PER_S // 2
        query = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
        asked.append(query["symbol"])
        first = int(query["fromId"])
        return page(first, first + int(query["limit"]) - 1)

    other = TRADES._replace(symbol="ETH/USDT")
    gaps = {
        TRADES: [Interval(NOON + 5, NOON + 100, "open", "", 1, 200_000)],
        other: [Interval(NOON, NOON + 100, "open", "", 1, 2)],
    }
    sources = {("binance", "spot"): Source(HISTORIES["binance"], slow)}
    keep = GapRepairer(stream, lambda: gaps, sources, StatusFile(tmp_path, "repair"), stop, lambda: now[0])
    keep.step()
    assert asked == ["BTCUSDT"] * 10, "until its turn is over"
    keep.step()
    assert asked[10:] == ["ETHUSDT"], "then the others have theirs"
    while asked.count("BTCUSDT") < 200:  # it goes on from where it was
        now[0] += NS_PER_S
        keep.step()
    came = [json.loads(body)[0]["id"] for body in fetched(stream) if len(json.loads(body)) == 1_000]
    assert came == list(range(1, 200_000, 1_000)), "each page once"
    before = len(asked)
    stop.set()
    now[0] += DAY
    keep.step()
    assert len(asked) == before


def test_new_gaps_do_not_keep_old_ones_waiting_nor_one_provider_another(stream: EmbeddedStream, tmp_path: Path) -> None:
    """Every gap costs a provider two seconds, and every second brings a new one."""
    now = [NOON + DAY]
    asked: list[int] = []
    gone: list[str] = []

    def slow(request: Request) -> bytes:
        now[0] += 2 * NS_PER_S
        asked.append(int(parse_qs(urlsplit(request.path).query)["fromId"][0]))
        return page(asked[-1], asked[-1])

    def away(request: Request) -> bytes:
        gone.append(request.path)
        raise Unavailable("HTTP 418: banned for two days.")

    def known() -> dict[Key, list[Interval]]:
        seconds = range(1, (now[0] - NOON - DAY) // NS_PER_S + 101)
        gaps = [Interval(NOON + at * NS_PER_S, NOON + (at + 1) * NS_PER_S, "open", "", 10 * at, 10 * at) for at in seconds]
        quotes = Interval(NOON, NOON + NS_PER_S, "open", "")
        return {TRADES: gaps, Key("alpaca", "iex", "quotes", "AMD"): [quotes]}

    sources = {("alpaca", "iex"): Source(HISTORIES["alpaca"], away), ("binance", "spot"): Source(HISTORIES["binance"], slow)}
    keep = GapRepairer(stream, known, sources, StatusFile(tmp_path, "repair"), threading.Event(), lambda: now[0])
    for _ in range(10):
        keep.step()
    assert set(range(10, 100, 10)) <= set(asked), "the oldest"
    assert len([one for one in asked if one > 1_000]) > 10, "and of the new ones too"
    assert len(gone) == 1, "who is away is left alone for a minute"


def test_what_is_read_for_one_feed_counts_for_no_other_of_the_same_channel_and_symbol(stream: EmbeddedStream, tmp_path: Path) -> None:
    keys = [Key("alpaca", feed, "trades", "AAPL") for feed in ("iex", "sip")]
    spans = {"iex": (NOON, NOON + 60 * NS_PER_S), "sip": (NOON + 600 * NS_PER_S, NOON + 660 * NS_PER_S)}

    def get(request: Request) -> bytes:
        start = parse_qs(urlsplit(request.path).query)["start"][0][:17]
        row = {"t": f"{start}59.5Z", "x": "V", "p": 1.5, "s": 1, "c": ["@"], "i": 1, "z": "C"}
        return json.dumps({"trades": {"AAPL": [row]}, "next_page_token": None}).encode()

    sources = {key[:2]: Source(HISTORIES["alpaca"], get, lambda: NOON + DAY) for key in keys}
    gaps = {key: [Interval(*spans[key.feed], "open", "")] for key in keys}
    GapRepairer(stream, lambda: gaps, sources, StatusFile(tmp_path, "repair"), threading.Event(), lambda: NOON + DAY).step()
    some, facts = stream.read(RAW_TOPIC, {}, 100), Facts()
    assert some is not None
    absorb(facts, some, normalize(some, DECODERS))
    assert facts.keys() == set(keys)
    margin = 2 * NS_PER_S
    assert [[(one.start_ns + margin, one.end_ns - margin) for one in intervals(facts, key)] for key in keys] == [
        [spans[key.feed]] for key in keys
    ]
