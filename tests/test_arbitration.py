"""Two lines that carry the same: of each event one copy is a frame, every copy is recorded, and each line is measured."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames import RECEIVED_NS, exact, golden, rows, total
from peer import Peer, Script, serving
from tapeline.app.connections import arbitrations, connection_plans, feed_connections, plan_partitions
from tapeline.config import Config, ProviderConfig, load
from tapeline.errors import ConfigError
from tapeline.ledger.absorbing import absorb
from tapeline.ledger.facts import ONGOING, Facts, Key
from tapeline.ledger.intervals import COVERED, intervals
from tapeline.net.pace import Pace
from tapeline.net.staleness import StalenessWatchdog
from tapeline.net.websocket import Dialing, FeedConnection
from tapeline.providers.binance.session import content
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS, PROVIDERS
from tapeline.providers.session import FeedSettings, Plan
from tapeline.records import NS_PER_S, RAW, RAW_TOPIC, Chunk, RawKind
from tapeline.stages.ingest.arbitration import Arbitration

Record = tuple[str, str, int, bytes]  # connection, kind, received_ns, payload


class Tape:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.pausers: list[Callable[[bool], None]] = []

    def record(self, plan: Plan, connection: str, kind: RawKind, received_ns: int, payload: bytes) -> None:
        self.records.append((connection, kind, received_ns, payload))

    def on_pause(self, pause: Callable[[bool], None]) -> None:
        self.pausers.append(pause)

    def kinds(self) -> list[str]:
        return [kind for _, kind, _, _ in self.records]

    def chunk(self, first: int = 0) -> Chunk:
        names, kinds, received, payloads = (list(column) for column in zip(*self.records[first:], strict=True))
        columns = [["binance"] * len(names), ["spot"] * len(names), names, kinds, received, payloads]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, RAW, strict=True)]
        return Chunk.dense(RAW_TOPIC, 0, first, pa.RecordBatch.from_arrays(arrays, schema=RAW))


def plans(*urls: str) -> list[Plan]:
    """The plans of two lines, as the app makes them."""
    asked = [PROVIDERS["binance"].plans(FeedSettings("spot", ("BTCUSDT",), ("trade", "bookTicker"), url=url))[0] for url in urls]
    return [replace(plan, name=name, arbitration="line", check=None) for plan, name in zip(asked, ("line", "line-second"), strict=True)]


A, B = plans("ws://a", "ws://b")


def trade(number: int, sent: int = 1, price: str = "1.5") -> bytes:
    event = {"e": "trade", "E": sent, "s": "BTCUSDT", "t": number, "p": price, "q": "2", "T": 1_710_504_000_000, "m": True, "M": True}
    return json.dumps({"stream": "btcusdt@trade", "data": event}, separators=(",", ":")).encode()


def quote(number: int) -> bytes:
    event = {"u": number, "s": "BTCUSDT", "b": "1", "B": "2", "a": "3", "A": "4"}
    return json.dumps({"stream": "btcusdt@bookTicker", "data": event}, separators=(",", ":")).encode()


def bar(closes: str, sent: int) -> bytes:
    prices = dict.fromkeys("ohl", "1.0")
    body = {"t": 0, "T": 999, "s": "BTCUSDT", "i": "1s", **prices, "c": closes, "v": "1", "q": "1", "n": 1, "x": True}
    event = {"e": "kline", "E": sent, "s": "BTCUSDT", "k": body}
    return json.dumps({"stream": "btcusdt@kline_1s", "data": event}, separators=(",", ":")).encode()


def arbitrated(tape: Tape, dropped: Callable[[], int] = lambda: 0, **more: float) -> Arbitration:
    return Arbitration(tape, (A, B), dropped, **more)  # type: ignore[arg-type]  # window_s and most by name


# What is the same event


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (trade(7, sent=1), trade(7, sent=99), True),
        (trade(7), trade(8), False),
        (trade(7), trade(7, price="1.50"), False),  # which of them is right is not for ingest to say: both go on, the stores keep one
        (quote(7), quote(7), True),
        (quote(7), quote(8), False),
        (bar("2", 1), bar("2", 3), True),
        (bar("2", 1), bar("3", 1), False),
    ],
)
def test_two_frames_are_of_one_event_where_they_differ_in_nothing_but_when_they_were_sent(one: bytes, other: bytes, same: bool) -> None:
    assert (content(one) == content(other)) is same
    tape = Tape()
    both = arbitrated(tape)
    both.record(A, "a-1", "frame", 1, one)
    both.record(B, "b-1", "frame", 2, other)
    assert tape.kinds() == ["frame", "repeated" if same else "frame"]


@pytest.mark.parametrize(
    "frame", [b"", b"{", b'{"result":null,"id":1}', b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}']
)
def test_what_is_no_event_is_recorded_as_often_as_it_comes(frame: bytes) -> None:
    tape = Tape()
    both = arbitrated(tape)
    for plan in (A, B, A):
        both.record(plan, plan.name, "frame", 1, frame)
    assert tape.kinds() == ["frame"] * 3
    assert both.report(0)["line"]["events"] == 0


@given(st.binary(max_size=60), st.sampled_from([b"", b'{"stream":"', b'{"stream":"btcusdt@trade","data":{"e":"trade","E":']))
def test_any_bytes_have_a_content_or_none(tail: bytes, head: bytes) -> None:
    found = content(head + tail)
    assert found is None or len(found) <= len(head + tail)


def test_every_recorded_frame_of_an_event_is_the_same_event_only_as_itself() -> None:
    frames = [frame for frame in golden("binance", "spot") if content(frame) is not None]
    assert len(frames) > 5
    assert len({content(frame) for frame in frames}) == len(set(frames))


# First arrival wins


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60), st.data())
def test_each_event_is_one_frame_and_every_copy_is_recorded_and_counted(arrivals: list[tuple[bool, int]], data: st.DataObject) -> None:
    tape = Tape()
    both = arbitrated(tape)
    for at, (second, number) in enumerate(arrivals):
        both.record((A, B)[second], ("a-1", "b-1")[second], "frame", at, trade(number, sent=at))
    assert [payload for *_, payload in tape.records] == [trade(number, sent=at) for at, (_, number) in enumerate(arrivals)]
    first = {number: at for at, (_, number) in reversed(list(enumerate(arrivals)))}
    assert tape.kinds() == ["frame" if first[number] == at else "repeated" for at, (_, number) in enumerate(arrivals)]
    report = both.report(0)
    had = [{number for second, number in arrivals if second is bool(line)} for line in (0, 1)]
    assert [line["events"] for line in report.values()] == [len(some) for some in had]
    assert [line["first"] for line in report.values()] == [sum(arrivals[at][0] is bool(line) for at in first.values()) for line in (0, 1)]
    assert [line["missed"] for line in report.values()] == [0, 0]  # it may still come
    late = both.report(31 * NS_PER_S)
    assert [line["missed"] for line in late.values()] == [len(had[1] - had[0]), len(had[0] - had[1])]

    # The normalized topics hold each event once, in whatever batches it is read; the rest is counted.
    if tape.records:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(arrivals)), max_size=4)))
        whole = tape.chunk()
        parts = [whole.slice(a, b) for a, b in pairwise([0, *cuts, len(arrivals)])]
        results = [normalize(part, DECODERS) for part in parts]
        assert exact(results) == exact([normalize(whole, DECODERS)])
        assert [row["sequence"] for result in results for row in rows(result)["ticks"]] == sorted(first, key=lambda number: first[number])
        count = total(results)
        assert (count.seen, count.ticks, count.duplicates) == (len(arrivals), len(first), len(arrivals) - len(first))
        assert count.records == len(arrivals)
        assert len(rows(normalize(whole, DECODERS, copies=True))["ticks"]) == len(arrivals)


def test_copies_among_other_feeds_and_notices_are_counted_where_they_belong() -> None:
    records = [
        ("binance", "spot", "frame", trade(1)),
        ("polygon", "crypto", "frame", b"[]"),
        ("binance", "spot", "opened", b'{"topics":[]}'),
        ("binance", "spot", "repeated", trade(1)),
        ("elsewhere", "spot", "repeated", b"x"),
        ("binance", "spot", "frame", trade(2)),
    ]
    columns = [[one[0] for one in records], [one[1] for one in records], ["c"] * 6, [one[2] for one in records], [RECEIVED_NS] * 6]
    arrays = [pa.array(column, field.type) for column, field in zip([*columns, [one[3] for one in records]], RAW, strict=True)]
    made = normalize(Chunk.dense(RAW_TOPIC, 0, 40, pa.RecordBatch.from_arrays(arrays, schema=RAW)), DECODERS)
    assert [(row["sequence"], row["raw_offset"]) for row in rows(made)["ticks"]] == [(1, 40), (2, 45)]
    assert [row["kind"] for row in rows(made)["notices"]] == ["opened"]
    assert rows(made)["rejected"] == []
    counts = {feed: (count.records, count.seen, count.duplicates) for feed, count in made.counts.items()}
    assert counts == {("binance", "spot"): (4, 4, 1), ("polygon", "crypto"): (1, 0, 0), ("elsewhere", "spot"): (1, 1, 1)}


def test_how_far_a_line_is_behind_is_told_in_percentiles() -> None:
    both = arbitrated(Tape())
    for number in range(10_000):
        both.record(A, "a-1", "frame", number * 1_000, trade(number))
        both.record(B, "b-1", "frame", number * 1_000 + (3_000_000 if number % 50 else 80_000_000), trade(number))
    first, second = both.report(0).values()
    assert first["lag_p99_ms"] < 0.001
    assert second["lag_p50_ms"] == pytest.approx(3, rel=0.06)
    assert second["lag_p99_ms"] == pytest.approx(80, rel=0.06)
    assert arbitrated(Tape()).report(0)["line"]["lag_p50_ms"] is None


def test_what_is_remembered_has_a_bound_and_a_copy_from_before_it_is_a_frame_again() -> None:
    tape = Tape()
    both = arbitrated(tape, most=100)
    for number in range(1_000):
        both.record(A, "a-1", "frame", number, trade(number))
    both.record(B, "b-1", "frame", 1_000, trade(899))
    both.record(B, "b-1", "frame", 1_001, trade(950))
    assert tape.kinds()[-2:] == ["frame", "repeated"]
    assert both.report(0)["line-second"]["missed"] >= 900
    tape = Tape()
    both = arbitrated(tape, window_s=2)
    for second in range(5):
        both.record(A, "a-1", "frame", second * NS_PER_S, trade(second))
    both.record(B, "b-1", "frame", 4 * NS_PER_S, trade(1))
    both.record(B, "b-1", "frame", 4 * NS_PER_S, trade(2))
    assert tape.kinds()[-2:] == ["frame", "repeated"]


def test_after_something_could_not_be_kept_no_copy_is_passed_over_for_one_that_may_be_lost() -> None:
    tape, lost = Tape(), [0]
    both = arbitrated(tape, dropped=lambda: lost[0])
    both.record(A, "a-1", "frame", 1, trade(1))
    lost[0] = 1
    both.record(B, "b-1", "frame", 2, trade(1))
    both.record(A, "a-1", "frame", 3, trade(1))
    assert tape.kinds() == ["frame", "frame", "repeated"]


# Sockets


def life(*records: tuple[Plan, str, RawKind, float, bytes]) -> Tape:
    tape = Tape()
    both = arbitrated(tape)
    for plan, connection, kind, seconds, payload in records:
        both.record(plan, connection, kind, round(seconds * NS_PER_S), payload)
    return tape


def opens(plan: Plan, connection: str, seconds: float) -> list[tuple[Plan, str, RawKind, float, bytes]]:
    topics = ["btcusdt@trade", "btcusdt@bookTicker"]
    return [
        (plan, connection, "opened", seconds, json.dumps({"url": "x", "topics": topics}).encode()),
        (plan, connection, "subscribed", seconds, json.dumps({"asked": topics, "missing": []}).encode()),
    ]


def closes(plan: Plan, connection: str, seconds: float, by: str = "network") -> tuple[Plan, str, RawKind, float, bytes]:
    return plan, connection, "closed", seconds, json.dumps({"by": by, "reason": "r"}).encode()


QUOTES = Key("binance", "spot", "bookTicker", "BTC/USDT")


def gaps(tape: Tape) -> list[tuple[float, float]]:
    """Of the quotes, as the ledger has them after every single record; in seconds."""
    found: list[tuple[float, float]] = []
    facts = Facts()
    for at in range(len(tape.records)):
        one = tape.chunk(at).slice(0, 1)
        absorb(facts, one, normalize(one, DECODERS, copies=True))
        now = [(gap.start_ns / NS_PER_S, gap.end_ns / NS_PER_S) for gap in intervals(facts, QUOTES) if gap.state not in COVERED]
        found += [gap for gap in now if gap not in found]
    return found


def test_the_records_of_a_socket_s_turns_name_those_that_were_open_beside_it() -> None:
    tape = life(
        *opens(A, "a-1", 1), *opens(B, "b-1", 2), closes(A, "a-1", 3), *opens(A, "a-2", 4), closes(A, "a-2", 5), closes(B, "b-1", 6)
    )
    told = [json.loads(payload).get("beside", []) for *_, payload in tape.records]
    assert told == [[], [], ["a-1"], ["a-1"], ["b-1"], ["b-1"], ["b-1"], ["b-1"], []]


START = [*opens(A, "a-1", 1), *opens(B, "b-1", 2)]
BEGUN = [(1.0, ONGOING / NS_PER_S)]  # asked for and not yet confirmed: the very first record


@pytest.mark.parametrize("plan", [A, B])
def test_a_line_that_breaks_and_comes_back_opens_no_gap_at_any_moment_even_while_nothing_happens(plan: Plan) -> None:
    name = {"line": "a", "line-second": "b"}[plan.name]
    quiet = [closes(plan, f"{name}-1", 30), *opens(plan, f"{name}-2", 33), closes(plan, f"{name}-2", 34), *opens(plan, f"{name}-3", 40)]
    assert gaps(life(*START, (A, "a-1", "frame", 3, quote(1)), (B, "b-1", "frame", 3, quote(1)), *quiet)) == BEGUN


def test_a_line_whose_events_all_came_by_the_other_first_was_not_deaf() -> None:
    stale = (
        B,
        "b-1",
        "closed",
        25,
        b'{"by":"tapeline","reason":"stale: no channel bookTicker for 10.0 s on an open socket","stale":"bookTicker"}',
    )
    away = [closes(A, "a-1", 4), *opens(A, "a-2", 8)]
    shared = [
        one
        for at, name in [(3, "a-1"), (9, "a-2"), (14, "a-2")]
        for one in ((A, name, "frame", at, quote(at)), (B, "b-1", "frame", at + 0.5, quote(at)))
    ]
    records = sorted([*START, *away, *shared, (A, "a-2", "frame", 24, quote(24)), stale], key=lambda one: one[3])
    assert gaps(life(*records)) == BEGUN


def test_a_line_whose_subscription_was_never_confirmed_covers_nothing() -> None:
    refused = json.dumps({"asked": [], "missing": ["btcusdt@bookTicker"]}).encode()
    records = [*opens(A, "a-1", 1), opens(B, "b-1", 2)[0], (B, "b-1", "subscribed", 3, refused), (A, "a-1", "frame", 4, quote(4))]
    assert gaps(life(*records, closes(A, "a-1", 6), *opens(A, "a-2", 9), (A, "a-2", "frame", 10, quote(10))))[-1] == (4.0, 9.0)


def test_where_both_lines_are_down_there_is_a_gap_of_just_that_time() -> None:
    records = [*START, (B, "b-1", "frame", 5, quote(5)), closes(A, "a-1", 6), (B, "b-1", "frame", 7, quote(7)), closes(B, "b-1", 7.5)]
    found = gaps(life(*records, *opens(A, "a-2", 9)))
    assert found[-1] == (7.0, 9.0)


def test_a_process_that_was_killed_leaves_a_gap_although_both_lines_come_back() -> None:
    records = [*START, (A, "a-1", "frame", 5, quote(5)), (B, "b-1", "frame", 5, quote(5))]
    before, after = life(*records), life(*opens(A, "a-2", 9), *opens(B, "b-2", 10), (B, "b-2", "frame", 11, quote(11)))
    before.records += after.records
    assert gaps(before)[-1] == (5.0, 9.0)


def test_one_line_is_reset_then_the_other_goes_stale_on_real_sockets_and_every_event_is_there_once() -> None:
    audience: dict[str, Peer] = {}

    def listening(name: str) -> Script:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.hear()  # what is asked for
            peer.say(b'{"result":null,"id":1}')
            audience[name] = peer

        return script

    async def publish(number: int, last: Callable[[], bool]) -> int:
        """The same events to all who listen, until `last`; the number of the next."""
        while not last():
            for peer in audience.values():
                peer.say(trade(number, sent=peer.number))
            number += 1
            await asyncio.sleep(0.004)
        return number

    async def scenario() -> tuple[Tape, int, int]:
        tape = Tape()
        async with serving(listening("first")) as first, serving(listening("second")) as second, asyncio.timeout(30):
            planned = plans(first, second)
            both = Arbitration(tape, planned, lambda: 0)
            lines = [FeedConnection(plan, both, time.time_ns, StalenessWatchdog(0.5), Dialing(Pace(0.0), Random(1))) for plan in planned]
            keepers = [asyncio.create_task(line.keep()) for line in lines]
            number = start = await publish(1, lambda: len(audience) == 2)
            number = await publish(number, lambda: min(line.state.frames for line in lines) > 20)
            audience.pop("first").reset()
            number = await publish(number, lambda: len(audience) == 2)
            number = await publish(number, lambda: lines[0].state.frames > 60)
            del audience["second"]  # its socket stays open
            number = await publish(number, lambda: len(audience) == 2)
            last = trade(number - 1, sent=audience["first"].number)
            while not any(payload == last for *_, payload in tape.records):
                await asyncio.sleep(0.01)
            for line in lines:
                line.stop()
            await asyncio.gather(*keepers)
        return tape, start, number

    tape, start, end = asyncio.run(scenario())
    whole = tape.chunk()
    numbers = [row["sequence"] for row in rows(normalize(whole, DECODERS))["ticks"]]
    assert numbers == list(range(numbers[0], end))
    assert numbers[0] <= start
    closed = [json.loads(payload) for _, kind, _, payload in tape.records if kind == "closed"]
    assert [close["by"] for close in closed[:2]] == ["network", "tapeline"]
    assert closed[1]["reason"].startswith("stale: no ")
    facts = Facts()
    absorb(facts, whole, normalize(whole, DECODERS, copies=True))
    found = intervals(facts, Key("binance", "spot", "trade", "BTC/USDT"))
    assert [one.state for one in found if one.first_id is not None] == ["proven"]


# From the configuration to the lines


KEYS = {"TAPELINE_POLYGON_KEY": "k", "TAPELINE_ALPACA_KEY": "k", "TAPELINE_ALPACA_SECRET": "s"}


def planned(name: str = "binance", **more: object) -> list[Plan]:
    channels = {"binance": ("trade",), "polygon": ("T",), "alpaca": ("trades",)}[name]
    block = ProviderConfig(name=name, symbols=("BTCUSDT",), channels=channels, **more)  # type: ignore[arg-type]  # as TOML has them
    return [plan for _, plan in connection_plans(Config(providers=(block,)), KEYS)]


def test_two_lines_go_to_two_hosts_and_ask_for_the_same() -> None:
    first, second = planned(lines=2, options={"time_unit": "us"})
    assert (first.name, second.name) == ("binance-spot-0", "binance-spot-0-second")
    assert (first.arbitration, second.arbitration) == (first.name, first.name)
    assert first.url == "wss://data-stream.binance.vision/stream?timeUnit=MICROSECOND"
    assert second.url == "wss://stream.binance.com:443/stream?timeUnit=MICROSECOND"
    assert first.subscriptions == second.subscriptions
    assert (first.check is None, second.check is None) == (False, True)  # the symbols are looked up once
    assert [plan.url for plan in planned(lines=2, url="ws://x:1/", second_url="ws://y:1/")] == ["ws://x:1/stream", "ws://y:1/stream"]
    assert [plan.arbitration for plan in planned()] == [""]


def test_more_streams_than_a_connection_takes_are_two_lines_each_and_each_pair_has_one_partition() -> None:
    many = ProviderConfig(name="binance", symbols=tuple(f"S{at}USDT" for at in range(1_500)), channels=("trade",), lines=2)
    one = ProviderConfig(name="binance", symbols=("BTCUSDT",), channels=("trade",))
    found = connection_plans(Config(providers=(many, one, many)), {})
    assert len({plan.name for _, plan in found}) == len(found) == 9
    placed = plan_partitions(found, 3)
    pairs = [(plan.name, f"{plan.name}-second") for _, plan in found if plan.arbitration == plan.name]
    assert len(pairs) == 4
    assert all(placed[first] == placed[second] for first, second in pairs)
    assert sorted(placed[plan.name] for _, plan in found if not plan.name.endswith("-second")) == [0, 0, 1, 1, 2]
    made = arbitrations(found, Tape(), lambda: 0)
    lines = feed_connections(found, Tape(), made, time.time_ns, Random(1))
    assert [line.recorder is made.get(line.plan.arbitration) for line in lines] == [bool(line.plan.arbitration) for line in lines]


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"name": "polygon", "lines": 2}, "polygon stocks cannot have lines = 2. An account of polygon may have one connection"),
        (
            {"name": "alpaca", "lines": 2, "connections": 3},
            "alpaca iex cannot have lines = 2. An account of alpaca may have one connection",
        ),
        ({"lines": 2, "url": "ws://x"}, "but no second_url. Set second_url to another"),
        ({"lines": 2, "url": "ws://x", "second_url": "ws://x/"}, "both lines go to ws://x. A failure there would end both"),
        ({"lines": 2, "second_url": "wss://data-stream.binance.vision"}, "both lines go to wss://data-stream.binance.vision"),
        ({"second_url": "ws://x"}, "has a second_url but only one line. Set lines = 2"),
    ],
)
def test_two_lines_that_cannot_be_had_are_refused_with_the_reason(block: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        planned(**block)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("lines", [0, 3, "2"])
def test_there_are_one_or_two_lines(lines: object, tmp_path: Path) -> None:
    path = tmp_path / "tapeline.toml"
    path.write_text(f'[[providers]]\nname = "binance"\nlines = {json.dumps(lines)}')
    with pytest.raises(ConfigError, match="lines"):
        load(path, {})
