"""Checks that the lake holds what its log says.

A file is compared with its size, the checksum in its name and its footer. Its rows are compared with the ranges in the log and with
the day of its folder. Within a day, no place of the raw topic may occur twice. No event may occur twice either, by the rule with which
the store itself keeps duplicates out. The number of all rows must equal what the store has counted, minus the rows that were removed
or lost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.records import BARS_TOPIC, INSTRUMENTS_TABLE, NORMALIZED_TOPICS, TICKS_TOPIC, Topic
from tapeline.stores.duplicates import IdentityRule, in_sql
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake import removing, totals_of
from tapeline.stores.lake.compacting import MEMORY, Progress
from tapeline.stores.lake.damage import damage
from tapeline.stores.lake.engine import NO_DOWNLOADS
from tapeline.stores.lake.files import IDS, RANGED

_REMEDY: Final = "Run `tapeline lake check` again."
#: The most files that one query reads together.
_FILES: Final = 2_000
#: At most this many duplicates of a day and a channel are listed.
_SHOWN: Final = 10

#: Versions of an instrument that had not ended when the next one began.
_TWO_VERSIONS: Final = """
SELECT provider, market, native, valid_from_ns FROM {rows}
QUALIFY lead(valid_from_ns) OVER (PARTITION BY provider, market, native ORDER BY valid_from_ns) < coalesce(valid_to_ns, 9223372036854775807)
ORDER BY ALL LIMIT 10
"""

Problem = Literal["damaged", "statistics", "date", "position twice", "event twice", "version twice", "unnamed", "totals"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    table: str
    problem: Problem
    detail: str
    day: date | None = None
    file: str | None = None  # path within the table's folder


@dataclass(frozen=True, slots=True)
class Checked:
    """What one table holds according to its log, and what is wrong with it."""

    table: str
    files: int
    rows: int
    bytes: int
    removed: int  # rows that retention has removed since the table was made
    lost: int  # rows that were given up with a damaged file
    findings: list[Finding] = field(default_factory=list)


def check(root: Path, rule: IdentityRule, day: date | None, progress: Progress) -> list[Checked]:
    """Check one UTC day of every table of the lake under `root`, or all days. Nothing is changed.

    Raises Busy while another process replaces or removes files, DiskProblem if a log cannot be read, and NewerData.
    """
    results = []
    with lake_files.changing(root, "tapeline lake check"):
        for topic in NORMALIZED_TOPICS:
            folder = root / topic.table
            with lake_files.disk_problem(folder, "checked", _REMEDY, duckdb.Error):
                checked = _check(folder, topic, rule, day, progress)
            if checked is not None:
                results.append(checked)
        folder = root / INSTRUMENTS_TABLE
        with lake_files.disk_problem(folder, "checked", _REMEDY, duckdb.Error):
            instruments = _check_instruments(folder, day, progress)
    return [*results, instruments] if instruments is not None else results


def damaged(folder: Path, files: pa.Table, progress: Progress) -> dict[str, str]:
    """Return the files of a table that do not hold what was written, as a mapping of path to problem."""
    problems: dict[str, str] = {}
    rows, done = lake_files.total(files, "num_records"), 0
    for path, size, held in zip(*(files[name].to_pylist() for name in ("path", "size_bytes", "num_records")), strict=True):
        progress(folder.name, done, rows)
        if (wrong := damage(folder, path, size, held)) is not None:
            problems[path] = wrong
        done += held
    progress(folder.name, rows, rows)
    return problems


def _check(folder: Path, topic: Topic, rule: IdentityRule, day: date | None, progress: Progress) -> Checked | None:
    table = lake_files.opened(folder)
    if table is None:
        return _without_log(folder, topic)
    files, totals = lake_files.files_of(table, day), totals_of(table, topic)
    rows = lake_files.total(files, "num_records")
    checked = Checked(topic.table, files.num_rows, rows, lake_files.total(files, "size_bytes"), totals.removed, totals.lost)
    # This comes before anything slow: files that a store writes meanwhile are too young to count, and the log read earlier does not name
    # them.
    left = removing.unnamed(folder, {Path(path).name for path in files["path"].to_pylist()}, day)
    bad = damaged(folder, files, progress)
    for path, wrong in bad.items():
        checked.findings.append(Finding(topic.table, "damaged", wrong, _day(path), path))
    whole = files.filter(pc.invert(pc.is_in(files["path"], pa.array(list(bad), pa.string()))))
    for each in sorted(whole["day"].unique().to_pylist()):
        some = whole.filter(pc.equal(whole["day"], each))
        with tempfile.TemporaryDirectory(prefix="tapeline-check-") as spilled, connect(Path(spilled)) as db:
            checked.findings.extend(_of_day(db, folder, topic, rule, date.fromisoformat(each), some))
    text = "is not in the log: programs that read the folder see it, programs that read the log do not"
    for path in (str(one.relative_to(folder)) for one in left):
        checked.findings.append(Finding(topic.table, "unnamed", text, _day(path), path))
    kept = totals.rows - totals.removed - totals.lost
    if day is None and rows != kept:
        text = f"the files in the log hold {rows:,} rows, but the store counted {kept:,} ({totals.rows:,} kept, {totals.removed:,} removed)"
        checked.findings.append(Finding(topic.table, "totals", text))
    return checked


def _check_instruments(folder: Path, day: date | None, progress: Progress) -> Checked | None:
    """Check the files of the table of instruments, and that each name has one version at a time."""
    table = lake_files.opened(folder)
    if table is None:
        return None
    files, name = lake_files.files_of(table, day), folder.name
    checked = Checked(name, files.num_rows, lake_files.total(files, "num_records"), lake_files.total(files, "size_bytes"), 0, 0)
    bad = damaged(folder, files, progress)
    for path, wrong in bad.items():
        text = f"{wrong}. No raw record can rebuild it: restore the file from a backup"
        checked.findings.append(Finding(name, "damaged", text, _day(path), path))
    whole = [str(folder / path) for path in files["path"].to_pylist() if path not in bad]
    if whole:
        with tempfile.TemporaryDirectory(prefix="tapeline-check-") as spilled, connect(Path(spilled)) as db:
            for provider, market, native, from_ns in _query(db, _TWO_VERSIONS, whole):
                text = f"{native} of {provider} {market} has another version before the one from {from_ns} ends"
                checked.findings.append(Finding(name, "version twice", text, day))
    return checked


def _without_log(folder: Path, topic: Topic) -> Checked | None:
    """Return the result for a table without a log: None, unless files lie in its folder."""
    left = list(folder.glob("date=*/*.parquet"))
    if not left:
        return None
    size = sum(path.stat().st_size for path in left)
    text = (
        f"has {len(left):,} files, but the log (_delta_log) that names them is gone, so readers see none of them. Restore the log from a "
        "backup. Or stop the lake's store and move the folder away: the store then writes again what the stream still has"
    )
    return Checked(topic.table, 0, 0, size, 0, 0, [Finding(topic.table, "unnamed", text)])


def connect(spilled: Path) -> duckdb.DuckDBPyConnection:
    """Return DuckDB with bounded memory. What does not fit is written to the folder."""
    return duckdb.connect(config=NO_DOWNLOADS | {"temp_directory": str(spilled), "memory_limit": MEMORY})


def _of_day(db: duckdb.DuckDBPyConnection, folder: Path, topic: Topic, rule: IdentityRule, day: date, files: pa.Table) -> Iterator[Finding]:
    for at in range(0, files.num_rows, _FILES):
        yield from _ranges(db, folder, topic, day, files.slice(at, _FILES))
    paths = [str(folder / path) for path in files["path"].to_pylist()]
    ids = ", ".join(IDS)
    again = f"SELECT {ids}, count(*) AS copies FROM {{rows}} GROUP BY {ids} HAVING copies > 1 ORDER BY {ids} LIMIT {_SHOWN}"  # noqa: S608
    for row in _query(db, again, paths):
        text = f"{row[-1]} rows have the raw position {'-'.join(map(str, row[:-1]))}"
        yield Finding(topic.table, "position twice", text, day)
    if topic not in (TICKS_TOPIC, BARS_TOPIC):
        return
    for provider, feed, channel in _query(db, "SELECT DISTINCT provider, feed, channel FROM {rows} ORDER BY ALL", paths):
        columns, known = in_sql(rule(provider, feed, channel))
        if not columns:
            continue
        mine = f"provider = $provider AND feed = $feed AND channel = $channel AND {known}"
        again = f"SELECT any_value(symbol), min(ts_ns), count(*) AS copies FROM {{rows}} WHERE {mine} GROUP BY {', '.join(columns)}"  # noqa: S608
        again += f" HAVING copies > 1 ORDER BY ALL LIMIT {_SHOWN}"
        for symbol, ts_ns, copies in _query(db, again, paths, provider=provider, feed=feed, channel=channel):
            yield Finding(
                topic.table, "event twice", f"{copies} rows hold the same event of {provider} {feed} {channel}: {symbol} at {ts_ns}", day
            )


def _ranges(db: duckdb.DuckDBPyConnection, folder: Path, topic: Topic, day: date, files: pa.Table) -> Iterator[Finding]:
    """Yield a finding for each file whose rows differ from what the log or the folder's name says."""
    names = [name for name in RANGED if name in topic.schema.names]
    edges = ", ".join(f'min("{name}"), max("{name}")' for name in names)
    days = f"{'ts_ns' if 'ts_ns' in topic.schema.names else 'received_ns'} // 86400000000000"
    text = f"SELECT filename, count(*), min({days}), max({days}), {edges} FROM {{rows}} GROUP BY filename"  # noqa: S608
    by_path = {str(folder / row["path"]): row for row in files.to_pylist()}
    number = (day - date(1970, 1, 1)).days
    for name, rows, first, last, *ranges in _query(db, text, list(by_path)):
        entry = by_path[name]
        if first != number or last != number:
            yield Finding(topic.table, "date", f"holds rows of days other than {day}", day, entry["path"])
        if rows != entry["num_records"]:
            yield Finding(topic.table, "statistics", f"holds {rows:,} rows, but the log says {entry['num_records']:,}", day, entry["path"])
        for at, column in enumerate(names):
            for edge, value in (("min", ranges[2 * at]), ("max", ranges[2 * at + 1])):
                logged = entry.get(f"{edge}.{column}")
                if logged is not None and logged != value:
                    text = f"{edge} of {column} is {value!r}, but the log says {logged!r}"
                    yield Finding(topic.table, "statistics", text, day, entry["path"])


def _query(db: duckdb.DuckDBPyConnection, text: str, files: Sequence[str], **values: str) -> list[tuple[Any, ...]]:
    """Run `text`, with {rows} replaced by the rows of the files. $provider and so on are parameters."""
    rows = "read_parquet($files, hive_partitioning = false, filename = true)"
    result: list[tuple[Any, ...]] = db.sql(text.format(rows=rows), params={"files": lake_files.for_duckdb(files), **values}).fetchall()
    return result


def _day(path: str) -> date:
    return date.fromisoformat(path.partition("/")[0].removeprefix("date="))
