"""Chromium, in which the tests look at the dashboard's page, from the system's package."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from services.packages import apt_install
from services.process import Found, Missing

#: For a browser without a screen, a sandbox and an internet, and without anything that it does by itself.
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find() -> Found:
    """The one on the path, or `Missing`."""
    where = shutil.which("chromium")
    if where is None:
        raise Missing("chromium is not installed")
    said = subprocess.run([where, "--version"], capture_output=True, text=True, check=True).stdout
    return Found(said.removeprefix("Chromium ").split()[0], Path(where))


def install() -> None:
    """From Debian's packages, where it is not here. The page needs a font too."""
    try:
        find()
    except Missing:
        apt_install("chromium", "fonts-dejavu-core")
