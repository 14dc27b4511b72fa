"""The vocabulary: the schemas of every batch inside Tapeline, the topics they travel on, and what makes two events the same.

All times are int64 nanoseconds since the Unix epoch, UTC. Prices are in the quote currency; sizes in shares, contracts or
coins. docs/records.md says how each provider's fields map onto these columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

NS_PER_US: Final = 1_000
NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000

#: A raw record is a websocket frame, one whose event had come by another line before (`repeated`), a moment in a socket's life, a word on
#: what could not be kept; or behind a JSON line that says what it is, a page that was fetched, or an event that was rejected and is tried
#: again.
RawKind = Literal["opened", "subscribed", "frame", "repeated", "closed", "fetched", "refused", "retried", "listed", "leapt"]


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


#: Where in the raw topic an event came from: the audit trail, and the event's own id.
_ORIGIN: Final = [
    _field("raw_partition", pa.int32()),
    _field("raw_offset", pa.int64()),
    _field("raw_index", pa.int32()),
]

RAW: Final = pa.schema(
    [
        _field("provider", pa.string()),
        _field("feed", pa.string()),
        _field("connection", pa.string()),  # one socket's lifetime
        _field("kind", pa.string()),  # RawKind
        _field("received_ns", pa.int64()),
        _field("payload", pa.binary()),  # the exact bytes; JSON text for opened, subscribed, closed, refused
    ]
)

TICKS: Final = pa.schema(
    [
        _field("symbol", pa.string()),  # canonical: AAPL, BRK.B, BTC/USDT, SPY251219C00650000
        _field("ts_ns", pa.int64()),  # event time by the provider's clock
        _field("kind", pa.string()),  # trade | quote
        pa.field("bid", pa.float64()),
        pa.field("ask", pa.float64()),
        pa.field("bid_size", pa.float64()),
        pa.field("ask_size", pa.float64()),
        pa.field("last", pa.float64()),
        pa.field("volume", pa.float64()),
        pa.field("side", pa.string()),  # the aggressor: buy | sell
        _field("exchange", pa.string()),  # ISO 10383 MIC, or the venue's name for crypto
        _field("provider", pa.string()),
        _field("feed", pa.string()),
        _field("channel", pa.string()),
        pa.field("sequence", pa.int64()),  # the provider's own order number
        pa.field("trade_id", pa.string()),
        pa.field("conditions", pa.string()),  # the provider's codes, comma-joined
        _field("received_ns", pa.int64()),
        pa.field("latency_ns", pa.int64()),  # received_ns - ts_ns; negative under clock skew
        *_ORIGIN,
    ]
)

BARS: Final = pa.schema(
    [
        _field("symbol", pa.string()),
        _field("ts_ns", pa.int64()),  # the window's start
        _field("interval", pa.string()),  # 1s, 1m, 1d, ... as the provider spells it
        _field("open", pa.float64()),
        _field("high", pa.float64()),
        _field("low", pa.float64()),
        _field("close", pa.float64()),
        _field("volume", pa.float64()),
        pa.field("vwap", pa.float64()),
        pa.field("trades", pa.int64()),
        _field("final", pa.bool_()),  # false while the provider may still revise it
        _field("exchange", pa.string()),
        _field("provider", pa.string()),
        _field("feed", pa.string()),
        _field("channel", pa.string()),
        _field("received_ns", pa.int64()),
        pa.field("latency_ns", pa.int64()),
        *_ORIGIN,
    ]
)

NOTICES: Final = pa.schema(
    [
        _field("provider", pa.string()),
        _field("feed", pa.string()),
        _field("connection", pa.string()),
        _field("kind", pa.string()),  # opened, subscribed, closed, control, shutdown, correction, cancel, ...
        pa.field("symbol", pa.string()),
        _field("ts_ns", pa.int64()),
        _field("detail", pa.string()),  # JSON text
        _field("received_ns", pa.int64()),
        *_ORIGIN,
    ]
)

#: Kinds of notices that may take back a trade.
AMENDING: Final = ("correction", "cancel")
#: How the detail of one that does ends, see `amending`. For Arrow and DuckDB; PostgreSQL's views have it without the groups' names.
AMENDS: Final = r'"amends":[{]"exchange":"(?P<exchange>[^"\\]*)","trade_id":"(?P<trade_id>[^"\\]+)"[}][}]$'


def amending(detail: str, exchange: str, trade_id: str) -> str:
    """The JSON object `detail` with one more key at its end, which names the trade that it takes back as the trade's tick does.

    The trade is of the notice's provider, feed, symbol and UTC day. A name that JSON has to escape is there and amends nothing."""
    named = json.dumps({"exchange": exchange, "trade_id": trade_id}, separators=(",", ":"), ensure_ascii=False)
    return f'{detail[: detail.rindex("}")]},"amends":{named}}}'


REJECTED: Final = pa.schema(
    [
        _field("provider", pa.string()),
        _field("feed", pa.string()),
        _field("connection", pa.string()),
        _field("reason", pa.string()),
        _field("payload", pa.binary()),  # the event's own bytes, or the whole frame where it cannot be split
        _field("received_ns", pa.int64()),
        *_ORIGIN,
    ]
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two events of a channel the same event: equal values in `columns` and `values`; no columns: no two events ever are."""

    columns: tuple[str, ...] = ()
    #: The provider's id among them, if there is one: an event without it is the same as no other.
    id: str = ""
    #: Whether the ids of a symbol only grow at their source: one above all that were kept is new.
    rising: bool = False
    #: Two copies of one event differ in time by at most this (where the time is not among the columns).
    drift_ns: int = 0
    #: Whether an event without the id is the same as another one without it whose other columns are equal, in the same millisecond.
    else_by_ms: bool = False
    #: Whether some sources send the same events without the id. Then copies are told by the other columns and the millisecond, and of
    #: equal ones there are as many as one raw record brings: two fills can share all of it.
    counted: bool = False
    #: Beside the columns, which tell nearly all events apart: two that share a number and differ here are two all the same.
    values: tuple[str, ...] = ()

    @property
    def told(self) -> tuple[str, ...]:
        """All columns that it goes by."""
        return (*self.columns, *self.values)


@dataclass(frozen=True, slots=True, eq=False)
class Topic:
    """One stream of batches of one schema."""

    name: str
    schema: pa.Schema
    #: The column that decides the partition: records with the same value stay in order.
    key: str
    #: The lake's table and SQL view of the same records; empty for raw, which only the stream keeps.
    table: str = ""


RAW_TOPIC: Final = Topic("market-data.raw", RAW, "connection")
TICKS_TOPIC: Final = Topic("market-data.normalized", TICKS, "symbol", "ticks")
BARS_TOPIC: Final = Topic("market-data.bars", BARS, "symbol", "bars")
NOTICES_TOPIC: Final = Topic("market-data.notices", NOTICES, "connection", "notices")
REJECTED_TOPIC: Final = Topic("market-data.rejected", REJECTED, "connection", "rejected")

#: What normalize writes, in the order of its accounting.
NORMALIZED_TOPICS: Final = (TICKS_TOPIC, BARS_TOPIC, NOTICES_TOPIC, REJECTED_TOPIC)
TOPICS: Final = {topic.name: topic for topic in (RAW_TOPIC, *NORMALIZED_TOPICS)}


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Records of a topic that were read together: those of each partition in order and without a hole."""

    topic: Topic
    batch: pa.RecordBatch
    #: Of each record: its partition, and its offset there. Offsets rise, with or without jumps.
    partition: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    #: For each partition: the position that was read from, and the one to read on from.
    begin: Mapping[int, int]
    next: Mapping[int, int]

    @staticmethod
    def dense(topic: Topic, partition: int, first: int, batch: pa.RecordBatch) -> Chunk:
        """Consecutive offsets of one partition."""
        rows = batch.num_rows
        return Chunk(
            topic,
            batch,
            np.full(rows, partition, np.int32),
            np.arange(first, first + rows, dtype=np.int64),
            {partition: first},
            {partition: first + rows},
        )

    @staticmethod
    def join(chunks: Sequence[Chunk]) -> Chunk:
        """Chunks that were read one after the other, as one."""
        if len(chunks) == 1:
            return chunks[0]
        begin: dict[int, int] = {}
        for chunk in reversed(chunks):
            begin |= chunk.begin
        return Chunk(
            chunks[0].topic,
            pa.concat_batches([chunk.batch for chunk in chunks]),
            np.concatenate([chunk.partition for chunk in chunks]),
            np.concatenate([chunk.offset for chunk in chunks]),
            begin,
            {partition: position for chunk in chunks for partition, position in chunk.next.items()},
        )

    @property
    def rows(self) -> int:
        return int(self.batch.num_rows)

    def slice(self, first: int, end: int) -> Chunk:
        """The records from row `first` to before row `end`; the positions stay those of the whole."""
        part = slice(first, end)
        return Chunk(self.topic, self.batch.slice(first, end - first), self.partition[part], self.offset[part], self.begin, self.next)

    def before(self, positions: Mapping[int, int]) -> Chunk:
        """The records that lie before `positions`; of a partition that is not named, none."""
        if all(position <= positions.get(partition, 0) for partition, position in self.next.items()):
            return self
        ceiling = np.zeros(max(self.next) + 1, np.int64)
        for partition, position in positions.items():
            if partition < len(ceiling):
                ceiling[partition] = position
        keep = self.offset < ceiling[self.partition]
        ends = {partition: min(at, max(self.begin[partition], positions.get(partition, 0))) for partition, at in self.next.items()}
        return Chunk(self.topic, self.batch.filter(pa.array(keep)), self.partition[keep], self.offset[keep], self.begin, ends)

    def after(self, positions: Mapping[int, int]) -> Chunk:
        """Without the records that lie before `positions`."""
        if all(positions.get(partition, 0) <= begin for partition, begin in self.begin.items()):
            return self
        floor = np.zeros(max(self.next) + 1, np.int64)
        for partition, position in positions.items():
            if partition < len(floor):
                floor[partition] = position
        keep = self.offset >= floor[self.partition]
        begin = {partition: max(at, positions.get(partition, 0)) for partition, at in self.begin.items()}
        ends = {partition: max(at, positions.get(partition, 0)) for partition, at in self.next.items()}
        return Chunk(self.topic, self.batch.filter(pa.array(keep)), self.partition[keep], self.offset[keep], begin, ends)
