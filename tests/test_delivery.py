"""Whatever the stream does, what was received is delivered in order and once, or kept on disk, or counted and put on record."""

from __future__ import annotations

import json
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made import raws
from tapeline.errors import DiskProblem, NewerData, Refused, Unavailable
from tapeline.records import RAW
from tapeline.stages.ingest import delivery as delivery_module
from tapeline.stages.ingest.delivery import Delivery
from tapeline.stages.ingest.spool import Spool

GB = 1_000_000_000


@dataclass
class Broker:
    """A stream that does what a test says."""

    away: bool = False  # nothing arrives
    deaf: bool = False  # nothing is even taken
    broken: bool = False  # asking what has arrived fails in a way that nobody foresaw
    answer: Exception | None = None  # to everything
    bound: int = 1 << 30  # bytes: it takes no message that is larger
    arrived: list[tuple[str, int, int, pa.RecordBatch]] = field(default_factory=list)

    def payloads(self, partition: int | None = None) -> list[bytes]:
        batches = [batch for _, _, at, batch in self.arrived if partition in (None, at)]
        return [payload for batch in batches for payload in batch["payload"].to_pylist()]


class Scripted:
    """Its producer: what it was handed arrives when it is asked what has, unless the broker is away."""

    def __init__(self, broker: Broker, writer: str) -> None:
        self.broker, self.writer = broker, writer
        self.waiting: deque[tuple[int, int, pa.RecordBatch]] = deque()
        self.handed: list[int] = []
        self.done = 0
        self.refused: set[int] = set()
        self.problem = ""

    def send(self, number: int, partition: int, batch: pa.RecordBatch) -> None:
        if self.broker.deaf:
            raise Unavailable("the broker is deaf")
        if self.broker.answer is not None:
            raise self.broker.answer
        assert number > max(self.handed, default=0)
        self.handed.append(number)
        self.waiting.append((number, partition, batch))

    def arrive(self, count: int, partition: int | None = None) -> None:
        """Some arrive, of one partition or of all, and the broker's word that they did gets lost."""
        going = [one for one in self.waiting if partition in (None, one[1])][:count]
        large = {number for number, _, batch in going if batch.nbytes > self.broker.bound}
        self.refused |= large
        self.waiting = deque(one for one in self.waiting if one not in going)
        self.broker.arrived += [(self.writer, *one) for one in going if one[0] not in large]

    def settled(self) -> int:
        if self.broker.answer is not None:
            raise self.broker.answer
        if not self.broker.away:
            self.arrive(len(self.waiting))
            self.done = self.handed[-1] if self.handed else 0
        return self.done

    def last_acknowledged(self, writer: str, since_ns: int) -> dict[int, set[int]]:
        if self.broker.away:
            raise Unavailable("the broker is away")
        if self.broker.broken:
            raise ZeroDivisionError("a bug")
        found: dict[int, set[int]] = {}
        for name, number, partition, _ in self.broker.arrived:
            if name == writer:
                found.setdefault(partition, set()).add(number)
        return found

    def close(self, wait_s: float) -> None:
        pass


class Process:
    """An ingest process, as far as delivery goes."""

    def __init__(self, folder: Path, broker: Broker, writer: str = "a", *, max_bytes: int = GB, spool: bool = True) -> None:
        self.s = 100.0
        self.broker = broker
        self.producer = Scripted(broker, writer)
        self.spool = Spool(folder / "ingest.sqlite", max_bytes) if spool else None
        self.delivery = Delivery(self.producer, writer, self.spool, lambda: self.s)
        self.delivery.open()

    def put(self, *numbers: int, partition: int = 0) -> None:
        for number in numbers:
            self.delivery.put(partition, raws(number, 1))

    def turn(self, after_s: float = 0.0) -> None:
        self.s += after_s
        self.delivery.turn()
        answered()

    def dies(self) -> None:
        """What its producer had not got away is lost with it."""
        if self.spool is not None:
            self.spool.close()

    def rest(self) -> None:
        """Until nothing is left to do."""
        for _ in range(1_000):
            if not self.delivery.busy:
                return
            self.turn(0.01)
        raise AssertionError("it never comes to rest")


def answered() -> None:
    """Wait until whoever asks what has arrived has its answer."""
    for thread in threading.enumerate():
        if thread.name == "recovery":
            thread.join(10.0)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def process(tmp_path: Path, broker: Broker) -> Iterator[Process]:
    found = Process(tmp_path, broker)
    yield found
    found.dies()


def texts(*numbers: int) -> list[bytes]:
    return [b"%d " % number for number in numbers]


def drops(broker: Broker) -> list[tuple[str, dict[str, Any]]]:
    """Each record of the kind `dropped`: its connection and what it says."""
    rows = [row for _, _, _, batch in broker.arrived for row in batch.to_pylist()]
    return [(row["connection"], json.loads(row["payload"])) for row in rows if row["kind"] == "dropped"]


def test_while_the_stream_takes_records_they_go_there_directly(process: Process, broker: Broker) -> None:
    process.put(1, 2)
    process.put(3, partition=2)
    assert process.delivery.unsettled == 3
    process.turn()
    assert broker.payloads() == texts(1, 2, 3)
    assert [partition for _, _, partition, _ in broker.arrived] == [0, 0, 2]
    assert (process.delivery.unsettled, process.delivery.spooled, process.delivery.spooled_bytes) == (0, 0, 0)
    assert not process.delivery.busy
    assert process.delivery.close(1.0) == 0


def test_a_short_pause_of_the_stream_costs_no_disk(process: Process, broker: Broker) -> None:
    broker.away = True
    process.put(1)
    process.turn(0.9)
    process.put(2)
    broker.away = False
    process.turn(0.2)
    assert broker.payloads() == texts(1, 2)
    assert process.delivery.spooled == 0
    assert process.delivery.problem == ""


def test_while_the_stream_is_slow_records_go_to_disk_and_then_follow_in_order_once(process: Process, broker: Broker) -> None:
    broker.away = True
    process.put(1, 2)
    process.turn(1.1)
    assert (process.delivery.spooled, process.delivery.unsettled) == (2, 0)
    process.put(3, 4, 5)
    process.turn(1.0)
    assert process.delivery.spooled == 5
    assert process.delivery.spooled_bytes > 0
    assert process.delivery.problem
    assert broker.payloads() == []
    broker.away = False
    process.turn()
    process.put(6)
    process.rest()
    process.put(7)
    process.rest()
    assert broker.payloads() == texts(1, 2, 3, 4, 5, 6, 7)
    assert (process.delivery.spooled, process.delivery.problem, process.delivery.dropped) == (0, "", 0)


def test_a_stream_that_takes_nothing_at_all_is_spooled_from_the_first_record(process: Process, broker: Broker) -> None:
    broker.deaf = True
    process.put(1, 2)
    assert process.delivery.spooled == 2
    process.turn(5.0)
    assert process.delivery.problem == "the broker is deaf"
    broker.deaf = False
    process.put(3)
    process.rest()
    assert broker.payloads() == texts(1, 2, 3)


def test_much_that_is_unconfirmed_goes_to_disk_at_once(process: Process, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "_MOST_UNSETTLED_BYTES", 1_000)
    broker.away = True
    process.put(*range(40))
    process.turn()
    assert process.delivery.spooled == 40


def test_a_long_backlog_is_drained_a_part_at_a_time(process: Process, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "_DRAIN_BYTES", 1_000)
    broker.deaf = True
    process.put(*range(1_000))
    broker.deaf, broker.away = False, True
    process.turn(2.0)
    assert 0 < len(process.producer.waiting) < 200
    assert len(process.producer.waiting) == len(process.producer.handed)
    process.put(1_000)
    broker.away = False
    process.rest()
    assert broker.payloads() == texts(*range(1_001))


@pytest.mark.parametrize("arrived", range(6))
def test_a_restart_sends_what_an_earlier_process_left_and_drops_what_has_arrived(tmp_path: Path, broker: Broker, arrived: int) -> None:
    first = Process(tmp_path, broker, "a")
    broker.away = True
    first.put(1, 2, 3)
    first.turn(1.1)
    first.put(4, 5)
    broker.deaf = True
    first.put(6)
    first.producer.arrive(arrived)  # and nobody hears of it
    first.dies()
    second = Process(tmp_path, broker, "b")
    assert second.delivery.spooled == 6
    second.put(7)
    second.turn(1.0)  # the stream is still away
    assert second.delivery.spooled == 7
    broker.away = broker.deaf = False
    second.rest()
    second.put(8)
    second.rest()
    assert broker.payloads() == texts(1, 2, 3, 4, 5, 6, 7, 8)
    second.dies()


def test_each_partition_is_asked_for_its_own_what_has_arrived_in_one_says_nothing_of_another(tmp_path: Path, broker: Broker) -> None:
    first = Process(tmp_path, broker, "a")
    broker.away = True
    first.put(1, 3, 5, partition=0)
    first.put(2, 4, 6, partition=1)
    first.turn(1.1)
    first.producer.arrive(2, partition=1)  # 2 and 4, which were handed over after 1, 3 and 5
    first.dies()
    broker.away = False
    second = Process(tmp_path, broker, "b")
    assert second.delivery.spooled == 6
    second.rest()
    assert (broker.payloads(0), broker.payloads(1)) == (texts(1, 3, 5), texts(2, 4, 6))
    second.dies()


def test_that_it_cannot_be_found_out_what_has_arrived_does_not_mean_that_nothing_has(tmp_path: Path, broker: Broker) -> None:
    first = Process(tmp_path, broker, "a")
    broker.away = True
    first.put(1, 2, 3)
    first.turn(1.1)
    first.producer.arrive(2)
    first.dies()
    broker.away, broker.broken = False, True
    second = Process(tmp_path, broker, "b")
    for _ in range(5):
        second.turn(1.0)
    assert second.producer.handed == []
    assert "a bug" in second.delivery.problem
    broker.broken = False
    second.rest()
    assert broker.payloads() == texts(1, 2, 3)
    second.dies()


def test_a_process_that_dies_after_taking_over_leaves_it_to_the_third(tmp_path: Path, broker: Broker) -> None:
    broker.deaf = True
    first = Process(tmp_path, broker, "a")
    first.put(1, 2, 3, 4)
    first.dies()
    broker.deaf = False
    second = Process(tmp_path, broker, "b")
    second.put(5)
    while not second.producer.handed:
        second.turn()
    assert second.producer.handed == [1, 2, 3, 4, 5]
    second.producer.arrive(2)
    second.dies()
    assert broker.payloads() == texts(1, 2)
    third = Process(tmp_path, broker, "c")
    third.put(6)
    third.rest()
    assert broker.payloads() == texts(1, 2, 3, 4, 5, 6)
    third.dies()


def room_for(folder: Path, batches: int) -> int:
    """Bytes in which so many batches of one record fit, and hardly more."""
    with tempfile.TemporaryDirectory(dir=folder) as other, closing(Spool(Path(other) / "s.sqlite", GB)) as spool:
        spool.open()
        spool.put("w", 1, 0, raws(1, 1))
        return spool.bytes * batches + 10


def test_what_a_full_spool_drops_is_counted_and_put_on_record_for_each_connection(tmp_path: Path, broker: Broker) -> None:
    broker.deaf = True
    process = Process(tmp_path, broker, max_bytes=room_for(tmp_path, 3))
    process.put(1, 2, 3)
    assert process.delivery.dropped == 0
    process.put(4, 5)
    rows = [("binance", "spot", "other", "frame", 40 + at, b"lost") for at in range(3)]
    other = pa.RecordBatch.from_arrays([pa.array(v, f.type) for v, f in zip(zip(*rows, strict=True), RAW, strict=True)], schema=RAW)
    process.delivery.put(1, other)
    assert process.delivery.dropped == 5
    assert "5 received records could not be kept" in process.delivery.problem
    process.turn(20.0)
    assert process.delivery.spooled == 3  # what was kept stays
    broker.deaf = False
    process.rest()
    process.put(6)
    process.rest()
    assert [payload for payload in broker.payloads() if not payload.startswith(b"{")] == texts(1, 2, 3, 6)
    assert drops(broker) == [
        ("c", {"records": 2, "from_ns": 4, "to_ns": 5, "reason": "the spool was full"}),
        ("other", {"records": 3, "from_ns": 40, "to_ns": 42, "reason": "the spool was full"}),
    ]
    assert {partition for _, _, partition, batch in broker.arrived if batch["connection"][0].as_py() == "other"} == {1}
    assert (process.delivery.spooled, process.delivery.problem) == (0, "")
    assert process.delivery.close(0.0) == 5
    process.dies()


def test_a_stream_that_refuses_is_met_as_one_that_is_away(process: Process, broker: Broker) -> None:
    process.put(1)
    broker.answer = Refused("the password is another one")
    process.turn()
    process.put(2, 3)
    process.turn(1.1)
    assert (process.delivery.spooled, process.delivery.unsettled) == (3, 0)
    assert process.delivery.problem == "the password is another one"
    assert process.delivery.failure is None
    broker.answer = None
    process.rest()
    assert broker.payloads() == texts(1, 2, 3)
    assert (process.delivery.spooled, process.delivery.problem) == (0, "")


@pytest.mark.parametrize("error", [NewerData("a newer Tapeline wrote it"), ZeroDivisionError("nobody foresaw this")])
def test_what_no_waiting_ends_is_noted_for_the_stage_to_stop_at_and_nothing_is_lost(
    tmp_path: Path, broker: Broker, error: Exception
) -> None:
    first = Process(tmp_path, broker, "a")
    first.put(1)
    first.turn()
    broker.answer = error
    first.put(2)
    first.turn()
    first.put(3)
    assert first.delivery.failure is error
    assert first.delivery.close(0.0) == 0
    broker.answer = None
    second = Process(tmp_path, broker, "b")
    second.rest()
    assert broker.payloads() == texts(1, 2, 3)
    second.dies()


def test_closing_while_the_stream_refuses_leaves_everything_on_disk(tmp_path: Path, broker: Broker) -> None:
    broker.away = True
    first = Process(tmp_path, broker, "a")
    first.put(1, 2)
    broker.answer = Refused("the password is another one")
    first.delivery._clock = count(first.s, 0.1).__next__
    assert first.delivery.close(1.0) == 0
    broker.answer, broker.away = None, False
    second = Process(tmp_path, broker, "b")
    second.rest()
    assert broker.payloads() == texts(1, 2)
    second.dies()


@pytest.mark.parametrize("spooled", [False, True])
def test_what_is_larger_than_the_stream_lets_a_message_be_is_counted_and_put_on_record(
    process: Process, broker: Broker, caplog: pytest.LogCaptureFixture, *, spooled: bool
) -> None:
    rows = [("binance", "spot", "large", "frame", 40 + at, b"x" * 3_000) for at in range(2)]
    large = pa.RecordBatch.from_arrays([pa.array(v, f.type) for v, f in zip(zip(*rows, strict=True), RAW, strict=True)], schema=RAW)
    broker.bound, broker.deaf, process.producer.problem = 5_000, spooled, "the topic takes no message of 6,000 bytes."
    process.put(1)
    process.delivery.put(2, large)
    process.put(3)
    broker.deaf = False
    process.rest()
    assert [payload for payload in broker.payloads() if not payload.startswith(b"{")] == texts(1, 3)
    assert drops(broker) == [("large", {"records": 2, "from_ns": 40, "to_ns": 41, "reason": "the stream takes no message as large"})]
    assert process.delivery.dropped == 2
    assert "takes no message of 6,000 bytes. 2 received records could not be kept so far." in caplog.text
    assert process.delivery.spooled == 0


def test_a_batch_that_a_later_one_has_overtaken_is_sent_by_the_next_process(tmp_path: Path, broker: Broker) -> None:
    broker.away = True
    first = Process(tmp_path, broker, "a")
    first.put(1, 2, 3)
    first.turn(1.1)
    for number in (1, 3):  # a broker that took back the right to write for a moment
        (one,) = [one for one in first.producer.waiting if one[0] == number]
        broker.arrived.append(("a", *one))
    first.dies()
    broker.away = False
    second = Process(tmp_path, broker, "b")
    second.rest()
    assert sorted(broker.payloads()) == texts(1, 2, 3)
    second.dies()


def test_the_first_drop_is_said_at_once_whatever_was_said_before(tmp_path: Path, broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    broker.deaf = True
    process = Process(tmp_path, broker, max_bytes=room_for(tmp_path, 1))
    process.put(1)
    process.turn(0.1)
    assert "the broker is deaf" in caplog.text
    process.put(2)
    assert "is full" in caplog.text
    assert "1 received records could not be kept" in caplog.text
    process.dies()


def test_closing_does_not_wait_for_a_stream_that_is_away_once_everything_is_on_disk(tmp_path: Path, broker: Broker) -> None:
    broker.away = True
    process = Process(tmp_path, broker)
    process.put(1, 2)
    process.turn(1.1)
    waits = 0

    def clock() -> float:
        nonlocal waits
        waits += 1
        return process.s + waits

    process.delivery._clock = clock
    assert process.delivery.close(1_000.0) == 0
    assert waits < 5


def test_what_the_producer_has_is_not_dropped_though_the_spool_is_full(tmp_path: Path, broker: Broker) -> None:
    broker.away = True
    process = Process(tmp_path, broker, max_bytes=room_for(tmp_path, 2))
    process.put(1, 2, 3, 4)
    process.turn(1.1)
    assert (process.delivery.spooled, process.delivery.unsettled, process.delivery.dropped) == (2, 2, 0)
    broker.away = False
    process.rest()
    assert broker.payloads() == texts(1, 2, 3, 4)
    process.dies()


def test_a_disk_that_fails_while_the_spool_is_cleared_stops_nothing(
    process: Process, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert process.spool is not None
    broker.deaf = True
    process.put(1, 2)
    broker.deaf = False
    process.turn()

    def failing(*arguments: object) -> None:
        raise DiskProblem("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(process.spool, "remove", failing)
        process.turn()
        assert process.delivery.busy
    process.rest()
    assert broker.payloads() == texts(1, 2)
    assert process.delivery.spooled == 0


def test_without_a_spool_the_caller_hears_that_the_stream_takes_nothing(tmp_path: Path, broker: Broker) -> None:
    process = Process(tmp_path, broker, spool=False)
    process.put(1)
    broker.deaf = True
    with pytest.raises(Unavailable, match="deaf"):
        process.put(2)
    broker.deaf = False
    process.put(2)
    process.rest()
    assert broker.payloads() == texts(1, 2)
    assert process.producer.handed == [1, 2]


def test_closing_waits_for_what_is_on_its_way_and_counts_what_is_lost_without_a_spool(tmp_path: Path, broker: Broker) -> None:
    process = Process(tmp_path, broker, spool=False)
    process.put(1)
    assert process.delivery.close(1.0) == 0
    assert broker.payloads() == texts(1)
    broker.away = True
    process = Process(tmp_path, broker, spool=False)
    process.put(2, 3)
    assert process.delivery.close(0.0) == 2


def test_closing_keeps_on_disk_what_has_not_arrived(tmp_path: Path, broker: Broker) -> None:
    broker.away = True
    first = Process(tmp_path, broker, "a")
    first.put(1, 2)
    assert first.delivery.close(0.0) == 0
    broker.away = False
    second = Process(tmp_path, broker, "b")
    second.put(3)
    second.rest()
    assert broker.payloads() == texts(1, 2, 3)
    second.dies()


def test_closing_with_a_full_spool_counts_what_is_neither_there_nor_in_the_stream(tmp_path: Path, broker: Broker) -> None:
    broker.away = True
    process = Process(tmp_path, broker, max_bytes=room_for(tmp_path, 2))
    process.put(1, 2, 3)
    assert process.delivery.close(0.0) == 1


STEPS = st.lists(
    st.sampled_from(
        ["put", "put", "other", "turn", "turn", "late", "away", "back", "deaf", "hears", "some", "some other", "restart", "close"]
    ),
    max_size=60,
)


@settings(max_examples=settings().max_examples * 2)
@given(STEPS)
def test_whatever_happens_each_batch_that_was_kept_arrives_once_and_in_order(steps: list[str]) -> None:
    broker = Broker()
    writers = iter(f"w{number}" for number in range(1_000))
    with tempfile.TemporaryDirectory() as folder:
        process = Process(Path(folder), broker, next(writers))
        number = 0
        where: dict[int, list[int]] = {0: [], 1: []}
        for step in steps:
            if step in ("put", "other"):
                number += 1
                process.put(number, partition=int(step == "other"))
                where[int(step == "other")].append(number)
            elif step in ("turn", "late"):
                process.turn(1.1 if step == "late" else 0.01)
            elif step in ("away", "back"):
                broker.away = step == "away"
            elif step in ("deaf", "hears"):
                broker.deaf = step == "deaf"
            elif step in ("some", "some other"):
                process.producer.arrive(2, partition=int(step == "some other"))
            else:
                if step == "close":
                    assert process.delivery.close(0.0) == 0
                elif process.delivery.unsettled:  # what was on its way for under a second dies with the process
                    continue
                process.dies()
                process = Process(Path(folder), broker, next(writers))
        broker.away = broker.deaf = False
        process.rest()
        for partition, numbers in where.items():
            assert broker.payloads(partition) == texts(*numbers)
        process.dies()
