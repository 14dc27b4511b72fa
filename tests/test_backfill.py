"""What a backfill asks for, and that it asks for everything: pages cut short, times between pages, spans of many days."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from made import DAY, NOON
from made_history import Exchange
from tapeline.cli import app
from tapeline.errors import Barred, ConfigError, Refused, Unavailable
from tapeline.jobs.backfill.backfill import Backfill, Job, State
from tapeline.jobs.backfill.fetching import Source, fetch
from tapeline.jobs.backfill.page_log import PageLog, Sent
from tapeline.net.rate_limit import RateLimiter
from tapeline.providers.history import History, Page, Request, Span, WrongPage
from tapeline.providers.registry import HISTORIES, PROVIDERS
from tapeline.records import NS_PER_MS, NS_PER_S, RAW_TOPIC, Topic
from tapeline.streams.embedded import EmbeddedStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tapeline.jobs.backfill.fetching import Get


def source(get: Get) -> Source:
    return Source(HISTORIES["binance"], get, lambda: NOON + DAY)


@given(
    st.integers(0, 400),
    st.integers(1, 50),
    st.integers(0, 20_000),
    st.integers(1, 20_000),
    st.lists(st.integers(1, 60), min_size=1),
    st.data(),
)
def test_whatever_pages_are_cut_to_every_trade_of_the_time_comes_once_and_in_order(
    count: int, every_ms: int, start_ms: int, length_ms: int, cuts: list[int], data: st.DataObject
) -> None:
    exchange = Exchange(count, every_ms, rows=lambda most: min(most, cuts[len(exchange.asked) % len(cuts)]))
    start_ns = NOON + start_ms * NS_PER_MS + data.draw(st.integers(0, NS_PER_MS - 1))
    span = Span("spot", data.draw(st.sampled_from(["trade", "aggTrade"])), "BTC/USDT", start_ns, start_ns + length_ms * NS_PER_MS)
    pages = list(fetch(source(exchange), span))
    bodies = [page.payload.partition(b"\n") for page in pages if page.payload is not None]
    rows = [row for _, _, body in bodies if body for row in msgspec.json.decode(body)]
    ids = [row.get("id", row.get("a")) for row in rows]
    assert ids == sorted(set(ids))
    if span.channel == "trade":
        assert set(exchange.numbers(span.start_ns, span.end_ns)) <= set(ids)
    else:
        firsts = {row["f"] for row in rows}
        assert {number for number in exchange.numbers(span.start_ns, span.end_ns) if number % 3 == 1} <= firsts
    assert [msgspec.json.decode(head)["done"] for head, _, _ in bodies] == [False] * (len(bodies) - 1) + [True]


def cut_to_nothing(exchange: Exchange, which: str, times: int) -> Get:
    """The exchange's answers, except that the first pages with a text in their path come empty."""
    left = [times]

    def get(request: Request) -> bytes:
        if which in request.path and "limit=1000" in request.path and left[0]:
            left[0] -= 1
            return b"[]"
        return exchange(request)

    return get


@pytest.mark.parametrize(("channel", "which"), [("trade", "fromId=1001&"), ("aggTrade", "fromId=1001&"), ("aggTrade", "startTime=")])
def test_a_page_that_was_cut_to_nothing_is_not_taken_for_the_end(channel: str, which: str) -> None:
    exchange, span = Exchange(9_000), Span("spot", channel, "BTC/USDT", NOON, NOON + 850 * NS_PER_S)
    whole = sum(page.rows for page in fetch(source(exchange), span))
    assert sum(page.rows for page in fetch(source(cut_to_nothing(exchange, which, 1)), span)) == whole
    with pytest.raises(WrongPage, match="is empty, although later events are known"):
        list(fetch(source(cut_to_nothing(exchange, which, 2)), span))


def test_the_trade_that_an_aggregated_one_names_has_to_come() -> None:
    span = Span("spot", "trade", "BTC/USDT", NOON, NOON + 850 * NS_PER_S)
    with pytest.raises(WrongPage, match="is empty, although later events are known"):
        list(fetch(source(cut_to_nothing(Exchange(9_000), "fromId=1&", 1)), span))


def test_single_trades_that_are_no_longer_kept_are_named_and_not_left_out() -> None:
    exchange = Exchange(3_000)

    def get(request: Request) -> bytes:
        rows = msgspec.json.decode(exchange(request))
        if "fromId=1&" in request.path:
            rows = msgspec.json.decode(exchange(Request(request.path.replace("fromId=1&", "fromId=1500&"))))
        return msgspec.json.encode(rows)

    span = Span("spot", "trade", "BTC/USDT", NOON, NOON + 200 * NS_PER_S)
    with pytest.raises(WrongPage, match=r"begins with trade 1500.*has no older trades.*begins with trade 1\..*--from files"):
        list(fetch(source(get), span))


def test_a_history_that_names_no_trades_while_there_are_some_is_not_taken_at_its_word() -> None:
    exchange = Exchange(300)
    span = Span("spot", "trade", "BTC/USDT", NOON, NOON + 200 * NS_PER_S)
    with pytest.raises(WrongPage, match="Binance's aggTrades have no trade of BTC/USDT"):
        list(fetch(source(lambda asked: b"[]" if "aggTrades" in asked.path else exchange(asked)), span))


def test_a_job_is_cut_into_days_which_meet_without_a_hole() -> None:
    start_ns, end_ns = NOON + 5, NOON + 2 * DAY + 7
    spans = Job("binance", "spot", ("trade", "kline_1m"), ("BTC/USDT",), start_ns, end_ns).spans()
    for channel in ("trade", "kline_1m"):
        mine = [span for span in spans if span.channel == channel]
        assert [span.start_ns for span in mine] == [start_ns, *(span.end_ns for span in mine[:-1])]
        assert mine[-1].end_ns == end_ns
        assert [span.start_ns % DAY for span in mine[1:]] == [0, 0]
    (whole,) = Job("binance", "spot", ("trade",), ("BTC/USDT",), NOON - NOON % DAY, NOON - NOON % DAY + DAY).spans()
    assert whole.end_ns - whole.start_ns == DAY


def test_a_history_that_repeats_its_cursor_is_named() -> None:
    class Circling:
        """A history whose third page leads back to the first."""

        def first(self, span: Span) -> Request:
            return Request("/1")

        def page(self, span: Span, asked: Request, body: bytes, time_ms: int) -> Page:
            return Page(1, NOON, Request(f"/{int(asked.path[1:]) % 3 + 1}"))

    found = fetch(Source(cast("History", Circling()), lambda asked: b"", lambda: NOON), Span("f", "c", "s", 0, 1))
    assert [next(found).rows for _ in range(2)] == [1, 1]
    with pytest.raises(WrongPage, match="/3 leads back to /1: the provider repeats its cursor"):
        next(found)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[EmbeddedStream]:
    found = EmbeddedStream(tmp_path / "stream")
    yield found
    found.close()


@pytest.fixture
def backfill(stream: EmbeddedStream, tmp_path: Path) -> Callable[[Get], State]:
    """Run one job of two symbols with a history, to its end."""

    def run(get: Get) -> State:
        job = Job("binance", "spot", ("trade",), ("BTC/USDT", "ETH/USDT"), NOON, NOON + 100 * NS_PER_S)
        log = PageLog(tmp_path / "log.sqlite")
        try:
            return Backfill(job, source(get), stream, log, Random(1), threading.Event()).run(lambda _: None)
        finally:
            log.close()

    return run


def pages(stream: EmbeddedStream) -> int:
    found = stream.read(RAW_TOPIC, {}, 1_000)
    return found.rows if found is not None else 0


def test_what_is_refused_is_told_and_the_rest_comes(backfill: Callable[[Get], State], stream: EmbeddedStream) -> None:
    exchange = Exchange(2_000)  # the first page reaches to the end

    def get(request: Request) -> bytes:
        if "ETHUSDT" in request.path:
            raise Refused("Invalid symbol.")
        return exchange(request)

    state = backfill(get)
    assert [(span.symbol, str(error)) for span, error in state.failed] == [("ETH/USDT", "Invalid symbol.")]
    assert (state.spans, state.spans_done, pages(stream)) == (2, 1, 1)
    assert backfill(exchange).spans_done == 2  # another call goes on with what is left
    assert pages(stream) == 2


def test_what_refuses_everything_of_a_channel_is_not_asked_for_each_of_its_days(stream: EmbeddedStream, tmp_path: Path) -> None:
    asked = []

    def get(request: Request) -> bytes:
        asked.append(request.path)
        raise Barred("HTTP 403: not in the plan.")

    job = Job("binance", "spot", ("trade",), ("BTC/USDT",), NOON, NOON + 30 * DAY)
    log = PageLog(tmp_path / "log.sqlite")
    state = Backfill(job, source(get), stream, log, Random(1), threading.Event()).run(lambda _: None)
    log.close()
    assert len(state.failed) == state.spans == 31
    assert len(asked) < 10, "no more than there are workers"


def test_a_provider_that_does_not_answer_ends_it_and_what_has_come_is_kept(
    backfill: Callable[[Get], State], stream: EmbeddedStream
) -> None:
    exchange = Exchange(3_000, every_ms=30)
    left = [4]

    def get(request: Request) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise Unavailable("The provider is away.")
        return exchange(request)

    with pytest.raises(Unavailable, match="away"):
        backfill(get)
    before = pages(stream)
    state = backfill(exchange)
    assert (state.spans_done, state.share) == (2, 1.0)
    assert pages(stream) == state.pages == 8 > before


def test_what_told_where_to_begin_is_asked_again(backfill: Callable[[Get], State], stream: EmbeddedStream) -> None:
    """Answers without a trade before the start and after it, for a moment; then all is as it should be."""
    exchange = Exchange(3_000)
    done = backfill(lambda asked: b"[]" if "aggTrades" in asked.path else exchange(asked))
    assert [str(why)[:19] for _, why in done.failed] == ["Binance's aggTrades"] * 2
    done = backfill(exchange)
    assert (done.failed, done.spans_done) == ((), 2)
    assert pages(stream) == done.pages > 0


def test_a_stream_that_cannot_say_how_far_it_is_read_stops_no_backfill(
    backfill: Callable[[Get], State], stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> dict[int, int]:
        raise Unavailable("the stream is away")

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedStream, "positions", away)
        patch.setattr("tapeline.jobs.backfill.backfill._MOST_UNREAD", 0)
        done = backfill(Exchange(3_000))
    assert (done.failed, done.spans_done) == ((), 2)
    assert pages(stream) == done.pages > 0


def test_no_page_goes_to_a_partition_that_a_stream_which_was_away_does_not_have(
    backfill: Callable[[Get], State], stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is away gives the configured number of partitions, and may have another."""
    real_ends, real_count, away = EmbeddedStream.ends, EmbeddedStream.partitions.fget, [True, True, True]
    assert real_count is not None

    def ends(self: EmbeddedStream, topic: Topic) -> dict[int, int]:
        if away:
            away.pop()
            raise Unavailable("the stream is away")
        return real_ends(self, topic)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedStream, "ends", ends)
        patch.setattr(EmbeddedStream, "partitions", property(lambda self: 1 << 20 if away else real_count(self)))
        done = backfill(Exchange(3_000))
    assert (done.failed, done.spans_done) == ((), 2)
    assert pages(stream) == done.pages > 0


def test_a_log_of_the_format_before_goes_on(tmp_path: Path) -> None:
    spans = [Span("spot", "trade", symbol, NOON, NOON + DAY) for symbol in ("BTC/USDT", "ETH/USDT")]
    log = PageLog(tmp_path / "log.sqlite")
    log.open(spans)
    log.note("w-1", 5, Sent(1, 1, Request("/2"), 10, NOON))
    log.settle(1)
    log.note("w-1", 5, Sent(2, 1, Request("/3"), 10, NOON))
    log.close()
    with closing(sqlite3.connect(tmp_path / "log.sqlite")) as db:
        db.executescript(
            "ALTER TABLE sent ADD COLUMN kept INTEGER NOT NULL DEFAULT 1;"
            """UPDATE spans SET next = '{"path":"/latest"}' WHERE number = 2; PRAGMA user_version = 1"""
        )
    log.open(spans)
    assert [(one.following, one.pages) for one in log.spans()] == [(Request("/2"), 1), (None, 0)]
    assert log.writers() == {"w-1": 5}
    log.recover("w-1", lambda _, number: number <= 2)
    assert log.spans()[0].following == Request("/3")
    log.close()


def test_what_nobody_foresaw_ends_it_with_its_reason(backfill: Callable[[Get], State]) -> None:
    def get(request: Request) -> bytes:
        raise RuntimeError("nobody foresaw this")

    with pytest.raises(RuntimeError, match="nobody foresaw this"):
        backfill(get)


def test_a_log_that_is_begun_anew_sends_under_another_name(tmp_path: Path) -> None:
    log, names = PageLog(tmp_path / "log.sqlite"), set()
    for _ in range(3):
        log.open([])
        names.add(log.name)
        log.close()
        log.open([])
        assert log.name in names
        log.close()
        log.forget()
    assert len(names) == 3


def test_a_page_that_did_not_arrive_is_asked_for_again_and_one_that_did_is_not(tmp_path: Path) -> None:
    span = Span("spot", "trade", "BTC/USDT", NOON, NOON + DAY)
    log = PageLog(tmp_path / "log.sqlite")
    log.open([span])
    assert (log.begin_writing(), log.begin_writing()) == (1, 2)
    for number in (1, 2, 3):
        log.note("w-2", 5, Sent(number, 1, Request(f"/{number}"), 10, NOON + number))
    assert log.writers() == {"w-2": 5}
    log.recover("w-2", lambda _, number: number <= 2)
    (progress,) = log.spans()
    assert (progress.following, progress.pages, progress.events, progress.reached_ns) == (Request("/2"), 2, 20, NOON + 2)
    assert log.writers() == {}
    log.note("w-2", 5, Sent(3, 1, None, 1, 0))
    log.settle(3)
    (progress,) = log.spans()
    assert (progress.done, progress.pages, progress.events, progress.reached_ns) == (True, 3, 21, NOON + 2)
    log.close()


# Limits


def test_processes_share_a_minute_and_a_pause_through_a_file(tmp_path: Path) -> None:
    now = [1_000.0]
    one, two = (RateLimiter(100, tmp_path / "quota.json", lambda: now[0]) for _ in range(2))
    assert (one.take(60), two.take(40), two.take(1)) == (0.0, 0.0, 60.0)
    now[0] += 59.0
    assert one.take(1) == 1.0
    now[0] += 1.0
    assert two.take(1) == 0.0
    one.pause(7.0)
    assert two.take(1) == 7.0
    now[0] += 7.0
    assert two.take(1) == 0.0


def test_a_file_that_says_nothing_and_a_clock_that_goes_back_begin_a_new_minute(tmp_path: Path) -> None:
    path = tmp_path / "quota.json"
    path.write_bytes(b'{"minute": "x')
    now = [1_000.0]
    limiter = RateLimiter(100, path, lambda: now[0])
    assert limiter.take(100) == 0.0
    now[0] -= 500.0
    assert limiter.take(100) == 0.0


def test_a_clock_that_was_set_back_forgets_a_pause_that_it_set_ahead(tmp_path: Path) -> None:
    now = [1_000_000.0]
    limiter = RateLimiter(100, tmp_path / "quota.json", lambda: now[0])
    limiter.pause(60.0)
    assert limiter.take(1) == 60.0
    now[0] = 1_000.0
    assert limiter.take(1) == 0.0


def test_what_weighs_more_than_a_minute_has_is_let_through_alone() -> None:
    limiter = RateLimiter(10, clock=lambda: 1_000.0)
    assert limiter.take(50) == 0.0
    assert limiter.take(1) == 60.0


@pytest.mark.parametrize(
    ("provider", "feed", "symbol", "says"),
    [
        ("binance", "spot", "BTC/USDT", ""),
        ("binance", "spot", "\u5e01\u5b89\u4eba\u751f/USDT", ""),
        ("binance", "spot", "ADA/EUR", "as AD/AEUR"),
        ("binance", "spot", "BT/CUSDT", "as BTC/USDT"),
        ("binance", "spot", "DOES/NOTEXIST", "no known quote asset"),
        ("binance", "spot", " BTC/USDT", "a pair is written"),
        ("binance", "spot", "BTC/USDT/X", "a pair is written"),
        ("polygon", "stocks", "BRK.B", ""),
        ("polygon", "stocks", "ABRpD", ""),
        ("polygon", "stocks", "aapl", "in capitals"),
        ("polygon", "stocks", "AAPL MSFT", "in capitals"),
        ("polygon", "options", "SPY251219C00650000", ""),
        ("polygon", "options", "AAPL", "an option is written"),
        ("polygon", "crypto", "BTC/USD", ""),
        ("polygon", "crypto", "BTCUSD", "a pair is written"),
        ("alpaca", "sip", "aapl", "in capitals"),
        ("alpaca", "opra", "AAPL", "an option is written"),
        ("alpaca", "crypto", "BTC/USD", ""),
    ],
)
def test_a_name_that_does_not_become_itself_again_is_told(provider: str, feed: str, symbol: str, says: str) -> None:
    problem = PROVIDERS[provider].name_problem(feed, symbol)
    assert (says in problem, bool(problem)) == (True, bool(says))


def test_a_history_is_not_asked_for_under_a_name_under_which_nothing_is_kept(tmp_path: Path) -> None:
    config = tmp_path / "tapeline.toml"
    config.write_text(f'data_dir = "{tmp_path}/data"\n[[providers]]\nname = "binance"\n')
    asked = ["backfill", "--config", str(config), "--channels", "trades", "--start", "2026-01-05", "--end", "2026-01-06", "--dry-run"]
    for symbols, status, said in (
        ("ADA/EUR", 78, "AD/AEUR"),
        ("BTC/USDT,BT/CUSDT", 78, "BTC/USDT"),
        ("DOES/NOTEXIST", 78, "no known quote asset"),
        (" btcusdt , ETH/USDT ", 0, "ETH/USDT"),
    ):
        done = CliRunner().invoke(app, [*asked, "--symbols", symbols], env={"COLUMNS": "200"})
        assert (done.exit_code if not isinstance(done.exception, ConfigError) else 78) == status, done.output
        assert said in f"{done.output}{done.exception}"
