"""Reads PostgreSQL for programs: the same rows in the same order as the lake, streamed by COPY."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Self

import adbc_driver_manager as adbc
import pyarrow as pa

from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, NS_PER_US, TICKS_TOPIC, Topic
from tapeline.stores.postgres.database import Database
from tapeline.stores.postgres.statements import Statements, load
from tapeline.stores.selection import Selection, alike, amended_by, notices_about

_EQUAL: Final = ("provider", "feed", "kind", "interval")


class PostgresSource:
    """The tables in the database that a `postgresql://` address names. Every read has its own connection while it lasts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql: Final[Statements] = load("postgres.sql")

    @property
    def place(self) -> str:
        return f"database {self._database.shown}"

    def now(self) -> Self:
        return self

    def verified(self) -> Self:
        return self  # the server's own pages have checksums, if it was set up with them

    def ticks(self, selection: Selection) -> pa.RecordBatchReader:
        return self._reader(TICKS_TOPIC, selection)

    def bars(self, selection: Selection) -> pa.RecordBatchReader:
        return self._reader(BARS_TOPIC, selection)

    def last(self, selection: Selection) -> pa.Table:
        schema = _schema(TICKS_TOPIC, selection.columns)
        text = self._sql.one("last", columns=_names(selection.columns), where=self._where(selection))
        return pa.Table.from_batches(self._rows(text, _chosen(selection), schema), schema)

    def amended(self, selection: Selection) -> pa.Table:
        return amended_by(self._reader(NOTICES_TOPIC, notices_about(selection)).read_all())

    def newest_ns(self) -> int | None:
        (newest,) = self._column(self._sql.one("newest"), {}, pa.int64()) or [None]
        return int(newest) if isinstance(newest, int) else None

    def unknown(self, topic: Topic, symbols: tuple[str, ...]) -> Mapping[str, list[str]]:
        if not self._column(self._sql.one("has_version"), {}, pa.bool_()):
            return {symbol: [] for symbol in symbols}  # no store has written yet
        missing = self._column(self._sql.one("without", table=topic.table), {"symbols": symbols}, pa.string())
        known = self._column(self._sql.one("symbols", table=topic.table), {}, pa.string()) if missing else []
        return {str(symbol): alike(str(symbol), [str(name) for name in known]) for symbol in missing}

    def _reader(self, topic: Topic, selection: Selection) -> pa.RecordBatchReader:
        schema = _schema(topic, selection.columns)
        text = self._sql.one("chosen", columns=_names(selection.columns), table=topic.table, where=self._where(selection))
        return pa.RecordBatchReader.from_batches(schema, self._rows(text, _chosen(selection), schema))

    def _where(self, selection: Selection) -> str:
        names = [name for name in _EQUAL if getattr(selection, name) is not None]
        return " ".join(self._sql.one("equals", column=name) for name in names)

    def _column(self, text: str, chosen: Mapping[str, object], kind: pa.DataType) -> Sequence[object]:
        schema = pa.schema([("found", kind)])
        return [value for batch in self._rows(text, chosen, schema) for value in batch[0].to_pylist()]

    def _rows(self, text: str, chosen: Mapping[str, object], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the result.

        Yields nothing if no store has written yet. Raises Unavailable and like errors, also while it is being read.
        """
        try:
            with self._database.connected() as connection, connection.cursor() as cursor:
                cursor.execute(self._sql.one("has_version"))
                if not cursor.fetchall()[0][0]:
                    return
                cursor.execute(self._sql.one("choose"), (json.dumps(chosen),))
                cursor.fetchall()
                cursor.execute(text)
                for batch in cursor.fetch_record_batch():
                    yield pa.record_batch(
                        [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)], schema=schema
                    )
        except (adbc.Error, pa.ArrowException) as error:
            raise self._database.meaning(error) from error


def _chosen(selection: Selection) -> dict[str, object]:
    return {
        "symbols": selection.symbols,
        "start_ns": selection.start_ns,
        "end_ns": selection.end_ns,
        "since_us": selection.start_ns // NS_PER_US,
        "until_us": (selection.end_ns - 1) // NS_PER_US,
        **{name: getattr(selection, name) for name in _EQUAL},
    }


def _schema(topic: Topic, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([topic.schema.field(name) for name in columns])


def _names(columns: Sequence[str]) -> str:
    """Return the columns for SQL. They are the schema's own names, which the caller has checked."""
    return ", ".join(f'"{name}"' for name in columns)
