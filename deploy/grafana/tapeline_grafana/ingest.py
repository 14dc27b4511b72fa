"""Ingest: the connections to the providers, what they bring, and whether the stream takes it."""

from __future__ import annotations

from typing import Final

from tapeline_grafana.board import FEED, PROVIDER, Board, Row
from tapeline_grafana.panels import GREY, Query, What, lines, number, states

_FEEDS: Final = 'provider=~"$provider", feed=~"$feed"'
_NAME: Final = "{{provider}} {{feed}}"
_PROCESS: Final = "{{stage}} ({{instance}})"
_RECEIPT: Final = (
    "histogram_quantile({q}, sum by (le, provider)"
    ' (rate(tapeline_receipt_latency_seconds_bucket{{provider=~"$provider"}}[$__rate_interval])))'
)

_CONNECTIONS: Final = Row(
    "Providers",
    [
        states(
            What("Connections", "Red: the connection is closed. Ingest opens it again by itself.", "none", "freshness", width=12),
            Query(f"max by (provider, feed, connection) (tapeline_connected{{{_FEEDS}}})", "{{connection}}"),
            no="closed",
            yes="open",
        ),
        states(
            What("Markets", "When the market of a feed is open, by its calendar. Then the feed should bring data.", "none", width=12),
            Query(f"max by (provider, feed) (tapeline_market_open{{{_FEEDS}}})", _NAME),
            no="closed",
            yes="open",
            no_is=GREY,
        ),
        lines(
            What(
                "Time since the last data",
                "How long ago a feed last brought market data. It may be long while its market is closed.",
                "s",
                "freshness",
                red=60,
            ),
            Query(f"time() - max by (provider, feed) (tapeline_last_data_time_seconds{{{_FEEDS}}})", _NAME),
        ),
        lines(
            What("Reconnects", "How often a connection was opened again, in each step of time.", "short", "freshness"),
            Query(f"sum by (provider, feed) (increase(tapeline_reconnects_total{{{_FEEDS}}}[$__rate_interval]))", _NAME),
        ),
        lines(
            What("Given up as silent", "How often an open connection was given up because it brought nothing.", "short", "freshness"),
            Query(f"sum by (provider, feed) (increase(tapeline_stale_connections_total{{{_FEEDS}}}[$__rate_interval]))", _NAME),
        ),
        lines(
            What("Frames", "Frames with market data, a second.", "cps", "freshness", width=12),
            Query(f"sum by (provider, feed) (rate(tapeline_frames_total{{{_FEEDS}}}[$__rate_interval]))", _NAME),
        ),
        lines(
            What("Errors of providers", "What a provider refused or reported, by its code. Empty is good.", "short", "freshness", width=12),
            Query(
                f"sum by (provider, feed, code) (increase(tapeline_provider_errors_total{{{_FEEDS}}}[$__rate_interval]))",
                "{{provider}} {{feed}}: {{code}}",
            ),
        ),
    ],
)

_PAIRS: Final = Row(
    "Two lines that carry the same events",
    [
        lines(
            What("First", "Events that this line brought before the other one, a second.", "cps", width=12),
            Query(f"sum by (connection) (rate(tapeline_line_first_events_total{{{_FEEDS}}}[$__rate_interval]))", "{{connection}}"),
        ),
        lines(
            What("Missed", "The share of all events that only the other line brought.", "percentunit", width=12),
            Query(
                f"sum by (connection) (rate(tapeline_line_missed_events_total{{{_FEEDS}}}[$__rate_interval]))"
                f" / sum by (connection) (rate(tapeline_line_events_total{{{_FEEDS}}}[$__rate_interval])"
                f" + rate(tapeline_line_missed_events_total{{{_FEEDS}}}[$__rate_interval]))",
                "{{connection}}",
            ),
        ),
    ],
)

_TIME: Final = Row(
    "Time",
    [
        lines(
            What("From the event to its receipt", "The provider and the network: by the provider's clock, to ours.", "s", "latency"),
            Query(_RECEIPT.format(q="0.5"), "half, {{provider}}"),
            Query(_RECEIPT.format(q="0.99"), "99 %, {{provider}}"),
        ),
        lines(
            What("Clock offset", "By how much our clock and the provider's differ; 0 if below a second.", "s", "the-clock-is-wrong"),
            Query('max by (provider) (abs(tapeline_clock_offset_seconds{provider=~"$provider"}))', "{{provider}}"),
        ),
        lines(
            What("Leaps of the clock", "How often the machine's clock has jumped. It should be 0.", "short", "the-clock-is-wrong"),
            Query("sum by (instance) (increase(tapeline_clock_leaps_total[$__rate_interval]))", "{{instance}}"),
        ),
    ],
)

_DELIVERY: Final = Row(
    "Delivery to the stream",
    [
        lines(
            What("Raw records", "Records that ingest has given to the stream, a second.", "cps", "the-spool-fills"),
            Query("sum by (instance, stage) (rate(tapeline_raw_records_total[$__rate_interval]))", _PROCESS),
        ),
        lines(
            What("Not acknowledged", "Records that were sent and that the stream has not confirmed.", "short", "the-spool-fills"),
            Query("sum by (instance, stage) (tapeline_unacknowledged_records)", _PROCESS),
        ),
        lines(
            What("Records on disk", "Records that wait because the stream does not accept them.", "short", "the-spool-fills", orange=1),
            Query("sum by (instance, stage) (tapeline_spool_records)", _PROCESS),
        ),
        lines(
            What("Size of the records on disk", "Nothing is lost until this reaches `stream.spool_mb`.", "decbytes", "the-spool-fills"),
            Query("sum by (instance, stage) (tapeline_spool_bytes)", _PROCESS),
        ),
        number(
            What("Records lost", "In the chosen time, as stream and spool were full. It must be 0.", "short", "the-spool-fills", red=1),
            "sum(increase(tapeline_dropped_records_total[$__range]))",
        ),
    ],
)

_REST: Final = Row(
    "Requests over REST",
    [
        lines(
            What("Requests", "Requests to the providers' histories and lists, a second, by the status of the answer.", "reqps", width=12),
            Query(
                'sum by (provider, status) (rate(tapeline_rest_requests_total{provider=~"$provider"}[$__rate_interval]))',
                "{{provider}}: {{status}}",
            ),
        ),
        lines(
            What(
                "Waiting for the rate limit",
                "How many requests wait, on average, because the provider's limit is used up. Where it stays high, history comes slowly.",
                "short",
                width=12,
            ),
            Query('sum by (provider) (rate(tapeline_rest_wait_seconds_total{provider=~"$provider"}[$__rate_interval]))', "{{provider}}"),
        ),
    ],
)

BOARD: Final = Board(
    "ingest",
    "ingest",
    "What the providers bring, over which connections, how late, and whether the stream takes it.",
    [PROVIDER, FEED],
    [_CONNECTIONS, _PAIRS, _TIME, _DELIVERY, _REST],
)
