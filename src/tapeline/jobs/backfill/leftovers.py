"""Removes what backfills of long ago have left on disk: how far they had come, their locks, and the rows of files that nobody reads on.

A log is what keeps a page from being fetched, and put into the stream, twice. So it stays for as long as the stream may hold the pages, and
one that is not done for much longer: its job may be taken up again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from tapeline.errors import Busy, DiskProblem, NewerData
from tapeline.jobs.backfill.page_log import PageLog
from tapeline.local.locks import own

_DAY_S: Final = 86_400.0
#: So long after its last page a backfill that is done is forgotten; then the same command fetches all of it again.
DONE_S: Final = 30 * _DAY_S
#: And one that was never finished.
BEGUN_S: Final = 365 * _DAY_S
#: The rows of files that a killed backfill has left are fetched again after so long.
FILES_S: Final = 30 * _DAY_S


def log_of(root: Path, job: str) -> PageLog:
    """How far a job has come."""
    return PageLog(root / "backfill" / f"{job}.sqlite")


def lock_of(root: Path, job: str) -> Path:
    """Held while a job runs."""
    return root / "locks" / f"backfill-{job}"


def remove_old_logs(root: Path, now_s: float, retain_s: float) -> list[str]:
    """Forget the jobs that ended long ago, and longer than the stream keeps its records (`retain_s`); returns their names.

    One that runs is left alone, as is one that cannot be read: it may be a newer Tapeline's."""
    removed = []
    for path in sorted((root / "backfill").glob("*.sqlite")):
        age_s = now_s - _used_s(path)
        if age_s < max(DONE_S, retain_s):
            continue
        with _alone(root, path.stem) as alone:
            if alone and (age_s >= max(BEGUN_S, retain_s) or _is_done(PageLog(path))):
                with suppress(DiskProblem):  # it is tried again by the next backfill
                    PageLog(path).forget()
                    removed.append(path.stem)
    return removed


def remove_old_files(folder: Path, now_s: float) -> None:
    """Of the folder in which files are read; for who holds its lock."""
    for path in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        with suppress(OSError):  # what holds something younger
            if path.is_dir():
                path.rmdir()
            elif now_s - path.stat().st_mtime >= FILES_S:
                path.unlink()


def _used_s(path: Path) -> float:
    """When a log was last written to."""
    times = [0.0]
    for end in ("", "-wal"):
        with suppress(OSError):
            times.append(Path(f"{path}{end}").stat().st_mtime)
    return max(times)


def _is_done(log: PageLog) -> bool:
    try:
        return log.whole()
    except (DiskProblem, NewerData):
        return False
    finally:
        log.close()


@contextmanager
def _alone(root: Path, job: str) -> Iterator[bool]:
    """Hold a job's lock, if it does not run; a job of files runs under the lock of all those. The job's own lock is gone afterwards."""
    with ExitStack() as held:
        alone = True
        try:
            for lock in (lock_of(root, "files"), lock_of(root, job)):
                held.enter_context(own(lock, "this tapeline backfill", by="a tapeline backfill that looks for old logs"))
        except (Busy, DiskProblem):
            alone = False
        yield alone
        if alone:
            with suppress(OSError):
                lock_of(root, job).unlink()
