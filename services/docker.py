"""A Docker engine of the tests' own, with Compose: it leaves the firewall and every other engine of the machine alone."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from services.compose_file import build
from services.packages import apt_install, cache
from services.process import Found, Missing, Server, ServerFailed, family

if TYPE_CHECKING:
    from services.container import Container

#: Compose is built from its sources, by the versions and checksums of this folder.
_COMPOSE: Final = Path(__file__).with_name("compose_plugin")
#: The client that Debian's engine comes with. Another one on the path may be without BuildKit.
_CLIENT: Final = Path("/usr/bin/docker")
_PACKAGES: Final = {"dockerd": "docker.io", "iptables": "iptables", "mmdebstrap": "mmdebstrap", "tini": "tini"}
#: What Tapeline's image and the servers' images are built on.
BASE: Final = "tapeline-base:bookworm"
_IN_BASE: Final = "ca-certificates,python3-minimal,libpython3-stdlib,python3-venv"


def find() -> Found:
    """The engine, Compose and a Debian root, or `Missing`."""
    for program in _PACKAGES:
        if _which(program) is None:
            raise Missing(f"{program} is not installed")
    if not _CLIENT.exists():
        raise Missing(f"there is no {_CLIENT}")
    if not _plugin().exists():
        raise Missing("Docker Compose is not built")
    if not _root().exists():
        raise Missing("there is no Debian root to build on")
    said = subprocess.run([_which("dockerd") or "", "--version"], capture_output=True, text=True, check=True).stdout
    return Found(said.split()[2].rstrip(","), Path(_which("dockerd") or ""))


def install() -> None:
    """The engine from Debian's packages, Compose from Go's, the root from Debian's mirror. The latter two take minutes, once."""
    if os.geteuid() != 0:
        raise Missing("an engine of our own takes root")
    if missing := [package for program, package in _PACKAGES.items() if _which(program) is None]:
        apt_install(*missing)
    if not _plugin().exists():
        build("github.com/docker/compose/v2/cmd", _plugin(), _COMPOSE)
    if not _root().exists():
        _make_root()


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _home() -> Path:
    return cache() / "docker"


def _plugin() -> Path:
    return _home() / "client" / "cli-plugins" / "docker-compose"


def _root() -> Path:
    return _home() / "bookworm.tar"


def _make_root() -> None:
    made = _root().with_suffix(".part.tar")
    command = [
        "nice",
        "-n",
        "10",
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--mode=root",
        f"--include={_IN_BASE}",
        "bookworm",
        str(made),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"mmdebstrap: {done.stderr.strip()[-300:]}")
    made.replace(_root())


class Engine(Server):
    """One dockerd, on a socket in its folder. What it has built is in the cache, and is there again after a restart."""

    name: ClassVar[str] = "dockerd"

    def __init__(self, folder: Path, data: Path | None = None) -> None:
        """`data`: where the engine keeps images and volumes, if not in the cache. One engine at a time has it."""
        super().__init__(folder)
        self.data = data or _home() / "data"
        self._lock: int | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def container(self) -> Container | None:
        return None

    def prepare(self) -> None:
        self._socket.unlink(missing_ok=True)
        self.data.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = _locked(self.data)
        _end_what_was_left(self.data)

    def stop(self) -> None:
        super().stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def program(self) -> str:
        return str(find().where)

    def arguments(self) -> list[str]:
        return [
            *("--data-root", str(self.data), "--exec-root", str(self.folder / "exec"), "--pidfile", str(self.folder / "pid")),
            *("--host", self.url, "--init-path", str(_which("tini"))),
            *("--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false", "--bridge=none"),
        ]

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5.0)
            connection.connect(str(self._socket))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(200)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands that use this engine: their `docker` has Compose, and builds reach the package registries."""
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        if not (programs / "docker").exists():
            (programs / "docker").symlink_to(_CLIENT)
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_", "TAPELINE_"))}
        authorities = ssl.get_default_verify_paths().cafile
        return plain | {
            "DOCKER_HOST": self.url,
            "DOCKER_CONFIG": str(_plugin().parents[1]),
            "DOCKER_BUILDKIT": "1",
            "PATH": f"{programs}:{os.environ['PATH']}",
            "BASE": BASE,
            "BUILD_NETWORK": "host",
            **({"CA": authorities} if authorities else {}),
        }

    def run(self, *words: str, within_s: float = 600.0) -> str:
        """What `docker ...` prints. ServerFailed if it fails, with its last lines."""
        done = subprocess.run(
            ["docker", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=within_s,
        )
        if done.returncode:
            raise ServerFailed(f"docker {' '.join(words)} ended with status {done.returncode}: {(done.stdout + done.stderr)[-3_000:]}")
        return done.stdout.strip()

    def clear(self) -> None:
        """Remove every container, network and volume, and images without a name. A run that was killed has left its own."""
        if left := self.run("ps", "--all", "--quiet").split():
            self.run("rm", "--force", "--volumes", *left)
        for kind in ("network", "volume", "image"):
            self.run(kind, "prune", "--force")

    def import_base(self) -> None:
        """Make the Debian root an image, unless it is one."""
        if not self.run("images", "--quiet", BASE):
            self.run("import", str(_root()), BASE)

    @property
    def _socket(self) -> Path:
        return self.folder / "s"


def _locked(data: Path) -> int:
    """Take the lock of an engine's data for as long as this process lives. ServerFailed: another process has it."""
    file = os.open(data.with_name(f"{data.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise ServerFailed(f"Another process runs an engine with the data in {data}. Wait until it has ended.") from None
    return file


def _end_what_was_left(data: Path) -> None:
    """End the containers of an engine that was killed: their processes and mounts outlive it. The caller has the lock of the data."""
    homes = {str(data)}
    for entry in Path("/proc").iterdir():
        words = [""]
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_text(errors="replace").split("\0")
        given = dict(itertools.pairwise(words))
        if "containerd-shim" in words[0] and (data / "containers" / given.get("-id", "none")).exists():
            homes.add(given["-address"].rpartition("/containerd/")[0])
            for pid in family(int(entry.name)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed(mounted):
        if any(f"{place}/".startswith(f"{home}/") for home in homes):
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
