"""Decides whether stretches of time are complete: takes intervals and returns one answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Literal

from msgspec.structs import replace

from tapeline.calendars import Period
from tapeline.ledger.facts import (
    Interval,
    Key,
)
from tapeline.ledger.intervals import COVERED
from tapeline.records import NS_PER_S

Verdict = Literal["complete", "incomplete", "unprovable", "closed"]

#: Evidence that is younger than this counts as current.
_FRESH_NS: Final = 60 * NS_PER_S
#: The evidence of time of which the ledger has none.
NOTHING_KNOWN: Final = "nothing is known about this time"


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether one key is complete over one or several stretches of time."""

    key: Key
    #: "closed": the sessions of a market were asked for, and there were none.
    verdict: Verdict
    #: The covered intervals and the gaps within the range that was asked for, in order of time.
    intervals: tuple[Interval, ...]

    @property
    def holes(self) -> tuple[Interval, ...]:
        """The intervals in which something is missing, in order of time. Time that is only `unprovable` is not one of them."""
        return tuple(one for one in self.intervals if one.state not in COVERED)


def answer(key: Key, intervals: Iterable[Interval], start_ns: int, end_ns: int) -> Answer:
    """Return what the intervals of a key say about [start_ns, end_ns).

    The time before the first and after the last interval is a hole too.
    """
    return answer_within(key, intervals, [(start_ns, end_ns)])


def answer_within(key: Key, intervals: Iterable[Interval], periods: Sequence[Period]) -> Answer:
    """Return what the intervals of a key say about these periods together, such as the sessions of a market.

    The periods are in order of time and do not overlap. Without periods, the verdict is "closed".
    """
    known = list(intervals)
    inside = [one for start_ns, end_ns in periods for one in _within(known, start_ns, end_ns)]
    states = {one.state for one in inside}
    verdict: Verdict
    verdict = "incomplete" if states - COVERED else "unprovable" if "unprovable" in states else "complete" if periods else "closed"
    return Answer(key, verdict, tuple(inside))


def reached(intervals: Iterable[Interval], start_ns: int, now_ns: int) -> int:
    """Return how far an answer reaches in a time that is not over: to the last evidence, or to now if that is old or a gap follows it.

    The time begins at `start_ns`. All times are ns since 1970, UTC."""
    begun = [one for one in intervals if one.start_ns < now_ns]
    there = [one for one in begun if one.state in COVERED]
    # If events are numbered, only the next number can tell whether anything came after the last one.
    counted = any(one.state == "proven" for one in there)
    evidence = [one for one in there if not counted or one.state != "unprovable"]
    reached_ns = min(max((one.end_ns for one in evidence), default=start_ns), now_ns)
    missing = any(one.state not in COVERED and one.end_ns > reached_ns for one in begun)
    return reached_ns if reached_ns > max(start_ns, now_ns - _FRESH_NS) and not missing else now_ns


def _within(intervals: Iterable[Interval], start_ns: int, end_ns: int) -> list[Interval]:
    # A hole keeps its ids, whatever part of it is requested, because nobody knows which of them lie inside that part.
    known = [
        replace(one, start_ns=max(one.start_ns, start_ns), end_ns=min(one.end_ns, end_ns))
        for one in intervals
        if _in(one, start_ns, end_ns)
    ]
    inside: list[Interval] = []
    at_ns = start_ns
    for one in sorted(known, key=attrgetter("start_ns", "end_ns")):
        if one.start_ns > at_ns:
            inside.append(Interval(at_ns, one.start_ns, "open", NOTHING_KNOWN))
        inside.append(one)
        at_ns = max(at_ns, one.end_ns)
    if at_ns < end_ns:
        inside.append(Interval(at_ns, end_ns, "open", NOTHING_KNOWN))
    return inside


def _in(one: Interval, start_ns: int, end_ns: int) -> bool:
    """Return whether an interval overlaps [start_ns, end_ns). An interval without length counts if it lies at the start."""
    return one.start_ns < end_ns and (one.end_ns > start_ns or one.start_ns == one.end_ns == start_ns)
