"""The page about the live feed does what it says: its addresses answer and its programs run, against a running pipeline."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import urllib3
from processes import Home, block
from services.process import free_port

from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import SimulatorProcess

PAGE: Final = (Path(__file__).parents[2] / "docs" / "live-feed.md").read_text()
WRITTEN: Final = "127.0.0.1:8765"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


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
