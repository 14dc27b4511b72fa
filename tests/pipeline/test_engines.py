"""The example engines in other languages read what Tapeline publishes, with market_data.proto alone (examples/engine)."""

from __future__ import annotations

import csv
import subprocess
import time
from collections import Counter
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from bench.market_data import message_class
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from processes import Home, Spawner, block, records
from services import engines
from services.process import Missing, free_port

from brokers import fresh_prefix
from proving import proof
from tapeline.records import TICKS_TOPIC
from waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.kafka import KafkaBroker

#: A clean build of the one in C++ takes seconds. The others take half a minute and more, so they are for proofs.
QUICK = "cpp"
every_engine = pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=proof("readers", quick=name == QUICK)) for name in engines.LANGUAGES], indirect=True
)
Tick = tuple[str, int, str, float | None, float | None, float | None]
Id = tuple[int, int, int]


class Market(NamedTuple):
    """A topic that a whole pipeline has filled."""

    address: str
    topic: str
    #: What Tapeline's own reader says of it.
    ticks: dict[Id, Tick]
    partitions: int = 3


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> list[str]:
    """The command that runs an engine."""
    try:
        return engines.build(request.param)
    except Missing as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture(scope="module")
def market(kafka_broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    folder = tmp_path_factory.mktemp("market")
    spawn = Spawner(folder / "said")
    simulator = spawn("simulate", "binance", "--rate", "3000", "--limit", "4500")
    url = simulator.says(" at ").splitlines()[0].rpartition(" at ")[2].strip()
    prefix = fresh_prefix()
    home = Home(folder / "data", spawn)
    stream = f'[stream]\nurl = "{kafka_broker.url}"\ntopic_prefix = "{prefix}"\npartitions = 3\n'
    home.configure(stream + block("binance", url, ["BTCUSDT", "ETHUSDT", "SOLUSDT"], ["trade", "bookTicker"]))
    assert home.run("--until-idle", "1") == 0
    with closing(home.stream()) as opened:
        rows = records(opened, TICKS_TOPIC)
    ticks = {identity(row): (row["symbol"], row["ts_ns"], row["kind"], row["last"], row["bid"], row["ask"]) for row in rows}
    assert len(ticks) == len(rows) == 4500
    yield Market(kafka_broker.address, f"{prefix}{TICKS_TOPIC.name}", ticks)
    spawn.end()


@pytest.fixture
def topic(kafka_broker: KafkaBroker) -> str:
    """An empty topic with one partition."""
    name = f"{fresh_prefix()}{TICKS_TOPIC.name}"
    admin = AdminClient({"bootstrap.servers": kafka_broker.address})
    admin.create_topics([NewTopic(name, 1)])[name].result()
    return name


def identity(row: dict[str, Any]) -> Id:
    return int(row["raw_partition"]), int(row["raw_offset"]), int(row["raw_index"])


def parsed(text: str) -> list[tuple[Id, Tick]]:
    """The lines of an engine's CSV. The last one may be cut off, if the engine was killed."""
    lines = text[: text.rindex("\n") + 1].splitlines()

    def price(text: str) -> float | None:
        return float(text) if text else None

    return [
        (identity(row), (row["symbol"], int(row["ts_ns"]), row["kind"], price(row["last"]), price(row["bid"]), price(row["ask"])))
        for row in csv.DictReader(lines)
    ]


def read(engine: list[str], address: str, topic: str, *options: str, group: str = "test") -> str:
    """What an engine prints from its start to its end."""
    command = [*engine, "--brokers", address, "--topic", topic, "--group", group, "--from", "earliest", *options]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def running(engine: list[str], market: Market, group: str) -> Iterator[subprocess.Popen[str]]:
    """An engine that runs beside the test, which reads its lines."""
    command = [*engine, "--brokers", market.address, "--topic", market.topic, "--group", group, "--from", "earliest"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def committed(market: Market, group: str) -> bool:
    """Whether the group has committed a position."""
    with closing(Consumer({"bootstrap.servers": market.address, "group.id": group})) as looking:
        positions = [TopicPartition(market.topic, partition) for partition in range(market.partitions)]
        return any(place.offset > 0 for place in looking.committed(positions, timeout=10))


def publish(address: str, topic: str, *messages: dict[str, Any], abort: bool = False) -> None:
    """Write messages in a transaction."""
    make = message_class()
    producer = Producer({"bootstrap.servers": address, "transactional.id": topic})
    producer.init_transactions()
    producer.begin_transaction()
    for message in messages:
        producer.produce(topic, make(**message).SerializeToString(), message["symbol"])
    producer.flush()
    (producer.abort_transaction if abort else producer.commit_transaction)()


@every_engine
def test_an_engine_reads_every_tick_once_and_continues_where_it_stopped(engine: list[str], market: Market) -> None:
    group = fresh_prefix()
    parts = [parsed(read(engine, market.address, market.topic, "--count", count, group=group)) for count in ("1700", "2800")]
    assert [len(part) for part in parts] == [1700, 2800]
    assert dict(parts[0] + parts[1]) == market.ticks
    assert parsed(read(engine, market.address, market.topic, "--idle", "3", group=group)) == []


@every_engine
def test_an_engine_prints_every_price_exactly_and_no_tick_of_a_transaction_that_was_aborted(
    engine: list[str], kafka_broker: KafkaBroker, topic: str
) -> None:
    prices = [0.0, 1e-8, 0.1 + 0.2, 67187.25, 1e21, 1.7976931348623157e308, 5e-324, 123456789.12345678]
    trades = [
        {"symbol": "BTC/USDT", "timestamp_ns": 1_710_504_000_000_000_001, "kind": "trade", "last_price": price, "raw_offset": at}
        for at, price in enumerate(prices)
    ]
    quotes = [
        {"symbol": "币安/USDT", "timestamp_ns": -1, "kind": "quote", "ask": 2.5, "raw_partition": 2, "raw_offset": 2**62, "raw_index": 7},
        {"symbol": "SPY251219C00650000", "timestamp_ns": 0, "kind": "quote", "bid": 0.0, "raw_offset": 100},
    ]
    publish(kafka_broker.address, topic, *trades)
    publish(kafka_broker.address, topic, *({**trade, "symbol": "ABORTED"} for trade in trades), abort=True)
    publish(kafka_broker.address, topic, *quotes)
    found = parsed(read(engine, kafka_broker.address, topic, "--count", str(len(trades + quotes))))
    names = ("symbol", "timestamp_ns", "kind", "last_price", "bid", "ask")
    assert [tick for _, tick in found] == [tuple(message.get(name) for name in names) for message in trades + quotes]
    assert [event for event, _ in found] == [(0, at, 0) for at in range(len(prices))] + [(2, 2**62, 7), (0, 100, 0)]


@every_engine
def test_an_engine_that_is_killed_continues_and_loses_no_tick(engine: list[str], market: Market) -> None:
    group = fresh_prefix()
    with running(engine, market, group) as first:
        assert first.stdout is not None
        said = [first.stdout.readline() for _ in range(1000)]
        while not committed(market, group):
            # Read on slowly: the engine waits while nobody takes its lines.
            said += [first.stdout.readline() for _ in range(20)]
        first.kill()
        before = parsed("".join(said) + first.stdout.read())
    assert len(before) < len(market.ticks), "it was killed too late"
    with running(engine, market, group) as second:
        assert second.stdout is not None
        said, missing = [second.stdout.readline()], market.ticks.keys() - dict(before).keys()
        while missing:
            said.append(second.stdout.readline())
            assert said[-1], "it ended early"
            missing -= dict(parsed(said[0] + said[-1])).keys()
        second.terminate()
        after = parsed("".join(said) + second.stdout.read())
        assert second.wait(PATIENCE_S) in (0, 143), "143 is what Java says of SIGTERM"
    assert dict(before + after) == market.ticks
    assert max(Counter(event for event, _ in before).values()) == max(Counter(event for event, _ in after).values()) == 1
    assert len(after) < len(market.ticks), "it began anew"


@every_engine
def test_an_engine_prints_the_percentiles_of_the_time_since_receipt(engine: list[str], kafka_broker: KafkaBroker, topic: str) -> None:
    now = time.time_ns()
    ages = [{"symbol": "BTC/USDT", "kind": "trade", "received_ns": now - ms * 1_000_000} for ms in range(3000, 4000)]
    publish(kafka_broker.address, topic, *ages)
    (row,) = csv.DictReader(read(engine, kafka_broker.address, topic, "--latency", "60", "--count", "1000").splitlines())
    took_ms = (time.time_ns() - now) / 1e6
    assert int(row["ticks"]) == 1000
    for name, age_ms in {"p50_ms": 3499, "p99_ms": 3989, "p99.9_ms": 3998}.items():
        assert age_ms <= float(row[name]) <= min(age_ms + took_ms, 10_000) + 0.01


@proof("readers", quick=False)
@pytest.mark.parametrize("engine", engines.LANGUAGES, indirect=True)
def test_an_engine_waits_for_a_kafka_that_is_away_and_reads_on(engine: list[str], own_kafka: Callable[..., KafkaBroker]) -> None:
    broker = own_kafka()
    market = Market(broker.address, TICKS_TOPIC.name, {}, 1)
    broker.create_topic(market.topic, market.partitions)
    publish(market.address, market.topic, {"symbol": "BEFORE"})
    with running(engine, market, "engine") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("symbol,")
        assert process.stdout.readline().startswith("BEFORE,")
        until(lambda: committed(market, "engine"), "it commits")
        broker.stop()
        time.sleep(3)  # so that it sees it
        broker.start()
        publish(market.address, market.topic, {"symbol": "AFTER"})
        assert process.stdout.readline().startswith("AFTER,")
        process.terminate()
        assert process.wait(PATIENCE_S) in (0, 143)
    assert parsed(read(engine, market.address, market.topic, "--idle", "5", group="engine")) == []


@every_engine
def test_an_engine_says_what_is_wrong(engine: list[str], kafka_broker: KafkaBroker, topic: str) -> None:
    with closing_producer(kafka_broker.address) as producer:
        producer.produce(topic, b"\xff")
    nobody, missing = f"127.0.0.1:{free_port()}", fresh_prefix() + "missing"
    wrong = {
        f"no Kafka broker answers at {nobody}": ["--brokers", nobody],
        f"cannot read the topic {missing} at {kafka_broker.address} (": ["--topic", missing],
        f"{topic}, partition 0, offset 0 is no MarketData message": [],
    }
    usual = {"--brokers": kafka_broker.address, "--topic": topic, "--group": topic, "--from": "earliest"}
    started = []
    for options in wrong.values():
        given = usual | dict(zip(options[::2], options[1::2], strict=True))
        command = [*engine, *(word for pair in given.items() for word in pair)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    for text, process in zip(wrong, started, strict=True):
        said = process.communicate(timeout=PATIENCE_S)[1]
        assert process.returncode == 1, said
        assert text in said


@contextmanager
def closing_producer(address: str) -> Iterator[Producer]:
    producer = Producer({"bootstrap.servers": address})
    yield producer
    producer.flush()


@proof("readers", quick=False)
@pytest.mark.parametrize(
    ("engine", "checks"),
    [
        ("go", ["gofmt -l .", "go vet ./..."]),
        ("rust", ["cargo fmt --check", "cargo clippy -q --release -- -D warnings"]),
    ],
    indirect=["engine"],
)
def test_the_code_follows_the_customs_of_its_language(engine: list[str], checks: list[str], request: pytest.FixtureRequest) -> None:
    language = request.node.callspec.params["engine"]
    assert {check: engines.run_in(language, check) for check in checks} == dict.fromkeys(checks, "")


def test_the_documentation_shows_how_to_build_and_run_each_engine() -> None:
    page = (engines.ROOT / "docs" / "engine.md").read_text().splitlines()
    for language in engines.LANGUAGES:
        for command in engines.commands(language):
            assert any(line.startswith(command) for line in page), command
