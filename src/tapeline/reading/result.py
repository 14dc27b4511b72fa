"""Rows that were asked for, not yet read, and the tables that they can become."""

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

#: Columns of timestamps and the exact nanoseconds that each is made of.
_TIMES: Final = {"ts": "ts_ns", "quote_ts": "quote_ts_ns", "trade_ts": "trade_ts_ns"}
_TS: Final = pa.timestamp("ns", "UTC")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Result:
    """Rows that were asked for, not yet read: each method reads them, as a table of its library, the same rows in the same order."""

    schema: pa.Schema
    _read: Callable[[], Iterator[pa.RecordBatch]]
    _answers: Callable[[], list[Answer]] | None = None

    def batches(self) -> pa.RecordBatchReader:
        """The rows as they are read, a bounded number at a time: for what does not fit in memory. Raises Unavailable while it is read."""
        return pa.RecordBatchReader.from_batches(self.schema, self._read())

    def arrow(self) -> pa.Table:
        """A pyarrow Table. Raises Unavailable."""
        return self.batches().read_all()

    def pandas(self) -> pd.DataFrame:
        """A DataFrame: times as datetime64[ns, UTC], integers that may be missing as Int64, never as floats.

        Raises ConfigError where pandas is not installed, Unavailable."""
        pandas = library("pandas")
        integers = {pa.int64(): pandas.Int64Dtype(), pa.int32(): pandas.Int32Dtype()}
        table = self.arrow()
        frame = table.to_pandas()
        for field in self.schema:
            if field.nullable and field.type in integers:
                # By way of Arrow: as floats, which pandas takes for integers with holes, they would be rounded.
                frame[field.name] = integers[field.type].__from_arrow__(table[field.name])
        found: pd.DataFrame = frame
        return found

    def polars(self) -> pl.DataFrame:
        """A polars DataFrame: times as Datetime("ns", "UTC"). Raises ConfigError where polars is not installed, Unavailable."""
        found: pl.DataFrame = library("polars").from_arrow(self.arrow())
        return found

    def duckdb(self, connection: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation over the rows in memory: of `connection`, or of the one that `duckdb.sql` uses, which then finds it by name.

        Times are TIMESTAMP_NS, in UTC without saying so. Raises Unavailable."""
        return query.relation(self.arrow(), connection)

    def completeness(self) -> list[Answer]:
        """What the ledger knows of the range that was asked for: an answer for each symbol and channel that the rows may be of.

        `verdict` is "complete", "incomplete" or "unprovable"; `holes` what is missing, as far as is known. Of `ticks` and `bars`.
        Raises WrongArgument for a result of another function, Unavailable, NewerData."""
        if self._answers is None:
            raise WrongArgument("completeness() is of what ticks() and bars() give. Ask it of the ticks that this result was made of.")
        return self._answers()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """For every library that takes Arrow streams."""
        return self.batches().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"Result({', '.join(self.schema.names)}); .arrow(), .pandas(), .polars(), .duckdb() or .batches() reads it"


def stored_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that those asked for are made of."""
    return tuple(dict.fromkeys(_TIMES.get(name, name) for name in names))


def with_times(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The schema of some columns, timestamps among them."""
    return pa.schema(
        [pa.field(name, _TS, nullable=schema.field(_TIMES[name]).nullable) if name in _TIMES else schema.field(name) for name in names]
    )


def timed(batches: Iterator[pa.RecordBatch], schema: pa.Schema, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The columns asked for, the timestamps made of the exact times beside them."""
    wanted = with_times(schema, names)
    for batch in batches:
        columns = [batch[_TIMES[name]].cast(_TS) if name in _TIMES else batch[name] for name in names]
        yield pa.record_batch(columns, schema=wanted)


def library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ConfigError(
            f"{name} is not installed. Install it: pip install 'tapeline[{name}]'. Without it, .arrow() and .duckdb() work."
        ) from None
