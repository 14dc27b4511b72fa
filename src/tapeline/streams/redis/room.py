"""Memory in Redis: entries that every group has read are trimmed, and writes wait while Redis holds more than its bound."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis

from tapeline.errors import Unavailable
from tapeline.records import NORMALIZED_TOPICS, RAW_TOPIC, TOPICS, Topic
from tapeline.streams.redis.server import RedisServer

_LOOK_EVERY_S: Final = 1.0
#: Also look when this share of the memory bound has been written since the last look.
_LOOK_EVERY_SHARE: Final = 1 / 16


class Room:
    """Checks the server's memory before a write, about once a second."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._look_due = 0.0
        self._unlooked = 0
        self._full = ""
        self._made_full = False

    def make(self, topic: Topic, size: int) -> None:
        """Make room for `size` bytes: trim if memory requires it. Raises Unavailable while Redis is full and nothing can be trimmed.

        A writer of normalized records waits only if the normalized topics themselves hold too much. It then waits only for the readers
        of those topics."""
        now = time.monotonic()
        bound = self._server.config.memory_mb * 1024 * 1024
        self._unlooked += size
        if now >= self._look_due or (self._unlooked > bound * _LOOK_EVERY_SHARE and not self._full):
            self._look_due, self._unlooked = now + _LOOK_EVERY_S, 0
            with self._server.errors():
                memory = self._memory()
                if memory > bound / 2:
                    self._trim(everything=memory > bound)
                    memory = self._memory()
            self._full, self._made_full = "", False
            if memory > bound:
                self._made_full = self._held(NORMALIZED_TOPICS) > bound / 2
                self._full = (
                    f"Redis at {self._server.shown} holds {memory / 1e6:,.0f} MB, more than stream.memory_mb = "
                    f"{self._server.config.memory_mb} allows. A group has not read all of it yet "
                    "(see `tapeline status`). Nothing is dropped: Tapeline waits. Start the reader that is behind, or raise memory_mb."
                )
        if self._full and (topic is RAW_TOPIC or self._made_full):
            raise Unavailable(self._full)

    def _memory(self) -> int:
        return int(self._server.client.info("memory")["used_memory"])

    def _held(self, topics: Sequence[Topic]) -> int:
        """Return the bytes of memory that the topics take."""
        with self._server.errors():
            pipe = self._server.client.pipeline(transaction=False)
            for topic in topics:
                for partition in range(self._server.count):
                    pipe.memory_usage(self._server.keys.stream(topic, partition))
            return sum(size or 0 for size in pipe.execute())

    def _trim(self, *, everything: bool) -> None:
        """Remove entries that every group has read, other programs' groups included: the older half, or all of them."""
        keys = [self._server.keys.stream(topic, partition) for topic in TOPICS.values() for partition in range(self._server.count)]
        pipe = self._server.client.pipeline(transaction=False)
        for key in keys:
            pipe.xinfo_groups(key)
            pipe.xrange(key, count=1)
        answers = pipe.execute(raise_on_error=False)
        for key, groups, oldest in zip(keys, answers[::2], answers[1::2], strict=True):
            if isinstance(groups, redis.ResponseError) or not groups or not oldest:
                continue  # nothing was written there, or no group is known
            until = min(_read_up_to(self._server.client, key, group) for group in groups)
            first = int(oldest[0][0].partition(b"-")[0])
            if until >= first:
                self._server.client.xtrim(
                    key, minid=f"{until + 1 if everything else (first + until) // 2 + 1}-0", approximate=not everything
                )


def _read_up_to(client: Any, key: str, group: Mapping[str, Any]) -> int:
    """Return the position up to which a group has read and acknowledged everything."""
    delivered = int(group["last-delivered-id"].partition(b"-")[0])
    if group["pending"]:  # set by a program that reads with XREADGROUP
        oldest, count = client.xpending(key, group["name"])["min"].split(b"-")
        return min(delivered, int(oldest) - int(count))
    return delivered
