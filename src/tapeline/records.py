"""The schemas of every batch inside Tapeline, their topics, and the rules by which two events are the same.

All times are int64 nanoseconds since the Unix epoch, UTC. Prices are in the quote currency; sizes in shares, contracts or
coins. docs/records.md says how each provider's fields map to these columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

NS_PER_US: Final = 1_000
NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000

#: The kinds of raw records.
#:
#: - `frame`: a websocket frame. `repeated`: a frame whose event had already come over the other line.
#: - `opened`, `subscribed`, `closed`: an event of a connection. `dropped`: what could not be kept.
#: - `fetched`: a JSON line that says what was requested, and then a page of a history.
#: - `retried`: a JSON line, and then an event that was rejected and is tried again.
#: - `listed`: how the exchange itself splits the configured symbols.
#: - `instruments`: a JSON line that says what was requested, and then a page of the provider's list of instruments.
#: - `leapt`: a jump of the machine's clock.
RawKind = Literal["opened", "subscribed", "frame", "repeated", "closed", "fetched", "dropped", "retried", "listed", "instruments", "leapt"]


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


#: The place in the raw topic that an event came from. It is the audit trail, and identifies the event.
_ORIGIN: Final = [
    _field("raw_partition", pa.int32()),  # the partition of market-data.raw that holds the raw record
    _field("raw_offset", pa.int64()),  # the raw record's offset in that partition
    _field("raw_index", pa.int32()),  # the event's number in the raw record, from 0
]

RAW: Final = pa.schema(
    [
        _field("provider", pa.string()),
        _field("feed", pa.string()),
        _field("connection", pa.string()),  # names one socket, from its opening to its end
        _field("kind", pa.string()),  # RawKind
        _field("received_ns", pa.int64()),
        _field("payload", pa.binary()),  # the exact bytes; JSON text for opened, subscribed, closed, dropped
    ]
)

TICKS: Final = pa.schema(
    [
        _field("symbol", pa.string()),  # canonical: AAPL, BRK.B, BTC/USDT, SPY251219C00650000
        _field("ts_ns", pa.int64()),  # the event's time by the provider's clock; the receive time if the channel has no time
        _field("kind", pa.string()),  # trade | quote
        pa.field("bid", pa.float64()),  # quotes: the best bid price; null if there is no bid
        pa.field("ask", pa.float64()),  # quotes: the best ask price; null if there is no ask
        pa.field("bid_size", pa.float64()),  # quotes: the size at the best bid
        pa.field("ask_size", pa.float64()),  # quotes: the size at the best ask
        pa.field("last", pa.float64()),  # trades: the price
        pa.field("volume", pa.float64()),  # trades: the size, in shares, contracts or coins
        pa.field("side", pa.string()),  # trades: the side of the aggressor: buy | sell
        _field("exchange", pa.string()),  # ISO 10383 MIC; for crypto, the venue's name
        _field("provider", pa.string()),  # who sent the data: binance, polygon, alpaca, ...
        _field("feed", pa.string()),  # the provider's data product: spot, stocks, sip, ...
        _field("channel", pa.string()),  # the provider's name for this kind of message: trade, T, ...
        pa.field("sequence", pa.int64()),  # the provider's own sequence number
        pa.field("trade_id", pa.string()),  # trades: the provider's own id of the trade
        pa.field("conditions", pa.string()),  # the provider's codes, joined by commas
        _field("received_ns", pa.int64()),  # when Tapeline received it
        pa.field("latency_ns", pa.int64()),  # received_ns - ts_ns; negative if the clocks differ
        *_ORIGIN,
    ]
)

BARS: Final = pa.schema(
    [
        _field("symbol", pa.string()),  # canonical
        _field("ts_ns", pa.int64()),  # the start of the bar's window
        _field("interval", pa.string()),  # the window's length as the provider writes it: 1s, 1m, 1d, ...
        _field("open", pa.float64()),  # the first price of the window
        _field("high", pa.float64()),  # the highest price
        _field("low", pa.float64()),  # the lowest price
        _field("close", pa.float64()),  # the last price
        _field("volume", pa.float64()),  # the sum of the sizes, in shares, contracts or coins
        pa.field("vwap", pa.float64()),  # the average price, weighted by size; null if it is not known
        pa.field("trades", pa.int64()),  # the number of trades; null if it is not known
        _field("final", pa.bool_()),  # false if the provider may still revise the bar
        _field("exchange", pa.string()),  # ISO 10383 MIC; for crypto, the venue's name; composite if there is no single venue
        _field("provider", pa.string()),  # who sent the data: binance, polygon, alpaca, ...
        _field("feed", pa.string()),  # the provider's data product: spot, stocks, sip, ...
        _field("channel", pa.string()),  # the provider's name for this kind of message: trade, T, ...
        _field("received_ns", pa.int64()),  # when Tapeline received it
        pa.field("latency_ns", pa.int64()),  # received_ns minus the time when the provider sent it; null if that is not known
        *_ORIGIN,
    ]
)

NOTICES: Final = pa.schema(
    [
        _field("provider", pa.string()),  # who sent the data: binance, polygon, alpaca, ...
        _field("feed", pa.string()),  # the provider's data product: spot, stocks, sip, ...
        _field("connection", pa.string()),  # the name of the socket, or of the job that fetched it
        _field("kind", pa.string()),  # opened, subscribed, closed, control, shutdown, correction, cancel, ...
        pa.field("symbol", pa.string()),  # canonical; null if the message names none
        _field("ts_ns", pa.int64()),  # the time in the message; the receive time if it has none
        _field("detail", pa.string()),  # the message as JSON text
        _field("received_ns", pa.int64()),  # when Tapeline received it
        *_ORIGIN,
    ]
)

#: The kinds of notices that may take back a trade.
AMENDING: Final = ("correction", "cancel")
#: Matches the end of `detail` in a notice that takes back a trade (see `amending`). The pattern is for Arrow and DuckDB. PostgreSQL's views
#: use it without the names of the groups.
AMENDS: Final = r'"amends":[{]"exchange":"(?P<exchange>[^"\\]*)","trade_id":"(?P<trade_id>[^"\\]+)"[}][}]$'


def amending(detail: str, exchange: str, trade_id: str) -> str:
    """Add the key `amends` at the end of the JSON object `detail`. It names the trade that is taken back, as the trade's tick does.

    The trade has the notice's provider, feed, symbol and UTC day. If JSON must escape a name, the key is added, but it does not match
    `AMENDS`, so the notice takes back nothing."""
    named = json.dumps({"exchange": exchange, "trade_id": trade_id}, separators=(",", ":"), ensure_ascii=False)
    return f'{detail[: detail.rindex("}")]},"amends":{named}}}'


REJECTED: Final = pa.schema(
    [
        _field("provider", pa.string()),  # who sent the data: binance, polygon, alpaca, ...
        _field("feed", pa.string()),  # the provider's data product: spot, stocks, sip, ...
        _field("connection", pa.string()),  # the name of the socket, or of the job that fetched it
        _field("reason", pa.string()),  # why the event was rejected
        _field("payload", pa.binary()),  # the event's own bytes; the whole frame if it cannot be split into events
        _field("received_ns", pa.int64()),  # when Tapeline received it
        *_ORIGIN,
    ]
)

#: One instrument, as one list of a provider has it.
LISTED: Final = pa.schema(
    [
        _field("symbol", pa.string()),  # canonical, as in ticks and bars
        _field("native", pa.string()),  # the provider's own name
        pa.field("id", pa.string()),  # the provider's lasting id, which survives a renaming; null if its list has none
        pa.field("name", pa.string()),  # the name for people, such as Apple Inc.
        pa.field("kind", pa.string()),  # crypto, stock, etf, fund, option, ...; equity: a stock or a fund; null if the list does not say
        pa.field("base", pa.string()),  # a pair: what is traded; an option: its underlying
        pa.field("quote", pa.string()),  # the currency or asset in which it is priced; null if the list does not say
        pa.field("exchange", pa.string()),  # ISO 10383 MIC of the primary exchange; for crypto, the venue's name
        pa.field("status", pa.string()),  # the provider's own word, such as TRADING, BREAK, active
        _field("listed", pa.bool_()),  # false: the list itself says that it is delisted
        pa.field("tick_size", pa.float64()),  # the smallest step of the price
        pa.field("lot_size", pa.float64()),  # the smallest step of the size
    ]
)

#: The lists over time: each row is one version of an instrument. Of one name, at most one version is valid at a time.
INSTRUMENTS: Final = pa.schema(
    [
        _field("provider", pa.string()),  # whose list: binance, polygon, alpaca, ...
        _field("market", pa.string()),  # which of its lists: spot, stocks, options, crypto
        *LISTED,
        pa.field("renamed_from", pa.string()),  # the provider's earlier name, if this version began with a renaming
        _field("valid_from_ns", pa.int64()),  # when the list that had this first was read to its end
        pa.field("valid_to_ns", pa.int64()),  # when a later list no longer had this; null: the last list has it
    ]
)
#: The name of the lake's table, and of the SQL view on either store.
INSTRUMENTS_TABLE: Final = "instruments"


@dataclass(frozen=True, slots=True)
class Identity:
    """The rule by which two events of a channel are the same event: equal values in `columns` and `values`.

    Without columns, no two events are ever the same."""

    columns: tuple[str, ...] = ()
    #: The column of the provider's id, if there is one. An event without an id equals no other event (but see `else_by_ms` and `counted`).
    id: str = ""
    #: Whether the provider's ids of a symbol only grow. If so, an event with an id above all stored ids is new.
    rising: bool = False
    #: The most that two copies of one event differ in time (ns). It matters only if the time is not one of the columns.
    drift_ns: int = 0
    #: Whether two events without an id are the same if all other columns and the millisecond are equal.
    else_by_ms: bool = False
    #: Whether some sources send the same events without the id. Copies are then matched by the other columns and the millisecond. Equal
    #: events within one raw record are different events, because two fills can have equal values.
    counted: bool = False
    #: More columns to compare. `columns` alone tells nearly all events apart; two events that differ only in `values` are different events.
    values: tuple[str, ...] = ()

    @property
    def compared(self) -> tuple[str, ...]:
        """All columns that are compared."""
        return (*self.columns, *self.values)


@dataclass(frozen=True, slots=True, eq=False)
class Topic:
    """A topic of the stream. All its batches have one schema."""

    name: str
    schema: pa.Schema
    #: The column that decides the partition. Records with the same value stay in order.
    key: str
    #: The name of the lake's table and SQL view with the same records. It is empty for raw, which only the stream keeps.
    table: str = ""


RAW_TOPIC: Final = Topic("market-data.raw", RAW, "connection")
TICKS_TOPIC: Final = Topic("market-data.normalized", TICKS, "symbol", "ticks")
BARS_TOPIC: Final = Topic("market-data.bars", BARS, "symbol", "bars")
NOTICES_TOPIC: Final = Topic("market-data.notices", NOTICES, "connection", "notices")
REJECTED_TOPIC: Final = Topic("market-data.rejected", REJECTED, "connection", "rejected")

#: The topics that normalize writes, in the order of its accounting.
NORMALIZED_TOPICS: Final = (TICKS_TOPIC, BARS_TOPIC, NOTICES_TOPIC, REJECTED_TOPIC)
TOPICS: Final = {topic.name: topic for topic in (RAW_TOPIC, *NORMALIZED_TOPICS)}


def bytes_of(batch: pa.RecordBatch) -> int:
    """Return the bytes of a batch as a message. pyarrow's `nbytes` says nearly the same and takes fifteen times as long."""
    return int(pa.ipc.get_record_batch_size(batch))


def has_kind(raw: pa.RecordBatch, kind: str) -> bool:
    """Return whether any raw record is of a kind. The kind may be one of an earlier version.

    Usually none is, and then no byte of the column is part of it: finding that out costs much less than comparing row by row."""
    column = raw["kind"]
    texts = column.buffers()[2]
    return texts is not None and kind.encode() in texts.to_pybytes() and pc.index(column, kind).as_py() >= 0


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Records of a topic that were read together. The records of each partition are in order and complete."""

    topic: Topic
    batch: pa.RecordBatch
    #: The partition and the offset of each record. Within a partition, offsets rise, but may have gaps.
    partition: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    #: Partition to the position where reading began, and partition to the position where the next read begins.
    begin: Mapping[int, int]
    next: Mapping[int, int]

    @staticmethod
    def dense(topic: Topic, partition: int, first: int, batch: pa.RecordBatch) -> Chunk:
        """A chunk of one partition whose offsets are consecutive from `first`."""
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
        """Join chunks of one topic that were read one after the other. There must be at least one."""
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
        """The number of records."""
        return int(self.batch.num_rows)

    def slice(self, first: int, end: int) -> Chunk:
        """The records from row `first` up to, but not including, row `end`. `begin` and `next` stay those of the whole chunk."""
        part = slice(first, end)
        return Chunk(self.topic, self.batch.slice(first, end - first), self.partition[part], self.offset[part], self.begin, self.next)

    def before(self, positions: Mapping[int, int]) -> Chunk:
        """The records before `positions`. A partition that is not in `positions` keeps no records."""
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
        """The records at or after `positions`. A partition that is not in `positions` keeps all its records."""
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
