"""Binance's times in microseconds, asked of a real socket, arrive exact to the microsecond."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random

from tapeline.app.connections import connection_plans, feed_connections
from tapeline.config import Config, ProviderConfig
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS
from tapeline.records import RAW_TOPIC, TICKS_TOPIC
from tapeline.simulators import Simulator, SimulatorOptions
from tapeline.stages.ingest.delivery import Delivery
from tapeline.stages.ingest.stage import StreamRecorder
from tapeline.streams.embedded import EmbeddedStream


def test_times_asked_for_in_microseconds_are_recorded_in_microseconds(tmp_path: Path) -> None:
    journal = tmp_path / "sent.jsonl"

    async def record() -> None:
        simulator = Simulator(SimulatorOptions(name="binance", rate=2000, limit=50, journal=journal))
        url = await simulator.start()
        provider = ProviderConfig(name="binance", url=url, symbols=("BTCUSDT",), channels=("trade",), options={"time_unit": "us"})
        stream = EmbeddedStream(tmp_path / "stream")
        recorder = StreamRecorder(Delivery(stream.producer("w"), "w", None), {}, Random(1))
        (line,) = feed_connections(
            connection_plans(Config(providers=(provider,)), {}), recorder, {}, iter(range(10**18, 10**19)).__next__, Random(1)
        )
        keeping = asyncio.create_task(line.keep())
        async with asyncio.timeout(20):
            while line.state.frames < 51:  # fifty trades and the acknowledgement
                await asyncio.sleep(0.02)
        line.stop()
        await keeping
        recorder.flush()
        stream.close()
        await simulator.stop()

    asyncio.run(record())
    stream = EmbeddedStream(tmp_path / "stream")
    chunk = stream.read(RAW_TOPIC, {0: 0}, 10_000)
    assert chunk is not None
    ticks = normalize(chunk, DECODERS).batches[TICKS_TOPIC]
    stream.close()
    sent = [json.loads(line)["event"] for line in journal.read_text().splitlines()]
    assert ticks["ts_ns"].to_pylist() == [event["T"] * 1000 for event in sent]
    assert all(event["T"] > 10**15 for event in sent)
