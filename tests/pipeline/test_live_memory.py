"""Clients of the live feed that do not read, on real sockets: the server's memory is bounded, and a client that reads gets everything."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import urllib3
from services.process import free_port
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from made import NOON, ticks
from proving import PROVE, proof
from tapeline.records import TICKS_TOPIC
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from processes import Home, Process

CLIENTS: Final = 1_500 if PROVE else 300
#: `[dashboard] clients_mb`, and what a connection takes besides: its objects, and what the transport holds.
ROOM_MB: Final = 128 if PROVE else 48
CONNECTION_KB: Final = 200
WINDOWS, ROWS = 80, 50
#: How far the windows are apart: there is time for each on a machine that others keep busy.
EVERY_S: Final = 0.3 if PROVE else 0.06


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def health(listen: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = urllib3.request("GET", f"http://{listen}/v1/health", timeout=10.0, retries=False).json()
    except urllib3.exceptions.HTTPError:
        return {}
    return found


def begin(home: Home, **settings: int) -> tuple[Process, str]:
    """A dashboard on a stream that has one tick."""
    listen = f"127.0.0.1:{free_port()}"
    more = "".join(f", {name} = {value}" for name, value in settings.items())
    home.configure(f'dashboard = {{ listen = "{listen}"{more} }}\n')
    with closing(home.stream()) as stream:
        stream.append(TICKS_TOPIC, ticks({"raw_offset": 0}))
    served = home.start("dashboard")
    until(lambda: health(listen) or not served.running, "the server answers")
    assert served.running, served.said
    return served, listen


def silent(listen: str, number: int, since: str = "") -> socket.socket:
    """A client that asks for everything and then reads nothing: each other one on a websocket, and each for messages of its own."""
    host, _, port = listen.partition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.connect((host, int(port)))
    lines = [f"GET /v1/stream?symbols=*,NONE{number}&kinds=ticks&since={since} HTTP/1.1", f"Host: {listen}"]
    if number % 2:
        key = base64.b64encode(os.urandom(16)).decode()
        lines += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
    client.sendall("\r\n".join([*lines, "", ""]).encode())
    return client


@dataclass
class Reader:
    """A client that reads. It notes the events that it got, and how late the last one of each message was."""

    url: str
    numbers: list[int] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    ready: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            with connect(self.url, max_size=None) as client:
                for message in map(json.loads, client):
                    self.kinds.add(message["kind"])
                    self.ready.set()
                    if message["kind"] == "ticks":
                        self.numbers += [int(row["id"].split("-")[1]) for row in message["rows"]]
                        self.late_s.append(time.time() - int(message["rows"][-1]["received_ns"]) / 1e9)
        except ConnectionClosed:
            pass


def append(home: Home, windows: int) -> int:
    """Append ticks at the pace of a busy market. They are numbered by their raw offsets; the last number is returned."""
    last = 0
    with closing(home.stream()) as stream:
        for _ in range(windows):
            now = time.time_ns()
            rows = ({"raw_offset": last + 1 + at, "received_ns": now, "ts_ns": NOON + last + at} for at in range(ROWS))
            stream.append(TICKS_TOPIC, ticks(*rows))
            last += ROWS
            time.sleep(EVERY_S)
    return last


def taken_by(client: socket.socket) -> Iterator[dict[str, Any]]:
    """What a client of server-sent events gets, once it reads after all; to the end, if it was cut off."""
    with closing(HTTPResponse(client)) as answer, suppress(IncompleteRead, ConnectionError):
        answer.begin()
        for line in answer:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


@proof("page")
def test_many_clients_that_do_not_read_do_not_fill_the_memory_and_take_nothing_from_one_that_reads(home: Home) -> None:
    served, listen = begin(home, clients_mb=ROOM_MB)
    reader = Reader(f"ws://{listen}/v1/stream?symbols=*&kinds=ticks")
    reading = threading.Thread(target=reader.run, daemon=True)
    reading.start()
    assert reader.ready.wait(60)
    append_some = append(home, 5)  # what every process needs once is there now
    until(lambda: reader.numbers[-1:] == [append_some], "the reader gets the first ticks")
    before = resident_mb(served.popen.pid)
    with ExitStack() as opened:
        clients = [opened.enter_context(silent(listen, number)) for number in range(CLIENTS)]
        until(lambda: health(listen)["clients"] == CLIENTS + 1, "all clients are there")
        idle = resident_mb(served.popen.pid)
        reader.numbers.clear()
        reader.late_s.clear()
        last = append(home, WINDOWS)
        until(lambda: reader.numbers[-1:] == [last], "the reader gets the last tick")
        most = resident_mb(served.popen.pid)
        print(f"{before:.0f} MB; {CLIENTS} clients: {idle:.0f} MB, then {most:.0f} MB; at most {max(reader.late_s):.2f} s late")
        assert reader.numbers == list(range(1, last + 1)), "each tick once, and in order"
        assert "conflated" not in reader.kinds
        assert max(reader.late_s) < 10.0
        assert most - before < ROOM_MB + CLIENTS * CONNECTION_KB / 1_000 + 30
        # One of them reads after all: it has every tick, or was told how many it has not. If it was cut off, it continues where it was.
        client, since, got = clients[0], "", 0
        while got < last:
            for message in taken_by(client):
                assert message.get("resumed", True) or not since
                since = message["id"]
                got += len(message["rows"]) if message["kind"] == "ticks" else message.get("skipped", 0)
                if got >= last:
                    break
            client = opened.enter_context(silent(listen, 0, since))
        assert got == last
    until(lambda: health(listen)["clients"] == 1, "those that left are forgotten")
    assert served.running
    served.end()
    reading.join(20)
    assert "Traceback" not in served.said
    assert "ERROR" not in served.said


def sockets_of(pid: int) -> int:
    """How many sockets a process has open."""
    found = 0
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += os.readlink(handle).startswith("socket:")
        except FileNotFoundError:
            continue
    return found


@proof("timeouts", quick=False)
def test_a_client_that_takes_nothing_for_a_minute_is_cut_off_and_nothing_of_it_stays(home: Home) -> None:
    served, listen = begin(home)
    before = sockets_of(served.popen.pid)
    with ExitStack() as opened:
        for number in range(20):
            opened.enter_context(silent(listen, number))
        until(lambda: health(listen)["clients"] == 20, "all clients are there")
        append(home, WINDOWS)
        until(lambda: health(listen)["clients"] == 0, "they are forgotten", 200.0)
        until(lambda: sockets_of(served.popen.pid) <= before, "their connections are gone, although they keep theirs")
    served.end()
    assert "Traceback" not in served.said
    assert "without completing" not in served.said
