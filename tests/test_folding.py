"""The ledger forgets nothing by condensing: whatever is folded when, and whatever comes afterwards, its intervals are the same."""

from __future__ import annotations

import json
import math
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proving import PROVE
from tapeline.ledger import Ledger, read_intervals
from tapeline.ledger.absorbing import absorb
from tapeline.ledger.archiving import restore
from tapeline.ledger.facts import Facts
from tapeline.ledger.folding import Account
from tapeline.ledger.intervals import intervals
from tapeline.ledger.renaming import renamed
from tapeline.ledger.sqlite import LedgerFile
from tapeline.providers.history import PageHeader
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS
from tapeline.records import NS_PER_MS
from test_completeness import (
    QUOTES,
    T0,
    TRADES,
    Record,
    bar,
    chunk,
    known,
    ns,
    opened,
    opened_at,
    quote,
    told,
    trade,
)

HOUR = 3_600.0
ALL = range(1 << 31)
Write = Callable[[float, list[Record]], None]


def page(asked: PageHeader, *trades: tuple[int, float]) -> Record:
    """A page of single trades, by number and second, as the log of a repair has it."""
    row = {"price": "1.5", "qty": "2", "quoteQty": "3", "isBuyerMaker": True, "isBestMatch": True}
    rows = [{"id": number, **row, "time": ns(at) // NS_PER_MS} for number, at in trades]
    head = {"channel": asked.channel, "symbol": asked.symbol, "path": "", "time_ms": asked.time_ms, "start_ns": asked.start_ns}
    head |= {"end_ns": asked.end_ns, "first": asked.first, "last": asked.last, "done": asked.done, "page": asked.page}
    return "repair-1", "fetched", asked.time_ms * NS_PER_MS, json.dumps(head).encode() + b"\n" + json.dumps(rows).encode()


class Two:
    """One ledger that folds, kept on disk, and facts that never do; both are given the same records."""

    def __init__(self, ledger: Ledger, before: Two | None = None) -> None:
        """`before`: the records that came before."""
        self.ledger, self.plain, self._offset = ledger, before.plain if before else Facts(), before._offset if before else 0
        self.account = self._loaded()

    def _loaded(self) -> Account:
        facts, _ = self.ledger.load()
        return Account(facts, self.ledger.pieces)

    def records(self, some: list[Record]) -> None:
        if some:
            part = chunk(some, self._offset)
            self._offset += len(some)
            for facts in (self.plain, self.account.facts):
                absorb(facts, part, normalize(part, DECODERS))

    def flush(self, at_s: float, *, restart: bool = False) -> None:
        changes = self.account.changes(ns(at_s))
        self.ledger.save(self.account.facts, changes, {})
        self.account.saved(changes)
        if restart:
            self.account = self._loaded()

    def check(self) -> None:
        kept = read_intervals(self.ledger.intervals())
        assert kept == {key: found for key in self.plain.keys() if (found := intervals(self.plain, key))}  # noqa: SIM118 no mapping
        missing = [one.state for found in kept.values() for one in found if one.state in ("open", "repairing", "unrecoverable")]
        assert sorted(self.account.states().elements()) == sorted(missing)


class Market:
    """Makes records: lines that open, break and overlap, numbers that are lost, a clock that goes on."""

    def __init__(self) -> None:
        self.t, self.number, self.connections = 0.0, 0, 0
        self.open: dict[str, str] = {}
        self.lost: list[tuple[int, float]] = []

    def go(self, what: tuple[Any, ...]) -> list[Record]:
        kind, line, amount = what
        self.t += 0.001
        name = self.open.get(line, "")
        if kind == "wait":
            self.t += amount
        elif kind == "back":
            self.t -= amount
        elif kind == "open":
            self.connections += 1
            self.open[line] = f"{line}-{self.connections}"
            records = opened(self.t, self.open[line], ("trade", "bookTicker", "kline_1s"))
            self.t += 0.2
            return [*records, *([told("closed", self.t, name, by="tapeline", reason="replaced")] if name and amount < HOUR else [])]
        elif kind == "close" and name:
            del self.open[line]
            by = ("network", "provider", "tapeline")[int(amount) % 3]
            reason = ("reset", "bye", "stale: no channel bookTicker for 9.0 s on an open socket")[int(amount) % 3]
            return [told("closed", self.t, name, by=by, reason=reason)]
        elif kind == "kill" and name:
            del self.open[line]
        elif kind == "trade":
            self.number += 1
            if not name or amount > HOUR:
                self.lost.append((self.number, self.t))
            else:
                return [trade(self.number, self.t, name)]
        elif kind == "quote" and name:
            return [quote(self.t, name)]
        elif kind == "bar" and name:
            return [bar(math.floor(self.t) - 1 - int(amount) % 3, name)]
        elif kind == "drop" and name:
            since = ns(self.t - min(amount, 60.0))
            return [told("dropped", self.t, name, records=1, from_ns=since, to_ns=ns(self.t), reason="full")]
        elif kind == "late" and self.lost:
            number, at = self.lost.pop(int(amount) % len(self.lost))
            self.connections += 1
            return [(f"late-{self.connections}", "frame", ns(self.t), trade(number, at)[3])]
        elif kind == "fetch" and self.lost:
            number, at = self.lost.pop(int(amount) % len(self.lost))
            asked = PageHeader("trade", "BTC/USDT", "", ns(self.t) // NS_PER_MS, 0, 0, number, number, True, 1)
            return [page(asked, *([(number, at)] if amount < HOUR else []))]
        elif kind == "fetch bars":
            start_ms = T0 + 1000 * math.floor(self.t - amount)
            end_ms = start_ms + 1000 * int(amount / 2) - 1
            return [page(PageHeader("kline_1s", "BTC/USDT", "", ns(self.t) // NS_PER_MS, 0, 0, start_ms, end_ms, True, 1))]
        elif kind in ("read", "begin"):
            channel = "trade" if line == "a" else "bookTicker"
            asked = PageHeader(channel, "BTC/USDT", "", ns(self.t) // NS_PER_MS, ns(self.t - 2 * amount), ns(self.t - amount))
            asked.done, asked.page = kind == "read", 1
            return [page(asked)]
        return []


#: What happens, and how often.
KINDS = {
    "wait": 25, "open": 8, "close": 5, "kill": 1, "trade": 20, "quote": 12, "bar": 8, "drop": 1, "late": 2, "back": 0.2,
    "fetch": 4, "fetch bars": 2, "read": 1, "begin": 0.3, "flush": 12,
}  # fmt: skip


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One interval, run or span is enough to be archived."""
    monkeypatch.setattr("tapeline.ledger.archiving._WORTH", 1)
    monkeypatch.setattr("tapeline.ledger.folding._GROWN", 1)


@pytest.mark.usefixtures("worth_it")
@settings(max_examples=1000 if PROVE else 25)
@given(st.integers(1, 400), st.integers(0, 1 << 30))
def test_whatever_is_folded_when_the_intervals_are_the_same(steps: int, seed: int) -> None:
    chance = Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        both, market = Two(LedgerFile(Path(folder) / "ledger.sqlite")), Market()
        for kind in chance.choices(list(KINDS), list(KINDS.values()), k=steps):
            if kind == "flush":
                both.flush(market.t, restart=chance.random() < 0.2)
                both.check()
            else:
                both.records(market.go((kind, chance.choice("ab"), 2 * HOUR * chance.random() ** 3)))
        both.flush(market.t)
        both.check()


def broken(both: Two, first: int, last: int, every: float = HOUR) -> float:
    """Connections that live for so long and lose an event of each kind where one follows another; when the last one was heard."""
    at = 0.0
    for number in range(first, last):
        at = number * every
        closed = [told("closed", at - every / 36, f"line-{number - 1}", by="network", reason="reset")] if number > first else []
        heard = [trade(2 * number, at + every / 60, f"line-{number}"), quote(at + every / 60 + 1, f"line-{number}")]
        both.records([*closed, *opened(at, f"line-{number}"), *heard])
        both.flush(at + every / 60 + 2)
        both.check()
    return at + every / 60 + 1


@pytest.fixture(params=["file", "postgresql"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Two:
    return Two(opened_at(request.param, tmp_path / "ledger.sqlite" if request.param == "file" else request.getfixturevalue("database")))


def test_memory_holds_what_is_open_and_what_was_archived_comes_back_when_it_is_needed(both: Two) -> None:
    now = broken(both, 1, 60)
    facts = both.account.facts
    assert (len(facts.connections), len(facts.runs[TRADES]), len(facts.pasts[QUOTES].spans)) == (1, len(facts.runs[TRADES]), 1)
    assert max(len(facts.runs[TRADES]), len(facts.pasts[QUOTES].spans["0 line"])) < 20
    archived = [run.first for piece in both.ledger.pieces(TRADES, ALL) for run in piece.runs]
    assert [*archived, *(run.first for run in facts.runs[TRADES])] == [2 * number for number in range(1, 60)]
    both.records([("late-1", "frame", ns(now), trade(11, 5.5 * HOUR)[3])])
    both.flush(now, restart=True)
    both.check()
    assert [(one.first_id, one.last_id) for one in intervals(both.plain, TRADES) if one.state == "proven"][4:6] == [(10, 12), (14, 14)]
    assert both.ledger.pieces(TRADES, ALL) == []
    broken(both, 61, 90)
    assert len(both.account.facts.runs[TRADES]) < 20


def held(both: Two) -> int:
    """How much of the two keys a flush looks at."""
    facts = both.account.facts
    spans = sum(map(len, facts.pasts[QUOTES].spans.values()))
    return max(len(facts.connections), len(facts.runs[TRADES]), spans, facts.pasts[QUOTES].edge is None and 1_000)


def test_a_connection_that_breaks_every_few_seconds_leaves_no_more_to_look_at_than_one_that_breaks_every_hour(both: Two) -> None:
    broken(both, 1, 80, 15.0)
    assert held(both) < 20


def test_evidence_brings_back_as_much_as_it_reaches_and_no_more(both: Two) -> None:
    now = broken(both, 1, 60)
    before = both.ledger.pieces(TRADES, ALL)
    assert len(before) > 4
    (run,) = before[-2].runs[:1]
    both.records([("late-1", "frame", ns(now), trade(run.first + 1, run.first / 2 * HOUR + 90)[3])])
    both.flush(now)
    both.check()
    left = both.ledger.pieces(TRADES, ALL)
    assert left == before[: len(left)]
    assert len(before) - 4 <= len(left) <= len(before) - 2
    both.flush(now, restart=True)
    both.check()
    broken(both, 61, 90)
    assert held(both) < 20


def test_pieces_that_an_earlier_version_stored_come_back_together(both: Two) -> None:
    now = broken(both, 1, 60)
    both.flush(now)
    key, pieces = TRADES, both.ledger.pieces(TRADES, ALL)
    assert len(pieces) > 4
    for piece in pieces:  # as they were: nothing says what is below
        piece.states, piece.below = {}, None
    both.account.facts.restored[key], both.account.facts.archived[key] = 0, pieces
    both.ledger.save(both.account.facts, {}, {})
    both = Two(both.ledger, both)
    both.records([("late-1", "frame", ns(now), trade(95, 47.5 * HOUR)[3])])
    both.flush(now)
    both.check()
    assert both.ledger.pieces(key, ALL) == []
    broken(both, 61, 90)
    assert held(both) < 20


def test_a_symbol_whose_name_others_get_leaves_no_piece_behind(both: Two) -> None:
    now = broken(both, 1, 60)
    both.records([trade(5_000, now, "line-59", "ETHUSDT")])
    both.flush(now)
    facts, _ = both.ledger.load()
    while (edge := facts.pasts[TRADES].edge) is not None:
        restore(facts, TRADES, edge, both.ledger.pieces)
    assert both.ledger.pieces(TRADES, ALL) != []
    both.ledger.save(renamed(facts, "binance", "spot", "ETH/USDT", "BTC/USDT"), {}, {})
    assert both.ledger.pieces(TRADES, ALL) == []  # else the next piece would have the number of one of them


def test_a_ledger_of_before_is_condensed_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    records = [record for number in range(1, 40) for record in connection(number)]
    before = known(records)
    everything = {key: (0, intervals(before, key)) for key in before.keys()}  # noqa: SIM118 no mapping: a set of its own
    LedgerFile(path).save(before, everything, {0: len(records)})
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript("DROP TABLE pasts; DROP TABLE pieces; DROP TABLE past_connections; PRAGMA user_version = 2;")
    kept = read_intervals(LedgerFile(path).intervals())
    both = Two(LedgerFile(path))
    assert both.account.facts.connections.keys() == before.connections.keys()
    for _ in range(2):  # first the facts are condensed, then what is behind the edges is archived
        both.flush(100 * HOUR)
    assert (len(both.account.facts.connections), read_intervals(both.ledger.intervals())) == (1, kept)
    assert len(LedgerFile(path).load()[0].runs[TRADES]) < len(before.runs[TRADES])


def connection(number: int) -> list[Record]:
    at, name = number * HOUR, f"line-{number}"
    closed = told("closed", at + 100, name, by="network", reason="reset")
    return [*opened(at, name), trade(2 * number, at + 60, name), quote(at + 61, name), *([closed] if number < 39 else [])]


def test_a_copy_of_a_record_of_a_connection_that_is_in_the_past_changes_nothing(tmp_path: Path) -> None:
    both = Two(LedgerFile(tmp_path / "ledger.sqlite"))
    now = broken(both, 1, 20)
    before = read_intervals(both.ledger.intervals())
    both = Two(both.ledger)
    part = chunk([*opened(15 * HOUR, "line-15"), trade(30, 15 * HOUR + 60, "line-15")], 1_000)
    absorb(both.account.facts, part, normalize(part, DECODERS))
    both.flush(now, restart=True)
    assert read_intervals(both.ledger.intervals()) == before


def test_what_is_older_than_it_is_to_be_kept_goes_and_the_rest_says_the_same(both: Two) -> None:
    now = broken(both, 1, 60)
    before = read_intervals(both.ledger.intervals())
    both.account.prune(both.ledger.prune, ns(30 * HOUR))
    both.flush(now, restart=True)
    kept = read_intervals(both.ledger.intervals())
    for key, found in before.items():
        assert kept[key] == [one for one in found if one.end_ns >= ns(30 * HOUR)]
    missing = [one.state for found in kept.values() for one in found if one.state == "open"]
    assert sorted(both.account.states().elements()) == missing
    assert both.ledger.keys() == sorted(before)
    # Evidence from before takes out what there still is.
    both.records([("late-1", "frame", ns(now), trade(101, 50.5 * HOUR)[3])])
    both.flush(now, restart=True)
    assert (100, 102) in [(one.first_id, one.last_id) for one in read_intervals(both.ledger.intervals())[TRADES]]
