"""Requests the pages of one provider's part of a pull, on a thread of its own, so that no provider waits for another."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, NamedTuple

from tapeline.errors import Barred, TapelineError
from tapeline.jobs.backfill.fetching import Fetched, Source, fetch
from tapeline.ledger.facts import Key
from tapeline.local.threads import concurrently
from tapeline.providers.history import Span

#: A start number far below zero: the pages of such a read do not count as a complete reading.
_NO_READING: Final = -(1 << 20)
#: The most pages of a turn that were fetched and not taken.
_MOST_WAITING: Final = 4
_LOOK_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read of one key: first `settled`, whose pages count for the ledger, and then `fresh`, whose pages do not."""

    key: Key
    settled: Span | None
    fresh: Span | None
    #: When it was made (ns, UTC), and whether it reads everything that the evidence does not cover.
    now_ns: int
    whole: bool

    @property
    def spans(self) -> list[Span]:
        """The spans to read, in order."""
        return [span for span in (self.settled, self.fresh) if span is not None]


class Item(NamedTuple):
    """A page of a span; the end of a plan (`span` is None), with its error if it has one; or the end of the turn (`plan` is None)."""

    turn: Turn
    plan: Plan | None = None
    span: Span | None = None
    page: Fetched | None = None
    error: TapelineError | None = None


class _Dropped(Exception):
    """Nobody takes the pages any more."""


class Turn:
    """Reads plans one after the other, from its creation on. An error ends a plan, and the next one begins."""

    def __init__(self, source: Source, plans: Sequence[Plan], connection: str, items: SimpleQueue[Item], stop: threading.Event) -> None:
        """`connection`: the name under which the pages are kept. `items`: gets what comes. Each page that was taken needs a `taken`."""
        self.connection = connection
        #: Set by the owner: it takes no more of this turn.
        self.dropped = False
        self._source, self._plans, self._items, self._stop = source, plans, items, stop
        self._room = threading.Semaphore(_MOST_WAITING)
        self._thread = concurrently(self._read, "sync")

    def taken(self) -> None:
        """Note that a page was taken from the queue, so that there is room for another."""
        self._room.release()

    def end(self) -> None:
        """Raise what ended the thread, if it was an error that is not foreseen. Call it after the last item."""
        self._thread.result()

    def _read(self) -> None:
        barred: dict[str, Barred] = {}
        try:
            for plan in self._plans:
                error: TapelineError | None = barred.get(plan.key.channel)
                try:
                    if error is None:
                        self._read_one(plan)
                except TapelineError as problem:
                    error = problem
                    if isinstance(problem, Barred):
                        barred[plan.key.channel] = problem
                self._check()
                self._items.put(Item(self, plan, error=error))
        except _Dropped:
            pass
        finally:
            self._items.put(Item(self))

    def _read_one(self, plan: Plan) -> None:
        for span in plan.spans:
            for page in fetch(self._source, span, kept=0 if span is plan.settled else _NO_READING):
                while not self._room.acquire(timeout=_LOOK_EVERY_S):
                    self._check()
                self._check()
                self._items.put(Item(self, plan, span, page))

    def _check(self) -> None:
        if self.dropped or self._stop.is_set():
            raise _Dropped
