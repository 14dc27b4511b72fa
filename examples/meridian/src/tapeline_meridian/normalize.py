"""What Meridian's events mean: two channels, each with its columns and with what makes two of its events the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tapeline.providers.columns import floats, integers, texts
from tapeline.providers.events import QUOTE_SEQUENCE, SEQUENCE, UNREADABLE, Channel, Columns, Events, Frames, Notice, Reject
from tapeline.providers.history import PageHeader, decode_pages
from tapeline_meridian.wire import Book, Deal, read


def _deals(events: Sequence[Deal]) -> Columns:
    return {
        "symbol": texts([event.symbol for event in events]),
        "ts_ns": integers([event.ts_ns for event in events]),
        "last": floats([event.price for event in events]),
        "volume": floats([event.size for event in events]),
        "side": texts([event.side or None for event in events]),
        "exchange": "meridian",
        "sequence": integers([event.number for event in events]),
    }


def _books(events: Sequence[Book]) -> Columns:
    return {
        "symbol": texts([event.symbol for event in events]),
        "ts_ns": integers([event.ts_ns for event in events]),
        "bid": floats([event.bid for event in events]),
        "bid_size": floats([event.bid_size for event in events]),
        "ask": floats([event.ask for event in events]),
        "ask_size": floats([event.ask_size for event in events]),
        "exchange": "meridian",
        "sequence": integers([event.number for event in events]),
    }


#: No number of a symbol's deals is left out, so a jump proves a loss.
DEAL: Final = Channel("deal", "trade", _deals, SEQUENCE, contiguous=True)
BOOK: Final = Channel("book", "quote", _books, QUOTE_SEQUENCE)
CHANNELS: Final[Mapping[str, Mapping[str, Channel]]] = {"metals": {"deal": DEAL, "book": BOOK}}


def decode(feed: str, frames: Frames, events: Events) -> None:
    """Sort the lines of frames, and of pages of history, into events. It never raises: what cannot be read is rejected."""
    for row, frame in decode_pages(frames, events, CHANNELS[feed], _page_events):
        try:
            lines = frame.decode().splitlines()
        except UNREADABLE as error:
            events.seen += 1
            events.rejects.add(Reject(f"no text ({error})", frame), row, 0)
            continue
        for index, line in enumerate(lines):
            events.seen += 1
            try:
                event = read(line)
            except UNREADABLE as error:
                events.rejects.add(Reject(f"no event ({error})", line.encode()), row, index)
                continue
            if event is None:
                events.notices.add(Notice("control", line), row, index)
            else:
                events.rows(DEAL if isinstance(event, Deal) else BOOK).add(event, row, index)


def _page_events(header: PageHeader, body: bytes) -> Sequence[Deal]:
    del header
    return deals(body)


def deals(body: bytes) -> list[Deal]:
    """The deals of a page. Raises ValueError for what is no page of deals."""
    rows = [read(line) for line in body.decode().splitlines()]
    if not all(isinstance(one, Deal) for one in rows):
        raise ValueError("it holds something other than deals")
    return [one for one in rows if isinstance(one, Deal)]
