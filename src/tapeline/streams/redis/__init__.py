"""The stream on Redis: each partition of a topic is a Redis Stream, and each step of a stage is one script, which Redis runs whole.

An entry's id is `<offset after it>-<records in it>`. So a position counts records, and an id contains it. A lease decides which member
works on which partition (groups.py). A group's position is a Redis consumer group, moved in the step that writes the outputs, so
Redis' own tools show each group's lag. Entries that every group has read are trimmed. While Redis holds more than its bound, writes
wait.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import redis
from redis.client import Pipeline

from tapeline.config import StreamConfig
from tapeline.records import RAW_TOPIC, TICKS_TOPIC, Chunk, Topic, bytes_of
from tapeline.secret import NO_SECRET, Secret
from tapeline.streams import APPENDED, Codec, Lease, Member, Outputs, PartitionLost, Producer, Totals, Written, codecs
from tapeline.streams.codecs import arrow, protobuf
from tapeline.streams.groups import BookLease, SharedMember, Shares
from tapeline.streams.partitioning import partitions_of, split
from tapeline.streams.redis.keys import End
from tapeline.streams.redis.leases import RedisLeases
from tapeline.streams.redis.producing import RedisProducer
from tapeline.streams.redis.room import Room
from tapeline.streams.redis.scripts import script
from tapeline.streams.redis.server import RedisServer

log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 5.0
_QUICK_S: Final = 0.5
#: The most entries in one request. Fewer are requested if entries as large as the recent largest would exceed the byte limit.
_ENTRIES: Final = 1_024
_CHUNK_BYTES: Final = 32 * 1024 * 1024
_FIRST_GUESS: Final = 256 * 1024
#: Turns a position into the id behind every entry that ends there.
_AFTER: Final = 2**63
#: The largest value where no other bound is set.
_USUAL_BYTES: Final = 512 * 1024 * 1024
_POLL_MS: Final = 50
_FIELD: Final = b"d"
_Entry = tuple[bytes, Mapping[bytes, bytes]]


class RedisStream:
    """Topics in one Redis server, version 7 or later. Connects at the first call."""

    def __init__(
        self,
        config: StreamConfig,
        password: Secret = NO_SECRET,
        groups: Mapping[str, tuple[Topic, ...]] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        """`groups` maps each group to the topics it reads. Entries that a group has not acknowledged are never trimmed.

        Raises ConfigError if the address is invalid.
        """
        self._groups = groups or {}
        self._password = password
        self._server = RedisServer(config, password, self._groups, timeout_s)
        self._room = Room(self._server)
        self._keys = self._server.keys
        register = self._server.client.register_script
        self._append = register(script("append"))
        self._commit = register(script("commit"))
        self._first = register(script("first"))
        self._place = register(script("place"))
        self._acknowledge = register(script("acknowledge"))
        self._largest: dict[Topic, int] = {}  # bytes of the largest recent entry

    @property
    def partitions(self) -> int:
        """The number of partitions the stream was made with. A later setting does not change an existing stream."""
        return self._server.partitions

    @property
    def counts_records(self) -> bool:
        return True

    def append(self, topic: Topic, batch: pa.RecordBatch, partition: int | None = None) -> None:
        """As `Stream.append`. If the connection breaks before the answer, it raises Unavailable, but the batch may have been written."""
        self._server.begin()
        self._room.make(topic, bytes_of(batch))
        with self._server.errors():
            pipe = self._server.client.pipeline(transaction=True)
            self._write(pipe, topic, batch, partition)
            if topic.table and batch.num_rows:
                pipe.hincrby(self._keys.totals(APPENDED), topic.table, batch.num_rows)
            pipe.execute()

    def read(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        return self.read_some(topic, {partition: positions.get(partition, 0) for partition in range(self.partitions)}, max_rows)

    def read_some(self, topic: Topic, positions: Mapping[int, int], max_rows: int, wait_ms: int | None = None) -> Chunk | None:
        """As `read`, but only from the given partitions, in one round trip. It may wait up to `wait_ms` for the first record."""
        share = max(1, -(-max_rows // max(1, len(positions))))
        most = min(share, _ENTRIES, max(1, int(_CHUNK_BYTES / self._largest.get(topic, _FIRST_GUESS))))
        places = {self._keys.stream(topic, partition): f"{position}-{_AFTER}" for partition, position in positions.items()}
        with self._server.errors():
            answer = self._server.client.xread(places, count=most, block=wait_ms)
        by_key = {key.decode(): entries for key, entries in answer}
        chunks = [
            self._chunk_of(topic, partition, position, by_key[self._keys.stream(topic, partition)])
            for partition, position in positions.items()
            if self._keys.stream(topic, partition) in by_key
        ]
        return Chunk.join(chunks) if chunks else None

    def _chunk_of(self, topic: Topic, partition: int, position: int, entries: Sequence[_Entry]) -> Chunk:
        entries = self._placed(topic, partition, position, entries)
        data = [fields.get(_FIELD, b"") for _, fields in entries]
        largest = max(map(len, data))
        self._largest[topic] = max(largest, int(0.9 * self._largest.get(topic, largest)), 1)
        batch, rows = codecs.decode(topic, data, lambda at: f"The entry {entries[at][0].decode()} of {self._keys.stream(topic, partition)}")
        counts = np.array(rows, np.int64)  # as the ids say, except for entries of other programs
        first = np.array([int(entry.partition(b"-")[0]) for entry, _ in entries], np.int64) - counts
        offset = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(batch.num_rows, dtype=np.int64)
        after = int(entries[-1][0].partition(b"-")[0])
        where = np.full(batch.num_rows, partition, np.int32)
        begin = min(position, int(first[0]))  # a position may lie within an entry
        return Chunk(topic, batch, where, offset, {partition: begin}, {partition: after}).after({partition: position})

    def _placed(self, topic: Topic, partition: int, position: int, entries: Sequence[_Entry]) -> Sequence[_Entry]:
        """Drop entries that another program wrote so close behind an entry that no position lies between."""
        placed = []
        for entry, fields in entries:
            after = int(entry.partition(b"-")[0])
            if after > position:
                placed.append((entry, fields))
            else:
                log.error(
                    "Another program wrote the entry %s of %s, which has no position of its own. Tapeline skips it.",
                    entry.decode(),
                    self._keys.stream(topic, partition),
                )
            position = max(after, position)
        return placed or entries[-1:]

    def producer(self, writer: str) -> Producer:
        # The caller has sockets to read, so it must not wait long for one answer.
        server = RedisServer(self._server.config, self._password, self._groups, _QUICK_S)
        return RedisProducer(server, Room(server), writer)

    def join(self, group: str, topic: Topic, name: str = "") -> Member:
        self._server.begin()
        shares = Shares(RedisLeases(self._server), group, topic.name, self._server.count, name)
        return SharedMember(self, group, topic, shares, partial(self.read_some, wait_ms=_POLL_MS))

    def hold(self, name: str) -> Lease:
        self._server.begin()
        return BookLease(RedisLeases(self._server), f"hold/{name}", name)

    def commit(self, group: str, chunk: Chunk, outputs: Outputs, totals: Totals) -> None:
        """As `Member.commit`. Raises PartitionLost if anyone else has moved the group since the chunk was read."""
        self._server.begin()
        self._room.make(TICKS_TOPIC, sum(bytes_of(batch) for _, batch in outputs))
        written = [(topic, *part) for topic, batch in outputs for part in self._entries(topic, batch, None)]
        keys = [self._keys.stream(chunk.topic, partition) for partition in chunk.begin]
        arguments: list[Any] = [self._server.run, group, len(chunk.begin)]
        for partition, begin in chunk.begin.items():
            arguments += [begin, f"{chunk.next[partition]}-{_AFTER}"]
        arguments.append(len(written))
        for topic, partition, entries in written:
            keys += [self._keys.end(topic, partition), self._keys.stream(topic, partition)]
            arguments += [len(entries) // 2, *entries]
        arguments += [part for name, value in totals.items() if value for part in (name, value)]
        with self._server.errors():
            done = self._commit(keys=[*keys, self._keys.totals(group)], args=arguments)
        if not done:
            raise PartitionLost(f"Another process has changed the position of {group} in {chunk.topic.name}.")

    def acknowledge(self, group: str, topic: Topic, positions: Mapping[int, int], counted: tuple[int | None, int] | None = None) -> bool:
        self._server.begin()
        keys = [self._keys.totals(group), *(self._keys.stream(topic, partition) for partition in positions)]
        total: list[str | int] = ["", "", 0]
        if counted is not None:
            has, more = counted
            total = [f"{topic.table}/read", "" if has is None else has, more]
        with self._server.errors():
            return bool(self._acknowledge(keys=keys, args=[group, *total, *(f"{position}-{_AFTER}" for position in positions.values())]))

    def positions(self, group: str, topic: Topic) -> dict[int, int]:
        self._server.begin()
        with self._server.errors():
            pipe = self._server.client.pipeline(transaction=False)
            for partition in range(self._server.count):
                self._place(keys=[self._keys.stream(topic, partition)], args=[group], client=pipe)
            return {partition: int(position) for partition, position in enumerate(pipe.execute())}

    def totals(self, group: str) -> dict[str, int]:
        self._server.begin()
        with self._server.errors():
            return {name.decode(): int(value) for name, value in self._server.client.hgetall(self._keys.totals(group)).items()}

    def ends(self, topic: Topic) -> dict[int, int]:
        self._server.begin()
        with self._server.errors():
            pipe = self._server.client.pipeline(transaction=False)
            for partition in range(self._server.count):
                pipe.hget(self._keys.end(topic, partition), "next")
            return {partition: int(end or 0) for partition, end in enumerate(pipe.execute())}

    def lives(self, topic: Topic) -> dict[int, int]:
        self._server.begin()
        with self._server.errors():
            pipe = self._server.client.pipeline(transaction=False)
            for partition in range(self._server.count):
                pipe.hget(self._keys.end(topic, partition), "life")
            return {partition: int(begin or 0) for partition, begin in enumerate(pipe.execute())}

    def written(self, topic: Topic) -> dict[int, Written]:
        self._server.begin()
        with self._server.errors():
            pipe = self._server.client.pipeline(transaction=False)
            for partition in range(self._server.count):
                pipe.hmget(self._keys.end(topic, partition), "life", "records")
            answers = enumerate(pipe.execute())
        return {partition: Written(int(life), int(records)) for partition, (life, records) in answers if life and records}

    def tail_positions(self, topic: Topic, rows: int) -> dict[int, int]:
        return {partition: place.back(rows) for partition, (place, _) in enumerate(self._ends(topic, {}))}

    def lag(self, topic: Topic, positions: Mapping[int, int]) -> dict[int, int]:
        return {
            partition: place.records(max(positions.get(partition, 0), first)) if first >= 0 else 0
            for partition, (place, first) in enumerate(self._ends(topic, positions))
        }

    def _ends(self, topic: Topic, positions: Mapping[int, int]) -> list[tuple[End, int]]:
        """Return each partition's end, and the offset of the first entry with something at or after the position (-1: none)."""
        self._server.begin()
        with self._server.errors():
            pipe = self._server.client.pipeline(transaction=True)
            for partition in range(self._server.count):
                pipe.hmget(self._keys.end(topic, partition), ["next", "before", "since"])
                self._first(keys=[self._keys.stream(topic, partition)], args=[f"{positions.get(partition, 0)}-{_AFTER}"], client=pipe)
            answers = pipe.execute()
        ends = []
        for numbers, entry in zip(answers[::2], answers[1::2], strict=True):
            after, _, count = entry.partition(b"-") if entry else (b"-1", b"", b"0")
            ends.append((End(*(int(number or 0) for number in numbers)), max(0, int(after) - int(count)) if entry else -1))
        return ends

    def note(self, name: str, text: str) -> None:
        self._server.begin()
        with self._server.errors():
            self._server.client.hset(self._keys.facts, f"note {name}", text)

    def noted(self, name: str) -> str:
        self._server.begin()
        with self._server.errors():
            return (self._server.client.hget(self._keys.facts, f"note {name}") or b"").decode()

    def largest(self, topic: Topic) -> int:
        """Return Redis' `proto-max-bulk-len` in bytes, the same for every topic, or 512 MiB if the user may not ask for it."""
        del topic
        self._server.begin()
        with self._server.errors():
            try:
                return int(self._server.client.config_get("proto-max-bulk-len")["proto-max-bulk-len"])
            except (redis.ResponseError, KeyError):  # the user may lack the right to ask
                return _USUAL_BYTES

    def risks(self) -> list[str]:
        self._server.begin()
        with self._server.errors():
            disk, memory = self._server.client.info("persistence"), self._server.client.info("memory")
        warnings = []
        if not int(disk["aof_enabled"]):
            warnings.append("WARNING: Redis loses its data when it stops (set appendonly yes)")
        if memory["maxmemory_policy"] != "noeviction":
            warnings.append(
                f"WARNING: Redis removes keys when it is full (maxmemory-policy is {memory['maxmemory_policy']}: set noeviction)"
            )
        return warnings

    def close(self) -> None:
        self._server.client.close()

    def _write(self, pipe: Pipeline, topic: Topic, batch: pa.RecordBatch, partition: int | None) -> None:
        for at, entries in self._entries(topic, batch, partition):
            self._append(keys=[self._keys.end(topic, at), self._keys.stream(topic, at)], args=[self._server.run, *entries], client=pipe)

    def _entries(self, topic: Topic, batch: pa.RecordBatch, partition: int | None) -> Iterator[tuple[int, list[Any]]]:
        """Yield each partition with the record count and data of its entries, one after the other."""
        if not batch.num_rows:
            return
        if self._codec(topic) == "arrow":
            parts = split(topic, batch, self._server.count) if partition is None else iter([(partition, batch)])
            for at, part in parts:
                yield at, [some for piece in arrow.pieces(part) for some in (piece.num_rows, bytes(arrow.encode(piece)))]
            return
        values = protobuf.encode(topic, batch)
        where = partitions_of(topic, batch, self._server.count) if partition is None else np.full(len(values), partition)
        for at in np.unique(where).tolist():
            yield at, [part for row in np.flatnonzero(where == at).tolist() for part in (1, values[row])]

    def _codec(self, topic: Topic) -> Codec:
        codec: Codec = "arrow" if topic is RAW_TOPIC else getattr(self._server.config.codecs, topic.name.rpartition(".")[2])
        return codec
