"""Prometheus, which reads Tapeline's metrics, from the system's package."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

from services.container import Container
from services.packages import apt_install
from services.process import Found, Missing, Server


def find() -> Found:
    """The one on the path, or `Missing`."""
    return found("prometheus")


def install() -> None:
    """From Debian's package, where it is not here."""
    try:
        find()
    except Missing:
        apt_install("prometheus")


def found(program: str) -> Found:
    """A program of the Prometheus project on the path, or `Missing`."""
    where = shutil.which(program)
    if where is None:
        raise Missing(f"{program} is not installed")
    done = subprocess.run([where, "--version"], capture_output=True, text=True, check=True)
    return Found((done.stdout + done.stderr).partition("version ")[2].partition("+")[0].split()[0], Path(where))


def scraping(target: str) -> str:
    """A configuration that scrapes one target, host:port, every second."""
    return (
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"scrape_configs: [{{job_name: tapeline, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )


class ConfiguredServer(Server):
    """A server of the Prometheus project: it has one file of configuration, and says when it is ready."""

    def __init__(self, folder: Path, configuration: str, port: int | None = None) -> None:
        """`configuration`: the text of its file."""
        super().__init__(folder, port)
        self.configuration = configuration

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def file(self) -> Path:
        """Where the configuration is."""
        return self.folder / f"{self.name}.yml"

    def prepare(self) -> None:
        self.file.write_text(self.configuration)

    def container(self) -> Container | None:
        return None

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False


class Prometheus(ConfiguredServer):
    """One Prometheus. It keeps the native form of a histogram where it is told to, and then not the classic one."""

    name: ClassVar[str] = "prometheus"

    def __init__(self, folder: Path, configuration: str, port: int | None = None, *, native: bool = False) -> None:
        """`configuration`: the text of prometheus.yml. `native`: whether it keeps native histograms."""
        super().__init__(folder, configuration, port)
        self.native = native

    def program(self) -> str:
        return str(find().where)

    def arguments(self) -> list[str]:
        return [
            f"--config.file={self.file}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={self.address}",
            *(["--enable-feature=native-histograms"] if self.native else []),
        ]
