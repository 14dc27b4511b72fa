"""A server of our own: started, waited for, stopped, killed, paused, started again on the same port and data."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from services.container import Container

LOOPBACK = "127.0.0.1"
#: Below the ports from which Linux takes those of outgoing connections: a client that dials a killed server must not meet itself there.
_PORTS = range(15_000, 32_000)
#: A file for each port that was given out: processes that start servers side by side do not take each other's.
_RESERVATIONS = Path(tempfile.gettempdir()) / f"tapeline-ports-{os.geteuid()}"
_STOP_S = 20.0
_POLL_S = 0.02


class Missing(Exception):
    """A server cannot be had on this machine; the text says what is missing."""


class ServerFailed(Exception):
    """A server that is here did not do what it was told; the text ends with the last lines of its log."""


class Found(NamedTuple):
    """An installed server."""

    version: str
    where: Path

    def __str__(self) -> str:
        return f"{self.version} in {self.where}"


class Tls(NamedTuple):
    """PEM files: what a server shows, and whom it (and who dials it) trusts."""

    certificate: Path
    key: Path
    authority: Path


def free_port() -> int:
    """A loopback port on which nothing listens. No other call gives it while this process lives, also while its server is down."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                one.bind((LOOPBACK, port))
                if _reserve(port):
                    return port


def _reserve(port: int) -> bool:
    """Whether the port is ours now. The file's lock ends with this process, so the file is left open."""
    _RESERVATIONS.mkdir(exist_ok=True)
    file = os.open(_RESERVATIONS / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    return True


def last_lines(log: Path, count: int = 15) -> str:
    """The name of a log file and how it ends."""
    text = log.read_text(errors="replace").splitlines()[-count:] if log.exists() else []
    return "\n".join([f"{log} ends with:", *(f"    {line}" for line in text)])


class Server(ABC):
    """One server in one folder. Nothing happens before `start`; as a context manager it starts, and stops at the end."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_within_s: ClassVar[float] = 60.0

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.log = folder / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._container: Container | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it, with everything they need to get in."""

    @abstractmethod
    def prepare(self) -> None:
        """Before every start: write what the server reads, make what it needs once."""

    @abstractmethod
    def container(self) -> Container | None:
        """Where to run it, where it is not installed."""

    @abstractmethod
    def program(self) -> str:
        """What to run where it is installed; it must stay in the foreground. A container brings its own."""

    @abstractmethod
    def arguments(self) -> list[str]:
        """Of the program."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves. An OSError counts as no."""

    def user(self) -> str | None:
        """As whom to run, where it is not us."""
        return None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def listens_on(self) -> str:
        """The loopback. A container has one of its own, and its published ports, which are on ours, do not lead there."""
        return LOOPBACK if self._container is None else "0.0.0.0"

    def within(self, file: Path) -> Path:
        """A copy in the folder, which is all that a container sees."""
        copy = self.folder / file.name
        copy.write_bytes(file.read_bytes())
        copy.chmod(0o600)
        return copy

    @property
    def pid(self) -> int:
        """Of the running server, or of the program that shows what its container prints."""
        if self._process is None:
            raise ServerFailed(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start and wait until it answers."""
        if self.running:
            raise ServerFailed(f"{self.name} runs already at {self.address}")
        self._forget()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._container = self.container()
        self.prepare()
        command = self._container.up(*self.arguments()) if self._container else [self.program(), *self.arguments()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self.user(),
                group=self.user(),
                extra_groups=[] if self.user() else None,
            )
        self._watcher = _watch(self._process.pid, *(self._container.down() if self._container else ()))
        deadline = time.monotonic() + self.start_within_s
        try:
            while not self._answered():
                if self._process.poll() is not None:
                    raise ServerFailed(f"{self.name} ended with status {self._process.returncode}; {last_lines(self.log)}")
                if time.monotonic() > deadline:
                    raise ServerFailed(
                        f"{self.name} did not answer at {self.address} in {self.start_within_s:.0f} s; {last_lines(self.log)}"
                    )
                time.sleep(_POLL_S)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """Ask it to end and wait; a server that does not end is killed. Nothing to do is fine."""
        if self._process is None:
            return
        self.resume()
        if self._container:
            self._container.tell(self.stop_signal)
        else:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget()

    def kill(self) -> None:
        """End it at once, with whatever it started, as a crash would."""
        if self._process is None:
            return
        everyone = family(self._process.pid)
        if self._container:
            self._container.tell(signal.SIGKILL)
        _send(everyone, signal.SIGKILL)
        self._process.wait()
        while any(lives(pid) for pid in everyone):
            time.sleep(_POLL_S)
        self._forget()

    def pause(self) -> None:
        """Hold it: its sockets stay open and nothing answers, from when this returns."""
        self._tell(signal.SIGSTOP)
        if self._container is None:
            # The signal reaches the threads of a busy program one after the other, and the last may answer yet.
            while any(not _held(pid) for pid in family(self.pid)):
                time.sleep(_POLL_S)

    def resume(self) -> None:
        """Let a paused one go on."""
        self._tell(signal.SIGCONT)

    def restart(self) -> Self:
        """Stop if it runs, and start on the same port and data."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answered(self) -> bool:
        try:
            return self.answers()
        except OSError:
            return False

    def _tell(self, what: signal.Signals) -> None:
        if self._container:
            self._container.tell(what)
        else:
            _send(family(self.pid), what)

    def _forget(self) -> None:
        self._process = None
        if self._container is not None:
            self._container.remove()
            self._container = None
        if self._watcher is not None:
            # A line dismisses it; a closed pipe without one would mean that we have died.
            with contextlib.suppress(BrokenPipeError):
                self._watcher.communicate(b"\n")
            self._watcher = None


def _watch(pid: int, *then: str) -> subprocess.Popen[bytes]:
    """A shell that kills a server when we are gone, however we went: then the pipe that only we hold closes. `then` comes after it."""
    command = ["sh", "-c", 'read -r _ && exit; kill -s KILL -- "-$1"; shift; "$@"', "watch", str(pid), *then]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _send(pids: Iterable[int], what: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)


def _state_and_parent(pid: int) -> tuple[str, int]:
    return _state_of(Path(f"/proc/{pid}/stat"))


def _state_of(stat: Path) -> tuple[str, int]:
    # "pid (name) state ppid ...": the name may hold anything, so read from its closing bracket on.
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[1])


def _held(pid: int) -> bool:
    """Whether every thread of a process is stopped; of one that has ended there is none."""
    tasks = Path(f"/proc/{pid}/task")
    states = [_state_of(task / "stat")[0] for task in tasks.iterdir()] if tasks.exists() else []
    return all(state in "TtXZ" for state in states)


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet waited for does not."""
    return _state_and_parent(pid)[0] not in "XZ"


def family(pid: int) -> list[int]:
    """A process and all that descend from it, parents first."""
    proc = Path("/proc")
    parents = (
        {int(entry.name): _state_and_parent(int(entry.name))[1] for entry in proc.iterdir() if entry.name.isdecimal()}
        if proc.exists()
        else {}
    )
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found
