"""The DAGs of Tapeline: one for each job of its configuration, and one for the operational day. No logic: the list says it all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

# Airflow's stub lacks some of these.
from airflow.sdk import DAG, CronTriggerTimetable, DeadlineAlert, DeadlineReference, DeltaTriggerTimetable, Param, SyncCallback  # type: ignore[attr-defined]

from tapeline_command import configured, pool_of
from tapeline_operator import TapelineJob, failed, late, succeeded

#: The kinds of jobs that make up the operational day, in their order.
_DAY: Final = ("symbols", "backfill", "reconcile", "repair", "compact", "check_lake", "export")
_FIRST_WAIT: Final = timedelta(seconds=float(os.environ.get("TAPELINE_FIRST_WAIT", "30")))
_LONGEST_WAIT: Final = timedelta(hours=1)
#: Tapeline stops a run at its timeout by itself. Airflow does so later, if that did not help.
_GRACE: Final = timedelta(minutes=2)

#: A DAG runs nothing for a moment before its start. The first read of the list may be a part of the first run by hand.
_EARLIER: Final = timedelta(hours=1)

Job = dict[str, Any]


def dag_of(name: str, job: Job, *, paused: bool, about: str, deadline: DeadlineAlert | None = None) -> DAG:
    """A DAG with the schedule and the catch-up of a job."""
    return DAG(
        f"tapeline_{name}",
        schedule=_schedule(job),
        start_date=datetime.fromisoformat(job["since"]).replace(tzinfo=UTC) - _EARLIER,
        catchup=job["catch_up"] == "all",
        max_active_runs=1,
        is_paused_upon_creation=paused,
        deadline=deadline,
        params={"day": Param(None, type=["null", "string"], format="date", description="A manual run: the UTC day to work on.")},
        doc_md=about,
        tags=["tapeline"],
    )


def tasks_of(jobs: Sequence[Job]) -> dict[str, Any]:
    """A task for each provider of these jobs, which are of one kind; if they have none, one task. Mapped over the jobs."""
    made = {}
    for provider in dict.fromkeys(provider for job in jobs for provider in job["providers"] or [""]):
        mine = [job for job in jobs if provider in (job["providers"] or [""])]
        each = [
            {
                "job": job["job"],
                "provider": provider if len(job["providers"]) > 1 else "",
                "every_s": job["every_s"] or 0.0,
                "catch_up": job["catch_up"],
                "takes_day": job["takes_day"],
            }
            for job in mine
        ]
        settings = {
            "task_id": f"{mine[0]['kind']}_{provider}" if provider else mine[0]["kind"],
            "pool": pool_of(provider) if provider else "default_pool",
            "retries": max(job["retries"] for job in mine),
            "retry_delay": _FIRST_WAIT,
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": _LONGEST_WAIT,
            "execution_timeout": timedelta(seconds=max(job["timeout_s"] for job in mine)) + _GRACE,
            "on_failure_callback": failed,
            "on_success_callback": succeeded,
        }
        made[provider] = TapelineJob.partial(**settings).expand_kwargs(each) if len(each) > 1 else TapelineJob(**settings, **each[0])
    return made


def day_of(jobs: Sequence[Job]) -> DAG | None:
    """The operational day: the jobs of each kind in their order, each provider apart until all of them are needed."""
    kinds = {kind: mine for kind in _DAY if (mine := [job for job in jobs if job["kind"] == kind])}
    leading = next((job for kind in ("reconcile", *kinds) for job in kinds.get(kind, ()) if job["cron"]), None)
    if leading is None:
        return None
    about = f"The operational day, on the schedule of `{leading['job']}`. Pause the DAGs of the single jobs if you use it."
    with dag_of("day", leading, paused=True, about=about) as dag:
        for_all: list[Any] = []
        lanes: dict[str, Any] = {}
        for mine in kinds.values():
            tasks = tasks_of(mine)
            for provider, task in tasks.items():
                before = list(lanes.values()) if not provider else [lanes[provider]] if provider in lanes else []
                for earlier in before or for_all:
                    earlier >> task
            if "" in tasks:
                for_all, lanes = list(tasks.values()), {}
            else:
                lanes |= tasks
    return dag


def _schedule(job: Job) -> CronTriggerTimetable | DeltaTriggerTimetable | None:
    if job["cron"]:
        return CronTriggerTimetable(job["cron"], timezone=job["timezone"])
    return DeltaTriggerTimetable(timedelta(seconds=job["every_s"])) if job["every_s"] else None


def _deadline(job: Job) -> DeadlineAlert | None:
    """Airflow counts a deadline from the moment of the schedule. So the schedule must name one time of the day."""
    minute, hour, *_ = f"{job['cron'] or ''} * *".split()
    if not (job["deadline"] and minute.isdecimal() and hour.isdecimal()):
        return None
    until_hour, until_minute = map(int, job["deadline"].split(":")[:2])
    minutes = (until_hour * 60 + until_minute - int(hour) * 60 - int(minute)) % (24 * 60)
    text = f"{job['job']} has not succeeded by {job['deadline']} ({job['timezone']})."
    return DeadlineAlert(
        DeadlineReference.DAGRUN_LOGICAL_DATE, timedelta(minutes=minutes), SyncCallback(late, {"job": job["job"], "text": text})
    )


def _make() -> dict[str, DAG]:
    # A job that repeats within a minute stays with Tapeline's own scheduler.
    jobs = [job for job in configured().jobs() if not job["continuous"]]
    made = {}
    for job in jobs:
        about = f"{job['does'].capitalize()}."
        with dag_of(f"job_{job['job']}", job, paused=job["paused"], about=about, deadline=_deadline(job)) as dag:
            tasks_of([job])
        made[dag.dag_id] = dag
    day = day_of(jobs)
    return made | ({day.dag_id: day} if day is not None else {})


globals().update(_make())
