"""The TypeScript client against a running pipeline: over broken connections and a killed server it gives every event once."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import urllib3
from processes import Home, block
from services.process import free_port

from environments import modules_of
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from processes import SimulatorProcess

CLIENT: Final = Path(__file__).parents[2] / "clients" / "typescript"
#: As an id of the client, and what the order of one symbol's events is.
EVENTS: Final = (
    "SELECT raw_partition || '-' || raw_offset || '-' || raw_index, symbol, kind FROM ticks ORDER BY raw_partition, raw_offset, raw_index"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client in a folder of its own, built and with its own tests passed."""
    folder = tmp_path_factory.mktemp("client") / "typescript"
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules", "dist", "build", "*.tsbuildinfo"))
    (folder / "node_modules").symlink_to(modules_of(CLIENT) / "node_modules")
    done = subprocess.run(["npm", "test", "--silent"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    assert "# fail 0" in done.stdout
    return folder


def test_the_types_are_those_of_the_server_s_description(built: Path, tmp_path: Path) -> None:
    from tapeline.web.description import asyncapi, openapi

    described = tmp_path / "described.json"
    described.write_text(json.dumps({"openapi": openapi(), "asyncapi": asyncapi()}))
    made = subprocess.run(
        ["node", "scripts/generate.mjs", str(described), "--print"], cwd=built, capture_output=True, text=True, check=True
    ).stdout
    assert made == (CLIENT / "src" / "messages.ts").read_text(), "run `npm run generate` in clients/typescript"


def test_what_is_installed_is_locked_without_the_address_of_a_registry() -> None:
    lock = json.loads((CLIENT / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
    manifest = json.loads((CLIENT / "package.json").read_text())
    assert "dependencies" not in manifest


def test_the_programs_in_the_documentation_have_right_types(built: Path) -> None:
    pages = [CLIENT / "README.md", CLIENT.parents[1] / "docs" / "live-feed.md"]
    programs = [found for page in pages for found in re.findall(r"^```(tsx?)\n(.*?)```", page.read_text(), re.DOTALL | re.MULTILINE)]
    assert len(programs) == 5
    folder = built / "documented"
    folder.mkdir()
    for number, (kind, text) in enumerate(programs):
        (folder / f"program{number}.{kind}").write_text(f"{text}\nexport {{}};\n")
    options = {"extends": "../tsconfig.json", "compilerOptions": {"rootDir": "..", "noEmit": True, "composite": False, "jsx": "react-jsx"}}
    (folder / "tsconfig.json").write_text(json.dumps({**options, "include": ["."]}))
    done = subprocess.run(["node_modules/.bin/tsc", "-p", "documented"], cwd=built, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@dataclass
class Program:
    """The client's program, and what it has printed."""

    popen: subprocess.Popen[str]
    log: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> list[dict[str, Any]]:
        whole = self.log.read_text().rpartition("\n")[0]
        self.lines = [json.loads(line) for line in whole.splitlines()]
        return self.lines

    @property
    def ids(self) -> list[str]:
        return [one for line in self.read() for one in line.get("ids", ())]

    @property
    def hellos(self) -> list[dict[str, Any]]:
        return [line for line in self.read() if "resumed" in line]


@pytest.fixture
def program(built: Path, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(url: str, how: str, symbols: str) -> Program:
        log = tmp_path / f"{how}.jsonl"
        with log.open("w") as sink:
            popen = subprocess.Popen(
                ["node", "build/test/program.js", url, how, symbols], cwd=built, stdin=subprocess.PIPE, stdout=sink, text=True
            )
        started.append(Program(popen, log))
        return started[-1]

    yield start
    for one in started:
        one.popen.kill()
        one.popen.wait()
        if one.popen.stdin is not None:
            one.popen.stdin.close()


class Between:
    """A program between client and server that can break every connection off without a word."""

    def __init__(self, target: int, port: int) -> None:
        self.port = port
        self._command = ["python3", str(Path(__file__).with_name("forwarder.py")), str(target), str(port)]
        self._popen = subprocess.Popen(self._command)

    def breaks(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._popen = subprocess.Popen(self._command)

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()


def answers(listen: str) -> bool:
    try:
        return urllib3.request("GET", f"http://{listen}/v1/health", timeout=5.0, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def test_each_way_gives_every_event_once_over_broken_connections_and_a_killed_server(
    home: Home, simulator: Callable[..., SimulatorProcess], program: Callable[..., Program]
) -> None:
    market = simulator("binance", "--rate", "400")
    listen = f"127.0.0.1:{free_port()}"
    providers = block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "bookTicker"])
    home.configure(f'dashboard = {{ listen = "{listen}", run = true }}\n' + providers)
    run = home.start("run")
    until(lambda: answers(listen) or not run.running, "the server answers")
    assert run.running, run.said
    between = Between(int(listen.rpartition(":")[2]), free_port())
    try:
        url = f"http://127.0.0.1:{between.port}"
        ways = {how: program(url, how, "BTC/USDT") for how in ("websocket", "fetch", "follow")}

        def more(events: int) -> None:
            counts = {how: len(way.ids) for how, way in ways.items()}
            until(lambda: all(len(way.ids) > counts[how] + events for how, way in ways.items()), "each way gets more")

        more(50)
        between.breaks()
        more(50)
        home.kill("dashboard")
        more(50)
        market.halt()
        seen = [-1]

        def settled() -> bool:
            before, seen[0] = seen[0], sum(len(way.ids) for way in ways.values())
            time.sleep(1.0)
            return before == seen[0]

        until(settled, "everything has come")
    finally:
        between.end()
    run.end()
    kept = [(number, kind) for number, symbol, kind in home.rows(EVENTS) if symbol == "BTC/USDT"]
    wanted = [number for number, _ in kept]
    for how in ("websocket", "fetch"):
        hellos = [hello["resumed"] for hello in ways[how].hellos]
        assert hellos == [False] + [True] * (len(hellos) - 1), f"{how}: {ways[how].hellos}"
        assert len(hellos) > 2
        got = ways[how].ids
        assert got == wanted[wanted.index(got[0]) :], f"{how}: each event from the first one on, once and in order"
    assert ways["follow"].ids == wanted, "history and live together: everything that the lake has, once and in order"
    assert {line["live"] for line in ways["follow"].read()} == {True, False}
    assert {kind for _, kind in kept} == {"trade", "quote"}


def test_the_client_says_what_is_wrong(home: Home, program: Callable[..., Program]) -> None:
    home.env = {"TAPELINE_DASHBOARD_TOKEN": "token-0123456789abcdef"}
    listen = f"127.0.0.1:{free_port()}"
    home.configure(f'dashboard.listen = "{listen}"\n' + block("binance", "ws://127.0.0.1:9", ["BTCUSDT"], ["trade"]))
    served = home.start("dashboard")
    until(lambda: urllib3_status(f"http://{listen}/v1/health") == 401 or not served.running, "the server answers")
    told = defaultdict(set)
    for how in ("websocket", "fetch"):
        one = program(f"http://{listen}", how, "BTC/USDT")
        assert one.popen.wait(30) != 0, "the error is thrown"
        told[how] = {(line["state"], line.get("error")) for line in one.read() if line.get("state") == "closed"}
    assert told["websocket"] == told["fetch"] == {("closed", "A token is needed: Authorization: Bearer TOKEN.")}
    served.end()


def urllib3_status(url: str) -> int:
    try:
        return urllib3.request("GET", url, timeout=5.0, retries=False).status
    except urllib3.exceptions.HTTPError:
        return 0
