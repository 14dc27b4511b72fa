"""Recorded frames are replayed exactly, on one clock, to those who subscribed; a killed client can catch up."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from listening import connect, running, told

from tapeline.simulators import Simulator, SimulatorOptions
from waiting import eventually

RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "captures" / "binance"
BTC, ETH = RECORDED / "spot_btcusdt_20240808.gz", RECORDED / "spot_ethusdt_20240808.gz"
recordings = pytest.mark.skipif(not BTC.exists(), reason="the recordings are not on this machine")


def replay(*captures: Path, **options: Any) -> Simulator:
    return Simulator(SimulatorOptions(name="binance", captures=captures, **options))


def made(path: Path, count: int, symbol: str = "btcusdt") -> Path:
    """A recording of `count` trades, a millisecond apart."""
    lines = []
    for number in range(count):
        trade = {"e": "trade", "s": symbol.upper(), "t": number, "p": "1.0", "q": "2.0", "T": 1723161255342}
        frame = {"stream": f"{symbol}@trade", "data": trade}
        lines.append(f"{1723161254087896568 + number * 1_000_000} {json.dumps(frame, separators=(',', ':'))}\n")
    path.write_bytes(gzip.compress("".join(lines).encode()))
    return path


def frames(path: Path, *streams: str) -> list[bytes]:
    """The frames of these streams, read independently."""
    heads = tuple(f'{{"stream":"{stream}"'.encode() for stream in streams)
    with gzip.open(path) as lines:
        texts = (line.rstrip().partition(b" ")[2] for line in lines)
        return [text for text in texts if text.startswith(heads)]


@recordings
def test_a_combined_socket_gets_the_recorded_bytes_of_its_streams_and_nothing_else() -> None:
    async def scenario() -> None:
        async with running(replay(BTC, speed=0)) as url:
            client = await connect(url + "/stream?streams=btcusdt@trade/btcusdt@bookTicker")
            await client.until(lambda: len(client.messages) >= 9_757 + 28_040)
            await asyncio.sleep(0.2)
            assert [data for _, data in client.messages] == frames(BTC, "btcusdt@trade", "btcusdt@bookTicker")

    asyncio.run(scenario())


@recordings
def test_the_counts_and_sums_are_those_of_the_recordings(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        simulator = replay(BTC, ETH, speed=0, journal=journal)
        async with running(simulator) as url:
            client = await connect(url + "/stream")
            client.say({"method": "SUBSCRIBE", "params": ["btcusdt@trade"], "id": 1})
            await asyncio.sleep(0.1)  # a second request within the settling counts as well
            client.say({"method": "SUBSCRIBE", "params": ["ethusdt@trade", "ethusdt@depth@100ms"], "id": 2})
            await client.until(lambda: len(client.messages) >= 2 + 9_757 + 6_106 + 3_434)
        assert simulator.sent == {"trade": 9_757 + 6_106, "depth@100ms": 3_434}
        value: dict[str, Decimal] = {"BTCUSDT": Decimal(), "ETHUSDT": Decimal()}
        ids: dict[str, list[int]] = {"BTCUSDT": [], "ETHUSDT": []}
        for line in told(journal):
            if line["channel"] == "trade":
                value[line["symbol"]] += Decimal(line["event"]["p"]) * Decimal(line["event"]["q"])
                ids[line["symbol"]].append(line["id"])
        assert value == {"BTCUSDT": Decimal("13084074.1123886"), "ETHUSDT": Decimal("6066483.27618")}
        assert ids["BTCUSDT"] == list(range(3735683259, 3735693016))
        assert ids["ETHUSDT"] == list(range(1520538925, 1520545031))

    asyncio.run(scenario())


def test_a_raw_socket_gets_the_inner_object(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(replay(made(tmp_path / "five.gz", 5), speed=0)) as url:
            client = await connect(url + "/ws/btcusdt@trade")
            assert [event["t"] for event in await client.count(5)] == [0, 1, 2, 3, 4]
            assert client.parsed()[0]["e"] == "trade"

    asyncio.run(scenario())


def test_the_pace_is_the_recorded_one_times_the_speed(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = made(tmp_path / "five-seconds.gz", 5000)
        async with running(replay(path)) as as_recorded, running(replay(path, speed=10.0)) as ten_times_as_fast:
            began = time.monotonic()
            slow = await connect(as_recorded + "/ws/btcusdt@trade")
            await slow.count(1)
            fast_began = time.monotonic()
            fast = await connect(ten_times_as_fast + "/ws/btcusdt@trade")
            await fast.count(5000)
            assert time.monotonic() - fast_began > 0.45
            # Never early; and late by far less than it would be at the other's pace.
            assert len(slow.messages) <= min(4999, 1 + 1000 * (time.monotonic() - began))

    asyncio.run(scenario())


def test_several_recordings_are_merged_by_their_times(tmp_path: Path) -> None:
    async def scenario() -> None:
        one, other = made(tmp_path / "one.gz", 50), made(tmp_path / "other.gz", 50, "ethusdt")
        async with running(replay(one, other, speed=0)) as url:
            client = await connect(url + "/stream?streams=btcusdt@trade/ethusdt@trade")
            heard = [(event["data"]["s"], event["data"]["t"]) for event in await client.count(100)]
            assert heard == [(symbol, number) for number in range(50) for symbol in ("BTCUSDT", "ETHUSDT")]

    asyncio.run(scenario())


def test_a_replay_at_full_speed_waits_while_nobody_listens(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = made(tmp_path / "many.gz", 50_000)
        async with running(replay(path, speed=0)) as url:
            first = await connect(url + "/ws/btcusdt@trade")
            await first.count(500)
            first.say({"method": "UNSUBSCRIBE", "params": ["btcusdt@trade"], "id": 1})
            await first.until(lambda: any(b'"result"' in data for _, data in first.messages))
            assert len(first.messages) < 50_000
            await asyncio.sleep(0.3)
            second = await connect(url + "/ws/btcusdt@trade")
            await second.until(lambda: len(first.messages) + len(second.messages) > 50_000)
            heard = [event["t"] for event in first.parsed() + second.parsed() if "t" in event]
            assert heard == list(range(50_000)), "nothing was lost and nothing came twice"

    asyncio.run(scenario())


def test_rewinding_to_the_beginning_makes_a_killed_client_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        path, journal = made(tmp_path / "many.gz", 20_000), tmp_path / "journal.jsonl"
        async with running(replay(path, speed=0, faults=("rewind:all",), journal=journal)) as url:
            first = await connect(url + "/ws/btcusdt@trade")
            await first.count(500)
            first.transport.disconnect(False)
            second = await connect(url + "/ws/btcusdt@trade")
            await second.count(20_000)
            assert [event["t"] for event in second.parsed()] == list(range(20_000))
        assert {line["id"] for line in told(journal)} == set(range(20_000))

    asyncio.run(scenario())


def test_rewinding_some_frames_overlaps_without_a_gap(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = made(tmp_path / "many.gz", 20_000)
        simulator = replay(path, speed=0, faults=("rewind:5000",))
        async with running(simulator) as url:
            first = await connect(url + "/ws/btcusdt@trade")
            await first.count(6_000)
            first.transport.disconnect(False)
            await first.until(lambda: first.gone)
            second = await connect(url + "/ws/btcusdt@trade")
            await eventually(lambda: second.messages and second.parsed()[-1].get("t") == 19_999)
            ids = [event["t"] for event in second.parsed()]
            assert ids == list(range(ids[0], 20_000))
            assert ids[0] <= first.parsed()[-1]["t"]

    asyncio.run(scenario())


def test_a_recording_that_cannot_be_read_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_bytes(b'1 {"stream":"btcusdt@trade","data":{"e":}}\n')

    async def scenario() -> None:
        with pytest.raises(ValueError, match="broken, line 1"):
            await replay(path).start()

    asyncio.run(scenario())


def test_a_recording_that_ends_amid_its_compression_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(b'1 {"stream":"btcusdt@trade","data":{"e":"trade","t":1}}\n')[:-12])

    async def scenario() -> None:
        with pytest.raises(ValueError, match=r"cut.gz: .*damaged or was cut off"):
            await replay(path).start()

    asyncio.run(scenario())


def test_a_frame_of_the_whole_market_stops_no_replay(tmp_path: Path) -> None:
    path = tmp_path / "all"
    path.write_bytes(
        b'1 {"stream":"!miniTicker@arr","data":[{"e":"24hrMiniTicker"}]}\n2 {"stream":"btcusdt@trade","data":{"e":"trade","t":7}}\n'
    )

    async def scenario() -> None:
        async with running(replay(path)) as url:
            client = await connect(url + "/ws/btcusdt@trade")
            (first,) = await client.count(1)
            assert first["t"] == 7

    asyncio.run(scenario())


def test_only_binance_has_recordings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Only binance"):
        Simulator(SimulatorOptions(name="alpaca", captures=(tmp_path / "any.gz",)))
