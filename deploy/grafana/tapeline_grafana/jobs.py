"""Jobs: what runs, what is late, what fails, and whether anybody looks what is due."""

from __future__ import annotations

from typing import Final

from tapeline_grafana.board import Board, Choice, Row
from tapeline_grafana.panels import GREY, Query, What, lines, number, rows, states

_JOBS: Final = 'job_name=~"$job"'

_NOW: Final = Row(
    "Now",
    [
        number(
            What(
                "Last look of a scheduler",
                "How long ago a scheduler last looked what is due. If it is long, no job starts.",
                "s",
                "job",
                orange=30,
                red=120,
            ),
            "time() - max(last_over_time(tapeline_scheduler_look_time_seconds[6h]))",
        ),
        number(
            What("Late at most", "For how long a run is due and has not succeeded, of the latest job.", "s", "job", orange=600, red=3600),
            f"max(tapeline_job_late_seconds{{{_JOBS}}})",
        ),
        number(
            What("Failed", "Runs of the chosen time that failed or were killed. Each is tried again.", "short", "job", orange=1, red=5),
            f'sum(delta(tapeline_job_runs{{{_JOBS}, state=~"failed|killed"}}[$__range]))'
            f" or 0 * count(tapeline_job_late_seconds{{{_JOBS}}})",
        ),
    ],
)

_ALL: Final = Row(
    "Each job",
    [
        states(
            What("When it runs", "Green: a run of the job is at work.", "none", width=24),
            Query(f"max by (job_name) (tapeline_job_running{{{_JOBS}}})", "{{job_name}}"),
            no="rests",
            yes="runs",
            no_is=GREY,
        ),
        lines(
            What("Late by", "For how long a run of the job is due and has not succeeded.", "s", "job", orange=600, red=3600),
            Query(f"max by (job_name) (tapeline_job_late_seconds{{{_JOBS}}})", "{{job_name}}"),
        ),
        lines(
            What("Runs in the record", "The latest runs of each job, by how they ended.", "short", "job"),
            Query(f"max by (job_name, state) (tapeline_job_runs{{{_JOBS}}})", "{{job_name}}: {{state}}"),
        ),
        rows(
            What("Since the last success", "How long ago the job last succeeded. A job that never did is not listed.", "s", "job"),
            f"time() - max by (job_name) (tapeline_job_last_success_time_seconds{{{_JOBS}}})",
            ["job_name"],
            value="succeeded ago",
        ),
    ],
)

BOARD: Final = Board(
    "jobs",
    "jobs",
    "What runs, what is late, what fails, and whether anybody looks what is due.",
    [Choice("job", "job_name", "tapeline_job_late_seconds")],
    [_NOW, _ALL],
)
