"""A server in a container, where it is not installed and a Docker engine runs: one project of compose.yaml for each."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals
from typing import TYPE_CHECKING, NamedTuple

from services.process import Missing, ServerFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.process import Found

_FILE = Path(__file__).with_name("compose.yaml")
_ANSWER_S = 60.0
_PULL_S = 900.0


class Image(NamedTuple):
    """A server's image, fetched to the Docker engine."""

    name: str

    def __str__(self) -> str:
        return f"{self.name} by Docker Compose"


def or_image(installed: Callable[[], Found], service: str) -> Found | Image:
    """What is installed, or else the image, or `Missing`."""
    try:
        return installed()
    except Missing as missing:
        try:
            return _image(service)
        except Missing as neither:
            raise Missing(f"{missing}, and {neither}") from None


def pull(service: str) -> None:
    """Fetch the image, or raise `Missing`."""
    name = _wanted(service)
    if problem := _docker("pull", "--quiet", name, within_s=_PULL_S):
        raise Missing(f"docker pull {name}: {problem}")


def _image(service: str) -> Image:
    name = _wanted(service)
    if _docker("image", "inspect", name):
        raise Missing(f"{name} is not fetched to the Docker engine")
    return Image(name)


def _wanted(service: str) -> str:
    """The image that compose.yaml names, where an engine could run it."""
    if _docker("info", "--format", "{{.ServerVersion}}"):
        raise Missing("no Docker engine runs")
    if _docker("compose", "version"):
        raise Missing("Docker has no compose plugin")
    images = re.findall(rf"image: (\S*{service}:\S+)", _FILE.read_text())
    if not images:
        raise Missing(f"{_FILE.name} names no image of {service}")
    return str(images[0])


def _docker(*words: str, within_s: float = _ANSWER_S) -> str:
    """What went wrong; nothing where all went well."""
    try:
        done = subprocess.run(["docker", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=within_s)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    return (done.stderr.strip() or f"status {done.returncode}") if done.returncode else ""


class Container:
    """The project of one server, told from others by its port."""

    def __init__(self, service: str, folder: Path, port: int, **further_ports: int) -> None:
        self._service = service
        self._project = ["compose", "-p", f"tapeline-{service}-{port}"]
        self._variables = [f"FOLDER={folder}", f"OWNER={os.geteuid()}:{os.getegid()}", f"PORT={port}"]
        self._variables += [f"{name}_PORT={number}" for name, number in further_ports.items()]

    def up(self, *arguments: str) -> list[str]:
        """What runs the server in the foreground: it prints what the server prints, and ends with it, and with its status."""
        flags = ["--no-color", "--no-log-prefix", "--exit-code-from", self._service]
        return self._by_file(arguments, "up", *flags, self._service)

    def once(self, *arguments: str) -> list[str]:
        """What runs the server's program beside the server, with the same folder and without its ports."""
        return self._by_file((), "run", "--rm", "--no-deps", "-T", self._service, *arguments)

    def inside(self, *command: str) -> list[str]:
        """What runs a command in the running server's container."""
        return ["docker", *self._project, "exec", "-T", self._service, *command]

    def down(self) -> list[str]:
        """What removes the container, whatever it does."""
        return ["docker", *self._project, "down", "--volumes", "--timeout", "0"]

    def tell(self, what: Signals) -> None:
        """Hold every process in it, let them go on, or send the server a signal; one that has ended or is not held needs none."""
        words = {SIGSTOP: ["pause"], SIGCONT: ["unpause"]}.get(what, ["kill", "--signal", what.name])
        problem = _docker(*self._project, *words)
        if problem and what is SIGSTOP:
            raise ServerFailed(f"the container of {self._service} cannot be paused: {problem}")

    def remove(self) -> None:
        if problem := _docker(*self.down()[1:]):
            raise ServerFailed(f"the container of {self._service} cannot be removed: {problem}")

    def _by_file(self, arguments: tuple[str, ...], *words: str) -> list[str]:
        # By `env`, so that one list of words is all there is to run.
        variables = [*self._variables, f"ARGUMENTS={shlex.join(arguments)}"]
        return ["env", *variables, "docker", *self._project, "-f", str(_FILE), *words]
