"""The description of the API: what it says is what the server does, by schemathesis, and every message of the live feed has its type."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import urllib3
from processes import Home, block, environment
from services.process import free_port
from websockets.sync.client import connect

from environments import python_of
from proving import proof
from tapeline.web.description import STATE_BODIES, asyncapi, openapi
from tapeline.web.live import messages
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from processes import SimulatorProcess

TYPES: dict[str, type[msgspec.Struct]] = {
    "hello": messages.Hello,
    "ticks": messages.TickRows,
    "bars": messages.BarRows,
    "latest": messages.LatestRows,
    "alive": messages.Alive,
    **STATE_BODIES,
}
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
EXAMPLES = 100


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from (part[name] for name in part if name == "$ref")
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_every_reference_in_the_descriptions_leads_somewhere() -> None:
    for description in (openapi(), asyncapi()):
        for reference in references(description):
            part: Any = description
            for step in reference.removeprefix("#/").split("/"):
                part = part[step]
            assert part


def test_every_parameter_and_every_address_says_what_it_is() -> None:
    for path, methods in openapi()["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], f"{method} {path}"
            assert operation["operationId"]


@proof("properties", quick=False)
def test_the_server_does_what_its_description_says(home: Home, simulator: Callable[..., SimulatorProcess], tmp_path: Path) -> None:
    """Schemathesis sends requests that the description allows, and others, and compares the answers with it."""
    listen = f"127.0.0.1:{free_port()}"
    market = simulator("binance", "--rate", "200")
    home.configure(
        f'dashboard = {{ listen = "{listen}", run = true, clients = 5 }}\n'
        + block("binance", market.url, ["BTCUSDT"], ["trade", "kline_1s"]),
        ledger=True,
    )
    run = home.start("run")
    address = f"http://{listen}"

    def rows(path: str) -> Any:
        try:
            return urllib3.request("GET", f"{address}{path}", timeout=10.0, retries=False).json().get("rows")
        except urllib3.exceptions.HTTPError:
            return None

    until(lambda: rows("/v1/ticks?symbols=BTC/USDT&start=2020-01-01") or not run.running, "there is a history")
    assert run.running, run.said

    seen: set[str] = set()
    deadline = time.monotonic() + 60.0
    with connect(f"ws://{listen}/v1/stream?symbols=*&kinds={','.join(messages.KINDS)}") as socket:
        while seen | {"alive"} != TYPES.keys() and time.monotonic() < deadline:
            message = json.loads(socket.recv(30.0))
            seen.add(message["kind"])
            msgspec.convert(message, TYPES[message["kind"]], strict=True)
        socket.send("{")
        while (message := json.loads(socket.recv(30.0)))["kind"] != "error":
            pass
        assert "Expected" in message["text"] or "truncated" in message["text"]
    assert seen | {"alive"} == TYPES.keys()

    program = Path(python_of(Path(__file__).parents[1] / "clients" / "schemathesis")).with_name("schemathesis")
    done = subprocess.run(
        [
            *(str(program), "run", f"{address}/v1/openapi.json", "--exclude-path", "/v1/stream", "--checks", CHECKS),
            *("--max-examples", str(EXAMPLES), "--workers", "1", "--seed", "1", "--no-color", "--phases", "examples,coverage,fuzzing"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=1_500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    assert re.search(r"\d+ passed", done.stdout) or "No issues found" in done.stdout, done.stdout[-3_000:]
    assert run.running
    run.end()
