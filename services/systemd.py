"""systemd, by which the tests check Tapeline's units, from the system's package. Its programs run without it being the init system."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from services.packages import apt_install
from services.process import Found, Missing


def find() -> Found:
    """Its program that checks units, or `Missing`."""
    where = shutil.which("systemd-analyze")
    if where is None:
        raise Missing("systemd-analyze is not installed")
    said = subprocess.run([where, "--version"], capture_output=True, text=True, check=True).stdout
    return Found(said.split()[1], Path(where))


def install() -> None:
    """From Debian's package, where it is not here."""
    try:
        find()
    except Missing:
        apt_install("systemd")
