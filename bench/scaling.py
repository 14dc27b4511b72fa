"""One and two normalize workers that share the partitions of a full raw topic: how fast they empty it."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from services.kafka import KafkaBroker
from services.process import Server
from services.redis import RedisServer

from bench.machine import KEYS, SYMBOLS, codecs, simulator, table
from tapeline.app.streams import open_stream
from tapeline.config import Config, load
from tapeline.records import RAW_TOPIC
from tapeline.stages.normalize import NORMALIZE
from tapeline.telemetry.status import read_status

_EVENTS = 2_000_000
_ROUNDS = 2
_SERVERS: dict[str, type[Server] | None] = {"embedded": None, "redis": RedisServer, "kafka": KafkaBroker}


def run() -> str:
    """The section of the report."""
    rows: list[Sequence[object]] = []
    for name in _SERVERS:
        for codec in ("protobuf", "arrow"):
            if name == "embedded" and codec == "protobuf":
                continue  # it has one codec
            rates = {workers: [_once(name, codec, workers) for _ in range(_ROUNDS)] for workers in (1, 2)}
            one, two = (statistics.median(rates[workers]) for workers in (1, 2))
            rows.append([name, codec, one, two, f"{two / one:.2f}"])
    return (
        f"{_EVENTS:,} frames of four connections wait in four raw partitions before the workers start. Only the broker runs on the same two"
        " cores. The time begins when all workers have partitions, and ends with the last commit. The figures are medians of"
        f" {_ROUNDS} runs.\n\n" + table(["stream", "codec", "one worker, ticks/s", "two workers, ticks/s", "ratio"], rows)
    )


def _once(name: str, codec: str, workers: int) -> float:
    kind = _SERVERS[name]
    with tempfile.TemporaryDirectory() as folder:
        if kind is None:
            return _drained(Path(folder), "embedded:", codec, workers)
        with kind(Path(folder) / "server") as server:
            return _drained(Path(folder), server.url, codec, workers)


def _drained(folder: Path, stream: str, codec: str, workers: int) -> float:
    """Ticks a second."""
    with simulator("binance", "--rate", "500000", "--limit", str(_EVENTS)) as (url, _):
        path = _config(folder, url, stream, codec)
        settings = load(path, os.environ)
        _fill(path, settings)
    running = [_start(path, "normalize") for _ in range(workers)]
    watching = open_stream(settings)
    try:
        begun_at, begun = 0.0, 0
        while True:
            left = sum(watching.lag(RAW_TOPIC, watching.positions(NORMALIZE, RAW_TOPIC)).values())
            done = sum(value for total, value in watching.totals(NORMALIZE).items() if total.endswith("/ticks"))
            if done and not begun_at and _at_work(settings) == workers:
                begun_at, begun = time.monotonic(), done
            if done and not left:
                assert begun_at, "the run ended before all workers had partitions: send more events"
                return (done - begun) / (time.monotonic() - begun_at)
            time.sleep(0.1)
    finally:
        watching.close()
        for process in running:
            _end(process)


def _at_work(settings: Config) -> int:
    """Workers that have partitions of their own."""
    return sum(bool(status.get("partitions")) for name, status in read_status(settings.root).items() if name.startswith("normalize"))


def _fill(path: Path, settings: Config) -> None:
    """Ingest alone, until the simulator has nothing more to send."""
    ingest = _start(path, "ingest")
    watching = open_stream(settings)
    try:
        before = -1
        while (now := sum(watching.lag(RAW_TOPIC, {}).values())) != before or now == 0:
            before = now
            time.sleep(2.0)
    finally:
        watching.close()
        _end(ingest)


def _start(path: Path, stage: str) -> subprocess.Popen[bytes]:
    with (path.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tapeline", stage, "--config", str(path)], stdout=log, stderr=log, env={**os.environ, **KEYS}
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait()


def _config(folder: Path, url: str, stream: str, codec: str) -> Path:
    path = folder / "tapeline.toml"
    providers = "".join(
        f'[[providers]]\nname = "binance"\nurl = "{url}"\nsymbols = ["{symbol}"]\nchannels = ["trade", "bookTicker"]\n'
        for symbol in SYMBOLS
    )
    path.write_text(
        f'data_dir = "{folder / "data"}"\nstores = []\n[stream]\nurl = "{stream}"\npartitions = 4\n{codecs(codec)}\n{providers}'
    )
    return path
