"""The Docker engine of the tests: what a run that was killed has left is gone after the next start."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from services import docker
from services.docker import BASE, Engine
from services.process import ServerFailed
from stacks import ROOT

from brokers import need
from proving import proof
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [proof("containers", quick=False), pytest.mark.timeout(3_600), pytest.mark.xdist_group("containers")]
#: It starts an engine with a container that comes back by itself, and prints the container's id.
_RUN: Final = """
import sys, time
from pathlib import Path
from services.docker import BASE, Engine
engine = Engine(Path(sys.argv[1]), Path(sys.argv[2])).start()
engine.import_base()
print(engine.run("run", "--detach", "--restart", "unless-stopped", "--network", "none", "--volume", "some:/data", BASE, "sleep", "4711"))
sys.stdout.flush()
time.sleep(600)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="tapeline-docker-"))  # the path of a socket must be short
    yield made
    shutil.rmtree(made, ignore_errors=True)


def processes(container: str) -> list[str]:
    """The commands of the processes with a container's id in them, and of its own process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if container in command or command == "sleep 4711 ":
            found.append(command)
    return found


def test_the_containers_of_a_run_that_was_killed_are_gone_after_the_next_start(folder: Path) -> None:
    need(docker)
    data = folder / "data"
    command = [sys.executable, "-c", _RUN, str(folder / "a"), str(data)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        container = run.stdout.readline().strip()
        assert len(container) == 64
        with pytest.raises(ServerFailed, match="Another process runs an engine"):
            Engine(folder / "b", data).start()
        run.send_signal(signal.SIGKILL)
    assert processes(container), "the container outlives its engine"
    with Engine(folder / "b", data) as engine:
        until(lambda: BASE.partition(":")[0] in engine.run("images"), "it has the images of the one that was killed")
        engine.clear()
        assert engine.run("ps", "--all", "--quiet") == ""
        assert engine.run("volume", "ls", "--quiet") == ""
    assert processes(container) == []
    assert [line for line in Path("/proc/mounts").read_text().splitlines() if f"{folder}/" in line] == []
