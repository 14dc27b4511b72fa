"""Names the processes of a run."""

from __future__ import annotations

import hashlib
import platform

from tapeline.config import Config, StoreConfig
from tapeline.stages.ledger import LEDGER
from tapeline.telemetry.status import worker_name


def stage_names(config: Config) -> set[str]:
    """The names of all configured stages, as the status page shows them."""
    names = {"run", "repair", *(worker_name(number) for number in range(1, config.normalize_workers + 1))}
    names |= {ingest_name(provider.process) for provider in config.providers if provider.live}
    names |= {store_name(store) for store in config.stores}
    names |= {"schedule"} if config.scheduler != "none" else set()
    names |= {"dashboard"} if config.dashboard.run and config.dashboard.listen else set()
    return names | ({LEDGER} if config.ledger else set())


def member_name(config: Config, worker: str) -> str:
    """A worker's name in the stream, made of machine, data folder and worker. Only the process with the worker's lock can have it."""
    place = hashlib.sha256(str(config.root).encode()).hexdigest()[:8]
    return f"{platform.node()}-{place}-{worker}"


def ingest_name(process: str) -> str:
    """The stage's name on the status page and in its lock: `ingest`, or `ingest-NAME` for a named process."""
    return f"ingest-{process}" if process else "ingest"


def store_name(store: StoreConfig) -> str:
    """The store's name in commands and on the status page: `lake` or `postgresql`."""
    scheme = store.url.partition(":")[0]
    return "postgresql" if scheme == "postgres" else scheme
