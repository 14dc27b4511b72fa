"""Resident memory of every stage over ten million ticks."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.machine import pipeline, resident_mib, simulator, table, write_config
from tapeline.records import TICKS_TOPIC
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry.status import read_status

_TICKS = 10_000_000
_LOOKS = (1, 2, 4, 6, 8, 10)  # millions of ticks


def run() -> str:
    """The section of the report."""
    with tempfile.TemporaryDirectory() as folder, simulator("binance", "--rate", "70000", "--limit", str(_TICKS)) as (url, _):
        root = Path(folder)
        config = write_config(root, url)
        looks: dict[int, dict[str, float]] = {}
        with pipeline(config, "--until-idle", "5") as running:
            stream = EmbeddedStream(root / "stream")
            while running.poll() is None:
                millions = sum(one.records for one in stream.written(TICKS_TOPIC).values()) // 1_000_000
                for look in _LOOKS:
                    if look <= millions and look not in looks:
                        looks[look] = _resident(root)
                time.sleep(0.2)
            stream.close()
    stages = sorted({stage for look in looks.values() for stage in look})
    rows = [[stage, *[f"{looks[look].get(stage, 0):.0f}" for look in looks]] for stage in stages]
    about = "A simulator sends 70,000 ticks/s. The table shows the resident memory of each stage, in MiB, after so many million ticks:\n\n"
    return about + table(["stage", *[f"{look} M" for look in looks]], rows)


def _resident(root: Path) -> dict[str, float]:
    resident = {}
    for stage, status in read_status(root).items():
        try:
            resident[stage] = resident_mib(status["pid"])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return resident
