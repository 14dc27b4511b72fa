"""`python -m services install`: fetch the servers that are not here, and say how each is had; `status`: only say.

What takes minutes is fetched only if it is named: `python -m services install docker`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from services import alertmanager, chromium, compose_file, docker, kafka, postgres, prometheus, redis, systemd
from services.container import Image, pull
from services.process import Missing

if TYPE_CHECKING:
    from services.process import Found


class _Kind(Protocol):
    def find(self) -> Found | Image: ...
    def install(self) -> None: ...


_KINDS: dict[str, _Kind] = {
    "redis": redis,
    "postgres": postgres,
    "kafka": kafka,
    "prometheus": prometheus,
    "alertmanager": alertmanager,
    "chromium": chromium,
    "systemd": systemd,
    "compose_file": compose_file,
}
#: Only the proofs of the part `containers` need these.
_ON_REQUEST: dict[str, _Kind] = {"docker": docker}


def _install(name: str, kind: _Kind) -> None:
    try:
        if isinstance(kind.find(), Image):
            return
    except Missing as missing:
        print(f"{name}: {missing}; fetching ...", flush=True)
    try:
        kind.install()
    except Missing as missing:
        try:
            pull(name)
        except Missing as neither:
            raise Missing(f"{missing}, and {neither}") from None


def main() -> int:
    """Install never fails as a whole: it says what cannot be had and goes on."""
    what, *further = sys.argv[1:] or [""]
    if what not in ("install", "status") or not _ON_REQUEST.keys() >= set(further):
        print(f"usage: python -m services install | status [{' | '.join(_ON_REQUEST)}]", file=sys.stderr)
        return 2
    for name, kind in (_KINDS | {name: _ON_REQUEST[name] for name in further}).items():
        try:
            if what == "install":
                _install(name, kind)
            print(f"{name}: {kind.find()}", flush=True)
        except Missing as missing:
            print(f"{name}: MISSING: {missing}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
