"""A limit on the requests in a minute, with pauses. Threads share it in memory, processes share it in a file."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from tapeline.errors import DiskProblem

#: The least wait (s) after an attempt that came too early (HTTP 429, 418). If Retry-After names a longer wait, that one counts.
TOO_FAST_S: Final = 30.0
TOO_FAST: Final = frozenset({418, 429})
#: No provider bans an address for longer than this (Binance: three days). A longer time in an answer is a mistake and is cut to this.
LONGEST_BAN_S: Final = 4 * 86_400.0
_MINUTE_S: Final = 60.0
_MOST_BYTES: Final = 4096


class _Book(msgspec.Struct):
    """The state of a limiter. Times are seconds of the wall clock, because processes share that clock."""

    minute: float = 0.0  # when the minute began
    spent: int = 0
    paused_at: float = 0.0
    not_before: float = 0.0
    #: For the metrics, since the file was made: answers by their status, and the seconds of all waits.
    answers: dict[str, int] = {}
    waited_s: float = 0.0


class RateLimiter:
    """Allows so much weight a minute.

    Without a `path`, the threads of this process share the limit. With a `path`, all processes that name the same file share it."""

    def __init__(self, weight_a_minute: int, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._weight, self._path, self._clock = weight_a_minute, path, clock
        self._lock = threading.Lock()
        self._own = _Book()

    def take(self, weight: int) -> float:
        """Take `weight` from the minute and return 0.0. If it is not available, take nothing and return the seconds to wait.

        Raises DiskProblem if the shared file cannot be read or written."""
        with self._book() as book:
            now = self._clock()
            if book.paused_at <= now < book.not_before:  # if the clock was set back to before the pause, the pause is ignored
                return book.not_before - now
            if not 0 <= now - book.minute < _MINUTE_S:  # a new minute, also if the clock was set back
                book.minute, book.spent = now, 0
            if book.spent and book.spent + weight > self._weight:
                return book.minute + _MINUTE_S - now
            book.spent += weight
            return 0.0

    def pause(self, seconds: float) -> None:
        """Allow no request for so many seconds, because the provider said so. A longer pause stays. Raises DiskProblem."""
        with self._book() as book:
            now = self._clock()
            if now + seconds > book.not_before or now < book.paused_at:
                book.paused_at, book.not_before = now, now + seconds

    def answered(self, status: str, waited_s: float) -> None:
        """Count an answer, and how long its request waited (s). If a request got no answer, its status is `none`.

        If the shared file cannot be written, this is not counted: the answer has come, and the next `take` reports the problem."""
        with suppress(DiskProblem), self._book() as book:
            book.answers[status] = book.answers.get(status, 0) + 1
            book.waited_s += waited_s

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
                    f"The rate limit file {self._path} cannot be created: {error.strerror}. No request was sent. Make its folder writable."
                ) from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                book = _read(file)
                yield book
                data = msgspec.json.encode(book)
                os.pwrite(file, data, 0)
                os.ftruncate(file, len(data))
            except OSError as error:
                raise DiskProblem(f"The rate limit file {self._path}: {error.strerror}. No request was sent. Free disk space.") from None
            finally:
                os.close(file)


def counted(path: Path) -> tuple[dict[str, int], float]:
    """Return what the limiters that share a file have counted: answers by their status, and the seconds of all waits."""
    try:
        book = msgspec.json.decode(path.read_bytes()[:_MOST_BYTES], type=_Book)
    except (OSError, msgspec.MsgspecError, ValueError):
        return {}, 0.0
    return book.answers, book.waited_s


def _read(file: int) -> _Book:
    """The state in a file. A damaged file, or a file of another kind, counts as empty, so a new minute begins."""
    try:
        return msgspec.json.decode(os.pread(file, _MOST_BYTES, 0), type=_Book)
    except (msgspec.MsgspecError, ValueError):
        return _Book()
