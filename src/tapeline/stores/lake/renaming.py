"""Renames a symbol in the lake: the files with rows under the wrong name are replaced, each day of a table in one commit.

An event may exist under both names. Then the row that came first stays, as if both had come under one name. From then on, the other
row counts as a duplicate. Everything else of a row stays. The new files are read back and compared, as when a day is compacted. A
process that dies on the way leaves files that the log does not name; the next change removes them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Transaction

from tapeline.records import BARS_TOPIC, TICKS_TOPIC, Topic
from tapeline.stores.duplicates import IdentityRule, in_sql
from tapeline.stores.lake import count_id, removing, totals_of
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake.checking import connect
from tapeline.stores.lake.compacting import Rows, sorted_copy
from tapeline.stores.lake.damage import damage
from tapeline.stores.lake.files import ASIDE, COMPACTED, IDS, MADE, is_compacted
from tapeline.stores.renaming import NAMING, Progress, Renamed, Renaming

_REMEDY: Final = "Run `tapeline rename` again: it continues where it stopped. If a file is damaged, run `tapeline lake repair`."
#: The most files whose rows one query counts.
_FILES: Final = 2_000
_IDS: Final = ", ".join(IDS)
_MINE: Final = "(provider = $provider AND feed = $feed AND symbol = $old)"
#: The queries for DuckDB. Names in braces are this module's own columns and queries; values and files are parameters.
_READ: Final = "read_parquet(${}, hive_partitioning = false)"
_HOLDING: Final = (
    "SELECT filename, count(*) FROM read_parquet($files, hive_partitioning = false, filename = true) WHERE {mine} GROUP BY filename"
)
_NEAR: Final = "read_parquet($near, hive_partitioning = false, filename = true)"
#: Events that exist under both names. If their rows are on different days, the one under the new name stays, because only one day is
#: changed at a time.
_BOTH: Final = """
CREATE OR REPLACE TEMP TABLE twice AS
SELECT {old_ids}, {new_ids}, n.filename,
    n.ts_ns // 86400000000000 != o.ts_ns // 86400000000000 OR (n.received_ns, {new}) <= (o.received_ns, {old}) AS stays
FROM (SELECT {ids}, received_ns, ts_ns, {keyed} FROM {files} WHERE {mine} AND {known}) AS o
JOIN (SELECT {ids}, received_ns, ts_ns, filename, {keyed} FROM {near}
    WHERE provider = $provider AND feed = $feed AND symbol = $new AND {known}) AS n ON {same}
"""
_AGAIN: Final = "CREATE TEMP TABLE again (symbol VARCHAR, raw_partition INTEGER, raw_offset BIGINT, raw_index INTEGER, filename VARCHAR)"
_EARLIER: Final = "INSERT INTO again SELECT DISTINCT $old, {ids}, NULL FROM twice WHERE stays"
_LATER: Final = "INSERT INTO again SELECT DISTINCT $new, {ids}, filename FROM twice WHERE NOT stays"
#: A notice may have no symbol. The comparison is then null, which counts as not being a copy.
_RENAMED: Final = """
SELECT * REPLACE (CASE WHEN {mine} THEN $new ELSE symbol END AS symbol) FROM {files}
WHERE coalesce((symbol, {ids}) NOT IN (SELECT (symbol, {ids}) FROM {again}), true)
"""


class LakeRenaming:
    """The lake under `root`. It is opened at the first call."""

    def __init__(self, root: Path, rule: IdentityRule) -> None:
        self._root, self._rule = root, rule

    @property
    def name(self) -> str:
        return "lake"

    def positions(self, topic: Topic) -> Mapping[int, int]:
        folder = self._root / topic.table
        with lake_files.disk_problem(folder, "read", _REMEDY):
            table = lake_files.opened(folder)
            return totals_of(table, topic).positions if table is not None else {}

    def rename(self, renaming: Renaming, progress: Progress, *, dry_run: bool) -> Iterator[Renamed]:
        """Rename as `Renames.rename` says. Raises CompactionFailed too, if the new files of a day do not hold the same rows."""
        if not self._root.exists():
            return
        with nullcontext() if dry_run else lake_files.changing(self._root, "tapeline rename"):
            for topic in NAMING:
                yield from self._of_table(topic, renaming, progress, dry_run)

    def _of_table(self, topic: Topic, renaming: Renaming, progress: Progress, dry_run: bool) -> Iterator[Renamed]:
        folder = self._root / topic.table
        with lake_files.disk_problem(folder, "changed", _REMEDY, duckdb.Error):
            table = lake_files.opened(folder)
            if table is None:
                return
            if not dry_run:
                removing.sweep(folder, table)
            days = _holding(folder, table, renaming)
        total, done = sum(sum(files.values()) for files in days.values()), 0
        for day, files in sorted(days.items()):
            progress(f"{topic.table} in the lake", done, total)
            with lake_files.disk_problem(folder, "changed", _REMEDY, duckdb.Error):
                table = lake_files.opened(folder)
                assert table is not None, "it was there"
                renamed = _Day(folder, topic, table, day, files, self._rule, renaming).rename(dry_run=dry_run)
            done += sum(files.values())
            progress(f"{topic.table} in the lake", done, total)
            yield renamed


def _holding(folder: Path, table: DeltaTable, renaming: Renaming) -> dict[date, dict[str, int]]:
    """Return, for each day, the files that hold rows under the old name, with the number of those rows."""
    candidates = _between(lake_files.files_of(table), "symbol", renaming.old, renaming.old)["path"].to_pylist()
    holding: dict[date, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="tapeline-rename-") as spilled, connect(Path(spilled)) as db:
        for at in range(0, len(candidates), _FILES):
            some = {str(folder / path): path for path in candidates[at : at + _FILES]}
            values = {"files": lake_files.for_duckdb(some), "provider": renaming.provider, "feed": renaming.feed, "old": renaming.old}
            for name, rows in db.execute(_HOLDING.format(mine=_MINE), values).fetchall():
                day = date.fromisoformat(some[name].partition("/")[0].removeprefix("date="))
                holding.setdefault(day, {})[some[name]] = rows
    return holding


def _between(files: pa.Table, name: str, low: object, high: object) -> pa.Table:
    """Return the files that may hold values of a column from `low` to `high`, by what the log says."""
    if f"min.{name}" not in files.schema.names:
        return files
    inside = pc.and_(pc.less_equal(files[f"min.{name}"], high), pc.greater_equal(files[f"max.{name}"], low))
    return files.filter(pc.fill_null(inside, True))


def _both(columns: Sequence[str], known: str) -> str:
    """Return the query for events that exist under both names: rows that match `known` and are equal in the given columns."""
    keys = [f"k{at}" for at in range(len(columns))]
    return _BOTH.format(
        old_ids=", ".join(f"o.{name} AS old_{name}" for name in IDS),
        new_ids=", ".join(f"n.{name}" for name in IDS),
        old=", ".join(f"o.{name}" for name in IDS),
        new=", ".join(f"n.{name}" for name in IDS),
        ids=_IDS,
        keyed=", ".join(f"{column} AS {key}" for column, key in zip(columns, keys, strict=True)),
        files=_READ.format("files"),
        near=_NEAR,
        mine=_MINE,
        known=known,
        same=" AND ".join(f"o.{key} IS NOT DISTINCT FROM n.{key}" for key in keys),
    )


@dataclass(frozen=True, slots=True)
class _Again:
    """The rows of a day to leave out, because their event exists under the other name."""

    path: Path  # a file with these rows' symbols and ids
    old: int  # number of rows under the old name
    new: int  # number of rows under the new name
    files: list[str]  # the files that hold the rows under the new name


@dataclass(frozen=True, slots=True)
class _Day:
    """One day of one table, as of one commit."""

    folder: Path
    topic: Topic
    table: DeltaTable
    day: date
    holding: Mapping[str, int]  # files with rows under the old name, and the number of those rows
    rule: IdentityRule
    renaming: Renaming

    def rename(self, *, dry_run: bool) -> Renamed:
        rows = sum(self.holding.values())
        with self._aside(dry_run) as aside:
            again = self._again(aside)
            if not dry_run:
                self._swap(self._files(again.files), again, aside)
        return Renamed("lake", self.topic.table, self.day, rows - again.old, again.old + again.new)

    @contextmanager
    def _aside(self, dry_run: bool) -> Iterator[Path]:
        """Yield a folder for files that do not have their final name yet."""
        with ExitStack() as cleared:
            if dry_run:
                yield Path(cleared.enter_context(tempfile.TemporaryDirectory(prefix="tapeline-rename-")))
                return
            aside = self.folder / ASIDE
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            cleared.callback(shutil.rmtree, aside, ignore_errors=True)
            yield aside

    def _files(self, others: list[str]) -> pa.Table:
        """Return the files to replace.

        In a compacted day these are all files between the two names, so that no symbol ends up in two files.
        """
        files = lake_files.files_of(self.table, self.day)
        if all(map(is_compacted, files["path"].to_pylist())):
            return _between(files, "symbol", *sorted((self.renaming.old, self.renaming.new)))
        return files.filter(pc.is_in(files["path"], pa.array([*self.holding, *others], pa.string())))

    def _swap(self, old: pa.Table, again: _Again, aside: Path) -> None:
        # Look for damage first: the copy gets a checksum of its own, which would hide the damage.
        for path, held, rows in zip(*(old[name].to_pylist() for name in ("path", "size_bytes", "num_records")), strict=True):
            if (wrong := damage(self.folder, path, held, rows)) is not None:
                raise OSError(f"{self.folder / path} {wrong}")
        paths = old["path"].to_pylist()
        text = _RENAMED.format(mine=_MINE, files=_READ.format("files"), again=_READ.format("again"), ids=_IDS)
        values = self._values(paths) | {"again": lake_files.for_duckdb([again.path])}
        new = sorted_copy(self.folder, self.topic, Rows(values, text), aside, lambda *_: None)
        compacted = all(map(is_compacted, paths))
        added = lake_files.place(self.folder, self.day, new, COMPACTED if compacted else MADE)
        totals, duplicates = totals_of(self.table, self.topic), again.old + again.new
        now = {"rows": totals.rows - duplicates, "duplicates": totals.duplicates + duplicates} if duplicates else {}
        counts = [Transaction(count_id(self.topic, name), count) for name, count in now.items()]
        lake_files.commit(self.folder, self.table, old, added, counts, data_change=True)
        removing.delete_removed(self.folder, self.table, self.day)

    def _again(self, aside: Path) -> _Again:
        """Find the rows to leave out."""
        path = aside / "again.part"
        with connect(aside / "spilled") as db:
            db.execute(_AGAIN).fetchall()
            for known, columns, drift_ns, values in self._identities(db):
                if near := self._near(drift_ns):
                    text = _both(columns, known)
                    db.execute(text, self._values(list(self.holding)) | {"near": lake_files.for_duckdb(near), **values}).fetchall()
                    old_ids = ", ".join(f"old_{name}" for name in IDS)
                    db.execute(_EARLIER.format(ids=old_ids), {"old": self.renaming.old}).fetchall()
                    db.execute(_LATER.format(ids=_IDS), {"new": self.renaming.new}).fetchall()
            db.sql("SELECT * FROM again").write_parquet(str(path))
            ((old, new),) = db.sql("SELECT count(*) FILTER (filename IS NULL), count(filename) FROM again").fetchall()
            names = db.sql("SELECT DISTINCT filename FROM again WHERE filename IS NOT NULL").fetchall()
        return _Again(path, int(old), int(new), [str(Path(name).relative_to(self.folder)) for (name,) in names])

    def _identities(self, db: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, list[str], int, dict[str, str]]]:
        """Yield, for each channel, what makes two of the rows' events the same.

        An item holds a condition for the rows, the equal columns, the largest distance in ns, and parameters.
        """
        if self.topic not in (TICKS_TOPIC, BARS_TOPIC):
            yield "true", list(IDS), 0, {}
            return
        text = f"SELECT DISTINCT channel FROM {_READ.format('files')} WHERE {_MINE} ORDER BY channel"  # noqa: S608 our own text
        values = self._values(list(self.holding))
        del values["new"]
        for (channel,) in db.execute(text, values).fetchall():
            identity = self.rule(self.renaming.provider, self.renaming.feed, channel)
            columns, known = in_sql(identity)
            if columns := [column for column in columns if column != '"symbol"']:
                yield f"channel = $channel AND {known}", columns, identity.drift_ns, {"channel": channel}

    def _near(self, drift_ns: int) -> list[str]:
        """Return the files, of any day, that may hold the same events under the new name."""
        files = lake_files.files_of(self.table)
        mine = files.filter(pc.is_in(files["path"], pa.array(list(self.holding), pa.string())))
        if drift_ns and "min.ts_ns" in files.schema.names and not mine["min.ts_ns"].null_count:
            files = _between(files, "ts_ns", pc.min(mine["min.ts_ns"]).as_py() - drift_ns, pc.max(mine["max.ts_ns"]).as_py() + drift_ns)
        elif not drift_ns:
            files = files.filter(pc.equal(files["day"], str(self.day)))
        return [str(self.folder / path) for path in _between(files, "symbol", self.renaming.new, self.renaming.new)["path"].to_pylist()]

    def _values(self, paths: list[str]) -> dict[str, str | list[str]]:
        """Return the parameters of every query."""
        files = lake_files.for_duckdb([self.folder / path for path in paths])
        one = self.renaming
        return {"files": files, "provider": one.provider, "feed": one.feed, "old": one.old, "new": one.new}
