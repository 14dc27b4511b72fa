"""Arranges what was observed of a pipeline as the dashboard shows it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tapeline.monitor.lag import Lag
from tapeline.orchestration import alerts
from tapeline.records import NS_PER_S
from tapeline.telemetry import families
from tapeline.web.live.reader import Away
from tapeline.web.overview import (
    Alert,
    Arrow,
    Box,
    Connection,
    Equation,
    Feed,
    Flow,
    Overview,
    Problem,
    Process,
    Verdict,
    labelled,
    text_of,
)

#: A group that is so far behind is told of.
_LATE_S: Final = 10.0
#: A stage that reports nothing for so long may hang.
_SILENT_S: Final = 30.0
#: The rate of what stores read is that of so much time.
_FLUSHES_NS: Final = 10 * NS_PER_S
_READ: Final = "read "
_DOWN: Final = "docs/alerts.md#a-process-is-down"


@dataclass(frozen=True, slots=True)
class Observed:
    """What one look found."""

    #: ns, UTC.
    at_ns: int
    #: The snapshot of `monitor.health`, and the statuses it was made of.
    snapshot: Mapping[str, Any]
    statuses: Mapping[str, Mapping[str, Any]]
    #: The configured stages, without `run`; those that must run for data to flow; the configured feeds.
    stages: Sequence[str]
    needed: frozenset[str]
    feeds: Sequence[tuple[str, str]]
    lags: Sequence[Lag]
    #: What is looked up more rarely: completeness, markets, the disk.
    samples: Sequence[families.Sample]
    alerts: Sequence[alerts.Alert]
    late_jobs: Sequence[str]
    #: Why stream or stores could not be asked; empty if they answered.
    problem: str
    clients: int = 0
    skipped: int = 0
    #: What keeps the live feed from reading the stream; None if it reads.
    away: Away | None = None


@dataclass(slots=True)
class Rates:
    """Turns counts that only grow into rates, from one look to the next; what stores read, over some seconds."""

    _looks: deque[tuple[int, Mapping[str, int]]] = field(default_factory=deque)

    def of(self, at_ns: int, counts: Mapping[str, int]) -> dict[str, float]:
        """Return by how much each count grew a second since the last call; 0 for a new one. `at_ns`: UTC."""
        while len(self._looks) > 1 and not at_ns - _FLUSHES_NS <= self._looks[0][0] <= at_ns:
            self._looks.popleft()
        last, first = (self._looks[-1], self._looks[0]) if self._looks else ((0, {}), (0, {}))
        rates = {}
        for name, count in counts.items():
            # A store takes several seconds at once. From look to look, its rate would be nothing and then too much.
            since_ns, before = first if name.startswith(_READ) and name in first[1] else last
            rates[name] = max(0, count - before.get(name, count)) / max((at_ns - since_ns) / NS_PER_S, 0.2)
        self._looks.append((at_ns, dict(counts)))
        return rates


def arranged(seen: Observed, rates: Rates) -> Overview:
    """Return what the dashboard shows of a look. `rates` is told the new counts."""
    per_s = rates.of(seen.at_ns, dict(_counts(seen)))
    found = labelled([list(sample) for sample in seen.samples], families.DISK_FREE.name)
    problems = sorted(_problems(seen), key=lambda one: one.state != "problem")
    return Overview(
        at_ns=text_of(seen.at_ns),
        verdict=_verdict(problems, seen.problem),
        feeds=[_feed(seen, feed, per_s) for feed in seen.feeds],
        flow=_flow(seen, per_s),
        processes=[_process(name, one, seen) for name, one in seen.snapshot["stages"].items()],
        equations=[Equation(one["text"], one["balanced"]) for one in seen.snapshot["equations"]],
        gaps=seen.snapshot["gaps"],
        alerts=[_alert(one) for one in seen.alerts],
        spool_bytes=seen.snapshot["spool"]["spooled_bytes"],
        dropped=seen.snapshot["spool"]["dropped"],
        disk_free_bytes=int(found[()]) if () in found else None,
        clients=seen.clients,
        skipped=seen.skipped,
    )


def _verdict(problems: list[Problem], unknown: str) -> Verdict:
    if unknown:
        return Verdict("unknown", f"The pipeline cannot be asked: {unknown}", problems)
    if not problems:
        return Verdict("well", "All is well: every event is accounted for, and nothing is late.", [])
    first, more = problems[0], len(problems) - 1
    return Verdict(first.state, first.text + (f" And {more} more." if more else ""), problems)


def _problems(seen: Observed) -> Iterator[Problem]:
    yield from _of_processes(seen)
    yield from _of_connections(seen)
    yield from _of_the_live_feed(seen)
    state = seen.snapshot
    for one in state["equations"]:
        if not one["balanced"]:
            yield Problem(
                state="problem",
                text=f"The accounting does not balance: {one['text']}",
                remedy="Report it, and keep the raw topic until the cause is found.",
                runbook="docs/alerts.md#the-accounting-does-not-balance",
            )
    if state["spool"]["dropped"]:
        text = f"{state['spool']['dropped']:,} records are lost, because stream and spool were full."
        yield _spool("problem", text)
    elif state["spool"]["spooled"]:
        yield _spool("attention", f"The stream takes no records: {state['spool']['spooled']:,} wait on disk, in order.")
    for group, seconds in sorted(_late(seen.lags).items()):
        yield Problem(
            state="attention",
            text=f"{group} is {seconds:,.0f} s behind.",
            remedy="See which process is slow; give it more cores, or start a second worker.",
            runbook="docs/alerts.md#backlog",
        )
    for name in seen.late_jobs:
        yield Problem(
            state="attention",
            text=f"The job {name} is late or has failed.",
            remedy=f"`tapeline jobs history {name}` shows why.",
            runbook="docs/alerts.md#job",
        )
    for alert in seen.alerts:
        if alert.resolved_ns is None:
            yield Problem(
                state="problem",
                text=f"{alert.name}: {alert.text}",
                remedy="Follow the runbook.",
                runbook=alert.runbook,
                since_ns=text_of(alert.raised_ns),
            )
    for leap in state["leaps"]:
        yield Problem(
            state="attention",
            text=f"The clock of this machine jumped by {abs(leap['by_ns']) / NS_PER_S:,.1f} s.",
            remedy="Synchronize the clock with NTP.",
            runbook="docs/alerts.md#the-clock-is-wrong",
            since_ns=text_of(leap["after_ns"]),
        )


def _of_the_live_feed(seen: Observed) -> Iterator[Problem]:
    if seen.away is not None:
        yield Problem(
            state="problem",
            text=f"The live feed waits for the stream. {seen.away.why}",
            remedy="Start the stream, if it is down. The live feed then goes on by itself, and its clients get what they missed.",
            runbook="docs/alerts.md#the-live-feed-waits",
            since_ns=text_of(seen.away.since_ns),
        )


def _spool(state: Any, text: str) -> Problem:
    return Problem(state=state, text=text, remedy="Start the broker again, or give it room.", runbook="docs/alerts.md#the-spool-fills")


def _of_processes(seen: Observed) -> Iterator[Problem]:
    shown = seen.snapshot["stages"]
    for name in seen.stages:
        if name not in shown or not shown[name]["running"]:
            needed = name in seen.needed
            yield Problem(
                state="problem" if needed else "attention",
                text=f"{name} does not run." if needed else f"{name} does not run. Data flows all the same.",
                remedy="Start `tapeline run`, or look into its log to see why the stage ended. It continues where it was.",
                runbook=_DOWN,
            )
        elif shown[name]["silent_s"] > _SILENT_S:
            yield Problem(
                state="attention",
                text=f"{name} has reported nothing for {shown[name]['silent_s']:,.0f} s.",
                remedy="Look at the load of the machine and of its disk.",
                runbook=_DOWN,
            )


def _of_connections(seen: Observed) -> Iterator[Problem]:
    for provider, feed in seen.feeds:
        for one in _connections(seen, provider, feed):
            if not one.connected:
                yield Problem(
                    state="problem",
                    text=f"{provider} {feed} is not connected ({one.name}){f': {one.problem}' if one.problem else '.'}",
                    remedy="Tapeline connects again by itself, and repair fills the gap where the provider keeps a history.",
                    runbook="docs/alerts.md#freshness",
                )


def _late(lags: Iterable[Lag]) -> dict[str, float]:
    late: dict[str, float] = {}
    for lag in lags:
        if lag.age_ns > _LATE_S * NS_PER_S:
            late[lag.group] = max(late.get(lag.group, 0.0), lag.age_ns / NS_PER_S)
    return late


def _connections(seen: Observed, provider: str, feed: str) -> list[Connection]:
    found: list[Connection] = []
    for stage, status in seen.statuses.items():
        if stage.partition("-")[0] == "ingest":
            alive = seen.snapshot["stages"].get(stage, {}).get("running", False)
            found += [_connection(status, alive, place) for place in _of(status, families.CONNECTED) if place[:2] == (provider, feed)]
    return found


def _connection(status: Mapping[str, Any], alive: bool, place: tuple[str, ...]) -> Connection:
    name = place[2]
    return Connection(
        name=name,
        connected=alive and bool(_of(status, families.CONNECTED)[place]),
        frames=int(_of(status, families.FRAMES).get(place, 0)),
        reconnects=int(_of(status, families.RECONNECTS).get(place, 0)),
        stale=int(_of(status, families.STALE).get(place, 0)),
        errors={labels[3]: int(count) for labels, count in _of(status, families.PROVIDER_ERRORS).items() if labels[:3] == place},
        last_data_ns=text_of(int(_of(status, families.LAST_DATA).get(place, 0) * NS_PER_S)),
        problem=status.get("lines", {}).get(name, {}).get("problem", ""),
    )


def _of(status: Mapping[str, Any], family: families.Family) -> dict[tuple[str, ...], float]:
    return labelled(status.get("metrics", []), family.name)


def _feed(seen: Observed, feed: tuple[str, str], per_s: Mapping[str, float]) -> Feed:
    samples = [list(sample) for sample in seen.samples]
    of = {name: labelled(samples, family.name) for name, family in _OF_A_FEED.items()}
    pace = seen.snapshot["providers"].get(feed[0], {})
    mine = {one["what"]: one for one in seen.snapshot["equations"] if one["stage"] == "normalize"}.get(f"events of {feed[0]}/{feed[1]}", {})
    open_ = of["open"].get(feed)
    return Feed(
        provider=feed[0],
        feed=feed[1],
        connections=_connections(seen, *feed),
        events_per_s=round(per_s.get(f"feed {feed[0]}/{feed[1]}", 0.0), 1),
        p50_ms=pace.get("p50_ms"),
        p99_ms=pace.get("p99_ms"),
        ticks=mine.get("ticks", 0),
        rejected=mine.get("rejected", 0),
        market_open=None if open_ is None else bool(open_),
        coverage=of["coverage"].get(feed),
        missing=None if feed not in of["missing"] else int(of["missing"][feed]),
    )


_OF_A_FEED: Final = {"open": families.MARKET_OPEN, "coverage": families.COVERAGE, "missing": families.MISSING}


def _counts(seen: Observed) -> Iterator[tuple[str, int]]:
    """The counts whose growth is shown."""
    for status in (status for stage, status in seen.statuses.items() if stage.partition("-")[0] == "ingest"):
        for labels, count in labelled(status.get("metrics", []), families.RECORDED.name).items():
            yield f"recorded {status['stage']}{labels}", int(count)
    for one in seen.snapshot["equations"]:
        if one["stage"] == "normalize":
            yield f"feed {one['what'].removeprefix('events of ')}", one["read"]
        elif " to " not in one["stage"]:
            yield f"{_READ}{one['stage']}/{one['what']}", one["read"]


def _flow(seen: Observed, per_s: Mapping[str, float]) -> Flow:
    recorded = sum(rate for name, rate in per_s.items() if name.startswith("recorded "))
    events = sum(rate for name, rate in per_s.items() if name.startswith("feed "))
    spool = seen.snapshot["spool"]["spooled"]
    ingests = [name for name in seen.stages if name.partition("-")[0] == "ingest"]
    workers = [name for name in seen.stages if name.partition("-")[0] == "normalize"]
    raw, normalized = "raw", "normalized"
    boxes = [_box("ingest", ingests, seen, "stage")]
    if spool:
        boxes[0].problem = f"{spool:,} records wait on disk"
    boxes += [_topic(raw, seen), _box("normalize", workers, seen, "stage"), _topic(normalized, seen)]
    arrows = [Arrow("ingest", raw, recorded), Arrow(raw, "normalize", recorded), Arrow("normalize", normalized, events)]
    for lag in {lag.group: None for lag in seen.lags}:
        if lag == "normalize":
            continue
        kind: Any = "stage" if lag == "ledger" else "store"
        boxes.append(_box(lag, [lag], seen, kind))
        rate = recorded if lag == "ledger" else sum(rate for name, rate in per_s.items() if name.startswith(f"{_READ}{lag}/"))
        arrows.append(Arrow(raw if lag == "ledger" else normalized, lag, rate))
    for arrow in arrows:
        arrow.per_s = round(arrow.per_s, 1)
    return Flow(boxes, arrows)


def _topic(name: str, seen: Observed) -> Box:
    return Box(name=name, kind="topic", running=not seen.problem, lag_records=0, lag_s=0.0, problem="")


def _box(name: str, stages: Sequence[str], seen: Observed, kind: Any) -> Box:
    shown = seen.snapshot["stages"]
    down = [stage for stage in stages if not shown.get(stage, {}).get("running", False)]
    lags = [lag for lag in seen.lags if lag.group == name]
    records, age_s = sum(lag.records for lag in lags), max((lag.age_ns / NS_PER_S for lag in lags), default=0.0)
    problem = f"{', '.join(down)} does not run" if down else f"{age_s:,.0f} s behind" if age_s > _LATE_S else ""
    return Box(name=name, kind=kind, running=not down, lag_records=records, lag_s=round(age_s, 3), problem=problem)


def _process(name: str, one: Mapping[str, Any], seen: Observed) -> Process:
    memory = labelled(list(seen.statuses.get(name, {}).get("metrics", [])), families.MEMORY.name)
    return Process(
        name=name,
        running=one["running"],
        uptime_s=one["uptime_s"],
        silent_s=one["silent_s"],
        memory_bytes=int(memory.get((), 0)),
    )


def _alert(one: alerts.Alert) -> Alert:
    return Alert(one.name, one.text, one.runbook, text_of(one.raised_ns), text_of(one.resolved_ns))
