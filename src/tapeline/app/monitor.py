"""Answers for this machine's processes over HTTP, where the configuration says so."""

from __future__ import annotations

import time
from collections.abc import Iterator, Set
from contextlib import contextmanager

from tapeline.config import Config
from tapeline.monitor.server import MonitorServer


@contextmanager
def monitored(config: Config, stages: Set[str]) -> Iterator[None]:
    """Serve /metrics, /live and /ready while the block runs. `stages`: those that must report for this process to be ready."""
    if not config.monitor.listen:
        yield
        return
    server = MonitorServer(config.monitor.listen, config.root, stages, time.time_ns)
    server.start()
    try:
        yield
    finally:
        server.stop()
