"""Kafka topics that are made anew, and brokers that come back with less: what comes after is kept, under numbers that nobody had."""

from __future__ import annotations

import concurrent.futures
import shutil
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from places import Place, column, nothing, polled

from made import raws, ticks
from proving import proof
from tapeline.config import StreamConfig
from tapeline.errors import Refused, Unavailable
from tapeline.records import RAW_TOPIC, TICKS_TOPIC, TOPICS
from tapeline.secret import NO_SECRET
from tapeline.streams import PartitionLost
from tapeline.streams.kafka import group, transactions
from tapeline.streams.kafka.cluster import Cluster
from tapeline.streams.kafka.errors import ClusterErrors
from tapeline.streams.kafka.group import GroupMember
from tapeline.streams.kafka.messages import Stretch
from tapeline.streams.kafka.numbering import Numbering
from tapeline.streams.kafka.stretches import StretchRow, number_of, stretches_of
from tapeline.streams.lives import crossed
from waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.kafka import KafkaBroker

    from tapeline.records import Chunk, Topic
    from tapeline.streams import Member, Stream

LIVES = "market-data.lives"
kafka = pytest.mark.parametrize("place", ["kafka-arrow"], indirect=True)


def in_full(value: Any) -> Any:
    """A value for `make prove` alone: each of these brokers takes half a minute to start and end."""
    return pytest.param(value, marks=proof("streams", quick=False))


# How messages are numbered.


def test_all_requests_go_through_one_client(kafka_broker: KafkaBroker) -> None:
    """A client that waits for nothing is false, so `client or AdminClient(...)` makes a new one, with connections of its own, each time."""
    cluster = Cluster(StreamConfig(url=kafka_broker.url, topic_prefix="one-client-"), NO_SECRET)
    cluster.count(RAW_TOPIC)
    first = cluster._asker()
    until(lambda: not first, "it waits for nothing")
    assert cluster._asker() is first


def test_who_needs_only_what_is_known_does_not_wait_for_the_brokers(kafka_broker: KafkaBroker) -> None:
    cluster = Cluster(StreamConfig(url=kafka_broker.url, topic_prefix="not-waiting-"), NO_SECRET)
    numbering = Numbering(cluster)
    begun = numbering.begun(RAW_TOPIC)
    asking, answering = threading.Event(), threading.Event()
    ids = cluster.ids

    def slow(names: Sequence[str], patience_s: float) -> dict[str, str]:
        asking.set()
        assert answering.wait(PATIENCE_S)
        return ids(names, patience_s)

    cluster.ids = slow  # type: ignore[method-assign]
    looking = threading.Thread(target=numbering.look)
    looking.start()
    assert asking.wait(PATIENCE_S)
    numbering._looked_s = time.monotonic()  # however long the test has taken so far
    assert numbering.begun(RAW_TOPIC) == begun
    assert looking.is_alive(), "it was answered while the brokers were asked"
    answering.set()
    looking.join()


def row(epoch: int, base: int, end: int = 0, bits: int = 16) -> StretchRow:
    return StretchRow("t", "id", 0, epoch, base, bits, end)


def test_a_later_stretch_begins_above_thirty_thousand_messages_a_second_of_the_one_before() -> None:
    now = time.time_ns()
    assert number_of(now + 10**9) - number_of(now) >= 32_767 << 16
    assert number_of(5_000_000_000 * 10**9) < 2**63
    assert number_of(now) > 10**12 << 20, "above a million million messages that were numbered before there were stretches"


def test_the_first_word_about_an_epoch_holds_and_none_goes_back() -> None:
    said = [row(3, 0, 100, 20), row(5, 1 << 60), row(5, 1 << 61), row(4, 1 << 62), row(6, 1 << 59, 50)]
    found = stretches_of(said)
    assert [(one.epoch, one.base) for one in found] == [(3, 0), (5, 1 << 60), (6, 1 << 60)]
    assert found[-1] == Stretch(6, 1 << 60, 16, 50)


def test_what_a_broker_refused_before_it_answered_does_not_explain_a_later_silence() -> None:
    errors = ClusterErrors("kafka://127.0.0.1:1")
    errors.heard(KafkaError(KafkaError._AUTHENTICATION, "wrong password"))
    assert isinstance(errors.away(), Refused)
    errors.forget()
    errors.heard(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    assert isinstance(errors.away(), Unavailable)
    assert "wrong password" not in str(errors.away())


# What a reader that keeps its own positions, as a store does, makes of it.


class Kept:
    """Reads ticks as a store does: from positions of its own, which outlive the stream."""

    def __init__(self, stream: Stream, positions: dict[int, int] | None = None, topic: Topic = TICKS_TOPIC) -> None:
        self.stream, self.positions, self.topic = stream, dict(positions or {}), topic
        self.numbers: list[int] = []
        self.offsets: list[tuple[int, int]] = []
        self.crossed: set[int] = set()

    def step(self) -> None:
        positions = dict.fromkeys(range(self.stream.partitions), 0) | self.positions
        try:
            chunk = self.stream.read(self.topic, positions, 1_000)
        except Unavailable:
            return
        if chunk is not None:
            self.take(chunk)

    def take(self, chunk: Chunk) -> None:
        self.crossed |= set(crossed(chunk, self.stream.lives))
        assert all(offset >= self.positions.get(p, 0) for p, offset in zip(chunk.partition.tolist(), chunk.offset.tolist(), strict=True))
        name = "sequence" if self.topic is TICKS_TOPIC else "payload"
        self.numbers += [int(value) for value in chunk.batch[name].to_pylist()]
        self.offsets += zip(chunk.partition.tolist(), chunk.offset.tolist(), strict=True)
        self.positions |= chunk.next

    def until(self, *numbers: int) -> None:
        def there() -> bool:
            self.step()
            return set(numbers) <= set(self.numbers)

        until(there, f"{numbers} are read")


def write(stream: Stream, first: int, count: int, topic: Topic = TICKS_TOPIC, partition: int = 0) -> None:
    """Each record a message of its own."""
    deadline = time.monotonic() + PATIENCE_S
    for number in range(first, first + count):
        batch = ticks({"symbol": "A", "sequence": number}) if topic is TICKS_TOPIC else raws(number, 1)
        while True:
            try:
                stream.append(topic, batch, partition)
                break
            except Unavailable:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def remove(place: Place, *names: str) -> None:
    admin = AdminClient({"bootstrap.servers": place.address})
    for done in admin.delete_topics(list(names)).values():
        done.result()


def make(place: Place, *names: str) -> None:
    """As an administrator does, with the settings that a topic has by itself."""
    admin = AdminClient({"bootstrap.servers": place.address})

    def made() -> bool:
        with suppress(KafkaException):  # it is there already, or not quite gone yet
            new = [NewTopic(name, 3, 1) for name in names if name not in topics_of(place)]
        for done in admin.create_topics(new).values() if new else ():
            done.result()
        return set(names) <= topics_of(place)

    until(made, "the topics are there")


def topics_of(place: Place) -> set[str]:
    return set(AdminClient({"bootstrap.servers": place.address}).list_topics(timeout=10).topics)


@pytest.fixture
def broker(own_place: Callable[..., tuple[Place, Any]]) -> tuple[Place, Any]:
    return own_place("kafka-arrow")


@kafka
@pytest.mark.parametrize("topic", [RAW_TOPIC, TICKS_TOPIC], ids=["raw", "normalized"])
@pytest.mark.parametrize("more", [in_full(3), 30], ids=["shorter than it was", "longer than it was"])
@pytest.mark.parametrize("by", ["an administrator", in_full("Tapeline")])
def test_of_a_topic_that_was_made_anew_while_nobody_read_everything_is_read(place: Place, topic: Topic, more: int, by: str) -> None:
    stream = place.open()
    write(stream, 0, 10, topic)
    kept = Kept(stream, topic=topic)
    kept.until(9)
    stream.acknowledge("lake", topic, kept.positions)
    remove(place, place.name(topic))
    if by == "an administrator":
        make(place, place.name(topic))
    place.close()
    write(place.open(), 100, more, topic)
    again = Kept(place.open(), kept.positions, topic)
    assert again.stream.lag(topic, kept.positions)[0] == more
    again.until(100 + more - 1)
    assert again.numbers == list(range(100, 100 + more))
    assert again.crossed == {0}
    assert not set(kept.offsets) & set(again.offsets), "no number is given twice"
    assert not any(again.stream.lag(topic, again.positions).values())
    assert again.stream.ends(topic)[0] == again.positions[0] > kept.positions[0]


@kafka
@pytest.mark.parametrize("more", [in_full(3), 30], ids=["shorter than it was", "longer than it was"])
def test_a_reader_that_runs_while_its_topic_is_made_anew_reads_everything_that_comes(place: Place, more: int) -> None:
    stream = place.open()
    write(stream, 0, 10)
    kept = Kept(stream)
    kept.until(9)
    before = list(kept.offsets)
    remove(place, place.name(TICKS_TOPIC))
    make(place, place.name(TICKS_TOPIC))
    writing = place.open()
    write(writing, 100, more)
    kept.until(*range(100, 100 + more))
    assert kept.numbers == [*range(10), *range(100, 100 + more)]
    assert kept.crossed == {0}
    assert not set(before) & set(kept.offsets[10:])


@kafka
def test_a_topic_that_somebody_removes_under_stages_that_run_is_made_again(place: Place) -> None:
    stream = place.open()
    write(stream, 0, 10)
    kept = Kept(stream)
    kept.until(9)
    remove(place, place.name(TICKS_TOPIC))
    until(lambda: kept.step() or place.name(TICKS_TOPIC) in topics_of(place), "it is made again")
    write(place.open(), 100, 20)
    kept.until(*range(100, 120))
    assert kept.numbers == [*range(10), *range(100, 120)]


# What normalize, a member of a group, makes of it.


class Working:
    """Normalize in small: each raw record becomes a tick with its number."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.member: Member = stream.join("normalize", RAW_TOPIC, "one")
        self.numbers: list[int] = []
        self.crossed: set[int] = set()

    def step(self) -> None:
        with suppress(Unavailable, PartitionLost):
            chunk = self.member.poll(1_000)
            if chunk is not None and chunk.rows:
                found = crossed(chunk, self.stream.lives)
                numbers = [int(payload) for payload in chunk.batch["payload"].to_pylist()]
                rows = [{"symbol": "A", "sequence": number} for number in numbers]
                self.member.commit(chunk, [(TICKS_TOPIC, ticks(*rows)), *nothing()[1:]], {"in": len(numbers)})
                self.numbers += numbers
                self.crossed |= set(found)

    def until(self, *numbers: int) -> None:
        def there() -> bool:
            self.step()
            return set(numbers) <= set(self.numbers)

        until(there, f"{numbers} are read")


@kafka
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("more", [in_full(3), 30], ids=["shorter than it was", "longer than it was"])
def test_a_member_of_a_group_reads_everything_of_a_raw_topic_that_was_made_anew(place: Place, more: int, *, running: bool) -> None:
    stream = place.open()
    write(stream, 0, 10, RAW_TOPIC)
    working = Working(stream)
    working.until(9)
    until(lambda: working.step() or stream.positions("normalize", RAW_TOPIC)[0] == stream.ends(RAW_TOPIC)[0], "it is committed")
    before = stream.positions("normalize", RAW_TOPIC)[0]
    if not running:
        working.member.close()
    remove(place, place.name(RAW_TOPIC))
    make(place, place.name(RAW_TOPIC))
    write(place.open(), 100, more, RAW_TOPIC)
    if not running:
        working = Working(place.open())
    working.until(*range(100, 100 + more))
    working.member.close()
    assert sorted(set(column(place.open(), TICKS_TOPIC, "sequence"))) == [*range(10), *range(100, 100 + more)]
    assert place.open().positions("normalize", RAW_TOPIC)[0] > before
    if running:
        assert working.crossed == {0}


@kafka
def test_an_error_of_one_partition_takes_nothing_from_the_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that comes up may say for a moment that it does not know a partition. It cannot be made to say so: the answer is put in."""
    stream = place.open()
    assert stream.partitions == 3
    consume, given = Consumer.consume, []

    class Answering(Consumer):
        def consume(self, *args: Any) -> list[Message]:
            came = consume(self, *args)
            if came and not given:
                given.extend(message.partition() for message in came)
                unknown = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
                came.insert(1, Message(topic=place.name(RAW_TOPIC), partition=0, offset=0, error=unknown))
            return came

    monkeypatch.setattr("tapeline.streams.kafka.cluster.Consumer", Answering)
    working = Working(place.open())
    for partition in range(3):
        write(stream, 10 * partition, 10, RAW_TOPIC, partition)
    working.until(29)
    working.until(*range(30))
    assert given, "the error came among records"
    assert sorted(working.numbers) == list(range(30))
    working.member.close()
    assert not any(stream.lag(RAW_TOPIC, stream.positions("normalize", RAW_TOPIC)).values())


def test_a_broker_killed_while_it_assigns_partitions_costs_time_alone(broker: tuple[Place, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    place, server = broker
    stream = place.open()
    for partition in range(3):
        write(stream, 10 * partition, 10, RAW_TOPIC, partition)
    assigned, again = GroupMember._assigned, concurrent.futures.ThreadPoolExecutor(1)
    killed = []

    def killing(self: GroupMember, *args: Any) -> None:
        with monkeypatch.context() as impatient:
            if not killed:
                server.kill()
                impatient.setattr(transactions, "ASK_S", 0.5)  # so that the broker is back while the member asks a second time
            assigned(self, *args)
        if not killed:
            killed.append(again.submit(server.start))

    monkeypatch.setattr(GroupMember, "_assigned", killing)
    monkeypatch.setattr(group, "SESSION_S", 60.0)  # else the group may give the partitions once more, which mends everything
    working = Working(place.open())
    working.until(*range(30))
    killed[0].result()
    working.member.close()
    assert sorted(working.numbers) == list(range(30))
    # A broker that has just come back may give a reader nothing at first.
    reader = place.open()
    until(lambda: sorted(column(reader, TICKS_TOPIC, "sequence")) == list(range(30)), "a reader gets each once")


@kafka
def test_a_place_of_the_life_before_that_a_group_still_has_is_none_in_the_new_one(place: Place) -> None:
    stream = place.open()
    write(stream, 0, 10, RAW_TOPIC)
    working = Working(stream)
    working.until(9)
    working.member.close()
    (said,) = _committed(place, "normalize")
    remove(place, place.name(RAW_TOPIC))
    make(place, place.name(RAW_TOPIC))
    write(place.open(), 100, 30, RAW_TOPIC)
    group = Consumer({"bootstrap.servers": place.address, "group.id": f"{place.prefix}tapeline-normalize"})
    group.commit(offsets=[TopicPartition(place.name(RAW_TOPIC), 0, said.offset, said.metadata)], asynchronous=False)
    group.close()
    again = Working(place.open())
    again.until(*range(100, 130))
    again.member.close()
    assert again.crossed == {0}


def _committed(place: Place, group: str) -> list[TopicPartition]:
    consumer = Consumer({"bootstrap.servers": place.address, "group.id": f"{place.prefix}tapeline-{group}"})
    found: list[TopicPartition] = consumer.committed([TopicPartition(place.name(RAW_TOPIC), 0)], timeout=20)
    consumer.close()
    return found


# Brokers that come back with less.


@pytest.mark.parametrize("more", [in_full(3), 40], ids=["shorter than it was", "longer than it was"])
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_of_a_broker_that_is_restored_from_an_older_copy_everything_new_is_read_and_no_number_is_given_twice(
    broker: tuple[Place, Any], more: int, *, running: bool
) -> None:
    place, server = broker
    stream = place.open()
    write(stream, 0, 10)
    kept = Kept(stream)
    kept.until(9)
    copy(server)
    write(stream, 10, 20)
    kept.until(29)
    before = list(kept.offsets)
    if not running:
        stream.acknowledge("lake", TICKS_TOPIC, kept.positions)
        place.close()
    restore(server)
    write(place.open(), 100, more)
    if not running:
        kept = Kept(place.open(), kept.positions)
    kept.until(*range(100, 100 + more))
    assert kept.numbers[-more:] == list(range(100, 100 + more))
    assert kept.numbers[:-more] == (list(range(30)) if running else []), "what was had already does not come again"
    assert kept.crossed == {0}
    new = kept.offsets[-more:]
    assert min(new) > max(before)
    assert not any(kept.stream.lag(TICKS_TOPIC, kept.positions).values())
    place.close()
    again = Kept(place.open(), kept.positions)
    write(again.stream, 200, 2)
    again.until(201)
    assert (again.numbers, again.crossed) == ([200, 201], set())


def copy(server: Any) -> None:
    server.stop()
    shutil.copytree(server.data, server.folder / "copy")
    server.start()


def restore(server: Any) -> None:
    server.stop()
    shutil.rmtree(server.data)
    shutil.copytree(server.folder / "copy", server.data)
    server.start()


def test_a_broker_that_only_went_away_has_forgotten_nothing(broker: tuple[Place, Any]) -> None:
    place, server = broker
    stream = place.open()
    write(stream, 0, 10)
    kept = Kept(stream)
    kept.until(9)
    for turn, stop in enumerate((server.stop, server.kill, server.stop)):
        stop()
        server.start()
        write(stream, 10 + turn, 1)
        kept.until(10 + turn)
    kept.until(12)
    assert (kept.numbers, kept.crossed) == (list(range(13)), set())
    fresh = Kept(place.open())
    fresh.until(12)
    assert fresh.offsets == kept.offsets, "each record has one number for good"
    for at in range(13):
        part = Kept(place.open(), {0: kept.offsets[at][1]})
        part.until(12)
        assert (part.numbers, part.crossed) == (list(range(at, 13)), set())
        place.close()


@kafka
def test_clients_that_know_no_broker_any_more_are_replaced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that goes down may say that there is none at all, and librdkafka forgets every address then."""
    heard: list[Callable[[str], None]] = []
    texts: list[str] = []
    real = Cluster._watched

    def watched(self: Cluster) -> Callable[[str], None]:
        hear = real(self)
        heard.append(hear)
        return lambda text: (texts.append(text), hear(text))[1]

    monkeypatch.setattr(Cluster, "_watched", watched)
    monkeypatch.setattr("tapeline.streams.kafka.cluster._BROKERS_EVERY_S", 0.2)
    stream = place.open()
    write(stream, 0, 10)
    kept = Kept(stream)
    kept.until(9)
    until(lambda: kept.step() or len(texts) > 5, "clients say what they know")
    made = len(heard)
    write(stream, 10, 1)
    kept.until(10)
    assert len(heard) == made, "a client that knows a broker is kept"
    for hear in heard[:made]:
        hear('{ "brokers":{ "GroupCoordinator":{ "source":"logical" } } }')
    write(stream, 11, 1)
    kept.until(11)
    assert len(heard) >= made + 2, "one that writes and one that reads"
    assert (kept.numbers, kept.crossed) == (list(range(12)), set())


@kafka
def test_a_client_that_believes_in_no_leader_of_a_lower_epoch_is_asked_once(place: Place) -> None:
    cluster = place.open()._cluster
    asked: list[object] = []

    def ask() -> int:
        asked.append(cluster._asker())
        if len(asked) == 1:
            raise KafkaException(KafkaError(KafkaError._NOENT, "No leaders found"))
        return 7

    assert cluster.request(ask) == 7
    assert asked[0] is not asked[1]


@pytest.mark.parametrize("more", [in_full(3), 40], ids=["shorter than it was", "longer than it was"])
def test_of_a_new_and_empty_broker_everything_is_read_though_positions_of_the_old_one_are_kept(
    broker: tuple[Place, Any], more: int
) -> None:
    """The topics are new there, and so are their ids: nothing of the old broker is needed to see it."""
    place, server = broker
    stream = place.open()
    write(stream, 0, 10)
    kept = Kept(stream)
    kept.until(9)
    place.close()
    server.stop()
    shutil.rmtree(server.data)
    server.start()
    write(place.open(), 100, more)
    again = Kept(place.open(), kept.positions)
    again.until(*range(100, 100 + more))
    assert (again.numbers, again.crossed) == (list(range(100, 100 + more)), {0})


# Topics of before there were stretches, and the topic that says them.


def test_topics_of_before_keep_the_positions_that_stores_and_groups_have_of_them(broker: tuple[Place, Any]) -> None:
    place, server = broker
    make(place, *(topic.name for topic in TOPICS.values()))
    old = Producer({"bootstrap.servers": server.address})
    for number in range(10):
        old.produce(TICKS_TOPIC.name, bytes(_encoded(ticks({"symbol": "A", "sequence": number}))), partition=0)
        old.produce(RAW_TOPIC.name, bytes(_encoded(raws(number, 1))), partition=0)
    assert old.flush(20) == 0
    group = Consumer({"bootstrap.servers": server.address, "group.id": "tapeline-normalize"})

    def committed() -> bool:
        with suppress(KafkaException):  # the broker has only just been asked for the first group
            group.commit(offsets=[TopicPartition(RAW_TOPIC.name, 0, 4, '{"in":4}')], asynchronous=False)
            return True
        return False

    until(committed, "the group has a place")
    group.close()
    stream = place.open()
    kept = Kept(stream, {0: 6 << 20})
    kept.until(9)
    assert kept.offsets == [(0, number << 20) for number in range(6, 10)]
    assert (stream.positions("normalize", RAW_TOPIC)[0], stream.totals("normalize")) == (4 << 20, {"in": 4})
    member = stream.join("normalize", RAW_TOPIC, "one")
    assert polled(member).offset.tolist() == [number << 20 for number in range(4, 10)]
    member.close()
    server.stop()
    server.start()
    write(stream, 10, 1)
    kept.until(10)
    assert (kept.numbers, kept.crossed) == (list(range(6, 11)), set())
    assert kept.offsets[-1][1] > 10**12 << 20


def _encoded(batch: Any) -> memoryview:
    from tapeline.streams.codecs import arrow

    return arrow.encode(batch)


@kafka
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_where_the_topic_that_says_the_numbers_is_removed_alone_nothing_is_passed_over(place: Place, *, running: bool) -> None:
    stream = place.open()
    write(stream, 0, 10)
    write(stream, 0, 10, RAW_TOPIC)
    working = Working(stream)
    working.until(9)
    working.member.close()
    kept = Kept(stream)
    kept.until(9)
    remove(place, place.prefix + LIVES)
    if running:
        until(lambda: kept.step() or place.prefix + LIVES in topics_of(place), "it is made again")
    else:
        place.close()
        kept = Kept(place.open(), kept.positions)
    write(kept.stream, 100, 3)
    kept.until(100, 101, 102)
    if running:
        assert sorted(kept.numbers) == sorted([*range(10), *kept.numbers[10:]])
        assert len(set(kept.offsets)) == len(kept.offsets)


@kafka
def test_what_several_readers_see_first_has_one_number(place: Place) -> None:
    streams = [place.open() for _ in range(4)]
    write(place.open(), 0, 5)
    kept = [Kept(stream) for stream in streams]
    for one in kept:
        one.until(4)
    assert len({tuple(one.offsets) for one in kept}) == 1
    assert column(streams[0], TICKS_TOPIC, "sequence") == kept[1].numbers
