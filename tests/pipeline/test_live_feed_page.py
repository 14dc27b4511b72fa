"""The page about the live feed does what it says: its addresses answer and its programs run, against a running pipeline."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import urllib3
from processes import Home, block
from services.process import free_port
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import SimulatorProcess

PAGE: Final = (Path(__file__).parents[2] / "docs" / "live-feed.md").read_text()
WRITTEN: Final = "127.0.0.1:8765"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


def health(listen: str) -> dict[str, Any]:
    """What /v1/health answers; empty while nobody does."""
    try:
        found: dict[str, Any] = urllib3.request("GET", f"http://{listen}/v1/health", timeout=5.0, retries=False).json()
    except urllib3.exceptions.HTTPError:
        return {}
    return found


def test_the_addresses_answer_and_the_programs_run(home: Home, simulator: Callable[..., SimulatorProcess], tmp_path: Path) -> None:
    market = simulator("binance", "--rate", "300")
    listen = f"127.0.0.1:{free_port()}"
    home.configure(
        f'dashboard = {{ listen = "{listen}", run = true }}\n'
        + block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker"])
    )
    run = home.start("run")

    def has_history() -> bool:
        try:
            return urllib3.request("GET", f"http://{listen}/v1/ticks?symbols=BTC/USDT&start=2024-01-01", retries=False).status == 200
        except urllib3.exceptions.HTTPError:
            return not run.running

    until(has_history, "the history answers")
    assert run.running, run.said

    lines = [shlex.split(line) for text in blocks("sh") for line in text.splitlines() if line.startswith("curl")]
    assert len(lines) == 3
    for line in lines:
        url = line[-1].replace(WRITTEN, listen)
        with urllib3.request("GET", url, preload_content=False, timeout=20.0, retries=False) as answer:
            assert answer.status == 200, url
            text = b"".join(piece for piece, _ in zip(answer.stream(2_000), range(1), strict=False))
            assert (b"event: hello" in text or b"retry:" in text) if "stream" in url else text.startswith(b'{"next":"ticks:')

    expected = [" ticks, each once", "ETH/USDT came", "['symbol', 'ts_ns'", "live"]
    programs = blocks("python")
    assert len(programs) == len(expected)
    for number, (program, end) in enumerate(zip(programs, expected, strict=True)):
        path = tmp_path / f"{number}.py"
        path.write_text(program.replace(WRITTEN, listen))
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert end in done.stdout, done.stdout
    run.end()
    assert "connection open" not in run.said, "the pipeline's log does not tell of each client"


def test_whatever_a_client_sends_it_is_told_or_cut_off_and_the_log_has_no_error(
    home: Home, simulator: Callable[..., SimulatorProcess]
) -> None:
    market = simulator("binance", "--rate", "300")
    listen = f"127.0.0.1:{free_port()}"
    home.configure(
        f'dashboard = {{ listen = "{listen}", run = true }}\n' + block("binance", market.url, ["BTCUSDT"], ["trade", "bookTicker"])
    )
    run = home.start("run")
    until(lambda: health(listen) or not run.running, "the server answers")
    assert run.running, run.said
    url = f"ws://{listen}/v1/stream?symbols=*&kinds=ticks"

    wrong: list[str | bytes] = ["", "{", "null", "[" * 100_000, '{"x": 1}', b"\x00\xff", '{"subscribe": {"kinds": ["x"]}}']
    with connect(url, max_size=None) as client:
        for sent in wrong:
            client.send(sent)
        told = list(islice((message["text"] for message in map(json.loads, client) if message["kind"] == "error"), len(wrong)))
    assert all("The request is wrong" in text for text in told[:-1])
    assert "Invalid enum value 'x'" in told[-1]
    for number in range(20):  # gone in the middle of whatever there was to do
        with suppress(ConnectionClosed), connect(url, max_size=None, close_timeout=0.0) as client:
            client.send("x" * 1_100_000 if number % 4 == 0 else "{" * number)
            if number % 2:
                client.socket.shutdown(socket.SHUT_RDWR)
            else:
                client.recv()
    until(lambda: health(listen)["clients"] == 0, "clients that left are forgotten")
    assert run.running
    run.end()
    assert "Traceback" not in run.said
