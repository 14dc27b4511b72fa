"""Fetching what is not there: Debian packages, without starting the services that they bring, and the cache for everything else."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from services.process import Missing

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLICY = Path("/usr/sbin/policy-rc.d")


def cache() -> Path:
    """Where downloads are kept: TAPELINE_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("TAPELINE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tapeline"


def apt_install(*packages: str) -> None:
    """Install Debian packages, or raise `Missing`. Services that they bring are not started."""
    if shutil.which("apt-get") is None:
        raise Missing(f"no apt-get here; install by hand what Debian calls {' '.join(packages)}")
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if root and (shutil.which("sudo") is None or subprocess.run([*root, "true"], capture_output=True, check=False).returncode):
        raise Missing(f"not installed, and installing takes root: apt-get install {' '.join(packages)}")
    install = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    with _nothing_starts(root):
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            subprocess.run([*root, "apt-get", "update", "-qq"], capture_output=True, check=False)
            done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"apt-get install {' '.join(packages)}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]}")


@contextmanager
def _nothing_starts(root: list[str]) -> Iterator[None]:
    """Debian asks this file whether a package may start its service."""
    if _POLICY.exists():
        yield
        return
    subprocess.run([*root, "sh", "-c", f"printf '#!/bin/sh\\nexit 101\\n' > {_POLICY} && chmod 755 {_POLICY}"], check=True)
    try:
        yield
    finally:
        subprocess.run([*root, "rm", "-f", str(_POLICY)], check=True)
