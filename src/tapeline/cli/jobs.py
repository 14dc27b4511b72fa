"""The commands for jobs: list them, run one, see its runs, pause it. And the scheduler's own stage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapeline.cli.app import app
from tapeline.cli.terminal import ConfigOption, Format, TableOrJson, answering, echo, load_config, reader_may_leave, stop_on_signal
from tapeline.errors import ConfigError

if TYPE_CHECKING:
    from tapeline.config import Config
    from tapeline.orchestration.catalog import Job
    from tapeline.orchestration.runs import Runs

jobs_app = typer.Typer(invoke_without_command=True, help="List the jobs, run one, see its runs, pause or resume it.")

app.add_typer(jobs_app, name="jobs")

FormatOption = Annotated[Format, typer.Option("--format", help="table, csv, json or parquet.")]


class By(StrEnum):
    """Who starts a run."""

    person = "person"
    schedule = "schedule"
    prefect = "prefect"
    airflow = "airflow"


@jobs_app.callback()
def jobs(context: typer.Context) -> None:
    """List the jobs: without a further word, as `tapeline jobs list`."""
    if context.invoked_subcommand is None:
        jobs_list()


@jobs_app.command("list")
def jobs_list(
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table, or json: one object a line, with all settings.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """List the jobs: their schedule, their last run and its result, their next run, and whether they are late.

    Example: `tapeline jobs list`
    """
    from tapeline import times
    from tapeline.local.output import show_rows
    from tapeline.orchestration.listing import listed

    settings = load_config(config)
    with _opened(settings) as (known, runs):
        rows = listed(known, runs, time.time_ns())
        if format is TableOrJson.json:  # another scheduler asks: it meets the jobs now, if none has met them before
            for row in rows:
                echo(json.dumps({**row, "since": times.text(runs.since(row["job"]))[:19]}))
            return
    with reader_may_leave():
        show_rows([_shown(row) for row in rows])


@jobs_app.command("due")
def jobs_due(config: ConfigOption = None) -> None:
    """Print the runs that are needed now, for other schedulers: one JSON object a line. `due_ns` is the moment of the schedule.

    Example: `tapeline jobs due`
    """
    from tapeline.orchestration.scheduler import LOOKED_AT, due

    settings, now_ns = load_config(config), time.time_ns()
    with _opened(settings) as (known, runs):
        paused = runs.paused()
        for name, job in known.items():
            since_ns = runs.since(name)
            if job.continuous or name in paused:
                continue
            for due_ns, attempt in due(job, runs.of(name, LOOKED_AT), since_ns, now_ns, now_ns)[0]:
                echo(json.dumps({"job": name, "due_ns": due_ns, "attempt": attempt, "of": job.thing(due_ns)}))


@jobs_app.command("run")
def jobs_run(
    name: Annotated[str, typer.Argument(help="The job: `tapeline jobs list` lists them.")],
    day: Annotated[str | None, typer.Option(help="The UTC day to work on, as 2026-01-05, instead of the day that is over.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only for this provider, in a run of its own.")] = None,
    arguments: Annotated[
        str, typer.Option(help="Further arguments of the job, as a JSON object. They replace the configured ones.")
    ] = "{}",
    by: Annotated[By, typer.Option(help="Who starts it; for schedulers.", hidden=True)] = By.person,
    by_id: Annotated[str, typer.Option(help="The scheduler's own id of the run.", hidden=True)] = "",
    by_url: Annotated[str, typer.Option(help="The address of the run's page.", hidden=True)] = "",
    due_ns: Annotated[int | None, typer.Option(help="The moment of the schedule, ns since 1970.", hidden=True)] = None,
    attempt: Annotated[int, typer.Option(help="Which attempt it is.", min=1, hidden=True)] = 1,
    config: ConfigOption = None,
    format: Annotated[TableOrJson, typer.Option(help="table; or json: how far it is, and one object at the end.")] = TableOrJson.table,  # noqa: A002
) -> None:
    """Run a job now, and record the run. Ctrl-C stops it; the same command continues it.

    Status 75 or 69: try again later. Status 77 or 78: a retry cannot help.

    Examples: `tapeline jobs run reconcile --day 2026-01-05`,
    `tapeline jobs run backfill --arguments '{"history_from": "2026-01-05", "symbols": ["BTCUSDT"]}'`
    """
    from random import Random

    from tapeline.orchestration.catalog import by_name, for_provider, with_arguments
    from tapeline.orchestration.running import Request, run

    settings = load_config(config)
    stop = stop_on_signal(with_parent=True)
    with _opened(settings) as (known, runs):
        job = by_name(known, name, settings)
        job = for_provider(job, provider) if provider is not None else job
        other = _arguments(arguments) | ({"day": str(_day(day))} if day is not None else {})
        if other:
            job = with_arguments(job, other)
        report = _report if format is TableOrJson.json else lambda _: None
        request = Request(by.value, by_id, by_url, due_ns, attempt, report)
        outcome = run(settings, job, request, runs, stop, time.time_ns, Random())
    if format is TableOrJson.json:
        echo(json.dumps({**asdict(outcome), "job": name}, default=str))
    else:
        echo(f"{name}: {outcome.state}. {_in_one_line(outcome.result)}")
        if outcome.error:
            echo(outcome.error, err=True)
    raise typer.Exit(outcome.exit_status)


@jobs_app.command("history")
def jobs_history(
    name: Annotated[str | None, typer.Argument(help="Only the runs of this job.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the latest runs.")] = 20,
    config: ConfigOption = None,
    format: FormatOption = Format.table,  # noqa: A002
) -> None:
    """List the latest runs, whoever started them: what each worked on, how it ended and what it did.

    Example: `tapeline jobs history reconcile`
    """
    import pyarrow as pa

    from tapeline import times
    from tapeline.local.output import show_rows, write

    settings = load_config(config)
    rows: list[dict[str, str]] = []
    with _opened(settings) as (known, runs):
        if name is not None:
            _job(known, name)
        for one in runs.of(name, lines):
            end_ns = one.ended_ns if one.ended_ns is not None else time.time_ns()
            values = {
                "run": one.id,
                "job": one.job,
                "of": one.thing,
                "by": one.origin,
                "attempt": one.attempt,
                "started": times.text(one.started_ns)[:19],
                "seconds": f"{(end_ns - one.started_ns) / 1e9:.1f}",
                "state": one.state,
                "did": _in_one_line(one.result or one.progress),
                "error": one.error,
                "address": one.origin_url,
            }
            rows.append({column: str(value) for column, value in values.items()})
    if format is Format.table:
        if not rows:
            echo("There are no runs yet.")
        else:
            show_rows([_of_run(row) for row in rows])
        return
    columns = ("run", "job", "of", "by", "attempt", "started", "seconds", "state", "did", "error", "address")
    with reader_may_leave():
        write(pa.Table.from_pylist(rows, pa.schema([(column, pa.string()) for column in columns])), format.value, None)


def _of_run(row: Mapping[str, str]) -> dict[str, str]:
    """The row of a run in the table."""
    return {
        "run": row["run"],
        "job": f"{row['job']} {row['of']}".rstrip(),
        "started": row["started"][5:16],
        "seconds": row["seconds"],
        "by": row["by"],
        "state": row["state"] if row["attempt"] == "1" else f"{row['state']} ({row['attempt']})",
        "what": row["error"] or row["did"],
    }


@jobs_app.command("pause")
def jobs_pause(name: Annotated[str, typer.Argument(help="The job.")], config: ConfigOption = None) -> None:
    """Pause a job's schedule, also across restarts. `tapeline jobs run` still runs it."""
    with _opened(load_config(config)) as (known, runs):
        runs.pause(_job(known, name).name, paused=True)
    echo(f"{name} is paused. `tapeline jobs resume {name}` resumes it.")


@jobs_app.command("resume")
def jobs_resume(name: Annotated[str, typer.Argument(help="The job.")], config: ConfigOption = None) -> None:
    """Resume a job's schedule."""
    with _opened(load_config(config)) as (known, runs):
        runs.pause(_job(known, name).name, paused=False)
    echo(f"{name} is resumed.")


@app.command()
def schedule(config: ConfigOption = None) -> None:
    """Run only the scheduler: it starts the jobs of the configuration when they are due.

    Any number of schedulers may run on the same data: none runs a job twice. With `scheduler = "prefect"` or `"airflow"`, it starts only
    the jobs that repeat within a minute.
    """
    import os
    import platform
    import sys
    from random import Random

    from tapeline.orchestration.alerts import Alerts
    from tapeline.orchestration.metrics import JobMetrics
    from tapeline.orchestration.scheduler import Scheduler
    from tapeline.retry import loop
    from tapeline.retry.backoff import backoff
    from tapeline.telemetry.status import StatusFile

    settings = load_config(config)
    stop = stop_on_signal(with_parent=True)
    arguments = ["--config", str(config)] if config else []
    start = [sys.executable, "-m", "tapeline", "jobs", "run", "--by", "schedule", *arguments]
    with _opened(settings) as (known, runs), answering(settings, "schedule"):
        status = StatusFile(settings.root, "schedule")
        mine = {name: job for name, job in known.items() if settings.scheduler in ("embedded", "none") or job.continuous}
        scheduler = Scheduler(
            mine,
            runs,
            lambda name, due_ns, attempt: [*start, "--due-ns", str(due_ns), "--attempt", str(attempt), name],
            time.time_ns,
            f"{platform.node()}, process {os.getpid()}",
        )

        metrics = JobMetrics(known, runs, Alerts(runs.database), time.time_ns)

        def step() -> bool:
            scheduler.step()
            status.maybe(lambda: {**scheduler.status(), "metrics": metrics.samples()})
            return False

        try:
            loop.run(step, stop, rest_s=2.0, waits=lambda: backoff(Random(), cap_s=5.0), drain_s=0.0)
        finally:
            scheduler.finish()


@contextmanager
def _opened(settings: Config) -> Iterator[tuple[dict[str, Job], Runs]]:
    """The jobs of the configuration, and the record of the runs."""
    from tapeline.orchestration.catalog import jobs_of
    from tapeline.orchestration.opening import open_database
    from tapeline.orchestration.runs import Runs

    yield jobs_of(settings), Runs(open_database(settings))


def _report(progress: Mapping[str, Any]) -> None:
    if progress:
        echo(json.dumps({"progress": progress}, default=str))


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    """The row of a job in the table. A time has no seconds, so that the table fits a narrow screen."""
    zone = row["timezone"]
    return {
        "job": row["job"],
        "schedule": row["schedule"] if zone == "UTC" else f"{row['schedule']} {zone}",
        "last run": (row["last run"] or "")[:16],
        "next run": (row["next run"] or "")[:16],
        "result": f"{'late; ' if row['late'] else ''}{row['result']}",
    }


def _job(known: dict[str, Job], name: str) -> Job:
    if name not in known:
        raise ConfigError(f"There is no job {name!r}. The jobs are: {', '.join(known)}.")
    return known[name]


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--day {text!r} is not a day. Write it like 2026-01-05.") from None


def _arguments(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f'--arguments {text!r} is not JSON: {error}. Write an object, like \'{{"provider": "binance"}}\'.') from None
    if not isinstance(found, dict):
        raise ConfigError(f'--arguments {text!r} is not an object. Write one, like \'{{"provider": "binance"}}\'.')
    return found


def _in_one_line(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {len(value) if isinstance(value, list) else value}" for name, value in values.items() if value != "")
