"""Compares a store's rows of a time range with the provider's history, and sends what the store lacks to the stream.

Rows of both sides are matched by the identity of their events. A page with an event that the store lacks goes into the stream, like a page
of a backfill. If the history has every event that the store has, a final record says that the history was read to its end. The ledger
uses that record as evidence.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import IO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.jobs.backfill.fetching import Fetched, Source, fetch, partition_of, raw_record
from tapeline.ledger.facts import Key
from tapeline.providers.events import SAME_CONTENT, Names
from tapeline.providers.history import Span, ending
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import CHANNELS, DECODERS
from tapeline.records import BARS_TOPIC, NS_PER_S, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk, Identity, Topic
from tapeline.stores import with_dates
from tapeline.stores.duplicates import bare_identity_columns, groups, identity_columns, ranks
from tapeline.stores.selection import Selection
from tapeline.stores.selection import Source as Store
from tapeline.streams import Stream

#: A start number far below zero: the pages that are sent do not count as a complete reading. Only the final record does.
_NO_READING: Final = -(1 << 20)
#: Two copies of a bar agree in all of these. A revision differs in at least one.
_OF_BARS: Final = Identity(("symbol", "interval", "ts_ns", "open", "high", "low", "close", "volume"))
#: A bar and its revisions agree in these: they are bars of the same window.
_BY_WINDOW: Final = Identity(("symbol", "interval", "ts_ns"))
#: Two copies of one event agree in each of these that both carry.
_VALUES: Final = ("last", "volume", "bid", "ask", "bid_size", "ask_size", "side")
#: The times of two copies of one event may differ by up to this. So one copy may lie inside the range and the other outside.
_EDGE_NS: Final = 2 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The result for one symbol of one channel: how many events each side has in the time range, and their volume (trades and bars)."""

    key: Key
    stored: int
    in_history: int
    #: Events that only one side has. Those that only the history had were sent to the stream.
    only_stored: int
    only_in_history: int
    stored_volume: float | None
    history_volume: float | None
    pages: int
    #: Events of the history that the normalizer could not read. Their pages were sent to the stream, so its rejects include the events.
    rejected: int = 0
    #: Events that both sides have, but that differ in price, size or side.
    differing: int = 0
    #: Whether the reading counts as evidence for the ledger. False if an event of the history could not be read, if an event differs, or if
    #: the history lacks an event that the store has. A bar that was revised does not count as lacking.
    claimed: bool = True

    @property
    def equal(self) -> bool:
        """Whether both sides have the same events, with the same values."""
        return not (self.only_stored or self.only_in_history or self.rejected or self.differing)


def reconcile(
    key: Key,
    span_ns: tuple[int, int],
    source: Source,
    store: Store,
    stream: Stream,
    connection: str,
    names: Names = MappingProxyType({}),
) -> Reconciled:
    """Compare `span_ns`, [start, end) in ns, UTC.

    Raises Unavailable, Refused, WrongPage; then nothing is claimed, and the call can be repeated."""
    span = Span(key.feed, key.channel, key.symbol, *span_ns)
    topic = BARS_TOPIC if CHANNELS[key.provider][key.feed][key.channel].kind == "bar" else TICKS_TOPIC
    with tempfile.TemporaryFile(prefix="tapeline-reconcile-") as spooled:  # a day's pages may not fit in memory together with its rows
        pages, fetched, unread = _read(key, span, source, topic, names, spooled)
        held = _stored(store, key, topic, span_ns[0] - _EDGE_NS, span_ns[1] + _EDGE_NS, fetched)
        inside = _inside(_matched(held, fetched, _identity(key)), *span_ns)
        missing = inside.filter(pc.equal(inside["held"], 0))
        lacking = sorted({*missing["page"].to_pylist(), *unread})
        for number in lacking:
            page, at, length = pages[number]
            spooled.seek(at)
            record = raw_record(key.provider, key.feed, connection, replace(page, payload=spooled.read(length)))
            stream.append(RAW_TOPIC, record, partition_of(stream, key.symbol))
    here = _inside(held, *span_ns)
    there = _inside(fetched, *span_ns)
    only_stored = _alone(inside)
    # A history that lacks an event that was seen may also lack events that nobody has seen.
    lacks = _alone(_inside(_matched(held, fetched, _BY_WINDOW), *span_ns)) if topic is BARS_TOPIC else only_stored
    differing = inside.filter(inside["differs"]).num_rows
    claimed = not lacks and not unread and not differing
    if claimed:
        # The reading ends at the time of the first page: an event that was added to the history later may have been missed.
        read_ns = pages[0][0].as_of_ns
        last = Fetched(ending(span, read_ns), read_ns, 0, 0, None)
        stream.append(RAW_TOPIC, raw_record(key.provider, key.feed, connection, last), partition_of(stream, key.symbol))
    return Reconciled(
        key,
        here.num_rows,
        there.num_rows,
        only_stored,
        missing.num_rows,
        _volume(here),
        _volume(there),
        len(lacking),
        sum(unread.values()),
        differing,
        claimed,
    )


def _read(
    key: Key, span: Span, source: Source, topic: Topic, names: Names, spooled: IO[bytes]
) -> tuple[list[tuple[Fetched, int, int]], pa.Table, dict[int, int]]:
    """Read the history: (pages, rows, unread).

    Each page comes with the offset and length of its body in `spooled`. The rows have a column `page`. `unread` maps a page's number to
    how many of its events could not be read."""
    pages: list[tuple[Fetched, int, int]] = []
    parts: list[pa.Table] = []
    unread: dict[int, int] = {}
    for number, page in enumerate(fetch(source, span, kept=_NO_READING)):
        rows, rejected = _rows(key, page, topic, names)
        if rejected:
            unread[number] = rejected
        parts.append(rows.append_column("page", pa.array(np.full(rows.num_rows, number, np.int64))))
        body = page.payload or b""
        pages.append((replace(page, payload=None), spooled.tell(), len(body)))
        spooled.write(body)
    return pages, pa.concat_tables(parts), unread


def _identity(key: Key) -> Identity:
    channel = CHANNELS[key.provider][key.feed][key.channel]
    if channel.kind == "bar":
        return _OF_BARS
    return channel.identity if channel.identity.columns else SAME_CONTENT[channel.kind]


def _stored(store: Store, key: Key, topic: Topic, start_ns: int, end_ns: int, fetched: pa.Table) -> pa.Table:
    """The store's rows for the key in [start_ns, end_ns).

    For bars, these are the last revisions of the intervals in `fetched`, whichever channel brought them."""
    selection = Selection((key.symbol,), start_ns, end_ns, tuple(topic.schema.names), provider=key.provider, feed=key.feed)
    if topic is BARS_TOPIC:
        intervals, reader = pc.unique(fetched["interval"]), store.bars(selection)
    else:
        intervals, reader = None, store.ticks(selection)
    parts = []
    for batch in reader:
        mine = pc.equal(batch["channel"], key.channel)
        if intervals is not None:
            mine = pc.or_(mine, pc.is_in(batch["interval"], intervals))
        parts.append(pa.table(with_dates(batch.filter(mine))))
    return pa.concat_tables(parts) if parts else pa.table(with_dates(_nothing(topic)))


def _rows(key: Key, page: Fetched, topic: Topic, names: Names) -> tuple[pa.Table, int]:
    """The rows that the store would keep of a page, and how many events could not be read."""
    if page.payload is None:
        return pa.table(with_dates(_nothing(topic))), 0
    chunk = Chunk.dense(RAW_TOPIC, 0, 0, raw_record(key.provider, key.feed, "", page))
    made = normalize(chunk, DECODERS, names=names).batches
    batch = made[topic]
    return pa.table(with_dates(batch.filter(pc.equal(batch["symbol"], key.symbol)))), made[REJECTED_TOPIC].num_rows


def _nothing(topic: Topic) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], topic.schema)


def _matched(held: pa.Table, fetched: pa.Table, rule: Identity) -> pa.Table:
    """One row for each event, matched by `rule`.

    `held` and `fetched`: how many rows each side has of it. `ts_ns`: its time. `page`: the page that brought it. `differs`: whether its
    rows differ in one of `_VALUES`."""
    sides = []
    bare = rule.counted and bool(held[rule.id].null_count + fetched[rule.id].null_count)
    for side, table in enumerate((held, fetched)):
        columns = bare_identity_columns(table, rule) if bare else identity_columns(table, rule)
        if bare:
            columns = columns.append_column("equal", pa.array(ranks(groups(columns))))
        names = columns.schema.names
        values = [name for name in _VALUES if name in table.schema.names and name not in names]
        for name in values:
            columns = columns.append_column(name, table[name])
        for name, column in (
            ("at", table["ts_ns"]),
            ("in_held", pa.array(np.full(table.num_rows, int(side == 0)))),
            ("in_fetched", pa.array(np.full(table.num_rows, int(side == 1)))),
            ("on_page", table["page"] if side else pa.nulls(table.num_rows, pa.int64())),
        ):
            columns = columns.append_column(name, column)
        sides.append(columns)
    both = pa.concat_tables([sides[0].cast(sides[1].schema), sides[1]])
    events = both.group_by(names, use_threads=False).aggregate(
        [("at", "max"), ("in_held", "sum"), ("in_fetched", "sum"), ("on_page", "min"), *((name, "count_distinct") for name in values)]
    )
    differs = np.zeros(events.num_rows, bool)
    for name in values:
        differs |= events[f"{name}_count_distinct"].to_numpy() > 1
    matched = pa.table(
        {
            "ts_ns": events["at_max"],
            "held": events["in_held_sum"],
            "fetched": events["in_fetched_sum"],
            "page": events["on_page_min"],
            "differs": pa.array(differs),
        }
    )
    return _of_one_number(matched, events.select(list(rule.columns))) if rule.values else matched


def _of_one_number(matched: pa.Table, numbers: pa.Table) -> pa.Table:
    """Merge the events that have the same number. If each side has one that the other lacks, they are one event, and it differs."""
    names = numbers.schema.names
    held, fetched = matched["held"].to_numpy(), matched["fetched"].to_numpy()
    columns = {
        "at": matched["ts_ns"],
        "in_held": matched["held"],
        "in_fetched": matched["fetched"],
        "differing": pa.array(matched["differs"].to_numpy().astype(np.int64)),
        "held_alone": pa.array((fetched == 0).astype(np.int64)),
        "fetched_alone": pa.array((held == 0).astype(np.int64)),
        "on_page": pc.if_else(pa.array(held == 0), matched["page"], pa.scalar(None, pa.int64())),
    }
    for name, column in columns.items():
        numbers = numbers.append_column(name, column)
    sums = [(name, "sum") for name in ("in_held", "in_fetched", "differing", "held_alone", "fetched_alone")]
    events = numbers.group_by(names, use_threads=False).aggregate([("at", "max"), ("on_page", "min"), *sums])
    held_alone, fetched_alone = events["held_alone_sum"].to_numpy() > 0, events["fetched_alone_sum"].to_numpy() > 0
    return pa.table(
        {
            "ts_ns": events["at_max"],
            "held": pa.array(np.where(fetched_alone & ~held_alone, 0, events["in_held_sum"].to_numpy())),
            "fetched": pa.array(np.where(held_alone & ~fetched_alone, 0, events["in_fetched_sum"].to_numpy())),
            "page": events["on_page_min"],
            "differs": pa.array((events["differing_sum"].to_numpy() > 0) | (held_alone & fetched_alone)),
        }
    )


def _alone(matched: pa.Table) -> int:
    """How many events only the store has, of the rows of `_matched`."""
    return int(matched.filter(pc.equal(matched["fetched"], 0)).num_rows)


def _inside(table: pa.Table, start_ns: int, end_ns: int) -> pa.Table:
    return table.filter(pc.and_(pc.greater_equal(table["ts_ns"], start_ns), pc.less(table["ts_ns"], end_ns)))


def _volume(table: pa.Table) -> float | None:
    volume: float | None = pc.sum(table["volume"]).as_py()
    return volume
