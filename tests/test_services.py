"""The real servers of the tests: they start, answer, keep their data through a crash, hold still when paused, and go when we go."""

from __future__ import annotations

import os
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
from services import kafka, redis
from services.kafka import KafkaBroker
from services.process import Missing, ServerFailed, free_port, lives
from services.redis import RedisServer

from brokers import need

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.postgres import PostgresServer
    from services.process import Tls

_QUIET = {"log_level": 0, "socket.timeout.ms": 5_000}


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


def test_redis_keeps_its_data_through_a_crash(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis(password="between us", maxmemory="64mb")
    assert server.ask("SET", "seen", "yes") == "+OK"
    server.kill()
    with pytest.raises(ConnectionRefusedError):
        server.ask("PING")
    assert server.start().ask("GET", "seen") == "yes"
    with pytest.raises(ServerFailed, match="runs already"):
        server.start()
    server.password = "something else"
    assert server.ask("GET", "seen").startswith("-")


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


def test_postgres_keeps_its_data_through_a_crash_and_holds_still_when_paused(own_postgres: Callable[..., PostgresServer]) -> None:
    server = own_postgres()
    server.ask("CREATE TABLE kept AS SELECT 1 AS one")
    server.kill()
    assert server.start().ask("SELECT one FROM kept") == "1"
    server.pause()
    with pytest.raises(subprocess.TimeoutExpired):
        server.ask("SELECT 1", timeout_s=0.3)
    server.resume()
    assert server.restart().ask("SELECT one FROM kept") == "1"


def test_a_server_that_cannot_start_says_what_its_log_says(tmp_path: Path) -> None:
    need(redis)
    server = RedisServer(tmp_path, settings="no-such-setting yes")
    with pytest.raises(ServerFailed, match=r"(?s)redis\.log ends with:.*no-such-setting"):
        server.start()
    assert not server.running


def test_nothing_stays_when_we_are_killed(tmp_path: Path) -> None:
    need(redis)
    script = "import sys, time, pathlib; from services.redis import RedisServer; s = RedisServer(pathlib.Path(sys.argv[1])).start();"
    script += "print(s.pid, flush=True); time.sleep(60)"
    ours = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    with ours:
        assert ours.stdout is not None
        server = int(ours.stdout.readline())
        ours.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while lives(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not lives(server)


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
        assert "NOT RUN: 1 test: redis cannot be had here: redis-server is not installed (make services)" in done.stdout
        assert "NOT RUN: 2 tests: kafka cannot be had here: no Java 17 or later (make services)" in done.stdout


def test_a_missing_server_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAPELINE_CACHE", str(tmp_path))
    with pytest.raises(Missing):
        kafka.find()
