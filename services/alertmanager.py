"""Alertmanager, which sends Prometheus' alerts to people, from the system's package."""

from __future__ import annotations

from typing import ClassVar

from services.packages import apt_install
from services.process import Found, Missing
from services.prometheus import ConfiguredServer, found

_PROGRAM = "prometheus-alertmanager"


def find() -> Found:
    """The one on the path, or `Missing`."""
    return found(_PROGRAM)


def install() -> None:
    """From Debian's package, where it is not here."""
    try:
        find()
    except Missing:
        apt_install(_PROGRAM)


class Alertmanager(ConfiguredServer):
    """One Alertmanager by itself, without a cluster."""

    name: ClassVar[str] = "alertmanager"

    def program(self) -> str:
        return str(find().where)

    def arguments(self) -> list[str]:
        return [
            f"--config.file={self.file}",
            f"--storage.path={self.folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--cluster.listen-address=",
        ]
