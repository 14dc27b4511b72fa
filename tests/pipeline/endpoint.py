"""An endpoint before a simulator that a test can kill, stall and start again at the same port."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from processes import environment

if TYPE_CHECKING:
    import signal
    from contextlib import ExitStack


class Endpoint:
    """A way to a simulator. It is a process of its own (`forwarder.py`), and ends with the stack."""

    def __init__(self, target: str, stack: ExitStack) -> None:
        self._target, self._stack, self._port = target.rpartition(":")[2], stack, "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("forwarder.py")), self._target, self._port]
        self._process = self._stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()))
        self._stack.callback(self._process.kill)
        assert self._process.stdout is not None
        self._port = self._process.stdout.readline().strip()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
