"""A stand-in for Docker and its compose plugin, where no engine runs: what would run in a container runs as a process.

A folder is its engine. `calls` has what it was told, `images` what was pulled, and a file for each project the process. It shows that the
right thing is asked of Docker at the right time. What only a container has it does not show: a loopback, files and users of its own.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from services import kafka, postgres, redis
from services.postgres import PostgresServer
from services.process import LOOPBACK, family, lives


def main(engine: Path, words: list[str]) -> int:
    note(engine / "calls", shlex.join(words))
    match words:
        case ["info", *_] | ["compose", "version"]:
            return 0
        case ["pull", "--quiet", image]:
            note(engine / "images", image)
            return 0
        case ["image", "inspect", image]:
            return image not in (engine / "images").read_text().splitlines()
        case ["compose", "-p", project, "-f", _, "up", *_, service]:
            return up(engine / project, service, shlex.split(os.environ["ARGUMENTS"]))
        case ["compose", "-p", _, "-f", _, "run", "--rm", "--no-deps", "-T", service, *arguments]:
            return subprocess.run(local(service, arguments), check=False).returncode
        case ["compose", "-p", _, "exec", "-T", service, "java", *arguments]:
            return subprocess.run(local(service, arguments), check=False).returncode
        case ["compose", "-p", project, "pause"]:
            return send(engine / project, signal.SIGSTOP)
        case ["compose", "-p", project, "unpause"]:
            return send(engine / project, signal.SIGCONT)
        case ["compose", "-p", project, "kill", "--signal", name]:
            return send(engine / project, signal.Signals[name])
        case ["compose", "-p", project, "down", "--volumes", "--timeout", "0"]:
            send(engine / project, signal.SIGKILL)
            (engine / project).unlink(missing_ok=True)
            return 0
    print("the stand-in does not know this", words, file=sys.stderr)
    return 64


def note(file: Path, line: str) -> None:
    with file.open("a") as lines:
        lines.write(f"{line}\n")


def up(project: Path, service: str, arguments: list[str]) -> int:
    """Like a container the server outlives the program that shows its output."""
    user = None
    if service == "postgres":
        cluster = PostgresServer(Path(os.environ["FOLDER"]), int(os.environ["PORT"]))
        cluster.prepare()
        user = cluster.user()
    command = local(service, arguments)
    server = subprocess.Popen(command, start_new_session=True, user=user, group=user, extra_groups=[] if user else None)
    project.write_text(str(server.pid))
    return server.wait() % 256


def local(service: str, arguments: list[str]) -> list[str]:
    """What does here what the image does there, on the loopback, where an engine publishes its ports."""
    for name in ("redis.conf", "server.properties"):
        if (file := Path(os.environ.get("FOLDER", "/nowhere")) / name).exists():
            file.write_text(file.read_text().replace("0.0.0.0", LOOPBACK))
    programs = {
        "redis": lambda: redis.installed().where,
        "postgres": lambda: postgres.installed().where / "postgres",
        "kafka": lambda: kafka.java().program,
    }
    told = [argument.replace("0.0.0.0", LOOPBACK) for argument in arguments]
    if service == "kafka":
        told = [argument.replace("/opt/kafka/libs/", f"{kafka.installed().where}/") for argument in told]
    return [str(programs[service]()), *told]


def send(project: Path, what: signal.Signals) -> int:
    if not project.exists() or not lives(server := int(project.read_text())):
        return 1
    all_of_it = what in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL)
    told = family(server) if all_of_it else [server]
    for pid in told:
        with suppress(ProcessLookupError):
            os.kill(pid, what)
    while what == signal.SIGKILL and any(lives(pid) for pid in told):
        time.sleep(0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
