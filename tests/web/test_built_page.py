"""The page as it is built: its own tests pass, and its packages come from wherever the machine has them from."""

from __future__ import annotations

import subprocess
import sys

from pages import ROOT


def test_the_page_s_own_tests_pass() -> None:
    command = [sys.executable, str(ROOT / "web" / "build.py"), "test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_lock_file_names_no_registry() -> None:
    assert "resolved" not in (ROOT / "web" / "package-lock.json").read_text()
