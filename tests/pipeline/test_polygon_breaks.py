"""Where nothing can be counted, a break is filled by time: history is asked for what happened meanwhile, and all of it is there once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from picows import WSError, WSListener, WSMsgType, ws_connect
from processes import Home, block

from tapeline.app.histories import open_histories
from tapeline.config import load
from tapeline.jobs.repair import repair, wanted
from tapeline.ledger import read_intervals
from tapeline.ledger.facts import ONGOING, Interval, Key
from tapeline.ledger.sqlite import LedgerFile
from tapeline.records import NS_PER_S
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import SimulatorProcess

EVENTS = 3_000
SYMBOLS = ["AAPL", "MSFT"]
KEYS = [Key("polygon", "stocks", channel, symbol) for channel in ("T", "Q") for symbol in SYMBOLS]
Event = tuple[Any, ...]


class Beside(threading.Thread):
    """Another account, which hears what goes on while ours does not; it dials again at once."""

    def __init__(self, url: str, topics: list[str]) -> None:
        super().__init__(daemon=True)
        self._url, self._topics, self._ended = url, topics, threading.Event()
        self.start()

    def run(self) -> None:
        asyncio.run(self._listen())

    async def _listen(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError, WSError):
                transport, _ = await ws_connect(WSListener, self._url)
                transport.send(WSMsgType.TEXT, b'{"action":"auth","params":"another"}')
                transport.send(WSMsgType.TEXT, json.dumps({"action": "subscribe", "params": ",".join(self._topics)}).encode())
                gone = asyncio.create_task(transport.wait_disconnected())
                while not gone.done() and not self._ended.is_set():
                    await asyncio.wait([gone], timeout=0.1)
                transport.disconnect()
                await gone

    def end(self) -> None:
        self._ended.set()
        self.join()


def settled() -> int:
    """A minute from now: what has happened by now is in the history for good."""
    return time.time_ns() + 60 * NS_PER_S


def connects(home: Home) -> int:
    """How often our connection has been opened."""
    return int(home.word("ingest").get("lines", {}).get("polygon-stocks", {}).get("connects", 0))


def ledger(home: Home) -> dict[Key, list[Interval]]:
    return read_intervals(LedgerFile(home.root / "ledger.sqlite").intervals())


def broken(home: Home) -> list[tuple[Key, Interval]]:
    """The gaps that have an end."""
    return [(key, one) for key, some in ledger(home).items() for one in some if one.state == "open" and one.end_ns != ONGOING]


def happened(journal: Path) -> set[Event]:
    """Every event that the simulator sent to anybody."""
    found = set()
    for line in journal.read_text().splitlines():
        event = json.loads(line)["event"] if line.endswith("}") else {}
        if event.get("ev") == "T":
            found.add(
                ("T", event["sym"], event["q"], event["t"], event["i"], event["p"], event["s"], ",".join(map(str, event.get("c", ()))))
            )
        elif event.get("ev") == "Q":
            found.add(("Q", event["sym"], event["q"], event["t"], event["bp"], event["bs"], event["ap"], event["as"]))
    return found


def kept(home: Home) -> list[Event]:
    trades = home.rows(
        "SELECT 'T', symbol, sequence, ts_ns // 1000000, trade_id, last, volume, coalesce(conditions, '') FROM ticks WHERE kind = 'trade'"
    )
    quotes = home.rows("SELECT 'Q', symbol, sequence, ts_ns // 1000000, bid, bid_size, ask, ask_size FROM ticks WHERE kind = 'quote'")
    return [*trades, *quotes]


def test_what_happened_between_connections_is_fetched_and_the_lake_is_what_happened(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    # The SIP's time is the one of the report; the simulator's late reports carry an earlier one, which no span of a gap holds.
    market = simulator(
        "polygon", "--rate", "500", "--limit", str(EVENTS), "--seed", "7", "--fault", "late_report:1e-12", "--fault", "reset:3"
    )
    home.env = {"TAPELINE_POLYGON_KEY": "k"}
    home.configure("repair = false\n" + block("polygon", market.url, SYMBOLS, ["T", "Q"]), ledger=True)
    run = home.start("run")
    until(lambda: connects(home), "it is connected")
    beside = Beside(market.url + "/stocks", [f"{channel}.{symbol}" for channel in ("T", "Q") for symbol in SYMBOLS])
    until(lambda: connects(home) > 1, "the connection broke, and there is another")
    until(lambda: {key for key, _ in broken(home)} == set(KEYS), "the break was noticed, and its end")
    until(lambda: len(happened(market.journal)) == EVENTS, "everything has happened")
    assert happened(market.journal) - set(kept(home))

    sources = open_histories(load(home.config, {}), home.env, Random(1))
    source, stream = replace(sources["polygon", "stocks"], clock=settled), home.stream()

    def filled() -> bool:
        for key, _, span in wanted(ledger(home), sources, settled()):  # it has settled: nothing more happens
            repair(key, span, source, stream, "repair-1")
        time.sleep(0.3)
        return happened(market.journal) <= set(kept(home))

    until(filled, "everything is kept")
    stream.close()
    until(lambda: {key for key, some in ledger(home).items() if "reconciled" in {one.state for one in some}} == set(KEYS), "all are closed")
    beside.end()
    run.send(signal.SIGTERM)
    assert run.ends() == 0, run.said
    market.stop()
    found = kept(home)
    assert len(found) == len(set(found)) == EVENTS
    assert set(found) == happened(market.journal)
    assert home.rows("SELECT count(*) > 0 FROM ticks WHERE ts_ns % 1000000 <> 0") == [(True,)]
    assert all(entry["balanced"] for entry in home.status()["equations"])
