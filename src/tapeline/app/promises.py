"""Looks up what the [[sla]] blocks of the configuration promise, and decides with `monitor.promises` whether each is kept."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Final

from tapeline.app.feeds import configured_feeds, feed_of
from tapeline.app.ledgers import open_ledger
from tapeline.app.stores import open_stores
from tapeline.app.streams import open_stream_with_data, raw_consumer_groups
from tapeline.calendars import open_time_ns, session_on, sessions
from tapeline.config import Config, SlaConfig
from tapeline.errors import ConfigError, TapelineError
from tapeline.ledger import read_intervals
from tapeline.ledger.answers import answer
from tapeline.ledger.facts import Interval, Key
from tapeline.monitor import promises
from tapeline.monitor.freshness import Match, Newest, NewestEvents
from tapeline.monitor.health import of_feeds, snapshot
from tapeline.monitor.lag import lags
from tapeline.monitor.promises import Finding
from tapeline.providers.registry import PROVIDERS
from tapeline.records import NS_PER_S
from tapeline.stores import Store
from tapeline.streams import Stream
from tapeline.times import duration_ns, ns_of, time_of_day, zone_of

#: A large ledger takes long to read, and its answers change slowly: what it was asked is asked again after this time.
_LEDGER_AGAIN_NS: Final = 60 * NS_PER_S
#: The keys that a check needs, each with its value if the block leaves it out. None: it must be given.
_NEEDS: Final[Mapping[str, Mapping[str, str | None]]] = {
    "freshness": {"within": None},
    "latency": {"within": None},
    "backlog": {"within": None},
    "completeness": {"by": None},
    "job": {"job": None, "within": None},
    "disk": {"at_least": None},
    "uptime": {"at_least": None, "within": "24h"},
    "rejects": {"at_most": None, "within": "1h"},
}


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise, checked."""

    settings: SlaConfig
    within_ns: int
    remind_ns: int

    @property
    def match(self) -> Match:
        """The events that it is about."""
        return Match(self.settings.provider, self.settings.feed, self.settings.symbols, self.settings.channels)

    def of(self, key: Key) -> bool:
        """Whether it is about a key of the ledger."""
        some = self.settings
        return (
            some.provider in ("", key.provider)
            and some.feed in ("", key.feed)
            and (not some.symbols or key.symbol in some.symbols)
            and (not some.channels or key.channel in some.channels)
        )


def promises_of(config: Config) -> list[Promise]:
    """The promises of the configuration. Raises ConfigError, which names the block, the key and the remedy."""
    found: list[Promise] = []
    receivers = {some.name for some in config.notify}
    for some in config.sla:
        where = f"[[sla]] {some.name}"
        given = {"within": some.within, "by": some.by, "job": some.job, "at_least": some.at_least, "at_most": some.at_most}
        missing = [key for key, usual in _NEEDS[some.check].items() if usual is None and given[key] in ("", None)]
        if missing:
            raise ConfigError(f"{where}: check = {some.check!r} needs {missing[0]}. Add it to the block.")
        if extra := [key for key, value in given.items() if value not in ("", None) and key not in _NEEDS[some.check]]:
            raise ConfigError(f"{where}: check = {some.check!r} has no {extra[0]}. Remove it. It has: {', '.join(_NEEDS[some.check])}.")
        if unknown := [name for name in some.notify if name not in receivers]:
            raise ConfigError(f"{where}: there is no [[notify]] block {unknown[0]!r}. Add one, or remove the name.")
        if some.name in {one.settings.name for one in found}:
            raise ConfigError(f"[[sla]]: there are two promises {some.name!r}. Give one of them another name.")
        if some.provider and some.provider not in PROVIDERS:
            raise ConfigError(f"{where}: {some.provider!r} is not a provider. The installed providers are: {', '.join(PROVIDERS)}.")
        try:
            within_ns = duration_ns(some.within or _NEEDS[some.check].get("within") or "1s", "within")
            remind_ns = duration_ns(some.remind, "remind")
            zone_of(some.timezone)
            if some.by:
                time_of_day(some.by, "by")
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        found.append(Promise(some, within_ns, remind_ns))
    return found


@dataclass(slots=True)
class Promises:
    """The promises of a configuration, with what they are looked up in. Open it with `with`, and look as often as you like."""

    config: Config
    clock: Callable[[], int]
    #: Returns for how long no run of a job has succeeded, in ns; None if none ever did.
    job_age_ns: Callable[[str], int | None]
    _promises: Sequence[Promise] = ()
    _stream: Stream | None = None
    _stores: Mapping[str, Store] = field(default_factory=dict)
    _newest: NewestEvents | None = None
    #: When the ends of the topics were last read (ns, UTC).
    _newest_ns: int = 0
    #: What the ledger answered to a promise, and when (ns, UTC).
    _answered: dict[str, tuple[int, Finding]] = field(default_factory=dict)
    #: For each promise about rejected events: moments (ns), and how many events of each provider were read and rejected until then.
    _counts: dict[str, deque[tuple[int, Mapping[str, int]]]] = field(default_factory=dict)
    _opened: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Promises:
        self._promises = promises_of(self.config)
        self._stores = open_stores(self.config)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def by_name(self) -> Mapping[str, Promise]:
        """The promises by their names."""
        return {promise.settings.name: promise for promise in self._promises}

    def look(self) -> list[Finding]:
        """Check every promise once. What cannot be looked up is a finding of its own: unknown."""
        found: list[Finding] = []
        now_ns = self.clock()
        for promise in self._promises:
            try:
                found.append(self._check(promise, now_ns))
            except ConfigError:
                raise
            except TapelineError as error:
                found.append(Finding(promise.settings.name, None, str(error)))
        return found

    def _check(self, promise: Promise, now_ns: int) -> Finding:
        some, name = promise.settings, promise.settings.name
        match some.check:
            case "freshness":
                newest, sent_ns = self._newest_of(promise, now_ns), now_ns - self._delay_ns(promise)
                return promises.fresh(name, newest, promise.within_ns, sent_ns, self._open_time(promise))
            case "latency":
                shown = snapshot(self.config.root, None, {}, clock_ns=now_ns)["providers"]
                times = {provider: one["p99_ms"] for provider, one in shown.items() if some.provider in ("", provider)}
                return promises.quick(name, times, promise.within_ns)
            case "backlog":
                return promises.caught_up(name, self._ages(some.stage, now_ns), promise.within_ns)
            case "completeness":
                return self._by_ledger(promise, now_ns, self._complete)
            case "job":
                return promises.done(name, some.job, self.job_age_ns(some.job), promise.within_ns)
            case "disk":
                free = shutil.disk_usage(self.config.root).free
                return promises.roomy(name, free, some.at_least or 0.0, str(self.config.root))
            case "uptime":
                return self._by_ledger(promise, now_ns, self._covered)
            case "rejects":
                return self._accepted(promise, now_ns)

    def _open(self) -> Stream:
        if self._stream is None:
            self._stream = open_stream_with_data(self.config)
            if self._stream is None:
                raise TapelineError("There is no stream yet: nothing was ever received.")
            self._opened.callback(self._stream.close)
        return self._stream

    def _by_ledger(self, promise: Promise, now_ns: int, ask: Callable[[Promise, int], Finding]) -> Finding:
        at_ns, found = self._answered.get(promise.settings.name, (0, None))
        if found is None or not 0 <= now_ns - at_ns < _LEDGER_AGAIN_NS:
            found = ask(promise, now_ns)
            self._answered[promise.settings.name] = now_ns, found
        return found

    def _newest_of(self, promise: Promise, now_ns: int) -> Newest:
        if self._newest is None:
            matches = [one.match for one in self._promises if one.settings.check == "freshness"]
            self._newest = NewestEvents(self._open(), matches)
        if self._newest_ns != now_ns:  # one reading serves all promises of a look
            self._newest.look()
            self._newest_ns = now_ns
        return self._newest.newest[promise.match]

    def _calendar(self, provider: str, feed: str, promise: Promise) -> str:
        """The calendar of a feed; empty if it never closes, or if the promise holds all the time."""
        return PROVIDERS[provider].feeds[feed].calendar if promise.settings.sessions and feed in PROVIDERS[provider].feeds else ""

    def _open_time(self, promise: Promise) -> promises.OpenTime:
        """The market time of a promise: of the feed that is open longest, if it is about several."""
        some = promise.settings
        feeds = [(provider, feed) for provider, feed in configured_feeds(self.config) if some.provider in ("", provider)]
        names = {self._calendar(provider, some.feed or feed, promise) for provider, feed in feeds} or {""}
        return lambda start_ns, end_ns: max(open_time_ns(name, start_ns, end_ns) for name in names)

    def _delay_ns(self, promise: Promise) -> int:
        """How old an event is when its provider sends it, in ns: of the feed that sends earliest, if the promise is about several."""
        some = promise.settings
        blocks = [block for block in self.config.providers if some.provider in ("", block.name) and some.feed in ("", feed_of(block))]
        return min((PROVIDERS[block.name].feeds[feed_of(block)].delay_at(block.url) for block in blocks), default=0)

    def _ages(self, stage: str, now_ns: int) -> dict[str, int]:
        """How old the oldest record is that each stage has still to read, in ns."""
        groups = [group for group in raw_consumer_groups(self.config) if stage in ("", group)]
        stores = {name: store for name, store in self._stores.items() if stage in ("", name)}
        ages: dict[str, int] = {}
        for lag in lags(self._open(), stores, groups, now_ns):
            if lag.age_ns:
                ages[lag.group] = max(ages.get(lag.group, 0), lag.age_ns)
        return ages

    def _intervals(self, promise: Promise) -> dict[Key, list[Interval]]:
        ledger = open_ledger(self.config)
        keys = ledger.keys()
        symbols = promise.settings.symbols or tuple({key.symbol: None for key in keys if promise.of(key)})
        found = read_intervals(ledger.intervals(symbols)) if symbols else {}
        return {key: some for key, some in found.items() if promise.of(key)}

    def _complete(self, promise: Promise, now_ns: int) -> Finding:
        some = promise.settings
        day = day_before(now_ns, some.by, some.timezone)
        answers = []
        for key, intervals in self._intervals(promise).items():
            for start_ns, end_ns in session_on(self._calendar(key.provider, key.feed, promise), day):
                answers.append(answer(key, intervals, start_ns, end_ns))
        if not answers and self._closed_on(promise, day):
            return Finding(some.name, True, f"The market was closed on {day}.")
        return promises.complete(some.name, answers, f"{day}")

    def _closed_on(self, promise: Promise, day: date) -> bool:
        some = promise.settings
        feeds = [(one.name, feed_of(one)) for one in self.config.providers if some.provider in ("", one.name)]
        return bool(feeds) and not any(session_on(self._calendar(*one, promise), day) for one in feeds)

    def _covered(self, promise: Promise, now_ns: int) -> Finding:
        some = promise.settings
        missing: dict[Key, int] = {}
        window_ns = 0
        for key, intervals in self._intervals(promise).items():
            spans = sessions(self._calendar(key.provider, key.feed, promise), now_ns - promise.within_ns, now_ns)
            window_ns = max(window_ns, sum(end - start for start, end in spans))
            missing[key] = promises.missing_ns(intervals, spans)
        return promises.covered(some.name, missing, window_ns if missing else 1, some.at_least or 0.0)

    def _accepted(self, promise: Promise, now_ns: int) -> Finding:
        some = promise.settings
        counts = self._counts.setdefault(some.name, deque())
        counts.append((now_ns, of_feeds(self._open())))
        while len(counts) > 1 and counts[1][0] <= now_ns - promise.within_ns:
            counts.popleft()
        (_, before), (_, after) = counts[0], counts[-1]
        grown = {part: sum(_of(after, some, part)) - sum(_of(before, some, part)) for part in ("seen", "rejected")}
        return promises.accepted(some.name, grown["seen"], grown["rejected"], some.at_most or 0.0)


def _of(totals: Mapping[str, int], some: SlaConfig, part: str) -> list[int]:
    """The totals `provider/feed/part` that a promise is about."""
    names = [(name, name.split("/")) for name in totals]
    return [
        totals[name]
        for name, (provider, feed, what) in names
        if what == part and some.provider in ("", provider) and some.feed in ("", feed)
    ]


def day_before(now_ns: int, by: str, timezone: str) -> date:
    """The day that must be complete now: the one before the latest time of the day `by`, in its time zone."""
    zone = zone_of(timezone)
    today = datetime.fromtimestamp(now_ns // NS_PER_S, zone).date()
    reached = ns_of(datetime.combine(today, time_of_day(by, "by"), zone)) <= now_ns
    return today - timedelta(days=1 if reached else 2)
