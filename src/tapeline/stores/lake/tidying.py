"""Lake maintenance: compacts finished days, merges the small files of running days, and cleans up after processes that died."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from tapeline.errors import DiskProblem
from tapeline.stores.lake.compacting import Compacted, CompactionFailed, compact, merge, sweep
from tapeline.stores.lake.due import Due, due, young_ms


def tidy(root: Path, now: datetime, report: Callable[[Compacted], None]) -> None:
    """Do what is due. If one day fails, the others are still done, and the first error is raised at the end.

    Raises Busy while another process changes the lake's files (it may be doing the same), DiskProblem, CompactionFailed or NewerData."""
    problem: DiskProblem | CompactionFailed | None = None
    for one in due(root, now):
        try:
            done = _do(root, one, now)
        except (DiskProblem, CompactionFailed) as error:
            problem = problem or error
        else:
            for each in done:
                if each.changed:
                    report(each)
    if problem is not None:
        raise problem


def _do(root: Path, one: Due, now: datetime) -> list[Compacted]:
    if one.topic is None and one.day is not None:
        return compact(root, one.day, lambda *_: None)
    if one.topic is not None and one.day is not None:
        return [merge(root, one.topic, one.day, young_ms(now))]
    if one.topic is not None:
        sweep(root, one.topic)
    return []
