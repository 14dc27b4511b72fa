"""Meridian's history of deals over HTTP: by number or by time, a thousand to a page. Pure: requests and pages, nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tapeline.providers.events import UNREADABLE, Kind
from tapeline.providers.history import Page, Request, Span, WrongPage
from tapeline.secret import Secret
from tapeline_meridian.normalize import deals
from tapeline_meridian.wire import base36, written

WEIGHT_A_MINUTE: Final = 6_000
CHANNELS: Final[dict[str, dict[str, Kind]]] = {"metals": {"deal": "trade"}}
PAGE_ROWS: Final = 1_000


def headers(key: Secret, secret: Secret) -> Mapping[str, str]:
    """The key, as Meridian wants it."""
    del secret
    return {"X-Meridian-Key": key.reveal()}


def settled_ns(channel: str) -> int:
    """A deal is in the history at once."""
    del channel
    return 1_000_000_000


def first(span: Span) -> Request:
    """By number where there is one, else from a time on."""
    return _by_number(span, span.first) if span.first is not None else Request(f"{_path(span)}&since={written(span.start_ns)}")


def page(span: Span, request: Request, body: bytes, time_ms: int) -> Page:
    """Its numbers have to follow one another, and those of the page before."""
    del time_ms
    try:
        rows = deals(body)
    except UNREADABLE as error:
        raise WrongPage(f"{request.path} cannot be read: {error}. None of it was kept.") from error
    numbers = [deal.number for deal in rows]
    begin = int(request.after) if request.after else (numbers[0] if numbers else 0)
    if numbers != list(range(begin, begin + len(numbers))):
        raise WrongPage(f"{request.path} gave numbers that do not follow one another from {begin} on. None of it was kept.")
    if not rows:
        if span.last is not None:
            raise WrongPage(f"{request.path} is empty, although later deals are known. The gap stays open.")
        return Page(0, 0, None, keep=False)
    done = numbers[-1] >= span.last if span.last is not None else len(rows) < PAGE_ROWS or rows[-1].ts_ns >= span.end_ns
    return Page(len(rows), rows[-1].ts_ns, None if done else _by_number(span, numbers[-1] + 1))


def _by_number(span: Span, number: int) -> Request:
    until = f"&to={base36(span.last)}" if span.last is not None else ""
    return Request(f"{_path(span)}&from={base36(number)}{until}", after=str(number))


def _path(span: Span) -> str:
    return f"/deals?symbol={span.symbol.replace('/', '-')}"
