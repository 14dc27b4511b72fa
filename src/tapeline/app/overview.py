"""Looks at the whole pipeline now and then, and says as metrics what it found: the accounting, lag, completeness, the lake and the disk."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from tapeline.app.feeds import feed_of
from tapeline.app.histories import quotas_of
from tapeline.app.ledgers import open_ledger
from tapeline.app.streams import raw_consumer_groups
from tapeline.calendars import should_tick
from tapeline.config import Config
from tapeline.errors import ConfigError, TapelineError
from tapeline.ledger import read_intervals
from tapeline.ledger.answers import Answer, answer, reached
from tapeline.ledger.intervals import COVERED, MISSING
from tapeline.monitor.health import equations
from tapeline.monitor.lag import lags
from tapeline.net.rate_limit import counted
from tapeline.providers.registry import PROVIDERS
from tapeline.records import NORMALIZED_TOPICS, NS_PER_S
from tapeline.stores import Store
from tapeline.stores.lake import Lake
from tapeline.stores.lake.logged import size_of
from tapeline.streams import Stream
from tapeline.telemetry import families
from tapeline.telemetry.families import Sample

log = logging.getLogger(__name__)

_EVERY_NS: Final = 5 * NS_PER_S
#: What takes longer to find out changes slowly.
_SLOWLY_NS: Final = 60 * NS_PER_S
_DAY_NS: Final = 86_400 * NS_PER_S


@dataclass(slots=True)
class Overview:
    """The pipeline of a configuration, through its opened stream and stores. One thread may use it."""

    config: Config
    stream: Stream
    stores: Mapping[str, Store]
    #: ns, UTC.
    clock: Callable[[], int]
    _looked_ns: int = 0
    _succeeded_ns: int = 0
    _slowly_ns: int = 0
    #: How long after a slow look the next one is due: short at first, when there is something new with each look.
    _pause_ns: int = _EVERY_NS
    _found: list[Sample] = field(default_factory=list)
    _found_slowly: list[Sample] = field(default_factory=list)

    def samples(self) -> list[Sample]:
        """Return what was found by the last look, at most 5 s ago; for the lake and the ledger, a minute.

        What cannot be looked up is left out, and the time of the last look that succeeded grows old."""
        now_ns = self.clock()
        if not 0 <= now_ns - self._looked_ns < _EVERY_NS:
            self._looked_ns, self._found = now_ns, []
            try:
                self._found = list(self._look(now_ns))
                if not 0 <= now_ns - self._slowly_ns < self._pause_ns:
                    self._found_slowly, self._slowly_ns = list(self._look_slowly(now_ns)), now_ns
                    self._pause_ns = min(2 * self._pause_ns, _SLOWLY_NS)
                self._succeeded_ns = now_ns
            except TapelineError as error:
                log.debug("%s", error)  # the stages have the same problem: they log it, and wait it out
                self._found_slowly, self._slowly_ns = [], 0
        return [*self._found, *self._found_slowly, *([families.LOOKED.at(self._succeeded_ns / NS_PER_S)] if self._succeeded_ns else [])]

    def _look(self, now_ns: int) -> Iterator[Sample]:
        for one in equations(self.stream, self.stores):
            of = one.what.removeprefix("events of ")
            yield families.EVENTS_IN.at(one.read, one.stage, of)
            yield from (families.EVENTS_OUT.at(count, one.stage, of, kind) for kind, count in one.parts.items())
            yield families.BALANCED.at(float(one.balanced), one.stage, of)
        for lag in lags(self.stream, self.stores, raw_consumer_groups(self.config), now_ns):
            place = (lag.group, lag.topic.table or "raw", str(lag.partition))
            yield families.LAG_RECORDS.at(lag.records, *place)
            yield families.LAG_SECONDS.at(lag.age_ns / NS_PER_S, *place)
        yield families.DISK_FREE.at(shutil.disk_usage(self.config.root).free)

    def _look_slowly(self, now_ns: int) -> Iterator[Sample]:
        for lake in (store for store in self.stores.values() if isinstance(store, Lake)):
            for topic in NORMALIZED_TOPICS:
                if (size := size_of(lake.root / topic.table)) is not None:
                    yield families.LAKE_FILES.at(size[0], topic.table)
                    yield families.LAKE_BYTES.at(size[1], topic.table)
        if self.config.ledger:
            yield from self._completeness(now_ns)
        for provider, feed in {(some.name, feed_of(some)): None for some in self.config.providers}:
            with suppress(ConfigError):  # the calendars are not installed
                yield families.MARKET_OPEN.at(should_tick(PROVIDERS[provider].feeds[feed].calendar, now_ns), provider, feed)
        for provider in {some.name: None for some in self.config.providers}:
            yield from self._requests(provider)

    def _completeness(self, now_ns: int) -> Iterator[Sample]:
        start_ns = now_ns - now_ns % _DAY_NS
        answers: dict[tuple[str, str], list[Answer]] = {}
        ledger = open_ledger(self.config)
        keys = ledger.keys()
        symbols = {key.symbol for key in keys}
        for key, intervals in (read_intervals(ledger.intervals(symbols)) if symbols else {}).items():
            until_ns = reached(intervals, start_ns, now_ns)
            answers.setdefault((key.provider, key.feed), []).append(answer(key, intervals, start_ns, max(until_ns, start_ns + 1)))
        for feed, some in answers.items():
            yield families.COVERAGE.at(fmean(map(_share, some)), *feed)
            yield families.MISSING.at(sum(map(_missing, some)), *feed)

    def _requests(self, provider: str) -> Iterator[Sample]:
        """Every process of this machine counts its requests to a provider where they share the rate limit."""
        counts = [counted(path) for path in quotas_of(self.config, provider)]
        answers: Counter[str] = sum((Counter(some) for some, _ in counts), Counter())
        yield from (families.REST_REQUESTS.at(count, provider, status) for status, count in answers.items())
        if counts:
            yield families.REST_WAITS.at(round(sum(waited_s for _, waited_s in counts), 3), provider)


def _share(one: Answer) -> float:
    """The share of the time in which nothing is missing."""
    whole_ns = sum(some.end_ns - some.start_ns for some in one.intervals)
    return sum(some.end_ns - some.start_ns for some in one.intervals if some.state in COVERED) / whole_ns if whole_ns else 1.0


def _missing(one: Answer) -> int:
    """How many events are missing, as far as their ids tell."""
    return sum(
        some.last_id - some.first_id + 1
        for some in one.intervals
        if some.state in MISSING and some.first_id is not None and some.last_id is not None
    )
