"""Members of a group share its partitions fairly, take over from the dead, and never both commit the same records."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made import raws, ticks
from tapeline.errors import Busy
from tapeline.records import NS_PER_S, RAW_TOPIC, TICKS_TOPIC, Chunk, Topic
from tapeline.streams import PartitionLost
from tapeline.streams.embedded import EmbeddedStream
from tapeline.streams.groups import LEASE_S, Shares

if TYPE_CHECKING:
    from tapeline.streams import Member

#: How often a member asks for its partitions here: well within the time that leases last.
TICK_S = LEASE_S / 3


@dataclass
class Clock:
    """A clock that goes when it is told to."""

    s: float = 1_000.0

    def now_ns(self) -> int:
        return int(self.s * NS_PER_S)

    def now_s(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedStream]:
    with closing(EmbeddedStream(tmp_path, 8, clock=clock.now_ns)) as found:
        yield found


def joined(stream: EmbeddedStream, clock: Clock, count: int, group: str = "g") -> Shares:
    return Shares(stream._leases(), group, "t", count, clock=clock.now_s)


def work(members: list[Shares], clock: Clock, rounds: int = 1) -> list[list[int]]:
    """Every member asks, time after time; what each has at the end. At no time has a partition two members."""
    found: list[list[int]] = []
    for _ in range(rounds):
        clock.s += TICK_S
        for member in members:
            member.now()
            have = [partition for some in members for partition in some._mine]
            assert len(have) == len(set(have))
        found = [list(member.now()) for member in members]
    return found


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("number", range(1, 5))
def test_every_member_gets_a_fair_share_and_every_partition_a_member(number: int, count: int, stream: EmbeddedStream, clock: Clock) -> None:
    members: list[Shares] = []
    for _ in range(number):  # each comes while the others work
        members.append(joined(stream, clock, count))
        shares = work(members, clock, 3)
        assert sorted(partition for share in shares for partition in share) == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert work(members, clock, 10) == shares  # and keeps it


def test_a_member_alone_has_everything_at_its_first_call(stream: EmbeddedStream, clock: Clock) -> None:
    assert joined(stream, clock, 5).now() == [0, 1, 2, 3, 4]


def test_the_partitions_of_a_dead_member_are_taken_over_when_its_lease_ends_and_not_before(stream: EmbeddedStream, clock: Clock) -> None:
    members = [joined(stream, clock, 7) for _ in range(3)]
    shares = work(members, clock, 4)
    died_at = clock.s
    living = members[1:]
    while clock.s + TICK_S < died_at + LEASE_S:
        assert not set(shares[0]) & {partition for share in work(living, clock) for partition in share}
    now = work(living, clock, 3)
    assert clock.s < died_at + 2 * LEASE_S + TICK_S
    assert sorted(partition for share in now for partition in share) == list(range(7))
    assert sorted(map(len, now)) == [3, 4]


def test_a_member_that_closes_leaves_its_partitions_to_the_others_at_their_next_look(stream: EmbeddedStream, clock: Clock) -> None:
    members = [joined(stream, clock, 6) for _ in range(2)]
    work(members, clock, 3)
    members[0].close()
    assert work(members[1:], clock) == [[0, 1, 2, 3, 4, 5]]
    members[0].close()


def test_a_member_that_slept_through_its_lease_has_only_what_is_its_own_again(stream: EmbeddedStream, clock: Clock) -> None:
    members = [joined(stream, clock, 4) for _ in range(2)]
    work(members, clock, 3)
    for _ in range(6):
        work(members[1:], clock)  # the first sleeps
    assert work(members[1:], clock) == [[0, 1, 2, 3]]
    shares = work(members, clock, 4)
    assert sorted(partition for share in shares for partition in share) == [0, 1, 2, 3]
    assert [len(share) for share in shares] == [2, 2]


def test_the_book_is_asked_only_as_often_as_leases_need(stream: EmbeddedStream, clock: Clock) -> None:
    first = joined(stream, clock, 2)
    assert first.now() == [0, 1]
    joined(stream, clock, 2).now()
    clock.s += 0.1
    assert first.now() == [0, 1]
    first.lost()
    assert len(first.now()) == 1


def test_groups_share_each_for_itself(stream: EmbeddedStream, clock: Clock) -> None:
    one, other = joined(stream, clock, 3, "one"), joined(stream, clock, 3, "other")
    assert work([one], clock) == work([other], clock) == [[0, 1, 2]]


def test_a_thing_that_is_held_is_held_by_one_until_it_is_dropped_or_its_holder_dies(stream: EmbeddedStream, clock: Clock) -> None:
    lease = stream.hold("the account")
    with pytest.raises(Busy, match="the account"):
        stream.hold("the account")
    stream.hold("another account")
    clock.s += LEASE_S * 0.9
    lease.keep()
    clock.s += LEASE_S * 0.9
    with pytest.raises(Busy):
        stream.hold("the account")
    lease.drop()
    second = stream.hold("the account")
    clock.s += LEASE_S + 0.1  # the second holder has died
    third = stream.hold("the account")
    with pytest.raises(Busy, match="the account"):
        second.keep()
    second.drop()  # which it does not hold
    third.keep()


# Commits


def made_of(chunk: Chunk) -> list[tuple[Topic, object]]:
    """One tick for each raw record, with the record's number."""
    numbers = [int(payload.split()[0]) for payload in chunk.batch["payload"].to_pylist()]
    return [(TICKS_TOPIC, ticks(*[{"sequence": number} for number in numbers]))]


def kept(stream: EmbeddedStream) -> list[int]:
    chunk = stream.read(TICKS_TOPIC, {}, 1_000_000)
    return chunk.batch["sequence"].to_pylist() if chunk is not None else []


def commit(member: Member, chunk: Chunk) -> None:
    member.commit(chunk, made_of(chunk), {"ticks": chunk.rows})


@pytest.mark.parametrize("sleeper_first", [True, False])
def test_of_two_that_read_the_same_records_only_the_first_commits(tmp_path: Path, clock: Clock, sleeper_first: bool) -> None:
    with closing(EmbeddedStream(tmp_path, clock=clock.now_ns)) as one, closing(EmbeddedStream(tmp_path, clock=clock.now_ns)) as two:
        one.append(RAW_TOPIC, raws(0, 10))
        sleeper = one.join("g", RAW_TOPIC)
        its = sleeper.poll(100)
        assert its is not None
        clock.s += LEASE_S + 0.1
        other = two.join("g", RAW_TOPIC)
        same = other.poll(100)
        assert same is not None
        assert same.offset.tolist() == its.offset.tolist()
        first, second = ((sleeper, its), (other, same)) if sleeper_first else ((other, same), (sleeper, its))
        commit(*first)
        with pytest.raises(PartitionLost):
            commit(*second)
        assert kept(one) == list(range(10))
        assert one.totals("g") == {"ticks": 10}
        assert one.positions("g", RAW_TOPIC) == {0: 10}
        assert second[0].poll(100) is None
        one.append(RAW_TOPIC, raws(10, 3))
        chunk = other.poll(100) or sleeper.poll(100)
        assert chunk is not None
        assert chunk.offset.tolist() == [10, 11, 12]


STEPS = st.lists(
    st.tuples(st.sampled_from(["poll", "poll", "commit", "commit", "append", "sleep", "die", "leave", "tick"]), st.integers(0, 2)),
    max_size=60,
)


@settings(max_examples=settings().max_examples // 2)
@given(STEPS, st.integers(1, 4))
def test_whatever_members_do_each_record_is_committed_once_and_in_order(steps: list[tuple[str, int]], partitions: int) -> None:
    clock = Clock()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        streams = [stack.enter_context(closing(EmbeddedStream(folder, partitions, clock=clock.now_ns))) for _ in range(3)]
        members: list[Member | None] = [None] * 3
        read: list[Chunk | None] = [None] * 3
        written: list[list[int]] = [[] for _ in range(partitions)]
        number = 0

        def member(at: int) -> Member:
            found = members[at]
            if found is None:
                found = members[at] = streams[at].join("g", RAW_TOPIC)
                found._shares._clock = clock.now_s  # type: ignore[attr-defined]
            return found

        def append() -> None:
            nonlocal number
            streams[0].append(RAW_TOPIC, raws(number, 3), number % partitions)
            written[number % partitions] += range(number, number + 3)
            number += 3

        def finish(at: int) -> None:
            chunk, read[at] = read[at], None
            if chunk is not None and members[at] is not None:
                try:
                    commit(member(at), chunk)
                except PartitionLost:
                    return

        for what, at in steps:
            if what == "poll" and read[at] is None:
                read[at] = member(at).poll(4)
            elif what == "commit":
                finish(at)
            elif what == "append":
                append()
            elif what == "sleep":
                clock.s += LEASE_S + 0.1
            elif what == "tick":
                clock.s += TICK_S
            elif what == "leave" and members[at] is not None:
                member(at).close()
                members[at] = read[at] = None
            elif what == "die":
                members[at] = read[at] = None
        append()
        for _ in range(200):
            clock.s += TICK_S
            for at in range(3):
                finish(at)
                read[at] = member(at).poll(100)
            if not any(streams[0].lag(RAW_TOPIC, streams[0].positions("g", RAW_TOPIC)).values()):
                break
        found = kept(streams[0])
        assert sorted(found) == list(range(number))
        assert streams[0].totals("g") == {"ticks": number}
        for numbers in written:
            assert [some for some in found if some in set(numbers)] == numbers
