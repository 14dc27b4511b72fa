"""The present look and those of the last hour: kept up by one thread, and read by the pages."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from tapeline.errors import DiskProblem
from tapeline.orchestration.listing import JobRow
from tapeline.records import NS_PER_S
from tapeline.telemetry.families import LIVE_CLIENTS, LIVE_SKIPPED, Sample
from tapeline.telemetry.status import StatusFile
from tapeline.web.observing import Observer
from tapeline.web.overview import Overview, State
from tapeline.web.past import Past

log = logging.getLogger(__name__)

_EVERY_S: Final = 1.0


class FeedLine(msgspec.Struct):
    """The lines of one feed, one value for each time; null where there was none."""

    events_per_s: list[float | None]
    p50_ms: list[float | None]
    p99_ms: list[float | None]


class Lines(msgspec.Struct):
    """The last hour, or a part of it, as lines over the same times."""

    #: ns, UTC, as text.
    at_ns: list[str]
    state: list[State]
    #: `provider/feed` to its lines.
    feeds: dict[str, FeedLine]
    #: Box of the flow to its lag in seconds.
    lag_s: dict[str, list[float | None]]


class Looks:
    """Looks at the pipeline every second from `start` to `stop`, keeps the last hour, and tells of each look."""

    def __init__(
        self,
        observer: Observer,
        past: Past,
        tell: Callable[[bytes, bytes, bytes, bytes], None],
        status: StatusFile,
        more: Callable[[], list[Sample]],
    ) -> None:
        """`tell`: called after each look, in the looking thread, with health, gaps, jobs and alerts as JSON objects.

        `status`: where this process reports. `more`: further metrics of it."""
        self._observer, self._past, self._tell = observer, past, tell
        self._status, self._more = status, more
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="look at the pipeline", daemon=True)
        #: Held while the file of the past is used: pages read it from other threads.
        self._using = threading.Lock()
        self._present = b""
        self._kept = True
        self._begun = threading.Event()

    def start(self) -> None:
        """Begin to look. The first look is done when this returns."""
        self._thread.start()
        self._begun.wait()

    def stop(self) -> None:
        """End the looks."""
        self._stop.set()
        self._thread.join()
        with self._using:
            self._past.close()

    def present(self) -> bytes:
        """Return the last look as JSON."""
        return self._present

    def snapshot(self) -> Mapping[str, Any]:
        """Return what `tapeline status` shows, as of the last look."""
        return self._observer.state

    @property
    def jobs(self) -> list[JobRow]:
        """The jobs."""
        return self._observer.jobs

    def at(self, at_ns: int) -> bytes | None:
        """Return the last look at or before a time (ns, UTC), as JSON; None if none is kept. Raises DiskProblem."""
        with self._using:
            return self._past.at(at_ns)

    def lines(self, end_ns: int, seconds: int, points: int) -> Lines:
        """Return the looks of some seconds before `end_ns` (ns, UTC) as lines of so many points at most. Raises DiskProblem."""
        start_ns = end_ns - seconds * NS_PER_S
        with self._using:
            every = max(1, -(-self._past.count(start_ns, end_ns) // points))
            looks = [msgspec.json.decode(body, type=Overview) for body in self._past.between(start_ns, end_ns, every)]
        return lines_of(looks)

    def _run(self) -> None:
        self._status.write({})  # so that the first look sees this process too
        try:
            self._look()
        finally:
            self._begun.set()
        while not self._stop.wait(_EVERY_S):
            self._look()
        self._observer.close()

    def _look(self) -> None:
        began = time.monotonic()
        seen = self._observer.look()
        body = msgspec.json.encode(seen)
        self._present = body
        try:
            with self._using:
                self._past.add(int(seen.at_ns), body)
            self._kept = True
        except DiskProblem as error:
            if self._kept:
                log.warning("%s", error)
            self._kept = False
        gaps = msgspec.json.encode({"states": seen.gaps})
        jobs, alerts = msgspec.json.encode({"rows": self._observer.jobs}), msgspec.json.encode({"rows": seen.alerts})
        self._tell(body, gaps, jobs, alerts)
        clients = [LIVE_CLIENTS.at(seen.clients), LIVE_SKIPPED.at(seen.skipped)]
        self._status.write({"metrics": [*clients, *self._observer.metrics, *self._more()]})
        log.debug("Looked in %.3f s.", time.monotonic() - began)


def lines_of(looks: list[Overview]) -> Lines:
    """Return looks as lines. Pure."""
    feeds = dict.fromkeys(f"{feed.provider}/{feed.feed}" for look in looks for feed in look.feeds)
    boxes = dict.fromkeys(box.name for look in looks for box in look.flow.boxes if box.kind != "topic")
    of_feeds = [{f"{feed.provider}/{feed.feed}": feed for feed in look.feeds} for look in looks]
    of_boxes = [{box.name: box for box in look.flow.boxes} for look in looks]
    return Lines(
        at_ns=[look.at_ns for look in looks],
        state=[look.verdict.state for look in looks],
        feeds={
            name: FeedLine(
                [some[name].events_per_s if name in some else None for some in of_feeds],
                [some[name].p50_ms if name in some else None for some in of_feeds],
                [some[name].p99_ms if name in some else None for some in of_feeds],
            )
            for name in feeds
        },
        lag_s={name: [some[name].lag_s if name in some else None for some in of_boxes] for name in boxes},
    )
