"""The jobs as people, other schedulers and the dashboard see them: what each does, its schedule, its last run and its next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import msgspec

from tapeline import times
from tapeline.orchestration.catalog import Job
from tapeline.orchestration.runs import Run, Runs
from tapeline.orchestration.scheduler import LOOKED_AT, due
from tapeline.orchestration.watching import deadline_of
from tapeline.records import NS_PER_S

#: One job. Times are texts; null where there is none.
JobRow = TypedDict(
    "JobRow",
    {
        "job": str,
        "schedule": str,
        "timezone": str,
        "last run": str | None,
        "result": str,
        "next run": str | None,
        "late": bool,
        "does": str,
        "kind": str,
        "cron": str | None,
        "every_s": float | None,
        "continuous": bool,
        "retries": int,
        "timeout_s": float,
        "deadline": str | None,
        "deadline_s": float | None,
        "catch_up": str,
        "of_a_day": bool,
        "takes_day": bool,
        "providers": list[str],
        "arguments": dict[str, Any],
        "schema": dict[str, Any],
        "paused": bool,
    },
)


def listed(known: Mapping[str, Job], runs: Runs, now_ns: int) -> list[JobRow]:
    """Return one row for each job. `now_ns`: UTC. Raises what the record of the runs raises."""
    paused, rows = runs.paused(), list[JobRow]()
    for name, job in known.items():
        mine = runs.of(name, LOOKED_AT)
        last = mine[0] if mine else None
        coming = None if job.continuous else next(iter(job.schedule.after(now_ns)), None)
        late = bool(due(job, mine, runs.since(name), 0, now_ns)[0]) if mine and not job.continuous else False
        rows.append(_row(job, last, coming, paused=name in paused, late=late))
    return rows


def _row(job: Job, last: Run | None, coming: int | None, *, paused: bool, late: bool) -> JobRow:
    settings = job.settings
    deadline_ns = deadline_of(job, coming) if coming is not None and job.deadline is not None else None
    return {
        "job": job.name,
        "schedule": job.schedule.cron or _period(job.schedule.period_ns),
        "timezone": job.schedule.timezone,
        "last run": times.text(last.started_ns)[:19] if last else None,
        "result": result(last.state, last.error) if last else "never ran",
        "next run": "paused" if paused else times.text(coming)[:19] if coming is not None else None,
        "late": late,
        "does": job.kind.does,
        "kind": settings.job,
        "cron": job.schedule.cron or None,
        "every_s": job.schedule.period_ns / NS_PER_S or None,
        "continuous": job.continuous,
        "retries": settings.retries,
        "timeout_s": job.timeout_ns / NS_PER_S,
        "deadline": settings.deadline or None,
        "deadline_s": (deadline_ns - coming) / NS_PER_S if coming is not None and deadline_ns is not None else None,
        "catch_up": settings.catch_up,
        "of_a_day": job.kind.of_a_day,
        "takes_day": job.takes_day,
        "providers": list(job.providers),
        "arguments": settings.arguments,
        "schema": _schema(job.kind.arguments),
        "paused": paused,
    }


def _schema(arguments: type) -> dict[str, Any]:
    """The JSON Schema of a job's arguments, so that another scheduler's page can ask for them."""
    return dict(msgspec.json.schema(arguments)["$defs"][arguments.__name__])


def _period(ns: int) -> str:
    return f"every {ns / 1e9:g} s" if ns else "by hand"


def result(state: str, error: str) -> str:
    """How a run ended, in one line."""
    return f"{state}: {error}" if error else state
