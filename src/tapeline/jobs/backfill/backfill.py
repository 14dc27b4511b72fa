"""Loads a provider's history into the stream: several spans in parallel, within the provider's limits, each page exactly once.

Several workers request pages, and one writer sends them. The writer logs each page before it sends it (page_log.py), and checks which pages
have arrived. After a crash, the backfill continues at the page where it was.
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
#: At most this many pages are fetched and not yet sent, and at most this many are sent and not yet confirmed.
_MOST_WAITING: Final = 8
_LOOK_EVERY_S: Final = 0.1
_REPORT_EVERY_S: Final = 0.25
#: How long to wait for a stream that is away.
_PATIENCE_S: Final = 300.0
#: At most this many pages wait for normalize. If its positions have not moved for `_AT_REST_S`, normalize is not running.
_MOST_UNREAD: Final = 4
_AT_REST_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Job:
    """The history to load from one feed: channels and symbols in [start_ns, end_ns), ns since 1970, UTC."""

    provider: str
    feed: str
    channels: tuple[str, ...]
    symbols: tuple[str, ...]  # canonical
    start_ns: int
    end_ns: int
    #: Read the provider's files instead of its REST API.
    files: bool = False

    @property
    def name(self) -> str:
        """A hash of all fields. Equal jobs have equal names, whatever the order of channels and symbols."""
        parts = (self.provider, self.feed, sorted(self.channels), sorted(self.symbols), self.start_ns, self.end_ns, self.files)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def spans(self) -> list[Span]:
        """One span for each channel, symbol and UTC day, the earliest days first. Spans can be fetched in parallel.

        With `files`, there is one for each file that overlaps the range, and it covers the whole time of the file."""
        parts_of = ARCHIVES[self.provider].history.parts if self.files else _days
        parts = parts_of(self.start_ns, self.end_ns)
        return [Span(self.feed, channel, symbol, *part) for part in parts for symbol in self.symbols for channel in self.channels]


@dataclass(frozen=True, slots=True)
class State:
    """The progress of a backfill."""

    spans: int
    spans_done: int
    pages: int
    events: int
    #: The share (0 to 1) of the requested time that has arrived.
    share: float
    #: The spans that could not be fetched, with the error of each. The other spans continued.
    failed: tuple[tuple[Span, TapelineError], ...] = ()


class Backfill:
    """Runs one job on one stream."""

    def __init__(
        self,
        job: Job,
        source: Source,
        stream: Stream,
        log: PageLog,
        random: Random,
        stop: threading.Event,
        workers: int = 4,
    ) -> None:
        self._job, self._source, self._stream, self._log, self._random = job, source, stream, log, random
        self._stop, self._workers = stop, workers
        self._failed: list[tuple[Span, TapelineError]] = []
        self._on_the_way: deque[tuple[int, int]] = deque()  # (page number, partition): sent, not yet confirmed
        self._unread: deque[tuple[int, int]] = deque()  # (partition, position after the page): normalize may not have read it

    def run(self, report: Callable[[State], None]) -> State:
        """Fetch the pages that are missing, call `report` with the progress from time to time, and return the final state.

        A span that the provider refuses, or whose page is wrong, is listed in `State.failed`. Raises Unavailable when the provider or the
        stream does not answer, Refused when the stream refuses a page, and DiskProblem. Then the pages so far are kept, and the same job
        continues from there."""
        self._log.open(self._job.spans())
        writer = f"backfill-{self._log.name}-{self._log.begin_writing()}"
        producer = self._stream.producer(writer)
        try:
            self._recover(producer)
            left = [progress for progress in self._log.spans() if not progress.done]
            report(self.state())
            with self._fetched(left) as pages:
                self._send(pages, producer, writer, report)
            return self.state()
        finally:
            producer.close(0.0)

    def state(self) -> State:
        """The progress as the page log has it."""
        spans = self._log.spans()
        whole = sum(one.span.end_ns - one.span.start_ns for one in spans)
        come = sum(_come(one) for one in spans)
        return State(
            len(spans),
            sum(one.done for one in spans),
            sum(one.pages for one in spans),
            sum(one.events for one in spans),
            come / whole if whole else 1.0,
            tuple(self._failed),
        )

    def _recover(self, producer: Producer) -> None:
        """Find out which pages of earlier processes have arrived, and log that."""
        for writer, since_ns in self._log.writers().items():
            arrived = producer.last_acknowledged(writer, since_ns)
            self._log.recover(writer, lambda span, number: number in arrived.get(partition_of(self._stream, span.symbol), ()))  # noqa: B023 used at once

    @contextmanager
    def _fetched(self, left: Sequence[Progress]) -> Iterator[Iterator[tuple[Progress, Fetched]]]:
        """The pages of all spans as they arrive; the pages of one span are in order. The workers end with the `with` block."""
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
                if progress.span.channel in barred:  # the next span of this channel would be refused too
                    raise barred[progress.span.channel]
                for page in fetch(self._source, progress.span, progress.following, progress.pages):
                    if not put(progress, page):
                        return
            except Exception as error:  # noqa: BLE001 `_taken` handles it
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
        """The pages from the queue, until every span has ended.

        Refused and WrongPage go to `_failed`, and the other spans continue. Any other error of a worker is raised."""
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

    def _send(self, pages: Iterable[tuple[Progress, Fetched]], producer: Producer, writer: str, report: Callable[[State], None]) -> None:
        number, report_at = 0, 0.0
        for progress, page in pages:
            if page.payload is None:
                continue
            number += 1
            self._log.note(writer, self._source.clock(), Sent(number, progress.number, page.following, page.rows, page.reached_ns))
            self._let_pass()
            self._on_the_way.append((number, self._hand_over(producer, number, progress.span, page)))
            self._settle(producer, number, _MOST_WAITING)
            if (began := time.monotonic()) >= report_at:
                report(self.state())
                # With many spans, `state` takes long. It uses at most a twentieth of the time.
                report_at = time.monotonic() + max(_REPORT_EVERY_S, 20 * (time.monotonic() - began))
        self._settle(producer, number, 0)

    def _let_pass(self) -> None:
        """Wait until few pages wait for normalize, because live records queue behind them. Do not wait if normalize is not running."""
        before, since = dict[int, int](), time.monotonic()
        while len(self._unread) > _MOST_UNREAD:
            try:
                reached = self._stream.positions("normalize", RAW_TOPIC)
            except Unavailable:
                return  # `_hand_over` waits for the stream
            self._unread = deque((partition, end) for partition, end in self._unread if reached.get(partition, 0) < end)
            if reached != before:
                before, since = reached, time.monotonic()
            elif time.monotonic() - since > _AT_REST_S:
                self._unread = deque(maxlen=0)  # normalize is not running, so no live records wait: stop counting for good
            if len(self._unread) <= _MOST_UNREAD or self._stop.wait(_LOOK_EVERY_S / 5):
                return

    def _hand_over(self, producer: Producer, number: int, span: Span, page: Fetched) -> int:
        """Send a page and return its partition. Waits up to 300 s for a stream that is away, then raises Unavailable."""
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
        """Log the pages that have arrived, and wait until at most `waiting` pages are on their way.

        Raises Refused when the stream refuses a page, and Unavailable when it confirms none for 300 s."""
        began = time.monotonic()
        while True:
            until = producer.settled()
            if producer.refused:
                raise Refused(f"The stream refused a page of history: {producer.problem} Start the same command again to continue there.")
            settled = list[int]()
            while self._on_the_way and self._on_the_way[0][0] <= until:
                settled.append(self._on_the_way.popleft()[1])
            with suppress(Unavailable):  # then these pages are not counted as waiting for normalize
                ends = self._stream.ends(RAW_TOPIC) if settled else {}
                self._unread.extend((partition, ends[partition]) for partition in settled)
            if self._stop.is_set() and self._on_the_way:
                return  # the next start finds out whether the pages on their way have arrived
            if len(self._on_the_way) <= waiting:
                self._log.settle(self._on_the_way[0][0] - 1 if self._on_the_way else last)
                return
            if time.monotonic() - began > _PATIENCE_S:
                raise Unavailable(
                    f"The stream has not confirmed a page for {_PATIENCE_S:.0f} s. Check the stream, then start the same command again: it "
                    "continues where it stopped."
                )
            time.sleep(0.002)


def _days(start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    edges = [start_ns, *range(start_ns // _DAY_NS * _DAY_NS + _DAY_NS, end_ns, _DAY_NS), end_ns]
    return list(pairwise(edges))


def _come(one: Progress) -> int:
    """How much of a span's time (ns) has arrived."""
    whole = one.span.end_ns - one.span.start_ns
    return whole if one.done else min(max(one.reached_ns - one.span.start_ns, 0), whole)


def dry_run(job: Job, source: Source) -> list[dict[str, str | int]]:
    """What a backfill would request, without a request: for each channel and symbol, its range (ns, UTC), its number of spans (`parts`)
    and its first request."""
    by_key: dict[tuple[str, str], list[Span]] = {}
    for span in job.spans():
        by_key.setdefault((span.symbol, span.channel), []).append(span)
    return [
        {
            "symbol": symbol,
            "channel": channel,
            "start_ns": spans[0].start_ns,
            "end_ns": spans[-1].end_ns,
            "parts": len(spans),
            "first_request": source.history.first(spans[0]).path,
        }
        for (symbol, channel), spans in by_key.items()
    ]


def encoded(state: State) -> bytes:
    """The state as JSON, for programs."""
    failed = [{**msgspec.structs.asdict(span), "why": str(error)} for span, error in state.failed]
    return msgspec.json.encode(
        {**{name: getattr(state, name) for name in ("spans", "spans_done", "pages", "events", "share")}, "failed": failed}
    )
