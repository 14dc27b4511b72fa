"""Tells whether the sessions of a key's market are complete, and when they were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Final

from tapeline.calendars import Period, joined, session_on, sessions
from tapeline.errors import WrongArgument
from tapeline.ledger.answers import Answer, answer_within, reached
from tapeline.ledger.facts import Interval, Key
from tapeline.providers.registry import PROVIDERS
from tapeline.records import NS_PER_S
from tapeline.times import text

#: What belongs to a session comes up to this much after its close: the trade of the closing auction, whose price is the day's official
#: close, and the options that trade for a quarter of an hour longer than stocks.
AFTER_CLOSE_NS: Final = 15 * 60 * NS_PER_S


@dataclass(frozen=True, slots=True)
class SessionAnswer:
    """Whether the session of a day is complete."""

    #: The feed's calendar; empty: its market never closes.
    calendar: str
    #: When the market is open, by the calendar: ns since 1970, UTC. Empty: it is closed on this day.
    periods: tuple[Period, ...]
    #: Up to when the answer holds: ns since 1970, UTC. A session that is over counts up to a quarter of an hour after its close. None:
    #: the market is closed on this day.
    until_ns: int | None
    #: Whether nothing of the session can come any more.
    over: bool
    #: Its verdict is "closed" if there are no periods.
    answer: Answer


def calendar_of(key: Key) -> str:
    """Return the calendar of a key's feed. Empty: its market never closes, or no such feed is installed."""
    return _of_feed(key)[0]


def session_answer(key: Key, intervals: Iterable[Interval], day: date, now_ns: int) -> SessionAnswer:
    """Return what the intervals of a key say about the session that its exchange dates `day`.

    If the session is not over, the answer holds up to the last evidence, or up to `now_ns` (ns since 1970, UTC) if that is old. Raises
    WrongArgument if the session has not begun, and ConfigError as the functions of `calendars`."""
    calendar, delay_ns = _of_feed(key)
    periods = session_on(calendar, day)
    if not periods:
        return SessionAnswer(calendar, (), None, True, answer_within(key, (), ()))
    if periods[0][0] >= now_ns:
        raise WrongArgument(f"The session of {day} has not begun. It begins at {text(periods[0][0])} UTC. Use an earlier day.")
    asked = _to_ask(periods, delay_ns) if calendar else periods
    known = list(intervals)
    over = asked[-1][1] <= now_ns
    until_ns = asked[-1][1] if over else reached(known, asked[0][0], now_ns)
    of_session = answer_within(key, known, _cut(asked, asked[0][0], until_ns))
    return SessionAnswer(calendar, tuple(periods), until_ns, over, of_session)


def sessions_answer(key: Key, intervals: Iterable[Interval], start_ns: int, end_ns: int) -> Answer:
    """Return what the intervals of a key say about all sessions within [start_ns, end_ns), ns since 1970, UTC.

    Raises ConfigError as the functions of `calendars`."""
    calendar, delay_ns = _of_feed(key)
    if not calendar:
        return answer_within(key, intervals, [(start_ns, end_ns)] if start_ns < end_ns else [])
    # A session that closed just before the start may still have something to come.
    asked = _to_ask(sessions(calendar, start_ns - AFTER_CLOSE_NS - delay_ns, end_ns), delay_ns)
    return answer_within(key, intervals, _cut(asked, start_ns, end_ns))


def _of_feed(key: Key) -> tuple[str, int]:
    provider = PROVIDERS.get(key.provider)
    feed = provider.feeds.get(key.feed) if provider is not None else None
    return (feed.calendar, feed.delay_ns) if feed is not None else ("", 0)


def _to_ask(periods: Iterable[Period], delay_ns: int) -> list[Period]:
    """When a feed must have been heard, so that everything of these periods came."""
    return joined((open_ns, close_ns + AFTER_CLOSE_NS + delay_ns) for open_ns, close_ns in periods)


def _cut(periods: Iterable[Period], start_ns: int, end_ns: int) -> list[Period]:
    return [(max(some, start_ns), min(other, end_ns)) for some, other in periods if some < end_ns and other > start_ns]
