"""The live feed's fan-out: how many clients get every event of ten symbols each, at 10,000 ticks/s, and how late."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

import numpy as np
import urllib3
from services.process import free_port

from bench.machine import pipeline, resident_mib, simulator, table
from tapeline.records import TICKS_TOPIC
from tapeline.streams.embedded import EmbeddedStream

_RATE = 10_000
_SECONDS = 20
_WARM_UP_S = 10
_OF_A_CLIENT = 10
#: The symbols that share the ticks, and the clients: a client of ten symbols gets 1,000 events a second of 100 symbols, 100 of 1,000.
_RUNS = ((100, 100), (100, 250), (1_000, 250), (1_000, 350), (1_000, 500), (1_000, 1_000))
#: How often the end of the stream is looked at.
_LOOK_EVERY_S = 0.002


class Got(NamedTuple):
    """What the clients of one run got. Times are in milliseconds: from being readable in the stream, and from receipt by ingest."""

    events_per_s: float
    stream_p50: float
    stream_p99: float
    receipt_p99: float


class Fan(NamedTuple):
    """One run: the clients, and the server."""

    got: Got
    skipped: int
    cores: float
    mib_before: float
    mib_after: float


def run() -> str:
    """The section of the report."""
    rows: list[list[object]] = []
    for symbols, clients in _RUNS:
        got, skipped, cores, before, after = _once(symbols, clients)
        late = [f"{ms:.1f}" for ms in got[1:]]
        rows.append([symbols, clients, got.events_per_s, *late, skipped, f"{cores:.2f}", f"{before:,.0f}, {after:,.0f}"])
    return (
        f"`tapeline simulate binance --rate {_RATE}`, all stages, the dashboard's server and all clients share the same cores. The"
        f" measurement lasts {_SECONDS} s, after {_WARM_UP_S} s of warm-up. The first column says how many symbols share the ticks. Each"
        f" client receives server-sent events of {_OF_A_CLIENT} symbols, which it chose at random. So no two clients get the same messages."
        " p50 and p99 begin when another process could read the tick in the stream, and end when the tick arrives at the client. The last"
        " p99 begins when ingest receives the tick. Only the newest tick of each message counts. A client that is too slow gets the latest"
        " values instead. The events that it did not get are counted as left out. The memory is that of the server, before the clients came"
        " and at the end.\n\n"
        + table(
            [
                "symbols",
                "clients",
                "events/s to all",
                "p50 ms",
                "p99 ms",
                "p99 ms from receipt",
                "left out",
                "cores of the server",
                "its memory, MiB",
            ],
            rows,
        )
    )


def _once(symbols: int, clients: int) -> Fan:
    names = [f"S{number:03}USDT" for number in range(symbols)]
    options = ["--rate", str(_RATE), "--symbols", ",".join(names)]
    with tempfile.TemporaryDirectory() as folder, simulator("binance", *options) as (url, _):
        listen = f"127.0.0.1:{free_port()}"
        config = Path(folder) / "tapeline.toml"
        config.write_text(
            f'data_dir = "{folder}"\ndashboard = {{ listen = "{listen}", run = true }}\n[monitor]\nlisten = ""\n[[providers]]\n'
            f'name = "binance"\nurl = "{url}"\nsymbols = {json.dumps(names)}\nchannels = ["trade", "bookTicker"]\n'
        )
        with pipeline(config):
            _wait_for(listen, symbols)
            time.sleep(_WARM_UP_S)
            server = json.loads((Path(folder) / "status" / "dashboard.json").read_text())["pid"]
            before = resident_mib(server)
            command = [sys.executable, "-m", "bench.live", listen, folder, str(symbols), str(clients)]
            client = subprocess.Popen(command, stdout=subprocess.PIPE)
            time.sleep(_WARM_UP_S)
            used, began = _used_s(server), time.monotonic()
            said, _ = client.communicate()
            cores = (_used_s(server) - used) / (time.monotonic() - began)
            skipped = urllib3.request("GET", f"http://{listen}/v1/health", timeout=10.0).json()["skipped"]
            return Fan(Got(**json.loads(said)), skipped, cores, before, resident_mib(server))


def _wait_for(listen: str, symbols: int) -> None:
    while True:
        with suppress(urllib3.exceptions.HTTPError):
            if len(urllib3.request("GET", f"http://{listen}/v1/symbols", timeout=5.0, retries=False).json()["rows"]) == symbols:
                return
        time.sleep(0.2)


def _used_s(pid: int) -> float:
    """The processor time (s) of a process."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


# The clients: a process of their own.


class _Client(asyncio.Protocol):
    """Takes what is sent, and notes how far it got and when. It decodes nothing: its work would take the server's cores."""

    def __init__(self, request: bytes, arrived: list[tuple[int, int, int]], counts: list[int]) -> None:
        self._request, self._arrived, self._counts = request, arrived, counts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast("asyncio.Transport", transport).write(self._request)  # uvloop's own are no instances of it

    def data_received(self, data: bytes) -> None:
        """Note what came: now, the position up to which it reaches, and the receipt of its newest tick."""
        tick, message = data.rfind(b'"received_ns":"'), data.rfind(b'"id":"ticks:')
        received, position = data[tick + 15 : tick + 34], data[message + 12 : data.find(b";", message + 12)]
        if 0 <= message < tick and received.isdigit() and position.isdigit():
            self._arrived.append((time.time_ns(), int(position), int(received)))
        self._counts[0] += data.count(b'"received_ns"')


class _End(threading.Thread):
    """Notes when which offset of the ticks could be read, in the one partition that there is."""

    def __init__(self, folder: str) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self.seen: list[tuple[int, int]] = []

    def run(self) -> None:
        stream, before = EmbeddedStream(Path(self._folder) / "stream"), -1
        while True:
            (end,) = stream.ends(TICKS_TOPIC).values()
            if end != before:
                self.seen.append((end, time.time_ns()))
            before = end
            time.sleep(_LOOK_EVERY_S)


async def _clients(listen: str, folder: str, symbols: int, count: int) -> Got:
    host, _, port = listen.partition(":")
    random, arrived, counts = Random(1), list[tuple[int, int, int]](), [0]
    loop, end = asyncio.get_running_loop(), _End(folder)
    end.start()
    for _ in range(count):
        chosen = ",".join(f"S{number:03}/USDT" for number in random.sample(range(symbols), _OF_A_CLIENT))
        request = f"GET /v1/stream?symbols={chosen}&kinds=ticks HTTP/1.1\r\nHost: {listen}\r\n\r\n".encode()
        await loop.create_connection(lambda request=request: _Client(request, arrived, counts), host, int(port))  # type: ignore[misc]
    await asyncio.sleep(_WARM_UP_S)
    arrived.clear()
    counts[0], began = 0, time.monotonic()
    await asyncio.sleep(_SECONDS)
    events_per_s = counts[0] / (time.monotonic() - began)
    at_ns, position, received_ns = np.array(arrived, np.int64).T
    ends, readable_ns = np.array(end.seen, np.int64).T
    p50, p99 = np.percentile(at_ns - readable_ns[np.searchsorted(ends, position)], [50, 99])
    return Got(events_per_s, p50 / 1e6, p99 / 1e6, float(np.percentile(at_ns - received_ns, 99)) / 1e6)


if __name__ == "__main__":
    import uvloop

    print(json.dumps(uvloop.run(_clients(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))._asdict()))
