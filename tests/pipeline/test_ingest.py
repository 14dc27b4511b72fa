"""The ingest stage in this process: what it does when a line dies, hangs, or when the stream takes nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import time
from contextlib import ExitStack, closing
from random import Random
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from tapeline.app.connections import connection_checks, connection_plans, feed_connections, plan_partitions
from tapeline.config import Config, ProviderConfig
from tapeline.errors import DiskProblem, NewerData, Refused
from tapeline.local.clock import ClockWatch
from tapeline.net import websocket as net
from tapeline.records import NS_PER_S, RAW_TOPIC
from tapeline.simulators import Simulator, SimulatorOptions
from tapeline.stages.ingest import stage as ingest
from tapeline.stages.ingest.delivery import Delivery
from tapeline.stages.ingest.spool import Spool
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry.status import StatusFile, read_status
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Stream(EmbeddedStream):
    """A stream whose disk can be full, or that answers something else."""

    full = False
    answer: Exception | None = None

    def append_as(self, writer: str, number: int, partition: int, batch: pa.RecordBatch) -> None:
        if self.full:
            raise DiskProblem("The disk is full.")
        if self.answer is not None:
            raise self.answer
        super().append_as(writer, number, partition, batch)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    found = Stream(tmp_path / "stream")
    yield found
    found.close()


async def _ingest(
    stream: Stream,
    root: Path,
    stop: asyncio.Event,
    *urls: str,
    spool: Spool | None = None,
    watch: ClockWatch | None = None,
    rest_url: str = "",
) -> ingest.StreamRecorder:
    """Record what these addresses send, until `stop`. `rest_url`: where the exchange's list is asked for; it is not without one."""
    providers = [ProviderConfig(name="binance", url=url, symbols=("BTCUSDT",), channels=("trade",), rest_url=rest_url) for url in urls]
    random = Random(1)
    planned = connection_plans(Config(providers=tuple(providers)), {})
    delivery = Delivery(stream.producer("w"), "w", spool)
    delivery.open()
    recorder = ingest.StreamRecorder(delivery, plan_partitions(planned, stream.partitions), random)
    lines = feed_connections(planned, recorder, {}, time.time_ns, random)
    checks = connection_checks(planned) if rest_url else {}
    await ingest.ingest(ingest.Share(lines, checks), recorder, StatusFile(root, "ingest"), stop, watch)
    return recorder


async def _until(stream: Stream, records: int) -> None:
    """Every partition holds so many."""
    async with asyncio.timeout(20):
        while min(stream.ends(RAW_TOPIC).values()) < records:
            await asyncio.sleep(0.02)


def test_a_line_that_dies_ends_the_stage_loudly_though_others_live(stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = net.FeedConnection.keep

    async def keep_or_die(line: net.FeedConnection) -> None:
        if ":2/" in line.plan.url:
            raise ZeroDivisionError("nobody thought of this")
        await keep(line)

    monkeypatch.setattr(net.FeedConnection, "keep", keep_or_die)
    with pytest.raises(ZeroDivisionError, match="nobody thought of this"):
        asyncio.run(_ingest(stream, tmp_path, asyncio.Event(), "ws://127.0.0.1:1", "ws://127.0.0.1:2"))


def test_a_stop_does_not_wait_for_a_provider_that_never_answers(stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "_CLOSE_WITHIN_S", 0.3)
    with ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(3):  # fill its queue: a further connection hangs
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(silent.getsockname())

        async def stopped() -> None:
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(0.3, stop.set)
            async with asyncio.timeout(10):
                await _ingest(stream, tmp_path, stop, f"ws://127.0.0.1:{silent.getsockname()[1]}")

        asyncio.run(stopped())


def test_a_stop_does_not_wait_for_the_exchange_s_list_of_symbols(
    stream: Stream, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_LIST_WITHIN_S", 600.0)
    with socket.socket() as silent, socket.socket() as market:
        for one in (silent, market):
            one.bind(("127.0.0.1", 0))
            one.listen()
            one.setblocking(False)
        url, rest_url = (f"{scheme}://127.0.0.1:{one.getsockname()[1]}" for scheme, one in (("ws", market), ("http", silent)))

        async def stopped() -> None:
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(0.3, stop.set)
            async with asyncio.timeout(60):
                await _ingest(stream, tmp_path, stop, url, rest_url=rest_url)

        asyncio.run(stopped())
        gc.collect()
        assert not caplog.records, "what was not waited for is no error"
        silent.accept()[0].close()  # it was asked
        with pytest.raises(BlockingIOError):
            market.accept()  # and the market was not dialed any more


def test_a_stream_that_takes_nothing_for_a_while_misses_nothing(stream: Stream, tmp_path: Path) -> None:
    journal = tmp_path / "sent.jsonl"

    async def scenario() -> None:
        market = Simulator(SimulatorOptions(name="binance", rate=2000.0, limit=2000, journal=journal))
        url = await market.start()
        stop = asyncio.Event()
        running = asyncio.create_task(_ingest(stream, tmp_path, stop, url))
        await _until(stream, 100)
        stream.full = True
        before = stream.ends(RAW_TOPIC)[0]
        await asyncio.sleep(0.5)
        assert stream.ends(RAW_TOPIC)[0] == before
        status = json.loads((tmp_path / "status" / "ingest.json").read_text())
        assert status["problem"] in ("", "The disk is full.")
        stream.full = False
        await _until(stream, 2000 + 3)  # with what opened, the acknowledgement and what was subscribed
        stop.set()
        await running
        await market.stop()

    asyncio.run(scenario())
    chunk = stream.read(RAW_TOPIC, {0: 0}, 100_000)
    assert chunk is not None
    frames = [json.loads(payload)["data"] for payload in chunk.batch["payload"].to_pylist() if payload.startswith(b'{"stream"')]
    sent = [json.loads(line)["event"] for line in journal.read_text().splitlines()]
    assert frames == sent
    kinds = [kind for kind in chunk.batch["kind"].to_pylist() if kind != "frame"]
    assert kinds == ["opened", "subscribed", "closed"]


def test_what_is_lost_when_the_stream_takes_nothing_to_the_end_is_counted(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_LAST_FLUSH_S", 0.2)

    async def scenario() -> None:
        market = Simulator(SimulatorOptions(name="binance", rate=2000.0))
        url = await market.start()
        stop = asyncio.Event()
        running = asyncio.create_task(_ingest(stream, tmp_path, stop, url))
        await _until(stream, 100)
        stream.full = True
        await asyncio.sleep(0.1)
        stop.set()
        try:
            await running
        finally:
            await market.stop()

    with pytest.raises(DiskProblem, match=r"The disk is full\. [1-9]\d* records that were received .* are lost\."):
        asyncio.run(scenario())


@pytest.mark.parametrize("spooled", [False, True])
def test_an_error_that_no_waiting_ends_stops_the_stage_at_once_and_loudly(
    stream: Stream, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, spooled: bool
) -> None:
    spool = Spool(tmp_path / "spool.sqlite", 1 << 30) if spooled else None

    async def scenario() -> None:
        market = Simulator(SimulatorOptions(name="binance", rate=2000.0, journal=tmp_path / "sent.jsonl"))
        running = asyncio.create_task(_ingest(stream, tmp_path, asyncio.Event(), await market.start(), spool=spool))
        await _until(stream, 100)
        stream.answer = NewerData("A newer Tapeline has written here.")
        try:
            async with asyncio.timeout(20):
                await running
        finally:
            await market.stop()

    with pytest.raises(NewerData, match=r"A newer Tapeline has written here" + ("" if spooled else r".* are lost\.")):
        asyncio.run(scenario())
    assert not [record for record in caplog.records if record.name == "asyncio"], "nothing was left to the loop's own handler"
    if spool is not None:
        kept = sum(one.batch.num_rows for one in spool.after(0))
        assert kept > 0
        chunk = stream.read(RAW_TOPIC, {0: 0}, 100_000)
        assert chunk is not None
        payloads = chunk.batch["payload"].to_pylist() + [p for one in spool.after(0) for p in one.batch["payload"].to_pylist()]
        frames = [json.loads(payload)["data"] for payload in payloads if payload.startswith(b'{"stream"')]
        sent = [json.loads(line)["event"] for line in (tmp_path / "sent.jsonl").read_text().splitlines()]
        assert frames == sent[: len(frames)]
        spool.close()


def test_a_stream_that_refuses_pauses_the_sockets_at_the_bound_and_everything_follows_once_it_does_not(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_HOLD_BYTES", 200_000)
    journal = tmp_path / "sent.jsonl"

    async def scenario() -> None:
        market = Simulator(SimulatorOptions(name="binance", rate=4000.0, limit=4000, journal=journal))
        stop = asyncio.Event()
        running = asyncio.create_task(_ingest(stream, tmp_path, stop, await market.start()))
        await _until(stream, 100)
        stream.answer = Refused("The password is another one.")
        async with asyncio.timeout(20):
            while read_status(tmp_path).get("ingest", {}).get("problem") != "The password is another one.":
                await asyncio.sleep(0.02)
        stream.answer = None
        await _until(stream, 4000 + 3)
        stop.set()
        await running
        await market.stop()

    asyncio.run(scenario())
    chunk = stream.read(RAW_TOPIC, {0: 0}, 100_000)
    assert chunk is not None
    frames = [json.loads(payload)["data"] for payload in chunk.batch["payload"].to_pylist() if payload.startswith(b'{"stream"')]
    assert frames == [json.loads(line)["event"] for line in journal.read_text().splitlines()]


def test_a_clock_that_leaps_is_recorded_and_shown(stream: Stream, tmp_path: Path) -> None:
    ahead_ns = 0

    async def scenario() -> None:
        nonlocal ahead_ns
        market = Simulator(SimulatorOptions(name="binance", rate=500.0))
        url = await market.start()
        stop = asyncio.Event()
        watch = ClockWatch(lambda: time.time_ns() + ahead_ns)
        running = asyncio.create_task(_ingest(stream, tmp_path, stop, url, watch=watch))
        await _until(stream, 50)
        ahead_ns = 172_800 * NS_PER_S
        async with asyncio.timeout(20):
            while not (leaps := read_status(tmp_path).get("ingest", {}).get("leaps")):
                await asyncio.sleep(0.02)
        assert [round(leap["by_ns"] / NS_PER_S) for leap in leaps] == [172_800]
        stop.set()
        await running
        await market.stop()

    asyncio.run(scenario())
    chunk = stream.read(RAW_TOPIC, {0: 0}, 100_000)
    assert chunk is not None
    (told,) = [json.loads(row["payload"]) for row in chunk.batch.to_pylist() if row["kind"] == "leapt"]
    assert 172_799 < (told["to_ns"] - told["from_ns"]) / NS_PER_S < 172_900


def test_each_connection_s_records_go_to_one_partition_in_order(tmp_path: Path) -> None:
    async def scenario(stream: Stream) -> None:
        market = Simulator(SimulatorOptions(name="binance", rate=1000.0))
        url = await market.start()
        stop = asyncio.Event()
        running = asyncio.create_task(_ingest(stream, tmp_path, stop, url, url))
        await _until(stream, 100)
        stop.set()
        await running
        await market.stop()

    with closing(Stream(tmp_path / "stream", 2)) as stream:
        asyncio.run(scenario(stream))
        chunks = [stream.read_some(RAW_TOPIC, {partition: 0}, 100_000) for partition in (0, 1)]
    connections = []
    for chunk in chunks:
        assert chunk is not None
        connections += set(chunk.batch["connection"].to_pylist())
        numbers = [json.loads(payload)["data"]["t"] for payload in chunk.batch["payload"].to_pylist() if payload.startswith(b'{"stream"')]
        assert len(numbers) > 90
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert [kind for kind in chunk.batch["kind"].to_pylist() if kind != "frame"] == ["opened", "subscribed", "closed"]
    assert len(connections) == len(set(connections)) == 2


def test_many_processes_may_open_a_new_stream_at_once(tmp_path: Path) -> None:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    workers, rounds = 3, 8
    barrier = context.Barrier(workers)
    found: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=_open_all, args=(tmp_path, rounds, barrier, found), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    assert [found.get(timeout=60) for _ in range(workers)] == ["well"] * workers
    until(lambda: not any(process.is_alive() for process in processes), "a process does not end")


def _open_all(folder: Path, rounds: int, barrier: object, found: object) -> None:
    try:
        for number in range(rounds):
            barrier.wait(30)  # type: ignore[attr-defined]
            stream = EmbeddedStream(folder / str(number))
            stream.ends(RAW_TOPIC)
            stream.close()
        found.put("well")  # type: ignore[attr-defined]
    except Exception as error:
        found.put(repr(error))  # type: ignore[attr-defined]
        raise
