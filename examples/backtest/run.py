"""Runs a notebook where it is, and keeps what it shows, without the times of the run: so the same run gives the same file."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> None:
    """Run a notebook's cells in its folder. Raises CellExecutionError if a cell fails; the file then stays as it was."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=300, record_timing=False, resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve())
