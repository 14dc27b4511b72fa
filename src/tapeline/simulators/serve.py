"""Runs a simulator as a process of its own. It prints its address, runs until it is stopped, and prints what it sent."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING

from tapeline.simulators.simulator import Simulator

if TYPE_CHECKING:
    from tapeline.simulators.options import SimulatorOptions


async def serve(options: SimulatorOptions) -> None:
    """Run a simulator until SIGTERM or SIGINT. It prints a line with its url, a line with the url of its files if it serves any, and at
    the end a line of JSON.

    SIGUSR1 closes the market: no more events happen, and the connections stay open."""
    simulator = Simulator(options)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGUSR1, simulator.halt)
    url = await simulator.start()
    _say(f"{options.name} at {url}")
    if simulator.files_url:
        _say(f"its files at {simulator.files_url}")
    tasks = [loop.create_task(stopped.wait()), loop.create_task(simulator.broken())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await simulator.stop()
        _say(json.dumps({"simulator": options.name, "sent": simulator.sent}))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
