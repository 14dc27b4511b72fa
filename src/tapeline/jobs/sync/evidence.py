"""Says how far the history of each key has been read: by the ledger, and by the records in the stream that the ledger has not read yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow.compute as pc

from tapeline.jobs.backfill.fetching import partition_of
from tapeline.ledger.absorbing import absorb
from tapeline.ledger.facts import Facts, Interval, Key, State
from tapeline.ledger.intervals import NOTHING_EVER
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS
from tapeline.records import NS_PER_S, RAW_TOPIC, Chunk
from tapeline.stages.ledger import LEDGER
from tapeline.streams import Stream
from tapeline.times import text

log = logging.getLogger(__name__)

#: What begins the name of each connection of a pull. The provider, the feed and a time follow.
JOB: Final = "sync"
#: The states of the intervals that may be evidence.
READ_STATES: Final[frozenset[State]] = frozenset({"proven", "reconciled", "unprovable", "unrecoverable"})
#: How many of a partition's latest records are looked at, at most, for pages that the ledger has not read yet.
_TAIL_ROWS: Final = 200_000
_CHUNK_ROWS: Final = 10_000
#: Evidence that reaches further into the future than this was made while the clock was wrong. It does not count.
_FUTURE_NS: Final = 60 * NS_PER_S


@dataclass(frozen=True, slots=True)
class _Unread:
    """Pages that prove the history up to `until_ns`. The ledger has read them once its position in the partition is `position`."""

    until_ns: int
    partition: int
    position: int


class Evidence:
    """The ends of what was read of each key. A process that starts anew finds the same ends, because it remembers nothing of its own."""

    def __init__(self, stream: Stream, known: Callable[[], Mapping[Key, Sequence[Interval]]]) -> None:
        """`known`: returns the ledger's current intervals."""
        self._stream, self._known = stream, known
        self._unread: dict[Key, list[_Unread]] = {}
        self._looked = False
        #: How far this process has read, and where it began to read once more because the ledger did not count what it had read.
        self._read_ns: dict[Key, int] = {}
        self._again_ns: dict[Key, int] = {}

    def add(self, key: Key, until_ns: int) -> None:
        """Note that all pages are in the stream which prove the history of a key up to `until_ns` (ns, UTC). Raises Unavailable."""
        partition = partition_of(self._stream, key.symbol)
        self._unread.setdefault(key, []).append(_Unread(until_ns, partition, self._stream.ends(RAW_TOPIC)[partition]))
        self._read_ns[key] = max(until_ns, self._read_ns.get(key, 0))

    def ends(self, keys: Collection[Key], now_ns: int) -> dict[Key, int]:
        """Return for each key up to when its history was read (ns, UTC); 0 if nothing is known. Raises Unavailable.

        A span that the ledger has read and does not count is read once more by this process, and then no more."""
        positions = self._stream.positions(LEDGER, RAW_TOPIC)  # before the intervals, which are then at least as new
        if not self._looked:
            self._unread = _unread(self._stream, keys, positions)
            self._looked = True
        known, found = self._known(), dict[Key, int]()
        for key in keys:
            self._unread[key] = [one for one in self._unread.get(key, ()) if positions.get(one.partition, 0) < one.position]
            unread = [one.until_ns for one in self._unread[key] if one.until_ns <= now_ns + _FUTURE_NS]
            proven_ns = max([_reach(known.get(key, ()), now_ns + _FUTURE_NS), *unread])
            read_ns = self._read_ns.get(key, 0)
            if proven_ns < read_ns <= now_ns + _FUTURE_NS and (not proven_ns or self._again_ns.get(key) == proven_ns):
                proven_ns = read_ns
            elif proven_ns < read_ns:
                self._again_ns[key] = proven_ns
                log.warning(
                    "%s %s was read from %s to %s, and the ledger does not count it: an event was rejected, or the stream lost records. "
                    "It is read once more. `tapeline rejected list` and `tapeline gaps` show more.",
                    *(key.symbol, key.channel, text(proven_ns), text(read_ns)),
                )
            found[key] = proven_ns
        return found


def _reach(intervals: Sequence[Interval], latest_ns: int) -> int:
    """Where the last read of the history ended, and the ids that continue it; 0 if there is neither.

    Ids prove nothing about the time before the first of them. So ids that do not touch what was read count only where nothing was read."""
    reach_ns = ids_ns = 0
    for one in intervals:
        if one.end_ns > latest_ns:
            continue
        if one.state == "reconciled" or one.evidence == NOTHING_EVER:
            reach_ns = one.end_ns
        elif one.state in ("proven", "unrecoverable"):
            ids_ns = one.end_ns
            reach_ns = one.end_ns if 0 < one.start_ns <= reach_ns else reach_ns
    return reach_ns or ids_ns


def _unread(stream: Stream, keys: Collection[Key], positions: Mapping[int, int]) -> dict[Key, list[_Unread]]:
    """What earlier pulls have sent and the ledger has not read from `positions` on, as the ledger will count it."""
    ends, tail = stream.ends(RAW_TOPIC), stream.tail_positions(RAW_TOPIC, _TAIL_ROWS)
    partitions = {partition_of(stream, key.symbol) for key in keys}
    at = {part: max(positions.get(part, 0), tail.get(part, 0)) if part in partitions else end for part, end in ends.items()}
    facts = Facts()
    while any(at[part] < end for part, end in ends.items()) and (chunk := stream.read(RAW_TOPIC, at, _CHUNK_ROWS)) is not None:
        at |= chunk.next
        own = pc.starts_with(chunk.batch["connection"], f"{JOB}-")
        keep = own.to_numpy(zero_copy_only=False)
        if keep.any():
            pages = Chunk(RAW_TOPIC, chunk.batch.filter(own), chunk.partition[keep], chunk.offset[keep], chunk.begin, chunk.next)
            absorb(facts, pages, normalize(pages, DECODERS))
    found: dict[Key, list[_Unread]] = {}
    for connection in facts.connections.values():
        for label, _, until_ns in connection.read:
            channel, _, symbol = label.partition(" ")
            partition = partition_of(stream, symbol)
            one = _Unread(until_ns, partition, ends[partition])
            found.setdefault(Key(connection.provider, connection.feed, channel, symbol), []).append(one)
    return found
