"""One task of Airflow: a run of one of Tapeline's jobs, as a process in Tapeline's own environment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from tapeline_command import FATAL, CommandFailed, Run, configured

log = structlog.get_logger(__name__)

#: With `catch_up = "none"`, a run that starts so long after its moment was missed.
_MISSED_AFTER: Final = timedelta(minutes=10)
_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class TapelineJob(BaseOperator):
    """Runs a job of Tapeline. A scheduled run works for its moment of the schedule: Tapeline finds the day.

    A manual run works for now, or for the parameter `day` of the DAG."""

    def __init__(self, *, job: str, provider: str, every_s: float, catch_up: str, takes_day: bool, **settings: Any) -> None:
        """`provider`: only this one, if it is not empty. The others are as in the list of Tapeline's jobs."""
        super().__init__(**settings)
        self.job, self.provider, self.every_s, self.catch_up, self.takes_day = job, provider, every_s, catch_up, takes_day
        self._run: Run | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the job, and return what it did. Raises AirflowFailException if a retry cannot help, and AirflowException otherwise."""
        dag_run, task = context["dag_run"], context["ti"]
        words = ["--by", "airflow", "--by-id", dag_run.run_id, "--by-url", task.log_url or "", "--attempt", str(task.try_number)]
        if self.provider:
            words += ["--provider", self.provider]
        moment, day = dag_run.logical_date, context["params"].get("day")
        if dag_run.run_type == "manual" or moment is None:
            words += ["--day", day] if day and self.takes_day else []
        else:
            late_by = (dag_run.start_date or moment) - moment
            if self.catch_up == "none" and dag_run.run_type == "scheduled" and late_by > _MISSED_AFTER:
                raise AirflowSkipException(f'{self.job} missed its moment by {late_by}, and catch_up is "none".')
            words += ["--due-ns", str(due_ns(moment, self.every_s))]
        tapeline = configured()
        self._run = Run(tapeline.arguments("jobs", "run", self.job, "--format", "json", *words))
        try:
            return self._run.follow(log.info)
        except CommandFailed as error:
            if error.status in FATAL:
                raise AirflowFailException(str(error)) from None
            raise AirflowException(str(error)) from None

    def on_kill(self) -> None:
        """Stop the job. Its next run continues where it was."""
        if self._run is not None:
            self._run.stop()


def due_ns(moment: datetime, every_s: float) -> int:
    """Return the moment of Tapeline's schedule (ns, UTC) that a moment of Airflow stands for. Periods count from 1970."""
    ns = int((moment - _EPOCH) / timedelta(microseconds=1)) * 1_000
    period_ns = int(every_s * 1e9)
    return ns // period_ns * period_ns if period_ns else ns


def failed(context: Context) -> None:
    """Raise the job's alert: its last attempt has failed."""
    job = _job_of(context)
    _alert(job, f"{job} failed: {context.get('exception')} Airflow shows the run: {context['ti'].log_url}")


def succeeded(context: Context) -> None:
    """Resolve the job's alert."""
    _alert(_job_of(context), None)


def late(job: str, text: str, context: Mapping[str, Any] | None = None) -> None:
    """Raise the job's alert: its deadline has passed. Airflow's scheduler calls it."""
    run = (context or {}).get("dag_run") or {}
    _alert(job, f"{text} The run of Airflow: {run.get('run_id') if isinstance(run, Mapping) else run}.")


def _job_of(context: Context) -> str:
    return str(getattr(context["ti"].task, "job", "") or context["ti"].task_id)


def _alert(job: str, text: str | None) -> None:
    """What becomes of the alert changes nothing for the run: Tapeline's own checks see a job that is late, too."""
    try:
        configured().alert(f"airflow-{job}", text)
    except (CommandFailed, OSError, ValueError) as error:
        log.warning("An alert was not sent.", job=job, error=str(error))
