"""The status of each stage: one small JSON file for each stage, replaced about once a second."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tapeline.local.files import write
from tapeline.local.machine import process_space
from tapeline.records import NS_PER_S
from tapeline.telemetry.families import BUILD, CPU, MEMORY, Sample

log = logging.getLogger(__name__)

_EVERY_NS: Final = NS_PER_S


class StatusFile:
    """Writes `<root>/status/<stage>.json`: the stage, its process, its start (ns since 1970), and the keys that a report adds.

    The key `metrics` has the samples of the report, and those of the process."""

    def __init__(self, root: Path, stage: str, clock: Callable[[], int] = time.time_ns) -> None:
        self._path = root / "status" / f"{stage}.json"
        self._clock = clock
        self._head = {"stage": stage, "pid": os.getpid(), "space": process_space(), "started_ns": clock()}
        self._build = (version("tapeline"), platform.python_version())
        self._due_ns = 0
        self._failed = False

    def maybe(self, report: Callable[[], Mapping[str, Any]]) -> None:
        """Call `report` and write its result if a second has passed since the last write. A failure is only logged."""
        now_ns = self._clock()
        if now_ns >= self._due_ns:
            self.write(report())

    def write(self, report: Mapping[str, Any]) -> None:
        """Write the status now. `maybe` then waits a second. A failure is only logged, once until a write succeeds."""
        now_ns = self._clock()
        self._due_ns = now_ns + _EVERY_NS
        metrics = [*self._of_process(), *report.get("metrics", ())]
        text = json.dumps({**self._head, "updated_ns": now_ns, **report, "metrics": metrics})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write(self._path, text.encode(), durable=False)
        except OSError as error:
            # Not fatal: readers see from `updated_ns` that the status is old, and data is written elsewhere and reports its own problems.
            if not self._failed:
                log.warning(
                    "%s could not be written: %s. `tapeline status` shows the previous state. Free disk space, or make the folder "
                    "writable. Tapeline retries.",
                    self._path,
                    error.strerror,
                )
            self._failed = True
            return
        if self._failed:
            log.info("%s is written again.", self._path)
            self._failed = False

    def _of_process(self) -> list[Sample]:
        return [BUILD.at(1, *self._build), MEMORY.at(_resident_bytes()), CPU.at(round(time.process_time(), 3))]


def _resident_bytes() -> int:
    """The memory of this process that is in RAM; 0 if the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def worker_name(number: int) -> str:
    """The name of a normalize worker: `normalize` for 1, `normalize-2` for 2, and so on."""
    return "normalize" if number == 1 else f"normalize-{number}"


def read_status(root: Path) -> dict[str, dict[str, Any]]:
    """Stage to its last status. A file that cannot be read is left out, with a warning."""
    statuses: dict[str, dict[str, Any]] = {}
    for path in sorted((root / "status").glob("*.json")):
        try:
            statuses[path.stem] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read: %s", path, error)
    return statuses


class Rate:
    """The number of events a second since the last `take`."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._count = 0
        self._since_ns = clock()

    def add(self, count: int) -> None:
        """Count some more events."""
        self._count += count

    def take(self) -> float:
        """Return the events per second since the last call, to one decimal, and start again. A span below 0.5 s counts as 0.5 s."""
        now_ns = self._clock()
        per_s = self._count * NS_PER_S / max(_EVERY_NS // 2, now_ns - self._since_ns)
        self._count, self._since_ns = 0, now_ns
        return round(per_s, 1)
