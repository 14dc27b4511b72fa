"""What the dashboard shows of the pipeline, by a person's questions: is all well, what comes in, where does it wait, is it complete?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

State = Literal["well", "attention", "problem", "unknown"]


class Problem(msgspec.Struct, kw_only=True):
    """One thing that is wrong, or may become wrong."""

    state: State
    text: str
    #: What to do.
    remedy: str
    #: The page and heading of the documentation that says more.
    runbook: str
    #: Since when (ns, UTC, as text); empty if that is not known.
    since_ns: str = ""


class Verdict(msgspec.Struct):
    """Whether all is well, in one line, and what is not."""

    state: State
    text: str
    problems: list[Problem]


class Connection(msgspec.Struct, kw_only=True):
    """One connection of ingest to a provider."""

    name: str
    connected: bool
    frames: int
    reconnects: int
    #: How often it was given up because it was silent.
    stale: int
    #: Errors of the provider, by their code.
    errors: dict[str, int]
    #: When it last brought market data (ns, UTC, as text); empty if never.
    last_data_ns: str
    problem: str


class Feed(msgspec.Struct, kw_only=True):
    """What comes in from one feed of a provider."""

    provider: str
    feed: str
    connections: list[Connection]
    #: Events a second since the last look, all kinds.
    events_per_s: float
    #: From receipt to the stream, in ms, of the last seconds, for all feeds of the provider; null without events.
    p50_ms: float | None
    p99_ms: float | None
    ticks: int
    rejected: int
    #: Null if the calendar is not known.
    market_open: bool | None
    #: The share of today in which nothing is missing, and how many events are known to be missing; null if nobody knows.
    coverage: float | None
    missing: int | None


class Box(msgspec.Struct, kw_only=True):
    """A part of the flow: a stage, or a topic of the stream."""

    name: str
    kind: Literal["stage", "topic", "store"]
    running: bool
    #: What its group has still to read: records (on Kafka: messages) and the age of the oldest one in seconds.
    lag_records: int
    lag_s: float
    #: Why it is not as it should be; empty if it is.
    problem: str


class Arrow(msgspec.Struct):
    """What flows from one box to the next, in records a second."""

    start: str
    end: str
    per_s: float


class Flow(msgspec.Struct):
    """The way of a tick, with where it waits."""

    boxes: list[Box]
    arrows: list[Arrow]


class Alert(msgspec.Struct):
    """One alert. Times are ns, UTC, as text."""

    name: str
    text: str
    runbook: str
    raised_ns: str
    resolved_ns: str


class Process(msgspec.Struct, kw_only=True):
    """One process of the pipeline, as its status says."""

    name: str
    running: bool
    uptime_s: float
    silent_s: float
    memory_bytes: int


class Equation(msgspec.Struct):
    """What came in and what became of it, in one line, and whether the two are equal."""

    text: str
    balanced: bool


class Overview(msgspec.Struct, kw_only=True):
    """The pipeline at one moment."""

    #: ns, UTC, as text.
    at_ns: str
    verdict: Verdict
    feeds: list[Feed]
    flow: Flow
    processes: list[Process]
    equations: list[Equation]
    #: Gaps by their state; null if no ledger is kept.
    gaps: dict[str, int] | None
    alerts: list[Alert]
    #: Bytes that wait on ingest's disk, and records that are lost because that was full.
    spool_bytes: int
    dropped: int
    disk_free_bytes: int | None
    #: The live feed: how many clients it has, and how many events slow ones did not get.
    clients: int
    skipped: int


def text_of(ns: int | None) -> str:
    """A time in ns as the text that JSON carries; empty for none."""
    return str(ns) if ns else ""


def labelled(samples: list[list[Any]], name: str) -> dict[tuple[str, ...], float]:
    """Return the values of one metric by its labels, from the samples of a status."""
    return {tuple(labels): value for some, labels, value in samples if some == name and not isinstance(value, Mapping)}
