"""The metrics of Tapeline: the name, the kind, the labels and the meaning of each.

Everything that reports, shows or documents a metric takes it from here. Names and units follow Prometheus' conventions: seconds, bytes,
and `_total` for what only grows. A label has few values: a symbol is data, not a label. Each process puts its samples into its status,
and every sample then has the label `stage` too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from tapeline.telemetry.latencies import Buckets

#: A metric's name, the values of its labels in order, and its value.
Sample: TypeAlias = tuple[str, tuple[str, ...], float | Buckets]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()

    def at(self, value: float | Buckets, *labels: str) -> Sample:
        """Return a sample. `labels`: the values of its labels, in order."""
        assert len(labels) == len(self.labels), f"{self.name} has the labels {self.labels}, not {labels}"
        return self.name, labels, value


def _counter(name: str, meaning: str, *labels: str) -> Family:
    return Family(f"tapeline_{name}_total", "counter", meaning, labels)


def _gauge(name: str, meaning: str, *labels: str) -> Family:
    return Family(f"tapeline_{name}", "gauge", meaning, labels)


def _time(name: str, meaning: str, *labels: str) -> Family:
    return _gauge(f"{name}_time_seconds", f"{meaning}, in seconds since 1970.", *labels)


def _latency(name: str, meaning: str, *labels: str) -> Family:
    return Family(f"tapeline_{name}_seconds", "histogram", meaning, labels)


_FEED: Final = ("provider", "feed")
_CONNECTION: Final = (*_FEED, "connection")
_PARTITION: Final = ("group", "topic", "partition")
#: Not `job`: Prometheus gives each series that label itself, and renames one that is there already.
_JOB: Final = "job_name"

# Every process.
BUILD: Final = _gauge("build_info", "1. The labels say which version runs.", "version", "python")
UP: Final = _gauge("up", "1 if the process runs, 0 if it does not.")
STARTED: Final = _time("start", "When the process started")
REPORTED: Final = _time("report", "When the process last reported")
RESTARTS: Final = _counter("restarts", "How often `tapeline run` has started the stage again.", "stage")
MEMORY: Final = _gauge("resident_memory_bytes", "The memory of the process that is in RAM.")
CPU: Final = _counter("cpu_seconds", "The processor time of the process.")

NATIVE: Final = _gauge("native_core", "1 if the process decodes frames with the native core, 0 if it decodes them in Python.")

# Ingest.
FRAMES: Final = _counter("frames", "Frames with market data that were received.", *_CONNECTION)
CONNECTED: Final = _gauge("connected", "1 while the connection is open, else 0.", *_CONNECTION)
RECONNECTS: Final = _counter("reconnects", "How often the connection was opened again.", *_CONNECTION)
STALE: Final = _counter("stale_connections", "How often a connection was given up because it was silent.", *_CONNECTION)
PROVIDER_ERRORS: Final = _counter("provider_errors", "Errors of the provider, by its code.", *_CONNECTION, "code")
LAST_DATA: Final = _time("last_data", "When the connection last brought market data", *_CONNECTION)
MARKET_OPEN: Final = _gauge("market_open", "1 while the feed's market is open, by its calendar; left out if that is not known.", *_FEED)
LINE_EVENTS: Final = _counter("line_events", "Events that one of two lines brought.", *_CONNECTION)
LINE_FIRST: Final = _counter("line_first_events", "Events that this line brought before the other one.", *_CONNECTION)
LINE_MISSED: Final = _counter("line_missed_events", "Events that only the other line brought.", *_CONNECTION)
RECORDED: Final = _counter("raw_records", "Raw records that ingest has given to the stream.")
UNACKNOWLEDGED: Final = _gauge("unacknowledged_records", "Raw records that were sent and that the stream has not acknowledged.")
SPOOLED: Final = _gauge("spool_records", "Raw records that wait on disk because the stream does not accept them.")
SPOOLED_BYTES: Final = _gauge("spool_bytes", "The size of the records that wait on disk.")
DROPPED: Final = _counter("dropped_records", "Raw records that are lost because stream and spool were full.")
CLOCK_LEAPS: Final = _counter("clock_leaps", "How often the machine's clock has jumped.")

# Normalize and the stores.
RECEIPT: Final = _latency("receipt_latency", "From the event, by the provider's clock, to its receipt, by ours.", "provider")
PIPELINE: Final = _latency("pipeline_latency", "From the receipt of an event to its commit in the stream or in a store.", "provider", "to")
CLOCK_OFFSET: Final = _gauge("clock_offset_seconds", "By how much our clock is ahead of the provider's; 0 if below a second.", "provider")
COMMITS: Final = _latency("commit", "The time that one commit of rows took.", "topic")
STORED: Final = _counter("stored_rows", "Rows that the store has written since its process began.", "topic")
FLUSHES: Final = _latency("ledger_flush", "The time that one flush of the ledger took.")
QUERIES: Final = _latency("query", "From a question to the dashboard's server about the history to the first rows of its answer.", "of")

# Counts that are kept in the stream and in the stores. They continue when a process starts again.
EVENTS_IN: Final = _counter("events_in", "Events that the stage has read.", "stage", "of")
EVENTS_OUT: Final = _counter("events_out", "What became of these events, by kind.", "stage", "of", "kind")
BALANCED: Final = _gauge("balanced", "1 if every event that the stage has read is accounted for (in = out), else 0.", "stage", "of")
LAG_RECORDS: Final = _gauge("lag_records", "Records that the group has not read yet.", *_PARTITION)
LAG_SECONDS: Final = _gauge("lag_seconds", "The age of the oldest record that the group has not read yet; 0 if none.", *_PARTITION)

LOOKED: Final = _time("look", "When stream and stores were last looked at, for the metrics that are counted in them")

# Completeness.
GAPS: Final = _gauge("gaps", "Gaps in the ledger, by state.", "state")
MISSING: Final = _gauge("missing_events", "Events of today that are missing, as far as their ids tell.", *_FEED)
COVERAGE: Final = _gauge("coverage_ratio", "The share of today, so far, of which nothing is missing: the mean over all symbols.", *_FEED)
PASSED_OVER: Final = _counter("ledger_skipped_records", "Raw records that the ledger could not process.")

# The live feed.
LIVE_CLIENTS: Final = _gauge("live_clients", "Clients of the live feed.")
LIVE_SKIPPED: Final = _counter("live_skipped_events", "Events that clients of the live feed did not get because they were too slow.")

# Stores, disk, jobs and alerts.
LAKE_FILES: Final = _gauge("lake_files", "Files of the lake.", "topic")
LAKE_BYTES: Final = _gauge("lake_bytes", "The size of the lake's files.", "topic")
DISK_FREE: Final = _gauge("disk_free_bytes", "Free space where the data folder is.")
JOB_RUNS: Final = _gauge("job_runs", "Runs of the job in the record, by state.", _JOB, "state")
JOB_RUNNING: Final = _gauge("job_running", "1 while the job runs, else 0.", _JOB)
JOB_SUCCESS: Final = _time("job_last_success", "When the job last succeeded", _JOB)
JOB_LATE: Final = _gauge("job_late_seconds", "For how long a run of the job is due and has not succeeded; 0 if none is.", _JOB)
SCHEDULER_LOOK: Final = _time("scheduler_look", "When the scheduler last looked what is due")
ALERT: Final = _gauge("alert_active", "1 while the alert is raised. `runbook`: its heading in docs/alerts.md.", "alert", "runbook")
REST_REQUESTS: Final = _counter("rest_requests", "Requests over REST, by the status of the answer.", "provider", "status")
REST_WAITS: Final = _counter("rest_wait_seconds", "The time that was spent waiting for the provider's rate limit.", "provider")

#: Every metric, by its name.
FAMILIES: Final = {some.name: some for some in tuple(globals().values()) if isinstance(some, Family)}
