"""A store is compared with the provider's history, event by event; what it lacks goes into the stream, and only that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pytest

from made import DAY, NOON, bars, ticks
from made_history import T0, Exchange
from tapeline.config import Config
from tapeline.jobs.backfill.fetching import Fetched, Source, raw_record
from tapeline.jobs.reconcile import Reconciled, _matched, reconcile
from tapeline.ledger.absorbing import absorb
from tapeline.ledger.answers import answer
from tapeline.ledger.facts import Facts, Key
from tapeline.ledger.intervals import intervals
from tapeline.providers.history import Span, ending
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import CHANNELS, DECODERS, HISTORIES, identity
from tapeline.reading.api import open_source
from tapeline.records import BARS_TOPIC, NS_PER_MS, NS_PER_S, RAW, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake
from tapeline.streams.embedded import EmbeddedStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tapeline.providers.history import Request

TRADES = Key("binance", "spot", "trade", "BTC/USDT")
START, END = NOON, NOON + 300_250 * NS_PER_MS
#: 1,200 trades lie within, one each quarter of a second, and more behind.
EXCHANGE = Exchange(3_000, every_ms=250)
INSIDE = EXCHANGE.numbers(START, END)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[EmbeddedStream]:
    found = EmbeddedStream(tmp_path / "stream")
    yield found
    found.close()


@pytest.fixture
def lake(tmp_path: Path) -> Callable[[list[int]], None]:
    """Keep trades by number; a negative one is a trade that no history holds."""
    offsets = [0]

    def keep(numbers: list[int]) -> None:
        rows = [
            {
                "ts_ns": (T0 + abs(number) * 250) * NS_PER_MS,
                "sequence": number,
                "trade_id": str(number),
                "side": "sell",
                "volume": 2.0,
                "raw_offset": offsets[0] + at,
            }
            for at, number in enumerate(numbers)
        ]
        Lake(tmp_path / "lake", identity).write(Chunk.dense(TICKS_TOPIC, 0, offsets[0], ticks(*rows)))
        offsets[0] += len(rows)

    return keep


@pytest.fixture
def compared(tmp_path: Path, stream: EmbeddedStream) -> Callable[[], Reconciled]:
    def run(get: Callable[[Request], bytes] = EXCHANGE) -> Reconciled:
        store = open_source("lake", config=Config(data_dir=str(tmp_path)))
        return reconcile(TRADES, (START, END), Source(HISTORIES["binance"], get, lambda: NOON + DAY), store, stream, "reconcile-1")

    return run


def sent(stream: EmbeddedStream) -> list[list[int]]:
    """The ids on each page that is in the stream."""
    found = stream.read(RAW_TOPIC, {}, 1_000)
    bodies = [payload.partition(b"\n")[2] for payload in found.batch["payload"].to_pylist()] if found is not None else []
    return [[row["id"] for row in msgspec.json.decode(body)] if body else [] for body in bodies]


def test_a_day_that_is_whole_is_equal_and_only_a_word_of_it_is_sent(
    lake: Callable[[list[int]], None], compared: Callable[[], Reconciled], stream: EmbeddedStream
) -> None:
    lake(INSIDE)
    found = compared()
    assert found == Reconciled(TRADES, 1_200, 1_200, 0, 0, 2_400.0, 2_400.0, 0)
    assert found.equal
    assert sent(stream) == [[]]


def test_what_is_missing_is_sent_by_the_page_and_then_nothing_is_missing(
    lake: Callable[[list[int]], None], compared: Callable[[], Reconciled], stream: EmbeddedStream, tmp_path: Path
) -> None:
    lake([number for number in INSIDE if number not in (1_100, 1_101)])
    found = compared()
    assert (found.stored, found.in_history, found.only_stored, found.only_in_history, found.pages) == (1_198, 1_200, 0, 2, 1)
    (page, word) = sent(stream)
    assert {1_100, 1_101} <= set(page)
    assert word == []
    chunk = stream.read(RAW_TOPIC, {}, 10)
    assert chunk is not None
    made = normalize(chunk, DECODERS).batches[TICKS_TOPIC]
    Lake(tmp_path / "lake", identity).write(Chunk.dense(TICKS_TOPIC, 0, 10_000, made))
    assert compared().equal


def test_what_is_sent_is_what_was_compared_however_the_history_answers_the_next_time(
    lake: Callable[[list[int]], None], compared: Callable[..., Reconciled], stream: EmbeddedStream
) -> None:
    lake([number for number in INSIDE if number not in (5, 1_100)])
    answered = set[str]()

    def once(request: Request) -> bytes:
        assert request.path not in answered, "asked for a second time"
        answered.add(request.path)
        return EXCHANGE(request)

    assert compared(once).only_in_history == 2
    first, second, word = sent(stream)
    assert (5 in first, 1_100 in second, word) == (True, True, [])


def test_of_a_running_day_no_more_is_claimed_than_was_there_when_it_was_read(stream: EmbeddedStream, tmp_path: Path) -> None:
    """The history lags fifteen seconds behind, and the comparison takes a minute."""
    key, end_ns = Key("alpaca", "iex", "quotes", "AAPL"), NOON + 60 * NS_PER_S
    Lake(tmp_path / "lake", identity).write(Chunk.dense(TICKS_TOPIC, 0, 0, ticks({"ts_ns": NOON - DAY})))
    now = iter(range(end_ns, end_ns + DAY, 60 * NS_PER_S))
    rows = [{"t": f"2024-03-15T12:00:{second:02}Z", "bp": 1.0, "bs": 1, "ap": 2.0, "as": 1, "bx": "V", "ax": "V"} for second in range(45)]
    source = Source(
        HISTORIES["alpaca"], lambda asked: msgspec.json.encode({"quotes": {"AAPL": rows}, "next_page_token": None}), lambda: next(now)
    )
    store = open_source("lake", config=Config(data_dir=str(tmp_path)))
    assert reconcile(key, (NOON, end_ns), source, store, stream, "reconcile-1").in_history == 45
    chunk, facts = stream.read(RAW_TOPIC, {}, 10), Facts()
    assert chunk is not None
    absorb(facts, chunk, normalize(chunk, DECODERS))
    assert [(one.start_ns, one.end_ns, one.state) for one in intervals(facts, key)] == [(NOON, end_ns - 20 * NS_PER_S, "reconciled")]


@pytest.mark.parametrize(("name", "value"), [("last", 1.25), ("volume", 3.0), ("side", "buy")])
def test_an_event_that_the_history_tells_differently_is_a_difference_and_no_evidence(
    name: str, value: Any, compared: Callable[[], Reconciled], stream: EmbeddedStream, tmp_path: Path
) -> None:
    rows = [
        {"ts_ns": (T0 + number * 250) * NS_PER_MS, "sequence": number, "trade_id": str(number), "last": 1.5, "volume": 2.0, "side": "sell"}
        for number in INSIDE
    ]
    rows[7][name] = value
    rows[8]["side"] = None  # what one of both does not say is no difference
    Lake(tmp_path / "lake", identity).write(Chunk.dense(TICKS_TOPIC, 0, 0, ticks(*rows)))
    found = compared()
    assert (found.differing, found.only_stored, found.only_in_history) == (1, 0, 0)
    assert not found.equal
    assert not found.claimed
    assert sent(stream) == []


@pytest.mark.parametrize(
    ("stored", "told", "only_stored", "missing", "differing"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0, 0, 0),
        ([1.0], [1.0, 2.0], 0, 1, 0),
        ([1.0, 2.0], [1.0], 1, 0, 0),
        ([1.0], [2.0], 0, 0, 1),
        ([1.0, 3.0], [1.0, 2.0], 0, 0, 1),
        ([], [1.0, 2.0], 0, 1, 0),
    ],
    ids=["both", "one is missing", "one too many", "another", "one of two is another", "none"],
)
def test_of_two_trades_that_share_a_number_each_is_looked_for(
    stored: list[float], told: list[float], only_stored: int, missing: int, differing: int
) -> None:
    held, fetched = (
        pa.table(ticks(*({"sequence": 7, "volume": size} for size in (100.0, *sizes)))).append_column(
            "page", pa.array([3] * (1 + len(sizes)))
        )
        for sizes in (stored, told)
    )
    found = _matched(held, fetched, CHANNELS["binance"]["spot"]["aggTrade"].identity).to_pylist()
    assert len(found) == 1
    (number,) = found
    assert ((number["fetched"] == 0), (number["held"] == 0), number["differs"]) == (bool(only_stored), bool(missing), bool(differing))
    assert number["page"] == (3 if missing or differing else None)


def test_what_no_history_holds_is_told(lake: Callable[[list[int]], None], compared: Callable[[], Reconciled]) -> None:
    lake([*INSIDE, -500])
    found = compared()
    assert (found.stored, found.only_stored, found.only_in_history, found.stored_volume) == (1_201, 1, 0, 2_402.0)
    assert not found.equal


def test_a_history_that_has_nothing_of_what_was_seen_is_no_evidence(stream: EmbeddedStream, tmp_path: Path) -> None:
    key = Key("alpaca", "iex", "trades", "AAPL")
    seen = {"ts_ns": START + 1, "provider": "alpaca", "feed": "iex", "channel": "trades", "symbol": "AAPL", "trade_id": "7"}
    Lake(tmp_path / "lake", identity).write(Chunk.dense(TICKS_TOPIC, 0, 0, ticks(seen)))
    store = open_source("lake", config=Config(data_dir=str(tmp_path)))
    nothing = Source(
        HISTORIES["alpaca"], lambda asked: msgspec.json.encode({"trades": {}, "next_page_token": None}), lambda: NOON + 2 * DAY
    )
    found = reconcile(key, (START, END), nothing, store, stream, "reconcile-1")
    assert (found.stored, found.in_history, found.only_stored, found.claimed) == (1, 0, 1, False)
    assert sent(stream) == []
    elsewhen = reconcile(key, (START + DAY, END + DAY), nothing, store, stream, "reconcile-1")
    assert (elsewhen.equal, elsewhen.claimed) == (True, True)
    assert sent(stream) == [[]]


def test_a_history_that_lacks_some_of_what_was_seen_is_no_evidence(
    lake: Callable[[list[int]], None], compared: Callable[..., Reconciled], stream: EmbeddedStream
) -> None:
    lake([*INSIDE, -500])
    assert not compared().claimed
    assert sent(stream) == []


def test_a_history_without_any_bars_where_some_were_seen_is_no_evidence(stream: EmbeddedStream, tmp_path: Path) -> None:
    key = Key("alpaca", "iex", "bars", "AAPL")
    seen = {"ts_ns": START, "provider": "alpaca", "feed": "iex", "channel": "bars", "exchange": "IEXG"}
    Lake(tmp_path / "lake", identity).write(Chunk.dense(BARS_TOPIC, 0, 0, bars(seen)))
    store = open_source("lake", config=Config(data_dir=str(tmp_path)))
    nothing = Source(HISTORIES["alpaca"], lambda asked: msgspec.json.encode({"bars": {}, "next_page_token": None}), lambda: NOON + DAY)
    found = reconcile(key, (START, END), nothing, store, stream, "reconcile-1")
    assert (found.stored, found.in_history, found.only_stored, found.claimed) == (1, 0, 1, False)
    assert sent(stream) == []


def test_a_history_of_which_an_event_cannot_be_read_is_no_evidence_and_the_event_is_shown(
    lake: Callable[[list[int]], None], compared: Callable[..., Reconciled], stream: EmbeddedStream
) -> None:
    lake(INSIDE)

    def spoiled(request: Request) -> bytes:
        rows = msgspec.json.decode(EXCHANGE(request))
        return msgspec.json.encode([{**row, "price": "a lot"} if row.get("id") == 1_100 else row for row in rows])

    found = compared(spoiled)
    assert (found.rejected, found.equal, found.claimed) == (1, False, False)
    (page,) = sent(stream)
    assert 1_100 in page
    chunk = stream.read(RAW_TOPIC, {}, 10)
    assert chunk is not None
    (shown,) = normalize(chunk, DECODERS).batches[REJECTED_TOPIC]["payload"].to_pylist()
    assert b"a lot" in shown


def test_bars_are_compared_by_their_last_revision_whichever_channel_brought_it(stream: EmbeddedStream, tmp_path: Path) -> None:
    key, minute = Key("alpaca", "iex", "bars", "AAPL"), 60 * NS_PER_S
    of_alpaca = {"provider": "alpaca", "feed": "iex", "exchange": "IEXG", "trades": 4, "vwap": 1.5}
    revised = {**of_alpaca, "ts_ns": START, "channel": "updatedBars", "volume": 11.0, "final": True, "raw_offset": 2}
    rows = [{**of_alpaca, "ts_ns": START + at * minute, "channel": "bars", "raw_offset": at} for at in range(2)]
    Lake(tmp_path / "lake", identity).write(Chunk.dense(BARS_TOPIC, 0, 0, bars(*rows, revised)))
    told = [
        {"t": f"2024-03-15T12:0{at}:00Z", "o": 1.0, "h": 3.0, "l": 1.0, "c": 2.0, "v": volume, "n": 4, "vw": 1.5}
        for at, volume in enumerate([11, 10, 7])
    ]
    body = msgspec.json.encode({"bars": {"AAPL": told}, "next_page_token": None})
    store = open_source("lake", config=Config(data_dir=str(tmp_path)))
    source = Source(HISTORIES["alpaca"], lambda asked: body, lambda: NOON + DAY)
    found = reconcile(key, (START, START + 3 * minute), source, store, stream, "reconcile-1")
    assert (found.stored, found.in_history, found.only_stored, found.only_in_history) == (2, 3, 0, 1)


def test_the_ledger_takes_the_word_for_its_time_and_no_other(stream: EmbeddedStream) -> None:
    word = ending(Span("iex", "quotes", "AAPL", START, END), END + DAY)
    stream.append(RAW_TOPIC, raw_record("alpaca", "iex", "reconcile-1", Fetched(word, END + DAY, 0, 0, None)), 0)
    chunk = stream.read(RAW_TOPIC, {}, 10)
    assert chunk is not None
    facts, key = Facts(), Key("alpaca", "iex", "quotes", "AAPL")
    absorb(facts, chunk, normalize(chunk, DECODERS))
    # Of a name that nobody has ever heard of, an empty history proves nothing: it may be no symbol at all.
    assert [(one.start_ns, one.end_ns, one.state) for one in intervals(facts, key)] == [(START, END, "unprovable")]
    assert "is its name right?" in intervals(facts, key)[0].evidence
    assert answer(key, intervals(facts, key), START, END).verdict == "unprovable"
    sides = {"bp": 1.0, "bs": 1, "ap": 2.0, "as": 1, "bx": "V", "ax": "V"}
    quote = {"T": "q", "S": "AAPL", "t": "2024-03-01T15:00:00Z", **sides, "c": [], "z": "C"}
    row = {"provider": "alpaca", "feed": "iex", "connection": "x-1", "kind": "frame", "received_ns": END + 2 * DAY}
    stream.append(RAW_TOPIC, pa.RecordBatch.from_pylist([{**row, "payload": msgspec.json.encode([quote])}], RAW), 0)
    heard = stream.read(RAW_TOPIC, chunk.next, 10)
    assert heard is not None
    absorb(facts, heard, normalize(heard, DECODERS))
    assert (START, END, "reconciled") in [(one.start_ns, one.end_ns, one.state) for one in intervals(facts, key)]
    assert answer(key, intervals(facts, key), START, END).verdict == "complete"
    assert answer(key, intervals(facts, key), START - 1, END).verdict == "incomplete"
