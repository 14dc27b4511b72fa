"""Delivers raw batches to the stream: directly while the stream takes them, through a spool on disk while it does not.

An exchange cannot be slowed down. So every batch is delivered once and in order, whatever the stream does. A batch is with the producer,
which delivers it however long that takes, or in the spool, which survives the process.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Container
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import msgspec
import pyarrow as pa

from tapeline.errors import DiskProblem, Refused, Unavailable
from tapeline.local.threads import concurrently
from tapeline.records import RAW, bytes_of
from tapeline.stages.ingest.spool import Spool, SpoolDamaged
from tapeline.streams import Producer

log = logging.getLogger(__name__)

#: Batches go to disk if the stream has not confirmed one within this time, or if this many bytes are unconfirmed.
_SLOW_S: Final = 1.0
_MOST_UNSETTLED_BYTES: Final = 32 * 1024 * 1024
#: At most about this much of the spool is on its way to the stream at a time.
_DRAIN_BYTES: Final = 8 * 1024 * 1024
_LOG_EVERY_S: Final = 10.0
_RECOVER_AGAIN_S: Final = 2.0
#: Errors that ingest waits out. A stream that is away comes back; one that refuses does so until somebody corrects its password or rights.
AWAY: Final = (Unavailable, Refused)
_FULL: Final = "the spool was full"
_LARGE: Final = "the stream takes no message as large"


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch that was handed to the producer and is not confirmed by the stream."""

    number: int
    partition: int
    batch: pa.RecordBatch
    size: int  # bytes
    at: float
    spooled: bool


@dataclass(slots=True)
class _Dropped:
    """Records of one connection that could not be kept."""

    reason: str
    records: int
    from_ns: int
    to_ns: int
    partition: int


class Delivery:
    """Delivers batches to the raw topic. Without a spool, `put` raises the stream's errors, and the caller has to wait.

    `failure` is an error that waiting cannot end: a newer Tapeline wrote the stream, or the code has a bug. The caller must stop then.
    With a spool, everything received until then is in the spool."""

    def __init__(self, producer: Producer, writer: str, spool: Spool | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._producer, self._writer, self._spool, self._clock = producer, writer, spool, clock
        self._number = 0
        self._sent: deque[_Sent] = deque()
        self._sent_bytes = 0
        self._sent_to = 0  # the highest number handed to the producer
        self._spooling = self._recovering = self._to_remove = False
        self._dropped: dict[tuple[str, str, str], _Dropped] = {}
        self._recovery: Future[list[tuple[str, int, Container[int]]]] | None = None
        self._log_at: dict[str, float] = {}
        self._recover_at = 0.0
        self._since = 0.0
        self.dropped = 0
        self.problem = ""
        self.failure: Exception | None = None

    def open(self) -> None:
        """Take over what an earlier process left in the spool. Raises DiskProblem when the spool cannot be opened."""
        if self._spool is not None:
            self._spool.open()
            self._number = self._spool.last
            if self._spool.records:
                log.warning("%d records of an earlier run wait in %s. They go to the stream first.", self._spool.records, self._spool.path)
                self._recovering = True
                self._spool_from_now("records of an earlier run wait in the spool")

    @property
    def unsettled(self) -> int:
        """Records that were handed to the producer, are not confirmed by the stream and are not in the spool."""
        return sum(sent.batch.num_rows for sent in self._sent if not sent.spooled)

    @property
    def spooled(self) -> int:
        """Records that wait in the spool on disk."""
        return self._spool.records if self._spool is not None else 0

    @property
    def spooled_bytes(self) -> int:
        """How many bytes wait on disk for the stream."""
        return self._spool.bytes if self._spool is not None else 0

    @property
    def busy(self) -> bool:
        """Whether `turn` has work to do."""
        return bool(self._sent or self._spooling or self._dropped or self.spooled)

    def put(self, partition: int, batch: pa.RecordBatch) -> None:
        """Take one batch, of the schema `RAW`, for a partition of the raw topic.

        Without a spool it raises the stream's errors, and the batch was not taken. With a spool it raises only SpoolDamaged."""
        number = self._number + 1
        if not self._spooling:
            try:
                self._send(number, partition, batch, spooled=False)
                self._number = number
                return
            except Exception as error:
                if self._spool is None:
                    raise
                self._note(error)
                self._spool_from_now(str(error))
        self._number = number
        self._keep(number, partition, batch)

    def turn(self) -> None:
        """Process the stream's confirmations, and send from the spool as much as the stream takes. Errors go to `problem` and `failure`."""
        try:
            self._settle()
            if self._spool is None:
                return
            if not self._spooling and self._sent and self._slow():
                self._spool_from_now(self._producer.problem or "the stream is slow or unavailable")
            if self._spooling:
                self._drain(self._spool)
        except AWAY as error:
            self._complain("away", str(error))
        except Exception as error:  # noqa: BLE001 kept in `failure`; the caller raises it
            self._note(error)

    def close(self, wait_s: float) -> int:
        """Wait up to `wait_s` seconds for confirmations (with a spool at most 1 s), and put the rest into the spool.

        Returns how many records are lost: those dropped so far, and those that are neither confirmed nor in the spool."""
        deadline = self._clock() + (wait_s if self._spool is None else min(wait_s, _SLOW_S))
        while self.unsettled and self._clock() < deadline:
            time.sleep(0.005)
            with suppress(*AWAY):  # what cannot be removed from the spool now is recognized as arrived at the next start
                self._settle()
        if self._sent and self._spool is not None and not self._spooling:
            self._spool_from_now("the stream did not confirm them before ingest stopped")
        lost = self.unsettled
        if self._spool is not None:
            with suppress(DiskProblem):
                self._own_up(partial(self._spool.put, self._writer))
            if self._spool.records:
                log.warning("%d records wait in %s. The next start sends them.", self._spool.records, self._spool.path)
            self._spool.close()
        self._producer.close(0.0)
        return lost + self.dropped

    def _send(self, number: int, partition: int, batch: pa.RecordBatch, *, spooled: bool) -> None:
        self._producer.send(number, partition, batch)
        size = bytes_of(batch)
        self._sent.append(_Sent(number, partition, batch, size, self._clock(), spooled))
        self._sent_bytes += size
        self._sent_to = number

    def _settle(self) -> None:
        until = self._producer.settled()
        while self._sent and self._sent[0].number <= until:
            sent = self._sent.popleft()
            self._sent_bytes -= sent.size
            self._to_remove = self._to_remove or sent.spooled
            if sent.number in self._producer.refused:
                self._drop(sent.partition, sent.batch, _LARGE)
                self._complain("dropped", f"{self._producer.problem} {self.dropped} received records could not be kept so far.")
        if self._to_remove and self._spool is not None:
            self._spool.remove(until)
            self._to_remove = False
        if self._dropped and not self._spooling:
            self._own_up(partial(self._send, spooled=False))

    def _slow(self) -> bool:
        return self._clock() - self._sent[0].at > _SLOW_S or self._sent_bytes > _MOST_UNSETTLED_BYTES

    def _spool_from_now(self, why: str) -> None:
        """Send all further batches through the spool. Unconfirmed batches are copied to it too.

        If this process dies, the next one asks the stream which of those have arrived."""
        self._spooling = True
        self._since = self._clock()
        self.problem = why
        log.error(
            "Received records go to disk from now on: %s. Nothing is lost. They follow in order when the stream accepts them.",
            why.rstrip("."),
        )
        kept = []
        while self._sent:
            sent = self._sent.popleft()
            on_disk = sent.spooled or self._keep(sent.number, sent.partition, sent.batch)
            kept.append(replace(sent, spooled=on_disk))
        self._sent.extend(kept)

    def _keep(self, number: int, partition: int, batch: pa.RecordBatch) -> bool:
        """Put a batch into the spool; return whether that worked. If not, and the producer does not have the batch, it is dropped."""
        assert self._spool is not None
        try:
            self._spool.put(self._writer, number, partition, batch)
        except DiskProblem as error:
            if number > self._sent_to:
                self._drop(partition, batch, _FULL)
            self._complain(
                "dropped", f"{error} {self.dropped} received records could not be kept so far. Make room, or restore the stream."
            )
            return False
        return True

    def _drop(self, partition: int, batch: pa.RecordBatch, reason: str) -> None:
        self.dropped += batch.num_rows
        keys = zip(*(batch[name].to_pylist() for name in ("provider", "feed", "connection", "received_ns")), strict=True)
        for provider, feed, connection, received_ns in keys:
            entry = self._dropped.setdefault((provider, feed, connection), _Dropped(reason, 0, received_ns, received_ns, partition))
            entry.records += 1
            entry.to_ns = received_ns

    def _note(self, error: Exception) -> None:
        if not isinstance(error, AWAY) and self.failure is None:
            self.failure = error
            if isinstance(error, SpoolDamaged):
                log.error("%s", error)
                return
            log.error("The stream failed, and waiting cannot help. Ingest stops: %s: %s", type(error).__name__, error)

    def _complain(self, what: str, text: str) -> None:
        """Log a problem as an error, each kind at most every 10 s."""
        self.problem = text
        if self._clock() >= self._log_at.get(what, 0.0):
            self._log_at[what] = self._clock() + _LOG_EVERY_S
            log.error("%s", text)

    def _recovered(self, spool: Spool) -> bool:
        """Remove the batches of earlier processes that have arrived. Returns whether that is done.

        A thread asks the stream, because the answer may take a minute. Raises Unavailable when the stream does not answer."""
        if self._recovery is None:
            if self._clock() < self._recover_at:
                return False
            writers = {name: since for name, since in spool.writers().items() if name != self._writer}
            self._recovery = concurrently(
                lambda: [
                    (name, partition, numbers)
                    for name, since in writers.items()
                    for partition, numbers in self._producer.last_acknowledged(name, since).items()
                ],
                "recovery",
            )
        if not self._recovery.done():
            return False
        recovery, self._recovery = self._recovery, None
        if (error := recovery.exception()) is not None:  # no answer does not mean that nothing has arrived
            self._recover_at = self._clock() + _RECOVER_AGAIN_S
            raise Unavailable(f"Tapeline does not know yet which records of an earlier run have arrived: {error}") from error
        for writer, partition, numbers in recovery.result():
            spool.remove_of(writer, partition, numbers)
        spool.inherit(self._writer)
        self._recovering = False
        return True

    def _drain(self, spool: Spool) -> None:
        if self._recovering and not self._recovered(spool):
            return
        with suppress(DiskProblem):  # if the spool has no room, it is sent when the spool is drained
            self._own_up(partial(spool.put, self._writer))
        while self._sent_bytes < _DRAIN_BYTES:
            batches = list(spool.after(self._sent_to))
            for waiting in batches:
                self._send(waiting.number, waiting.partition, waiting.batch, spooled=True)
            if not batches:
                if not (self._sent and self._slow()):
                    self._own_up(partial(self._send, spooled=False))
                    self._spooling = False
                    self.problem = ""
                    log.warning(
                        "The stream accepts records again after %.0f s. It has everything that was on disk.", self._clock() - self._since
                    )
                return

    def _own_up(self, take: Callable[[int, int, pa.RecordBatch], None]) -> None:
        """Write a record for each connection that says how many of its records were dropped, so that the gap is visible."""
        for (provider, feed, connection), dropped in list(self._dropped.items()):
            detail = {"records": dropped.records, "from_ns": dropped.from_ns, "to_ns": dropped.to_ns, "reason": dropped.reason}
            row = (provider, feed, connection, "dropped", dropped.to_ns, msgspec.json.encode(detail))
            batch = pa.RecordBatch.from_arrays([pa.array([value], field.type) for value, field in zip(row, RAW, strict=True)], schema=RAW)
            take(self._number + 1, dropped.partition, batch)
            self._number += 1
            del self._dropped[provider, feed, connection]
