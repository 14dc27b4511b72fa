"""`python start.py --config tapeline.toml`: Airflow on this machine alone, with Tapeline's DAGs, until it is stopped.

It runs in Airflow's environment. It makes the database and a pool for each provider, and starts Airflow's parts. A part that ends
is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Final

_DAGS: Final = Path(__file__).resolve().parent / "dags"
_AIRFLOW: Final = str(Path(sys.executable).with_name("airflow"))
_HOST: Final = "127.0.0.1"
_REST_S: Final = 5.0
_STOP_WITHIN_S: Final = 40.0


def main() -> None:
    """Run until SIGTERM or SIGINT. Raises CalledProcessError if Airflow cannot make its database."""
    arguments = _parser().parse_args()
    home = (arguments.home or _data_dir(arguments.config) / "airflow").resolve()
    os.environ |= settings(home, arguments.port)
    os.environ |= {"TAPELINE_CONFIG": str(arguments.config.resolve()), "TAPELINE_FIRST_WAIT": str(arguments.first_wait)}
    if arguments.tapeline:
        os.environ["TAPELINE_COMMAND"] = shlex.join([str(arguments.tapeline.absolute())])
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _set_up(home)
    logs = home / "parts"
    logs.mkdir(exist_ok=True)
    parts = {
        "api-server": ["api-server", "--host", _HOST, "--port", str(arguments.port)],
        # The scheduler would serve its logs on every address. The web server reads them from the disk.
        "scheduler": ["scheduler", "--skip-serve-logs"],
        "dag-processor": ["dag-processor"],
    }
    _say(f"Airflow starts at http://{_HOST}:{arguments.port}. Its parts log to {logs}.")
    _say(f"The user is admin. The password is in {home / 'simple_auth_manager_passwords.json.generated'}.")
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while not stop.is_set():
            for name, words in parts.items():
                if name in running and running[name].poll() is None:
                    continue
                if name in running:
                    _say(f"{name} ended with status {running[name].returncode}. It starts again.")
                with (logs / f"{name}.log").open("ab") as log:
                    running[name] = subprocess.Popen([_AIRFLOW, *words], stdout=log, stderr=log, start_new_session=True)
                _say(f"{name} is process {running[name].pid}.")
                if name == "api-server":  # a task that starts before it would fail
                    _wait_for(arguments.port, running[name], stop)
            stop.wait(_REST_S)
    finally:
        _end(list(running.values()))


def settings(home: Path, port: int) -> dict[str, str]:
    """Return the settings of Airflow, except those that the environment has already. Nothing leaves this machine."""
    usual = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(_DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{_HOST}:{port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__API__BASE_URL": f"http://{_HOST}:{port}",
        "AIRFLOW__API__HOST": _HOST,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
    }
    return {name: os.environ.get(name, value) for name, value in usual.items()} | {"AIRFLOW_HOME": str(home)}


def _data_dir(config: Path) -> Path:
    """The data folder of Tapeline's configuration."""
    try:
        return Path(str(tomllib.loads(config.read_text()).get("data_dir", "data"))).expanduser()
    except (OSError, ValueError) as error:
        sys.exit(f"{config} cannot be read: {error}. Give the path of Tapeline's configuration: --config /path/to/tapeline.toml")


def _set_up(home: Path) -> None:
    """Make or migrate the database, and make the pools."""
    _run([_AIRFLOW, "db", "migrate"])
    pools = home / "tapeline-pools.json"
    made = json.loads(_run([sys.executable, str(_DAGS / "tapeline_command.py")]))
    known = {row["pool"] for row in json.loads(_run([_AIRFLOW, "pools", "list", "--output", "json"]).strip().splitlines()[-1])}
    new = {name: pool for name, pool in made.items() if name not in known}  # a person may have changed the others
    if new:
        pools.write_text(json.dumps(new))
        _run([_AIRFLOW, "pools", "import", str(pools)])


def _wait_for(port: int, server: subprocess.Popen[bytes], stop: threading.Event) -> None:
    """Wait until the server answers, or ends, or everything is to stop."""
    while server.poll() is None and not stop.is_set():
        with suppress(OSError), urllib.request.urlopen(f"http://{_HOST}:{port}/api/v2/monitor/health", timeout=5.0):
            return
        stop.wait(0.5)


def _run(line: list[str]) -> str:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"`{shlex.join(line)}` ended with status {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def _end(parts: list[subprocess.Popen[bytes]]) -> None:
    """Stop the parts, each with the processes that it has started."""
    for part in parts:
        if part.poll() is None:
            part.terminate()
    for part in parts:
        try:
            part.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            _say(f"Process {part.pid} did not stop within {_STOP_WITHIN_S:.0f} s.")
        with suppress(ProcessLookupError):
            os.killpg(part.pid, signal.SIGKILL)
        part.wait()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run Airflow on this machine, on loopback only, with the DAGs of Tapeline's jobs.")
    add = parser.add_argument
    add("--config", "-c", type=Path, default=Path("tapeline.toml"), help="Tapeline's configuration (tapeline.toml)")
    add("--tapeline", type=Path, help="the program tapeline of Tapeline's own environment; if left out, the one on the PATH")
    add("--home", type=Path, help="the folder of Airflow's database and logs; if left out, `airflow` in Tapeline's data folder")
    add("--port", type=int, default=8080, help="the port of Airflow's pages (8080)")
    add("--first-wait", type=float, default=30.0, help="seconds before a failed run is tried again; each wait is twice the one before (30)")
    return parser


if __name__ == "__main__":
    main()
