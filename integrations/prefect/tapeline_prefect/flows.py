"""The flow of a job: one task starts Tapeline's command and is tried again with growing waits; the flow says how it ended, and shows it."""

from __future__ import annotations

import fcntl
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.flows import Flow
from prefect.runtime import flow_run as this_run
from prefect.states import Completed, Failed
from prefect.tasks import Task
from prefect.utilities.urls import url_for
from pydantic import WithJsonSchema

from tapeline_prefect.command import GRACE_S, CommandFailed, Job, Request, Tapeline

#: The longest wait before a run is tried again.
_LONGEST_WAIT_S: Final = 3_600.0
#: The waits differ by up to this share, so that many runs do not all come back at once.
_JITTER: Final = 0.3
#: A table on Prefect's page has at most so many rows.
_MOST_ROWS: Final = 200
#: The beginning of the key of a run that makes up for a missed one: `key_of`.
_KEY: Final = "tapeline"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Setting:
    """What every flow needs. `folder`: where the runs under way are marked. `first_wait_s`: the wait before a run's second attempt."""

    tapeline: Tapeline
    folder: Path
    first_wait_s: float


def key_of(job: str, due_ns: int, attempt: int) -> str:
    """The key of a run that makes up for a missed one. There is one run for each key."""
    return f"{_KEY} {job} {due_ns} {attempt}"


def due_of(run: FlowRun) -> tuple[int | None, int]:
    """Return the moment (ns, UTC) of the schedule that a run is for, None if a person asked for it, and the number of its first attempt."""
    found = re.fullmatch(rf"{_KEY} \S+ (\d+) (\d+)", run.idempotency_key or "")
    if found:
        return int(found[1]), int(found[2])
    if run.auto_scheduled and run.expected_start_time is not None:
        return int(run.expected_start_time.timestamp()) * 1_000_000_000, 1  # schedules name whole seconds
    return None, 1


def waits(retries: int, first_s: float) -> list[float]:
    """The waits (s) before each further attempt: each twice the one before, an hour at most. Prefect takes 50 at most."""
    return [min(first_s * 2.0**number, _LONGEST_WAIT_S) for number in range(min(retries, 50))]


def flow_of(job: Job, setting: Setting) -> Flow[..., Any]:
    """The flow of a job. Prefect's page asks for the job's own arguments."""

    def run(arguments: dict[str, Any] | None = None) -> State[Any]:
        given = {name: value for name, value in (arguments or {}).items() if value is not None}
        with marked(setting.folder, str(this_run.id)):
            return _run(job, setting, given)

    run.__doc__ = f"{job.does[:1].upper()}{job.does[1:]}."
    schema = {**job.schema, "title": "arguments", "default": {}}
    run.__annotations__ = {"arguments": Annotated[dict[str, Any], WithJsonSchema(schema)], "return": State[Any]}
    run.__defaults__ = ({},)
    return flow(name=job.name, flow_run_name=_run_name, persist_result=False)(run)


def _run_name() -> str:
    """A run's name: its job, and the moment of the schedule that it is for."""
    run = _flow_run()
    due_ns, _ = due_of(run)
    moment = "by hand" if due_ns is None else f"{_EPOCH + timedelta(microseconds=due_ns // 1_000):%Y-%m-%d %H:%M}"
    return f"{this_run.flow_name} {moment}"


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            return client.read_flow_run(this_run.id)
    return context.flow_run


def _run(job: Job, setting: Setting, arguments: Mapping[str, Any]) -> State[Any]:
    run = _flow_run()
    due_ns, first = due_of(run)
    # A run that was killed goes on as the same run. Its attempts have numbers of their own, because Tapeline records each attempt once.
    first += max(run.run_count - 1, 0) * (job.retries + 1)
    request = Request(job.name, str(run.id), url_for("flow-run", obj_id=run.id) or "", first, due_ns, arguments)
    try:
        outcome = _attempt_of(job, setting)(request, setting.tapeline)
    except CommandFailed as failed:
        return Failed(message=str(failed))
    return _shown(job, setting, outcome)


def _attempt_of(job: Job, setting: Setting) -> Task[..., dict[str, Any]]:
    """The task: tried again with growing waits if that can help. Tapeline stops a job at its timeout, and Prefect one that hangs."""
    return task(
        name=job.name,
        retries=min(job.retries, 50),
        retry_delay_seconds=waits(job.retries, setting.first_wait_s),
        retry_jitter_factor=_JITTER,
        retry_condition_fn=_may_pass,
        timeout_seconds=job.timeout_s + 2 * GRACE_S,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(attempt)


def _may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return not isinstance(error, CommandFailed) or error.may_pass


def attempt(request: Request, tapeline: Tapeline) -> dict[str, Any]:
    """Run the job once. Its log and its progress go to the run's page. Raises CommandFailed, whose status says whether to try again."""
    context = TaskRunContext.get()
    number = request.attempt + (context.task_run.run_count - 1 if context else 0)
    logger = get_run_logger()

    def log(level: str, text: str) -> None:
        logger.log(logging.getLevelNamesMapping()[level], "%s", text)

    progress = _Progress(request.job, log)
    this_attempt = Request(request.job, request.run_id, request.run_url, number, request.due_ns, request.arguments)
    outcome = tapeline.run(this_attempt, log, progress)
    if outcome["exit_status"]:
        raise CommandFailed(outcome["error"] or f"{request.job} was stopped.", outcome["exit_status"])
    return outcome


class _Progress:
    """Shows how far a run is: a line of the log, and a bar if the job knows how much there is to do."""

    def __init__(self, job: str, log: Callable[[str, str], None]) -> None:
        self._key, self._log, self._last = _artifact_key(job, "progress"), log, ""
        self._bar: Any = None

    def __call__(self, said: Mapping[str, Any]) -> None:
        text = _in_one_line(said)
        if text == self._last:
            return
        self._last = text
        self._log("INFO", f"So far: {text}")
        done, of = said.get("rows", said.get("requested")), said.get("of", said.get("gaps"))
        if not isinstance(done, int) or not isinstance(of, int) or of <= 0:
            return
        share = min(100.0 * done / of, 100.0)
        with _extra("The progress"):
            if self._bar is None:
                self._bar = create_progress_artifact(share, key=self._key, description=text)
            else:
                update_progress_artifact(self._bar, share, description=text)


@contextmanager
def _extra(what: str) -> Iterator[None]:
    """Something for Prefect's page only: a run is what it is without it, also while Prefect's server is away."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 whatever Prefect's client raises
        get_run_logger().warning("%s cannot be shown: %s: %s", what, type(error).__name__, error)


def _shown(job: Job, setting: Setting, outcome: Mapping[str, Any]) -> State[Any]:
    """The last state of a run that Tapeline recorded as a success, and its tables."""
    result: dict[str, Any] = outcome["result"]
    with _extra("The result"):
        create_table_artifact(_table(result), key=_artifact_key(job.name, "result"), description=f"What {job.name} did.")
    if job.kind in ("reconcile", "backfill", "repair"):
        with _extra("The list of gaps"):
            _show_gaps(job, setting, str(result.get("day", "")))
    text = _in_one_line(result)
    if unresolved := result.get("unresolved"):
        text = f"The history and the store differ, and loading it again does not mend that: {', '.join(unresolved)}. {text}"
        return Failed(name="Differences", message=text)
    if different := result.get("different"):
        return Completed(name="Filled", message=f"The store lacked events of {', '.join(different)}. They were sent. {text}")
    return Completed(message=text)


def _show_gaps(job: Job, setting: Setting, day: str) -> None:
    since = day or str((datetime.now(UTC) - timedelta(days=1)).date())
    gaps = setting.tapeline.gaps(since)
    more = f" The first {_MOST_ROWS} of {len(gaps)}." if len(gaps) > _MOST_ROWS else ""
    create_table_artifact(
        gaps[:_MOST_ROWS] or [{"gaps": "none"}],
        key=_artifact_key(job.name, "gaps"),
        description=f"The gaps that remain since {since}.{more}",
    )


def _table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"what": name, "value": value if isinstance(value, (int, float, str)) else json.dumps(value)} for name, value in result.items()]


def _in_one_line(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {len(value) if isinstance(value, Sequence) and not isinstance(value, str) else value}" for name, value in values.items()
    )


def _artifact_key(job: str, what: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{job}-{what}".lower()).strip("-")


@contextmanager
def marked(folder: Path, run: str) -> Iterator[None]:
    """Mark a run as being under way: the mark is a lock that the system takes away from a process that is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run}.lock"
    with path.open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_SH)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def under_way(folder: Path, run: str) -> bool:
    """Whether a process works on a run."""
    try:
        with (folder / f"{run}.lock").open() as mark:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
