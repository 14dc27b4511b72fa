"""The lease book in `normalized.sqlite`."""

from __future__ import annotations

from collections.abc import Callable

from tapeline.records import NS_PER_S
from tapeline.streams.embedded.file import StreamFile


class EmbeddedLeases:
    """The lease book in `normalized.sqlite`. All its users share one machine and therefore one clock."""

    def __init__(self, file: Callable[[], StreamFile], clock: Callable[[], int]) -> None:
        """`file` returns the file that is there now. It may have been removed and made anew."""
        self._file, self._clock = file, clock

    def take(self, name: str, token: str, seconds: float) -> bool:
        now_ns = self._clock()
        with self._file().transaction() as db:
            return (
                db.execute(
                    "INSERT INTO leases VALUES (:name, :token, :until) ON CONFLICT DO UPDATE"
                    " SET token = excluded.token, until_ns = excluded.until_ns WHERE token = excluded.token OR until_ns < :now",
                    {"name": name, "token": token, "until": now_ns + int(seconds * NS_PER_S), "now": now_ns},
                ).rowcount
                == 1
            )

    def drop(self, name: str, token: str) -> None:
        with self._file().transaction() as db:
            db.execute("DELETE FROM leases WHERE name = ? AND token = ?", (name, token))

    def taken(self, prefix: str) -> dict[str, str]:
        file = self._file()
        with file.errors():
            file.db.execute("DELETE FROM leases WHERE until_ns < ?", (self._clock() - 3600 * NS_PER_S,))
            return dict(
                file.db.execute(
                    "SELECT name, token FROM leases WHERE substr(name, 1, length(?1)) = ?1 AND until_ns >= ?2", (prefix, self._clock())
                ).fetchall()
            )
