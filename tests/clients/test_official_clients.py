"""The providers' own Python clients, unmodified, each in an environment of its own, parse what a simulator sends.

What they print is compared with the simulator's journal, field by field.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from environments import python_of
from tapeline.simulators import CERTIFICATE, Simulator, SimulatorOptions

HERE = Path(__file__).parent

pytestmark = pytest.mark.timeout(600)  # the first run fetches the clients


async def _printed(options: SimulatorOptions, client: str, arguments: list[str], enough: int) -> list[Any]:
    """Run a client against a simulator until it has printed `enough` lines, and return what it printed."""
    simulator = Simulator(options)
    url = await simulator.start()
    place = url.partition("//")[2]
    filled = [argument.format(url=url, place=place) for argument in arguments]
    process = await asyncio.create_subprocess_exec(
        python_of(HERE / client), str(HERE / client / "client.py"), *filled, stdout=asyncio.subprocess.PIPE
    )
    lines = []
    try:
        assert process.stdout is not None
        async with asyncio.timeout(240):
            while len(lines) < enough:
                line = await process.stdout.readline()
                assert line, f"the client ended after {len(lines)} lines"
                lines.append(json.loads(line))
    finally:
        process.kill()
        await process.communicate()
        await simulator.stop()
    return lines


def _run(tmp_path: Path, name: str, client: str, arguments: list[str], enough: int) -> tuple[list[Any], list[Any]]:
    """What the client printed, and what the journal says was sent."""
    python_of(HERE / client)
    journal = tmp_path / "journal.jsonl"
    options = SimulatorOptions(name=name, rate=200, journal=journal, tls=bool(str(CERTIFICATE) in arguments))
    printed = asyncio.run(_printed(options, client, arguments, enough))
    return printed, [json.loads(line) for line in journal.read_text().splitlines()]


MASSIVE_FIELDS = {
    "EquityTrade": (
        "event_type=ev symbol=sym exchange=x id=i tape=z price=p size=s fractional_shares=ds conditions=c "
        "timestamp=t sequence_number=q trf_id=trfi trf_timestamp=trft"
    ),
    "EquityQuote": (
        "event_type=ev symbol=sym bid_exchange_id=bx bid_price=bp bid_size=bs ask_exchange_id=ax ask_price=ap "
        "ask_size=as condition=c indicators=i timestamp=t tape=z sequence_number=q trf_id=trfi trf_timestamp=trft"
    ),
    "EquityAgg": (
        "event_type=ev symbol=sym volume=v accumulated_volume=av official_open_price=op vwap=vw open=o close=c high=h "
        "low=l aggregate_vwap=a average_size=z start_timestamp=s end_timestamp=e otc=otc fractional_volume=dv "
        "fractional_accumulated_volume=dav"
    ),
    "CryptoTrade": ("event_type=ev pair=pair exchange=x id=i price=p size=s conditions=c timestamp=t received_timestamp=r"),
    "CryptoQuote": (
        "event_type=ev pair=pair bid_price=bp bid_size=bs ask_price=ap ask_size=as timestamp=t exchange_id=x received_timestamp=r"
    ),
    "CurrencyAgg": (
        "event_type=ev pair=pair open=o close=c high=h low=l volume=v vwap=vw start_timestamp=s end_timestamp=e avg_trade_size=z"
    ),
}
MASSIVE_TYPES = {
    "T": "EquityTrade",
    "Q": "EquityQuote",
    "A": "EquityAgg",
    "XT": "CryptoTrade",
    "XQ": "CryptoQuote",
    "XAS": "CurrencyAgg",
}


def _as_massive_parses(event: dict[str, Any]) -> dict[str, Any]:
    kind = MASSIVE_TYPES[event["ev"]]
    pairs = (pair.split("=") for pair in MASSIVE_FIELDS[kind].split())
    return {"type": kind, **{attribute: event.get(key) for attribute, key in pairs}}


@pytest.mark.parametrize(
    ("market", "topics", "types", "secure"),
    [
        ("stocks", "T.AAPL,Q.AAPL,A.*", {"EquityTrade", "EquityQuote", "EquityAgg"}, False),
        ("options", "T.*,Q.O:SPY271217C00650000,A.*", {"EquityTrade", "EquityQuote", "EquityAgg"}, True),
        ("crypto", "XT.*,XQ.BTC-USD,XAS.*", {"CryptoTrade", "CryptoQuote", "CurrencyAgg"}, False),
    ],
)
def test_massive_parses_every_event_as_sent(tmp_path: Path, market: str, topics: str, types: set[str], secure: bool) -> None:
    arguments = ["{place}", market, topics, *([str(CERTIFICATE)] if secure else [])]
    printed, told = _run(tmp_path, "polygon", "massive", arguments, 700)
    assert printed == [_as_massive_parses(line["event"]) for line in told[: len(printed)]]
    assert {event["type"] for event in printed} == types


async def _listed(options: SimulatorOptions, arguments: list[str], tickers: list[str]) -> list[dict[str, Any]]:
    """What the REST client `massive` lists of a market that its stream client listens to."""
    simulator, python, folder = Simulator(options), python_of(HERE / "massive"), HERE / "massive"
    url = await simulator.start()
    place = url.partition("//")[2]
    listening = await asyncio.create_subprocess_exec(python, str(folder / "client.py"), place, *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        assert listening.stdout is not None
        async with asyncio.timeout(240):
            for _ in range(700):
                assert await listening.stdout.readline()
            asked = [python, str(folder / "history.py"), f"http://{place}", *tickers]
            listing = await asyncio.create_subprocess_exec(*asked, stdout=asyncio.subprocess.PIPE)
            printed, _ = await listing.communicate()
        assert listing.returncode == 0
    finally:
        listening.kill()
        await listening.communicate()
        await simulator.stop()
    return [json.loads(line) for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("market", "topics", "tickers"),
    [
        ("stocks", "T.AAPL,Q.AAPL,A.AAPL", ["AAPL"] * 3),
        ("options", "T.O:SPY271217C00650000,Q.O:SPY271217C00650000,A.O:SPY271217C00650000", ["O:SPY271217C00650000"] * 3),
        ("crypto", "XT.BTC-USD,XQ.BTC-USD,XAS.BTC-USD", ["X:BTC-USD", "X:BTC-USD", "X:BTCUSD"]),
    ],
)
def test_massive_lists_the_history_of_what_was_sent(tmp_path: Path, market: str, topics: str, tickers: list[str]) -> None:
    journal = tmp_path / "journal.jsonl"
    listed = asyncio.run(_listed(SimulatorOptions(name="polygon", rate=200, journal=journal), [market, topics], tickers))
    told = [line["event"] for line in map(json.loads, journal.read_text().splitlines())]
    rows = {what: [row for row in listed if row["what"] == what] for what in ("trades", "latest", "quotes", "bars")}
    trades = {(event["t"], event.get("q"), event.get("i")): event for event in told if event["ev"] in ("T", "XT")}
    assert len(rows["trades"]) > 100  # several pages
    for row in rows["trades"]:
        ns = row["participant_timestamp"] if market == "crypto" else row["sip_timestamp"]
        event = trades[ns // 1_000_000, row.get("sequence_number"), row.get("id")]
        assert (row["price"], row["size"], row["exchange"], row.get("conditions")) == (event["p"], event["s"], event["x"], event.get("c"))
        assert (row.get("trf_id"), row.get("tape")) == (event.get("trfi"), event.get("z"))
    assert rows["latest"][-len(rows["trades"]) :] == [row | {"what": "latest"} for row in reversed(rows["trades"])]  # the latest first
    quotes = {(event["t"], event["q"]): event for event in told if event["ev"] == "Q"}
    assert len(rows["quotes"]) > 100 or market == "crypto"
    for row in rows["quotes"]:
        event = quotes[row["sip_timestamp"] // 1_000_000, row.get("sequence_number")]
        bid = (row["bid_price"], row["bid_size"], row["bid_exchange"])
        assert (*bid, row["ask_price"], row["ask_size"]) == tuple(event[name] for name in ("bp", "bs", "bx", "ap", "as"))
    bars: dict[int, Any] = {event["s"]: event for event in told if event["ev"] in ("A", "XAS")}
    assert rows["bars"]
    for row in rows["bars"]:
        if row["timestamp"] in bars:  # one may have ended since the last was heard
            event = bars[row["timestamp"]]
            assert tuple(row[name] for name in ("open", "high", "low", "close", "volume", "vwap")) == tuple(
                event[n] for n in "o h l c v vw".split()
            )


ALPACA_FIELDS = {
    "t": ("Trade", "symbol=S timestamp=t exchange=x price=p size=s id=i conditions=c tape=z"),
    "q": (
        "Quote",
        "symbol=S timestamp=t bid_price=bp bid_size=bs bid_exchange=bx ask_price=ap ask_size=as ask_exchange=ax conditions=c tape=z",
    ),
    "b": ("Bar", "symbol=S timestamp=t open=o high=h low=l close=c volume=v trade_count=n vwap=vw"),
}


def _as_alpaca_parses(event: dict[str, Any]) -> dict[str, Any]:
    kind, names = ALPACA_FIELDS[event["T"]]
    parsed = {attribute: event.get(key) for attribute, key in (pair.split("=") for pair in names.split())}
    # The client cuts nanoseconds to microseconds, and prints none of them when they are zero.
    whole, _, rest = event["t"].removesuffix("Z").partition(".")
    micro = rest[:6].ljust(6, "0")
    return {"type": kind, "parsed": parsed | {"timestamp": f"{whole}.{micro}Z" if micro.strip("0") else f"{whole}Z"}}


@pytest.mark.parametrize(
    ("kind", "path", "symbols"),
    [
        ("stocks", "/v2/iex", "AAPL,BRK.B"),
        ("stocks", "/v2/sip", "SPY"),
        ("stocks", "/v2/test", "FAKEPACA"),
        ("options", "/v1beta1/indicative", "SPY271217C00650000"),
        ("crypto", "/v1beta3/crypto/us", "BTC/USD,ETH/USD"),
    ],
)
def test_alpaca_py_parses_every_event_as_sent(tmp_path: Path, kind: str, path: str, symbols: str) -> None:
    printed, told = _run(tmp_path, "alpaca", "alpaca", [kind, "{url}" + path, symbols], 300)
    heard = [line for line in told if line["channel"] in ("trades", "quotes", "bars")]
    expected = [_as_alpaca_parses(line["event"]) for line in heard[: len(printed)]]
    assert [_rounded(event) for event in printed] == [_rounded(event) for event in expected]
    assert {event["type"] for event in printed} >= {"Trade", "Quote"}


@pytest.mark.parametrize(
    ("kind", "path", "symbols", "types"),
    [
        ("stocks", "/v2/iex", "AAPL,BRK.B", {"Trade", "Quote", "Bar"}),
        ("options", "/v1beta1/opra", "SPY271217C00650000", {"Trade"}),
        ("crypto", "/v1beta3/crypto/us", "BTC/USD,ETH/USD", {"Trade", "Quote", "Bar"}),
    ],
)
def test_alpaca_py_reads_from_history_what_was_sent(tmp_path: Path, kind: str, path: str, symbols: str, types: set[str]) -> None:
    began = time.time_ns()
    simulator = Simulator(
        SimulatorOptions(name="alpaca", rate=300, limit=700, journal=tmp_path / "sent.jsonl", faults=("rest_page:90", "late_report:1e-9")),
        clock=lambda: began + (time.time_ns() - began) * 60,  # so that minutes end while the test waits
    )
    printed = [json.loads(line) for line in asyncio.run(_history(simulator, kind, path, symbols)).splitlines()]
    events = [json.loads(line)["event"] for line in (tmp_path / "sent.jsonl").read_text().splitlines()]
    sent = [_as_alpaca_parses(event) for event in events if event["T"] in ALPACA_FIELDS]
    corrected = {event["ci"] for event in events if event["T"] == "c"}  # a row of its own, of which the stream told otherwise
    got = [event for event in printed if event["parsed"].get("id") not in corrected or event["type"] != "Trade"]
    assert _in_order(got) == _in_order([event for event in sent if event["type"] in types])
    assert {event["type"] for event in got} == types


async def _history(simulator: Simulator, kind: str, path: str, symbols: str) -> bytes:
    """What the client of history prints of everything that the client of the stream was sent."""
    python, folder = python_of(HERE / "alpaca"), HERE / "alpaca"
    url = await simulator.start()
    quiet = {"stdout": asyncio.subprocess.DEVNULL}
    stream = await asyncio.create_subprocess_exec(python, str(folder / "client.py"), kind, url + path, symbols, **quiet)
    try:
        async with asyncio.timeout(240):
            while sum(simulator.sent.values()) < 700:
                await asyncio.sleep(0.05)
            arguments = [str(folder / "history.py"), kind, url.replace("ws:", "http:"), symbols]
            history = await asyncio.create_subprocess_exec(python, *arguments, stdout=asyncio.subprocess.PIPE)
            printed, _ = await history.communicate()
            return printed
    finally:
        stream.kill()
        await stream.communicate()
        await simulator.stop()


def _in_order(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By what tells one from another."""
    return sorted(
        map(_rounded, events), key=lambda event: (event["type"], *map(str, map(event["parsed"].get, ("symbol", "timestamp", "id"))))
    )


def _rounded(event: dict[str, Any]) -> dict[str, Any]:
    """Microseconds with the same number of digits."""
    text = event["parsed"]["timestamp"]
    return {**event, "parsed": event["parsed"] | {"timestamp": re.sub(r"0+Z$|Z$", "Z", text)}}


def test_binance_sdk_parses_every_stream_as_sent(tmp_path: Path) -> None:
    arguments = ["{url}", "http://{place}", "btcusdt"]
    (information, *printed), told = _run(tmp_path, "binance", "binance", arguments, 900)
    assert information == ["BTCUSDT", "TRADING", "BTC", "USDT"]
    history = {event["stream"].removeprefix("history of "): event["parsed"] for event in printed if event["stream"].startswith("history")}
    printed = [event for event in printed if not event["stream"].startswith("history")]
    streams = {event["stream"] for event in printed}
    assert streams == {"trade", "aggTrade", "bookTicker", "kline_1s"}
    for stream in streams:
        parsed = [event["parsed"] for event in printed if event["stream"] == stream]
        sent = [line["event"] for line in told if line["channel"] == stream]
        # The client's callback is set after its subscription was acknowledged: it misses what came in between.
        first = sent.index(parsed[0])
        assert parsed == sent[first : first + len(parsed)]
    events = [line["event"] for line in told]
    trades = {event["t"]: event for event in events if event.get("e") == "trade"}
    found = [trades[row["id"]] for row in history["trade"]]
    assert len(found) == 50
    assert [(row["price"], row["qty"], row["time"], row["isBuyerMaker"]) for row in history["trade"]] == [
        (event["p"], event["q"], event["T"], event["m"]) for event in found
    ]
    sums = {event["a"]: event for event in events if event.get("e") == "aggTrade"}
    parsed = [{name: row[name] for name in "apqflTmM"} for row in history["aggTrade"]]
    assert parsed == [{name: sums[row["a"]][name] for name in "apqflTmM"} for row in parsed]
    bars = {event["k"]["t"]: event["k"] for event in events if event.get("e") == "kline" and event["k"]["x"]}
    assert history["kline_1s"]
    for row in history["kline_1s"]:
        assert row[:9] == [bars[row[0]][name] for name in ("t", "o", "h", "l", "c", "v", "T", "q", "n")]
