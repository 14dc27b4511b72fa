"""A running pipeline with its dashboard, which the tests look at."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import urllib3
from processes import Home, SimulatorProcess, Spawner

from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPERATOR: Final = "a-long-token-of-the-operator-of-this-test"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as place:
        return int(place.getsockname()[1])


@dataclass
class Live:
    """A running pipeline with its dashboard."""

    home: Home
    market: SimulatorProcess
    url: str
    simulate: Callable[..., SimulatorProcess]

    def get(self, path: str, **parameters: str) -> Any:
        """What the server answers, asked without a browser."""
        answer = urllib3.request("GET", f"{self.url}{path}", fields=parameters, timeout=30.0, retries=False)
        assert answer.status == 200, answer.data
        return json.loads(answer.data)


def start(folder: Path, spawn: Spawner, configure: Callable[[Home, str], None], *options: str) -> Live:
    """A simulator of Binance, and a pipeline that records it. `configure` is given the home and the simulator's address."""

    def simulate(port: int = 0, *more: str) -> SimulatorProcess:
        journal = folder / f"sent-{len(spawn.started)}.jsonl"
        process = spawn("simulate", "binance", "--journal", str(journal), "--port", str(port), *options, *more)
        found = re.search(r" at (\S+)", process.says(" at "))
        assert found is not None
        return SimulatorProcess(process, found[1], journal)

    market = simulate(free_port())
    home = Home(folder / "data", spawn)
    configure(home, market.url)
    port = free_port()
    with home.config.open("a") as file:
        file.write(f'[dashboard]\nlisten = "127.0.0.1:{port}"\nrun = true\n')
    home.env = {"TAPELINE_DASHBOARD_OPERATOR_TOKEN": OPERATOR}
    run = home.start("run")
    live = Live(home, market, f"http://127.0.0.1:{port}", simulate)

    def answers() -> bool:
        assert run.running, run.said
        assert "dashboard cannot continue" not in run.said, run.said
        try:
            found = live.get("/v1/symbols")
        except (urllib3.exceptions.HTTPError, AssertionError):
            return False
        return len(found["rows"]) > 1

    until(answers, "the dashboard answers and has symbols")
    return live
