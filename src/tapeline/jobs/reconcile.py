"""Compares what a store holds of a stretch of time with the provider's history of it, and sends what the store lacks.

The store's rows and the history's are matched by what makes two events the same. Pages that hold an event which the store has not go into
the stream, like those of a backfill; and, where the history has everything that was seen, a word that it was read to its end, which is the
ledger's evidence.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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
from tapeline.stores.duplicates import groups, ranks, told_bare, told_by
from tapeline.stores.selection import Selection
from tapeline.stores.selection import Source as Store
from tapeline.streams import Stream

#: The pages that are sent are no whole reading: the word behind them is one by itself.
_NO_READING: Final = -(1 << 20)
#: What two copies of a bar have in common, besides their time: a revision differs in one of them.
_OF_BARS: Final = Identity(("symbol", "interval", "ts_ns", "open", "high", "low", "close", "volume"))
#: A bar that was revised is another bar of the same window.
_BY_WINDOW: Final = Identity(("symbol", "interval", "ts_ns"))
#: What two copies of one event say alike, where both say it.
_VALUES: Final = ("last", "volume", "bid", "ask", "bid_size", "ask_size", "side")
#: Two copies of one event may differ in time by this, and so lie on both sides of an edge.
_EDGE_NS: Final = 2 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One symbol of one channel: events of the stretch of time, and their volume (of trades and bars)."""

    key: Key
    stored: int
    in_history: int
    #: Events that one has and the other has not; those that only the history had are in the stream now.
    only_stored: int
    only_in_history: int
    stored_volume: float | None
    history_volume: float | None
    pages: int
    #: Events of the history that the normalizer could not read; their pages are in the stream, and so are they among its rejects.
    rejected: int = 0
    #: Events that both have, and that differ in price, size or side.
    differing: int = 0
    #: Whether the reading is evidence: not where some of it could not be read, or it lacks some of what was seen (but a revised bar), or
    #: says something else of it.
    claimed: bool = True

    @property
    def equal(self) -> bool:
        return not (self.only_stored or self.only_in_history or self.rejected or self.differing)


def reconcile(
    key: Key,
    start_ns: int,
    end_ns: int,
    source: Source,
    store: Store,
    stream: Stream,
    clock: Callable[[], int],
    connection: str,
    names: Names = MappingProxyType({}),
) -> Reconciled:
    """Of [start_ns, end_ns). Raises Unavailable, Refused, WrongPage: nothing is claimed then, and it can be done again."""
    span = Span(key.feed, key.channel, key.symbol, start_ns, end_ns)
    topic = BARS_TOPIC if CHANNELS[key.provider][key.feed][key.channel].kind == "bar" else TICKS_TOPIC
    with tempfile.TemporaryFile(prefix="tapeline-reconcile-") as spooled:  # a day's pages may be more than fits in memory beside its rows
        pages, fetched, unread = _read(key, span, source, clock, topic, names, spooled)
        held = _stored(store, key, topic, start_ns - _EDGE_NS, end_ns + _EDGE_NS, fetched)
        inside = _inside(_matched(held, fetched, _identity(key)), start_ns, end_ns)
        missing = inside.filter(pc.equal(inside["held"], 0))
        lacking = sorted({*missing["page"].to_pylist(), *unread})
        for number in lacking:
            page, at, length = pages[number]
            spooled.seek(at)
            record = raw_record(key.provider, key.feed, connection, replace(page, payload=spooled.read(length)))
            stream.append(RAW_TOPIC, record, partition_of(stream, key.symbol))
    here = _inside(held, start_ns, end_ns)
    there = _inside(fetched, start_ns, end_ns)
    only_stored = _alone(inside)
    # A history that lacks an event that was seen may lack others, that were not.
    lacks = _alone(_inside(_matched(held, fetched, _BY_WINDOW), start_ns, end_ns)) if topic is BARS_TOPIC else only_stored
    differing = inside.filter(inside["differs"]).num_rows
    claimed = not lacks and not unread and not differing
    if claimed:
        # What the history did not hold yet when the first page came, a later one may have passed by.
        read_ns = pages[0][0].fetched_ns
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
    key: Key, span: Span, source: Source, clock: Callable[[], int], topic: Topic, names: Names, spooled: IO[bytes]
) -> tuple[list[tuple[Fetched, int, int]], pa.Table, dict[int, int]]:
    """The pages of a history, each with where its body lies in `spooled` and how long it is; their rows, with the column `page`; and how
    many events of which page could not be read."""
    pages: list[tuple[Fetched, int, int]] = []
    parts: list[pa.Table] = []
    unread: dict[int, int] = {}
    for number, page in enumerate(fetch(source, span, clock, kept=_NO_READING)):
        rows, refused = _rows(key, page, topic, names)
        if refused:
            unread[number] = refused
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
    """What a store holds of the key; of bars the last revision, whichever channel brought it: what the history calls an interval is one."""
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
    """The events of a page as the store would keep them, and how many could not be read."""
    if page.payload is None:
        return pa.table(with_dates(_nothing(topic))), 0
    chunk = Chunk.dense(RAW_TOPIC, 0, 0, raw_record(key.provider, key.feed, "", page))
    made = normalize(chunk, DECODERS, names=names).batches
    batch = made[topic]
    return pa.table(with_dates(batch.filter(pc.equal(batch["symbol"], key.symbol)))), made[REJECTED_TOPIC].num_rows


def _nothing(topic: Topic) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], topic.schema)


def _matched(held: pa.Table, fetched: pa.Table, rule: Identity) -> pa.Table:
    """Each event once: in how many rows of either it is (`held`, `fetched`), its time (`ts_ns`), the page that brought it, and whether its
    rows differ in a value that they carry (`differs`)."""
    sides = []
    bare = rule.counted and bool(held[rule.id].null_count + fetched[rule.id].null_count)
    for side, table in enumerate((held, fetched)):
        told = told_bare(table, rule) if bare else told_by(table, rule)
        if bare:
            told = told.append_column("equal", pa.array(ranks(groups(told))))
        names = told.schema.names
        values = [name for name in _VALUES if name in table.schema.names and name not in names]
        for name in values:
            told = told.append_column(name, table[name])
        for name, column in (
            ("at", table["ts_ns"]),
            ("in_held", pa.array(np.full(table.num_rows, int(side == 0)))),
            ("in_fetched", pa.array(np.full(table.num_rows, int(side == 1)))),
            ("on_page", table["page"] if side else pa.nulls(table.num_rows, pa.int64())),
        ):
            told = told.append_column(name, column)
        sides.append(told)
    both = pa.concat_tables([sides[0].cast(sides[1].schema), sides[1]])
    found = both.group_by(names, use_threads=False).aggregate(
        [("at", "max"), ("in_held", "sum"), ("in_fetched", "sum"), ("on_page", "min"), *((name, "count_distinct") for name in values)]
    )
    differs = np.zeros(found.num_rows, bool)
    for name in values:
        differs |= found[f"{name}_count_distinct"].to_numpy() > 1
    matched = pa.table(
        {
            "ts_ns": found["at_max"],
            "held": found["in_held_sum"],
            "fetched": found["in_fetched_sum"],
            "page": found["on_page_min"],
            "differs": pa.array(differs),
        }
    )
    return _of_one_number(matched, found.select(list(rule.columns))) if rule.values else matched


def _of_one_number(matched: pa.Table, numbers: pa.Table) -> pa.Table:
    """Events of one number together: where each side has some that the other has not, they are the same event, and differ."""
    names = numbers.schema.names
    held, fetched = matched["held"].to_numpy(), matched["fetched"].to_numpy()
    told = {
        "at": matched["ts_ns"],
        "in_held": matched["held"],
        "in_fetched": matched["fetched"],
        "differing": pa.array(matched["differs"].to_numpy().astype(np.int64)),
        "held_alone": pa.array((fetched == 0).astype(np.int64)),
        "fetched_alone": pa.array((held == 0).astype(np.int64)),
        "on_page": pc.if_else(pa.array(held == 0), matched["page"], pa.scalar(None, pa.int64())),
    }
    for name, column in told.items():
        numbers = numbers.append_column(name, column)
    sums = [(name, "sum") for name in ("in_held", "in_fetched", "differing", "held_alone", "fetched_alone")]
    found = numbers.group_by(names, use_threads=False).aggregate([("at", "max"), ("on_page", "min"), *sums])
    held_alone, fetched_alone = found["held_alone_sum"].to_numpy() > 0, found["fetched_alone_sum"].to_numpy() > 0
    return pa.table(
        {
            "ts_ns": found["at_max"],
            "held": pa.array(np.where(fetched_alone & ~held_alone, 0, found["in_held_sum"].to_numpy())),
            "fetched": pa.array(np.where(held_alone & ~fetched_alone, 0, found["in_fetched_sum"].to_numpy())),
            "page": found["on_page_min"],
            "differs": pa.array((found["differing_sum"].to_numpy() > 0) | (held_alone & fetched_alone)),
        }
    )


def _alone(matched: pa.Table) -> int:
    """How many events only the store has."""
    return int(matched.filter(pc.equal(matched["fetched"], 0)).num_rows)


def _inside(table: pa.Table, start_ns: int, end_ns: int) -> pa.Table:
    return table.filter(pc.and_(pc.greater_equal(table["ts_ns"], start_ns), pc.less(table["ts_ns"], end_ns)))


def _volume(table: pa.Table) -> float | None:
    found: float | None = pc.sum(table["volume"]).as_py()
    return found
