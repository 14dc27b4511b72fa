"""The commands that answer whether the data is complete: what they say of a ledger, and with which status they end."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from tapeline.cli import app
from tapeline.ledger.facts import ONGOING, Facts, Interval, Key
from tapeline.ledger.sqlite import LedgerFile
from tapeline.records import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

TRADES = Key("binance", "spot", "trade", "BTC/USDT")
QUOTES = Key("polygon", "stocks", "Q", "AAPL")


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Result]:
    """A command's answer from a ledger that holds these intervals of BTC's trades, and a gap of AAPL's quotes long ago."""
    config = tmp_path / "tapeline.toml"
    config.write_text(
        f'data_dir = "{tmp_path}"\n[[providers]]\nname = "binance"\nsymbols = ["BTCUSDT"]\nchannels = ["trade"]\n'
        '[[providers]]\nname = "polygon"\nsymbols = ["AAPL"]\nchannels = ["Q"]\n'
    )
    gap = Interval(1_710_504_000_000_000_000, 1_710_504_001_000_000_000, "open", "the connection broke without a close")

    def run(*words: str, trades: list[Interval] | None = None) -> Result:
        found = {QUOTES: (0, [gap])} | ({TRADES: (0, trades)} if trades is not None else {})
        LedgerFile(tmp_path / "ledger.sqlite").save(Facts(), found, {0: 1})
        return CliRunner().invoke(app, [*words, "--config", str(config)])

    return run


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def proven(until_s: float) -> Interval:
    """Two days up to so many seconds ago."""
    now_ns = time.time_ns()
    return Interval(
        now_ns - 172_800 * NS_PER_S, now_ns - round(until_s * NS_PER_S), "proven", "ids 1 to 9: all of 9 events are there", 1, 9
    )


def test_a_day_that_is_not_over_is_answered_up_to_the_last_evidence(ask: Callable[..., Result]) -> None:
    there = proven(0.3)
    tail = Interval(there.end_ns, there.end_ns + NS_PER_S // 10, "unprovable", "the next event's number will tell")
    done = ask("complete", "BTC/USDT", today(), "--format", "json", trades=[there, tail])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output) | {"intervals": []} == {
        **TRADES._asdict(),
        "day": today(),
        "until_ns": there.end_ns,
        "verdict": "complete",
        "intervals": [],
    }
    shown = ask("complete", "BTC/USDT", today(), trades=[there, tail]).output
    assert f"complete up to {datetime.fromtimestamp(there.end_ns // NS_PER_S, UTC):%H:%M:%S}" in shown
    assert "yes" in shown


def test_a_gap_that_was_reconciled_today_leaves_what_was_heard_since_in_the_answer(ask: Callable[..., Result]) -> None:
    now_ns = time.time_ns()
    filled = Interval(now_ns - 172_800 * NS_PER_S, now_ns - 7_200 * NS_PER_S, "reconciled", "the provider's history was read to its end")
    heard = Interval(filled.end_ns, now_ns - NS_PER_S // 2, "unprovable", "subscribed and heard: nothing to count by")
    done = ask("complete", "BTC/USDT", today(), "--format", "json", trades=[filled, heard])
    assert done.exit_code in (0, 3), done.output  # just after midnight nothing of today was reconciled
    assert json.loads(done.output)["until_ns"] == heard.end_ns
    assert "nothing is known" not in done.output


def test_what_is_known_to_be_missing_or_has_gone_silent_is_no_part_of_a_yes(ask: Callable[..., Result]) -> None:
    there = proven(20)
    down = Interval(there.end_ns, ONGOING, "open", "the connection broke without a close")
    assert ask("complete", "BTC/USDT", today(), trades=[there, down]).exit_code == 1
    silent = ask("complete", "BTC/USDT", today(), trades=[proven(90)])
    assert silent.exit_code == 1
    assert "nothing is known about this time" in silent.output
    quiet = Interval(proven(90).end_ns, time.time_ns(), "unprovable", "the next event's number will tell")
    assert ask("complete", "BTC/USDT", today(), trades=[proven(90), quiet]).exit_code in (1, 3)


def test_a_name_that_the_ledger_does_not_know_is_no_good_news(ask: Callable[..., Result]) -> None:
    for words in (("gaps",), ("repair", "--dry-run")):
        wrong = ask(*words, "--symbol", "APPL")
        assert "The ledger does not know the symbol 'APPL'. Did you mean 'AAPL'?" in str(wrong.exception)
        wrong = ask(*words, "--provider", "nope")
        assert "The ledger does not know the provider 'nope'. It knows: polygon." in str(wrong.exception)
    assert ask("gaps", "--symbol", "AAPL", "--provider", "polygon").exit_code == 1
    assert ask("gaps", "--symbol", "BTC/USDT", trades=[proven(1)]).exit_code == 0


def test_what_would_be_asked_for_needs_no_key(ask: Callable[..., Result]) -> None:
    done = ask("repair", "--dry-run")
    assert done.exit_code == 0, done.exception
    assert "AAPL, polygon stocks Q" in done.output
    assert "key" in str(ask("repair").exception), "asking does"


def test_a_day_that_has_not_begun_has_no_answer(ask: Callable[..., Result]) -> None:
    for command in ("complete", "reconcile"):
        done = ask(command, *(["AAPL"] if command == "complete" else []), "2099-01-01")
        assert "2099-01-01 (UTC) has not begun." in str(done.exception)


def test_a_format_that_a_command_does_not_have_is_a_wrong_command_line(ask: Callable[..., Result]) -> None:
    assert ask("complete", "AAPL", "2024-03-15", "--format", "csv").exit_code == 2
    assert ask("status", "--format", "parquet").exit_code == 2
