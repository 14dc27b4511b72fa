"""Which lake maintenance is due: finished days to compact, and small files of a running day to merge.

The tables themselves show what is due. Nothing is noted, so nothing can be missed: after a crash, or if no run was ever started, the
next run finds the same days again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import NORMALIZED_TOPICS, Topic
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake.files import ASIDE, PART, is_compacted

#: A day is compacted when it has been over for this long and nothing has come for it for a while, because late data has its own pace.
_OVER_FOR: Final = timedelta(hours=1)
_QUIET: Final = timedelta(minutes=30)
#: Compacting copies the whole day. So data that comes to a compacted day waits until no more has come for this long.
_QUIET_AGAIN: Final = timedelta(days=1)
#: The number of flushes that are merged. At the usual flush every five seconds, this is one hour.
_FLUSHES: Final = 720
#: Younger files stay, so whoever has begun to read them has this long to finish.
_YOUNG: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Due:
    """A day to compact; with a table, a day whose small files are to be merged; without a day, a table to sweep."""

    day: date | None
    topic: Topic | None = None


def due(root: Path, now: datetime) -> list[Due]:
    """Return what there is to do, oldest days first. Raises DiskProblem or NewerData."""
    dues: set[Due] = set()
    for topic in NORMALIZED_TOPICS:
        folder = root / topic.table
        with lake_files.disk_problem(folder, "read", "A running stage retries."):
            table = lake_files.opened(folder)
            files = lake_files.files_of(table) if table is not None else None
        if (root / topic.table / ASIDE).exists():
            dues.add(Due(None, topic))
        if files is not None:
            dues |= {one for day in pc.unique(files["day"]).to_pylist() if (one := _due(topic, day, files, now)) is not None}
    to_compact = {one.day for one in dues if one.topic is None}
    wanted = (one for one in dues if one.topic is None or one.day not in to_compact)
    return sorted(wanted, key=lambda one: (str(one.day or ""), one.topic.table if one.topic is not None else ""))


def _due(topic: Topic, text: str, all_files: pa.Table, now: datetime) -> Due | None:
    day, files = date.fromisoformat(text), all_files.filter(pc.equal(all_files["day"], text))
    compacted = pa.array([is_compacted(path) for path in files["path"].to_pylist()], pa.bool_())
    loose = files.filter(pc.invert(compacted))
    if not loose.num_rows:
        return None
    over = now - datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(days=1)
    quiet = now - datetime.fromtimestamp(pc.max(loose["modification_time"]).as_py() / 1_000, UTC)
    if over >= _OVER_FOR and quiet >= (_QUIET if loose.num_rows == files.num_rows else _QUIET_AGAIN):
        return Due(day)
    return Due(day, topic) if small(loose, young_ms(now)).num_rows >= _FLUSHES else None


def small(files: pa.Table, older_than_ms: int) -> pa.Table:
    """Return the files that are single flushes of the store, written before a moment (ms since 1970)."""
    flushes = pa.array([Path(path).name.startswith(PART) for path in files["path"].to_pylist()], pa.bool_())
    return files.filter(pc.and_(flushes, pc.less(files["modification_time"], older_than_ms)))


def young_ms(now: datetime) -> int:
    """Return the moment (ms since 1970) since which a file must have been written to be young."""
    return int((now - _YOUNG).timestamp() * 1_000)
