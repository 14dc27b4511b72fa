"""A provider's history as raw records: page after page, each checked before it is kept."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
import pyarrow as pa

from tapeline.providers.history import Asked, History, Request, Span, WrongPage
from tapeline.records import NS_PER_MS, RAW, RAW_TOPIC
from tapeline.streams import Stream

log = logging.getLogger(__name__)

#: Of events that cannot be read, so many of a page are named.
_SHOWN: Final = 3
#: The body of a GET of a path with its query; it waits as the provider asks. Raises Unavailable, Refused.
Get = Callable[[Request], bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the history of a provider's feed is, and how it is asked."""

    history: History
    get: Get


@dataclass(frozen=True, slots=True)
class Fetched:
    """One page."""

    #: What becomes a raw record; None: it only told where to go on.
    payload: bytes | None
    fetched_ns: int
    rows: int
    #: The time that its last event stands for; 0: it has none.
    reached_ns: int
    #: What comes next; None: this was everything.
    following: Request | None


def fetch(source: Source, span: Span, clock: Callable[[], int], begin: Request | None = None, kept: int = 0) -> Iterator[Fetched]:
    """The pages of a span, from the first or from `begin` on, before which `kept` records came.

    Raises WrongPage, Unavailable, Refused: what came before is good."""
    asked = begin or source.history.first(span)
    met = {asked}
    while True:
        body = source.get(asked)
        now_ns = clock()
        page = source.history.page(span, asked, body, now_ns // NS_PER_MS)
        if page.following in met:
            raise WrongPage(f"{asked.path} leads back to {page.following.path}: the provider repeats its cursor. What came before is kept.")
        if page.unreadable:
            log.warning(
                "%s: %d of %d events cannot be read and are rejected; the others are kept, and the time is not called complete. %s",
                asked.path,
                len(page.unreadable),
                page.rows,
                "; ".join(page.unreadable[:_SHOWN]),
            )
        done = page.following is None
        payload = None
        if page.keep or done:
            kept += 1
            edges = (span.start_ns, span.end_ns, span.first, span.last)
            line = Asked(span.channel, span.symbol, asked.path, now_ns // NS_PER_MS, *edges, done, kept)
            payload = msgspec.json.encode(line) + b"\n" + (body if page.keep else b"")
        yield Fetched(payload, now_ns, page.rows, page.reached_ns, page.following)
        if page.following is None:
            return
        asked = page.following
        met.add(asked)


def partition_of(stream: Stream, symbol: str) -> int:
    """Of the raw topic, for pages of a symbol: the same for whoever sends them, so that they keep their order.

    Raises Unavailable while the stream cannot say how many it has: a page in one that does not exist would be read by nobody."""
    return zlib.crc32(symbol.encode()) % len(stream.ends(RAW_TOPIC))


def raw_record(provider: str, feed: str, connection: str, page: Fetched) -> pa.RecordBatch:
    """The record that a page becomes. `connection`: by which name the pages of one job are kept."""
    row = (provider, feed, connection, "fetched", page.fetched_ns, page.payload)
    return pa.RecordBatch.from_arrays([pa.array([value], field.type) for value, field in zip(row, RAW, strict=True)], schema=RAW)
