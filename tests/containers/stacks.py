"""The images of this clone and the stacks of deploy/compose in a Docker engine, and what can be asked of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from services import kafka
from services.docker import BASE, Engine
from services.process import ServerFailed

from modules import module_at
from tapeline.demo.verify import Comparison, compare
from waiting import until

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final = ROOT / "deploy" / "compose"
_SERVERS: Final = Path(__file__).with_name("servers")
#: A server of compose.yaml to the variable with its image.
_STAND_INS: Final = {
    "redis": "REDIS_IMAGE",
    "kafka": "KAFKA_IMAGE",
    "timescale": "TIMESCALE_IMAGE",
    "prometheus": "PROMETHEUS_IMAGE",
    "alertmanager": "ALERTMANAGER_IMAGE",
    "grafana": "GRAFANA_IMAGE",
    "node": "NODE",
    "rust": "RUST",
}
#: A simulator's market is closed by this signal: nothing more happens, and its connections stay.
_HALT: Final = "USR1"
SIMULATORS: Final = ("binance", "polygon", "alpaca")
#: And all that was sent is in the lake soon after the market has closed.
_SETTLE_S: Final = 180.0
#: Starting ten containers on a busy machine takes minutes.
_PATIENCE_S: Final = 600.0


def build(engine: Engine, *images: str, **variables: str) -> None:
    """Build images of this clone as `make image` does. `variables`: of its environment, such as NODE."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import stack; stack._build(tuple(sys.argv[2:]))"
    command = [sys.executable, "-B", "-c", program, str(COMPOSE), *images]
    done = subprocess.run(command, env=engine.environment | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6_000:]


def stand_in(engine: Engine, *servers: str) -> dict[str, str]:
    """Build the images of servers from packages; the variables that make Compose use them."""
    found = {}
    for server in servers:
        # The folder that the image is built from. Kafka's has nothing but its jars.
        others = {"kafka": lambda: kafka.installed().where, "node": lambda: ROOT / "web" / "node", "rust": _toolchain}
        folder = others.get(server, lambda: _SERVERS)()
        found[_STAND_INS[server]] = tag = f"tapeline-test-{server}:0.0.1"
        words = ["build", "--quiet", "--network", "host", "--build-arg", f"BASE={BASE}", "--target", server, "--tag", tag]
        words += ["--secret", f"id=ca,src={authorities}"] if (authorities := engine.environment.get("CA")) else []
        engine.run(*words, "--file", str(_SERVERS / "Dockerfile"), str(folder))
    return found


def _toolchain() -> Path:
    """Where this machine's Rust is. Docker reads only those of its folders that go into the image."""
    return Path(subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()).resolve()


@dataclass
class Stack:
    """One project of Compose, with the simulators."""

    engine: Engine
    profile: str
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of `make up DEMO=1`, with secrets, ports and a project of our own."""
        stack = module_at(COMPOSE / "stack.py")
        secrets = self.folder / "secrets"
        stack.make_secrets(secrets, demo=True)
        chosen: dict[str, str] = stack.settings(self.profile, demo=True)
        return self.engine.environment | chosen | {"SECRETS": str(secrets), "PROJECT": f"test-{self.profile}"} | dict(self.variables)

    def compose(self, *words: str) -> str:
        """What `docker compose ...` prints."""
        command = ["docker", "compose", "--ansi", "never", "--file", str(COMPOSE / "compose.yaml"), *words]
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PATIENCE_S
        )
        if done.returncode:
            raise ServerFailed(f"{' '.join(words)} ended with status {done.returncode}: {(done.stdout + done.stderr)[-3_000:]}")
        return done.stdout

    def up(self) -> None:
        """Start it; every container is healthy when this returns."""
        try:
            self.compose("up", "--detach", "--wait", "--wait-timeout", "500")
        except ServerFailed as failed:
            logs = self.compose("logs", "--no-color", "--tail", "30")
            raise AssertionError(f"{failed}\n{self.compose('ps', '--all')}\n{logs[-8_000:]}") from None

    def down(self) -> None:
        """Remove everything, the data too."""
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "20", "--remove-orphans")

    def containers(self) -> dict[str, dict[str, Any]]:
        """The running and the stopped containers by name, such as `normalize-1`."""
        ids = self.compose("ps", "--all", "--quiet").split()
        found = json.loads(self.engine.run("inspect", *ids)) if ids else []
        return {one["Name"].removeprefix(f"/test-{self.profile}-"): one for one in found}

    def healthy(self, *names: str) -> bool:
        """Whether all containers, or those that are named, run and are healthy. One without a health check needs only run."""
        states = [one["State"] for name, one in self.containers().items() if not names or name in names]
        return all(state["Running"] and state.get("Health", {}).get("Status", "healthy") == "healthy" for state in states)

    def crash(self, name: str) -> None:
        """Kill -9 everything in a container from outside, as a crash would. It comes back by its restart policy."""
        before = self.containers()[name]["State"]
        os.kill(before["Pid"], signal.SIGKILL)

        def back() -> bool:
            state = self.containers()[name]["State"]
            return bool(state["Running"]) and state["StartedAt"] != before["StartedAt"]

        until(back, f"{name} comes back")

    def kill(self, name: str, command: str) -> None:
        """Kill -9 the processes of `tapeline COMMAND` in a container. Its supervisor starts them again."""
        listed = self.engine.run("top", self.containers()[name]["Id"], "-eo", "pid,args").splitlines()
        pids = [int(line.split()[0]) for line in listed[1:] if f"-m tapeline {command} " in line]
        assert pids, f"{name} runs no {command}: {listed}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def halt(self) -> None:
        """Close the markets of the simulators."""
        for name in SIMULATORS:
            self.compose("kill", "--signal", _HALT, name)

    def volume(self, name: str) -> Path:
        """Where the engine keeps a volume."""
        return Path(self.engine.run("volume", "inspect", "--format", "{{.Mountpoint}}", f"test-{self.profile}_{name}"))

    def compared(self, *, cut: bool = False) -> Comparison:
        """The lake, compared with what the simulators have sent, event by event. An event counts once.

        `cut`: ingest was killed. It then lacks some events at the end of each simulator's connection before the last one."""
        lake, simulated = self.volume("data") / "lake", self.volume("simulated")
        journals = [simulated / f"{name}.jsonl" for name in SIMULATORS]
        found = compare(lake, journals, once=True)
        if not cut:
            return found
        lost = Counter(row["provider"] for row in found.missing)
        return compare(lake, [_shortened(journal, lost[journal.stem], self.folder) for journal in journals], once=True)

    def status(self, service: str) -> dict[str, Any]:
        """What `tapeline status` says in a container."""
        text = self.compose(*("exec", "-T", service, "tapeline", "status", "--format", "json", "--config", "/etc/tapeline/tapeline.toml"))
        found: dict[str, Any] = json.loads(text)
        return found

    def settles(self, service: str, *, cut: bool = False) -> Comparison:
        """Wait until everything that was sent is in the lake, and nothing waits any more; then the comparison. `cut`: see `compared`."""
        looks: list[str] = []

        def settled() -> bool:
            found = self.compared(cut=cut)
            waits = {entry["group"]: entry["records"] for entry in self.status(service)["backlog"] if entry["records"]}
            looks.append(f"{found.sent} sent, {found.kept} kept, {len(found.missing)} missing, {found.extra[:2]} too many, {waits} wait")
            return found.exact and not waits

        try:
            until(settled, "everything that was sent is in the lake", _SETTLE_S)
        except AssertionError as failed:
            raise AssertionError(f"{failed}\n{looks[0]}\n{looks[-1]}") from None
        return self.compared(cut=cut)

    def stopped(self, names: Iterable[str]) -> dict[str, int]:
        """Stop these services as `docker compose stop` does; the exit status of each container."""
        chosen = tuple(names)
        self.compose("stop", *chosen)
        containers = self.containers()
        return {name: one["State"]["ExitCode"] for name, one in containers.items() if name.rpartition("-")[0] in chosen}


def _shortened(journal: Path, lines: int, folder: Path) -> Path:
    """A copy of a journal without the last lines of the connection before the last one."""
    written = journal.read_bytes().splitlines(keepends=True)
    numbers = [json.loads(line)["connection"] for line in written]
    cut = sorted(set(numbers))[-2:][0]
    ends = [at for at, number in enumerate(numbers) if number == cut][-lines:] if lines else []
    copy = folder / journal.name
    copy.write_bytes(b"".join(line for at, line in enumerate(written) if at not in set(ends)))
    return copy
