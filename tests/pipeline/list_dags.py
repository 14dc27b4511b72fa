"""Runs in Airflow's environment: prints what Airflow makes of the DAG file and of exit statuses, as one JSON object."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from airflow.dag_processing.dagbag import BundleDagBag

folder = os.environ["AIRFLOW__CORE__DAGS_FOLDER"]
bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags-folder")
dags = {
    name: {
        "schedule": str(dag.timetable),
        "catchup": dag.catchup,
        "start": dag.start_date.isoformat(),
        "deadline_s": [alert.interval.total_seconds() for alert in dag.deadline or []],
        "after": {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks},
        "pools": {task.task_id: task.pool for task in dag.tasks},
        "retries": {task.task_id: task.retries for task in dag.tasks},
    }
    for name, dag in bag.dags.items()
}
import tapeline_operator  # the bag has made it importable  # noqa: E402

NOON = datetime(2026, 1, 5, 12, 0, 7, tzinfo=UTC)


def outcome(status: int, run_type: str = "scheduled", late_s: float = 0.0, **more: object) -> str:
    """What becomes of a task whose command ends with this status: the error's name, or the command's line."""
    said = []
    command = SimpleNamespace(arguments=lambda *words: ["sh", "-c", f"exit {status}", *words])
    tapeline_operator.configured = lambda: command
    tapeline_operator.log = SimpleNamespace(info=said.append)
    settings = {"job": "compact", "provider": "", "every_s": 300.0, "catch_up": "none", "takes_day": True} | more
    run = SimpleNamespace(run_id="r", run_type=run_type, logical_date=NOON, start_date=NOON + timedelta(seconds=late_s))
    task = SimpleNamespace(log_url="http://127.0.0.1/x", try_number=2)
    try:
        tapeline_operator.TapelineJob(task_id="t", **settings).execute.__wrapped__(
            tapeline_operator.TapelineJob(task_id="t", **settings), {"dag_run": run, "ti": task, "params": {"day": "2026-01-03"}}
        )
    except Exception as error:  # noqa: BLE001 its kind is the answer
        return type(error).__name__
    return said[0].partition(" jobs ")[2]


outcomes = {
    **{str(status): outcome(status) for status in (0, 2, 65, 69, 70, 75, 77, 78)},
    "late": outcome(0, late_s=601),
    "late, made up for": outcome(0, late_s=601, catch_up="latest"),
    "by hand": outcome(0, "manual", 601),
    "by hand, without a day": outcome(0, "manual", takes_day=False),
    "one provider": outcome(0, provider="binance"),
}
warnings = [str(some) for some in bag.captured_warnings.values()]
found = {"outcomes": outcomes, "errors": list(bag.import_errors.values()), "warnings": warnings, "dags": dags}
print("\n" + json.dumps(found))
