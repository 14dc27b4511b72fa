"""Reports that a stream has lost records before a stage read them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from tapeline.records import NS_PER_S, Chunk, Topic
from tapeline.streams import Stream
from tapeline.streams.lives import crossed

log = logging.getLogger(__name__)

#: How often a stage that finds nothing to read checks whether the stream ends before the stage's position.
_LOOK_NS: Final = 60 * NS_PER_S
#: The status shows this many of the latest losses.
_MOST_SHOWN: Final = 16


class StreamLoss:
    """Detects, logs and collects the losses of one stage. A loss is a partition that began anew before the stage had read all of it."""

    def __init__(self, stream: Stream, group: str, clock: Callable[[], int]) -> None:
        self._stream, self._group, self._clock = stream, group, clock
        #: The latest losses, for the status: topic, partition, and when it was noticed (`noticed_ns`, UTC).
        self.losses: list[dict[str, Any]] = []
        #: (topic name, partition) pairs whose end lies before the stage's position.
        self.ahead: list[tuple[str, int]] = []
        self._due_ns: dict[Topic, int] = {}

    def look(self, topic: Topic, positions: Mapping[int, int]) -> None:
        """Log each partition that ends before the stage's position. Call it when the stage finds nothing to read; it works once a minute.

        Such a partition began anew at lower offsets, or is an older copy. `positions` maps partition to the next offset to read. An end
        of 0 proves nothing: retention has removed everything, or nothing has been written yet."""
        if self._clock() < self._due_ns.get(topic, 0):
            return
        self._due_ns[topic] = self._clock() + _LOOK_NS
        ends = self._stream.ends(topic)
        ahead = [(topic.name, partition) for partition, position in sorted(positions.items()) if 0 < ends.get(partition, 0) < position]
        for name, partition in ahead:
            log.error(
                "%s %d ends before the position of %s. It began anew while the clock was set back, or it is an older copy. Tapeline skips "
                "new records until their offsets are above that position. Set the clock right, then start Tapeline again: it keeps what "
                "comes after that. `tapeline gaps` shows what is missing.",
                name,
                partition,
                self._group,
            )
        self.ahead = [*(place for place in self.ahead if place[0] != topic.name), *ahead]

    def met(self, chunk: Chunk) -> list[int]:
        """Check a chunk before it is used. Logs and returns the partitions that began anew since the stage last read them."""
        partitions = crossed(chunk, self._stream.lives)
        for partition in partitions:
            log.error(
                "%s %d: the stream has begun anew. Its old records are gone, and those that %s had not read yet are lost. Tapeline "
                "continues with the records that came since, and keeps everything from now on. `tapeline gaps` shows what is missing. "
                "Repair fetches what a provider still has.",
                chunk.topic.name,
                partition,
                self._group,
            )
            self.losses = [*self.losses, {"topic": chunk.topic.name, "partition": partition, "noticed_ns": self._clock()}][-_MOST_SHOWN:]
        return partitions
