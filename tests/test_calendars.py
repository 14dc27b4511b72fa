"""When markets are open: sessions, half days, holidays and clock changes, as exchange_calendars knows them."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from exchange_calendars import deregister_calendar, register_calendar_type
from exchange_calendars.always_open import AlwaysOpenCalendar
from hypothesis import given
from hypothesis import strategies as st

from tapeline.calendars import joined, open_time_ns, session_on, sessions, should_tick
from tapeline.errors import ConfigError
from tapeline.providers.registry import PROVIDERS
from tapeline.records import NS_PER_S

NEW_YORK = ZoneInfo("America/New_York")
HOUR_NS = 3_600 * NS_PER_S
DAY_NS = 24 * HOUR_NS
#: Between these moments the properties are tried: two years with every holiday and both changes of the clock.
FIRST_NS, LAST_NS = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * NS_PER_S for year in (2025, 2027))
MOMENTS = st.integers(FIRST_NS, LAST_NS)
CALENDARS = st.sampled_from(["XNYS", "XTKS", "XASX", "CMES", "24/5", "24/7", ""])


def ns(text: str, zone: ZoneInfo | None = None) -> int:
    """A moment in New York, or in another zone, in ns."""
    return int(datetime.fromisoformat(text).replace(tzinfo=zone or NEW_YORK).timestamp()) * NS_PER_S


def opened(day: str, until: str = "16:00") -> list[tuple[int, int]]:
    """A session that opens at half past nine in New York."""
    return [(ns(f"{day}T09:30"), ns(f"{day}T{until}"))]


def utc_day(day: str) -> tuple[int, int]:
    start_ns = ns(day, ZoneInfo("UTC"))
    return start_ns, start_ns + DAY_NS


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        ("2026-01-05", opened("2026-01-05")),
        ("2025-11-28", opened("2025-11-28", "13:00")),  # the day after Thanksgiving
        ("2026-11-27", opened("2026-11-27", "13:00")),
        ("2025-07-03", opened("2025-07-03", "13:00")),
        ("2026-07-03", []),  # the 4th is a Saturday, so the holiday is on Friday
        ("2025-12-24", opened("2025-12-24", "13:00")),
        ("2026-06-19", []),  # Juneteenth
        ("2021-06-18", opened("2021-06-18")),  # which was no holiday of the exchange before 2022
        ("2026-11-26", []),  # Thanksgiving
        ("2025-01-09", []),  # a day of mourning, which no rule foretells
        ("2026-01-03", []),  # a Saturday
        ("2012-10-29", []),  # a hurricane
    ],
)
def test_a_day_in_new_york_has_the_hours_that_the_exchange_gave_it(day: str, expected: list[tuple[int, int]]) -> None:
    assert session_on("XNYS", date.fromisoformat(day)) == expected
    assert sessions("XNYS", *utc_day(day)) == expected
    assert open_time_ns("XNYS", *utc_day(day)) == sum(close - open_ for open_, close in expected)


def test_the_hours_stay_those_of_new_york_when_its_clock_changes() -> None:
    before, after = session_on("XNYS", date(2026, 3, 6)), session_on("XNYS", date(2026, 3, 9))
    assert [(start // HOUR_NS % 24, end // HOUR_NS % 24) for (start, end) in (*before, *after)] == [(14, 21), (13, 20)]
    autumn = sessions("XNYS", ns("2026-10-30T00:00"), ns("2026-11-03T00:00"))
    assert autumn == [*opened("2026-10-30"), *opened("2026-11-02")]
    assert [start % DAY_NS // HOUR_NS for start, _ in autumn] == [13, 14]
    # The weekend in which the night is an hour longer is an hour longer, and the market is closed in all of it.
    assert ns("2026-11-02T09:30") - ns("2026-10-30T16:00") == 66.5 * HOUR_NS
    assert open_time_ns("XNYS", ns("2026-10-30T16:00"), ns("2026-11-02T09:30")) == 0


def test_a_feed_should_tick_from_the_open_to_the_close_and_not_at_the_close() -> None:
    open_ns, close_ns = opened("2026-01-05")[0]
    ticks = {at: should_tick("XNYS", at) for at in (open_ns - 1, open_ns, close_ns - 1, close_ns)}
    assert ticks == {open_ns - 1: False, open_ns: True, close_ns - 1: True, close_ns: False}
    half = opened("2025-11-28", "13:00")[0]
    assert should_tick("XNYS", half[1] - 1)
    assert not should_tick("XNYS", half[1]), "the afternoon of a half day"


def test_trades_after_the_close_are_of_the_evening_and_in_winter_of_the_next_utc_day() -> None:
    evening = ns("2026-01-05T19:30")
    start_ns, end_ns = utc_day("2026-01-06")
    assert start_ns < evening, "it is the next day in UTC"
    assert not should_tick("XNYS", evening)
    assert sessions("XNYS", start_ns, end_ns) == opened("2026-01-06"), "the evening adds nothing to that day"


def test_silence_counts_only_while_the_market_is_open() -> None:
    friday = opened("2026-01-02")[0]
    monday = opened("2026-01-05")[0]
    assert open_time_ns("XNYS", friday[1] - 3 * NS_PER_S, monday[0] + 7 * NS_PER_S) == 10 * NS_PER_S
    assert open_time_ns("XNYS", monday[0] + 9, monday[0]) == 0, "an event from the future is not late"


def test_a_lunch_break_is_closed_and_a_session_may_begin_on_the_utc_day_before() -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    morning, afternoon = session_on("XTKS", date(2026, 1, 5))
    assert morning == (ns("2026-01-05T09:00", tokyo), ns("2026-01-05T11:30", tokyo))
    assert afternoon == (ns("2026-01-05T12:30", tokyo), ns("2026-01-05T15:30", tokyo))
    assert not should_tick("XTKS", morning[1])
    sydney = session_on("XASX", date(2026, 1, 6))
    assert sydney == [(ns("2026-01-06T10:00", ZoneInfo("Australia/Sydney")), ns("2026-01-06T16:00", ZoneInfo("Australia/Sydney")))]
    assert sydney[0][0] < utc_day("2026-01-06")[0] < sydney[0][1]


def test_a_market_without_a_calendar_never_closes() -> None:
    start_ns, end_ns = utc_day("2026-01-03")
    assert sessions("", start_ns, end_ns) == session_on("", date(2026, 1, 3)) == [(start_ns, end_ns)]
    assert should_tick("", start_ns)
    assert open_time_ns("", start_ns, end_ns) == DAY_NS
    assert sessions("24/7", start_ns, end_ns) == [(start_ns, end_ns)]


@given(CALENDARS, st.lists(MOMENTS, min_size=2, max_size=6))
def test_adjacent_ranges_have_the_sessions_of_the_whole_range_and_open_time_adds_up(calendar: str, moments: list[int]) -> None:
    edges = sorted(moments)
    parts = [sessions(calendar, start, end) for start, end in pairwise(edges)]
    whole = sessions(calendar, edges[0], edges[-1])
    assert joined(period for part in parts for period in part) == whole
    assert sum(open_time_ns(calendar, start, end) for start, end in pairwise(edges)) == open_time_ns(calendar, edges[0], edges[-1])
    assert all(edges[0] <= start < end <= edges[-1] for start, end in whole)
    assert all(end < start for (_, end), (start, _) in pairwise(whole))


@given(CALENDARS, MOMENTS)
def test_a_feed_should_tick_exactly_within_the_sessions(calendar: str, at_ns: int) -> None:
    around = sessions(calendar, at_ns - 4 * DAY_NS, at_ns + 4 * DAY_NS)
    assert should_tick(calendar, at_ns) == any(start <= at_ns < end for start, end in around)


@given(st.dates(date(2025, 1, 2), date(2026, 12, 30)), st.sampled_from(["XNYS", "XTKS", "XASX", ""]))
def test_every_session_belongs_to_one_day(day: date, calendar: str) -> None:
    days = [day + timedelta(days=some) for some in range(-1, 2)]
    dated = joined(period for some in days for period in session_on(calendar, some))
    start_ns = utc_day(f"{day}")[0]
    assert sessions(calendar, start_ns, start_ns + DAY_NS) == [
        (max(start, start_ns), min(end, start_ns + DAY_NS)) for start, end in dated if end > start_ns and start < start_ns + DAY_NS
    ]


def test_a_session_on_a_saturday_is_known() -> None:
    """With pandas 3.1, exchange_calendars 4.13 leaves these sessions out without an error, so the extra excludes that pandas."""
    assert session_on("XBOM", date(2024, 1, 20)), "a Saturday on which Bombay traded"
    assert not session_on("XBOM", date(2024, 1, 27))


def test_an_unknown_calendar_is_named_with_one_like_it() -> None:
    with pytest.raises(ConfigError, match=r"no calendar 'XNYC'\. Did you mean 'XNYS'\? Use the MIC of an exchange"):
        should_tick("XNYC", LAST_NS)


def test_a_time_that_the_package_does_not_know_is_no_closed_market() -> None:
    with pytest.raises(ConfigError, match=r"XNYS are known from 1990-01-01 to 2049-12-31, and not .* 1989-12-31"):
        should_tick("XNYS", ns("1990-01-01", ZoneInfo("UTC")) - 1)
    with pytest.raises(ConfigError, match="pip install --upgrade exchange_calendars"):
        session_on("XNYS", date(2050, 1, 1))
    # Shanghai publishes its holidays a year at a time, so the package ends there with each year. It begins with the exchange.
    with pytest.raises(ConfigError, match="XSHG are known from 1990-12-03 to "):
        sessions("XSHG", *utc_day("2049-01-04"))
    assert session_on("XSHG", date(2026, 1, 5)), "the days before are known"


def test_a_calendar_that_the_package_cannot_build_is_named_with_the_remedy_and_one_that_another_package_registers_is_known() -> None:
    class Broken(AlwaysOpenCalendar):
        def __init__(self, *_: object, **__: object) -> None:
            raise NotImplementedError

    register_calendar_type("TAPELINE_BROKEN", Broken)
    register_calendar_type("TAPELINE_OWN", AlwaysOpenCalendar)
    try:
        with pytest.raises(
            ConfigError, match=r"cannot build the calendar TAPELINE_BROKEN \(NotImplementedError\)\. Update it \(pip install"
        ):
            should_tick("TAPELINE_BROKEN", FIRST_NS)
        assert should_tick("TAPELINE_OWN", FIRST_NS)
    finally:
        deregister_calendar("TAPELINE_BROKEN")
        deregister_calendar("TAPELINE_OWN")


@pytest.mark.parametrize("missing", ["exchange_calendars", "pandas"])
def test_without_the_package_the_error_names_it_and_the_extra(missing: str) -> None:
    asked = f"""
import sys
sys.modules[{missing!r}] = None
from tapeline.calendars import should_tick
print(should_tick("", 1_767_600_000_000_000_000))
try:
    should_tick("XNYS", 1_767_600_000_000_000_000)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "True",
        f"ConfigError Market calendars need the package {missing}, which is not installed. Install it: pip install 'tapeline[calendars]'",
    ]


def test_nothing_is_loaded_for_a_market_that_never_closes_and_no_warning_comes_of_one_that_does() -> None:
    asked = """
import sys
from tapeline.calendars import should_tick
should_tick("", 1_767_600_000_000_000_000)
print(sorted({"pandas", "exchange_calendars"} & set(sys.modules)))
print(should_tick("XNYS", 1_767_625_200_000_000_000))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", asked], capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (["[]", "True"], "")


def test_each_feed_of_us_stocks_and_options_has_the_calendar_of_new_york_and_crypto_has_none() -> None:
    calendars = {name: {feed: some.calendar for feed, some in provider.feeds.items()} for name, provider in PROVIDERS.items()}
    us = dict.fromkeys(("iex", "sip", "delayed_sip", "opra", "indicative"), "XNYS")
    assert calendars["alpaca"] == {**us, "test": "", "crypto": ""}
    assert calendars["polygon"] == {"stocks": "XNYS", "options": "XNYS", "crypto": ""}
    assert calendars["binance"] == {"spot": ""}
    delayed = {feed: some.delay_ns for feed, some in PROVIDERS["alpaca"].feeds.items() if some.delay_ns}
    assert delayed == {"delayed_sip": 900 * NS_PER_S}
