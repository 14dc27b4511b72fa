"""Decides whether a promise is kept, broken or unknown: takes facts that others looked up. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tapeline.ledger.answers import Answer
from tapeline.ledger.facts import Interval, Key
from tapeline.ledger.intervals import MISSING
from tapeline.monitor.freshness import Newest
from tapeline.records import NS_PER_MS, NS_PER_S
from tapeline.times import text

#: A finding names at most so many of the things that break a promise.
_SHOWN: Final = 3
#: How much market time lies between two moments (ns, UTC), in ns.
OpenTime = Callable[[int, int], int]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at a promise found."""

    name: str
    #: None: it cannot be known now.
    kept: bool | None
    #: What was found, in a sentence, with the figure that was promised.
    text: str


def fresh(name: str, newest: Newest, within_ns: int, now_ns: int, open_time: OpenTime) -> Finding:
    """The newest event is no older than `within_ns` of market time."""
    limit = f"promised is at most {seconds(within_ns)}"
    if newest.seen_ns is not None and (age_ns := open_time(newest.seen_ns, now_ns)) <= within_ns:
        return Finding(name, True, f"The newest event is {seconds(age_ns)} of market time old; {limit}.")
    if newest.until_ns is None:
        nothing = open_time(now_ns - 2 * within_ns, now_ns) <= within_ns  # the market has just opened, or is closed
        return Finding(name, nothing, f"The stream holds no such event; {limit}.")
    if open_time(newest.until_ns, now_ns) > within_ns:
        last = "none was seen" if newest.seen_ns is None else f"the newest one is of {text(newest.seen_ns)} UTC"
        return Finding(name, False, f"No such event since {text(newest.until_ns)} UTC ({last}); {limit}.")
    return Finding(name, None, f"The newest event is not among the latest records of the stream; {limit}.")


def quick(name: str, p99_ms: Mapping[str, float | None], within_ns: int) -> Finding:
    """The 99th percentile of the latency, by provider, is at most `within_ns`."""
    slow = {provider: ms for provider, ms in p99_ms.items() if ms is not None and ms * NS_PER_MS > within_ns}
    if not p99_ms:
        return Finding(name, None, "No normalize worker reports a latency.")
    shown = ", ".join(f"{provider} {ms:.1f} ms" for provider, ms in (slow or p99_ms).items() if ms is not None) or "no events now"
    return Finding(name, not slow, f"Latency, 99th percentile: {shown}; promised is at most {within_ns / NS_PER_MS:g} ms.")


def caught_up(name: str, ages_ns: Mapping[str, int], within_ns: int) -> Finding:
    """The oldest record that a stage has still to read, by stage, is no older than `within_ns`."""
    late = {stage: age_ns for stage, age_ns in ages_ns.items() if age_ns > within_ns}
    shown = ", ".join(f"{stage} {seconds(age_ns)}" for stage, age_ns in (late or ages_ns).items()) or "nothing waits"
    return Finding(name, not late, f"Lag: {shown}; promised is at most {seconds(within_ns)}.")


def complete(name: str, answers: Sequence[Answer], what: str) -> Finding:
    """Every answer is `complete`. `what`: the stretch of time, in words."""
    if not answers:
        return Finding(name, False, f"The ledger knows nothing of {what}.")
    holes = [one for one in answers if one.verdict != "complete"]
    shown = [f"{one.key.symbol} {one.key.channel} of {one.key.provider} {_why(one)}" for one in holes]
    return Finding(name, not holes, f"{_first(shown)}, {what}." if holes else f"All {len(answers)} are proven or reconciled, {what}.")


def covered(name: str, missing_ns: Mapping[Key, int], window_ns: int, at_least: float) -> Finding:
    """The share of the market time `window_ns` in which nothing is missing is at least `at_least` for every key."""
    if not missing_ns or window_ns <= 0:
        return Finding(
            name, True if window_ns <= 0 else None, "The market was closed." if window_ns <= 0 else "The ledger knows nothing of it."
        )
    key, most_ns = max(missing_ns.items(), key=lambda one: one[1])
    share = 1 - most_ns / window_ns
    worst = f"{key.symbol} {key.channel} of {key.provider} is covered {share:.3%} of the time"
    return Finding(name, share >= at_least, f"{worst}; promised is at least {at_least:.3%}.")


def missing_ns(intervals: Iterable[Interval], spans: Iterable[tuple[int, int]]) -> int:
    """How much of some spans (ns, UTC) lies in gaps. Gaps of one key do not overlap."""
    gaps = [(one.start_ns, one.end_ns) for one in intervals if one.state in MISSING]
    return sum(max(0, min(end, to) - max(start, since)) for since, to in spans for start, end in gaps)


def done(name: str, job: str, age_ns: int | None, within_ns: int) -> Finding:
    """A job succeeded at most `within_ns` ago. `age_ns` is None if it never did."""
    if age_ns is None:
        return Finding(name, False, f"{job} has never succeeded; promised is once every {seconds(within_ns)}.")
    return Finding(name, age_ns <= within_ns, f"{job} succeeded {seconds(age_ns)} ago; promised is once every {seconds(within_ns)}.")


def roomy(name: str, free_bytes: int, at_least_gb: float, place: str) -> Finding:
    """At least `at_least_gb` (10**9 bytes) are free."""
    return Finding(
        name, free_bytes >= at_least_gb * 1e9, f"{free_bytes / 1e9:,.1f} GB are free in {place}; promised are {at_least_gb:g} GB."
    )


def accepted(name: str, events: int, rejected: int, at_most: float) -> Finding:
    """The share of rejected events is at most `at_most`."""
    share = rejected / events if events else 0.0
    return Finding(
        name, share <= at_most, f"{rejected:,} of {events:,} events were rejected ({share:.3%}); promised is at most {at_most:.3%}."
    )


def seconds(ns: int) -> str:
    """A duration for people: 1.5 s, 4 min, 3.2 h, 2.0 d."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if ns >= 2 * length * NS_PER_S:
            return f"{ns / NS_PER_S / length:.1f} {unit}"
    return f"{ns / NS_PER_S:.3g} s"


def _why(one: Answer) -> str:
    return (
        "cannot be proven" if not one.holes else f"is {one.verdict}: {len(one.holes)} gaps, the first at {text(one.holes[0].start_ns)} UTC"
    )


def _first(shown: Sequence[Any]) -> str:
    more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + more
