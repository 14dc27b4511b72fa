"""Simulators and the pipeline itself as processes, and what they leave behind: what the tests of the whole pipeline share."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from services.process import lives

from tapeline.app.stores import open_stores
from tapeline.app.streams import open_stream, raw_consumer_groups
from tapeline.config import load
from tapeline.ledger import read_intervals
from tapeline.ledger.sqlite import LedgerFile
from tapeline.monitor.health import snapshot
from tapeline.reading.sql import connect
from tapeline.records import RAW_TOPIC
from waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tapeline.ledger.facts import Interval, Key
    from tapeline.records import Topic
    from tapeline.streams import Stream

CAPTURES: Final = Path(__file__).resolve().parents[2].parent / "shared" / "captures" / "binance"
COMMAND: Final = (sys.executable, "-m", "tapeline")


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without any setting or key of ours, and with `extra`; what is compiled once stays so."""
    private = ("TAPELINE_", "APCA_", "MASSIVE_", "POLYGON_", "PYTHONDONTWRITEBYTECODE")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    # The pipelines of the tests run side by side, and only those that are about it answer over HTTP.
    return {**plain, "COLUMNS": "160", "TAPELINE_MONITOR__LISTEN": "", **extra}


@dataclass
class Process:
    """A command that runs beside the test. What it says goes to a file."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def says(self, text: str, seconds: float = PATIENCE_S) -> str:
        """Wait until it has said `text`, which may be its last word; everything it has said."""

        def found() -> bool:
            ended = not self.running
            return text in self.said or (ended and pytest.fail(f"ended without saying {text!r}:\n{self.said}"))

        until(found, f"{text!r} was not said; said so far:\n{self.said}", seconds)
        return self.said

    def ends(self, seconds: float = PATIENCE_S) -> int:
        """Wait for its end; the exit status."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds:.0f} s:\n{self.said[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self) -> None:
        """Ask it to end, and end it when it does not."""
        if self.running:
            self.popen.terminate()
            try:
                self.popen.wait(20.0)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


@dataclass
class Spawner:
    """Starts commands and ends each of them with the test."""

    folder: Path
    started: list[Process] = field(default_factory=list)

    def __call__(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{len(self.started)}-{arguments[0]}.log"
        with log.open("wb") as sink:
            popen = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment(**(env or {})),
                cwd=cwd,
                start_new_session=True,
            )
        process = Process(popen, log)
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in reversed(self.started):
            process.end()


@dataclass
class SimulatorProcess:
    """A simulator that listens, and the journal of what it has sent."""

    process: Process
    url: str
    journal: Path

    def halt(self) -> None:
        """Close the market: nothing happens any more, and connections stay."""
        self.process.send(signal.SIGUSR1)

    def stop(self) -> dict[str, int]:
        """End it; what it says it has sent, by channel. Its journal is then complete."""
        self.process.send(signal.SIGTERM)
        assert self.process.ends() == 0
        sent: dict[str, int] = json.loads(self.process.said.splitlines()[-1])["sent"]
        return sent


@dataclass
class Home:
    """A data directory with its configuration, and what can be asked of it."""

    root: Path
    spawn: Spawner
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.root.with_name(f"{self.root.name}.toml")

    @property
    def lake(self) -> Path:
        return self.root / "lake"

    def configure(self, text: str, *, flush_seconds: float = 0.3, flush_rows: int = 250_000, ledger: bool = False) -> None:
        """`ledger`: keep one too; each of its processes costs a start."""
        store = f'[[stores]]\nurl = "lake:"\nflush_seconds = {flush_seconds}\nflush_rows = {flush_rows}\n'
        self.config.write_text(f"data_dir = {json.dumps(str(self.root))}\nledger = {str(ledger).lower()}\n{text}\n{store}")

    def stream(self) -> Stream:
        """The configured stream, to look into."""
        return open_stream(load(self.config, {}), {})

    def start(self, *arguments: str) -> Process:
        """`tapeline <arguments> --config ...` beside the test."""
        return self.spawn(*arguments, "--config", str(self.config), env=self.env)

    def run(self, *arguments: str, seconds: float = PATIENCE_S) -> int:
        """`tapeline run ...` to its end; the exit status."""
        return self.start("run", *arguments).ends(seconds)

    def ask(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`tapeline <arguments> --config ...` to its end, with its output."""
        return ask(*arguments, "--config", str(self.config), env=self.env)

    def status(self) -> dict[str, Any]:
        """What `tapeline status --format json` shows, looked at by this process."""
        config = load(self.config, {})
        with contextlib.ExitStack() as opened:
            stream = opened.enter_context(contextlib.closing(self.stream()))
            stores = open_stores(config)
            for store in stores.values():
                opened.callback(getattr(store, "close", lambda: None))  # the lake holds nothing open
            return snapshot(config.root, stream, stores, raw_consumer_groups(config))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return rows(self.lake, query)

    def word(self, stage: str) -> dict[str, Any]:
        """A stage's own status file; empty while there is none."""
        try:
            found: dict[str, Any] = json.loads((self.root / "status" / f"{stage}.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def pid(self, stage: str) -> int | None:
        """The process that runs a stage on this data directory now."""
        pid = self.word("run").get("stages", {}).get(stage, {}).get("pid")
        try:
            owner = (self.root / "locks" / stage).read_text()
        except OSError:
            return None
        return int(pid) if pid and f", process {pid}, " in owner and lives(pid) else None

    def _over(self) -> None:
        """Fails the test where the run has ended, so that nothing can be killed any more."""
        runs = [one for one in self.spawn.started if one.log.name.endswith("-run.log")]
        assert not runs or any(one.running for one in runs), f"the run has ended before its time:\n{runs[-1].said[-3000:]}"

    def kill(self, stage: str) -> None:
        """kill -9 the process that runs a stage, as soon as there is one."""
        pid = until(lambda: self.pid(stage) or self._over(), f"a process runs {stage}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def says_nothing_of(self, *secrets: str) -> None:
        """No file under the data directory and no output of any command holds one of these texts."""
        files = [path for path in self.root.rglob("*") if path.is_file()] + [one.log for one in self.spawn.started]
        for path in files:
            data = path.read_bytes()
            for secret in secrets:
                assert secret.encode() not in data, f"{path} holds {secret!r}"


def ask(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`tapeline <arguments>` to its end, with its output."""
    return subprocess.run(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(**(env or {})),
        cwd=cwd,
        timeout=PATIENCE_S,
        check=False,
    )


def rows(lake: Path, query: str) -> list[tuple[Any, ...]]:
    """A query's rows, over the lake."""
    db = connect(lake)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def ledger(home: Home) -> dict[Key, list[Interval]]:
    """What the ledger in a home's file says of each key."""
    return read_intervals(LedgerFile(home.root / "ledger.sqlite").intervals())


def block(name: str, url: str, symbols: Sequence[str], channels: Sequence[str], **more: str | float) -> str:
    """A [[providers]] block."""
    settings = {"name": name, "url": url, "symbols": list(symbols), "channels": list(channels), **more}
    return "[[providers]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


class Trade(NamedTuple):
    """A trade as the exchange sent it, its numbers exact."""

    symbol: str
    trade_id: str
    ts_ns: int
    price: Decimal
    size: Decimal
    side: str


class Quote(NamedTuple):
    """A quote as the exchange sent it, its numbers exact."""

    symbol: str
    sequence: int
    bid: Decimal
    bid_size: Decimal
    ask: Decimal
    ask_size: Decimal


def recorded(path: Path) -> tuple[list[Trade], list[Quote]]:
    """A recording's trades and quotes, read with nothing of ours."""
    trades, quotes = [], []
    with gzip.open(path, "rt") as file:
        for line in file:
            message = json.loads(line.partition(" ")[2])
            channel = str(message.get("stream", "")).partition("@")[2]
            data = message.get("data")
            if channel == "trade":
                trades.append(
                    Trade(
                        data["s"].removesuffix("USDT") + "/USDT",
                        str(data["t"]),
                        data["T"] * 1_000_000,
                        Decimal(data["p"]),
                        Decimal(data["q"]),
                        "sell" if data["m"] else "buy",
                    )
                )
            elif channel == "bookTicker":
                quotes.append(
                    Quote(
                        data["s"].removesuffix("USDT") + "/USDT",
                        data["u"],
                        *(Decimal(data[key]) for key in ("b", "B", "a", "A")),
                    )
                )
    return trades, quotes


def exact(value: float) -> Decimal:
    """A float as the shortest decimal that means it."""
    return Decimal(repr(value))


def kept(lake: Path) -> tuple[list[Trade], list[Quote]]:
    """The lake's trades and quotes, in the order of their numbers."""
    trades = rows(
        lake,
        "SELECT symbol, trade_id, ts_ns, last, volume, side FROM ticks WHERE kind = 'trade' ORDER BY symbol, sequence",
    )
    quotes = rows(
        lake,
        "SELECT symbol, sequence, bid, bid_size, ask, ask_size FROM ticks WHERE kind = 'quote' ORDER BY symbol, sequence",
    )
    return (
        [Trade(symbol, number, ns, exact(last), exact(volume), side) for symbol, number, ns, last, volume, side in trades],
        [Quote(symbol, number, *map(exact, values)) for symbol, number, *values in quotes],
    )


def records(stream: Stream, topic: Topic) -> list[dict[str, Any]]:
    """Everything that a topic holds, each record with the partition in which it was found."""
    at = dict.fromkeys(range(stream.partitions), 0)
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + PATIENCE_S
    while any(stream.lag(topic, at).values()):
        assert time.monotonic() < deadline, f"something waits in {topic.name} and is not read"
        chunk = stream.read(topic, at, 20_000)
        if chunk is not None:
            at |= chunk.next
            rows = chunk.batch.to_pylist()
            found += [{**row, "at": partition} for row, partition in zip(rows, chunk.partition.tolist(), strict=True)]
    return found


def key(event: Mapping[str, Any]) -> tuple[str, str, int]:
    """What tells one of Binance's trades and quotes from all others, from its frame's data."""
    return ("trade", event["s"], event["t"]) if "t" in event else ("bookTicker", event["s"], event["u"])


def sent(journal: Path) -> list[tuple[str, str, int]]:
    """The keys of what Binance's simulator has sent, in its order."""
    return [key(json.loads(line)["event"]) for line in journal.read_text().splitlines()]


def received(stream: Stream) -> dict[str, list[tuple[str, str, int]]]:
    """The keys of the raw topic's frames by connection, in their order, where they are Binance's."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    for row in records(stream, RAW_TOPIC):
        if row["kind"] == "frame" and b'"stream"' in row["payload"]:
            found.setdefault(row["connection"], []).append(key(json.loads(row["payload"])["data"]))
    return found


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
