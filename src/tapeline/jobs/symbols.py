"""The job `symbols`: read a provider's list of instruments to its end, and put what changed into every store.

The pages go into the raw topic before anything is made of them. Only a list that was read whole says what is no longer listed. A store's
last change is a list's moment, so a store that a killed run left behind is brought level first, from the store that is ahead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tapeline.providers.history import Request, WrongPage, readable, unreadable
from tapeline.providers.instruments import LIST_PAGE, Instrument, Instruments, ListHeader, ListPage
from tapeline.records import INSTRUMENTS, LISTED, RAW, RAW_TOPIC
from tapeline.stores.instruments import InstrumentStore, Versions, in_order
from tapeline.streams import Stream

log = logging.getLogger(__name__)

#: The connection name of records that no connection brought.
_OF_NONE: Final = ""
#: A warning names at most this many of the rows that cannot be read.
_SHOWN: Final = 3
#: A list with less than this part of the instruments of the last one is refused, if that had more than `_FEW` of them.
_LEAST: Final = 0.5
_FEW: Final = 20


@dataclass(frozen=True, slots=True)
class Lists:
    """One list to read: whose, for which market, and how. `feed`: the configured feed that it is read for."""

    provider: str
    feed: str
    market: str
    how: Instruments
    get: Callable[[Request], bytes]
    clock: Callable[[], int] = time.time_ns


@dataclass(frozen=True, slots=True)
class WholeList:
    """A list that was read to its end: its instruments, each name once, with the schema `LISTED`."""

    rows: pa.Table
    #: When its last page came (ns, UTC).
    read_ns: int
    pages: int = 0
    #: Rows that were left out because a better row has the same name: see `one_of_each_name`.
    hidden: int = 0
    #: Rows that could not be read. If there are any, what the list does not have may be among them, so nothing is taken as delisted.
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class Symbols:
    """What one list changed. A name may count as delisted and as listed, where another instrument has taken it over."""

    provider: str
    market: str
    #: Names that the list has as listed.
    instruments: int
    #: Names that were not listed before, and are now.
    listed: int = 0
    #: Names that are no longer listed: the list does not have them, or has them as delisted.
    delisted: int = 0
    #: Instruments that have another name than before. They count neither as listed nor as delisted.
    renamed: int = 0
    #: Names of which something else differs.
    changed: int = 0
    pages: int = 0
    hidden: int = 0
    unreadable: int = 0


def read(some: Lists, stream: Stream) -> WholeList:
    """Read a list to its end. Each page is in the raw topic before it is interpreted.

    Raises WrongPage, Unavailable and Refused. Then the list is incomplete, and must not be used."""
    tables, pages, bad, read_ns = [LISTED.empty_table()], 0, 0, 0
    for page, came_ns in _pages(some, stream):
        pages, read_ns = pages + 1, came_ns
        tables.append(table_of(readable(page.rows)))
        problems = unreadable(page.rows)
        bad += len(problems)
        if problems:
            text = "The list of %s %s: %d of %d rows of page %d cannot be read. So nothing of this list counts as delisted. %s"
            log.warning(text, some.provider, some.market, len(problems), len(page.rows), pages, "; ".join(problems[:_SHOWN]))
    stream.append(RAW_TOPIC, _raw_record(some, ListHeader(some.market, "", pages, True), b"", read_ns))
    rows, hidden = one_of_each_name(pa.concat_tables(tables))
    if not rows.num_rows:
        raise WrongPage(f"The list of {some.provider} {some.market} is empty, which cannot be right. It was not used.")
    return WholeList(rows, read_ns, pages, hidden, bad)


def _pages(some: Lists, stream: Stream) -> Iterator[tuple[ListPage, int]]:
    """Yield the pages of all parts of a list, each with the time when it came (ns, UTC)."""
    number = 0
    for begin in some.how.first(some.market):
        request: Request | None = begin
        met: set[Request] = set()
        while request is not None:
            if request in met:
                raise WrongPage(f"{request.path} comes again as the next page: the provider repeats its cursor. The list was not used.")
            met.add(request)
            body = some.get(request)
            now_ns, number = some.clock(), number + 1
            stream.append(RAW_TOPIC, _raw_record(some, ListHeader(some.market, request.path, number, False), body, now_ns))
            page = some.how.page(some.market, request, body)
            yield page, now_ns
            request = page.following


def _raw_record(some: Lists, header: ListHeader, body: bytes, now_ns: int) -> pa.RecordBatch:
    payload = msgspec.json.encode(header) + b"\n" + body
    row = (some.provider, some.feed, _OF_NONE, LIST_PAGE, now_ns, payload)
    return pa.RecordBatch.from_arrays([pa.array([value], field.type) for value, field in zip(row, RAW, strict=True)], schema=RAW)


def table_of(instruments: Sequence[Instrument]) -> pa.Table:
    """Return instruments as a table with the schema `LISTED`."""
    columns = zip(*instruments, strict=True) if instruments else [()] * len(LISTED)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, LISTED, strict=True)], schema=LISTED)


def one_of_each_name(rows: pa.Table) -> tuple[pa.Table, int]:
    """Return one row of each of the provider's names, and how many rows were left out.

    A name may have been used more than once. The row that is listed comes first, then the first by id, by name and by the other columns, so
    that the choice does not depend on the order of the pages."""
    order = [("native", "ascending"), ("listed", "descending")]
    rows = rows.sort_by([*order, *((name, "ascending") for name in LISTED.names if name not in ("native", "listed"))])
    if rows.num_rows < 2:
        return rows, 0
    names = rows["native"].combine_chunks()
    first = pa.concat_arrays([pa.array([True]), pc.not_equal(names[1:], names[:-1])])
    chosen = rows.filter(first)
    return chosen, rows.num_rows - chosen.num_rows


# What a list changes


def keep(stores: Sequence[InstrumentStore], some: Lists, found: WholeList, *, accept_fewer: bool = False) -> Symbols:
    """Put what a list changes into every store, each in one commit. Afterwards all stores have the same versions.

    `accept_fewer`: use a list that has less than half of the instruments that the last one had; otherwise it is WrongPage. Raises what the
    stores raise. Then a store may have the change and another may not: the next call brings it level."""
    at = {store.name: store.changed_ns(some.provider, some.market) for store in stores}
    ahead = max(stores, key=lambda store: at[store.name])
    for store in stores:
        if at[store.name] < at[ahead.name]:
            store.put(ahead.versions(Versions(some.provider, some.market, since_ns=at[store.name])))
    before = ahead.versions(Versions(some.provider, some.market, open=True))
    # The machine's clock may have jumped back. Versions never overlap.
    changes = compare(before, found, max(found.read_ns, at[ahead.name] + 1), (some.provider, some.market))
    known = pc.sum(before["listed"]).as_py() or 0
    if not accept_fewer and known > _FEW and changes.symbols.instruments < known * _LEAST:
        raise WrongPage(
            f"The list of {some.provider} {some.market} has {changes.symbols.instruments:,} instruments, but the last one had {known:,}. "
            "It was not used. Run the job again. If the list is right, set accept_fewer = true in the job's arguments for one run."
        )
    for store in stores:
        store.put(changes.versions)
    return changes.symbols


@dataclass(frozen=True, slots=True)
class Changes:
    """The versions that a list closes and begins, with the schema `INSTRUMENTS`, and how many there are of each sort."""

    versions: pa.Table
    symbols: Symbols


def compare(before: pa.Table, found: WholeList, at_ns: int, whose: tuple[str, str]) -> Changes:
    """Return what a list changes at a moment (ns, UTC). Pure.

    `before`: the versions that are open, with the schema `INSTRUMENTS`. `whose`: the provider and the market."""
    pairs = _paired(before, found.rows)
    here, there = pc.is_valid(pairs["symbol"]), pc.is_valid(pairs["symbol_before"])
    gone = pc.invert(here) if not found.unreadable else pa.scalar(False)
    differs = pc.and_(here, pc.invert(_equal(pairs)))
    differing = pairs.filter(pc.or_(differs, pc.and_(gone, there)))
    renamed = _renamed(differing)
    opened = differing.filter(pc.is_valid(differing["symbol"])).select(LISTED.names)
    count = opened.num_rows
    stamps = {
        "provider": pa.repeat(whose[0], count),
        "market": pa.repeat(whose[1], count),
        "renamed_from": pa.array([renamed.get(name) for name in opened["native"].to_pylist()], pa.string()),
        "valid_from_ns": pa.repeat(at_ns, count),
        "valid_to_ns": pa.nulls(count, pa.int64()),
    }
    columns = [stamps.get(name) if name in stamps else opened[name] for name in INSTRUMENTS.names]
    closed = before.filter(pc.is_in(before["native"], differing.filter(pc.is_valid(differing["symbol_before"]))["native"].combine_chunks()))
    closed = closed.set_column(INSTRUMENTS.get_field_index("valid_to_ns"), "valid_to_ns", pa.repeat(at_ns, closed.num_rows))
    versions = in_order(pa.concat_tables([closed.cast(INSTRUMENTS), pa.table(columns, schema=INSTRUMENTS)]))
    return Changes(versions, _counted(differing, renamed, found, whose))


def _paired(before: pa.Table, rows: pa.Table) -> pa.Table:
    """Return one row for each name of either side: its columns now, and its columns before as `<name>_before`. A missing side is null."""
    old = before.select(LISTED.names).rename_columns([name if name == "native" else f"{name}_before" for name in LISTED.names])
    return rows.join(old, "native", join_type="full outer", use_threads=False).sort_by("native")


def _equal(pairs: pa.Table) -> pa.ChunkedArray:
    """Return of which names every column is as before."""
    same = pc.is_valid(pairs["symbol_before"])
    for name in LISTED.names:
        if name != "native":
            now, old = pairs[name], pairs[f"{name}_before"]
            both_null = pc.and_(pc.is_null(now), pc.is_null(old))
            same = pc.and_(same, pc.or_(both_null, pc.fill_null(pc.equal(now, old), False)))
    return same


def _renamed(differing: pa.Table) -> dict[str, str]:
    """Return the new name of each renamed instrument, with its old name.

    An instrument was renamed if the list has its id under another name, and no longer under the old one. If an id belongs to several names,
    or if one of the two names is listed without an id before or now, nothing is claimed."""
    columns = ("native", "id", "listed", "id_before", "listed_before")
    new: dict[str, list[str]] = {}
    old: dict[str, list[str]] = {}
    for name, now, is_listed, before, was_listed in zip(*(differing[column].to_pylist() for column in columns), strict=True):
        if is_listed and now and (not was_listed or (before and before != now)):
            new.setdefault(now, []).append(name)
        if was_listed and before and (not is_listed or (now and before != now)):
            old.setdefault(before, []).append(name)
    return {names[0]: old[one][0] for one, names in new.items() if len(names) == 1 and len(old.get(one, ())) == 1}


def _counted(differing: pa.Table, renamed: dict[str, str], found: WholeList, whose: tuple[str, str]) -> Symbols:
    listed = delisted = changed = 0
    left = set(renamed.values())
    columns = ("native", "id", "listed", "id_before", "listed_before")
    for name, one, now, other, before in zip(*(differing[column].to_pylist() for column in columns), strict=True):
        taken_over = bool(now and before and one and other and one != other)
        came = bool(now) and (not before or taken_over)
        went = (bool(before) and (not now or taken_over)) or (before is None and not now)
        listed += came and name not in renamed
        delisted += went and name not in left
        changed += not came and not went
    total = pc.sum(found.rows["listed"]).as_py() or 0
    return Symbols(
        *whose,
        instruments=total,
        listed=listed,
        delisted=delisted,
        renamed=len(renamed),
        changed=changed,
        pages=found.pages,
        hidden=found.hidden,
        unreadable=found.unreadable,
    )
