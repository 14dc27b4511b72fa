"""Workers, servers and readers that die, sleep or vanish in the middle: what was read comes out once, whatever happened."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from places import EACH, EVERY, SERVERS, Place, by_partition, everything
from transforming import Flow

from made import raws
from proving import PROVE, proof
from tapeline.errors import Unavailable
from tapeline.records import RAW_TOPIC, TICKS_TOPIC
from waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from conftest import Workers

pytestmark = proof("crashes")

#: Each death costs a session on Kafka: there one codec is enough for every day.
DEADLY = EVERY if PROVE else EACH
POINTS = ["poll", "polled", "within", "offsets", "decided", "committed"]


class Watch:
    """A reader in another process, and what it saw while everything went on."""

    def __init__(self, place: Place, work: Workers) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self._process = work(place, "watch", topic=TICKS_TOPIC.name, column="sequence")
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.seen += [(p, o, n) for p, o, n in json.loads(line)]

    def check(self, kept: list[tuple[int, int, int]]) -> None:
        """It has seen what is kept, and nothing that was taken back."""
        until(lambda: len(self.seen) >= len(kept), f"the reader has seen all: {len(self.seen)} of {len(kept)}")
        self._process.kill()
        self._thread.join(10)
        assert sorted(self.seen) == sorted(kept)


@pytest.mark.parametrize("place", DEADLY, indirect=True)
def test_a_worker_killed_at_every_point_of_its_work_loses_and_doubles_nothing(place: Place, work: Workers) -> None:
    flow = Flow(place.open())
    flow.write(30)
    watch = Watch(place, work)
    rng = random.Random(3)
    points = POINTS * (5 if PROVE else 1)
    if place.kind == "kafka" and not PROVE:
        points = ["within", "offsets", "decided"]  # each death costs a session there
    for turn, point in enumerate(points):
        if (point == "offsets" and place.kind != "kafka") or (point == "decided" and place.kind == "embedded"):
            continue  # there is no such point
        flow.write(150)
        dying = work(place, "transform", name="the one", max_rows=5, die=[point, 1 if place.kind == "kafka" else rng.randint(1, 2)])
        try:
            dying.wait(PATIENCE_S)
        except Exception as error:
            raise AssertionError(f"it did not come to {point} in turn {turn}: {work.said()[-2000:]}") from error
        assert dying.returncode == -signal.SIGKILL
    last = work(place, "transform", name="the one", max_rows=5)
    assert last.stdout is not None
    assert last.stdout.readline() == "joined\n"
    flow.settle()
    last.send_signal(signal.SIGTERM)
    assert last.wait(PATIENCE_S) == 0, work.said()[-2000:]
    watch.check(flow.check())


@pytest.mark.parametrize("place", DEADLY, indirect=True)
def test_workers_killed_at_random_while_others_work_lose_and_double_nothing(place: Place, work: Workers) -> None:
    flow, rng = Flow(place.open()), random.Random(8)
    watch = Watch(place, work)
    crew = [work(place, "transform", name=f"w{n}", max_rows=30) for n in range(2)]
    for turn in range(40 if PROVE else 4):
        until_s = time.monotonic() + rng.uniform(0.3, 1.5)
        while time.monotonic() < until_s:
            flow.write(30, 5)
            time.sleep(0.05)
        at = rng.randrange(len(crew))
        crew[at].send_signal(signal.SIGKILL)
        crew[at].wait()
        flow.write(30, 5)
        crew[at] = work(place, "transform", name=f"w{at}", max_rows=30)
        del turn
    flow.settle()
    for worker in crew:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "joined\n"
        worker.send_signal(signal.SIGTERM)
    assert [worker.wait(PATIENCE_S) for worker in crew] == [0, 0], work.said()[-2000:]
    watch.check(flow.check())


@pytest.mark.parametrize("place", EACH, indirect=True)
def test_a_worker_that_slept_beyond_its_lease_writes_nothing_any_more(place: Place, work: Workers) -> None:
    flow = Flow(place.open())
    flow.write(60)
    sleeper = work(place, "transform", dawdle=0.3, max_rows=20)
    assert sleeper.stdout is not None
    assert [sleeper.stdout.readline() for _ in range(2)] == ["joined\n", "polled\n"]
    sleeper.send_signal(signal.SIGSTOP)
    other = work(place, "transform")
    flow.settle()
    flow.write(60)
    flow.settle()
    sleeper.send_signal(signal.SIGCONT)
    flow.write(60)
    flow.settle()
    time.sleep(1.0)
    for worker in (sleeper, other):
        worker.send_signal(signal.SIGTERM)
    assert [worker.wait(PATIENCE_S) for worker in (sleeper, other)] == [0, 0], work.said()[-2000:]
    flow.check()


@pytest.mark.parametrize("place", EACH, indirect=True)
def test_of_two_that_read_the_same_only_one_commits(place: Place, work: Workers) -> None:
    """The first polls and stands still without a heartbeat's help; the second takes over; then the first wakes and commits."""
    flow = Flow(place.open())
    flow.write(30)
    first = work(place, "transform", dawdle=1.0, max_rows=100, name="first")
    assert first.stdout is not None
    assert [first.stdout.readline() for _ in range(2)] == ["joined\n", "polled\n"]
    first.send_signal(signal.SIGSTOP)
    flow_done = work(place, "transform", name="second")
    flow.settle()
    first.send_signal(signal.SIGCONT)
    if place.kind != "kafka":  # there the group's word may come before the commit's, and it reads on without one
        assert first.stdout.readline() == "lost\n"
    flow.write(30)
    flow.settle()
    for worker in (first, flow_done):
        worker.send_signal(signal.SIGTERM)
        worker.wait(PATIENCE_S)
    flow.check()


# Servers.


@pytest.mark.parametrize(
    "name", ["redis-arrow", "redis-protobuf", "kafka-arrow", "kafka-protobuf"] if PROVE else ["redis-protobuf", "kafka-arrow"]
)
@pytest.mark.parametrize("how", ["killed", "paused"])
def test_a_server_killed_or_paused_in_the_middle_of_work_costs_time_and_nothing_else(
    own_place: Any, work: Workers, name: str, how: str
) -> None:
    place, server = own_place(name)
    flow = Flow(place.open())
    flow.write(60)
    watch = Watch(place, work)
    worker = work(place, "transform", name="the one", max_rows=7)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "joined\n"
    for pause_s in (10.0, 0.5) if how == "paused" else (0.0, 2.0) if PROVE else (0.5,):
        flow.write(300, 5)
        time.sleep(0.3)
        if how == "killed":
            server.kill()
            time.sleep(pause_s)
            server.start()
        else:
            server.pause()
            time.sleep(pause_s)
            server.resume()
        until(lambda: writes(flow), "it takes records again")
    flow.settle()
    assert worker.poll() is None, work.said()[-3000:]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE_S) == 0, work.said()[-3000:]
    watch.check(flow.check())


def writes(flow: Flow) -> bool:
    """Whether one more record could be written. A write that failed may have happened none the less, so it is looked for."""
    before = flow.count
    try:
        flow.write(1)
    except Unavailable:
        flow.count = before
        return flow.arrived(before)
    return True


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("how", ["killed", "paused", "stopped"])
def test_what_a_producer_was_handed_arrives_once_and_in_order_whatever_the_server_does(own_place: Any, name: str, how: str) -> None:
    place, server = own_place(name)
    stream = place.open()
    assert stream.partitions == 3
    producer = stream.producer("writer")
    sent: list[int] = []

    def send(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number = len(sent) + 1
            try:
                producer.send(number, number % 3, raws(number, 1))
                sent.append(number)
            except Unavailable:
                pass
            producer.settled()
            time.sleep(0.002)

    send(0.5)
    if how == "paused":
        server.pause()
        send(11.0 if PROVE else 4.0)
        server.resume()
    else:
        server.kill() if how == "killed" else server.stop()
        send(1.0)
        server.start()
    send(1.0)
    until(lambda: producer.settled() == sent[-1], "all of it is settled")
    assert by_partition(everything(place.open(), RAW_TOPIC), "payload") == {p: [b"%d " % n for n in sent if n % 3 == p] for p in range(3)}
    producer.close(1.0)


@pytest.mark.parametrize("name", SERVERS)
def test_a_producer_may_begin_before_its_server(own_place: Any, name: str) -> None:
    place, server = own_place(name)
    server.stop()
    producer = place.open().producer("writer")
    number = 1
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        try:
            producer.send(number, number % 3, raws(number, 1))
            number += 1
        except Unavailable:
            time.sleep(0.05)
    server.start()
    end = time.monotonic() + 20.0
    while number < 20 or producer.settled() < number - 1:
        assert time.monotonic() < end, f"settled {producer.settled()} of {number - 1}"
        try:
            if number < 20:
                producer.send(number, number % 3, raws(number, 1))
                number += 1
        except Unavailable:
            pass
        time.sleep(0.02)
    assert by_partition(everything(place.open(), RAW_TOPIC), "payload") == {
        p: [b"%d " % n for n in range(1, number) if n % 3 == p] for p in range(3)
    }
    producer.close(1.0)
