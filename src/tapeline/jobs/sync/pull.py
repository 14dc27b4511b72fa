"""One pull after the other: decides what to request of each key, and writes the pages to the stream as raw records.

A pull has two parts. What the provider no longer changes (`History.settled_ns`) is read once, from the end of the evidence on. Its pages
count for the ledger. What is younger may still change, so later pulls read it again, and its pages do not count. The stores drop the
copies, as they do for every history.

The evidence comes first: nothing younger is read before what is missing up to then is there. So a proven event always means that
everything before it was requested.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from random import Random
from typing import Final

from tapeline.errors import Barred, Refused, TapelineError
from tapeline.jobs.backfill.fetching import Source, connection_name, partition_of, raw_record
from tapeline.jobs.sync.evidence import JOB, Evidence
from tapeline.jobs.sync.turn import Item, Plan, Turn
from tapeline.ledger.facts import Interval, Key
from tapeline.providers.history import Span
from tapeline.providers.registry import HISTORIES
from tapeline.records import NS_PER_S, RAW_TOPIC
from tapeline.retry.backoff import backoff
from tapeline.streams import Stream

log = logging.getLogger(__name__)

#: How often the evidence is looked at, and what may still change is read as a whole. In between, pulls read what is new.
_WHOLE_NS: Final = 60 * NS_PER_S
#: The longest span that is read at once. A process that is killed repeats at most that much.
_SLICE_NS: Final = 3_600 * NS_PER_S
#: What the provider refuses is requested again after this time. After another error the waits grow up to a minute.
_REFUSED_NS: Final = 600 * NS_PER_S
_FIRST_WAIT_S: Final = 1.0
#: The pages get a new connection name this often, so that the ledger can put the old one away.
_RENAME_NS: Final = 300 * NS_PER_S
_LOOK_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Timing:
    """How far back a pull reaches, in ns."""

    #: Each pull begins so much before the end of the last one, because the provider may publish an event late.
    overlap_ns: int = 2 * NS_PER_S
    #: How much settled history is read where nothing is known yet.
    look_back_ns: int = 60 * NS_PER_S
    #: No pull begins earlier than this. What is older stays a gap of the ledger, which `repair` can fill.
    furthest_ns: int = 86_400 * NS_PER_S
    #: The plan of the provider gives events only when they are this old.
    delay_ns: int = 0


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one pull did for one key: the time that it read, [start, end) in ns, UTC, and how many pages and events came.

    With an `error`, the time was not read to its end. The next pull continues from the evidence."""

    key: Key
    start_ns: int
    end_ns: int
    pages: int
    events: int
    error: TapelineError | None = None


@dataclass(slots=True)
class _Progress:
    """How far this process has come with a key. Times are in ns (UTC)."""

    waits: Iterator[float]
    fresh_ns: int = 0  # everything was read up to here at least once; 0: nothing yet
    whole_ns: int = 0  # when the last pull read everything that the evidence does not cover
    not_before_ns: int = 0
    failing: bool = False
    pages: int = 0
    events: int = 0


class Sync:
    """Pulls each key of each feed, as often as `pull` is called. Use it in one thread, and `close` it at the end."""

    def __init__(
        self,
        feeds: Sequence[tuple[Source, Sequence[Key]]],
        stream: Stream,
        known: Callable[[], Mapping[Key, Sequence[Interval]]],
        timing: Timing,
        stop: threading.Event,
        random: Random,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`feeds`: the history of each feed, with the keys to pull. `known`: returns the ledger's current intervals. `clock`: UTC, ns."""
        self._feeds, self._stream, self._timing, self._stop, self._clock = feeds, stream, timing, stop, clock
        self._evidence = Evidence(stream, known)
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._turns: dict[int, Turn] = {}
        self._progress = {key: _Progress(backoff(random, _FIRST_WAIT_S)) for _, keys in feeds for key in keys}
        self._random = random
        self._named_ns = self._look_ns = 0

    @property
    def behind(self) -> bool:
        """Whether a key is not read up to now yet, and another pull can go on at once."""
        now_ns = self._clock()
        return any(not one.fresh_ns and not one.failing and one.not_before_ns <= now_ns for one in self._progress.values())

    def pull(self, wait_s: float = math.inf) -> Iterator[Pulled]:
        """Request once what is new of each key, and yield what was done as it is done.

        It waits for the providers for `wait_s`. A provider that takes longer is not asked anew: the next call waits for the same requests.
        Raises Unavailable if the stream or the ledger is away, and what the ledger raises. A later call continues from the evidence."""
        self._begin()
        deadline = time.monotonic() + wait_s
        while self._turns and not self._stop.is_set():
            try:
                item = self._items.get(timeout=min(_LOOK_EVERY_S, max(0.0, deadline - time.monotonic())))
            except Empty:
                if time.monotonic() >= deadline:
                    return
                continue
            if item.plan is None:
                self._turns = {number: turn for number, turn in self._turns.items() if turn is not item.turn}
                item.turn.end()
            elif item.page is not None:
                self._page(item)
            elif not item.turn.dropped:
                yield self._done(item.plan, item.error)

    def close(self) -> None:
        """Take no more pages. A request that was sent ends by itself."""
        self._drop()

    def _begin(self) -> None:
        """Start a turn for each feed that has none."""
        now_ns = self._clock()
        due = {
            number: [key for key in keys if self._due(self._progress[key], now_ns)]
            for number, (_, keys) in enumerate(self._feeds)
            if number not in self._turns
        }
        whole = {key for keys in due.values() for key in keys if self._whole(self._progress[key], now_ns)}
        ends = self._look(whole, now_ns) if whole else {}
        if not 0 <= now_ns - self._named_ns < _RENAME_NS:
            self._named_ns = now_ns
        for number, keys in due.items():
            plans = [self._plan(key, now_ns, ends.get(key)) for key in keys if key in ends or key not in whole]
            for plan in plans:
                if not plan.spans:
                    self._reached(plan)
            if plans := [plan for plan in plans if plan.spans]:
                name = connection_name(JOB, keys[0].provider, keys[0].feed, self._named_ns)
                self._turns[number] = Turn(self._feeds[number][0], plans, name, self._items, self._stop)

    def _look(self, keys: Collection[Key], now_ns: int) -> dict[Key, int]:
        """Return where the evidence of the keys ends; nothing if it was looked at a moment ago, so that they wait for a later pull.

        A large ledger takes long to read. Reading it uses at most a twentieth of the time."""
        if now_ns < self._look_ns <= now_ns + _WHOLE_NS:
            return {}
        ends = self._evidence.ends(keys, now_ns)
        self._look_ns = now_ns + min(20 * (self._clock() - now_ns), _WHOLE_NS)
        return ends

    @staticmethod
    def _due(progress: _Progress, now_ns: int) -> bool:
        return not now_ns < progress.not_before_ns <= now_ns + _REFUSED_NS  # a later time was noted before the clock was set back

    @staticmethod
    def _whole(progress: _Progress, now_ns: int) -> bool:
        return not progress.fresh_ns or not 0 <= now_ns - progress.whole_ns < _WHOLE_NS or progress.fresh_ns > now_ns

    def _plan(self, key: Key, now_ns: int, known_ns: int | None) -> Plan:
        """What to read of a key. `known_ns`: up to when the evidence reaches (0: there is none); None: read only what is new."""
        timing, span = self._timing, Span(key.feed, key.channel, key.symbol, 0, now_ns - self._timing.delay_ns)
        if known_ns is None:
            return Plan(key, None, _between(span, self._progress[key].fresh_ns - timing.overlap_ns, span.end_ns), now_ns, whole=False)
        settled_ns = min(now_ns - HISTORIES[key.provider].settled_ns(key.channel), span.end_ns)
        start_ns = max(known_ns or settled_ns - timing.look_back_ns, settled_ns - timing.furthest_ns)
        end_ns = min(settled_ns, start_ns + _SLICE_NS)
        settled = _between(span, start_ns - timing.overlap_ns, end_ns) if start_ns < end_ns else None
        if end_ns < settled_ns and settled is not None:
            return Plan(key, settled, None, now_ns, whole=False)
        return Plan(key, settled, _between(span, settled_ns, span.end_ns), now_ns, whole=True)

    def _page(self, item: Item) -> None:
        """Write a page to the stream."""
        item.turn.taken()
        plan, page = item.plan, item.page
        if item.turn.dropped or plan is None or page is None:
            return
        key, progress = plan.key, self._progress[plan.key]
        try:
            if page.payload is not None:
                record = raw_record(key.provider, key.feed, item.turn.connection, page)
                self._stream.append(RAW_TOPIC, record, partition_of(self._stream, key.symbol))
            if page.following is None and item.span is plan.settled:
                final_ns = page.as_of_ns - HISTORIES[key.provider].settled_ns(key.channel)
                self._evidence.add(key, min(plan.settled.end_ns, final_ns) if plan.settled is not None else 0)
        except TapelineError:
            self._drop()  # a page is missing from now on, so what follows it proves nothing
            raise
        progress.pages, progress.events = progress.pages + 1, progress.events + page.rows

    def _done(self, plan: Plan, error: TapelineError | None) -> Pulled:
        """Note the end of a plan."""
        key, progress = plan.key, self._progress[plan.key]
        done = Pulled(key, plan.spans[0].start_ns, plan.spans[-1].end_ns, progress.pages, progress.events, error)
        progress.pages = progress.events = 0
        if error is not None:
            self._failed(key, progress, error)
            return done
        if progress.failing:
            log.info("%s %s: the provider answers again.", key.symbol, key.channel)
            progress.failing, progress.waits = False, backoff(self._random, _FIRST_WAIT_S)
        self._reached(plan)
        return done

    def _reached(self, plan: Plan) -> None:
        """Note that everything of a plan was read."""
        progress = self._progress[plan.key]
        if plan.whole:
            progress.whole_ns = plan.now_ns
        if plan.whole or plan.fresh is not None:
            progress.fresh_ns = plan.now_ns - self._timing.delay_ns

    def _failed(self, key: Key, progress: _Progress, error: TapelineError) -> None:
        """Let a key wait after an error. The others go on."""
        wait_ns = _REFUSED_NS if isinstance(error, Refused) else int(next(progress.waits) * NS_PER_S)
        log.log(
            logging.DEBUG if progress.failing else logging.ERROR if isinstance(error, Refused) else logging.WARNING,
            "%s %s: %s Tapeline requests %s again in %.0f s. The evidence says from where.",
            *(key.symbol, key.channel, error, "the channel" if isinstance(error, Barred) else "it", wait_ns / NS_PER_S),
        )
        progress.failing, progress.not_before_ns = True, self._clock() + wait_ns

    def _drop(self) -> None:
        for turn in self._turns.values():
            turn.dropped = True


def _between(span: Span, start_ns: int, end_ns: int) -> Span | None:
    return Span(span.feed, span.channel, span.symbol, start_ns, end_ns) if start_ns < end_ns else None
