"""Through real brokers, socket to lake and receipt to a plain consumer, beside what the broker itself can do."""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import redis
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient
from redis.typing import KeyT, StreamIdT
from services import engines, postgres
from services.kafka import KafkaBroker
from services.postgres import PostgresServer
from services.process import Server
from services.redis import RedisServer

from bench import whole
from bench.latency import COLUMNS, cells
from bench.machine import pipeline, scratch, table, write_config
from bench.market_data import message_class
from bench.prepared import record, serving

_EVENTS = 1_500_000
_ROUNDS = 3
_RATE = 10_000
_SECONDS = 20
_WARM_UP_S = 60
_TOPIC = "market-data.normalized"
_SERVERS: dict[str, type[Server]] = {"kafka": KafkaBroker, "redis": RedisServer}
#: About what a tick is on the wire.
_RECORD_BYTES = 140


def throughput() -> str:
    """Socket to lake through each broker with each codec, beside the broker's own tool. Each broker is anew for each codec."""
    rows: list[Sequence[object]] = []
    for name in _SERVERS:
        ceiling = statistics.median(_ceiling(name) for _ in range(_ROUNDS))
        for codec in ("protobuf", "arrow"):
            with _recording() as frames, _server(name) as server:
                runs = []
                for _ in range(_ROUNDS + 1):
                    runs.append(whole.once(frames, _EVENTS, server.url, codec))
                    _empty(server)
                del runs[0]  # a broker in use has been up for days: its just-in-time compiler is done
            rates = [run.rate for run in runs]
            lost, doubled = sum(run.lost for run in runs), sum(run.doubled for run in runs)
            rows.append([name, codec, statistics.median(rates), f"{min(rates):,.0f} to {max(rates):,.0f}", lost, doubled, ceiling])
    return (
        "The simulator, the broker, ingest, normalize, the lake and the ledger share two cores. The simulator sends recorded frames,"
        f" {_EVENTS:,} events in each run. Each row shows {_ROUNDS} runs. A run before them warms up the broker. The ceiling is the rate at"
        f" which the broker's own tool writes records of {_RECORD_BYTES} bytes on the idle machine. The tools are"
        " `kafka-producer-perf-test`, and `redis-benchmark` with XADD and 64 commands in a pipeline.\n\n"
        + table(["broker", "codec", "ticks/s, median", "range", "lost", "doubled", "ceiling, records/s"], rows)
    )


@contextmanager
def _recording() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield record(Path(folder) / "frames", _EVENTS)


def _empty(server: Server) -> None:
    """Let a broker forget what it has been sent."""
    if not isinstance(server, KafkaBroker):
        redis.Redis(port=server.port).flushall()
        return
    admin = AdminClient({"bootstrap.servers": server.address})
    names = [name for name in admin.list_topics(timeout=10).topics if not name.startswith("__")]
    for deleted in admin.delete_topics(names).values():
        deleted.result()
    while any(name in admin.list_topics(timeout=10).topics for name in names):
        time.sleep(0.2)


def both_stores() -> str:
    """Through Kafka into the lake and PostgreSQL at once."""
    rows = []
    for at in range(_ROUNDS):
        with _server("kafka") as server, _recording() as frames, scratch() as folder, PostgresServer(folder / "server") as database:
            database.ask("ALTER SYSTEM SET track_commit_timestamp = 'on'")
            database.restart()
            database.ask("CREATE DATABASE bench")
            url = database.url.rpartition("/")[0] + "/bench"
            rows.append([f"run {at + 1}", *whole.once(frames, _EVENTS, server.url, "arrow", url, flush_s=5.0)])
    return (
        f"The ticks go through Kafka, as Arrow, into the lake and into PostgreSQL {postgres.installed().version}. A run ends when the"
        f" slower store has all {_EVENTS:,} events. The interval of the flushes is the default. Everything shares two cores. *Lost* and"
        " *doubled* are the figures of the worse store.\n\n" + table(["", "sent", "ticks/s", "lost", "doubled"], rows)
    )


def _ceiling(name: str) -> float:
    with _server(name) as server:
        if isinstance(server, KafkaBroker):
            server.create_topic("ceiling", 4)
            output = server.producer_perf_test("ceiling", records=2_000_000, size=_RECORD_BYTES, acks="all", compression_type="lz4")
            return float(re.findall(r"([\d.]+) records/sec", output)[-1])
        command = ["redis-benchmark", "-p", str(server.port), "-n", "500000", "-P", "64", "-c", "4", "-q", "--csv"]
        output = subprocess.run(
            [*command, "XADD", "ceiling", "*", "d", "x" * _RECORD_BYTES], capture_output=True, text=True, check=True
        ).stdout
        return float(output.strip().splitlines()[-1].split(",")[1].strip('"'))


def latency() -> str:
    """From a frame's receipt to a plain consumer that has parsed the message."""
    rows = [
        [f"{name} {isolation}".strip(), f"run {at + 1}", *cells(_waited(name, isolation))]
        for name, isolation in (("kafka", "read_uncommitted"), ("kafka", "read_committed"), ("redis", ""))
        for at in range(_ROUNDS)
    ]
    return (
        f"Recorded frames arrive at an even {_RATE:,} ticks/s. A plain consumer reads the protobuf messages. It uses only the `.proto`, and"
        " no code of Tapeline. The time of a tick begins with the receipt of its frame, and ends when the consumer has parsed the message."
        f" The measurement lasts {_SECONDS} s, after {_WARM_UP_S} s of warm-up. All stages and the lake run on the same cores.\n\n"
        + table(["reader", "", *COLUMNS], rows)
    )


def in_engines() -> str:
    """From a frame's receipt to the example engines in other languages."""
    commands = {language: engines.build(language) for language in engines.LANGUAGES}
    rows = [[language, f"run {at + 1}", *_engine_waited(command)] for language, command in commands.items() for at in range(_ROUNDS)]
    return (
        f"Recorded frames arrive at an even {_RATE:,} ticks/s, as in the section above. The programs of `examples/engine` read the protobuf"
        " messages, with `read_committed`. The time of a tick begins with the receipt of its frame, and ends when the engine has parsed the"
        f" message. The measurement lasts {_SECONDS} s. Before it, the pipeline runs for {_WARM_UP_S} s, and the engine for the last"
        f" {_SECONDS} s of them. All stages and the lake run on the same cores.\n\n" + table(["engine", "", *COLUMNS], rows)
    )


def _engine_waited(command: Sequence[str]) -> list[object]:
    """What an engine says of the times of its ticks, under COLUMNS."""
    with (
        _recording() as frames,
        _server("kafka") as server,
        tempfile.TemporaryDirectory() as folder,
        serving(frames, _RATE) as url,
        pipeline(write_config(Path(folder), url, 5.0, server.url)),
    ):
        time.sleep(_WARM_UP_S - _SECONDS)
        options = ["--brokers", server.address, "--latency", str(_SECONDS)]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as engine:
            assert engine.stdout is not None
            lines = list(islice(engine.stdout, 3))  # the names of the columns, its warm-up, and what is measured
            engine.terminate()
    assert len(lines) == 3, "the engine ended early"
    ticks, *percentiles = lines[2].strip().split(",")
    return [int(ticks), *percentiles]


def _waited(name: str, isolation: str) -> npt.NDArray[np.int64]:
    """Nanoseconds that each tick took."""
    with _recording() as frames, _server(name) as server, tempfile.TemporaryDirectory() as folder, serving(frames, _RATE) as url:
        market_data = message_class()
        config = write_config(Path(folder), url, 5.0, server.url)
        with pipeline(config):
            time.sleep(_WARM_UP_S)
            messages = _from_kafka(server, isolation) if name == "kafka" else _from_redis(server)
            deadline = time.monotonic() + _SECONDS
            delays: list[int] = []
            for value in messages:
                delays.append(time.time_ns() - market_data.FromString(value).received_ns)
                if time.monotonic() > deadline:
                    break
    return np.array(delays)


def _from_kafka(server: Server, isolation: str) -> Iterator[bytes]:
    consumer = Consumer(
        {
            "bootstrap.servers": server.address,
            "group.id": "plain",
            "isolation.level": isolation,
            "auto.offset.reset": "latest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([_TOPIC])
    settled = time.monotonic() + 3.0
    try:
        while True:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None and time.monotonic() > settled:
                value = message.value()
                assert value is not None, "normalize writes no empty record"
                yield value
    finally:
        consumer.close()


def _from_redis(server: Server) -> Iterator[bytes]:
    with closing(redis.Redis(port=server.port)) as client:
        keys = [f"{_TOPIC}:{partition}" for partition in range(4)]
        last: dict[KeyT, StreamIdT] = {key: client.xinfo_stream(key)["last-generated-id"] for key in keys}
        while True:
            answer = client.xread(last, count=1000, block=1000)
            assert isinstance(answer, list), "a client with the usual settings returns lists"
            for key, entries in answer:
                last[key.decode()] = entries[-1][0]
                for _, fields in entries:
                    yield fields[b"d"]


@contextmanager
def _server(name: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder, _SERVERS[name](Path(folder)) as server:
        yield server
