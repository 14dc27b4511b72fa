"""The stream on Redis: each partition of a topic is a Redis Stream, each step of a stage one script, which Redis runs whole.

An entry's id is `<offset after it>-<records in it>`, so a position counts records and an id gives it. Who works on which partition is
a lease (sharing.py); the group's place is a Redis consumer group, moved in the step that writes the outputs, so that Redis' own tools
show each group's lag. Entries that every group has behind it are trimmed; where Redis holds more than its bound, writing waits.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from tapeline.config import StreamConfig
from tapeline.errors import ConfigError, NewerData, Refused, Unavailable
from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC, TICKS_TOPIC, TOPICS, Chunk, Topic
from tapeline.retry.backoff import backoff
from tapeline.secret import NO_SECRET, Secret
from tapeline.streams import APPENDED, Codec, Lease, Member, Outputs, PartitionLost, Producer, Totals, Written, codecs
from tapeline.streams.codecs import arrow, protobuf
from tapeline.streams.groups import BookLease, SharedMember, Shares
from tapeline.streams.partitioning import partitions_of, split

log = logging.getLogger(__name__)

_PARTITIONS: Final = 4
_FORMAT: Final = b"1"
_TIMEOUT_S: Final = 5.0
_QUICK_S: Final = 0.5
#: Entries that are asked for at once: so many, or as many as make so many bytes if each is as large as the largest of late.
_ENTRIES: Final = 1_024
_CHUNK_BYTES: Final = 32 * 1024 * 1024
_FIRST_GUESS: Final = 256 * 1024
#: Makes of a position the id behind every entry that ends there.
_AFTER: Final = 2**63
#: More offsets than a Redis that lost power can have given out and forgotten.
_SKIP: Final = 1 << 30
#: How large a value may be where nobody has set another bound.
_USUAL_BYTES: Final = 512 * 1024 * 1024
_LOOK_EVERY_S: Final = 1.0
#: Or when so much of what Redis may hold has been written since.
_LOOK_EVERY_SHARE: Final = 1 / 16
_POLL_MS: Final = 50
_RECONNECT_S: Final = 0.2
_RECONNECT_MOST_S: Final = 5.0
_MOST_UNSETTLED: Final = 256
_FIELD: Final = b"d"
_Entry = tuple[bytes, Mapping[bytes, bytes]]

#: Write an entry. Behind one of another program, whose id is a time, offsets go on from that.
_PUT: Final = """
local function behind(key, at)
  local facts = redis.pcall('XINFO', 'STREAM', key)
  if facts.err then return at end
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' then return math.max(at, tonumber(string.match(facts[i + 1], '%d+'))) end
  end
end
local function put(finish, key, at, count, fields, last_end)
  local done = redis.pcall('XADD', key, string.format('%.0f-%.0f', at + count, count), unpack(fields))
  if type(done) == 'table' and done.err then
    at = behind(key, at)
    redis.call('XADD', key, string.format('%.0f-%.0f', at + count, count), unpack(fields))
  end
  if at ~= last_end then redis.call('HSET', finish, 'before', string.format('%.0f', last_end), 'since', string.format('%.0f', at)) end
  return at + count
end
"""
#: The id of the first entry behind one: KEYS stream; ARGV id.
_FIRST: Final = """
local found = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', 1)[1]
return found and found[1] or false
"""
#: Write entries behind the partition's end; records and data of each stand in ARGV. Where the server has started anew since the
#: last write it may have lost its last moments, or be an older copy, so offsets begin far ahead. Where the stream or its end is gone, or
#: the writer knows that something is, a new life begins (lives.py).
_EXTEND: Final = f"""{_PUT}
local function birth()
  local now = redis.call('TIME')
  return (now[1] * 1000 + math.floor(now[2] / 1000)) * 1024
end
local function extend(finish, key, run, first, last, torn)
  local before, started, count = unpack(redis.call('HMGET', finish, 'next', 'run', 'count'))
  local last_end = tonumber(before or 0)
  local at = last_end
  local gone = torn or not before or (redis.call('XLEN', key) == 0 and behind(key, 0) < last_end)
  if gone then
    at = math.max(birth(), behind(key, at + {_SKIP}))
    redis.call('HSET', finish, 'life', string.format('%.0f', at), 'records', 0)
  else
    -- An entry of another program may lie where ours would begin without its id being above ours, and no position lies before it.
    local other = redis.call('XRANGE', key, string.format('(%.0f-%s', at, count or '{_AFTER}'), '+', 'COUNT', 1)[1]
    while other and tonumber(string.match(other[1], '%d+')) == last_end do
      at = put(finish, key, at, 1, other[2], at)
      redis.call('XDEL', key, other[1])
      other = redis.call('XRANGE', key, '(' .. other[1], '+', 'COUNT', 1)[1]
    end
    if other then
      at = behind(key, at)
      redis.call('HDEL', finish, 'records') -- how many there are of another program is not known
    end
    if started and started ~= run then at = math.max(birth(), at + {_SKIP}) end
  end
  count = nil
  local written = 0
  for i = first, last, 2 do
    local records = tonumber(ARGV[i])
    if records > 0 then
      at = put(finish, key, at, records, {{'d', ARGV[i + 1]}}, last_end)
      last_end, count, written = at, ARGV[i], written + records
    end
  end
  redis.call('HSET', finish, 'next', string.format('%.0f', at), 'run', run)
  if count then redis.call('HSET', finish, 'count', count) end
  if redis.call('HEXISTS', finish, 'records') == 1 then redis.call('HINCRBY', finish, 'records', written) end
end
"""
#: KEYS end, stream; ARGV the run id of the server, then records and data of each entry.
_APPEND: Final = f"""{_EXTEND}
extend(KEYS[1], KEYS[2], ARGV[1], 2, #ARGV)
return 1
"""
#: The same for a writer that sends again what it has no answer to: KEYS end, stream, writer; ARGV number, run id, records, data,
#: and the number that went before it on this connection: if that was refused, so is this; and whether something had settled that is gone.
_SEND: Final = f"""{_EXTEND}
local had = tonumber(redis.call('GET', KEYS[3]) or 0)
if had >= tonumber(ARGV[1]) then return 0 end
if had < tonumber(ARGV[5]) then return redis.error_reply('ERR what went before has not arrived') end
extend(KEYS[1], KEYS[2], ARGV[2], 3, 4, ARGV[6] == '1')
redis.call('SET', KEYS[3], ARGV[1], 'EX', 2592000)
return 1
"""
#: How far a writer has come, which it does not go beyond any more: what it had sent before it died may still wait in a socket.
#: KEYS writer, its end.
_BAR: Final = """
local ended = redis.call('GET', KEYS[2])
if ended then return tonumber(ended) end
local had = redis.call('GET', KEYS[1]) or '0'
redis.call('SET', KEYS[2], had, 'EX', 2592000)
redis.call('SET', KEYS[1], '9007199254740992', 'EX', 2592000)
return tonumber(had)
"""
#: Where a group is, and to say so of one that nobody configured: KEYS stream; ARGV group, id.
_MOVED: Final = """
local function place(key, group)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  for _, facts in ipairs(groups) do
    for i = 1, #facts, 2 do
      if facts[i] == 'name' and facts[i + 1] ~= group then break end
      if facts[i] == 'last-delivered-id' then return string.match(facts[i + 1], '%d+') end
    end
  end
  return '0'
end
local function move(key, group, id)
  local done = redis.pcall('XGROUP', 'SETID', key, group, id)
  if done.err then redis.call('XGROUP', 'CREATE', key, group, id, 'MKSTREAM') end
end
"""
_PLACE: Final = f"{_MOVED} return place(KEYS[1], ARGV[1])"
#: KEYS: the group's totals, the streams; ARGV: group, the total that is counted on and its value so far (both empty: none), what to add,
#: and an id for each stream.
_SAY: Final = f"""{_MOVED}
if ARGV[2] ~= '' then
  if (redis.call('HGET', KEYS[1], ARGV[2]) or '') ~= ARGV[3] then return 0 end
  redis.call('HINCRBY', KEYS[1], ARGV[2], ARGV[4])
end
for i = 2, #KEYS do move(KEYS[i], ARGV[1], ARGV[i + 3]) end
return 1
"""
#: A stage's step, all of it or, where the group is not where the records were read, nothing.
#: KEYS: the streams of the partitions read, end and stream of each partition written, the totals.
#: ARGV: run id, group, partitions read; begin and id of each; partitions written; of each its entries, and their records and data;
#: names and values of totals.
_COMMIT: Final = f"""{_EXTEND}{_MOVED}
local read = tonumber(ARGV[3])
for i = 1, read do
  if place(KEYS[i], ARGV[2]) ~= ARGV[2 + 2 * i] then return 0 end
end
local at = 4 + 2 * read
local key = read + 1
for _ = 1, tonumber(ARGV[at]) do
  local entries = tonumber(ARGV[at + 1])
  extend(KEYS[key], KEYS[key + 1], ARGV[1], at + 2, at + 1 + 2 * entries)
  at, key = at + 1 + 2 * entries, key + 2
end
for i = 1, read do move(KEYS[i], ARGV[2], ARGV[3 + 2 * i]) end
for i = at + 1, #ARGV, 2 do redis.call('HINCRBY', KEYS[key], ARGV[i], ARGV[i + 1]) end
return 1
"""
#: Take a free lease or renew one's own: KEYS lease; ARGV token, milliseconds.
_TAKE: Final = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_DROP: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@dataclass(frozen=True, slots=True)
class _Keys:
    """The names of all keys, each behind the same prefix."""

    prefix: str

    def stream(self, topic: Topic, partition: int) -> str:
        """The Redis Stream of one partition."""
        return f"{self.prefix}{topic.name}:{partition}"

    def end(self, topic: Topic, partition: int) -> str:
        return self._ours(f"end:{topic.name}:{partition}")

    def totals(self, group: str) -> str:
        return self._ours(f"totals:{group}")

    def writer(self, name: str) -> str:
        return self._ours(f"writer:{name}")

    def writer_end(self, name: str) -> str:
        return self._ours(f"writer-end:{name}")

    def lease(self, name: str) -> str:
        return self._ours(f"lease:{name}")

    @property
    def facts(self) -> str:
        return self._ours("facts")

    def _ours(self, name: str) -> str:
        return f"{self.prefix}tapeline:{name}"


class RedisStream:
    """Topics in one Redis server, version 7 or later. Nothing is connected before the first call."""

    def __init__(
        self,
        config: StreamConfig,
        password: Secret = NO_SECRET,
        groups: Mapping[str, tuple[Topic, ...]] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        """`groups`: who reads which topics; what one of them has not acknowledged is never trimmed. Raises ConfigError."""
        self._config = config
        self._groups = groups or {}
        self._password = password
        self.keys = _Keys(config.topic_prefix)
        self._client = _client(config, password, timeout_s, self._met)
        self._append = self._client.register_script(_APPEND)
        self._commit = self._client.register_script(_COMMIT)
        self._first = self._client.register_script(_FIRST)
        self._place = self._client.register_script(_PLACE)
        self._say = self._client.register_script(_SAY)
        self._count = 0
        self._run = ""
        self._look_due = 0.0
        self._unlooked = 0
        self._full = ""
        self._made_full = False
        self._largest: dict[Topic, int] = {}  # bytes of an entry, of late

    @property
    def partitions(self) -> int:
        """As many as the stream was made with: a later setting changes no stream that exists."""
        try:
            self._begin()
        except Unavailable:
            return self._config.partitions or _PARTITIONS
        return self._count

    @property
    def counts_records(self) -> bool:
        return True

    def append(self, topic: Topic, batch: pa.RecordBatch, partition: int | None = None) -> None:
        self._begin()
        self.make_room(topic, batch.nbytes)
        with self._told():
            pipe = self._client.pipeline(transaction=True)
            self._write(pipe, topic, batch, partition)
            if topic.table and batch.num_rows:
                pipe.hincrby(self.keys.totals(APPENDED), topic.table, batch.num_rows)
            pipe.execute()

    def read(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        return self.read_some(topic, {partition: positions.get(partition, 0) for partition in range(self.partitions)}, max_rows)

    def read_some(self, topic: Topic, positions: Mapping[int, int], max_rows: int, wait_ms: int | None = None) -> Chunk | None:
        """As `read`, of the partitions given alone, in one round trip; it may wait so long for the first record."""
        share = max(1, -(-max_rows // max(1, len(positions))))
        most = min(share, _ENTRIES, max(1, int(_CHUNK_BYTES / self._largest.get(topic, _FIRST_GUESS))))
        places = {self.keys.stream(topic, partition): f"{position}-{_AFTER}" for partition, position in positions.items()}
        with self._told():
            answer = self._client.xread(places, count=most, block=wait_ms)
        found = {key.decode(): entries for key, entries in answer}
        chunks = [
            self._chunk_of(topic, partition, position, found[self.keys.stream(topic, partition)])
            for partition, position in positions.items()
            if self.keys.stream(topic, partition) in found
        ]
        return Chunk.join(chunks) if chunks else None

    def _chunk_of(self, topic: Topic, partition: int, position: int, entries: Sequence[_Entry]) -> Chunk:
        entries = self._placed(topic, partition, position, entries)
        data = [fields.get(_FIELD, b"") for _, fields in entries]
        largest = max(map(len, data))
        self._largest[topic] = max(largest, int(0.9 * self._largest.get(topic, largest)), 1)
        batch, rows = codecs.decode(topic, data, lambda at: f"The entry {entries[at][0].decode()} of {self.keys.stream(topic, partition)}")
        counts = np.array(rows, np.int64)  # as the ids say, but for those of other programs
        first = np.array([int(entry.partition(b"-")[0]) for entry, _ in entries], np.int64) - counts
        offset = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(batch.num_rows, dtype=np.int64)
        after = int(entries[-1][0].partition(b"-")[0])
        where = np.full(batch.num_rows, partition, np.int32)
        begin = min(position, int(first[0]))  # a position may lie within an entry
        return Chunk(topic, batch, where, offset, {partition: begin}, {partition: after}).after({partition: position})

    def _placed(self, topic: Topic, partition: int, position: int, entries: Sequence[_Entry]) -> Sequence[_Entry]:
        """Without what another program has put so close behind an entry that no position lies between."""
        found = []
        for entry, fields in entries:
            after = int(entry.partition(b"-")[0])
            if after > position:
                found.append((entry, fields))
            else:
                log.error(
                    "The entry %s of %s has no place of its own and is passed over.", entry.decode(), self.keys.stream(topic, partition)
                )
            position = max(after, position)
        return found or entries[-1:]

    def producer(self, writer: str) -> Producer:
        # Its caller has sockets to read: it must not wait long for one answer.
        return _Producer(RedisStream(self._config, self._password, self._groups, _QUICK_S), writer)

    def join(self, group: str, topic: Topic, name: str = "") -> Member:
        self._begin()
        shares = Shares(_Leases(self), group, topic.name, self._count, name)
        return SharedMember(self, group, topic, shares, partial(self.read_some, wait_ms=_POLL_MS))

    def hold(self, name: str) -> Lease:
        self._begin()
        return BookLease(_Leases(self), f"hold/{name}", name)

    def commit(self, group: str, chunk: Chunk, outputs: Outputs, totals: Totals) -> None:
        """As `Member.commit`. Whoever else has moved the group since the chunk was read makes it raise PartitionLost."""
        self._begin()
        self.make_room(TICKS_TOPIC, sum(batch.nbytes for _, batch in outputs))
        written = [(topic, *part) for topic, batch in outputs for part in self._entries(topic, batch, None)]
        keys = [self.keys.stream(chunk.topic, partition) for partition in chunk.begin]
        arguments: list[Any] = [self._run, group, len(chunk.begin)]
        for partition, begin in chunk.begin.items():
            arguments += [begin, f"{chunk.next[partition]}-{_AFTER}"]
        arguments.append(len(written))
        for topic, partition, entries in written:
            keys += [self.keys.end(topic, partition), self.keys.stream(topic, partition)]
            arguments += [len(entries) // 2, *entries]
        arguments += [part for name, value in totals.items() if value for part in (name, value)]
        with self._told():
            done = self._commit(keys=[*keys, self.keys.totals(group)], args=arguments)
        if not done:
            raise PartitionLost(f"{group} has moved on in {chunk.topic.name} without this process.")

    def acknowledge(self, group: str, topic: Topic, positions: Mapping[int, int], counted: tuple[int | None, int] | None = None) -> bool:
        self._begin()
        keys = [self.keys.totals(group), *(self.keys.stream(topic, partition) for partition in positions)]
        total: list[str | int] = ["", "", 0]
        if counted is not None:
            has, more = counted
            total = [f"{topic.table}/read", "" if has is None else has, more]
        with self._told():
            return bool(self._say(keys=keys, args=[group, *total, *(f"{position}-{_AFTER}" for position in positions.values())]))

    def positions(self, group: str, topic: Topic) -> dict[int, int]:
        self._begin()
        with self._told():
            pipe = self._client.pipeline(transaction=False)
            for partition in range(self._count):
                self._place(keys=[self.keys.stream(topic, partition)], args=[group], client=pipe)
            return {partition: int(position) for partition, position in enumerate(pipe.execute())}

    def totals(self, group: str) -> dict[str, int]:
        self._begin()
        with self._told():
            return {name.decode(): int(value) for name, value in self._client.hgetall(self.keys.totals(group)).items()}

    def ends(self, topic: Topic) -> dict[int, int]:
        self._begin()
        with self._told():
            pipe = self._client.pipeline(transaction=False)
            for partition in range(self._count):
                pipe.hget(self.keys.end(topic, partition), "next")
            return {partition: int(end or 0) for partition, end in enumerate(pipe.execute())}

    def lives(self, topic: Topic) -> dict[int, int]:
        self._begin()
        with self._told():
            pipe = self._client.pipeline(transaction=False)
            for partition in range(self._count):
                pipe.hget(self.keys.end(topic, partition), "life")
            return {partition: int(begin or 0) for partition, begin in enumerate(pipe.execute())}

    def written(self, topic: Topic) -> dict[int, Written]:
        self._begin()
        with self._told():
            pipe = self._client.pipeline(transaction=False)
            for partition in range(self._count):
                pipe.hmget(self.keys.end(topic, partition), "life", "records")
            found = enumerate(pipe.execute())
        return {partition: Written(int(life), int(records)) for partition, (life, records) in found if life and records}

    def before_end(self, topic: Topic, rows: int) -> dict[int, int]:
        return {partition: place.back(rows) for partition, (place, _) in enumerate(self._ends(topic, {}))}

    def waiting(self, topic: Topic, positions: Mapping[int, int]) -> dict[int, int]:
        return {
            partition: place.records(max(positions.get(partition, 0), first)) if first >= 0 else 0
            for partition, (place, first) in enumerate(self._ends(topic, positions))
        }

    def _ends(self, topic: Topic, positions: Mapping[int, int]) -> list[tuple[_End, int]]:
        """Of each partition its end, and the offset of the first entry with something at or after a position; -1: there is none."""
        self._begin()
        with self._told():
            pipe = self._client.pipeline(transaction=True)
            for partition in range(self._count):
                pipe.hmget(self.keys.end(topic, partition), ["next", "before", "since"])
                self._first(keys=[self.keys.stream(topic, partition)], args=[f"{positions.get(partition, 0)}-{_AFTER}"], client=pipe)
            answers = pipe.execute()
        found = []
        for numbers, entry in zip(answers[::2], answers[1::2], strict=True):
            after, _, count = entry.partition(b"-") if entry else (b"-1", b"", b"0")
            found.append((_End(*(int(number or 0) for number in numbers)), max(0, int(after) - int(count)) if entry else -1))
        return found

    def note(self, name: str, text: str) -> None:
        self._begin()
        with self._told():
            self._client.hset(self.keys.facts, f"note {name}", text)

    def noted(self, name: str) -> str:
        self._begin()
        with self._told():
            return (self._client.hget(self.keys.facts, f"note {name}") or b"").decode()

    def largest(self, topic: Topic) -> int:
        del topic
        self._begin()
        with self._told():
            try:
                return int(self._client.config_get("proto-max-bulk-len")["proto-max-bulk-len"])
            except (redis.ResponseError, KeyError):  # not everybody may ask
                return _USUAL_BYTES

    def risks(self) -> list[str]:
        self._begin()
        with self._told():
            disk, memory = self._client.info("persistence"), self._client.info("memory")
        found = []
        if not int(disk["aof_enabled"]):
            found.append("WARNING: it forgets what it holds when it ends (set appendonly yes)")
        if memory["maxmemory_policy"] != "noeviction":
            found.append(f"WARNING: it removes keys when it is full (maxmemory-policy is {memory['maxmemory_policy']}: set noeviction)")
        return found

    def close(self) -> None:
        self._client.close()

    # For the parts of the stream in this module.

    @property
    def shown(self) -> str:
        return self._config.shown

    @property
    def client(self) -> Any:
        """The connections, of redis-py, whose commands have no useful types."""
        return self._client

    @property
    def run(self) -> str:
        """Which start of the server it is."""
        return self._run

    def begin(self, *, anew: bool = False) -> None:
        """Know the server; `anew`: it may be another start of it."""
        self._run = "" if anew else self._run
        self._begin()

    @contextmanager
    def told(self) -> Iterator[None]:
        with self._told():
            yield

    def _met(self, connection: Any) -> None:
        """Of each new connection, also of those that the client makes by itself where it finds one broken."""
        connection.on_connect()
        if self._run:
            connection.send_command("INFO", "server")
            if self._run.encode() not in connection.read_response():
                self._run = ""
                raise redis.ConnectionError("it has started anew")

    def _begin(self) -> None:
        """Once a connection: what the stream was made with, which start of the server this is, and its groups."""
        if self._run:
            return
        with self._told():
            run = str(self._client.info("server")["run_id"])
            facts = self.keys.facts
            self._client.hsetnx(facts, "format", _FORMAT)
            if not self._client.hexists(facts, "partitions"):
                self._client.hsetnx(facts, "partitions", self._known() or self._config.partitions or _PARTITIONS)
            form, count = self._client.hmget(facts, ["format", "partitions"])
            if form != _FORMAT:
                raise NewerData(
                    f"{self.shown} holds streams of a newer Tapeline (format {form.decode()}). Nothing was touched. Upgrade Tapeline."
                )
            self._count = int(count)
            for group, topics in self._groups.items():
                for topic in topics:
                    for partition in range(self._count):
                        with suppress(redis.ResponseError):  # BUSYGROUP: it is there
                            self._client.xgroup_create(self.keys.stream(topic, partition), group, "0", mkstream=True)
        self._run = run

    def _known(self) -> int:
        """How many partitions there are where Redis has lost the number alone; 0: none."""
        ends = self._client.scan_iter(match=f"{_literal(self.keys.end(RAW_TOPIC, 0)[:-1])}*", count=1000)
        return max((int(key.rpartition(b":")[2]) + 1 for key in ends), default=0)

    def _write(self, pipe: Pipeline, topic: Topic, batch: pa.RecordBatch, partition: int | None) -> None:
        for at, entries in self._entries(topic, batch, partition):
            self._append(keys=[self.keys.end(topic, at), self.keys.stream(topic, at)], args=[self._run, *entries], client=pipe)

    def _entries(self, topic: Topic, batch: pa.RecordBatch, partition: int | None) -> Iterator[tuple[int, list[Any]]]:
        """By partition: records and data of each entry, one after the other."""
        if not batch.num_rows:
            return
        if self.codec(topic) == "arrow":
            parts = split(topic, batch, self._count) if partition is None else iter([(partition, batch)])
            for at, part in parts:
                yield at, [some for piece in arrow.pieces(part) for some in (piece.num_rows, bytes(arrow.encode(piece)))]
            return
        values = protobuf.encode(topic, batch)
        where = partitions_of(topic, batch, self._count) if partition is None else np.full(len(values), partition)
        for at in np.unique(where).tolist():
            yield at, [part for row in np.flatnonzero(where == at).tolist() for part in (1, values[row])]

    def codec(self, topic: Topic) -> Codec:
        found: Codec = "arrow" if topic is RAW_TOPIC else getattr(self._config.codecs, topic.name.rpartition(".")[2])
        return found

    def make_room(self, topic: Topic, size: int) -> None:
        """For so many bytes: trim where memory asks for it. Raises Unavailable while Redis is full and nothing can be trimmed.

        Who writes what was made of raw records makes room among those: that waits only for the readers of what was made."""
        now = time.monotonic()
        bound = self._config.memory_mb * 1024 * 1024
        self._unlooked += size
        if now >= self._look_due or (self._unlooked > bound * _LOOK_EVERY_SHARE and not self._full):
            self._look_due, self._unlooked = now + _LOOK_EVERY_S, 0
            with self._told():
                memory = self._memory()
                if memory > bound / 2:
                    self._trim(everything=memory > bound)
                    memory = self._memory()
            self._full, self._made_full = "", False
            if memory > bound:
                self._made_full = self._held(NORMALIZED_TOPICS) > bound / 2
                self._full = (
                    f"Redis at {self.shown} holds {memory / 1e6:,.0f} MB, more than stream.memory_mb = {self._config.memory_mb} allows, "
                    "and some group has still to read what it holds (see `tapeline status`). Nothing is dropped: writing waits."
                )
        if self._full and (topic is RAW_TOPIC or self._made_full):
            raise Unavailable(self._full)

    def _memory(self) -> int:
        return int(self._client.info("memory")["used_memory"])

    def _held(self, topics: Sequence[Topic]) -> int:
        """Bytes of memory that topics take."""
        with self._told():
            pipe = self._client.pipeline(transaction=False)
            for topic in topics:
                for partition in range(self._count):
                    pipe.memory_usage(self.keys.stream(topic, partition))
            return sum(size or 0 for size in pipe.execute())

    def _trim(self, *, everything: bool) -> None:
        """Remove of what every group has behind it, also those of other programs, the older half, or everything."""
        keys = [self.keys.stream(topic, partition) for topic in TOPICS.values() for partition in range(self._count)]
        pipe = self._client.pipeline(transaction=False)
        for key in keys:
            pipe.xinfo_groups(key)
            pipe.xrange(key, count=1)
        answers = pipe.execute(raise_on_error=False)
        for key, groups, oldest in zip(keys, answers[::2], answers[1::2], strict=True):
            if isinstance(groups, redis.ResponseError) or not groups or not oldest:
                continue  # nobody has written there, or nobody is known to have read
            until = min(_behind(self._client, key, group) for group in groups)
            first = int(oldest[0][0].partition(b"-")[0])
            if until >= first:
                self._client.xtrim(key, minid=f"{until + 1 if everything else (first + until) // 2 + 1}-0", approximate=not everything)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong, in words that name the server and say what to do."""
        try:
            yield
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise Refused(f"Redis at {self.shown} has refused: {_said(error)}. Check the user and the password.") from error
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError) as error:
            self._run = ""
            raise Unavailable(f"Redis at {self.shown} does not answer: {_said(error)}. It is tried again.") from error
        except redis.OutOfMemoryError as error:
            text = f"Redis at {self.shown} is full: {_said(error)}. Nothing is dropped: writing waits. Raise its maxmemory."
            raise Unavailable(text) from error
        except redis.ResponseError as error:
            self._run = ""
            raise Unavailable(f"Redis at {self.shown}: {_said(error)}. It is tried again.") from error


def _said(error: Exception) -> str:
    """Without a point at its end: some of redis-py's have one."""
    return str(error).rstrip(".")


def _client(config: StreamConfig, password: Secret, timeout_s: float, met: Callable[[Any], None]) -> Any:
    parts = urlsplit(config.url)
    try:
        port = parts.port or 6379
    except ValueError:
        port = 0
    if (
        not port
        or parts.scheme not in ("redis", "rediss")
        or not parts.hostname
        or (not parts.path.strip("/").isdecimal() and parts.path.strip("/"))
    ):
        raise ConfigError(f'stream.url = "{config.shown}" is no address. Write redis://[user@]host:6379/0, rediss:// for TLS.')
    tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": config.ca_file or None} if parts.scheme == "rediss" else {}
    return redis.Redis(
        host=parts.hostname,
        port=port,
        db=int(parts.path.strip("/") or 0),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else password.reveal() or None,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),  # a script that was sent may have run: who retries knows whether it may
        **{"redis_connect_func": met, **tls},
    )


class _End(NamedTuple):
    """Where a partition ends, and its last jump: behind `before` came `since`."""

    next: int
    before: int
    since: int

    def records(self, position: int) -> int:
        """From a position on, where there is at least one."""
        jumped = self.since - max(self.before, position)
        return max(1, self.next - position - max(0, jumped))

    def back(self, rows: int) -> int:
        """The position with so many records behind it."""
        position = self.next - rows
        return max(0, position if position >= self.since else position - (self.since - self.before))


def _behind(client: Any, key: str, group: Mapping[str, Any]) -> int:
    """The position up to which a group has read and acknowledged everything."""
    delivered = int(group["last-delivered-id"].partition(b"-")[0])
    if group["pending"]:  # of a program that reads with XREADGROUP
        oldest, count = client.xpending(key, group["name"])["min"].split(b"-")
        return min(delivered, int(oldest) - int(count))
    return delivered


class _Producer:
    """Sends without waiting for the answers, on a connection of its own, and sends again what has none after it broke."""

    def __init__(self, stream: RedisStream, writer: str) -> None:
        self._stream, self._writer = stream, writer
        self._connection: Any = None
        self._before = 0  # the last number that this connection was given
        self._torn: set[int] = set()  # partitions in which something had settled that Redis has no more
        self._script = ""
        self._trouble = ""
        self._again_at = 0.0
        self._waits = backoff(Random(), _RECONNECT_S, _RECONNECT_MOST_S)
        self._open: deque[tuple[int, int, int, bytes]] = deque()  # number, partition, records, data
        self._settled = 0

    def send(self, number: int, partition: int, batch: pa.RecordBatch) -> None:
        if len(self._open) >= _MOST_UNSETTLED:
            self.settled()
            if len(self._open) >= _MOST_UNSETTLED:
                raise Unavailable(f"Redis at {self._stream.shown} is behind: {len(self._open)} batches have no answer yet.")
        if self._connection is None:
            self._connect()
        self._stream.make_room(RAW_TOPIC, batch.nbytes)
        self._open.append((number, partition, batch.num_rows, bytes(arrow.encode(batch))))
        self._put(self._open[-1])

    def settled(self) -> int:
        if self._connection is None and self._open:
            try:
                self._connect()
            except (Unavailable, Refused) as error:
                self._trouble = str(error)
        try:
            while self._connection is not None and self._open and self._connection.can_read(0):
                self._connection.read_response()
                self._settled = self._open.popleft()[0]
                self._trouble, self._waits = "", backoff(Random(), _RECONNECT_S, _RECONNECT_MOST_S)
        except (redis.RedisError, OSError) as error:
            self._broken(error)
        return self._settled

    @property
    def refused(self) -> Collection[int]:
        return ()

    @property
    def trouble(self) -> str:
        return self._trouble

    def recovered(self, writer: str, since_ns: int) -> Mapping[int, Container[int]]:
        del since_ns
        with self._stream.told():
            bar = self._stream.client.register_script(_BAR)
            number = int(bar(keys=[self._stream.keys.writer(writer), self._stream.keys.writer_end(writer)]))
        return dict.fromkeys(range(self._stream.partitions), range(1, number + 1))  # one connection carries all partitions, in order

    def close(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while self._open and time.monotonic() < deadline:
            self.settled()
            time.sleep(0.005)
        if self._connection is not None:
            self._connection.disconnect()
        self._stream.close()

    def _connect(self) -> None:
        """A new connection, over which everything without an answer goes again; the writer's number keeps it from being doubled."""
        if time.monotonic() < self._again_at:
            raise Unavailable(self._trouble or f"Redis at {self._stream.shown} does not answer.")
        self._again_at = time.monotonic() + next(self._waits)
        self._stream.begin(anew=True)
        with self._stream.told():
            self._script = self._stream.client.script_load(_SEND)
            connection = self._stream.client.connection_pool.make_connection()
            connection.connect()
            had = int(self._stream.client.get(self._stream.keys.writer(self._writer)) or 0)
        if had < self._settled:
            log.error(
                "Redis at %s has lost what it had confirmed. What no stage had read yet is gone; what comes from now on is kept. "
                "`tapeline gaps` shows what is missing. Set appendonly yes.",
                self._stream.shown,
            )
            self._torn = set(range(self._stream.partitions))
        self._connection, self._before = connection, 0
        for one in list(self._open):
            self._put(one)

    def _put(self, one: tuple[int, int, int, bytes]) -> None:
        if self._connection is None:
            return
        number, partition, records, data = one
        names = self._stream.keys
        keys = (names.end(RAW_TOPIC, partition), names.stream(RAW_TOPIC, partition), names.writer(self._writer))
        try:
            torn = int(partition in self._torn)
            arguments = (number, self._stream.run, records, data, self._before, torn)
            self._connection.send_command("EVALSHA", self._script, len(keys), *keys, *arguments)
            self._before = number
            self._torn.discard(partition)
        except (redis.RedisError, OSError) as error:
            self._broken(error)

    def _broken(self, error: Exception) -> None:
        self._trouble = f"Redis at {self._stream.shown}: {_said(error)}. What has no answer is sent again."
        log.warning("%s", self._trouble)
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None


class _Leases:
    """The lease book as keys that expire."""

    def __init__(self, stream: RedisStream) -> None:
        self._stream = stream
        self._take = stream.client.register_script(_TAKE)
        self._drop = stream.client.register_script(_DROP)

    def take(self, name: str, token: str, seconds: float) -> bool:
        with self._stream.told():
            return bool(self._take(keys=[self._stream.keys.lease(name)], args=[token, int(seconds * 1000)]))

    def drop(self, name: str, token: str) -> None:
        with self._stream.told():
            self._drop(keys=[self._stream.keys.lease(name)], args=[token])

    def taken(self, prefix: str) -> dict[str, str]:
        begin = self._stream.keys.lease("")
        with self._stream.told():
            keys = list(self._stream.client.scan_iter(match=f"{_literal(begin + prefix)}*", count=1000))
            values = self._stream.client.mget(keys) if keys else []
        return {key.decode().removeprefix(begin): value.decode() for key, value in zip(keys, values, strict=True) if value is not None}


def _literal(text: str) -> str:
    """A text as a pattern that matches it alone."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in text)
