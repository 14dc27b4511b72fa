"""Each stream behind one fixture: `place` is a fresh, empty one, which this and other processes open as they like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from places import Place, codecs

from brokers import SHARED, fresh_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The stream that the test's parameter names: `embedded`, `redis` or `kafka`, with `-arrow` or `-protobuf`."""
    kind, _, codec = str(request.param).partition("-")
    settings: dict[str, Any] = {"partitions": 3, "codecs": codecs(codec)} if codec else {"partitions": 3}
    if codec:
        settings |= {"url": request.getfixturevalue(SHARED[kind]).url, "topic_prefix": fresh_prefix()}
    made = Place(kind, tmp_path / "data", settings)
    yield made
    made.close()


class Workers:
    """Processes of `worker.py`, none of which outlives its test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, place: Place, task: str, **options: Any) -> subprocess.Popen[str]:
        told = json.dumps({"place": place.described(), "task": task, **options})
        log = (self._folder / f"worker-{len(self.started)}.log").open("w")
        program = str(Path(__file__).with_name("worker.py"))
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen([sys.executable, program, told], stdout=subprocess.PIPE, stderr=log, text=True, env=environ)
        log.close()
        self.started.append(process)
        return process

    def said(self) -> str:
        """What all of them wrote to their logs."""
        return "".join(path.read_text() for path in sorted(self._folder.glob("worker-*.log")))

    def end(self) -> None:
        """End what still runs, and print the ends of the logs: pytest shows them beside a failure."""
        for path in sorted(self._folder.glob("worker-*.log")):
            print(f"{path.name}: ...{path.read_text()[-4000:]}")
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Workers]:
    """`work(place, task, **options)`: a process of worker.py."""
    workers = Workers(tmp_path)
    yield workers
    workers.end()


@pytest.fixture
def own_place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., tuple[Place, Any]]:
    """`own_place("redis-arrow", memory_mb=16)`: a stream on a server of its own, and that server, to be killed and paused."""

    def make(name: str, server_options: dict[str, Any] | None = None, **settings: Any) -> tuple[Place, Any]:
        kind, _, codec = name.partition("-")
        server = request.getfixturevalue(f"own_{kind}")(**(server_options or {}))
        url = f"redis://{server.address}/0" if kind == "redis" else server.url
        wanted = {"url": url, "partitions": 3, **({"codecs": codecs(codec)} if codec else {}), **settings}
        found = Place(kind, tmp_path / "own", wanted)
        request.addfinalizer(found.close)
        return found, server

    return make
