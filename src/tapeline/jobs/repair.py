"""Fills gaps: asks the provider's history for the numbers that the ledger misses, and hands the pages to the stream as raw records.

From there they go the way of everything: the same normalizer interprets them, stores keep an event that came by two ways once, and the
ledger closes the gap when exactly what was missing has come. What a history that was read to the end does not hold is unrecoverable.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from tapeline.errors import Barred, Refused, Unavailable
from tapeline.jobs.backfill.fetching import Source, fetch, partition_of, raw_record
from tapeline.ledger.facts import ONGOING, Interval, Key, State
from tapeline.providers.history import Request, Span, WrongPage
from tapeline.providers.registry import CHANNELS, HISTORIES
from tapeline.records import NS_PER_MS, NS_PER_S, RAW_TOPIC
from tapeline.streams import Stream
from tapeline.telemetry.status import StatusFile
from tapeline.times import text

log = logging.getLogger(__name__)

#: After so long a provider begins no further gap until the others had their turn: nobody starves by another's quota or ban.
_TURN_NS: Final = 5 * NS_PER_S
#: A gap again only after so long, and so a provider that is away; one whose page was wrong, or was refused, later.
_AGAIN_NS: Final = 60 * NS_PER_S
_LATER_NS: Final = 600 * NS_PER_S
_MINUTE_NS: Final = 60 * NS_PER_S
#: A gap that is known by its numbers is left alone for so long: what comes late by itself need not be asked for.
_SETTLED_NS: Final = 5 * NS_PER_S
T = TypeVar("T")
#: The page at which a span was broken off, and how many records came before it.
Begun = tuple[Request | None, int]
#: What happened while nobody listened is asked for with so much on both sides: the provider's clock is not ours.
_MARGIN_NS: Final = 2 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Repaired:
    """One gap that was asked for to its end."""

    key: Key
    span: Span
    pages: int
    events: int

    def __str__(self) -> str:
        by_id = self.span.first is not None and not _of_bars(self.key)
        which = f"{self.span.first} to {self.span.last}" if by_id else f"{text(self.span.start_ns)} to {text(self.span.end_ns)}"
        return f"{self.key.symbol} {self.key.channel} {which}: {self.events:,} events on {self.pages} pages"


def span_of(key: Key, gap: Interval) -> Span | None:
    """What to ask for to fill a gap; None where the provider keeps nothing to fill it with, or the gap has no end yet."""
    history = HISTORIES.get(key.provider)
    if history is None or key.channel not in history.channels.get(key.feed, {}) or gap.end_ns == ONGOING:
        return None
    if not CHANNELS[key.provider][key.feed][key.channel].contiguous:
        return Span(key.feed, key.channel, key.symbol, gap.start_ns - _MARGIN_NS, gap.end_ns + _MARGIN_NS)
    if gap.first_id is None or gap.last_id is None:
        return None  # the next number will tell
    first, last = gap.first_id, gap.last_id
    if _of_bars(key):  # the window behind the gap too, which is known: so no page is empty
        first, last = gap.start_ns // NS_PER_MS, gap.end_ns // NS_PER_MS
    return Span(key.feed, key.channel, key.symbol, gap.start_ns, gap.end_ns, first, last)


def _of_bars(key: Key) -> bool:
    return CHANNELS[key.provider][key.feed][key.channel].kind == "bar"


#: Repair asks the provider for gaps in these states.
ASKED_FOR: Final[frozenset[State]] = frozenset({"open", "repairing"})


def wanted(known: Mapping[Key, Sequence[Interval]], sources: Container[tuple[str, str]], now_ns: int) -> list[tuple[Key, Interval, Span]]:
    """The gaps that `sources` (provider, feed) can be asked for, and that are no longer on the move; the latest first."""
    found = [
        (key, one, span)
        for key, intervals in known.items()
        if key[:2] in sources
        for one in intervals
        if one.state in ASKED_FOR and (span := span_of(key, one)) is not None
        if span.end_ns + (_SETTLED_NS if span.first is not None else HISTORIES[key.provider].settled_ns(key.channel)) < now_ns
    ]
    return sorted(found, key=lambda gap: -gap[1].start_ns)


def from_both_ends(gaps: Sequence[T]) -> Iterator[T]:
    """The first, the last, the second, and so on: however fast new gaps come, old ones are asked for too."""
    for at in range((len(gaps) + 1) // 2):
        yield gaps[at]
        if at != len(gaps) - 1 - at:
            yield gaps[len(gaps) - 1 - at]


def repair(
    key: Key,
    span: Span,
    source: Source,
    stream: Stream,
    clock: Callable[[], int],
    connection: str,
    begun: dict[Span, Begun] | None = None,
    more: Callable[[], bool] = lambda: True,
) -> Repaired | None:
    """Ask for a gap to its end; None: broken off behind a page, since `more` said so. Raises Unavailable, Refused, WrongPage: what came
    before is kept.

    `connection`: by which name the pages are kept. `begun`: where spans that were broken off under that name go on."""
    begun = {} if begun is None else begun
    at, kept = begun.get(span, (None, 0))
    pages = events = 0
    for page in fetch(source, span, clock, at, kept):
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


#: What tells a gap from others, also while it is filled from its beginning on: several gaps of numbers may end within one moment.
_Name = tuple[Key, int, int | None]


def _name(key: Key, gap: Interval) -> _Name:
    return key, gap.end_ns, gap.last_id


class GapRepairer:
    """Asks for gaps as they open, each again only after a while: what was asked for takes its time to come through the stream."""

    def __init__(
        self,
        stream: Stream,
        known: Callable[[], Mapping[Key, Sequence[Interval]]],
        sources: Mapping[tuple[str, str], Source],
        status: StatusFile,
        stop: threading.Event,
        clock: Callable[[], int],
    ) -> None:
        """`known`: the ledger as it is now. `sources`: by provider and feed."""
        self._stream, self._known, self._sources, self._status, self._stop, self._clock = stream, known, sources, status, stop, clock
        self._connection = f"repair-{clock()}"
        self._due_ns = 0
        self._not_before: dict[_Name, int] = {}
        self._away: dict[tuple[str, str], int] = {}
        self._barred: dict[tuple[str, str, str], int] = {}  # provider, feed and channel of which nothing is given
        self._begun: dict[Span, Begun] = {}
        self._broken_off: dict[tuple[str, str], _Name] = {}
        self._filled = 0

    def step(self) -> bool:
        """Never raises what the provider or the network did: gaps wait."""
        now_ns = self._clock()
        if now_ns < self._due_ns:
            return False
        self._not_before = {gap: due_ns for gap, due_ns in self._not_before.items() if due_ns > now_ns}
        gaps = wanted(self._known(), self._sources, now_ns)
        self._begun = {span: self._begun[span] for _, _, span in gaps if span in self._begun}
        # Looking takes the longer the more there is: a twentieth of the time at most.
        self._due_ns = now_ns + 20 * (self._clock() - now_ns)
        for source in self._sources:
            if now_ns >= self._away.get(source, 0):
                self._turn(source, [gap for gap in gaps if gap[0][:2] == source and _name(*gap[:2]) not in self._not_before])
        self._status.write({"events": self._filled, "gaps_waiting": len(self._not_before)})
        return False

    def _turn(self, source: tuple[str, str], gaps: Sequence[tuple[Key, Interval, Span]]) -> None:
        """Ask one provider for as many of its gaps as there is time for."""
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
                done = repair(key, span, self._sources[source], self._stream, self._clock, self._connection, self._begun, more)
                if done is None:  # a long one: it goes on when the others, if there are any, have had a turn
                    self._broken_off[source] = _name(key, gap)
                    del self._not_before[_name(key, gap)]
                    return
                self._filled += done.events
                log.info("Asked for %s", done)
            except Barred as error:
                self._barred[key[:3]] = self._clock() + _LATER_NS
                log.error("%s No gap of %s %s %s is asked for before %.0f min.", error, *key[:3], _LATER_NS / _MINUTE_NS)
            except (WrongPage, Refused) as error:
                self._not_before[_name(key, gap)] = self._clock() + _LATER_NS
                if self._begun.get(span) == before:  # what is refused may be the cursor itself, which providers do not keep for ever
                    self._begun.pop(span, None)
                log.error("%s %s: %s It is asked for again in %.0f min.", key.symbol, key.channel, error, _LATER_NS / _MINUTE_NS)
            except Unavailable as error:
                log.warning("%s The gaps wait; next try in %.0f min.", error, _AGAIN_NS / _MINUTE_NS)
                self._away[source] = self._clock() + _AGAIN_NS
                return

    def finish(self) -> None:
        self._status.write({"events": self._filled, "gaps_waiting": len(self._not_before)})
