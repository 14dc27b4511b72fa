"""Checks before a run that the configuration is right and that everything it names is reachable."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tapeline.app.connections import connection_plans
from tapeline.app.stores import open_store, open_stores
from tapeline.app.streams import open_stream
from tapeline.config import Config
from tapeline.errors import ConfigError, DiskProblem, TapelineError, Unavailable
from tapeline.net import http as rest
from tapeline.net.tls import tls_context
from tapeline.net.websocket import reach
from tapeline.providers.decoding import native
from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC

_LITTLE_DISK_BYTES: Final = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one check: what was checked, what was found, and the exit status for it (0: no problem)."""

    what: str
    found: str
    status: int = 0


def checkup(config: Config, environ: Mapping[str, str]) -> Iterator[Result]:
    """Yield the result of each check in turn. A failed check does not stop the later ones, except that no connection can be checked if
    the providers' configuration is wrong."""
    yield _data_dir(config.root)
    yield Result("decoder", native.in_use() + ("" if native.version() else "; the native core, which is faster, is not installed"))
    try:
        stream = open_stream(config, environ)
        ends = stream.ends(RAW_TOPIC)
        risks = stream.risks()
        summary = f"reachable, {len(ends)} partitions of {config.stream.topic_prefix}{RAW_TOPIC.name}"
        yield Result(f"stream {config.stream.shown}", "; ".join([summary, *risks]))
        stream.close()
    except TapelineError as error:
        yield Result(f"stream {config.stream.shown}", str(error), error.exit_status)
    try:
        open_stores(config)
    except TapelineError as error:
        yield Result("stores", str(error), error.exit_status)
    for some in config.stores:
        try:
            store = open_store(config, some, environ)
            rows = sum(store.totals(topic).rows for topic in NORMALIZED_TOPICS)
            yield Result(f"store {some.shown}", f"{rows:,} rows")
        except TapelineError as error:
            yield Result(f"store {some.shown}", str(error), error.exit_status)
    try:
        planned = connection_plans(config, environ)
    except TapelineError as error:
        yield Result("providers", str(error), error.exit_status)
        return
    for provider, plan in planned:
        try:
            tls = tls_context(provider.ca_file)
            seconds = asyncio.run(reach(plan, tls))
            yield Result(f"{plan.name} {plan.url}", f"reachable in {seconds * 1000:.0f} ms, {len(plan.subscriptions)} subscriptions")
        except (Unavailable, ConfigError) as error:
            yield Result(f"{plan.name} {plan.url}", str(error), error.exit_status)
            continue
        if plan.check is not None:
            try:
                problems = plan.check.problems(asyncio.run(rest.get(plan.check.url, tls)))
                yield Result(f"{plan.name} symbols", "; ".join(problems) or "all listed", 78 if problems else 0)
            except (Unavailable, ValueError) as error:
                yield Result(f"{plan.name} symbols", str(error), Unavailable.exit_status)


def _data_dir(root: Path) -> Result:
    what = f"data_dir {root}"
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = root / f".probe-{os.getpid()}"
        probe.write_bytes(b"tapeline")
        probe.unlink()
    except OSError as error:
        return Result(what, f"not writable: {error.strerror}. Make it writable or set another data_dir.", DiskProblem.exit_status)
    free = shutil.disk_usage(root).free
    if free < _LITTLE_DISK_BYTES:
        return Result(what, f"only {free / 1024**2:,.0f} MiB are free. Free disk space, or set another data_dir.", DiskProblem.exit_status)
    return Result(what, f"writable, {free / 1024**3:,.0f} GiB free")
