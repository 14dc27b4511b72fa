"""Keeps the cost of the ledger flat: old facts are condensed, then archived, and restored when evidence reaches back.

There are two steps, both pure:

- `condense` moves connections that ended long ago into the past of each of their keys: when they listened, and what was read of history.
- `archive` (archiving.py) cuts off a part of a key's past and of its runs of ids, from which only old intervals follow. That part goes to
  the ledger as a `Piece`, and those intervals are not computed again. It checks that the other intervals stay as they are; if they do not,
  it does nothing. It runs for a key that has got some more intervals, so a flush does not cost more the longer the past is.

`recent_intervals` returns the intervals after the edge. If evidence has come that reaches before the edge, `restore` puts the latest
piece back, and the edge moves to the one before, as often as needed. Whatever is folded, and when, a key's intervals are the same as
without folding. `Account` runs all of this in turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import chain
from typing import Final

import msgspec

from tapeline.ledger.archiving import Pieces, archive, reaches_back, recent_intervals, restore
from tapeline.ledger.facts import (
    NO_PAST,
    ONGOING,
    ConnectionRecord,
    Facts,
    Interval,
    Key,
    Past,
    Span,
    State,
    begin_of,
    has_ended,
    one_after_another,
    place_of,
    united,
)
from tapeline.ledger.intervals import COVERED, end_of, has_come, parted, spans_before, spans_of
from tapeline.records import NS_PER_S

#: A closed connection moves into the past of its keys once others have been heard for this long after it. One that ended without a close
#: record may still speak, so it waits longer.
_CLOSED_NS: Final = 60 * NS_PER_S
_SILENT_NS: Final = 24 * 3_600 * NS_PER_S
#: A connection in the past is remembered by name for this long, so that copies of its records are not taken for a new connection's.
_REMEMBERED_NS: Final = 7 * 24 * 3_600 * NS_PER_S
#: Archiving a key is tried again when it has so many more intervals than after the last time.
_GROWN: Final = 8

#: Maps a key to the number of its unchanged intervals, and the intervals after those.
Changes = Mapping[Key, tuple[int, list[Interval]]]


class Account:
    """Facts, and the intervals that follow from them as the ledger keeps them."""

    def __init__(self, facts: Facts, pieces: Pieces) -> None:
        """`facts`: as the ledger loaded them. `pieces`: returns what the ledger archived of a key; may raise Unavailable."""
        self.facts, self._pieces = facts, pieces
        #: The recent intervals of each key, with the number of the first one.
        self._kept: dict[Key, tuple[int, list[Interval]]] = {}
        #: How many recent intervals each key had after archiving was last tried.
        self._tried: dict[Key, int] = {}
        #: How many pieces of a key come back next, since the last save.
        self._back: dict[Key, int] = {}
        for key in facts.keys():  # noqa: SIM118 `Facts` is not a mapping; this method returns a set
            recent = recent_intervals(facts, key) if not reaches_back(facts, key) else None
            if recent is not None:
                self._kept[key] = (_number(facts, key), recent)
            else:
                self._restore(key)

    def changes(self, now_ns: int) -> Changes:
        """Return the intervals that differ from the ledger's, after everything that was absorbed.

        If it raises Unavailable, call it again.
        """
        # This comes first: once evidence is in the past, it no longer shows that it came from before the edge.
        touched = self.facts.touched()
        for key in touched:
            while reaches_back(self.facts, key):
                self._restore(key)
        heard_ns = max((connection.heard_ns for connection in self.facts.connections.values()), default=0)
        condense(self.facts, min(heard_ns, now_ns) - _CLOSED_NS, min(heard_ns, now_ns) - _SILENT_NS)
        changes: dict[Key, tuple[int, list[Interval]]] = {}
        for key in self.facts.touched():
            while (current := recent_intervals(self.facts, key)) is None:
                self._restore(key)
            first = _number(self.facts, key)
            number, kept = self._kept.get(key, (first, []))
            kept = kept[first - number :]
            same = next(
                (at for at, (one, other) in enumerate(zip(current, kept, strict=False)) if one != other), min(len(current), len(kept))
            )
            if same < max(len(current), len(kept)) or key not in self._kept:
                changes[key] = (first + same, current[same:])
        return changes

    def _restore(self, key: Key) -> None:
        edge = self.facts.pasts[key].edge
        if edge is not None:
            # Twice as many each time: the further evidence reaches, the fewer reads of the ledger.
            restore(self.facts, key, edge, self._pieces, self._back.get(key, 1))
            self._back[key] = 2 * self._back.get(key, 1)
        self._kept.pop(key, None)
        self._tried.pop(key, None)

    def saved(self, changes: Changes) -> None:
        """Note that the ledger has these changes and the facts. Archive where much has come."""
        touched = self.facts.touched()
        self.facts.settled()
        self._back.clear()
        for key, (same, changed) in changes.items():
            first = _number(self.facts, key)
            number, kept = self._kept.get(key, (first, []))
            self._kept[key] = (first, [*kept[first - number : same - number], *changed])
        for key in touched:
            if len(self._kept[key][1]) >= self._tried.get(key, 0) + _GROWN:
                self._archive(key)

    def _archive(self, key: Key) -> None:
        number, kept = self._kept[key]
        gone = archive(self.facts, key, kept)
        self._kept[key] = (number + gone, kept[gone:])
        self._tried[key] = len(kept) - gone

    def prune(self, remove: Callable[[Mapping[Key, int], int], Mapping[Key, Counter[State]]], before_ns: int) -> None:
        """Remove what was archived and ended before this time (ns, UTC). `remove` works as `Ledger.prune`; it may raise Unavailable."""
        edges = {key: past.edge for key, past in self.facts.pasts.items() if past.edge is not None}
        for key, gone in remove({key: edge.number for key, edge in edges.items()}, before_ns).items():
            edges[key].states = dict(Counter(edges[key].states) - gone)
            self.facts.touched_pasts.add(key)
        for key in self._kept:  # what grows too slowly to be archived otherwise grows old, too
            self._archive(key)

    def states(self) -> Counter[State]:
        """Return the number of intervals in each state in which something is missing."""
        counts = Counter(one.state for _, kept in self._kept.values() for one in kept if one.state not in COVERED)
        for past in self.facts.pasts.values():
            counts.update(past.edge.states if past.edge is not None else {})
        return counts

    @property
    def keys(self) -> int:
        """The number of keys that have intervals."""
        return len(self._kept)


def _number(facts: Facts, key: Key) -> int:
    """Return the number of a key's first recent interval."""
    past = facts.pasts.get(key)
    return past.edge.number if past is not None and past.edge is not None else 0


# ---- moving connections into the past


def condense(facts: Facts, closed_ns: int, silent_ns: int) -> None:
    """Move connections into the past of their keys.

    Pages of history that were read to the end move at once. Closed connections move if they ended before `closed_ns`, and connections
    that ended without a close record if they were last heard before `silent_ns`."""
    over = {name for name in facts.connections if _is_over(facts, name, closed_ns, silent_ns)}
    over -= _held_back(facts.connections, over)
    condensed: dict[Key, set[str]] = {}
    for name in over:
        for key in facts.keys_of(name):
            condensed.setdefault(key, set()).add(name)
    for key, names in condensed.items():
        facts.pasts[key] = _past(key, facts.carriers(key), names, facts.pasts.get(key, NO_PAST))
        facts.touched_pasts.add(key)
    for name in over:
        facts.condensed(name, _last_of(facts.connections[name]))
    for name in [name for name, at_ns in facts.past_connections.items() if at_ns < silent_ns - _REMEMBERED_NS]:
        del facts.past_connections[name]


def _held_back(connections: Mapping[str, ConnectionRecord], over: Set[str]) -> set[str]:
    """Return connections that follow one that stays, and began before its end.

    That happens when the clock was set back. They show where the connection that stays ends, so they have to stay too.
    """
    held: set[str] = set()
    staying: dict[str, list[ConnectionRecord]] = {}
    for name in sorted(connections, key=lambda name: connections[name].first_offset):
        connection = connections[name]
        before = staying.setdefault(place_of(connection), [])
        if name in over and any(other.last_offset < connection.first_offset and _last_of(other) > begin_of(connection) for other in before):
            held.add(name)
        if (name not in over or name in held) and not connection.fetched:
            before.append(connection)
    return held


def _is_over(facts: Facts, name: str, closed_ns: int, silent_ns: int) -> bool:
    connection = facts.connections[name]
    if connection.asking or connection.reading or connection.rejecting:
        return False
    if connection.fetched:
        return True  # what comes under its name later stands for itself
    if connection.closed_ns:
        return _last_of(connection) < closed_ns
    if _last_of(connection) >= silent_ns:
        return False
    return all(has_ended(connection, facts.carried(key), facts.pasts.get(key, NO_PAST)) for key in facts.keys_of(name))


def _last_of(connection: ConnectionRecord) -> int:
    spans = chain(connection.dropped, connection.forgotten, connection.leapt)
    times = (connection.opened_ns, connection.subscribed_ns, connection.heard_ns, connection.closed_ns, connection.concurrent_ns)
    return max(*times, *(end_ns for _, end_ns in spans))


def _past(key: Key, connections: Mapping[str, ConnectionRecord], names: Set[str], past: Past) -> Past:
    """Return the past of a key, extended by those of its connections that have these names."""
    condensed = [connections[name] for name in sorted(names)]
    sockets, read = [one for one in condensed if not one.fetched], [one for one in condensed if one.fetched]
    listening = {name: connection for name, connection in connections.items() if not connection.fetched}
    spans, ended = spans_before(listening.values(), past), dict(past.ended)
    heard: dict[int, list[Span]] = {}
    for connection, span in parted(key, list(listening.values()), past):
        heard.setdefault(id(connection), []).append(span)
    for place in {place_of(connection) for connection in sockets}:
        mine = [connection for connection in sockets if place_of(connection) == place]
        spans[place] = one_after_another([*spans.get(place, ()), *(span for connection in mine for span in heard.get(id(connection), ()))])
        staying = (connection.first_offset for name, connection in listening.items() if name not in names and place_of(connection) == place)
        ends = sorted([*ended.get(place, ()), *((connection.last_offset, end_of(key, connection)[0]) for connection in mine)])
        ended[place] = _ends_before(ends, min(staying, default=None))
    new = Past(
        opened_ns=min((connection.opened_ns for connection in sockets if connection.opened_ns), default=0),
        heard=has_come(key, condensed, NO_PAST),
        outlived=[(connection.opened_ns, connection.closed_ns or ONGOING) for connection in sockets],
        read=[span for connection in read for span in spans_of(connection.read, key)],
        asked=[span for connection in read for span in spans_of(connection.asked, key)],
        rejected=[span for connection in read for span in spans_of(connection.rejected, key)],
    )
    both = united(past, new)
    return msgspec.structs.replace(both, spans=spans, ended=ended, outlived=_unmatched(both.outlived), edge=past.edge)


def _ends_before(ends: Sequence[tuple[int, int]], first: int | None) -> list[tuple[int, int]]:
    """Reduce the ends that lie before everything still open on a line to one, because the last of them is enough."""
    before = [end for end in ends if first is None or end[0] < first]
    together = [(max(offset for offset, _ in before), max(end_ns for _, end_ns in before))] if before else []
    return [*together, *ends[len(before) :]]


def _unmatched(outlived: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out each pair that another one exceeds in both values."""
    kept: list[tuple[int, int]] = []
    for one in sorted(set(outlived), reverse=True):
        if not kept or one[1] > kept[-1][1]:
            kept.append(one)
    return kept
