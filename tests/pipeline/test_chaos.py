"""Three providers at once, everything going wrong: at the end both stores are what happened, and the ledger claims nothing that is not so.

Connections break, fall stale and are taken away, events are left out, REST answers with errors, and every process is killed, at random
moments from a seed. The truth is the simulators' own: what they sent to anybody, and what they left out. Another account listens beside, so
that markets go on while ours is deaf.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from adbc_driver_postgresql import dbapi  # type: ignore[import-untyped]  # it carries no types
from picows import WSListener, WSMsgType, ws_connect
from processes import Home, block

from proving import PROVE, proof
from tapeline.app.ledgers import open_ledger
from tapeline.config import load
from tapeline.ledger import read_intervals
from tapeline.ledger.answers import answer
from tapeline.ledger.facts import Interval, Key
from tapeline.records import NS_PER_MS, NS_PER_S
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from processes import SimulatorProcess
    from services.postgres import PostgresServer

pytestmark = proof("chaos")

SEEDS = range(6) if PROVE else range(1)
#: How long the markets last, and how much happens on each.
SECONDS, RATE = (120, 150) if PROVE else (14, 120)
FEEDS = {
    "binance": (["BTCUSDT", "ETHUSDT"], ["trade", "aggTrade", "bookTicker", "kline_1s"]),
    "polygon": (["AAPL", "MSFT"], ["T", "Q"]),
    "alpaca": (["AMD", "SPY"], ["trades", "quotes"]),
}
STAGES = ["ingest", "normalize", "lake", "postgresql", "ledger", "repair"]
#: Of whom the provider keeps no history: what is missing stays missing, and has to lie in a gap.
LIVE_ONLY = "bookTicker"
#: A simulator's word is about this far from when it was heard.
_NEAR_NS = 1_500 * NS_PER_MS
BARS = "kline_1s"
#: The longest of what the providers' histories are given to settle.
_SETTLED_NS = 21 * NS_PER_S

Event = tuple[Any, ...]


@dataclass(frozen=True)
class Happened:
    """One event by the simulator: what tells it from others, about when it was, and whether the simulator left it out on purpose."""

    event: Event
    near_ns: int
    skipped: bool


def told_apart(provider: str, event: dict[str, Any]) -> tuple[Key, Event] | None:
    """The key of an event of a simulator, and what both stores know it by; None for what is neither tick nor final bar."""
    if provider == "binance":
        symbol = f"{event['s'][:-4]}/USDT" if "s" in event else ""
        kind = event.get("e", "bookTicker")
        if kind == "kline":
            return (Key("binance", "spot", "kline_1s", symbol), (event["k"]["t"] * NS_PER_MS,)) if event["k"]["x"] else None
        number = {"trade": "t", "aggTrade": "a", "bookTicker": "u"}.get(kind)
        return (Key("binance", "spot", kind, symbol), (event[number],)) if number else None
    if provider == "polygon":
        if event.get("ev") == "T":
            return Key("polygon", "stocks", "T", event["sym"]), (event["i"], event["q"], event["p"], event["s"])
        if event.get("ev") == "Q":
            return Key("polygon", "stocks", "Q", event["sym"]), (event["q"], event["bp"], event["bs"], event["ap"], event["as"])
        return None
    if event.get("T") == "t":
        return Key("alpaca", "iex", "trades", event["S"]), (str(event["i"]),)
    if event.get("T") == "q":
        ns = datetime.fromisoformat(event["t"][:26].rstrip("Z") + "+00:00") if "." in event["t"] else datetime.fromisoformat(event["t"])
        return Key("alpaca", "iex", "quotes", event["S"]), (int(ns.timestamp() * 1000), event["bp"], event["bs"], event["ap"], event["as"])
    return None


def happened(provider: str, journal: Path) -> dict[Key, list[Happened]]:
    """Everything, each once; not sent to us or not sent to anybody included."""
    found: dict[Key, dict[Event, Happened]] = defaultdict(dict)
    near_ns = 0
    for line in journal.read_text().splitlines():
        told = json.loads(line)
        event = told["event"]
        if event is None:
            continue
        ms = event.get("E") or event.get("T") if provider == "binance" else event.get("t")
        if isinstance(ms, int):
            near_ns = max(near_ns, ms * NS_PER_MS)
        apart = told_apart(provider, event)
        if apart is not None:
            key, known = apart
            first = found[key].get(known)
            sent = not told.get("skipped") or (first is not None and not first.skipped)
            found[key][known] = Happened(known, first.near_ns if first else near_ns, not sent)
    return {key: list(events.values()) for key, events in found.items()}


COLUMNS = {
    ("binance", "kline_1s"): "ts_ns",
    ("binance", ""): "sequence",
    ("polygon", "T"): "trade_id, sequence, last, volume",
    ("polygon", "Q"): "sequence, bid, bid_size, ask, ask_size",
    ("alpaca", "trades"): "trade_id",
    ("alpaca", "quotes"): "ts_ns // 1000000, bid, bid_size, ask, ask_size",
}


def question(key: Key, divided_by: str) -> str:
    """What a store holds of a key. `divided_by`: how whole numbers are divided."""
    columns = COLUMNS.get((key.provider, key.channel), COLUMNS["binance", ""]).replace("//", divided_by)
    table, final = ("bars", " AND final") if key.channel == "kline_1s" else ("ticks", "")
    which = f"provider = '{key.provider}' AND channel = '{key.channel}' AND symbol = '{key.symbol}'"
    return f"SELECT {columns} FROM {table} WHERE {which}{final}"


def in_the_lake(home: Home, keys: Iterable[Key]) -> dict[Key, list[Event]]:
    return {key: home.rows(question(key, "//")) for key in keys}


def in_postgres(url: str, keys: Iterable[Key]) -> dict[Key, list[Event]]:
    with closing(dbapi.connect(url)) as connection, connection.cursor() as cursor:
        found = {}
        for key in keys:
            cursor.execute(question(key, "/"))
            found[key] = [tuple(row) for row in cursor.fetchall()]
    return found


def faults(random: Random) -> dict[str, list[str]]:
    """What goes wrong at each simulator besides the kills."""

    def some(*names: str) -> list[str]:
        return [f"--fault={name}:{random.uniform(4.0, 9.0):.1f}" for name in names]

    everywhere = ["--fault=rest_error:2", "--fault=duplicate:0.02", "--fault=skip:0.01"]
    return {
        "binance": [*some("reset", "stale"), *everywhere, "--fault=rest_429:2"],
        "polygon": [*some("reset"), *everywhere, "--fault=late_report:1e-12"],
        "alpaca": [*some(random.choice(["close", "half_open"])), *everywhere, "--fault=rest_429:2"],
    }


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_goes_wrong_the_stores_are_what_happened_and_the_ledger_says_what_is_missing(
    seed: int, home: Home, simulator: Callable[..., SimulatorProcess], own_postgres: Callable[..., PostgresServer]
) -> None:
    random, server = Random(seed), own_postgres()
    wrong = faults(random)
    limit = str(SECONDS * RATE)
    markets = {name: simulator(name, "--rate", str(RATE), "--limit", limit, "--seed", str(seed), *wrong[name]) for name in FEEDS}
    blocks = "".join(block(name, markets[name].url, *FEEDS[name], stale_after=2.0) for name in FEEDS)
    second = f'[[stores]]\nurl = "{server.url}"\nflush_seconds = 0.3\n'
    home.env = {"TAPELINE_POLYGON_KEY": "k", "TAPELINE_ALPACA_KEY": "k", "TAPELINE_ALPACA_SECRET": "s"}
    home.configure(blocks + second, ledger=True)
    beside = Home(home.root.with_name("beside"), home.spawn, {**home.env, "TAPELINE_POLYGON_KEY": "o", "TAPELINE_ALPACA_KEY": "o"})
    beside.configure(blocks)
    listener, run = beside.start("ingest"), home.start("run")

    until(lambda: home.word("lake").get("tables", {}).get("ticks", {}).get("rows", 0) > 200, "nothing flows")
    kills, next_ones = Counter[str](), list[str]()
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        time.sleep(random.uniform(0.8, 2.0) if not PROVE else random.uniform(3.0, 7.0))
        # Each once before any is hit again: what dies all the time is given up by its supervisor, which is no loss.
        next_ones = next_ones or random.sample([*STAGES, "run", "kick"], len(STAGES) + 2)
        victim = next_ones.pop()
        if victim == "run":  # the supervisor itself: its stages end, and another takes over
            run.popen.kill()
            run.ends()
            run = home.start("run")
        elif victim == "kick":
            asyncio.run(kick(markets["polygon"].url))
        else:
            home.kill(victim)
        kills[victim] += 1
    until(lambda: not grows(markets), "the markets go on", 120)
    over_ns = time.time_ns()  # from here on nothing happens, and every socket is stale
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    asked = ("reconcile", day, "--format", "json")

    last = ""
    asked_for = sum(len(symbols) * len({*channels} - {LIVE_ONLY}) for symbols, channels in FEEDS.values())

    def equal() -> bool:
        nonlocal last
        done = home.ask(*asked)
        assert "Traceback" not in done.stderr, done.stderr
        last = done.stdout + done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        # A silent market still makes a bar a second, and no socket brings it: there is always one more that was not there yet.
        whole = all(one["only_in_history"] == 0 or one["channel"] == BARS for one in found) and len(found) == asked_for
        return whole and not any(one["only_stored"] or one["differing"] or one["rejected"] for one in found)

    time.sleep(max(0.0, (over_ns + _SETTLED_NS - time.time_ns()) / NS_PER_S))  # until then a history may not hold it all, and claims less
    try:
        until(equal, "the stores are not equal to the histories", 240)
    except AssertionError as error:
        error.add_note(last)
        raise
    keys = {key for name, market in markets.items() for key in happened(name, market.journal) if key.channel != LIVE_ONLY}

    def closed() -> bool:
        """A gap that goes on, because the line has not been confirmed again, is closed by a comparison with the history."""
        if not open_before(over_ns, home, keys):
            return True
        equal()  # the comparison sends what the stores lack; the next look sees whether that closed the gap
        return False

    try:
        until(closed, "gaps that can be filled are open", 240)
    except AssertionError as error:
        error.add_note(f"{open_before(over_ns, home, keys)}\n{last}\n{run.said[-4000:]}")
        raise
    run.send(signal.SIGTERM)
    assert run.ends(120) == 0, run.said
    listener.send(signal.SIGTERM)
    listener.ends()
    for market in markets.values():
        market.stop()

    truth = {key: events for name, market in markets.items() for key, events in happened(name, market.journal).items()}
    ledger = known(home)
    lake, postgres = in_the_lake(home, truth), in_postgres(server.url, truth)
    missing = 0
    for key, events in truth.items():
        assert Counter(lake[key]) == Counter(postgres[key]), key
        kept = set(lake[key])
        assert len(kept) == len(lake[key]), f"{key}: an event is there twice"
        lost = [one for one in events if one.event not in kept]
        if key.channel == LIVE_ONLY:
            missing += len(lost)
            for one in lost:
                assert one.skipped or in_a_gap(one, key, ledger[key]), f"{key}: {one} is missing, and no gap says so"
            continue
        assert not lost, f"{key}: {lost[:3]} happened, and the provider kept it"
        for interval in ledger[key]:
            if interval.state == "proven" and key.channel != BARS and interval.first_id is not None and interval.last_id is not None:
                assert {(number,) for number in range(interval.first_id, interval.last_id + 1)} <= kept
    status = home.status()
    assert all(entry["balanced"] for entry in status["equations"])
    print(json.dumps({"seed": seed, "kills": sum(kills.values()), **figures(home, ledger), "missing_live_only": missing}))


async def kick(url: str) -> None:
    """Take our account's one connection at Polygon.io away, as another process with its key does."""
    transport, _ = await ws_connect(WSListener, f"{url}/stocks")
    transport.send(WSMsgType.TEXT, b'{"action":"auth","params":"k"}')
    transport.send(WSMsgType.TEXT, b'{"action":"subscribe","params":"T.AAPL"}')
    await asyncio.sleep(0.3)
    transport.disconnect()
    await transport.wait_disconnected()


def grows(markets: dict[str, SimulatorProcess]) -> bool:
    """Whether any simulator still has something to tell."""
    before = [market.journal.stat().st_size for market in markets.values()]
    time.sleep(2.5)
    return before != [market.journal.stat().st_size for market in markets.values()]


def known(home: Home) -> dict[Key, list[Interval]]:
    return read_intervals(open_ledger(load(home.config, {}), {}).intervals())


def open_before(over_ns: int, home: Home, keys: Iterable[Key]) -> list[tuple[Key, Interval]]:
    """The gaps that began while something happened."""
    ledger = known(home)
    return [(key, one) for key in keys for one in ledger.get(key, []) if one.state == "open" and one.start_ns < over_ns]


def in_a_gap(one: Happened, key: Key, intervals: list[Interval]) -> bool:
    """Whether the ledger says that something is missing about then; before the first connection nothing is known, which it says too."""
    return bool(answer(key, intervals, one.near_ns - _NEAR_NS, one.near_ns + _NEAR_NS).holes)


def figures(home: Home, ledger: dict[Key, list[Interval]]) -> dict[str, int]:
    """For docs/completeness.md."""
    count = home.rows(
        "SELECT count(*) FILTER (WHERE kind = 'opened'), count(*) FILTER (WHERE kind = 'fetched' AND detail LIKE '%\"done\":true%'"
        " AND connection LIKE 'repair-%') FROM notices"
    )
    ((rows,),) = home.rows("SELECT count(*) FROM ticks")
    states = Counter(one.state for some in ledger.values() for one in some)
    return {
        "connections": count[0][0],
        "gaps_asked_for": count[0][1],
        "open": states["open"],
        "unrecoverable": states["unrecoverable"],
        "rows": rows,
    }
