"""The real servers of the tests: they start, answer, keep their data through a crash, hold still when paused, and go when we go.

They do so installed and in containers, of which a stand-in for Docker shows what it can.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from services import kafka, postgres, redis
from services.container import Container, pull
from services.kafka import KafkaBroker
from services.process import Missing, ServerFailed, free_port, lives
from services.redis import RedisServer

from brokers import need
from proving import PROVE, proof
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.postgres import PostgresServer
    from services.process import Tls

_QUIET = {"log_level": 0, "socket.timeout.ms": 5_000}
_STAND_IN = Path(__file__).with_name("docker_stand_in.py")
#: By a container takes twice as long: of Redis every day, of the others as a proof.
_BOTH_WAYS = pytest.mark.parametrize("way", ["installed", "in a container"], indirect=True)
_EACH_WAY = pytest.mark.parametrize("way", ["installed", *(["in a container"] if PROVE else [])], indirect=True)
pytestmark = proof("readers")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Path]:
    """A folder for PATH: a stand-in for Docker, and nothing else but what any machine has."""
    for kind in (redis, postgres, kafka):
        try:
            kind.installed()
        except Missing as missing:
            pytest.skip(f"the stand-in for Docker runs what is installed: {missing}")
    folder = tmp_path / "engine"
    folder.mkdir()
    for name in ("env", "sh"):
        (folder / name).symlink_to(shutil.which(name) or "")
    for name in ("calls", "images"):
        (folder / name).touch()
    docker = folder / "docker"
    docker.write_text(f"#!/bin/sh\nPATH='{os.environ['PATH']}' exec '{sys.executable}' '{_STAND_IN}' '{folder}' \"$@\"\n")
    docker.chmod(0o755)
    yield folder
    assert not list(folder.glob("tapeline-*"))


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the machine has its servers, or as one has them where none is installed and Docker is."""
    if request.param == "installed":
        return
    engine = request.getfixturevalue("engine")
    monkeypatch.setenv("PATH", f"{engine}{os.pathsep}{os.environ['PATH']}")
    for kind in (redis, postgres, kafka):
        monkeypatch.setattr(kind, "installed", not_installed)
        pull(kind.__name__.removeprefix("services."))


def not_installed() -> None:
    raise Missing("not installed")


def new_topic(address: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": address, **_QUIET})
    admin.create_topics([NewTopic(topic, 1)])[topic].result(20)


def produce(address: str, topic: str, *values: bytes, **settings: Any) -> None:
    producer = Producer({"bootstrap.servers": address, "linger.ms": 0, **_QUIET, **settings})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(20) == 0


def consume(address: str, topic: str, count: int, **settings: Any) -> list[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": topic, "auto.offset.reset": "earliest", "check.crcs": True, **_QUIET, **settings}
    )
    try:
        consumer.subscribe([topic])
        deadline = time.monotonic() + 40
        values: list[bytes] = []
        while len(values) < count and time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                values.append(message.value() or b"")
        consumer.commit(asynchronous=False)
        return values
    finally:
        consumer.close()


def test_redis_answers(redis_server: RedisServer) -> None:
    assert redis_server.ask("PING") == "+PONG"
    assert redis_server.url == f"redis://127.0.0.1:{redis_server.port}/0"


@_BOTH_WAYS
@pytest.mark.usefixtures("way")
def test_redis_keeps_its_data_through_a_crash(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis(password="between us", maxmemory="64mb")
    assert server.ask("SET", "seen", "yes") == "+OK"
    server.kill()
    with pytest.raises(ConnectionError):
        server.ask("PING")
    assert server.start().ask("GET", "seen") == "yes"
    with pytest.raises(ServerFailed, match="runs already"):
        server.start()
    server.password = "something else"
    assert server.ask("GET", "seen").startswith("-")


@_EACH_WAY
@pytest.mark.usefixtures("way")
def test_redis_holds_still_when_paused(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    server.pause()
    with pytest.raises(TimeoutError):
        server.ask("PING", timeout_s=0.2)
    assert server.running
    server.resume()
    assert server.ask("PING") == "+PONG"
    server.pause()
    server.stop()
    assert not server.running


@_EACH_WAY
@pytest.mark.usefixtures("way")
def test_redis_behind_tls(own_redis: Callable[..., RedisServer], tls: Tls) -> None:
    server = own_redis(tls=tls, password="p/w")
    assert server.url == f"rediss://:p%2Fw@{server.address}/0"
    assert server.ask("SET", "a", "b") == "+OK"
    server.tls = tls._replace(authority=Path(ssl.get_default_verify_paths().openssl_cafile))
    with pytest.raises(OSError):  # noqa: PT011
        server.ask("PING")


def test_kafka_answers(kafka_broker: KafkaBroker) -> None:
    new_topic(kafka_broker.address, "answers")
    assert "answers" in kafka_broker.topics("--list").split()
    produce(kafka_broker.address, "answers", b"1", b"2")
    assert consume(kafka_broker.address, "answers", 2) == [b"1", b"2"]
    assert "answers" in kafka_broker.consumer_groups("--list").split()
    with pytest.raises(KafkaException, match="TOPIC_ALREADY_EXISTS"):
        new_topic(kafka_broker.address, "answers")


def test_kafka_s_own_load_generator(kafka_broker: KafkaBroker) -> None:
    kafka_broker.create_topic("load", partitions=2, retention_ms="60000")
    assert "1000 records sent" in kafka_broker.producer_perf_test("load", records=1000, size=200, linger_ms="5")


@_EACH_WAY
@pytest.mark.usefixtures("way")
def test_kafka_keeps_its_data_through_a_crash_and_holds_still_when_paused(own_kafka: Callable[..., KafkaBroker]) -> None:
    broker = own_kafka(settings={"message.max.bytes": "2000000"})
    new_topic(broker.address, "kept")
    transactional = Producer({"bootstrap.servers": broker.address, "transactional.id": "one", **_QUIET})
    transactional.init_transactions(20)
    transactional.begin_transaction()
    transactional.produce("kept", b"before")
    transactional.commit_transaction(20)
    broker.kill()
    assert not broker.running
    broker.start()
    assert consume(broker.address, "kept", 1, **{"isolation.level": "read_committed"}) == [b"before"]
    broker.pause()
    with pytest.raises(TimeoutError):
        broker.answers()
    broker.resume()
    produce(broker.address, "kept", b"after")
    assert consume(broker.address, "kept", 1, **{"isolation.level": "read_committed"}) == [b"after"]


@_EACH_WAY
@pytest.mark.usefixtures("way")
def test_kafka_behind_passwords_and_tls(own_kafka: Callable[..., KafkaBroker], tls: Tls) -> None:
    broker = own_kafka(users={"alice": "wonder"}, tls=tls)
    new_topic(broker.address, "guarded")
    secured = {"ssl.ca.location": str(tls.authority)}
    login = {"sasl.username": "alice", "sasl.password": "wonder"}
    for listener, mechanism in (
        ("SASL_PLAINTEXT", "PLAIN"),
        ("SASL_SSL", "SCRAM-SHA-512"),
        ("SASL_PLAINTEXT", "SCRAM-SHA-512"),
        ("SSL", ""),
    ):
        settings = {"security.protocol": listener, **secured, **({"sasl.mechanism": mechanism, **login} if mechanism else {})}
        produce(broker.addresses[listener], "guarded", f"{listener} {mechanism}".encode(), **settings)
    assert len(consume(broker.address, "guarded", 4)) == 4
    wrong = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-512", **login, "sasl.password": "wrong"}
    with pytest.raises(KafkaException):
        AdminClient({"bootstrap.servers": broker.addresses["SASL_PLAINTEXT"], **_QUIET, **wrong}).list_topics(timeout=2)


def test_postgres_answers(postgres_server: PostgresServer) -> None:
    assert postgres_server.ask("SELECT 6 * 7") == "42"
    with pytest.raises(ServerFailed, match=r"(?s)no_such.*ends with:"):
        postgres_server.ask("SELECT no_such")


@_EACH_WAY
@pytest.mark.usefixtures("way")
def test_postgres_keeps_its_data_through_a_crash_and_holds_still_when_paused(own_postgres: Callable[..., PostgresServer]) -> None:
    server = own_postgres()
    server.ask("CREATE TABLE kept AS SELECT 1 AS one")
    server.kill()
    assert server.start().ask("SELECT one FROM kept") == "1"
    server.pause()
    with pytest.raises(TimeoutError):
        server.ask("SELECT 1", timeout_s=0.3)
    server.resume()
    assert server.restart().ask("SELECT one FROM kept") == "1"


@_BOTH_WAYS
@pytest.mark.usefixtures("way")
def test_a_server_that_cannot_start_says_what_its_log_says(tmp_path: Path) -> None:
    need(redis)
    server = RedisServer(tmp_path, settings="no-such-setting yes")
    with pytest.raises(ServerFailed, match=r"(?s)redis\.log ends with:.*no-such-setting"):
        server.start()
    assert not server.running


_THREE = "import sys, time, pathlib; from services.redis import RedisServer; s = RedisServer(pathlib.Path(sys.argv[1])).start();"
_THREE += "print(s.pid, flush=True); time.sleep(60)"


def killed_with_a_server(folder: Path, environment: dict[str, str]) -> int:
    """The server's process."""
    command, root = [sys.executable, "-c", _THREE, str(folder)], Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as ours:
        assert ours.stdout is not None
        server = int(ours.stdout.readline())
        ours.send_signal(signal.SIGKILL)
    return server


def test_nothing_stays_when_we_are_killed(tmp_path: Path) -> None:
    need(redis)
    server = killed_with_a_server(tmp_path, dict(os.environ))
    until(lambda: not lives(server))


def test_no_container_stays_when_we_are_killed(tmp_path: Path, engine: Path) -> None:
    (engine / "images").write_text("redis:7.0.15\n")
    killed_with_a_server(tmp_path, os.environ | {"PATH": str(engine)})
    until(lambda: not list(engine.glob("tapeline-*")))
    assert calls(engine)[-1].endswith("down --volumes --timeout 0")


def calls(engine: Path) -> list[str]:
    return (engine / "calls").read_text().splitlines()


def test_ports_lie_below_those_of_outgoing_connections() -> None:
    assert all(free_port() < 32_768 for _ in range(20))


_SUITE = """
import pytest
pytest_plugins = ["brokers"]
def test_one(redis_server): pass
def test_two(own_kafka): pass
def test_three(kafka_broker): pass
"""


@pytest.mark.parametrize("ci", ["", "true"])
def test_what_is_missing_is_named(tmp_path: Path, ci: str) -> None:
    (tmp_path / "test_it.py").write_text(_SUITE)
    empty = {"PATH": "/nowhere", "TAPELINE_CACHE": str(tmp_path), "CI": ci, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, env=empty, capture_output=True, text=True, check=False, cwd=tmp_path)
    if ci:
        assert done.returncode == 1
        assert "redis cannot be had here: redis-server is not installed" in done.stdout
        assert "3 errors" in done.stdout
    else:
        assert done.returncode == 0
        assert (
            "NOT RUN: 1 test: redis cannot be had here: redis-server is not installed, and no Docker engine runs (make services)"
            in done.stdout
        )
        assert "NOT RUN: 2 tests: kafka cannot be had here: no Java 17 or later, and no Docker engine runs (make services)" in done.stdout


def test_a_missing_server_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAPELINE_CACHE", str(tmp_path))
    with pytest.raises(Missing):
        kafka.find()


def test_what_cannot_be_installed_is_pulled_and_it_is_said_how_each_is_had(tmp_path: Path, engine: Path) -> None:
    environment = os.environ | {"PATH": str(engine), "TAPELINE_CACHE": str(tmp_path), "JAVA_HOME": ""}
    root = Path(__file__).parents[1]

    def said(what: str) -> list[str]:
        command = [sys.executable, "-m", "services", what]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=root).stdout.splitlines()

    assert "redis: MISSING: redis-server is not installed, and redis:7.0.15 is not fetched to the Docker engine" in said("status")
    installed = said("install")
    assert "redis: redis:7.0.15 by Docker Compose" in installed
    assert "kafka: apache/kafka:4.3.1 by Docker Compose" in installed
    # There is no image of these.
    programs = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager", "chromium": "chromium", "systemd": "systemd-analyze"}
    missing = {name: f"{program} is not installed" for name, program in programs.items()} | {
        "compose_file": "Compose's loader is not built"
    }
    status = said("status")
    servers, others = status[: -len(missing)], status[-len(missing) :]
    assert others == [f"{name}: MISSING: {why}" for name, why in missing.items()]
    again = said("install")
    installed, others = again[: -2 * len(missing)], again[-2 * len(missing) :]
    assert installed == servers, "what is there is not fetched again"
    assert others[::2] == [f"{name}: {why}; fetching ..." for name, why in missing.items()]
    for name, why in zip(missing, others[1::2], strict=True):
        assert why.endswith(f"and compose.yaml names no image of {name}")
    assert [call for call in calls(engine) if call.startswith("pull")] == ["pull --quiet redis:7.0.15", "pull --quiet apache/kafka:4.3.1"]


@pytest.mark.parametrize("service", ["redis", "postgres", "kafka"])
def test_compose_reads_its_file_as_we_mean_it(tmp_path: Path, service: str) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("Docker's compose plugin is not here")
    arguments = ["-cp", "/opt/kafka/libs/*", "it's (all) one; word", ""]
    up = Container(service, tmp_path, 15_001, SASL_PLAINTEXT=15_002, SSL=15_003, SASL_SSL=15_004).up(*arguments)
    command = [*up[: up.index("up")], "config", "--format", "json"]
    project = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    said = project["services"][service]
    assert project["name"] == f"tapeline-{service}-15001"
    assert said["command"] == arguments
    assert said["user"] == f"{os.geteuid()}:{os.getegid()}"
    assert [(mount["source"], mount["target"]) for mount in said["volumes"]] == [(str(tmp_path), str(tmp_path))]
    assert {port["host_ip"] for port in said["ports"]} == {"127.0.0.1"}
    assert [(int(port["published"]), port["target"]) for port in said["ports"]] == [
        (number, number) for number in ([15_001, 15_002, 15_003, 15_004] if service == "kafka" else [15_001])
    ]
