"""The demo. It runs the real pipeline against three local simulators, and proves at the end that every event arrived."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from tapeline.app.stores import open_stores
from tapeline.app.streams import open_stream
from tapeline.config import DashboardConfig, load
from tapeline.demo.verify import Comparison, compare
from tapeline.errors import TapelineError, Unavailable
from tapeline.monitor.health import snapshot
from tapeline.monitor.terminal import Screen
from tapeline.reading.sql import connect
from tapeline.web.address import free

_FEEDS: Final = """
[[providers]]
name = "binance"
url = "{binance}"
symbols = ["BTCUSDT", "ETHUSDT"]
channels = ["trade", "bookTicker", "kline_1s"]

[[providers]]
name = "polygon"
feed = "stocks"
url = "{polygon}"
symbols = ["AAPL", "MSFT", "NVDA"]
channels = ["T", "Q", "A"]

[[providers]]
name = "alpaca"
feed = "iex"
url = "{alpaca}"
symbols = ["AAPL", "SPY"]
channels = ["trades", "quotes", "bars"]

[[providers]]
name = "alpaca"
feed = "crypto"
options = {{ codec = "msgpack" }}
url = "{alpaca}"
symbols = ["BTC/USD", "ETH/USD"]
channels = ["trades", "quotes", "bars"]
"""
_SAMPLE: Final = """SELECT provider, symbol, count(*) AS ticks, round(min(last), 2) AS low, round(max(last), 2) AS high,
  round(sum(last * volume) / sum(volume), 2) AS vwap
FROM ticks GROUP BY ALL ORDER BY ALL"""
_SIMULATORS: Final = ("binance", "polygon", "alpaca")
#: The local simulators take any key; a real one is never used here.
_KEYS: Final = {"TAPELINE_POLYGON_KEY": "demo", "TAPELINE_ALPACA_KEY": "demo", "TAPELINE_ALPACA_SECRET": "demo"}
_QUIET_S: Final = 2.0


def _environment() -> dict[str, str]:
    """Our environment without Tapeline's settings. The demo has its own, and does not touch the user's stream or keys."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TAPELINE_")} | _KEYS


class Demo:
    """One run of the demo in a data directory of its own."""

    def __init__(self, root: Path, seconds: float, rate: float, console: Console) -> None:
        self._root, self._seconds, self._rate, self._console = root, seconds, rate, console
        self._config = root / "tapeline.toml"

    def run(self, stop: threading.Event) -> bool:
        """Run it. Returns whether every event that the simulators sent is in the lake exactly once, or was rejected with a reason."""
        self._make_room()
        with self._simulators() as urls:
            listen = free(DashboardConfig().listen)
            self._config.write_text(
                f'data_dir = "{self._root}"\n\n[dashboard]\nlisten = "{listen}"\nactions = true\n'
                + _FEEDS.format(**urls)
                + '\n[[stores]]\nurl = "lake:"\nflush_seconds = 2.0\n'
            )
            self._console.print(
                f"Three simulators send {self._rate:,.0f} events/s each for {self._seconds:,.0f} s; the pipeline runs against them."
            )
            self._console.print(f"Watch it at [bold]http://{listen}[/] until it ends.", highlight=False)
            status = self._pipeline(stop)
        if stop.is_set():
            self._console.print(f"Stopped before the end. Nothing was compared. The data is in {os.path.relpath(self._root)}.")
            return False
        if status != 0:
            self._console.print(f"[red]The pipeline ended with status {status}. Its log is {self._root / 'run.log'}.[/]")
            return False
        return self._verdict()

    def _make_room(self) -> None:
        """Make an empty directory. A directory with files in it is cleared only if an earlier demo made it."""
        if self._root.exists() and any(self._root.iterdir()) and not self._config.exists():
            raise TapelineError(f"{self._root} has files that no demo made. Name another folder with --data-dir.")
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(parents=True, mode=0o700)

    @contextmanager
    def _simulators(self) -> Iterator[dict[str, str]]:
        """Start the simulators' processes together. Yields their urls by name."""
        with ExitStack() as stack:
            processes = {name: stack.enter_context(self._simulator(name)) for name in _SIMULATORS}
            yield {name: self._url(name, process) for name, process in processes.items()}

    @contextmanager
    def _simulator(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        limit = max(1, int(self._rate * self._seconds))
        command = [sys.executable, "-m", "tapeline", "simulate", name, "--rate", str(self._rate), "--limit", str(limit)]
        journal = self._root / f"{name}.sent.jsonl"
        with (self._root / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 our own command
                [*command, "--journal", str(journal)], stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
            try:
                yield process
            finally:
                process.terminate()
                process.wait(10)

    def _url(self, name: str, process: subprocess.Popen[bytes]) -> str:
        line = process.stdout.readline().decode() if process.stdout is not None else ""
        if " at " not in line:
            raise Unavailable(f"The {name} simulator did not start. See {self._root / f'{name}.log'}.")
        return line.rpartition(" at ")[2].strip()

    def _pipeline(self, stop: threading.Event) -> int:
        command = [sys.executable, "-m", "tapeline", "run", "--dashboard", "--config", str(self._config), "--until-idle", str(_QUIET_S)]
        with (self._root / "run.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 our own command
                command, stdout=log, stderr=log, env=_environment(), start_new_session=True
            )
            try:
                self._watch(process, stop)
            finally:
                if process.poll() is None:
                    process.terminate()
            return process.wait(120)

    def _watch(self, process: subprocess.Popen[bytes], stop: threading.Event) -> None:
        settings = load(self._config, {})
        stream, stores = open_stream(settings), open_stores(settings)

        try:
            with Screen(self._console, lambda: snapshot(self._root, stream, stores), 3.0) as screen:
                while process.poll() is None and not stop.wait(0.2):
                    screen.tick()
        finally:
            stream.close()

    def _verdict(self) -> bool:
        settings = load(self._config, {})
        stream = open_stream(settings)
        state = snapshot(self._root, stream, open_stores(settings))
        stream.close()
        comparison = compare(self._root / "lake", [self._root / f"{name}.sent.jsonl" for name in _SIMULATORS])
        self._console.print("\n[bold]Accounting[/] (in = out + duplicates + rejected)")
        for entry in state["equations"]:
            self._console.print(f"  {entry['text']}", highlight=False, soft_wrap=True)
        self._console.print(self._sent_and_kept(comparison))
        balanced = all(entry["balanced"] for entry in state["equations"])
        if comparison.exact and balanced and comparison.sent:
            self._console.print(f"[green]Every one of the {comparison.sent:,} events sent is in the lake exactly once.[/]\n")
        else:
            self._console.print(
                f"[red]{len(comparison.missing):,} events are missing, {len(comparison.extra):,} are too many, "
                f"{comparison.rejected:,} are rejected.[/] First: {[*comparison.missing, *comparison.extra][:1]}\n"
            )
        self._next_steps()
        return comparison.exact and balanced and comparison.sent > 0

    def _sent_and_kept(self, comparison: Comparison) -> Table:
        table = Table(title="\nevents sent, rows in the lake", title_justify="left", box=None, pad_edge=False, header_style="bold")
        for name in ("provider", "feed", "kind"):
            table.add_column(name)
        for name in ("sent", "in the lake"):
            table.add_column(name, justify="right")
        for row in comparison.counts:
            table.add_row(row["provider"], row["feed"], row["kind"], f"{row['sent']:,}", f"{row['kept']:,}")
        table.add_row("rejected", "", "", "", f"{comparison.rejected:,}")
        return table

    def _next_steps(self) -> None:
        config = os.path.relpath(self._config)
        me = "tapeline" if shutil.which("tapeline") else os.path.relpath(sys.argv[0])  # the path it was called by, if it is not on the PATH
        self._console.print("[bold]A query over the lake[/]")
        self._console.print(_SAMPLE, style="dim", highlight=False)
        sample = Table(box=None, pad_edge=False, header_style="bold")
        rows = connect(self._root / "lake").sql(_SAMPLE).to_arrow_table()
        for name in rows.schema.names:
            sample.add_column(name, justify="left" if name in ("provider", "symbol") else "right")
        for row in rows.to_pylist():
            sample.add_row(*[f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()])
        self._console.print(sample)
        self._console.print(f"\nThe data is in {os.path.relpath(self._root)} (the lake: {os.path.relpath(self._root / 'lake')}). Try next:")
        for command in (
            f'{me} sql "SELECT * FROM bars ORDER BY ts DESC LIMIT 5" --config {config}',  # noqa: S608 shown, not run
            f"{me} tail ticks --symbol BTC/USDT --config {config}",
            f"{me} status --config {config}",
            f"{me} dashboard --config {config}        (the page again: what happened in the last hour)",
            f"{me} run        (Binance's public stream: no key needed)",
        ):
            self._console.print(f"  {command}", highlight=False, soft_wrap=True)
