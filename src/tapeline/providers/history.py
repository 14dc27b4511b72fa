"""A provider's history: what is asked for, page by page, and what a page brings. Pure: requests and pages in, nothing sent."""

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
#: Bytes of an event that are shown.
_LONGEST_TEXT: Final = 200


class WrongPage(TapelineError):
    """What the provider sent is not what was asked for. Nothing of it is kept, and it can be asked for again."""


class Span(msgspec.Struct, frozen=True):
    """What is wanted of one symbol of one channel: the events of [start_ns, end_ns), or where numbers are given, those with the numbers."""

    feed: str
    channel: str  # the live channel, whose events these are
    symbol: str  # canonical
    start_ns: int
    end_ns: int
    first: int | None = None  # both inclusive
    last: int | None = None


class Request(msgspec.Struct, frozen=True):
    """One page."""

    path: str  # below the provider's REST address, with its query
    weight: int = 1  # of the provider's limit a minute
    #: How far the pages before this one have come, in the provider's own terms.
    after: str = ""


class Asked(msgspec.Struct):
    """The line before a page in the raw topic: what was asked for, and whether everything of it has come with this page."""

    channel: str
    symbol: str  # canonical
    path: str
    time_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # when it was fetched: a bar whose window had ended by then is final
    start_ns: Int64
    end_ns: Int64
    first: Int64 | None = None
    last: Int64 | None = None
    done: bool = False
    #: Which record of its reading it is, from 1 on: the last one says that all is there only where those before it are. 0: none of one.
    page: int = 0


def ending(span: Span, now_ns: int) -> bytes:
    """A record without events: the span's history was read to its end by then."""
    asked = Asked(span.channel, span.symbol, "", now_ns // NS_PER_MS, span.start_ns, span.end_ns, span.first, span.last, True, 1)
    return msgspec.json.encode(asked) + b"\n"


@dataclass(frozen=True, slots=True)
class Page:
    """What a page says of itself."""

    rows: int
    #: The time that its last event stands for; 0 where it has none.
    reached_ns: int
    #: What to ask for next; None: everything has come.
    following: Request | None
    #: Whether the page holds events of the channel; else it only told where they begin.
    keep: bool = True
    #: Of each event that cannot be read: where it stands, why, and its text.
    unreadable: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How a provider's history is asked for. Pure: requests and pages, nothing is sent."""

    #: How much a minute may weigh.
    weight_a_minute: int
    #: By feed: the channels that can be asked for, each with what its events are; the first of a kind is the usual one.
    channels: Mapping[str, Mapping[str, Kind]]
    #: What each request carries, of the key and the secret: whoever asks proves who he is.
    headers: Callable[[Secret, Secret], Mapping[str, str]]
    #: How long after an event of a channel, or after the beginning of a bar's window (ns), the history can be taken to hold it, for good.
    settled_ns: Callable[[str], int]
    #: Where to begin.
    first: Callable[[Span], Request]
    #: Check a page before anything of it is kept; the last is the time in ms. Raises WrongPage that says what is wrong with it.
    page: Callable[[Span, Request, bytes, int], Page]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHistory(History):
    """A history that comes as files, each of which holds a stretch of time."""

    #: Of two times (ns), the stretches (ns, without their ends) of the files that hold what lies between, whole.
    parts: Callable[[int, int], list[tuple[int, int]]]


#: The version of a file that is not there.
MISSING: Final = "missing"
#: Raises what decoding bytes may raise.
asked_of: Final = msgspec.json.Decoder(Asked).decode


def each_row(elements: Sequence[msgspec.Raw], one: Callable[[bytes], _Row]) -> list[_Row | Reject]:
    """The rows of a page that cannot be read as a whole: those that cannot be read by themselves are rejected, each with its reason.

    Raises ValueError where none can be read: then it is the page that is wrong."""
    found: list[_Row | Reject] = []
    for element in elements:
        text = bytes(element)
        try:
            found.append(one(text))
        except UNREADABLE as error:
            found.append(Reject(f"row of a page: {error}", text))
    if found and not readable(found):
        raise ValueError(unreadable(found)[0])
    return found


def readable(rows: Iterable[_Row | Reject]) -> list[_Row]:
    """Without the rows that were rejected."""
    return [row for row in rows if not isinstance(row, Reject)]


def unreadable(rows: Sequence[object], begin: int = 1, what: str = "row") -> tuple[str, ...]:
    """Of each row that was rejected its number, the reason and its text. `begin`: the first row's number."""
    return tuple(
        f"{what} {at}: {row.reason}: {row.payload[:_LONGEST_TEXT].decode('utf-8', 'replace')}"
        for at, row in enumerate(rows, begin)
        if isinstance(row, Reject)
    )


def decode_pages(
    frames: Frames,
    events: Events,
    channels: Mapping[str, Channel],
    events_of: Callable[[Asked, bytes], Sequence[Any]],
) -> Frames:
    """Sort the events of the pages among frames of one feed; the frames that are none are left.

    `events_of`: what the page holds, as the stream would have sent it; a notice among it is about the event before it, a reject stands for
    one that cannot be read. May raise what decoding bytes may raise, and KeyError."""
    if not frames.pages:
        return frames
    rest = []
    for row, body in frames:
        head = frames.pages.get(row)
        if head is None:
            rest.append(row)
            continue
        try:
            asked = asked_of(head)
            channel, found = channels[asked.channel], events_of(asked, body) if body else ()
        except (KeyError, *UNREADABLE) as error:
            events.seen += 1
            events.rejects.add(Reject(f"page: {error}", body), row, 0)
            continue
        events.seen += len(found)
        rows, index = events.rows(channel), -1
        for event in found:
            if isinstance(event, Notice):
                events.notices.add(event, row, index)
                continue
            index += 1
            (events.rejects if isinstance(event, Reject) else rows).add(event, row, index)
    return Frames(frames.payload, np.array(rest, np.int64))
