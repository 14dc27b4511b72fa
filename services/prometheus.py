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
    where = shutil.which("prometheus")
    if where is None:
        raise Missing("prometheus is not installed")
    said = subprocess.run([where, "--version"], capture_output=True, text=True, check=True).stdout
    return Found(said.partition("version ")[2].partition("+")[0].split()[0], Path(where))


def install() -> None:
    """From Debian's package, where it is not here."""
    try:
        find()
    except Missing:
        apt_install("prometheus")


class Prometheus(Server):
    """One Prometheus that scrapes one target every second and keeps native histograms."""

    name: ClassVar[str] = "prometheus"

    def __init__(self, folder: Path, target: str, port: int | None = None) -> None:
        """`target`: host:port."""
        super().__init__(folder, port)
        self.target = target

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def prepare(self) -> None:
        self._configuration.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"scrape_configs: [{{job_name: tapeline, static_configs: [{{targets: ['{self.target}']}}]}}]\n"
        )

    def container(self) -> Container | None:
        return None

    def program(self) -> str:
        return str(find().where)

    def arguments(self) -> list[str]:
        return [
            f"--config.file={self._configuration}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--enable-feature=native-histograms",
        ]

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    @property
    def _configuration(self) -> Path:
        return self.folder / "prometheus.yml"
