"""What a stage says where its stream has lost what the stage had not read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from tapeline.records import NS_PER_S, Chunk, Topic
from tapeline.streams import Stream
from tapeline.streams.lives import crossed

log = logging.getLogger(__name__)

#: So often a stage that finds nothing looks whether the stream ends before its place.
_LOOK_NS: Final = 60 * NS_PER_S
#: Of lives that began anew, so many are shown.
_MOST_TOLD: Final = 16


class StreamLoss:
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
