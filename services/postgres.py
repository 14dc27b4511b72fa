"""PostgreSQL, from the system's packages or in a container: a cluster of its own in the folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from services.container import Container, Image, or_image
from services.packages import apt_install
from services.process import LOOPBACK, Found, Missing, Server, ServerFailed, last_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

_USER = "tapeline"


def find() -> Found | Image:
    """The installed one, or else its image, or `Missing`."""
    return or_image(installed, "postgres")


def installed() -> Found:
    """The newest one, or `Missing`."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    if (on_path := shutil.which("postgres")) is not None:
        folders.append(Path(on_path).resolve().parent)
    for folder in folders:
        if all((folder / program).exists() for program in ("postgres", "initdb", "psql")):
            said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
            return Found(said.split()[2], folder)
    raise Missing("PostgreSQL's server is not installed")


def has_extension(name: str) -> bool:
    """Whether an extension is installed beside the server. The image brings none of others."""
    try:
        server = installed().where
    except Missing:
        return False
    command = [str(server / "pg_config"), "--sharedir"]
    try:
        shared = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        shared = f"/usr/share/postgresql/{server.parent.name}"
    return (Path(shared) / "extension" / f"{name}.control").exists()


def install() -> None:
    """From Debian's packages, where it is not here."""
    try:
        installed()
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

    def container(self) -> Container | None:
        return Container("postgres", self.folder, self.port) if isinstance(find(), Image) else None

    def user(self) -> str | None:
        return "postgres" if os.geteuid() == 0 and not self._container else None

    def prepare(self) -> None:
        if self._container or (self._data / "PG_VERSION").exists():
            return  # a container makes its cluster itself
        self._data.mkdir(mode=0o700, exist_ok=True)
        if (user := self.user()) is not None:
            known = pwd.getpwnam(user)
            os.chown(self._data, known.pw_uid, known.pw_gid)
        command = [
            str(installed().where / "initdb"),
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

    def program(self) -> str:
        return str(installed().where / "postgres")

    def arguments(self) -> list[str]:
        settings = {"listen_addresses": self.listens_on, "port": str(self.port), "shared_buffers": "32MB"}
        if self._container is None:
            settings["unix_socket_directories"] = ""  # the usual one is not ours; in a container it is, and making the cluster takes it
        settings |= self._settings
        return ["-D", str(self._data), *(flag for name, value in settings.items() for flag in ("-c", f"{name}={value}"))]

    def answers(self) -> bool:
        try:
            return self.ask("SELECT 1", 2.0) == "1"
        except ServerFailed:
            return False

    def ask(self, sql: str, timeout_s: float = 30.0) -> str:
        """Run SQL over a connection of its own; the rows as text, with `|` between their values."""
        hello = struct.pack(">i", 3 << 16) + f"user\0{_USER}\0database\0postgres\0\0".encode()
        query = sql.encode() + b"\0"
        rows: list[str] = []
        with socket.create_connection((LOOPBACK, self.port), timeout_s) as connection, connection.makefile("rb") as answers:
            connection.sendall(struct.pack(">i", 4 + len(hello)) + hello)
            asked = False
            for kind, said in _messages(answers):
                if kind == b"E":
                    raise ServerFailed(f"{self.name}: {_error(said)}; {last_lines(self.log)}")
                if kind == b"D":
                    rows += ["|".join(_values(said))]
                if kind == b"Z" and asked:
                    return "\n".join(rows)
                if kind == b"Z":
                    connection.sendall(b"Q" + struct.pack(">i", 4 + len(query)) + query)
                    asked = True
        raise ConnectionResetError(f"{self.name} hung up")

    @property
    def _data(self) -> Path:
        return self.folder / "data"


def _messages(answers: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Kind and contents of what PostgreSQL says, until it hangs up."""
    while len(head := answers.read(5)) == 5:
        yield head[:1], answers.read(struct.unpack(">i", head[1:])[0] - 4)


def _values(row: bytes) -> Iterator[str]:
    at = 2
    while at < len(row):
        (size,) = struct.unpack_from(">i", row, at)
        yield row[at + 4 : at + 4 + max(size, 0)].decode()
        at += 4 + max(size, 0)


def _error(said: bytes) -> str:
    fields = {field[:1]: field[1:].decode(errors="replace") for field in said.split(b"\0") if field}
    return f"{fields.get(b'S', '')}: {fields.get(b'M', '')}"
