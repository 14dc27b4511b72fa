"""Removes what old backfills left on disk: their page logs, their locks, and rows of files that were not read to the end.

A page log prevents that a page is fetched and put into the stream twice. So it is kept for as long as the stream may hold the pages. The
log of an unfinished job is kept much longer, because the job may be continued.
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
#: The log of a finished backfill is removed this long after its last page. After that, the same command fetches everything again.
DONE_S: Final = 30 * _DAY_S
#: The log of an unfinished backfill is removed this long after its last page.
BEGUN_S: Final = 365 * _DAY_S
#: Rows of files that a killed backfill left are removed after this time.
FILES_S: Final = 30 * _DAY_S


def log_of(root: Path, job: str) -> PageLog:
    """The page log of a job; it is not opened yet. `job`: the job's name."""
    return PageLog(root / "backfill" / f"{job}.sqlite")


def lock_of(root: Path, job: str) -> Path:
    """The path of the lock that is held while a job runs."""
    return root / "locks" / f"backfill-{job}"


def remove_old_logs(root: Path, now_s: float, retain_s: float) -> list[str]:
    """Remove the logs of jobs that ended long ago, and longer ago than the stream keeps records (`retain_s`, seconds). Returns their names.

    A job that runs is left alone. So is a log that cannot be read, until it is `BEGUN_S` old: it may belong to a newer Tapeline."""
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
    """Remove old rows of files from `folder`, the folder in which files are read. The caller must hold the folder's lock."""
    for path in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        with suppress(OSError):  # a folder that holds a newer file stays
            if path.is_dir():
                path.rmdir()
            elif now_s - path.stat().st_mtime >= FILES_S:
                path.unlink()


def _used_s(path: Path) -> float:
    """When a log was last written to, in seconds since 1970; 0 if the file is gone."""
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
    """Take a job's lock. Yields False if the job runs.

    Jobs that read files share the lock `files`, so that one is taken too. The job's own lock file is deleted afterwards."""
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
