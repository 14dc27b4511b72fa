"""Tapeline's jobs in a real Prefect, for tests: the process that serves them, what its page would ask, and a day of the past to work on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from picows import WSListener, ws_connect
from rest_between import Between

import tapeline
from environments import python_of
from tapeline.orchestration.database import SqliteDatabase
from tapeline.orchestration.runs import Run, Runs
from tapeline.records import NS_PER_S
from tapeline.simulators import Simulator, SimulatorOptions
from tapeline.simulators.binance.provider import Binance
from waiting import until

ROOT: Final = Path(tapeline.__file__).parents[2]
PACKAGE: Final = ROOT / "integrations" / "prefect"
#: Prefect's server takes half a minute to start on a quiet machine.
START_S: Final = 400.0
#: States of a run that is over. One that has crashed goes on.
OVER: Final = ("COMPLETED", "FAILED", "CANCELLED")
YESTERDAY: Final = (datetime.now(UTC) - timedelta(days=1)).date()


def noon_ns(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * NS_PER_S


class PastMarket:
    """A simulator of Binance whose trades happened in the noon of a day. It makes some and then no more."""

    def __init__(self, day: date, trades: int) -> None:
        late_ns = time.time_ns() - noon_ns(day)
        options = SimulatorOptions(name="binance", rate=2_000.0, symbols=("BTCUSDT",))
        self._simulator = Simulator(options, clock=lambda: time.time_ns() - late_ns)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._simulator.start(), self._loop).result(120)
        self.trade(trades)

    def trade(self, trades: int) -> None:
        """So many trades more happen, and then no more."""
        asyncio.run_coroutine_threadsafe(self._trade(len(self.ids()) + trades), self._loop).result(120)

    async def _trade(self, until_: int) -> None:
        """The market trades while somebody listens."""
        self._simulator._halted = False
        listener, _ = await ws_connect(WSListener, f"{self.url}/ws/btcusdt@trade")
        while len(self.ids()) < until_:
            await asyncio.sleep(0.02)
        self._simulator.halt()
        listener.disconnect()

    @property
    def rest(self) -> str:
        return self.url.replace("ws:", "http:")

    def ids(self) -> list[int]:
        """The ids of the trades of the day, from the first to the last."""
        provider = self._simulator._provider
        assert isinstance(provider, Binance)
        return [int(row["t"]) for row in list(provider.history.rows("trade", "BTCUSDT"))]

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._simulator.stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Prefect:
    """The process that serves the jobs of a configuration, with Prefect's own server."""

    folder: Path
    rest: Between
    port: int = 0
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "tapeline.toml"

    @property
    def runs(self) -> Runs:
        """Tapeline's record of the runs."""
        return Runs(SqliteDatabase(self.folder / "data" / "runs.sqlite", time.time_ns))

    def of(self, job: str) -> list[Run]:
        """The runs of a job in Tapeline's record, the earliest first."""
        return self.runs.of(job, 1_000)[::-1]

    @property
    def log(self) -> str:
        return (self.folder / "serving.log").read_text()

    def tapeline(self) -> None:
        """Start the pipeline."""
        with (self.folder / "tapeline.log").open("ab") as log:
            command = [sys.executable, "-m", "tapeline", "run", "--config", str(self.config)]
            self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def start(self, *options: str) -> None:
        """Start the serving process, and wait until it serves."""
        if not self.port:
            with socket.socket() as some:
                some.bind(("127.0.0.1", 0))
                self.port = some.getsockname()[1]
        program = self.folder / "tapeline"
        if not program.exists():
            # What is said to Tapeline's alerts is noted, and then said.
            noted = f'case "$1" in alerts) echo "$@" >> {self.folder}/alerts.txt;; esac'
            program.write_text(f'#!/bin/sh\n{noted}\nexec {sys.executable} -m tapeline "$@"\n')
            program.chmod(0o755)
        served = self.log.count("Serving ") if (self.folder / "serving.log").exists() else 0
        command = [python_of(PACKAGE), "-m", "tapeline_prefect", "--config", str(self.config), "--tapeline", str(program)]
        command += ["--port", str(self.port), "--poll", "1", "--first-wait", "1", *options]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "TAPELINE"))}
        with (self.folder / "serving.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=PACKAGE, env=kept, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        until(lambda: self.log.count("Serving ") > served or process.poll() is not None, "it serves", START_S)
        assert process.poll() is None, self.log[-4_000:]

    @property
    def serving(self) -> subprocess.Popen[bytes]:
        return self._processes[-1]

    def children(self, text: str) -> list[int]:
        """The processes of this test with a text in their command, and of the serving process in their family."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") if entry.name.isdigit() else ""
                if text in words and self._is_ours(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def _is_ours(self, pid: int) -> bool:
        """Whether a process descends from the serving process."""
        while pid > 1:
            if pid == self.serving.pid:
                return True
            stat = Path(f"/proc/{pid}/stat").read_text()
            pid = int(stat.rpartition(")")[2].split()[1])
        return False

    def kill(self, *pids: int) -> None:
        for pid in pids or (self.serving.pid,):
            os.kill(pid, signal.SIGKILL)

    def ask(self, path: str, body: Any = None) -> Any:
        """What Prefect's API answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api{path}", data, {"Content-Type": "application/json"})
        for _ in range(20):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                if error.code != 503:  # the database is busy: Prefect's own clients ask again, too
                    raise
                time.sleep(0.5)
        raise AssertionError(f"Prefect's server is too busy to answer {path}")

    def ready(self, name: str) -> tuple[int, str]:
        """The exit status and the word of the health check, for the deployments of a name."""
        environ = os.environ | {"PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api"}
        command = [sys.executable, "-m", "tapeline_prefect.ready", name]
        done = subprocess.run(command, cwd=PACKAGE, env=environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip()

    def deployment(self, job: str) -> dict[str, Any]:
        return dict(self.ask(f"/deployments/name/{job}/tapeline"))

    def run(self, job: str, **arguments: Any) -> str:
        """Start a run as a person does on Prefect's page, and return its id."""
        made = self.ask(f"/deployments/{self.deployment(job)['id']}/create_flow_run", {"parameters": {"arguments": arguments}})
        return str(made["id"])

    def end_of(self, run: str, seconds: float = START_S) -> dict[str, Any]:
        """The run, as soon as it is over."""

        def over() -> dict[str, Any] | None:
            with contextlib.suppress(OSError):
                found = dict(self.ask(f"/flow_runs/{run}"))
                return found if found["state_type"] in OVER else None
            return None

        return until(over, f"the run {run} ends", seconds) or {}

    def of_prefect(self, job: str) -> list[dict[str, Any]]:
        """All runs of a job that Prefect has begun, the earliest first."""
        deployments = {"id": {"any_": [self.deployment(job)["id"]]}}
        states = {"state": {"type": {"not_any_": ["SCHEDULED"]}}}
        return list(self.ask("/flow_runs/filter", {"deployments": deployments, "flow_runs": states, "sort": "START_TIME_ASC"}))

    def said_to_alerts(self) -> list[str]:
        path = self.folder / "alerts.txt"
        return path.read_text().splitlines() if path.exists() else []

    def stop(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
