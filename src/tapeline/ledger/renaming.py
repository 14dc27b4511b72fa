"""Moves the facts of a symbol that was kept under a wrong name to its right name."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tapeline.ledger.facts import NO_PAST, ConnectionRecord, Facts, Key, join, united, with_stretch
from tapeline.providers.registry import PROVIDERS


def renamed(facts: Facts, provider: str, feed: str, old: str, new: str) -> Facts:
    """Return the facts as if the symbol had always had its new name. What differs is touched; the given facts stay as they are.

    Neither name may have archived facts."""
    runs = {key: list(found) for key, found in facts.runs.items()}
    touched: set[Key] = set()
    for key in [key for key in runs if (key.provider, key.feed, key.symbol) == (provider, feed, old)]:
        right = key._replace(symbol=new)
        for run in runs.pop(key):
            join(runs.setdefault(right, []), run)
        touched.add(right)
    pasts, moved = dict(facts.pasts), set[Key]()
    for key in [key for key in pasts if (key.provider, key.feed, key.symbol) == (provider, feed, old)]:
        right = key._replace(symbol=new)
        pasts[right] = united(pasts.pop(key), pasts.get(right, NO_PAST))
        moved.add(right)
    mine = {name: life for name, life in facts.lives.items() if (life.provider, life.feed) == (provider, feed)}
    changed = {name: other for name, life in mine.items() if (other := _life_renamed(life, old, new)) != life}
    found = Facts.of(runs, {**facts.lives, **changed}, pasts, facts.past_connections)
    found.touched_runs, found.touched_lives, found.touched_pasts = touched, set(changed), moved
    return found


def _life_renamed(life: ConnectionRecord, old: str, new: str) -> ConnectionRecord:
    """Return a connection whose records have the symbol under its new name."""

    def right(label: str) -> str:
        channel, _, symbol = label.partition(" ")
        return f"{channel} {new}" if symbol == old else label

    def spans(entries: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        return sorted({(right(label), first, last) for label, first, last in entries})

    def begun(entries: Iterable[tuple[str, int, int, int]]) -> list[tuple[str, int, int, int]]:
        pages: dict[tuple[str, int, int], int] = {}
        for label, first, last, count in entries:
            wanted = (right(label), first, last)
            pages[wanted] = max(count, pages.get(wanted, 0))
        return sorted((*wanted, count) for wanted, count in pages.items())

    first: dict[str, int] = {}
    for label, at_ns in life.first.items():
        first[right(label)] = min(at_ns, first.get(right(label), at_ns))
    read: list[tuple[str, int, int]] = []
    for entry in spans(life.read):
        read = with_stretch(read, entry)
    subscriptions = [PROVIDERS[life.provider].subscription(life.feed, topic, life.names) for topic in life.topics]
    asked_for = any(found is not None and found[1] == old for found in subscriptions)
    return msgspec.structs.replace(
        life,
        names={**life.names, new.replace("/", ""): new} if asked_for else life.names,
        first=first,
        asked=spans(life.asked),
        read=read,
        rejected=spans(life.rejected),
        asking=begun(life.asking),
        reading=begun(life.reading),
        rejecting=spans(life.rejecting),
    )
