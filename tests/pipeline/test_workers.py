"""Several processes of one stage: they share what there is to do, take over from the dead, and never do a thing twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from processes import Home, block, received, records, sent

from brokers import stream_block
from proving import PROVE, proof
from tapeline.demo.verify import compare
from tapeline.errors import Unavailable
from tapeline.records import TICKS_TOPIC, Topic
from tapeline.stages.normalize import Normalize
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry.status import StatusFile
from waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import Process, SimulatorProcess, Spawner

    from tapeline.streams import Member

pytestmark = proof("streams")

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT")
CHANNELS = ("trade", "bookTicker")


def stream_settings(request: pytest.FixtureRequest, kind: str, partitions: int) -> str:
    """The [stream] of a fresh stream of a kind."""
    return stream_block(request.getfixturevalue("shared")(kind, partitions=partitions))


def four_feeds(simulators: list[SimulatorProcess], **more: Any) -> str:
    """A connection, and so a partition, for each simulator, each with a symbol of its own."""
    blocks = (block("binance", simulator.url, [symbol], CHANNELS, **more) for simulator, symbol in zip(simulators, SYMBOLS, strict=False))
    return "".join(blocks)


def exactly_once_and_in_order(home: Home, simulators: list[SimulatorProcess]) -> None:
    """In the normalized topic and in the lake."""
    for simulator in simulators:
        simulator.stop()
    expected = {symbol: sent(simulator.journal) for simulator, symbol in zip(simulators, SYMBOLS, strict=False)}
    with closing(home.stream()) as stream:
        raw = received(stream)
        ticks = records(stream, TICKS_TOPIC)
    assert sorted(raw.values()) == sorted(expected.values())
    found: dict[str, list[tuple[str, str, int]]] = {}
    for row in ticks:
        found.setdefault(row["symbol"].replace("/", ""), []).append((row["channel"], row["symbol"].replace("/", ""), row["sequence"]))
    for symbol, events in expected.items():
        repeats = [event for event, times in Counter(found[symbol]).items() if times > 1]
        assert repeats == [], f"{len(repeats)} ticks of {symbol} are doubled"
        assert found[symbol] == events, f"{symbol} is not in order, or not complete"
    compared = compare(home.lake, [simulator.journal for simulator in simulators])
    assert (compared.missing, compared.extra, compared.rejected) == ([], [], 0)
    assert all(entry["balanced"] for entry in home.status()["equations"])


def shares(home: Home, *workers: str) -> dict[str, list[int]]:
    """Which partitions each worker says are its own."""
    return {worker: home.word(worker).get("partitions", []) for worker in workers}


@pytest.mark.parametrize("kind", ["embedded", "redis", "kafka"] if PROVE else ["redis", "kafka"])
def test_three_workers_share_the_partitions_and_take_over_from_one_that_is_killed_and_one_that_hangs(
    kind: str, request: pytest.FixtureRequest, home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    simulators = [simulator("binance", "--rate", "150", "--symbols", symbol) for symbol in SYMBOLS]
    home.configure(stream_settings(request, kind, 4) + four_feeds(simulators))
    names = ("normalize", "normalize-2", "normalize-3")
    ingest, store = home.start("ingest"), home.start("store")
    workers: dict[str, Process] = {}
    for name in names:
        workers[name] = home.start("normalize")
        until(lambda name=name: home.word(name).get("pid") == workers[name].popen.pid, f"{name} does not run")  # type: ignore[misc]

    def shared(*those: str) -> bool:
        found = shares(home, *those)
        return sorted(partition for mine in found.values() for partition in mine) == [0, 1, 2, 3] and all(found.values())

    until(lambda: shared(*names), "not shared")
    workers["normalize"].send(signal.SIGKILL)
    until(lambda: shared("normalize-2", "normalize-3"), "not taken over from the dead")
    workers["normalize-2"].send(signal.SIGSTOP)
    time.sleep(10.0 if PROVE else 6.0)
    workers["normalize-2"].send(signal.SIGCONT)
    until(lambda: shared("normalize-2", "normalize-3"), "not shared after the pause")
    for market in simulators:
        market.halt()
    ingest.send(signal.SIGTERM)
    assert ingest.ends() == 0, ingest.said  # what it has received is in the stream
    with closing(home.stream()) as stream:
        count = sum(len(frames) for frames in received(stream).values())
    until(lambda: home.rows("SELECT count(*) FROM ticks") == [(count,)], "everything is in the lake")
    for process in (workers["normalize-2"], workers["normalize-3"], store):
        assert process.running, process.said
        process.send(signal.SIGTERM)
        assert process.ends() == 0, process.said
    exactly_once_and_in_order(home, simulators)


class AwayAtFirst(EmbeddedStream):
    """A stream that cannot be reached when a worker starts."""

    asked = 0

    def join(self, group: str, topic: Topic, name: str = "") -> Member:
        self.asked += 1
        if self.asked < 4:
            raise Unavailable("The stream is away.")
        return super().join(group, topic, name)


def test_a_worker_that_starts_while_the_stream_is_away_waits_for_it(tmp_path: Path) -> None:
    with closing(AwayAtFirst(tmp_path / "stream")) as stream:
        worker = Normalize(stream, {}, StatusFile(tmp_path, "normalize"))
        for _ in range(3):
            with pytest.raises(Unavailable):
                worker.step()
        assert worker.step() is False
        worker.finish()


def test_a_worker_that_never_reached_the_stream_ends_quietly(tmp_path: Path) -> None:
    with closing(AwayAtFirst(tmp_path / "stream")) as stream:
        Normalize(stream, {}, StatusFile(tmp_path, "normalize")).finish()


def test_a_run_starts_as_many_workers_and_ingest_processes_as_the_config_says(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    simulators = [simulator("binance", "--rate", "300", "--symbols", symbol, "--limit", "600") for symbol in SYMBOLS[:3]]
    feeds = block("binance", simulators[0].url, SYMBOLS[:1], CHANNELS)
    feeds += block("binance", simulators[1].url, SYMBOLS[1:2], CHANNELS, process="one")
    feeds += block("binance", simulators[2].url, SYMBOLS[2:3], CHANNELS, process="two")
    home.configure("normalize_workers = 2\n[stream]\npartitions = 3\n" + feeds)
    run = home.start("run", "--until-idle", "1")
    stages = ("ingest", "ingest-one", "ingest-two", "normalize", "normalize-2", "lake")
    pids = [until(lambda stage=stage: home.pid(stage), f"{stage} does not run") for stage in stages]  # type: ignore[misc]
    assert len(set(pids)) == len(stages)
    assert run.ends() == 0, run.said
    with closing(home.stream()) as stream:
        assert {row["at"] for row in records(stream, TICKS_TOPIC)} <= {0, 1, 2}
    exactly_once_and_in_order(home, simulators)


KEYS = {
    "polygon": {"TAPELINE_POLYGON_KEY": "a-secret-key"},
    "alpaca": {"TAPELINE_ALPACA_KEY": "a-secret-key", "TAPELINE_ALPACA_SECRET": "a-secret-secret"},
}
FEEDS = {"polygon": (["AAPL"], ["T"], "stocks"), "alpaca": (["BTC/USD"], ["trades"], "crypto")}


@pytest.mark.parametrize(("kind", "provider"), [("redis", "polygon"), ("redis", "alpaca"), ("kafka", "polygon")])
def test_a_second_process_for_the_one_connection_of_an_account_is_refused(
    kind: str, provider: str, request: pytest.FixtureRequest, tmp_path: Path, spawn: Spawner, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator(provider, "--rate", "50")
    settings = stream_settings(request, kind, 1)
    symbols, channels, feed = FEEDS[provider]
    homes = [Home(tmp_path / name, spawn, KEYS[provider]) for name in ("first", "second")]
    for home in homes:
        home.configure(settings + block(provider, market.url, symbols, channels, feed=feed))
    first = homes[0].start("ingest")
    until(lambda: homes[0].word("ingest").get("records", 0) > 20, "nothing flows")
    second = homes[1].start("ingest")
    assert second.ends() == 75, second.said
    assert f"{provider} {feed}" in second.said
    assert "account" in second.said
    assert "Traceback" not in second.said
    homes[1].says_nothing_of(*KEYS[provider].values())
    assert first.running
    flowed = homes[0].word("ingest")["records"]
    until(lambda: homes[0].word("ingest").get("records", 0) > flowed, "the first was disturbed")

    first.send(signal.SIGKILL)
    first.ends()
    began = time.monotonic()
    while True:
        third = homes[1].start("ingest")
        until(lambda third=third: homes[1].word("ingest").get("pid") == third.popen.pid or not third.running, "no word of it")  # type: ignore[misc]
        if third.running:
            break
        assert third.ends() == 75, third.said
        assert time.monotonic() - began < PATIENCE_S, "the lease of the dead does not end"
        time.sleep(0.3)
    until(lambda: homes[1].word("ingest").get("records", 0) > 20, "nothing flows")


def test_a_process_that_hung_so_long_that_another_took_its_account_over_gives_up(
    request: pytest.FixtureRequest, tmp_path: Path, spawn: Spawner, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("polygon", "--rate", "50")
    settings = stream_settings(request, "redis", 1)
    homes = [Home(tmp_path / name, spawn, KEYS["polygon"]) for name in ("first", "second")]
    for home in homes:
        home.configure(settings + block("polygon", market.url, ["AAPL"], ["T"], feed="stocks"))
    first = homes[0].start("ingest")
    until(lambda: homes[0].word("ingest").get("records", 0) > 20, "nothing flows")
    os.kill(first.popen.pid, signal.SIGSTOP)
    time.sleep(4.0)
    second = homes[1].start("ingest")
    until(lambda: homes[1].word("ingest").get("records", 0) > 5, "the second does not take over")
    os.kill(first.popen.pid, signal.SIGCONT)
    assert first.ends() == 75, first.said
    assert second.running
    assert json.loads((homes[1].root / "status" / "ingest.json").read_text())["records"] > 5
