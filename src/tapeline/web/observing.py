"""Looks at the pipeline once a second: through its stream, its stores, the statuses of its processes, and the record of jobs and alerts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tapeline.app.feeds import configured_feeds
from tapeline.app.overview import Overview as Sampled
from tapeline.app.process_names import stage_names
from tapeline.app.stores import open_stores
from tapeline.app.streams import open_stream_with_data, raw_consumer_groups
from tapeline.config import Config
from tapeline.errors import TapelineError
from tapeline.monitor.health import alive, snapshot
from tapeline.monitor.lag import Lag, lags
from tapeline.orchestration.alerts import Alert, Alerts
from tapeline.orchestration.catalog import jobs_of
from tapeline.orchestration.listing import JobRow, listed
from tapeline.orchestration.opening import open_database
from tapeline.orchestration.runs import Runs
from tapeline.records import NS_PER_S
from tapeline.stores import Store
from tapeline.streams import Stream
from tapeline.telemetry.families import Sample
from tapeline.telemetry.status import read_status
from tapeline.web.arranging import Observed, Rates, arranged
from tapeline.web.live.reader import Away
from tapeline.web.overview import Overview

log = logging.getLogger(__name__)

_JOBS_EVERY_NS: Final = 5 * NS_PER_S
#: Data flows without these.
_NOT_NEEDED: Final = frozenset({"ledger", "repair", "schedule", "dashboard", "run"})


@dataclass(slots=True)
class Observer:
    """Looks at the pipeline of a configuration. One thread may use it, because it keeps the stream open."""

    config: Config
    #: The live feed's clients, and how many events slow ones did not get.
    feed: Callable[[], tuple[int, int]]
    #: What keeps the live feed from reading the stream, at a time (ns, UTC); None if it reads.
    away: Callable[[int], Away | None]
    #: ns, UTC.
    clock: Callable[[], int]
    _stream: Stream | None = None
    _stores: Mapping[str, Store] = field(default_factory=dict)
    _sampled: Sampled | None = None
    _rates: Rates = field(default_factory=Rates)
    _jobs: list[JobRow] = field(default_factory=list)
    _alerts: list[Alert] = field(default_factory=list)
    _jobs_ns: int = 0
    #: What `tapeline status` shows, as of the last look.
    state: Mapping[str, Any] = field(default_factory=dict)
    #: The metrics of the last look. None where `tapeline run` has them.
    metrics: list[Sample] = field(default_factory=list)

    def look(self) -> Overview:
        """Look once. What cannot be asked is said in the verdict; nothing is raised for it."""
        now_ns, problem, found, samples = self.clock(), "", list[Lag](), list[Sample]()
        groups, stages = raw_consumer_groups(self.config), stage_names(self.config)
        try:
            stream = self._stream if self._opened() else None
            state = snapshot(self.config.root, stream, self._stores, groups, now_ns, stages)
            if stream is not None and self._sampled is not None:
                found = list(lags(stream, self._stores, groups, now_ns))
                samples = self._sampled.samples()
        except TapelineError as error:
            state, problem = snapshot(self.config.root, None, {}, groups, now_ns, stages), str(error)
        try:
            self._look_at_jobs(now_ns)
        except TapelineError as error:
            problem = problem or str(error)
        self.state = state
        clients, skipped = self.feed()
        statuses = {name: status for name, status in read_status(self.config.root).items() if name in stages or alive(status, now_ns)}
        self.metrics = [] if alive(statuses.get("run", {}), now_ns) else samples
        seen = Observed(
            at_ns=now_ns,
            snapshot=state,
            statuses=statuses,
            stages=sorted(stages - {"run", *(set() if "repair" in statuses else {"repair"})}),
            needed=frozenset(stages - _NOT_NEEDED),
            feeds=sorted(configured_feeds(self.config)),
            lags=found,
            samples=samples,
            alerts=self._alerts,
            late_jobs=[row["job"] for row in self._jobs if row["late"] and not row["paused"]],
            problem=problem,
            clients=clients,
            skipped=skipped,
            away=self.away(now_ns),
        )
        return arranged(seen, self._rates)

    @property
    def jobs(self) -> list[JobRow]:
        """The jobs, as `tapeline jobs list --format json` shows them, at most some seconds old."""
        return self._jobs

    @property
    def alerts(self) -> list[Alert]:
        """The open alerts and the latest that are over."""
        return self._alerts

    def close(self) -> None:
        """Close the stream."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _opened(self) -> bool:
        """Open what there is. Before the first start of the pipeline there is no stream yet."""
        if self._stream is None:
            self._stream = open_stream_with_data(self.config)
            if self._stream is not None:
                self._stores = open_stores(self.config)
                self._sampled = Sampled(self.config, self._stream, self._stores, self.clock)
        return self._stream is not None

    def _look_at_jobs(self, now_ns: int) -> None:
        if 0 <= now_ns - self._jobs_ns < _JOBS_EVERY_NS:
            return
        self._jobs_ns = now_ns
        database = open_database(self.config)
        self._jobs = listed(jobs_of(self.config), Runs(database), now_ns)
        self._alerts = Alerts(database).latest(50)
