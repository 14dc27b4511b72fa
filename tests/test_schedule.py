"""When a job is due: cron texts and periods, through both nights of daylight saving, whoever asks when."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapeline.errors import ConfigError
from tapeline.orchestration.schedule import Schedule, duration_ns, parse
from tapeline.records import NS_PER_S

NEW_YORK = "America/New_York"
DAY_NS = 86_400 * NS_PER_S


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * NS_PER_S


def texts(schedule: Schedule, after: str, count: int) -> list[str]:
    zone = ZoneInfo(schedule.timezone)
    return [datetime.fromtimestamp(at / NS_PER_S, zone).isoformat() for at in islice(schedule.after(ns(after)), count)]


def test_a_cron_text_is_of_its_time_zone() -> None:
    schedule = parse("30 6 * * 1-5", "", NEW_YORK)
    assert texts(schedule, "2026-11-27T12:00:00+00:00", 2) == ["2026-11-30T06:30:00-05:00", "2026-12-01T06:30:00-05:00"]
    assert schedule.due(ns("2026-11-29T12:00:00+00:00")) == ns("2026-11-27T06:30:00-05:00")


def test_a_moment_is_due_from_its_own_second_on() -> None:
    schedule = parse("30 6 * * *", "", "UTC")
    moment = ns("2026-11-29T06:30:00+00:00")
    assert [schedule.due(moment - 1), schedule.due(moment), schedule.due(moment + 1)] == [moment - DAY_NS, moment, moment]


def test_a_time_that_the_clock_skips_is_due_once_when_it_has_jumped() -> None:
    schedule = parse("30 2 * * *", "", NEW_YORK)
    expected = ["2026-03-07T02:30:00-05:00", "2026-03-08T03:00:00-04:00", "2026-03-09T02:30:00-04:00"]
    assert texts(schedule, "2026-03-07T00:00:00-05:00", 3) == expected


def test_a_time_that_the_clock_repeats_is_due_once() -> None:
    schedule = parse("30 1 * * *", "", NEW_YORK)
    expected = ["2026-11-01T01:30:00-04:00", "2026-11-02T01:30:00-05:00"]
    assert texts(schedule, "2026-11-01T00:00:00-04:00", 2) == expected
    for asked in ("2026-11-01T01:30:00-04:00", "2026-11-01T01:10:00-05:00", "2026-11-01T01:30:00-05:00", "2026-11-01T01:50:00-05:00"):
        assert texts(schedule, asked, 1) == expected[1:], asked
        assert schedule.due(ns(asked)) == ns(expected[0]), asked


def test_each_half_hour_comes_in_the_repeated_hour_too() -> None:
    schedule = parse("*/30 * * * *", "", NEW_YORK)
    assert texts(schedule, "2026-11-01T00:45:00-04:00", 4) == [
        "2026-11-01T01:00:00-04:00",
        "2026-11-01T01:30:00-04:00",
        "2026-11-01T01:00:00-05:00",
        "2026-11-01T01:30:00-05:00",
    ]


def test_a_period_has_the_same_moments_on_every_machine() -> None:
    schedule = parse("", "500ms", "UTC")
    assert list(islice(schedule.after(1_700_000_000_250_000_000), 2)) == [1_700_000_000_500_000_000, 1_700_000_001_000_000_000]
    assert schedule.due(1_700_000_000_750_000_000) == 1_700_000_000_500_000_000


def test_a_job_without_a_schedule_is_never_due_by_itself() -> None:
    schedule = parse("", "", "UTC")
    assert (list(schedule.after(0)), schedule.due(ns("2026-11-29T12:00:00+00:00"))) == ([], None)


CRONS = ["* * * * *", "*/7 * * * *", "0 0 * * *", "30 1 * * *", "30 2 * * *", "15 */3 * * *", "0 0 1 * *", "5 4 * * 1-5", "0 2,3 * * 0"]


@given(
    cron=st.sampled_from(CRONS),
    zone=st.sampled_from(["UTC", NEW_YORK, "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata"]),
    at=st.one_of(
        st.integers(ns("2025-01-01T00:00:00+00:00"), ns("2027-12-31T00:00:00+00:00")),
        st.integers(ns("2026-03-08T05:00:00+00:00"), ns("2026-03-08T09:00:00+00:00")),
        st.integers(ns("2026-11-01T04:00:00+00:00"), ns("2026-11-01T08:00:00+00:00")),
    ),
)
def test_what_is_due_and_what_comes_next_agree(cron: str, zone: str, at: int) -> None:
    """The moments are the same from whatever moment one asks: none is twice, none is left out."""
    schedule = parse(cron, "", zone)
    due = schedule.due(at)
    assert due is not None
    assert due <= at
    first, second = islice(schedule.after(at), 2)
    assert at < first < second
    assert next(schedule.after(due)) == first, "nothing lies between what is due and what comes next"
    assert schedule.due(first) == first
    assert schedule.due(first - 1) == due
    assert next(schedule.after(due - 1)) == due


@pytest.mark.parametrize(
    ("cron", "every", "zone", "said"),
    [
        ("61 * * * *", "", "UTC", "is not a cron expression"),
        ("* * *", "", "UTC", "is not a cron expression"),
        ("* * * * * *", "", "UTC", "has 6 fields"),
        ("", "5", "UTC", "is not a duration"),
        ("", "-5m", "UTC", "is not a duration"),
        ("", "1w", "UTC", "is not a duration"),
        ("", "infs", "UTC", "is not a duration"),
        ("* * * * *", "5m", "UTC", "exclude each other"),
        ("* * * * *", "", "Mars/Olympus", "is not known"),
        ("* * * * *", "", "../etc/passwd", "is not known"),
    ],
)
def test_a_wrong_schedule_is_named_with_a_right_one(cron: str, every: str, zone: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(cron, every, zone)


@pytest.mark.parametrize(("text", "seconds"), [("1ms", 0.001), ("1.5s", 1.5), ("5m", 300), ("2h", 7_200), ("1d", 86_400)])
def test_durations(text: str, seconds: float) -> None:
    assert duration_ns(text, "timeout") == round(seconds * NS_PER_S)
    assert datetime.fromtimestamp(0, UTC).year == 1970
