"""Trades of options come with a number live and over REST, and without one in files: each is kept once, and two equal fills are two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from made import NOON, ticks
from tapeline.jobs.reconcile import _matched
from tapeline.providers.registry import identity
from tapeline.reading.sql import connect
from tapeline.records import NS_PER_MS, TICKS_TOPIC, Chunk, Identity, Topic
from tapeline.secret import NO_SECRET
from tapeline.stores import Store, with_dates
from tapeline.stores.duplicates import Channel, fresh_of
from tapeline.stores.lake import Lake
from tapeline.stores.lake.checking import Finding, check
from tapeline.stores.lake.repairing import repair
from tapeline.stores.postgres import Postgres

OPTION = {"provider": "polygon", "feed": "options", "channel": "T", "symbol": "SPY240610P00536000", "exchange": "XCBO", "side": None}


@dataclass(frozen=True)
class Fill:
    """A trade that happened."""

    number: int
    ns: int
    price: float


FILLS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, NS_PER_MS - 1), st.sampled_from([0.93, 0.94])), max_size=12).map(
    lambda some: [Fill(at + 1, NOON + ms * NS_PER_MS + ns, price) for at, (ms, ns, price) in enumerate(sorted(some))]
)


def row(fill: Fill, source: str, offset: int, index: int) -> dict[str, object]:
    """Live times are in ms; files have no number."""
    ns = fill.ns // NS_PER_MS * NS_PER_MS if source == "live" else fill.ns
    number = None if source == "file" else fill.number
    return {**OPTION, "ts_ns": ns, "last": fill.price, "volume": 1.0, "sequence": number, "raw_offset": offset, "raw_index": index}


def told(batch: pa.RecordBatch | pa.Table) -> Counter[tuple[int, float]]:
    """How many of each price each millisecond has."""
    return Counter(zip((ns // NS_PER_MS for ns in batch["ts_ns"].to_pylist()), batch["last"].to_pylist(), strict=True))


@given(FILLS, st.permutations(["live", "file", "rest", "file", "live"]), st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_fill_is_kept_once_in_whatever_order_its_sources_come(
    fills: list[Fill], sources: list[str], together: int, random: Random
) -> None:
    heard = {fill.number for fill in fills if random.random() < 0.6}
    records: list[list[dict[str, object]]] = []
    for source in sources:
        some = [fill for fill in fills if source != "live" or fill.number in heard]
        if source == "live":  # each in a frame of its own
            records += [[row(fill, source, len(records) + at, 0)] for at, fill in enumerate(some)]
        else:
            records.append([row(fill, source, len(records), at) for at, fill in enumerate(some)])

    kept: list[pa.RecordBatch] = []

    def held(topic: Topic, some: pa.RecordBatch, rule: Identity, channel: Channel | None) -> pa.Table | None:
        return pa.Table.from_batches(kept) if kept else None

    for at in range(0, len(records), together):
        batch = ticks(*(one for record in records[at : at + together] for one in record))
        kept.append(fresh_of(with_dates(batch), TICKS_TOPIC, identity, held))
    assert told(pa.Table.from_batches(kept)) == Counter((fill.ns // NS_PER_MS, fill.price) for fill in fills)


def missed_one_of_three(store: Store) -> None:
    """Live came two of three equal fills, and the file has all, twice."""
    fills = [Fill(1, NOON, 0.93), Fill(2, NOON + 5, 0.93), Fill(3, NOON + 9, 0.93), Fill(4, NOON + NS_PER_MS, 0.93)]
    live = ticks(*(row(fill, "live", at, 0) for at, fill in enumerate((fills[0], fills[2], fills[3]))))
    file = ticks(*(row(fill, "file", 10, at) for at, fill in enumerate(fills)))
    assert store.write(Chunk.dense(TICKS_TOPIC, 0, 0, live)).rows == 3
    assert store.write(Chunk.dense(TICKS_TOPIC, 0, 3, file)).rows == 1
    assert store.write(Chunk.dense(TICKS_TOPIC, 0, 7, file)).rows == 0


def test_a_live_recording_that_missed_one_of_three_equal_fills_has_it_from_the_file(tmp_path: Path) -> None:
    missed_one_of_three(Lake(tmp_path, identity))
    assert findings(tmp_path) == []


def test_postgresql_has_it_too(database: str) -> None:
    with closing(Postgres(database, NO_SECRET, identity)) as store:
        missed_one_of_three(store)


class Sources:
    """All that ever came, as the stream still has it."""

    def __init__(self, *batches: pa.RecordBatch) -> None:
        self.batches = batches

    def again(self, topic: Topic, places: Mapping[int, tuple[int, int]] | None) -> Iterator[pa.RecordBatch]:
        yield from self.batches if topic is TICKS_TOPIC else ()

    def waiting(self, topic: Topic, positions: Mapping[int, int]) -> Iterator[pa.RecordBatch]:
        return iter(())


def silent(*_: object) -> None:
    pass


def findings(root: Path) -> list[Finding]:
    return [finding for one in check(root, identity, None, silent) for finding in one.findings]


@pytest.mark.parametrize("damaged", range(3))
@pytest.mark.parametrize("order", list(permutations(("live", "file", "rest"))), ids="-".join)
def test_a_damaged_file_is_made_again_with_as_many_equal_fills_as_it_had(tmp_path: Path, order: tuple[str, ...], damaged: int) -> None:
    fills = [Fill(at + 1, NOON + at // 3 * NS_PER_MS + at, 0.93 + at // 4) for at in range(9)]
    here = {"live": fills[::2], "file": fills[:7], "rest": fills}
    came = []
    for at, source in enumerate(order):
        rows = [row(fill, source, 100 * at + (at_row if source == "live" else 0), at_row) for at_row, fill in enumerate(here[source])]
        came.append(ticks(*({**one, "received_ns": NOON + at} for one in rows)))
    lake, position = Lake(tmp_path, identity), 0
    for batch in came:
        lake.write(Chunk.dense(TICKS_TOPIC, 0, position, batch))
        position += batch.num_rows
    files = sorted((tmp_path / "ticks").rglob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    if damaged >= len(files):
        return
    before = told(lake_rows(tmp_path))
    files[damaged].write_bytes(b"")
    (done,) = repair(tmp_path, identity, Sources(*came), silent)
    assert done.problem == ""
    assert told(lake_rows(tmp_path)) == before
    assert findings(tmp_path) == []


def lake_rows(root: Path) -> pa.Table:
    with connect(root) as db:
        return db.sql("SELECT ts_ns, last FROM ticks").to_arrow_table()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_reconcile_holds_fills_with_a_number_against_those_without_one(order: tuple[int, int]) -> None:
    fills = [Fill(1, NOON, 0.93), Fill(2, NOON + 5, 0.93), Fill(3, NOON + NS_PER_MS, 0.94)]
    rule = identity("polygon", "options", "T")
    held = pa.table(with_dates(ticks(*(row(fill, "live", at, 0) for at, fill in enumerate(fills[:1] + fills[2:])))))
    fetched = pa.table(with_dates(ticks(*(row(fills[at], "file", 9, at) for at in (*order, 2)))))
    fetched = fetched.append_column("page", pa.array([0] * fetched.num_rows, pa.int64()))
    matched = _matched(held, fetched, rule).to_pylist()
    assert sorted((one["held"], one["fetched"], one["differs"]) for one in matched) == [(0, 1, False), (1, 1, False), (1, 1, False)]
