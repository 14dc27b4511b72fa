"""The result of a reading function: a query that is run by the method that returns its rows as a table of some library."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from tapeline.errors import ConfigError, WrongArgument
from tapeline.ledger.answers import Answer
from tapeline.reading import sql as query

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl

#: Each timestamp column -> the column of exact nanoseconds from which it is made.
_TIMES: Final = {
    "ts": "ts_ns",
    "quote_ts": "quote_ts_ns",
    "trade_ts": "trade_ts_ns",
    "valid_from": "valid_from_ns",
    "valid_to": "valid_to_ns",
}
_TS: Final = pa.timestamp("ns", "UTC")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Result:
    """The rows of a query, not read yet. Each method reads them and returns a table of its library: the same rows in the same order."""

    schema: pa.Schema
    _read: Callable[[], Iterator[pa.RecordBatch]]
    _answers: Callable[[bool], list[Answer]] | None = None

    def batches(self) -> pa.RecordBatchReader:
        """The rows as an Arrow stream of bounded batches, for results that do not fit in memory. Reading it may raise Unavailable."""
        return pa.RecordBatchReader.from_batches(self.schema, self._read())

    def arrow(self) -> pa.Table:
        """A pyarrow Table. Raises Unavailable."""
        return self.batches().read_all()

    def pandas(self) -> pd.DataFrame:
        """A pandas DataFrame. Times are datetime64[ns, UTC]. Integer columns that may have nulls are Int64 or Int32, never floats.

        Raises ConfigError if pandas is not installed, and Unavailable."""
        pandas = library("pandas")
        integers = {pa.int64(): pandas.Int64Dtype(), pa.int32(): pandas.Int32Dtype()}
        table = self.arrow()
        frame = table.to_pandas()
        for field in self.schema:
            if field.nullable and field.type in integers:
                # Convert from Arrow: `to_pandas` makes floats of integers with nulls, and floats round large integers.
                frame[field.name] = integers[field.type].__from_arrow__(table[field.name])
        result: pd.DataFrame = frame
        return result

    def polars(self) -> pl.DataFrame:
        """A polars DataFrame. Times are Datetime("ns", "UTC"). Raises ConfigError if polars is not installed, and Unavailable."""
        frame: pl.DataFrame = library("polars").from_arrow(self.arrow())
        return frame

    def duckdb(self, connection: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation over the rows in memory. It belongs to `connection`, or to the connection of `duckdb.sql`.

        In the second case, `duckdb.sql` finds it by the name of its Python variable.

        Times are TIMESTAMP_NS in UTC; the type has no zone. Raises Unavailable."""
        return query.relation(self.arrow(), connection)

    def completeness(self, *, session: bool = False) -> list[Answer]:
        """What the ledger knows about the requested range: an answer for each symbol and channel that the rows may come from.

        `verdict` is "complete", "incomplete" or "unprovable". `holes` lists what is known to be missing. Only results of `ticks` and `bars`
        have answers. `session`: answer only for the regular sessions of the market within the range, each up to a quarter of an hour after
        its close. If there are none, `verdict` is "closed".

        Raises WrongArgument for a result of another function, and Unavailable, NewerData. With `session`, raises ConfigError if
        exchange_calendars is not installed or does not know these sessions."""
        if self._answers is None:
            raise WrongArgument("completeness() works only on a result of ticks() or bars(). Call it on the ticks behind this result.")
        return self._answers(session)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The Arrow stream interface, for every library that reads Arrow streams."""
        return self.batches().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"Result({', '.join(self.schema.names)}); .arrow(), .pandas(), .polars(), .duckdb() or .batches() reads it"


def stored_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The stored columns that are needed for the columns `names`."""
    return tuple(dict.fromkeys(_TIMES.get(name, name) for name in names))


def with_times(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The schema of the columns `names`. They may include timestamps, which are ns, UTC."""
    return pa.schema(
        [pa.field(name, _TS, nullable=schema.field(_TIMES[name]).nullable) if name in _TIMES else schema.field(name) for name in names]
    )


def timed(batches: Iterator[pa.RecordBatch], schema: pa.Schema, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The batches with the columns `names`. Timestamps are made from the columns of exact nanoseconds."""
    wanted = with_times(schema, names)
    for batch in batches:
        columns = [batch[_TIMES[name]].cast(_TS) if name in _TIMES else batch[name] for name in names]
        yield pa.record_batch(columns, schema=wanted)


def library(name: str) -> ModuleType:
    """Import and return an optional package. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ConfigError(
            f"{name} is not installed. Install it: pip install 'tapeline[{name}]'. Without it, .arrow() and .duckdb() work."
        ) from None
