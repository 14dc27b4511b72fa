"""A release: its files have what they must, and in an empty environment, away from the repository, the wheel does all by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import urllib3
from services.process import free_port

from proving import PROVE, proof
from waiting import PATIENCE_S, until

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "src" / "tapeline" / "web" / "assets"
UV = str(Path(sys.executable).with_name("uv"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SECONDS = "20" if PROVE else "2"


class Release(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """As `make dist` builds it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "--directory", str(folder)], cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Release(wheel, sdist)


def files_of_git() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_the_wheel_has_the_package_the_page_and_the_licences_and_nothing_else(release: Release) -> None:
    with zipfile.ZipFile(release.wheel) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
    page = {str(path.relative_to(ROOT / "src")) for path in ASSETS.rglob("*") if path.is_file()}
    source = {name.removeprefix("src/") for name in files_of_git() if name.startswith("src/tapeline/")}
    about = f"tapeline-{VERSION}.dist-info"
    assert "tapeline/web/assets/index.html" in page
    assert {name for name in names if not name.startswith(about)} == source | page
    assert {f"{about}/licenses/LICENSE", f"{about}/licenses/THIRD_PARTY.md", f"{about}/METADATA"} <= names


def test_the_sdist_has_what_git_has_and_the_page(release: Release) -> None:
    with tarfile.open(release.sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    page = {str(path.relative_to(ROOT)) for path in ASSETS.rglob("*") if path.is_file()}
    assert names - {"PKG-INFO"} == files_of_git() | page


def test_the_version_is_in_one_place() -> None:
    """Where it is written; packages of their own have their own."""
    own = ("examples/", "integrations/", "native/", "clients/", "tests/", "uv.lock")
    where = [name for name in sorted(files_of_git()) if not name.startswith(own) and name.endswith((".toml", ".json", ".py", ".yml"))]
    assert [name for name in where if re.search(rf'version"?\s*[:=]\s*"{re.escape(VERSION)}"', (ROOT / name).read_text())] == [
        "pyproject.toml"
    ]


@pytest.fixture(scope="module")
def installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an empty environment, in which the wheel was installed, without extras, in the locked versions."""
    home = tmp_path_factory.mktemp("installed")
    environment = os.environ | {"UV_SYSTEM_CERTS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    locked, python = home / "locked.txt", ["--python", str(home / "bin" / "python")]
    for command in (
        [UV, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)],
        [UV, "export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--no-header", "--output-file", str(locked)],
        [UV, "pip", "install", "--quiet", *python, "--no-deps", "--requirements", str(locked)],
        [UV, "pip", "install", "--quiet", *python, "--offline", "--no-deps", str(release.wheel)],
        [UV, "pip", "check", "--quiet", *python],
    ):
        subprocess.run(command, cwd=ROOT, check=True, env=environment)
    return home / "bin"


def environment(programs: Path) -> dict[str, str]:
    """Nothing of this environment, of the repository and of the user's settings."""
    private = ("TAPELINE_", "PYTHON", "VIRTUAL_ENV", "UV_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    return {**plain, "PATH": f"{programs}{os.pathsep}/usr/bin:/bin", "COLUMNS": "200"}


@proof("install")
def test_the_installed_wheel_runs_the_demo_answers_a_query_and_serves_the_page(installed: Path, tmp_path: Path) -> None:
    def ask(*command: str) -> str:
        done = subprocess.run(
            [str(installed / "tapeline"), *command],
            cwd=tmp_path,
            env=environment(installed),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert ask("--version") == f"{VERSION}\n"
    sent = re.search(
        r"Every one of the ([\d,]+) events sent is in the lake exactly once", ask("demo", "--seconds", SECONDS, "--rate", "200")
    )
    assert sent is not None
    config = ["--config", "demo-data/tapeline.toml"]
    counted = "SELECT (SELECT count(*) FROM ticks) + (SELECT count(*) FROM bar_revisions) AS n"
    rows = int(ask("sql", counted, "--format", "csv", *config).splitlines()[-1])
    assert 0 < rows <= int(sent[1].replace(",", ""))
    address = f"127.0.0.1:{free_port()}"
    command = [str(installed / "tapeline"), "dashboard", "--listen", address, *config]
    with (tmp_path / "dashboard.log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment(installed), stdin=subprocess.DEVNULL, stderr=log)

    def get(path: str) -> bytes:
        try:
            return urllib3.request("GET", f"http://{address}{path}", retries=False).data
        except urllib3.exceptions.HTTPError:
            assert server.poll() is None, (tmp_path / "dashboard.log").read_text()
            return b""

    try:
        index = until(lambda: get("/"), "the page")
        assert index == (ASSETS / "index.html").read_bytes()
        parts = re.findall(r'(?:src|href)="/(assets/[^"]+)"', index.decode())
        assert [get(f"/{part}") for part in parts] == [(ASSETS / part).read_bytes() for part in parts]
        assert parts
        assert f'"{VERSION}"' in get("/v1/openapi.json").decode()
    finally:
        server.terminate()
        server.wait(PATIENCE_S)
    imported = "import tapeline, sys; print(tapeline.__file__)"
    where = subprocess.run(
        [str(installed / "python"), "-c", imported], cwd=tmp_path, env=environment(installed), capture_output=True, text=True
    )
    assert where.stdout.startswith(str(installed.parent)), where


@proof("install")
def test_the_native_core_is_used_as_soon_as_its_wheel_is_installed(installed: Path, tmp_path: Path) -> None:
    """It comes after the test above, which runs in the same environment without it."""

    def in_use() -> str:
        ask = "from tapeline.providers.decoding import native; print(native.in_use())"
        command = [str(installed / "python"), "-c", ask]
        return subprocess.run(command, cwd=tmp_path, env=environment(installed), check=True, capture_output=True, text=True).stdout

    assert in_use() == "Python\n"
    maturin = str(Path(sys.executable).with_name("maturin"))
    subprocess.run([maturin, "build", "--quiet", "--release", "--locked", "--out", str(tmp_path)], cwd=ROOT / "native", check=True)
    (wheel,) = tmp_path.glob("tapeline_native-*-cp311-abi3-*.whl")
    install = [UV, "pip", "install", "--quiet", "--python", str(installed / "python"), "--offline", "--no-deps", str(wheel)]
    subprocess.run(install, cwd=ROOT, check=True)
    assert in_use() == f"native core {tomllib.loads((ROOT / 'native/Cargo.toml').read_text())['package']['version']}\n"
