"""The normalize stage reads raw records and commits ticks, bars, notices, rejects and its position in one step."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from random import Random
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tapeline.providers.decoding import native
from tapeline.providers.events import Decode, Events, Names, Reject
from tapeline.providers.normalizing import Count, Normalized, normalize
from tapeline.records import NORMALIZED_TOPICS, NOTICES_TOPIC, NS_PER_S, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk, Topic
from tapeline.retry import loop
from tapeline.retry.backoff import backoff
from tapeline.stages.forgotten import StreamLoss
from tapeline.stages.names import KnownNames
from tapeline.streams import Member, PartitionLost, Stream
from tapeline.streams.lives import ReadOfLives
from tapeline.streams.shortening import TAKEN_EVERYWHERE, larger, shortened
from tapeline.telemetry import families
from tapeline.telemetry.latencies import Latencies
from tapeline.telemetry.status import Rate, StatusFile

log = logging.getLogger(__name__)

#: The consumer group of the normalize stage.
NORMALIZE: Final = "normalize"
_REST_S: Final = 0.0005
_CHUNK_ROWS: Final = 24_576
#: The age of the newest tick shows a wrong clock above the first value. From the second value on, the data is late by design.
_CLOCK_OFF_NS: Final = NS_PER_S
_OF_HISTORY_NS: Final = 600 * NS_PER_S
#: An event that was so old when it was received came from a history. A delayed feed is 15 minutes late.
_OLD_NS: Final = 3_600 * NS_PER_S


class Normalize:
    """Reads raw records and writes ticks, bars, notices and rejects. The rows, the counts and the position are one commit."""

    def __init__(
        self,
        stream: Stream,
        decoders: Mapping[str, Decode],
        status: StatusFile,
        clock: Callable[[], int] = time.time_ns,
        *,
        name: str = "",
        names: Names = MappingProxyType({}),
    ) -> None:
        """`name`: the worker's name, as in `Stream.join`. `names`: the configured symbol names. `clock`: UTC, ns."""
        self._stream = stream
        self._names = KnownNames(stream, names)
        self._join: Callable[[], Member] = lambda: stream.join(NORMALIZE, RAW_TOPIC, name)
        self._member: Member | None = None
        self._decoders = decoders
        self._status = status
        self._clock = clock
        self._forgotten = StreamLoss(stream, NORMALIZE, clock)
        self._read = ReadOfLives(stream, NORMALIZE)
        self._latencies: dict[str, Latencies] = {}  # provider -> from receipt to the commit here
        self._receipts: dict[str, Latencies] = {}  # provider -> from the event to its receipt
        self._rates: dict[str, Rate] = {}
        self._ages: dict[str, int] = {}  # provider -> age (ns) of its newest tick since the last report

    def step(self) -> bool:
        """Read some raw records and commit what they become. Return False if there were none at the moment.

        The first call joins the group. About once a second, a call also writes the status. If another member has taken over a partition
        meanwhile, nothing is committed here, and the result is True. Raises Unavailable; the next call then reads the same records again.
        """
        self._status.maybe(self._report)
        if self._member is None:  # join here, not in __init__: `loop.run` then waits for a stream that is away
            self._member = self._join()
        chunk = self._member.poll(_CHUNK_ROWS)
        if chunk is None:
            return False
        self._forgotten.met(chunk)
        normalized = normalize_all(chunk, self._decoders, names=self._names.of(chunk))
        outputs = [(topic, _fitting(self._stream, topic, normalized.batches[topic])) for topic in NORMALIZED_TOPICS]
        try:
            self._member.commit(chunk, outputs, {**totals_of(normalized.counts), **self._read.of(chunk)})
        except PartitionLost as lost:
            log.info("%s Nothing was written here. The group continues from the same records.", lost)
            return True
        self._observe(normalized)
        return True

    def _observe(self, normalized: Normalized) -> None:
        ticks = normalized.batches[TICKS_TOPIC]
        late = self._clock() - ticks["received_ns"].to_numpy()
        for (provider, _), count in normalized.counts.items():
            if provider not in self._rates:
                self._rates[provider] = Rate(self._clock)
                self._latencies[provider], self._receipts[provider] = Latencies(self._clock), Latencies(self._clock)
            self._rates[provider].add(count.ticks)
        for provider in {provider for provider, _ in normalized.counts}:
            ages = ticks["latency_ns"]
            mine = late
            if len({name for name, _ in normalized.counts}) > 1:
                of_it = np.array(ticks["provider"].to_pylist(), dtype=object) == provider
                mine, ages = late[of_it], ages.filter(pa.array(of_it))
            if len(mine):
                self._latencies[provider].add(mine)
            age_ns = (ages.drop_null() if ages.null_count else ages).to_numpy()
            if len(age_ns):
                self._receipts[provider].add(age_ns[age_ns < _OLD_NS])
                youngest_ns = int(age_ns.min())
                self._ages[provider] = min(youngest_ns, self._ages.get(provider, youngest_ns))

    def _report(self) -> dict[str, Any]:
        off_s = {name: _off_s(self._ages.pop(name, None)) for name in self._rates}
        return {
            "partitions": list(self._member.partitions) if self._member is not None else [],
            "providers": {
                name: {
                    "ticks_per_s": self._rates[name].take(),
                    "p50_ms": (latencies := self._latencies.get(name)) and latencies.ms(0.50),
                    "p99_ms": latencies and latencies.ms(0.99),
                    "clock_off_s": off_s[name],
                }
                for name in self._rates
            },
            "decoder": native.in_use(),
            "metrics": [
                families.NATIVE.at(bool(native.version())),
                *(families.RECEIPT.at(some.since_start(), name) for name, some in self._receipts.items()),
                *(families.PIPELINE.at(some.since_start(), name, "stream") for name, some in self._latencies.items()),
                *(families.CLOCK_OFFSET.at(seconds or 0.0, name) for name, seconds in off_s.items()),
            ],
            "forgotten": self._forgotten.losses,
            "ahead": self._forgotten.ahead,
        }

    def finish(self) -> None:
        """Write the last status and leave the group, so that the other workers take over at once."""
        self._status.write(self._report())
        if self._member is not None:
            self._member.close()


def _fitting(stream: Stream, topic: Topic, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, with rows shortened that are too large for the stream.

    The stream is asked for its limit only if a row may exceed it, and asked every time, because an operator can change the limit."""
    if topic not in (NOTICES_TOPIC, REJECTED_TOPIC) or not batch.num_rows or not len(larger(topic, batch, TAKEN_EVERYWHERE)):
        return batch
    fitting = shortened(topic, batch, stream.largest(topic))
    if (left := batch.nbytes - fitting.nbytes) > 0:
        log.warning(
            "Some rows are too large for %s. Tapeline cut %d bytes. Each cut row says how many, and where the whole is.",
            topic.name,
            left,
        )
    return fitting


def _off_s(age_ns: int | None) -> float | None:
    """How many seconds the receiving clock is ahead of the provider's clock; negative if it is behind.

    None if the age is within network latency, or so large that the data is late by design: a delayed feed or a page of history."""
    return age_ns / NS_PER_S if age_ns is not None and _CLOCK_OFF_NS < abs(age_ns) < _OF_HISTORY_NS else None


def normalize_all(chunk: Chunk, decoders: Mapping[str, Decode], *, copies: bool = False, names: Names = MappingProxyType({})) -> Normalized:
    """Call `normalize`. If a decoder fails, split the chunk in halves until the bad record is found, and reject only that record."""
    try:
        return normalize(chunk, decoders, copies=copies, names=names)
    except MemoryError:
        raise  # running out of memory is no fault of a record
    except Exception as error:  # noqa: BLE001 a decoder may raise anything; one record must not stop those behind it
        if chunk.rows == 1:
            reason = f"the decoder failed: {type(error).__name__}: {error}"
            log.error("Raw record %d of partition %d is rejected: %s", chunk.offset[0], chunk.partition[0], reason)
            return normalize(chunk, dict.fromkeys(decoders, _rejecting(reason)), copies=copies)
    half = chunk.rows // 2
    left = normalize_all(chunk.slice(0, half), decoders, copies=copies, names=names)
    right = normalize_all(chunk.slice(half, chunk.rows), decoders, copies=copies, names=names)
    counts = {key: left.counts.get(key, Count()) + right.counts.get(key, Count()) for key in {**left.counts, **right.counts}}
    return Normalized({topic: pa.concat_batches([left.batches[topic], right.batches[topic]]) for topic in left.batches}, counts)


def _rejecting(reason: str) -> Decode:
    """A decoder that rejects every frame."""

    def decode(feed: str, frames: Iterable[tuple[int, bytes]], events: Events) -> None:
        del feed
        for row, frame in frames:
            events.seen += 1
            events.rejects.add(Reject(reason, frame), row, 0)

    return decode


def totals_of(counts: Mapping[tuple[str, str], Count]) -> dict[str, int]:
    """The counts as the stream stores them: {"binance/spot/ticks": 12, ...}."""
    return {
        f"{provider}/{feed}/{part.name}": getattr(count, part.name) for (provider, feed), count in counts.items() for part in fields(Count)
    }


def run_normalize(stage: Normalize, stop: threading.Event, random: Random) -> None:
    """Run the stage until `stop` is set and the records that are already there are committed, for which it has 10 s. Then finish it.

    Errors are retried and raised as `loop.run` says; the stage is then not finished. `random` spreads the waits before retries.
    """
    loop.run(stage.step, stop, rest_s=_REST_S, waits=lambda: backoff(random, cap_s=5.0))
    stage.finish()
