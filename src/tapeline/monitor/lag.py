"""How late each group is: what it has still to read of each partition, in records and in time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC, Topic
from tapeline.stores import Store
from tapeline.streams import Stream


@dataclass(frozen=True, slots=True)
class Lag:
    """What a group has still to read of a partition."""

    group: str
    topic: Topic
    partition: int
    #: How many records wait; on Kafka it is messages, which hold several records.
    records: int
    #: The age of the oldest of them, since it was received, in ns; 0 if none waits.
    age_ns: int


def places(stream: Stream, stores: Mapping[str, Store], raw_groups: Sequence[str]) -> list[tuple[str, Topic, dict[int, int]]]:
    """Return each group with each topic that it reads, and its positions there. Raises Unavailable."""
    raw = [(group, RAW_TOPIC, stream.positions(group, RAW_TOPIC)) for group in raw_groups]
    return raw + [(name, topic, store.totals(topic).positions) for name, store in stores.items() for topic in NORMALIZED_TOPICS]


def lags(stream: Stream, stores: Mapping[str, Store], raw_groups: Sequence[str], now_ns: int) -> Iterator[Lag]:
    """Yield the lag of the groups that read the raw topic, and of the stores. `now_ns`: UTC. Raises Unavailable.

    The first record that waits is read, where one does. Positions are read before the ends, so that no lag is negative."""
    for group, topic, positions in places(stream, stores, raw_groups):
        waiting = stream.lag(topic, positions)
        ends = stream.ends(topic) if any(waiting.values()) else {}
        for partition, records in waiting.items():
            age_ns = _age_ns(stream, topic, positions, partition, ends, now_ns) if records else 0
            yield Lag(group, topic, partition, records, age_ns)


def _age_ns(stream: Stream, topic: Topic, positions: Mapping[int, int], partition: int, ends: Mapping[int, int], now_ns: int) -> int:
    others = {some: end for some, end in ends.items() if some != partition}
    chunk = stream.read(topic, {**others, partition: positions.get(partition, 0)}, 1)
    return max(0, now_ns - min(chunk.batch["received_ns"].to_pylist())) if chunk is not None else 0
