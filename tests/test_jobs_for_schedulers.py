"""What another scheduler asks Tapeline for: the jobs with all their settings, a run for one provider, and a moment that is done once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from made import NOON, ticks
from tapeline.errors import ConfigError
from tapeline.providers.registry import identity
from tapeline.records import TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake
from test_jobs_command import ask, lines

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration with a lake of one tick. No address of a provider answers."""
    Lake(tmp_path / "data" / "lake", identity).write(Chunk.dense(TICKS_TOPIC, 0, 0, ticks({"ts_ns": NOON})))
    provider = '[[providers]]\nname = "binance"\nsymbols = ["BTCUSDT"]\nchannels = ["trade"]\nrest_url = "http:/nowhere"\n'
    (tmp_path / "tapeline.toml").write_text(f'data_dir = "{tmp_path / "data"}"\n[[jobs]]\njob = "compact"\n{provider}')
    return tmp_path


def test_a_moment_that_was_done_is_not_done_again_whoever_asks(folder: Path) -> None:
    asked = ("run", "compact", "--due-ns", str(NOON), "--by", "airflow")
    first, second = (lines(folder, *asked, "--attempt", attempt)[-1] for attempt in ("1", "2"))
    assert first["state"] == "succeeded"
    assert second == first
    assert [row["attempt"] for row in lines(folder, "history")] == ["1"]


def test_the_list_names_the_providers_of_a_job_and_since_when_it_is_known(folder: Path) -> None:
    listed = {row["job"]: row for row in lines(folder, "list")}
    assert {name: row["providers"] for name, row in listed.items()} == {
        "compact": [],
        "reconcile": ["binance"],
        "symbols": ["binance"],
        "check_lake": [],
        "vacuum": [],
    }
    time.sleep(1.1)
    assert {row["since"] for row in lines(folder, "list")} == {row["since"] for row in listed.values()}


def test_a_run_for_one_provider_is_recorded_apart(folder: Path) -> None:
    assert ask(folder, "run", "reconcile", "--provider", "binance", "--due-ns", str(NOON)).exit_code != 0
    (row,) = lines(folder, "history")
    assert row["of"].endswith(" binance")
    wrong = ask(folder, "run", "reconcile", "--provider", "polygon")
    assert isinstance(wrong.exception, ConfigError)
    assert "Use one of: binance." in str(wrong.exception)
