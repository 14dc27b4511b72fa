"""Each stream behind one fixture: `place` is a fresh, empty one, which this and other processes open as they like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from places import Place, codecs
from services import kafka as kafka_service
from services.kafka import KafkaBroker

from brokers import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.redis import RedisServer

#: Of the shared Redis; other tests use the others.
_DATABASE = 9
_TOPICS_GONE_S = 20.0


@pytest.fixture(scope="session")
def topics_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A broker whose `market-data` topics belong to these tests alone: their names are fixed."""
    need(kafka_service)
    settings = {"broker.session.timeout.ms": "30000", "log.retention.check.interval.ms": "500", "file.delete.delay.ms": "100"}
    with KafkaBroker(tmp_path_factory.mktemp("topics"), settings=settings) as broker:
        yield broker


def empty_kafka(address: str) -> None:
    """Delete every topic of ours; their groups' offsets go with them."""
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    ours = [name for name in admin.list_topics(timeout=20).topics if name.startswith("market-data.")]
    for done in (admin.delete_topics(ours) if ours else {}).values():
        with suppress(KafkaException):
            done.result()
    deadline = time.monotonic() + _TOPICS_GONE_S
    while any(name.startswith("market-data.") for name in admin.list_topics(timeout=20).topics) and time.monotonic() < deadline:
        time.sleep(0.01)


def empty_redis(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushdb()


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The stream that the test's parameter names: `embedded`, `redis` or `kafka`, with `-arrow` or `-protobuf`."""
    kind, _, codec = str(request.param).partition("-")
    settings: dict[str, Any] = {"partitions": 3, "codecs": codecs(codec)} if codec else {"partitions": 3}
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        settings["url"] = f"redis://{server.address}/{_DATABASE}"
        empty_redis(settings["url"])
    elif kind == "kafka":
        broker: KafkaBroker = request.getfixturevalue("topics_broker")
        settings["url"] = broker.url
        empty_kafka(broker.address)
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
