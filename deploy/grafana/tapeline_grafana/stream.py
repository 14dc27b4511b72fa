"""The stream: who reads it, how far behind, and whether every event is accounted for."""

from __future__ import annotations

from typing import Final

from tapeline_grafana.board import Board, Choice, Row
from tapeline_grafana.panels import Query, What, lines, number, states

_LATENCY: Final = (
    'histogram_quantile({q}, sum by (le, provider) (rate(tapeline_pipeline_latency_seconds_bucket{{to="stream"}}[$__rate_interval])))'
)

_LAG: Final = Row(
    "How far behind",
    [
        lines(
            What("Lag", "The age of the oldest record that a group has still to read.", "s", "backlog", orange=60, red=900, width=12),
            Query('max by (group, topic) (tapeline_lag_seconds{group=~"$group"})', "{{group}}: {{topic}}"),
        ),
        lines(
            What("Records to read", "How many records (Kafka: messages) a group has still to read.", "short", "backlog", width=12),
            Query('sum by (group, topic, partition) (tapeline_lag_records{group=~"$group"})', "{{group}}: {{topic}} {{partition}}"),
        ),
    ],
)

_ACCOUNTING: Final = Row(
    "Accounting",
    [
        states(
            What(
                "Does it balance?",
                "Green: every event that the stage has read was passed on, was a duplicate, or was rejected. It must be green.",
                "none",
                "the-accounting-does-not-balance",
                width=16,
            ),
            Query('min by (stage, of) (tapeline_balanced{stage=~"$stage"})', "{{stage}}: {{of}}"),
            no="does not balance",
            yes="balances",
        ),
        number(
            What(
                "Last look",
                "How long ago stream and stores were last asked. If it is long, lag and accounting are not known.",
                "s",
                "unknown",
                orange=30,
                red=120,
            ),
            "time() - max(tapeline_look_time_seconds)",
        ),
        lines(
            What("Events in", "Events that a stage has read, a second.", "cps", "backlog"),
            Query('sum by (stage, of) (rate(tapeline_events_in_total{stage=~"$stage"}[$__rate_interval]))', "{{stage}}: {{of}}"),
        ),
        lines(
            What("Events out", "What became of them, a second: ticks, bars, notices, duplicates, rejected.", "cps", "rejects"),
            Query(
                'sum by (stage, of, kind) (rate(tapeline_events_out_total{stage=~"$stage"}[$__rate_interval]))',
                "{{stage}}: {{of}}, {{kind}}",
            ),
        ),
        lines(
            What("Rejected", "The share of the events that could not be read. They are kept.", "percentunit", "rejects", orange=0.01),
            Query(
                'sum by (of) (rate(tapeline_events_out_total{stage="normalize", kind="rejected"}[$__rate_interval]))'
                ' / sum by (of) (rate(tapeline_events_in_total{stage="normalize"}[$__rate_interval]))',
                "{{of}}",
            ),
        ),
    ],
)

_TIME: Final = Row(
    "Latency to the stream",
    [
        lines(
            What(
                "From receipt to commit",
                "From the receipt of an event to its commit in the normalized topics, by provider.",
                "s",
                "latency",
                orange=0.1,
                width=24,
            ),
            Query(_LATENCY.format(q="0.5"), "half, {{provider}}"),
            Query(_LATENCY.format(q="0.99"), "99 %, {{provider}}"),
            Query(_LATENCY.format(q="0.999"), "99.9 %, {{provider}}"),
        ),
    ],
)

BOARD: Final = Board(
    "stream",
    "stream",
    "Who reads the stream, how far behind each is, and whether every event is accounted for.",
    [Choice("group", "group", "tapeline_lag_seconds"), Choice("stage", "stage", "tapeline_balanced")],
    [_LAG, _ACCOUNTING, _TIME],
)
