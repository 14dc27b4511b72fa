"""Servers that are full, foreign, locked, hidden or gone, and entries that others put there: a clear word, and everything goes on."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pytest
import redis
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic
from places import (
    SERVERS,
    WHOLE,
    Place,
    by_partition,
    column,
    drained,
    everything,
    leave_behind_all,
    open_described,
    polled,
    send_patiently,
)
from services.process import free_port

from made import raws, rejects, ticks
from proving import PROVE, proof
from tapeline.errors import Busy, ConfigError, Refused, Unavailable
from tapeline.records import RAW, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, TOPICS
from tapeline.stages.ingest.delivery import Delivery
from tapeline.stages.ingest.spool import Spool
from tapeline.streams import PartitionLost
from tapeline.streams.embedded import EmbeddedStream
from tapeline.streams.kafka.producing import RawProducer
from waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.process import Tls

    from tapeline.records import Topic

SECRET = "s3cret%/@:word"


# Entries of others.


@pytest.mark.parametrize("place", [name for name in WHOLE if name != "embedded"], indirect=True)
def test_what_a_foreign_client_puts_into_a_topic_stops_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    stream = place.open()
    garbage = [b"", b"no batch", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\x10\x00\x00\x00", b"\x00" * 40, os.urandom(300)]
    for topic in (RAW_TOPIC, TICKS_TOPIC):
        stream.append(topic, raws(0, 2) if topic is RAW_TOPIC else ticks({"sequence": 1, "symbol": "X"}), 1)
        for data in garbage:
            put(place, topic, data)
        stream.append(topic, raws(2, 2) if topic is RAW_TOPIC else ticks({"sequence": 2, "symbol": "X"}), 1)
    chunks = everything(place.open(), RAW_TOPIC)
    rows = [row for chunk in chunks for row in chunk.batch.to_pylist()]
    assert [row["payload"] for row in rows if row["provider"] == "binance"] == [b"0 ", b"1 ", b"2 ", b"3 "]
    assert [row["payload"] for row in rows if row["provider"] == "unknown"] == garbage
    assert column(place.open(), TICKS_TOPIC, "sequence") == [1, 2]
    assert "is not a record of market-data.normalized" in caplog.text
    member = stream.join("normalize", RAW_TOPIC)
    assert [payload for payload in drained(member, 10) if payload not in garbage] == [b"0 ", b"1 ", b"2 ", b"3 "]
    leave_behind_all(stream, member)


def put(place: Place, topic: Topic, data: bytes) -> None:
    """As another program might: into partition 1."""
    if place.kind == "redis":
        with redis.Redis.from_url(place.url) as client:
            client.xadd(place.name(topic, 1), {"d": data})
    else:
        producer = Producer({"bootstrap.servers": place.address})
        producer.produce(place.name(topic), data, partition=1)
        assert producer.flush(20) == 0


@pytest.mark.parametrize("place", ["redis-arrow"], indirect=True)
def test_a_foreign_entry_in_the_raw_stream_of_redis_costs_a_producer_nothing(place: Place) -> None:
    stream = place.open()
    producer = stream.producer("writer")
    for number in range(1, 30):
        producer.send(number, 1, raws(number, 1))
        if number in (5, 20):
            until(lambda: producer.settled() == number, "it is settled")  # noqa: B023
            put(place, RAW_TOPIC, b"foreign")
    until(lambda: producer.settled() == 29, "all are settled")
    producer.close(1.0)
    wanted = [b"%d " % n for n in range(1, 30)]
    assert [payload for payload in column(stream, RAW_TOPIC, "payload") if payload != b"foreign"] == wanted


@pytest.mark.parametrize("place", ["redis-arrow", "redis-protobuf"], indirect=True)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("away", "sequence"), [(0, 7), (1, 0), (1, 7), (3, 0), (5, 0), (6, 0)])
def test_where_a_foreign_entry_lies_close_behind_ours_the_next_of_ours_is_read_all_the_same(
    place: Place, rows: int, away: int, sequence: int
) -> None:
    stream = place.open()
    for topic in (RAW_TOPIC, TICKS_TOPIC):
        made = [(raws if topic is RAW_TOPIC else _numbered)(first, rows) for first in (0, rows)]
        stream.append(topic, made[0], 1)
        end = stream.ends(topic)[1]
        with redis.Redis.from_url(place.url) as client:
            client.xadd(place.name(topic, 1), {"someone": "else"}, id=f"{end + away}-{sequence}")
        between = place.open()
        seen = everything(between, topic)  # who reads before the next of ours is there
        stream.append(topic, made[1], 1)
        seen += everything(between, topic, seen[-1].next)
        for chunks in (seen, everything(place.open(), topic)):
            column_of = "payload" if topic is RAW_TOPIC else "sequence"
            values = [value for chunk in chunks for value in chunk.batch[column_of].to_pylist() if value]
            assert values == [value for batch in made for value in batch[column_of].to_pylist()]


def _numbered(first: int, rows: int) -> pa.RecordBatch:
    return ticks(*[{"symbol": "X", "sequence": 1 + first + row} for row in range(rows)])


@pytest.mark.parametrize("place", ["redis-arrow"], indirect=True)
def test_entries_without_our_field_and_of_the_same_millisecond_are_passed_over(place: Place) -> None:
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 1), 1)
    with redis.Redis.from_url(place.url) as client:
        at = stream.ends(RAW_TOPIC)[1] + 1000
        for entry in (f"{at}-0", f"{at}-1", f"{at}-{2**63}", f"{at + 1}-0"):
            client.xadd(place.name(RAW_TOPIC, 1), {"someone": "else"}, id=entry)
    stream.append(RAW_TOPIC, raws(1, 1), 1)
    payloads = column(stream, RAW_TOPIC, "payload")
    assert [payload for payload in payloads if payload] == [b"0 ", b"1 "]


# Full.


def test_redis_is_full_for_one_batch_and_not_for_the_next_and_neither_is_lost(own_place: Any) -> None:
    place, server = own_place("redis-arrow")
    stream = place.open()
    producer = stream.producer("writer")
    producer.send(1, 0, raws(1, 1))
    until(lambda: producer.settled() == 1)
    for number in (2, 3, 4, 5, 6, 7):
        server.ask("CONFIG", "SET", "maxmemory", "1" if number % 2 else "0")
        producer.send(number, 0, raws(number, 1))
        time.sleep(0.05)
    server.ask("CONFIG", "SET", "maxmemory", "0")
    until(lambda: producer.settled() == 7, "all are settled")
    producer.close(1.0)
    assert column(stream, RAW_TOPIC, "payload") == [b"%d " % n for n in range(1, 8)]


def test_redis_out_of_memory_half_commits_nothing(own_place: Any) -> None:
    place, server = own_place("redis-arrow")
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 3), 0)
    member = stream.join("normalize", RAW_TOPIC, "one")
    chunk = polled(member)
    for totals in ({}, {"in": 3}):
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable, match="full"):
            member.commit(chunk, [(TICKS_TOPIC, ticks({"symbol": "a"}, {"symbol": "b"}))], totals)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert (column(stream, TICKS_TOPIC, "symbol"), stream.totals("normalize")) == ([], {})
        assert stream.positions("normalize", RAW_TOPIC)[0] == 0
        chunk = polled(member)
    member.commit(chunk, [(TICKS_TOPIC, ticks({"symbol": "a"}, {"symbol": "b"}))], {"in": 3})
    member.close()
    assert sorted(column(stream, TICKS_TOPIC, "symbol")) == ["a", "b"]


def test_redis_keeps_what_any_group_has_still_to_read_and_the_writer_waits_for_it(own_place: Any) -> None:
    place, _server = own_place("redis-arrow", memory_mb=16)
    stream = place.open()
    client = redis.Redis.from_url(place.url)
    stream.append(RAW_TOPIC, raws(0, 1), 0)
    client.xgroup_create("market-data.raw:0", "foreign", "0")
    held: Any = client.xreadgroup("foreign", "someone", {"market-data.raw:0": ">"}, count=1)  # and not acknowledged
    written = 1
    said: list[str] = []

    def fill() -> None:
        nonlocal written
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                stream.append(RAW_TOPIC, raws(written, 1, os.urandom(200_000)), 0)
                written += 1
            except Unavailable as error:
                said.append(str(error))
                return
        raise AssertionError("it was never full")

    fill()
    assert "Nothing is dropped" in said[0]
    assert "memory_mb" in said[0]
    assert 50 < written < 150  # of 200 kB each, where 16 MB may be held
    member = stream.join("normalize", RAW_TOPIC, "one")
    numbers = [int(payload.split()[0]) for payload in drained(member, written)]
    assert numbers == list(range(written))
    first = written
    fill()  # nothing goes that the foreign group has not acknowledged
    assert client.xrange("market-data.raw:0", count=1)[0][0] == held[0][1][0][0]
    client.xgroup_destroy("market-data.raw:0", "foreign")
    until(lambda: _appends(stream, written), "it takes records again")
    written += 1
    assert [int(p.split()[0]) for p in drained(member, written - first)] == list(range(first, written))
    for turn in range(2):  # again and again
        first = written
        fill()
        assert written > first
        assert [int(p.split()[0]) for p in drained(member, written - first)] == list(range(first, written))
        until(lambda: _appends(stream, written), f"it takes records again {turn}")  # noqa: B023
        written += 1
        assert [int(p.split()[0]) for p in drained(member, 1)] == [written - 1]
    member.close()
    client.close()


def _appends(stream: Any, number: int) -> bool:
    try:
        stream.append(RAW_TOPIC, raws(number, 1), 0)
    except Unavailable:
        return False
    return True


def test_where_redis_has_trimmed_nothing_waits_for_one_who_reads_from_the_begin(own_place: Any) -> None:
    place, _ = own_place("redis-arrow", memory_mb=16)
    stream = place.open()
    for number in range(120):
        with suppress(Unavailable):
            stream.append(RAW_TOPIC, raws(number, 1, os.urandom(200_000)), 0)
    stream.acknowledge("normalize", RAW_TOPIC, stream.ends(RAW_TOPIC))
    time.sleep(1.1)
    stream.append(RAW_TOPIC, raws(1000, 1), 0)
    stream.acknowledge("normalize", RAW_TOPIC, stream.ends(RAW_TOPIC))
    client = redis.Redis.from_url(place.url)
    client.xtrim("market-data.raw:0", maxlen=0)
    client.close()
    assert stream.read(RAW_TOPIC, {}, 10) is None
    assert not any(stream.lag(RAW_TOPIC, {}).values())


def test_a_redis_that_forgot_its_last_moments_never_gives_their_offsets_again(own_place: Any) -> None:
    place, server = own_place("redis-arrow")
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 3), 0)
    time.sleep(1.2)
    saved = server.folder / "saved"
    shutil.copytree(server.folder / "appendonlydir", saved)
    stream.append(RAW_TOPIC, raws(3, 5), 0)
    seen = stream.ends(RAW_TOPIC)[0]
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    saved.rename(server.folder / "appendonlydir")
    server.start()
    until(lambda: _appends(stream, 100), "it takes records again")
    chunks = everything(stream, RAW_TOPIC)
    offsets = [offset for chunk in chunks for offset in chunk.offset.tolist()]
    assert [p for chunk in chunks for p in chunk.batch["payload"].to_pylist()] == [b"0 ", b"1 ", b"2 ", b"100 "]
    assert offsets[-1] >= seen
    assert stream.lag(RAW_TOPIC, {0: seen})[0] < 10, "as many as there are"
    left = everything(stream, RAW_TOPIC, stream.tail_positions(RAW_TOPIC, 2))
    assert len(by_partition(left, "payload")[0]) >= 2


# Retention.


def test_the_embedded_stream_keeps_what_is_young_or_not_acknowledged(tmp_path: Path) -> None:
    now = [1_000_000_000_000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tapeline.streams.embedded.file._TRIM_EVERY_S", 0.1)
        stream = EmbeddedStream(tmp_path, 3, groups={"normalize": (RAW_TOPIC,)}, retain_s=100.0, clock=lambda: now[0])
        for number in range(30):
            stream.append(RAW_TOPIC, raws(number, 1), 0)
        stream.acknowledge("normalize", RAW_TOPIC, {0: 20, 1: 0, 2: 0})
        time.sleep(1.5)
        assert len(column(stream, RAW_TOPIC, "payload")) == 30
        now[0] += 200 * 1_000_000_000
        stream.append(RAW_TOPIC, raws(30, 1), 0)
        until(lambda: column(stream, RAW_TOPIC, "payload") == [b"%d " % n for n in range(20, 31)])
        stream.acknowledge("normalize", RAW_TOPIC, {0: 31})
        until(lambda: column(stream, RAW_TOPIC, "payload") == [b"30 "])
        stream.append(RAW_TOPIC, raws(31, 1), 0)
        assert stream.ends(RAW_TOPIC)[0] == 32
        stream.close()


@pytest.mark.parametrize("place", ["kafka-arrow", "kafka-protobuf"], indirect=True)
def test_a_reader_whose_records_kafka_has_removed_says_so_and_goes_on(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    stream = place.open()
    for topic in (RAW_TOPIC, TICKS_TOPIC):
        for number in range(20):
            stream.append(topic, raws(number, 1) if topic is RAW_TOPIC else ticks({"sequence": number, "symbol": "X"}), 1)
    raw, made = ([offset for chunk in everything(stream, topic) for offset in chunk.offset.tolist()] for topic in (RAW_TOPIC, TICKS_TOPIC))
    stream.acknowledge("normalize", RAW_TOPIC, {1: raw[3]})
    position = {1: made[5]}
    admin = AdminClient({"bootstrap.servers": place.address})
    from confluent_kafka import TopicPartition

    gone = [TopicPartition(place.name(topic), 1, 12) for topic in (RAW_TOPIC, TICKS_TOPIC)]
    for done in admin.delete_records(gone).values():
        done.result()
    fresh = place.open()
    assert [n for c in everything(fresh, TICKS_TOPIC, position) for n in c.batch["sequence"].to_pylist()] == list(range(12, 20))
    assert "retention has removed the next records" in caplog.text
    caplog.clear()
    member = fresh.join("normalize", RAW_TOPIC)
    assert drained(member, 8) == [b"%d " % n for n in range(12, 20)]
    assert "retention has removed the next records" in caplog.text
    member.close()


# Unreachable.


def calls(stream: Any) -> dict[str, Callable[[], Any]]:
    """Every call that needs the server."""
    return {
        "append": lambda: stream.append(RAW_TOPIC, raws(0, 1), 0),
        "read": lambda: stream.read(RAW_TOPIC, {}, 10),
        "join": lambda: stream.join("normalize", RAW_TOPIC),
        "acknowledge": lambda: stream.acknowledge("lake", TICKS_TOPIC, {0: 1}),
        "positions": lambda: stream.positions("normalize", RAW_TOPIC),
        "totals": lambda: stream.totals("normalize"),
        "ends": lambda: stream.ends(RAW_TOPIC),
        "tail_positions": lambda: stream.tail_positions(RAW_TOPIC, 10),
        "waiting": lambda: stream.lag(RAW_TOPIC, {}),
        "hold": lambda: stream.hold("one"),
    }


@proof("timeouts")
@pytest.mark.parametrize("scheme", ["redis", "kafka"])
def test_a_server_that_is_not_there_is_named_by_every_call(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}"
    for name in calls(None) if PROVE or scheme == "redis" else ["positions"]:
        stream = open_described({"data_dir": str(tmp_path), "stream": {"url": url}})
        with pytest.raises(Unavailable, match=url):
            calls(stream)[name]()
        assert not PROVE or stream.partitions == 4
        stream.close()


@proof("timeouts")
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_went_away_is_named_by_every_call(own_place: Any, name: str) -> None:
    place, server = own_place(name)
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 1), 0)
    server.kill()
    wanted = calls(stream)
    if place.kind == "kafka":
        # Only the first look at the topics is a request. A group answers its members whenever it can, so they wait to be given something.
        del wanted["join"]
    for call in wanted if PROVE or place.kind == "redis" else ("positions",):
        with pytest.raises(Unavailable, match=place.url.rpartition("/")[2] if place.kind == "kafka" else place.url):
            wanted[call]()


def test_who_tells_a_kafka_that_went_away_how_far_it_is_waits_for_seconds_and_so_does_its_end(own_place: Any) -> None:
    place, server = own_place("kafka-arrow")
    stream = place.open()
    stream.append(TICKS_TOPIC, ticks({"symbol": "A"}), 0)
    stream.acknowledge("lake", TICKS_TOPIC, stream.ends(TICKS_TOPIC))
    assert stream.positions("lake", TICKS_TOPIC) == stream.ends(TICKS_TOPIC)
    server.stop()
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        stream.acknowledge("lake", TICKS_TOPIC, {0: 1 << 20})
    stream.close()
    assert time.monotonic() - begun < 9.0


@pytest.mark.parametrize("place", ["kafka-arrow"], indirect=True)
def test_a_group_that_has_nothing_to_hand_out_yet_says_nothing_of_who_holds_a_lease(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class HandsOutNothingAtFirst(Consumer):
        """A group whose first member brings a topic that the broker has only just told it of."""

        later: list[Callable[[], None]]

        def __init__(self, *settings: Any) -> None:
            self.later = []  # a client that joins no group is polled as well
            super().__init__(*settings)

        def subscribe(self, topics: Any, on_assign: Any, **others: Any) -> None:
            given: list[Any] = []

            def assigned(consumer: Any, partitions: Any) -> None:
                on_assign(consumer, partitions if given else [])
                if not given:
                    given.append(partitions)
                    threading.Timer(0.5, lambda: self.later.append(lambda: on_assign(consumer, partitions))).start()

            super().subscribe(topics, on_assign=assigned, **others)

        def poll(self, timeout: float) -> Any:
            while self.later:
                self.later.pop()()
            return super().poll(timeout)

    monkeypatch.setattr("tapeline.streams.kafka.cluster.Consumer", HandsOutNothingAtFirst)
    stream = place.open()
    lease = stream.hold("one")
    lease.keep()
    monkeypatch.undo()
    with pytest.raises(Busy):
        place.open().hold("one")
    lease.drop()
    place.open().hold("one").drop()


def test_a_kafka_that_was_away_for_longer_than_a_session_takes_no_lease_from_its_holder(
    own_place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapeline.streams.kafka.lease.SESSION_S", 1.0)
    place, server = own_place("kafka-arrow")
    stream = place.open()
    lease = stream.hold("an account")

    def kept_for(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(Unavailable):
                lease.keep()
            time.sleep(0.1)

    server.kill()
    kept_for(3.0)
    server.start()
    kept_for(8.0)
    with pytest.raises(Busy):
        place.open().hold("an account")
    lease.keep()
    lease.drop()
    place.open().hold("an account").drop()


def test_a_producer_without_its_server_tries_seldom(own_place: Any) -> None:
    place, server = own_place("redis-arrow")
    producer = place.open().producer("writer")
    producer.send(1, 0, raws(1, 1))
    until(lambda: producer.settled() == 1)
    server.kill()
    tries = 0
    real = redis.connection.Connection._connect

    def counting(self: Any) -> Any:
        nonlocal tries
        tries += 1
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis.connection.Connection, "_connect", counting)
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            with suppress(Unavailable):
                producer.send(2, 0, raws(2, 1))
            producer.settled()
    assert 2 <= tries <= 40
    producer.close(0.0)


# Ways in.


def refused(place: Place, **settings: Any) -> str:
    """The errors of calls with a wrong login. Kafka's client tries each call for ten seconds, so one is enough for every day."""
    texts = []
    for name in ("positions", "append", "read") if PROVE or place.kind == "redis" else ("positions",):
        stream = place.open(**settings)
        with pytest.raises(Refused) as caught:
            calls(stream)[name]()
        texts.append(str(caught.value))
    return "\n".join(texts)


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_redis_with_a_password_in_the_url_the_environment_or_a_file(
    own_place: Any, tls: Tls, tmp_path: Path, secured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, server = own_place("redis-arrow", {"password": SECRET, **({"tls": tls} if secured else {})})
    scheme = "rediss" if secured else "redis"
    ca = {"ca_file": str(tls.authority)} if secured else {}
    place.open(url=f"{scheme}://:{quote(SECRET, safe='')}@{server.address}/0", **ca).append(RAW_TOPIC, raws(0, 1), 0)
    (tmp_path / "secret").write_text(SECRET + "\n")
    url = f"{scheme}://{server.address}/0"
    place.open(url=url, password_file=str(tmp_path / "secret"), **ca).append(RAW_TOPIC, raws(1, 1), 0)
    from tapeline.app.streams import open_stream
    from tapeline.config import Config, StreamConfig

    stream = open_stream(Config(data_dir=str(tmp_path), stream=StreamConfig(url=url, **ca)), {"TAPELINE_STREAM_PASSWORD": SECRET})
    assert column(stream, RAW_TOPIC, "payload") == [b"0 ", b"1 "]
    stream.close()
    said = refused(place, url=f"{scheme}://:wr0ng@{server.address}/0", **ca) + refused(place, url=url, **ca)
    assert "wr0ng" not in said
    assert server.address in said
    if secured:
        with pytest.raises(Unavailable, match="certificate"):
            place.open(url=f"{scheme}://:x@{server.address}/0").ends(RAW_TOPIC)


pytestmark = proof("streams")


@proof("timeouts")
def test_kafka_with_each_way_to_log_in(own_place: Any, tls: Tls, tmp_path: Path) -> None:
    place, broker = own_place("kafka-arrow", {"users": {"alice": "wonder%land"}, "tls": tls})
    (tmp_path / "secret").write_text("wonder%land")
    number = 0
    ca = {"ca_file": str(tls.authority)}
    for listener, scheme, sasl in (
        ("SASL_PLAINTEXT", "kafka", "PLAIN"),
        ("SASL_PLAINTEXT", "kafka", "SCRAM-SHA-512"),
        ("SASL_SSL", "kafkas", "SCRAM-SHA-512"),
        ("SSL", "kafkas", ""),
    ):
        address = broker.addresses[listener]
        if sasl:
            for login in (
                {"url": f"{scheme}://alice@{address}", "password_file": str(tmp_path / "secret")},
                {"url": f"{scheme}://alice:wonder%25land@{address}"},
            ):
                place.open(**login, sasl=sasl, **ca).append(RAW_TOPIC, raws(number, 1), 0)
                number += 1
            for turn in range(1 if sasl == "PLAIN" or PROVE else 0):
                said = refused(place, url=f"{scheme}://alice:wr0ng@{address}", sasl=sasl, **ca)
                assert "wr0ng" not in said
                assert address in said
                del turn
        else:
            place.open(url=f"{scheme}://{address}", **ca).append(RAW_TOPIC, raws(number, 1), 0)
            number += 1
            with pytest.raises(Unavailable, match=r"certificate|SSL"):
                place.open(url=f"{scheme}://{address}").ends(RAW_TOPIC)
    assert column(place.open(), RAW_TOPIC, "payload") == [b"%d " % n for n in range(number)]


# Shared servers.


def works(place: Place, first: int, **settings: Any) -> None:
    """Append, read, lock, deliver, and commit a step: everything that stages ask of a stream."""
    stream = place.open(**settings)
    lease = stream.hold("an account")
    producer = stream.producer("writer")
    send_patiently(producer, 1, 0, raws(first, 1))
    until(lambda: producer.settled() == 1, "it is settled")
    producer.close(1.0)
    member = stream.join("normalize", RAW_TOPIC, "one")
    member.commit(polled(member), [(TICKS_TOPIC, ticks({"symbol": "A", "sequence": first}))], {"in": 1})
    member.close()
    lease.keep()
    lease.drop()
    stream.acknowledge("lake", TICKS_TOPIC, stream.ends(TICKS_TOPIC))
    assert column(stream, TICKS_TOPIC, "sequence") == [first]
    assert stream.totals("normalize") == {"in": 1}


@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_pipelines_with_different_prefixes_share_a_server_and_see_nothing_of_each_other(place: Place) -> None:
    for number, prefix in enumerate(("alice.", "bob.", "")):
        works(place, number, topic_prefix=place.prefix + prefix)


def test_a_user_of_kafka_who_may_touch_only_one_prefix_does_everything_there_and_nothing_elsewhere(own_place: Any) -> None:
    rules = {"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users": "User:ANONYMOUS"}
    place, broker = own_place("kafka-arrow", {"users": {"alice": "secret"}, "settings": rules})
    admin = AdminClient({"bootstrap.servers": broker.address})
    allowed = [
        AclBinding(kind, "alice.", ResourcePatternType.PREFIXED, "User:alice", "*", AclOperation.ALL, AclPermissionType.ALLOW)
        for kind in (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID)
    ]
    for done in admin.create_acls(allowed).values():
        done.result()
    login = {"url": f"kafka://alice:secret@{broker.addresses['SASL_PLAINTEXT']}", "sasl": "PLAIN"}
    works(place, 7, **login, topic_prefix="alice.")
    with pytest.raises(Refused, match="refused"):
        place.open(**login).ends(RAW_TOPIC)


def test_a_user_of_redis_who_may_touch_only_one_prefix_does_everything_there_and_nothing_elsewhere(own_place: Any) -> None:
    place, server = own_place("redis-arrow")
    server.ask("ACL", "SETUSER", "alice", "on", ">secret", "~alice.*", "+@all")
    login = {"url": f"redis://alice:secret@{server.address}/0"}
    works(place, 7, **login, topic_prefix="alice.")
    with pytest.raises(Refused, match="refused"):
        place.open(**login).ends(RAW_TOPIC)


@pytest.mark.parametrize("name", SERVERS)
def test_a_user_whose_right_to_write_is_taken_away_for_a_while_misses_nothing_and_doubles_nothing(
    own_place: Any, name: str, tmp_path: Path
) -> None:
    if name == "redis-arrow":
        place, server = own_place(name)
        server.ask("ACL", "SETUSER", "alice", "on", ">secret", "~*", "+@all")
        url = f"redis://alice:secret@{server.address}/0"
        take, give = ("ACL", "SETUSER", "alice", "-xadd"), ("ACL", "SETUSER", "alice", "+xadd")
        changes = (lambda: server.ask(*take), lambda: server.ask(*give))
    else:
        rules = {"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users": "User:ANONYMOUS"}
        place, server = own_place(name, {"users": {"alice": "secret"}, "settings": rules})
        admin = AdminClient({"bootstrap.servers": server.address})
        place.open().ends(RAW_TOPIC)
        everything_but = AclBinding(
            ResourceType.TOPIC, RAW_TOPIC.name, ResourcePatternType.LITERAL, "User:alice", "*", AclOperation.WRITE, AclPermissionType.DENY
        )
        rest = [
            AclBinding(kind, "*", ResourcePatternType.LITERAL, "User:alice", "*", AclOperation.ALL, AclPermissionType.ALLOW)
            for kind in (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID)
        ]
        settled_all(admin.create_acls(rest))
        url = f"kafka://alice:secret@{server.addresses['SASL_PLAINTEXT']}"
        forbidden = AclBindingFilter(
            ResourceType.TOPIC, RAW_TOPIC.name, ResourcePatternType.LITERAL, "User:alice", None, AclOperation.WRITE, AclPermissionType.DENY
        )
        changes = (lambda: settled_all(admin.create_acls([everything_but])), lambda: settled_all(admin.delete_acls([forbidden])))
    delivery = Delivery(place.open(url=url, sasl="PLAIN").producer("writer"), "writer", Spool(tmp_path / "spool.sqlite", 1 << 30))
    delivery.open()
    taking, giving = changes

    def put(first: int, last: int) -> None:
        for number in range(first, last + 1):
            delivery.put(number % 3, raws(number, 1))

    def turns_until(true: Callable[[], bool], what: str) -> None:
        def turned() -> bool:
            delivery.turn()
            return true()

        until(turned, what)

    put(1, 30)
    turns_until(lambda: not delivery.busy, "all are in the stream")
    taking()
    put(31, 60)
    turns_until(lambda: delivery.spooled == 30, "they are on disk")
    put(61, 90)
    turns_until(lambda: "authorization failed" in delivery.problem or "can't run this command" in delivery.problem, "it says why")
    assert delivery.failure is None
    giving()
    put(91, 120)
    turns_until(lambda: not delivery.busy, f"all are in the stream: {delivery.problem}")
    found = by_partition(everything(place.open(), RAW_TOPIC), "payload")
    wanted = {at: [b"%d " % number for number in range(1, 121) if number % 3 == at] for at in range(3)}
    assert {at: sorted(some, key=int) for at, some in found.items()} == wanted
    assert found == wanted, "in their order"
    assert delivery.close(1.0) == 0


def settled_all(asked: Any) -> None:
    for done in asked.values():
        done.result()


@pytest.mark.parametrize("place", ["kafka-arrow"], indirect=True)
def test_in_topics_with_kafka_s_usual_bound_one_frame_over_it_is_told_and_everything_else_is_kept(place: Place) -> None:
    admin = AdminClient({"bootstrap.servers": place.address})
    settled_all(admin.create_topics([NewTopic(place.name(topic), 3, 1) for topic in TOPICS.values()]))
    stream = place.open()
    (risk,) = stream.risks()
    assert f"{place.name(RAW_TOPIC)} accepts messages of up to 1,048,588 bytes" in risk
    producer = stream.producer("writer")
    frames = [os.urandom(size) for size in (100, 3_000_000, 100, 800_000)]
    for number, frame in enumerate(frames, 1):
        row = ("binance", "spot", "c", "frame", number, frame)
        columns = [pa.array([value], field.type) for value, field in zip(row, RAW, strict=True)]
        send_patiently(producer, number, 0, pa.RecordBatch.from_arrays(columns, schema=RAW))
    until(lambda: producer.settled() == 4, "they are settled")
    assert set(producer.refused) == {2}
    assert "max.message.bytes" in producer.problem
    producer.close(1.0)
    assert column(stream, RAW_TOPIC, "payload") == [frames[0], frames[2], frames[3]]
    rows = [{**row, "payload": os.urandom(50_000), "connection": "c"} for row in rejects(100).to_pylist()]
    member = stream.join("normalize", RAW_TOPIC, "one")
    chunk = polled(member)
    outputs = [(REJECTED_TOPIC, pa.RecordBatch.from_pylist(rows, REJECTED_TOPIC.schema))]
    member.commit(chunk, outputs, {"in": chunk.rows})
    member.close()
    assert column(stream, REJECTED_TOPIC, "payload") == [row["payload"] for row in rows]


@pytest.mark.parametrize("place", ["kafka-arrow"], indirect=True)
def test_while_it_is_asked_what_has_arrived_of_a_client_that_gave_up_nobody_waits(place: Place) -> None:
    stream = place.open()
    asked, answer = threading.Event(), threading.Event()

    def sleep(_: float) -> None:
        asked.set()
        answer.wait(PATIENCE_S)

    producer = RawProducer(stream._cluster, "writer", sleep)  # type: ignore[attr-defined]  # of Kafka's stream
    send_patiently(producer, 1, 0, raws(1, 1))
    until(lambda: producer.settled() == 1, "it is settled")
    last = 1
    while not asked.is_set():  # the broker may be quicker than this, and then there is nothing to ask
        last += 1
        send_patiently(producer, last, 0, raws(last, 1))
        producer._failed = KafkaError(KafkaError._FATAL)
        until(lambda: asked.is_set() or producer.settled() == last, "it is asked, or it is settled")  # noqa: B023
    with pytest.raises(Unavailable):
        producer.send(last + 1, 0, raws(last + 1, 1))
    answer.set()
    until(lambda: producer.settled() == last, "it is settled")
    send_patiently(producer, last + 1, 0, raws(last + 1, 1))
    until(lambda: producer.settled() == last + 1, "it is settled")
    producer.close(1.0)
    assert column(stream, RAW_TOPIC, "payload") == [b"%d " % number for number in range(1, last + 2)]


@pytest.mark.parametrize("scheme", ["redis", "rediss", "kafka", "kafkas"])
@pytest.mark.parametrize("password", ["hush", "hu/sh", "hu@sh", "hu:sh", "hu#sh", "hu?sh"])
def test_a_password_is_in_no_error(scheme: str, password: str, tmp_path: Path) -> None:
    url = f"{scheme}://alice:{password}@127.0.0.1:{free_port()}"
    with pytest.raises((ConfigError, Unavailable)) as caught:
        ask(url, scheme, tmp_path)
    assert password not in str(caught.value)
    assert "sh@127" not in str(caught.value)


def ask(url: str, scheme: str, folder: Path) -> None:
    """Nobody answers there; Kafka's client would take its time to say so."""
    stream: Any = open_described({"data_dir": str(folder), "stream": {"url": url}})
    if scheme.startswith("kafka"):
        raise stream._cluster._errors.away()
    stream.ends(RAW_TOPIC)


@pytest.mark.parametrize("place", ["kafka-arrow"], indirect=True)
@pytest.mark.parametrize("when", ["before it commits", "while nobody polls"])
def test_a_worker_whose_transactions_kafka_has_ended_goes_on_and_makes_everything_once(place: Place, when: str) -> None:
    """As after a pause of more than ten seconds. Another producer of the same names does it at once."""
    stream = place.open()
    member = stream.join("normalize", RAW_TOPIC, "one")
    done = 0
    for turn in range(3):
        stream.append(RAW_TOPIC, raws(10 * turn, 10), turn)
        deadline = time.monotonic() + 40
        while stream.totals("normalize").get("in", 0) < 10 * turn + 10:
            assert time.monotonic() < deadline, f"turn {turn}: it does not go on"
            chunk = None
            with suppress(Unavailable):  # a broker that is asked amid the end of a transaction may answer "Unknown broker error"
                chunk = member.poll(1_000)
            if chunk is None:
                continue
            if when == "before it commits" and done == turn:
                fence(place)
                done += 1
            rows = [{"symbol": "a", "sequence": int(payload.split()[0])} for payload in chunk.batch["payload"].to_pylist()]
            with suppress(PartitionLost, Unavailable):
                member.commit(chunk, [(TICKS_TOPIC, ticks(*rows))], {"in": len(rows)})
            if when == "while nobody polls" and done == turn:
                fence(place)
                done += 1
                time.sleep(0.5)
    member.close()
    assert done == 3
    assert sorted(column(stream, TICKS_TOPIC, "sequence")) == list(range(30))
    assert stream.totals("normalize") == {"in": 30}


def fence(place: Place) -> None:
    """End the worker's transactions in its stead."""
    for side in "ab":
        name = f"{place.prefix}tapeline-normalize-one-{side}"
        Producer({"bootstrap.servers": place.address, "transactional.id": name}).init_transactions(20.0)


@pytest.mark.parametrize("place", ["kafka-arrow"], indirect=True)
def test_a_member_whose_client_fetches_nothing_is_placed_anew_and_reads_everything(place: Place) -> None:
    """No seek is possible in a partition that the client does not fetch."""
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 30), 1)
    member: Any = stream.join("normalize", RAW_TOPIC, "one")
    polled(member, 10)
    member._consumer.incremental_unassign(member._consumer.assignment())
    member._rewind_due = True
    assert drained(member, 30) == [b"%d " % number for number in range(30)]
    leave_behind_all(stream, member)


@pytest.mark.parametrize("place", ["kafka-arrow"], indirect=True)
def test_a_member_that_cannot_rewind_is_polled_all_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose group has forgotten it joins anew only when it is polled, and until then no rewind succeeds."""
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 30), 1)
    member: Any = stream.join("normalize", RAW_TOPIC, "one")
    polled(member, 10)
    consumer, rewind, polls, seen = member._consumer, member._rewind, [0], []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(consumer, name)

        def poll(self, *arguments: Any) -> Any:
            polls[0] += 1
            return consumer.poll(*arguments)

    def forgotten() -> None:
        seen.append(polls[0])
        if len(seen) < 4:
            raise Unavailable("The group does not know this member.")
        rewind()

    monkeypatch.setattr(member, "_consumer", Counting())
    monkeypatch.setattr(member, "_rewind", forgotten)
    member._rewind_due = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            member.poll(10)
    assert drained(member, 30) == [b"%d " % number for number in range(30)]
    assert sorted(set(seen)) == seen, "it was polled before each rewind"
    leave_behind_all(stream, member)
