"""A Debian in a folder, as mmdebstrap makes it, that systemd-nspawn boots: for trying out what a page of the documentation installs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.packages import apt_install
from services.process import Missing, ServerFailed, last_lines

_SUITE: Final = "bookworm"
#: What a bare server has, and what the page installs: the machine has no network.
_PACKAGES: Final = "systemd,systemd-sysv,python3,python3-venv"
_PROGRAMS: Final = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "nsenter": "util-linux"}
_MAKE_S: Final = 1_800.0
_BOOT_S: Final = 120.0


def find() -> None:
    """Raise `Missing` unless this machine can make and boot another one."""
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise Missing(f"{', '.join(missing)} is not installed")
    if os.geteuid() != 0:
        raise Missing("only root can boot a machine")


def install() -> None:
    """From Debian's packages, where they are not here."""
    if missing := [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]:
        apt_install(*missing)


def make(archive: Path) -> None:
    """Make the archive of a bare Debian, unless it is there."""
    if archive.exists():
        return
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(f"partial-{archive.name}")
    command = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={_PACKAGES}", _SUITE, str(partial)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_MAKE_S)
    if done.returncode:
        raise Missing(f"mmdebstrap ended with status {done.returncode}: {done.stderr.splitlines()[-3:]}")
    partial.rename(archive)


class Machine:
    """One Debian. Before it boots, commands run in its files; afterwards beside its services, without any network but its loopback."""

    def __init__(self, root: Path, archive: Path) -> None:
        self.root = root
        self._archive = archive
        self._log = root.with_name(f"{root.name}.log")
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._first = 0

    def unpack(self) -> None:
        """Make its files."""
        self.root.mkdir(parents=True)
        subprocess.run(["tar", "--extract", "--file", str(self._archive), "--directory", str(self.root)], check=True)

    def command(self, *words: str, environment: Mapping[str, str] | None = None) -> list[str]:
        """The words of this machine's command that run a command in it, in root's home."""
        known = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **(environment or {})}
        variables = [f"{name}={value}" for name, value in known.items()]
        inside = ["env", "--ignore-environment", *variables, "sh", "-c", 'cd /root && exec "$@"', "sh", *words]
        if not self._first:
            return ["chroot", str(self.root), *inside]
        return ["nsenter", f"--target={self._first}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wdns=/", *inside]

    def run(self, *words: str, environment: Mapping[str, str] | None = None, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end."""
        command = self.command(*words, environment=environment)
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s)

    def boot(self) -> None:
        """Start its systemd, and wait until it has started everything."""
        options = ["--quiet", "--register=no", "--keep-unit", "--private-network", "--resolv-conf=off", "--timezone=off", "--console=pipe"]
        with self._log.open("wb") as log:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", *options, f"--directory={self.root}", "--boot"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _BOOT_S
        while not self._started():
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                raise ServerFailed(f"The machine did not start. {last_lines(self._log, 40)}")
            time.sleep(0.2)

    def _started(self) -> bool:
        assert self._nspawn is not None
        if not self._first:
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            first = [int(child) for child in children if _is_first(int(child))]
            self._first = first[0] if first else 0
        return bool(self._first) and self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def end(self) -> None:
        """Stop it, with all that runs in it."""
        if self._nspawn is None or self._nspawn.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._first:
                os.kill(self._first, signal.SIGRTMIN + 4)  # to systemd: power off
        try:
            self._nspawn.wait(60.0)
        except subprocess.TimeoutExpired:
            if self._first:
                os.kill(self._first, signal.SIGKILL)
            self._nspawn.kill()
            self._nspawn.wait()
        self._first = 0


def _is_first(pid: int) -> bool:
    """Whether a process is the first one of a namespace of its own, and runs systemd already."""
    try:
        ids = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")).split()[1:]
        return len(ids) > 1 and ids[-1] == "1" and Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"
    except (OSError, StopIteration):
        return False
