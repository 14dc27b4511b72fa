"""A pull continues where the evidence ends: what is new comes once, what is late or revised is caught, and nothing else is claimed."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from made import DAY, NOON
from made_history import Exchange
from tapeline.config import Config, JobConfig, StoreConfig
from tapeline.errors import Barred, ConfigError, Refused, Unavailable
from tapeline.jobs.backfill.fetching import Source
from tapeline.jobs.sync.pull import Pulled, Sync, Timing
from tapeline.ledger import absorbing, read_intervals
from tapeline.ledger.facts import ConnectionRecord, Key
from tapeline.ledger.sqlite import LedgerFile
from tapeline.orchestration.catalog import jobs_of
from tapeline.providers.registry import DECODERS, HISTORIES, identity
from tapeline.reading.sql import connect
from tapeline.records import NS_PER_MS, NS_PER_S, RAW_TOPIC
from tapeline.stages.ledger import LedgerWriter, Scope, run_ledger
from tapeline.stages.normalize import Normalize, run_normalize
from tapeline.stages.store import StoreWriter, Writing, run_store
from tapeline.stores.lake import Lake
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry.status import StatusFile
from test_completeness import chunk, opened
from test_completeness import trade as live_trade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tapeline.providers.history import Request

MINUTE_NS = 60 * NS_PER_S
TRADES, QUOTES, BARS = (Key("polygon", "stocks", channel, "AAPL") for channel in ("T", "Q", "AM"))
SETTLED_NS, SETTLED_BARS_NS = (HISTORIES["polygon"].settled_ns(channel) for channel in ("T", "AM"))


@dataclass
class Massive:
    """A history that grows: each row has a time, and a later one at which the history has it. All times are in ns."""

    clock: Clock
    rows_a_page: int = 10_000
    #: Time, when it is published, and what tells the event apart; for bars, the window, when this revision is published, and the volume.
    events: list[tuple[int, int, int]] = field(default_factory=list)
    asked: list[tuple[str, int, int]] = field(default_factory=list)  # the ticker and the range of each first page
    before: Callable[[Request], object] = lambda _: None

    def __call__(self, request: Request) -> bytes:
        path, query = urlsplit(request.path).path, parse_qs(urlsplit(request.path).query)
        self.before(request)
        begin = int(query.get("cursor", ["0"])[0])
        published = sorted(event for event in self.events if event[1] <= self.clock())
        if path.startswith("/v2/aggs"):
            *_, ticker, _, _, _, _, low, high = path.split("/")
            start_ns, end_ns = int(low) * NS_PER_MS, int(high) * NS_PER_MS + 1
            last = {start: volume for start, _, volume in published}
            rows = [bar(start, volume) for start, volume in last.items() if start_ns <= start < end_ns]
        else:
            kind, ticker = path.split("/")[2:]
            start_ns, end_ns = (int(query[name][0]) for name in ("timestamp.gte", "timestamp.lt"))
            rows = [(trade if kind == "trades" else quote)(ns, number) for ns, _, number in published if start_ns <= ns < end_ns]
        if not begin:
            self.asked.append((ticker, start_ns, end_ns))
        end = begin + self.rows_a_page
        more = {"next_url": f"https://api.massive.com{request.path.partition('&cursor')[0]}&cursor={end}"} if end < len(rows) else {}
        return json.dumps({"status": "OK", "results": rows[begin:end], **more}).encode()


def trade(ns: int, number: int) -> dict[str, Any]:
    return {"exchange": 11, "id": str(number), "price": 1.5, "size": 100, "sequence_number": number, "sip_timestamp": ns}


def quote(ns: int, number: int) -> dict[str, Any]:
    return {"ask_exchange": 11, "ask_price": 171.6, "ask_size": number, "sequence_number": number, "sip_timestamp": ns}


def bar(ns: int, volume: int) -> dict[str, Any]:
    return {"o": 1.0, "h": 2.0, "l": 1.0, "c": 1.5, "v": volume, "vw": 1.25, "n": 3, "t": ns // NS_PER_MS}


class Clock:
    def __init__(self) -> None:
        self.ns = NOON + 600 * NS_PER_S

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


class World:
    """A data folder with a stream, the stages and a lake; each call of a stage handles everything that waits."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.root, self.clock, self.stop = root, clock, threading.Event()
        self.stream = EmbeddedStream(root / "stream")
        self.ledger_file = LedgerFile(root / "ledger.sqlite")
        self.done = threading.Event()
        self.done.set()

    def sync(self, *keys: Key, get: Callable[[Request], bytes], **timing: int) -> Sync:
        """A new process: nothing is remembered."""
        source = Source(HISTORIES[keys[0].provider], get, self.clock)
        return self.syncing([(source, keys)], **timing)

    def syncing(self, feeds: Sequence[tuple[Source, Sequence[Key]]], **timing: int) -> Sync:
        known = lambda: read_intervals(self.ledger_file.intervals())  # noqa: E731
        return Sync(feeds, self.stream, known, Timing(**timing), self.stop, Random(1), self.clock)

    def store(self) -> None:
        """Run normalize and the lake's store."""
        status = StatusFile(self.root, "any")
        run_normalize(Normalize(self.stream, DECODERS, status), self.done, Random(1))
        lake = Lake(self.root / "lake", identity)
        run_store(StoreWriter(self.stream, lake, Writing("lake", 60, 0.0), status, self.done), self.done, Random(1))

    def stages(self) -> None:
        """Run all stages."""
        self.store()
        stage = LedgerWriter(self.stream, self.ledger_file, DECODERS, StatusFile(self.root, "ledger"), self.done, Scope(["lake"]))
        run_ledger(stage, self.done, Random(1))

    def intervals(self, key: Key) -> list[tuple[str, int, int]]:
        known = read_intervals(self.ledger_file.intervals())
        return [(one.state, one.start_ns, one.end_ns) for one in known.get(key, ())]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(connect(self.root / "lake")) as db:
            return db.execute(query).fetchall()

    def numbers(self) -> list[int]:
        return [number for (number,) in self.rows("SELECT sequence FROM ticks ORDER BY sequence")]


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    found = World(tmp_path, clock)
    yield found
    found.stop.set()
    found.stream.close()


@pytest.fixture
def massive(clock: Clock) -> Massive:
    return Massive(clock)


def pulled(sync: Sync) -> list[Pulled]:
    return list(sync.pull())


def every(second: float, begin_ns: int, end_ns: int) -> list[tuple[int, int, int]]:
    """An event each so many seconds, which is published at once."""
    step = int(second * NS_PER_S)
    return [(ns, ns, ns // step) for ns in range(begin_ns, end_ns, step)]


@pytest.mark.parametrize("key", [TRADES, QUOTES])
def test_what_is_new_comes_once_and_the_ledger_counts_what_is_settled(key: Key, world: World, massive: Massive, clock: Clock) -> None:
    begin_ns = clock.ns - SETTLED_NS - MINUTE_NS
    massive.events = every(0.5, begin_ns - MINUTE_NS, clock.ns + 300 * NS_PER_S)
    sync = world.sync(key, get=massive)
    for _ in range(20):
        (done,) = pulled(sync)
        assert done.error is None
        clock.ns += 10 * NS_PER_S
        world.stages()
    last_ns = clock.ns - 10 * NS_PER_S
    assert world.numbers() == [number for ns, _, number in massive.events if begin_ns - 2 * NS_PER_S <= ns < last_ns]
    # The last pull that read everything was at 180 s.
    assert world.intervals(key) == [("reconciled", begin_ns - 2 * NS_PER_S, last_ns - 10 * NS_PER_S - SETTLED_NS)]


def test_what_is_published_late_is_caught_and_what_comes_too_late_is_not_looked_for(world: World, massive: Massive, clock: Clock) -> None:
    t0 = clock.ns
    massive.events = [
        (t0 - 5 * NS_PER_S, t0 - 5 * NS_PER_S, 1),
        (t0 - NS_PER_S, t0 + NS_PER_S // 4, 2),  # within the overlap of the next pull
        (t0 - 9 * NS_PER_S, t0 + 9 * NS_PER_S, 3),  # before it is settled
        (t0 - 6 * NS_PER_S, t0 + 7200 * NS_PER_S, 4),
    ]
    sync = world.sync(TRADES, get=massive)
    pulled(sync)
    clock.ns += NS_PER_S // 2
    pulled(sync)
    world.stages()
    assert world.numbers() == [1, 2]
    while clock.ns < t0 + 90 * NS_PER_S:
        clock.ns += NS_PER_S
        pulled(sync)
    world.stages()
    assert world.numbers() == [1, 2, 3]
    pages = [row["payload"].partition(b"\n")[2] for row in raw(world) if json.loads(row["payload"].partition(b"\n")[0])["page"] > 0]
    assert sum(page.count(b'"id": "3"') for page in pages) == 1, "what is settled is read once"


def raw(world: World) -> list[dict[str, Any]]:
    chunk = world.stream.read(RAW_TOPIC, {}, 1_000_000)
    return chunk.batch.to_pylist() if chunk is not None else []


def test_a_bar_s_revisions_replace_it_and_it_is_claimed_once_it_is_final(world: World, massive: Massive, clock: Clock) -> None:
    t0 = clock.ns
    windows = [t0 + at * MINUTE_NS for at in range(-30, 40)]
    massive.events = [(ns, ns + MINUTE_NS, 100) for ns in windows] + [(t0, t0 + 10 * MINUTE_NS, 175)]
    sync = world.sync(BARS, get=massive)
    seen = {}
    for minute in range(40):
        pulled(sync)
        if minute in (1, 5, 11, 30):
            world.store()
            seen[minute] = dict(world.rows(f"SELECT volume, final FROM bars WHERE ts_ns = {t0}"))
        clock.ns += MINUTE_NS
    world.stages()
    assert seen == {1: {100.0: False}, 5: {100.0: False}, 11: {175.0: False}, 30: {175.0: True}}
    last_ns = clock.ns - MINUTE_NS
    kept = world.rows("SELECT ts_ns, volume, final FROM bars ORDER BY ts_ns")
    first_ns = (t0 - SETTLED_BARS_NS - MINUTE_NS - 2 * NS_PER_S) // MINUTE_NS * MINUTE_NS
    assert [(ns, volume) for ns, volume, _ in kept] == [(ns, 175.0 if ns == t0 else 100.0) for ns in windows if first_ns <= ns < last_ns]
    ((state, _, end_ns),) = world.intervals(BARS)
    assert (state, end_ns) == ("reconciled", last_ns - SETTLED_BARS_NS)
    assert all(final == (ns < end_ns) for ns, _, final in kept)
    revisions = world.rows(f"SELECT volume, final FROM bar_revisions WHERE ts_ns = {t0} ORDER BY received_ns")
    assert revisions == [(100.0, False), (175.0, False), (175.0, True)], "a copy is no revision"


class Pausing(Exchange):
    """Nothing happens for a minute after the trade 5,900."""

    def time_ms(self, number: int) -> int:
        return super().time_ms(number) + (60_000 if number > 5_900 else 0)


def test_consecutive_ids_are_proven_and_a_quiet_time_after_them_is_reconciled(world: World, clock: Clock) -> None:
    key, exchange = Key("binance", "spot", "trade", "BTC/USDT"), Pausing(5_900)  # the last one happens at 590 s
    sync = world.sync(key, get=exchange)
    pulled(sync)
    world.stages()
    settled_ns = clock.ns - HISTORIES["binance"].settled_ns("trade")
    first = exchange.numbers(settled_ns - MINUTE_NS - 2 * NS_PER_S, clock.ns)[0] - 1  # the aggregated trade before the start names it
    assert world.numbers() == list(range(first, 5_901))
    assert world.intervals(key)[-2:] == [
        ("proven", exchange.time_ms(first) * NS_PER_MS, exchange.time_ms(5_900) * NS_PER_MS),
        ("reconciled", exchange.time_ms(5_900) * NS_PER_MS, settled_ns),
    ]
    exchange.count = 6_400
    clock.ns += 110 * NS_PER_S
    pulled(sync)
    world.stages()
    assert world.numbers() == list(range(first, 6_401))
    assert [state for state, _, _ in world.intervals(key)] == ["proven", "reconciled"]


def test_the_time_before_the_first_event_of_all_is_no_hole(world: World, clock: Clock) -> None:
    """The ids of the first events are proven before the time before them is settled."""
    key, exchange = Key("binance", "spot", "trade", "BTC/USDT"), Exchange(0, every_ms=1_000)
    clock.ns = NOON - 20 * NS_PER_S
    sync = world.sync(key, get=exchange)
    for second in range(-20, 150, 5):
        clock.ns, exchange.count = NOON + second * NS_PER_S, max(0, second)
        pulled(sync)
        world.stages()
    assert world.numbers() == list(range(1, 146))
    assert {state for state, _, _ in world.intervals(key)} == {"reconciled", "proven"}


def test_beside_a_websocket_a_pull_goes_on_behind_what_came_and_each_event_is_there_once(world: World, clock: Clock) -> None:
    key, exchange = Key("binance", "spot", "trade", "BTC/USDT"), Exchange(95, every_ms=1_000)
    live = chunk([*opened(0), *(live_trade(number, number) for number in range(1, 61) if not 30 <= number <= 35)])
    world.stream.append(RAW_TOPIC, live.batch, 0)
    world.stages()
    clock.ns = NOON + 95 * NS_PER_S
    pulled(world.sync(key, get=exchange))
    assert f"endTime={(NOON + 58 * NS_PER_S) // NS_PER_MS - 1}&" in exchange.asked[0], "the gap before is left to repair"
    world.stages()
    assert world.numbers() == [number for number in range(1, 96) if not 30 <= number <= 35]
    assert [state for state, _, _ in world.intervals(key)][-3:] == ["proven", "open", "proven"]


def test_a_new_process_continues_from_the_ledger_and_reads_nothing_twice(world: World, massive: Massive, clock: Clock) -> None:
    massive.events = every(1, NOON, NOON + DAY // 4)
    pulled(world.sync(TRADES, get=massive))
    world.stages()
    until_ns = clock.ns - SETTLED_NS
    clock.ns += 7_000 * NS_PER_S  # two slices
    massive.asked.clear()
    sync = world.sync(TRADES, get=massive)
    while sync.behind:
        pulled(sync)
    assert [span[1:] for span in massive.asked] == [
        (until_ns - 2 * NS_PER_S, until_ns + 3_600 * NS_PER_S),
        (until_ns + 3_598 * NS_PER_S, clock.ns - SETTLED_NS),
        (clock.ns - SETTLED_NS, clock.ns),
    ]
    world.stages()
    assert [state for state, _, _ in world.intervals(TRADES)] == ["reconciled"]
    assert len(world.numbers()) == len(set(world.numbers())) == 7_000 + 60 + 20 + 2


def test_while_the_ledger_stands_still_the_stream_says_what_was_read(world: World, massive: Massive, clock: Clock) -> None:
    """Each pull is a new process, as a job that runs every minute."""
    massive.events = every(1, NOON, NOON + DAY // 4)
    world.stages()
    began_ns = clock.ns - SETTLED_NS - MINUTE_NS
    for minute in range(30):
        pulled(world.sync(TRADES, get=massive))
        clock.ns += MINUTE_NS
        if minute == 12:
            world.store()  # normalize and the store go on
    settled = sorted(span[1:] for span in massive.asked[::2])
    assert [start_ns for start_ns, _ in settled] == [began_ns - 2 * NS_PER_S + at * MINUTE_NS for at in range(30)]
    world.stages()
    assert world.intervals(TRADES) == [("reconciled", began_ns - 2 * NS_PER_S, clock.ns - MINUTE_NS - SETTLED_NS)]
    assert len(world.numbers()) == len(set(world.numbers()))


def begun(world: World, massive: Massive, clock: Clock, sync: Sync) -> list[int]:
    """Where eight pulls, a minute apart, begin: in minutes since the first one's end."""
    spans = []
    for _ in range(8):
        massive.asked.clear()
        pulled(sync)
        world.stages()
        spans.append(massive.asked[0][1:])
        clock.ns += MINUTE_NS
    until_ns = NOON + 600 * NS_PER_S - SETTLED_NS
    return [(start_ns - until_ns + 2 * NS_PER_S) // MINUTE_NS for start_ns, _ in spans]


def test_what_holds_a_rejected_event_is_not_read_again(world: World, massive: Massive, clock: Clock) -> None:
    massive.events = every(1, NOON, NOON + DAY // 4)
    wrong_ns = clock.ns + 70 * NS_PER_S  # within the third span
    sync = world.sync(TRADES, get=lambda request: massive(request).replace(b"%d}" % wrong_ns, b'%d, "price": -1}' % wrong_ns))
    assert begun(world, massive, clock, sync) == [-1, 0, 1, 2, 3, 4, 5, 6]
    assert [state for state, _, _ in world.intervals(TRADES)] == ["reconciled", "unrecoverable", "reconciled"]


def test_what_the_ledger_has_read_and_does_not_count_is_read_once_more_and_then_left(
    world: World, massive: Massive, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    massive.events = every(1, NOON, NOON + DAY // 4)
    lost_ns, count = clock.ns + 70 * NS_PER_S, absorbing._absorb_read  # within the third span

    def forgetful(connection: ConnectionRecord, line: str, *, spoiled: bool) -> None:
        head = json.loads(line)
        if not head["start_ns"] < lost_ns < head["end_ns"]:
            count(connection, line, spoiled=spoiled)

    monkeypatch.setattr(absorbing, "_absorb_read", forgetful)
    assert begun(world, massive, clock, world.sync(TRADES, get=massive)) == [-1, 0, 1, 1, 3, 4, 5, 6]
    assert [state for state, _, _ in world.intervals(TRADES)] == ["reconciled", "open", "reconciled"]
    again = world.sync(TRADES, get=massive)
    massive.asked.clear()
    pulled(again)
    assert massive.asked[0][1] == clock.ns - MINUTE_NS - SETTLED_NS - 2 * NS_PER_S, "a new process goes on behind it"


def test_an_error_of_one_symbol_holds_up_no_other_and_it_catches_up(world: World, massive: Massive, clock: Clock) -> None:
    other = TRADES._replace(symbol="MSFT")
    massive.events = every(1, NOON, NOON + 3600 * NS_PER_S)

    def broken(request: Request) -> None:
        if "AAPL" in request.path and clock.ns < NOON + 700 * NS_PER_S:
            raise Unavailable("HTTP 500")

    massive.before = broken
    sync = world.sync(TRADES, other, get=massive)
    told, symbols = [], []
    while clock.ns < NOON + 900 * NS_PER_S:
        done = pulled(sync)
        told += [one.error for one in done if one.error is not None]
        symbols.append({one.key.symbol for one in done if one.error is None})
        clock.ns += NS_PER_S
    assert all("MSFT" in some for some in symbols)
    assert 4 < len(told) < 15, "it is asked after growing waits"
    world.stages()
    found = world.rows("SELECT symbol, min(sequence), max(sequence), count(*) FROM ticks GROUP BY symbol ORDER BY symbol")
    last = (NOON + 898 * NS_PER_S) // NS_PER_S
    assert [(symbol, high, count) for symbol, _, high, count in found] == [(symbol, last, last - low + 1) for symbol, low, _, _ in found]
    assert [low for _, low, _, _ in found][1] == (NOON + 518 * NS_PER_S) // NS_PER_S
    assert {state for key in (TRADES, other) for state, _, _ in world.intervals(key)} == {"reconciled"}


def test_a_large_ledger_is_not_read_all_the_time(world: World, massive: Massive, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = list[int]()
    intervals = LedgerFile.intervals

    def slow(self: LedgerFile) -> Any:
        looked.append(clock.ns)
        clock.ns += NS_PER_S
        return intervals(self)

    def broken(request: Request) -> None:
        if "AAPL" not in request.path:
            raise Unavailable("HTTP 500")

    monkeypatch.setattr(LedgerFile, "intervals", slow)
    massive.before = broken
    keys = [TRADES._replace(symbol=symbol) for symbol in ("AAPL", "MSFT", "NVDA", "SPY", "TSLA")]
    sync, began_ns = world.sync(*keys, get=massive), clock.ns
    while clock.ns < began_ns + 600 * NS_PER_S:
        pulled(sync)
        clock.ns += NS_PER_S
    assert 10 <= len(looked) <= 31


def test_a_channel_that_the_plan_does_not_include_is_asked_once_in_ten_minutes(world: World, massive: Massive, clock: Clock) -> None:
    def barred(request: Request) -> None:
        if "/v3/quotes" in request.path:
            asked.append(request.path)
            raise Barred("HTTP 403")

    asked: list[str] = []
    massive.before = barred
    keys = [key._replace(symbol=symbol) for symbol in ("AAPL", "MSFT") for key in (QUOTES, TRADES)]
    sync = world.sync(*keys, get=massive)
    first = pulled(sync)
    assert [(one.key.channel, type(one.error)) for one in first] == [("Q", Barred), ("T", type(None))] * 2
    for _ in range(59):
        clock.ns += 10 * NS_PER_S
        assert [one.key.channel for one in pulled(sync)] == ["T", "T"]
    assert len(asked) == 1
    clock.ns += 20 * NS_PER_S
    pulled(sync)
    assert len(asked) == 2


def test_a_symbol_that_is_refused_waits_and_is_no_error_of_another(world: World, massive: Massive, clock: Clock) -> None:
    def refused(request: Request) -> None:
        if "NOPE" in request.path:
            raise Refused("HTTP 404")

    massive.before = refused
    sync = world.sync(TRADES._replace(symbol="NOPE"), TRADES, get=massive)
    assert [type(one.error) for one in pulled(sync)] == [Refused, type(None)]
    clock.ns += 60 * NS_PER_S
    assert [one.key.symbol for one in pulled(sync)] == ["AAPL"]


def test_a_provider_that_hangs_holds_up_no_other_and_is_not_asked_again_meanwhile(world: World, massive: Massive, clock: Clock) -> None:
    answer, asked = threading.Event(), list[str]()

    def hangs(request: Request) -> bytes:
        asked.append(request.path)
        assert answer.wait(60)
        return json.dumps({"trades": {}, "next_page_token": None}).encode()

    massive.events = every(1, NOON, NOON + 3600 * NS_PER_S)
    alpaca = Key("alpaca", "iex", "trades", "AAPL")
    sync = world.syncing([(Source(HISTORIES["alpaca"], hangs, clock), [alpaca]), (Source(HISTORIES["polygon"], massive, clock), [TRADES])])
    for _ in range(3):
        assert [one.key for one in sync.pull(0.2)] == [TRADES]
        clock.ns += NS_PER_S
    assert len(asked) == 1
    answer.set()
    assert alpaca in [one.key for one in pulled(sync)]


def test_a_stop_does_not_wait_for_an_answer(world: World, massive: Massive) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hangs(_: Request) -> None:
        asked.set()
        answer.wait(60)

    massive.before = hangs
    ended = threading.Event()
    sync = world.sync(TRADES, get=massive)

    def pulls() -> None:
        pulled(sync)
        ended.set()

    thread = threading.Thread(target=pulls)
    thread.start()
    assert asked.wait(10)
    world.stop.set()
    assert ended.wait(10)
    answer.set()
    thread.join()


def test_a_stream_that_goes_away_in_the_middle_of_a_read_loses_nothing_and_claims_nothing(
    world: World, massive: Massive, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    massive.rows_a_page, massive.events = 10, every(1, NOON, NOON + 3600 * NS_PER_S)
    whole, append = world.sync(TRADES, get=massive), EmbeddedStream.append
    left = iter([True, True, False])

    def sometimes(self: EmbeddedStream, *arguments: Any) -> None:
        if not next(left, True):
            raise Unavailable("the stream is away")
        append(self, *arguments)

    monkeypatch.setattr(EmbeddedStream, "append", sometimes)
    with pytest.raises(Unavailable):
        pulled(whole)
    world.stages()
    assert [state for state, _, _ in world.intervals(TRADES)] in ([], ["repairing"]), "nothing is claimed"
    clock.ns += NS_PER_S
    for _ in range(2):  # the rest of the turn that was given up, and then a turn of its own
        pulled(whole)
    world.stages()
    low, high = (NOON + 519 * NS_PER_S) // NS_PER_S, (NOON + 600 * NS_PER_S) // NS_PER_S
    assert [number for number in world.numbers() if number >= low] == list(range(low, high + 1))
    ((state, _, end_ns),) = world.intervals(TRADES)
    assert (state, end_ns) == ("reconciled", clock.ns - SETTLED_NS)


def test_a_slow_read_claims_no_more_than_what_was_settled_when_it_began(world: World, massive: Massive, clock: Clock) -> None:
    massive.rows_a_page, massive.events = 10, every(1, NOON, NOON + 3600 * NS_PER_S)
    t0 = clock.ns

    def slow(_: Request) -> None:
        clock.ns += 5 * NS_PER_S

    massive.before = slow
    pulled(world.sync(TRADES, get=massive))
    world.stages()
    assert clock.ns > t0 + 40 * NS_PER_S
    ((state, _, end_ns),) = world.intervals(TRADES)
    assert (state, end_ns) == ("reconciled", t0 - SETTLED_NS)


@pytest.mark.parametrize("by_s", [-3_000, -90, -1, 1, 90, 3_000])
@pytest.mark.parametrize("anew", [False, True])
def test_a_clock_that_jumps_and_comes_back_costs_no_event_and_no_false_claim(
    by_s: int, anew: bool, world: World, massive: Massive, clock: Clock
) -> None:
    """The provider's clock goes right, and its answers say what time it is."""
    right = Clock()
    massive.clock = right
    massive.events = every(1, NOON, NOON + 1_500 * NS_PER_S)
    began_ns = right.ns

    def sync() -> Sync:
        return world.syncing([(Source(HISTORIES["polygon"], massive, clock, right), [TRADES])])

    some = sync()
    for second in range(0, 900, 10):
        right.ns = began_ns + second * NS_PER_S
        clock.ns = right.ns + (by_s * NS_PER_S if 300 <= second < 600 else 0)
        if anew and second in (300, 600):
            some = sync()
        pulled(some)
        if second % 100 == 90:
            world.stages()
            assert all(end_ns <= right.ns - SETTLED_NS for _, _, end_ns in world.intervals(TRADES))
    low, high = (began_ns - 80 * NS_PER_S) // NS_PER_S, (right.ns - NS_PER_S) // NS_PER_S
    assert [number for number in world.numbers() if number >= low] == list(range(low, high + 1))
    assert {state for state, start_ns, _ in world.intervals(TRADES) if start_ns >= began_ns} <= {"reconciled"}


def test_no_pull_reaches_further_back_than_allowed(world: World, massive: Massive, clock: Clock) -> None:
    pulled(world.sync(TRADES, get=massive, look_back_ns=5 * MINUTE_NS))
    assert massive.asked[0][1] == clock.ns - SETTLED_NS - 5 * MINUTE_NS - 2 * NS_PER_S
    world.stages()
    until_ns = clock.ns - SETTLED_NS
    clock.ns += 40 * MINUTE_NS
    massive.asked.clear()
    pulled(world.sync(TRADES, get=massive, furthest_ns=10 * MINUTE_NS))
    assert massive.asked[0][1:] == (clock.ns - SETTLED_NS - 10 * MINUTE_NS - 2 * NS_PER_S, clock.ns - SETTLED_NS)
    massive.asked.clear()
    pulled(world.sync(TRADES, get=massive, furthest_ns=50 * MINUTE_NS, overlap_ns=7))
    assert massive.asked[-1][1:] == (clock.ns - SETTLED_NS, clock.ns)
    assert until_ns < massive.asked[0][1]


def test_a_symbol_without_any_event_is_read_without_a_hole(world: World, massive: Massive, clock: Clock) -> None:
    for _ in range(3):
        pulled(world.sync(TRADES, get=massive))
        world.stages()
        clock.ns += 300 * NS_PER_S
    settled = massive.asked[::2]
    assert [start_ns + 2 * NS_PER_S for _, start_ns, _ in settled[1:]] == [end_ns for _, _, end_ns in settled[:-1]]


def test_a_plan_that_gives_everything_late_is_asked_for_what_it_has(world: World, massive: Massive, clock: Clock) -> None:
    massive.events = every(1, NOON - 900 * NS_PER_S, NOON)
    sync = world.sync(TRADES, get=massive, delay_ns=16 * MINUTE_NS)
    for _ in range(130):
        assert all(one.error is None for one in pulled(sync))
        clock.ns += NS_PER_S
    edge_ns = clock.ns - NS_PER_S - 16 * MINUTE_NS
    assert max(end_ns for _, _, end_ns in massive.asked) == edge_ns
    world.stages()
    found = world.numbers()
    assert found == list(range(found[0], edge_ns // NS_PER_S))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"overlap": "soon"}, 'overlap = "soon" is not a duration'),
        ({"delay": "16"}, 'delay = "16" is not a duration'),
        ({"day": "2026-01-05"}, "The arguments of sync are: provider, symbols, channels, overlap, look_back, furthest, delay"),
    ],
)
def test_wrong_arguments_of_the_job_are_named(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        jobs_of(Config(stores=(StoreConfig(),), jobs=(JobConfig(job="sync", arguments=arguments),)))
