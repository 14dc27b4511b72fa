"""Environments of their own for what would not fit beside Tapeline's packages: each made of a lock, and anew when that has changed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".venvs"
UV = Path(sys.executable).with_name("uv")


def python_of(folder: Path, *, tapeline: bool = False) -> str:
    """The interpreter of the environment that `requirements.txt` in a folder locks. The first time it is fetched.

    `tapeline`: this clone's Tapeline is in it too. The lock then has Tapeline's requirements, and hatchling, which installs it."""
    lock = folder / "requirements.txt"
    home = ENVIRONMENTS / folder.name
    stamp = home / "lock.sha256"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{folder.name}.lock").open("w") as made_by_one:
        fcntl.flock(made_by_one, fcntl.LOCK_EX)
        _make(home, lock, stamp, digest, tapeline=tapeline)
    return str(home / "bin" / "python")


def _make(home: Path, lock: Path, stamp: Path, digest: str, *, tapeline: bool) -> None:
    """Fetch what the lock names, unless the stamp says that it is there."""
    if not stamp.exists() or stamp.read_text() != digest:
        uv = str(UV) if UV.exists() else shutil.which("uv")
        assert uv, "uv is needed to make the clients' environments: run `make install`"
        environment = os.environ | {"UV_SYSTEM_CERTS": "1", "UV_PYTHON_DOWNLOADS": "never"}
        into = ["--quiet", "--compile-bytecode", "--python", str(home / "bin" / "python")]
        commands = [
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)],
            [uv, "pip", "sync", *into, "--require-hashes", str(lock)],
        ]
        if tapeline:
            commands.append([uv, "pip", "install", *into, "--offline", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
        for command in commands:
            subprocess.run(command, check=True, env=environment)
        stamp.write_text(digest)


def modules_of(folder: Path) -> Path:
    """The folder of the `node_modules` that `package-lock.json` in a folder locks. The first time they are fetched."""
    home = ENVIRONMENTS / f"node-{folder.name}"
    names = ("package.json", "package-lock.json", ".npmrc")
    stamp = home / "lock.sha256"
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{home.name}.lock").open("w") as made_by_one:
        fcntl.flock(made_by_one, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != digest:
            home.mkdir(exist_ok=True)
            for name in names:
                shutil.copy(folder / name, home / name)
            subprocess.run(["npm", "ci", "--loglevel", "error", "--no-progress", "--ignore-scripts"], check=True, cwd=home)
            stamp.write_text(digest)
    return home


if __name__ == "__main__":  # the interpreter of the folder that is named, for the Makefile; with --tapeline, Tapeline is in it
    print(python_of(Path(sys.argv[1]).resolve(), tapeline="--tapeline" in sys.argv))
