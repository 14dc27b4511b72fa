"""Reads the lake for programs: only the files that can match by the statistics in Delta's log, a bounded number of rows at a time."""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Final, Self, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from tapeline.errors import DiskTrouble
from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, NS_PER_S, TICKS_TOPIC, Topic
from tapeline.stores.lake.files import PART, check_format, checksum, for_duckdb, named_checksum, table_at, unreadable
from tapeline.stores.selection import ORDER, Selection, alike, amended_by, notices_about

#: Of a connection: what DuckDB is asked for here is all built in.
NO_DOWNLOADS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
#: So many rows are sorted at once: what a read needs of memory, whatever its range.
_WINDOW_ROWS: Final = 500_000
#: Files of so few rows are sorted at once without counting first how many of the rows are wanted.
_UNCOUNTED_ROWS: Final = 1_000_000
#: Of so few files their footers are asked how many rows there can be at most, which costs less than counting.
_FEW_FILES: Final = 8
_BATCH_ROWS: Final = 65_536
#: Into how many parts of equal length a range is counted.
_PARTS: Final = 1_024
#: How far back the last tick is looked for first, and how many times as far after each time that it was not there.
_FIRST_LOOK_NS: Final = 60 * NS_PER_S
_LOOK_GROWTH: Final = 16
#: How many of the newest files are asked for symbols that look like an unknown one.
_LIKENESS_FILES: Final = 20
_LEAST: Final = -(1 << 63)
_MOST: Final = (1 << 63) - 1

_NEWEST_FIRST: Final = [("max.ts_ns", "descending"), ("path", "ascending")]

_IDENTITY: Final = 'provider, feed, symbol, "interval", ts_ns'
_REVISION: Final = "received_ns DESC, raw_partition DESC, raw_offset DESC, raw_index DESC"


_Found = TypeVar("_Found")
#: The value of a parameter of a query.
Value = str | int | list[str]


class LakeSource:
    """The lake under `root` as it was when each table was first asked for: what is written meanwhile is not seen, by any read.

    A day that is sealed meanwhile has other files with the same rows: reads go on in those where they were.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tables: dict[str, _Files] = {}
        self._engine = _Engine()
        self._verify = False
        self._whole: set[str] = set()

    @property
    def place(self) -> str:
        return f"lake at {self._root}"

    def now(self) -> Self:
        again = type(self)(self._root)
        again._engine, again._verify, again._whole = self._engine, self._verify, self._whole
        return again

    def verified(self) -> Self:
        """Each file is read once more, whole, before its rows are, and held against the checksum in its name. Raises DiskTrouble then."""
        again = self.now()
        again._verify = True
        return again

    def ticks(self, selection: Selection) -> pa.RecordBatchReader:
        return self._reader(TICKS_TOPIC, selection, "")

    def bars(self, selection: Selection) -> pa.RecordBatchReader:
        return self._reader(BARS_TOPIC, selection, f"QUALIFY row_number() OVER (PARTITION BY {_IDENTITY} ORDER BY {_REVISION}) = 1")

    def last(self, selection: Selection) -> pa.Table:
        return self._answer(TICKS_TOPIC, lambda: self._last(selection))

    def _last(self, selection: Selection) -> pa.Table:
        inner = tuple(dict.fromkeys((*selection.columns, *ORDER)))
        found = _schema(TICKS_TOPIC, inner).empty_table()
        rest, length_ns = selection, _FIRST_LOOK_NS
        order = ", ".join(f"{name} DESC" for name in ORDER if name != "symbol")
        # From the end backwards, each part longer than the one before: what it holds of a symbol is later than all that is left.
        while rest.symbols and (files := self._files(TICKS_TOPIC).matching(rest)).count:
            end_ns = min(rest.end_ns, files.newest_ns + 1)
            part = replace(rest, start_ns=max(rest.start_ns, end_ns - length_ns), end_ns=end_ns)
            text, values = _select(inner, part, files.matching(part).paths)
            text += f" QUALIFY row_number() OVER (PARTITION BY symbol ORDER BY {order}) = 1"
            found = pa.concat_tables([found, pa.Table.from_batches(self._run(text, values, found.schema), found.schema)])
            if part.start_ns == rest.start_ns:
                break
            settled = set(found["symbol"].to_pylist())
            missing = tuple(symbol for symbol in rest.symbols if symbol not in settled)
            rest, length_ns = replace(rest, symbols=missing, end_ns=part.start_ns), length_ns * _LOOK_GROWTH
        return found.select(list(selection.columns))

    def amended(self, selection: Selection) -> pa.Table:
        return self._answer(NOTICES_TOPIC, lambda: self._amended(notices_about(selection)))

    def _amended(self, notices: Selection) -> pa.Table:
        files = self._files(NOTICES_TOPIC).matching(notices)
        schema = _schema(NOTICES_TOPIC, notices.columns)
        found = self._run(*_select(notices.columns, notices, files.paths), schema) if files.count else ()
        return amended_by(pa.Table.from_batches(found, schema))

    def newest_ns(self) -> int | None:
        return self._answer(TICKS_TOPIC, self._newest_ns)

    def _newest_ns(self) -> int | None:
        files = self._files(TICKS_TOPIC)
        if not files.count or files.newest_ns < _MOST:
            return files.newest_ns if files.count else None
        text = "SELECT max(ts_ns) AS ts_ns FROM read_parquet($files, hive_partitioning = false)"
        (newest,) = [batch["ts_ns"][0].as_py() for batch in self._run(text, {"files": files.paths}, pa.schema([("ts_ns", pa.int64())]))]
        return int(newest) if newest is not None else None

    def unknown(self, topic: Topic, symbols: tuple[str, ...]) -> Mapping[str, list[str]]:
        return self._answer(topic, lambda: self._unknown(topic, symbols))

    def _unknown(self, topic: Topic, symbols: tuple[str, ...]) -> Mapping[str, list[str]]:
        files = self._files(topic)
        # The first and the last symbol of each file are in the log.
        missing = sorted(set(symbols) - files.named)
        at, step = 0, 1
        candidates = files.of_any("symbol", missing)
        while at < candidates.count and missing:
            found = self._symbols(topic, candidates.slice(at, step), missing)
            missing = [symbol for symbol in missing if symbol not in found]
            at, step = at + step, step * 4
        if not missing:
            return {}
        known = self._symbols(topic, files.slice(0, _LIKENESS_FILES), None)
        return {symbol: alike(symbol, known) for symbol in missing}

    def _symbols(self, topic: Topic, files: _Files, among: Sequence[str] | None) -> list[str]:
        """The symbols in some files, of those asked for; None: all."""
        names = {f"symbol{at}": symbol for at, symbol in enumerate(among or ())}
        condition = f"WHERE symbol IN ({', '.join(f'${name}' for name in names)})" if names else ""
        # One symbol is there or not: the first row tells.
        one = among is not None and len(among) == 1
        condition, distinct = (f"{condition} LIMIT 1", "") if one else (condition, "DISTINCT")
        text = f"SELECT {distinct} symbol FROM read_parquet($files, hive_partitioning = false) {condition}"  # noqa: S608 no text of a user's
        values: dict[str, Value] = {"files": files.paths, **names}
        batches = self._run(text, values, _schema(topic, ("symbol",))) if files.count else ()
        return [symbol for batch in batches for symbol in batch["symbol"].to_pylist()]

    def _answer(self, topic: Topic, ask: Callable[[], _Found]) -> _Found:
        try:
            return ask()
        except DiskTrouble:
            if not self._renewed(topic):
                raise
            return ask()

    def _renewed(self, topic: Topic) -> bool:
        """Whether files that could not be read were replaced by others with the same rows, which are read from now on."""
        files = self._files(topic).renewed(_Files.listed(self._root / topic.table, self._engine))
        if files is not None:
            self._tables[topic.table] = files
        return files is not None

    def _reader(self, topic: Topic, selection: Selection, qualify: str) -> pa.RecordBatchReader:
        self._files(topic)
        schema = _schema(topic, selection.columns)
        return pa.RecordBatchReader.from_batches(schema, self._batches(topic, selection, qualify, schema))

    def _batches(self, topic: Topic, selection: Selection, qualify: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows in their order, each once, also where files are replaced on the way."""
        given = 0
        while True:
            skip = given  # the order is total, so the rows that were given are the first ones again
            try:
                for batch in self._ordered(self._files(topic).matching(selection), selection, qualify, schema):
                    fresh = batch.slice(min(skip, batch.num_rows))
                    skip -= batch.num_rows - fresh.num_rows
                    given += fresh.num_rows
                    if fresh.num_rows:
                        yield fresh
                return
            except DiskTrouble:
                if not self._renewed(topic):
                    raise

    def _ordered(self, files: _Files, selection: Selection, qualify: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """One window of time after the other: their rows joined are in order, for the time orders first."""
        for start_ns, end_ns in self._windows(files, selection):
            window = replace(selection, start_ns=start_ns, end_ns=end_ns)
            some = files.matching(window)
            if some.count:
                text, values = _select(selection.columns, window, some.paths)
                yield from self._run(f"{text} {qualify} ORDER BY {', '.join(ORDER)}", values, schema)

    def _hold_against_checksums(self, paths: Sequence[str]) -> None:
        for path in paths if self._verify else ():
            expected = named_checksum(path)
            if path in self._whole or expected is None:
                continue
            try:
                found = checksum(Path(path))
            except OSError as error:
                raise DiskTrouble(f"The lake's file {path} cannot be read: {error}. Ask again if it was removed meanwhile.") from error
            if found != expected:
                raise DiskTrouble(
                    f"The lake's file {path} has the checksum {found:08x} where its name says {expected:08x}: bytes were changed. Nothing "
                    "of it was read. `tapeline lake repair` makes it again."
                )
            self._whole.add(path)

    def _windows(self, files: _Files, selection: Selection) -> Iterator[tuple[int, int]]:
        """Parts of the range with about as many rows as may be sorted at once, or a single nanosecond."""
        start_ns, end_ns = max(selection.start_ns, files.oldest_ns), min(selection.end_ns, files.newest_ns + 1)
        if start_ns >= end_ns:
            return
        if files.rows <= _UNCOUNTED_ROWS or (files.count <= _FEW_FILES and files.rows_at_most(selection) <= _UNCOUNTED_ROWS):
            yield start_ns, end_ns
            return
        width = -(-(end_ns - start_ns) // _PARTS)
        text, values = _select((), replace(selection, start_ns=start_ns, end_ns=end_ns), files.paths)
        text = f"SELECT (ts_ns - $origin) // $width AS part, count(*) AS rows FROM ({text}) GROUP BY part ORDER BY part"  # noqa: S608
        values |= {"origin": start_ns, "width": width}
        since, rows = start_ns, 0
        parts = pa.schema([("part", pa.int64()), ("rows", pa.int64())])
        for part, count in [tuple(row.values()) for batch in self._run(text, values, parts) for row in batch.to_pylist()]:
            begin, end = start_ns + part * width, min(start_ns + (part + 1) * width, end_ns)
            if rows and rows + count > _WINDOW_ROWS:
                yield since, begin
                since, rows = begin, 0
            if count > _WINDOW_ROWS and width > 1:
                yield from self._windows(files.between(begin, end), replace(selection, start_ns=begin, end_ns=end))
                since = end
            else:
                rows += count
        if rows:
            yield since, end_ns

    def _run(self, text: str, values: Mapping[str, Value], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The answer of a query of the files that `values` names."""
        files = values["files"]
        assert isinstance(files, list), "which files a query reads is told as `files`"
        self._hold_against_checksums(files)
        try:
            # Of its own, for several readers of one source may be open; and held, for it closes when nothing does.
            cursor = self._engine.connection.cursor()
            found = cursor.sql(text, params={**values, "files": for_duckdb(files)})
            for batch in pa.RecordBatchReader.from_stream(found):
                whole = pa.record_batch([batch[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
                yield from (whole.slice(at, _BATCH_ROWS) for at in range(0, whole.num_rows, _BATCH_ROWS))
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise DiskTrouble(
                f"The lake at {self._root} cannot be read: {error}. Ask again if a file was removed meanwhile; "
                "`tapeline lake repair` makes one that is damaged again."
            ) from error

    def _files(self, topic: Topic) -> _Files:
        if topic.table not in self._tables:
            self._engine.start()
            self._tables[topic.table] = _Files.listed(self._root / topic.table, self._engine)
        return self._tables[topic.table]


class _Engine:
    """What was dear to open, and serves every answer of a source: DuckDB, and the tables' logs as far as they have been read."""

    def __init__(self) -> None:
        self._starting: Future[duckdb.DuckDBPyConnection] | None = None
        self._logs: dict[Path, DeltaTable] = {}

    def start(self) -> None:
        """Have DuckDB start, which takes as long as reading a log does, beside the caller."""
        if self._starting is None:
            starter = ThreadPoolExecutor(1, "start DuckDB")
            self._starting = starter.submit(_connect)
            starter.shutdown(wait=False)

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        self.start()
        assert self._starting is not None
        return self._starting.result()

    def log(self, folder: Path) -> DeltaTable:
        """A table's log as it is now. Raises what Delta does."""
        known = self._logs.get(folder)
        if known is not None:
            known.update_incremental()
            return known
        table = table_at(folder)
        check_format(table, folder)
        self._logs[folder] = table
        return table


def _connect() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config=NO_DOWNLOADS | {"temp_directory": tempfile.gettempdir()})
    connection.execute("SET parquet_metadata_cache = true")  # a file never changes once it has its name
    return connection


class _Files:
    """Files of a table, newest first, with what Delta's log says is in them. What the log does not say may be anything."""

    def __init__(self, folder: Path, actions: pa.Table) -> None:
        self._folder = folder
        self._actions = actions

    @staticmethod
    def listed(folder: Path, engine: _Engine) -> _Files:
        """Those of the table's latest commit."""
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
            return _Files(folder, schema.empty_table())
        except (OSError, DeltaError) as error:
            raise unreadable(folder, error) from error
        nothing = pa.nulls(actions.num_rows)
        columns = [(actions[name] if name in actions.schema.names else nothing).cast(kind) for name, kind in wanted.items()]
        known = pa.table(columns, schema=schema)
        return _Files(folder, known.sort_by(_NEWEST_FIRST))

    @property
    def count(self) -> int:
        return int(self._actions.num_rows)

    @property
    def paths(self) -> list[str]:
        return [str(self._folder / path) for path in self._actions["path"].to_pylist()]

    @property
    def rows(self) -> int:
        return int(pc.sum(self._actions["num_records"], min_count=0).as_py())

    def rows_at_most(self, selection: Selection) -> int:
        """The rows of those row groups that may hold some of a selection, by the files' footers. Raises DiskTrouble."""
        symbols = sorted(selection.symbols)
        rows = 0
        for path in self.paths:
            try:
                footer = pq.read_metadata(path)
            except (OSError, pa.ArrowException) as error:
                raise DiskTrouble(f"The lake's file {path} cannot be read: {error}") from error
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
        return self._edge("min", unknown=_LEAST, empty=_MOST)

    @property
    def newest_ns(self) -> int:
        return self._edge("max", unknown=_MOST, empty=_LEAST)

    @property
    def named(self) -> set[str]:
        """Symbols that the log itself names: the first and the last of each file."""
        return {*self._actions["min.symbol"].to_pylist(), *self._actions["max.symbol"].to_pylist()}

    def renewed(self, now: _Files) -> _Files | None:
        """These files with those that are gone replaced by the ones that have their rows now; None where nothing is, or rows are gone.

        What the store has written since stays unseen; where it was put into one file with what was there before, nobody can tell."""
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
        return _Files(self._folder, pa.concat_tables(parts).sort_by(_NEWEST_FIRST))

    def _by_day(self) -> dict[str, dict[str, int]]:
        """Of each day the files, with their rows."""
        found: dict[str, dict[str, int]] = {}
        for path, rows in zip(self._actions["path"].to_pylist(), self._actions["num_records"].to_pylist(), strict=True):
            found.setdefault(_day(path), {})[path] = rows
        return found

    def slice(self, first: int, count: int) -> _Files:
        return _Files(self._folder, self._actions.slice(first, count))

    def between(self, start_ns: int, end_ns: int) -> _Files:
        """Those that may hold times in [start_ns, end_ns)."""
        return self._where(
            pc.and_(
                pc.fill_null(pc.greater_equal(self._actions["max.ts_ns"], start_ns), True),
                pc.fill_null(pc.less(self._actions["min.ts_ns"], end_ns), True),
            )
        )

    def of_any(self, name: str, values: Sequence[str]) -> _Files:
        """Those that may hold one of these values in a column of text."""
        ordered = sorted(values)  # by code point, which is the order of UTF-8's bytes and so of the log's edges
        edges = zip(self._actions[f"min.{name}"].to_pylist(), self._actions[f"max.{name}"].to_pylist(), strict=True)
        return self._where(pa.array([_any_between(ordered, low, high) for low, high in edges], pa.bool_()))

    def matching(self, selection: Selection) -> _Files:
        """Those that may hold rows of a selection."""
        found = self.between(selection.start_ns, selection.end_ns).of_any("symbol", selection.symbols)
        wanted = {"provider": selection.provider, "feed": selection.feed, "kind": selection.kind, "interval": selection.interval}
        for name, value in wanted.items():
            if value is not None:
                found = found.of_any(name, [value])
        return found

    def _where(self, mask: pa.Array | pa.ChunkedArray) -> _Files:
        return _Files(self._folder, self._actions.filter(mask))

    def _edge(self, edge: str, unknown: int, empty: int) -> int:
        column = self._actions[f"{edge}.ts_ns"]
        if column.null_count:
            return unknown
        return int(pc.min_max(column)[edge].as_py()) if len(column) else empty


def _day(path: str) -> str:
    """The partition of a file, from its name in the log."""
    return path.partition("/")[0]


def _any_between(ordered: Sequence[str], low: str | None, high: str | None) -> bool:
    at = bisect_left(ordered, low) if low is not None else 0
    return at < len(ordered) and (high is None or ordered[at] <= high)


def _schema(topic: Topic, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([topic.schema.field(name) for name in columns])


def _select(columns: Sequence[str], selection: Selection, files: list[str]) -> tuple[str, dict[str, Value]]:
    """A query without order, and its parameters. `columns` are the schema's own names, which the caller has checked."""
    symbols = {f"symbol{at}": symbol for at, symbol in enumerate(selection.symbols)}
    conditions = ["ts_ns >= $start_ns", "ts_ns < $end_ns", f"symbol IN ({', '.join(f'${name}' for name in symbols)})"]
    values: dict[str, Value] = {"files": files, "start_ns": selection.start_ns, "end_ns": selection.end_ns, **symbols}
    wanted = {"provider": selection.provider, "feed": selection.feed, "kind": selection.kind, "interval": selection.interval}
    for name, value in wanted.items():
        if value is not None:
            conditions.append(f'"{name}" = ${name}')
            values[name] = value
    names = ", ".join(f'"{name}"' for name in columns) or "ts_ns"
    # The partition's date is not asked for: what matches was chosen by the log, which knows more.
    return f"SELECT {names} FROM read_parquet($files, hive_partitioning = false) WHERE {' AND '.join(conditions)}", values  # noqa: S608
