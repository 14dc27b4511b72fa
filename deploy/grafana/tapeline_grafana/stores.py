"""The stores: what they write, how quickly, how far behind they are, and how much space is left."""

from __future__ import annotations

from typing import Final

from tapeline_grafana.board import Board, Choice, Row
from tapeline_grafana.panels import Query, What, lines, number

_TOPICS: Final = 'stage=~"$store", topic=~"$topic"'
_TABLE: Final = "{{stage}}: {{topic}}"
_COMMIT: Final = (
    "histogram_quantile({q}, sum by (le, stage, topic)"
    ' (rate(tapeline_commit_seconds_bucket{{stage=~"$store", topic=~"$topic"}}[$__rate_interval])))'
)
_LATENCY: Final = (
    'histogram_quantile({q}, sum by (le, to) (rate(tapeline_pipeline_latency_seconds_bucket{{to=~"$store"}}[$__rate_interval])))'
)

_QUESTION: Final = "histogram_quantile({q}, sum by (le, of) (rate(tapeline_query_seconds_bucket[$__rate_interval])))"

_WRITING: Final = Row(
    "Writing",
    [
        lines(
            What("Rows", "Rows that a store has written, a second.", "cps", "backlog"),
            Query(f"sum by (stage, topic) (rate(tapeline_stored_rows_total{{{_TOPICS}}}[$__rate_interval]))", _TABLE),
        ),
        lines(
            What("Time of a commit", "How long one commit of rows takes.", "s", "backlog"),
            Query(_COMMIT.format(q="0.5"), "half, {{stage}} {{topic}}"),
            Query(_COMMIT.format(q="0.99"), "99 %, {{stage}} {{topic}}"),
        ),
        lines(
            What("Commits", "Commits a second. A store waits for more rows, up to `flush_seconds`.", "cps", "backlog"),
            Query(f"sum by (stage, topic) (rate(tapeline_commit_seconds_count{{{_TOPICS}}}[$__rate_interval]))", _TABLE),
        ),
        lines(
            What("From receipt to store", "From the receipt of an event to its commit. `flush_seconds` is usual.", "s", "backlog"),
            Query(_LATENCY.format(q="0.5"), "half, {{to}}"),
            Query(_LATENCY.format(q="0.99"), "99 %, {{to}}"),
        ),
        lines(
            What("Lag", "The age of the oldest record that the store has still to read.", "s", "backlog", orange=60, red=900),
            Query('max by (group, topic) (tapeline_lag_seconds{group=~"$store", topic=~"$topic"})', "{{group}}: {{topic}}"),
        ),
        lines(
            What("Duplicates", "Rows a second that were in the store already. After a reconnect or a repair, some are usual.", "cps"),
            Query(
                'sum by (stage, of) (rate(tapeline_events_out_total{stage=~"$store", kind="duplicates"}[$__rate_interval]))',
                "{{stage}}: {{of}}",
            ),
        ),
    ],
)

_SPACE: Final = Row(
    "Space",
    [
        lines(
            What("Free space", "Free space where the data folder is. On a full disk, ingest stops to take data in.", "decbytes", "disk"),
            Query("min by (instance) (tapeline_disk_free_bytes)", "{{instance}}"),
        ),
        number(
            What("Free in a day", "The free space in 24 hours, at the pace of the last hour.", "decbytes", "disk", orange=5e9, red=0),
            "min(predict_linear(tapeline_disk_free_bytes[1h], 86400))",
            lower_is_worse=True,
        ),
        lines(
            What("Size of the lake", "The size of the lake's files.", "decbytes", "disk"),
            Query('sum by (topic) (tapeline_lake_bytes{topic=~"$topic"})', "{{topic}}"),
        ),
        lines(
            What("Files of the lake", "The number of files. It falls when an hour or a day is compacted.", "short", "disk", width=24),
            Query('sum by (topic) (tapeline_lake_files{topic=~"$topic"})', "{{topic}}"),
        ),
    ],
)

_READING: Final = Row(
    "Reading, by the dashboard's server",
    [
        lines(
            What("Time of a question", "From a question about the history to the first rows of its answer.", "s"),
            Query(_QUESTION.format(q="0.5"), "half, {{of}}"),
            Query(_QUESTION.format(q="0.99"), "99 %, {{of}}"),
        ),
        lines(
            What("Clients of the live feed", "Programs and pages that are connected now.", "short"),
            Query("sum by (instance) (tapeline_live_clients)", "{{instance}}"),
        ),
        lines(
            What("Left out", "Events a second that slow clients did not get. They got the latest values instead.", "cps"),
            Query("sum by (instance) (rate(tapeline_live_skipped_events_total[$__rate_interval]))", "{{instance}}"),
        ),
    ],
)

BOARD: Final = Board(
    "stores",
    "stores",
    "What the stores write, how quickly, how far behind they are, and how much space is left.",
    [Choice("store", "stage", "tapeline_stored_rows_total"), Choice("topic", "topic", "tapeline_stored_rows_total")],
    [_WRITING, _READING, _SPACE],
)
