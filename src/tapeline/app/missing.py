"""Finds out which days of history are missing, by the ledger's evidence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Final

from tapeline.app.history_jobs import Wanted, history_jobs
from tapeline.app.ledgers import open_ledger
from tapeline.config import Config
from tapeline.ledger import read_intervals
from tapeline.ledger.answers import answer
from tapeline.ledger.facts import Key
from tapeline.records import NS_PER_S

_DAY_NS: Final = 86_400 * NS_PER_S


def missing_days(config: Config, request: Wanted, first: date, last: date, stop: threading.Event) -> Iterator[tuple[date, Wanted]]:
    """Yield what must be fetched of the UTC days from `first` to `last`: the latest day first, and for each day, what is missing.

    A symbol's day is missing if the ledger knows nothing about a part of it, or knows a gap that a history may fill. Without a ledger,
    every day is requested. Raises ConfigError as `history_jobs`, and what the ledger raises."""
    days = [last - timedelta(back) for back in range((last - first).days + 1)]
    if not config.ledger:
        yield from ((day, request) for day in days)
        return
    jobs = [job for job, _ in history_jobs(config, request, 0, 0, stop)]
    known = read_intervals(open_ledger(config).intervals({symbol for job in jobs for symbol in job.symbols}))
    for day in days:
        start_ns = day_ns(day)
        for job in jobs:
            for channel in job.channels:
                keys = {symbol: Key(job.provider, job.feed, channel, symbol) for symbol in job.symbols}
                answers = {symbol: answer(key, known.get(key, ()), start_ns, start_ns + _DAY_NS) for symbol, key in keys.items()}
                symbols = tuple(symbol for symbol, one in answers.items() if any(hole.state == "open" for hole in one.holes))
                if symbols:
                    yield day, replace(request, provider=job.provider, feed=job.feed, symbols=symbols, channels=(channel,))


def day_ns(day: date) -> int:
    """Return when a UTC day begins, in ns since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * NS_PER_S
