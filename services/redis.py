"""Redis, from the system's package or in a container."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from services.container import Container, Image, or_image
from services.packages import apt_install
from services.process import LOOPBACK, Found, Missing, Server, Tls


def find() -> Found | Image:
    """The installed one, or else its image, or `Missing`."""
    return or_image(installed, "redis")


def installed() -> Found:
    """The one on the path, or `Missing`."""
    where = shutil.which("redis-server")
    if where is None:
        raise Missing("redis-server is not installed")
    said = subprocess.run([where, "--version"], capture_output=True, text=True, check=True).stdout
    return Found(said.partition("v=")[2].split()[0], Path(where))


def install() -> None:
    """From Debian's package, where it is not here."""
    try:
        installed()
    except Missing:
        apt_install("redis-server")


class RedisServer(Server):
    """One Redis with an append-only file that is synced every second."""

    name: ClassVar[str] = "redis"

    def __init__(
        self, folder: Path, port: int | None = None, *, password: str = "", tls: Tls | None = None, maxmemory: str = "", settings: str = ""
    ) -> None:
        """`settings`: further lines of redis.conf."""
        super().__init__(folder, port)
        self.password = password
        self.tls = tls
        self.maxmemory = maxmemory
        self.settings = settings

    @property
    def url(self) -> str:
        scheme = "rediss" if self.tls else "redis"
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"{scheme}://{login}{self.address}/0"

    def prepare(self) -> None:
        lines = [
            f"bind {self.listens_on}",
            "protected-mode no",
            f"dir {self.folder}",
            "daemonize no",
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
        ]
        if self.tls is None:
            lines += [f"port {self.port}"]
        else:
            certificate, key, authority = (self.within(file) for file in self.tls)
            lines += ["port 0", f"tls-port {self.port}", f"tls-cert-file {certificate}", f"tls-key-file {key}"]
            lines += [f"tls-ca-cert-file {authority}", "tls-auth-clients no"]
        if self.password:
            lines += [f'requirepass "{self.password}"']
        if self.maxmemory:
            lines += [f"maxmemory {self.maxmemory}"]
        self._configuration.write_text("\n".join([*lines, self.settings, ""]))
        self._configuration.chmod(0o600)

    def container(self) -> Container | None:
        return Container("redis", self.folder, self.port) if isinstance(find(), Image) else None

    def program(self) -> str:
        return str(installed().where)

    def arguments(self) -> list[str]:
        return [str(self._configuration)]

    def answers(self) -> bool:
        return self.ask("PING") == "+PONG"

    def ask(self, *words: str, timeout_s: float = 2.0) -> str:
        """Send one command over a connection of its own; the first line of the answer as it came."""
        commands = [["AUTH", self.password]] if self.password else []
        with socket.create_connection((LOOPBACK, self.port), timeout_s) as plain, self._secured(plain) as connection:
            answer = ""
            with connection.makefile("rb") as lines:
                for command in [*commands, list(words)]:
                    parts = [part.encode() for part in command]
                    connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
                    answer = lines.readline().decode().strip()
                    if answer.startswith("$") and answer != "$-1":
                        answer = lines.readline().decode().strip()
            return answer

    def _secured(self, plain: socket.socket) -> socket.socket:
        if self.tls is None:
            return plain
        return ssl.create_default_context(cafile=str(self.tls.authority)).wrap_socket(plain, server_hostname=LOOPBACK)

    @property
    def _configuration(self) -> Path:
        return self.folder / "redis.conf"
