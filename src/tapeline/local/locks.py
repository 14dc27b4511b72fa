"""One owner at a time: a lock file that names its holder and is freed by the system when the holder dies."""

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
    """Hold `path` while the block runs, waiting up to `wait_s`, and not after `stop`, for another holder to end. `by`: who holds it,
    where that is not `what`.

    Raises Busy that names the process which holds it, DiskProblem where it cannot be made."""
    file = _opened(path)
    try:
        stop = stop or threading.Event()
        deadline, said = time.monotonic() + wait_s, False
        while not (taken := _take(file)) or not _is_there(path, file):
            if taken:  # its last holder has removed it: another one may hold the next file of that name
                os.close(file)
                file = -1
                file = _opened(path)
                continue
            holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip() or "another process"
            if stop.is_set():
                raise Busy(f"{what} was stopped while it waited for the end of {holder}, which holds {path}.") from None
            if time.monotonic() >= deadline:
                if holder.startswith(f"{what},"):
                    raise Busy(f"{what} already runs here: {holder} holds {path}. Stop that one first, or set another data_dir.") from None
                raise Busy(f"{what} cannot run now: {holder} holds {path}. Call it again when that one has ended.") from None
            if not said:
                log.info("%s waits for the end of %s, which holds %s.", what, holder, path)
                said = True
            stop.wait(0.1)
        with suppress(OSError):  # a full disk: the lock holds without its holder's name
            os.ftruncate(file, 0)
            os.pwrite(file, f"{by or what}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n".encode(), 0)
        yield
    finally:
        if file >= 0:
            os.close(file)


def _opened(path: Path) -> int:
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # the data folder, if it has to be made: it is nobody else's
        path.parent.mkdir(exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DiskProblem(f"{path} cannot be made: {error.strerror}. Make the folder writable, or set another data_dir.") from None


def _is_there(path: Path, file: int) -> bool:
    """Whether an open file is still the one of that name."""
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
