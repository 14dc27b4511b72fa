"""The live feed: every client gets each of its events once and in order, also after it was away, and a slow one is told what it missed."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from made import NOON, bars, ticks
from tapeline.errors import Unavailable, WrongArgument
from tapeline.records import BARS_TOPIC, NS_PER_S, TICKS_TOPIC, Chunk, Topic
from tapeline.streams.embedded import EmbeddedStream
from tapeline.web.live.client import Client
from tapeline.web.live.hub import Hub
from tapeline.web.live.messages import Message
from tapeline.web.live.position import Position, parse
from tapeline.web.live.reader import Reader
from tapeline.web.live.subscription import Change, Request, Subscription, requested
from tapeline.web.live.window import Window, window_of
from waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

SYMBOLS = ("BTC/USDT", "ETH/USDT", "AAPL")
#: A symbol is in one partition of two.
PARTITION = {"BTC/USDT": 0, "ETH/USDT": 1, "AAPL": 0}
START = Position({"ticks": (0, 0), "bars": (0, 0)})
TICKS_OF_ALL = Subscription(frozenset("*"), frozenset({"ticks"}))


def chunk_of(symbols: Sequence[str], since: Sequence[int], first: int = 0) -> Chunk:
    """Trades of these symbols in this order, in the partitions of their symbols from `since` on; the first has the raw offset `first`."""
    parts = []
    for partition, offset in enumerate(since):
        mine = [
            {"symbol": symbol, "raw_offset": first + at, "ts_ns": NOON + first + at}
            for at, symbol in enumerate(symbols)
            if PARTITION[symbol] == partition
        ]
        parts.append(Chunk.dense(TICKS_TOPIC, partition, offset, ticks(*mine)))
    return Chunk.join(parts)


def windows_of(symbols: Sequence[str], cuts: Iterable[int]) -> list[Window]:
    """The windows of these ticks, cut at these places."""
    windows, before = [], START
    for first, end in pairwise([0, *sorted({cut for cut in cuts if 0 < cut < len(symbols)}), len(symbols)]):
        window = window_of(before, [chunk_of(symbols[first:end], before.next["ticks"], first)])
        windows.append(window)
        before = window.after
    return windows


def hub_with(windows: Iterable[Window] = (), **options: Any) -> Hub:
    hub = Hub(10, lambda: 0, **options)
    hub.begin(START, START)
    for window in windows:
        hub.publish(window)
    return hub


def taken(client: Client) -> list[dict[str, Any]]:
    """All messages that a client would be sent now."""
    found = []
    while messages := client.taken():
        found += [json.loads(message.body) for message in messages]
    return found


def events(messages: Iterable[dict[str, Any]], kind: str = "ticks") -> list[str]:
    return [row["id"] for message in messages if message["kind"] == kind for row in message["rows"]]


def ids(symbols: Sequence[str], wanted: Iterable[str] = SYMBOLS) -> dict[str, list[str]]:
    """The ids of the ticks of each wanted symbol, in order."""
    return {some: [f"0-{at}-0" for at, symbol in enumerate(symbols) if symbol == some] for some in wanted}


def by_symbol(messages: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for message in messages:
        if message["kind"] == "ticks":
            for row in message["rows"]:
                found.setdefault(row["symbol"], []).append(row["id"])
    return found


# Positions


@given(st.dictionaries(st.sampled_from(["ticks", "bars"]), st.lists(st.integers(0, 2**62), min_size=1, max_size=8).map(tuple), min_size=1))
def test_a_position_reads_back_as_it_was_written(offsets: dict[str, tuple[int, ...]]) -> None:
    assert parse(str(Position(offsets))) == Position(offsets)


@given(st.text(max_size=40))
def test_no_text_breaks_the_reading_of_a_position(text: str) -> None:
    try:
        assert str(parse(text)) == text or "0" in text  # a number with zeros before it means the same
    except WrongArgument as error:
        told = str(error)
    else:
        return
    assert "is not a position" in told or "twice" in told


# What a client gets


def test_a_client_gets_its_symbols_and_no_others() -> None:
    hub = hub_with()
    client = hub.join(Subscription(frozenset({"BTC/USDT", "A*"}), frozenset({"ticks"})), "")
    order = ["BTC/USDT", "ETH/USDT", "AAPL", "BTC/USDT"]
    for window in windows_of(order, [2]):
        hub.publish(window)
    messages = taken(client)
    assert messages[0]["kind"] == "hello"
    assert messages[0]["resumed"] is False
    assert by_symbol(messages) == {symbol: some for symbol, some in ids(order).items() if symbol != "ETH/USDT"}


def test_a_snapshot_comes_first_and_then_what_changed() -> None:
    hub = hub_with(windows_of(["BTC/USDT", "AAPL"], []))
    client = hub.join(Subscription(frozenset({"BTC/*"}), frozenset({"ticks"})), "")
    first = taken(client)
    assert [message["kind"] for message in first] == ["hello", "latest"]
    assert first[0]["symbols"] == ["BTC/USDT"]
    assert [(row["symbol"], row["last"], row["trade_ts_ns"]) for row in first[1]["rows"]] == [("BTC/USDT", 1.5, str(NOON))]


def test_bars_come_to_those_who_want_bars() -> None:
    hub = hub_with()
    both = hub.join(Subscription(frozenset("*"), frozenset({"ticks", "bars"})), "")
    only_ticks = hub.join(TICKS_OF_ALL, "")
    window = window_of(START, [Chunk.dense(BARS_TOPIC, 0, 0, bars({"close": 7.0}))])
    hub.publish(window)
    assert [(row["symbol"], row["interval"], row["close"]) for row in taken(both)[-1]["rows"]] == [("AAPL", "1m", 7.0)]
    assert events(taken(only_ticks), "bars") == []


def test_the_latest_values_come_at_the_rate_that_was_asked_for() -> None:
    now = [0]
    hub = Hub(10, lambda: now[0])
    hub.begin(START, START)
    client = hub.join(Subscription(frozenset("*"), frozenset({"latest"}), rate=2.0), "")
    taken(client)
    sent = []
    for number, window in enumerate(windows_of(["BTC/USDT"] * 20, range(20))):
        now[0] = number * NS_PER_S // 10
        hub.publish(window)
        hub.publish_latest()
        sent += [(number, row["trade_ts_ns"]) for message in taken(client) for row in message["rows"]]
    assert sent == [(number, str(NOON + number)) for number in (0, 5, 10, 15)]


def test_an_event_of_the_past_does_not_become_the_latest() -> None:
    repaired = chunk_of(["BTC/USDT"], (1, 0))
    repaired = Chunk.dense(TICKS_TOPIC, 0, 1, ticks({"ts_ns": NOON - NS_PER_S, "last": 0.5, "raw_offset": 9}))
    first = windows_of(["BTC/USDT"], [])[0]
    hub = hub_with([first, window_of(first.after, [repaired])])
    assert [json.loads(row)["last"] for row in hub.latest(["BTC/USDT"])] == [1.5]


def test_a_symbol_that_appears_later_reaches_those_whose_pattern_it_matches() -> None:
    hub = hub_with(windows_of(["BTC/USDT"], []))
    client = hub.join(Subscription(frozenset({"E?H/*"}), frozenset({"ticks"})), "")
    after = hub.position
    hub.publish(window_of(after, [Chunk.dense(TICKS_TOPIC, 1, 0, ticks({"symbol": "ETH/USDT", "raw_offset": 5}))]))
    assert events(taken(client)) == ["0-5-0"]


def test_a_client_changes_what_it_gets() -> None:
    order = ["BTC/USDT", "ETH/USDT"] * 3
    first, second, third = windows_of(order, [2, 4])
    hub = hub_with()
    client = hub.join(Subscription(frozenset({"BTC/USDT"}), frozenset({"ticks"})), "")
    hub.publish(first)
    hub.change(client, Request(subscribe=Change(symbols=["ETH/USDT"])))
    hub.publish(second)
    hub.change(client, Request(unsubscribe=Change(symbols=["BTC/USDT"])))
    hub.publish(third)
    messages = taken(client)
    assert events(messages) == ["0-0-0", "0-2-0", "0-3-0", "0-5-0"]
    assert [row["symbol"] for message in messages if message["kind"] == "latest" for row in message["rows"]] == ["ETH/USDT"]
    with pytest.raises(WrongArgument, match="101 patterns"):
        hub.change(client, Request(subscribe=Change(symbols=[f"A{number}*" for number in range(101)])))
    hub.leave(client)
    assert hub.clients == 0


def test_a_state_is_sent_when_it_changes_and_to_those_who_come_later() -> None:
    hub = hub_with()
    early = hub.join(Subscription(kinds=frozenset({"health", "gaps"})), "")
    for body in (b'{"a":1}', b'{"a":1}', b'{"a":2}'):
        hub.publish_state("health", body)
    late = hub.join(Subscription(kinds=frozenset({"health"})), "")
    assert [message.get("a") for message in taken(early)] == [None, 1, 2]
    assert [message.get("a") for message in taken(late)] == [None, 2]


# Coming back


@given(
    st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=30),
    st.lists(st.integers(1, 29), max_size=6),
    st.lists(st.integers(1, 29), max_size=6),
    st.integers(0, 8),
    st.sampled_from([("*",), ("BTC/USDT",), ("A*", "ETH/USDT")]),
)
def test_a_client_that_comes_back_gets_exactly_what_it_missed_also_from_another_server(
    order: list[str], cuts: list[int], other_cuts: list[int], got: int, patterns: tuple[str, ...]
) -> None:
    """The other server reads the same stream, and its windows are cut at other places."""
    subscription = Subscription(frozenset(patterns), frozenset({"ticks"}))
    hub = hub_with()
    client = hub.join(subscription, "")
    for window in windows_of(order, cuts):
        hub.publish(window)
    before = taken(client)[: got + 1]
    other = hub_with(windows_of(order, other_cuts))
    after = taken(other.join(subscription, before[-1]["id"]))
    assert after[0]["resumed"] is True
    assert "missed" not in after[0]
    wanted = {symbol: some for symbol, some in ids(order).items() if subscription.matches(symbol) and some}
    together = by_symbol([*before, *after])
    assert together == wanted


def test_a_client_that_comes_back_too_late_is_told() -> None:
    order = ["BTC/USDT"] * 10
    hub = hub_with(windows_of(order, range(10)), ring_bytes=70_000)
    late = taken(hub.join(TICKS_OF_ALL, "ticks:1,0;bars:0,0"))
    assert late[0]["resumed"] is False
    assert "no longer kept" in late[0]["missed"]
    assert [row["trade_ts_ns"] for row in late[1]["rows"]] == [str(NOON + 9)], "and gets the present values"
    in_time = taken(hub.join(TICKS_OF_ALL, "ticks:8,0;bars:0,0"))
    assert events(in_time) == ["0-8-0", "0-9-0"]


def test_a_position_of_another_stream_is_no_position_of_this_one() -> None:
    hub = hub_with(windows_of(["BTC/USDT"], []))
    for since in ("ticks:99,0;bars:0,0", "ticks:0;bars:0", "ticks:0,0"):
        hello = taken(hub.join(TICKS_OF_ALL, since))[0]
        assert (hello["resumed"], bool(hello["missed"])) == (False, True)
    with pytest.raises(WrongArgument, match="is not a position"):
        hub.join(TICKS_OF_ALL, "1796011990462526205")


# A slow client


def test_a_slow_client_gets_the_latest_values_and_the_number_of_what_it_did_not_get() -> None:
    order = ["BTC/USDT", "ETH/USDT"] * 500
    hub = hub_with(client_bytes=5_000)
    slow, quick = hub.join(TICKS_OF_ALL, ""), hub.join(TICKS_OF_ALL, "")
    got: list[dict[str, Any]] = []
    for window in windows_of(order, range(0, 1000, 10)):
        hub.publish(window)
        assert slow.waiting <= 5_000, "its memory is bounded"
        got += taken(quick)
    assert by_symbol(got) == ids(order, ("BTC/USDT", "ETH/USDT")), "it does not slow the others"
    late = taken(slow)
    conflated = next(message for message in late if message["kind"] == "conflated")
    assert conflated["skipped"] + len(events(late)) == len(order)
    assert {row["symbol"]: row["trade_ts_ns"] for row in conflated["rows"]} == {"BTC/USDT": str(NOON + 998), "ETH/USDT": str(NOON + 999)}
    assert hub.skipped == conflated["skipped"]
    hub.leave(slow)
    assert hub.skipped == conflated["skipped"], "what was skipped stays counted"


def test_a_slow_client_keeps_the_last_of_each_state() -> None:
    hub = hub_with(client_bytes=200)
    slow = hub.join(Subscription(kinds=frozenset({"health", "jobs"})), "")
    for number in range(100):
        hub.publish_state("health", b'{"number":%d,"long":"%b"}' % (number, b"x" * 50))
        hub.publish_state("jobs", b'{"number":%d}' % number)
    states = {message["kind"]: message.get("number") for message in taken(slow)}
    assert states["health"] == states["jobs"] == 99


def test_the_number_of_clients_has_a_limit() -> None:
    hub = hub_with()
    for _ in range(10):
        hub.join(TICKS_OF_ALL, "")
    with pytest.raises(Unavailable, match="no more are allowed"):
        hub.join(TICKS_OF_ALL, "")


# Other forms


def test_arrow_and_protobuf_hold_the_same_events() -> None:
    from google.protobuf.internal.decoder import _DecodeVarint  # type: ignore[attr-defined]

    from tapeline.streams.codecs.protobuf import decode

    hub = hub_with()
    clients = {form: hub.join(Subscription(frozenset({"BTC/*"}), frozenset({"ticks"}), form=form), "") for form in ("arrow", "protobuf")}
    order = ["BTC/USDT", "AAPL", "BTC/USDT"]
    for window in windows_of(order, []):
        hub.publish(window)
    wanted = ticks(*({"symbol": "BTC/USDT", "raw_offset": at, "ts_ns": NOON + at} for at in (0, 2)))
    sent: dict[str, Message] = {form: client.taken()[-1] for form, client in clients.items()}
    assert {form: json.loads(message.body)["count"] for form, message in sent.items()} == {"arrow": 2, "protobuf": 2}
    assert pa.ipc.open_stream(sent["arrow"].binary).read_all().to_batches()[0].equals(wanted)
    data, at, found = sent["protobuf"].binary, 0, []
    while at < len(data):
        size, at = _DecodeVarint(data, at)
        found.append(data[at : at + size])
        at += size
    assert decode(TICKS_TOPIC, found).equals(wanted)


def test_symbols_alone_mean_their_ticks() -> None:
    assert requested({"symbols": "BTC/USDT"}).kinds == {"ticks"}
    assert requested({}).kinds == frozenset()


def test_who_saw_an_empty_topic_continues_when_its_first_record_is_there() -> None:
    """The records of a life begin at an offset that is not 0."""
    first = Position({"ticks": (1_000, 2_000), "bars": (1_000, 2_000)})
    hub = Hub(10, lambda: 0)
    hub.begin(first, first)
    chunk = Chunk.dense(TICKS_TOPIC, 0, 1_000, ticks({"raw_offset": 7}))
    hub.publish(window_of(first, [chunk]))
    for since in ("ticks:0,0;bars:0,0", str(first)):
        messages = taken(hub.join(TICKS_OF_ALL, since))
        assert (messages[0]["resumed"], events(messages)) == (True, ["0-7-0"])


def test_what_arrives_while_a_long_past_is_sent_comes_after_it() -> None:
    order = ["BTC/USDT"] * 3_000
    *past, last = windows_of(order, range(0, 3_000, 100))
    hub = hub_with(past)
    client = hub.join(TICKS_OF_ALL, "ticks:0,0;bars:0,0")
    got = [json.loads(message.body) for message in client.taken()]
    assert 0 < len(events(got)) < 2_900, "not all at once"
    hub.publish(last)
    assert events([*got, *taken(client)]) == [f"0-{at}-0" for at in range(3_000)]


class Failing(EmbeddedStream):
    """A stream that is away for a moment when the bars are read, just after ticks were."""

    failures = 0

    def read(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        if topic is BARS_TOPIC and self.failures == 0 and super().read(TICKS_TOPIC, {}, 1) is not None:
            self.failures += 1
            raise Unavailable("The stream is away.")
        return super().read(topic, positions, max_rows)


def test_what_was_read_of_one_topic_is_not_lost_when_another_cannot_be_read(tmp_path: Path) -> None:
    with closing(EmbeddedStream(tmp_path, 1)) as stream:
        stream.append(TICKS_TOPIC, ticks({}, {}, {}))
    windows: list[Window] = []

    async def read() -> None:
        reader = Reader(lambda: Failing(tmp_path, 1), lambda position, first: None, windows.append)
        reader.start(asyncio.get_running_loop())
        await eventually(lambda: windows, "a window")
        await asyncio.to_thread(reader.stop)

    asyncio.run(read())
    assert [row for window in windows for row in window.parts["ticks"].chunk.batch["raw_offset"].to_pylist()] == [0, 1, 2]


def test_a_reading_that_fails_or_takes_very_long_is_said_until_it_works_again(tmp_path: Path) -> None:
    gone, stuck = threading.Event(), threading.Event()

    class Sometimes(EmbeddedStream):
        def read(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
            if gone.is_set():
                raise Unavailable("The stream is away.")
            stuck.wait(60.0)
            return super().read(topic, positions, max_rows)

    stuck.set()
    now = time.time_ns

    async def read() -> None:
        reader = Reader(lambda: Sometimes(tmp_path, 1), lambda position, first: None, lambda window: None)
        assert reader.away(now()) is None, "it has not begun"
        reader.start(asyncio.get_running_loop())
        await eventually(reader.caught_up.is_set)
        assert reader.away(now()) is None
        gone.set()
        away = await eventually(lambda: reader.away(now()), "it says that the stream is away")
        assert (away.why, away.since_ns < now()) == ("The stream is away.", True)
        gone.clear()
        await eventually(lambda: reader.away(now()) is None, "it reads again")
        stuck.clear()
        await asyncio.sleep(0.1)
        assert reader.away(now()) is None
        late = reader.away(now() + 15 * NS_PER_S)
        assert late is not None
        assert "very long" in late.why
        stuck.set()
        await eventually(lambda: reader.away(now() + 10 * NS_PER_S - NS_PER_S // 20) is None, "it reads again")
        await asyncio.to_thread(reader.stop)

    asyncio.run(read())
