"""What the dashboard's buttons do: each starts a command of Tapeline as a child, and the record of the runs says how it went."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tapeline.config import Config, environment
from tapeline.errors import Busy
from tapeline.orchestration.catalog import by_name, jobs_of, with_arguments
from tapeline.web.queries import Repair, RunJob

log = logging.getLogger(__name__)

#: The most children at once.
_AT_ONCE: Final = 4
_STOP_WITHIN_S: Final = 10.0


class Actions:
    """Starts children, and ends them with the server. All methods belong to the event loop."""

    def __init__(self, config: Config, path: Path | None) -> None:
        """`path`: the configuration's file; it is passed to the children."""
        self._config = config
        self._arguments = ["--config", str(path)] if path is not None else []
        self._children: list[subprocess.Popen[bytes]] = []

    def run(self, wanted: RunJob) -> dict[str, Any]:
        """Start a job. Raises ConfigError for an unknown job or argument, and Busy if several are under way."""
        job = by_name(jobs_of(self._config), wanted.job, self._config)
        with_arguments(job, wanted.arguments)
        return self._start(wanted.job, wanted.arguments)

    def repair(self, wanted: Repair) -> dict[str, Any]:
        """Start the request of gaps from the provider's history. Raises as `run`."""
        arguments: dict[str, object] = {"symbols": wanted.symbols}
        if wanted.provider is not None:
            arguments["provider"] = wanted.provider
        return self.run(RunJob(job="repair", arguments=arguments))

    def stop(self) -> None:
        """End the children. The next run of a job continues it."""
        for child in self._children:
            child.terminate()
        for child in self._children:
            try:
                child.wait(_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _start(self, job: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        self._children = [child for child in self._children if child.poll() is None]
        if len(self._children) >= _AT_ONCE:
            raise Busy(f"{_AT_ONCE} jobs that were started here are under way. Wait until one has ended.")
        command: Sequence[str] = [
            sys.executable,
            "-m",
            "tapeline",
            "jobs",
            "run",
            job,
            "--arguments",
            json.dumps(arguments),
            *self._arguments,
        ]
        child = subprocess.Popen(  # noqa: S603 our own command; the arguments were checked
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**environment(), "TAPELINE_LOG": f"supervised {os.getpid()}"},
        )
        self._children.append(child)
        log.info("Started %s by a request, process %d.", job, child.pid)
        return {"job": job, "started": True}
