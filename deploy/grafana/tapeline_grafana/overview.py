"""The overview: is all well? And if not, what is wrong, and where."""

from __future__ import annotations

from functools import partial
from typing import Final

from tapeline_grafana.board import Board, Choice, Row
from tapeline_grafana.panels import Query, What, lines, linked, number, rows, states

#: For each feed: 1 if it has brought nothing for a minute and its market is not closed, else 0; nothing while its market is closed.
_STALE: Final = """\
(time() - max by (provider, feed) (tapeline_last_data_time_seconds) > bool 60)
  unless on (provider, feed) max by (provider, feed) (last_over_time(tapeline_market_open[15m])) == 0"""
#: 0 while any process reports; nothing if none does. So a number is never 0 because nobody counts.
_ZERO: Final = "0 * count(tapeline_up)"
_STAGES: Final = 'stage=~"$stage"'
_PROCESS: Final = "{{stage}} ({{instance}})"
_P: Final = "histogram_quantile({q}, sum by (le, to) (rate(tapeline_pipeline_latency_seconds_bucket[$__rate_interval])))"

_small: Final = partial(What, width=4, height=4)

_WELL: Final = Row(
    "Is all well?",
    [
        number(
            _small("Alerts", "Alerts of Prometheus that fire now. The table below names them.", "none", "what-to-do", red=1),
            f'count(ALERTS{{alertname=~"Tapeline.*", alertstate="firing"}}) or {_ZERO}',
        ),
        number(
            _small("Processes down", "Stages that do not run. `unknown`: no process reports at all.", "none", "a-process-is-down", red=1),
            "count(tapeline_up) - sum(tapeline_up)",
        ),
        number(
            _small(
                "Unbalanced",
                "Stages and tables of which not every event is accounted for (in = out + duplicates + rejected). It must be 0.",
                "none",
                "the-accounting-does-not-balance",
                red=1,
            ),
            "count(tapeline_balanced) - sum(tapeline_balanced)",
        ),
        number(
            _small(
                "Stale feeds",
                "Feeds that have brought nothing for a minute, although their market is not closed.",
                "none",
                "freshness",
                red=1,
            ),
            f"sum({_STALE}) or {_ZERO}",
        ),
        number(
            _small(
                "Lag",
                "The age of the oldest record that a stage has still to read, of the stage that is furthest behind.",
                "s",
                "backlog",
                orange=60,
                red=900,
            ),
            "max(tapeline_lag_seconds)",
        ),
        number(
            _small("Jobs late", "Jobs that are due for more than an hour and have not succeeded.", "none", "job", red=1),
            "sum(tapeline_job_late_seconds > bool 3600)",
        ),
        number(
            _small(
                "Missing events today",
                "Events of today that are missing, as far as their ids tell. Repair brings them where the provider keeps a history.",
                "short",
                "completeness",
                orange=1,
            ),
            "sum(tapeline_missing_events)",
        ),
        number(
            _small(
                "Coverage today",
                "The share of today, so far, of which nothing is missing: the mean over the symbols of the worst feed.",
                "percentunit",
                "uptime",
                orange=0.999,
                red=0.99,
            ),
            "min(tapeline_coverage_ratio)",
            lower_is_worse=True,
        ),
        number(
            _small(
                "Latency, 99 %",
                "From the receipt of an event to its commit in the stream. Of a hundred events, one takes longer.",
                "s",
                "latency",
                orange=0.1,
                red=1,
            ),
            'histogram_quantile(0.99, sum by (le) (rate(tapeline_pipeline_latency_seconds_bucket{to="stream"}[$__rate_interval])))',
        ),
        number(
            _small(
                "Records on disk",
                "Raw records that wait on disk because the stream does not accept them. Nothing is lost until the spool is full.",
                "short",
                "the-spool-fills",
                orange=1,
            ),
            "sum(tapeline_spool_records)",
        ),
        number(
            _small("Disk free", "Free space where the data folder is.", "decbytes", "disk", orange=20e9, red=5e9),
            "min(tapeline_disk_free_bytes)",
            lower_is_worse=True,
        ),
        number(
            _small(
                "Clock offset",
                "By how much our clock and that of a provider differ, at most; 0 if below a second.",
                "s",
                "the-clock-is-wrong",
                red=1,
            ),
            "max(abs(tapeline_clock_offset_seconds))",
        ),
    ],
)

_WRONG: Final = Row(
    "What is wrong",
    [
        rows(
            What("Alerts that fire", "Of Prometheus' rules. Empty is good.", "none", "what-to-do", width=12),
            'ALERTS{alertname=~"Tapeline.*", alertstate="firing"}',
            ["alertname", "severity", "provider", "feed", "stage", "group", "job_name", "alert"],
        ),
        linked(
            rows(
                What(
                    "Promises that are broken",
                    "Alerts that Tapeline itself has raised (`tapeline alerts`). Empty is good. The last column leads to what to do.",
                    "none",
                    "what-to-do",
                    width=12,
                ),
                "tapeline_alert_active == 1",
                ["alert", "runbook"],
            ),
            "runbook",
            "What to do",
            "alerts.html#${__value.text}",
        ),
    ],
)

_FLOW: Final = Row(
    "The flow",
    [
        lines(
            What("Events", "Events that normalize has read, a second, by feed.", "cps", "freshness"),
            Query('sum by (of) (rate(tapeline_events_in_total{stage="normalize"}[$__rate_interval]))', "{{of}}"),
        ),
        lines(
            What("Latency", "From the receipt of an event to its commit in the stream or in a store.", "s", "latency"),
            Query(_P.format(q="0.5"), "half, to {{to}}"),
            Query(_P.format(q="0.99"), "99 %, to {{to}}"),
        ),
        lines(
            What("Lag by group", "The age of the oldest record that a group has still to read.", "s", "backlog", orange=60, red=900),
            Query("max by (group) (tapeline_lag_seconds)", "{{group}}"),
        ),
    ],
)

_PROCESSES: Final = Row(
    "Processes",
    [
        states(
            What("Which processes run", "Red: the stage does not run.", "none", "a-process-is-down", width=12),
            Query(f"max by (instance, stage) (tapeline_up{{{_STAGES}}})", _PROCESS),
            no="down",
            yes="runs",
        ),
        lines(
            What("Restarts", "How often a stage was started again, in each step of time. It should be 0.", "short", "a-process-is-down"),
            Query(f"sum by (instance, stage) (increase(tapeline_restarts_total{{{_STAGES}}}[$__rate_interval]))", _PROCESS),
        ),
        number(
            What(
                "Longest silence",
                "For how long the quietest process that runs has not reported. Each reports about once a second.",
                "s",
                "a-process-is-down",
                orange=30,
                red=120,
                width=4,
            ),
            f"max(time() - tapeline_report_time_seconds{{{_STAGES}}})",
        ),
        lines(
            What("Memory", "The memory of each process that is in RAM.", "decbytes"),
            Query(f"sum by (instance, stage) (tapeline_resident_memory_bytes{{{_STAGES}}})", _PROCESS),
        ),
        lines(
            What("Processor", "How many processor cores each process keeps busy.", "short"),
            Query(f"sum by (instance, stage) (rate(tapeline_cpu_seconds_total{{{_STAGES}}}[$__rate_interval]))", _PROCESS),
        ),
        rows(
            What("Since when, and which version", "For how long each process runs, and with which version.", "s"),
            f"(time() - tapeline_start_time_seconds{{{_STAGES}}}) * on (instance, stage) group_left (version, python)"
            f" tapeline_build_info{{{_STAGES}}}",
            ["stage", "instance", "version", "python"],
            value="runs for",
        ),
        rows(
            What("Native core", "Whether each process that decodes frames uses the native core (1) or Python (0).", "short"),
            f"tapeline_native_core{{{_STAGES}}}",
            ["stage", "instance"],
            value="native core",
        ),
    ],
)

BOARD: Final = Board(
    "overview",
    "overview",
    "Is all well? The first rows answer it: every number is green. The rest shows what is wrong, and where.",
    [Choice("stage", "stage", "tapeline_up")],
    [_WELL, _WRONG, _FLOW, _PROCESSES],
)
