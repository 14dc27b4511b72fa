"""Real servers as fixtures. One that cannot be had skips its tests, and pytest's last lines say so; with CI=true it fails them.

`redis_server`, `kafka_broker` and `postgres_server` are shared by all tests of a process: use names of your own in them, and leave them
running. `shared(kind)` is a stream on one of them, `database` a database.
`s3_url` is the address of a local server that speaks S3's protocol, shared too.
`own_redis(...)`, `own_kafka(...)` and `own_postgres(...)` start one for a single test, to be killed and paused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pytest
from services import alertmanager, kafka, postgres, prometheus, redis
from services.alertmanager import Alertmanager
from services.kafka import KafkaBroker
from services.postgres import PostgresServer
from services.process import Missing, Tls
from services.prometheus import Prometheus
from services.redis import RedisServer

from environments import python_of
from tapeline.config import StreamConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from services.process import Server

S = TypeVar("S", bound="Server")
#: The fixture of the shared server of each kind of stream.
SHARED = {"redis": "redis_server", "kafka": "kafka_broker"}
_MISSING = "cannot be had here: "
#: Where it is set, no server may be missing. It goes on to the workers, which inherit the environment.
_EVERYTHING = "NEED_EVERY_SERVER"
if os.environ.pop("CI", "") == "true":
    os.environ[_EVERYTHING] = "1"
# Where pytest finds CI or this variable, it explains a failed comparison without bound: for two long lists that takes hours.
os.environ.pop("BUILD_NUMBER", None)


def need(kind: ModuleType) -> None:
    """Skip where a server is missing; fail where everything must be there."""
    try:
        kind.find()
    except Missing as missing:
        said = f"{kind.__name__.removeprefix('services.')} {_MISSING}{missing} (make services)"
        if _EVERYTHING in os.environ:
            pytest.fail(said, pytrace=False)
        pytest.skip(said)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    missing = Counter(reason.removeprefix("Skipped: ") for reason in reasons if _MISSING in reason)
    for said, tests in missing.items():
        terminalreporter.write_line(f"NOT RUN: {tests} {'test' if tests == 1 else 'tests'}: {said}", yellow=True)


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """PostgreSQL runs as another user when we are root, and pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="tapeline-postgres-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    need(redis)
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    need(kafka)
    # Nobody kills this one, so a long session costs nothing, and a busy machine does not end it.
    settings = {"broker.session.timeout.ms": "30000", "log.retention.check.interval.ms": "500", "file.delete.delay.ms": "100"}
    with KafkaBroker(tmp_path_factory.mktemp("kafka"), settings=settings) as broker:
        yield broker


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Callable[[str], StreamConfig]:
    """`shared("kafka")`: a stream on the shared server of that kind, under a prefix that no other test has; or `embedded`."""

    def make(kind: str, **settings: Any) -> StreamConfig:
        if kind == "embedded":
            return msgspec.convert(settings, StreamConfig)
        server = request.getfixturevalue(SHARED[kind])
        return msgspec.convert({"url": server.url, "topic_prefix": fresh_prefix(), **settings}, StreamConfig)

    return make


def fresh_prefix() -> str:
    """A `stream.topic_prefix` that no other test has."""
    return f"{uuid.uuid4().hex[:12]}."


def stream_block(stream: StreamConfig) -> str:
    """The [stream] block of a configuration file."""
    settings = msgspec.to_builtins(stream)
    return "[stream]\n" + "".join(f"{name} = {json.dumps(settings[name])}\n" for name in ("url", "topic_prefix", "partitions"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    need(postgres)
    with reachable_folder() as folder, PostgresServer(folder) as server:
        yield server


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local server that speaks S3's protocol."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as sink:
        command = [python_of(Path(__file__).parent / "readers" / "s3"), "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while (found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield found[1]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of an empty database on the shared server, for this test alone."""
    name = f"tapeline_{os.getpid()}_{time.monotonic_ns()}"
    postgres_server.ask(f"CREATE DATABASE {name}")
    yield postgres_server.url.rpartition("/")[0] + f"/{name}"
    postgres_server.ask(f"DROP DATABASE {name} WITH (FORCE)")


def _own(kind: ModuleType, make: type[S], folder: Path) -> Iterator[Callable[..., S]]:
    need(kind)
    made: list[S] = []

    def start(*settings: Any, **options: Any) -> S:
        made.append(make(folder / f"{make.name}-{len(made)}", *settings, **options))
        return made[-1].start()

    yield start
    for server in made:
        server.kill()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """`own_redis(password=..., tls=..., maxmemory=...)`: a started RedisServer."""
    yield from _own(redis, RedisServer, tmp_path)


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Callable[..., KafkaBroker]]:
    """`own_kafka(users=..., tls=..., settings=...)`: a started KafkaBroker."""
    yield from _own(kafka, KafkaBroker, tmp_path)


@pytest.fixture
def own_prometheus(tmp_path: Path) -> Iterator[Callable[..., Prometheus]]:
    """`own_prometheus(text, native=True)`: a started Prometheus with this configuration."""
    yield from _own(prometheus, Prometheus, tmp_path)


@pytest.fixture
def own_alertmanager(tmp_path: Path) -> Iterator[Callable[..., Alertmanager]]:
    """`own_alertmanager(text)`: a started Alertmanager with this configuration."""
    yield from _own(alertmanager, Alertmanager, tmp_path)


@pytest.fixture
def own_postgres() -> Iterator[Callable[..., PostgresServer]]:
    """`own_postgres()`: a started PostgresServer."""
    with reachable_folder() as folder:
        yield from _own(postgres, PostgresServer, folder)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate for 127.0.0.1 and localhost, and the authority that signed it."""
    folder = tmp_path_factory.mktemp("tls")
    files = Tls(folder / "server.pem", folder / "server.key", folder / "authority.pem")
    authority, request = str(folder / "authority.key"), str(folder / "request.pem")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes".split()
    for command in (
        ["req", "-x509", *key, "-keyout", authority, "-out", files.authority, "-subj", "/CN=authority", "-days", "2"],
        [
            "req",
            *key,
            "-keyout",
            files.key,
            "-out",
            request,
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
        ],
        ["x509", "-req", "-in", request, "-out", files.certificate, "-CA", files.authority, "-CAkey", authority, "-CAcreateserial"],
    ):
        copied = ["-copy_extensions", "copy", "-days", "2"] if command[0] == "x509" else []
        subprocess.run(["openssl", *command, *copied], check=True, capture_output=True)
    return files
