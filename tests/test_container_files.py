"""The files of deploy/docker and deploy/compose: Compose and Tapeline accept them, and nothing in them lets anybody in."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest
from services import alertmanager, compose_file, prometheus
from services.process import free_port

from brokers import need
from modules import module_at
from tapeline.app.connections import connection_plans
from tapeline.app.process_names import stage_names
from tapeline.config import load, store_password, stream_password
from tapeline.monitor.server import MonitorServer
from tapeline.orchestration.preflight import check_configuration
from tapeline.telemetry.status import StatusFile
from tapeline.web.server import check as check_dashboard
from waiting import until

ROOT: Final = Path(__file__).parent.parent
COMPOSE, DOCKER = ROOT / "deploy" / "compose", ROOT / "deploy" / "docker"
#: Profile, with simulators or not, to the services that it starts.
STAGES: Final = {"ingest", "normalize", "lake", "ledger", "repair", "schedule", "dashboard"}
STARTED: Final = {
    "light": {"tapeline"},
    "redis": {"redis", *STAGES},
    "full": {
        *("kafka", "timescale", "postgresql", "prometheus", "alertmanager", "grafana", "prefect-server", "prefect", "nextjs"),
        *STAGES,
    },
}
EACH: Final = pytest.mark.parametrize(("profile", "demo"), [(profile, demo) for profile in STARTED for demo in (False, True)])

stack = module_at(COMPOSE / "stack.py")


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder with the secrets of a first start."""
    stack.make_secrets(tmp_path / "secrets", demo=True)
    return tmp_path / "secrets"


def composed(profile: str, secrets: Path, *, demo: bool) -> dict[str, Any]:
    """The services, networks, volumes and secrets, as Compose understands them."""
    need(compose_file)
    environ = {"PATH": os.environ["PATH"], "HOME": str(secrets), **stack.settings(profile, demo=demo), "SECRETS": str(secrets)}
    return compose_file.load(COMPOSE / "compose.yaml", environ["COMPOSE_PROFILES"], environ)


@EACH
def test_compose_accepts_the_file_and_a_profile_starts_what_it_says(profile: str, demo: bool, secrets: Path) -> None:
    services = composed(profile, secrets, demo=demo)["services"]
    assert services.keys() == STARTED[profile] | ({"binance", "polygon", "alpaca"} if demo else set())
    assert int(services.get("normalize", {}).get("deploy", {}).get("replicas", 1)) == (2 if profile == "full" else 1)


def test_compose_refuses_a_file_with_a_mistake(tmp_path: Path) -> None:
    need(compose_file)
    file = tmp_path / "compose.yaml"
    for mistake in ("restarts: always", "depends_on: [nobody]", "networks: [nowhere]"):
        file.write_text(f"services:\n  one:\n    image: redis:7.0.15\n    {mistake}\n")
        with pytest.raises(ValueError, match=r"restarts|nobody|nowhere"):
            compose_file.load(file, "", os.environ)


@EACH
def test_every_container_is_bounded_pinned_and_comes_back(profile: str, demo: bool, secrets: Path) -> None:
    for name, service in composed(profile, secrets, demo=demo)["services"].items():
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), f"{name}: {service['image']} is not pinned"
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() >= {"cpus", "memory"}, name
        assert service["restart"] == "unless-stopped", name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert name == "timescale" or (service["read_only"] and service["cap_drop"] == ["ALL"]), name
        # Compose waits for a health check. The image tapeline has its own.
        check = service.get("healthcheck", {"test": ["CMD"] if "/tapeline:" in f"/{service['image']}" else []})
        assert check["test"], f"{name} has no health check"
        assert check["test"][0] != "NONE", name
        assert not check.get("disable"), name


@EACH
def test_nothing_is_published_but_on_loopback(profile: str, demo: bool, secrets: Path) -> None:
    project = composed(profile, secrets, demo=demo)
    for name, service in project["services"].items():
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}, name
        assert "network_mode" not in service, name
    for name in ("redis", "kafka", "timescale"):
        service = project["services"].get(name, {"networks": {"inside": None}})
        assert list(service["networks"]) == ["inside"], f"only Tapeline reaches {name}"
        assert "ports" not in service
    assert project["networks"]["inside"]["internal"]


@EACH
def test_tapeline_accepts_the_settings_of_every_container(
    profile: str, demo: bool, secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = composed(profile, secrets, demo=demo)["services"]
    for name, service in services.items():
        mounted = {volume["target"]: Path(volume["source"]) for volume in service.get("volumes", ()) if volume["type"] == "bind"}
        if (file := mounted.get("/etc/tapeline/tapeline.toml")) is None:
            continue
        keys = file.read_text().replace("/run/keys", str(mounted["/run/keys"]))
        (copy := tmp_path / f"{name}.toml").write_text(keys)
        environ = {key: value.replace("/run/secrets", str(secrets)) for key, value in service["environment"].items()}
        environ |= {"TAPELINE_DATA_DIR": str(tmp_path / "data"), "TAPELINE_MONITOR__LISTEN": "0.0.0.0:9464"}
        config = load(copy, environ)
        assert connection_plans(config, environ)
        check_configuration(config)
        monkeypatch.setattr("tapeline.web.server.environment", lambda environ=environ: environ)
        if "dashboard_token" in {secret["source"] for secret in service.get("secrets", ())}:
            rules = check_dashboard(config)
            assert rules.viewer.reveal() == (secrets / "dashboard_token").read_text()
        shown = {secret["source"] for secret in service.get("secrets", ())}
        assert profile != "redis" or ("redis_password" in shown and stream_password(config.stream, environ))
        assert profile != "full" or ("postgres_password" in shown and store_password(config.stores[1], environ))
        if profile != "light":
            alone = {"postgresql"} if profile == "full" else set()
            workers = {"normalize", "normalize-2"} if profile == "full" else {"normalize"}
            assert stage_names(config) == {*STAGES - {"normalize"}, *workers, *alone, "run"}


@EACH
def test_every_secret_is_a_file_that_the_first_start_makes(profile: str, demo: bool, secrets: Path) -> None:
    project = composed(profile, secrets, demo=demo)
    assert {secret["file"] for secret in project["secrets"].values()} == {str(secrets / name) for name in stack.SECRETS}
    for name, service in project["services"].items():
        for variable, value in (service.get("environment") or {}).items():
            secret = re.search(r"PASSWORD|TOKEN|SECRET|KEY", variable) and not variable.upper().endswith("FILE")
            assert not secret, f"{name} has {variable}={value} in its environment"


def test_a_secret_is_made_once_and_only_this_user_enters_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert stack.make_secrets(folder, demo=False) == list(stack.SECRETS)
    made = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    assert made.keys() == set(stack.SECRETS)
    assert len(set(made.values())) == len(made)
    assert all(len(text) >= 32 for text in made.values())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in made} == {0o444}, "a container's own user can read it"
    assert stack.make_secrets(folder, demo=True) == ["simulated"]
    assert {path.name: path.read_text() for path in folder.iterdir() if path.is_file()} == made
    ignored = subprocess.run(["git", "check-ignore", "deploy/compose/.secrets/tapeline/keys/x"], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode == 0


def test_the_demo_has_a_project_of_its_own() -> None:
    real, demo = stack.settings("full", demo=False), stack.settings("full", demo=True)
    assert real["PROJECT"] != demo["PROJECT"], "its volumes are others"
    assert real["SECRETS"] != demo["SECRETS"]


def test_the_images_have_the_version_of_tapeline() -> None:
    text = (COMPOSE / "compose.yaml").read_text() + (DOCKER / "prefect.Dockerfile").read_text()
    assert set(re.findall(r"tapeline[a-z-]*:(\d+\.\d+\.\d+)", text)) == {stack.version()}
    uv = set(re.findall(r"uv==([\d.]+)|ARG UV=([\d.]+)", "".join(path.read_text() for path in [ROOT / "Makefile", *DOCKER.iterdir()])))
    assert len({one or other for one, other in uv}) == 1, "the image's uv is that of the Makefile"


@pytest.mark.parametrize("name", ["Dockerfile", "prefect.Dockerfile", "nextjs.Dockerfile"])
def test_hadolint_finds_nothing(name: str) -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(program), "--failure-threshold", "info", str(DOCKER / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_built_with_the_bases_that_are_chosen_and_else_with_its_own() -> None:
    chosen = stack.build_command("tapeline", {"BASE": "some:1", "NATIVE": "none", "RUST": "other:2"})
    assert {"BASE=some:1", "NATIVE=none", "RUST=other:2"} <= set(chosen)
    assert not [word for word in stack.build_command("tapeline", {}) if word.startswith(("BASE", "NATIVE", "RUST"))]


def test_what_is_mounted_from_other_folders_is_there(secrets: Path) -> None:
    services = composed("full", secrets, demo=True)["services"]
    sources = {Path(volume["source"]) for one in services.values() for volume in one.get("volumes", ()) if volume["type"] == "bind"}
    assert [str(path) for path in sources if not path.exists()] == []
    assert {"recording.rules.yml", "alerting.rules.yml", "dashboards", "alertmanager.yml"} <= {path.name for path in sources}


def test_prometheus_and_alertmanager_accept_what_is_mounted(secrets: Path, tmp_path: Path) -> None:
    for kind in (prometheus, alertmanager):
        need(kind)
    services = composed("full", secrets, demo=False)["services"]
    for name in ("prometheus", "alertmanager"):
        for volume in services[name]["volumes"]:
            if volume["type"] == "bind":
                shutil.copy(volume["source"], tmp_path / Path(volume["target"]).name)
    for command in (["promtool", "check", "config", "prometheus.yml"], ["amtool", "check-config", "alertmanager.yml"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_health_check_asks_whether_the_stage_is_ready(tmp_path: Path) -> None:
    port = free_port()

    def asked() -> tuple[int, str]:
        environ = os.environ | {"TAPELINE_MONITOR__LISTEN": f"0.0.0.0:{port}"}
        command = [sys.executable, "-IS", str(DOCKER / "ready.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
        return done.returncode, done.stdout

    assert asked()[0] == 1
    assert "nothing answers" in asked()[1]
    server = MonitorServer(f"127.0.0.1:{port}", tmp_path, {"ingest"}, time.time_ns)
    server.start()
    try:
        until(lambda: asked() == (1, '{"silent": ["ingest"]}\n'), "the server answers")
        StatusFile(tmp_path, "ingest").write({})
        assert asked() == (0, '{"silent": []}\n')
    finally:
        server.stop()
