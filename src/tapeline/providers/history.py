"""A provider's history: which pages to request, and which events a page holds. Pure: this module sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec
import numpy as np

from tapeline.errors import TapelineError
from tapeline.providers.events import UNREADABLE, Channel, Events, Frames, Int64, Kind, Notice, Reject
from tapeline.records import NS_PER_MS
from tapeline.secret import Secret

_Row = TypeVar("_Row")
#: The most bytes of an event that a message shows.
_LONGEST_TEXT: Final = 200


class WrongPage(TapelineError):
    """The provider sent something other than what was requested. Nothing of the page is kept, and it can be requested again."""


class Span(msgspec.Struct, frozen=True):
    """The events to fetch for one symbol of one channel.

    They are those of the time [start_ns, end_ns) in ns since 1970, UTC, or, if `first` and `last` are given, those with these numbers."""

    feed: str
    channel: str  # the name of the live channel
    symbol: str  # canonical
    start_ns: int
    end_ns: int
    first: int | None = None  # first and last are both inclusive
    last: int | None = None


class Request(msgspec.Struct, frozen=True):
    """The request for one page."""

    path: str  # below the provider's REST address, with its query
    weight: int = 1  # what it costs of the provider's limit for a minute
    #: How far the earlier pages have come, in the provider's own terms.
    after: str = ""


class PageHeader(msgspec.Struct):
    """The line before a page in the raw topic: what was requested, and whether this page completes it."""

    channel: str
    symbol: str  # canonical
    path: str
    time_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # when it was fetched; it decides whether a bar is final
    start_ns: Int64
    end_ns: Int64
    first: Int64 | None = None
    last: Int64 | None = None
    done: bool = False
    #: The number of this record within its read, from 1. `done` on the last record proves completeness only if the earlier records are
    #: there too. 0: the record is not part of a numbered read.
    page: int = 0


def ending(span: Span, now_ns: int) -> bytes:
    """A record without events, which says that the span's history was read to its end at `now_ns` (ns since 1970)."""
    header = PageHeader(span.channel, span.symbol, "", now_ns // NS_PER_MS, span.start_ns, span.end_ns, span.first, span.last, True, 1)
    return msgspec.json.encode(header) + b"\n"


@dataclass(frozen=True, slots=True)
class Page:
    """The result of checking a page."""

    rows: int
    #: The time (ns) up to which its last event reaches; 0 if it has none.
    reached_ns: int
    #: The next request; None if everything has come.
    following: Request | None
    #: Whether the page holds events of the channel. If not, it was a lookup page, for example one that says where the events begin.
    keep: bool = True
    #: One text for each event that cannot be read: its position, the reason and its own text.
    unreadable: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How to read a provider's history. Pure: it makes requests and checks pages, and sends nothing."""

    #: The total weight of requests that a minute may have.
    weight_a_minute: int
    #: By feed: the channels that the history has, each with its kind. The first channel of a kind is the default for that kind.
    channels: Mapping[str, Mapping[str, Kind]]
    #: Key and secret to the HTTP headers that authenticate each request.
    headers: Callable[[Secret, Secret], Mapping[str, str]]
    #: Channel to a delay in ns. This long after an event, or after the start of a bar's window, the history holds the final version of it.
    settled_ns: Callable[[str], int]
    #: The first request for a span.
    first: Callable[[Span], Request]
    #: Checks a page before anything of it is kept. The last argument is the time in ms. Raises WrongPage that says what is wrong.
    page: Callable[[Span, Request, bytes, int], Page]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHistory(History):
    """A history that comes as files, each of which holds a range of time."""

    #: Start and end (ns) to the ranges (ns, end exclusive) of the files that together hold everything between them.
    parts: Callable[[int, int], list[tuple[int, int]]]


#: The version of a file that does not exist.
MISSING: Final = "missing"
#: Decodes the line before a page. Raises the errors in UNREADABLE.
decode_page_header: Final = msgspec.json.Decoder(PageHeader).decode


def each_row(elements: Sequence[msgspec.Raw], one: Callable[[bytes], _Row]) -> list[_Row | Reject]:
    """Decode the rows of a page one by one. A row that cannot be read becomes a reject with its reason.

    Use it for a page that cannot be decoded as a whole. Raises ValueError if no row can be read: then the page itself is wrong."""
    rows: list[_Row | Reject] = []
    for element in elements:
        text = bytes(element)
        try:
            rows.append(one(text))
        except UNREADABLE as error:
            rows.append(Reject(f"row of a page: {error}", text))
    if rows and not readable(rows):
        raise ValueError(unreadable(rows)[0])
    return rows


def readable(rows: Iterable[_Row | Reject]) -> list[_Row]:
    """The rows that were not rejected."""
    return [row for row in rows if not isinstance(row, Reject)]


def unreadable(rows: Sequence[object], begin: int = 1, what: str = "row") -> tuple[str, ...]:
    """One text for each rejected row: its number, the reason and the row's own text. `begin` is the first row's number."""
    return tuple(
        f"{what} {at}: {row.reason}: {row.payload[:_LONGEST_TEXT].decode('utf-8', 'replace')}"
        for at, row in enumerate(rows, begin)
        if isinstance(row, Reject)
    )


def decode_pages(
    frames: Frames,
    events: Events,
    channels: Mapping[str, Channel],
    events_of: Callable[[PageHeader, bytes], Sequence[Any]],
) -> Frames:
    """Sort the events of the pages among the frames of one feed. Returns the frames that are not pages.

    `events_of` gives the events of a page as the stream would have sent them. A notice among them is about the event before it. A reject
    stands for an event that cannot be read. If `events_of` raises KeyError or an error in UNREADABLE, the whole page becomes a reject."""
    if not frames.pages:
        return frames
    rest = []
    for row, body in frames:
        head = frames.pages.get(row)
        if head is None:
            rest.append(row)
            continue
        try:
            header = decode_page_header(head)
            channel, decoded = channels[header.channel], events_of(header, body) if body else ()
        except (KeyError, *UNREADABLE) as error:
            events.seen += 1
            events.rejects.add(Reject(f"page: {error}", body), row, 0)
            continue
        events.seen += len(decoded)
        rows, index = events.rows(channel), -1
        for event in decoded:
            if isinstance(event, Notice):
                events.notices.add(event, row, index)
                continue
            index += 1
            (events.rejects if isinstance(event, Reject) else rows).add(event, row, index)
    return Frames(frames.payload, np.array(rest, np.int64))
