"""What reaches a terminal: nothing from outside can command it."""

from __future__ import annotations

import io
import logging

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapeline.cli.terminal import echo
from tapeline.local import output
from tapeline.local.console import Output, printable
from tapeline.monitor.terminal import tables
from tapeline.secret import Guard

ESCAPE = "\x1b[2J\x1b]0;owned\x07\r"
WRITTEN = "\\x1b[2J\\x1b]0;owned\\x07\\x0d"


@given(st.text())
def test_a_text_keeps_its_letters_and_loses_every_control(text: str) -> None:
    shown = printable(text)
    assert all(letter.isprintable() or letter in "\n\t" for letter in shown)
    if all(letter.isprintable() for letter in text):
        assert shown == text


def test_a_symbol_with_an_escape_sequence_in_it_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    output.write(pa.table({"symbol": [f"A{ESCAPE}"], "detail": ["x" * 200]}), "table", None)
    echo(f"{ESCAPE} is missing")
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert said.count(WRITTEN) == 2


def test_what_a_provider_says_moves_no_cursor_in_the_log_and_on_the_status_page() -> None:
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.addFilter(Guard())
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "alpaca says %s", (ESCAPE,), None)
    handler.handle(record)
    assert sink.getvalue() == f"alpaca says {WRITTEN}\n"
    quiet = {
        "connected": 0,
        "lines": 1,
        "reconnects": 0,
        "ticks_per_s": 0,
        "p50_ms": None,
        "clock_off_s": None,
        "p99_ms": None,
        "ticks": 0,
        "bars": 0,
        "rejected": 0,
        "suspect": 0,
        "inexact": 0,
    }
    seen = {
        "providers": {"alpaca": {**quiet, "problem": ESCAPE}},
        "spool": {"spooled": 0, "dropped": 0},
        "lines": {},
        "stages": {},
        **dict.fromkeys(("backlog", "leaps", "forgotten", "ahead", "equations"), ()),
        "gaps": None,
        "elsewhere": None,
        "passed_over": 0,
        "upkeep": {},
    }
    console = Output(file=sink, width=200)
    console.print(tables(seen))
    assert "\x1b" not in sink.getvalue()
    assert "float64" not in sink.getvalue()
    console.print(tables({**seen, "providers": {"alpaca": {**quiet, "problem": "", "inexact": 1234}}}))
    assert "alpaca: 1,234 prices and sizes have more digits than float64 holds" in sink.getvalue()
