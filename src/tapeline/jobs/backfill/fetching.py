"""Fetches a provider's history page by page, checks each page and turns it into a raw record."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
import pyarrow as pa

from tapeline.providers.history import History, PageHeader, Request, Span, WrongPage
from tapeline.records import NS_PER_MS, RAW, RAW_TOPIC
from tapeline.streams import Stream

log = logging.getLogger(__name__)

#: A warning names at most this many of a page's unreadable events.
_SHOWN: Final = 3
#: Sends a GET request and returns the body. It waits as the provider's limits demand. Raises Unavailable, Refused.
Get = Callable[[Request], bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """The history of one feed, the function that sends its requests, and the clock (ns, UTC) that says when an answer has come."""

    history: History
    get: Get
    clock: Callable[[], int] = time.time_ns
    #: A time (ns, UTC) by the provider's own clock, after which the last answer holds no event. It counts if `clock` runs ahead of it.
    latest: Callable[[], int] = lambda: (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Fetched:
    """One page of a history. `fetched_ns`: when it came (UTC). `rows`: its number of events."""

    #: The payload of its raw record; None for a lookup page, which carries no events.
    payload: bytes | None
    fetched_ns: int
    rows: int
    #: The time of its last event (ns, UTC); 0 if it has no events.
    reached_ns: int
    #: The request for the next page; None if this is the last page.
    following: Request | None
    #: The time (ns, UTC) at which the provider had the events of this page, and none later.
    as_of_ns: int = 0


def fetch(source: Source, span: Span, begin: Request | None = None, kept: int = 0) -> Iterator[Fetched]:
    """Yield the pages of a span, from the first one or from `begin`. `kept`: how many records came before `begin`.

    Raises WrongPage, Unavailable, Refused; the pages yielded before are valid."""
    request = begin or source.history.first(span)
    met = {request}
    while True:
        body = source.get(request)
        now_ns = source.clock()
        as_of_ns = min(now_ns, source.latest())  # if our clock is ahead, the provider cannot have what our clock says is past
        page = source.history.page(span, request, body, as_of_ns // NS_PER_MS)
        if page.following in met:
            raise WrongPage(f"{request.path} leads back to {page.following.path}: the provider repeats its cursor. Earlier pages are kept.")
        if page.unreadable:
            log.warning(
                "%s: %d of %d events cannot be read and are rejected. The others are kept. The time does not count as complete. %s",
                request.path,
                len(page.unreadable),
                page.rows,
                "; ".join(page.unreadable[:_SHOWN]),
            )
        done = page.following is None
        payload = None
        if page.keep or done:
            kept += 1
            edges = (span.start_ns, span.end_ns, span.first, span.last)
            line = PageHeader(span.channel, span.symbol, request.path, as_of_ns // NS_PER_MS, *edges, done, kept)
            payload = msgspec.json.encode(line) + b"\n" + (body if page.keep else b"")
        yield Fetched(payload, now_ns, page.rows, page.reached_ns, page.following, as_of_ns)
        if page.following is None:
            return
        request = page.following
        met.add(request)


def partition_of(stream: Stream, symbol: str) -> int:
    """The raw partition for the pages of a symbol. All processes use the same one, so the pages keep their order.

    Raises Unavailable while the number of partitions is unknown: nobody would read a page in a partition that does not exist."""
    return zlib.crc32(symbol.encode()) % len(stream.ends(RAW_TOPIC))


def connection_name(job: str, provider: str, feed: str, began_ns: int) -> str:
    """The name under which the pages of a job's feed are kept. `began_ns`: when the job began (UTC).

    Feeds need different names, because the ledger counts all pages of one name for one feed."""
    return f"{job}-{provider}-{feed}-{began_ns}"


def raw_record(provider: str, feed: str, connection: str, page: Fetched) -> pa.RecordBatch:
    """The raw record of a page: one row of the schema `RAW`. `connection`: the name under which the pages of one job are kept."""
    row = (provider, feed, connection, "fetched", page.fetched_ns, page.payload)
    return pa.RecordBatch.from_arrays([pa.array([value], field.type) for value, field in zip(row, RAW, strict=True)], schema=RAW)
