"""Rebuilds damaged files of the lake from the raw records that their rows came from.

The log still says which places of the raw topic a file's rows had, and the ranges of its columns. Today's normalizer produces the rows
of these raw records again. Rows that the undamaged files hold, rows that the store has still to read, and repeated events are taken
out; what remains are the missing rows. Their number must equal what the log says, or nothing is changed. One commit takes the damaged
files out and puts the new one in.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final, Protocol

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable, Transaction

from tapeline.records import BARS_TOPIC, NORMALIZED_TOPICS, TICKS_TOPIC, Topic
from tapeline.stores import Totals, with_dates
from tapeline.stores.duplicates import Channel, IdentityRule, in_sql, lacking_counted
from tapeline.stores.lake import count_id, removing, totals_of
from tapeline.stores.lake import files as lake_files
from tapeline.stores.lake.checking import connect, damaged
from tapeline.stores.lake.compacting import Progress, order_of, write_rows
from tapeline.stores.lake.files import ASIDE, COMPACTED, IDS, MADE, RANGED, is_compacted, names_of

_REMEDY: Final = "Run `tapeline lake repair` again."
_IDS: Final = ", ".join(IDS)
#: The queries for DuckDB. Names in braces are this module's own columns and queries; values and files are parameters.
_FILES: Final = "read_parquet(${}, hive_partitioning = false)"
_INSIDE: Final = """(d."min.{0}" IS NULL OR g."{0}" IS NULL OR (g."{0}" >= d."min.{0}" AND g."{0}" <= d."max.{0}"))"""
_MISSING: Final = """
CREATE TEMP TABLE missing AS
SELECT g.* FROM {given} g ANTI JOIN ({others}) USING ({ids}) WHERE EXISTS (SELECT 1 FROM damaged d WHERE {inside})
"""
_OF_CHANNEL: Final = "provider = $provider AND feed = $feed AND channel = $channel"
_DATE: Final = "CAST(make_timestamp_ns(ts_ns) AS DATE) AS date"
_MINE: Final = "CREATE OR REPLACE TEMP TABLE mine AS SELECT {ids}, received_ns, ts_ns, {keyed} FROM missing WHERE {of_channel}"
_HELD: Final = "CREATE OR REPLACE TEMP TABLE held AS SELECT {keyed} FROM {near} WHERE {of_channel}"
#: The store kept the copy that came first within a partition, and between partitions the one received first.
_AGAIN: Final = """
CREATE OR REPLACE TEMP TABLE again AS SELECT {ids} FROM mine ANTI JOIN (
    SELECT * FROM (
        SELECT * FROM mine m WHERE NOT EXISTS (SELECT 1 FROM held h WHERE {same})
        QUALIFY row_number() OVER (PARTITION BY raw_partition, {keys} ORDER BY raw_offset, raw_index) = 1
    ) QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY received_ns, raw_partition) = 1
) USING ({ids})
"""
_DELETE: Final = "DELETE FROM missing WHERE ({ids}) IN (SELECT ({ids}) FROM {again})"
_WRITTEN: Final = "SELECT {names} FROM missing ORDER BY {order}"


class Origin(Protocol):
    """The stream from which the lake's rows came."""

    def again(self, topic: Topic, places: Mapping[int, tuple[int, int]] | None) -> Iterator[pa.RecordBatch]:
        """Yield a topic's records, made from the raw records in these places.

        `places` maps a partition to its first and last offset; None: all raw records there are.
        """

    def waiting(self, topic: Topic, positions: Mapping[int, int]) -> Iterator[pa.RecordBatch]:
        """Yield the records of a topic from these positions on."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of the damaged files of one day of a table."""

    table: str
    day: date
    files: tuple[str, ...]
    rows: int  # rows the log says they held
    found: int  # of these, the rows that could be made again
    lost: int  # rows that were given up
    problem: str = ""  # why nothing was changed; empty if the repair was done


def repair(root: Path, rule: IdentityRule, origin: Origin, progress: Progress, *, drop: bool = False) -> Iterator[Repaired]:
    """Rebuild every damaged file of the lake under `root`, one day of a table after another, and yield each result.

    If the raw records are gone, the files stay in the log and readers fail on them. `drop`: take such files out, and give up the rows
    that are lost. Raises Busy while another process changes the lake's files, Unavailable and NewerData; what was yielded before is
    done.
    """
    with lake_files.changing(root, "tapeline lake repair"):
        for topic in NORMALIZED_TOPICS:
            folder = root / topic.table
            with lake_files.disk_problem(folder, "repaired", _REMEDY):
                table = lake_files.opened(folder)
                if table is None:
                    continue
                removing.sweep(folder, table)
                bad = damaged(folder, lake_files.files_of(table), progress)
            for day in sorted({path.partition("/")[0].removeprefix("date=") for path in bad}):
                with lake_files.disk_problem(folder, "repaired", _REMEDY, duckdb.Error):
                    table = lake_files.opened(folder)
                    assert table is not None, "it was there"
                    yield _Day(folder, topic, table, date.fromisoformat(day), set(bad), rule, origin).repaired(drop)


class _Day:
    """One day of a table, as of one commit: the damaged and the undamaged files, and the store's position in the stream."""

    def __init__(self, folder: Path, topic: Topic, table: DeltaTable, day: date, bad: set[str], rule: IdentityRule, origin: Origin) -> None:
        self._folder, self._topic, self._table, self._day, self._rule, self._origin = folder, topic, table, day, rule, origin
        files = lake_files.files_of(table)
        is_bad = pc.is_in(files["path"], pa.array(sorted(bad), pa.string()))
        of_day = pc.equal(files["day"], str(day))
        self._bad = files.filter(pc.and_(is_bad, of_day))
        self._whole = files.filter(pc.invert(is_bad))
        self._totals: Totals = totals_of(table, topic)
        self._aside = folder / ASIDE

    def repaired(self, drop: bool) -> Repaired:
        names = tuple(self._bad["path"].to_pylist())
        rows = lake_files.total(self._bad, "num_records")
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir()
        try:
            with connect(self._aside / "spilled") as db:
                self._find(db)
                ((rebuilt,),) = db.sql("SELECT count(*) FROM missing").fetchall()
                problem = ""
                if rebuilt > rows:
                    problem = (
                        f"the raw records give {rebuilt:,} rows, but the files held {rows:,}. Tapeline cannot tell which ones they held"
                    )
                elif rebuilt < rows:
                    problem = f"the raw records of {rows - rebuilt:,} rows are gone. Use --drop to give up those rows and keep the rest"
                if problem and not drop:
                    return Repaired(self._topic.table, self._day, names, rows, min(rebuilt, rows), 0, problem)
                rebuilt = rebuilt if rebuilt <= rows else 0
                new = [self._write(db)] if rebuilt else []
            self._swap(new, rows - rebuilt)
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)
        return Repaired(self._topic.table, self._day, names, rows, rebuilt, rows - rebuilt)

    def _swap(self, new: list[Path], lost: int) -> None:
        compacted = all(map(is_compacted, self._bad["path"].to_pylist()))
        added = lake_files.place(self._folder, self._day, new, COMPACTED if compacted else MADE)
        counts = [Transaction(count_id(self._topic, "lost"), self._totals.lost + lost)] if lost else []
        lake_files.commit(self._folder, self._table, self._bad, added, counts, data_change=bool(lost))
        removing.delete_removed(self._folder, self._table, self._day)

    def _write(self, db: duckdb.DuckDBPyConnection) -> Path:
        path = self._aside / "0000.part"
        text = _WRITTEN.format(names=names_of(self._topic), order=order_of(self._topic))
        write_rows(db, text, {}, path)
        return path

    # Finding the missing rows.

    def _find(self, db: duckdb.DuckDBPyConnection) -> None:
        """Create the table `missing` with the missing rows."""
        files = {
            "given": [str(self._aside_file("given", self._origin.again(self._topic, self._places())))],
            "waiting": [str(self._aside_file("waiting", self._origin.waiting(self._topic, self._totals.positions)))],
        }
        if whole := self._paths(self._whole.filter(pc.equal(self._whole["day"], str(self._day)))):
            files["whole"] = whole
        names = [name for name in RANGED if name in self._topic.schema.names and f"min.{name}" in self._bad.schema.names]
        db.register("damaged", self._bad.select([f"{edge}.{name}" for name in names for edge in ("min", "max")]))
        others = " UNION ALL ".join(f"FROM {_FILES.format(name)} SELECT {_IDS}" for name in files if name != "given")
        inside = " AND ".join(_INSIDE.format(name) for name in names)
        db.execute(
            _MISSING.format(given=_FILES.format("given"), others=others, ids=_IDS, inside=inside),
            {name: lake_files.for_duckdb(some) for name, some in files.items()},
        ).fetchall()
        if self._topic in (TICKS_TOPIC, BARS_TOPIC):
            for provider, feed, channel in db.sql("SELECT DISTINCT provider, feed, channel FROM missing").fetchall():
                self._each_once(db, (provider, feed, channel))
                self._each_counted(db, (provider, feed, channel), files["given"])

    def _each_once(self, db: duckdb.DuckDBPyConnection, channel: Channel) -> None:
        """Delete a channel's events that an undamaged file holds, and all but the first copy of each event."""
        identity = self._rule(*channel)
        columns, known = in_sql(identity)
        if not columns:
            return
        keys = [f"k{at}" for at in range(len(columns))]
        keyed = ", ".join(f"{column} AS {key}" for column, key in zip(columns, keys, strict=True))
        of_channel = f"{_OF_CHANNEL} AND {known}"
        values = dict(zip(("provider", "feed", "channel"), channel, strict=True))
        db.execute(_MINE.format(ids=_IDS, keyed=keyed, of_channel=of_channel), values).fetchall()
        ((low, high),) = db.sql("SELECT min(ts_ns), max(ts_ns) FROM mine").fetchall()
        if low is None:
            return
        near = self._near(low - identity.drift_ns, high + identity.drift_ns)
        db.execute("CREATE OR REPLACE TEMP TABLE held AS SELECT * FROM mine LIMIT 0").fetchall()
        if near:
            text = _HELD.format(keyed=keyed, near=_FILES.format("near"), of_channel=of_channel)
            db.execute(text, {"near": lake_files.for_duckdb(near), **values}).fetchall()
        same = " AND ".join(f"h.{key} IS NOT DISTINCT FROM m.{key}" for key in keys)
        db.execute(_AGAIN.format(ids=_IDS, same=same, keys=", ".join(keys))).fetchall()
        db.execute(_DELETE.format(ids=_IDS, again="again")).fetchall()

    def _each_counted(self, db: duckdb.DuckDBPyConnection, channel: Channel, given: Sequence[str]) -> None:
        """Do the same for events without an id in a channel where others have one. `given`: the files with all records that came."""
        identity = self._rule(*channel)
        if not identity.counted:
            return
        values = dict(zip(("provider", "feed", "channel"), channel, strict=True))
        names = ", ".join(
            f'"{name}"' if name != "date" else _DATE for name in dict.fromkeys((*identity.compared, "ts_ns", "received_ns", *IDS))
        )
        text = f"SELECT {names} FROM {{}} WHERE {_OF_CHANNEL}"  # noqa: S608
        came = db.sql(text.format(_FILES.format("given")), params={"given": list(given), **values}).to_arrow_table()
        near = self._near(pc.min(came["ts_ns"]).as_py() - identity.drift_ns, pc.max(came["ts_ns"]).as_py() + identity.drift_ns)
        held = came.slice(0, 0)
        if near:
            held = db.sql(text.format(_FILES.format("near")), params={"near": lake_files.for_duckdb(near), **values}).to_arrow_table()
        rest = came.join(held.select(list(IDS)), list(IDS), join_type="left anti").select(came.schema.names)
        if not rest.num_rows:
            return
        some, others = (
            next(iter(rows.combine_chunks().to_batches()), pa.RecordBatch.from_pylist([], rows.schema)) for rows in (rest, held)
        )
        again = pc.invert(pa.array(lacking_counted(some, identity, others)))
        db.register("copies", pa.table(some.select(list(IDS)).filter(again)))
        db.execute(_DELETE.format(ids=_IDS, again="copies")).fetchall()
        db.unregister("copies")

    def _places(self) -> dict[int, tuple[int, int]] | None:
        """Return, for each partition of the raw topic, the first and last offset that the damaged files may have rows of.

        None: not known.
        """
        names = [f"{edge}.{name}" for name in ("raw_partition", "raw_offset") for edge in ("min", "max")]
        if any(name not in self._bad.schema.names or self._bad[name].null_count for name in names):
            return None  # a compacted file of an earlier version
        places: dict[int, tuple[int, int]] = {}
        for first, last, low, high in zip(*(self._bad[name].to_pylist() for name in names), strict=True):
            for partition in range(first, last + 1):
                least, most = places.get(partition, (low, high))
                places[partition] = min(least, low), max(most, high)
        return places

    def _aside_file(self, name: str, batches: Iterable[pa.RecordBatch]) -> Path:
        """Write those records that belong to the day to a file aside."""
        path = self._aside / f"{name}.part"
        schema = with_dates(pa.RecordBatch.from_pylist([], self._topic.schema)).schema
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in batches:
                dated = with_dates(batch)
                writer.write_batch(dated.filter(pc.equal(dated["date"], self._day)))
        return path

    def _near(self, low_ns: int, high_ns: int) -> list[str]:
        """Return the undamaged files that may hold times within a range."""
        files = self._whole
        if "min.ts_ns" not in files.schema.names:
            return self._paths(files)
        inside = pc.and_(pc.less_equal(files["min.ts_ns"], high_ns), pc.greater_equal(files["max.ts_ns"], low_ns))
        return self._paths(files.filter(pc.fill_null(inside, True)))

    def _paths(self, files: pa.Table) -> list[str]:
        return [str(self._folder / path) for path in files["path"].to_pylist()]
