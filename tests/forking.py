"""A fork server: our own Python programs start as forks of one interpreter that has imported everything, instead of a new one each.

`install()` makes `subprocess.Popen` do so, in this process and in every fork. A fork is a process like any other: a pid and a session
of its own, `kill -9` kills it, and its exit status is its own. Only plain `python -m tapeline`, `python -c` and `python script.py`
of this interpreter are forked. Other programs, and commands with flags such as -u or -W, start as usual.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

#: What the programs under test import: the server does it once.
_IMPORTED = (
    "adbc_driver_manager.dbapi",
    "adbc_driver_postgresql.dbapi",
    "confluent_kafka.admin",
    "deltalake",
    "duckdb",
    "numpy",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "redis",
    "rich.live",
    "rich.table",
    "uvloop",
)
_MOST_BYTES = 1 << 20
_PLAIN_START = subprocess.Popen


class Request(NamedTuple):
    """What a client asks the server to start; its stdin, stdout and stderr travel beside it."""

    arguments: list[str]  # behind the interpreter: -m module ..., -c code ..., script ...
    environ: dict[str, str]
    folder: str
    new_session: bool
    parent: int


class ForkServer:
    """The server's process, which starts with the first program and ends with this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""
        self._given = False
        self._lock = threading.Lock()

    def connect(self) -> socket.socket:
        """A connection for one program."""
        with self._lock:
            if self._process is None and not self._given:
                self._start()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self._address)
        return connection

    def use(self, address: str) -> None:
        """Connect to a server that runs already."""
        self._address, self._given = address, True

    def stop(self) -> None:
        """End the server, and with it every fork that still runs."""
        with self._lock:
            if self._process is not None:
                self._process.communicate()
                self._process = None

    def _start(self) -> None:
        folder = tempfile.mkdtemp(prefix="forks-")
        self._address = str(Path(folder) / "socket")
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, __file__, self._address]
        # The server ends when its stdin closes: with us, however we end.
        self._process = _PLAIN_START(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, start_new_session=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the fork server did not start"


_SERVER = ForkServer()


class ForkedPopen(subprocess.Popen):  # type: ignore[type-arg]  # it stands for the generic class itself
    """`subprocess.Popen` whose plain Python programs are forks of the server."""

    _status: socket.socket | None = None

    def _execute_child(self, args: Any, *rest: Any) -> None:
        # The order in which CPython 3.9 to 3.14 pass them.
        (executable, preexec_fn, _, pass_fds, cwd, env, _, _, shell, *pipes, _, gid, gids, uid, umask, new_session, group) = rest
        same_user = (gid, gids, uid, umask, group) == (None, None, None, -1, -1)
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        plain = executable is None and not (shell or preexec_fn or pass_fds) and same_user
        if not plain or not _is_ours(args):
            super()._execute_child(args, *rest)  # type: ignore[misc]  # typeshed does not know it
            return
        environ = dict(os.environ if env is None else env)
        request = Request([str(word) for word in args[1:]], environ, str(cwd or os.getcwd()), new_session, os.getpid())
        files = [p2cread if p2cread >= 0 else 0, c2pwrite if c2pwrite >= 0 else 1, errwrite if errwrite >= 0 else 2]
        try:
            self._status = _SERVER.connect()
            socket.send_fds(self._status, [json.dumps(request).encode()], files)
            self.pid = int(self._status.recv(100))
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._status is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc,no-any-return]
        if self._status.fileno() < 0:  # nobody asks any more: this object and its socket are garbage together
            return self.pid, 0
        if wait_flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        status = int(self._status.recv(100) or 9)  # a server that is gone has killed its forks
        self._status.close()
        self._status = None
        return self.pid, status

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self._status is None or self.returncode is not None:
            return super()._internal_poll(*args, **kwargs)  # type: ignore[misc,no-any-return]
        if self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid == self.pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def install() -> None:
    """From now on Python programs of ours are forks."""
    subprocess.Popen = ForkedPopen  # type: ignore[misc]


def stop() -> None:
    """End the server and all its forks; the next program starts another one."""
    _SERVER.stop()


def _is_ours(args: Any) -> bool:
    if isinstance(args, (str, bytes)) or len(args) < 2 or str(args[0]) != sys.executable:
        return False
    first = str(args[1])
    return (first == "-m" and str(args[2]) == "tapeline") or first == "-c" or first.endswith(".py")


class _Server:
    """Forks on request; says each fork's pid, and its status when it has ended."""

    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(address)
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)
        self._running: dict[int, tuple[int, socket.socket]] = {}  # pidfd to pid and who waits for it

    def serve(self) -> Request | None:
        """Until the client is gone: None. In each fork it returns what that one is to do."""
        print("ready", flush=True)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    for pid, _ in self._running.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                if key.fileobj is self._listener:
                    if (request := self._start()) is not None:
                        return request
                else:
                    self._ended(int(key.fd))

    def _start(self) -> Request | None:
        connection, _ = self._listener.accept()
        data, files, _, _ = socket.recv_fds(connection, _MOST_BYTES, 3)
        if not data:  # it died before it asked
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            connection.close()
            self._leave()
            _take_over(files)
            return Request(*json.loads(data))
        for file in files:
            os.close(file)
        pidfd = os.pidfd_open(pid)
        self._running[pidfd] = pid, connection
        self._selector.register(pidfd, selectors.EVENT_READ)
        with suppress(OSError):
            connection.send(b"%d" % pid)
        return None

    def _ended(self, pidfd: int) -> None:
        pid, connection = self._running.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        with suppress(OSError):  # nobody waits for it any more
            connection.send(b"%d" % status)
        connection.close()

    def _leave(self) -> None:
        """A fork has nothing of the server's."""
        self._selector.close()
        self._listener.close()
        for pidfd, (_, connection) in self._running.items():
            os.close(pidfd)
            connection.close()


def _take_over(files: list[int]) -> None:
    for target, file in enumerate(files):
        os.dup2(file, target)
    for file in files:
        os.close(file)


def _become(request: Request) -> None:
    """Take over what a program can see of its process: session, folder, environment, files, parent."""
    if request.new_session:
        os.setsid()
    with suppress(OSError):  # the name that ps and top show
        Path("/proc/self/comm").write_text(" ".join(Path(word).name for word in request.arguments if word != "-m")[:15])
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environ)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 as long as the process
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    # A stage ends when its supervisor does, which it sees by its parent: that is the server, so it is told of the client instead.
    with suppress(ProcessLookupError):
        client = os.pidfd_open(request.parent)
        parent_of_a_fork = os.getppid
        os.getppid = lambda: request.parent if not select.select([client], [], [], 0)[0] else parent_of_a_fork()


def _run(request: Request) -> None:
    kind, *rest = request.arguments
    sys.path[:0] = [path for path in request.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = request.arguments
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name="__main__")


def _status_of(request: Request) -> int:
    """Run it as an interpreter would; the exit status."""
    try:
        _run(request)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 an interpreter shows whatever ended its program
        traceback.print_exc()
        return 1
    return 0


def _end(status: int) -> NoReturn:
    """As an interpreter ends, without taking apart, one by one, the modules that it shares with the server."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as every interpreter does
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:  # as an interpreter says it
        print(f"Exception ignored in: {sys.stdout!r}\n{type(error).__name__}: {error}", file=sys.stderr)
        status = 120
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def _import_everything() -> None:
    import tapeline
    from tapeline.cli import main  # noqa: F401

    for path in sorted(Path(tapeline.__file__).parent.rglob("*.py")):
        parts = ("tapeline", *path.relative_to(Path(tapeline.__file__).parent).with_suffix("").parts)
        if parts[-1] != "__main__":
            importlib.import_module(".".join(parts).removesuffix(".__init__"))
    for name in _IMPORTED:
        importlib.import_module(name)


def main() -> NoReturn:
    """The server's whole life, and each fork's."""
    address = sys.argv[1]
    _import_everything()
    install()
    _SERVER.use(address)  # forks start their own programs here too
    gc.collect()
    gc.freeze()
    request = _Server(address).serve()
    if request is None:
        os._exit(0)
    _become(request)
    _end(_status_of(request))


if __name__ == "__main__":
    # Under its own name, so that forks find the same module.
    import forking

    forking.main()
