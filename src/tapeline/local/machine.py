"""Identifies the current boot of the machine and the current space of process ids. A process id in a file is valid only there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PROCESS_SPACE: Final = "/proc/self/ns/pid"


def boot_id() -> str:
    """The id of the current boot of this machine; empty if the system does not give one."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def process_space() -> str:
    """A text that names the space in which this process's ids are valid. Each container and each boot has its own space."""
    try:
        return f"{boot_id()} {os.readlink(_PROCESS_SPACE)}"
    except OSError:
        return boot_id()


def is_gone(pid: int, space: str) -> bool:
    """Whether a process has ended. False if its space is another one than this process's: then nobody here can know."""
    if not space or space != process_space():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
