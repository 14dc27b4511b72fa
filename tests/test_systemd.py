"""The units for systemd: systemd itself accepts them and finds little exposed, and they fit what Tapeline does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from services import systemd

from brokers import need
from tapeline.app import supervisor
from tapeline.app.run import _stages
from tapeline.config import DashboardConfig, ProviderConfig, default, load
from tapeline.errors import ConfigError, NewerData, Refused

UNITS = Path(__file__).parents[1] / "deploy" / "systemd"
RUN, STAGE, REPAIR = "tapeline.service", "tapeline@.service", "tapeline@repair.service.d"
#: The most that `systemd-analyze security` may find exposed, in tenths: 0 is nothing, 100 is a service without any protection.
EXPOSED = 15


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system with the units, as docs/systemd.md installs them."""
    need(systemd)
    units, program = tmp_path / "etc" / "systemd" / "system", tmp_path / "opt" / "tapeline" / "bin" / "tapeline"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units.mkdir(parents=True)
    for name in (RUN, STAGE, "tapeline.target"):
        shutil.copy(UNITS / name, units)
    shutil.copytree(UNITS / REPAIR, units / REPAIR)
    (units / f"{RUN}.d").mkdir()
    shutil.copy(UNITS / "credentials.conf", units / f"{RUN}.d")
    # What the units name, and what systemd wants of every system.
    wanted = ("sysinit", "basic", "shutdown", "multi-user", "network-online", "time-sync", "umount", "local-fs", "network", "default")
    for name in wanted:
        (units / f"{name}.target").write_text("[Unit]\n")
    return tmp_path


def analyze(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(systemd.find().where), words[0], f"--root={root}", *words[1:]], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("unit", [RUN, "tapeline@normalize.service", "tapeline@repair.service", "tapeline.target"])
def test_systemd_accepts_a_unit_without_a_word(unit: str, root: Path) -> None:
    done = analyze(root, "verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_names_what_it_does_not_know(root: Path) -> None:
    unit = root / "etc" / "systemd" / "system" / RUN
    unit.write_text(unit.read_text().replace("ProtectHome=yes", "ProtectHomes=yes"))
    assert "Unknown key 'ProtectHomes'" in analyze(root, "verify", "--man=no", RUN).stderr


@pytest.mark.parametrize("unit", [RUN, STAGE])
def test_little_of_the_system_is_exposed_to_a_unit(unit: str, root: Path) -> None:
    path = root / "etc" / "systemd" / "system" / unit
    review = ["security", "--offline=true", f"--threshold={EXPOSED}", "--no-pager"]
    done = analyze(root, *review, unit)
    assert done.returncode == 0, done.stdout + done.stderr
    path.write_text(re.sub(r"^(NoNewPrivileges|CapabilityBoundingSet|SystemCallFilter)=.*\n", "", path.read_text(), flags=re.MULTILINE))
    assert analyze(root, *review, unit).returncode != 0


def settings(name: str) -> dict[str, dict[str, str]]:
    """The settings of a unit by section. A setting that is there twice has both values."""
    found: dict[str, dict[str, str]] = {}
    section = ""
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section = line
            found[section] = {}
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[section][key] = f"{found[section][key]} | {value}" if key in found[section] else value
    return found


def test_a_stage_alone_is_kept_in_as_all_of_them_are() -> None:
    whole, stage = settings(RUN)["[Service]"], settings(STAGE)["[Service]"]
    own = {"ExecStart", "Environment", "TimeoutStopSec", "OOMPolicy"}
    assert {key: value for key, value in whole.items() if key not in own} == {key: value for key, value in stage.items() if key not in own}


def test_a_stop_has_the_time_that_a_clean_stop_may_take() -> None:
    providers = (*default().providers, ProviderConfig(name="binance", process="other"))
    stages = _stages(type(default())(providers=providers, dashboard=DashboardConfig(run=True)), None, ["lake"])
    places = len({stage.place for stage in stages})
    longest = (places + 1) * supervisor._STOP_WITHIN_S
    assert longest < seconds(settings(RUN)["[Service]"]["TimeoutStopSec"]) < 1.2 * longest
    assert seconds(settings(STAGE)["[Service]"]["TimeoutStopSec"]) > supervisor._STOP_WITHIN_S
    assert settings(RUN)["[Service]"]["KillMode"] == "mixed", "only `tapeline run` is told: it knows the order"


def seconds(text: str) -> float:
    assert text.endswith("s"), text
    return float(text.removesuffix("s"))


def test_what_only_a_person_can_mend_is_not_started_again() -> None:
    wanted = {2, *(kind.exit_status for kind in (ConfigError, NewerData, Refused))}
    for name in (RUN, STAGE):
        found = settings(name)
        assert {int(status) for status in found["[Service]"]["RestartPreventExitStatus"].split()} == wanted
        assert found["[Service]"]["Restart"] == "on-failure"
        assert {"StartLimitBurst", "StartLimitIntervalSec"} <= found["[Unit]"].keys()


def test_the_configuration_is_right_and_its_data_is_where_the_unit_may_write() -> None:
    config, unit = load(UNITS / "tapeline.toml", {}), settings(RUN)["[Service]"]
    assert config.data_dir == f"/var/lib/{unit['StateDirectory']}" == unit["WorkingDirectory"]
    assert config.dashboard.run
    assert unit["User"] in (UNITS / "sysusers.conf").read_text().split()


def test_the_how_to_installs_every_file_and_names_no_other() -> None:
    page = (UNITS.parents[1] / "docs" / "systemd.md").read_text()
    named = set(re.findall(r"(?<![\w/])systemd/([\w@./-]+)", page))
    assert named == {str(path.relative_to(UNITS)) for path in UNITS.rglob("*") if path.is_file()}
