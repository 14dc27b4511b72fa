"""Lists rejected events with their bytes and sends them through the current normalizer again, each event only once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import pyarrow as pa

from tapeline.errors import ConfigError
from tapeline.providers.events import UNREADABLE, elements
from tapeline.providers.normalizing import HEADED
from tapeline.providers.registry import PROVIDERS
from tapeline.records import NOTICES_TOPIC, RAW, RAW_TOPIC, REJECTED_TOPIC, Topic
from tapeline.streams import Lease, Stream
from tapeline.streams.codecs import arrow
from tapeline.streams.shortening import TAKEN_EVERYWHERE, length_before

log = logging.getLogger(__name__)

#: An event's id: partition and offset of its record in the raw topic, and its index in that record.
Id = tuple[int, int, int]
#: Given the name of one of the lake's tables, returns its rows; none if there is no lake.
Table = Callable[[str], Iterable[Mapping[str, Any]]]

_LEASE: Final = "the right to retry what was rejected"
#: The reasons of frames that were rejected as a whole, before they were split into events, begin with one of these.
_WHOLE: Final = ("not an array of events ", "the decoder failed: ")
_ID_BELOW: Final = (1 << 31, 1 << 63, 1 << 31)
_READ_ROWS: Final = 5_000
#: A batch is sent when it has this many events, or more than this many bytes.
_BATCH_ROWS: Final = 1_000
_BATCH_BYTES: Final = 8 * 1024 * 1024
#: The allowance for what a message holds besides its value.
_OVERHEAD_BYTES: Final = 256


class _Retried(msgspec.Struct):
    """The first line of a retried raw record. It names the event."""

    of: str


_RETRIED: Final = msgspec.json.Decoder(_Retried)


@dataclass(frozen=True, slots=True)
class Rejected:
    """One rejected event. `received_ns`: ns since 1970, UTC. `retried`: whether it was sent again already."""

    id: Id
    provider: str
    feed: str
    connection: str
    reason: str
    payload: bytes
    received_ns: int
    retried: bool

    @property
    def name(self) -> str:
        """The id as text, as commands take it: `partition-offset-index`."""
        return "-".join(map(str, self.id))


def parse_id(text: str) -> Id:
    """Parse `partition-offset-index`. Raises ConfigError for any other text; its message says what an id looks like."""
    parts = text.split("-")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 20 for part in parts):
        raise ConfigError(f"{text!r} is not an event id. An id is partition-offset-index, as `tapeline rejected list` shows it.")
    if not all(int(part) < most for part, most in zip(parts, _ID_BELOW, strict=True)):
        raise ConfigError(f"{text!r} is not an event id. An id is partition-offset-index, as `tapeline rejected list` shows it.")
    partition, offset, index = map(int, parts)
    return partition, offset, index


def rejected(stream: Stream, table: Table) -> Iterator[Rejected]:
    """Every rejected event that the stream or the lake still has, each once. Only a few are in memory at a time."""
    done = _retried(stream, table)
    yielded: set[Id] = set()
    for row in _rows(stream, REJECTED_TOPIC, table):
        key = _id(row)
        if key not in yielded:
            yielded.add(key)
            yield Rejected(
                key, row["provider"], row["feed"], row["connection"], row["reason"], row["payload"], row["received_ns"], key in done
            )


def retry(stream: Stream, table: Table, chosen: Callable[[Rejected], bool], ids: Collection[Id] = ()) -> Iterator[str]:
    """Send the chosen events to the raw topic again and yield their names. Events that were sent before are skipped.

    The bytes of a shortened event are read from its raw record. If they are gone, or too large for the raw topic, a warning says so, and
    the event is skipped. `ids`: consider only these. Raises ConfigError for an unknown id, Busy while another process retries events, and
    Unavailable. Then no event of the current batch was sent; earlier batches were."""
    lease = stream.hold(_LEASE)
    try:
        missing = sorted(set(ids) - {one.id for one in rejected(stream, table)}) if ids else []
        if missing:
            name = "-".join(map(str, missing[0]))
            raise ConfigError(f"No rejected event has the id {name}. `tapeline rejected list --all` lists all of them.")
        batches: dict[int, list[Rejected]] = {}
        ends = stream.ends(RAW_TOPIC)
        for number, one in enumerate(rejected(stream, table)):
            if number % _READ_ROWS == 0:
                lease.keep()
            partition, offset, _ = one.id
            if (ids and one.id not in ids) or one.retried or not chosen(one) or offset >= ends.get(partition, offset + 1):
                continue  # an offset at or past `ends` was sent by this call and has been rejected again already
            whole = _sendable(stream, one)
            if whole is None:
                continue
            batch = batches.setdefault(partition, [])
            batch.append(whole)
            if sum(len(some.payload) for some in batch) > _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
                yield from _send(stream, lease, batches.pop(partition))
        for batch in batches.values():
            yield from _send(stream, lease, batch)
    finally:
        lease.drop()


def _sendable(stream: Stream, one: Rejected) -> Rejected | None:
    """The event with all its bytes. None, with a warning, if they are gone or too large for the raw topic."""
    length = length_before(one.reason)
    if length is not None:
        payload = _whole(stream, one, length)
        if payload is None:
            log.warning(
                "%s was not sent: %d of its bytes were cut off, and Tapeline cannot read them from the raw topic. Retention removed the "
                "record, or the event is a row of a page.",
                one.name,
                length - len(one.payload),
            )
            return None
        one = replace(one, payload=payload)
    if len(one.payload) > TAKEN_EVERYWHERE // 2:
        size, most = len(arrow.encode(_again([one]))), stream.largest(RAW_TOPIC) - _OVERHEAD_BYTES
        if size > most:
            log.warning("%s was not sent: its message has %d bytes, and the raw topic takes at most %d.", one.name, size, most)
            return None
    return one


def _whole(stream: Stream, one: Rejected, length: int) -> bytes | None:
    """The full bytes of a shortened event, from its raw record: the whole frame, or one event of it. None if they are not there."""
    partition, offset, index = one.id
    record = _raw(stream, partition, offset)
    if record is None:
        return None
    frame = record["payload"].partition(b"\n")[2] if record["kind"] in HEADED else record["payload"]
    split = elements(frame)
    for candidate in (frame, bytes(split[index]) if index < len(split) else b""):
        if len(candidate) == length and candidate.startswith(one.payload):
            return bytes(candidate)
    return None


def _raw(stream: Stream, partition: int, offset: int) -> Mapping[str, Any] | None:
    """The raw record at an offset of a partition; None if it is gone."""
    at = dict(stream.ends(RAW_TOPIC))  # the other partitions start at their ends: only records that arrive meanwhile are read
    if not offset < at.get(partition, 0):
        return None
    at[partition] = offset
    while (chunk := stream.read(RAW_TOPIC, at, 1)) is not None:
        for row, (of_partition, at_offset) in enumerate(zip(chunk.partition.tolist(), chunk.offset.tolist(), strict=True)):
            if of_partition == partition:
                return chunk.batch.slice(row, 1).to_pylist()[0] if at_offset == offset else None
        at |= chunk.next
    return None


def _send(stream: Stream, lease: Lease, events: Sequence[Rejected]) -> Iterator[str]:
    """Append rejected events of one partition to the raw topic in one step, and yield their names."""
    lease.keep()
    partition = events[0].id[0]
    stream.append(RAW_TOPIC, _again(events), partition if partition < stream.partitions else 0)
    yield from (one.name for one in events)


def _again(events: Sequence[Rejected]) -> pa.RecordBatch:
    """Rejected events as raw records of the kind `retried`: one row of the schema `RAW` for each."""
    rows = [
        {
            "provider": one.provider,
            "feed": one.feed,
            "connection": one.connection,
            "kind": "retried",
            "received_ns": one.received_ns,
            "payload": msgspec.json.encode(_Retried(one.name)) + b"\n" + _as_frame(one),
        }
        for one in events
    ]
    return pa.RecordBatch.from_pylist(rows, RAW)


def _as_frame(event: Rejected) -> bytes:
    """An event's bytes as a frame. If the provider sends arrays of events, the frame is an array with this one event."""
    payload = event.payload
    provider = PROVIDERS.get(event.provider)
    if provider is None or not provider.arrays or not payload or event.reason.startswith(_WHOLE):
        return payload
    if payload[:1] == b"{":
        return b"[" + payload + b"]"
    is_map = 0x80 <= payload[0] <= 0x8F or payload[0] in (0xDE, 0xDF)  # MessagePack
    return b"\x91" + payload if is_map else payload


def _retried(stream: Stream, table: Table) -> set[Id]:
    """The ids of the events that were sent again: from raw records that normalize has still to read, and from its notices.

    The raw records are read first. If normalize reads one meanwhile, its notice is there when the notices are read."""
    positions = stream.positions("normalize", RAW_TOPIC)
    waiting = (row["payload"] for row in _read(stream, RAW_TOPIC, positions) if row["kind"] == "retried")
    details = [payload.partition(b"\n")[0].decode("utf-8", "replace") for payload in waiting]
    details += [row["detail"] for row in _rows(stream, NOTICES_TOPIC, table) if row["kind"] == "retried"]
    ids: set[Id] = set()
    for detail in details:
        with suppress(*UNREADABLE, ConfigError):  # a record of another program, or a shortened one, names no event
            ids.add(parse_id(_RETRIED.decode(detail).of))
    return ids


def _rows(stream: Stream, topic: Topic, table: Table) -> Iterator[Mapping[str, Any]]:
    """A topic's records from the stream, then those of the lake, which has records that the stream no longer has. Some come twice."""
    yield from _read(stream, topic, {})
    yield from table(topic.table)


def _read(stream: Stream, topic: Topic, positions: Mapping[int, int]) -> Iterator[Mapping[str, Any]]:
    at = dict(positions) or stream.tail_positions(topic, 1 << 62)
    ends = stream.ends(topic)
    while any(at.get(partition, 0) < end for partition, end in ends.items()):
        chunk = stream.read(topic, at, _READ_ROWS)
        if chunk is None:
            return
        at |= chunk.next
        yield from chunk.batch.to_pylist()


def _id(row: Mapping[str, Any]) -> Id:
    return row["raw_partition"], row["raw_offset"], row["raw_index"]
