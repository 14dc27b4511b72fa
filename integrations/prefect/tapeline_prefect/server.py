"""Prefect's own server as a child of this process, on loopback, with a folder of its own: started, asked whether it is well, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

#: How long a start may take: the first one makes the database, and the machine may be busy.
_START_WITHIN_S: Final = 600.0
_STOP_WITHIN_S: Final = 20.0
#: The server's log begins anew when it is larger than this.
_LARGEST_LOG: Final = 10_000_000


def settings(home: Path, port: int) -> dict[str, str]:
    """The settings of a server of our own: everything in one folder, nothing sent to anybody."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "5",
        "DO_NOT_TRACK": "1",
    }


@dataclass
class Server:
    """The server. Its settings are in the environment (`settings`)."""

    home: Path
    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    async def ready(self) -> None:
        """Return when the server answers; start it if it does not run. Raises TimeoutError, which names its log."""
        deadline = time.monotonic() + _START_WITHIN_S
        while not await asyncio.to_thread(self._healthy):
            if not self.runs:
                self._start()
            if time.monotonic() > deadline:
                raise TimeoutError(f"Prefect's server does not answer on port {self.port}. Its log says why: {self._log}.")
            await asyncio.sleep(1.0)

    @property
    def runs(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    async def stop(self) -> None:
        """Stop the server, and kill it if it does not stop."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, _STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def _log(self) -> Path:
        return self.home / "server.log"

    def _healthy(self) -> bool:
        """Whether our server answers. One that somebody else started on this port is not ours."""
        return self.runs and answers(f"http://127.0.0.1:{self.port}/api")

    def _start(self) -> None:
        large = self._log.exists() and self._log.stat().st_size > _LARGEST_LOG
        with self._log.open("wb" if large else "ab") as output:
            # A session of its own: Ctrl-C on the terminal is for this process, which stops the server last.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tapeline_prefect.server"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        log.info("Starting Prefect's server on port %d. This takes half a minute.", self.port)


def answers(api: str) -> bool:
    """Whether a server at this address is well."""
    address = f"{api}/health"
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5.0) as answer:
        return bool(answer.status == 200)
    return False


def _stop_with(parent: int) -> None:
    """Stop this process when its parent is gone: a parent that was killed cannot stop it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run Prefect's server in this process, until its parent ends."""
    threading.Thread(target=_stop_with, args=(os.getppid(),), name="watch parent", daemon=True).start()
    from prefect.cli import app

    sys.argv = ["prefect", "server", "start"]
    app()


if __name__ == "__main__":
    main()
