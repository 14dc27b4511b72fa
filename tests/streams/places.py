"""A stream as the tests see it, whichever it is: how to open it here and in other processes, and how to read everything it holds."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from made import raws
from proving import PROVE
from tapeline.app.streams import open_stream
from tapeline.config import Config, StreamConfig
from tapeline.errors import Unavailable
from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC, Chunk, Topic
from tapeline.streams import PartitionLost
from waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tapeline.streams import Member, Outputs, Stream, Totals

#: Each stream with each codec.
WHOLE = ["embedded", "redis-arrow", "redis-protobuf", "kafka-arrow", "kafka-protobuf"]
#: For what depends on how records are written: of Kafka, where all takes longer, the usual codec is enough for every day.
EVERY = WHOLE if PROVE else [name for name in WHOLE if name != "kafka-arrow"]
#: For what does not depend on how records are written.
EACH = ["embedded", "redis-arrow", "kafka-arrow"]
SERVERS = ["redis-arrow", "kafka-arrow"]


def codecs(codec: str) -> dict[str, str]:
    return dict.fromkeys(("normalized", "bars", "notices", "rejected"), codec)


class Place:
    """One stream, fresh and empty when the test begins."""

    def __init__(self, kind: str, folder: Path, settings: dict[str, Any]) -> None:
        self.kind, self._folder, self._settings = kind, folder, settings
        self._opened: list[Stream] = []

    def described(self) -> dict[str, Any]:
        """For another process's `open_described`."""
        return {"data_dir": str(self._folder), "stream": self._settings}

    def open(self, **settings: Any) -> Stream:
        """Another object on the stream; it is closed with the test."""
        stream = open_described({"data_dir": str(self._folder), "stream": {**self._settings, **settings}})
        self._opened.append(stream)
        return stream

    @property
    def config(self) -> StreamConfig:
        return msgspec.convert(self._settings, StreamConfig)

    def name(self, topic: Topic, partition: int | None = None) -> str:
        """The topic's name on the server; of Redis that of a partition's stream."""
        return f"{self.prefix}{topic.name}{'' if partition is None else f':{partition}'}"

    @property
    def address(self) -> str:
        """Host and port of the Kafka broker."""
        return self.url.removeprefix("kafka://")

    @property
    def prefix(self) -> str:
        return str(self._settings.get("topic_prefix", ""))

    @property
    def url(self) -> str:
        return str(self._settings.get("url", "embedded:"))

    @property
    def arrow(self) -> bool:
        """Whether records of one batch are one entry of the stream on all topics."""
        return "codecs" not in self._settings or self._settings["codecs"]["normalized"] == "arrow"

    def close(self) -> None:
        for stream in self._opened:
            stream.close()
        self._opened.clear()


def open_described(described: dict[str, Any]) -> Stream:
    # Of raw records these tests know one reader alone; what another had still to read would never be trimmed.
    return open_stream(msgspec.convert({"ledger": False, **described}, Config), {})


def everything(stream: Stream, topic: Topic, positions: Mapping[int, int] | None = None, max_rows: int = 10_000) -> list[Chunk]:
    """Every chunk from the positions on. It ends when nothing waits, and each chunk has to begin where the one before ended."""
    at = dict.fromkeys(range(stream.partitions), 0) | dict(positions or {})
    found: list[Chunk] = []
    deadline = time.monotonic() + PATIENCE_S
    while any(stream.lag(topic, at).values()):
        assert time.monotonic() < deadline, f"something waits at {at} and is not read: {stream.lag(topic, at)}"
        chunk = stream.read(topic, at, max_rows)
        if chunk is None:
            continue
        assert chunk.batch.schema == topic.schema
        for partition, position in chunk.begin.items():
            assert position == at[partition]
            offsets = chunk.offset[chunk.partition == partition].tolist()
            assert offsets == sorted(set(offsets))
            assert all(position <= offset < chunk.next[partition] for offset in offsets), (position, offsets, chunk.next)
        at |= dict(chunk.next)
        found.append(chunk)
    return found


def by_partition(chunks: list[Chunk], column: str) -> dict[int, list[Any]]:
    """The values of a column in each partition, in order."""
    found: dict[int, list[Any]] = {}
    for chunk in chunks:
        for partition, value in zip(chunk.partition.tolist(), chunk.batch[column].to_pylist(), strict=True):
            found.setdefault(partition, []).append(value)
    return found


def column(stream: Stream, topic: Topic, name: str) -> list[Any]:
    """Every value of a column, partition by partition."""
    parts = by_partition(everything(stream, topic), name)
    return [value for partition in sorted(parts) for value in parts[partition]]


def polled(member: Member, max_rows: int = 10_000) -> Chunk:
    """The next chunk that a member gets."""
    deadline = time.monotonic() + PATIENCE_S
    while (chunk := member.poll(max_rows)) is None or not chunk.rows:
        assert time.monotonic() < deadline, f"nothing came within {PATIENCE_S:.0f} s"
    return chunk


def drained(member: Member, count: int) -> list[bytes]:
    """Payloads of so many records, each chunk committed without outputs of its own."""
    found: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records came within {PATIENCE_S:.0f} s"
        chunk = member.poll(10_000)
        if chunk is not None:
            member.commit(chunk, nothing(), {})
            found += chunk.batch["payload"].to_pylist()
    return found


def leave_behind_all(stream: Stream, member: Member, group: str = "normalize") -> None:
    """Wait until the group has nothing left to read, and leave it.

    On Kafka a position that is read just after a transaction may be the one before it. And a commit that is undone, as for a new
    generation of the group, gives the member the same records again."""

    def behind_all() -> bool:
        if (chunk := member.poll(1_000)) is not None:
            with suppress(PartitionLost):
                member.commit(chunk, nothing(), {})
        return not any(stream.lag(RAW_TOPIC, stream.positions(group, RAW_TOPIC)).values())

    until(behind_all, f"{group} is behind all of it")
    member.close()


def send_patiently(producer: Any, number: int, partition: int, batch: pa.RecordBatch) -> None:
    """A batch that is not taken yet is handed over again."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            producer.send(number, partition, batch)
            return
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def nothing() -> Outputs:
    """Outputs as a stage gives them that has made none."""
    return [(topic, pa.RecordBatch.from_pylist([], topic.schema)) for topic in NORMALIZED_TOPICS]


def commit(place: Place, stream: Stream, outputs: Outputs, totals: Totals | None = None, group: str = "normalize") -> None:
    """One whole step of a stage: a raw record is appended, read by a member of the group and committed with these outputs."""
    stream.append(RAW_TOPIC, raws(0, 1), 0)
    member = stream.join(group, RAW_TOPIC, "one")
    try:
        member.commit(polled(member), outputs, totals or {})
    finally:
        member.close()
