"""A PostgreSQL database by its address: connections with our settings, and the meaning of its errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote

import adbc_driver_manager as adbc
from adbc_driver_manager import dbapi
from adbc_driver_postgresql.dbapi import connect  # type: ignore[import-untyped]  # it carries no types

from tapeline.errors import DiskProblem, Refused, Unavailable
from tapeline.secret import Secret, without_password
from tapeline.stores.postgres.statements import load

#: SQLSTATE classes and codes.
_DATA: Final = ("22", "23")  # this record cannot be kept
_DISK: Final = ("53100", "58030")  # disk_full, io_error
_NO: Final = ("28", "42501", "3D")  # login, rights, no such database


class CannotHold(Unavailable):
    """PostgreSQL cannot hold one of the rows. Nothing was written."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reason = (re.search(r"ERROR:\s*(.*?)(?: CONTEXT:| DETAIL:|$)", message) or (message, message))[1]


class Database:
    """A database by its `postgresql://` address: connections, and the meaning of their errors."""

    def __init__(self, url: str, password: Secret, lock_wait_s: float = 10.0) -> None:
        """`lock_wait_s`: a statement that waits longer than this (s) for a lock of others fails."""
        self._url, self._password, self._lock_wait_s = url, password, lock_wait_s
        self.shown: Final = without_password(url)
        self._sql: Final = load("postgres.sql")

    def connect(self) -> dbapi.Connection:
        """Return a connection with our settings. Raises ADBC's errors."""
        connection: dbapi.Connection = connect(_with_password(self._url, self._password.reveal()))
        with connection.cursor() as cursor:
            for statement in self._sql.each("settings"):
                cursor.execute(statement)
            cursor.execute(self._sql.one("wait_for_locks"), (f"{self._lock_wait_s * 1000:.0f}ms",))
        connection.commit()
        return connection

    @contextmanager
    def connected(self) -> Iterator[dbapi.Connection]:
        """A connection that is closed at the end. Raises ADBC's errors."""
        connection = self.connect()
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def transaction(self) -> Iterator[dbapi.Cursor]:
        """A transaction on a connection of its own, which commits at the end. It is meant for rare operations.

        If it raises Unavailable or a like error, with PostgreSQL's message, nothing was written."""
        try:
            with self.connected() as connection:
                with connection.cursor() as cursor:
                    yield cursor
                connection.commit()
        except adbc.Error as error:
            raise self.meaning(error) from error

    def meaning(self, error: Exception) -> Unavailable | Refused:
        """Return the Tapeline error for an error of ADBC."""
        state = (error.sqlstate if isinstance(error, adbc.Error) else "") or ""
        # libpq repeats an address that it cannot read.
        message = self._password.taken_out(without_password(" ".join(str(error).split())))[:300]
        if state.startswith(_NO) or "password authentication failed" in message or ("does not exist" in message and not state):
            return Refused(
                f"PostgreSQL at {self.shown} has refused access: {message}. Check the user, the password (password_file) and the database."
            )
        if state.startswith(_DATA):
            return CannotHold(message)
        if state in _DISK:
            return DiskProblem(
                f"PostgreSQL at {self.shown} cannot write: {message}. The records stay in the stream. Free disk space there."
            )
        return Unavailable(f"PostgreSQL at {self.shown} failed: {message}. Unwritten records stay in the stream. A running stage retries.")


def _with_password(url: str, password: str) -> str:
    """Return the address with a password that came from elsewhere."""
    parts = re.fullmatch(r"(?P<head>\w+://[^:/@]+)(?P<tail>@.*)", url)
    return f"{parts['head']}:{quote(password, safe='')}{parts['tail']}" if password and parts else url
