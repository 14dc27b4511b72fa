"""Converts times and durations as people write them into exact nanoseconds. It never guesses a time zone."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from operator import index
from typing import Final, SupportsIndex
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tapeline.errors import ConfigError, WrongArgument
from tapeline.records import NS_PER_MS, NS_PER_S, NS_PER_US

#: The types in which a time can be given: see `parse`.
Moment = str | date | SupportsIndex

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)
_BELOW: Final = 1 << 63
#: An ISO 8601 date and time. The fraction of the second is parsed separately, because datetime holds only six digits.
_ISO: Final = re.compile(r"(?P<whole>\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?)(?:[.,](?P<fraction>\d+))?\s?(?P<zone>Z|z|[+-]\d\d:?\d\d)?")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d|\d{8}")
#: The least number that is accepted as nanoseconds; it lies in March 1973. Current times in seconds, ms or µs are all smaller numbers, so
#: a wrong unit is detected.
_LEAST_NS: Final = 10**17
_UNITS: Final = {"ms": NS_PER_MS, "s": NS_PER_S, "m": 60 * NS_PER_S, "h": 3_600 * NS_PER_S, "d": 86_400 * NS_PER_S}
_FORMS: Final = (
    "Write 2026-01-05T14:30:00.123Z (or an offset such as -05:00 instead of Z), a date for its midnight in UTC (2026-01-05 or 20260105), "
    "or nanoseconds since 1970."
)


def parse(moment: Moment, name: str) -> int:
    """Convert a time to nanoseconds since 1970, UTC.

    `moment` is a datetime with a zone, ISO 8601 text with a zone, or an integer of nanoseconds. A date alone means its midnight in UTC: a
    `date`, the text 2026-01-05, or eight digits such as 20260105, as text or as an integer. A pandas Timestamp keeps its nanoseconds.

    Raises WrongArgument, which names the argument as `name`, for a time without a zone, for a value that is not a time, for a number that
    is too small to be nanoseconds of any market, and for a time outside the range of int64 nanoseconds (the years 1678 to 2262).
    """
    if isinstance(moment, datetime):
        ns = _from_datetime(moment, name)
    elif isinstance(moment, date):
        ns = _from_datetime(datetime(moment.year, moment.month, moment.day, tzinfo=UTC), name)
    elif isinstance(moment, str):
        ns = _from_text(moment.strip(), name)
    else:
        ns = _from_number(moment, name)
    if not -_BELOW <= ns < _BELOW:
        raise WrongArgument(f"{name} = {moment!r} is out of range: 64-bit nanoseconds since 1970 cover the years 1678 to 2262.")
    return ns


def text(ns: int) -> str:
    """A time (ns since 1970) as text in UTC, to the millisecond: `2026-01-05 14:30:00.123`."""
    return f"{datetime.fromtimestamp(ns // NS_PER_S, UTC):%Y-%m-%d %H:%M:%S}.{ns % NS_PER_S // NS_PER_MS:03}"


def duration_ns(text: str, name: str) -> int:
    """Read "500ms", "10s", "1m", "2h" or "1d" as ns. `name`: the key, for the message. Raises ConfigError."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :]
    try:
        ns = round(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        ns = 0
    if ns < NS_PER_MS:
        raise ConfigError(
            f'{name} = "{text}" is not a duration of a millisecond or more. Write it like "500ms", "10s", "5m", "2h" or "1d".'
        )
    return ns


def time_of_day(text: str, name: str) -> time:
    """Read "08:00" as a time of the day. `name`: the key, for the message. Raises ConfigError."""
    try:
        return datetime.strptime(text, "%H:%M").time()  # noqa: DTZ007 a time of the day has no zone
    except ValueError:
        raise ConfigError(f'{name} = "{text}" is not a time of the day. Write hours and minutes, like "08:00".') from None


def zone_of(name: str) -> ZoneInfo:
    """Return a time zone. Raises ConfigError for an unknown name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f'timezone = "{name}" is not known. Write it like "UTC" or "America/New_York".') from None


def ns_of(moment: datetime) -> int:
    """Return a moment with a zone as ns since 1970, UTC."""
    return _from_datetime(moment, "moment")


def _from_datetime(moment: datetime, name: str) -> int:
    if moment.utcoffset() is None:
        raise WrongArgument(f"{name} = {moment!r} has no time zone, so it is ambiguous. Add one: moment.replace(tzinfo=datetime.UTC).")
    # A plain datetime is needed, because the difference of two pandas Timestamps is not a timedelta.
    plain = datetime.combine(datetime.date(moment), datetime.timetz(moment))
    return (plain - _EPOCH) // _US * NS_PER_US + int(getattr(moment, "nanosecond", 0))


def _from_text(text: str, name: str) -> int:
    if re.fullmatch(r"-?[0-9]+", text) and not _DATE.fullmatch(text):
        return _from_whole(int(text), name) if len(text) <= 20 else _BELOW
    try:
        if _DATE.fullmatch(text):
            return _from_datetime(datetime.fromisoformat(text).replace(tzinfo=UTC), name)
        match = _ISO.fullmatch(text)
        moment = datetime.fromisoformat(match["whole"] + (match["zone"] or "").upper()) if match else None
    except ValueError as error:
        raise WrongArgument(f"{name} = {text!r} is not a time: {error}. {_FORMS}") from None
    if match is None or moment is None:
        raise WrongArgument(f"{name} = {text!r} is not a time. {_FORMS}")
    if moment.tzinfo is None:
        raise WrongArgument(f"{name} = {text!r} has no time zone, so it is ambiguous. Add Z for UTC, or an offset such as -05:00.")
    fraction = match["fraction"] or ""
    if fraction[9:].strip("0"):
        raise WrongArgument(f"{name} = {text!r} is finer than a nanosecond. Write at most nine digits after the point.")
    return (moment - _EPOCH) // timedelta(seconds=1) * NS_PER_S + int(fraction[:9].ljust(9, "0"))


def _from_number(moment: object, name: str) -> int:
    if isinstance(moment, SupportsIndex) and not isinstance(moment, bool):
        number = index(moment)
        return _from_text(str(number), name) if _DATE.fullmatch(str(number)) else _from_whole(number, name)
    raise WrongArgument(f"{name} = {moment!r} is not a time that is exact to the nanosecond. {_FORMS}")


def _from_whole(number: int, name: str) -> int:
    if abs(number) < _LEAST_NS:
        raise WrongArgument(
            f"{name} = {number} cannot be nanoseconds since 1970: no market event is that old. Add nine zeros to seconds, "
            f"six to milliseconds, three to microseconds. {_FORMS}"
        )
    return number
