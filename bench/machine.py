"""Local processes, their configurations, and recordings that several benchmarks share."""

from __future__ import annotations

import gzip
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CAPTURES = sorted((REPOSITORY.parent / "shared" / "captures" / "binance").glob("*.gz"))
SYMBOLS = ["BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT"]
CHANNELS = ["trade", "bookTicker"]
STREAMS = [f"{symbol.lower()}@{channel}" for symbol in SYMBOLS for channel in CHANNELS]
KEYS = {"TAPELINE_POLYGON_KEY": "demo", "TAPELINE_ALPACA_KEY": "demo", "TAPELINE_ALPACA_SECRET": "demo"}


def describe() -> str:
    """The machine in a few words."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, {platform.system()} {platform.release()}"


def recorded_frames() -> list[tuple[int, bytes]]:
    """(receive time in ns, frame) of the recorded trades and best quotes."""
    frames = []
    for path in CAPTURES:
        with gzip.open(path, "rb") as lines:
            for line in lines:
                received, _, frame = line.rstrip(b"\n").partition(b" ")
                if b"@trade" in frame[:40] or b"@bookTicker" in frame[:40]:
                    frames.append((int(received), frame))
    return frames


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on a disk: /tmp may be memory. Other users may look into it, because PostgreSQL's server is one."""
    with tempfile.TemporaryDirectory(prefix="tapeline-bench-", dir="/var/tmp") as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


@contextmanager
def simulator(name: str, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A simulator's process and its url."""
    with listening("tapeline", "simulate", name, *arguments) as url_and_process:
        yield url_and_process


@contextmanager
def listening(module: str, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A module's process, and the url that its first line ends with."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().decode().rpartition(" at ")[2].strip(), process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def resident_mib(pid: int | str) -> float:
    """The memory that a process holds, or `self`. Raises OSError if it has ended."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024


def codecs(codec: str) -> str:
    """The setting `codecs` that writes every topic in this one."""
    topics = ", ".join(f'{topic} = "{codec}"' for topic in ("normalized", "bars", "notices", "rejected"))
    return f"codecs = {{ {topics} }}"


def write_reading_config(root: Path) -> Path:
    """A configuration to read the lake in a folder."""
    path = root / "tapeline.toml"
    path.write_text(f'data_dir = "{root}"\n[[providers]]\nname = "binance"\nsymbols = ["BTCUSDT"]\nchannels = ["trade"]\n')
    return path


def write_config(
    root: Path, url: str, flush_seconds: float = 5.0, stream: str = "embedded:", codec: str = "protobuf", postgres: str = ""
) -> Path:
    """`postgres`: the address of a database that is a store too."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "tapeline.toml"
    second = f'[[stores]]\nurl = "{postgres}"\nflush_seconds = {flush_seconds}\n' if postgres else ""
    path.write_text(
        f'data_dir = "{root}"\n[stream]\nurl = "{stream}"\n{codecs(codec)}\n[[providers]]\nname = "binance"\nurl = "{url}"\n'
        f"symbols = {SYMBOLS}\nchannels = {CHANNELS}\n"
        f'[[stores]]\nurl = "lake:"\nflush_seconds = {flush_seconds}\n{second}'
    )
    return path


@contextmanager
def pipeline(config: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`tapeline run`, its log beside the data."""
    with (config.parent / "run.log").open("wb") as log:
        command = [sys.executable, "-m", "tapeline", "run", "--config", str(config), *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **KEYS})
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(f"{cell:,.0f}" if isinstance(cell, (int, float)) else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
