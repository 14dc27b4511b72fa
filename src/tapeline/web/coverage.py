"""The answer to "is it complete?" as a grid: one row for each symbol of each channel, one cell for each hour or day."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from tapeline.ledger.answers import NOTHING_KNOWN, answer, reached
from tapeline.ledger.facts import ONGOING, Interval, Key
from tapeline.ledger.intervals import COVERED

CellState = Literal["proven", "reconciled", "unprovable", "repairing", "open", "unrecoverable", "unknown", "ahead"]
#: From the worst to the best: a cell has the worst state of its time. `unknown`: before anything was recorded. `ahead`: not yet.
WORST_FIRST: Final[tuple[CellState, ...]] = ("open", "repairing", "unrecoverable", "unknown", "unprovable", "reconciled", "proven", "ahead")
#: The most cells of one answer.
MOST_CELLS: Final = 200_000


class Cell(msgspec.Struct):
    """One hour or day of one row."""

    state: CellState
    #: The share of its time in which nothing is missing.
    covered: float
    #: How many events are missing, as far as their ids tell.
    missing: int


class Row(msgspec.Struct):
    """One symbol of one channel."""

    provider: str
    feed: str
    channel: str
    symbol: str
    cells: list[Cell]


class Grid(msgspec.Struct, kw_only=True):
    """The rows, and the times of their cells: cell n begins at start + n * step. Times are ns, UTC, as text."""

    start_ns: str
    step_ns: str
    rows: list[Row]


class Evidence(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One interval of the ledger. Times are ns, UTC, as text; without an end it is ongoing."""

    provider: str
    feed: str
    channel: str
    symbol: str
    start_ns: str
    end_ns: str | None = None
    state: str
    evidence: str
    #: The first and the last id, where events are numbered.
    first_id: str | None = None
    last_id: str | None = None


def grid(known: Mapping[Key, Iterable[Interval]], start_ns: int, end_ns: int, step_ns: int, now_ns: int) -> Grid:
    """Return the grid of what the ledger knows about [start, end). Pure. All ns, UTC; `step_ns`: the length of a cell."""
    rows = [Row(*key, _cells(key, intervals, start_ns, end_ns, step_ns, now_ns)) for key, intervals in sorted(known.items())]
    return Grid(start_ns=str(start_ns), step_ns=str(step_ns), rows=rows)


def _cells(key: Key, intervals: Iterable[Interval], start_ns: int, end_ns: int, step_ns: int, now_ns: int) -> list[Cell]:
    cells = [Cell("ahead", 0.0, 0) for _ in range(start_ns, end_ns, step_ns)]
    known = list(intervals)
    until_ns = end_ns if end_ns <= now_ns else reached(known, start_ns, now_ns)
    if until_ns <= start_ns:
        return cells
    for one in answer(key, known, start_ns, until_ns).intervals:
        state: CellState = "unknown" if one.evidence == NOTHING_KNOWN else one.state
        first, last = (one.start_ns - start_ns) // step_ns, (max(one.end_ns - 1, one.start_ns) - start_ns) // step_ns
        for number in range(first, min(last, len(cells) - 1) + 1):
            cell, begin_ns = cells[number], start_ns + number * step_ns
            inside_ns = min(one.end_ns, begin_ns + step_ns) - max(one.start_ns, begin_ns)
            if one.state in COVERED:
                cell.covered += inside_ns / (min(begin_ns + step_ns, until_ns) - begin_ns)
            elif one.first_id is not None and one.last_id is not None and first == number:
                cell.missing += one.last_id - one.first_id + 1  # once, where the hole begins: nobody knows which cell has how many
            if WORST_FIRST.index(state) < WORST_FIRST.index(cell.state):
                cell.state = state
    for cell in cells:
        cell.covered = round(min(cell.covered, 1.0), 6)
    return cells


def evidence(key: Key, one: Interval) -> Evidence:
    """Return an interval as it is sent."""
    return Evidence(
        **key._asdict(),
        start_ns=str(one.start_ns),
        end_ns=None if one.end_ns == ONGOING else str(one.end_ns),
        state=one.state,
        evidence=one.evidence,
        first_id=None if one.first_id is None else str(one.first_id),
        last_id=None if one.last_id is None else str(one.last_id),
    )
