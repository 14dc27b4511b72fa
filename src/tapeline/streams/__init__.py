"""The streaming layer: topics of Arrow batches in partitions, read by position or shared by a group, behind one small interface.

A position is where to read a partition next; a record's offset is the position at which it is found. Both only grow, also where a stream
has forgotten what it held and begins anew (lives.py). They are the stream's own numbers: on the embedded stream and on Redis they count
records from where the partition's life began, on Kafka they hold the message's offset and the row in it.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import pyarrow as pa

from tapeline.errors import TapelineError
from tapeline.records import Chunk, Topic

#: How records of a topic are written: `arrow`, a batch an entry; `protobuf`, a message of proto/market_data.proto a record.
Codec = Literal["arrow", "protobuf"]
#: The group whose totals (by table) count what was appended to the normalized topics by nobody's step, as by a replay; where the stream
#: counts records.
APPENDED: Final = "appended"
#: Running totals that are committed with the outputs they count: name of the total to what to add.
Totals = Mapping[str, int]
#: Batches that are written together, each spread over its topic's partitions by the topic's key.
Outputs = Sequence[tuple[Topic, pa.RecordBatch]]


@dataclass(frozen=True, slots=True)
class Written:
    """What was written to a partition in one life of it."""

    #: The offset of the life's first record: with the partition it names the life.
    since: int
    records: int


class PartitionLost(TapelineError):
    """Another member of the group has taken over what was read here; nothing was written, and it reads the same records."""


class Stream(Protocol):
    """What every stream offers. Calls raise `Unavailable` (try again, nothing was done) and never half succeed."""

    @property
    def partitions(self) -> int:
        """Of the raw topic; while the stream is away, as many as are configured."""

    @property
    def counts_records(self) -> bool:
        """Whether it counts in records what waits and what groups have read; else in messages, which hold some."""

    def append(self, topic: Topic, batch: pa.RecordBatch, partition: int | None = None) -> None:
        """Write a batch, to one partition or to that of each record's key; when this returns, no crash of a process loses it."""

    def read(self, topic: Topic, positions: Mapping[int, int], max_rows: int) -> Chunk | None:
        """The next records at or after each partition's position (0 where none is given), about `max_rows` at most; None: none yet."""

    def producer(self, writer: str) -> Producer:
        """For a writer that cannot wait. `writer` names it for as long as it lives, and no other one ever."""

    def join(self, group: str, topic: Topic, name: str = "") -> Member:
        """Share the topic's partitions with the other members of the group. A Kafka that goes away is waited for: `poll` gives nothing.

        `name`: one that no other process has at the same time. Who comes back under it has at once what its predecessor left open."""

    def acknowledge(self, group: str, topic: Topic, positions: Mapping[int, int], counted: tuple[int | None, int] | None = None) -> bool:
        """Say how far a group that keeps its own positions has come: retention spares what it has still to read.

        `counted`, where the stream counts records: the group's total `<table>/read` as the caller last saw it (None: there was none), and
        the records to add to it. Where the total is another by now, because the stream has lost it, nothing is done, and it is False."""

    def positions(self, group: str, topic: Topic) -> dict[int, int]:
        """Where `group` reads each partition next."""

    def totals(self, group: str) -> dict[str, int]:
        """The totals that `group` has committed."""

    def ends(self, topic: Topic) -> dict[int, int]:
        """For each partition of the topic, the position after its last record."""

    def lives(self, topic: Topic) -> dict[int, int]:
        """For each partition, where its present life begins: what lay before and was not read is gone. 0: it has had no other."""

    def written(self, topic: Topic) -> dict[int, Written]:
        """How many records were written to each partition in its present life. Left out: those whose count is not known from the life's
        first record on, as on Kafka, or in a topic of an earlier version."""

    def tail_positions(self, topic: Topic, rows: int) -> dict[int, int]:
        """Positions from which about `rows` records, or a few more, are left to read in each partition."""

    def lag(self, topic: Topic, positions: Mapping[int, int]) -> dict[int, int]:
        """For each partition, the entries at or after the position: zero exactly where a reader finds nothing, and nothing is on its way
        (on Kafka: in a transaction that is not ended)."""

    def hold(self, name: str) -> Lease:
        """Be the only process that holds `name`. Raises `Busy` while another one does."""

    def note(self, name: str, text: str) -> None:
        """Keep a short text (3 kB) beside the records, in place of an earlier one, for who reads from the middle of them."""

    def noted(self, name: str) -> str:
        """The text; empty where there is none."""

    def largest(self, topic: Topic) -> int:
        """How many bytes a message of the topic may have, as the server says at the moment; a larger one is never taken.

        Records of `shortening.TAKEN_EVERYWHERE` bytes are taken by every stream: nobody has to ask for them."""

    def risks(self) -> list[str]:
        """What in the server's settings may lose records, each with what to do; for who sets it up."""

    def close(self) -> None:
        """Release files and connections; idempotent."""


class Member(Protocol):
    """One process of a group: reads the partitions that are its own at the moment, and commits what it made of them."""

    @property
    def partitions(self) -> Sequence[int]:
        """Which partitions are this member's, as of its last `poll`."""

    def poll(self, max_rows: int) -> Chunk | None:
        """The next records of its partitions that no member has committed; None when there are none for the moment.

        What it gave before and this member has not committed, it gives again."""

    def commit(self, chunk: Chunk, outputs: Outputs, totals: Totals) -> None:
        """In one atomic step: write the outputs, add to the totals, and move the group behind `chunk`.

        Raises PartitionLost where part of it is another member's by now; Unavailable: the next `poll` gives the same records again."""

    def close(self) -> None:
        """Leave the group: the others take over at once."""


class Producer(Protocol):
    """Appends raw batches without waiting. What it was handed, it delivers once and in order, however long the stream is away."""

    def send(self, number: int, partition: int, batch: pa.RecordBatch) -> None:
        """Hand over a batch; numbers only grow. Raises Unavailable: then it was not handed over."""

    def settled(self) -> int:
        """The number up to which everything is in the stream, where no crash of a process loses it."""

    @property
    def refused(self) -> Collection[int]:
        """Numbers that settle though the stream will never take them: they are larger than it lets one be."""

    @property
    def problem(self) -> str:
        """What the stream has answered last, where it was not good; empty where it was, and where nothing is known."""

    def last_acknowledged(self, writer: str, since_ns: int) -> Mapping[int, Container[int]]:
        """The numbers of an earlier writer that have arrived, in each partition that has one; it spooled nothing before `since_ns`.

        It may take a minute, and may be called from another thread."""

    def close(self, wait_s: float) -> None:
        """Wait so long for what is not settled; then let it go."""


class Lease(Protocol):
    """The right to be the only one, for as long as it is kept up; a process that dies loses it within seconds."""

    def keep(self) -> None:
        """To be called about once a second. Raises Busy when it was lost, Unavailable when that cannot be known."""

    def drop(self) -> None:
        """Let the next one have it at once."""
