"""A stage that is asked to stop stops, whatever it was doing just then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tapeline.errors import Busy
from tapeline.local.locks import own

if TYPE_CHECKING:
    from pathlib import Path

# Another process asks, as a supervisor does: the signal then falls anywhere into the main thread's waiting, also where that holds the
# lock of what it waits for.
_ASKED_OFTEN = """
import os, subprocess, sys
from tapeline.cli.terminal import stop_on_signal

asking = "import os, signal, sys\\nfor line in sys.stdin: os.kill(int(line), signal.SIGTERM)"
other = subprocess.Popen([sys.executable, "-c", asking], stdin=subprocess.PIPE, bufsize=0)
for _ in range(2000):
    stop = stop_on_signal()
    other.stdin.write(b"%d\\n" % os.getpid())
    while not stop.wait(0.00002):
        pass
other.stdin.close()
other.wait()
print("stopped each time")
"""


def test_a_signal_is_heard_also_while_the_main_thread_is_about_to_wait_for_it() -> None:
    ended = subprocess.run([sys.executable, "-c", _ASKED_OFTEN], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "stopped each time\n"), ended.stderr


def test_a_stage_that_waits_for_its_predecessor_s_end_is_stopped_at_once(tmp_path: Path) -> None:
    config = tmp_path / "tapeline.toml"
    config.write_text(f'data_dir = "{tmp_path / "data"}"\n')
    with own(tmp_path / "data" / "locks" / "ledger", "tapeline ledger"):
        command = [sys.executable, "-m", "tapeline", "ledger", "--config", str(config)]
        supervised = {**os.environ, "TAPELINE_LOG": f"supervised {os.getpid()}"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=supervised) as stage:
            try:
                assert stage.stderr is not None
                said = stage.stderr.readline()
                assert f"tapeline ledger, process {os.getpid()}" in said
                stage.send_signal(signal.SIGTERM)
                assert (stage.wait(10.0), "was stopped while it waited" in stage.stderr.read()) == (75, True)
            finally:
                stage.kill()


# A client's library blocks in a call of its own, and Python runs a handler only once that has ended.
_ASKED_AMID_A_LONG_CALL = """
import hashlib, os, subprocess, sys, threading, time
from tapeline.cli.terminal import stop_on_signal

stop = stop_on_signal()
heard = []
threading.Thread(target=lambda: heard.append(stop.wait() and time.monotonic()), daemon=True).start()
rounds = 100_000
while True:
    began = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
    if (took := time.monotonic() - began) > 0.5:
        break
    rounds *= 2
other = subprocess.Popen(["sh", "-c", f"sleep {took / 2}; kill -TERM {os.getpid()}"])
hashlib.pbkdf2_hmac("sha256", b"", b"", 8 * rounds)
ended = time.monotonic()
other.wait()
print("heard at once" if heard and heard[0] < ended - took else f"heard late: {heard}, {ended}")
"""


def test_a_signal_is_heard_at_once_also_while_the_main_thread_is_in_a_library_s_call() -> None:
    ended = subprocess.run([sys.executable, "-c", _ASKED_AMID_A_LONG_CALL], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "heard at once\n"), ended.stderr


def test_who_meets_another_command_is_told_to_wait_and_who_meets_its_own_to_stop_it(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "lake"
    with own(lock, "tapeline compact"):
        with (
            pytest.raises(Busy, match="tapeline lake prune cannot run now: tapeline compact, process") as met,
            own(lock, "tapeline lake prune"),
        ):
            pass
        assert str(met.value).endswith("Run it again when that process has ended.")
        with (
            pytest.raises(Busy, match="tapeline compact already runs here: tapeline compact, process") as met,
            own(lock, "tapeline compact"),
        ):
            pass
        assert str(met.value).endswith("Stop that process first, or set another data_dir.")
