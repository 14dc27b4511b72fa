"""Renames a symbol that was stored under a wrong name: in each store, one day at a time, and in the ledger at the end.

Each step is atomic, and leaves no rows under the old name. After a crash, the same call continues. A second call finds nothing to do. Raw
records and records on the other topics are not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow.compute as pc

from tapeline.errors import WrongArgument
from tapeline.jobs.rebuild import RawRecords
from tapeline.ledger import Ledger
from tapeline.ledger.archiving import restore
from tapeline.ledger.facts import Interval, Key
from tapeline.ledger.intervals import intervals
from tapeline.ledger.renaming import renamed
from tapeline.providers.events import Names
from tapeline.providers.registry import CHANNELS, PROVIDERS
from tapeline.stores.renaming import NAMING, Progress, Renamed, Renames, Renaming


@dataclass(frozen=True, slots=True)
class RenamedFacts:
    """The channels whose facts the ledger renamed, or would rename in a dry run."""

    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Records with the old name that a store has still to read from the stream. The store will keep them under the old name."""

    store: str
    table: str
    rows: int


def check(renaming: Renaming, names: Names) -> None:
    """Check by the current `names` that the new name is right and the old one is wrong. Raises WrongArgument with the reason if not."""
    one = renaming
    feed = f"{one.provider} {one.feed}"
    if one.feed not in CHANNELS.get(one.provider, {}):
        known = ", ".join(f"{provider} {feed}" for provider, feeds in CHANNELS.items() for feed in feeds)
        raise WrongArgument(f"There is no feed {feed}. The feeds are: {known}.")
    own, other = one.old.replace("/", ""), one.new.replace("/", "")
    if own != other:
        raise WrongArgument(
            f"{one.old} and {one.new} are different symbols of the exchange, {own} and {other}. Their rows do not belong together. "
            "Give two ways to split the same symbol, such as AD/AEUR and ADA/EUR."
        )
    provider, known_names = PROVIDERS[one.provider], names.get((one.provider, one.feed), {})
    if not (problem := provider.name_problem(one.feed, one.new, known_names)) and one.old != one.new:
        if provider.name_problem(one.feed, one.old, known_names):
            return
        raise WrongArgument(f"{one.old} is a correct name of {feed}, and so is {one.new}. Nothing shows that they are one symbol.")
    if one.old == one.new:
        raise WrongArgument(f"{one.old} and {one.new} are the same name. Give the wrong name first, then the right one.")
    raise WrongArgument(
        f"{one.new} is not a current name of {feed}: {problem}. If it is the right name, first set "
        f'names = {{ {other} = "{one.new}" }} in the [[providers]] of {feed}, then rename.'
    )


def rename(
    renaming: Renaming, stores: Iterable[Renames], ledger: Ledger, progress: Progress, *, dry_run: bool = False
) -> Iterator[Renamed | RenamedFacts]:
    """Rename in each store and then in the ledger, and yield each result. Nothing else may write to them meanwhile.

    `dry_run`: change nothing, and yield what would be done. Raises Busy, Unavailable, NewerData; the results yielded before are done."""
    for store in stores:
        yield from store.rename(renaming, progress, dry_run=dry_run)
    facts = _facts(renaming, ledger, dry_run=dry_run)
    if facts is not None:
        yield facts


def waiting(renaming: Renaming, stores: Iterable[Renames], stream: RawRecords) -> Iterator[Waiting]:
    """The records with the old name that each store has still to read, by table. Raises Unavailable."""
    for store in stores:
        for topic in NAMING:
            rows = 0
            for batch in stream.waiting(topic, store.positions(topic)):
                wanted = zip(("provider", "feed", "symbol"), (renaming.provider, renaming.feed, renaming.old), strict=True)
                mine = [pc.fill_null(pc.equal(batch[column], value), False) for column, value in wanted]
                rows += int(pc.sum(pc.and_(pc.and_(mine[0], mine[1]), mine[2]), min_count=0).as_py())
            if rows:
                yield Waiting(store.name, topic.table, rows)


def _facts(renaming: Renaming, ledger: Ledger, *, dry_run: bool) -> RenamedFacts | None:
    """Move the facts of the old name to the new one, and recompute the intervals of both. None if the ledger has no such facts."""
    before, _ = ledger.load()
    gone = {key for key in before.keys() if (key.provider, key.feed, key.symbol) == (renaming.provider, renaming.feed, renaming.old)}  # noqa: SIM118 no mapping
    if not gone:
        return None
    for key in {*gone, *(key._replace(symbol=renaming.new) for key in gone)} & before.pasts.keys():
        while (edge := before.pasts[key].edge) is not None:
            restore(before, key, edge, ledger.pieces)
    after = renamed(before, renaming.provider, renaming.feed, renaming.old, renaming.new)
    if not dry_run:
        changes: dict[Key, tuple[int, list[Interval]]] = dict.fromkeys(gone, (0, []))
        changes |= {key: (0, intervals(after, key)) for key in {*after.touched(), *(key._replace(symbol=renaming.new) for key in gone)}}
        ledger.save(after, changes, {})
        # Forget last: after a crash in between, the next call finds the old facts again, and nothing is lost.
        ledger.forget(gone)
    return RenamedFacts(tuple(sorted(key.channel for key in gone)))
