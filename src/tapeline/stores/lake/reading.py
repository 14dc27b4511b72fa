"""Reads the lake for programs: only files that can match by the statistics in Delta's log, and a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Self, TypeVar

import duckdb
import pyarrow as pa

from tapeline.errors import DiskProblem
from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, NS_PER_S, TICKS_TOPIC, Topic
from tapeline.stores.lake.damage import checksum, named_checksum
from tapeline.stores.lake.engine import Engine
from tapeline.stores.lake.files import for_duckdb
from tapeline.stores.lake.table_files import TableFiles
from tapeline.stores.selection import ORDER, Selection, alike, amended_by, notices_about

#: The most rows sorted at once. This is the memory that a read needs, whatever its range.
_WINDOW_ROWS: Final = 500_000
#: Files with at most this many rows are sorted at once, without first counting the rows that match.
_UNCOUNTED_ROWS: Final = 1_000_000
#: If there are at most this many files, their footers give an upper bound of the rows, which costs less than counting.
_FEW_FILES: Final = 8
_BATCH_ROWS: Final = 65_536
#: The number of parts of equal length in which the rows of a range are counted.
_PARTS: Final = 1_024
#: How far back the search for the last tick starts, and by what factor it grows after each search without a result.
_FIRST_LOOK_NS: Final = 60 * NS_PER_S
_LOOK_GROWTH: Final = 16
#: The number of newest files that are searched for symbols similar to an unknown one.
_LIKENESS_FILES: Final = 20
_MOST: Final = (1 << 63) - 1


_IDENTITY: Final = 'provider, feed, symbol, "interval", ts_ns'
_REVISION: Final = "received_ns DESC, raw_partition DESC, raw_offset DESC, raw_index DESC"


_Result = TypeVar("_Result")
#: The value of a query parameter.
Value = str | int | list[str]


class LakeSource:
    """The lake under `root` as it was when each table was first used. No read sees what is written after that.

    If a day is compacted meanwhile, other files hold the same rows, and reads continue in those at the point they had reached.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tables: dict[str, TableFiles] = {}
        self._engine = Engine()
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
        """Return the same lake with checks of every file that is read.

        Each file is read once more as a whole, before its rows are, and compared with the checksum in its name. The reads raise
        DiskProblem if it differs.
        """
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
        rows = _schema(TICKS_TOPIC, inner).empty_table()
        rest, length_ns = selection, _FIRST_LOOK_NS
        order = ", ".join(f"{name} DESC" for name in ORDER if name != "symbol")
        # The search goes backwards from the end, and each part is longer than the one before. What a part holds of a symbol is later than
        # everything that is left.
        while rest.symbols and (files := self._files(TICKS_TOPIC).matching(rest)).count:
            end_ns = min(rest.end_ns, files.newest_ns + 1)
            part = replace(rest, start_ns=max(rest.start_ns, end_ns - length_ns), end_ns=end_ns)
            text, values = _select(inner, part, files.matching(part).paths)
            text += f" QUALIFY row_number() OVER (PARTITION BY symbol ORDER BY {order}) = 1"
            rows = pa.concat_tables([rows, pa.Table.from_batches(self._run(text, values, rows.schema), rows.schema)])
            if part.start_ns == rest.start_ns:
                break
            settled = set(rows["symbol"].to_pylist())
            missing = tuple(symbol for symbol in rest.symbols if symbol not in settled)
            rest, length_ns = replace(rest, symbols=missing, end_ns=part.start_ns), length_ns * _LOOK_GROWTH
        return rows.select(list(selection.columns))

    def amended(self, selection: Selection) -> pa.Table:
        return self._answer(NOTICES_TOPIC, lambda: self._amended(notices_about(selection)))

    def _amended(self, notices: Selection) -> pa.Table:
        files = self._files(NOTICES_TOPIC).matching(notices)
        schema = _schema(NOTICES_TOPIC, notices.columns)
        batches = self._run(*_select(notices.columns, notices, files.paths), schema) if files.count else ()
        return amended_by(pa.Table.from_batches(batches, schema))

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
        # The log names the first and the last symbol of each file.
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

    def _symbols(self, topic: Topic, files: TableFiles, among: Sequence[str] | None) -> list[str]:
        """Return which of the given symbols occur in the files; None: return all symbols."""
        names = {f"symbol{at}": symbol for at, symbol in enumerate(among or ())}
        condition = f"WHERE symbol IN ({', '.join(f'${name}' for name in names)})" if names else ""
        # For one symbol, the first row settles whether it is there.
        one = among is not None and len(among) == 1
        condition, distinct = (f"{condition} LIMIT 1", "") if one else (condition, "DISTINCT")
        text = f"SELECT {distinct} symbol FROM read_parquet($files, hive_partitioning = false) {condition}"  # noqa: S608 no text of a user's
        values: dict[str, Value] = {"files": files.paths, **names}
        batches = self._run(text, values, _schema(topic, ("symbol",))) if files.count else ()
        return [symbol for batch in batches for symbol in batch["symbol"].to_pylist()]

    def _answer(self, topic: Topic, ask: Callable[[], _Result]) -> _Result:
        try:
            return ask()
        except DiskProblem:
            if not self._renewed(topic):
                raise
            return ask()

    def _renewed(self, topic: Topic) -> bool:
        """Return whether other files with the same rows have replaced files that could not be read. If so, they are read from now on."""
        files = self._files(topic).renewed(TableFiles.listed(self._root / topic.table, self._engine))
        if files is not None:
            self._tables[topic.table] = files
        return files is not None

    def _reader(self, topic: Topic, selection: Selection, qualify: str) -> pa.RecordBatchReader:
        self._files(topic)
        schema = _schema(topic, selection.columns)
        return pa.RecordBatchReader.from_batches(schema, self._batches(topic, selection, qualify, schema))

    def _batches(self, topic: Topic, selection: Selection, qualify: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order, each once, even if files are replaced on the way."""
        given = 0
        while True:
            skip = given  # the order is total, so the rows already given come first again
            try:
                for batch in self._ordered(self._files(topic).matching(selection), selection, qualify, schema):
                    fresh = batch.slice(min(skip, batch.num_rows))
                    skip -= batch.num_rows - fresh.num_rows
                    given += fresh.num_rows
                    if fresh.num_rows:
                        yield fresh
                return
            except DiskProblem:
                if not self._renewed(topic):
                    raise

    def _ordered(self, files: TableFiles, selection: Selection, qualify: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one window of time after another. They are in order, because time is the first sort key."""
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
                raise DiskProblem(f"The lake file {path} cannot be read: {error}. Try again if it was removed meanwhile.") from error
            if found != expected:
                raise DiskProblem(
                    f"The lake file {path} has the checksum {found:08x}, but its name says {expected:08x}: bytes were changed. "
                    "None of its rows were read. Run `tapeline lake repair` to rebuild it."
                )
            self._whole.add(path)

    def _windows(self, files: TableFiles, selection: Selection) -> Iterator[tuple[int, int]]:
        """Split the range into parts with at most about as many rows as may be sorted at once, or of a single nanosecond."""
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
        """Yield the result of a query over the files that `values` names. Raises DiskProblem if they cannot be read."""
        files = values["files"]
        assert isinstance(files, list), "`files` must list the files that the query reads"
        self._hold_against_checksums(files)
        try:
            # Each query has a cursor of its own, because several readers of one source may be open. It is held in a variable, because it
            # closes when nothing refers to it.
            cursor = self._engine.connection.cursor()
            result = cursor.sql(text, params={**values, "files": for_duckdb(files)})
            for batch in pa.RecordBatchReader.from_stream(result):
                whole = pa.record_batch([batch[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
                yield from (whole.slice(at, _BATCH_ROWS) for at in range(0, whole.num_rows, _BATCH_ROWS))
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise DiskProblem(
                f"The lake at {self._root} cannot be read: {error}. Try again if a file was removed meanwhile. "
                "Run `tapeline lake repair` if a file is damaged."
            ) from error

    def _files(self, topic: Topic) -> TableFiles:
        if topic.table not in self._tables:
            self._engine.start()
            self._tables[topic.table] = TableFiles.listed(self._root / topic.table, self._engine)
        return self._tables[topic.table]


def _schema(topic: Topic, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([topic.schema.field(name) for name in columns])


def _select(columns: Sequence[str], selection: Selection, files: list[str]) -> tuple[str, dict[str, Value]]:
    """Return a query without an order, and its parameters. `columns` are the schema's own names, which the caller has checked."""
    symbols = {f"symbol{at}": symbol for at, symbol in enumerate(selection.symbols)}
    conditions = ["ts_ns >= $start_ns", "ts_ns < $end_ns", f"symbol IN ({', '.join(f'${name}' for name in symbols)})"]
    values: dict[str, Value] = {"files": files, "start_ns": selection.start_ns, "end_ns": selection.end_ns, **symbols}
    wanted = {"provider": selection.provider, "feed": selection.feed, "kind": selection.kind, "interval": selection.interval}
    for name, value in wanted.items():
        if value is not None:
            conditions.append(f'"{name}" = ${name}')
            values[name] = value
    names = ", ".join(f'"{name}"' for name in columns) or "ts_ns"
    # The query does not filter by the partition's date: the log, which knows more, has already chosen the files.
    return f"SELECT {names} FROM read_parquet($files, hive_partitioning = false) WHERE {' AND '.join(conditions)}", values  # noqa: S608
