"""`tapeline backfill` against a simulator that has a past: all that happened in a stretch of time comes once, through faults and kills."""

from __future__ import annotations

import json
import signal
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from processes import Home, block, ledger, records

from frames import rows
from tapeline.ledger.answers import answer
from tapeline.ledger.facts import Key
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS
from tapeline.records import NS_PER_MS, NS_PER_S, RAW_TOPIC
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import SimulatorProcess

    from tapeline.streams import Stream

CHANNELS = ["trade", "aggTrade", "kline_1s"]
FAULTS = ["--fault", "rest_429:2", "--fault", "rest_error:2", "--fault", "archive_checksum:1"]


def happened(journal: list[dict[str, Any]], start_ns: int, end_ns: int) -> dict[tuple[str, str], set[int]]:
    """Ids (of closed bars: the start of their windows, ms) by channel and symbol of what happened in a stretch of time."""
    found: dict[tuple[str, str], set[int]] = {}
    for event in journal:
        kind, symbol = event["e"], f"{event['s'][:-4]}/USDT"
        if kind == "kline":
            if event["k"]["x"] and start_ns <= event["k"]["t"] * NS_PER_MS < end_ns:
                found.setdefault(("kline_1s", symbol), set()).add(event["k"]["t"])
        elif start_ns <= event["T"] * NS_PER_MS < end_ns:
            found.setdefault((kind, symbol), set()).add(event["t" if kind == "trade" else "a"])
    return found


def test_the_past_comes_once_and_whole_through_faults_and_kills(home: Home, simulator: Callable[..., SimulatorProcess]) -> None:
    market = simulator("binance", "--rate", "4000", *FAULTS)
    home.configure(block("binance", market.url, ["BTCUSDT", "ETHUSDT"], CHANNELS))
    listening = home.start("ingest")
    until(lambda: market.journal.exists() and len(sent_events(market)) > 12_000, "nothing happens")
    listening.end()
    journal = sent_events(market)
    start_ns = (min(event["E"] for event in journal) + 400) * NS_PER_MS
    end_ns = (max(event["E"] for event in journal) // 1_000 - 1) * NS_PER_S  # the bars of whole seconds up to then have been told

    later = Home(home.root.with_name("later"), home.spawn)
    later.configure("repair = false\n" + block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["bookTicker"]), ledger=True)
    asked = ("backfill", "--channels", ",".join(CHANNELS), "--start", str(start_ns), "--end", str(end_ns), "--format", "json")
    planned = json.loads(later.ask(*asked, "--dry-run").stdout)
    assert {(one["symbol"], one["channel"]) for one in planned["requests"]} == {(s, c) for s in ("BTC/USDT", "ETH/USDT") for c in CHANNELS}
    for patience_s in (0.8, 1.1):
        killed = later.start(*asked)
        time.sleep(patience_s)
        killed.popen.kill()
        killed.popen.wait()
    done = later.ask(*asked)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["spans"], told["spans_done"], told["share"], told["failed"]) == (6, 6, 1.0, [])
    assert json.loads(later.ask(*asked).stdout) == told
    with closing(later.stream()) as stream:
        pages = [json.loads(row["payload"].partition(b"\n")[0])["path"] for row in records(stream, RAW_TOPIC)]
    assert len(set(pages)) == len(pages) > 6

    run = later.start("run")
    until(lambda: later.word("ledger").get("keys"), "the ledger begins")
    run.send(signal.SIGTERM)  # each stage finishes what there is
    assert run.ends() == 0, run.said
    for (channel, symbol), ids in happened(journal, start_ns, end_ns).items():
        what = "ts_ns // 1000000 FROM bars" if channel == "kline_1s" else "sequence FROM ticks"
        kept = [number for (number,) in later.rows(f"SELECT {what} WHERE symbol = '{symbol}' AND channel = '{channel}'")]
        assert len(kept) == len(set(kept))
        assert ids <= set(kept)
        key = Key("binance", "spot", channel, symbol)
        # Aggregated trades that are asked for by time have nothing before the first that could prove that it is the first.
        ((first_ns,),) = later.rows(f"SELECT min(ts_ns) FROM ticks WHERE symbol = '{symbol}' AND channel = '{channel}'")
        begin_ns = first_ns if channel == "aggTrade" else start_ns
        found = answer(key, ledger(later)[key], begin_ns, end_ns)
        assert found.verdict == "complete", (key, begin_ns, end_ns, found)

    files = Home(home.root.with_name("files"), home.spawn)
    files.configure(block("binance", market.url, ["BTCUSDT"], ["trade"]))
    wrong = files.ask(*asked, "--from", "files", "--symbols", "BTCUSDT")
    assert (wrong.returncode, json.loads(wrong.stdout)["spans_done"]) == (1, 2)
    assert "but its CHECKSUM says 0000" in wrong.stderr
    right = files.ask(*asked, "--from", "files", "--symbols", "BTCUSDT")
    assert (right.returncode, json.loads(right.stdout)["spans_done"]) == (0, 3), right.stderr
    with closing(files.stream()) as stream:
        made = normalize_all(stream)
    for (channel, symbol), ids in happened(journal, start_ns, end_ns).items():
        if symbol == "BTC/USDT":
            assert ids <= {number for of, number in made if of == channel}


def normalize_all(stream: Stream) -> list[tuple[str, int]]:
    """Channel and number of everything that the raw topic's records hold."""
    chunk = stream.read(RAW_TOPIC, {}, 10_000)
    assert chunk is not None
    found = rows(normalize(chunk, DECODERS))
    ticks = [(row["channel"], row["sequence"]) for row in found["ticks"]]
    assert len(ticks) == len(set(ticks))
    return ticks + [(row["channel"], row["ts_ns"] // NS_PER_MS) for row in found["bars"]]


def sent_events(market: SimulatorProcess) -> list[dict[str, Any]]:
    """The events of a journal that is still written, without a last line that is not whole."""
    return [json.loads(line)["event"] for line in market.journal.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize(
    ("provider", "feed", "symbol", "told"),
    [
        ("polygon", "stocks", "AAPL", lambda event: event["i"] if event.get("ev") == "T" else None),
        ("alpaca", "iex", "AAPL", lambda event: str(event["i"]) if event.get("T") == "t" else None),
    ],
)
def test_trades_of_the_past_come_from_whoever_keeps_them_by_time(
    provider: str,
    feed: str,
    symbol: str,
    told: Callable[[dict[str, Any]], str | None],
    home: Home,
    simulator: Callable[..., SimulatorProcess],
) -> None:
    market = simulator(provider, "--rate", "2000", "--fault", "rest_error:1", "--fault", "late_report:1e-12")
    home.env = {"TAPELINE_POLYGON_KEY": "k", "TAPELINE_ALPACA_KEY": "k", "TAPELINE_ALPACA_SECRET": "s"}
    home.configure(block(provider, market.url, [symbol], ["T" if provider == "polygon" else "trades"], feed=feed))
    listening = home.start("ingest")
    until(lambda: market.journal.exists() and len(sent_events(market)) > 4_000, "nothing happens")
    listening.end()
    later = Home(home.root.with_name("later"), home.spawn, home.env)
    later.configure(block(provider, market.url, [symbol], ["T" if provider == "polygon" else "trades"], feed=feed))
    now_ns = time.time_ns()
    asked = ("backfill", "--channels", "trades", "--start", str(now_ns - 600 * NS_PER_S), "--end", str(now_ns), "--format", "json")
    done = later.ask(*asked)
    assert done.returncode == 0, done.stderr
    assert json.loads(later.ask(*asked).stdout) == json.loads(done.stdout)
    with closing(later.stream()) as stream:
        chunk = stream.read(RAW_TOPIC, {}, 10_000)
    assert chunk is not None
    trades = [row["trade_id"] for row in rows(normalize(chunk, DECODERS))["ticks"]]
    assert len(trades) == len(set(trades))
    assert {number for event in sent_events(market) if (number := told(event)) is not None} <= set(trades)
