"""Normalizing on one core: raw records to Arrow ticks, beside cryptofeed 2.4.1 on the same Binance frames, in turns."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from bench.machine import CAPTURES, REPOSITORY, pipeline, recorded_frames, simulator, table
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS, PYTHON_DECODERS
from tapeline.records import RAW, RAW_TOPIC, TICKS_TOPIC, Chunk
from tapeline.streams.embedded import EmbeddedStream

_ROUNDS = 7
_CHUNK = 24_576
_PEER = REPOSITORY / "bench" / "peers"


def run() -> str:
    """The section of the report. One core for all that is measured."""
    with one_core():
        return "\n\n".join([_against_cryptofeed(), _each_provider(), _small_batches()])


@contextmanager
def one_core() -> Iterator[None]:
    """This process, and each that it starts meanwhile, has one core."""
    os.sched_setaffinity(0, {0})
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _against_cryptofeed() -> str:
    if not CAPTURES:
        return "The recorded frames are missing, so cryptofeed was not measured."
    frames = recorded_frames()
    raw = _batch("binance", "spot", [frame for _, frame in frames], [received for received, _ in frames])
    peer = _peer_python()
    ours: list[tuple[float, float]] = []  # median and best of each round
    theirs: list[tuple[float, float]] = []
    for _ in range(_ROUNDS):
        passes = [seconds(raw) for _ in range(5)]
        ours.append((statistics.median(passes), min(passes)))
        if peer is not None:
            command = [str(peer), str(_PEER / "cryptofeed_normalize.py"), "--repeats", "5", *map(str, CAPTURES)]
            result = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            theirs.append((result["seconds_median"], result["seconds_best"]))
    n = len(frames)
    rows = [_row("Tapeline", n, ours)]
    if theirs:
        times = statistics.median(b[0] / a[0] for a, b in zip(ours, theirs, strict=True))
        best = min(b[1] for b in theirs) / min(a[1] for a in ours)
        rows[0][3] = f"{times:.1f} (best pass against best: {best:.1f})"
        rows.append([*_row("cryptofeed 2.4.1", n, theirs)[:3], "1"])
    return (
        f"The input is {n:,} recorded Binance frames with trades and best quotes. There are {_ROUNDS} rounds. In each, Tapeline makes 5"
        " passes and then cryptofeed makes 5. cryptofeed knows only aggregated trades. So its trades are relabeled as aggregated trades."
        " The time does not include the relabeling.\n\n"
        + table(["library", "ticks/s, median", "ticks/s, best", "times as fast as cryptofeed"], rows)
    )


def _row(name: str, n: int, rounds: list[tuple[float, float]]) -> list[object]:
    return [name, n / statistics.median(median for median, _ in rounds), n / min(best for _, best in rounds), ""]


def _batch(provider: str, feed: str, frames: list[bytes], received: list[int]) -> pa.RecordBatch:
    n = len(frames)
    texts = [pa.array([text] * n) for text in (provider, feed, "c1", "frame")]
    return pa.record_batch([*texts, pa.array(received), pa.array(frames, pa.binary())], schema=RAW)


def seconds(raw: pa.RecordBatch, clock: Callable[[], float] = time.perf_counter) -> float:
    """How long normalizing takes, in chunks as the stage reads them."""
    began = clock()
    for at in range(0, raw.num_rows, _CHUNK):
        normalize(Chunk.dense(RAW_TOPIC, 0, at, raw.slice(at, _CHUNK)), DECODERS)
    return clock() - began


def _each_provider() -> str:
    """The frames that the local simulators send, as ingest recorded them."""
    rows = []
    for name, feed, symbols, channels, extra, peer in (
        ("binance", "spot", ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker"], "", ""),
        ("binance", "spot", ["BTCUSDT", "ETHUSDT"], ["aggTrade", "kline_1s"], "", ""),
        ("polygon", "stocks", ["AAPL", "MSFT"], ["T", "Q", "A"], "", "stocks"),
        ("polygon", "crypto", ["BTC-USD", "ETH-USD"], ["XT", "XQ"], "", "crypto"),
        ("alpaca", "sip", ["AAPL", "SPY"], ["trades", "quotes"], "", ""),
        ("alpaca", "crypto", ["BTC/USD", "ETH/USD"], ["trades", "quotes"], 'options = { codec = "msgpack" }\n', "alpaca"),
    ):
        raw, ticks = _recorded_from_simulator(name, feed, symbols, channels, extra)
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(5):
            ours.append(seconds(raw))
            theirs += _client_seconds(peer, raw) if peer else []
        taken = statistics.median(ours)
        times = f"{statistics.median(theirs) / taken:.1f}" if theirs else ""
        codec = "msgpack" if extra else "JSON"
        rows.append([f"{name} {feed} {', '.join(channels)} ({codec})", raw.num_rows, ticks / raw.num_rows, ticks / taken, times])
    lines = [[a, b, f"{c:.1f}", d, e] for a, b, c, d, e in rows]
    head = ["feed and channels", "frames", "events per frame", "events/s, median of 5", "times as fast as the client"]
    return (
        "Frames from the local simulators. The last column compares with the provider's own client (massive 2 for Polygon.io, alpaca-py for"
        " Alpaca, which has MessagePack only), in turns: from a frame to the client's typed objects.\n\n" + table(head, lines)
    )


def _client_seconds(peer: str, raw: pa.RecordBatch) -> list[float]:
    """How long a provider's own client takes for the same frames."""
    client = "alpaca" if peer == "alpaca" else "massive"
    make = [sys.executable, str(REPOSITORY / "tests" / "environments.py"), f"tests/clients/{client}"]
    python = subprocess.run(make, cwd=REPOSITORY, capture_output=True, check=True, text=True).stdout.strip()
    with tempfile.NamedTemporaryFile() as file:
        frames = (payload for payload, kind in zip(raw["payload"].to_pylist(), raw["kind"].to_pylist(), strict=True) if kind == "frame")
        file.write(b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames))
        file.flush()
        command = [python, str(_PEER / "array_clients.py"), peer, file.name, "3"]
        result = json.loads(subprocess.run(command, capture_output=True, check=True).stdout.splitlines()[-1])
    return [float(passed) for passed in result["seconds"]]


def _small_batches() -> str:
    """What a batch costs that is as small as those of 10,000 ticks/s."""
    rows = 35
    frame = b'{"stream":"btcusdt@bookTicker","data":{"u":%d,"s":"BTCUSDT","b":"61837.63","B":"0.02","a":"61837.64","A":"1.5"}}'
    raw = _batch("binance", "spot", [frame % at for at in range(rows)], [time.time_ns()] * rows)
    chunk = Chunk.dense(RAW_TOPIC, 0, 0, raw)
    costs = []
    for decoders in (DECODERS, PYTHON_DECODERS):
        normalize(chunk, decoders)
        passes = []
        for _ in range(300):
            began = time.perf_counter()
            normalize(chunk, decoders)
            passes.append(time.perf_counter() - began)
        costs.append(statistics.median(passes) * 1e6)
    return f"A batch of {rows} Binance frames takes {costs[0]:.0f} µs, and {costs[1]:.0f} µs without the native core."


def _recorded_from_simulator(name: str, feed: str, symbols: list[str], channels: list[str], extra: str) -> tuple[pa.RecordBatch, int]:
    with tempfile.TemporaryDirectory() as folder, simulator(name, "--rate", "20000", "--limit", "60000") as (url, _):
        root = Path(folder)
        config = root / "tapeline.toml"
        config.write_text(
            f'data_dir = "{root}"\nstores = []\n[[providers]]\nname = "{name}"\nfeed = "{feed}"\nurl = "{url}"\n{extra}'
            f"symbols = {json.dumps(symbols)}\nchannels = {json.dumps(channels)}\n"
        )
        with pipeline(config, "--until-idle", "1") as process:
            process.wait(120)
        stream = EmbeddedStream(root / "stream")
        batches = []
        positions: dict[int, int] = {}
        while (chunk := stream.read(RAW_TOPIC, positions, 1 << 20)) is not None:
            batches.append(chunk.batch)
            positions |= chunk.next
        stream.close()
    raw = pa.concat_batches(batches)
    made = normalize(Chunk.dense(RAW_TOPIC, 0, 0, raw), DECODERS)
    bars = sum(count.bars for count in made.counts.values())
    return raw, made.batches[TICKS_TOPIC].num_rows + bars


def _peer_python() -> Path | None:
    """cryptofeed in an environment of its own; None where it cannot be built (it needs a C compiler)."""
    lock = _PEER / "cryptofeed.requirements.txt"
    home = REPOSITORY / ".venvs" / "cryptofeed"
    python, mark = home / "bin" / "python", home / ".ready"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == digest:
        return python
    uv = Path(sys.executable).parent / "uv"
    environment = {**os.environ, "UV_SYSTEM_CERTS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    for command in (
        [str(uv), "venv", "--quiet", "--clear", str(home)],
        [str(uv), "pip", "sync", "--quiet", "--python", str(python), str(lock)],
    ):
        if subprocess.run(command, env=environment, check=False).returncode:
            return None
    mark.write_text(digest)
    return python
