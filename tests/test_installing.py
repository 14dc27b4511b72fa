"""docs/systemd.md, done: its commands take a bare Debian, booted with its own systemd, to a pipeline that runs as the page says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from services import debian
from services.debian import Machine

from proving import proof
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "systemd.md").read_text()
UV = str(Path(sys.executable).with_name("uv"))
TAPELINE, CONFIG = "/opt/tapeline/bin/tapeline", "/etc/tapeline/tapeline.toml"
CONFIGURED = """
data_dir = "/var/lib/tapeline"
repair = false
[[providers]]
name = "binance"
url = "ws://127.0.0.1:9101"
symbols = ["BTCUSDT"]
channels = ["trade"]
[[stores]]
flush_seconds = 0.5
[dashboard]
run = true
"""
pytestmark = [proof("install", quick=False), pytest.mark.timeout(3_600)]


def section(heading: str) -> str:
    (body,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(body)


def commands(heading: str) -> list[str]:
    """The blocks of commands of a section of the page."""
    return re.findall(r"```sh\n(.*?)```", section(heading), re.DOTALL)


def wheels(folder: Path) -> None:
    """Put Tapeline's wheel, and those of all that it needs, where pip finds them without a network."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)], cwd=ROOT, check=True)
    locked = folder / "locked.txt"
    export = [UV, "export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--no-header", "--output-file", str(locked)]
    subprocess.run(export, cwd=ROOT, check=True)
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*fetch, "--python-version", "3.11", "--dest", str(folder), "--requirement", str(locked)], check=True)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A booted Debian in which the page was followed up to the first start."""
    debian.install()
    debian.find()
    archive = ROOT / ".cache" / "debian" / "bookworm.tar"
    debian.make(archive)
    made = Machine(tmp_path_factory.mktemp("machine") / "root", archive)
    made.unpack()
    shutil.copytree(ROOT / "deploy" / "systemd", made.root / "root" / "systemd")
    wheels(made.root / "root" / "wheels")
    (wheel,) = (made.root / "root" / "wheels").glob("tapeline-*.whl")
    shutil.copy(wheel, made.root / "root")
    for block in [*commands("Install Tapeline"), *commands("Install the service")]:
        follow(made, block, {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/root/wheels", "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    configure(made, CONFIGURED)
    try:
        made.boot()
        yield made
    finally:
        made.end()


def follow(machine: Machine, block: str, environment: dict[str, str] | None = None) -> str:
    done = machine.run("sh", "-ec", block, environment=environment)
    assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
    return done.stdout


def configure(machine: Machine, text: str) -> None:
    (machine.root / CONFIG.removeprefix("/")).write_text(text)


@pytest.fixture(scope="module", autouse=True)
def simulators(machine: Machine) -> Iterator[None]:
    """The providers, in the machine."""
    started = [
        subprocess.Popen(machine.command(TAPELINE, "simulate", name, "--port", port, "--rate", "100"), stdout=subprocess.DEVNULL)
        for name, port in (("binance", "9101"), ("alpaca", "9102"))
    ]
    yield
    for process in started:
        process.kill()
        process.wait()


def shown(machine: Machine, unit: str = "tapeline") -> dict[str, str]:
    """What systemd knows of a unit."""
    lines = machine.run("systemctl", "show", unit).stdout.splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def journal(machine: Machine) -> str:
    return machine.run("journalctl", "--no-pager", "--output", "cat").stdout


def rows(machine: Machine, provider: str) -> int:
    """How many ticks of a provider the lake has, as the page says to ask."""
    query = f"SELECT count(*) FROM ticks WHERE provider = '{provider}'"
    done = machine.run("runuser", "--user", "tapeline", "--", TAPELINE, "sql", query, "--format", "csv", "--config", CONFIG)
    return int(done.stdout.splitlines()[-1]) if done.returncode == 0 else 0


def grows(machine: Machine, provider: str = "binance") -> None:
    before = rows(machine, provider)
    until(lambda: rows(machine, provider) > before, f"more of {provider} in the lake: {journal(machine)[-3000:]}")


def test_it_runs_and_everything_that_the_page_shows_can_be_looked_at(machine: Machine) -> None:
    start, look, *_ = commands("Start it")
    follow(machine, start)
    grows(machine)
    assert "binance" in follow(machine, look)
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8765/').read().decode())"
    assert '<script type="module"' in follow(machine, f'/opt/tapeline/bin/python -c "{fetch}"')


def test_the_service_is_kept_in(machine: Machine) -> None:
    known = shown(machine)
    main = int(known["MainPID"])
    status = dict(line.split(":\t", 1) for line in follow(machine, f"cat /proc/{main}/status").splitlines() if ":\t" in line)
    assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"], status["Seccomp"]) == ("0" * 16, "0" * 16, "1", "2")
    tried = "for place in / /etc /opt/tapeline /home /var/tmp; do touch $place/x && echo $place; done; ls -A /home; ls -A /root; true"
    inside = ["nsenter", f"--target={main}", "--mount", "--setuid=0", "sh", "-c", tried]
    done = machine.run(*inside)
    assert done.stdout.split() == ["/var/tmp"], "its own /var/tmp is all it may write to, and homes are empty"
    assert not re.search(r"ignoring|Unknown key|not supported", journal(machine)), journal(machine)


def test_a_run_that_was_killed_is_started_again(machine: Machine) -> None:
    before = shown(machine)
    follow(machine, f"kill -9 {before['MainPID']}")
    after = until(lambda: (now := shown(machine))["MainPID"] not in ("0", before["MainPID"]) and now, "it is started again")
    assert int(after["NRestarts"]) == int(before["NRestarts"]) + 1
    grows(machine)


def test_keys_come_as_credentials(machine: Machine) -> None:
    make, use = commands("Give it secrets")
    follow(machine, make)
    for name, text in (("alpaca-key", "a-key-of-this-test"), ("alpaca-secret", "a-secret-of-this-test")):
        (machine.root / "etc" / "tapeline" / "credentials" / name).write_text(text)
    (named,) = re.findall(r"```toml\n(.*?)```", section("Give it secrets"), re.DOTALL)
    configure(machine, CONFIGURED + named + 'url = "ws://127.0.0.1:9102"\n')
    follow(machine, use)
    grows(machine, "alpaca")
    assert "of-this-test" not in journal(machine)
    main = shown(machine)["MainPID"]
    assert "of-this-test" not in follow(machine, f"cat /proc/{main}/environ")


def test_a_stop_is_clean(machine: Machine) -> None:
    follow(machine, "systemctl stop tapeline")
    known = shown(machine)
    assert (known["ActiveState"], known["Result"], known["ExecMainStatus"]) == ("inactive", "success", "0")
    assert "Stopped: everything received is in the stores." in journal(machine)


def test_a_wrong_configuration_is_not_tried_again(machine: Machine) -> None:
    configure(machine, CONFIGURED.replace("repair", "repare"))
    machine.run("systemctl", "start", "tapeline")
    until(lambda: shown(machine)["ActiveState"] == "failed", "it has failed")
    known = shown(machine)
    assert (known["ExecMainStatus"], known["NRestarts"]) == ("78", "0")
    assert "Did you mean 'repair'?" in journal(machine)
    configure(machine, CONFIGURED)
    for block in commands("If it fails"):
        follow(machine, block)
    grows(machine)


def test_stages_are_services_of_their_own(machine: Machine) -> None:
    (block,) = commands("Stages as services of their own")
    follow(machine, block)
    grows(machine)
    stages = ("ingest", "normalize", "store", "ledger")
    assert [shown(machine, f"tapeline@{stage}")["ActiveState"] for stage in stages] == ["active"] * 4
    assert shown(machine)["ActiveState"] == "inactive"
    follow(machine, "systemctl start tapeline@repair")
    until(lambda: "repair --follow" in shown(machine, "tapeline@repair")["Environment"], "repair's own command")
    follow(machine, "systemctl stop tapeline.target")
    until(lambda: {shown(machine, f"tapeline@{stage}")["ActiveState"] for stage in stages} == {"inactive"}, "all of them end")
    status = json.loads(follow(machine, f"runuser --user tapeline -- {TAPELINE} status --format json --config {CONFIG} || true"))
    assert all(entry["balanced"] for entry in status["equations"])
