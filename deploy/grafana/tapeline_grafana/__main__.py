"""Writes the dashboards as JSON: `python -m tapeline_grafana [--docs ADDRESS] [--to FOLDER]`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tapeline_grafana import completeness, ingest, jobs, overview, stores, stream
from tapeline_grafana.board import Board, built

BOARDS: Final[tuple[Board, ...]] = (
    overview.BOARD,
    ingest.BOARD,
    stream.BOARD,
    stores.BOARD,
    completeness.BOARD,
    jobs.BOARD,
)
FOLDER: Final = Path(__file__).parent.parent / "dashboards"
#: Where `make docs` and `python -m http.server --directory .cache/site` show it.
DOCS: Final = "http://127.0.0.1:8000"


def main() -> None:
    """Write each dashboard into a file of its own."""
    parser = argparse.ArgumentParser(description="Write Tapeline's dashboards for Grafana.")
    parser.add_argument("--docs", default=DOCS, help="the address of the documentation's site, for the links to runbooks")
    parser.add_argument("--to", type=Path, default=FOLDER, help="the folder to write to")
    chosen = parser.parse_args()
    chosen.to.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        text = JSONEncoder(sort_keys=True, indent=2).encode(built(board, chosen.docs.rstrip("/")))
        (chosen.to / f"{board.name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
