"""The commands that answer whether the data is complete: what they say of a ledger, and with which status they end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import tapeline
from tapeline.cli import app
from tapeline.ledger.answers import Answer
from tapeline.ledger.facts import ONGOING, Facts, Interval, Key
from tapeline.ledger.sessions import session_answer, sessions_answer
from tapeline.ledger.sqlite import LedgerFile
from tapeline.providers.registry import identity
from tapeline.records import NS_PER_S, TICKS, TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake

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

    def run(*words: str, trades: list[Interval] | None = None, quotes: list[Interval] | None = None) -> Result:
        found = {QUOTES: (0, [gap] if quotes is None else quotes)} | ({TRADES: (0, trades)} if trades is not None else {})
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
        "session": None,
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


# The session of a market


def at(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp()) * NS_PER_S


def heard(start: str, end: str) -> Interval:
    return Interval(at(start), at(end), "unprovable", "subscribed and heard: nothing to count by")


def read(start: str, end: str) -> Interval:
    return Interval(at(start), at(end), "reconciled", "the provider's history was read to its end")


def session_of(done: Result) -> dict[str, object]:
    session = json.loads(done.output)["session"]
    assert isinstance(session, dict)
    return session


def test_a_session_is_complete_though_the_rest_of_its_day_is_not(ask: Callable[..., Result]) -> None:
    quotes = [read("2026-01-05T14:00", "2026-01-05T22:00")]
    done = ask("complete", "AAPL", "2026-01-05", "--session", quotes=quotes)
    assert (done.exit_code, done.output.splitlines()[0]) == (
        0,
        "AAPL 2026-01-05 session (14:30 to 21:00 UTC), polygon stocks Q, complete: yes",
    )
    answer = json.loads(ask("complete", "AAPL", "2026-01-05", "--session", "--format", "json", quotes=quotes).output)
    end_ns = at("2026-01-05T21:15")
    assert answer == {
        **QUOTES._asdict(),
        "day": "2026-01-05",
        "until_ns": end_ns,
        "verdict": "complete",
        "intervals": [
            {
                "start_ns": at("2026-01-05T14:30"),
                "end_ns": end_ns,
                "state": "reconciled",
                "evidence": quotes[0].evidence,
                "first_id": None,
                "last_id": None,
            }
        ],
        "session": {"calendar": "XNYS", "periods": [[at("2026-01-05T14:30"), at("2026-01-05T21:00")]], "verdict": "complete"},
    }
    whole = ask("complete", "AAPL", "2026-01-05", quotes=quotes)
    assert whole.exit_code == 1, "the UTC day stays what it was"
    assert whole.output.splitlines() == [
        "AAPL 2026-01-05, polygon stocks Q, complete: no",
        "  The session (14:30 to 21:00 UTC) is complete: all gaps are outside it.",
        "  2026-01-05 00:00:00.000 to 2026-01-05 14:00:00.000  open: nothing is known about this time",
        "  2026-01-05 22:00:00.000 to 2026-01-06 00:00:00.000  open: nothing is known about this time",
    ]
    additional = ask("complete", "AAPL", "2026-01-05", "--format", "json", quotes=quotes)
    assert json.loads(additional.output)["verdict"] == "incomplete"
    assert session_of(additional) == answer["session"]


def test_a_gap_in_the_session_or_in_its_closing_auction_makes_it_incomplete(ask: Callable[..., Result]) -> None:
    for start, end in (("2026-01-05T15:00", "2026-01-05T15:01"), ("2026-01-05T21:00", "2026-01-05T21:00:05")):
        quotes = [read("2026-01-05T00:00", start), read(end, "2026-01-06T00:00")]
        done = ask("complete", "AAPL", "2026-01-05", "--session", quotes=quotes)
        assert done.exit_code == 1, (start, done.output)
        assert "The session" not in ask("complete", "AAPL", "2026-01-05", quotes=quotes).output
    quotes = [read("2026-01-05T00:00", "2026-01-05T21:15"), read("2026-01-05T21:16", "2026-01-06T00:00")]
    assert ask("complete", "AAPL", "2026-01-05", "--session", quotes=quotes).exit_code == 0


def test_a_session_in_which_nothing_can_be_proven_says_so_of_the_day_too(ask: Callable[..., Result]) -> None:
    quotes = [heard("2026-01-05T14:00", "2026-01-05T22:00")]
    assert ask("complete", "AAPL", "2026-01-05", "--session", quotes=quotes).exit_code == 3
    line = "The session (14:30 to 21:00 UTC) has no known gap, but cannot be proven complete: all gaps are outside it."
    assert line in ask("complete", "AAPL", "2026-01-05", quotes=quotes).output


def test_a_half_day_ends_at_one_in_new_york(ask: Callable[..., Result]) -> None:
    quotes = [read("2025-11-28T14:30", "2025-11-28T18:15")]
    done = ask("complete", "AAPL", "2025-11-28", "--session", quotes=quotes)
    assert done.exit_code == 0
    assert "session (14:30 to 18:00 UTC), polygon stocks Q, complete: yes" in done.output
    full = [read("2025-11-26T14:30", "2025-11-26T18:15")]
    assert ask("complete", "AAPL", "2025-11-26", "--session", quotes=full).exit_code == 1, "the day before Thanksgiving is a whole one"


def test_on_a_holiday_the_market_was_closed(ask: Callable[..., Result]) -> None:
    done = ask("complete", "AAPL", "2026-06-19", "--session")
    assert (done.exit_code, done.output) == (
        0,
        "AAPL 2026-06-19, polygon stocks Q: The market was closed (XNYS has no session on this date)\n",
    )
    answer = json.loads(ask("complete", "AAPL", "2026-06-19", "--session", "--format", "json").output)
    assert answer == {
        **QUOTES._asdict(),
        "day": "2026-06-19",
        "until_ns": None,
        "verdict": "closed",
        "intervals": [],
        "session": {"calendar": "XNYS", "periods": [], "verdict": "closed"},
    }
    whole = ask("complete", "AAPL", "2026-06-19")
    assert whole.exit_code == 1
    assert "The market was closed (XNYS has no session on this date): all gaps are outside its sessions." in whole.output


def test_a_market_that_never_closes_has_a_session_of_a_whole_day(ask: Callable[..., Result]) -> None:
    done = ask("complete", "BTC/USDT", "2026-01-05", "--session", trades=[read("2026-01-05T00:00", "2026-01-06T00:00")])
    assert (done.exit_code, done.output.splitlines()[0]) == (
        0,
        "BTC/USDT 2026-01-05 session (the whole UTC day, because this market never closes), binance spot trade, complete: yes",
    )
    short = [read("2026-01-05T00:00", "2026-01-05T23:59")]
    assert ask("complete", "BTC/USDT", "2026-01-05", "--session", trades=short).exit_code == 1
    assert "ession" not in ask("complete", "BTC/USDT", "2026-01-05", trades=short).output


def test_a_session_that_has_not_begun_has_no_answer_yet(ask: Callable[..., Result]) -> None:
    done = ask("complete", "AAPL", "2049-01-04", "--session")
    assert done.exit_code == 1
    assert "The session of 2049-01-04 has not begun. It begins at 2049-01-04 14:30:00.000 UTC." in str(done.exception)


def test_a_session_that_is_not_over_is_answered_up_to_the_last_evidence() -> None:
    start_ns, close_ns = at("2026-01-05T14:30"), at("2026-01-05T21:00")
    quotes = [read("2026-01-05T14:00", "2026-01-05T16:00"), heard("2026-01-05T16:00", "2026-01-05T16:30")]
    now_ns = quotes[-1].end_ns + 5 * NS_PER_S
    running = session_answer(QUOTES, quotes, date(2026, 1, 5), now_ns)
    assert (running.over, running.until_ns, running.answer.verdict) == (False, quotes[-1].end_ns, "unprovable")
    assert running.periods == ((start_ns, close_ns),)
    silent = session_answer(QUOTES, quotes, date(2026, 1, 5), now_ns + 120 * NS_PER_S)
    assert (silent.until_ns, silent.answer.verdict) == (now_ns + 120 * NS_PER_S, "incomplete")


def test_a_delayed_feed_must_be_heard_until_the_delayed_close() -> None:
    key = Key("alpaca", "delayed_sip", "trades", "AAPL")
    now_ns = at("2026-01-06T00:00")
    for end, verdict in (("2026-01-05T21:29", "incomplete"), ("2026-01-05T21:30", "complete")):
        asked = session_answer(key, [read("2026-01-05T14:30", end)], date(2026, 1, 5), now_ns)
        assert asked.answer.verdict == verdict, end


def test_the_sessions_within_a_range_are_answered_together() -> None:
    whole = [read("2026-01-02T14:30", "2026-01-02T21:15"), read("2026-01-05T14:30", "2026-01-05T21:15")]
    week = at("2026-01-02T00:00"), at("2026-01-06T00:00")
    assert sessions_answer(QUOTES, whole, *week).verdict == "complete"
    assert sessions_answer(QUOTES, whole[:1], *week).holes == (
        Interval(at("2026-01-05T14:30"), at("2026-01-05T21:15"), "open", "nothing is known about this time"),
    )
    weekend = at("2026-01-03T00:00"), at("2026-01-05T00:00")
    assert sessions_answer(QUOTES, whole, *weekend) == Answer(QUOTES, "closed", ())
    auction = at("2026-01-02T21:05"), at("2026-01-03T00:00")
    assert sessions_answer(QUOTES, [], *auction).holes[0].end_ns == at("2026-01-02T21:15"), "a range that begins after the close"
    assert sessions_answer(TRADES, whole, *weekend).verdict == "incomplete", "a market that never closes is open at the weekend"


def test_a_result_of_python_is_answered_for_its_range_or_for_the_sessions_within_it(ask: Callable[..., Result], tmp_path: Path) -> None:
    ask("gaps", quotes=[read("2026-01-05T14:00", "2026-01-05T22:00")])  # writes the ledger
    row = dict.fromkeys(TICKS.names) | {"symbol": "AAPL", "ts_ns": at("2026-01-05T15:00"), "kind": "quote", "bid": 1.0, "exchange": "XNAS"}
    row |= {"provider": "polygon", "feed": "stocks", "channel": "Q", "received_ns": at("2026-01-05T15:00")}
    row |= dict.fromkeys(("raw_partition", "raw_offset", "raw_index"), 0)
    Lake(tmp_path / "lake", identity).write(Chunk.dense(TICKS_TOPIC, 0, 0, pa.RecordBatch.from_pylist([row], TICKS)))
    config = tmp_path / "tapeline.toml"

    def verdicts(start: str, end: str) -> tuple[str, str]:
        result = tapeline.ticks("AAPL", start, end, config=config)
        (whole,), (of_session,) = result.completeness(), result.completeness(session=True)
        assert whole.key == of_session.key == QUOTES
        return whole.verdict, of_session.verdict

    assert verdicts("2026-01-05", "2026-01-06") == ("incomplete", "complete")
    assert verdicts("2026-01-05", "2026-01-07") == ("incomplete", "incomplete")
    assert verdicts("2026-01-03", "2026-01-05") == ("incomplete", "closed")


WITHOUT = """
import sys
sys.modules["exchange_calendars"] = None
from tapeline.cli import main
sys.argv = ["tapeline", *sys.argv[1:]]
main()
"""


def test_without_the_package_the_answer_for_the_day_stays_and_the_session_is_not_known(ask: Callable[..., Result], tmp_path: Path) -> None:
    ask("gaps", quotes=[read("2026-01-05T14:00", "2026-01-05T22:00")])  # writes the ledger

    def without(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT, "complete", "AAPL", "2026-01-05", "--config", str(tmp_path / "tapeline.toml"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    reason = "Market calendars need the package exchange_calendars, which is not installed. Install it: pip install 'tapeline[calendars]'"
    day = without()
    assert (day.returncode, day.stderr) == (1, "")
    assert f"  Whether the session of this day is complete is not known: {reason}" in day.stdout.splitlines()
    assert json.loads(without("--format", "json").stdout)["session"] == {
        "calendar": "XNYS",
        "periods": [],
        "verdict": "unknown",
        "reason": reason,
    }
    session = without("--session")
    assert session.returncode == 78
    assert reason in session.stderr


def test_a_new_process_loads_pandas_only_when_it_asks_about_a_session(ask: Callable[..., Result], tmp_path: Path) -> None:
    ask("gaps", quotes=[read("2026-01-05T00:00", "2026-01-06T00:00")])  # writes the ledger
    asked = ["complete", "AAPL", "2026-01-05", "--config", str(tmp_path / "tapeline.toml")]
    for words, loaded in ((asked, False), ([*asked, "--session"], True)):
        command = [sys.executable, "-X", "importtime", "-m", "tapeline", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert done.returncode == 0, done.stderr[-1_000:]
        assert "complete: yes" in done.stdout
        assert ("pandas.core.frame" in modules, "exchange_calendars" in modules) == (loaded, loaded)
