"""Builds the images and runs Tapeline in containers: what `make image`, `make up` and `make down` do.

The first start makes a password for each server: a file that only this user and the containers can read. Nothing has a default password.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
PROFILES: Final = ("light", "redis", "full")
#: The files that compose.yaml gives to the containers.
SECRETS: Final = ("dashboard_token", "operator_token", "redis_password", "postgres_password", "grafana_password", "prefect_password")
#: Image to its Dockerfile and the arguments that name what it is built on.
IMAGES: Final = {
    "tapeline": ("Dockerfile", ("BASE", "NATIVE", "RUST")),
    "tapeline-prefect": ("prefect.Dockerfile", ("TAPELINE",)),
    "tapeline-nextjs": ("nextjs.Dockerfile", ("NODE",)),
}
_OF_PROFILE: Final = {"light": ("tapeline",), "redis": ("tapeline",), "full": tuple(IMAGES)}
#: A page of the profile to the variable with its port.
_PAGES: Final = {
    "dashboard": ("DASHBOARD_PORT", 8765),
    "nextjs": ("NEXTJS_PORT", 3000),
    "grafana": ("GRAFANA_PORT", 3001),
    "prefect-server": ("PREFECT_PORT", 4200),
    "prometheus": ("PROMETHEUS_PORT", 9090),
    "alertmanager": ("ALERTMANAGER_PORT", 9093),
}


def make_secrets(folder: Path, *, demo: bool) -> list[str]:
    """Make the files that are missing, and return their names. A file that is there stays as it is.

    Compose passes a file on with its owner and mode, and each image has users of its own. So everybody may read the files, and only this
    user may enter the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    keys = folder / "keys"
    keys.mkdir(exist_ok=True)
    keys.chmod(0o755)
    made = []
    for path in [*(folder / name for name in SECRETS), *([keys / "simulated"] if demo else [])]:
        if not path.exists():
            path.write_text(secrets.token_urlsafe(32))
            made.append(path.name)
        path.chmod(0o444)
    return made


def settings(profile: str, *, demo: bool) -> dict[str, str]:
    """The variables of compose.yaml. The demo has a project of its own, so that invented data never meets real data."""
    project = "tapeline-demo" if demo else "tapeline"
    found = {
        "PROFILE": profile,
        "PROJECT": project,
        "COMPOSE_PROFILES": f"{profile},demo" if demo else profile,
        "SECRETS": str(HERE / ".secrets" / project),
        "WORKERS": "2" if profile == "full" else "1",
        "CPUS": str(min(2, os.cpu_count() or 1)),  # Docker refuses a limit above what there is
    }
    return found | ({"TAPELINE_TOML": str(HERE / "demo.toml")} if demo else {})


def version() -> str:
    """Tapeline's version, which is the tag of the images."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def build_command(image: str, environ: Mapping[str, str]) -> list[str]:
    """What builds an image. BASE, NATIVE, RUST, NODE and CA of the environment choose other bases and certificate authorities."""
    file, bases = IMAGES[image]
    command = ["docker", "build", "--file", str(ROOT / "deploy" / "docker" / file), "--tag", f"{image}:{version()}"]
    arguments = {"VERSION": version(), "REVISION": _git("rev-parse", "HEAD"), "SOURCE_DATE_EPOCH": _git("log", "-1", "--format=%ct")}
    arguments |= {base: f"tapeline:{version()}" if base == "TAPELINE" else environ.get(base, "") for base in bases}
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"] if value else []
    command += ["--network", environ["BUILD_NETWORK"]] if environ.get("BUILD_NETWORK") else []
    command += ["--secret", f"id=ca,src={environ['CA']}"] if environ.get("CA") else []
    return [*command, str(ROOT)]


def _git(*words: str) -> str:
    """What git says of this clone; empty outside of one."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _build(images: tuple[str, ...]) -> None:
    for image in images:
        print(f"Building {image}:{version()} ...", flush=True)
        subprocess.run(build_command(image, os.environ), check=True, env={**os.environ, "DOCKER_BUILDKIT": "1"})


def _compose(chosen: Mapping[str, str], *words: str) -> None:
    subprocess.run(["docker", "compose", "--file", str(HERE / "compose.yaml"), *words], check=True, env={**os.environ, **chosen})


def _up(profile: str, *, demo: bool) -> None:
    chosen = settings(profile, demo=demo)
    folder = Path(chosen["SECRETS"])
    for name in make_secrets(folder, demo=demo):
        print(f"Made the secret {folder / name}.")
    _build(_OF_PROFILE[profile])
    _compose(chosen, "up", "--detach", "--wait", "--wait-timeout", "600", "--remove-orphans")
    print(f"Everything is healthy. The token of the dashboard is in {folder / 'dashboard_token'}.")
    for page, (variable, port) in _PAGES.items():
        if page == "dashboard" or profile == "full":
            print(f"  {page:14} http://127.0.0.1:{os.environ.get(variable, port)}")


def main() -> int:
    """Status 1: a command of Docker failed, and has said why."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("image", "up", "down"))
    parser.add_argument("--profile", choices=PROFILES, default="light")
    parser.add_argument("--demo", action="store_true", help="simulators in place of the providers, in a project of its own")
    arguments = parser.parse_args()
    try:
        if arguments.what == "image":
            _build(_OF_PROFILE[arguments.profile])
        elif arguments.what == "up":
            _up(arguments.profile, demo=arguments.demo)
        else:
            _compose({**settings("full", demo=arguments.demo), "COMPOSE_PROFILES": "*"}, "down", "--remove-orphans")
    except FileNotFoundError:
        print("There is no program docker on the PATH. Install Docker Engine with its Compose plugin.", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} {error.cmd[1]} ended with status {error.returncode}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
