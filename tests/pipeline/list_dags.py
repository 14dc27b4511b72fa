"""Runs in Airflow's environment: prints what Airflow makes of the DAG file, as one JSON object."""

from __future__ import annotations

import json
import os

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
found = {"errors": list(bag.import_errors.values()), "warnings": [str(some) for some in bag.captured_warnings.values()], "dags": dags}
print("\n" + json.dumps(found))
