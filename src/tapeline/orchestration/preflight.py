"""Checks that the jobs and promises of the configuration are right, and that somebody looks after them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from tapeline.app.preflight import Result
from tapeline.app.promises import promises_of
from tapeline.config import Config
from tapeline.errors import ConfigError, TapelineError, Unavailable
from tapeline.monitor.health import alive
from tapeline.monitor.promises import seconds
from tapeline.orchestration.catalog import jobs_of
from tapeline.orchestration.opening import open_database
from tapeline.orchestration.runs import Runs
from tapeline.records import NS_PER_S
from tapeline.telemetry.status import read_status

#: A scheduler looks every two seconds. After this time without a look, it is dead.
DEAD_NS: Final = 60 * NS_PER_S


def check_configuration(config: Config) -> str:
    """Return how many jobs and promises there are, in words. Raises ConfigError for one that is wrong."""
    jobs, promises = jobs_of(config), promises_of(config)
    for promise in promises:
        if promise.settings.job and promise.settings.job not in jobs:
            known = ", ".join(jobs)
            raise ConfigError(f"[[sla]] {promise.settings.name}: there is no job {promise.settings.job!r}. The jobs are: {known}.")
    return f"{len(jobs)} jobs, {len(promises)} promises"


def checks(config: Config) -> Iterator[Result]:
    """Yield the result of each check."""
    try:
        yield Result("jobs", check_configuration(config))
        age_ns = Runs(open_database(config)).last_look_age_ns()
    except TapelineError as error:
        yield Result("jobs", str(error), error.exit_status)
        return
    if config.scheduler == "none":
        yield Result("scheduler", "none is configured: you start the jobs")
    elif age_ns is None:
        yield Result("scheduler", "none has run yet: `tapeline run` starts one")
    elif age_ns <= DEAD_NS:
        yield Result("scheduler", f"looked for due jobs {seconds(age_ns)} ago")
    else:
        running = alive(read_status(config.root).get("run", {}), time.time_ns())
        remedy = "Restart `tapeline run`, or start `tapeline schedule`." if running else "`tapeline run` starts it."
        yield Result("scheduler", f"last looked for due jobs {seconds(age_ns)} ago. {remedy}", Unavailable.exit_status if running else 0)
