"""The whole pipeline over real servers that are killed, paused and away for long: nothing is lost, nothing is doubled, anywhere."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
import redis
from processes import block, key, received, records, rss_mb, sent
from services.process import last_lines

from proving import PROVE, proof
from tapeline.app.connections import raw_partitions
from tapeline.app.streams import open_stream
from tapeline.config import Config, StreamConfig
from tapeline.demo.verify import compare
from tapeline.records import RAW, TICKS_TOPIC
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from processes import Home, Process, SimulatorProcess

pytestmark = proof("crashes")

CHANNELS = ("trade", "bookTicker")
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
KINDS = ("redis", "kafka")


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Any:
    """A server of the test's own, of the kind that its parameter names."""
    return request.getfixturevalue(f"own_{request.param}")()


def configured(home: Home, server: Any, simulator: SimulatorProcess, settings: str = "", **more: Any) -> None:
    stream = f'[stream]\nurl = "{server.url}"\npartitions = 2\n{settings}\n'
    home.configure(more.pop("top", "") + stream + block("binance", simulator.url, SYMBOLS, CHANNELS, **more))


def nothing_is_lost_or_doubled(home: Home, simulator: SimulatorProcess, *, once: bool = False) -> None:
    """In the raw topic, the normalized topic and the lake; `once`: the simulator sent some again on a new connection."""
    simulator.stop()
    journal = sent(simulator.journal)
    with closing(home.stream()) as stream:
        raw = received(stream)
        ticks = records(stream, TICKS_TOPIC)
    assert Counter(found for frames in raw.values() for found in frames).keys() == set(journal)
    for connection, frames in raw.items():
        repeats = [found for found, times in Counter(frames).items() if times > 1]
        assert repeats == [], f"{len(repeats)} frames of {connection} are doubled in the raw topic"
        if not once:
            assert frames == journal
    ids = Counter((row["raw_partition"], row["raw_offset"], row["raw_index"]) for row in ticks)
    assert max(ids.values()) == 1
    frames = sorted(found for frames in raw.values() for found in frames)
    assert sorted((row["channel"], row["symbol"].replace("/", ""), row["sequence"]) for row in ticks) == frames
    order: dict[tuple[int, int, str], tuple[int, int]] = {}
    for row in ticks:
        of, place = (row["at"], row["raw_partition"], row["symbol"]), (row["raw_offset"], row["raw_index"])
        assert place > order.get(of, (-1, -1)), "not in order"
        order[of] = place
    found = compare(home.lake, [simulator.journal], once=once)
    assert (found.missing, found.extra, found.rejected) == ([], [], 0)
    assert found.sent == found.kept == len(set(journal))
    assert all(entry["balanced"] for entry in home.status()["equations"])


def ended(run: Process, seconds: float = 90.0) -> None:
    assert run.ends(seconds) == 0, run.said[-5000:]


def serves(server: Any) -> bool:
    """Whether a server lives through what was done to it, once it answers."""

    def settled() -> bool:
        with suppress(OSError):
            return bool(server.answers() or not server.running)
        return not server.running

    until(settled, "the server neither answers nor ends")
    return bool(server.running)


@pytest.mark.parametrize("server", KINDS, indirect=True)
def test_stages_and_broker_are_killed_and_paused_in_the_middle(server: Any, home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    market = simulator("binance", "--rate", "600", "--fault", "rewind:all")
    configured(home, server, market)
    run = home.start("run", "--until-idle", "1")
    until(lambda: home.word("lake").get("tables", {}).get("ticks", {}).get("rows", 0) > 200, "nothing flows")
    for stage in ("ingest", "normalize", "lake"):
        home.kill(stage)
        time.sleep(0.7)
    server.kill()
    time.sleep(1.0)
    server.start()
    time.sleep(1.0)
    server.pause()
    time.sleep(15.0 if PROVE else 3.0)
    server.resume()
    assert serves(server), last_lines(server.log)
    market.halt()
    ended(run, 120.0)
    nothing_is_lost_or_doubled(home, market, once=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("server", KINDS, indirect=True)
def test_the_broker_is_away_at_the_start_and_again_for_long(server: Any, home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    rate, away_s = (5_000, 120.0) if PROVE else (2_000, 10.0)
    server.stop()
    market = simulator("binance", "--rate", str(rate))
    configured(home, server, market)
    run = home.start("run", "--until-idle", "1")
    until(lambda: home.word("ingest").get("spooled", 0) > rate / 2, "nothing is spooled")
    server.start()
    until(lambda: home.word("ingest").get("spooled") == 0, "the spool is not drained")
    until(lambda: home.word("lake").get("tables", {}).get("ticks", {}).get("rows", 0) > rate, "nothing flows")
    server.stop()
    pid = home.pid("ingest")
    assert pid is not None
    time.sleep(3.0)
    memory = [rss_mb(pid)]
    shown = home.ask("status", "--format", "json")
    assert shown.returncode == 69, shown.stderr
    assert json.loads(shown.stdout)["spool"]["spooled"] > rate
    until(lambda: "spool" in home.ask("status").stdout, "the status says that ingest spools")
    gone_until = time.monotonic() + away_s - 4.0
    while time.monotonic() < gone_until:
        memory.append(rss_mb(pid))
        time.sleep(0.5)
    server.start()
    market.halt()
    ended(run, 300.0)
    assert max(memory) - memory[0] < 40.0, memory
    nothing_is_lost_or_doubled(home, market)


def newest_in_spool(home: Home) -> tuple[str, tuple[str, str, int]]:
    """Connection and key of the newest event that the spool holds; replies and notices may have come behind it."""
    with closing(sqlite3.connect(f"file:{home.root}/spool/ingest.sqlite?mode=ro", uri=True)) as db:
        for (data,) in db.execute("SELECT data FROM batches ORDER BY number DESC"):
            for row in reversed(pa.ipc.read_record_batch(pa.py_buffer(data), RAW).to_pylist()):
                if row["kind"] == "frame" and "data" in (frame := json.loads(row["payload"])):
                    return row["connection"], key(frame["data"])
    raise AssertionError("the spool holds no event")


@pytest.mark.parametrize("server", KINDS if PROVE else KINDS[:1], indirect=True)
def test_ingest_is_killed_while_the_broker_is_away_and_while_the_spool_drains(
    server: Any, home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("binance", "--rate", "1500", "--fault", "rewind:all")
    configured(home, server, market)
    run = home.start("run", "--until-idle", "1")
    until(lambda: home.word("lake").get("tables", {}).get("ticks", {}).get("rows", 0) > 1_000, "nothing flows")
    server.kill()
    until(lambda: home.word("ingest").get("spooled", 0) > 2_000, "nothing is spooled")
    kept = [newest_in_spool(home)]
    first = home.pid("ingest")
    home.kill("ingest")
    until(lambda: home.pid("ingest") not in (None, first) and home.word("ingest").get("spooled", 0) > 3_000, "nothing is spooled after it")
    kept.append(newest_in_spool(home))
    server.start()
    for _ in range(3 if PROVE else 1):
        time.sleep(0.3)
        home.kill("ingest")
    market.halt()
    ended(run, 120.0)
    with closing(home.stream()) as stream:
        raw = received(stream)
    for connection, newest in kept:
        assert newest in raw[connection], "what was in the spool has not arrived"
    events = list(dict.fromkeys(sent(market.journal)))  # on each connection the simulator began from the first
    for frames in raw.values():
        assert frames == events[: len(frames)], "a hole, or out of order"
    nothing_is_lost_or_doubled(home, market, once=True)


@pytest.mark.parametrize("server", KINDS if PROVE else KINDS[:1], indirect=True)
def test_what_a_spool_that_is_too_small_drops_is_counted_and_put_on_record(
    server: Any, home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("binance", "--rate", "2000")
    configured(home, server, market, "spool_mb = 1")
    run = home.start("run", "--until-idle", "1")
    until(lambda: home.word("lake").get("tables", {}).get("ticks", {}).get("rows", 0) > 1_000, "nothing flows")
    server.kill()
    # On a busy machine the first batch alone may be larger than the spool; smaller ones fill it then.
    until(lambda: home.word("ingest").get("dropped", 0) > 1_000 and home.word("ingest")["spooled"] > 500, "the spool is not full")
    assert "is full" in run.said
    assert "could not be kept" in run.said
    server.start()
    market.halt()
    ended(run)
    market.stop()
    notices = home.rows("SELECT connection, detail FROM notices WHERE kind = 'dropped'")
    dropped = [json.loads(detail) for _, detail in notices]
    assert {connection for connection, _ in notices} == {
        connection for (connection,) in home.rows("SELECT connection FROM notices WHERE kind = 'opened'")
    }
    assert all(one["from_ns"] < one["to_ns"] and one["reason"] == "the spool was full" for one in dropped)
    ((rows,),) = home.rows("SELECT count(*) FROM ticks")
    assert rows + sum(one["records"] for one in dropped) == len(sent(market.journal))
    assert home.word("ingest")["dropped"] == sum(one["records"] for one in dropped)
    found = compare(home.lake, [market.journal])
    assert found.extra == []
    assert len(found.missing) == sum(one["records"] for one in dropped)


def test_redis_that_is_full_because_a_store_is_stopped_drops_nothing(
    own_redis: Callable[..., Any], home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    server = own_redis()
    limit = 30_000
    assert server.ask("SET", "ballast", "x" * 13_000_000) == "+OK"
    market = simulator("binance", "--rate", "3000", "--limit", str(limit))
    configured(home, server, market, "memory_mb = 16")
    ingest, normalize = home.start("ingest"), home.start("normalize")
    until(lambda: home.word("ingest").get("spooled", 0) > 1_000, "ingest does not spool")
    assert ingest.running
    assert normalize.running
    until(lambda: "spool" in home.ask("status").stdout, "the status says that ingest spools")
    store = home.start("store")
    until(lambda: market.journal.read_text().count("\n") >= limit, "the simulator has not sent everything")
    until(lambda: home.word("ingest")["spooled"] == home.word("ingest")["unsettled"] == 0, "the spool is not drained")
    until(lambda: home.rows("SELECT count(*) FROM ticks") == [(limit,)], "not everything is in the lake")
    assert "could not be kept" not in ingest.said
    for process in (ingest, normalize, store):
        process.send(signal.SIGTERM)
        assert process.ends() == 0, process.said
    market.stop()
    found = compare(home.lake, [market.journal])
    assert (found.missing, found.extra) == ([], [])


def test_a_broker_that_refuses_for_a_while_stops_nothing(
    own_redis: Callable[..., Any], home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    server = own_redis()
    market = simulator("binance", "--rate", "600")
    configured(home, server, market)
    run = home.start("run", "--until-idle", "1")
    until(lambda: home.word("lake").get("tables", {}).get("ticks", {}).get("rows", 0) > 200, "nothing flows")
    assert server.ask("CONFIG", "SET", "requirepass", "other") == "+OK"
    with closing(redis.Redis(port=server.port, password="other")) as admin:
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal")
        until(lambda: home.word("ingest").get("spooled", 0) > 1_500, "ingest does not spool")
        assert run.said.count("has refused") > 3
        assert run.running
        admin.config_set("requirepass", "")
    until(lambda: home.word("ingest").get("spooled") == 0, "the spool is not drained")
    market.halt()
    ended(run)
    assert "Tapeline restarts it" not in run.said
    nothing_is_lost_or_doubled(home, market)


def test_while_the_stream_is_away_nothing_is_meant_for_a_partition_that_it_may_not_have(
    own_redis: Callable[..., Any], tmp_path: Path
) -> None:
    server = own_redis()
    with closing(open_stream(Config(stream=StreamConfig(url=server.url, partitions=2)), {})) as stream:
        assert stream.partitions == 2
    server.stop()
    config = Config(data_dir=str(tmp_path), stream=StreamConfig(url=server.url))  # which leaves their number to the stream
    with closing(open_stream(config, {})) as stream:
        assert raw_partitions(config, stream) == 1
        server.start()
        assert raw_partitions(config, stream) == 2
        server.stop()
    with closing(open_stream(config, {})) as stream:
        assert raw_partitions(config, stream) == 2
    other = Config(data_dir=str(tmp_path), stream=StreamConfig(url="redis://127.0.0.1:1"))
    with closing(open_stream(other, {})) as stream:
        assert raw_partitions(other, stream) == 1
