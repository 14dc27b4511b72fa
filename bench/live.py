"""The live feed's fan-out: how many clients get every event of ten symbols each, at 10,000 ticks/s, and how late."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

import numpy as np
import urllib3
from services.process import free_port

from bench.machine import pipeline, resident_mib, simulator, table

_RATE = 10_000
_SECONDS = 20
_WARM_UP_S = 10
_SYMBOLS = 100
_OF_A_CLIENT = 10
_CLIENTS = (100, 250, 500, 1_000)


class Fan(NamedTuple):
    """What the clients of one run got."""

    clients: int
    events_per_s: float
    p50_ms: float
    p99_ms: float
    skipped: int
    cores: float
    mib_before: float
    mib_after: float


def run() -> str:
    """The section of the report."""
    runs = [_once(clients) for clients in _CLIENTS]
    rows = [
        [
            one.clients,
            one.events_per_s,
            f"{one.p50_ms:.1f}",
            f"{one.p99_ms:.1f}",
            one.skipped,
            f"{one.cores:.2f}",
            f"{one.mib_before:,.0f}, {one.mib_after:,.0f}",
        ]
        for one in runs
    ]
    return (
        f"`tapeline simulate binance --rate {_RATE}` with {_SYMBOLS} symbols, all stages, the dashboard's server and all clients share the"
        f" same cores. The measurement lasts {_SECONDS} s, after {_WARM_UP_S} s of warm-up. Each client receives server-sent events of"
        f" {_OF_A_CLIENT} symbols, which it chose at random. So no two clients get the same messages. The time of a tick begins when ingest"
        " receives it, and ends when it arrives at the client. A client that is too slow gets the latest values instead. The events that it"
        " did not get are counted as left out.\n\n"
        + table(["clients", "events/s to all", "p50 ms", "p99 ms", "left out", "cores of the server", "its memory, MiB"], rows)
    )


def _once(clients: int) -> Fan:
    symbols = [f"S{number:02}USDT" for number in range(_SYMBOLS)]
    options = ["--rate", str(_RATE), "--symbols", ",".join(symbols)]
    with tempfile.TemporaryDirectory() as folder, simulator("binance", *options) as (url, _):
        listen = f"127.0.0.1:{free_port()}"
        config = Path(folder) / "tapeline.toml"
        config.write_text(
            f'data_dir = "{folder}"\ndashboard = {{ listen = "{listen}", run = true }}\n[monitor]\nlisten = ""\n[[providers]]\n'
            f'name = "binance"\nurl = "{url}"\nsymbols = {json.dumps(symbols)}\nchannels = ["trade", "bookTicker"]\n'
        )
        with pipeline(config):
            _wait_for(listen)
            time.sleep(_WARM_UP_S)
            server = json.loads((Path(folder) / "status" / "dashboard.json").read_text())["pid"]
            before = resident_mib(server)
            command = [sys.executable, "-m", "bench.live", listen, str(clients)]
            client = subprocess.Popen(command, stdout=subprocess.PIPE)
            time.sleep(_WARM_UP_S)
            used, began = _used_s(server), time.monotonic()
            said, _ = client.communicate()
            cores = (_used_s(server) - used) / (time.monotonic() - began)
            skipped = urllib3.request("GET", f"http://{listen}/v1/health", timeout=10.0).json()["skipped"]
            got = json.loads(said)
            return Fan(clients, got["events_per_s"], got["p50_ms"], got["p99_ms"], skipped, cores, before, resident_mib(server))


def _wait_for(listen: str) -> None:
    while True:
        with suppress(urllib3.exceptions.HTTPError):
            if len(urllib3.request("GET", f"http://{listen}/v1/symbols", timeout=5.0, retries=False).json()["rows"]) == _SYMBOLS:
                return
        time.sleep(0.2)


def _used_s(pid: int) -> float:
    """The processor time (s) of a process."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


# The clients: a process of their own.


class _Client(asyncio.Protocol):
    """Takes what is sent, and notes how late the newest tick in it is. It decodes nothing: its work would take the server's cores."""

    def __init__(self, request: bytes, late_ns: list[int], counts: list[int]) -> None:
        self._request, self._late_ns, self._counts = request, late_ns, counts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast("asyncio.Transport", transport).write(self._request)  # uvloop's own are no instances of it

    def data_received(self, data: bytes) -> None:
        """Note what came."""
        at = data.rfind(b'"received_ns":"')
        text = data[at + 15 : at + 34]
        if at >= 0 and len(text) == 19 and text.isdigit():
            self._late_ns.append(time.time_ns() - int(text))
        self._counts[0] += data.count(b'"received_ns"')


async def _clients(listen: str, count: int) -> None:
    host, _, port = listen.partition(":")
    random, late_ns, counts = Random(1), list[int](), [0]
    loop = asyncio.get_running_loop()
    for _ in range(count):
        symbols = ",".join(f"S{number:02}/USDT" for number in random.sample(range(_SYMBOLS), _OF_A_CLIENT))
        request = f"GET /v1/stream?symbols={symbols}&kinds=ticks HTTP/1.1\r\nHost: {listen}\r\n\r\n".encode()
        await loop.create_connection(lambda request=request: _Client(request, late_ns, counts), host, int(port))  # type: ignore[misc]
    await asyncio.sleep(_WARM_UP_S)
    late_ns.clear()
    counts[0], began = 0, time.monotonic()
    await asyncio.sleep(_SECONDS)
    p50, p99 = np.percentile(np.array(late_ns, np.int64), [50, 99])
    print(json.dumps({"events_per_s": counts[0] / (time.monotonic() - began), "p50_ms": p50 / 1e6, "p99_ms": p99 / 1e6}))


if __name__ == "__main__":
    import uvloop

    uvloop.run(_clients(sys.argv[1], int(sys.argv[2])))
