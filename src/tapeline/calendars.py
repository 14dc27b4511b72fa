"""The hours of markets: when the market of a calendar is open, and when it is closed.

A calendar is a name that the package `exchange_calendars` knows: the MIC of an exchange, such as `XNYS`. An empty name is a market that
never closes. Open means the regular session. Half days are shorter, and a lunch break is closed. Trading before and after the regular
session does not count: its hours differ between venues, and a feed may be silent there for minutes. docs/decisions/0024-calendars.md has
the reasons.

All times are ns since 1970, UTC. Every function here raises ConfigError if the package is not installed, if it does not know the
calendar, or if it does not know the calendar's sessions at a requested time. The package is loaded at the first question about a market
that closes. That takes about a second and 70 MB.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from tapeline.errors import ConfigError
from tapeline.local import without_pandas
from tapeline.records import NS_PER_S

if TYPE_CHECKING:
    from types import ModuleType

#: A stretch of time [start, end), ns since 1970, UTC.
Period = tuple[int, int]

#: The days of which Tapeline asks the package for sessions. A longer or shorter range takes the same time.
_FIRST: Final = date(1990, 1, 1)
_LAST: Final = date(2049, 12, 31)
_EPOCH: Final = date(1970, 1, 1)
_DAY: Final = timedelta(days=1)
_DAY_NS: Final = 86_400 * NS_PER_S


def sessions(calendar: str, start_ns: int, end_ns: int) -> list[Period]:
    """Return when the market is open within [start_ns, end_ns), in order of time.

    A session that is only partly inside is cut. Sessions without a pause between them are one period.
    """
    if start_ns >= end_ns:
        return []
    if not calendar:
        return [(start_ns, end_ns)]
    hours = _known(calendar, start_ns, end_ns)
    found = []
    for at in range(max(bisect_right(hours.starts, start_ns) - 1, 0), len(hours.starts)):
        if hours.starts[at] >= end_ns:
            break
        if hours.ends[at] > start_ns:
            found.append((max(hours.starts[at], start_ns), min(hours.ends[at], end_ns)))
    return found


def session_on(calendar: str, day: date) -> list[Period]:
    """Return the periods of the session that the exchange itself dates `day`, uncut. Empty: the market is closed on that day.

    A session with a lunch break has two periods. East of Greenwich a session may begin on the UTC day before `day`. The session of a
    market that never closes is the UTC day.
    """
    start_ns = _midnight_ns(day)
    end_ns = start_ns + _DAY_NS
    return list(_known(calendar, start_ns, end_ns).by_day.get(day, ())) if calendar else [(start_ns, end_ns)]


def should_tick(calendar: str, now_ns: int) -> bool:
    """Whether the market is open at `now_ns`, so that a feed of it should bring data."""
    return bool(sessions(calendar, now_ns, now_ns + 1))


def open_time_ns(calendar: str, start_ns: int, end_ns: int) -> int:
    """Return for how long the market is open between two moments, in ns. 0 if the end is not after the start.

    A feed whose last event came at `start_ns` has been silent for so long: nights, weekends and holidays do not count.
    """
    return sum(close_ns - open_ns for open_ns, close_ns in sessions(calendar, start_ns, end_ns))


def joined(periods: Iterable[Period]) -> list[Period]:
    """Return the periods in order of time. Those that overlap or touch become one."""
    found: list[Period] = []
    for start_ns, end_ns in sorted(periods):
        if found and start_ns <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end_ns))
        else:
            found.append((start_ns, end_ns))
    return found


@dataclass(frozen=True, slots=True)
class _Hours:
    """All that is known of a calendar."""

    first: date
    last: date
    #: The open periods, in order of time.
    starts: list[int]
    ends: list[int]
    by_day: dict[date, list[Period]]


def _known(calendar: str, start_ns: int, end_ns: int) -> _Hours:
    hours = _hours(calendar)
    if start_ns < _midnight_ns(hours.first) or end_ns > _midnight_ns(hours.last + _DAY):
        raise ConfigError(
            f"The sessions of the calendar {calendar} are known from {hours.first} to {hours.last}, and not at all times from "
            f"{_day_of(start_ns)} to {_day_of(end_ns - 1)}. Ask about a day inside. A newer package may know later days: "
            "pip install --upgrade exchange_calendars"
        )
    return hours


@cache
def _hours(name: str) -> _Hours:
    package = _package()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, for the package's authors
        try:
            calendar, first, last = _loaded(package, name)
        except package.errors.InvalidCalendarName:
            near = get_close_matches(name.upper(), package.get_calendar_names())
            raise ConfigError(
                f"exchange_calendars has no calendar {name!r}. {f'Did you mean {near[0]!r}? ' if near else ''}"
                "Use the MIC of an exchange, such as XNYS or XLON. The command `ecal` shows a calendar."
            ) from None
        except Exception as error:  # some calendars fail with some versions of pandas
            raise ConfigError(
                f"exchange_calendars {package.__version__} cannot build the calendar {name} ({type(error).__name__}). "
                "Update it (pip install --upgrade exchange_calendars), or use another version of pandas."
            ) from error
    by_day: dict[date, list[Period]] = {}
    columns = [_ns(calendar.schedule[column]) for column in ("open", "break_start", "break_end", "close")]
    for day, open_ns, pause_ns, again_ns, close_ns in zip(calendar.schedule.index.date.tolist(), *columns, strict=True):
        paused = open_ns < pause_ns < again_ns < close_ns  # no time at all is the least of all numbers
        by_day[day] = [(open_ns, pause_ns), (again_ns, close_ns)] if paused else [(open_ns, close_ns)]
    periods = joined(period for some in by_day.values() for period in some)
    return _Hours(first, last, [start_ns for start_ns, _ in periods], [end_ns for _, end_ns in periods], by_day)


def _package() -> ModuleType:
    without_pandas.let_in()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import exchange_calendars
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Market calendars need the package {error.name}, which is not installed. Install it: pip install 'tapeline[calendars]'"
        ) from None
    package: ModuleType = exchange_calendars
    return package


def _loaded(package: ModuleType, name: str) -> tuple[Any, date, date]:
    """Load a calendar for all days of the range that it knows. Return it with the first and the last of these days."""
    try:
        return package.get_calendar(name, start=_FIRST.isoformat(), end=_LAST.isoformat()), _FIRST, _LAST
    except ValueError:
        # Some calendars have bounds. They are known once the calendar is loaded for its usual range: twenty years back, one year ahead.
        kind = type(package.get_calendar(name))
        least, most = kind.bound_min(), kind.bound_max()
        first = max(_FIRST, least.date()) if least is not None else _FIRST
        last = min(_LAST, most.date()) if most is not None else _LAST
        return package.get_calendar(name, start=first.isoformat(), end=last.isoformat()), first, last


def _ns(column: Any) -> list[int]:
    """A column of pandas' timestamps as whole ns, whatever their unit. A missing time is the least int64."""
    times: list[int] = column.dt.tz_convert(None).dt.as_unit("ns").to_numpy().astype("int64").tolist()
    return times


def _midnight_ns(day: date) -> int:
    return (day - _EPOCH).days * _DAY_NS


def _day_of(at_ns: int) -> str:
    return f"{datetime.fromtimestamp(at_ns // NS_PER_S, UTC):%Y-%m-%d}"
