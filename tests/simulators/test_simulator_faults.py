"""Every fault does what its help says, the journal tells the truth about it, and the rest of the data is unharmed."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from listening import Client, connect, running, told
from picows import WSHandshakeError, WSMsgType

from tapeline.simulators import FAULTS, Simulator, SimulatorOptions
from tapeline.simulators.events import Topic
from waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

LOGINS = {
    "polygon": ("/stocks", [{"action": "auth", "params": "demo"}, {"action": "subscribe", "params": "T.*,Q.*"}]),
    "alpaca": (
        "/v2/iex",
        [{"action": "auth", "key": "k", "secret": "s"}, {"action": "subscribe", "trades": ["*"], "quotes": ["*"]}],
    ),
    "binance": ("/stream?streams=btcusdt@trade/btcusdt@bookTicker", []),
}
EVERYWHERE = pytest.mark.parametrize("name", ["binance", "polygon", "alpaca"])


async def listener(url: str, name: str, *, answers_closes: bool = True) -> Client:
    """A client that is logged in and subscribed to trades and quotes."""
    path, requests = LOGINS[name]
    client = await connect(url + path, answers_closes=answers_closes)
    for request in requests:
        client.say(request)
    return client


def test_an_unknown_fault_is_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(ValueError, match="Did you mean 'duplicate'"):
        Simulator(SimulatorOptions(name="binance", faults=("duplicates",)))


@pytest.mark.parametrize(
    ("name", "fault", "reason"),
    [
        ("binance", "garbage:often", "must be a number"),
        ("binance", "garbage:2", "between 0 and 1"),
        ("binance", "duplicate_q", "works for polygon, not for binance"),
        ("polygon", "http_429", "works for alpaca, not for polygon"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(name: str, fault: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Simulator(SimulatorOptions(name=name, faults=(fault,)))


def test_every_fault_has_one_line_of_help() -> None:
    assert all(text and "\n" not in text for text in FAULTS.values())


@EVERYWHERE
def test_close_is_clean_and_a_new_connection_gets_its_own_time(name: str) -> None:
    async def scenario() -> None:
        async with running(Simulator(SimulatorOptions(name=name, faults=("close:0.3",)))) as url:
            for _ in range(2):
                client = await listener(url, name)
                began = time.monotonic()
                await client.until(lambda client=client: client.gone)
                assert client.close_code == 1001
                assert time.monotonic() - began > 0.2
                assert len(client.messages) > 3

    asyncio.run(scenario())


@EVERYWHERE
def test_reset_comes_in_the_middle_of_a_frame(name: str) -> None:
    async def scenario() -> None:
        async with running(Simulator(SimulatorOptions(name=name, faults=("reset:0.3",)))) as url:
            client = await listener(url, name)
            await client.until(lambda: client.gone)
            assert client.close_code is None
            client.parsed()  # every whole frame is whole

    asyncio.run(scenario())


async def silence(client: Client) -> int:
    """Wait until data has come and nothing more comes; how many messages came."""
    seen, looks = 0, 0
    while not seen or looks < 4:
        await asyncio.sleep(0.15)
        seen, looks = len(client.messages), looks + 1 if len(client.messages) == seen else 0
    return seen


@EVERYWHERE
def test_stale_ends_the_data_and_answers_pings(name: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        async with running(Simulator(SimulatorOptions(name=name, faults=("stale:0.3",), journal=journal))) as url:
            client = await listener(url, name)
            so_far = await silence(client)
            client.transport.send_ping(b"hello")
            await client.until(lambda: client.pongs == [b"hello"])
            await asyncio.sleep(0.3)
            assert len(client.messages) == so_far > 3
            assert not client.gone
        assert told(journal)[-1]["event"] == _events(client)[-1], "the journal holds nothing that a stale socket missed"

    asyncio.run(scenario())


@EVERYWHERE
def test_half_open_answers_nothing_at_all(name: str) -> None:
    async def scenario() -> None:
        async with running(Simulator(SimulatorOptions(name=name, faults=("half_open:0.3",)))) as url:
            client = await listener(url, name)
            so_far = await silence(client)
            client.transport.send_ping(b"hello")
            await asyncio.sleep(0.3)
            assert client.pongs == []
            assert len(client.messages) == so_far
            assert not client.gone

    asyncio.run(scenario())


def _events(client: Client) -> list[dict[str, Any]]:
    """The market's events in a client's readable frames, unwrapped."""
    found: list[dict[str, Any]] = []
    for _, data in client.messages:
        message = json.loads(data)
        if isinstance(message, list):
            found += [one for one in message if one.get("ev") != "status" and len(one.get("T", "t")) == 1]
        else:
            found += [message["data"]] if message["stream"] != "!serverShutdown" else []
    return found


@EVERYWHERE
@pytest.mark.parametrize("fault", ["garbage", "truncated", "wrong_types", "unknown_event"])
def test_malformed_events_come_extra_and_the_journal_tells_them_apart(name: str, fault: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        options = SimulatorOptions(name=name, limit=1500, rate=20_000.0, faults=(f"{fault}:0.5",), journal=journal)
        simulator = Simulator(options)
        async with running(simulator) as url:
            client = await listener(url, name)
            await eventually(lambda: sum(simulator.sent.values()) >= 1500)
            await asyncio.sleep(0.3)
        lines = told(journal)
        good = [line["event"] for line in lines if not line.get("raw")]
        broken = [line for line in lines if line.get("raw")]
        assert len(good) == 1500, "no good event was harmed"
        assert len(broken) >= 2
        assert all(line["event"] is None for line in broken)
        assert sum(simulator.sent.values()) == len(lines)
        heard, unreadable = _sorted_out(client, good)
        assert heard == good
        assert Counter(unreadable) == Counter(_bytes_of(line) for line in broken)

    asyncio.run(scenario())


def _bytes_of(line: dict[str, Any]) -> bytes:
    """The bytes of a malformed event."""
    return bytes.fromhex(line["hex"]) if "hex" in line else line["text"].encode()


def _sorted_out(client: Client, good: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Readable events, and the bytes of all else."""
    keys = {tuple(event) for event in good}
    heard: list[dict[str, Any]] = []
    rest: list[bytes] = []
    for _, data in client.messages:
        try:
            message = json.loads(data)
        except ValueError:
            rest.append(data)
            continue
        if isinstance(message, list):
            control = ("success", "subscription")
            parts = [one for one in message if one.get("ev") != "status" and one.get("T") not in control]
        else:
            parts = [message["data"]]
        for part in parts:
            if tuple(part) in keys and [] not in part.values():
                heard.append(part)
            else:
                rest.append(json.dumps(part, separators=(",", ":")).encode())
    return heard, rest


@EVERYWHERE
def test_duplicate_sends_frames_twice(name: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        simulator = Simulator(SimulatorOptions(name=name, limit=2000, rate=5000.0, faults=("duplicate:0.2",), journal=journal))
        async with running(simulator) as url:
            client = await listener(url, name)
            await eventually(lambda: sum(not line.get("repeat") for line in told(journal)) >= 2000)
            await asyncio.sleep(0.1)
        lines = told(journal)
        assert [line["event"] for line in lines] == _events(client)
        once = [line["event"] for line in lines if not line.get("repeat")]
        again = [line["event"] for line in lines if line.get("repeat")]
        assert len(once) == 2000
        assert len(again) > 50
        assert all(event in once for event in again[:50])

    asyncio.run(scenario())


def test_reorder_swaps_neighbors_and_loses_nothing() -> None:
    async def scenario() -> None:
        options = SimulatorOptions(name="binance", limit=1000, rate=5000.0, faults=("reorder:0.1",))
        async with running(Simulator(options)) as url:
            client = await connect(url + "/ws/btcusdt@trade")
            ids = [event["t"] for event in await client.count(1000)]
            assert sorted(ids) == list(range(min(ids), min(ids) + 1000))
            assert sum(after < before for before, after in pairwise(ids)) > 30
            assert max(abs(number - min(ids) - place) for place, number in enumerate(ids)) == 1

    asyncio.run(scenario())


def test_skip_makes_ids_jump_and_the_journal_names_what_was_skipped(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        options = SimulatorOptions(name="binance", limit=1000, rate=5000.0, faults=("skip:0.1",), journal=journal)
        simulator = Simulator(options)
        async with running(simulator) as url:
            client = await connect(url + "/ws/btcusdt@trade")
            await eventually(lambda: len(told(journal)) >= 1000)
        heard = [event["t"] for event in client.parsed()]
        lines = told(journal)
        skipped = [line["id"] for line in lines if line.get("skipped")]
        assert len(skipped) > 50
        assert sorted(heard + skipped) == list(range(min(heard + skipped), min(heard + skipped) + 1000))
        assert simulator.sent == {"trade": len(heard)}

    asyncio.run(scenario())


@EVERYWHERE
def test_huge_is_one_frame_of_nine_megabytes_that_can_be_read(name: str) -> None:
    async def scenario() -> None:
        async with running(Simulator(SimulatorOptions(name=name, rate=200.0, faults=("huge:0.2",)))) as url:
            client = await listener(url, name)
            await client.until(lambda: any(len(data) > 9_000_000 for _, data in client.messages))
            (big,) = [place for place, (_, data) in enumerate(client.messages) if len(data) > 9_000_000]
            events = _events(client)
            padded = json.loads(client.messages[big][1])
            inner = padded[0] if isinstance(padded, list) else padded["data"]
            assert events.count(inner) == 2

    asyncio.run(scenario())


@EVERYWHERE
def test_split_frames_arrive_whole(name: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        options = SimulatorOptions(name=name, limit=1000, rate=3000.0, faults=("split:0.5",), journal=journal)
        async with running(Simulator(options)) as url:
            client = await listener(url, name)
            await client.until(lambda: len(_events(client)) == 1000)
        assert [line["event"] for line in told(journal)] == _events(client)

    asyncio.run(scenario())


def test_a_burst_is_ten_thousand_events_whatever_the_rate() -> None:
    source = Simulator(SimulatorOptions(name="binance", rate=1.0, faults=("burst:5",)))._opened_source()
    source.heard(frozenset({Topic("spot", "trade", "BTCUSDT")}), 0.0)
    assert len(source.take(0.1)) < 512
    made = len(source.take(5.1))
    for at in range(100):
        made += len(source.take(5.1 + at / 100))
    assert 10_000 <= made < 10_100
    assert not source.behind


def test_a_burst_brings_ten_thousand_events_at_once() -> None:
    async def scenario() -> None:
        async with running(Simulator(SimulatorOptions(name="binance", rate=100.0, faults=("burst:0.3",)))) as url:
            client = await connect(url + "/ws/btcusdt@trade")
            await client.count(10_000)

    asyncio.run(scenario())


def test_clock_skew_shifts_event_times() -> None:
    async def scenario() -> None:
        began = time.time()
        async with running(Simulator(SimulatorOptions(name="binance", faults=("clock_skew:-5",)))) as url:
            client = await connect(url + "/ws/btcusdt@trade")
            (first, *_) = await client.count(1)
            assert began - 5.1 < first["T"] / 1000 < time.time() - 4.9

    asyncio.run(scenario())


def test_late_reports_have_event_times_out_of_order() -> None:
    async def scenario() -> None:
        options = SimulatorOptions(name="polygon", rate=5000.0, limit=1000, faults=("late_report:0.05",))
        async with running(Simulator(options)) as url:
            client = await listener(url, "polygon")
            await client.until(lambda: len(_events(client)) == 1000)
            times = [event["t"] for event in _events(client) if event["ev"] == "T"]
            assert sum(after < before for before, after in pairwise(times)) > 5
            assert max(times) - min(times) < 92_000

    asyncio.run(scenario())


async def _stalled(simulator: Simulator) -> int:
    """The number of events sent, once it has stood still for half a second: the buffers between are full then."""
    sent, still = -1, 0
    async with asyncio.timeout(30.0):
        while still < 10:
            await asyncio.sleep(0.05)
            before, sent = sent, sum(simulator.sent.values())
            still = still + 1 if sent == before else 0
    return sent


def test_a_slow_reader_slows_the_generator_and_loses_nothing() -> None:
    async def scenario() -> None:
        simulator = Simulator(SimulatorOptions(name="binance", rate=200_000.0))
        async with running(simulator) as url:
            client = await connect(url + "/ws/btcusdt@trade")
            await client.count(1)
            client.transport.underlying_transport.pause_reading()  # type: ignore[attr-defined]
            stalled = await _stalled(simulator)
            await asyncio.sleep(0.5)
            assert sum(simulator.sent.values()) == stalled, "nothing is generated that cannot be sent"
            client.transport.underlying_transport.resume_reading()  # type: ignore[attr-defined]
            ids = [event["t"] for event in (await client.count(stalled + 1000))]
            assert ids == list(range(ids[0], ids[0] + len(ids)))

    asyncio.run(scenario())


@pytest.mark.parametrize(("name", "word"), [("polygon", b"slow_consumer"), ("alpaca", b'"code":407'), ("binance", None)])
def test_a_slow_reader_can_be_dropped_instead(name: str, word: bytes | None) -> None:
    async def scenario() -> None:
        simulator = Simulator(SimulatorOptions(name=name, rate=200_000.0, faults=("slow_consumer:0.3",)))
        async with running(simulator) as url:
            client = await listener(url, name)
            await client.count(3)
            client.transport.underlying_transport.pause_reading()  # type: ignore[attr-defined]
            await _stalled(simulator)
            client.transport.underlying_transport.resume_reading()  # type: ignore[attr-defined]
            await client.until(lambda: client.gone)
            assert client.close_code is None
            if word is not None:
                assert word in client.messages[-1][1]

    asyncio.run(scenario())


def test_refusals_come_as_often_as_asked_for() -> None:
    async def scenario() -> None:
        for fault, status in (("auth_refused:1", 403), ("connection_limit:1", 429)):
            async with running(Simulator(SimulatorOptions(name="binance", faults=(fault,)))) as url:
                with pytest.raises(WSHandshakeError) as caught:
                    await connect(url + "/ws")
                assert caught.value.response is not None
                assert caught.value.response.status == status
                await connect(url + "/ws")
        for name, fault, word in (
            ("polygon", "auth_refused:1", b"auth_failed"),
            ("polygon", "connection_limit:1", b"max_connections"),
            ("alpaca", "auth_refused:1", b'"code":402'),
            ("alpaca", "connection_limit:1", b'"code":406'),
        ):
            async with running(Simulator(SimulatorOptions(name=name, faults=(fault,)))) as url:
                refused = await listener(url, name)
                await refused.until(lambda refused=refused: refused.gone)
                assert word in refused.messages[-1][1]
                accepted = await listener(url, name)
                await accepted.count(10)

    asyncio.run(scenario())


@EVERYWHERE
def test_the_end_of_the_day_closes_every_connection(name: str) -> None:
    async def scenario() -> None:
        async with running(Simulator(SimulatorOptions(name=name, faults=("day_end:0.5",)))) as url:
            client = await listener(url, name)
            await client.until(lambda: client.gone)
            assert client.close_code == 1001
            notices = [data for _, data in client.messages if b"serverShutdown" in data]
            assert len(notices) == (1 if name == "binance" else 0)

    asyncio.run(scenario())


@EVERYWHERE
@pytest.mark.parametrize("fault", ["day_end:0.4", "close:0.4"])
def test_the_journal_holds_nothing_that_was_due_after_the_close(name: str, fault: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        async with running(Simulator(SimulatorOptions(name=name, faults=(fault,), rate=2000.0, journal=journal))) as url:
            client = await listener(url, name, answers_closes=False)
            await client.until(lambda: client.gone)
        assert [line["event"] for line in told(journal)] == _events(client)

    asyncio.run(scenario())


@pytest.mark.parametrize(("keep", "expected"), [("20", 20), ("all", None)])
def test_rewind_sends_a_new_subscriber_what_went_before(keep: str, expected: int | None, tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        options = SimulatorOptions(name="binance", faults=(f"rewind:{keep}",), journal=journal)
        async with running(Simulator(options)) as url:
            first = await connect(url + "/ws/btcusdt@trade")
            await first.count(300)
            first.transport.disconnect(False)
            await first.until(lambda: first.gone)
            await asyncio.sleep(0.1)
            second = await connect(url + "/ws/btcusdt@trade")
            ids = [event["t"] for event in await second.count(1000)]
            assert ids == list(range(ids[0], ids[0] + len(ids)))
            last = first.parsed()[-1]["t"]
            assert ids[0] <= last, "what the first client may not have read comes again"
            assert expected is not None or ids[0] == first.parsed()[0]["t"]
        repeated = [line["id"] for line in told(journal) if line.get("repeat")]
        assert expected is None or len(repeated) == expected
        assert set(repeated) == set(ids[: len(repeated)])

    asyncio.run(scenario())


def test_garbage_is_a_binary_frame() -> None:
    async def scenario() -> None:
        async with running(Simulator(SimulatorOptions(name="binance", faults=("garbage:1",)))) as url:
            client = await connect(url + "/ws/btcusdt@trade")
            await client.until(lambda: len(client.messages) >= 10)
            assert {kind for kind, _ in client.messages} == {WSMsgType.TEXT, WSMsgType.BINARY}

    asyncio.run(scenario())
