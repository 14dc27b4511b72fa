"""What a second line costs: at the sockets, and in normalizing, beside interpreting both copies of everything."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import pyarrow as pa

from bench.machine import CAPTURES, recorded_frames, table
from bench.normalize import one_core, seconds
from tapeline.net.listener import Recorder
from tapeline.providers.registry import PROVIDERS
from tapeline.providers.session import FeedSettings, Plan
from tapeline.records import RAW, RawKind
from tapeline.stages.ingest.arbitration import Arbitration

_ROUNDS = 7
_FRAMES = 100_000


class _Last:
    """A recorder that does the least there is, so that what stands before it is what is measured."""

    def __init__(self) -> None:
        self.last: tuple[Plan, str, RawKind, int, bytes] | None = None

    def record(self, plan: Plan, connection: str, kind: RawKind, received_ns: int, payload: bytes) -> None:
        self.last = plan, connection, kind, received_ns, payload

    def on_pause(self, pause: object) -> None:
        del pause


def run() -> str:
    """The section of the report. One core for all that is measured."""
    if not CAPTURES:
        return "The recorded frames are missing, so nothing was measured."
    with one_core():
        return _measured([frame for _, frame in recorded_frames()[:_FRAMES]])


def _measured(frames: list[bytes]) -> str:
    (plan,) = PROVIDERS["binance"].plans(FeedSettings("spot", ("BTCUSDT",), ("trade",)))
    one, other = (replace(plan, name=name, arbitration="one") for name in ("one", "one-second"))
    arrivals = [(some, at * 100_000, frame) for at, frame in enumerate(frames) for some in (one, other)]
    alone, paired = [], []
    for _ in range(_ROUNDS):
        alone.append(_recorded(_Last(), arrivals))
        paired.append(_recorded(Arbitration(_Last(), (one, other), lambda: 0), arrivals))
    before_us, with_us = (statistics.median(some) / len(arrivals) * 1e6 for some in (alone, paired))
    single, marked, both = _batch(arrivals[::2], "frame"), _batch(arrivals, "repeated"), _batch(arrivals, "frame")
    rows = []
    for name, raw in (("one line", single), ("two lines, later copies marked", marked), ("two lines, every copy interpreted", both)):
        taken = statistics.median(seconds(raw, time.process_time) for _ in range(_ROUNDS))
        rows.append([name, raw.num_rows, taken / len(frames) * 1e6])
    return (
        f"The input is {len(frames):,} recorded Binance frames. They arrive once (one line), or twice (two lines, alternating). The figures"
        f" are processor time, medians of {_ROUNDS} rounds. At the sockets, each frame of two lines takes {with_us - before_us:.2f} µs more"
        " than a frame of one line, because Tapeline looks for an earlier copy of its event. Normalizing takes:\n\n"
        + table(["", "raw records", "µs per event"], [[name, count, f"{cost:.2f}"] for name, count, cost in rows])
    )


def _recorded(recorder: Recorder, arrivals: list[tuple[Plan, int, bytes]]) -> float:
    began = time.process_time()
    for plan, received_ns, frame in arrivals:
        recorder.record(plan, "c", "frame", received_ns, frame)
    return time.process_time() - began


def _batch(arrivals: list[tuple[Plan, int, bytes]], second: RawKind) -> pa.RecordBatch:
    n = len(arrivals)
    kinds = ["frame" if plan.name == "one" else second for plan, _, _ in arrivals]
    texts = [pa.array(["binance"] * n), pa.array(["spot"] * n), pa.array([plan.name for plan, _, _ in arrivals]), pa.array(kinds)]
    times, payloads = pa.array([at for _, at, _ in arrivals]), pa.array([frame for _, _, frame in arrivals], pa.binary())
    return pa.record_batch([*texts, times, payloads], schema=RAW)
