"""The ledger's facts: connections and what they heard, runs of ids, and pages of history. They are plain values that are stored."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from tapeline.providers.events import Channel
from tapeline.providers.registry import CHANNELS, PROVIDERS
from tapeline.records import NS_PER_S

State = Literal["proven", "reconciled", "open", "repairing", "unrecoverable", "unprovable"]
#: The end of an ongoing interval.
ONGOING: Final = (1 << 63) - 1
_DAY_S: Final = 86_400
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": _DAY_S, "w": 7 * _DAY_S}
_LONGEST_INTERVAL: Final = 4
#: 1970-01-01 was a Thursday, and weeks begin on Mondays.
_MONDAY_NS: Final = 4 * _DAY_S * NS_PER_S


class Key(NamedTuple):
    """One symbol of one channel. Every gap belongs to one key."""

    provider: str
    feed: str
    channel: str
    symbol: str


class Run(msgspec.Struct, array_like=True):
    """The ids from `first` to `last`, all of them seen, with the event times (ns, UTC) of these two."""

    first: int
    last: int
    first_ns: int
    last_ns: int


class ConnectionRecord(msgspec.Struct):
    """The facts about one socket that follow from its records. A time is a receive time (ns, UTC), or 0 if the event has not happened."""

    provider: str
    feed: str
    line: str = ""  # the planned connection it belonged to
    topics: list[str] = []
    missing: list[str] = []  # requested and never confirmed
    names: dict[str, str] = {}  # the provider's own names, which its table splits differently from the exchange
    opened_ns: int = 0
    subscribed_ns: int = 0
    heard_ns: int = 0  # the last record other than the close
    #: Where its records lie in the raw topic. That gives the order of events, whatever the clock said.
    partition: int = 0
    first_offset: int = 0
    last_offset: int = 0
    # It was still open at this time, when a socket of the other line of its arbitration opened, was confirmed or closed. Ledgers store it
    # under the name that it had first.
    concurrent_ns: int = msgspec.field(default=0, name="beside_ns")
    #: How old a tick was when it was received: the least age, the age of the last tick, and when that one was received. The ages compare
    #: two clocks, which may differ.
    least_age_ns: int | None = None
    last_age_ns: int = 0
    last_tick_ns: int = 0
    closed_ns: int = 0
    by: str = ""  # who closed it: provider, network or tapeline
    reason: str = ""
    #: The channel whose silence made us close it; empty for the silence of all data; None if it was closed for another reason.
    stale: str | None = None
    #: Maps `channel symbol` to the receive time of its first event.
    first: dict[str, int] = {}
    #: Maps a channel to the receive time of its last event.
    last: dict[str, int] = {}
    #: From and to (ns) of records that were received and could not be kept.
    dropped: list[tuple[int, int]] = []
    #: From and to (ns) of records that the stream lost before every store had them, and since when (ns) an ongoing loss lasts.
    forgotten: list[tuple[int, int]] = []
    forgotten_since_ns: int = 0
    #: From and to (ns) where the machine's clock jumped ahead.
    leapt: list[tuple[int, int]] = []
    #: True if this is not a socket but pages of history. `asked` and `read` list what was read to the end: `channel symbol`, with the
    #: first and last number, or with from and to (ns).
    fetched: bool = False
    asked: list[tuple[str, int, int]] = []
    read: list[tuple[str, int, int]] = []
    #: Spans that were read to the end but had events rejected, so not all of their events are there.
    rejected: list[tuple[str, int, int]] = []
    #: Spans of which some pages have come, but not the last one, with the number of pages.
    asking: list[tuple[str, int, int, int]] = []
    reading: list[tuple[str, int, int, int]] = []
    rejecting: list[tuple[str, int, int]] = []


class Span(msgspec.Struct, array_like=True, frozen=True):
    """A stretch of time (ns, UTC) in which a key was listened to, and why it ended."""

    start_ns: int
    end_ns: int
    ended: str


class Past(msgspec.Struct):
    """What connections that ended long ago leave behind for a key. Lines are named by `place_of`; times are in ns (UTC)."""

    opened_ns: int = 0  # when the first of them was opened; 0: none was opened for it
    heard: bool = False  # an event of the key came
    spans: dict[str, list[Span]] = {}
    #: For each line, the last offset of its connections and until when they were heard.
    ended: dict[str, list[tuple[int, int]]] = {}
    #: When connections were opened and closed, leaving out those that another one exceeds in both times.
    outlived: list[tuple[int, int]] = []
    read: list[tuple[int, int]] = []
    asked: list[tuple[int, int]] = []
    rejected: list[tuple[int, int]] = []
    #: Where the part that is not archived begins. None: nothing is archived.
    edge: Edge | None = None


#: The past of a key whose connections are all recent.
NO_PAST: Final = Past()


@dataclass(slots=True)
class Facts:
    """Everything that is known, and what was touched since the last save."""

    runs: dict[Key, list[Run]] = field(default_factory=dict)
    connections: dict[str, ConnectionRecord] = field(default_factory=dict)
    pasts: dict[Key, Past] = field(default_factory=dict)
    touched_runs: set[Key] = field(default_factory=set)
    touched_connections: set[str] = field(default_factory=set)
    touched_pasts: set[Key] = field(default_factory=set)
    #: Connections that are in the past of their keys, and when (ns) each was last heard. Copies of their records may still come.
    past_connections: dict[str, int] = field(default_factory=dict)
    condensed_connections: set[str] = field(default_factory=set)
    #: Pieces that were archived since the last save, and the number of the first piece of each key that was restored.
    archived: dict[Key, list[Piece]] = field(default_factory=dict)
    restored: dict[Key, int] = field(default_factory=dict)
    _carriers: dict[Key, set[str]] = field(default_factory=dict)
    _carried: dict[str, set[Key]] = field(default_factory=dict)

    @staticmethod
    def of(
        runs: Mapping[Key, list[Run]],
        connections: Mapping[str, ConnectionRecord],
        pasts: Mapping[Key, Past] = MappingProxyType({}),
        past_connections: Mapping[str, int] = MappingProxyType({}),
    ) -> Facts:
        """Return the facts from what was stored."""
        facts = Facts(dict(runs), dict(connections), dict(pasts), past_connections=dict(past_connections))
        for name, connection in connections.items():
            for key in keys_of(connection):
                facts.carries(name, key)
        return facts

    def carries(self, name: str, key: Key) -> None:
        """Note that a connection was asked for a key, or brought events of it."""
        self._carriers.setdefault(key, set()).add(name)
        self._carried.setdefault(name, set()).add(key)

    def keys_of(self, name: str) -> Set[Key]:
        """Return the keys of a connection."""
        return self._carried.get(name, set())

    def condensed(self, name: str, at_ns: int) -> None:
        """Note that a connection, last heard at `at_ns`, is in the past of its keys."""
        if not self.connections[name].fetched:  # a repair may continue under the same name
            self.past_connections[name] = at_ns
        self.forget_connection(name)
        self.condensed_connections.add(name)

    def forget_connection(self, name: str) -> None:
        """Remove a connection from these facts. What the ledger has stored of it stays there. An unknown name is ignored."""
        self.connections.pop(name, None)
        for key in self._carried.pop(name, ()):
            carriers = self._carriers.get(key, set())
            carriers.discard(name)
            if not carriers:
                self._carriers.pop(key, None)
        self.touched_connections.discard(name)

    def keys(self) -> set[Key]:
        """Return every key that has a run of ids, a connection or a past."""
        return {*self.runs, *self._carriers, *self.pasts}

    def carried(self, key: Key) -> list[ConnectionRecord]:
        """Return the connections of a key, ordered by their beginning."""
        return sorted(self.carriers(key).values(), key=attrgetter("opened_ns", "heard_ns"))

    def carriers(self, key: Key) -> dict[str, ConnectionRecord]:
        """Return the connections of a key, by name."""
        return {name: self.connections[name] for name in self._carriers.get(key, ())}

    def touched(self) -> set[Key]:
        """Return the keys whose intervals may have changed since the last save."""
        touched = self.touched_runs | self.touched_pasts
        for name in self.touched_connections:
            touched |= self.keys_of(name)
        return touched

    def settled(self) -> None:
        """Note that everything touched has been saved."""
        for done in (
            self.touched_runs,
            self.touched_connections,
            self.touched_pasts,
            self.condensed_connections,
            self.archived,
            self.restored,
        ):
            done.clear()


def keys_of(connection: ConnectionRecord) -> Iterator[Key]:
    """Yield the keys that a connection subscribed to, and the keys of which it received events."""
    provider = PROVIDERS.get(connection.provider)
    for topic in connection.topics:
        subscription = provider.subscription(connection.feed, topic, connection.names) if provider is not None else None
        if subscription is not None:
            yield Key(connection.provider, connection.feed, *subscription)
    ended, begun = (*connection.asked, *connection.read, *connection.rejected), (*connection.asking, *connection.reading)
    for both in {*connection.first, *(entry[0] for entry in ended), *(entry[0] for entry in begun)}:
        channel, _, symbol = both.partition(" ")
        yield Key(connection.provider, connection.feed, channel, symbol)


class Piece(msgspec.Struct):
    """Archived facts of a key. Only intervals before the key's edge follow from them.

    The pieces of a key are a stack: the one that was archived last comes back first."""

    before_ns: int = 0  # all of them lie before this time
    runs: list[Run] = []
    spans: dict[str, list[Span]] = {}
    read: list[tuple[int, int]] = []
    asked: list[tuple[int, int]] = []
    rejected: list[tuple[int, int]] = []
    #: How many intervals in which something is missing were archived with it, and the edge before that. Earlier versions noted neither.
    states: dict[State, int] = {}
    below: Edge | None = None


class Edge(msgspec.Struct):
    """Where the archived part of a key ends. Evidence from before it restores as much as it reaches back."""

    number: int  # number of intervals before the edge
    states: dict[State, int]  # of these, how many are in each state in which something is missing
    pieces: int
    at_ns: int
    first_id: int | None  # first id of the first run that is not archived
    heard: bool
    #: The intervals before the edge that follow from what is not archived, and when the first interval after the edge begins.
    before: list[Interval]
    start_ns: int


def window_of(interval: str, start_ns: int) -> tuple[int, int] | None:
    """Return the number of a bar's window and the time (ns) at which it ends, or None for an interval without a grid of its own."""
    if len(interval) > _LONGEST_INTERVAL:
        return None
    if interval.endswith("M"):
        month = np.datetime64(start_ns, "ns").astype("datetime64[M]")
        return int(month.astype(np.int64)), int((month + 1).astype("datetime64[ns]").astype(np.int64))
    width = int(interval[:-1]) * _SECONDS.get(interval[-1:], 0) * NS_PER_S if interval[:-1].isdecimal() else 0
    if not width:
        return None
    origin = _MONDAY_NS if interval.endswith("w") else 0
    return (start_ns - origin) // width, start_ns + width


def join(runs: list[Run], new: Run) -> None:
    """Insert a run into the known runs, which are sorted and apart. Runs that touch become one."""
    at = bisect_right(runs, new.first, key=attrgetter("first"))
    low = at - 1 if at and runs[at - 1].last >= new.first - 1 else at
    high = at
    while high < len(runs) and runs[high].first <= new.last + 1:
        high += 1
    if low < high:
        old = runs[low:high]
        # If two copies of one event have different times, the earlier holds, whichever came first.
        edges = sorted([(run.first, run.first_ns) for run in (*old, new)])
        ends = sorted([(-run.last, run.last_ns) for run in (*old, new)])
        new = Run(edges[0][0], -ends[0][0], edges[0][1], ends[0][1])
    runs[low:high] = [new]


def united(one: Past, other: Past) -> Past:
    """Return two pasts as one. Neither may have an archived part."""
    places = {*one.ended, *other.ended}
    return Past(
        opened_ns=min((past.opened_ns for past in (one, other) if past.opened_ns), default=0),
        heard=one.heard or other.heard,
        spans={place: one_after_another([*one.spans.get(place, ()), *other.spans.get(place, ())]) for place in places},
        ended={place: sorted({*one.ended.get(place, ()), *other.ended.get(place, ())}) for place in places},
        outlived=sorted({*one.outlived, *other.outlived}),
        read=apart([*one.read, *other.read]),
        asked=sorted({*one.asked, *other.asked}),
        rejected=sorted({*one.rejected, *other.rejected}),
    )


def one_after_another(spans: Iterable[Span]) -> list[Span]:
    """Return the spans in order. Spans that touch become one, which ended as its last part did."""
    joined: list[Span] = []
    for span in sorted(spans, key=attrgetter("start_ns")):
        if joined and span.start_ns <= joined[-1].end_ns:
            last = max(span, joined[-1], key=attrgetter("end_ns", "ended"))
            joined[-1] = Span(joined[-1].start_ns, last.end_ns, last.ended)
        else:
            joined.append(span)
    return joined


def has_ended(connection: ConnectionRecord, connections: Iterable[ConnectionRecord], past: Past = NO_PAST) -> bool:
    """Return whether a connection has closed, or has ended without a close record.

    The latter holds if a later connection of the key is open, or has outlived it.
    """
    if connection.closed_ns:
        return True
    known_ns = max(connection.heard_ns, connection.concurrent_ns)
    others = chain(((other.opened_ns, other.closed_ns or ONGOING) for other in connections), past.outlived)
    return any(opened_ns > connection.opened_ns and closed_ns > known_ns for opened_ns, closed_ns in others)


def place_of(connection: ConnectionRecord) -> str:
    """Return a connection's partition and line. Within one such place connections follow one another, and offsets give their order."""
    return f"{connection.partition} {connection.line}"


def begin_of(connection: ConnectionRecord) -> int:
    """Return when a connection was opened, as far as that is known."""
    return connection.opened_ns or connection.subscribed_ns or ONGOING


class Interval(msgspec.Struct, frozen=True):
    """A stretch of time of one key in one state, [start, end) in ns (UTC). `ONGOING`: it has no end yet."""

    start_ns: int
    end_ns: int
    state: State
    evidence: str
    first_id: int | None = None  # first id of what is there, or of what is missing
    last_id: int | None = None


def apart(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the stretches of time that have a length, in order. Stretches that touch become one."""
    joined: list[tuple[int, int]] = []
    for start_ns, end_ns in sorted(span for span in spans if span[0] < span[1]):
        if joined and start_ns <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end_ns))
        else:
            joined.append((start_ns, end_ns))
    return joined


def with_stretch(read: list[tuple[str, int, int]], new: tuple[str, int, int]) -> list[tuple[str, int, int]]:
    """Add a stretch to those of all labels. Stretches of one label that touch become one."""
    label, start_ns, end_ns = new
    if start_ns >= end_ns:
        return read
    kept = []
    for entry in read:
        if entry[0] == label and entry[1] <= end_ns and start_ns <= entry[2]:
            start_ns, end_ns = min(start_ns, entry[1]), max(end_ns, entry[2])
        else:
            kept.append(entry)
    return sorted([*kept, (label, start_ns, end_ns)])


def channel_of(key: Key) -> Channel | None:
    """Return the channel of a key, or None if no installed provider has that feed and channel."""
    return CHANNELS.get(key.provider, {}).get(key.feed, {}).get(key.channel)
