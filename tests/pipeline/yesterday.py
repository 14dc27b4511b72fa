"""A simulator whose clock is a day behind, as a process: what happens there is the day that is over. SIGUSR1 closes its market."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

from tapeline.simulators import Simulator, SimulatorOptions

DAY_NS = 86_400 * 10**9


async def main(name: str, journal: str, *faults: str) -> None:
    options = SimulatorOptions(name=name, rate=500.0, faults=faults, journal=Path(journal))
    simulator = Simulator(options, clock=lambda: time.time_ns() - DAY_NS)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, simulator.halt)
    print(await simulator.start(), flush=True)
    await ended.wait()
    await simulator.stop()


asyncio.run(main(*sys.argv[1:]))
