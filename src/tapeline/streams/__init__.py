"""The streaming layer: topics of Arrow batches, split into partitions, behind one small interface.

Readers either keep positions of their own or share a topic's partitions as a group.

A position says where to read a partition next. A record's offset is the position at which the record is found. Both only grow, even
when a stream loses its data and starts again (lives.py). The numbers are the stream's own. On the embedded stream and on Redis they
count records from where the partition's life began; on Kafka they hold the message's offset and the row in the message.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import pyarrow as pa

from tapeline.errors import TapelineError
from tapeline.records import Chunk, Topic

#: How a topic's records are encoded. `arrow`: one entry holds a batch. `protobuf`: one message of proto/market_data.proto holds one
#: record.
Codec = Literal["arrow", "protobuf"]
#: The group whose totals, keyed by table, count the records that were appended to the normalized topics outside any stage's commit, for
#: example by a replay. Only streams that count records keep these totals.
APPENDED: Final = "appended"
#: Running totals that are committed with the outputs they count. Maps a total's name to the amount to add.
Totals = Mapping[str, int]
#: Batches that are written together. The topic's key decides which partition each record goes to.
Outputs = Sequence[tuple[Topic, pa.RecordBatch]]


@dataclass(frozen=True, slots=True)
class Written:
    """How much was written to a partition in one of its lives."""

    #: The offset of the life's first record. Together with the partition it identifies the life.
    since: int
    records: int


class PartitionLost(TapelineError):
    """Another member of the group has taken over the partition that was read here.

    Nothing was written. The other member reads the same records.
    """


class Stream(Protocol):
    """The interface of every stream.

    Calls raise `Unavailable` when nothing was done and the caller may try again; no call half succeeds.
    """

    @property
    def partitions(self) -> int:
        """The number of partitions of the raw topic. While the stream is away, the configured number."""

    @property
    def counts_records(self) -> bool:
        """Whether the stream counts lag and progress in records. If not, it counts in messages, each of which holds some records."""

    def append(self, topic: Topic, batch: pa.RecordBatch, partition: int | None = None) -> None:
        """Write a batch to one partition, or each record to the partition of its key.

        Once the call returns, no process crash loses the batch.
        """

    def read(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        """Return the next records at or after each partition's position, about `max_rows` at most, or None if there are none yet.

        A partition without a position is read from 0.
        """

    def producer(self, writer: str) -> Producer:
        """Return a producer for a writer that cannot wait.

        `writer` must identify this one writer for as long as it lives, and must never be reused.
        """

    def join(self, group: str, topic: Topic, name: str = "") -> Member:
        """Join the group that shares the topic's partitions. If Kafka goes away, the member waits for it: `poll` returns None.

        `name` must be one that no other process has at the same time. A process that comes back under its old name gets at once what
        its predecessor left open."""

    def acknowledge(self, group: str, topic: Topic, positions: Mapping[int, int], counted: tuple[int | None, int] | None = None) -> bool:
        """Record how far a group that keeps its own positions has come. Retention keeps what the group has still to read.

        `counted` applies where the stream counts records. It holds the group's total `<table>/read` as the caller last saw it (None:
        there was no total), and the number of records to add to it. If the total has another value by now, because the stream lost it,
        nothing is done and the call returns False."""

    def positions(self, group: str, topic: Topic) -> dict[int, int]:
        """Return where `group` reads each partition next."""

    def totals(self, group: str) -> dict[str, int]:
        """Return the totals that `group` has committed."""

    def ends(self, topic: Topic) -> dict[int, int]:
        """Return the position after the last record of each partition of the topic."""

    def lives(self, topic: Topic) -> dict[int, int]:
        """Return where each partition's present life begins.

        Records before that position that were not read are gone. 0: the partition has had no other life.
        """

    def written(self, topic: Topic) -> dict[int, Written]:
        """Return how many records were written to each partition in its present life.

        A partition is left out if its records were not counted from the life's first record on. That is so on Kafka and in a topic of
        an earlier version."""

    def tail_positions(self, topic: Topic, rows: int) -> dict[int, int]:
        """Return positions from which about `rows` records, or a few more, remain to be read in each partition."""

    def lag(self, topic: Topic, positions: Mapping[int, int]) -> dict[int, int]:
        """Return the number of entries at or after the position, for each partition.

        The number is zero exactly when a reader finds nothing and nothing is on its way (on Kafka: in an open transaction)."""

    def hold(self, name: str) -> Lease:
        """Become the only process that holds `name`. Raises `Busy` while another process holds it."""

    def note(self, name: str, text: str) -> None:
        """Store a short text (3 kB) with the records, for readers that start in the middle of them.

        It replaces an earlier text of this name.
        """

    def noted(self, name: str) -> str:
        """Return the stored text, or an empty string if there is none."""

    def largest(self, topic: Topic) -> int:
        """Return the largest message, in bytes, that the topic takes according to the server now. The server never takes a larger one.

        Every stream takes records of up to `shortening.TAKEN_EVERYWHERE` bytes, so nobody has to ask for those."""

    def risks(self) -> list[str]:
        """Return the server settings that may lose records, each with its remedy, for the person who sets up the server."""

    def close(self) -> None:
        """Release files and connections. Idempotent."""


class Member(Protocol):
    """One process of a group. It reads the partitions it owns at the moment and commits what it made of them."""

    @property
    def partitions(self) -> Sequence[int]:
        """The partitions that this member owned at its last `poll`."""

    def poll(self, max_rows: int) -> Chunk | None:
        """Return the next records of this member's partitions that no member has committed, or None if there are none at the moment.

        Records that an earlier call returned and this member has not committed are returned again."""

    def commit(self, chunk: Chunk, outputs: Outputs, totals: Totals) -> None:
        """Write the outputs, add to the totals and move the group past `chunk`, all in one atomic step.

        Raises PartitionLost if another member owns part of the chunk by now. Raises Unavailable if the step failed; the next `poll`
        then returns the same records again."""

    def close(self) -> None:
        """Leave the group. The other members take over at once."""


class Producer(Protocol):
    """Appends raw batches without waiting. It delivers every batch handed to it once and in order, however long the stream is away."""

    def send(self, number: int, partition: int, batch: pa.RecordBatch) -> None:
        """Hand over a batch. Numbers must grow from call to call. Raises Unavailable if the batch was not handed over."""

    def settled(self) -> int:
        """Return the number up to which every batch is in the stream, where no process crash loses it."""

    @property
    def refused(self) -> Collection[int]:
        """The numbers that count as settled although the stream will never take their batches, which are larger than it allows."""

    @property
    def problem(self) -> str:
        """The stream's last answer if it was an error. Empty if the last answer was good or there was none."""

    def last_acknowledged(self, writer: str, since_ns: int) -> Mapping[int, Container[int]]:
        """Return the numbers of an earlier writer that have arrived, for each partition that has any.

        That writer spooled nothing before `since_ns` (ns, UTC). The call may take a minute and may come from another thread."""

    def close(self, wait_s: float) -> None:
        """Wait up to `wait_s` seconds for what is not settled, then give it up."""


class Lease(Protocol):
    """The right to be the only process that does something, for as long as it is renewed. A process that dies loses it within seconds."""

    def keep(self) -> None:
        """Renew the lease; call it about once a second. Raises Busy if the lease was lost, Unavailable if that cannot be known."""

    def drop(self) -> None:
        """Release the lease, so that the next process can have it at once."""
