"""What every stream promises, shown on each of them: order, positions, groups, one atomic step, leases."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from places import (
    EACH,
    EVERY,
    WHOLE,
    Place,
    by_partition,
    column,
    commit,
    drained,
    everything,
    leave_behind_all,
    nothing,
    polled,
    send_patiently,
)

from made import NOON, bars, raws, rejects, ticks
from proving import PROVE, proof
from tapeline.errors import Busy
from tapeline.records import BARS_TOPIC, NORMALIZED_TOPICS, NOTICES_TOPIC, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, TOPICS
from tapeline.streams import PartitionLost
from tapeline.streams.kafka.producing import RawProducer
from tapeline.streams.partitioning import partition_of
from waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from conftest import Workers

pytestmark = proof("streams")

KEYS = ["BTC/USDT", "币安/USDT", "", "🚀🚀", "a b\tc\n", "\u0000", "é", "e\u0301", "'; --", "x" * 5_000, "%41", "{}", "*", "\uffff"]

every = pytest.mark.parametrize("place", EVERY, indirect=True)
each = pytest.mark.parametrize("place", EACH, indirect=True)


# Reading by position.


@every
def test_an_empty_stream_has_nothing_to_read_and_begins_at_zero(place: Place) -> None:
    stream = place.open()
    zero = {0: 0, 1: 0, 2: 0}
    for topic in TOPICS.values():
        assert stream.read(topic, {}, 100) is None
        assert stream.ends(topic) == stream.lag(topic, {}) == stream.tail_positions(topic, 10) == zero
        assert stream.positions("normalize", topic) == zero
    assert stream.totals("normalize") == {}
    assert stream.partitions == 3


@each
def test_the_first_call_on_a_new_stream_may_be_a_write_to_one_partition(place: Place) -> None:
    place.open().append(RAW_TOPIC, raws(0, 3), 2)
    assert by_partition(everything(place.open(), RAW_TOPIC), "payload") == {2: [b"0 ", b"1 ", b"2 "]}


@each
def test_the_first_call_on_a_new_stream_may_be_a_producer_s(place: Place) -> None:
    producer = place.open().producer("writer")
    send_patiently(producer, 1, 2, raws(0, 3))
    until(lambda: producer.settled() == 1, "it is settled")
    producer.close(1.0)
    assert by_partition(everything(place.open(), RAW_TOPIC), "payload") == {2: [b"0 ", b"1 ", b"2 "]}


@every
def test_records_are_read_in_order_from_any_record_on_in_chunks_of_any_size(place: Place) -> None:
    stream = place.open()
    written: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    at = 0
    for turn, count in enumerate((1, 2, 7, 1, 30, 3, 5, 1)):
        batch = raws(at, count, b"." * (50_000 if turn == 2 else 10))
        stream.append(RAW_TOPIC, batch, turn % 3)
        written[turn % 3] += batch["payload"].to_pylist()
        at += count
    chunks = everything(stream, RAW_TOPIC)
    assert by_partition(chunks, "payload") == written
    offsets = {p: [o for c in chunks for o in c.offset[c.partition == p].tolist()] for p in written}
    for max_rows in (1, 5, 1_000):
        assert by_partition(everything(stream, RAW_TOPIC, max_rows=max_rows), "payload") == written
    for from_record in (0, 1, 3, 7):
        positions = {partition: found[min(from_record, len(found) - 1)] for partition, found in offsets.items()}
        wanted = {partition: payloads[min(from_record, len(payloads) - 1) :] for partition, payloads in written.items()}
        assert by_partition(everything(stream, RAW_TOPIC, positions, 5), "payload") == wanted


@each
def test_what_an_earlier_version_could_not_keep_is_read_under_the_name_that_it_has_now(place: Place) -> None:
    stream = place.open()
    for at, payload in enumerate((b"small", b"large enough to be compressed" * 5_000)):
        batch = raws(3 * at, 3, payload)
        kinds = pa.array(["frame", "refused", "frame"])
        stream.append(RAW_TOPIC, batch.set_column(3, RAW_TOPIC.schema.field("kind"), kinds), 0)
    assert column(stream, RAW_TOPIC, "kind") == ["frame", "dropped", "frame"] * 2
    assert [payload.partition(b" ")[0] for payload in column(stream, RAW_TOPIC, "payload")] == [b"%d" % at for at in range(6)]


@every
def test_behind_the_last_record_and_far_beyond_the_end_there_is_nothing(place: Place) -> None:
    stream = place.open()
    stream.append(TICKS_TOPIC, ticks(*[{"symbol": f"S{n}"} for n in range(20)]))
    ends = stream.ends(TICKS_TOPIC)
    assert everything(stream, TICKS_TOPIC, ends) == []
    assert stream.read(TICKS_TOPIC, ends, 10) is None
    beyond = {partition: end + (5 << 21) for partition, end in ends.items()}
    assert stream.lag(TICKS_TOPIC, beyond) == {0: 0, 1: 0, 2: 0}
    if place.kind != "kafka":  # where only a topic that was made anew has such positions; it is read from its begin
        assert stream.read(TICKS_TOPIC, beyond, 10) is None
    assert len(column(stream, TICKS_TOPIC, "symbol")) == 20


@every
def test_positions_ends_waiting_and_before_end_agree(place: Place) -> None:
    stream = place.open()
    for turn in range(12):
        commit(place, stream, [(TICKS_TOPIC, ticks(*[{"symbol": f"S{n % 5}", "sequence": turn * 6 + n} for n in range(6)]))])
    chunks = everything(stream, TICKS_TOPIC)
    held = by_partition(chunks, "sequence")
    assert sum(map(len, held.values())) == 72
    last = {partition: position for chunk in chunks for partition, position in chunk.next.items()}
    assert not any(stream.lag(TICKS_TOPIC, last).values())
    assert not any(stream.lag(TICKS_TOPIC, stream.ends(TICKS_TOPIC)).values())
    assert all(stream.lag(TICKS_TOPIC, {})[partition] for partition in held)
    for rows in (1, 5, 20, 1_000):
        left = by_partition(everything(stream, TICKS_TOPIC, stream.tail_positions(TICKS_TOPIC, rows)), "sequence")
        for partition, numbers in held.items():
            got = left.get(partition, [])
            assert len(got) >= min(rows, len(numbers)), f"{len(got)} records lie behind tail_positions({rows})"
            assert got == numbers[len(numbers) - len(got) :]


@every
def test_what_is_appended_is_waited_for_and_read_also_by_one_who_stood_at_the_end(place: Place) -> None:
    writing, reading = place.open(), place.open()
    position: dict[int, int] = {}
    for turn in range(15):
        assert not any(reading.lag(RAW_TOPIC, position).values())
        writing.append(RAW_TOPIC, raws(turn, 1), 1)
        assert reading.lag(RAW_TOPIC, position)[1] == 1
        chunks = everything(reading, RAW_TOPIC, position)
        assert by_partition(chunks, "payload") == {1: [b"%d " % turn]}
        position = dict(chunks[-1].next)


@every
def test_what_one_commit_after_the_other_writes_is_waited_for_at_once(place: Place) -> None:
    writing, reading = place.open(), place.open()
    at: dict[int, int] = {}
    for turn in range(6):
        commit(place, writing, [(TICKS_TOPIC, ticks({"symbol": "X", "sequence": turn}))])
        assert sum(reading.lag(TICKS_TOPIC, at).values()) > 0, f"nothing waits after commit {turn}"
        chunks = everything(reading, TICKS_TOPIC, at)
        assert [value for chunk in chunks for value in chunk.batch["sequence"].to_pylist()] == [turn]
        at = dict(chunks[-1].next)
        assert not any(reading.lag(TICKS_TOPIC, at).values())


@pytest.mark.parametrize("place", ["kafka-arrow", "kafka-protobuf"], indirect=True)
@pytest.mark.parametrize("count", [3, 12_000])
def test_after_an_aborted_transaction_nothing_waits_and_what_follows_is_read(place: Place, count: int) -> None:
    stream = place.open()
    stream.append(TICKS_TOPIC, ticks({"symbol": "X", "sequence": 1}))
    dying = Producer({"bootstrap.servers": place.address, "transactional.id": f"{place.prefix}dying", "partitioner": "murmur2_random"})
    dying.init_transactions(20)
    dying.begin_transaction()
    for _ in range(count):
        dying.produce(place.name(TICKS_TOPIC), b"never to be seen", b"X")
    dying.flush(20)
    chunk = stream.read(TICKS_TOPIC, {}, 10)
    assert chunk is not None
    assert chunk.batch["sequence"].to_pylist() == [1]
    behind = dict.fromkeys(range(3), 0) | dict(chunk.next)
    assert stream.read(TICKS_TOPIC, behind, 10) is None
    assert any(stream.lag(TICKS_TOPIC, behind).values()), "what is in the open transaction may come"
    dying.abort_transaction(20)
    assert column(stream, TICKS_TOPIC, "sequence") == [1]
    stream.append(TICKS_TOPIC, ticks({"symbol": "X", "sequence": 2}))
    assert column(stream, TICKS_TOPIC, "sequence") == [1, 2]
    assert [
        n for c in everything(place.open(), TICKS_TOPIC, stream.tail_positions(TICKS_TOPIC, 2)) for n in c.batch["sequence"].to_pylist()
    ] == [1, 2]


# What goes in comes out.


@pytest.mark.parametrize("place", WHOLE, indirect=True)
def test_every_topic_gives_back_what_was_written_bit_by_bit(place: Place) -> None:
    stream = place.open()
    batches = {
        RAW_TOPIC: raws(0, 3, os.urandom(300)),
        TICKS_TOPIC: ticks(
            {"last": 5e-324, "volume": -0.0, "ts_ns": -1, "sequence": -(1 << 62), "conditions": ""},
            {"last": None, "bid": 1.7976931348623157e308, "ask_size": float("inf"), "side": None, "trade_id": None},
            {"ts_ns": NOON * 2, "symbol": "币/安", "trade_id": "🚀", "received_ns": (1 << 63) - 1, "latency_ns": None},
        ),
        BARS_TOPIC: bars({"final": True, "vwap": None}, {"trades": 0, "vwap": 0.0, "symbol": ""}),
        NOTICES_TOPIC: pa.RecordBatch.from_pylist(
            [
                {
                    **dict.fromkeys(NOTICES_TOPIC.schema.names, "n"),
                    **dict.fromkeys(("ts_ns", "received_ns", "raw_partition", "raw_offset", "raw_index"), 7),
                    "symbol": symbol,
                }
                for symbol in (None, "", "X")
            ],
            NOTICES_TOPIC.schema,
        ),
        REJECTED_TOPIC: rejects(3),
    }
    for topic, batch in batches.items():
        stream.append(topic, batch)
    for topic, batch in batches.items():
        rows = [row for chunk in everything(place.open(), topic) for row in chunk.batch.to_pylist()]
        assert sorted(map(repr, rows)) == sorted(map(repr, batch.to_pylist()))


@every
def test_a_key_of_any_text_goes_where_kafka_s_own_partitioner_puts_it(place: Place) -> None:
    stream = place.open()
    keys = KEYS + [f"S{n}" for n in range(40)]
    stream.append(TICKS_TOPIC, ticks(*[{"symbol": key, "sequence": n} for n, key in enumerate(keys)]))
    commit(place, stream, [(TICKS_TOPIC, ticks(*[{"symbol": key, "sequence": n} for n, key in enumerate(keys)]))])
    found = by_partition(everything(stream, TICKS_TOPIC), "symbol")
    assert {key: partition for partition, some in found.items() for key in some} == {key: partition_of(key, 3) for key in keys}
    assert all(some[: len(some) // 2] == some[len(some) // 2 :] for some in found.values())


@pytest.mark.parametrize("place", ["kafka-arrow"], indirect=True)
def test_librdkafka_s_murmur2_chooses_the_same_partitions(place: Place) -> None:
    place.open().append(RAW_TOPIC, raws(0, 1), 0)
    chosen: dict[str, int] = {}
    producer = Producer({"bootstrap.servers": place.address, "partitioner": "murmur2_random"})
    keys = [key for key in KEYS if key] + [f"S{n}" for n in range(100)]
    for key in keys:
        topic = place.name(REJECTED_TOPIC)
        producer.produce(topic, b"", key.encode(), on_delivery=lambda _, m, key=key: chosen.__setitem__(key, m.partition()))
    producer.flush(20)
    assert chosen == {key: partition_of(key, 3) for key in keys}


@every
def test_a_batch_of_nothing_is_no_record_and_no_problem(place: Place) -> None:
    stream = place.open()
    for topic in TOPICS.values():
        empty = pa.RecordBatch.from_pylist([], topic.schema)
        stream.append(topic, empty)
        stream.append(topic, empty, 1)
    producer = stream.producer("writer")
    for number, batch in enumerate([raws(0, 0), raws(1, 1), raws(2, 0), raws(3, 1)], 1):
        send_patiently(producer, number, 1, batch)
    until(lambda: producer.settled() == 4, "all of them are settled")
    producer.close(1.0)
    assert column(stream, RAW_TOPIC, "payload") == [b"1 ", b"3 "]
    member = stream.join("normalize", RAW_TOPIC, "one")
    assert [payload for _ in range(1) for payload in drained(member, 2)] == [b"1 ", b"3 "]
    member.close()
    for topic in NORMALIZED_TOPICS:
        assert everything(stream, topic) == []


@every
def test_a_commit_may_have_no_outputs_at_all(place: Place) -> None:
    stream = place.open()
    commit(place, stream, [], {"in": 1})
    assert stream.totals("normalize") == {"in": 1}
    assert not any(stream.lag(RAW_TOPIC, stream.positions("normalize", RAW_TOPIC)).values())


@each
def test_records_of_five_and_of_forty_megabytes_come_back_whole(place: Place) -> None:
    stream = place.open()
    five, forty = os.urandom(5_000_000), os.urandom(40_000_000)
    for at in range(3):
        stream.append(RAW_TOPIC, raws(at, 1, five), 0)
    producer = stream.producer("writer")
    send_patiently(producer, 1, 0, raws(3, 1, forty))
    send_patiently(producer, 2, 0, raws(4, 1))
    until(lambda: producer.settled() == 2, "it is settled")
    producer.close(1.0)
    wanted = [b"0 " + five, b"1 " + five, b"2 " + five, b"3 " + forty, b"4 "]
    assert column(stream, RAW_TOPIC, "payload") == wanted
    member = stream.join("normalize", RAW_TOPIC, "one")
    found: list[bytes] = []
    while len(found) < 5:
        chunk = polled(member)
        payloads = chunk.batch["payload"].to_pylist()
        member.commit(chunk, [(REJECTED_TOPIC, rejected(payloads))], {"in": len(payloads)})
        found += payloads
    member.close()
    assert found == wanted
    assert sorted(column(stream, REJECTED_TOPIC, "payload")) == sorted(wanted)


def rejected(payloads: list[bytes]) -> pa.RecordBatch:
    batch = rejects(len(payloads))
    at = batch.schema.get_field_index("payload")
    return batch.set_column(at, batch.schema.field(at), pa.array(payloads, pa.binary()))


@every
def test_very_many_small_records_keep_their_order(place: Place) -> None:
    stream = place.open()
    count, size = (1_000_000, 10_000) if PROVE else (50_000, 5_000)
    wanted: dict[str, list[int]] = {}
    for first in range(0, count, size):
        rows = [{"symbol": f"S{n % 11}", "sequence": n} for n in range(first, first + size)]
        stream.append(TICKS_TOPIC, ticks(*rows))
        for row in rows:
            wanted.setdefault(row["symbol"], []).append(row["sequence"])
    found: dict[str, list[int]] = {}
    for chunk in everything(stream, TICKS_TOPIC):
        for symbol, number in zip(chunk.batch["symbol"].to_pylist(), chunk.batch["sequence"].to_pylist(), strict=True):
            found.setdefault(symbol, []).append(number)
    assert found == wanted


# Groups.


@each
def test_each_group_sees_everything(place: Place) -> None:
    stream = place.open()
    for turn in range(9):
        stream.append(RAW_TOPIC, raws(turn * 2, 2), turn % 3)
    for group in ("normalize", "a group that nobody configured"):
        member = stream.join(group, RAW_TOPIC)
        assert sorted(drained(member, 18)) == sorted(b"%d " % n for n in range(18))
        leave_behind_all(stream, member, group)


@each
def test_a_group_that_keeps_its_own_positions_says_how_far_it_is(place: Place) -> None:
    stream = place.open()
    stream.append(TICKS_TOPIC, ticks(*[{"symbol": f"S{n}"} for n in range(20)]))
    for group in ("lake", "a group that nobody configured"):
        stream.acknowledge(group, TICKS_TOPIC, stream.ends(TICKS_TOPIC))
        assert place.open().positions(group, TICKS_TOPIC) == stream.ends(TICKS_TOPIC)
        stream.acknowledge(group, TICKS_TOPIC, stream.ends(TICKS_TOPIC))


@each
def test_what_was_given_and_not_committed_is_given_again(place: Place) -> None:
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 5), 0)
    member = stream.join("normalize", RAW_TOPIC, "one")
    first = polled(member)
    stream.append(RAW_TOPIC, raws(5, 5), 0)
    assert drained(member, 10) == [b"%d " % n for n in range(10)]
    assert first.batch["payload"].to_pylist() == [b"%d " % n for n in range(5)]
    member.close()


@each
def test_a_note_beside_the_records_is_there_for_who_opens_the_stream_anew_and_the_last_one_counts(place: Place) -> None:
    stream = place.open()
    assert stream.noted("a") == ""
    long = json.dumps({f"NAME{number}EUR": f"NAME{number}/EUR" for number in range(300)})
    for text in ('{"a":"one"}', long, '{"a":"two"}'):
        stream.note("a", text)
        assert place.open().noted("a") == stream.noted("a") == text
    assert stream.noted("b") == ""


class Sharing:
    """Members on threads of their own, each with a stream of its own, that poll and commit until they are told to leave."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.read: list[tuple[str, list[bytes]]] = []
        self.errors: list[BaseException] = []
        self._leaving: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}
        self.partitions: dict[str, list[int]] = {}

    def join(self, name: str) -> None:
        self._leaving[name] = threading.Event()
        stream = self._place.open()
        self._threads[name] = threading.Thread(target=self._run, args=(name, stream))
        self._threads[name].start()

    def leave(self, name: str) -> None:
        self._leaving[name].set()
        self._threads.pop(name).join(60)
        self.partitions.pop(name, None)

    def check(self) -> None:
        """Raises what a member has raised."""
        if self.errors:
            raise self.errors[0]

    def end(self) -> None:
        for name in list(self._threads):
            self.leave(name)
        assert not self.errors, self.errors

    def _run(self, name: str, stream: Any) -> None:
        try:
            member = stream.join("normalize", RAW_TOPIC, name)
            while not self._leaving[name].is_set():
                try:
                    chunk = member.poll(7)
                    self.partitions[name] = list(member.partitions)
                    if chunk is not None:
                        payloads = chunk.batch["payload"].to_pylist()
                        member.commit(chunk, [(REJECTED_TOPIC, rejected(payloads))], {"in": len(payloads)})
                except PartitionLost:
                    continue
            member.close()
        except BaseException as error:  # noqa: BLE001 told by `end`
            self.errors.append(error)


@each
def test_members_of_one_group_share_the_partitions_and_a_clean_leave_hands_them_over(place: Place) -> None:
    stream, sharing = place.open(), Sharing(place)
    for name in ("a", "b", "c"):
        sharing.join(name)
    until(lambda: sharing.check() or sorted(sharing.partitions.values()) == [[0], [1], [2]], "each has one")
    for turn in range(30):
        stream.append(RAW_TOPIC, raws(turn, 1), turn % 3)
    until(lambda: stream.totals("normalize").get("in") == 30, "all are counted")
    sharing.leave("a")
    sharing.leave("c")
    until(lambda: sharing.check() or sharing.partitions["b"] == [0, 1, 2], "the last one has all")
    sharing.end()
    assert sorted(column(stream, REJECTED_TOPIC, "payload")) == sorted(b"%d " % n for n in range(30))


@each
def test_joining_and_leaving_again_and_again_loses_and_doubles_nothing(place: Place) -> None:
    stream, sharing = place.open(), Sharing(place)
    sharing.join("steady")
    written, rng, there = 0, random.Random(5), 0
    for turn in range(40 if PROVE else 8):
        for _ in range(15):
            stream.append(RAW_TOPIC, raws(written, 3), written // 3 % 3)
            written += 3
        sharing.join(f"m{turn}")
        there += 1
        if there > 2 or rng.random() < 0.4:
            sharing.leave(f"m{turn - there + 1}")
            there -= 1
    until(
        lambda: stream.totals("normalize").get("in", 0) >= written,
        f"{written} are counted, {stream.totals('normalize')}, {sharing.errors}",
    )
    sharing.end()
    assert stream.totals("normalize") == {"in": written}
    chunks = everything(stream, REJECTED_TOPIC)
    numbers = [int(payload.split()[0]) for chunk in chunks for payload in chunk.batch["payload"].to_pylist()]
    missing = sorted(set(range(written)) - set(numbers))
    again = sum(chunk.rows for chunk in everything(place.open(), REJECTED_TOPIC))
    assert sorted(numbers) == list(range(written)), f"{len(numbers)} of {written}, missing {missing[:40]}; read once more: {again}"
    for partition in range(3):  # what came from one raw partition kept its order: all of it has one key
        mine = [n for n in numbers if n // 3 % 3 == partition]
        assert mine == sorted(mine)
    assert not any(stream.lag(RAW_TOPIC, stream.positions("normalize", RAW_TOPIC)).values())


@each
def test_a_member_killed_before_it_commits_leaves_its_records_to_the_others(place: Place, work: Workers) -> None:
    stream = place.open()
    for turn in range(6):
        stream.append(RAW_TOPIC, raws(turn * 4, 4), turn % 3)
    dying = work(place, "transform", dawdle=60.0)
    assert dying.stdout is not None
    assert [dying.stdout.readline() for _ in range(2)] == ["joined\n", "polled\n"]
    dying.send_signal(signal.SIGKILL)
    member = stream.join("normalize", RAW_TOPIC)
    assert sorted(drained(member, 24)) == sorted(b"%d " % n for n in range(24))
    member.close()


@each
def test_a_member_that_comes_back_under_its_name_has_at_once_what_its_predecessor_left_open(place: Place, work: Workers) -> None:
    stream = place.open()
    for turn in range(6):
        stream.append(RAW_TOPIC, raws(turn * 4, 4), turn % 3)
    dying = work(place, "transform", dawdle=60.0, name="the one")
    assert dying.stdout is not None
    assert [dying.stdout.readline() for _ in range(2)] == ["joined\n", "polled\n"]
    dying.send_signal(signal.SIGKILL)
    dying.wait()
    member = stream.join("normalize", RAW_TOPIC, "the one")
    if place.kind != "kafka":  # there a group waits for the dead one's session
        assert member.poll(1) is not None
        assert sorted(member.partitions) == [0, 1, 2], "it did not wait for a lease to end"
        member.close()
        member = stream.join("normalize", RAW_TOPIC, "the one")
    assert sorted(drained(member, 24)) == sorted(b"%d " % n for n in range(24))
    member.close()


@each
def test_what_one_poll_gave_and_no_commit_took_is_given_again_to_the_next_member(place: Place) -> None:
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 5), 1)
    first = stream.join("normalize", RAW_TOPIC, "one")
    seen = polled(first)
    first.close()
    second = stream.join("normalize", RAW_TOPIC, "one")
    assert polled(second).batch.equals(seen.batch)
    second.close()


# One atomic step.


@every
def test_a_commit_is_outputs_positions_and_totals_together(place: Place) -> None:
    stream = place.open()
    commit(place, stream, [(TICKS_TOPIC, ticks({}, {})), *nothing()[1:]], {"binance/spot/ticks": 2, "binance/spot/bars": 0})
    commit(place, stream, [(TICKS_TOPIC, ticks({}))], {"binance/spot/ticks": 1, "名": 3})
    assert stream.totals("normalize") == {"binance/spot/ticks": 3, "名": 3}
    assert not any(stream.lag(RAW_TOPIC, stream.positions("normalize", RAW_TOPIC)).values())
    assert len(column(stream, TICKS_TOPIC, "symbol")) == 3
    assert stream.positions("another", RAW_TOPIC) == {0: 0, 1: 0, 2: 0}
    assert stream.totals("another") == {}


@each
def test_a_commit_comes_to_its_end_although_the_member_does_nothing_more(place: Place) -> None:
    """What waits for the member's next call is undone by Kafka after ten seconds, and would be made twice."""
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 3), 0)
    member = stream.join("normalize", RAW_TOPIC, "one")
    chunk = polled(member)
    member.commit(chunk, [(TICKS_TOPIC, ticks({"symbol": "a"}))], {"in": 3})
    until(lambda: stream.totals("normalize") == {"in": 3}, "it is committed")
    assert column(stream, TICKS_TOPIC, "symbol") == ["a"]
    member.close()
    assert column(stream, TICKS_TOPIC, "symbol") == ["a"]


@each
def test_totals_of_many_names_add_up(place: Place) -> None:
    stream = place.open()
    names = {f"binance/spot/some channel {n}/ticks": n + 1 for n in range(300)}
    for _ in range(3):
        commit(place, stream, [(TICKS_TOPIC, ticks({}))], names)
    assert stream.totals("normalize") == {name: 3 * value for name, value in names.items()}


@each
def test_the_same_chunk_is_committed_once(place: Place) -> None:
    stream = place.open()
    stream.append(RAW_TOPIC, raws(0, 5), 1)
    member = stream.join("normalize", RAW_TOPIC, "one")
    chunk = polled(member)
    member.commit(chunk, [(TICKS_TOPIC, ticks({"sequence": 1}))], {"in": 5})
    with pytest.raises(PartitionLost):
        member.commit(chunk, [(TICKS_TOPIC, ticks({"sequence": 2}))], {"in": 5})
    for _ in range(5):
        member.poll(10)
    member.close()
    assert column(stream, TICKS_TOPIC, "sequence") == [1]
    assert stream.totals("normalize") == {"in": 5}


# Producers.


@each
def test_a_producer_delivers_in_order_and_settles_up_to_the_last_number(place: Place) -> None:
    stream = place.open()
    producer = stream.producer("writer")
    assert producer.settled() == 0
    wanted: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    for turn in range(600):
        batch = raws(turn * 2, 2)
        send_patiently(producer, turn * 3 + 1, turn % 3, batch)  # numbers grow, with jumps
        wanted[turn % 3] += batch["payload"].to_pylist()
    until(lambda: producer.settled() == 599 * 3 + 1, "it is settled")
    assert by_partition(everything(stream, RAW_TOPIC), "payload") == wanted
    producer.close(1.0)


@each
def test_after_a_writer_was_killed_the_next_one_finds_out_what_arrived_and_doubles_nothing(place: Place, work: Workers) -> None:
    stream = place.open()
    since_ns = time.time_ns()
    wanted: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    for death in range(6 if PROVE else 2):
        first, last = 1 + 1000 * death, 200 + 1000 * death
        dying = work(place, "send", writer=f"writer/{death}", first=first, last=last, every=0.001, die=["sent", 37 + 30 * death])
        dying.wait(PATIENCE_S)
        assert dying.returncode == -signal.SIGKILL
        producer = place.open().producer(f"next/{death}")
        arrived = producer.last_acknowledged(f"writer/{death}", since_ns)
        held = max((int(payload.split()[0]) for payload in column(stream, RAW_TOPIC, "payload")), default=0)
        numbers = {number for number in range(1, last + 1) if any(number in some for some in arrived.values())}
        assert max(numbers, default=0) == (held if held >= first else 0)
        assert not any(1 in some for some in producer.last_acknowledged("nobody", since_ns).values())
        for number in range(max(held + 1, first), last + 1):
            send_patiently(producer, number, number % 3, raws(number, 1))
        until(lambda: producer.settled() == last, "all of them are settled")  # noqa: B023
        producer.close(1.0)
        for number in range(first, last + 1):
            wanted[number % 3].append(b"%d " % number)
        assert by_partition(everything(stream, RAW_TOPIC), "payload") == wanted


@pytest.mark.parametrize("place", ["redis-arrow"], indirect=True)
def test_what_a_dead_writer_had_sent_and_comes_only_after_the_next_one_asked_is_not_taken_any_more(place: Place) -> None:
    stream = place.open()
    late = stream.producer("dead")
    send_patiently(late, 1, 0, raws(1, 1))
    until(lambda: late.settled() == 1, "it is settled")
    following = place.open().producer("next")
    assert [number in following.last_acknowledged("dead", 0)[0] for number in (1, 2)] == [True, False]
    send_patiently(late, 2, 0, raws(2, 1))
    until(lambda: late.settled() == 2, "Redis has answered")
    assert [number in following.last_acknowledged("dead", 0)[0] for number in (1, 2)] == [True, False]
    send_patiently(following, 2, 0, raws(2, 1))
    until(lambda: following.settled() == 2, "it is settled")
    assert column(stream, RAW_TOPIC, "payload") == [b"1 ", b"2 "]
    late.close(1.0)
    following.close(1.0)


@pytest.mark.parametrize("place", ["kafka-arrow"], indirect=True)
def test_what_a_dead_writer_had_sent_and_the_broker_takes_late_is_waited_for(place: Place) -> None:
    stream, late = place.open(), place.open().producer("dead")
    numbers = iter((1, 2, 3))

    def meanwhile(_: float) -> None:
        """While the next one waits, two batches more arrive, one after the other."""
        if (number := next(numbers, None)) is not None:
            send_patiently(late, number, 0, raws(number, 1))
            until(lambda: late.settled() == number, "it is settled")

    following = RawProducer(stream._cluster, "next", sleep=meanwhile)  # type: ignore[attr-defined]  # of Kafka's stream
    assert following.last_acknowledged("dead", time.time_ns()) == {0: {1, 2, 3}}
    late.close(1.0)


# Leases.


@each
def test_a_lease_has_one_holder_and_is_free_when_it_is_dropped(place: Place, work: Workers) -> None:
    holder = work(place, "hold", name="the ingest of a/b")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    stream = place.open()
    with pytest.raises(Busy, match="the ingest of a/b"):
        stream.hold("the ingest of a/b")
    other = stream.hold("another one")
    other.keep()
    other.drop()
    again = stream.hold("another one")
    again.keep()
    again.drop()
    holder.send_signal(signal.SIGKILL)
    until(lambda: _held(stream, "the ingest of a/b"), "the lease of the dead one is free")


def _held(stream: Any, name: str) -> bool:
    try:
        stream.hold(name).drop()
    except Busy:
        return False
    return True


@each
def test_a_holder_that_slept_too_long_is_told_that_it_has_lost_the_lease(place: Place, work: Workers) -> None:
    holder = work(place, "hold", name="one")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    stream = place.open()
    deadline = time.monotonic() + PATIENCE_S
    lease = None
    while lease is None:
        assert time.monotonic() < deadline
        try:
            lease = stream.hold("one")
        except Busy:
            time.sleep(0.1)
    holder.send_signal(signal.SIGCONT)
    until(lambda: (lease.keep(), holder.poll() is not None)[1], "the first one learns that it lost the lease")
    assert "Busy" in work.said()
    lease.keep()
    lease.drop()
