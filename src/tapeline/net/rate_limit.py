"""What a provider lets one address ask in a minute, and until when nothing: shared by threads, and in a file by processes."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from tapeline.errors import DiskProblem

#: Attempts that came too fast (HTTP 429, 418) are repeated no sooner than this, later where Retry-After says so.
TOO_FAST_S: Final = 30.0
TOO_FAST: Final = frozenset({418, 429})
#: No provider bans an address for longer (Binance: three days): what says so is a mistake.
LONGEST_BAN_S: Final = 4 * 86_400.0
_MINUTE_S: Final = 60.0
_MOST_BYTES: Final = 4096


class _Book(msgspec.Struct):
    """Times are of the wall clock, which processes share; s."""

    minute: float = 0.0  # when the minute began
    spent: int = 0
    paused_at: float = 0.0
    not_before: float = 0.0


class RateLimiter:
    """So much weight a minute. Without a `path` the threads of this process share it, with one all processes that name the same file."""

    def __init__(self, weight_a_minute: int, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._weight, self._path, self._clock = weight_a_minute, path, clock
        self._lock = threading.Lock()
        self._own = _Book()

    def take(self, weight: int) -> float:
        """Take so much of the minute: 0.0, or the seconds to wait before asking again; then nothing was taken. Raises DiskProblem."""
        with self._book() as book:
            now = self._clock()
            if book.paused_at <= now < book.not_before:  # a clock that was set back knows nothing of the pause
                return book.not_before - now
            if not 0 <= now - book.minute < _MINUTE_S:  # a clock that was set back begins anew
                book.minute, book.spent = now, 0
            if book.spent and book.spent + weight > self._weight:
                return book.minute + _MINUTE_S - now
            book.spent += weight
            return 0.0

    def pause(self, seconds: float) -> None:
        """The provider wants nobody to ask for so long."""
        with self._book() as book:
            now = self._clock()
            if now + seconds > book.not_before or now < book.paused_at:
                book.paused_at, book.not_before = now, now + seconds

    @contextmanager
    def _book(self) -> Iterator[_Book]:
        with self._lock:
            if self._path is None:
                yield self._own
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise DiskProblem(
                    f"{self._path}, which says what may be asked, cannot be made: {error.strerror}. Nothing was asked."
                ) from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                book = _read(file)
                yield book
                data = msgspec.json.encode(book)
                os.pwrite(file, data, 0)
                os.ftruncate(file, len(data))
            except OSError as error:
                raise DiskProblem(f"{self._path} (what may be asked): {error.strerror}. Nothing was asked. Free disk space.") from None
            finally:
                os.close(file)


def _read(file: int) -> _Book:
    """Of a file that was torn, or is no such file, nothing is known: the minute begins anew."""
    try:
        return msgspec.json.decode(os.pread(file, _MOST_BYTES, 0), type=_Book)
    except (msgspec.MsgspecError, ValueError):
        return _Book()
