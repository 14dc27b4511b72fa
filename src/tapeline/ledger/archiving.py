"""Archives the part of a key's past from which only old intervals follow, and restores as much as evidence reaches back.

Each call of `archive` puts one more piece on the key's stack, and `restore` takes the latest one off it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final, TypeVar

import msgspec

from tapeline.ledger.facts import (
    ONGOING,
    Edge,
    Facts,
    Interval,
    Key,
    Past,
    Piece,
    Run,
    State,
    apart,
    join,
    one_after_another,
)
from tapeline.ledger.intervals import COVERED, follow, has_come, intervals, spans_of
from tapeline.providers.registry import CHANNELS
from tapeline.records import NS_PER_MS

#: Returns those pieces of a key that have these numbers, in order, without those that were pruned.
Pieces = Callable[[Key, range], list[Piece]]

#: At least this many runs or spans must go for the work, and the row in the ledger, to be worth it.
_WORTH: Final = 8
#: A number from here on is a time in ns (since 1970). A smaller one is an id, or a time in ms (until the year 300000).
_TIMES_FROM: Final = 10**16


def archive(facts: Facts, key: Key, recent: Sequence[Interval]) -> int:
    """Archive the facts of a key that evidence to come will hardly reach. `recent`: the recent intervals.

    Return how many of the recent intervals were archived. Evidence that is not in the past yet prevents archiving what lies after its
    beginning."""
    past, runs = facts.pasts.get(key), facts.runs.get(key, [])
    if past is None:
        return 0
    # Records that still wait in the stream are later than the key's own past. A clock does not say so: they may wait for hours.
    ends_ns = chain((some[-1].end_ns for some in past.spans.values() if some), (end_ns for _, end_ns in past.read[-1:]))
    at_ns, first_id = _begin(facts, key, max(ends_ns, default=ONGOING))
    piece, rest_runs, rest_past = _divided(key, past, runs, at_ns, first_id)
    if len(piece.runs) + sum(map(len, piece.spans.values())) + len(piece.read) + len(piece.asked) < _WORTH:
        return 0
    follows = follow(key, facts.carried(key), rest_past, rest_runs)
    same = _same_at_the_end(recent, follows)
    gone, before = len(recent) - same, follows[: len(follows) - same]
    if not same or any(one.end_ns > at_ns for one in (*recent[:gone], *before)):
        return 0
    old = past.edge
    states = Counter(one.state for one in recent[:gone] if one.state not in COVERED)
    rest_past.edge = Edge(
        number=gone + (old.number if old is not None else 0),
        states=dict(states + Counter(old.states if old is not None else {})),
        pieces=1 + (old.pieces if old is not None else 0),
        at_ns=at_ns,
        first_id=rest_runs[0].first if rest_runs else None,
        heard=has_come(key, facts.carried(key), past),
        before=before,
        start_ns=recent[gone].start_ns,
    )
    facts.pasts[key] = rest_past
    facts.touched_pasts.add(key)
    if piece.runs:
        facts.runs[key] = rest_runs
        facts.touched_runs.add(key)
    piece.before_ns, piece.states, piece.below = at_ns, dict(states), old
    facts.archived.setdefault(key, []).append(piece)
    return gone


def recent_intervals(facts: Facts, key: Key) -> list[Interval] | None:
    """Return the intervals after the edge, or None if they do not follow from these facts alone. Then `restore` has to run first."""
    past = facts.pasts.get(key)
    if past is None or (edge := past.edge) is None:
        return intervals(facts, key)
    remaining, skipped = intervals(facts, key), len(edge.before)
    if remaining[:skipped] != edge.before or len(remaining) == skipped or remaining[skipped].start_ns != edge.start_ns:
        return None
    return remaining[skipped:]


def reaches_back(facts: Facts, key: Key) -> bool:
    """Return whether evidence that is not in the past yet comes from before a key's edge."""
    past, runs = facts.pasts.get(key), facts.runs.get(key, [])
    if past is None or (edge := past.edge) is None:
        return False
    if edge.first_id != (runs[0].first if runs else None) or edge.heard != has_come(key, facts.carriers(key).values(), past):
        return True
    at_ns, first_id = _begin(facts, key, edge.at_ns)
    return at_ns < edge.at_ns or (first_id is not None and edge.first_id is not None and first_id < edge.first_id)


def restore(facts: Facts, key: Key, edge: Edge, pieces: Pieces, count: int = 1) -> None:
    """Put back what was archived last of a key, up to its edge: so many pieces, or one that was not saved yet.

    `pieces` may raise Unavailable; then nothing has changed."""
    unsaved = facts.archived.get(key, [])
    back = unsaved[-1:] or pieces(key, range(max(edge.pieces - count, 0), edge.pieces))
    below = back[0].below if back else None
    if below is not None:
        number, gone = below.pieces, sum((Counter(piece.states) for piece in back), Counter[State]())
        below.states = dict(Counter(edge.states) - gone)  # what was pruned since is not among them
        facts.archived[key] = unsaved[:-1]
    else:  # it is the first one, or it is from an earlier version, which did not note the edge below
        number, back = 0, [*pieces(key, range(edge.pieces - len(unsaved))), *unsaved]
        facts.archived[key] = []
    past, runs = facts.pasts[key], [Run(run.first, run.last, run.first_ns, run.last_ns) for run in facts.runs.get(key, [])]
    spans = {place: list(some) for place, some in past.spans.items()}
    read, asked, rejected = list(past.read), set(past.asked), set(past.rejected)
    for piece in back:
        for run in piece.runs:
            join(runs, run)
        for place, some in piece.spans.items():
            spans.setdefault(place, []).extend(some)
        read += piece.read
        asked |= set(piece.asked)
        rejected |= set(piece.rejected)
    facts.pasts[key] = msgspec.structs.replace(
        past,
        spans={place: one_after_another(some) for place, some in spans.items()},
        read=apart(read),
        asked=sorted(asked),
        rejected=sorted(rejected),
        edge=below,
    )
    facts.touched_pasts.add(key)
    facts.restored[key] = number
    if runs:
        facts.runs[key] = runs
        facts.touched_runs.add(key)


def _begin(facts: Facts, key: Key, before_ns: int) -> tuple[int, int | None]:
    """Return where evidence that is not in the past begins: as a time (ns), at most `before_ns`, and as an id."""
    runs = facts.runs.get(key)
    times: list[int] = [before_ns]
    ids: list[int] = []
    if runs:
        times.append(max(runs[-1].first_ns, runs[-1].last_ns))
    for connection in facts.carriers(key).values():
        if connection.fetched:
            ended, begun = (connection.asked, connection.read, connection.rejected), (*connection.asking, *connection.reading)
            for first, _ in spans_of(chain(*ended, (entry[:3] for entry in begun), connection.rejecting), key):
                at_ns = _time(key, first)
                (ids if at_ns is None else times).append(first if at_ns is None else at_ns)
        else:
            first_ns = connection.first.get(f"{key.channel} {key.symbol}", 0)
            times += [at_ns for at_ns in (connection.opened_ns, connection.subscribed_ns, first_ns) if at_ns]
    return min(times), min(ids, default=None)


def _time(key: Key, number: int) -> int | None:
    """Return the time (ns) that an edge of a requested span stands for, or None if it is an id. Bars are requested by time in ms."""
    if number >= _TIMES_FROM:
        return number
    channel = CHANNELS.get(key.provider, {}).get(key.feed, {}).get(key.channel)
    return number * NS_PER_MS if channel is not None and channel.kind == "bar" else None


def _divided(key: Key, past: Past, runs: Sequence[Run], at_ns: int, first_id: int | None) -> tuple[Piece, list[Run], Past]:
    """Return a piece with what lies before a time, except the last item of each kind, and the runs and the past that stay."""
    keep = 0
    while keep + 1 < len(runs) and _lies_before(runs[keep], runs[keep + 1], at_ns, first_id):
        keep += 1
    kept_id = runs[keep].first if runs else None

    def reaches(last: int) -> bool:
        last_ns = _time(key, last)
        return last_ns >= at_ns if last_ns is not None else kept_id is None or last >= kept_id

    spans = {place: _split(some, [span.end_ns for span in some], at_ns) for place, some in past.spans.items()}
    read, staying = _split(past.read, [end_ns for _, end_ns in past.read], at_ns)
    piece = Piece(
        runs=list(runs[:keep]),
        spans={place: gone for place, (gone, _) in spans.items() if gone},
        read=read,
        asked=[span for span in past.asked if not reaches(span[1])],
        rejected=[span for span in past.rejected if not reaches(span[1])],
    )
    left = msgspec.structs.replace(
        past,
        spans={place: stays for place, (_, stays) in spans.items()},
        read=staying,
        asked=[span for span in past.asked if reaches(span[1])],
        rejected=[span for span in past.rejected if reaches(span[1])],
    )
    return piece, list(runs[keep:]), left


def _lies_before(run: Run, following: Run, at_ns: int, first_id: int | None) -> bool:
    last_ns = max(run.first_ns, run.last_ns, following.first_ns, following.last_ns)
    return last_ns < at_ns and (first_id is None or following.last < first_id)


def _split(some: Sequence[T], ends_ns: Sequence[int], at_ns: int) -> tuple[list[T], list[T]]:
    """Return what ends before a time, and the rest.

    The rest includes the last item that ends before it, because that item shows what its successor follows.
    """
    gone = max(0, sum(end_ns < at_ns for end_ns in ends_ns) - 1)
    return list(some[:gone]), list(some[gone:])


def _same_at_the_end(some: Sequence[Interval], others: Sequence[Interval]) -> int:
    same = 0
    for one, other in zip(reversed(some), reversed(others), strict=False):
        if one != other:
            break
        same += 1
    return same


T = TypeVar("T")
