"""PostgreSQL, from the system's packages: a cluster of its own in the folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from services.packages import apt_install
from services.process import LOOPBACK, Found, Missing, Server, ServerFailed, last_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

_USER = "tapeline"


def find() -> Found:
    """The newest one installed, or `Missing`."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    if (on_path := shutil.which("postgres")) is not None:
        folders.append(Path(on_path).resolve().parent)
    for folder in folders:
        if all((folder / program).exists() for program in ("postgres", "initdb", "psql", "pg_isready")):
            said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
            return Found(said.split()[2], folder)
    raise Missing("PostgreSQL's server is not installed")


def has_extension(name: str) -> bool:
    """Whether an extension is installed beside the server."""
    command = [str(find().where / "pg_config"), "--sharedir"]
    try:
        shared = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        shared = f"/usr/share/postgresql/{find().where.parent.name}"
    return (Path(shared) / "extension" / f"{name}.control").exists()


def install() -> None:
    """From Debian's packages, where it is not here."""
    try:
        find()
    except Missing:
        apt_install("postgresql")


class PostgresServer(Server):
    """One PostgreSQL. It refuses to run as root: started by root it runs as the user `postgres`, who must be able to reach the folder."""

    name: ClassVar[str] = "postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # does not wait for the clients to leave

    def __init__(self, folder: Path, port: int | None = None, *, settings: Mapping[str, str] | None = None) -> None:
        """`settings`: further ones of postgresql.conf, such as `shared_preload_libraries`."""
        super().__init__(folder, port)
        self._settings = dict(settings or {})

    @property
    def url(self) -> str:
        return f"postgresql://{_USER}@{self.address}/postgres"

    def user(self) -> str | None:
        return "postgres" if os.geteuid() == 0 else None

    def prepare(self) -> None:
        if (self._data / "PG_VERSION").exists():
            return
        self._data.mkdir(mode=0o700, exist_ok=True)
        if (user := self.user()) is not None:
            known = pwd.getpwnam(user)
            os.chown(self._data, known.pw_uid, known.pw_gid)
        command = [
            str(find().where / "initdb"),
            "-D",
            str(self._data),
            "-U",
            _USER,
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd="/", user=user, group=user, extra_groups=[] if user else None
        )
        if done.returncode:
            raise ServerFailed(f"initdb failed: {done.stderr.strip()}")

    def command(self) -> list[str]:
        settings = {"listen_addresses": LOOPBACK, "port": str(self.port), "unix_socket_directories": "", "shared_buffers": "32MB"}
        settings |= self._settings
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        return [str(find().where / "postgres"), "-D", str(self._data), *flags]

    def answers(self) -> bool:
        return not subprocess.run(
            [find().where / "pg_isready", "-q", "-t", "2", "-h", LOOPBACK, "-p", str(self.port)], check=False, capture_output=True
        ).returncode

    def ask(self, sql: str, timeout_s: float = 30.0) -> str:
        """Run SQL by psql; the rows without decoration."""
        command = [str(find().where / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-c", sql]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
        if done.returncode:
            raise ServerFailed(f"psql: {done.stderr.strip()}; {last_lines(self.log)}")
        return done.stdout.strip()

    @property
    def _data(self) -> Path:
        return self.folder / "data"
