"""Derives intervals from facts: what is proven, what is open, and why."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from operator import attrgetter
from typing import Final

from msgspec.structs import replace

from tapeline.ledger.facts import (
    NO_PAST,
    ONGOING,
    ConnectionRecord,
    Facts,
    Interval,
    Key,
    Past,
    Run,
    Span,
    State,
    apart,
    begin_of,
    channel_of,
    has_ended,
    one_after_another,
    place_of,
)
from tapeline.providers.registry import PROVIDERS
from tapeline.records import NS_PER_MS, NS_PER_S

#: The states in which data is there, and those in which it is missing.
COVERED: Final[frozenset[State]] = frozenset({"proven", "reconciled", "unprovable"})
MISSING: Final[frozenset[State]] = frozenset({"open", "repairing", "unrecoverable"})
#: If a connection's ticks come later than at their best by more than this, it was read too slowly, or its machine stood still.
_LATE_NS: Final = NS_PER_S
#: The evidence for time whose history was read and is empty, of a key that never had an event.
NOTHING_EVER: Final = (
    "the provider's history was read to its end and holds nothing, and no event of this symbol has ever come: is its name right?"
)
_REJECTED: Final = "the provider's history was read to its end, and events of it were rejected"
#: A span of a history that was requested by numbers has numbers below this. A span of time, in ns since 1970, lies above it.
_TIMES_FROM: Final = 10**17


def intervals(facts: Facts, key: Key) -> list[Interval]:
    """Return the intervals of a key in order of time, without those that are archived."""
    return follow(key, facts.carried(key), facts.pasts.get(key, NO_PAST), facts.runs.get(key, ()))


def follow(key: Key, connections: Sequence[ConnectionRecord], past: Past, runs: Sequence[Run]) -> list[Interval]:
    """Return the intervals of a key that follow from these facts, in order of time."""
    heard = list(_by_connections(key, [connection for connection in connections if not connection.fetched], past))
    read = apart([*past.read, *(span for connection in connections for span in spans_of(connection.read, key))])
    reading = [span for connection in connections for span in spans_of((entry[:3] for entry in connection.reading), key)]
    rejected = [*past.rejected, *(span for connection in connections for span in spans_of(connection.rejected, key))]
    if not runs:
        timeline: Iterable[Interval] = _with_rejected(_reconciled(heard, read), rejected)
        if not has_come(key, connections, past):
            timeline = (replace(one, state="unprovable", evidence=NOTHING_EVER) if one.state == "reconciled" else one for one in timeline)
        return list(_being_filled(_unreadable(_joined(timeline), rejected), reading))
    # Numbers and times may differ in order.
    first_ns, last_ns = min(runs[0].first_ns, runs[0].last_ns), max(runs[-1].first_ns, runs[-1].last_ns)
    # Before the first number and after the last, only the next number could tell whether anything is missing.
    heard = [
        replace(one, evidence="subscribed and heard; the next event's number will tell") if one.state in COVERED else one
        for one in heard
        if one.start_ns < first_ns or one.end_ns > last_ns
    ]
    around = list(_with_rejected(_reconciled(heard, read), rejected))
    asked = [*past.asked, *(span for connection in connections for span in spans_of(connection.asked, key))]
    asking = [span for connection in connections for span in spans_of((entry[:3] for entry in connection.asking), key)]
    by_ids = _by_ids(key, runs, asked, read, asking, rejected)
    timeline = _joined([*_between(around, -ONGOING, first_ns), *by_ids, *_between(around, last_ns, ONGOING)])
    return list(_being_filled(_unreadable(timeline, rejected), reading))


def has_come(key: Key, connections: Iterable[ConnectionRecord], past: Past) -> bool:
    """Return whether an event of a key has ever come."""
    return past.heard or any(f"{key.channel} {key.symbol}" in connection.first for connection in connections)


def _reconciled(timeline: Sequence[Interval], read: Sequence[tuple[int, int]]) -> Iterator[Interval]:
    """Yield what was read of the provider's history, and the parts of `timeline` outside of it."""
    outside = [_between(timeline, start_ns, end_ns) for start_ns, end_ns in _outside(read)]
    evidence = "the provider's history was read to its end: what it holds is there"
    inside = (Interval(start_ns, end_ns, "reconciled", evidence) for start_ns, end_ns in read)
    yield from sorted(chain(*outside, inside), key=attrgetter("start_ns", "end_ns"))


def _with_rejected(timeline: Iterable[Interval], rejected: Sequence[tuple[int, int]]) -> list[Interval]:
    """Return the intervals, and the time outside of them whose history was read with rejected events: asking again brings the same."""
    known = list(timeline)
    if not rejected:
        return known
    spoiled = [Interval(start_ns, end_ns, "unrecoverable", _REJECTED) for start_ns, end_ns in apart(rejected) if start_ns >= _TIMES_FROM]
    free = _outside(apart((one.start_ns, one.end_ns) for one in known))
    return sorted([*known, *(one for both in free for one in _between(spoiled, *both))], key=attrgetter("start_ns", "end_ns"))


def _unreadable(timeline: Iterable[Interval], rejected: Sequence[tuple[int, int]]) -> Iterator[Interval]:
    """Mark gaps inside a history read with rejected events as unrecoverable, because asking again brings the same events."""
    spoiled = apart(rejected)
    for one in timeline:
        if one.state == "open" and _inside(spoiled, one.start_ns, one.end_ns):
            yield replace(one, state="unrecoverable", evidence=f"{one.evidence}; {_REJECTED}")
        else:
            yield one


def _joined(timeline: Iterable[Interval]) -> Iterator[Interval]:
    """Yield the intervals without holes between them.

    The time between two of them becomes an open interval, because nothing is known about it.
    """
    at_ns: int | None = None
    for one in timeline:
        if at_ns is not None and one.start_ns > at_ns:
            yield Interval(at_ns, one.start_ns, "open", "no connection listened")
        yield one
        at_ns = one.end_ns


def _outside(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the stretches of time before, between and after spans, which are in order and do not touch."""
    edges = [-ONGOING, *chain.from_iterable(spans), ONGOING]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _between(timeline: Iterable[Interval], start_ns: int, end_ns: int) -> Iterator[Interval]:
    """Yield the parts of intervals inside a stretch of time."""
    for one in timeline:
        if one.start_ns < end_ns and one.end_ns > start_ns:
            whole = start_ns <= one.start_ns and one.end_ns <= end_ns
            yield one if whole else replace(one, start_ns=max(one.start_ns, start_ns), end_ns=min(one.end_ns, end_ns))


def spans_of(known: Iterable[tuple[str, int, int]], key: Key) -> Iterator[tuple[int, int]]:
    """Yield the spans that belong to a key, as from and to."""
    return ((first, last) for label, first, last in known if label == f"{key.channel} {key.symbol}")


def _inside(spans: Sequence[tuple[int, int]], low: int, high: int) -> bool:
    """Return whether one of the spans has all from `low` to `high`."""
    for first, last in spans:  # noqa: SIM110 `any` costs a generator for each interval, and mostly there are no spans
        if first <= low and high <= last:
            return True
    return False


def _being_filled(timeline: Iterable[Interval], reading: Sequence[tuple[int, int]]) -> Iterator[Interval]:
    """Mark gaps inside a span that is being read as being repaired."""
    for one in timeline:
        if one.state == "open" and _inside(reading, one.start_ns, one.end_ns):
            yield replace(one, state="repairing", evidence=f"{one.evidence}; being fetched")
        else:
            yield one


def _by_ids(
    key: Key,
    runs: Iterable[Run],
    asked: Sequence[tuple[int, int]],
    read: Sequence[tuple[int, int]],
    asking: Sequence[tuple[int, int]],
    rejected: Sequence[tuple[int, int]],
) -> Iterator[Interval]:
    channel = channel_of(key)
    bars = channel is not None and channel.kind == "bar"  # a bar's number is that of its window, so its time says the same
    before: Run | None = None
    for run in runs:
        if before is not None:
            # Ids and times may differ in order. So a hole reaches over both its edges, and one wrong time moves no other interval.
            start_ns, end_ns = sorted((before.last_ns, run.first_ns))
            first, last = before.last + 1, run.first - 1
            # History is requested by id, and for bars by the times of their windows.
            low, high = (start_ns // NS_PER_MS, end_ns // NS_PER_MS - 1) if bars else (first, last)
            gone = _inside(asked, low, high) or _inside(read, start_ns, end_ns)
            # Numbers and times cannot be confused: a pair of one kind never lies inside a pair of the other.
            spoiled = _inside(rejected, low, high) or _inside(rejected, start_ns, end_ns)
            state: State = "open"
            what = f"{_count(first, last, bars)} missing"
            if spoiled:
                state, what = "unrecoverable", f"{what}; {_REJECTED}"
            elif gone:
                state, what = "unrecoverable", f"{what}, and not in the provider's history"
            elif _inside(asking, low, high):
                state, what = "repairing", f"{what}; being fetched"
            yield Interval(start_ns, end_ns, state, what, first, last)
        start_ns, end_ns = sorted((run.first_ns, run.last_ns))
        yield Interval(start_ns, end_ns, "proven", f"{_count(run.first, run.last, bars)} there", run.first, run.last)
        before = run


def _count(first: int, last: int, bars: bool) -> str:
    count = last - first + 1
    what = "bar" if bars else "event"
    counted = f"all of {count:,} {what}s are" if count > 1 else f"one {what} is"
    return counted if bars else f"ids {first} to {last}: {counted}"


def _by_connections(key: Key, connections: Sequence[ConnectionRecord], past: Past) -> Iterator[Interval]:
    joined = one_after_another([*(span for _, span in parted(key, connections, past)), *chain(*spans_before(connections, past).values())])
    for at, span in enumerate(joined):
        if at:
            yield Interval(joined[at - 1].end_ns, span.start_ns, "open", joined[at - 1].ended)
        yield Interval(span.start_ns, span.end_ns, "unprovable", "subscribed and heard: nothing to count by")
    opened = [opened_ns for opened_ns in (past.opened_ns, *(connection.opened_ns for connection in connections)) if opened_ns]
    if not joined and opened:
        yield Interval(min(opened), ONGOING, "open", "asked for, and neither confirmed nor heard")
    if joined and all(has_ended(connection, connections, past) for connection in connections):
        yield Interval(joined[-1].end_ns, ONGOING, "open", joined[-1].ended)


_BACK: Final = "the clock was set back: how long nobody listened is not known"


def parted(key: Key, connections: Sequence[ConnectionRecord], past: Past) -> Iterator[tuple[ConnectionRecord, Span]]:
    """Yield when connections listened, without the time that two successive connections of a line both claim.

    Such an overlap means that the clock was set back. How long nobody listened is then not known."""
    lines: dict[str, list[ConnectionRecord]] = {}
    for connection in connections:
        lines.setdefault(place_of(connection), []).append(connection)
    for place, line in lines.items():
        # A connection that takes over opens before the old one ends; these two do not follow one another.
        ended = sorted([*past.ended.get(place, ()), *((connection.last_offset, end_of(key, connection)[0]) for connection in line)])
        begun = sorted((connection.first_offset, begin_of(connection)) for connection in line)
        latest_ns = list(accumulate((end_ns for _, end_ns in ended), max, initial=0))
        earliest_ns = list(accumulate((start_ns for _, start_ns in reversed(begun)), min, initial=ONGOING))[::-1]
        for connection in line:
            not_before_ns = latest_ns[bisect_left(ended, (connection.first_offset,))]
            until_ns = earliest_ns[bisect_left(begun, (connection.last_offset + 1,))]
            for span in _heard(key, connection):
                start_ns, end_ns = max(span.start_ns, not_before_ns), min(span.end_ns, until_ns)
                if start_ns <= end_ns:
                    yield connection, Span(start_ns, end_ns, span.ended if end_ns == span.end_ns else _BACK)


def spans_before(connections: Iterable[ConnectionRecord], past: Past) -> dict[str, list[Span]]:
    """Return, by line, when the connections of the past listened, without what the connections after them claim."""
    remaining: dict[str, list[Span]] = {}
    for place, spans in past.spans.items():
        after = past.ended[place][-1][0]
        later = (one for one in connections if place_of(one) == place and one.first_offset > after)
        until_ns = min(map(begin_of, later), default=ONGOING)
        cut = (span if span.end_ns <= until_ns else Span(span.start_ns, until_ns, _BACK) for span in spans if span.start_ns <= until_ns)
        remaining[place] = list(cut)
    return remaining


def _heard(key: Key, connection: ConnectionRecord) -> Iterator[Span]:
    """Yield when a connection listened to a key, without the time of what was received and could not be kept."""
    confirmed = [connection.subscribed_ns] if connection.subscribed_ns and not _unconfirmed(key, connection) else []
    first = connection.first.get(f"{key.channel} {key.symbol}")
    starts = confirmed + ([first] if first is not None else [])
    if not starts:
        return
    start_ns = min(starts)
    forgotten = [*connection.forgotten, (connection.forgotten_since_ns, ONGOING)] if connection.forgotten_since_ns else connection.forgotten
    for hole_from, hole_to in forgotten:
        if hole_from <= start_ns <= hole_to + 1:
            start_ns = hole_from  # what was lost may belong to this key, so the time counts as a gap, not as unknown
    end_ns, ended = end_of(key, connection)
    if (late_ns := connection.last_age_ns - (connection.least_age_ns or 0)) > _LATE_NS:
        # Reading lagged behind: what lay in between was lost with the connection.
        end_ns, ended = max(start_ns, end_ns - late_ns), f"{ended}; what came last was {late_ns / NS_PER_S:,.1f} s late"
    holes = [(*span, "received, and could not be kept: stream and spool were full") for span in connection.dropped]
    holes += [(*span, "received, and lost by the stream before every store had it") for span in forgotten]
    holes += [(*span, "the clock leapt ahead: of this time nothing is known") for span in connection.leapt]
    for hole_from, hole_to, why in sorted(holes):
        if hole_to < start_ns or hole_from > end_ns:
            continue
        if hole_from >= start_ns:
            yield Span(start_ns, hole_from, why)
        start_ns = hole_to + 1  # the hole is at least a nanosecond, so that nothing joins the spans it separates
    if start_ns <= end_ns:
        yield Span(start_ns, end_ns, ended)


def _unconfirmed(key: Key, connection: ConnectionRecord) -> bool:
    if not connection.missing:
        return False
    provider = PROVIDERS[connection.provider]
    return any(provider.subscription(connection.feed, topic, connection.names) == (key.channel, key.symbol) for topic in connection.missing)


def _stale(connection: ConnectionRecord) -> str | None:
    """Return the channel whose silence made us close the connection; empty for all data; None if it was closed for another reason.

    Earlier versions wrote this only into the reason."""
    if connection.stale is not None or not connection.reason.startswith("mute: no "):
        return connection.stale
    return connection.reason.removeprefix("mute: no ").partition(" for ")[0].removeprefix("data").removeprefix("channel ")


def end_of(key: Key, connection: ConnectionRecord) -> tuple[int, str]:
    """Return until when a connection's silence meant that nothing happened, and what ended it."""
    if not connection.closed_ns:
        return max(connection.heard_ns, connection.concurrent_ns), "the connection ended without a word, as when the process was killed"
    if (stale := _stale(connection)) is not None:
        if stale == key.channel:
            return connection.last.get(key.channel, connection.opened_ns), connection.reason
        # A socket that is stale altogether is given up for the channel that is missed first. The others were heard as long as anything
        # was.
        return max(connection.last.values(), default=connection.opened_ns), connection.reason
    if connection.by == "network":
        return connection.heard_ns, connection.reason  # what was in transit when it broke is lost
    return connection.closed_ns, f"closed by {connection.by}: {connection.reason or 'no reason given'}"
