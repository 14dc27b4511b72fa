"""Reads a Compose file as Docker Compose does: by Compose's own loader, a small program in Go that needs no Docker engine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from services.packages import cache
from services.process import Found, Missing

_SOURCE: Final = Path(__file__).with_name("composing")


def find() -> Found:
    """The program in the cache, or `Missing`."""
    if not _program().exists():
        raise Missing("Compose's loader is not built")
    return Found("compose-go", _program())


def install() -> None:
    """Build it, where it is not there. Its modules are those of go.sum."""
    if not _program().exists():
        build(".", _program())


def load(file: Path, profiles: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The services, networks, volumes and secrets of a file. `profiles`: with commas between them. ValueError says what is wrong."""
    done = subprocess.run([str(_program()), str(file), profiles], capture_output=True, text=True, check=False, env=dict(environ))
    if done.returncode:
        raise ValueError(done.stderr.strip())
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def build(what: str, program: Path, folder: Path = _SOURCE) -> None:
    """Build a program in Go, one package after the other, or raise `Missing`.

    `what`: a package of the folder, whose go.sum has the checksums of its modules; or a package with its version."""
    if shutil.which("go") is None:
        raise Missing("Go 1.26 or later is not installed")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        command = ["nice", "-n", "10", "go", "install", "-p", "1", "-trimpath", "-ldflags=-s -w", what]
        environ = os.environ | {"CGO_ENABLED": "0", "GOBIN": scratch}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environ)
        if done.returncode:
            raise Missing(f"go install {what}: {done.stderr.strip()[-500:]}")
        (made,) = Path(scratch).iterdir()
        made.replace(program)


def _program() -> Path:
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_SOURCE.iterdir()))).hexdigest()[:12]
    return cache() / f"compose-file-{digest}"
