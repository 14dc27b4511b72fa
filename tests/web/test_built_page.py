"""The page as it is built: its own tests pass, a wheel has it, and an installed wheel serves it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import urllib3
from pages import ASSETS, ROOT
from processes import COMMAND, environment
from watched import free_port

from waiting import until

if TYPE_CHECKING:
    from pathlib import Path


def test_the_page_s_own_tests_pass() -> None:
    command = [sys.executable, str(ROOT / "web" / "build.py"), "test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_lock_file_names_no_registry() -> None:
    assert "resolved" not in (ROOT / "web" / "package-lock.json").read_text()


def test_a_wheel_has_the_page_and_serves_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as file:
        built = {str(path.relative_to(ASSETS.parents[2])) for path in ASSETS.rglob("*") if path.is_file()}
        assert built <= set(file.namelist())
        assert not any("node_modules" in name for name in file.namelist())
        file.extractall(installed)
    address = f"127.0.0.1:{free_port()}"
    known = environment(TAPELINE_DATA_DIR=str(tmp_path / "data"), PYTHONPATH=os.pathsep.join([str(installed), *sys.path]))
    with subprocess.Popen([*COMMAND, "dashboard", "--listen", address], env=known, stderr=subprocess.PIPE, cwd=tmp_path) as server:

        def get(path: str) -> str:
            try:
                return urllib3.request("GET", f"http://{address}{path}", retries=False).data.decode()
            except urllib3.exceptions.HTTPError:
                assert server.poll() is None
                return ""

        index = until(lambda: get("/"), "the page")
        server.terminate()
    assert index == (ASSETS / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="/(assets/[^"]+)"', index)) <= {str(path.relative_to(ASSETS)) for path in ASSETS.rglob("*")}
