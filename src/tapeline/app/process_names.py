"""How the processes of a run are called."""

from __future__ import annotations

import hashlib
import platform

from tapeline.config import Config, StoreConfig
from tapeline.stages.ledger import LEDGER
from tapeline.telemetry.status import worker_name


def stage_names(config: Config) -> set[str]:
    """The stages that the configuration has, as the status page names them."""
    found = {"run", "repair", *(worker_name(number) for number in range(1, config.normalize_workers + 1))}
    found |= {ingest_name(provider.process) for provider in config.providers} | {store_name(store) for store in config.stores}
    return found | ({LEDGER} if config.ledger else set())


def member_name(config: Config, worker: str) -> str:
    """A name in the stream that only the process with this worker's lock can have."""
    place = hashlib.sha256(str(config.root).encode()).hexdigest()[:8]
    return f"{platform.node()}-{place}-{worker}"


def ingest_name(process: str) -> str:
    """The stage's name on the status page and in its lock: `ingest`, or `ingest-NAME`."""
    return f"ingest-{process}" if process else "ingest"


def store_name(store: StoreConfig) -> str:
    """`lake` or `postgresql`: the store's name in commands and on the status page."""
    scheme = store.url.partition(":")[0]
    return "postgresql" if scheme == "postgres" else scheme
