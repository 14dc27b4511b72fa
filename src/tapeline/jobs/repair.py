"""Fills gaps: asks the provider's history for the numbers that the ledger misses, and hands the pages to the stream as raw records.

From there they go the way of everything: the same normalizer interprets them, stores keep an event that came by two ways once, and the
ledger closes the gap when exactly what was missing has come. What a history that was read to the end does not hold is unrecoverable.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import pyarrow as pa

from tapeline.completeness import Interval, Key
from tapeline.errors import Refused, TapelineError, Unavailable
from tapeline.monitor.status import StatusFile
from tapeline.providers import binance_history as history
from tapeline.providers.normalizing import UNREADABLE
from tapeline.records import NS_PER_MS, NS_PER_S, RAW, RAW_TOPIC
from tapeline.streams import Stream

log = logging.getLogger(__name__)

#: A gap is left alone for so long: what comes late by itself need not be asked for.
SETTLED_NS: Final = 5 * NS_PER_S
#: So many gaps a turn, and a gap again only after so long; one whose page was wrong, or was refused, later.
_MOST_AT_ONCE: Final = 200
_AGAIN_NS: Final = 60 * NS_PER_S
_LATER_NS: Final = 600 * NS_PER_S
#: Provider and feed of the histories that can be asked.
HISTORIES: Final = frozenset({("binance", "spot")})

#: The body of a GET of a path with its query; it waits as the provider asks. Raises Unavailable, Refused.
Get = Callable[[history.Request], bytes]


class WrongPage(TapelineError):
    """What the provider sent is not what was asked for: nothing of it was kept, and the gap stays open."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """One gap that was asked for to its end."""

    key: Key
    first: int
    last: int
    pages: int
    events: int


def wanted(known: Mapping[Key, Sequence[Interval]], now_ns: int) -> list[tuple[Key, Interval]]:
    """The gaps that can be asked for: with numbers, of a provider that keeps them, and no longer on the move; the latest first."""
    found = [
        (key, one)
        for key, intervals in known.items()
        if key[:2] in HISTORIES
        for one in intervals
        if one.state == "open" and one.first_id is not None and one.end_ns + SETTLED_NS < now_ns
    ]
    return sorted(found, key=lambda gap: -gap[1].start_ns)


def repair(
    gaps: Iterable[tuple[Key, Interval]], stream: Stream, get: Get, clock: Callable[[], int], connection: str = ""
) -> Iterator[Repaired]:
    """Ask for each gap in turn, and give what became of it. Raises Unavailable, Refused, WrongPage: what came before is kept.

    `connection`: by which name the pages are kept; one of its own if left out."""
    connection = connection or f"repair-{clock()}"
    for key, gap in gaps:
        if gap.first_id is None or gap.last_id is None:
            continue
        first, last = history.numbers(key.channel, gap.first_id, gap.last_id, gap.start_ns, gap.end_ns)
        pages = events = 0
        for asked, body, rows in _pages(key, first, last, get, clock):
            stream.append(RAW_TOPIC, _record(key, connection, asked, body), 0)
            pages, events = pages + 1, events + rows
        yield Repaired(key, first, last, pages, events)


class KeepRepairing:
    """Asks for gaps as they open, each again only after a while: what was asked for takes its time to come through the stream."""

    def __init__(
        self,
        stream: Stream,
        known: Callable[[], Mapping[Key, Sequence[Interval]]],
        get: Get,
        status: StatusFile,
        stop: threading.Event,
        clock: Callable[[], int],
    ) -> None:
        """`known`: the ledger as it is now."""
        self._stream, self._known, self._get, self._status, self._stop, self._clock = stream, known, get, status, stop, clock
        self._connection = f"repair-{clock()}"
        self._due_ns = 0
        self._not_before: dict[tuple[Key, int | None], int] = {}
        self._filled = 0

    def step(self) -> bool:
        """Never raises what the provider or the network did: gaps wait."""
        now_ns = self._clock()
        if now_ns < self._due_ns:
            return False
        self._not_before = {gap: due_ns for gap, due_ns in self._not_before.items() if due_ns > now_ns}
        gaps = [(key, one) for key, one in wanted(self._known(), now_ns) if (key, one.first_id) not in self._not_before][:_MOST_AT_ONCE]
        # Looking takes the longer the more there is: a twentieth of the time at most.
        self._due_ns = now_ns + 20 * (self._clock() - now_ns)
        for key, gap in gaps:
            if self._stop.is_set():
                break
            self._not_before[key, gap.first_id] = now_ns + _AGAIN_NS
            try:
                for done in repair([(key, gap)], self._stream, self._get, self._clock, self._connection):
                    self._filled += done.events
                    log.info("Asked for %s %s %d to %d: %d events came.", key.symbol, key.channel, done.first, done.last, done.events)
            except (WrongPage, Refused) as error:
                self._not_before[key, gap.first_id] = now_ns + _LATER_NS
                log.error("%s %s: %s", key.symbol, key.channel, error)
            except Unavailable as error:
                log.warning("%s Gaps wait; nothing is lost.", error)
                self._due_ns = self._clock() + _AGAIN_NS
                break
        self._status.write({"events": self._filled, "gaps_waiting": len(self._not_before)})
        return False

    def finish(self) -> None:
        self._status.write({"events": self._filled, "gaps_waiting": len(self._not_before)})


def _pages(key: Key, first: int, last: int, get: Get, clock: Callable[[], int]) -> Iterator[tuple[history.Asked, bytes, int]]:
    """The pages from `first` to `last`, each checked before it is given; the last one says that it is."""
    symbol = key.symbol.replace("/", "")
    at = first
    while True:
        wanted_rows = history.request(key.channel, symbol, at, last)
        body = get(wanted_rows)
        time_ms = clock() // NS_PER_MS
        try:
            numbers = [history.number_of(event) for event in history.events_of(key.channel, symbol, time_ms, body)]
        except UNREADABLE as error:
            raise WrongPage(f"{wanted_rows.path} cannot be read: {error}. Nothing of it was kept; it is asked for again.") from error
        if any(number < at for number in numbers) or sorted(set(numbers)) != numbers:
            raise WrongPage(
                f"{wanted_rows.path} gave numbers {numbers[:1]} to {numbers[-1:]} that do not rise from {at}. Nothing of it was kept; "
                "it is asked for again."
            )
        if not numbers:
            # Behind a gap there are events, or it would be none: what is asked for reaches up to them.
            raise WrongPage(f"{wanted_rows.path} is empty, although later events are known. The gap stays open; it is asked for again.")
        following = numbers[-1] + 1
        done = following > last
        yield history.Asked(key.channel, symbol, key.symbol, time_ms, first, last, done), body, len(numbers)
        if done:
            return
        at = following


def _record(key: Key, connection: str, asked: history.Asked, body: bytes) -> pa.RecordBatch:
    row = (key.provider, key.feed, connection, "fetched", asked.time_ms * NS_PER_MS, msgspec.json.encode(asked) + b"\n" + body)
    return pa.RecordBatch.from_arrays([pa.array([value], field.type) for value, field in zip(row, RAW, strict=True)], schema=RAW)
