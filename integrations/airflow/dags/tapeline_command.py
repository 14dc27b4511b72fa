"""Calls Tapeline's command line, which has an environment of its own. It needs neither Tapeline's packages nor Airflow's.

`python tapeline_command.py` prints a pool for each provider, in the form that `airflow pools import` reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, Final

#: Exit statuses after which a retry cannot help: the command line, the data, the key or the configuration must change first.
FATAL: Final = frozenset({2, 64, 65, 77, 78})
#: Exit statuses after which a list that was read before is good enough.
_MAY_PASS: Final = frozenset({69, 74, 75})
#: A list of jobs is read again after this, even if the configuration is the same: Tapeline may have been upgraded.
_LIST_AGE_S: Final = 3_600.0
#: What the DAGs need of each job in the list.
_NEEDED: Final = frozenset(
    "job kind does cron every_s timezone retries timeout_s deadline catch_up takes_day providers continuous paused since".split()
)
_LIST_WITHIN_S: Final = 120.0
_ALERT_WITHIN_S: Final = 60.0
#: Tapeline stops within this after SIGTERM.
_STOP_WITHIN_S: Final = 35.0
#: How many of the last lines of a command are told in an error.
_TOLD: Final = 5
#: How many runs a provider has at once, if its pool was made by this program.
_SLOTS: Final = 1


class CommandFailed(Exception):
    """A command of Tapeline ended with an error. `status`: its exit status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Tapeline:
    """Tapeline's command and its configuration file."""

    command: tuple[str, ...]
    config: Path
    #: Where the list of jobs is kept between two reads.
    kept_in: Path

    def arguments(self, *words: str) -> list[str]:
        """Return the whole command line of a command of Tapeline."""
        return [*self.command, *words, "--config", str(self.config)]

    def jobs(self, clock: Callable[[], float] = time.time) -> list[dict[str, Any]]:
        """Return what `tapeline jobs list` says of each job. Airflow asks often: an answer for the same configuration is kept for an hour.

        Raises CommandFailed, OSError if there is no such command or file."""
        key = hashlib.sha256(b"\0".join([*map(str.encode, self.command), self.config.read_bytes()])).hexdigest()
        kept = self.kept_in / f"tapeline-jobs-{hashlib.sha256(str(self.config).encode()).hexdigest()[:12]}.json"
        before = _read(kept)
        known: list[dict[str, Any]] = before.get("jobs", []) if before.get("key") == key and _whole(before["jobs"]) else []
        if known and abs(clock() - float(before["at"])) < _LIST_AGE_S:
            return known
        try:
            found = self._ask("jobs", "list", "--format", "json", within_s=_LIST_WITHIN_S)
        except CommandFailed as error:
            if known and error.status in _MAY_PASS:
                return known
            raise
        rows = [json.loads(line) for line in found.splitlines()]
        if not _whole(rows):
            raise CommandFailed(f"{self.command[0]} is older than these DAGs. Install the Tapeline that they came with.", 65)
        _write(kept, {"key": key, "at": clock(), "jobs": rows})
        return rows

    def alert(self, name: str, text: str | None) -> None:
        """Raise an alert of Tapeline with this text; with None, resolve it. Raises CommandFailed, OSError."""
        words = ("resolve", name) if text is None else ("raise", name, "--text", text)
        self._ask("alerts", *words, within_s=_ALERT_WITHIN_S)

    def _ask(self, *words: str, within_s: float) -> str:
        line = self.arguments(*words)
        try:
            done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=within_s, check=False)
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"`{shlex.join(line)}` has not ended within {within_s:.0f} s.", 75) from None
        if done.returncode:
            said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_TOLD:])
            raise CommandFailed(f"`{shlex.join(line)}` ended with status {done.returncode}:\n{said}", done.returncode)
        return done.stdout


def configured() -> Tapeline:
    """Return the Tapeline of the environment variables. Raises ValueError if one is missing, with the remedy."""
    config = os.environ.get("TAPELINE_CONFIG", "")
    if not config:
        raise ValueError("TAPELINE_CONFIG is not set. Set it to the path of Tapeline's configuration for every process of Airflow.")
    command = tuple(shlex.split(os.environ.get("TAPELINE_COMMAND", "tapeline")))
    return Tapeline(command, Path(config).expanduser().absolute(), Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser())


def environment() -> dict[str, str]:
    """Return the environment of Tapeline's commands: this one, without what belongs to Airflow, its Python and its secrets."""
    ours = ("AIRFLOW", "_AIRFLOW", "PYTHON", "VIRTUAL_ENV", "TAPELINE_COMMAND", "TAPELINE_FIRST_WAIT")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


class Run:
    """A run of a job, as a process. `follow` reads it to its end; `stop` ends it, from another thread or a signal handler too."""

    def __init__(self, line: Sequence[str]) -> None:
        self._line = line
        self._process: subprocess.Popen[str] | None = None

    def follow(self, tell: Callable[[str], None]) -> dict[str, Any]:
        """Start the command, tell its lines, and return its outcome: the last JSON object that it printed.

        Raises CommandFailed with what it said, OSError if there is no such command. If anything else ends this, it ends the command too."""
        lines: SimpleQueue[tuple[bool, str | None]] = SimpleQueue()
        tell(shlex.join(self._line))
        self._process = process = subprocess.Popen(
            self._line, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stderr is not None
        for stream, is_answer in ((process.stdout, True), (process.stderr, False)):
            Thread(target=_pass_on, args=(stream, is_answer, lines), daemon=True).start()
        outcome: dict[str, Any] = {}
        said: list[str] = []
        try:
            for _ in range(2):
                for is_answer, text in iter(lines.get, None):
                    if text is None:
                        break
                    if is_answer and (answer := _object(text)):
                        outcome = answer if "exit_status" in answer else outcome
                        text = text if "progress" in answer else ""
                    if text:
                        tell(text)
                        said = [*said, text][-_TOLD:]
            status = process.wait()
        finally:
            self.stop()
        if status:
            text = str(outcome.get("error") or "\n".join(said))
            raise CommandFailed(f"{text or 'It said nothing.'} (exit status {status})", status)
        return outcome

    def stop(self) -> None:
        """Tell the command to stop, once, and wait until it has. It continues with its next run. Kill it if it does not stop."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pools(jobs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a pool for each provider of the jobs, as `airflow pools import` reads them."""
    providers = dict.fromkeys(provider for job in jobs for provider in job["providers"])
    return {
        pool_of(name): {"slots": _SLOTS, "description": f"Tapeline's jobs that ask {name}", "include_deferred": False} for name in providers
    }


def pool_of(provider: str) -> str:
    """Return the name of the pool of a provider."""
    return f"tapeline_{provider}"


def _pass_on(stream: IO[str], is_answer: bool, lines: SimpleQueue[tuple[bool, str | None]]) -> None:
    with stream:
        for text in stream:
            lines.put((is_answer, text.rstrip()))
    lines.put((is_answer, None))


def _whole(jobs: Sequence[dict[str, Any]]) -> bool:
    return all(set(job) >= _NEEDED for job in jobs)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        return _object(path.read_text())
    except OSError:
        return {}


def _write(path: Path, value: object) -> None:
    """Several processes of Airflow may write at once: each writes aside and renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    aside.write_text(json.dumps(value))
    aside.replace(path)


if __name__ == "__main__":
    json.dump(pools(configured().jobs()), sys.stdout, indent=2)
