"""Pulls of real simulators' histories beside the running stages: all that happens is there once, through faults and kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from processes import Home, block, environment, ledger

from proving import proof
from tapeline.app.history_jobs import Wanted, history_jobs
from tapeline.app.ledgers import open_ledger
from tapeline.config import load
from tapeline.jobs.sync.pull import Sync, Timing
from tapeline.ledger import read_intervals
from tapeline.ledger.facts import Key
from tapeline.providers.registry import HISTORIES
from tapeline.records import NS_PER_S
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import SimulatorProcess

pytestmark = proof("crashes")

#: Pulls every 0.4 s, in one process, as a job that is due so often does. More symbols would exceed the limit of a minute, and wait.
PULLS = """
import datetime, json, pathlib, sys, threading
from tapeline.config import environment, load
from tapeline.orchestration.catalog import jobs_of
from tapeline.orchestration.opening import open_database
from tapeline.orchestration.runs import Runs
from tapeline.orchestration.work import REPEATED, Work
config, stop = load(pathlib.Path(sys.argv[1]), environment()), threading.Event()
work = Work(config, datetime.date.today(), stop, lambda _: None, Runs(open_database(config)), "sync")
with REPEATED["sync"](work, jobs_of(config)["sync"].arguments) as pull:
    while not stop.wait(0.4):
        print(json.dumps(pull()), flush=True)
"""
JOB = 'repair = false\nscheduler = "none"\n[[jobs]]\njob = "sync"\n'
#: Only Binance says after how many seconds it may be asked again; without a word, a client waits for half a minute.
FAULTS = ("rest_error:2",)
KEYS = {"TAPELINE_POLYGON_KEY": "k", "TAPELINE_ALPACA_KEY": "k", "TAPELINE_ALPACA_SECRET": "s"}
EACH = pytest.mark.parametrize(
    ("name", "feed", "symbols", "channels", "faults"),
    [
        ("binance", "spot", ["BTCUSDT"], ["trade", "aggTrade", "kline_1s"], (*FAULTS, "rest_429:1")),
        ("polygon", "stocks", ["AAPL", "MSFT"], ["T", "Q", "A"], (*FAULTS, "rest_cut:2")),
        ("alpaca", "iex", ["AAPL"], ["trades", "quotes"], (*FAULTS, "rest_cut:2", "rest_page:50")),
    ],
)


def happened(journal: Path) -> set[tuple[str, str, int]]:
    """Channel, symbol and number of each event; for Alpaca, which has no numbers, and for bars, the time."""
    found = set()
    for text in journal.read_text().splitlines(keepends=True):
        line: dict[str, Any] = json.loads(text) if text.endswith("\n") else {"event": {}}
        event = line["event"]
        bar = event.get("k", event)
        if "s" in bar and line["channel"] in ("kline_1s", "A"):
            if bar.get("x", True):
                found.add((line["channel"], line["symbol"], bar["t"] if "k" in event else bar["s"]))
        elif line.get("provider") == "alpaca":
            moment = event["t"].removesuffix("Z").partition(".")
            seconds = int(datetime.fromisoformat(f"{moment[0]}+00:00").timestamp())
            found.add((line["channel"], line["symbol"], seconds * NS_PER_S + int(moment[2].ljust(9, "0"))))
        elif event:
            found.add((line["channel"], line["symbol"], event["q"] if line["provider"] == "polygon" else event.get("t", event.get("a"))))
    return found


def kept(home: Home) -> list[tuple[str, str, int]]:
    number = "CASE WHEN provider = 'alpaca' THEN ts_ns ELSE sequence END"
    ticks = home.rows(f"SELECT channel, replace(symbol, '/', ''), {number} FROM ticks") if (home.lake / "ticks").exists() else []
    bars = home.rows("SELECT channel, replace(symbol, '/', ''), ts_ns // 1000000 FROM bars") if (home.lake / "bars").exists() else []
    return ticks + bars


@EACH
def test_what_happens_is_pulled_once_whoever_dies_and_the_ledger_says_up_to_when(
    name: str,
    feed: str,
    symbols: list[str],
    channels: list[str],
    faults: tuple[str, ...],
    home: Home,
    simulator: Callable[..., SimulatorProcess],
) -> None:
    market = simulator(name, "--rate", "60", "--seed", "4", *(f"--fault={fault}" for fault in faults))
    home.env = KEYS
    home.configure(JOB + block(name, market.url, symbols, channels, feed=feed, live=False), ledger=True)
    others = {"TAPELINE_POLYGON_KEY": "o", "TAPELINE_ALPACA_KEY": "o", "TAPELINE_ALPACA_SECRET": "s"}
    other = Home(home.root.with_name("other"), home.spawn, others)
    other.configure(block(name, market.url, symbols, channels, feed=feed))
    listener = other.start("ingest")  # the market goes on because another account listens
    until(lambda: any(line["connected"] for line in other.word("ingest").get("lines", {}).values()), "the other listens")
    run = home.start("run")
    for life in range(4):
        with subprocess.Popen([sys.executable, "-c", PULLS, str(home.config)], stdout=subprocess.PIPE, env=environment(**KEYS)) as pulls:
            assert pulls.stdout is not None
            for _ in range(life):
                pulls.stdout.readline()
            time.sleep(0.3)
            if life == 2:
                home.kill("ledger")
            pulls.kill()
    began_ns = time.time_ns()
    with subprocess.Popen([sys.executable, "-c", PULLS, str(home.config)], stdout=subprocess.PIPE, env=environment(**KEYS)) as pulls:
        until(lambda: happened(market.journal) and len(set(kept(home))) > len(happened(market.journal)) * 0.5, "much is there")
        market.halt()
        until(lambda: happened(market.journal) <= set(kept(home)), "everything is there")
        pulls.kill()
    listener.end()
    assert sorted(set(kept(home))) == sorted(kept(home)), "each is there once"

    # A minute later, everything is settled.
    ahead = lambda: time.time_ns() + 60 * NS_PER_S  # noqa: E731
    config, stop = load(home.config, KEYS), threading.Event()
    keys = sync_to_the_end(config, stop, ahead, home)
    until(lambda: keys <= set(ledger(home)), "the ledger knows each")
    for key in keys:
        settled_ns = HISTORIES[name].settled_ns(key.channel)

        def read(key: Key = key) -> list[tuple[str, int, int]]:
            return [(one.state, one.start_ns, one.end_ns) for one in ledger(home)[key]]

        if settled_ns < 60 * NS_PER_S:
            until(
                lambda: {state for state, _, _ in read()} <= {"proven", "reconciled"} and read()[-1][2] >= began_ns, f"{key} is reconciled"
            )
        assert all(end_ns <= ahead() - settled_ns for state, _, end_ns in read() if state == "reconciled")
    run.send(signal.SIGTERM)
    assert run.ends() == 0, run.said
    assert sorted(set(kept(home))) == sorted(kept(home))
    assert all(entry["balanced"] for entry in home.status()["equations"])


def sync_to_the_end(config: Any, stop: threading.Event, clock: Callable[[], int], home: Home) -> set[Key]:
    """Pull once at another time; what was pulled."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in KEYS.items():
            patch.setenv(variable, value)
        jobs = history_jobs(config, Wanted(), 0, 0, stop)
    feeds = [
        (replace(source, clock=clock), [Key(job.provider, job.feed, channel, symbol) for channel in job.channels for symbol in job.symbols])
        for job, source in jobs
    ]
    known = lambda: read_intervals(open_ledger(config).intervals())  # noqa: E731
    with closing(home.stream()) as stream:
        done = list(Sync(feeds, stream, known, Timing(), stop, Random(1), clock).pull())
    assert [one.error for one in done] == [None] * len(done)
    return {one.key for one in done}


def test_the_command_pulls_once_says_what_it_did_and_goes_on_from_there(home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    market = simulator("binance", "--rate", "200", "--seed", "4")
    home.configure(JOB + block("binance", market.url, ["BTCUSDT"], ["trade"], live=False), ledger=True)
    other = Home(home.root.with_name("other"), home.spawn)
    other.configure(block("binance", market.url, ["BTCUSDT"], ["trade"]))
    listener = other.start("ingest")
    until(lambda: market.journal.exists() and len(happened(market.journal)) > 100, "something happens")
    market.halt()
    first = home.ask("jobs", "run", "sync", "--format", "json")
    assert first.returncode == 0, first.stderr
    done = json.loads(first.stdout)["result"]
    assert (done["pulled"], done["failed"]) == (1, [])
    assert done["events"] >= len(happened(market.journal))
    listener.end()
    run = home.start("run")
    until(lambda: set(kept(home)) >= happened(market.journal), "all is there")
    assert "ingest" not in run.said
    run.send(signal.SIGTERM)
    assert run.ends() == 0, run.said
    market.stop()
    again = home.ask("jobs", "run", "sync", "--format", "json")
    assert (again.returncode, json.loads(again.stdout)["state"]) == (69, "failed")
    assert "BTC/USDT trade" in json.loads(again.stdout)["error"]
