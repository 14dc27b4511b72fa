"""A simulator as a process, with TLS, and the options it refuses."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from typing import TYPE_CHECKING, Any

import pytest
from listening import connect, running, told

from tapeline.simulators import CERTIFICATE, Simulator, SimulatorOptions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "kraken"}, "There is no simulator 'kraken'"),
        ({"name": "binance", "rate": 0.0}, "rate"),
        ({"name": "binance", "speed": -1.0}, "speed"),
        ({"name": "polygon", "max_connections": 0}, "max_connections"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SimulatorOptions(**options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_says_where_it_listens_and_in_the_end_what_it_sent(number: signal.Signals, tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        program = (
            "import asyncio; from pathlib import Path; from tapeline.simulators import SimulatorOptions, serve; "
            f"asyncio.run(serve(SimulatorOptions(name='binance', limit=50, journal=Path({str(journal)!r}))))"
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-u", "-c", program, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        name, word, url = (await process.stdout.readline()).decode().split()
        assert (name, word) == ("binance", "at")
        client = await connect(url + "/ws/btcusdt@trade")
        events = await client.count(50)
        process.send_signal(number)
        rest, _ = await process.communicate()
        assert json.loads(rest) == {"simulator": "binance", "sent": {"trade": 50}}
        assert process.returncode == 0
        await client.until(lambda: client.gone)
        assert client.close_code == 1001
        assert [line["event"] for line in told(journal)] == events

    asyncio.run(scenario())


def test_tls_is_trusted_by_whoever_trusts_the_test_certificate() -> None:
    async def scenario() -> None:
        async with running(Simulator(SimulatorOptions(name="binance", tls=True))) as url:
            assert url.startswith("wss://127.0.0.1:")
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(url + "/ws")
            trusting = ssl.create_default_context(cafile=CERTIFICATE)
            client = await connect(url + "/ws/btcusdt@trade", ssl_context=trusting)
            assert (await client.count(20))[0]["e"] == "trade"

    asyncio.run(scenario())


def test_the_same_seed_makes_the_same_market_at_any_pace() -> None:
    async def scenario() -> None:
        heard = []
        for seed, rate in ((7, 3000.0), (7, 50_000.0), (8, 50_000.0)):
            options = SimulatorOptions(name="binance", seed=seed, rate=rate, limit=500)
            async with running(Simulator(options)) as url:
                client = await connect(url + "/stream?streams=btcusdt@trade/ethusdt@bookTicker")
                data = [message["data"] for message in await client.count(500)]
                heard.append([{**event, "E": 0, "T": 0} for event in data])
        assert heard[0] == heard[1]
        assert heard[0] != heard[2]

    asyncio.run(scenario())


def test_the_rate_is_the_average_over_everything_subscribed() -> None:
    async def scenario() -> None:
        simulator = Simulator(SimulatorOptions(name="polygon", rate=4000.0))
        async with running(simulator) as url:
            client = await connect(url + "/stocks")
            client.say({"action": "auth", "params": "demo"})
            client.say({"action": "subscribe", "params": "T.*,Q.*"})
            await client.count(4)
            before = sum(simulator.sent.values())
            await asyncio.sleep(2.0)
            assert 5600 < sum(simulator.sent.values()) - before < 10_400

    asyncio.run(scenario())


def test_a_port_can_be_chosen_and_is_free_again_afterwards() -> None:
    async def scenario() -> None:
        async with running(Simulator(SimulatorOptions(name="binance"))) as url:
            port = int(url.rpartition(":")[2])
            with pytest.raises(OSError, match="in use"):
                await Simulator(SimulatorOptions(name="binance", port=port)).start()
        async with running(Simulator(SimulatorOptions(name="binance", port=port))) as url:
            assert url.endswith(f":{port}")

    asyncio.run(scenario())
