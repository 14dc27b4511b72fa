"""Is this data complete? What raw records and their events prove of it, and what they leave open. Pure: records in, findings out.

`absorb` takes chunks of the raw topic with what the normalizer made of them and keeps *facts*: which runs of ids have been seen of a
symbol, and how long each connection lived and was heard. Facts only ever join, so it is the same in which chunks the records come, and
the same when they come again. `intervals` says what the facts mean for one symbol of one channel:

- Where ids have no holes at their source, a run of ids is `proven`, and what lies between two runs is `open`: so many events are missing.
- Elsewhere, and where no id has come yet, nothing tells one lost event from a quiet market. While a connection was subscribed and heard it
  is `unprovable`; between two connections, and where a socket was mute, it is `open`; behind the last one it is `open` and goes on.

Nothing but evidence closes a gap: events with the ids that were missing, or a reading of the provider's own history.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from operator import attrgetter
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.providers.history import asked_of
from tapeline.providers.normalizing import UNREADABLE, Channel, Names, Normalized
from tapeline.providers.registry import CHANNELS, HISTORIES, PROVIDERS
from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, NS_PER_MS, NS_PER_S, REJECTED_TOPIC, TICKS_TOPIC, Chunk

State = Literal["proven", "reconciled", "open", "repairing", "unrecoverable", "unprovable"]
#: The end of what goes on.
ONGOING: Final = (1 << 63) - 1
#: What is there, and what is not.
COVERED: Final[frozenset[State]] = frozenset({"proven", "reconciled", "unprovable"})
MISSING: Final[frozenset[State]] = frozenset({"open", "repairing", "unrecoverable"})

#: Notices that tell of a connection.
_TELLING: Final = frozenset({"opened", "subscribed", "closed", "refused", "fetched", "leapt"})
#: The connection of records that no connection brought: an exchange's list of its symbols.
_OF_NONE: Final = ""
_DAY_S: Final = 86_400
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": _DAY_S, "w": 7 * _DAY_S}
_LONGEST_INTERVAL: Final = 4
#: A live event whose own time differs by more than this from its receipt says nothing of when it was.
_DRIFT_NS: Final = _DAY_S * NS_PER_S
#: A connection whose ticks come later than at their best by more than this was read too slowly, or its machine stood still.
_LATE_NS: Final = NS_PER_S
#: Longer names, and such with a zero character, are no symbols, and no database keeps them.
_LONGEST_SYMBOL: Final = 200
_LONGEST_REASON: Final = 300
_NEVER: Final = (
    "the provider's history was read to its end and holds nothing, and no event of this symbol has ever come: is its name right?"
)
_REJECTED: Final = "the provider's history was read to its end, and events of it were rejected"
#: 1970-01-01 was a Thursday, and weeks begin on Mondays.
_MONDAY_NS: Final = 4 * _DAY_S * NS_PER_S


class Key(NamedTuple):
    """One symbol of one channel: what a gap is a gap of."""

    provider: str
    feed: str
    channel: str
    symbol: str


class Run(msgspec.Struct, array_like=True):
    """Ids from `first` to `last`, all of them seen, with the event times (ns) of the two."""

    first: int
    last: int
    first_ns: int
    last_ns: int


class Life(msgspec.Struct):
    """What is known of one socket, from its records; times are receive times, ns. 0: not so far."""

    provider: str
    feed: str
    line: str = ""  # the planned connection that it was of
    topics: list[str] = []
    missing: list[str] = []  # asked for and never confirmed
    names: dict[str, str] = {}  # the provider's own, which its table splits otherwise than the exchange
    opened_ns: int = 0
    subscribed_ns: int = 0
    heard_ns: int = 0  # the last record but the close
    #: Where in the raw topic its records lie: the order in which things happened, whatever the clock said.
    partition: int = 0
    first_offset: int = 0
    last_offset: int = 0
    beside_ns: int = 0  # it was open when a socket of its pair's other line opened, was confirmed or closed
    #: How old a tick was when it was received: at the least, and the last one (received at). By the two clocks, which may differ.
    least_age_ns: int | None = None
    last_age_ns: int = 0
    last_tick_ns: int = 0
    closed_ns: int = 0
    by: str = ""  # who closed: provider, network, tapeline
    reason: str = ""
    #: `channel symbol` to its first event.
    first: dict[str, int] = {}
    #: Channel to its last event.
    last: dict[str, int] = {}
    #: From and to (ns) of records that were received and could not be kept.
    refused: list[tuple[int, int]] = []
    #: From and to (ns) of records that were in the stream and that it lost before every store had them; and since when (ns) that goes on.
    forgotten: list[tuple[int, int]] = []
    forgotten_since_ns: int = 0
    #: From and to (ns) where the machine's clock leapt ahead.
    leapt: list[tuple[int, int]] = []
    #: Not a socket but pages of history, read to the end: `channel symbol`, and the first and last number, or from and to (ns).
    fetched: bool = False
    asked: list[tuple[str, int, int]] = []
    read: list[tuple[str, int, int]] = []
    #: Those of which events were rejected: they were read, and what they hold is not all there.
    rejected: list[tuple[str, int, int]] = []
    #: The same of which some pages have come, and not the last one; with how many.
    asking: list[tuple[str, int, int, int]] = []
    reading: list[tuple[str, int, int, int]] = []
    rejecting: list[tuple[str, int, int]] = []


class Span(msgspec.Struct, array_like=True, frozen=True):
    """A key was listened to, from and to (ns); why that ended."""

    start_ns: int
    end_ns: int
    ended: str


class Past(msgspec.Struct):
    """What connections that ended long ago leave behind of a key. Lines by `place_of`, times in ns."""

    opened_ns: int = 0  # the first of them; 0: none was opened for it
    heard: bool = False  # an event of it came
    spans: dict[str, list[Span]] = {}
    #: The last offset of connections of a line, and until when they were heard.
    ended: dict[str, list[tuple[int, int]]] = {}
    #: When connections were opened and closed: those that no other outdoes in both.
    outlived: list[tuple[int, int]] = []
    read: list[tuple[int, int]] = []
    asked: list[tuple[int, int]] = []
    rejected: list[tuple[int, int]] = []
    #: Where what is not archived begins; None: nothing is archived.
    edge: Edge | None = None


#: The past of a key whose connections are all recent.
NO_PAST: Final = Past()


@dataclass(slots=True)
class Facts:
    """Everything that is known; what is touched since it was last asked for."""

    runs: dict[Key, list[Run]] = field(default_factory=dict)
    lives: dict[str, Life] = field(default_factory=dict)
    pasts: dict[Key, Past] = field(default_factory=dict)
    touched_runs: set[Key] = field(default_factory=set)
    touched_lives: set[str] = field(default_factory=set)
    touched_pasts: set[Key] = field(default_factory=set)
    #: Connections that are in the past of their keys, and when (ns) each was last heard: copies of their records may still come.
    past_connections: dict[str, int] = field(default_factory=dict)
    condensed_lives: set[str] = field(default_factory=set)
    #: Pieces that were archived since the last save, and the keys whose pieces were all restored.
    archived: dict[Key, list[Piece]] = field(default_factory=dict)
    restored: set[Key] = field(default_factory=set)
    _carriers: dict[Key, set[str]] = field(default_factory=dict)
    _carried: dict[str, set[Key]] = field(default_factory=dict)

    @staticmethod
    def of(
        runs: Mapping[Key, list[Run]],
        lives: Mapping[str, Life],
        pasts: Mapping[Key, Past] = MappingProxyType({}),
        past_connections: Mapping[str, int] = MappingProxyType({}),
    ) -> Facts:
        """Facts that were kept."""
        facts = Facts(dict(runs), dict(lives), dict(pasts), past_connections=dict(past_connections))
        for name, life in lives.items():
            for key in keys_of(life):
                facts.carries(name, key)
        return facts

    def carries(self, name: str, key: Key) -> None:
        """Note that a connection was asked for a key, or brought it."""
        self._carriers.setdefault(key, set()).add(name)
        self._carried.setdefault(name, set()).add(key)

    def keys_of(self, name: str) -> Set[Key]:
        """The keys of a connection."""
        return self._carried.get(name, set())

    def condensed(self, name: str, at_ns: int) -> None:
        """A connection that was last heard then is in the past of its keys."""
        if not self.lives[name].fetched:  # a repair goes on under its name
            self.past_connections[name] = at_ns
        self.forget_life(name)
        self.condensed_lives.add(name)

    def forget_life(self, name: str) -> None:
        self.lives.pop(name, None)
        for key in self._carried.pop(name, ()):
            carriers = self._carriers.get(key, set())
            carriers.discard(name)
            if not carriers:
                self._carriers.pop(key, None)
        self.touched_lives.discard(name)

    def keys(self) -> set[Key]:
        return {*self.runs, *self._carriers, *self.pasts}

    def carried(self, key: Key) -> list[Life]:
        """The connections of a key, by their beginning."""
        return sorted(self.carriers(key).values(), key=attrgetter("opened_ns", "heard_ns"))

    def carriers(self, key: Key) -> dict[str, Life]:
        """The connections of a key, by name."""
        return {name: self.lives[name] for name in self._carriers.get(key, ())}

    def touched(self) -> set[Key]:
        """The keys whose intervals may be others than when this was last asked."""
        found = self.touched_runs | self.touched_pasts
        for name in self.touched_lives:
            found |= self.keys_of(name)
        return found

    def settled(self) -> None:
        """What was touched is kept."""
        for done in (self.touched_runs, self.touched_lives, self.touched_pasts, self.condensed_lives, self.archived, self.restored):
            done.clear()


def keys_of(life: Life) -> Iterator[Key]:
    """What a connection was asked for, and what it brought."""
    provider = PROVIDERS.get(life.provider)
    for topic in life.topics:
        found = provider.subscription(life.feed, topic, life.names) if provider is not None else None
        if found is not None:
            yield Key(life.provider, life.feed, *found)
    ended, begun = (*life.asked, *life.read), (*life.asking, *life.reading)
    for both in {*life.first, *(entry[0] for entry in ended), *(entry[0] for entry in begun)}:
        channel, _, symbol = both.partition(" ")
        yield Key(life.provider, life.feed, channel, symbol)


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of time of one key in one state; times in ns, [start, end); `ONGOING`: it has no end yet."""

    start_ns: int
    end_ns: int
    state: State
    evidence: str
    first_id: int | None = None  # of what is there, or of what is missing
    last_id: int | None = None


class Piece(msgspec.Struct):
    """Facts of a key that were archived. Only intervals before its edge follow from them."""

    before_ns: int = 0  # they all lie before that time
    runs: list[Run] = []
    spans: dict[str, list[Span]] = {}
    read: list[tuple[int, int]] = []
    asked: list[tuple[int, int]] = []
    rejected: list[tuple[int, int]] = []


class Edge(msgspec.Struct):
    """Where what is archived of a key ends. Evidence from before it restores everything."""

    number: int  # so many intervals lie before
    states: dict[State, int]  # of them, where something is not there
    pieces: int
    at_ns: int
    first_id: int | None  # of the first run that is not archived
    heard: bool
    #: What follows, before the edge, from what is not archived; and when the first interval behind it begins.
    before: list[Interval]
    start_ns: int


# ---- records in


def forget(facts: Facts, partitions: Iterable[int]) -> None:
    """The stream lost records of these partitions of the raw topic: of open connections, nobody knows which."""
    lost = set(partitions)
    for name, life in facts.lives.items():
        if life.partition in lost and not life.fetched and not life.closed_ns and not life.forgotten_since_ns:
            life.forgotten_since_ns = life.heard_ns
            facts.touched_lives.add(name)


def absorb(facts: Facts, chunk: Chunk, normalized: Normalized, *, taken: bool = True, names: Names = MappingProxyType({})) -> None:
    """Add what a chunk of raw records, and the events that were made of it with these names, prove.

    `taken`: whether every store has the events. Otherwise the records tell of their connections alone, and that something was lost."""
    raw = chunk.batch
    received = raw["received_ns"].to_numpy()
    connections = raw["connection"].dictionary_encode()
    code = connections.indices.to_numpy()
    known = connections.dictionary.to_pylist()
    for at in np.unique(code, return_index=True)[1].tolist():
        name = known[code[at]]
        facts.touched_lives.add(name)
        if name not in facts.lives:
            partition, offset = int(chunk.partition[at]), int(chunk.offset[at])
            life = Life(raw["provider"][at].as_py(), raw["feed"][at].as_py(), name.rpartition("-")[0])
            life.partition, life.first_offset, life.last_offset = partition, offset, offset
            facts.lives[name] = life
    for at, first in _extremes(code, chunk.offset, np.minimum):
        life = facts.lives[known[at]]
        life.first_offset = min(life.first_offset, first)
    for at, last in _extremes(code, chunk.offset, np.maximum):
        life = facts.lives[known[at]]
        life.last_offset = max(life.last_offset, last)
    for at, first_ns in _extremes(code, received, np.minimum):
        life = facts.lives[known[at]]
        if not taken:
            life.forgotten_since_ns = life.forgotten_since_ns or life.heard_ns or first_ns
        elif life.forgotten_since_ns:
            life.forgotten = sorted([*life.forgotten, (life.forgotten_since_ns, max(life.forgotten_since_ns, first_ns - 1))])
            life.forgotten_since_ns = 0
    heard = pc.not_equal(raw["kind"], "closed").to_numpy(zero_copy_only=False)
    for at, last_ns in _extremes(code[heard], received[heard], np.maximum):
        life = facts.lives[known[at]]
        life.heard_ns = max(life.heard_ns, last_ns)
    _absorb_notices(facts, normalized.batches[NOTICES_TOPIC], _rejected(normalized.batches[REJECTED_TOPIC]), names, taken=taken)
    facts.forget_life(_OF_NONE)
    if taken:
        place = _Places(chunk)
        for topic in (TICKS_TOPIC, BARS_TOPIC):
            batch = normalized.batches[topic]
            if batch.num_rows:
                _absorb_events(facts, batch, code[place.rows(batch)], known)
    # Copies: what a connection that is in the past was, is known.
    for name in facts.past_connections.keys() & set(known):
        facts.forget_life(name)


class _Places:
    """Which row of a chunk an event came from."""

    def __init__(self, chunk: Chunk) -> None:
        order = np.lexsort((chunk.offset, chunk.partition))
        self._order = order
        self._partition, self._offset = chunk.partition[order], chunk.offset[order]

    def rows(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        partition, offset = batch["raw_partition"].to_numpy(), batch["raw_offset"].to_numpy()
        found = np.empty(len(offset), np.int64)
        for some in np.unique(partition).tolist():
            mine = partition == some
            low, high = np.searchsorted(self._partition, [some, some + 1])
            found[mine] = self._order[low + np.searchsorted(self._offset[low:high], offset[mine])]
        return found


def _rejected(rejected: pa.RecordBatch) -> dict[tuple[int, int], bool]:
    """The places of records of which something was rejected: whether it was a whole page that could not be read, of which nothing came."""
    found: dict[tuple[int, int], bool] = {}
    for row in rejected.select(["reason", "raw_partition", "raw_offset"]).to_pylist() if rejected.num_rows else ():
        place = (row["raw_partition"], row["raw_offset"])
        found[place] = found.get(place, False) or row["reason"].startswith("page: ")
    return found


def _absorb_notices(facts: Facts, notices: pa.RecordBatch, rejected: Mapping[tuple[int, int], bool], names: Names, *, taken: bool) -> None:
    if not notices.num_rows:
        return
    for row in notices.select(["connection", "kind", "detail", "received_ns", "raw_partition", "raw_offset"]).to_pylist():
        life = facts.lives[row["connection"]]
        try:
            told = msgspec.json.decode(row["detail"]) if row["kind"] in _TELLING else None
        except UNREADABLE:
            told = None
        if not isinstance(told, dict):
            continue
        at_ns = row["received_ns"]
        _absorb_beside(facts, told, at_ns)
        if row["kind"] == "opened":
            life.opened_ns, life.topics = at_ns, [str(topic) for topic in told.get("topics", ())]
            life.names = dict(names.get((life.provider, life.feed), {}))
            for key in keys_of(life):
                facts.carries(row["connection"], key)
        elif row["kind"] == "subscribed":
            life.subscribed_ns, life.missing = at_ns, [str(topic) for topic in told.get("missing", ())]
        elif row["kind"] == "closed":
            life.closed_ns, life.by, life.reason = at_ns, _text(told, "by"), _text(told, "reason")
        elif row["kind"] == "fetched":
            life.fetched = True
            place = (row["raw_partition"], row["raw_offset"])
            if taken and not rejected.get(place, False):
                _absorb_read(life, row["detail"], spoiled=place in rejected)
            for key in keys_of(life):
                facts.carries(row["connection"], key)
        else:
            span = (int(told.get("from_ns", at_ns)), int(told.get("to_ns", at_ns)))
            if row["kind"] == "leapt":
                life.leapt = sorted({*life.leapt, span})
            else:
                life.refused = sorted({*life.refused, span})


def _absorb_beside(facts: Facts, told: dict[str, object], at_ns: int) -> None:
    names = told.get("beside")
    for name in names if isinstance(names, list) else ():
        # Named after its own opening: both lines write into one partition.
        if isinstance(name, str) and name in facts.lives:
            life = facts.lives[name]
            life.beside_ns = max(life.beside_ns, at_ns)
            facts.touched_lives.add(name)


def _absorb_read(life: Life, line: str, *, spoiled: bool) -> None:
    """One page more of a reading. `spoiled`: events of the page were rejected."""
    try:
        asked = asked_of(line)
    except UNREADABLE:
        return
    label = f"{asked.channel} {asked.symbol}".replace("\0", "")[:_LONGEST_REASON]
    by_id = asked.first is not None and asked.last is not None
    wanted = (label, asked.first or 0, asked.last or 0) if by_id else (label, asked.start_ns, asked.end_ns)
    begun = life.asking if by_id else life.reading
    if asked.page != next((entry[3] for entry in begun if entry[:3] == wanted), 0) + 1:
        return  # it has been here before, or one before it is missing
    others = [entry for entry in begun if entry[:3] != wanted]
    begun = others if asked.done else sorted([*others, (*wanted, asked.page)])
    if by_id:
        life.asking = begun
    else:
        life.reading = begun
    spoiled = spoiled or (asked.page > 1 and wanted in life.rejecting)
    rejecting = {entry for entry in life.rejecting if entry != wanted}
    life.rejecting = sorted(rejecting | {wanted} if spoiled and not asked.done else rejecting)
    history = HISTORIES.get(life.provider)
    if not asked.done or history is None:
        return
    if by_id:
        life.asked = sorted({*life.asked, wanted})
        life.rejected = sorted({entry for entry in life.rejected if entry != wanted} | ({wanted} if spoiled else set()))
        return
    # Of what happened after it was asked, or so shortly before that it may not have been there yet, a page says nothing.
    end_ns = min(asked.end_ns, asked.time_ms * NS_PER_MS - history.settled_ns(asked.channel))
    if spoiled:
        life.rejected = sorted({*life.rejected, (label, asked.start_ns, end_ns)})
    else:
        life.read = _with(life.read, (label, asked.start_ns, end_ns))


def _with(read: list[tuple[str, int, int]], new: tuple[str, int, int]) -> list[tuple[str, int, int]]:
    """One stretch more among those of all labels; what touches becomes one."""
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


def _text(told: dict[str, object], name: str) -> str:
    """A word of a notice's, as any store keeps it."""
    return str(told.get(name, "")).replace("\0", "")[:_LONGEST_REASON]


def _absorb_events(facts: Facts, batch: pa.RecordBatch, connection: npt.NDArray[np.int32], names: list[str]) -> None:
    keys, code = _keys(batch)
    named = np.array([len(key.symbol) <= _LONGEST_SYMBOL and "\0" not in key.symbol for key in keys])[code]
    if not named.all():
        batch, connection, code = batch.filter(pa.array(named)), connection[named], code[named]
    received = batch["received_ns"].to_numpy()
    both = connection.astype(np.int64) * len(keys) + code
    for at, first in _extremes(both, received, np.minimum):
        name, key = names[at // len(keys)], keys[at % len(keys)]
        life = facts.lives[name]
        label = f"{key.channel} {key.symbol}"
        if label not in life.first:
            facts.carries(name, key)
        life.first[label] = min(first, life.first.get(label, first))
    for at, last in _extremes(both, received, np.maximum):
        life, channel = facts.lives[names[at // len(keys)]], keys[at % len(keys)].channel
        life.last[channel] = max(last, life.last.get(channel, last))
    if "sequence" in batch.schema.names:
        _absorb_ages(facts, received - batch["ts_ns"].to_numpy(), received, connection, names)
    ids, start_ns, end_ns = _numbered(batch)
    live = np.array([not facts.lives[name].fetched for name in names])[connection]
    strange = live & (np.abs(start_ns - received) > _DRIFT_NS)
    start_ns, end_ns = np.where(strange, received, start_ns), np.where(strange, received, end_ns)
    counted = np.array([_contiguous(key) for key in keys])[code] & (ids >= 0)
    if counted.any():
        for at, run in _runs(code[counted], ids[counted], start_ns[counted], end_ns[counted]):
            join(facts.runs.setdefault(keys[at], []), run)
            facts.touched_runs.add(keys[at])


def _absorb_ages(
    facts: Facts, age: npt.NDArray[np.int64], received: npt.NDArray[np.int64], connection: npt.NDArray[np.int32], names: list[str]
) -> None:
    # Where an event has no time of its own, its receipt stands in: that says nothing.
    telling = (age != 0) & (np.abs(age) < _DRIFT_NS)
    age, received, connection = age[telling], received[telling], connection[telling]
    for at, least in _extremes(connection, age, np.minimum):
        life = facts.lives[names[at]]
        life.least_age_ns = least if life.least_age_ns is None else min(life.least_age_ns, least)
    # Of those received last the youngest: one alone may have been reported late.
    order = np.lexsort((age, -received, connection))
    some = connection[order]
    for at in order[np.flatnonzero(np.diff(some, prepend=-1))].tolist():
        life, last = facts.lives[names[connection[at]]], (int(received[at]), -int(age[at]))
        if last > (life.last_tick_ns, -life.last_age_ns):
            life.last_tick_ns, life.last_age_ns = last[0], -last[1]


def _keys(batch: pa.RecordBatch) -> tuple[list[Key], npt.NDArray[np.int64]]:
    """The keys of a batch, and of each row which one."""
    code = np.zeros(batch.num_rows, np.int64)
    columns = [batch[name].dictionary_encode() for name in Key._fields]
    for column in columns:
        code = code * len(column.dictionary) + column.indices.to_numpy()
    present, first, dense = np.unique(code, return_index=True, return_inverse=True)
    texts = [column.dictionary.to_pylist() for column in columns]
    at = [column.indices.to_numpy() for column in columns]
    keys = [Key(*(text[index[row]] for text, index in zip(texts, at, strict=True))) for row in first[: len(present)].tolist()]
    return keys, dense


def _channel(key: Key) -> Channel | None:
    return CHANNELS.get(key.provider, {}).get(key.feed, {}).get(key.channel)


def _contiguous(key: Key) -> bool:
    channel = _channel(key)
    return channel is not None and channel.contiguous


def _numbered(batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each event its number, -1 where it has none, and the time that it stands for: a bar's is its whole window."""
    ts_ns = batch["ts_ns"].to_numpy()
    if "sequence" in batch.schema.names:
        ids = batch["sequence"].fill_null(-1).to_numpy()
        return ids, ts_ns, ts_ns
    ids, end_ns = np.full(len(ts_ns), -1, np.int64), ts_ns.copy()
    columns = (batch[name].to_pylist() for name in ("channel", "interval", "final", "ts_ns"))
    for row, (channel, interval, final, start) in enumerate(zip(*columns, strict=True)):
        # A bar of another interval than its channel's would count on a grid of its own.
        if final and channel.endswith(f"_{interval}") and (window := window_of(interval, start)) is not None:
            ids[row], end_ns[row] = window
    return ids, ts_ns, end_ns


def window_of(interval: str, start_ns: int) -> tuple[int, int] | None:
    """The number of a bar's window and the time at which it ends; None for an interval without a grid of its own."""
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


def _extremes(
    code: npt.NDArray[np.int64] | npt.NDArray[np.int32], values: npt.NDArray[np.int64], choose: np.ufunc
) -> Iterator[tuple[int, int]]:
    """Of each code the least or the greatest of its values."""
    if not len(code):
        return
    order = np.argsort(code, kind="stable")
    some = code[order]
    begin = np.flatnonzero(np.concatenate([[True], some[1:] != some[:-1]]))
    yield from zip(some[begin].tolist(), choose.reduceat(values[order], begin).tolist(), strict=True)


def _runs(
    code: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], start_ns: npt.NDArray[np.int64], end_ns: npt.NDArray[np.int64]
) -> Iterator[tuple[int, Run]]:
    """Neighbouring ids of each code as one run."""
    order = np.lexsort((start_ns, ids, code))
    # Of copies of one event that tell different times the earliest holds, here as where runs join: whatever chunks they came in.
    order = order[np.concatenate([[True], (np.diff(code[order]) != 0) | (np.diff(ids[order]) != 0)])]
    code, ids, start_ns, end_ns = code[order], ids[order], start_ns[order], end_ns[order]
    begin = np.flatnonzero(np.concatenate([[True], (code[1:] != code[:-1]) | (ids[1:] - ids[:-1] > 1)]))
    last = np.concatenate([begin[1:], [len(ids)]]) - 1
    for a, b in zip(begin.tolist(), last.tolist(), strict=True):
        yield int(code[a]), Run(int(ids[a]), int(ids[b]), int(start_ns[a]), int(end_ns[b]))


def join(runs: list[Run], new: Run) -> None:
    """Put a run among those that are known, sorted and apart; what touches becomes one."""
    at = bisect_right(runs, new.first, key=attrgetter("first"))
    low = at - 1 if at and runs[at - 1].last >= new.first - 1 else at
    high = at
    while high < len(runs) and runs[high].first <= new.last + 1:
        high += 1
    if low < high:
        old = runs[low:high]
        # Of two copies of one event that tell different times, the earlier holds, whichever came first.
        edges = sorted([(run.first, run.first_ns) for run in (*old, new)])
        ends = sorted([(-run.last, run.last_ns) for run in (*old, new)])
        new = Run(edges[0][0], -ends[0][0], edges[0][1], ends[0][1])
    runs[low:high] = [new]


def united(one: Past, other: Past) -> Past:
    """Two pasts as one. Of neither is anything archived."""
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


def renamed(facts: Facts, provider: str, feed: str, old: str, new: str) -> Facts:
    """The facts as they would be had a symbol always had its new name. What differs is touched; the facts given stay as they are.

    Of both names nothing is archived."""
    runs = {key: list(found) for key, found in facts.runs.items()}
    touched: set[Key] = set()
    for key in [key for key in runs if (key.provider, key.feed, key.symbol) == (provider, feed, old)]:
        right = key._replace(symbol=new)
        for run in runs.pop(key):
            join(runs.setdefault(right, []), run)
        touched.add(right)
    pasts, moved = dict(facts.pasts), set[Key]()
    for key in [key for key in pasts if (key.provider, key.feed, key.symbol) == (provider, feed, old)]:
        right = key._replace(symbol=new)
        pasts[right] = united(pasts.pop(key), pasts.get(right, NO_PAST))
        moved.add(right)
    mine = {name: life for name, life in facts.lives.items() if (life.provider, life.feed) == (provider, feed)}
    changed = {name: other for name, life in mine.items() if (other := _life_renamed(life, old, new)) != life}
    found = Facts.of(runs, {**facts.lives, **changed}, pasts, facts.past_connections)
    found.touched_runs, found.touched_lives, found.touched_pasts = touched, set(changed), moved
    return found


def _life_renamed(life: Life, old: str, new: str) -> Life:
    """A connection whose records have a symbol under its new name."""

    def right(label: str) -> str:
        channel, _, symbol = label.partition(" ")
        return f"{channel} {new}" if symbol == old else label

    def spans(entries: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        return sorted({(right(label), first, last) for label, first, last in entries})

    def begun(entries: Iterable[tuple[str, int, int, int]]) -> list[tuple[str, int, int, int]]:
        pages: dict[tuple[str, int, int], int] = {}
        for label, first, last, count in entries:
            wanted = (right(label), first, last)
            pages[wanted] = max(count, pages.get(wanted, 0))
        return sorted((*wanted, count) for wanted, count in pages.items())

    first: dict[str, int] = {}
    for label, at_ns in life.first.items():
        first[right(label)] = min(at_ns, first.get(right(label), at_ns))
    read: list[tuple[str, int, int]] = []
    for entry in spans(life.read):
        read = _with(read, entry)
    subscriptions = [PROVIDERS[life.provider].subscription(life.feed, topic, life.names) for topic in life.topics]
    asked_for = any(found is not None and found[1] == old for found in subscriptions)
    return msgspec.structs.replace(
        life,
        names={**life.names, new.replace("/", ""): new} if asked_for else life.names,
        first=first,
        asked=spans(life.asked),
        read=read,
        rejected=spans(life.rejected),
        asking=begun(life.asking),
        reading=begun(life.reading),
        rejecting=spans(life.rejecting),
    )


# ---- findings out


def intervals(facts: Facts, key: Key) -> list[Interval]:
    """The intervals of a key in order of time, without those that are archived."""
    return follow(key, facts.carried(key), facts.pasts.get(key, NO_PAST), facts.runs.get(key, ()))


def follow(key: Key, lives: Sequence[Life], past: Past, runs: Sequence[Run]) -> list[Interval]:
    """What follows for a key from these facts, in order of time."""
    heard = list(_by_lives(key, [life for life in lives if not life.fetched], past))
    read = apart([*past.read, *(span for life in lives for span in spans_of(life.read, key))])
    reading = [span for life in lives for span in spans_of((entry[:3] for entry in life.reading), key)]
    rejected = [*past.rejected, *(span for life in lives for span in spans_of(life.rejected, key))]
    if not runs:
        found: Iterable[Interval] = _reconciled(heard, read)
        if not has_come(key, lives, past):
            found = (replace(one, state="unprovable", evidence=_NEVER) if one.state == "reconciled" else one for one in found)
        return list(_joined(_being_filled(_refused(found, rejected), reading)))
    # Numbers and times may differ in order.
    first_ns, last_ns = min(runs[0].first_ns, runs[0].last_ns), max(runs[-1].first_ns, runs[-1].last_ns)
    # Before the first number and after the last, only the next one could tell.
    heard = [
        replace(one, evidence="subscribed and heard; the next event's number will tell") if one.state in COVERED else one
        for one in heard
        if one.start_ns < first_ns or one.end_ns > last_ns
    ]
    around = list(_refused(_reconciled(heard, read), rejected))
    asked = [*past.asked, *(span for life in lives for span in spans_of(life.asked, key))]
    asking = [span for life in lives for span in spans_of((entry[:3] for entry in life.asking), key)]
    by_ids = _being_filled(_by_ids(key, runs, asked, read, asking, rejected), reading)
    return list(_joined([*_between(around, -ONGOING, first_ns), *by_ids, *_between(around, last_ns, ONGOING)]))


def has_come(key: Key, lives: Iterable[Life], past: Past) -> bool:
    """Whether an event of a key has ever come."""
    return past.heard or any(f"{key.channel} {key.symbol}" in life.first for life in lives)


def apart(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of time that have a length, in order; what touches is one."""
    joined: list[tuple[int, int]] = []
    for start_ns, end_ns in sorted(span for span in spans if span[0] < span[1]):
        if joined and start_ns <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end_ns))
        else:
            joined.append((start_ns, end_ns))
    return joined


def _reconciled(found: Sequence[Interval], read: Sequence[tuple[int, int]]) -> Iterator[Interval]:
    """What was read of the provider's history, and of `found` what lies outside of it."""
    edges = [-ONGOING, *(edge for both in read for edge in both), ONGOING]
    outside = [_between(found, start_ns, end_ns) for start_ns, end_ns in zip(edges[::2], edges[1::2], strict=True)]
    evidence = "the provider's history was read to its end: what it holds is there"
    inside = (Interval(start_ns, end_ns, "reconciled", evidence) for start_ns, end_ns in read)
    yield from sorted(chain(*outside, inside), key=attrgetter("start_ns", "end_ns"))


def _refused(found: Iterable[Interval], rejected: Sequence[tuple[int, int]]) -> Iterator[Interval]:
    """Gaps that lie in what was read, and of which events were rejected, stay: asking again brings the same."""
    for one in found:
        if one.state == "open" and any(start_ns <= one.start_ns and one.end_ns <= end_ns for start_ns, end_ns in rejected):
            yield replace(one, state="unrecoverable", evidence=f"{one.evidence}; {_REJECTED}")
        else:
            yield one


def _joined(found: Iterable[Interval]) -> Iterator[Interval]:
    """One after the other without a hole: of what lies between two, nothing is known."""
    at_ns: int | None = None
    for one in found:
        if at_ns is not None and one.start_ns > at_ns:
            yield Interval(at_ns, one.start_ns, "open", "no connection listened")
        yield one
        at_ns = one.end_ns


def _between(found: Iterable[Interval], start_ns: int, end_ns: int) -> Iterator[Interval]:
    """The parts of intervals inside a stretch of time."""
    for one in found:
        if one.start_ns < end_ns and one.end_ns > start_ns:
            whole = start_ns <= one.start_ns and one.end_ns <= end_ns
            yield one if whole else replace(one, start_ns=max(one.start_ns, start_ns), end_ns=min(one.end_ns, end_ns))


def spans_of(known: Iterable[tuple[str, int, int]], key: Key) -> Iterator[tuple[int, int]]:
    """Those of a key: from and to."""
    return ((first, last) for label, first, last in known if label == f"{key.channel} {key.symbol}")


def _being_filled(found: Iterable[Interval], reading: Sequence[tuple[int, int]]) -> Iterator[Interval]:
    """Gaps that lie in what is being read are being repaired."""
    for one in found:
        if one.state == "open" and any(start_ns <= one.start_ns and one.end_ns <= end_ns for start_ns, end_ns in reading):
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
    channel = _channel(key)
    bars = channel is not None and channel.kind == "bar"  # a bar's number is its window's: its time says the same
    before: Run | None = None
    for run in runs:
        if before is not None:
            # Ids and times may differ in order: a hole reaches over both its edges, and one wrong time moves no other interval.
            start_ns, end_ns = sorted((before.last_ns, run.first_ns))
            first, last = before.last + 1, run.first - 1
            # History is asked for ids, and for bars by the times of their windows.
            low, high = (start_ns // NS_PER_MS, end_ns // NS_PER_MS - 1) if bars else (first, last)
            gone = any(some <= low and high <= other for some, other in asked)
            gone = gone or any(some <= start_ns and end_ns <= other for some, other in read)
            # Numbers are no times: a pair of the ones lies in no pair of the others.
            spoiled = any(some <= least and most <= other for some, other in rejected for least, most in ((low, high), (start_ns, end_ns)))
            state: State = "open"
            what = f"{_count(first, last, bars)} missing"
            if spoiled:
                state, what = "unrecoverable", f"{what}; {_REJECTED}"
            elif gone:
                state, what = "unrecoverable", f"{what}, and not in the provider's history"
            elif any(some <= low and high <= other for some, other in asking):
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


def _by_lives(key: Key, lives: Sequence[Life], past: Past) -> Iterator[Interval]:
    joined = one_after_another([*(span for _, span in parted(key, lives, past)), *chain(*spans_before(lives, past).values())])
    for at, span in enumerate(joined):
        if at:
            yield Interval(joined[at - 1].end_ns, span.start_ns, "open", joined[at - 1].ended)
        yield Interval(span.start_ns, span.end_ns, "unprovable", "subscribed and heard: nothing to count by")
    opened = [opened_ns for opened_ns in (past.opened_ns, *(life.opened_ns for life in lives)) if opened_ns]
    if not joined and opened:
        yield Interval(min(opened), ONGOING, "open", "asked for, and neither confirmed nor heard")
    if joined and all(has_ended(life, lives, past) for life in lives):
        yield Interval(joined[-1].end_ns, ONGOING, "open", joined[-1].ended)


def one_after_another(spans: Iterable[Span]) -> list[Span]:
    """In order; what touches is one, and ended as the last of it."""
    joined: list[Span] = []
    for span in sorted(spans, key=attrgetter("start_ns")):
        if joined and span.start_ns <= joined[-1].end_ns:
            last = max(span, joined[-1], key=attrgetter("end_ns", "ended"))
            joined[-1] = Span(joined[-1].start_ns, last.end_ns, last.ended)
        else:
            joined.append(span)
    return joined


def has_ended(life: Life, lives: Iterable[Life], past: Past = NO_PAST) -> bool:
    """Whether a connection is closed, or has ended without a word: a later one of the key lives, or has outlived it."""
    if life.closed_ns:
        return True
    known_ns = max(life.heard_ns, life.beside_ns)
    others = chain(((other.opened_ns, other.closed_ns or ONGOING) for other in lives), past.outlived)
    return any(opened_ns > life.opened_ns and closed_ns > known_ns for opened_ns, closed_ns in others)


def place_of(life: Life) -> str:
    """The line of a connection, and the partition: there one follows another, and offsets say which."""
    return f"{life.partition} {life.line}"


_BACK: Final = "the clock was set back: how long nobody listened is not known"


def parted(key: Key, lives: Sequence[Life], past: Past) -> Iterator[tuple[Life, Span]]:
    """When connections listened, without what two that followed one another on a line both claim.

    That comes of a clock that was set back: then nobody knows how long nobody listened."""
    lines: dict[str, list[Life]] = {}
    for life in lives:
        lines.setdefault(place_of(life), []).append(life)
    for place, line in lines.items():
        # One that takes over opens before the old one ends: those did not follow one another.
        ended = sorted([*past.ended.get(place, ()), *((life.last_offset, end_of(key, life)[0]) for life in line)])
        begun = sorted((life.first_offset, begin_of(life)) for life in line)
        latest_ns = list(accumulate((end_ns for _, end_ns in ended), max, initial=0))
        earliest_ns = list(accumulate((start_ns for _, start_ns in reversed(begun)), min, initial=ONGOING))[::-1]
        for life in line:
            not_before_ns = latest_ns[bisect_left(ended, (life.first_offset,))]
            until_ns = earliest_ns[bisect_left(begun, (life.last_offset + 1,))]
            for span in _heard(key, life):
                start_ns, end_ns = max(span.start_ns, not_before_ns), min(span.end_ns, until_ns)
                if start_ns <= end_ns:
                    yield life, Span(start_ns, end_ns, span.ended if end_ns == span.end_ns else _BACK)


def spans_before(lives: Iterable[Life], past: Past) -> dict[str, list[Span]]:
    """When the connections of the past listened, by line, without what those that follow them claim."""
    found: dict[str, list[Span]] = {}
    for place, spans in past.spans.items():
        after = past.ended[place][-1][0]
        until_ns = min((begin_of(life) for life in lives if place_of(life) == place and life.first_offset > after), default=ONGOING)
        cut = (span if span.end_ns <= until_ns else Span(span.start_ns, until_ns, _BACK) for span in spans if span.start_ns <= until_ns)
        found[place] = list(cut)
    return found


def begin_of(life: Life) -> int:
    """When a connection was opened, as far as that is known."""
    return life.opened_ns or life.subscribed_ns or ONGOING


def _heard(key: Key, life: Life) -> Iterator[Span]:
    """When a connection listened to a key, without what was received and could not be kept."""
    confirmed = [life.subscribed_ns] if life.subscribed_ns and not _unconfirmed(key, life) else []
    first = life.first.get(f"{key.channel} {key.symbol}")
    starts = confirmed + ([first] if first is not None else [])
    if not starts:
        return
    start_ns = min(starts)
    end_ns, ended = end_of(key, life)
    if (late_ns := life.last_age_ns - (life.least_age_ns or 0)) > _LATE_NS:
        # We read behind: what lay between went down with the connection.
        end_ns, ended = max(start_ns, end_ns - late_ns), f"{ended}; what came last was {late_ns / NS_PER_S:,.1f} s late"
    holes = [(*span, "received, and could not be kept: stream and spool were full") for span in life.refused]
    forgotten = [*life.forgotten, (life.forgotten_since_ns, ONGOING)] if life.forgotten_since_ns else life.forgotten
    holes += [(*span, "received, and lost by the stream before every store had it") for span in forgotten]
    holes += [(*span, "the clock leapt ahead: of this time nothing is known") for span in life.leapt]
    for hole_from, hole_to, why in sorted(holes):
        if hole_to < start_ns or hole_from > end_ns:
            continue
        if hole_from >= start_ns:
            yield Span(start_ns, hole_from, why)
        start_ns = hole_to + 1  # a hole of at least a nanosecond, so that nothing joins what it parts
    if start_ns <= end_ns:
        yield Span(start_ns, end_ns, ended)


def _unconfirmed(key: Key, life: Life) -> bool:
    provider = PROVIDERS[life.provider]
    return any(provider.subscription(life.feed, topic, life.names) == (key.channel, key.symbol) for topic in life.missing)


def end_of(key: Key, life: Life) -> tuple[int, str]:
    """Until when a connection's silence meant that nothing happened, and what ended it."""
    if not life.closed_ns:
        return max(life.heard_ns, life.beside_ns), "the connection ended without a word, as when the process was killed"
    if life.reason.startswith("mute: no "):
        channel = life.reason.removeprefix("mute: no ").partition(" for ")[0]
        if channel == f"channel {key.channel}":
            return life.last.get(key.channel, life.opened_ns), life.reason
        # A socket that is mute in all is given up for the channel that is missed first: the others were heard as long as anything was.
        return max(life.last.values(), default=life.opened_ns), life.reason
    if life.by == "network":
        return life.heard_ns, life.reason  # what was on its way when it broke is lost
    return life.closed_ns, f"closed by {life.by}: {life.reason or 'no reason given'}"


# ---- answers


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether one key is complete over a stretch of time."""

    key: Key
    verdict: Literal["complete", "incomplete", "unprovable"]
    #: What is there, and what is not, within the stretch; in order.
    intervals: tuple[Interval, ...]

    @property
    def holes(self) -> tuple[Interval, ...]:
        return tuple(one for one in self.intervals if one.state not in COVERED)


def answer(key: Key, found: Iterable[Interval], start_ns: int, end_ns: int) -> Answer:
    """What intervals of a key say of [start_ns, end_ns). What lies before the first and after the last is a hole too."""
    # A hole keeps its ids, whatever part of it is asked for: which of them lie inside, nobody knows.
    known = [
        replace(one, start_ns=max(one.start_ns, start_ns), end_ns=min(one.end_ns, end_ns)) for one in found if _in(one, start_ns, end_ns)
    ]
    inside: list[Interval] = []
    at_ns = start_ns
    for one in sorted(known, key=attrgetter("start_ns", "end_ns")):
        if one.start_ns > at_ns:
            inside.append(Interval(at_ns, one.start_ns, "open", "nothing is known of it"))
        inside.append(one)
        at_ns = max(at_ns, one.end_ns)
    if at_ns < end_ns:
        inside.append(Interval(at_ns, end_ns, "open", "nothing is known of it"))
    states = {one.state for one in inside}
    verdict: Literal["complete", "incomplete", "unprovable"]
    verdict = "incomplete" if states - COVERED else "unprovable" if "unprovable" in states else "complete"
    return Answer(key, verdict, tuple(inside))


def _in(one: Interval, start_ns: int, end_ns: int) -> bool:
    """Whether some of an interval lies in [start_ns, end_ns); one without length where it stands."""
    return one.start_ns < end_ns and (one.end_ns > start_ns or one.start_ns == one.end_ns == start_ns)
