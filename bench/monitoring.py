"""What the metrics cost at 10,000 ticks/s: the processor time of all stages with them, read every second, and without them."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import urllib3
from services.process import family, free_port

from bench.machine import pipeline, simulator, table, write_config

_RATE = 10_000
_SECONDS = 30
_WARM_UP_S = 10
_ROUNDS = 3


def run() -> str:
    """The section of the report."""
    cores: dict[bool, list[float]] = {True: [], False: []}
    scrapes: list[float] = []
    for _ in range(_ROUNDS):
        for on in cores:
            cores[on].append(_once(scrapes, on=on))
    with_them, without = (statistics.median(cores[on]) for on in (True, False))
    more = with_them - without
    rows = [["with them", f"{with_them:.3f}"], ["`monitor.listen` is empty", f"{without:.3f}"], ["difference", f"{more:+.3f}"]]
    return (
        f"`tapeline simulate binance --rate {_RATE}` sends, and all stages run, with and without the metrics, alternating, for {_ROUNDS}"
        f" rounds. A measurement lasts {_SECONDS} s, after {_WARM_UP_S} s of warm-up. The metrics are read every second, which is five"
        " times as often as with the configuration in `deploy/prometheus`. The figures are the processor time of all stages together,"
        f" without the simulator. One answer takes {statistics.median(scrapes) * 1e3:.0f} ms.\n\n"
        + table(["metrics", "cores, median"], rows)
    )


def _once(scrapes: list[float], *, on: bool) -> float:
    """The cores that all stages use, on average."""
    with tempfile.TemporaryDirectory() as folder, simulator("binance", "--rate", str(_RATE)) as (url, _):
        config = write_config(Path(folder), url)
        address = f"127.0.0.1:{free_port()}" if on else ""
        config.write_text(f'monitor.listen = "{address}"\n{config.read_text()}')
        with pipeline(config) as process:
            time.sleep(_WARM_UP_S)
            before, began = _used_s(process.pid), time.monotonic()
            while time.monotonic() < began + _SECONDS:
                time.sleep(1.0)
                if on:
                    asked = time.monotonic()
                    assert b"tapeline_up" in urllib3.request("GET", f"http://{address}/metrics", timeout=10.0).data
                    scrapes.append(time.monotonic() - asked)
            return (_used_s(process.pid) - before) / (time.monotonic() - began)


def _used_s(pid: int) -> float:
    """The processor time (s) of a process and of all that it has started."""
    used = 0
    for member in family(pid):
        with suppress(OSError):
            used += sum(map(int, Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return used / os.sysconf("SC_CLK_TCK")
