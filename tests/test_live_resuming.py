"""Coming back to the live feed: the order of what was missed, what a server knows that was just started, what one client costs others."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from made import ticks
from tapeline.config import Config
from tapeline.errors import Unavailable
from tapeline.records import TICKS_TOPIC, Chunk
from tapeline.web import history
from tapeline.web.history import History
from tapeline.web.live.client import Client
from tapeline.web.live.hub import Hub
from tapeline.web.live.messages import Message
from tapeline.web.live.position import Position
from tapeline.web.live.subscription import Subscription, requested
from tapeline.web.live.window import Window, window_of
from tapeline.web.queries import Ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

START = Position({"ticks": (0,), "bars": (0,)})
ALL = Subscription(frozenset("*"), frozenset({"ticks"}))


def windows_of(count: int, rows: int = 1, symbol: str = "BTC/USDT") -> list[Window]:
    """So many windows, each with so many ticks. The ticks are numbered by their raw offsets."""
    found, at = [], START
    for first in range(0, count * rows, rows):
        batch = ticks(*({"symbol": symbol, "raw_offset": first + more} for more in range(rows)))
        found.append(window_of(at, [Chunk.dense(TICKS_TOPIC, 0, first, batch)]))
        at = found[-1].after
    return found


def hub_with(windows: list[Window], **options: Any) -> Hub:
    hub = Hub(10, time.monotonic_ns, **options)
    hub.begin(START, START)
    for window in windows:
        hub.publish(window)
    return hub


def taken(client: Client) -> list[dict[str, Any]]:
    return [json.loads(message.body) for message in client.taken()]


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [int(row["id"].split("-")[1]) for message in messages if message["kind"] == "ticks" for row in message["rows"]]


def test_what_was_missed_comes_whole_before_what_is_new_however_much_it_is() -> None:
    """Each position that a client has got is one up to which it has everything, so it may be lost after any message."""
    hub = hub_with(windows_of(40, rows=100))
    client = hub.join(ALL, str(START))
    before = hub.position
    batches = []
    while (batch := taken(client)) and len(batches) < 50:
        batches.append(batch)
        if len(batches) < 4:
            more = ticks(*({"raw_offset": 4_000 + len(batches) * 10 + at} for at in range(10)))
            hub.publish(window_of(hub.position, [Chunk.dense(TICKS_TOPIC, 0, hub.position.next["ticks"][0], more)]))
    assert len(batches) > 3, "it is more than is sent at once"
    messages = [message for batch in batches for message in batch]
    got = numbers(messages)
    assert got == sorted(set(got))
    assert got[:4_000] == list(range(4_000))
    positions = [int(message["id"].partition(":")[2].partition(";")[0]) for message in messages]
    assert positions == sorted(positions)
    assert before.next["ticks"][0] in positions


def test_a_market_that_stands_still_keeps_nobody_from_what_was_missed() -> None:
    hub = hub_with(windows_of(40, rows=100))
    client = hub.join(ALL, str(START))
    messages = []
    while batch := taken(client):
        messages += batch
    assert numbers(messages) == list(range(4_000))


def test_a_client_that_is_lost_after_the_first_message_has_got_nothing_yet() -> None:
    hub = hub_with(windows_of(3))
    hello = taken(hub.join(ALL, "ticks:1;bars:0"))[0]
    assert (hello["resumed"], hello["id"]) == (True, "ticks:1;bars:0")


def test_a_client_that_waits_is_sent_signs_of_life_with_the_position_and_one_that_takes_nothing_is_given_up() -> None:
    """So a client of quiet symbols can continue where the topics are."""

    async def run() -> None:
        now_s = [0.0]
        hub = Hub(10, lambda: int(now_s[0] * 1e9))
        hub.begin(START, START)
        client, severed = hub.join(Subscription(frozenset({"QUIET"}), frozenset({"ticks"})), ""), asyncio.Event()
        client.sever = severed.set
        await client.take()
        for window in windows_of(3):
            waiting = asyncio.ensure_future(client.take())
            await asyncio.sleep(0)
            now_s[0] += 4.0
            hub.tend()
            hub.publish(window)
            await asyncio.sleep(0)
            assert not waiting.done(), "it waits for less than five seconds"
            now_s[0] += 2.0
            hub.tend()
            assert [(message.kind, message.id) for message in await waiting] == [("alive", str(hub.position))]
        now_s[0] += 59.0
        hub.tend()
        assert not severed.is_set()
        now_s[0] += 2.0
        hub.tend()
        assert severed.is_set()

    asyncio.run(run())


# A server that was just started


def test_a_client_waits_until_the_server_has_read_as_far_as_it_has() -> None:
    windows = windows_of(5)

    async def run() -> list[Message]:
        hub = hub_with(windows[:3])
        asyncio.get_running_loop().call_later(0.1, hub.publish, windows[3])
        await hub.arrived("ticks:4;bars:0", 20.0)
        client = hub.join(ALL, "ticks:4;bars:0")
        hub.publish(windows[4])
        return [*client.taken(), *client.taken()]

    messages = [json.loads(message.body) for message in asyncio.run(run())]
    assert messages[0]["resumed"] is True
    assert numbers(messages) == [4]


def test_a_position_that_never_comes_is_not_waited_for_without_an_end() -> None:
    async def run() -> dict[str, Any]:
        hub = hub_with(windows_of(1))
        await hub.arrived("ticks:99;bars:0", 0.1)
        return dict(json.loads(hub.join(ALL, "ticks:99;bars:0").taken()[0].body))

    assert asyncio.run(run())["resumed"] is False


def test_while_the_stream_is_away_a_client_is_sent_away_with_its_position_and_a_new_one_gets_no_position() -> None:
    hub = Hub(10, time.monotonic_ns)
    with pytest.raises(Unavailable, match="Try later"):
        hub.join(ALL, "ticks:4;bars:0")
    assert taken(hub.join(ALL, ""))[0]["id"] == ""


# History


def test_the_position_is_asked_before_the_store_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored between the two comes twice instead of never."""
    order: list[str] = []

    class _Result:
        schema = TICKS_TOPIC.schema

        def batches(self) -> Iterator[Any]:
            order.append("read")
            return iter(())

    def opened(*_: Any, **__: Any) -> _Result:
        order.append("opened")
        return _Result()

    monkeypatch.setattr(history.api, "ticks", opened)
    monkeypatch.setattr(History, "_next", lambda *_: order.append("position") or "ticks:1;bars:0")
    told = History(Config(), lambda: START, lambda: 0)
    assert json.loads(b"".join(told.ticks(Ticks(symbols="BTC/USDT", start="2024-01-01")))) == {
        "next": "ticks:1;bars:0",
        "rows": [],
        "truncated": False,
    }
    assert order == ["position", "opened", "read"]


# What one client costs the others


def test_a_thousand_names_and_a_hundred_patterns_are_matched_quickly() -> None:
    names = [f"NAME{number}" for number in range(900)] + [f"*{number}?/USD*" for number in range(100)]
    subscription = requested({"symbols": ",".join(names)})
    began = time.process_time()
    found = sum(subscription.matches(f"SYMBOL{number}/USDT") for number in range(2_000))
    assert time.process_time() - began < 2.0
    assert found > 0
    assert subscription.matches("NAME7")
    assert not subscription.matches("NAME7 ")
