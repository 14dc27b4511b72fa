"""The notebook of `examples/` does what it shows: run on a fresh demo it draws what the lake holds; as committed it shows such a run.

Its code runs here without Jupyter, up to the picture; `make prove PART=readers` runs the notebook itself.

After a change, `.venv/bin/jupyter execute --inplace examples/from_demo_to_plot.ipynb` runs it and keeps what it shows and its picture.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.font_manager  # noqa: F401 a fresh machine's list of fonts is made here: the notebook would say that it takes long
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from nbclient import NotebookClient

from notebooks import said, shown, shows_a_whole_run
from proving import PROVE, proof
from tapeline.reading.sql import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTEBOOK = Path(__file__).parent.parent / "examples" / "from_demo_to_plot.ipynb"
PICTURE = NOTEBOOK.parents[1] / "docs" / "images" / "from_demo_to_plot.png"
LENGTH, SHORTER = "SECONDS, RATE = 30, 100", "SECONDS, RATE = 3, 250"
TABLES = ("quotes", "trades", "volume")
#: Put behind the last cell: what was drawn, as files.
KEEP = "\n".join(f'{name}.reset_index().to_parquet("{name}.parquet")' for name in TABLES)
WIDTH, HEIGHT = 1760, 1360
BUY, SELL, BAND, INK = "#00876c", "#d6503b", "#9db2c8", "#1b2733"


@dataclass
class Run:
    """The notebook after a run in a folder of its own: what it printed, and in a proof the notebook with its outputs."""

    folder: Path
    printed: str
    notebook: Any = None

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"{name}.parquet")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the demo's lake answers."""
        with connect(self.folder / "demo-data" / "lake") as db:
            return db.sql(query).fetchall()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    demo = next(cell for cell in notebook.cells if LENGTH in cell.source)
    demo.source = demo.source.replace(LENGTH, SHORTER)
    notebook.cells.append(nbformat.v4.new_code_cell(KEEP))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TAPELINE_")]:
            patch.delenv(name)
        yield in_jupyter(notebook, folder, patch) if PROVE else as_a_program(notebook, folder, patch)


def in_jupyter(notebook: Any, folder: Path, patch: pytest.MonkeyPatch) -> Run:
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        patch.setenv(name, str(folder / "jupyter"))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return Run(folder, said(notebook), notebook)


def as_a_program(notebook: Any, folder: Path, patch: pytest.MonkeyPatch) -> Run:
    """All cells but the one that draws."""
    patch.chdir(folder)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "matplotlib" not in cell.source]
    assert len(code) == len([cell for cell in notebook.cells if cell.cell_type == "code"]) - 1
    printed, names = io.StringIO(), dict[str, Any]()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n".join(code), str(NOTEBOOK), "exec"), names)  # our own notebook
    return Run(folder, printed.getvalue())


def test_the_demo_of_the_notebook_loses_nothing_and_the_bars_agree_with_the_trades(run: Run) -> None:
    text = run.printed
    assert re.search(r"Every one of the \d[\d,]* events sent is in the lake exactly once\.", text), text
    agree = re.search(r"(\d+) of (\d+) bars have exactly the volume", text)
    assert agree
    assert agree[1] == agree[2]
    assert int(agree[2]) >= 1


def test_what_is_drawn_is_what_the_lake_holds(run: Run) -> None:
    ((quotes, trades, crossed),) = run.rows(
        "SELECT count(*) FILTER (kind = 'quote'), count(*) FILTER (kind = 'trade'), count(*) FILTER (ask < bid) "
        "FROM ticks WHERE symbol = 'ETH/USDT'"
    )
    assert (len(run.table("quotes")), len(run.table("trades")), crossed) == (quotes, trades, 0)
    assert trades > 20
    kept = {
        (second, side): total
        for second, side, total in run.rows(
            "SELECT ts_ns // 1_000_000_000, side, sum(volume) FROM ticks WHERE symbol = 'ETH/USDT' AND kind = 'trade' GROUP BY ALL"
        )
    }
    drawn = {
        (int(row["ts"].timestamp()), side): row[side]
        for row in run.table("volume").to_dict("records")
        for side in ("buy", "sell")
        if row[side]
    }
    assert drawn == pytest.approx(kept)


def test_the_quotes_have_a_spread_and_are_in_force_at_their_trades(run: Run) -> None:
    quotes, trades = run.table("quotes"), run.table("trades")
    assert (quotes["ask"] >= quotes["bid"]).all()
    assert quotes["spread"].between(0, 1).all()
    bids = quotes.set_index("ts")["bid"]
    for trade in trades.itertuples():
        before = bids[: trade.ts]
        assert trade.bid == before.iloc[-1] if len(before) else pd.isna(trade.bid)


@proof("readers", quick=False)
def test_the_picture_is_saved_and_each_panel_has_its_marks(run: Run) -> None:
    saved = run.folder / "from_demo_to_plot.png"
    assert shown(run.notebook) == saved.read_bytes()
    pixels = imread(saved)[..., :3]
    assert pixels.shape == (HEIGHT, WIDTH, 3)

    def marks(color: str, top: float, bottom: float) -> int:
        """How many pixels of exactly this colour lie between two heights of the picture."""
        part = pixels[int(top * HEIGHT) : int(bottom * HEIGHT)]
        return int(np.isclose(part, to_rgb(color), atol=1 / 510).all(axis=-1).sum())

    title, price, spread, volume = (0.0, 0.1), (0.14, 0.54), (0.58, 0.71), (0.75, 0.92)
    wanted = [(INK, title, 1_000), (BUY, price, 300), (SELL, price, 300), (BAND, price, 300), (INK, spread, 1_000)]
    for color, panel, least in [*wanted, (BUY, volume, 10_000), (SELL, volume, 10_000)]:
        assert marks(color, *panel) > least


def test_the_committed_notebook_shows_a_whole_run_of_this_code_and_nothing_of_the_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shows_a_whole_run(notebook)
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert "Every one of the 9,000 events sent is in the lake exactly once." in said(notebook)
    assert shown(notebook) == PICTURE.read_bytes()
