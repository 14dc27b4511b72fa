"""A lake may lie in a folder of any name: no part of a path is an address or a pattern, and nobody else's files are read."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

import tapeline
from made import DAY, NOON, ticks
from tapeline.config import Config
from tapeline.errors import ConfigError
from tapeline.jobs.export import export
from tapeline.providers.registry import identity
from tapeline.reading import sql as query
from tapeline.records import TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake
from tapeline.stores.lake.checking import check
from tapeline.stores.lake.compacting import compact

#: A folder, and one that it would mean too if it were a pattern.
NAMES = [
    ("a b", None),
    ("ä", None),
    ("e\u0301", None),
    ("币安", None),
    ("h#x", None),
    ("p%", None),
    ("100% of it", None),
    ("q?z", "qxz"),
    ("s*t", "s and t"),
    ("**", "anything"),
    ('qu"o', None),
    ("o'b", None),
    ("a&b=c;d+e", None),
    ("date=2024-03-15", None),
    ("{a,b}", "a"),
    ("$files", None),
]


def filled(root: Path, prices: list[float]) -> Config:
    """A lake with a trade a day."""
    rows = [{"symbol": "X", "ts_ns": NOON + at * DAY, "sequence": at, "trade_id": str(at), "last": last} for at, last in enumerate(prices)]
    lake = Lake(root / "lake", identity)
    for at, row in enumerate(rows):
        assert lake.write(Chunk.dense(TICKS_TOPIC, 0, at, ticks(row))).rows == 1
    return Config(data_dir=str(root))


def kept(config: Config) -> list[float]:
    """Every way to read it gives the same."""
    lake = config.root / "lake"
    with tapeline.connect(config=config) as db:
        by_sql = [last for (last,) in db.sql("SELECT last FROM ticks ORDER BY ts_ns").fetchall()]
    by_api = tapeline.ticks("X", NOON - DAY, NOON + 9 * DAY, config=config).arrow()["last"].to_pylist()
    found: list[dict[str, Any]] = query.find(lake, "ticks", "symbol = $1", ["X"])
    assert {Path(row["filename"]).is_relative_to(lake) for row in found} == {True}
    assert by_sql == by_api == [row["last"] for row in sorted(found, key=lambda row: row["ts_ns"])]
    return by_sql


@pytest.mark.parametrize(("name", "other"), NAMES, ids=[name for name, _ in NAMES])
def test_what_is_read_is_what_was_written_there_and_nothing_else(name: str, other: str | None, tmp_path: Path) -> None:
    if other is not None:
        filled(tmp_path / other, [100.0, 200.0, 300.0])
    config = filled(tmp_path / name, [1.0, 2.0])
    lake = config.root / "lake"
    assert kept(config) == [1.0, 2.0]
    batches = tapeline.ticks("X", NOON - DAY, NOON + 9 * DAY, config=config).arrow()
    done = export(batches.schema, batches.to_batches(), tmp_path / f"{name} exported", "ticks", "parquet", lambda *_: None)
    assert done.rows == 2
    compacted = list(compact(lake, date(2024, 3, 15), lambda *_: None))
    assert [one.rows for one in compacted if one.table == "ticks"] == [1]
    assert kept(config) == [1.0, 2.0]
    assert [finding for one in check(lake, identity, None, lambda *_: None) for finding in one.findings] == []


@pytest.mark.parametrize("name", ["a[1]", "]", "back\\slash", "new\nline", "p%20q", "bell\x07"])
def test_a_folder_that_delta_cannot_address_is_refused_by_name_before_anything_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The lake cannot be stored in .* Set another data_dir"):
        filled(tmp_path / name, [1.0])
