"""What raw records prove of completeness: every gap that can be proven is found, none is made up, in whatever chunks the records come."""

from __future__ import annotations

import calendar
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapeline.errors import DiskProblem, NewerData
from tapeline.ledger import Ledger, read_intervals
from tapeline.ledger.absorbing import absorb, forget
from tapeline.ledger.answers import Answer, answer
from tapeline.ledger.facts import ONGOING, Facts, Interval, Key, Run, window_of
from tapeline.ledger.intervals import COVERED, intervals
from tapeline.ledger.postgres import PostgresLedger
from tapeline.ledger.sqlite import LedgerFile
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import CHANNELS, DECODERS
from tapeline.records import NS_PER_S, RAW, RAW_TOPIC, Chunk
from tapeline.secret import NO_SECRET
from tapeline.stores.postgres.database import Database

T0 = 1_710_504_000_000  # ms: 2024-03-15 12:00:00 UTC
TRADES = Key("binance", "spot", "trade", "BTC/USDT")
QUOTES = Key("binance", "spot", "bookTicker", "BTC/USDT")
BARS = Key("binance", "spot", "kline_1s", "BTC/USDT")

Record = tuple[str, str, int, bytes]  # connection, kind, received_ns, payload


def ns(seconds: float) -> int:
    return T0 * 1_000_000 + round(seconds * NS_PER_S)


def trade(number: int, seconds: float, connection: str = "line-1", symbol: str = "BTCUSDT") -> Record:
    event = {"e": "trade", "E": 1, "s": symbol, "t": number, "p": "1.5", "q": "2", "T": T0 + round(seconds * 1000), "m": True, "M": True}
    frame = {"stream": f"{symbol.lower()}@trade", "data": event}
    return connection, "frame", ns(seconds), json.dumps(frame, separators=(",", ":")).encode()


def quote(seconds: float, connection: str = "line-1") -> Record:
    event = {"u": round(seconds * 1000), "s": "BTCUSDT", "b": "1", "B": "2", "a": "3", "A": "4"}
    return connection, "frame", ns(seconds), json.dumps({"stream": "btcusdt@bookTicker", "data": event}, separators=(",", ":")).encode()


def late(number: int, seconds: float, received: float, connection: str = "line-1") -> Record:
    """A trade that was received long after it was sent."""
    return connection, "frame", ns(received), trade(number, seconds)[3]


def bar(second: int, connection: str = "line-1", *, final: bool = True) -> Record:
    prices = dict.fromkeys("ochl", "1.0")
    body = {"t": T0 + second * 1000, "i": "1s", **prices, "v": "1", "q": "1", "n": 1, "x": final}
    event = {"e": "kline", "E": T0 + second * 1000 + 1000, "s": "BTCUSDT", "k": body}
    return connection, "frame", ns(second + 1), json.dumps({"stream": "btcusdt@kline_1s", "data": event}).encode()


def told(kind: str, seconds: float, connection: str = "line-1", **detail: Any) -> Record:
    return connection, kind, ns(seconds), json.dumps(detail).encode()


def opened(seconds: float, connection: str = "line-1", channels: Sequence[str] = ("trade", "bookTicker")) -> list[Record]:
    topics = [f"btcusdt@{channel}" for channel in channels]
    return [
        told("opened", seconds, connection, url="wss://x", topics=topics),
        told("subscribed", seconds + 0.1, connection, asked=topics, missing=[]),
    ]


def chunk(records: Sequence[Record], first: int = 0, partition: int = 0) -> Chunk:
    names, kinds, received, payloads = (list(column) for column in zip(*records, strict=True)) if records else ([], [], [], [])
    columns = [["binance"] * len(names), ["spot"] * len(names), names, kinds, received, payloads]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, RAW, strict=True)]
    return Chunk.dense(RAW_TOPIC, partition, first, pa.RecordBatch.from_arrays(arrays, schema=RAW))


def known(*parts: Sequence[Record]) -> Facts:
    """Facts from records that came in these chunks."""
    facts, first = Facts(), 0
    for part in parts:
        if part:
            some = chunk(part, first)
            absorb(facts, some, normalize(some, DECODERS))
            first += len(part)
    return facts


def brief(facts: Facts, key: Key) -> list[tuple[float, float, str]]:
    """Seconds since the beginning; and what."""

    def seconds(at_ns: int) -> float:
        return float("inf") if at_ns == ONGOING else round((at_ns - ns(0)) / NS_PER_S, 3)

    return [(seconds(one.start_ns), seconds(one.end_ns), one.state) for one in intervals(facts, key)]


# What the stream lost


@pytest.mark.parametrize(
    ("kept", "lost", "gap"),
    [
        ([], [*opened(0), quote(1), quote(2)], (0.0, 5.0)),  # all of it, from the opening on
        (opened(0)[:1], [], (0.0, 5.0)),  # what came after the opening was never read
        (opened(0), [quote(1), quote(2)], (0.1, 5.0)),
        ([*opened(0), quote(1)], [quote(2)], (1.0, 5.0)),
    ],
)
def test_what_the_stream_lost_before_a_store_had_it_is_a_gap(kept: list[Record], lost: list[Record], gap: tuple[float, float]) -> None:
    facts = known(kept)
    if lost:
        gone = chunk(lost, len(kept))
        absorb(facts, gone, normalize(gone, DECODERS), taken=False)
    forget(facts, [0])
    after = chunk([quote(5), quote(6)], 1_000)
    absorb(facts, after, normalize(after, DECODERS))
    assert [(start, end) for start, end, state in brief(facts, QUOTES) if state == "open" and end != float("inf")] == [gap]


# Numbers without a hole


def test_a_jump_in_the_ids_is_a_gap_with_the_ids_that_are_missing() -> None:
    facts = known([trade(7, 0), trade(8, 1), trade(12, 2), trade(13, 3)])
    found = intervals(facts, TRADES)
    assert [(one.state, one.first_id, one.last_id) for one in found] == [("proven", 7, 8), ("open", 9, 11), ("proven", 12, 13)]
    assert found[1].evidence == "ids 9 to 11: all of 3 events are missing"
    assert (found[1].start_ns, found[1].end_ns) == (ns(1), ns(2))


def test_what_was_missing_closes_the_gap_when_it_comes_and_a_reconnect_alone_does_not() -> None:
    lost = [*opened(0), trade(1, 1), told("closed", 2, by="network", reason=""), *opened(3, "line-2"), trade(5, 4, "line-2")]
    assert brief(known(lost), TRADES)[1:] == [(1.0, 1.0, "proven"), (1.0, 4.0, "open"), (4.0, 4.0, "proven")]
    nothing_lost = [*lost[:-1], trade(2, 4, "line-2")]
    assert brief(known(nothing_lost), TRADES)[1:] == [(1.0, 4.0, "proven")]
    late = [*lost, trade(3, 1.3, "line-3"), trade(2, 1.2, "line-3"), trade(4, 1.4, "line-3")]
    assert brief(known(late), TRADES)[1:] == [(1.0, 4.0, "proven")]


def test_until_the_next_number_comes_a_disconnect_is_open() -> None:
    down = [*opened(0), trade(1, 1), told("closed", 2, by="provider", reason="bye")]
    assert brief(known(down), TRADES) == [
        (0.1, 1.0, "unprovable"),
        (1.0, 1.0, "proven"),
        (1.0, 2.0, "unprovable"),
        (2.0, float("inf"), "open"),
    ]
    back = [*down, *opened(5, "line-2")]
    assert brief(known(back), TRADES)[2:] == [(1.0, 2.0, "unprovable"), (2.0, 5.1, "open"), (5.1, 5.1, "unprovable")]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), max_size=80), st.data())
def test_runs_are_what_a_set_of_ids_says_in_whatever_order_and_chunks_they_come(seen: list[tuple[int, int]], data: st.DataObject) -> None:
    symbols = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT")
    records = [trade(number, number, symbol=symbols[at]) for number, at in seen]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(records)), max_size=5)))
    edges = [0, *cuts, len(records)]
    facts = known(*[records[a:b] for a, b in pairwise(edges)], records[: len(records) // 2])
    for at, symbol in enumerate(symbols):
        ids = sorted({number for number, which in seen if which == at})
        runs: list[list[int]] = []
        for number in ids:
            if runs and number == runs[-1][-1] + 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        key = TRADES._replace(symbol=f"{symbol[:3]}/USDT")
        assert facts.runs.get(key, []) == [Run(run[0], run[-1], ns(run[0]), ns(run[-1])) for run in runs]
        missing = {
            number for one in intervals(facts, key) if one.state == "open" for number in range(one.first_id or 0, (one.last_id or 0) + 1)
        }
        assert missing == (set(range(ids[0], ids[-1])) - set(ids) if ids else set())


def test_of_two_copies_with_different_times_the_earliest_holds_in_whatever_chunks_they_come() -> None:
    live = [trade(1, 1.0), trade(2, 2.0), trade(5, 5.0)]
    exact = [trade(1, 1.006, "file-1"), trade(2, 2.007, "file-1")]
    found = [known([*live, *exact]).runs, known([*exact, *live]).runs, known(live, exact).runs, known(exact, live).runs]
    assert found == [{TRADES: [Run(1, 2, ns(1), ns(2)), Run(5, 5, ns(5), ns(5))]}] * 4


def test_a_bar_that_is_not_final_proves_nothing_and_a_missing_window_is_a_gap() -> None:
    facts = known([bar(0), bar(1), bar(2, final=False), bar(4)])
    assert brief(facts, BARS) == [(0.0, 2.0, "proven"), (2.0, 4.0, "open"), (4.0, 5.0, "proven")]
    assert intervals(facts, BARS)[1].evidence == "all of 2 bars are missing"
    assert brief(known([bar(0), bar(1), bar(4)], [bar(2), bar(3)]), BARS) == [(0.0, 5.0, "proven")]


@pytest.mark.parametrize("channel", [name for name in CHANNELS["binance"]["spot"] if name.startswith("kline_")])
def test_windows_follow_one_another_without_a_hole(channel: str) -> None:
    interval = channel.removeprefix("kline_")
    start = datetime(2024, 1, 1, tzinfo=UTC)  # a Monday, the first of a month
    at_ns = int(start.timestamp()) * NS_PER_S
    number = None
    for _ in range(30):
        window = window_of(interval, at_ns)
        assert window is not None
        assert number is None or window[0] == number + 1
        if interval == "1M":
            day = datetime.fromtimestamp(at_ns / NS_PER_S, UTC)
            assert window[1] - at_ns == calendar.monthrange(day.year, day.month)[1] * 86_400 * NS_PER_S
        if interval == "1w":
            assert datetime.fromtimestamp(at_ns / NS_PER_S, UTC).weekday() == 0
        number, at_ns = window


def test_one_wrong_time_hides_no_gap_and_proves_no_other_day() -> None:
    far = 300 * 86_400
    frame = json.loads(trade(2, 2)[3])
    frame["data"]["T"] += far * 1000
    ahead = ("line-1", "frame", ns(2), json.dumps(frame, separators=(",", ":")).encode())
    facts = known([trade(1, 1), ahead, trade(5, 5), trade(6, 6), trade(9, 9)])
    assert [(one.first_id, one.last_id) for one in intervals(facts, TRADES) if one.state == "open"] == [(3, 4), (7, 8)]
    found = answer(TRADES, intervals(facts, TRADES), ns(0), ns(10))
    assert found.verdict == "incomplete"
    assert {(one.first_id, one.last_id) for one in found.holes} >= {(3, 4), (7, 8)}
    long_ago = json.loads(trade(1, 1)[3])
    long_ago["data"]["T"] -= 8 * 365 * 86_400_000
    first = ("line-1", "frame", ns(1), json.dumps(long_ago, separators=(",", ":")).encode())
    facts = known([first, trade(2, 2)])
    assert answer(TRADES, intervals(facts, TRADES), ns(-400 * 86_400), ns(-399 * 86_400)).verdict == "incomplete"


def test_a_hole_that_ends_at_midnight_is_none_of_the_next_day_s() -> None:
    assert ask(10, 20, Interval(ns(5), ns(10), "open", ""), Interval(ns(10), ns(20), "proven", "")).verdict == "complete"
    assert ask(10, 20, Interval(ns(5), ns(10), "unprovable", ""), Interval(ns(10), ns(20), "proven", "")).verdict == "complete"
    assert ask(10, 20, Interval(ns(10), ns(10), "open", ""), Interval(ns(10), ns(20), "proven", "")).verdict == "incomplete"


def test_bars_of_another_interval_than_their_channel_s_count_for_nothing() -> None:
    other = json.loads(bar(2)[3])
    other["data"]["k"]["i"] = "1d"
    huge = json.loads(bar(3)[3])
    huge["data"]["k"]["i"] = "99999999999999999d"
    frames = [("line-1", "frame", ns(4), json.dumps(body).encode()) for body in (other, huge)]
    assert brief(known([bar(0), bar(1), *frames, bar(2), bar(3)]), BARS) == [(0.0, 4.0, "proven")]


def test_names_that_no_database_keeps_are_left_out() -> None:
    facts = known([told("closed", 2, by="provider", reason="a\0b" * 999), trade(1, 1)])
    assert "\0" not in facts.connections["line-1"].reason
    assert len(facts.connections["line-1"].reason) <= 300
    assert known([trade(1, 1, symbol="A\0USDT"), trade(1, 1, symbol="B" * 999 + "USDT")]).keys() == set()


def test_an_interval_that_nobody_knows_has_no_window() -> None:
    assert window_of("", 0) is None
    assert window_of("x", 0) is None
    assert window_of("1x", 0) is None


# Connections


LIVES: dict[str, tuple[list[Record], list[tuple[float, float, str]]]] = {
    "open, and heard until now": ([*opened(0), quote(1), trade(1, 5)], [(0.1, 5.0, "unprovable")]),
    "closed by the provider: nothing before the close is lost": (
        [*opened(0), quote(1), told("closed", 6, by="provider", reason="bye"), *opened(8, "line-2"), quote(9, "line-2")],
        [(0.1, 6.0, "unprovable"), (6.0, 8.1, "open"), (8.1, 9.0, "unprovable")],
    ),
    "broken: what was on its way is lost": (
        [*opened(0), quote(1), quote(3), told("closed", 6, by="network", reason=""), *opened(8, "line-2"), quote(8.5, "line-2")],
        [(0.1, 3.0, "unprovable"), (3.0, 8.1, "open"), (8.1, 8.5, "unprovable")],
    ),
    "killed: no close, and a successor": (
        [*opened(0), quote(1), trade(1, 2), *opened(8, "line-2"), told("closed", 9, "line-2", by="tapeline", reason="stopped")],
        [(0.1, 2.0, "unprovable"), (2.0, 8.1, "open"), (8.1, 9.0, "unprovable"), (9.0, float("inf"), "open")],
    ),
    "stale in this channel, while another one spoke": (
        [
            *opened(0),
            quote(1),
            trade(1, 20),
            told("closed", 21, by="tapeline", reason="stale: no channel bookTicker for 20.0 s on an open socket", stale="bookTicker"),
            *opened(22, "line-2"),
        ],
        [(0.1, 1.0, "unprovable"), (1.0, 22.1, "open"), (22.1, 22.1, "unprovable")],
    ),
    "the same, as earlier versions wrote it": (
        [
            *opened(0),
            quote(1),
            trade(1, 20),
            told("closed", 21, by="tapeline", reason="mute: no channel bookTicker for 20.0 s on an open socket"),
            *opened(22, "line-2"),
        ],
        [(0.1, 1.0, "unprovable"), (1.0, 22.1, "open"), (22.1, 22.1, "unprovable")],
    ),
    "another channel was stale": (
        [
            *opened(0),
            quote(20),
            told("closed", 21, by="tapeline", reason="stale: no channel trade for 20.0 s on an open socket", stale="trade"),
            *opened(22, "line-2"),
        ],
        [(0.1, 20.0, "unprovable"), (20.0, 22.1, "open"), (22.1, 22.1, "unprovable")],
    ),
    "stale altogether, and given up for another channel that was missed first": (
        [
            *opened(0),
            quote(5),
            trade(1, 6),
            told("closed", 21, by="tapeline", reason="stale: no channel trade for 15.0 s on an open socket", stale="trade"),
            *opened(22, "line-2"),
        ],
        [(0.1, 6.0, "unprovable"), (6.0, 22.1, "open"), (22.1, 22.1, "unprovable")],
    ),
    "stale altogether": (
        [
            *opened(0),
            quote(1),
            trade(1, 2),
            told("closed", 21, by="tapeline", reason="stale: no data for 19.0 s on an open socket", stale=""),
        ],
        [(0.1, 2.0, "unprovable"), (2.0, float("inf"), "open")],
    ),
    "replaced while it still spoke": (
        [*opened(0), *opened(5, "line-2"), quote(6, "line-2"), told("closed", 7, by="tapeline", reason="replaced"), quote(9, "line-2")],
        [(0.1, 9.0, "unprovable")],
    ),
    "one of two lines breaks": (
        [
            *opened(0),
            *opened(0, "other-1"),
            quote(1),
            told("closed", 2, by="network", reason=""),
            quote(5, "other-1"),
            *opened(4, "line-2"),
        ],
        [(0.1, 5.0, "unprovable")],
    ),
    "received and not kept": (
        [*opened(0), quote(1), told("dropped", 6, records=9, from_ns=ns(3), to_ns=ns(5), reason="full"), quote(8)],
        [(0.1, 3.0, "unprovable"), (3.0, 5.0, "open"), (5.0, 8.0, "unprovable")],
    ),
    "never confirmed": (
        [
            opened(0)[0],
            trade(1, 1),
            told("subscribed", 10, asked=["btcusdt@trade", "btcusdt@bookTicker"], missing=["btcusdt@bookTicker"]),
            trade(2, 11),
        ],
        [(0.0, float("inf"), "open")],
    ),
    "one record that was received and not kept": (
        [*opened(0), quote(1), told("dropped", 6, records=1, from_ns=ns(3), to_ns=ns(3), reason="full"), quote(8)],
        [(0.1, 3.0, "unprovable"), (3.0, 3.0, "open"), (3.0, 8.0, "unprovable")],
    ),
    "not kept just before it broke": (
        [
            *opened(0),
            quote(1),
            quote(6),
            told("dropped", 6, records=1, from_ns=ns(6), to_ns=ns(6), reason="full"),
            told("closed", 7, by="network", reason=""),
        ],
        [(0.1, 6.0, "unprovable"), (6.0, float("inf"), "open")],
    ),
    "killed, and another line goes on with the symbol and closes": (
        [*opened(0), quote(1), *opened(3, "other-1"), quote(4, "other-1"), told("closed", 9, "other-1", by="tapeline", reason="stopped")],
        [(0.1, 1.0, "unprovable"), (1.0, 3.1, "open"), (3.1, 9.0, "unprovable"), (9.0, float("inf"), "open")],
    ),
    "a replacement that failed, while the old one goes on": (
        [*opened(0), quote(1), *opened(2, "line-2"), told("closed", 3, "line-2", by="network", reason=""), quote(5)],
        [(0.1, 5.0, "unprovable")],
    ),
    "read late, as where the machine stood still: what was still on its way when it broke is lost": (
        [*opened(0), late(1, 1, 1.001), quote(2), late(2, 5, 60), late(3, 6, 60), told("closed", 61, by="network", reason="")],
        [(0.1, 6.001, "unprovable"), (6.001, float("inf"), "open")],
    ),
    "late once, and in time again": (
        [*opened(0), late(1, 1, 1.001), late(2, 5, 60), late(3, 61, 61.002), told("closed", 62, by="network", reason="")],
        [(0.1, 61.002, "unprovable"), (61.002, float("inf"), "open")],
    ),
    "never confirmed, and comes all the same": (
        [
            opened(0)[0],
            quote(2),
            told("subscribed", 10, asked=["btcusdt@trade", "btcusdt@bookTicker"], missing=["btcusdt@bookTicker"]),
            trade(2, 11),
        ],
        [(2.0, 11.0, "unprovable")],
    ),
}


def test_a_clock_that_was_set_back_hides_no_outage() -> None:
    heard = [*opened(0, "line-1"), quote(1), quote(600), told("closed", 601, by="network", reason="")]
    set_back = [*heard, *opened(90, "line-2"), quote(700, "line-2")]
    assert brief(known(set_back), QUOTES) == [(0.1, 90.0, "unprovable"), (90.0, 600.0, "open"), (600.0, 700.0, "unprovable")]
    assert intervals(known(set_back), QUOTES)[1].evidence == "the clock was set back: how long nobody listened is not known"
    killed = [*heard[:-1], *opened(90, "line-2"), quote(700, "line-2")]
    assert brief(known(killed), QUOTES)[1] == (90.0, 600.0, "open")
    beside = [*opened(0, "other-1"), quote(800, "other-1"), *set_back]
    assert brief(known(beside), QUOTES) == [(0.1, 800.0, "unprovable")]


def test_of_a_time_over_which_the_clock_leapt_nothing_is_claimed_and_once_it_is_set_back_it_is_as_it_was() -> None:
    day = 86_400.0
    leapt = told("leapt", 2 * day, from_ns=ns(2), to_ns=ns(2 * day), reason="the clock leapt ahead by 172,798.0 s")
    ahead = [*opened(0), quote(1), quote(2), leapt, quote(2 * day + 9)]
    assert brief(known(ahead), QUOTES) == [(0.1, 2.0, "unprovable"), (2.0, 2 * day, "open"), (2 * day, 2 * day + 9, "unprovable")]
    back = told("closed", 12, by="tapeline", reason="the clock was set back by 172,797.0 s")
    healed = [*ahead, back, *opened(12.5, "line-2"), quote(14, "line-2")]
    assert brief(known(healed), QUOTES) == [(0.1, 2.0, "unprovable"), (2.0, 12.6, "open"), (12.6, 14.0, "unprovable")]


def test_what_a_clock_said_before_it_was_set_right_is_no_claim() -> None:
    day = 86_400.0
    back = told("closed", 5, by="tapeline", reason="the clock was set back by 172,797.0 s")
    facts = known([*opened(2 * day), quote(2 * day + 2), back, *opened(6, "line-2"), quote(7, "line-2")])
    assert brief(facts, QUOTES) == [(6.1, 7.0, "unprovable")]


@pytest.mark.parametrize("case", LIVES)
def test_where_there_are_no_numbers_it_is_as_the_connections_were(case: str) -> None:
    records, expected = LIVES[case]
    assert brief(known(records), QUOTES) == expected


@given(st.sampled_from(sorted(LIVES)), st.data())
def test_it_is_the_same_in_whatever_chunks_and_when_it_all_comes_again(case: str, data: st.DataObject) -> None:
    records, _ = LIVES[case]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(records)), max_size=6)))
    edges = [0, *cuts, len(records)]
    in_parts = [records[a:b] for a, b in pairwise(edges)]
    whole, parts, again = known(records), known(*in_parts), known(*in_parts)
    absorb(again, chunk(records), normalize(chunk(records), DECODERS))
    assert whole.connections == parts.connections == again.connections
    assert whole.runs == parts.runs == again.runs
    for key in whole.keys():  # noqa: SIM118 no mapping: a set of its own
        assert intervals(whole, key) == intervals(parts, key) == intervals(again, key)


@given(st.sampled_from(sorted(LIVES)), st.sampled_from(sorted(LIVES)))
def test_the_intervals_of_a_key_follow_one_another(one: str, other: str) -> None:
    later = [(name, kind, at_ns + 100 * NS_PER_S, payload) for name, kind, at_ns, payload in LIVES[other][0]]
    later = [(f"{name.partition('-')[0]}-9{name[-1]}", kind, at_ns, payload) for name, kind, at_ns, payload in later]
    facts = known(LIVES[one][0], later)
    for key in facts.keys():  # noqa: SIM118 no mapping: a set of its own
        found = intervals(facts, key)
        assert all(a.end_ns == b.start_ns for a, b in pairwise(found))
        assert all(some.start_ns <= some.end_ns for some in found)


@given(st.binary(max_size=60), st.sampled_from(["opened", "subscribed", "closed", "dropped"]))
def test_a_record_that_cannot_be_read_changes_nothing_else(payload: bytes, kind: str) -> None:
    facts = known([*opened(0), trade(1, 1), ("line-1", kind, ns(2), payload), trade(2, 3)])
    assert facts.runs[TRADES] == [Run(1, 2, ns(1), ns(3))]


def test_partitions_that_are_read_in_turn_do_not_mix_up_whose_event_it_was() -> None:
    facts = Facts()
    some = Chunk.join([chunk([trade(1, 1, "a-1"), trade(3, 3, "a-1")], 10, 0), chunk([*opened(0, "b-1"), trade(2, 2, "b-1")], 4, 1)])
    absorb(facts, some, normalize(some, DECODERS))
    assert facts.connections["a-1"].first == {"trade BTC/USDT": ns(1)}
    assert facts.connections["b-1"].first == {"trade BTC/USDT": ns(2)}
    assert facts.connections["a-1"].last == {"trade": ns(3)}


# Answers


def ask(start_s: float, end_s: float, *found: Interval) -> Answer:
    return answer(TRADES, found, ns(start_s), ns(end_s))


def test_a_day_is_complete_only_where_evidence_covers_all_of_it() -> None:
    proven = Interval(ns(0), ns(10), "proven", "")
    assert ask(0, 10, proven).verdict == "complete"
    assert ask(2, 9, proven).verdict == "complete"
    early, late = ask(-1, 10, proven), ask(5, 12, proven)
    assert [(one.start_ns, one.end_ns) for one in early.holes] == [(ns(-1), ns(0))]
    assert [(one.start_ns, one.end_ns) for one in late.holes] == [(ns(10), ns(12))]
    assert ask(0, 1).holes == (Interval(ns(0), ns(1), "open", "nothing is known about this time"),)
    assert ask(0, 20, proven, Interval(ns(10), ns(20), "unprovable", "")).verdict == "unprovable"
    assert ask(0, 20, proven, Interval(ns(10), ONGOING, "open", "")).verdict == "incomplete"
    assert ask(0, 20, Interval(ns(-5), ns(5), "reconciled", ""), Interval(ns(5), ns(25), "proven", "")).verdict == "complete"
    assert ask(0, 20, proven, Interval(ns(10), ns(20), "unrecoverable", "")).verdict == "incomplete"


@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["proven", "open", "unprovable"])), max_size=8),
    st.integers(0, 40),
    st.integers(1, 20),
)
def test_an_answer_covers_the_stretch_asked_for_and_nothing_else(parts: list[tuple[int, Any]], start: int, length: int) -> None:
    found, at = [], 10
    for width, state in parts:
        found.append(Interval(ns(at), ns(at + width), state, ""))
        at += width
    given_ = ask(start, start + length, *found)
    assert given_.intervals[0].start_ns == ns(start)
    assert given_.intervals[-1].end_ns == ns(start + length)
    assert all(a.end_ns == b.start_ns for a, b in pairwise(given_.intervals))
    assert (given_.verdict == "incomplete") == any(one.state not in COVERED for one in given_.intervals)


# Kept


Place = tuple[str, Path | str]


@pytest.fixture(params=["file", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a ledger is kept, and how to open it."""
    return request.param, tmp_path / "ledger.sqlite" if request.param == "file" else request.getfixturevalue("database")


def opened_at(kind: str, where: Path | str) -> Ledger:
    return LedgerFile(Path(where)) if kind == "file" else PostgresLedger(Database(str(where), NO_SECRET))


def test_the_ledger_gives_back_what_was_kept_and_changes_what_changed(place: Place) -> None:
    records = [*opened(0), trade(1, 1), quote(1.5), trade(4, 2), told("closed", 3, by="network", reason="")]
    ledger, facts = opened_at(*place), known(records)
    assert ledger.load() == (Facts(), {})
    assert ledger.intervals().num_rows == 0
    everything = {key: (0, intervals(facts, key)) for key in facts.keys()}  # noqa: SIM118 no mapping: a set of its own
    ledger.save(facts, everything, {0: 7, 3: 9})
    kept, positions = ledger.load()
    facts.settled()
    assert kept == facts
    assert positions == {0: 7, 3: 9}
    assert read_intervals(ledger.intervals()) == {key: found for key, (_, found) in everything.items() if found}
    later = chunk([*opened(5, "line-2"), trade(2, 5, "line-2"), trade(3, 6, "line-2")], 7)
    absorb(facts, later, normalize(later, DECODERS))
    before = {key: found for key, (_, found) in everything.items()}
    changes = {key: changed(before.get(key, []), intervals(facts, key)) for key in facts.touched()}
    ledger.save(facts, changes, {0: 11})
    assert read_intervals(ledger.intervals()) == {key: intervals(facts, key) for key in facts.keys()}  # noqa: SIM118 no mapping
    assert ledger.load()[1] == {0: 11, 3: 9}


def test_the_ledger_gives_the_intervals_of_some_symbols_or_states_alone(place: Place) -> None:
    other = TRADES._replace(symbol="ETH/USDT")
    facts = known([trade(1, 1), trade(4, 2), trade(1, 1, symbol="ETHUSDT"), trade(9, 2, symbol="ETHUSDT")])
    ledger = opened_at(*place)
    assert ledger.keys() == []
    ledger.save(facts, {key: (0, intervals(facts, key)) for key in (TRADES, other)}, {0: 4})
    assert ledger.keys() == [TRADES, other]
    assert read_intervals(ledger.intervals(["ETH/USDT"])) == {other: intervals(facts, other)}
    assert read_intervals(ledger.intervals(states=["open"])) == {key: [intervals(facts, key)[1]] for key in (TRADES, other)}
    assert read_intervals(ledger.intervals(["BTC/USDT"], ["open", "repairing"])) == {TRADES: [intervals(facts, TRADES)[1]]}
    assert ledger.intervals(["'; DROP"]).num_rows == 0


def changed(old: list[Interval], new: list[Interval]) -> tuple[int, list[Interval]]:
    same = next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), min(len(old), len(new)))
    return same, new[same:]


def test_anybody_s_sql_in_postgresql_sees_the_gaps(database: str) -> None:
    facts = known([trade(1, 1), trade(4, 2)])
    PostgresLedger(Database(database, NO_SECRET)).save(facts, {TRADES: (0, intervals(facts, TRADES))}, {0: 2})
    with Database(database, NO_SECRET).connected() as connection, connection.cursor() as cursor:
        cursor.execute('SELECT symbol, state, first_id, last_id, "start", "end" FROM gaps')
        (row,) = cursor.fetchall()
    at = datetime(2024, 3, 15, 12, tzinfo=UTC)
    assert row == ("BTC/USDT", "open", 2, 3, at + timedelta(seconds=1), at + timedelta(seconds=2))


def test_a_newer_ledger_is_left_alone_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(NewerData, match="format 99"):
        LedgerFile(path).load()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(DiskProblem, match=r"is damaged: .*not a database.* Restore it from a backup"):
        LedgerFile(path).load()


def test_a_ledger_that_is_damaged_while_it_is_kept_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    path, facts = tmp_path / "ledger.sqlite", known([trade(1, 1), trade(4, 2)])
    LedgerFile(path).save(facts, {TRADES: (0, intervals(facts, TRADES))}, {0: 2})
    whole = path.read_bytes()
    for damaged in (whole[:4096] + b"\xff" * (len(whole) - 4096), b"\xff" * len(whole)):
        path.write_bytes(damaged)
        with pytest.raises(DiskProblem, match=r"is damaged: .* Restore it from a backup") as said:
            LedgerFile(path).save(facts, {TRADES: (0, intervals(facts, TRADES))}, {0: 3})
        assert "Free disk space" not in str(said.value)


def test_a_ledger_that_the_disk_does_not_give_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.mkdir()
    with pytest.raises(DiskProblem, match="Leave it there") as said:
        LedgerFile(path).load()
    assert "move it away" not in str(said.value)


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_completeness import chunk, opened_at, trade
from tapeline.ledger.intervals import intervals
from tapeline.ledger.absorbing import absorb
from tapeline.providers.registry import DECODERS
from tapeline.providers.normalizing import normalize
ledger = opened_at(sys.argv[1], sys.argv[2])
while True:
    facts, positions = ledger.load()
    at = positions.get(0, 0)
    for _ in range(5):
        some = chunk([trade(number * 2, number) for number in range(at, at + 20)], at)
        absorb(facts, some, normalize(some, DECODERS))
        at += 20
        ledger.save(facts, {{key: (0, intervals(facts, key)) for key in facts.touched()}}, {{0: at}})
        facts.settled()
        print("kept", flush=True)
"""


def test_killed_at_any_moment_facts_intervals_and_position_agree(place: Place) -> None:
    last = 0
    for lines in (1, 3, 8):
        command = [sys.executable, "-c", WRITER.format(tests=str(Path(__file__).parent)), place[0], str(place[1])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(lines):
            assert process.stdout.readline() == b"kept\n", process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()
        ledger = opened_at(*place)
        facts, positions = ledger.load()
        assert positions[0] > last
        last = positions[0]
        assert facts.runs[TRADES] == [Run(number * 2, number * 2, ns(number), ns(number)) for number in range(last)]
        assert read_intervals(ledger.intervals())[TRADES] == intervals(facts, TRADES)
