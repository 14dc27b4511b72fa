"""The parts of a lake source that are expensive to open and serve all its answers: DuckDB and the tables' logs."""

from __future__ import annotations

import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import duckdb
from deltalake import DeltaTable

from tapeline.stores.lake.files import check_format, table_at

#: Settings of a connection. Everything used here is built into DuckDB.
NO_DOWNLOADS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


class Engine:
    """DuckDB and the tables' logs as far as they have been read. They are expensive to open and serve all answers of a source."""

    def __init__(self) -> None:
        self._starting: Future[duckdb.DuckDBPyConnection] | None = None
        self._logs: dict[Path, DeltaTable] = {}

    def start(self) -> None:
        """Start DuckDB in a background thread, because that takes as long as reading a log."""
        if self._starting is None:
            starter = ThreadPoolExecutor(1, "start DuckDB")
            self._starting = starter.submit(_connect)
            starter.shutdown(wait=False)

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The connection to DuckDB. It waits until DuckDB has started. Each query needs a cursor of its own."""
        self.start()
        assert self._starting is not None
        return self._starting.result()

    def log(self, folder: Path) -> DeltaTable:
        """Return a table's log as it is now. Raises Delta's errors."""
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
