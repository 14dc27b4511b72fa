"""Registers with Prefect: a deployment and automations for each job, the runs that are due, and runs whose process was killed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.runner import Runner
from prefect.schedules import Schedule
from prefect.states import AwaitingRetry, Crashed, Scheduled

from tapeline_prefect.command import Due, Job
from tapeline_prefect.flows import Setting, due_of, flow_of, key_of, under_way

log = logging.getLogger(__name__)

#: Different days of one job may run at once, and so many of them do.
_DAYS_AT_ONCE: Final = 2
#: Prefect's least time for what is expected.
_LEAST_WITHIN: Final = timedelta(seconds=10)
_PAGE: Final = 200
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_OPEN: Final = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED)


@dataclass(frozen=True, slots=True)
class Registered:
    """The deployments on the server: job -> id."""

    jobs: Mapping[str, Job]
    ids: Mapping[str, UUID]

    def job_of(self, run: FlowRun) -> Job | None:
        """The job of a run, or None if it is none of ours."""
        return next((self.jobs[name] for name, some in self.ids.items() if some == run.deployment_id), None)


async def register(client: PrefectClient, runner: Runner, name: str, jobs: Sequence[Job], setting: Setting) -> Registered:
    """Make or change the deployment `name` of each job, and remove those of jobs that are gone."""
    ids = {}
    for job in jobs:
        ids[job.name] = await runner.aadd_flow(
            flow_of(job, setting),
            name=name,
            schedule=schedule_of(job),
            paused=True if job.paused else None,  # None: a person who paused it on Prefect's page has the last word
            concurrency_limit=ConcurrencyLimitConfig(
                limit=_DAYS_AT_ONCE if job.of_a_day else 1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
            ),
            parameters={"arguments": job.arguments} if job.arguments else {},
            description=f"{job.does[:1].upper()}{job.does[1:]}. Tapeline's job `{job.name}`.",
            tags=["tapeline", job.kind, *([str(job.arguments["provider"])] if job.arguments.get("provider") else [])],
        )
    for old in await client.read_deployments(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name]))):
        if old.id not in ids.values():
            await client.delete_deployment(old.id)
    return Registered({job.name: job for job in jobs}, ids)


def schedule_of(job: Job) -> Schedule | None:
    """The job's schedule, with the same moments that Tapeline counts with."""
    if job.cron:
        return Schedule(cron=job.cron, timezone=job.timezone)
    if job.every_s:
        return Schedule(interval=timedelta(seconds=job.every_s), anchor_date=_EPOCH, timezone="UTC")
    return None


async def automate(client: PrefectClient, name: str, registered: Registered, url: str, late_after_s: float | None) -> None:
    """For each job: a run that has not succeeded in time is told to `url`, and so is a run that succeeds.

    The time of a job is its deadline, or else its timeout; `late_after_s` is a time for all jobs instead."""
    block = Webhook(method="POST", url=url, allow_private_urls=True)  # type: ignore[arg-type]  # pydantic makes it secret
    block_id = await block.asave(_block_name(name), overwrite=True)
    for job, deployment in registered.ids.items():
        within_s = late_after_s or registered.jobs[job].deadline_s or registered.jobs[job].timeout_s
        await _replace(client, _late(name, registered.jobs[job], deployment, block_id, within_s))
        await _replace(client, _on_time(name, job, deployment, block_id))
    wanted = {title for job in registered.ids for title in (_title(name, job, "late"), _title(name, job, "on time"))}
    for old in await client.read_automations():
        if old.name.startswith(f"Tapeline ({name}): ") and old.name not in wanted:
            await client.delete_automation(old.id)


async def _replace(client: PrefectClient, automation: AutomationCore) -> None:
    found = await client.read_automations_by_name(automation.name)
    if not found:
        await client.create_automation(automation)
        return
    await client.update_automation(found[0].id, automation)
    for another in found[1:]:
        await client.delete_automation(another.id)


def _title(name: str, job: str, what: str) -> str:
    return f"Tapeline ({name}): {job} is {what}"


def _block_name(name: str) -> str:
    return f"tapeline-alerts-{name}"


def _late(name: str, job: Job, deployment: UUID, block: UUID, within_s: float) -> AutomationCore:
    text = f"Prefect's run of {job.name} has not succeeded within {within_s:,.0f} s. Look at its page in Prefect: deployments, {job.name}."
    trigger = EventTrigger(
        posture=Posture.Proactive,
        match_related={"prefect.resource.id": f"prefect.deployment.{deployment}"},
        after={"prefect.flow-run.Late", "prefect.flow-run.Pending"},
        expect={"prefect.flow-run.Completed", "prefect.flow-run.Filled"},
        for_each={"prefect.resource.id"},
        within=max(timedelta(seconds=within_s), _LEAST_WITHIN),
    )
    return _post(_title(name, job.name, "late"), trigger, block, {"job": job.name, "late": True, "text": text})


def _on_time(name: str, job: str, deployment: UUID, block: UUID) -> AutomationCore:
    trigger = EventTrigger(
        posture=Posture.Reactive,
        match_related={"prefect.resource.id": f"prefect.deployment.{deployment}"},
        expect={"prefect.flow-run.Completed", "prefect.flow-run.Filled"},
        for_each={"prefect.resource.id"},
        within=timedelta(0),
    )
    return _post(_title(name, job, "on time"), trigger, block, {"job": job, "late": False, "text": ""})


def _post(title: str, trigger: EventTrigger, block: UUID, said: dict[str, Any]) -> AutomationCore:
    return AutomationCore(
        name=title,
        description="Made by tapeline-prefect at each of its starts.",
        trigger=trigger,
        actions=[CallWebhook(block_document_id=block, payload=json.dumps(said))],
    )


async def catch_up(client: PrefectClient, registered: Registered, due: Sequence[Due]) -> int:
    """Make a run for each moment that Tapeline says is due and that has none, and return how many. Prefect makes no run for the past."""
    made = 0
    for job, deployment in registered.ids.items():
        mine = [one for one in due if one.job == job]
        if not mine or (await client.read_deployment(deployment)).paused:
            continue
        under_way_now = {due_of(run)[0] for run in await _runs(client, [deployment], _OPEN)}
        for one in mine:
            if one.due_ns not in under_way_now:
                await client.create_flow_run_from_deployment(
                    deployment,
                    state=Scheduled(scheduled_time=one.moment),
                    idempotency_key=key_of(job, one.due_ns, one.attempt),
                    tags=["catch-up"],
                )
                made += 1
    if made:
        log.info("%d missed runs are made up for.", made)
    return made


async def drop_overdue(client: PrefectClient, registered: Registered) -> None:
    """Remove the runs that Prefect scheduled and that nobody served in time. Tapeline's record says which of them are still needed."""
    now = datetime.now(UTC)
    for run in await _runs(client, list(registered.ids.values()), (StateType.SCHEDULED,)):
        untouched = run.auto_scheduled and run.run_count == 0 and run.expected_start_time is not None
        if untouched and run.expected_start_time is not None and run.expected_start_time < now:
            await client.delete_flow_run(run.id)


async def continue_killed(client: PrefectClient, registered: Registered, setting: Setting, *, at_start: bool) -> int:
    """Let the runs go on whose process was killed, and return how many. Each goes on as the same run, at most as often as it is retried.

    `at_start`: no runner serves them yet, so a run that is under way without a process of its own was killed, too."""
    states = (StateType.CRASHED, StateType.PENDING, StateType.RUNNING) if at_start else (StateType.CRASHED,)
    continued = 0
    for run in await _runs(client, list(registered.ids.values()), states):
        job = registered.job_of(run)
        if job is None or under_way(setting.folder, str(run.id)):
            continue
        crashed = run.state is not None and run.state.type is StateType.CRASHED
        if run.run_count <= job.retries and not (crashed and run.run_count == 0):
            wait = timedelta(seconds=setting.first_wait_s if crashed else 0.0)
            state: State[Any] = AwaitingRetry(message="Its process was killed. It goes on.", scheduled_time=datetime.now(UTC) + wait)
            await client.set_flow_run_state(run.id, state, force=True)
            continued += 1
        elif not crashed:
            await client.set_flow_run_state(run.id, Crashed(message="Its process was killed."), force=True)
    if continued:
        log.info("%d runs whose process was killed go on.", continued)
    return continued


async def _runs(client: PrefectClient, deployments: Sequence[UUID], states: Sequence[StateType]) -> list[FlowRun]:
    """The runs of some deployments in some states."""
    if not deployments:
        return []
    runs: list[FlowRun] = []
    while True:
        page = await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=list(deployments))),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))),
            sort=FlowRunSort.ID_DESC,
            limit=_PAGE,
            offset=len(runs),
        )
        runs += page
        if len(page) < _PAGE:
            return runs
