"""The numbers of Kafka's messages: no two lives of a topic share a number.

A position lies in a stretch of a partition, which says what to add to an offset (stretches.py). A new stretch begins with each new leader,
because only then can a log have lost its end. Stretches are written to a topic of their own before anybody uses them. Restoring an older
broker restores that topic too: it then knows nothing of the later stretches, and new ones begin above them.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Final, cast

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tapeline.errors import TapelineError, Unavailable
from tapeline.local.threads import concurrently
from tapeline.records import RAW_TOPIC, TOPICS, Topic
from tapeline.streams.kafka.cluster import ASK_S, Cluster
from tapeline.streams.kafka.messages import Stretch, read_position
from tapeline.streams.kafka.stretches import BITS, Found, Lost, StretchRow, WrittenDown, number_of, stretches_of

log = logging.getLogger(__name__)

_BITS_BEFORE: Final = 20
#: Records are given out only if a look that began at most this long ago (s) has found the same lives.
_SURE_S: Final = 3.0
_LOOK_EVERY_S: Final = 1.0
#: No broker goes away and comes back in less time (s).
_BACK_S: Final = 0.5
_LOOK_S: Final = 5.0
_READS: Final[dict[str, object]] = {"isolation_level": "read_uncommitted", "fetch_wait_max_ms": 10}
_Place = tuple[str, int]


class Numbering:
    """The stretches of all topics, kept up to date, and the place in Kafka of each position."""

    def __init__(self, cluster: Cluster, clock: Callable[[], int] = time.time_ns) -> None:
        self._cluster, self._clock = cluster, clock
        cluster.when_found(self.look)
        cluster.glance = self.glance
        self._lock = threading.RLock()  # of what is known
        self._asking = threading.RLock()  # of a look: what was found first is noted first
        self._consumers: dict[str, Consumer] = {}
        self._made = (0, 0)
        self._ids: dict[str, str] = {}
        self._records: list[WrittenDown] | None = None
        self._read_to = 0
        self._stretches: dict[_Place, list[Stretch]] = {}
        self._known: dict[_Place, tuple[int, int]] = {}  # a position that is certain, with its offset
        self._heard = -1
        self._looked_s = float("-inf")
        self._looking: Future[None] | None = None

    @property
    def version(self) -> int:
        """Counts what was found gone or useless. After a change, a reader has to find its place again with a new client."""
        return self._cluster.forgot

    # ---- lookups

    def stretch(self, topic: Topic, partition: int, epoch: int | None) -> Stretch:
        """Return the stretch that numbers the messages of a leader's epoch. Raises Unavailable."""
        epoch = -1 if epoch is None else epoch
        stretches = self._all_of(topic, partition)
        if epoch > stretches[-1].epoch:
            self.look()
            stretches = self._all_of(topic, partition)
            if epoch > stretches[-1].epoch:
                raise Unavailable(f"{self._cluster.name(topic)} {partition} has a new leader, and its numbering is not recorded yet.")
        return stretches[bisect_left(stretches, epoch, key=lambda one: one.epoch)]

    def _all_of(self, topic: Topic, partition: int) -> list[Stretch]:
        """Return the stretches of a topic that may have been made anew a moment ago. Raises Unavailable."""
        stretches = self._of(topic, partition)
        if not stretches:
            self.look()
            stretches = self._of(topic, partition)
        if not stretches:
            raise Unavailable(f"{self._cluster.name(topic)} {partition} has a new leader, and its numbering is not recorded yet.")
        return stretches

    def _of(self, topic: Topic, partition: int) -> list[Stretch]:
        return self._stretches.get((topic.name, partition), [])

    def remember(self, topic: Topic, partition: int, position: int, offset: int) -> None:
        """Store the offset of a position that was just read."""
        self._known[topic.name, partition] = (position, offset)

    def about(self, topic: Topic, partition: int, position: int) -> int:
        """Return the offset of a position, for people who check lags with Kafka's own tools. It is approximate if it is not certain."""
        if (known := self._known.get((topic.name, partition))) is not None and known[0] == position:
            return known[1]
        stretches = self._of(topic, partition)
        for one, following in zip(stretches, [*stretches[1:], None], strict=True):
            offset = one.offset(position)
            if following is None or offset <= following.end:
                return max(0, offset)
        return 0

    def begun(self, topic: Topic) -> dict[int, int]:
        """Return where each partition's present life begins, as `Stream.lives`. Raises Unavailable."""
        self.fresh()
        with self._lock:
            lives = {p: max(0, some[0].base) if some else 0 for p in range(self._cluster.count(topic)) for some in [self._of(topic, p)]}
            for record in self._records or ():
                for one in record.lost:
                    if one.topic == topic.name and one.topic_id == self._ids.get(one.topic) and one.partition in lives:
                        lives[one.partition] = max(lives[one.partition], one.position)
            return lives

    def ends(self, topic: Topic) -> dict[int, int]:
        """Return the position of each partition's next record; 0 if nothing has ever come. Raises Unavailable."""
        latest = self._cluster.latest([(self._cluster.name(topic), p) for p in range(self._cluster.count(topic))])
        return {p: self.stretch(topic, p, epoch).position(offset) if offset else 0 for (_, p), (offset, epoch) in latest.items()}

    # ---- keeping it up to date

    def fresh(self) -> None:
        """Make sure that what is known is not older than `_SURE_S`. Raises Unavailable."""
        age = time.monotonic() - self._looked_s
        if age > _SURE_S or (age > _BACK_S and self._heard != self._cluster.heard):
            self.look()
        elif age > _LOOK_EVERY_S:
            self.glance()

    def glance(self) -> None:
        """Look in a background thread, if that is due."""
        if time.monotonic() - self._looked_s > _LOOK_EVERY_S and (self._looking is None or self._looking.done()):
            self._looking = concurrently(self._look_quietly, "lives")

    def _look_quietly(self) -> None:
        try:
            self.look()
        except TapelineError as error:
            log.debug("%s", error)  # a caller that needs it looks again and reports the error
            time.sleep(_LOOK_EVERY_S)

    def look(self) -> None:
        """Ask which lives the topics have now, and write down the stretches that are missing. Raises Unavailable."""
        with self._asking:
            heard, began = self._cluster.heard, time.monotonic()
            ids, latest = self._ids_and_ends()
            with self._lock:  # not before: whoever needs only what is known must not wait for the brokers
                self._take_in(ids, latest, heard)
                self._heard, self._looked_s = heard, began

    def _take_in(self, ids: Mapping[str, str], latest: Mapping[_Place, tuple[int, int]], heard: int) -> None:
        """Write down the stretches that are missing, if anything is not as it was at the last look."""
        lives = self._cluster.lives
        lacking = any(place[0] != lives and self._lacks(place, epoch) for place, (_, epoch) in latest.items())
        if self._records is None or heard != self._heard or ids != self._ids or latest[lives, 0][0] != self._read_to or lacking:
            remade = self._ids.get(lives, ids[lives]) != ids[lives]
            kept = [row for rows in self._rows(ids).values() for row in rows] if remade else []
            if kept:  # somebody has removed only the topic with the stretches
                self._write(WrittenDown(stretches=tuple(kept)))
            self._reload(ids)
            rows = self._new(ids, latest)
            if rows:
                self._write(WrittenDown(stretches=tuple(rows)))
                self._reload(ids)

    def _ids_and_ends(self) -> tuple[dict[str, str], dict[_Place, tuple[int, int]]]:
        """Return the topics' ids by name (without the prefix), and each partition's end with its leader's epoch."""
        cluster = self._cluster
        names = {topic.name: cluster.name(topic) for topic in TOPICS.values()} | {cluster.lives: cluster.lives}
        ids = cluster.ids(list(names.values()), _LOOK_S)
        if len(ids) < len(names) or any(ids[name] != self._ids.get(key, ids[name]) for key, name in names.items()):
            cluster.find_topics(_LOOK_S)
            ids = cluster.ids(list(names.values()), _LOOK_S)
        if missing := [name for name in names.values() if name not in ids]:
            raise Unavailable(f"Kafka does not know these topics yet: {', '.join(missing)}.")
        short = {name: key for key, name in names.items()}
        places = [(cluster.name(topic), p) for topic in TOPICS.values() for p in range(cluster.counted(topic))]
        latest = cluster.latest([*places, (cluster.lives, 0)], _LOOK_S)
        return {key: ids[name] for key, name in names.items()}, {(short[name], p): end for (name, p), end in latest.items()}

    def _lacks(self, place: _Place, epoch: int) -> bool:
        stretches = self._stretches.get(place)
        return not stretches or epoch > stretches[-1].epoch

    def _new(self, ids: Mapping[str, str], latest: Mapping[_Place, tuple[int, int]]) -> list[StretchRow]:
        """Return the stretches that have to begin now."""
        rows = []
        upgraded = not self._records and not self._marked()
        for (name, partition), (end, epoch) in latest.items():
            if name == self._cluster.lives or not self._lacks((name, partition), epoch):
                continue
            stretches = self._stretches.get((name, partition))
            if not stretches and upgraded and end:
                # These records were written before stretches existed. Positions in stores and groups keep their meaning.
                rows.append(StretchRow(name, ids[name], partition, epoch, 0, _BITS_BEFORE, end))
                continue
            rows.append(StretchRow(name, ids[name], partition, epoch, number_of(self._clock()) - (end << BITS), BITS, end))
        return rows

    def _marked(self) -> bool:
        """Return whether a group has a position that came from a stretch: then only the topic with the stretches is new."""
        committed = self._cluster.committed(self._consumer("normalize"), RAW_TOPIC, range(self._cluster.counted(RAW_TOPIC)), _LOOK_S)
        return any(read_position(one.metadata) is not None for one in committed)

    def _rows(self, ids: Mapping[str, str]) -> dict[_Place, list[StretchRow]]:
        rows: dict[_Place, list[StretchRow]] = {}
        for record in self._records or ():
            for row in record.stretches:
                if ids.get(row.topic) == row.topic_id:
                    rows.setdefault((row.topic, row.partition), []).append(row)
        return rows

    def _reload(self, ids: Mapping[str, str]) -> None:
        self._records, self._read_to = self._read_all()
        before, same = self._stretches, {name for name, one in ids.items() if self._ids.get(name) == one}
        self._stretches = {place: stretches_of(rows) for place, rows in self._rows(ids).items()}
        self._ids = dict(ids)
        gone = {place: [one for one in old if one not in self._stretches.get(place, [])] for place, old in before.items()}
        gone = {place: old for place, old in gone.items() if old}
        if gone:
            self._cluster.forgot += 1
            self._known = {}
            names = ", ".join(f"{name} {partition}" for name, partition in sorted(gone))
            log.warning("Kafka has lost data that it held: %s. `tapeline gaps` shows what is missing.", names)
            lost = [Lost(name, ids[name], p, old[-1].position(old[-1].end) + 1) for (name, p), old in gone.items() if name in same]
            if lost:
                self._write(WrittenDown(lost=tuple(lost)))
                self._records, self._read_to = self._read_all()

    def _read_all(self) -> tuple[list[WrittenDown], int]:
        """Read the whole topic with a new client, which knows nothing of earlier states. This happens rarely."""
        records = []
        consumer = self._cluster.consumer("lives", **_READS)
        try:
            with self._cluster.errors():
                consumer.assign([TopicPartition(self._cluster.lives, 0, OFFSET_BEGINNING)])
                while (message := self._next(consumer, self._cluster.lives)).error() is None:
                    try:
                        records.append(msgspec.json.decode(message.value() or b"", type=WrittenDown))
                    except msgspec.MsgspecError:
                        text = "%s holds a message at offset %s that Tapeline did not write. Tapeline ignores it."
                        log.warning(text, self._cluster.lives, message.offset())
        finally:
            consumer.close()
        return records, int(cast("int", message.offset()))

    def _write(self, record: WrittenDown) -> None:
        """Write a record with a new client, because one that a broker has forgotten may refuse for good. Raises Unavailable."""
        producer = Producer(self._cluster.client(acks="all", linger_ms=0, message_timeout_ms=int(_LOOK_S * 1000)))
        failed: list[KafkaError] = []
        with self._cluster.errors():
            producer.produce(
                self._cluster.lives,
                msgspec.json.encode(record),
                partition=0,
                on_delivery=lambda error, _: failed.append(error) if error is not None else None,
            )
            left = producer.flush(_LOOK_S + 1.0)
            if failed or left:
                raise KafkaException(failed[0] if failed else KafkaError(KafkaError._TIMED_OUT))

    # ---- finding a position

    def find(self, topic: Topic, positions: Mapping[int, int], *, reading: bool = False) -> dict[int, Found]:
        """Return the offsets at which to continue reading. Raises Unavailable.

        `reading`: the caller has read up to these positions, so what is lost is lost to the caller.
        """
        found = {}
        for partition, position in positions.items():
            known = self._known.get((topic.name, partition))
            if position <= 0:
                found[partition] = Found(OFFSET_BEGINNING)
            elif known is not None and known[0] == position:
                found[partition] = Found(known[1])
            else:
                found[partition] = self._locate(topic, partition, position)
                if not (found[partition].lost or found[partition].removed):  # a reader has to be told of that
                    self.remember(topic, partition, position, found[partition].offset)
        if reading:
            self._record_lost(topic, {p: positions[p] for p, one in found.items() if one.lost})
            for partition, one in found.items():
                if one.removed:
                    log.error(
                        "%s %d: the topic's retention has removed the next records before they were read. Reading continues at offset %d. "
                        "The unread records before it are lost to this stage. Raise the topic's retention.ms, or read faster.",
                        self._cluster.name(topic),
                        partition,
                        one.offset,
                    )
        return found

    def _record_lost(self, topic: Topic, positions: Mapping[int, int]) -> None:
        lost = tuple(
            Lost(topic.name, self._ids[topic.name], partition, position + 1)
            for partition, position in positions.items()
            if position >= self.begun(topic).get(partition, 0)
        )
        if lost:
            with self._lock:
                self._write(WrittenDown(lost=lost))
                self._records, self._read_to = self._read_all()

    def _locate(self, topic: Topic, partition: int, position: int) -> Found:
        low, high = self._cluster.watermarks(self._consumer("look"), topic, partition)
        stretches = self._all_of(topic, partition)
        last = stretches[-1]
        if last.end <= last.offset(position) <= high:
            return Found(max(low, last.offset(position)), removed=last.offset(position) < low)
        for at in reversed(range(len(stretches))):
            one, offset = stretches[at], stretches[at].offset(position)
            least = stretches[at - 1].end if at else 0
            most = min(high, stretches[at + 1].end if at + 1 < len(stretches) else high)
            if least <= offset <= most and self._is_of(topic, partition, one, offset, low):
                return Found(max(low, offset), removed=offset < low)
        return self._searched(topic, partition, position, low, high)

    def _is_of(self, topic: Topic, partition: int, one: Stretch, offset: int, low: int) -> bool:
        """Return whether this stretch gave the position at an offset. Messages before the stretch have lower numbers."""
        if offset <= low:
            first = self._message_at(topic, partition, low)
            return first is None or first[1].epoch >= one.epoch
        before = self._message_at(topic, partition, offset - 1)
        if before is not None and before[0] == offset - 1 and before[1] != one:
            if before[1].epoch > one.epoch:
                return False
            following = self._message_at(topic, partition, offset)
            return following is None or following[1] == one
        return before is None or before[1] == one

    def _searched(self, topic: Topic, partition: int, position: int, low: int, high: int) -> Found:
        """Find a position by binary search, because numbers rise with the offsets."""
        least, most, before, following = low, high, None, high
        while least < most:
            middle = (least + most) // 2
            first = self._message_at(topic, partition, middle)
            if first is None or first[1].position(first[0]) >= position:
                most, following = middle, first[0] if first is not None else high
            else:
                least, before = first[0] + 1, first[1]
        begun = self.begun(topic).get(partition, 0)
        gave = before is not None and position <= before.position(max(least, following))
        return Found(least, lost=not gave and position >= begun, removed=False)

    def number_at(self, topic: Topic, partition: int, offset: int) -> int:
        """Return the position of an offset. Raises Unavailable."""
        if offset <= 0:
            return 0
        last = self._all_of(topic, partition)[-1]
        if offset >= last.end:
            return last.position(offset)
        first = self._message_at(topic, partition, offset)
        return last.position(offset) if first is None else first[1].position(offset)

    def least_at(self, topic: Topic, partition: int, offset: int) -> int:
        """Return a position at or before everything found at an offset or after it."""
        return max(0, self._all_of(topic, partition)[0].position(offset))

    def _message_at(self, topic: Topic, partition: int, offset: int) -> tuple[int, Stretch] | None:
        """Return the first message at or after an offset, with its stretch, or None if there is none."""
        name, consumer = self._cluster.name(topic), self._consumer("look")
        with self._lock, self._cluster.errors():
            consumer.assign([TopicPartition(name, partition, offset)])
            message = self._next(consumer, name)
            consumer.unassign()
        if message.error() is not None:
            return None
        return int(cast("int", message.offset())), self.stretch(topic, partition, message.leader_epoch())

    def _next(self, consumer: Consumer, name: str) -> Message:
        """Return the next message, or the one that reports the end of the partition. Raises KafkaException."""
        deadline = time.monotonic() + ASK_S
        while time.monotonic() < deadline:
            message = consumer.poll(0.1)
            error = message.error() if message is not None else None
            if message is None or (error is not None and error.retriable()):
                continue
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                return message
            if error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
                raise KafkaException(error)
        raise self._cluster.silent(f"{name} could not be read within {ASK_S:.0f} s")

    def _consumer(self, purpose: str) -> Consumer:
        made = (self._cluster.forgot, self._cluster.unanswered)
        if made != self._made:
            self._made, self._consumers = made, {}  # a caller that uses one continues with it, so none is closed here
        if purpose not in self._consumers:
            self._consumers[purpose] = self._cluster.consumer(purpose, **_READS)
        return self._consumers[purpose]

    def close(self) -> None:
        """Close the clients, after a look in another thread has ended. A later call opens new ones."""
        with self._lock:
            for consumer in self._consumers.values():
                consumer.close()
            self._consumers = {}
