"""The Redis producer: sends raw batches on a connection of its own without waiting for answers.

If the connection breaks, it sends the batches without an answer again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Container, Mapping
from random import Random
from typing import Any, Final

import pyarrow as pa
import redis

from tapeline.errors import Refused, Unavailable
from tapeline.records import RAW_TOPIC, bytes_of
from tapeline.retry.backoff import backoff
from tapeline.streams.codecs import arrow
from tapeline.streams.redis.room import Room
from tapeline.streams.redis.scripts import script
from tapeline.streams.redis.server import RedisServer, without_point

log = logging.getLogger(__name__)

_RECONNECT_S: Final = 0.2
_RECONNECT_MOST_S: Final = 5.0
_MOST_UNSETTLED: Final = 256


class RedisProducer:
    """Sends without waiting for answers, on a connection of its own. If that breaks, sends what has no answer again."""

    def __init__(self, server: RedisServer, room: Room, writer: str) -> None:
        self._server, self._room, self._writer = server, room, writer
        self._connection: Any = None
        self._before = 0  # the last number sent on this connection
        self._torn: set[int] = set()  # partitions in which Redis has lost something that had settled
        self._script = ""
        self._problem = ""
        self._again_at = 0.0
        self._waits = backoff(Random(), _RECONNECT_S, _RECONNECT_MOST_S)
        self._open: deque[tuple[int, int, int, bytes]] = deque()  # number, partition, records, data
        self._settled = 0

    def send(self, number: int, partition: int, batch: pa.RecordBatch) -> None:
        if len(self._open) >= _MOST_UNSETTLED:
            self.settled()
            if len(self._open) >= _MOST_UNSETTLED:
                raise Unavailable(f"Redis at {self._server.shown} is behind: {len(self._open)} batches are not confirmed yet.")
        if self._connection is None:
            self._connect()
        self._room.make(RAW_TOPIC, bytes_of(batch))
        self._open.append((number, partition, batch.num_rows, bytes(arrow.encode(batch))))
        self._put(self._open[-1])

    def settled(self) -> int:
        if self._connection is None and self._open:
            try:
                self._connect()
            except (Unavailable, Refused) as error:
                self._problem = str(error)
        try:
            while self._connection is not None and self._open and self._connection.can_read(0):
                self._connection.read_response()
                self._settled = self._open.popleft()[0]
                self._problem, self._waits = "", backoff(Random(), _RECONNECT_S, _RECONNECT_MOST_S)
        except (redis.RedisError, OSError) as error:
            self._broken(error)
        return self._settled

    @property
    def refused(self) -> Collection[int]:
        return ()

    @property
    def problem(self) -> str:
        return self._problem

    def last_acknowledged(self, writer: str, since_ns: int) -> Mapping[int, Container[int]]:
        """As `Producer.last_acknowledged`. It also bars the earlier writer, which must be dead.

        Redis confirms what still comes from that writer, but stores none of it. Redis forgets a writer 30 days after its last batch, or 30
        days after it was barred. After that, nothing of it counts as arrived.
        """
        del since_ns
        with self._server.errors():
            bar = self._server.client.register_script(script("bar"))
            number = int(bar(keys=[self._server.keys.writer(writer), self._server.keys.writer_end(writer)]))
        return dict.fromkeys(range(self._server.partitions), range(1, number + 1))  # one connection carries all partitions in order

    def close(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while self._open and time.monotonic() < deadline:
            self.settled()
            time.sleep(0.005)
        if self._connection is not None:
            self._connection.disconnect()
        self._server.client.close()

    def _connect(self) -> None:
        """Open a new connection and send everything without an answer again. The writer's number prevents duplicates."""
        if time.monotonic() < self._again_at:
            raise Unavailable(self._problem or f"Redis at {self._server.shown} does not answer.")
        self._again_at = time.monotonic() + next(self._waits)
        self._server.begin(anew=True)
        with self._server.errors():
            self._script = self._server.client.script_load(script("send"))
            connection = self._server.client.connection_pool.make_connection()
            connection.connect()
            had = int(self._server.client.get(self._server.keys.writer(self._writer)) or 0)
        if had < self._settled:
            log.error(
                "Redis at %s has lost records that it had confirmed. The ones that no stage had read are lost. New records are kept. "
                "`tapeline gaps` shows what is missing. Set appendonly yes.",
                self._server.shown,
            )
            self._torn = set(range(self._server.partitions))
        self._connection, self._before = connection, 0
        for one in list(self._open):
            self._put(one)

    def _put(self, one: tuple[int, int, int, bytes]) -> None:
        if self._connection is None:
            return
        number, partition, records, data = one
        names = self._server.keys
        keys = (names.end(RAW_TOPIC, partition), names.stream(RAW_TOPIC, partition), names.writer(self._writer))
        try:
            torn = int(partition in self._torn)
            arguments = (number, self._server.run, records, data, self._before, torn)
            self._connection.send_command("EVALSHA", self._script, len(keys), *keys, *arguments)
            self._before = number
            self._torn.discard(partition)
        except (redis.RedisError, OSError) as error:
            self._broken(error)

    def _broken(self, error: Exception) -> None:
        self._problem = f"Redis at {self._server.shown}: {without_point(error)}. Tapeline sends the unconfirmed batches again."
        log.warning("%s", self._problem)
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
