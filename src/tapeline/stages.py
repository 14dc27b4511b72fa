"""The stages that read and commit, each a few lines around one loop: normalize interprets, store keeps, ledger finds what is complete."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from random import Random
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapeline import flow
from tapeline.backoff import backoff
from tapeline.completeness import Facts, absorb, forget
from tapeline.errors import Busy, Unavailable
from tapeline.folding import Account
from tapeline.monitor.health import written_to
from tapeline.monitor.status import Latencies, Rate, StatusFile
from tapeline.names import KnownNames
from tapeline.providers.normalizing import Count, Decode, Events, Names, Normalized, Reject, normalize
from tapeline.records import NORMALIZED_TOPICS, NOTICES_TOPIC, NS_PER_S, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk, Topic
from tapeline.shortening import TAKEN_EVERYWHERE, larger, shortened
from tapeline.stores import Store
from tapeline.stores.ledger import Ledger
from tapeline.streams import Member, PartitionLost, Stream
from tapeline.streams.lives import ReadOfLives, crossed, rows_of
from tapeline.taken import Taken
from tapeline.upkeep import Upkeep

log = logging.getLogger(__name__)

#: The consumer group of the normalize stage.
NORMALIZE: Final = "normalize"
#: The group of the ledger, which reads the raw topic as normalize does.
LEDGER: Final = "ledger"
_CHUNK_ROWS: Final = 24_576
_NORMALIZE_REST_S: Final = 0.0005
_STORE_REST_S: Final = 0.05
#: How often a store is kept to its days and its size.
_TIDY_NS: Final = 3_600 * NS_PER_S
_DAY_NS: Final = 86_400 * NS_PER_S
#: The ledger is in no hurry: the more comes together, the less it costs.
_LEDGER_REST_S: Final = 0.25
_LEDGER_FLUSH_NS: Final = NS_PER_S
#: So often a moment is waited for in which nothing is written.
_TRIES_AT_REST: Final = 20
#: So often a stage that finds nothing looks whether the stream ends before its place.
_LOOK_NS: Final = 60 * NS_PER_S
#: Of lives that began anew, so many are shown.
_MOST_TOLD: Final = 16
#: Where so many records came at once there are probably more: no rest before the next look.
#: By more than this the youngest tick tells of a wrong clock; from the other on, of data that is meant to be late.
_CLOCK_OFF_NS: Final = NS_PER_S
_OF_HISTORY_NS: Final = 600 * NS_PER_S
_MORE_ROWS: Final = 1_000


class Forgotten:
    """What a stage has to say where its stream has lost what the stage had not read."""

    def __init__(self, stream: Stream, group: str, clock: Callable[[], int]) -> None:
        self._stream, self._group, self._clock = stream, group, clock
        #: Topic, partition and when (ns) it was noticed, of each time; the last ones.
        self.told: list[dict[str, Any]] = []
        #: Topics and partitions in which the stage stands behind the end.
        self.ahead: list[tuple[str, int]] = []
        self._due_ns: dict[Topic, int] = {}

    def look(self, topic: Topic, positions: Mapping[int, int]) -> None:
        """Once a minute, where a stage finds nothing to read: it may stand behind the end of a stream that began anew below it.

        An end of 0 says nothing: retention has removed everything, or nothing has been written yet."""
        if self._clock() < self._due_ns.get(topic, 0):
            return
        self._due_ns[topic] = self._clock() + _LOOK_NS
        ends = self._stream.ends(topic)
        ahead = [(topic.name, partition) for partition, position in sorted(positions.items()) if 0 < ends.get(partition, 0) < position]
        for name, partition in ahead:
            log.error(
                "%s %d ends before the place of %s: it began anew while the clock was set back, or it is an older copy. New records are "
                "skipped until its numbers are above that place. Set the clock right, then start Tapeline again: what comes from then on "
                "is kept. `tapeline gaps` shows what is missing.",
                name,
                partition,
                self._group,
            )
        self.ahead = [*(place for place in self.ahead if place[0] != topic.name), *ahead]

    def met(self, chunk: Chunk) -> list[int]:
        """Look at a chunk before it is used. The partitions that go on in another life than they were read in until now."""
        found = crossed(chunk, self._stream.lives)
        for partition in found:
            log.error(
                "%s %d: the stream has begun anew: what it held is gone, and of that what %s had not read yet is lost. It goes on with "
                "what has come since; everything from now on is kept. `tapeline gaps` shows what is missing, and repair fills what a "
                "provider still has.",
                chunk.topic.name,
                partition,
                self._group,
            )
            self.told = [*self.told, {"topic": chunk.topic.name, "partition": partition, "noticed_ns": self._clock()}][-_MOST_TOLD:]
        return found


class Normalize:
    """Raw records in; ticks, bars, notices and rejects out, with the position, in one commit."""

    def __init__(
        self,
        stream: Stream,
        decoders: Mapping[str, Decode],
        status: StatusFile,
        clock: Callable[[], int] = time.time_ns,
        *,
        name: str = "",
        names: Names = MappingProxyType({}),
    ) -> None:
        """`name`: the worker's, as in `Stream.join`. `names`: the configured ones."""
        self._stream = stream
        self._names = KnownNames(stream, names)
        self._join: Callable[[], Member] = lambda: stream.join(NORMALIZE, RAW_TOPIC, name)
        self._member: Member | None = None
        self._decoders = decoders
        self._status = status
        self._clock = clock
        self._forgotten = Forgotten(stream, NORMALIZE, clock)
        self._read = ReadOfLives(stream, NORMALIZE)
        self._latencies: dict[str, Latencies] = {}
        self._rates: dict[str, Rate] = {}
        self._ages: dict[str, int] = {}  # of the youngest tick of each provider since the last report

    def step(self) -> bool:
        self._status.maybe(self._report)
        if self._member is None:  # here, not at the start: a stream that is away is waited for as at any other time
            self._member = self._join()
        chunk = self._member.poll(_CHUNK_ROWS)
        if chunk is None:
            return False
        self._forgotten.met(chunk)
        normalized = normalize_all(chunk, self._decoders, names=self._names.of(chunk))
        outputs = [(topic, _fitting(self._stream, topic, normalized.batches[topic])) for topic in NORMALIZED_TOPICS]
        try:
            self._member.commit(chunk, outputs, {**totals_of(normalized.counts), **self._read.of(chunk)})
        except PartitionLost as lost:
            log.info("%s Nothing was written here; they go on from the same records.", lost)
            return True
        self._observe(normalized)
        return True

    def _observe(self, normalized: Normalized) -> None:
        ticks = normalized.batches[TICKS_TOPIC]
        late = self._clock() - ticks["received_ns"].to_numpy()
        for (provider, _), count in normalized.counts.items():
            self._rates.setdefault(provider, Rate(self._clock)).add(count.ticks)
        for provider in {provider for provider, _ in normalized.counts}:
            ages = ticks["latency_ns"]
            mine = late
            if len({name for name, _ in normalized.counts}) > 1:
                of_it = np.array(ticks["provider"].to_pylist(), dtype=object) == provider
                mine, ages = late[of_it], ages.filter(pa.array(of_it))
            if len(mine):
                self._latencies.setdefault(provider, Latencies(self._clock)).add(mine)
            if (youngest_ns := pc.min(ages).as_py()) is not None:
                self._ages[provider] = min(youngest_ns, self._ages.get(provider, youngest_ns))

    def _report(self) -> dict[str, Any]:
        return {
            "partitions": list(self._member.partitions) if self._member is not None else [],
            "providers": {
                name: {
                    "ticks_per_s": self._rates[name].take(),
                    "p50_ms": (found := self._latencies.get(name)) and found.ms(0.50),
                    "p99_ms": found and found.ms(0.99),
                    "clock_off_s": _off_s(self._ages.pop(name, None)),
                }
                for name in self._rates
            },
            "forgotten": self._forgotten.told,
            "ahead": self._forgotten.ahead,
        }

    def finish(self) -> None:
        self._status.write(self._report())
        if self._member is not None:
            self._member.close()


def _fitting(stream: Stream, topic: Topic, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows that the stream takes. It is asked for its bound where a row may be too large alone, and each time: the bound may be changed."""
    if topic not in (NOTICES_TOPIC, REJECTED_TOPIC) or not len(larger(topic, batch, TAKEN_EVERYWHERE)):
        return batch
    found = shortened(topic, batch, stream.largest(topic))
    if (left := batch.nbytes - found.nbytes) > 0:
        log.warning(
            "%s takes no row of the size of some that were made: %d bytes are left out of them. Each says how many and where it is whole.",
            topic.name,
            left,
        )
    return found


def _off_s(age_ns: int | None) -> float | None:
    """How far the clock that received a tick is ahead of the provider's; None where that cannot be told, or is what a network takes.

    A feed that is late by its plan, or a page of history, is older than any clock is wrong."""
    return age_ns / NS_PER_S if age_ns is not None and _CLOCK_OFF_NS < abs(age_ns) < _OF_HISTORY_NS else None


def normalize_all(chunk: Chunk, decoders: Mapping[str, Decode], *, copies: bool = False, names: Names = MappingProxyType({})) -> Normalized:
    """As `normalize`; but a record that makes a decoder fail is found by halving, and rejected alone."""
    try:
        return normalize(chunk, decoders, copies=copies, names=names)
    except MemoryError:
        raise  # it says nothing of the records
    except Exception as error:  # noqa: BLE001 whatever a decoder raises: one record must not stop all that come after it
        if chunk.rows == 1:
            reason = f"the decoder failed: {type(error).__name__}: {error}"
            log.error("Raw record %d of partition %d is rejected: %s", chunk.offset[0], chunk.partition[0], reason)
            return normalize(chunk, dict.fromkeys(decoders, _refuse(reason)), copies=copies)
    half = chunk.rows // 2
    left = normalize_all(chunk.slice(0, half), decoders, copies=copies, names=names)
    right = normalize_all(chunk.slice(half, chunk.rows), decoders, copies=copies, names=names)
    counts = {key: left.counts.get(key, Count()) + right.counts.get(key, Count()) for key in {**left.counts, **right.counts}}
    return Normalized({topic: pa.concat_batches([left.batches[topic], right.batches[topic]]) for topic in left.batches}, counts)


def _refuse(reason: str) -> Decode:
    """A decoder that rejects every frame."""

    def decode(feed: str, frames: Iterable[tuple[int, bytes]], events: Events) -> None:
        del feed
        for row, frame in frames:
            events.seen += 1
            events.rejects.add(Reject(reason, frame), row, 0)

    return decode


def totals_of(counts: Mapping[tuple[str, str], Count]) -> dict[str, int]:
    """`binance/spot/ticks` and so on: the accounting as the stream keeps it."""
    return {
        f"{provider}/{feed}/{part.name}": getattr(count, part.name) for (provider, feed), count in counts.items() for part in fields(Count)
    }


class KeepIn:
    """Normalized topics into one store, each from the position that the store itself holds."""

    def __init__(
        self,
        stream: Stream,
        store: Store,
        status: StatusFile,
        stop: threading.Event,
        *,
        group: str,
        flush_rows: int,
        flush_s: float,
        tidy: Callable[[], None] | None = None,
        upkeep: Upkeep | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`tidy`: what the store wants done once an hour, between two writes; what it raises is tried again an hour later. `upkeep`: what
        is done beside the writes."""
        self._upkeep = upkeep
        self._tidy, self._tidy_due_ns = tidy, clock()
        self._stream, self._store, self._status, self._stop, self._clock = stream, store, status, stop, clock
        self._group = group
        self._flush_rows, self._flush_ns = flush_rows, int(flush_s * NS_PER_S)
        self._read: dict[Topic, dict[int, int]] = {}
        self._held: dict[Topic, list[Chunk]] = {topic: [] for topic in NORMALIZED_TOPICS}
        self._since: dict[Topic, int] = {}
        self._said: dict[Topic, int] = {}  # the total of what was read, as the stream should have it
        self._tried: dict[Topic, int] = {}  # and as it will be once it has heard the next word
        self._unsaid: dict[Topic, Chunk] = {}
        self._rate = Rate(clock)
        self._forgotten = Forgotten(stream, group, clock)

    def step(self) -> bool:
        if self._read:
            self._status.maybe(self._report)
        worked = False
        for topic in list(self._unsaid):  # the disk was full, or the server away, just after the store had written
            self._tell(topic)
        if not self._read:  # here, not at the start: a store that is away is waited for as at any other time
            self._read = {topic: self._begin(topic) for topic in NORMALIZED_TOPICS}
        for topic in NORMALIZED_TOPICS:
            held = self._held[topic]
            rows = sum(chunk.rows for chunk in held)
            chunk = self._stream.read(topic, self._read[topic], self._flush_rows - rows) if rows < self._flush_rows else None
            if chunk is None and not held:
                self._forgotten.look(topic, self._read[topic])
            if chunk is not None:
                self._forgotten.met(chunk)
                self._since.setdefault(topic, self._clock())
                held.append(chunk)
                self._read[topic] |= chunk.next
                rows += chunk.rows
                worked = worked or chunk.rows >= _MORE_ROWS or self._stop.is_set()  # at the end, until nothing comes
            full = rows >= self._flush_rows
            old = held and self._clock() - self._since[topic] >= self._flush_ns
            if full or old or (held and self._stop.is_set() and chunk is None):
                self._flush(topic)
                worked = True
        self._tidy_up()
        return worked

    def _tidy_up(self) -> None:
        """What is done now and again, while nothing has to be written at once."""
        if self._stop.is_set():
            return
        if self._upkeep is not None:
            self._upkeep.look()
            if self._upkeep.running:
                return  # one after the other: both change the store's files
        if self._tidy is not None and self._clock() >= self._tidy_due_ns:
            self._tidy_due_ns = self._clock() + _TIDY_NS
            try:
                self._tidy()
            except (Busy, Unavailable) as error:
                log.warning("%s It is tried again in an hour.", error)

    def _begin(self, topic: Topic) -> dict[int, int]:
        """Where the store is. It may have been killed between a write and its word, and others wait to hear how far it is."""
        positions = self._store.totals(topic).positions
        self._say(topic, positions, lambda _: unsaid(self._stream, self._group, topic, positions))
        return positions

    def _flush(self, topic: Topic) -> None:
        chunk = Chunk.join(self._held[topic])
        written = self._store.write(chunk)
        self._rate.add(written.rows)
        self._held[topic].clear()
        del self._since[topic]
        self._unsaid[topic] = chunk
        self._tell(topic)

    def _tell(self, topic: Topic) -> None:
        """Say what the store has written. Of a stream that has lost its counts, only what was written since belongs to the new ones."""
        chunk = self._unsaid[topic]
        self._say(topic, chunk.next, lambda lost: rows_of(chunk, self._stream.lives(topic)) if lost else chunk.rows)
        del self._unsaid[topic]

    def _say(self, topic: Topic, positions: Mapping[int, int], rows: Callable[[bool], int]) -> None:
        """Tell the stream how far it is and, where it counts records, how many more there are; `rows` hears whether the count is lost.

        The stream may lose it between the look and the word, or take the word and not be heard: so the look is repeated."""
        if not self._stream.counts_records:
            self._stream.acknowledge(self._group, topic, positions)
            return
        said = False
        while not said:
            has = self._stream.totals(self._group).get(f"{topic.table}/read")
            if has is not None and self._said.get(topic, 0) < has == self._tried.get(topic):
                said = True
            else:
                more = rows(has is None or has < self._said.get(topic, 0))
                self._tried[topic] = (has or 0) + more
                said = self._stream.acknowledge(self._group, topic, positions, (has, more))
        self._said[topic] = self._tried.pop(topic)

    def _report(self) -> dict[str, Any]:
        kept = {topic.table: self._store.totals(topic) for topic in NORMALIZED_TOPICS}
        return {
            "rows_per_s": self._rate.take(),
            "tables": {table: totals.parts for table, totals in kept.items()},
            "forgotten": self._forgotten.told,
            "ahead": self._forgotten.ahead,
            **({"upkeep": self._upkeep.report()} if self._upkeep is not None else {}),
        }

    def finish(self) -> None:
        if self._upkeep is not None:
            self._upkeep.stop()
        self._status.write(self._report())


def unsaid(stream: Stream, group: str, topic: Topic, positions: Mapping[int, int]) -> int:
    """How many records a store has read up to positions of its own without having said so to the stream.

    A store that has never said anything counts as having read all that does not wait for it."""
    for _ in range(_TRIES_AT_REST):
        said = f"{topic.table}/read" in stream.totals(group)
        written = written_to(stream, topic)
        rest = sum(stream.waiting(topic, positions).values())
        open_ = sum(stream.waiting(topic, stream.positions(group, topic)).values()) if said else written
        if written == written_to(stream, topic):  # nothing has come in between: the numbers are of one moment
            return max(0, open_ - rest)
    return 0


class KeepLedger:
    """The raw topic into the ledger of what is complete, from the position that the ledger itself holds."""

    def __init__(
        self,
        stream: Stream,
        ledger: Ledger,
        decoders: Mapping[str, Decode],
        status: StatusFile,
        stop: threading.Event,
        clock: Callable[[], int] = time.time_ns,
        *,
        stores: Sequence[str] = (),
        names: Names = MappingProxyType({}),
        keep_days: int = 0,
    ) -> None:
        """`stores`: the groups of those that have to have an event before it is called there. `names`: the configured ones.

        `keep_days`: for how long what is known is kept; 0: for ever."""
        self._keep_ns, self._prune_due_ns = keep_days * _DAY_NS, 0
        self._names = KnownNames(stream, names)
        self._stream, self._ledger, self._decoders, self._status, self._stop, self._clock = stream, ledger, decoders, status, stop, clock
        self._taken = Taken(stream, NORMALIZE, stores, clock)
        self._forgotten = Forgotten(stream, LEDGER, clock)
        self._account: Account | None = None
        self._positions: dict[int, int] = {}
        self._ahead: Chunk | None = None  # read, and not yet absorbed
        self._at_hand: Chunk | None = None  # being absorbed
        self._read: dict[int, int] = {}
        self._passed_over = 0  # records, since the start
        self._since: int | None = None
        self._every_ns = _LEDGER_FLUSH_NS

    def step(self) -> bool:
        if self._account is None:
            facts, self._positions = self._ledger.load()
            self._read = dict(self._positions)
            self._taken.begin(self._ledger.lives())
            self._account = Account(facts, self._ledger.pieces)
        account = self._account
        self._status.maybe(self._report)
        # What follows may have to ask a stream that is away: then the same chunk is taken up again.
        chunk = self._at_hand = self._at_hand or self._next(account.facts)
        if chunk is not None:
            reach = self._taken.reach()
            forget(account.facts, self._forgotten.met(chunk))
            names = self._names.of(chunk)
            for part, taken in ((chunk.before(reach.doubtful), False), (chunk.after(reach.doubtful), True)):
                if part.rows:
                    self._absorb(account.facts, part, names, taken=taken)
            self._positions |= chunk.next
            self._at_hand = None
            self._since = self._clock() if self._since is None else self._since
        if self._since is not None and (self._clock() - self._since >= self._every_ns or (chunk is None and self._stop.is_set())):
            self._flush(account)
        return chunk is not None and (chunk.rows >= _MORE_ROWS or self._stop.is_set())  # at the end, until nothing comes

    def _next(self, facts: Facts) -> Chunk | None:
        """The next records, as far as every store has what was made of them."""
        reach = self._taken.reach(now=self._stop.is_set())
        if self._ahead is None:
            self._ahead = self._stream.read(RAW_TOPIC, self._read, _CHUNK_ROWS)
            self._read |= self._ahead.next if self._ahead is not None else {}
        if self._ahead is None:
            self._forgotten.look(RAW_TOPIC, self._read)
            forget(facts, [partition for _, partition in self._forgotten.ahead])
            return None
        ready, rest = self._ahead.before(reach.settled), self._ahead.after(reach.settled)
        self._ahead = rest if rest.rows else None
        return ready if ready.next != ready.begin else None

    def _absorb(self, facts: Facts, chunk: Chunk, names: Names, *, taken: bool) -> None:
        """As `absorb`; a record that makes it fail is found by halving, and passed over. What is absorbed twice changes nothing.

        A later copy of an event is evidence too: it says that its line heard."""
        try:
            absorb(facts, chunk, normalize_all(chunk, self._decoders, copies=True, names=names), taken=taken, names=names)
        except MemoryError:
            raise
        except Exception:
            if chunk.rows == 1:
                self._passed_over += 1
                log.exception("Raw record %d of partition %d is passed over by the ledger.", chunk.offset[0], chunk.partition[0])
                return
            for part in (chunk.slice(0, chunk.rows // 2), chunk.slice(chunk.rows // 2, chunk.rows)):
                self._absorb(facts, part, names, taken=taken)

    def _flush(self, account: Account) -> None:
        began_ns = self._clock()
        changes = account.changes(began_ns)
        self._ledger.save(account.facts, changes, self._positions, self._taken.lives)
        account.saved(changes, began_ns)
        if self._keep_ns and began_ns >= self._prune_due_ns:
            self._prune_due_ns = began_ns + _TIDY_NS
            account.prune(self._ledger.prune, began_ns - self._keep_ns)
        self._since = None
        self._stream.acknowledge(LEDGER, RAW_TOPIC, self._positions)
        # With much to look through, more seldom: a twentieth of the time at most.
        self._every_ns = max(_LEDGER_FLUSH_NS, 20 * (self._clock() - began_ns))

    def _report(self) -> dict[str, Any]:
        return {
            "keys": self._account.keys if self._account is not None else 0,
            "states": dict(self._account.states()) if self._account is not None else {},
            "forgotten": self._forgotten.told,
            "ahead": self._forgotten.ahead,
            "passed_over": self._passed_over,
        }

    def finish(self) -> None:
        self._status.write(self._report())


def run_normalize(stage: Normalize, stop: threading.Event, random: Random) -> None:
    flow.run(stage.step, stop, rest_s=_NORMALIZE_REST_S, waits=lambda: backoff(random, cap_s=5.0))
    stage.finish()


def run_ledger(stage: KeepLedger, stop: threading.Event, random: Random) -> None:
    flow.run(stage.step, stop, rest_s=_LEDGER_REST_S, waits=lambda: backoff(random, cap_s=5.0), drain_s=60.0)
    stage.finish()


def run_store(stage: KeepIn, stop: threading.Event, random: Random) -> None:
    flow.run(stage.step, stop, rest_s=_STORE_REST_S, waits=lambda: backoff(random, cap_s=5.0), drain_s=60.0)
    stage.finish()
