"""The grid of completeness: each cell has the worst state of its time, and says how much of it is covered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from made import NOON
from tapeline.ledger.facts import ONGOING, Interval, Key
from tapeline.records import NS_PER_S
from tapeline.web.coverage import WORST_FIRST, Grid, grid

KEY = Key("binance", "spot", "trade", "BTC/USDT")
HOUR = 3_600 * NS_PER_S


def cells(intervals: list[Interval], hours: int, now_ns: int = NOON + 100 * HOUR) -> list[tuple[str, float, int]]:
    found: Grid = grid({KEY: intervals}, NOON, NOON + hours * HOUR, HOUR, now_ns)
    return [(cell.state, cell.covered, cell.missing) for cell in found.rows[0].cells]


def test_a_cell_has_the_worst_state_of_its_time() -> None:
    known = [
        Interval(NOON, NOON + HOUR, "proven", "ids", 1, 100),
        Interval(NOON + HOUR, NOON + HOUR + HOUR // 2, "open", "missing ids", 101, 110),
        Interval(NOON + HOUR + HOUR // 2, NOON + 2 * HOUR, "proven", "ids", 111, 200),
        Interval(NOON + 2 * HOUR, NOON + 3 * HOUR, "unprovable", "heard"),
    ]
    assert cells(known, 4) == [("proven", 1.0, 0), ("open", 0.5, 10), ("unprovable", 1.0, 0), ("unknown", 0.0, 0)]


def test_time_that_has_not_come_is_ahead_and_time_before_the_first_record_is_unknown() -> None:
    known = [Interval(NOON + HOUR, NOON + 2 * HOUR, "proven", "ids", 1, 100)]
    assert [state for state, _, _ in cells(known, 4, NOON + 2 * HOUR)] == ["unknown", "proven", "ahead", "ahead"]


def test_the_present_hour_counts_up_to_the_last_evidence() -> None:
    known = [Interval(NOON, NOON + HOUR // 2, "proven", "ids", 1, 100)]
    assert cells(known, 1, NOON + HOUR // 2 + 10 * NS_PER_S) == [("proven", 1.0, 0)]
    assert cells(known, 1, NOON + HOUR // 2 + 600 * NS_PER_S)[0][0] == "unknown", "nobody has reported for ten minutes"


def test_a_hole_that_goes_on_covers_every_later_cell() -> None:
    known = [Interval(NOON, NOON + HOUR, "proven", "ids", 1, 9), Interval(NOON + HOUR, ONGOING, "open", "closed by provider")]
    assert [state for state, _, _ in cells(known, 3)] == ["proven", "open", "open"]


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 120), st.sampled_from(["proven", "open", "unprovable"])), max_size=8))
def test_the_cells_together_say_what_the_intervals_say(some: list[tuple[int, int, str]]) -> None:
    minute, at, known = HOUR // 60, 0, []
    for gap, length, state in some:
        at += gap
        known.append(Interval(NOON + at * minute, NOON + (at + length) * minute, state, "evidence"))  # type: ignore[arg-type]
        at += length
    hours = 24
    found = cells(known, hours)
    covered = sum(share for _, share, _ in found)
    wanted = sum(max(0, min(one.end_ns, NOON + hours * HOUR) - one.start_ns) / HOUR for one in known if one.state != "open")
    assert abs(covered - wanted) < 1e-4
    for hour, (state, _, _) in enumerate(found):
        inside = [one.state for one in known if one.start_ns < NOON + (hour + 1) * HOUR and one.end_ns > NOON + hour * HOUR]
        worst = min((WORST_FIRST.index(one) for one in inside), default=WORST_FIRST.index("unknown"))
        assert WORST_FIRST.index(state) <= worst  # type: ignore[arg-type]
