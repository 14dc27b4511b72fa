"""Moves the facts of a symbol that was kept under a wrong name to its right name."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tapeline.ledger.facts import NO_PAST, ConnectionRecord, Facts, Key, join, united, with_stretch
from tapeline.providers.registry import PROVIDERS


def renamed(facts: Facts, provider: str, feed: str, old: str, new: str) -> Facts:
    """Return the facts as if the symbol had always had its new name. What differs is touched; the given facts stay as they are.

    Neither name may have archived facts."""
    runs = {key: list(of_key) for key, of_key in facts.runs.items()}
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
    mine = {
        name: connection for name, connection in facts.connections.items() if (connection.provider, connection.feed) == (provider, feed)
    }
    changed = {name: other for name, connection in mine.items() if (other := _renamed_connection(connection, old, new)) != connection}
    result = Facts.of(runs, {**facts.connections, **changed}, pasts, facts.past_connections)
    result.touched_runs, result.touched_connections, result.touched_pasts = touched, set(changed), moved
    result.restored = dict(facts.restored)  # the pieces of both names, which the ledger still has
    return result


def _renamed_connection(connection: ConnectionRecord, old: str, new: str) -> ConnectionRecord:
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
    for label, at_ns in connection.first.items():
        first[right(label)] = min(at_ns, first.get(right(label), at_ns))
    read: list[tuple[str, int, int]] = []
    for entry in spans(connection.read):
        read = with_stretch(read, entry)
    subscriptions = [PROVIDERS[connection.provider].subscription(connection.feed, topic, connection.names) for topic in connection.topics]
    subscribed = any(one is not None and one[1] == old for one in subscriptions)
    return msgspec.structs.replace(
        connection,
        names={**connection.names, new.replace("/", ""): new} if subscribed else connection.names,
        first=first,
        asked=spans(connection.asked),
        read=read,
        rejected=spans(connection.rejected),
        asking=begun(connection.asking),
        reading=begun(connection.reading),
        rejecting=spans(connection.rejecting),
    )
