"""Brings a provider's history into the stream: many spans at once, within the provider's limits, page by page, each page once.

Several workers ask; one writer sends what comes, notes each page before it is sent (page_log.py), and knows what has arrived. A backfill
that is killed goes on with the page at which it was.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Final

import msgspec

from tapeline.errors import Barred, Refused, TapelineError, Unavailable
from tapeline.jobs.backfill.fetching import Fetched, Source, fetch, partition_of, raw_record
from tapeline.jobs.backfill.page_log import PageLog, Progress, Sent
from tapeline.providers.history import Span, WrongPage
from tapeline.providers.registry import ARCHIVES
from tapeline.records import NS_PER_S, RAW_TOPIC
from tapeline.retry.backoff import backoff
from tapeline.streams import Producer, Stream

_DAY_NS: Final = 86_400 * NS_PER_S
#: So many pages are fetched and not sent yet, or sent and not known to have arrived, at a time.
_MOST_WAITING: Final = 8
_LOOK_EVERY_S: Final = 0.1
_TELL_EVERY_S: Final = 0.25
#: A stream that is away is waited for so long in a row.
_PATIENCE_S: Final = 300.0
#: So many pages wait for normalize at a time; one that has not moved for so long does not work.
_MOST_UNREAD: Final = 4
_AT_REST_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be fetched of one feed."""

    provider: str
    feed: str
    channels: tuple[str, ...]
    symbols: tuple[str, ...]  # canonical
    start_ns: int
    end_ns: int
    #: From the provider's files, not from its REST.
    files: bool = False

    @property
    def name(self) -> str:
        """The same for the same job."""
        parts = (self.provider, self.feed, sorted(self.channels), sorted(self.symbols), self.start_ns, self.end_ns, self.files)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def spans(self) -> list[Span]:
        """One for each channel, symbol and UTC day, the earliest days first: parts that can be fetched side by side.

        Of files: for the time of each, whole, that is touched."""
        parts_of = ARCHIVES[self.provider].history.parts if self.files else _days
        parts = parts_of(self.start_ns, self.end_ns)
        return [Span(self.feed, channel, symbol, *part) for part in parts for symbol in self.symbols for channel in self.channels]


@dataclass(frozen=True, slots=True)
class State:
    """How far a backfill has come."""

    spans: int
    spans_done: int
    pages: int
    events: int
    #: Of the time that was asked for, the share (0 to 1) that has come.
    share: float
    #: What could not be fetched, with the reason; the rest went on.
    failed: tuple[tuple[Span, TapelineError], ...] = ()


class Backfill:
    """One job on one stream."""

    def __init__(
        self,
        job: Job,
        source: Source,
        stream: Stream,
        log: PageLog,
        random: Random,
        stop: threading.Event,
        workers: int = 4,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._job, self._source, self._stream, self._log, self._random = job, source, stream, log, random
        self._stop, self._workers, self._clock = stop, workers, clock
        self._failed: list[tuple[Span, TapelineError]] = []
        self._on_the_way: deque[tuple[int, int]] = deque()  # number and partition
        self._unread: deque[tuple[int, int]] = deque()  # partition, and a position behind the page there

    def run(self, told: Callable[[State], None]) -> State:
        """Fetch what is left, and say now and again how far it is; what it came to.

        A span that is refused or makes no sense is left out, and told. Raises Unavailable where the provider or the stream does not
        answer, DiskProblem: what has come is kept, and the same job goes on from there."""
        self._log.open(self._job.spans())
        writer = f"backfill-{self._log.name}-{self._log.begin_writing()}"
        producer = self._stream.producer(writer)
        try:
            self._recover(producer)
            left = [progress for progress in self._log.spans() if not progress.done]
            told(self.state())
            with self._fetched(left) as pages:
                self._send(pages, producer, writer, told)
            return self.state()
        finally:
            producer.close(0.0)

    def state(self) -> State:
        """As it is noted."""
        found = self._log.spans()
        whole = sum(one.span.end_ns - one.span.start_ns for one in found)
        come = sum(_come(one) for one in found)
        return State(
            len(found),
            sum(one.done for one in found),
            sum(one.pages for one in found),
            sum(one.events for one in found),
            come / whole if whole else 1.0,
            tuple(self._failed),
        )

    def _recover(self, producer: Producer) -> None:
        """Find out which pages of an earlier process have arrived."""
        for writer, since_ns in self._log.writers().items():
            arrived = producer.last_acknowledged(writer, since_ns)
            self._log.recover(writer, lambda span, number: number in arrived.get(partition_of(self._stream, span.symbol), ()))  # noqa: B023 used at once

    @contextmanager
    def _fetched(self, left: Sequence[Progress]) -> Iterator[Iterator[tuple[Progress, Fetched]]]:
        """The pages of all spans as they come, those of a span in order; workers end with the block."""
        pages: queue.Queue[tuple[Progress, Fetched | Exception | None]] = queue.Queue(_MOST_WAITING)
        ended = threading.Event()

        def put(progress: Progress, what: Fetched | Exception | None) -> bool:
            while not (ended.is_set() or self._stop.is_set()):
                try:
                    pages.put((progress, what), timeout=_LOOK_EVERY_S)
                    return True
                except queue.Full:
                    continue
            return False

        barred: dict[str, Barred] = {}

        def work(progress: Progress) -> None:
            try:
                if progress.span.channel in barred:  # the next span of it would be told the same
                    raise barred[progress.span.channel]
                for page in fetch(self._source, progress.span, self._clock, progress.following, progress.pages):
                    if not put(progress, page):
                        return
            except Exception as error:  # noqa: BLE001 raised again by who takes it
                if isinstance(error, Barred):
                    barred[progress.span.channel] = error
                put(progress, error)
            else:
                put(progress, None)

        with ThreadPoolExecutor(self._workers, thread_name_prefix="backfill") as pool:
            try:
                for progress in left:
                    pool.submit(work, progress)
                yield self._taken(pages, len(left))
            finally:
                ended.set()
                pool.shutdown(cancel_futures=True)

    def _taken(
        self, pages: queue.Queue[tuple[Progress, Fetched | Exception | None]], open_spans: int
    ) -> Iterator[tuple[Progress, Fetched]]:
        """What workers have put there, until each span has ended. Raises what ended one, but where the provider refused it alone."""
        while open_spans and not self._stop.is_set():
            try:
                progress, what = pages.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                continue
            if isinstance(what, Fetched):
                yield progress, what
                continue
            open_spans -= 1
            if isinstance(what, (Refused, WrongPage)):
                self._failed.append((progress.span, what))
            elif what is not None:
                raise what

    def _send(self, pages: Iterable[tuple[Progress, Fetched]], producer: Producer, writer: str, told: Callable[[State], None]) -> None:
        number, tell_at = 0, 0.0
        for progress, page in pages:
            if page.payload is None:
                continue
            number += 1
            self._log.note(writer, self._clock(), Sent(number, progress.number, page.following, page.rows, page.reached_ns))
            self._let_pass()
            self._on_the_way.append((number, self._hand_over(producer, number, progress.span, page)))
            self._settle(producer, number, _MOST_WAITING)
            if (began := time.monotonic()) >= tell_at:
                told(self.state())
                # Of many spans, looking takes a while: a twentieth of the time at most.
                tell_at = time.monotonic() + max(_TELL_EVERY_S, 20 * (time.monotonic() - began))
        self._settle(producer, number, 0)

    def _let_pass(self) -> None:
        """Wait until few pages wait for normalize, as long as that works: what is live queues behind them."""
        before, since = dict[int, int](), time.monotonic()
        while len(self._unread) > _MOST_UNREAD:
            try:
                reached = self._stream.positions("normalize", RAW_TOPIC)
            except Unavailable:
                return  # what is handed over next is waited for with patience
            self._unread = deque((partition, end) for partition, end in self._unread if reached.get(partition, 0) < end)
            if reached != before:
                before, since = reached, time.monotonic()
            elif time.monotonic() - since > _AT_REST_S:
                self._unread = deque(maxlen=0)  # nobody normalizes, so nothing live waits either: none is counted from now on
            if len(self._unread) <= _MOST_UNREAD or self._stop.wait(_LOOK_EVERY_S / 5):
                return

    def _hand_over(self, producer: Producer, number: int, span: Span, page: Fetched) -> int:
        """Returns the partition that a page goes to."""
        batch = raw_record(self._job.provider, self._job.feed, f"backfill-{self._log.name}", page)
        began, delays = time.monotonic(), backoff(self._random, cap_s=5.0)
        while True:
            try:
                partition = partition_of(self._stream, span.symbol)
                producer.send(number, partition, batch)
                return partition
            except Unavailable:
                if self._stop.wait(next(delays)) or time.monotonic() - began > _PATIENCE_S:
                    raise

    def _settle(self, producer: Producer, last: int, waiting: int) -> None:
        """Note what has arrived, waiting until at most so many pages are on their way."""
        began = time.monotonic()
        while True:
            until = producer.settled()
            if producer.refused:
                raise Refused(f"A page of history was not kept: {producer.problem} The same job goes on from there.")
            settled = list[int]()
            while self._on_the_way and self._on_the_way[0][0] <= until:
                settled.append(self._on_the_way.popleft()[1])
            with suppress(Unavailable):  # those are not counted as waiting then
                ends = self._stream.ends(RAW_TOPIC) if settled else {}
                self._unread.extend((partition, ends[partition]) for partition in settled)
            if self._stop.is_set() and self._on_the_way:
                return  # what is on its way is found to have arrived, or not, at the next start
            if len(self._on_the_way) <= waiting:
                self._log.settle(self._on_the_way[0][0] - 1 if self._on_the_way else last)
                return
            if time.monotonic() - began > _PATIENCE_S:
                raise Unavailable(
                    f"The stream has not confirmed a page for {_PATIENCE_S:.0f} s. Start it again once the stream is well: it goes on."
                )
            time.sleep(0.002)


def _days(start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    edges = [start_ns, *range(start_ns // _DAY_NS * _DAY_NS + _DAY_NS, end_ns, _DAY_NS), end_ns]
    return list(pairwise(edges))


def _come(one: Progress) -> int:
    """How much of a span's time has come."""
    whole = one.span.end_ns - one.span.start_ns
    return whole if one.done else min(max(one.reached_ns - one.span.start_ns, 0), whole)


def dry_run(job: Job, source: Source) -> list[dict[str, str | int]]:
    """What would be asked for: a row for each channel and symbol, with its days and its first request."""
    found: dict[tuple[str, str], list[Span]] = {}
    for span in job.spans():
        found.setdefault((span.symbol, span.channel), []).append(span)
    return [
        {
            "symbol": symbol,
            "channel": channel,
            "start_ns": spans[0].start_ns,
            "end_ns": spans[-1].end_ns,
            "parts": len(spans),
            "first_request": source.history.first(spans[0]).path,
        }
        for (symbol, channel), spans in found.items()
    ]


def encoded(state: State) -> bytes:
    """For machines."""
    failed = [{**msgspec.structs.asdict(span), "why": str(error)} for span, error in state.failed]
    return msgspec.json.encode(
        {**{name: getattr(state, name) for name in ("spans", "spans_done", "pages", "events", "share")}, "failed": failed}
    )
