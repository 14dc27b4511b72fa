"""The notebook `examples/backtest` runs anew and shows what is committed: three backtests that make exactly the fills of the rule.

It runs in an environment that has the two frameworks. After a change, `make backtest` runs it and keeps what it shows and its picture.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from matplotlib.image import imread

from environments import python_of
from notebooks import outputs, said, shown, shows_a_whole_run

FOLDER = Path(__file__).parent.parent / "examples" / "backtest"
NOTEBOOK = FOLDER / "backtest.ipynb"
PICTURE = FOLDER.parents[1] / "docs" / "images" / "backtest.png"
#: Put behind the last cell: what the strategy met and what it did, as a file.
KEEP = """
import json

kept = {"trades": [row for trades, _ in made.values() for row in trades], "missing": [MISSING.start, MISSING.stop]}
kept |= {"trusted": trusted, "untrusted": untrusted, "runs": [fills, in_backtesting, in_nautilus]}
Path("kept.json").write_text(json.dumps(kept, default=str))
"""
FAST, SLOW, SIZE = 5, 30, 10
#: Cells of a trade's row in a day's file.
ID, PRICE, TIME = 0, 1, 4
MINUTE_US = 60_000_000


@dataclass
class Run:
    """The notebook after a run in a folder of its own, and what it kept."""

    folder: Path
    notebook: Any
    kept: dict[str, Any]

    def trades(self, *, whole: bool = True) -> list[list[Any]]:
        """The rows of the files. Those of the missing hour only if `whole`."""
        start, end = self.kept["missing"]
        return [row for row in self.kept["trades"] if whole or not start <= row[TIME] < end]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("backtest")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(KEEP))
    nbformat.write(notebook, folder / NOTEBOOK.name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAPELINE_")}
    environment |= {name: str(folder / "jupyter") for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")}
    command = [python_of(FOLDER, tapeline=True), str(FOLDER / "run.py"), str(folder / NOTEBOOK.name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    anew = nbformat.read(folder / NOTEBOOK.name, as_version=4)
    anew.cells.pop()
    return Run(folder, anew, json.loads((folder / "kept.json").read_text(), parse_float=Decimal))


def by_the_rule(trades: list[list[Any]]) -> list[list[Any]]:
    """The fills that the strategy's rule asks for, from the files' rows: exact, and bar by bar instead of trade by trade."""
    minutes: dict[int, list[Decimal]] = {}
    for row in trades:
        minutes.setdefault(row[TIME] // MINUTE_US, []).append(Decimal(row[PRICE]))
    bars = [(minute, prices[0], prices[-1]) for minute, prices in sorted(minutes.items())]
    closes = [close for _, _, close in bars]
    long = [SLOW * sum(closes[at - FAST : at]) > FAST * sum(closes[at - SLOW : at]) for at in range(SLOW, len(bars))]
    return [
        [str(datetime.fromtimestamp(60 * minute, UTC)), "buy" if now else "sell", SIZE, price]
        for (before, now), (minute, price, _) in zip(pairwise([False, *long]), bars[SLOW:], strict=True)
        if before != now
    ]


def test_all_three_backtests_make_exactly_the_fills_of_the_strategy_s_rule(run: Run) -> None:
    wanted = by_the_rule(run.trades())
    assert len(wanted) > 48
    assert run.kept["runs"] == [wanted] * 3


def test_without_an_hour_of_trades_the_fills_are_others_and_the_ledger_names_that_hour(run: Run) -> None:
    assert run.kept["untrusted"] == by_the_rule(run.trades(whole=False)) != by_the_rule(run.trades())
    assert run.kept["trusted"] is False
    gone = sorted({row[ID] for row in run.trades()} - {row[ID] for row in run.trades(whole=False)})
    assert f"ids {gone[0]} to {gone[-1]}: all of {len(gone)} events are missing" in said(run.notebook)


def test_the_committed_notebook_shows_what_a_run_shows_and_nothing_of_the_machine(run: Run) -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    shows_a_whole_run(committed)
    assert said(committed) == said(run.notebook)
    assert tables(committed) == tables(run.notebook) != []
    assert shown(committed) == PICTURE.read_bytes()
    assert shown(run.notebook) == (run.folder / PICTURE.name).read_bytes()
    before, anew = imread(io.BytesIO(shown(committed))), imread(io.BytesIO(shown(run.notebook)))
    assert np.abs(before - anew).mean() < 0.001, "its letters may differ by machine, its lines and marks may not"


def tables(notebook: Any) -> list[str]:
    return [output.data["text/plain"] for output in outputs(notebook) if "text/html" in output.get("data", {})]
