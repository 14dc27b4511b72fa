"""Decides whether a stretch of time is complete: takes intervals and returns one answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

from tapeline.ledger.facts import (
    Interval,
    Key,
)
from tapeline.ledger.intervals import COVERED


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether one key is complete over a stretch of time."""

    key: Key
    verdict: Literal["complete", "incomplete", "unprovable"]
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
            inside.append(Interval(at_ns, one.start_ns, "open", "nothing is known about this time"))
        inside.append(one)
        at_ns = max(at_ns, one.end_ns)
    if at_ns < end_ns:
        inside.append(Interval(at_ns, end_ns, "open", "nothing is known about this time"))
    states = {one.state for one in inside}
    verdict: Literal["complete", "incomplete", "unprovable"]
    verdict = "incomplete" if states - COVERED else "unprovable" if "unprovable" in states else "complete"
    return Answer(key, verdict, tuple(inside))


def _in(one: Interval, start_ns: int, end_ns: int) -> bool:
    """Return whether an interval overlaps [start_ns, end_ns). An interval without length counts if it lies at the start."""
    return one.start_ns < end_ns and (one.end_ns > start_ns or one.start_ns == one.end_ns == start_ns)
