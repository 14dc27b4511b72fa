"""Fills gaps: requests missing events from the provider's history and writes the pages to the stream as raw records.

The pages are processed like all raw records: the same normalizer reads them, and stores keep an event only once, even if it arrives twice.
The ledger closes a gap when exactly the missing events have arrived. If a history was read to its end and lacks an event, that event is
unrecoverable.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from tapeline.errors import Barred, Refused, Unavailable
from tapeline.jobs.backfill.fetching import Source, connection_name, fetch, partition_of, raw_record
from tapeline.ledger.facts import ONGOING, Interval, Key, State
from tapeline.providers.history import Request, Span, WrongPage
from tapeline.providers.registry import CHANNELS, HISTORIES
from tapeline.records import NS_PER_MS, NS_PER_S, RAW_TOPIC
from tapeline.streams import Stream
from tapeline.telemetry.status import StatusFile
from tapeline.times import text

log = logging.getLogger(__name__)

#: After this time, a provider starts no further gap until the others had a turn. So no provider's quota or ban holds up the others.
_TURN_NS: Final = 5 * NS_PER_S
#: A gap, or a provider that is away, is asked again after the first time. A gap whose page was wrong or refused is asked after the second.
_AGAIN_NS: Final = 60 * NS_PER_S
_LATER_NS: Final = 600 * NS_PER_S
_MINUTE_NS: Final = 60 * NS_PER_S
#: A gap that is known by its ids is asked for only after this time: events that come late by themselves need no request.
_SETTLED_NS: Final = 5 * NS_PER_S
T = TypeVar("T")
#: The page at which a span was interrupted, and how many of its records came before it.
Begun = tuple[Request | None, int]
#: A gap known only by time is requested with this margin on both sides, because the provider's clock differs from ours.
_MARGIN_NS: Final = 2 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Repaired:
    """One gap whose history was read to its end: how many pages and events came."""

    key: Key
    span: Span
    pages: int
    events: int

    def __str__(self) -> str:
        by_id = self.span.first is not None and not _of_bars(self.key)
        which = f"{self.span.first} to {self.span.last}" if by_id else f"{text(self.span.start_ns)} to {text(self.span.end_ns)}"
        return f"{self.key.symbol} {self.key.channel} {which}: {self.events:,} events on {self.pages} pages"


def span_of(key: Key, gap: Interval) -> Span | None:
    """The span to request in order to fill a gap.

    None if the provider keeps no history for the channel, if the gap has no end yet, or if its ids are not known yet."""
    history = HISTORIES.get(key.provider)
    if history is None or key.channel not in history.channels.get(key.feed, {}) or gap.end_ns == ONGOING:
        return None
    if not CHANNELS[key.provider][key.feed][key.channel].contiguous:
        return Span(key.feed, key.channel, key.symbol, gap.start_ns - _MARGIN_NS, gap.end_ns + _MARGIN_NS)
    if gap.first_id is None or gap.last_id is None:
        return None  # the next event's id will show which are missing
    first, last = gap.first_id, gap.last_id
    if _of_bars(key):  # include the window after the gap, which is known, so that no page is empty
        first, last = gap.start_ns // NS_PER_MS, gap.end_ns // NS_PER_MS
    return Span(key.feed, key.channel, key.symbol, gap.start_ns, gap.end_ns, first, last)


def _of_bars(key: Key) -> bool:
    return CHANNELS[key.provider][key.feed][key.channel].kind == "bar"


#: Repair asks the provider for gaps in these states.
REQUESTED_STATES: Final[frozenset[State]] = frozenset({"open", "repairing"})


def wanted(known: Mapping[Key, Sequence[Interval]], sources: Container[tuple[str, str]], now_ns: int) -> list[tuple[Key, Interval, Span]]:
    """The gaps that can be requested from `sources`, (provider, feed) pairs; the latest first. `now_ns`: UTC.

    A gap is left out while its events may still arrive by themselves."""
    gaps = [
        (key, one, span)
        for key, intervals in known.items()
        if key[:2] in sources
        for one in intervals
        if one.state in REQUESTED_STATES and (span := span_of(key, one)) is not None
        if span.end_ns + (_SETTLED_NS if span.first is not None else HISTORIES[key.provider].settled_ns(key.channel)) < now_ns
    ]
    return sorted(gaps, key=lambda gap: -gap[1].start_ns)


def from_both_ends(gaps: Sequence[T]) -> Iterator[T]:
    """Yield the first, the last, the second, the last but one and so on. So old gaps are requested too, however fast new ones come."""
    for at in range((len(gaps) + 1) // 2):
        yield gaps[at]
        if at != len(gaps) - 1 - at:
            yield gaps[len(gaps) - 1 - at]


def repair(
    key: Key,
    span: Span,
    source: Source,
    stream: Stream,
    connection: str,
    begun: dict[Span, Begun] | None = None,
    more: Callable[[], bool] = lambda: True,
) -> Repaired | None:
    """Read the history of a gap to its end, page by page. Returns None if `more` returned False after a page.

    `connection`: the name under which the pages are kept. `begun`: where the interrupted spans of that name continue; it is updated. Raises
    Unavailable, Refused, WrongPage; the pages that came before are kept."""
    begun = {} if begun is None else begun
    at, kept = begun.get(span, (None, 0))
    pages = events = 0
    for page in fetch(source, span, at, kept):
        if page.payload is not None:
            stream.append(RAW_TOPIC, raw_record(key.provider, key.feed, connection, page), partition_of(stream, key.symbol))
            kept += 1
        pages, events = pages + 1, events + page.rows
        if page.following is not None:
            begun[span] = (page.following, kept)
            if not more():
                return None
    begun.pop(span, None)
    return Repaired(key, span, pages, events)


#: Identifies a gap, even while it shrinks as it is filled from its start. The last id is included: several gaps may end at the same time.
_Name = tuple[Key, int, int | None]


def _name(key: Key, gap: Interval) -> _Name:
    return key, gap.end_ns, gap.last_id


class GapRepairer:
    """Requests gaps as they open. A gap is requested again only after a minute, because pages take time to pass through the stream."""

    def __init__(
        self,
        stream: Stream,
        known: Callable[[], Mapping[Key, Sequence[Interval]]],
        sources: Mapping[tuple[str, str], Source],
        status: StatusFile,
        stop: threading.Event,
        clock: Callable[[], int],
    ) -> None:
        """`known`: returns the ledger's current intervals. `sources`: (provider, feed) -> its history. `clock`: UTC, ns."""
        self._stream, self._known, self._sources, self._status, self._stop, self._clock = stream, known, sources, status, stop, clock
        self._began_ns = clock()
        self._due_ns = 0
        self._not_before: dict[_Name, int] = {}
        self._away: dict[tuple[str, str], int] = {}
        self._barred: dict[tuple[str, str, str], int] = {}  # (provider, feed, channel) that the provider refuses as a whole -> until when
        self._begun: dict[Span, Begun] = {}
        self._broken_off: dict[tuple[str, str], _Name] = {}
        self._filled = 0

    def step(self) -> bool:
        """Give each provider one turn. Always returns False. Errors of a provider or the network are logged, and the gaps wait."""
        now_ns = self._clock()
        if now_ns < self._due_ns:
            return False
        self._not_before = {gap: due_ns for gap, due_ns in self._not_before.items() if due_ns > now_ns}
        gaps = wanted(self._known(), self._sources, now_ns)
        self._begun = {span: self._begun[span] for _, _, span in gaps if span in self._begun}
        # A large ledger takes long to read. Reading it uses at most a twentieth of the time.
        self._due_ns = now_ns + 20 * (self._clock() - now_ns)
        for source in self._sources:
            if now_ns >= self._away.get(source, 0):
                self._turn(source, [gap for gap in gaps if gap[0][:2] == source and _name(*gap[:2]) not in self._not_before])
        self._status.write({"events": self._filled, "gaps_waiting": len(self._not_before)})
        return False

    def _turn(self, source: tuple[str, str], gaps: Sequence[tuple[Key, Interval, Span]]) -> None:
        """Request gaps from one provider until its time is over."""
        began_ns = self._clock()
        late = self._broken_off.pop(source, None)
        gaps = [gap for gap in gaps if _name(*gap[:2]) != late] or gaps

        def more() -> bool:
            return not self._stop.is_set() and began_ns <= self._clock() < began_ns + _TURN_NS

        for key, gap, span in from_both_ends(gaps):
            if not more():
                return
            if self._clock() < self._barred.get(key[:3], 0):
                continue
            self._not_before[_name(key, gap)] = self._clock() + _AGAIN_NS
            before = self._begun.get(span)
            try:
                name = connection_name("repair", *source, self._began_ns)
                done = repair(key, span, self._sources[source], self._stream, name, self._begun, more)
                if done is None:  # a long gap: it continues after the provider's other gaps had a turn
                    self._broken_off[source] = _name(key, gap)
                    del self._not_before[_name(key, gap)]
                    return
                self._filled += done.events
                log.info("Requested a gap: %s", done)
            except Barred as error:
                self._barred[key[:3]] = self._clock() + _LATER_NS
                log.error("%s Tapeline requests no gap of %s %s %s for the next %.0f min.", error, *key[:3], _LATER_NS / _MINUTE_NS)
            except (WrongPage, Refused) as error:
                self._not_before[_name(key, gap)] = self._clock() + _LATER_NS
                if self._begun.get(span) == before:  # the saved cursor may have expired: begin the span anew next time
                    self._begun.pop(span, None)
                log.error("%s %s: %s Tapeline requests this gap again in %.0f min.", key.symbol, key.channel, error, _LATER_NS / _MINUTE_NS)
            except Unavailable as error:
                log.warning("%s The gaps stay open. Next attempt in %.0f min.", error, _AGAIN_NS / _MINUTE_NS)
                self._away[source] = self._clock() + _AGAIN_NS
                return

    def finish(self) -> None:
        self._status.write({"events": self._filled, "gaps_waiting": len(self._not_before)})
