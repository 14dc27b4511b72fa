"""What an earlier version left on disk under a name that has changed since is read as what it is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from adbc_driver_postgresql import dbapi

from tapeline.errors import NewerData
from tapeline.ledger import read_intervals
from tapeline.ledger.facts import ConnectionRecord, Facts
from tapeline.ledger.intervals import intervals
from tapeline.ledger.sqlite import LedgerFile
from tapeline.stores.lake import compacting
from tapeline.stores.lake.due import Due, due
from test_compacting import quietly
from test_completeness import QUOTES, Place, brief, known, ns, opened, opened_at, place, quote, told
from test_tidying import EVENING, FIRST, SECOND, both, fill_at, names, root, tidied

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["place", "root"]

#: From second 3 to second 5 nothing was kept.
RECORDS = [*opened(0), quote(1), told("dropped", 6, records=9, from_ns=ns(3), to_ns=ns(5), reason="full"), quote(8)]
DROPPED = [(0.1, 3.0, "unprovable"), (3.0, 5.0, "open"), (5.0, 8.0, "unprovable")]


def asked(where: Place, *statements: str) -> list[Any]:
    """Run these statements on a ledger. What the last one returns, if it is a query."""
    kind, path = where
    with closing(sqlite3.connect(path) if kind == "file" else dbapi.connect(str(path))) as db, closing(db.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)
        rows: list[Any] = cursor.fetchall() if cursor.description else []
        db.commit()
    return rows


def of_before(where: Place) -> None:
    """Give a ledger the form that the version before `dropped` wrote."""
    if where[0] == "file":
        body = """CAST(replace(CAST(body AS TEXT), '"dropped":', '"refused":') AS BLOB)"""
        asked(where, f"UPDATE lives SET body = {body}", "PRAGMA user_version = 3")
    else:
        body = """replace(body, '"dropped":', '"refused":')"""
        later = "DROP TABLE tapeline_runs, tapeline_jobs, tapeline_schedulers, tapeline_alerts, tapeline_instruments CASCADE"
        asked(where, f"UPDATE tapeline_ledger_lives SET body = {body}", later, "UPDATE tapeline_schema SET version = 6")


def bodies(where: Place) -> list[bytes]:
    table = "lives" if where[0] == "file" else "tapeline_ledger_lives"
    return [body if isinstance(body, bytes) else body.encode() for (body,) in asked(where, f"SELECT body FROM {table}")]


def test_what_an_earlier_ledger_calls_refused_is_never_taken_for_received(place: Place) -> None:
    ledger, facts = opened_at(*place), known(RECORDS)
    ledger.save(facts, {key: (0, intervals(facts, key)) for key in facts.keys()}, {0: 5})  # noqa: SIM118 no mapping
    facts.settled()
    of_before(place)
    assert [b'"refused":[[' in body and b"dropped" not in body for body in bodies(place)] == [True]
    for _ in range(2):  # as it lies there, and after the first write has brought it to today's form
        kept, positions = opened_at(*place).load()
        assert (kept, positions) == (facts, {0: 5})
        assert brief(kept, QUOTES) == DROPPED
        opened_at(*place).save(Facts(), {}, {})
    assert [b"refused" in body for body in bodies(place)] == [False]
    assert brief(opened_at(*place).load()[0], QUOTES) == DROPPED
    assert read_intervals(ledger.intervals()) == {key: intervals(facts, key) for key in facts.keys()}  # noqa: SIM118


def test_a_connection_keeps_until_when_the_other_line_knew_it_to_be_open() -> None:
    """Read as 0, it would seem to have ended when it was heard last, and what the other line proves would be lost."""
    stored = b'{"provider":"binance","feed":"spot","beside_ns":7}'
    assert msgspec.json.decode(stored, type=ConnectionRecord) == ConnectionRecord("binance", "spot", concurrent_ns=7)
    assert b'"beside_ns":7' in msgspec.json.encode(ConnectionRecord("binance", "spot", concurrent_ns=7))


def test_an_earlier_version_stops_at_a_ledger_of_today_and_does_not_overlook_what_was_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, facts = tmp_path / "ledger.sqlite", known(RECORDS)
    LedgerFile(path).save(facts, {}, {0: 5})
    monkeypatch.setattr("tapeline.ledger.sqlite._FORMAT", 3)
    with pytest.raises(NewerData, match="format 4"):
        LedgerFile(path).load()


def test_a_day_that_an_earlier_version_compacted_is_compacted_and_stays_as_it_is_until_rows_come_to_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "COMPACTED", "sealed-")
    quietly(root, FIRST)
    monkeypatch.undo()
    assert names(root, FIRST) == ["sealed"]
    before = both(root)
    assert due(root, EVENING) == []
    assert [one.changed for one in quietly(root, FIRST)] == [False, False, False]
    tidied(root, EVENING + timedelta(days=2))
    assert (names(root, FIRST), names(root, SECOND)) == (["sealed"], ["compacted"])
    assert both(root) == before
    fill_at(root, EVENING, 1, 6)
    late = EVENING + timedelta(days=1)
    assert Due(FIRST) in due(root, late)
    before = both(root)
    tidied(root, late)
    assert names(root, FIRST) == ["compacted"]
    assert both(root) == before
