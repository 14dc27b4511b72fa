"""Backfill asks for what the ledger does not know, and for nothing else."""

from __future__ import annotations

import threading
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from tapeline.app import missing
from tapeline.app.history_jobs import Wanted
from tapeline.app.missing import day_ns, missing_days
from tapeline.config import Config, ProviderConfig
from tapeline.errors import ConfigError
from tapeline.ledger import INTERVALS

FIRST, LAST = date(2026, 1, 5), date(2026, 1, 7)
BTC, ETH = "BTC/USDT", "ETH/USDT"


class Ledger:
    """As much of a ledger as is read here: intervals of single days."""

    def __init__(self, *days: tuple[str, str, date, str]) -> None:
        self.days = days

    def intervals(self, symbols: set[str]) -> pa.Table:
        rows = [
            {
                **dict.fromkeys(INTERVALS.names),
                "provider": "binance",
                "feed": "spot",
                "channel": channel,
                "symbol": symbol,
                "state": state,
                "evidence": "",
                "start_ns": day_ns(day),
                "end_ns": day_ns(date.fromordinal(day.toordinal() + 1)),
            }
            for symbol, channel, day, state in self.days
            if symbol in symbols
        ]
        return pa.Table.from_pylist(rows, INTERVALS)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    some = ProviderConfig(name="binance", symbols=("BTCUSDT", "ETHUSDT"), channels=("trade", "kline_1m", "bookTicker"))
    return Config(data_dir=str(tmp_path), providers=(some,))


def found(
    config: Config, monkeypatch: pytest.MonkeyPatch, ledger: Ledger, request: Wanted
) -> list[tuple[date, tuple[str, ...], tuple[str, ...]]]:
    monkeypatch.setattr(missing, "open_ledger", lambda _: ledger)
    some = missing_days(config, request, FIRST, LAST, threading.Event())
    return [(day, one.channels, one.symbols) for day, one in some]


def test_days_of_which_nothing_is_known_are_missing_the_latest_first(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [date(2026, 1, 7), date(2026, 1, 6), date(2026, 1, 5)]
    assert found(config, monkeypatch, Ledger(), Wanted()) == [
        (day, (channel,), (BTC, ETH)) for day in days for channel in ("trade", "kline_1m")
    ], "there is no history of bookTicker"


def test_what_is_proven_or_cannot_be_had_is_not_asked_for_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    sixth = date(2026, 1, 6)
    ledger = Ledger(
        *((BTC, "trade", day, "reconciled") for day in (FIRST, LAST)),
        (BTC, "trade", sixth, "unrecoverable"),
        (ETH, "trade", FIRST, "proven"),
        (ETH, "trade", sixth, "open"),
        (ETH, "trade", LAST, "unprovable"),
    )
    assert found(config, monkeypatch, ledger, Wanted(channels=("trade",))) == [(sixth, ("trade",), (ETH,))]


def test_without_a_ledger_every_day_is_asked_for(tmp_path: Path) -> None:
    request = Wanted("binance")
    some = missing_days(Config(data_dir=str(tmp_path), ledger=False), request, FIRST, LAST, threading.Event())
    assert list(some) == [(day, request) for day in (LAST, date(2026, 1, 6), FIRST)]


def test_a_first_day_that_is_none_is_refused(tmp_path: Path) -> None:
    from tapeline.config import load

    (tmp_path / "tapeline.toml").write_text('history_from = "last year"\n')
    with pytest.raises(ConfigError, match=r'history_from = "last year" is not a day. Write it like 2026-01-31'):
        load(tmp_path / "tapeline.toml", {})
