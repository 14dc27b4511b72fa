"""Which start of which machine this is, and whose process ids: a number in a file means something only there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PROCESS_SPACE: Final = "/proc/self/ns/pid"


def boot_id() -> str:
    """Which start of this machine it is; empty where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def process_space() -> str:
    """Where process ids mean what they mean here: containers have their own, and each start of a machine begins anew."""
    try:
        return f"{boot_id()} {os.readlink(_PROCESS_SPACE)}"
    except OSError:
        return boot_id()
