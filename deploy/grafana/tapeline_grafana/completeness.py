"""Completeness: what is missing, what is being filled, and whether the ledger itself is well."""

from __future__ import annotations

from typing import Final

from tapeline_grafana.board import FEED, PROVIDER, Board, Row
from tapeline_grafana.panels import Query, What, lines, linked, number, rows

_FEEDS: Final = 'provider=~"$provider", feed=~"$feed"'
#: The jobs that find what is missing and bring it. A block of the configuration may add to their names.
_FILLING: Final = "(reconcile|repair|backfill|sync|check_lake).*"

_TODAY: Final = Row(
    "Today",
    [
        lines(
            What("Coverage", "The share of today, so far, of which nothing is missing.", "percentunit", "uptime", width=12),
            Query(f"min by (provider, feed) (tapeline_coverage_ratio{{{_FEEDS}}})", "{{provider}} {{feed}}"),
        ),
        lines(
            What("Missing events", "Events of today that are missing, as far as ids tell.", "short", "completeness", orange=1, width=12),
            Query(f"sum by (provider, feed) (tapeline_missing_events{{{_FEEDS}}})", "{{provider}} {{feed}}"),
        ),
    ],
)

_GAPS: Final = Row(
    "Gaps",
    [
        lines(
            What(
                "Gaps by state",
                "`open` and `repairing` should become fewer. `unrecoverable`: no history has it.",
                "short",
                "completeness",
                width=12,
            ),
            Query("sum by (state) (tapeline_gaps)", "{{state}}"),
        ),
        linked(
            rows(
                What(
                    "Days that are not complete in time",
                    "Promises about completeness that are broken now. Empty is good.",
                    "none",
                    "completeness",
                    width=12,
                ),
                'tapeline_alert_active{runbook=~"completeness|uptime"} == 1',
                ["alert", "runbook"],
            ),
            "runbook",
            "What to do",
            "alerts.html#${__value.text}",
        ),
        rows(
            What(
                "Since the last repair and comparison",
                "How long ago the jobs that look for gaps and fill them last succeeded.",
                "s",
                "job",
                width=24,
                height=5,
            ),
            f'time() - max by (job_name) (tapeline_job_last_success_time_seconds{{job_name=~"{_FILLING}"}})',
            ["job_name"],
            value="succeeded ago",
        ),
    ],
)

_LEDGER: Final = Row(
    "The ledger",
    [
        number(
            What(
                "Records that it skipped",
                "Raw records that the ledger could not process since its process began. It must be 0: else completeness is not known.",
                "short",
                "the-ledger-skips-records",
                red=1,
            ),
            "sum(tapeline_ledger_skipped_records_total)",
        ),
        lines(
            What("Time of a flush", "How long one flush of the ledger takes.", "s", "backlog"),
            Query("histogram_quantile(0.5, sum by (le) (rate(tapeline_ledger_flush_seconds_bucket[$__rate_interval])))", "half"),
            Query("histogram_quantile(0.99, sum by (le) (rate(tapeline_ledger_flush_seconds_bucket[$__rate_interval])))", "99 %"),
        ),
        lines(
            What("Lag of the ledger", "The age of the oldest record that it has still to read.", "s", "backlog", orange=60, red=900),
            Query('max by (group) (tapeline_lag_seconds{group="ledger"})', "{{group}}"),
        ),
    ],
)

BOARD: Final = Board(
    "completeness",
    "completeness",
    "What is missing today, which gaps are open, and whether the ledger, which knows it, is well.",
    [PROVIDER, FEED],
    [_TODAY, _GAPS, _LEDGER],
)
