"""The Alpaca stand-in's REST history: what happened, page by page, to whom it may be told, as often as allowed."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from listening import Client, connect, fast_clock, running, told

from tapeline.simulators import Simulator, SimulatorOptions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEYS = {"APCA-API-KEY-ID": "demo", "APCA-API-SECRET-KEY": "secret"}
EVER = {"start": "2020-01-01", "end": "2100-01-01T00:00:00Z", "limit": "10000"}


def alpaca(**options: Any) -> Simulator:
    return Simulator(SimulatorOptions(name="alpaca", **options))


async def ask(url: str, path: str, headers: Mapping[str, str] = KEYS, **query: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a GET."""

    def get() -> tuple[int, dict[str, str], bytes]:
        address = f"{url.replace('ws:', 'http:')}{path}?{urlencode(query)}"
        try:
            with urllib.request.urlopen(urllib.request.Request(address, headers=dict(headers)), timeout=5) as reply:
                return reply.status, dict(reply.headers), reply.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    return await asyncio.to_thread(get)


async def pages(url: str, path: str, **query: str) -> list[dict[str, Any]]:
    """Every page of a query, by its tokens."""
    found: list[dict[str, Any]] = []
    token: dict[str, str] = {}
    while not found or token:
        status, _, body = await ask(url, path, **EVER | query | token)
        assert status == 200, body
        found.append(json.loads(body))
        following = found[-1]["next_page_token"]
        token = {} if following is None else {"page_token": following}
    return found


async def listening(url: str, path: str, **wanted: list[str]) -> Client:
    client = await connect(url + path, headers=KEYS)
    client.say({"action": "subscribe", **wanted})
    return client


def heard(client: Client, kind: str) -> list[dict[str, Any]]:
    """The events of a kind without what REST gives in another place."""
    found = [event for message in client.parsed() for event in message if event["T"] == kind]
    return [{name: value for name, value in event.items() if name != "T"} for event in found]


def rows(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The rows of pages, each with its symbol as the stream has it."""
    return [{"S": symbol, **row} for page in found for symbol, some in page[kind].items() for row in some]


def by_time(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """In an order of their own, to be compared as a whole."""
    return sorted((event["S"], event["t"], json.dumps(event, sort_keys=True)) for event in events)


@pytest.mark.parametrize(
    ("path", "base", "symbols", "query"),
    [
        ("/v2/iex", "/v2/stocks", ["AAPL", "BRK.B"], {"feed": "iex"}),
        ("/v1beta3/crypto/us", "/v1beta3/crypto/us", ["BTC/USD", "ETH/USD"], {}),
    ],
    ids=["iex", "crypto"],
)
def test_it_holds_what_was_sent_and_what_a_fault_kept_back(
    path: str, base: str, symbols: list[str], query: dict[str, str], tmp_path: Path
) -> None:
    async def scenario() -> None:
        journal = tmp_path / "sent.jsonl"
        async with running(alpaca(rate=3_000.0, limit=900, faults=("skip:0.2", "late_report:0.1", "rest_page:97"), journal=journal)) as url:
            client = await listening(url, path, trades=symbols, quotes=symbols)
            await client.until(lambda: len(heard(client, "t")) + len(heard(client, "q")) > 600)
            await asyncio.sleep(0.3)
            found = {kind: await pages(url, f"{base}/{kind}", symbols=",".join(symbols), **query) for kind in ("trades", "quotes")}
        lines = [line for line in told(journal) if line["channel"] in ("trades", "quotes")]
        assert sum("skipped" in line for line in lines) > 50
        for kind, some in found.items():
            events = [{name: value for name, value in line["event"].items() if name != "T"} for line in lines if line["channel"] == kind]
            got = [{name: value for name, value in row.items() if name != "u"} for row in rows(some, kind) if row.get("u") != "corrected"]
            assert by_time(got) == by_time(events)
            assert max(sum(map(len, page[kind].values())) for page in some) == 97
            # By symbol and by time, also those that were reported late.
            order = [(row["S"], row["t"].removesuffix("Z").partition(".")) for row in rows(some, kind)]
            assert order == sorted(order)

    asyncio.run(scenario())


def test_bounds_are_inclusive_and_a_symbol_without_rows_is_missing() -> None:
    async def scenario() -> None:
        async with running(alpaca(rate=2_000.0, limit=300)) as url:
            client = await listening(url, "/v2/iex", trades=["AAPL"])
            await client.until(lambda: len(heard(client, "t")) > 200)
            trades = heard(client, "t")
            begin, end = trades[20]["t"], trades[30]["t"]
            (page,) = await pages(url, "/v2/stocks/trades", symbols="AAPL,MSFT", feed="iex", start=begin, end=end)
            assert list(page["trades"]) == ["AAPL"]
            assert [row["i"] for row in page["trades"]["AAPL"]] == [event["i"] for event in trades[20:31]]
            status, _, body = await ask(url, "/v2/stocks/AAPL/trades", start=begin, end=end, feed="iex")
            assert (status, json.loads(body)) == (200, {"trades": page["trades"]["AAPL"], "symbol": "AAPL", "next_page_token": None})
            # Without a feed the whole tape is meant, of which nobody has heard.
            (page,) = await pages(url, "/v2/stocks/trades", symbols="AAPL")
            assert page == {"trades": {}, "next_page_token": None}

    asyncio.run(scenario())


def test_a_trade_that_was_taken_back_stays_and_says_so() -> None:
    async def scenario() -> None:
        async with running(alpaca(rate=50_000.0, limit=30_000)) as url:
            client = await listening(url, "/v2/sip", trades=["AAPL", "SPY"])
            await client.until(lambda: {event["T"] for message in client.parsed() for event in message} >= {"c", "x"})
            cancels, corrections = heard(client, "x"), heard(client, "c")  # more may come while pages are read
            found = rows(await pages(url, "/v2/stocks/trades", symbols="AAPL,SPY"), "trades")
            marks = {(row["S"], row["i"]): row["u"] for row in found if "u" in row}
            for event in cancels:
                assert marks[event["S"], event["i"]] == "canceled"
            for event in corrections:
                assert (marks[event["S"], event["oi"]], marks[event["S"], event["ci"]]) == ("incorrect", "corrected")

    asyncio.run(scenario())


def test_bars_have_their_latest_values_and_those_that_nobody_heard_are_there() -> None:
    async def scenario() -> None:
        options = SimulatorOptions(name="alpaca", symbols=("AAPL",), rate=300.0, faults=("late_report:0.02",))
        async with running(Simulator(options, clock=fast_clock(120))) as url:
            client = await listening(url, "/v2/iex", trades=["AAPL"], bars=["AAPL"], updatedBars=["AAPL"], dailyBars=["AAPL"])
            await client.until(lambda: heard(client, "u") and heard(client, "d"))
            client.say({"action": "unsubscribe", "bars": ["AAPL"], "updatedBars": ["AAPL"]})
            before = {event["t"] for event in heard(client, "b")}
            later: list[dict[str, Any]] = []
            while not [row for row in later if row["t"] not in before][1:]:
                await asyncio.sleep(0.1)
                later = rows(await pages(url, "/v2/stocks/bars", symbols="AAPL", feed="iex", timeframe="1Min"), "bars")
            assert [row["t"] for row in later] == sorted({row["t"] for row in later})
            revised = {event["t"]: event["n"] for event in heard(client, "u")}
            assert all(row["n"] >= revised[row["t"]] for row in later if row["t"] in revised)
            days = rows(await pages(url, "/v2/stocks/bars", symbols="AAPL", feed="iex", timeframe="1Day"), "bars")
            assert sum(day["n"] for day in days) >= heard(client, "d")[0]["n"]  # two where the simulator's hurried day ends meanwhile

    asyncio.run(scenario())


def test_who_is_not_known_is_told_nothing_but_of_crypto() -> None:
    async def scenario() -> None:
        async with running(alpaca()) as url:
            for path in ("/v2/stocks/trades", "/v1beta1/options/trades"):
                assert (await ask(url, path, {}, symbols="AAPL"))[::2] == (401, b'{"message":"forbidden."}')
                assert (await ask(url, path, KEYS | {"APCA-API-KEY-ID": "bad"}, symbols="AAPL"))[0] == 403
            assert (await ask(url, "/v1beta3/crypto/us/trades", {}, symbols="BTC/USD"))[0] == 200
            assert (await ask(url, "/v1beta1/options/quotes", symbols="AAPL"))[0] == 404

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"symbols": "A!"}, "invalid symbol: A!"),
        ({}, "invalid symbol: "),
        ({"symbols": "AAPL", "page_token": "%%%"}, "invalid page_token"),
        ({"symbols": "AAPL", "page_token": "QUFQTA=="}, "invalid page_token"),
        ({"symbols": "AAPL", "start": "noon"}, "invalid time: noon"),
        ({"symbols": "AAPL", "end": "2020-13-01"}, "invalid time: 2020-13-01"),
        ({"symbols": "AAPL", "limit": "10001"}, "invalid limit: 10001"),
        ({"symbols": "AAPL", "feed": "pigeon"}, "invalid feed: pigeon"),
    ],
)
def test_a_query_that_means_nothing_is_refused(query: dict[str, str], said: str) -> None:
    async def scenario() -> None:
        async with running(alpaca()) as url:
            status, _, body = await ask(url, "/v2/stocks/trades", **query)
            assert (status, json.loads(body)) == (400, {"message": said})
            assert (await ask(url, "/v2/stocks/bars", symbols="AAPL"))[0] == 400

    asyncio.run(scenario())


def test_too_many_requests_are_refused_until_the_minute_is_over() -> None:
    async def scenario() -> None:
        clock = [1_800_000_000_500_000_000]
        simulator = Simulator(SimulatorOptions(name="alpaca", faults=("rest_limit:2",)), clock=lambda: clock[0])
        async with running(simulator) as url:
            found = [await ask(url, "/v2/stocks/trades", symbols="AAPL") for _ in range(3)]
            assert [status for status, _, _ in found] == [200, 200, 429]
            assert [headers["X-RateLimit-Remaining"] for _, headers, _ in found] == ["1", "0", "0"]
            assert {(headers["X-RateLimit-Limit"], headers["X-RateLimit-Reset"]) for _, headers, _ in found} == {("2", "1800000061")}
            assert "Retry-After" not in found[2][1]
            assert (await ask(url, "/v2/stocks/trades", KEYS | {"APCA-API-KEY-ID": "other"}, symbols="AAPL"))[0] == 200
            clock[0] += 60_500_000_000
            assert (await ask(url, "/v2/stocks/trades", symbols="AAPL"))[0] == 200

    asyncio.run(scenario())


def test_it_fails_as_told() -> None:
    async def scenario() -> None:
        faults = ("rest_error:1", "rest_429:1", "rest_cut:1", "rest_repeat:1", "rest_page:2", "recent_sip")
        async with running(alpaca(rate=2_000.0, limit=60, faults=faults)) as url:
            client = await listening(url, "/v2/iex", trades=["AAPL"])
            await client.until(lambda: len(heard(client, "t")) >= 5)
            query = {"symbols": "AAPL", "feed": "iex", **EVER}
            assert (await ask(url, "/v2/stocks/trades", **query))[0] == 500
            asked_s = int(time.time())
            status, headers, _ = await ask(url, "/v2/stocks/trades", **query)
            assert (status, headers["X-RateLimit-Remaining"]) == (429, "0")
            assert asked_s <= int(headers["X-RateLimit-Reset"]) < time.time() + 2
            _, _, cut = await ask(url, "/v2/stocks/trades", **query)
            _, _, whole = await ask(url, "/v2/stocks/trades", **query)
            assert cut == whole[: len(whole) // 2]
            token = json.loads(whole)["next_page_token"]
            _, _, again = await ask(url, "/v2/stocks/trades", **query, page_token=token)
            _, _, then = await ask(url, "/v2/stocks/trades", **query, page_token=token)
            assert json.loads(again)["next_page_token"] == token
            assert json.loads(then)["next_page_token"] != token
            status, _, body = await ask(url, "/v2/stocks/trades", symbols="AAPL")
            assert (status, json.loads(body)) == (403, {"message": "subscription does not permit querying recent SIP data"})
            assert (await ask(url, "/v2/stocks/trades", symbols="AAPL", start="2020-01-01", end="2020-01-02"))[0] == 200

    asyncio.run(scenario())
