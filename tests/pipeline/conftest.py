"""Fixtures of the tests of the whole pipeline: each a small factory over `processes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from processes import CAPTURES, Home, Quote, SimulatorProcess, Spawner, Trade, recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawner]:
    spawner = Spawner(tmp_path / "said")
    yield spawner
    spawner.end()


@pytest.fixture
def home(tmp_path: Path, spawn: Spawner) -> Home:
    return Home(tmp_path / "data", spawn)


@pytest.fixture
def simulator(spawn: Spawner, tmp_path: Path) -> Callable[..., SimulatorProcess]:
    """A simulator process: `simulator("binance", "--rate", "500")`."""

    def start(name: str, *options: str) -> SimulatorProcess:
        journal = tmp_path / f"sent-{len(spawn.started)}.jsonl"
        process = spawn("simulate", name, "--journal", str(journal), *options)
        said = process.says(" at ")
        return SimulatorProcess(process, said.splitlines()[0].rpartition(" at ")[2].strip(), journal)

    return start


@pytest.fixture(scope="session")
def captures() -> list[Path]:
    """The two recordings. They are not part of the repository."""
    found = [CAPTURES / f"spot_{symbol}_20240808.gz" for symbol in ("btcusdt", "ethusdt")]
    if not all(path.exists() for path in found):
        pytest.skip(f"the recordings are not in {CAPTURES}")
    return found


@pytest.fixture(scope="session")
def recordings(captures: list[Path]) -> tuple[list[Trade], list[Quote]]:
    """Everything that both recordings hold, in the order in which `kept` gives it."""
    trades: list[Trade] = []
    quotes: list[Quote] = []
    for path in captures:
        some = recorded(path)
        trades += some[0]
        quotes += some[1]
    return sorted(trades, key=lambda t: (t.symbol, int(t.trade_id))), sorted(quotes, key=lambda q: (q.symbol, q.sequence))
