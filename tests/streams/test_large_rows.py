"""Raw records as large as the stream takes, which cannot be read or grow on the way: the worker goes on, and says what it left out."""

from __future__ import annotations

import os
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic
from places import Place, column, everything

from frames import raw_batch
from proving import proof
from tapeline.errors import Unavailable
from tapeline.jobs.rejects import retry
from tapeline.providers.registry import DECODERS
from tapeline.records import NOTICES_TOPIC, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, TOPICS, Topic
from tapeline.stages.normalize import Normalize
from tapeline.streams.codecs import arrow
from tapeline.streams.kafka.settings import MESSAGE_BYTES, OUTPUT_BYTES
from tapeline.streams.shortening import length_before
from tapeline.telemetry.status import StatusFile
from waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from tapeline.streams import Stream

#: Kafka's own bound of a message, where nobody sets another one, and the least that Redis lets one set.
USUAL = 1_048_588
LEAST = 1_048_576
#: What Kafka and Redis have beside the bytes of an entry.
BESIDE = 200
TRADE = b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1,"s":"BTCUSDT","t":%d,"p":"1","q":"1","T":1710504000000,"m":true,"M":true}}'


def raw(*frames: bytes, kind: str = "frame") -> pa.RecordBatch:
    return raw_batch("binance", "spot", frames, kind=kind)


def just_below(most: int) -> bytes:
    """A frame that nobody can read, whose raw record makes an entry of nearly so many bytes however it is compressed."""
    beside = len(arrow.encode(raw(os.urandom(most)))) - most
    return os.urandom(most - beside - BESIDE)


def interpreted(stream: Stream, folder: Path) -> None:
    """Normalize, until it is behind everything."""
    stage = Normalize(stream, dict(DECODERS), StatusFile(folder, "normalize"), name="one")

    def behind_all() -> bool:
        with suppress(Unavailable):
            stage.step()
            return not any(stream.lag(RAW_TOPIC, stream.positions("normalize", RAW_TOPIC)).values())
        return False

    try:
        until(behind_all, "normalize is behind all of it", 40.0)
    finally:
        with suppress(Unavailable):
            stage.finish()


def rows(stream: Stream, topic: Topic) -> list[dict[str, Any]]:
    return [row for chunk in everything(stream, topic) for row in chunk.batch.to_pylist()]


def assert_cut(stream: Stream, *frames: bytes) -> None:
    """The rejects are these frames, cut to what fits, and say so; the trade behind them came through."""
    found = sorted(rows(stream, REJECTED_TOPIC), key=lambda row: int(row["raw_offset"]))
    assert len(found) == len(frames)
    for row, frame in zip(found, frames, strict=True):
        assert length_before(row["reason"]) == len(frame)
        assert frame.startswith(row["payload"])
        assert 900_000 < len(row["payload"]) < len(frame)
    assert column(stream, TICKS_TOPIC, "sequence") == [1]


@pytest.mark.parametrize("place", ["kafka-arrow", "kafka-protobuf"], indirect=True)
def test_in_topics_with_kafka_s_usual_bound(place: Place, tmp_path: Path) -> None:
    admin = AdminClient({"bootstrap.servers": place.address})
    for done in admin.create_topics([NewTopic(place.name(topic), 3, 1) for topic in TOPICS.values()]).values():
        done.result()
    stream = place.open()
    assert stream.largest(REJECTED_TOPIC) == USUAL
    frames = [just_below(USUAL), b" " * 5_000_000]  # blanks make a small raw record
    for frame in frames:
        stream.append(RAW_TOPIC, raw(frame), 0)
    stream.append(RAW_TOPIC, raw(TRADE % 1), 0)
    interpreted(stream, tmp_path)
    assert_cut(stream, *frames)


@pytest.mark.parametrize("place", ["kafka-arrow", "kafka-protobuf"], indirect=True)
def test_topics_of_our_own_have_room_for_what_is_made_of_a_frame(place: Place) -> None:
    stream = place.open()
    assert (stream.largest(RAW_TOPIC), stream.largest(REJECTED_TOPIC)) == (MESSAGE_BYTES, OUTPUT_BYTES)


@pytest.mark.parametrize("place", ["kafka-arrow", "kafka-protobuf"], indirect=True)
def test_with_that_room_a_frame_up_to_the_bound_is_whole(place: Place, tmp_path: Path) -> None:
    most = 4 * USUAL
    admin = AdminClient({"bootstrap.servers": place.address})
    for topic in TOPICS.values():
        bound = most if topic is RAW_TOPIC else most + OUTPUT_BYTES - MESSAGE_BYTES
        made = admin.create_topics([NewTopic(place.name(topic), 3, 1, config={"max.message.bytes": str(bound)})])
        made[place.name(topic)].result()
    whole(place.open(), just_below(most), tmp_path)


@proof("streams", quick=False)  # its copies at the broker, of 80 MiB each, are much for one that other tests share
@pytest.mark.parametrize("place", ["kafka-arrow", "kafka-protobuf"], indirect=True)
def test_in_topics_of_our_own_a_frame_up_to_the_bound_is_whole(place: Place, tmp_path: Path) -> None:
    whole(place.open(), just_below(MESSAGE_BYTES), tmp_path)


def whole(stream: Stream, frame: bytes, tmp_path: Path) -> None:
    """A frame that cannot be read is rejected with all of its bytes."""
    stream.append(RAW_TOPIC, raw(frame), 0)
    stream.append(RAW_TOPIC, raw(TRADE % 1), 0)
    interpreted(stream, tmp_path)
    (row,) = rows(stream, REJECTED_TOPIC)
    assert row["payload"] == frame
    assert length_before(row["reason"]) is None
    assert column(stream, TICKS_TOPIC, "sequence") == [1]


@pytest.mark.parametrize("place", ["kafka-protobuf"], indirect=True)
def test_a_bound_that_is_lowered_while_the_worker_runs_is_heeded_and_what_was_cut_is_retried_whole(place: Place, tmp_path: Path) -> None:
    stream = place.open()
    stream.append(RAW_TOPIC, raw(b"?" * 3_000_000), 0)
    interpreted(stream, tmp_path)
    assert [len(row["payload"]) for row in rows(stream, REJECTED_TOPIC)] == [3_000_000]
    lower = [
        ConfigResource(
            ConfigResource.Type.TOPIC,
            place.name(topic),
            incremental_configs=[ConfigEntry("max.message.bytes", str(USUAL), incremental_operation=AlterConfigOpType.SET)],
        )
        for topic in (REJECTED_TOPIC, NOTICES_TOPIC)
    ]
    admin = AdminClient({"bootstrap.servers": place.address})
    for done in admin.incremental_alter_configs(lower).values():
        done.result()
    until(lambda: stream.largest(REJECTED_TOPIC) == USUAL, "the bound is lower")
    frame = os.urandom(3_000_000)
    stream.append(RAW_TOPIC, raw(frame), 0)
    stream.append(RAW_TOPIC, raw(b"\xff" * 2_000_000, kind="closed"), 0)
    interpreted(stream, tmp_path)
    cut = rows(stream, REJECTED_TOPIC)[-1]
    assert length_before(cut["reason"]) == len(frame)
    assert frame.startswith(cut["payload"])
    (notice,) = rows(stream, NOTICES_TOPIC)
    assert notice["detail"].startswith('{"cut":{"bytes":6000000,"partition":0,')
    name = f"0-{cut['raw_offset']}-0"
    assert name in list(retry(stream, lambda _: (), lambda one: length_before(one.reason) is not None))
    assert column(stream, RAW_TOPIC, "payload")[-1].endswith(b"\n" + frame)


def test_who_may_not_ask_for_the_bound_takes_it_for_the_usual_one(own_place: Any, tmp_path: Path) -> None:
    rules = {"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users": "User:ANONYMOUS"}
    place, server = own_place("kafka-arrow", {"users": {"alice": "secret"}, "settings": rules})
    place.open().ends(RAW_TOPIC)
    admin = AdminClient({"bootstrap.servers": server.address})
    allowed = [
        AclBinding(kind, "*", ResourcePatternType.LITERAL, "User:alice", "*", operation, AclPermissionType.ALLOW)
        for kind, operation in (
            (ResourceType.TOPIC, AclOperation.READ),
            (ResourceType.TOPIC, AclOperation.WRITE),
            (ResourceType.GROUP, AclOperation.ALL),
            (ResourceType.TRANSACTIONAL_ID, AclOperation.ALL),
        )
    ]
    for done in admin.create_acls(allowed).values():
        done.result()
    stream = place.open(url=f"kafka://alice:secret@{server.addresses['SASL_PLAINTEXT']}", sasl="PLAIN")
    assert stream.largest(REJECTED_TOPIC) == 1024 * 1024
    frame = b"?" * 2_000_000
    stream.append(RAW_TOPIC, raw(frame), 0)
    stream.append(RAW_TOPIC, raw(TRADE % 1), 0)
    interpreted(stream, tmp_path)
    assert_cut(stream, frame)


@pytest.mark.parametrize("name", ["redis-arrow", "redis-protobuf"])
def test_in_a_redis_that_takes_no_larger_value(own_place: Any, name: str, tmp_path: Path) -> None:
    place, server = own_place(name, {"settings": f"proto-max-bulk-len {LEAST}"})
    stream = place.open()
    assert stream.largest(REJECTED_TOPIC) == LEAST
    frames = [just_below(LEAST), *(os.urandom(300_000) for _ in range(6)), b" " * 5_000_000]
    for frame in frames:
        stream.append(RAW_TOPIC, raw(frame), 0)
    stream.append(RAW_TOPIC, raw(TRADE % 1), 0)
    interpreted(stream, tmp_path)
    found = sorted(rows(stream, REJECTED_TOPIC), key=lambda row: int(row["raw_offset"]))
    assert [length_before(row["reason"]) for row in found] == [len(frames[0]), *[None] * 6, len(frames[-1])]
    assert all(frame.startswith(row["payload"]) for row, frame in zip(found, frames, strict=True))
    assert [row["payload"] for row in found[1:-1]] == frames[1:-1]
    assert column(stream, TICKS_TOPIC, "sequence") == [1]
    server.ask("ACL", "SETUSER", "alice", "on", ">secret", "~*", "+@all", "-config")
    with closing(place.open(url=f"redis://alice:secret@{server.address}/0")) as other:
        assert other.largest(REJECTED_TOPIC) == 512 * 1024 * 1024
