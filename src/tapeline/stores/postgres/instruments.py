"""PostgreSQL's table of instruments. New and closed versions go in with one transaction."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Final

import pyarrow as pa

from tapeline.records import INSTRUMENTS
from tapeline.stores.instruments import Versions, in_order, with_times
from tapeline.stores.postgres.database import Database
from tapeline.stores.postgres.schema import Schema
from tapeline.stores.postgres.statements import load

#: The table. The view `instruments` shows it, unless the database has something of that name already.
_TABLE: Final = "tapeline_instruments"
#: Rows that are encoded at once.
_PIECE_ROWS: Final = 16_384


class PostgresInstruments:
    """The table in a database. Connects at each call. The first write makes the tables, or brings them to this version."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._schema = Schema(database.shown)
        self._sql: Final = load("instruments.sql")
        self._general: Final = load("postgres.sql")

    @property
    def name(self) -> str:
        return "postgresql"

    def changed_ns(self, provider: str, market: str) -> int:
        with self._database.transaction() as cursor:
            if not self._schema.has(cursor, _TABLE):
                return 0
            cursor.execute(self._sql.one("changed"), (provider, market))
            row = cursor.fetchone()
            return int(row[0] or 0) if row is not None else 0

    def versions(self, wanted: Versions) -> pa.Table:
        columns = ", ".join(f'"{name}"' for name in INSTRUMENTS.names)
        chosen = {name: value for name, value in asdict(wanted).items() if value not in (None, False)}
        with self._database.transaction() as cursor:
            if not self._schema.has(cursor, _TABLE):
                return INSTRUMENTS.empty_table()
            cursor.execute(self._sql.one("versions", columns=columns), (json.dumps(chosen),))
            return in_order(cursor.fetch_arrow_table())

    def put(self, versions: pa.Table) -> None:
        if not versions.num_rows:
            return
        with self._database.transaction() as cursor:
            cursor.execute(self._general.one("alone"))
            self._schema.migrate(cursor)
            cursor.execute(self._general.one("copy_of", name="new_instruments", table=_TABLE))
            rows = with_times(versions).drop_columns(["date"])
            cursor.adbc_ingest("new_instruments", rows.to_reader(_PIECE_ROWS), mode="append", temporary=True)
            cursor.execute(self._sql.one("put"))
