"""Builds the ingest stage from the configuration and runs it: its connections, its leases and its delivery to the stream."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import closing
from random import Random

from tapeline.app.connections import (
    arbitrations,
    connection_checks,
    connection_plans,
    feed_connections,
    leases_in_time,
    plan_partitions,
    raw_partitions,
)
from tapeline.app.process_names import ingest_name
from tapeline.app.streams import open_spool, open_stream
from tapeline.config import Config, environment
from tapeline.stages.ingest.delivery import Delivery
from tapeline.stages.ingest.stage import Share, StreamRecorder, ingest
from tapeline.telemetry.status import StatusFile


async def ingest_until(stop: asyncio.Event, config: Config, process: str, *, lease_wait_s: float) -> None:
    """Record what the providers of one process send, until `stop` is set. `process`: its name; empty for the unnamed process.

    `lease_wait_s`: how long to wait, in seconds, for a lease that a killed predecessor may still hold. Raises ConfigError, Busy when the
    wait is over, DiskProblem when the spool cannot be opened, and what `stages.ingest.stage.ingest` raises."""
    planned = connection_plans(config, environment())
    mine = [(provider, plan) for provider, plan in planned if provider.process == process]
    random, name = Random(), ingest_name(process)
    with closing(open_stream(config)) as stream:
        leases = await leases_in_time(mine, stream, random, stop, lease_wait_s)
        writer = f"{name}-{uuid.uuid4().hex}"
        delivery = Delivery(stream.producer(writer), writer, open_spool(config, process))
        delivery.open()
        recorder = StreamRecorder(delivery, plan_partitions(planned, raw_partitions(config, stream)), random)
        marking = arbitrations(mine, recorder, lambda: delivery.dropped)
        lines = feed_connections(mine, recorder, marking, time.time_ns, random, config.root)
        status = StatusFile(config.root, name)
        share = Share(lines, connection_checks(mine), leases, list(marking.values()))
        await ingest(share, recorder, status, stop)
