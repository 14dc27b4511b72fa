"""Gives SQL access to the lake: DuckDB views that show the latest committed state of its tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
from deltalake.exceptions import DeltaError, TableNotFoundError

from tapeline.errors import ConfigError, DiskProblem
from tapeline.records import (
    AMENDING,
    AMENDS,
    BARS_TOPIC,
    INSTRUMENTS,
    INSTRUMENTS_TABLE,
    NORMALIZED_TOPICS,
    Topic,
)
from tapeline.stores.instruments import with_times
from tapeline.stores.lake.engine import NO_DOWNLOADS
from tapeline.stores.lake.files import check_format, for_duckdb, table_at, unreadable

#: How many rows `each` reads at a time.
_ROWS_AT_ONCE: Final = 5_000
_READING: Final = frozenset(
    {duckdb.StatementType.SELECT, duckdb.StatementType.MULTI, duckdb.StatementType.PRAGMA, duckdb.StatementType.CALL}
)
#: The types of the lake's columns in SQL.
_SQL_TYPES: Final[Mapping[pa.DataType, str]] = {
    pa.string(): "VARCHAR",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.binary(): "BLOB",
    pa.date32(): "DATE",
    pa.timestamp("us", "UTC"): "TIMESTAMP WITH TIME ZONE",
}
#: `bars` has the last revision of each bar; `bar_revisions` has all revisions.
_BARS: Final = """
SELECT * FROM bar_revisions QUALIFY row_number() OVER (
    PARTITION BY provider, feed, symbol, "interval", ts_ns ORDER BY received_ns DESC, raw_partition DESC, raw_offset DESC, raw_index DESC
) = 1
"""
#: `amendments` has the notices that take back a trade. `trades` has the trades that were not taken back.
_AMENDMENTS: Final = f"""
SELECT provider, feed, symbol, date, amends.exchange AS exchange, amends.trade_id AS trade_id, kind, ts_ns, detail
FROM (SELECT *, regexp_extract(detail, '{AMENDS}', ['exchange', 'trade_id']) AS amends FROM notices WHERE kind IN {AMENDING})
WHERE amends.trade_id <> ''
"""  # noqa: S608 constants of our own
_TRADES: Final = """
SELECT * FROM (SELECT * FROM ticks WHERE kind = 'trade')
ANTI JOIN amendments USING (provider, feed, symbol, date, exchange, trade_id)
"""
#: Bars with impossible values, kept as they came. The rule is the same as that of normalize's count.
_SUSPECTS: Final = """
SELECT * FROM bar_revisions WHERE "open" < low OR "open" > high OR "close" < low OR "close" > high OR trades < 0
"""
_DERIVED: Final = {"bars": _BARS, "amendments": _AMENDMENTS, "trades": _TRADES, "suspects": _SUSPECTS}
#: The intervals of the ledger, with readable times beside the exact ones. A null end means that the interval continues.
_COVERAGE: Final = """
SELECT * EXCLUDE (evidence, first_id, last_id), make_timestamp_ns(start_ns) AS "start", make_timestamp_ns(end_ns) AS "end",
    evidence, first_id, last_id
FROM ledger
"""
_OF_LEDGER: Final = {"coverage": _COVERAGE, "gaps": "SELECT * FROM coverage WHERE state IN ('open', 'repairing', 'unrecoverable')"}


def connect(lake: Path, ledger: Callable[[], pa.Table | None] | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views ticks, trades, amendments, bars, bar_revisions, suspects, notices, rejected and instruments.

    `ledger` returns the rows for the views `coverage` and `gaps`, as `Ledger.intervals` returns them; without rows, these views do not
    exist. Nothing is downloaded. Raises DiskProblem when the lake cannot be read, and NewerData when a newer Tapeline wrote it."""
    with ThreadPoolExecutor(1) as other:
        # DuckDB takes longer to start than the logs and the ledger to be read, and longer still in another thread than this one.
        reading = other.submit(_read, lake, ledger)
        db = _started()
        views, intervals = reading.result()
        deriving = other.submit(_create, db.cursor(), _DERIVED if intervals is None else _DERIVED | _OF_LEDGER)
        _create(db, views)
        deriving.result()
    if intervals is not None:
        db.register("ledger", intervals)
    return db


def _read(lake: Path, ledger: Callable[[], pa.Table | None] | None) -> tuple[dict[str, str], pa.Table | None]:
    """The queries that read the lake's tables, by the names of their views, and the ledger's rows."""
    queries = {
        "bar_revisions" if topic is BARS_TOPIC else topic.table: _query(_files(lake / topic.table), _empty(topic))
        for topic in NORMALIZED_TOPICS
    }
    queries[INSTRUMENTS_TABLE] = _query(_files(lake / INSTRUMENTS_TABLE), with_times(INSTRUMENTS.empty_table()))
    return queries, ledger() if ledger is not None else None


def _query(files: Sequence[str], empty: pa.Table) -> str:
    """A query of a table's files; if there are none, of no rows with the columns of `empty`."""
    if files:
        listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
        return f"FROM read_parquet([{listed}], hive_partitioning = true)"
    columns = ", ".join(f'CAST(NULL AS {_SQL_TYPES[field.type]}) AS "{field.name}"' for field in empty.schema)
    return f"SELECT {columns} LIMIT 0"


def _create(db: duckdb.DuckDBPyConnection, views: Mapping[str, str]) -> None:
    """Create views. DuckDB looks for a view's columns, and so into the footer of a file, at the first query that names it."""
    db.execute(";".join(f"CREATE VIEW {name} WITH (DEFER_BINDING) AS {query}" for name, query in views.items())).fetchall()


def fence(db: duckdb.DuckDBPyConnection, lake: Path) -> None:
    """Restrict the connection for good: it can read no files except the lake's, and use no network."""
    # Both as a plain path and in the form that `connect` uses.
    folders = sorted({f"{lake}/", *for_duckdb([f"{lake}/"])})
    listed = ", ".join("'" + folder.replace("'", "''") + "'" for folder in folders)
    db.execute(f"SET allowed_directories = [{listed}]").fetchall()
    db.execute("SET enable_external_access = false; SET lock_configuration = true").fetchall()


def only_reads(db: duckdb.DuckDBPyConnection, statement: str) -> bool:
    """Whether a statement cannot write: any form of SELECT, or an EXPLAIN of one."""
    explained = re.match(r"\s*explain(\s+analyze)?\b", statement, re.IGNORECASE)
    if explained is not None:
        return only_reads(db, statement[explained.end() :])
    return all(one.type in _READING for one in db.extract_statements(statement))


def _started() -> duckdb.DuckDBPyConnection:
    db = duckdb.connect(config=NO_DOWNLOADS)
    db.execute("SET TimeZone = 'UTC'; SET parquet_metadata_cache = true").fetchall()
    return db


def relation(table: pa.Table, connection: duckdb.DuckDBPyConnection | None) -> duckdb.DuckDBPyRelation:
    """A table in memory as a relation of `connection`; None means DuckDB's default connection. Nothing is downloaded.

    Timestamps become TIMESTAMP_NS in UTC. DuckDB also has a type for nanoseconds with a zone, but few of its functions accept it.
    """
    zoned = {field.name for field in table.schema if pa.types.is_timestamp(field.type)}
    plain = [field.with_type(pa.timestamp("ns")) if field.name in zoned else field for field in table.schema]
    return (connection or duckdb.default_connection()).from_arrow(table.cast(pa.schema(plain)))


def find(lake: Path, table: str, condition: str, values: list[Any]) -> list[dict[str, Any]]:
    """The rows of a lake table that match a condition, each with the column `filename`; none if the table does not exist.

    `condition` is SQL and must not contain text from a user; `values` are its parameters. Raises DiskProblem and NewerData."""
    return list(each(lake, table, condition, values))


def each(lake: Path, table: str, condition: str = "true", values: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
    """As `find`, but with only a few rows in memory at a time."""
    files = _files(lake / ("bars" if table == "bar_revisions" else table))
    if not files:
        return
    try:
        with duckdb.connect() as db:
            db.read_parquet(files, hive_partitioning=True, filename=True).create_view("found")
            query = f"SELECT * FROM found WHERE {condition}"  # noqa: S608 no text of a user's
            for batch in db.sql(query, params=list(values)).to_arrow_reader(_ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except (duckdb.Error, OSError) as error:
        raise _damaged(lake, error) from error


def meaning(lake: Path, error: duckdb.Error) -> DiskProblem | ConfigError:
    """The cause of an error in a user's query: DiskProblem if a file of the lake cannot be read, ConfigError if the query is wrong."""
    # If the content of a file is damaged, DuckDB's error has no specific type and does not name the file.
    if type(error) is duckdb.Error or str(lake) in str(error):
        return _damaged(lake, error)
    return ConfigError(f"DuckDB cannot run the query: {error}")


def _damaged(lake: Path, error: Exception) -> DiskProblem:
    return DiskProblem(
        f"The lake at {lake} cannot be read: {error}. Try again if a file was removed meanwhile. Otherwise run `tapeline lake check` to "
        "find the file, and `tapeline lake repair` to rebuild it."
    )


def _files(table: Path) -> list[str]:
    try:
        delta_table = table_at(table)
    except TableNotFoundError:
        return []
    except (OSError, DeltaError) as error:
        raise unreadable(table, error) from error
    check_format(delta_table, table)
    names = pa.table(delta_table.get_add_actions(flatten=True))["path"].to_pylist()
    return for_duckdb(table / name for name in names)


def _empty(topic: Topic) -> pa.Table:
    extra = [pa.field("ts", pa.timestamp("us", "UTC")), pa.field("date", pa.date32())]
    return pa.schema([*topic.schema, *extra]).empty_table()
