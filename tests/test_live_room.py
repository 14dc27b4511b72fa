"""The memory of all clients of the live feed together: bounded, whoever does not read, and those who read lose nothing to them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from made import ticks
from tapeline.records import TICKS_TOPIC, Chunk
from tapeline.web.live.client import Client, Room
from tapeline.web.live.hub import Hub
from tapeline.web.live.messages import Message
from tapeline.web.live.position import Position
from tapeline.web.live.subscription import Subscription
from tapeline.web.live.window import window_of

if TYPE_CHECKING:
    from collections.abc import Iterable

START = Position({"ticks": (0,), "bars": (0,)})
ALL = Subscription(frozenset("*"), frozenset({"ticks"}))


def all_but_different(number: int) -> Subscription:
    """All ticks, in messages that are made for this subscription alone."""
    return Subscription(frozenset({"*", f"NONE{number}"}), frozenset({"ticks"}))


def hub_of(**options: Any) -> Hub:
    hub = Hub(100, lambda: 0, **options)
    hub.begin(START, START)
    return hub


def publish(hub: Hub, rows: int) -> None:
    """One more window of so many ticks. The ticks are numbered by their raw offsets."""
    first = hub.position.next["ticks"][0]
    batch = ticks(*({"raw_offset": first + more} for more in range(rows)))
    hub.publish(window_of(hub.position, [Chunk.dense(TICKS_TOPIC, 0, first, batch)]))


def given(client: Client) -> list[dict[str, Any]]:
    """What the client is sent now. Until it is asked again, the client has not taken it."""
    return [json.loads(message.body) for message in client.taken()]


def rest_of(client: Client) -> list[dict[str, Any]]:
    found = []
    while messages := given(client):
        found += messages
    return found


def numbers(messages: Iterable[dict[str, Any]]) -> list[int]:
    return [int(row["id"].split("-")[1]) for message in messages if message["kind"] == "ticks" for row in message["rows"]]


def skipped(messages: Iterable[dict[str, Any]]) -> int:
    return sum(message["skipped"] for message in messages if message["kind"] == "conflated")


def test_what_waits_for_all_is_bounded_and_who_reads_gets_everything() -> None:
    hub = hub_of(all_bytes=200_000)
    slow = [hub.join(all_but_different(number), "") for number in range(20)]
    for client in slow:
        given(client)
    reader = hub.join(ALL, "")
    got = []
    for _ in range(200):
        publish(hub, 10)
        assert sum(client.waiting for client in slow) <= 200_000
        got += rest_of(reader)
    assert numbers(got) == list(range(2_000))
    assert skipped(got) == 0
    for client in slow:
        late = rest_of(client)
        assert skipped(late) + len(numbers(late)) == 2_000, "it is told how many events it did not get"
        assert skipped(late) > 1_000


def test_a_message_that_waits_for_many_takes_room_once() -> None:
    hub = hub_of(all_bytes=400_000)
    same = [hub.join(ALL, "") for _ in range(50)]
    for client in same:
        given(client)
    for _ in range(50):
        publish(hub, 10)
    assert [numbers(rest_of(client)) for client in same] == [list(range(500))] * 50


def test_a_burst_that_is_larger_than_the_room_leaves_something_out_for_the_fewest() -> None:
    hub = hub_of(all_bytes=200_000)
    readers = [hub.join(all_but_different(number), "") for number in range(20)]
    for client in readers:
        rest_of(client)
    publish(hub, 100)
    got = [rest_of(client) for client in readers]
    assert [skipped(some) + len(numbers(some)) for some in got] == [100] * 20
    assert 0 < sum(not skipped(some) for some in got) < 20


def test_who_takes_nothing_is_cut_off_where_what_is_under_way_is_too_much_by_itself() -> None:
    room, severed = Room(100_000), list[int]()
    clients = []
    for number in range(20):
        client = Client(ALL, lambda client, left_out: Message("conflated", "", b"{}"), lambda: 0, 1_000_000, room)
        client.sever = lambda number=number: severed.append(number)  # type: ignore[misc]
        clients.append(client)
        client.put(Message("ticks", "ticks:1;bars:0", b"x" * 20_000, 1))
        client.taken()
        assert room.taken <= 100_000
    assert severed
    assert [client.waiting for number, client in enumerate(clients) if number in severed] == [0] * len(severed)
    assert sum(client.waiting for client in clients) == room.taken
    for client in clients:
        client.leave()
    assert room.taken == 0


def test_who_comes_back_and_takes_too_little_does_not_keep_the_past_from_being_forgotten() -> None:
    hub, severed = hub_of(ring_bytes=300_000), list[str]()
    for _ in range(3):
        publish(hub, 100)
    client = hub.join(ALL, str(START))
    client.sever = lambda: severed.append("severed")
    got = given(client)
    for _ in range(5):
        publish(hub, 100)
    while not severed:
        got += given(client)
    hub.leave(client)
    last = got[-1]["id"]
    assert numbers(got) == list(range(Position({"ticks": (int(last.split(";")[0].split(":")[1]),), "bars": (0,)}).next["ticks"][0]))
    again = given(hub.join(ALL, last))
    assert again[0]["resumed"] is False
    assert "no longer kept" in again[0]["missed"]
