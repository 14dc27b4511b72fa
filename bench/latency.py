"""From a frame's receipt to its tick being readable by another process, at 10,000 ticks/s."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.machine import pipeline, simulator, table, write_config
from tapeline.records import TICKS_TOPIC
from tapeline.streams.embedded import EmbeddedStream

_RATE = 10_000
_SECONDS = 30
_WARM_UP_S = 5
_ROUNDS = 3
COLUMNS = ("ticks", "p50 ms", "p99 ms", "p99.9 ms")


def run() -> str:
    """The section of the report."""
    rows = [[f"run {at + 1}", *cells(_once())] for at in range(_ROUNDS)]
    return (
        f"`tapeline simulate binance --rate {_RATE}` sends, and all stages run, the lake included. A reader polls the normalized topic"
        " every 0.5 ms. The time of a tick begins with the receipt of its frame, and ends when the reader has the tick. The measurement"
        f" lasts {_SECONDS} s, after {_WARM_UP_S} s of warm-up.\n\n" + table(["", *COLUMNS], rows)
    )


def cells(waited_ns: npt.NDArray[np.int64]) -> list[object]:
    """What a row of a table says of the times of its ticks, under COLUMNS."""
    return [len(waited_ns), *(f"{ns / 1e6:.2f}" for ns in np.percentile(waited_ns, [50, 99, 99.9]))]


def _once() -> npt.NDArray[np.int64]:
    """Nanoseconds that each tick took."""
    with tempfile.TemporaryDirectory() as folder, simulator("binance", "--rate", str(_RATE)) as (url, _):
        config = write_config(Path(folder), url)
        with pipeline(config):
            stream = EmbeddedStream(Path(folder) / "stream")
            while (chunk := stream.read(TICKS_TOPIC, {}, 1)) is None:
                time.sleep(0.05)
            positions = dict(chunk.next)
            delays: list[npt.NDArray[np.int64]] = []
            begin = time.monotonic() + _WARM_UP_S
            while time.monotonic() < begin + _SECONDS:
                chunk = stream.read(TICKS_TOPIC, positions, 32_768)
                if chunk is None:
                    time.sleep(0.0005)
                    continue
                positions |= chunk.next
                waited = time.time_ns() - chunk.batch["received_ns"].to_numpy()  # always: the first time pyarrow loads pandas
                if time.monotonic() >= begin:
                    delays.append(waited)
            stream.close()
    return np.concatenate(delays)
