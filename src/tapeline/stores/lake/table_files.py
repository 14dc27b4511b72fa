"""Files of a table, newest first, with what Delta's log says about their content."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError, TableNotFoundError

from tapeline.errors import DiskProblem
from tapeline.stores.lake.engine import Engine
from tapeline.stores.lake.files import PART, unreadable
from tapeline.stores.selection import Selection

_MOST: Final = (1 << 63) - 1
_LEAST: Final = -(1 << 63)
_NEWEST_FIRST: Final = [("max.ts_ns", "descending"), ("path", "ascending")]


class TableFiles:
    """Files of a table, newest first, with what Delta's log says about their content.

    If the log is silent about a value, it may be anything.
    """

    def __init__(self, folder: Path, actions: pa.Table) -> None:
        self._folder = folder
        self._actions = actions

    @staticmethod
    def listed(folder: Path, engine: Engine) -> TableFiles:
        """Return the files of the table's latest commit."""
        wanted = {
            "path": pa.string(),
            "num_records": pa.int64(),
            **{f"{edge}.ts_ns": pa.int64() for edge in ("min", "max")},
            **{f"{edge}.{name}": pa.string() for name in ("symbol", "provider", "feed", "kind", "interval") for edge in ("min", "max")},
        }
        schema = pa.schema(list(wanted.items()))
        try:
            actions = pa.table(engine.log(folder).get_add_actions(flatten=True))
        except TableNotFoundError:
            return TableFiles(folder, schema.empty_table())
        except (OSError, DeltaError) as error:
            raise unreadable(folder, error) from error
        nothing = pa.nulls(actions.num_rows)
        columns = [(actions[name] if name in actions.schema.names else nothing).cast(kind) for name, kind in wanted.items()]
        known = pa.table(columns, schema=schema)
        return TableFiles(folder, known.sort_by(_NEWEST_FIRST))

    @property
    def count(self) -> int:
        """The number of files."""
        return int(self._actions.num_rows)

    @property
    def paths(self) -> list[str]:
        """The files' paths, newest first, each with the table's folder."""
        return [str(self._folder / path) for path in self._actions["path"].to_pylist()]

    @property
    def rows(self) -> int:
        """The number of rows in all files, by the log."""
        return int(pc.sum(self._actions["num_records"], min_count=0).as_py())

    def rows_at_most(self, selection: Selection) -> int:
        """Return the rows of all row groups that may hold rows of the selection, by the files' footers. Raises DiskProblem."""
        symbols = sorted(selection.symbols)
        rows = 0
        for path in self.paths:
            try:
                footer = pq.read_metadata(path)
            except (OSError, pa.ArrowException) as error:
                raise DiskProblem(
                    f"The lake file {path} cannot be read: {error}. Try again if it was removed meanwhile. "
                    "Run `tapeline lake repair` if it is damaged."
                ) from error
            symbol_at, time_at = (footer.schema.names.index(name) for name in ("symbol", "ts_ns"))
            for number in range(footer.num_row_groups):
                group = footer.row_group(number)
                symbol, time = group.column(symbol_at).statistics, group.column(time_at).statistics
                if symbol is not None and symbol.has_min_max and not _any_between(symbols, symbol.min, symbol.max):
                    continue
                if time is not None and time.has_min_max and (time.max < selection.start_ns or time.min >= selection.end_ns):
                    continue
                rows += group.num_rows
        return rows

    @property
    def oldest_ns(self) -> int:
        """The earliest time in the files (ns, UTC).

        The least int64 if the log does not say it of every file; the greatest int64 if there are no files.
        """
        return self._edge("min", unknown=_LEAST, empty=_MOST)

    @property
    def newest_ns(self) -> int:
        """The latest time in the files (ns, UTC).

        The greatest int64 if the log does not say it of every file; the least int64 if there are no files.
        """
        return self._edge("max", unknown=_MOST, empty=_LEAST)

    @property
    def named(self) -> set[str]:
        """The symbols that the log itself names: the first and the last of each file."""
        return {*self._actions["min.symbol"].to_pylist(), *self._actions["max.symbol"].to_pylist()}

    def renewed(self, now: TableFiles) -> TableFiles | None:
        """Return these files with the missing ones replaced by the files that hold their rows now.

        Return None if no file is missing, or if rows are gone. Rows that the store has written since stay unseen. If they were merged
        with earlier rows into one file, the two cannot be told apart, and the result is None."""
        here, there = self._by_day(), now._by_day()
        gone: set[str] = set()
        instead: set[str] = set()
        for day, files in here.items():
            others = there.get(day, {})
            lost = files.keys() - others.keys()
            new = {path for path in others.keys() - files.keys() if not PurePath(path).name.startswith(PART)} if lost else set[str]()
            if sum(files[path] for path in lost) != sum(others[path] for path in new):
                return None
            gone |= lost
            instead |= new
        if not gone:
            return None
        parts = [
            files._actions.filter(pa.array([(path in chosen) is taken for path in files._actions["path"].to_pylist()], pa.bool_()))
            for files, chosen, taken in ((self, gone, False), (now, instead, True))
        ]
        return TableFiles(self._folder, pa.concat_tables(parts).sort_by(_NEWEST_FIRST))

    def _by_day(self) -> dict[str, dict[str, int]]:
        """Return the files of each day, with their row counts."""
        by_day: dict[str, dict[str, int]] = {}
        for path, rows in zip(self._actions["path"].to_pylist(), self._actions["num_records"].to_pylist(), strict=True):
            by_day.setdefault(_day(path), {})[path] = rows
        return by_day

    def slice(self, first: int, count: int) -> TableFiles:
        """Return at most `count` of the files, from position `first` on. Position 0 is the newest file."""
        return TableFiles(self._folder, self._actions.slice(first, count))

    def between(self, start_ns: int, end_ns: int) -> TableFiles:
        """Return the files that may hold times in [start_ns, end_ns)."""
        return self._where(
            pc.and_(
                pc.fill_null(pc.greater_equal(self._actions["max.ts_ns"], start_ns), True),
                pc.fill_null(pc.less(self._actions["min.ts_ns"], end_ns), True),
            )
        )

    def of_any(self, name: str, values: Sequence[str]) -> TableFiles:
        """Return the files that may hold one of these values in a text column."""
        ordered = sorted(values)  # sorted by code point, which is the order of UTF-8's bytes and so of the log's ranges
        edges = zip(self._actions[f"min.{name}"].to_pylist(), self._actions[f"max.{name}"].to_pylist(), strict=True)
        return self._where(pa.array([_any_between(ordered, low, high) for low, high in edges], pa.bool_()))

    def matching(self, selection: Selection) -> TableFiles:
        """Return the files that may hold rows of a selection."""
        files = self.between(selection.start_ns, selection.end_ns).of_any("symbol", selection.symbols)
        wanted = {"provider": selection.provider, "feed": selection.feed, "kind": selection.kind, "interval": selection.interval}
        for name, value in wanted.items():
            if value is not None:
                files = files.of_any(name, [value])
        return files

    def _where(self, mask: pa.Array | pa.ChunkedArray) -> TableFiles:
        return TableFiles(self._folder, self._actions.filter(mask))

    def _edge(self, edge: str, unknown: int, empty: int) -> int:
        column = self._actions[f"{edge}.ts_ns"]
        if column.null_count:
            return unknown
        return int(pc.min_max(column)[edge].as_py()) if len(column) else empty


def _day(path: str) -> str:
    """Return a file's partition, from its name in the log."""
    return path.partition("/")[0]


def _any_between(ordered: Sequence[str], low: str | None, high: str | None) -> bool:
    at = bisect_left(ordered, low) if low is not None else 0
    return at < len(ordered) and (high is None or ordered[at] <= high)
