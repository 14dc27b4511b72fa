"""Lock files with one owner at a time. A lock file names its holder, and the system frees it when the holder dies."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tapeline.errors import Busy, DiskProblem

log = logging.getLogger(__name__)


@contextmanager
def own(path: Path, what: str, wait_s: float = 0.0, *, by: str = "", stop: threading.Event | None = None) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    If another process holds it, wait up to `wait_s` seconds, but not after `stop` is set. `what` names the caller in messages. `by` is the
    holder's name in the file if it differs from `what`. Raises Busy, which names the process that holds the lock, and DiskProblem if the
    file cannot be created."""
    file = _opened(path)
    try:
        stop = stop or threading.Event()
        deadline, reported = time.monotonic() + wait_s, False
        while not (taken := _take(file)) or not _is_there(path, file):
            if taken:  # its last holder removed the file: another process may hold a new file of the same name
                os.close(file)
                file = -1
                file = _opened(path)
                continue
            holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip() or "another process"
            if stop.is_set():
                raise Busy(f"{what} was stopped while it waited for {holder}, which holds {path}.") from None
            if time.monotonic() >= deadline:
                if holder.startswith(f"{what},"):
                    text = f"{what} already runs here: {holder} holds {path}. Stop that process first, or set another data_dir."
                    raise Busy(text) from None
                raise Busy(f"{what} cannot run now: {holder} holds {path}. Run it again when that process has ended.") from None
            if not reported:
                log.info("%s waits for the end of %s, which holds %s.", what, holder, path)
                reported = True
            stop.wait(0.1)
        with suppress(OSError):  # on a full disk the lock still works, only without its holder's name
            os.ftruncate(file, 0)
            os.pwrite(file, f"{by or what}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n".encode(), 0)
        yield
    finally:
        if file >= 0:
            os.close(file)


def _opened(path: Path) -> int:
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # a new data directory is not readable by other users
        path.parent.mkdir(exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DiskProblem(f"{path} cannot be created: {error.strerror}. Make the folder writable, or set another data_dir.") from None


def _is_there(path: Path, file: int) -> bool:
    """Whether `path` still names the open file `file`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _take(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
