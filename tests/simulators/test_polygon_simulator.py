"""The Polygon.io stand-in: greeting, login, topics, bars, accounts of one connection, sequences."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from listening import Client, connect, fast_clock, running, told
from picows import WSHandshakeError

from tapeline.simulators import Simulator, SimulatorOptions

if TYPE_CHECKING:
    from pathlib import Path

GREETING = [{"ev": "status", "status": "connected", "message": "Connected Successfully"}]
LOGGED_IN = [{"ev": "status", "status": "auth_success", "message": "authenticated"}]
TOO_MANY = {
    "ev": "status",
    "status": "max_connections",
    "message": "Maximum number of websocket connections exceeded. ",
}


def polygon(**options: Any) -> Simulator:
    return Simulator(SimulatorOptions(name="polygon", **options))


def acknowledged(topic: str) -> dict[str, str]:
    return {"ev": "status", "status": "success", "message": f"subscribed to: {topic}"}


async def logged_in(url: str, topics: str = "", key: str = "demo") -> Client:
    client = await connect(url)
    client.say({"action": "auth", "params": key})
    if topics:
        client.say({"action": "subscribe", "params": topics})
    return client


def events(client: Client) -> list[dict[str, Any]]:
    """All events but statuses, in order."""
    return [event for message in client.parsed() for event in message if event["ev"] != "status"]


def statuses(client: Client) -> list[dict[str, Any]]:
    return [event for message in client.parsed() for event in message if event["ev"] == "status"]


def test_greeting_and_login_are_one_frame_each_and_topics_are_acknowledged_one_by_one() -> None:
    async def scenario() -> None:
        async with running(polygon()) as url:
            client = await connect(url + "/stocks")
            assert await client.count(1) == [GREETING]
            client.say({"action": "auth", "params": "demo"})
            assert (await client.count(2))[1] == LOGGED_IN
            client.say({"action": "subscribe", "params": "T.AAPL,Q.MSFT,AM.*"})
            assert (await client.count(3))[2] == [acknowledged(topic) for topic in ("T.AAPL", "Q.MSFT", "AM.*")]
            await client.until(lambda: {event["ev"] for event in events(client)} == {"T", "Q"})
            heard = {(event["ev"], event["sym"]) for event in events(client)}
            assert heard == {("T", "AAPL"), ("Q", "MSFT")}

    asyncio.run(scenario())


def test_a_client_that_sends_everything_at_once_is_served_in_order() -> None:
    async def scenario() -> None:
        async with running(polygon()) as url:
            client = await connect(url + "/stocks")
            client.say({"action": "subscribe", "params": "T.AAPL"})  # even before the login
            client.say({"action": "auth", "params": "demo"})
            messages = await client.count(4)
            assert messages[:3] == [GREETING, LOGGED_IN, [acknowledged("T.AAPL")]]
            assert {event["ev"] for event in messages[3]} == {"T"}

    asyncio.run(scenario())


@pytest.mark.parametrize("key", ["", "bad-key"])
def test_a_wrong_key_is_told_so_and_dropped_without_a_close_frame(key: str) -> None:
    async def scenario() -> None:
        async with running(polygon()) as url:
            client = await logged_in(url + "/stocks", key=key)
            await client.until(lambda: client.gone)
            assert client.parsed() == [
                GREETING,
                [{"ev": "status", "status": "auth_failed", "message": "authentication failed"}],
            ]
            assert client.close_code is None

    asyncio.run(scenario())


def test_an_unknown_prefix_is_silence_and_an_unknown_ticker_is_acknowledged_silence() -> None:
    async def scenario() -> None:
        async with running(polygon()) as url:
            client = await logged_in(url + "/stocks", "ZZ.AAPL,T.NOSUCH,XT.BTC-USD")
            await asyncio.sleep(0.3)
            assert client.parsed() == [GREETING, LOGGED_IN, [acknowledged("T.NOSUCH")]]

    asyncio.run(scenario())


def test_topics_outside_the_plan_are_refused_one_by_one() -> None:
    async def scenario() -> None:
        async with running(polygon(faults=("not_authorized:Q",))) as url:
            client = await logged_in(url + "/stocks", "Q.AAPL,T.AAPL")
            refused = {"ev": "status", "status": "error", "message": "not authorized"}
            assert (await client.count(3))[2] == [refused, acknowledged("T.AAPL")]
            await client.until(lambda: len(events(client)) > 20)
            assert {event["ev"] for event in events(client)} == {"T"}
        async with running(polygon(faults=("delayed_plan",))) as url:
            client = await logged_in(url + "/stocks", "T.AAPL")
            assert "delayed websocket" in (await client.count(3))[2][0]["message"]
        async with running(polygon()) as url:
            client = await logged_in(url + "/options", "Q.*,T.*")
            assert (await client.count(3))[2] == [refused, acknowledged("T.*")]

    asyncio.run(scenario())


def test_unsubscribing_ends_a_topic() -> None:
    async def scenario() -> None:
        async with running(polygon()) as url:
            client = await logged_in(url + "/stocks", "T.AAPL,Q.AAPL")
            await client.until(lambda: len(events(client)) > 50)
            client.say({"action": "unsubscribe", "params": "Q.AAPL"})
            gone = {"ev": "status", "status": "success", "message": "unsubscribed to: Q.AAPL"}
            await client.until(lambda: gone in statuses(client))
            so_far = len(client.messages)
            await client.count(so_far + 20)
            later = [event["ev"] for message in client.parsed()[so_far:] for event in message]
            assert set(later) == {"T"}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("cluster", "topics", "keys"),
    [
        (
            "stocks",
            "T.*,Q.*",
            {
                "T": ({"ev", "sym", "x", "i", "z", "p", "s", "ds", "t", "q"}, {"c", "trfi", "trft"}),
                "Q": ({"ev", "sym", "bx", "bp", "bs", "ax", "ap", "as", "c", "t", "q", "z"}, {"i"}),
            },
        ),
        (
            "options",
            "T.*,Q.O:SPY271217C00650000",
            {
                "T": ({"ev", "sym", "x", "p", "s", "c", "t", "q"}, set()),
                "Q": ({"ev", "sym", "bx", "ax", "bp", "ap", "bs", "as", "t", "q"}, set()),
            },
        ),
        (
            "crypto",
            "XT.*,XQ.*",
            {
                "XT": ({"ev", "pair", "p", "t", "s", "c", "i", "x", "r"}, set()),
                "XQ": ({"ev", "pair", "bp", "bs", "ap", "as", "t", "x", "r"}, set()),
            },
        ),
    ],
)
def test_events_carry_the_keys_of_their_cluster(cluster: str, topics: str, keys: dict[str, tuple[set[str], set[str]]]) -> None:
    async def scenario() -> None:
        async with running(polygon(limit=2000, rate=5000.0)) as url:
            client = await logged_in(f"{url}/{cluster}", topics)
            await client.until(lambda: len(events(client)) == 2000)
            heard = events(client)
            assert {event["ev"] for event in heard} == set(keys)
            for event in heard:
                always, sometimes = keys[event["ev"]]
                assert always <= set(event) <= always | sometimes
            optional = set().union(*(sometimes for _, sometimes in keys.values()))
            assert optional <= set().union(*map(set, heard))

    asyncio.run(scenario())


def test_sequence_numbers_increase_for_each_ticker_and_trade_ids_are_their_own() -> None:
    async def scenario() -> None:
        async with running(polygon(limit=3000, rate=10_000.0)) as url:
            client = await logged_in(url + "/stocks", "T.*,Q.*")
            await client.until(lambda: len(events(client)) == 3000)
            by_ticker: dict[str, list[int]] = {}
            for event in events(client):
                by_ticker.setdefault(event["sym"], []).append(event["q"])
            assert len(by_ticker) == 8
            assert all(numbers == sorted(set(numbers)) for numbers in by_ticker.values())
            trades = [(one["sym"], one["x"], one["i"]) for one in events(client) if one["ev"] == "T"]
            assert len(set(trades)) == len(trades)

    asyncio.run(scenario())


def test_sequence_numbers_can_be_told_to_repeat_and_to_go_back() -> None:
    async def scenario() -> None:
        async with running(polygon(limit=1000, faults=("duplicate_q:0.1", "regressing_q:0.1"))) as url:
            client = await logged_in(url + "/stocks", "Q.AAPL")
            await client.until(lambda: len(events(client)) == 1000)
            numbers = [event["q"] for event in events(client)]
            steps = [after - before for before, after in pairwise(numbers)]
            assert sum(step == 0 for step in steps) > 30
            assert sum(step < 0 for step in steps) > 30
            assert sum(step > 0 for step in steps) > 500

    asyncio.run(scenario())


def test_a_second_bar_is_built_from_the_very_trades_sent_and_leaves_two_seconds_late() -> None:
    async def scenario() -> None:
        simulator = Simulator(SimulatorOptions(name="polygon", symbols=("AAPL",), rate=600.0, seed=3), clock=fast_clock(4))
        async with running(simulator) as url:
            client = await logged_in(url + "/stocks", "T.AAPL,A.AAPL")
            await client.until(lambda: sum(event["ev"] == "A" for event in events(client)) >= 5)
            heard = events(client)
            last: dict[int, dict[str, Any]] = {one["s"]: one for one in heard if one["ev"] == "A"}
            complete = sorted(last)[1:]
            assert len(complete) >= 3
            for start in complete:
                bar = last[start]
                told_at = heard.index(bar)
                inside = [e for e in heard[:told_at] if e["ev"] == "T" and start <= e["t"] < start + 1000]
                assert (bar["e"], bar["v"]) == (start + 1000, sum(one["s"] for one in inside))
                assert (bar["h"], bar["l"]) == (max(one["p"] for one in inside), min(one["p"] for one in inside))
                assert bar["z"] == bar["v"] // len(inside)
                before = [one["t"] for one in heard[:told_at] if one["ev"] == "T"]
                assert max(before) >= start + 2900

    asyncio.run(scenario())


def test_a_late_trade_sends_its_bar_again() -> None:
    async def scenario() -> None:
        options = SimulatorOptions(name="polygon", symbols=("AAPL",), rate=500.0, faults=("late_report:0.05",))
        async with running(Simulator(options, clock=fast_clock(20))) as url:
            client = await logged_in(url + "/stocks", "T.AAPL,A.AAPL")

            def bars() -> dict[int, list[int]]:
                found: dict[int, list[int]] = {}
                for event in events(client):
                    if event["ev"] == "A":
                        found.setdefault(event["s"], []).append(event["v"])
                return found

            await client.until(lambda: any(len(volumes) > 1 for volumes in bars().values()))
            revised = [volumes for volumes in bars().values() if len(volumes) > 1]
            assert all(volumes == sorted(set(volumes)) for volumes in revised), "each revision holds more trades"

    asyncio.run(scenario())


def test_one_connection_too_many_evicts_the_oldest() -> None:
    async def scenario() -> None:
        async with running(polygon()) as url:
            first = await logged_in(url + "/stocks", "T.AAPL")
            await first.count(4)
            elsewhere = await logged_in(url + "/crypto", "XT.*")  # another cluster counts by itself
            stranger = await logged_in(url + "/stocks", "T.AAPL", key="another")
            second = await logged_in(url + "/stocks", "T.AAPL")
            await first.until(lambda: first.gone)
            assert statuses(first)[-1] == TOO_MANY
            assert first.close_code == 1008
            for client in (second, elsewhere, stranger):
                await client.count(10)
                assert not client.gone

    asyncio.run(scenario())


def test_one_connection_too_many_can_be_refused_after_its_acknowledgement() -> None:
    async def scenario() -> None:
        async with running(polygon(faults=("refuse_newcomer",))) as url:
            first = await logged_in(url + "/stocks", "T.AAPL")
            await first.count(4)
            second = await logged_in(url + "/stocks", "T.AAPL")
            await second.until(lambda: second.gone)
            assert second.parsed() == [GREETING, LOGGED_IN, [acknowledged("T.AAPL")], [TOO_MANY]]
            assert second.close_code == 1008
            assert not first.gone
            first.transport.disconnect()
            await first.until(lambda: first.gone)
            third = await logged_in(url + "/stocks", "T.AAPL")
            await third.count(10)

    asyncio.run(scenario())


def test_pings_are_answered_and_unknown_paths_are_not() -> None:
    async def scenario() -> None:
        async with running(polygon()) as url:
            client = await connect(url + "/stocks")
            client.transport.send_ping(b"are you there")
            await client.until(lambda: client.pongs)
            assert client.pongs == [b"are you there"]
            with pytest.raises(WSHandshakeError):
                await connect(url + "/bonds")

    asyncio.run(scenario())


def test_the_journal_names_feed_channel_symbol_and_id(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        simulator = polygon(limit=400, journal=journal)
        async with running(simulator) as url:
            stocks = await logged_in(url + "/stocks", "T.*,Q.*")
            await stocks.until(lambda: len(events(stocks)) == 400)
        lines = told(journal)
        assert [line["event"] for line in lines] == events(stocks)
        for line in lines:
            event = line["event"]
            assert (line["provider"], line["feed"]) == ("polygon", "stocks")
            assert (line["channel"], line["symbol"]) == (event["ev"], event["sym"])
            assert line["id"] == event["i" if event["ev"] == "T" else "q"]
        assert sum(simulator.sent.values()) == 400

    asyncio.run(scenario())


async def fetched(url: str, path: str, key: str = "demo") -> tuple[int, Any]:
    """Status and body of a GET with a key; the body as text where it is no JSON."""

    def get() -> tuple[int, Any]:
        request = urllib.request.Request(url.replace("ws:", "http:") + path, headers={"Authorization": f"Bearer {key}"} if key else {})
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                status, body = reply.status, reply.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode()

    return await asyncio.to_thread(get)


def test_history_holds_what_was_sent_and_what_a_fault_kept_back_in_ns_the_latest_first(tmp_path: Path) -> None:
    journal = tmp_path / "sent.jsonl"

    async def scenario() -> list[Any]:
        async with running(polygon(rate=2_000, faults=("skip:0.2", "late_report:0.05"), journal=journal)) as url:
            client = await logged_in(url + "/stocks", "T.AAPL,Q.AAPL")
            await client.until(lambda: len(events(client)) > 1_500)
            client.transport.disconnect(False)
            await client.until(lambda: client.gone)
            await asyncio.sleep(0.1)
            _, latest = await fetched(url, "/v3/trades/AAPL")
            assert len(latest["results"]) <= 1_000
            _, page = await fetched(url, "/v3/trades/AAPL?order=asc&sort=timestamp&timestamp.gte=2020-01-01&limit=100")
            rows = page["results"]
            while "next_url" in page:
                assert page["next_url"].startswith("https://api.massive.com/v3/trades/AAPL?cursor=")
                assert len(page["results"]) == 100
                _, page = await fetched(url, page["next_url"].removeprefix("https://api.massive.com"))
                rows += page["results"]
            middle = rows[len(rows) // 2]["sip_timestamp"]
            _, page = await fetched(url, f"/v3/trades/AAPL?order=asc&timestamp.gte={middle}&timestamp.lt={middle + 1}")
            assert [row["sip_timestamp"] for row in page["results"]] == [middle]
            _, page = await fetched(url, f"/v3/trades/AAPL?order=asc&timestamp.gt={middle}&limit=50000")
            assert page["results"] == rows[len(rows) // 2 + 1 :]
            assert latest["results"] == rows[::-1][:1_000]
            assert (await fetched(url, "/v3/trades/NOSUCH"))[1]["results"] == []
            assert (await fetched(url, "/v3/trades/AAPL?limit=many"))[0] == 400
            assert (await fetched(url, "/v3/trades/AAPL?cursor=nonsense"))[0] == 400
            assert (await fetched(url, "/v3/elsewhere/AAPL"))[0] == 404
            return rows

    rows = asyncio.run(scenario())
    lines = told(journal)
    happened = {line["event"]["q"]: line for line in lines if line["channel"] == "T"}
    assert any(line.get("skipped") for line in happened.values())
    assert {row["sequence_number"] for row in rows} >= set(happened)
    times = [row["sip_timestamp"] for row in rows]
    assert times == sorted(times)
    assert [row["sequence_number"] for row in rows] != sorted(row["sequence_number"] for row in rows)  # late reports are where they belong
    for row in rows:
        if row["sequence_number"] in happened:
            event = happened[row["sequence_number"]]["event"]
            assert (row["sip_timestamp"] // 1_000_000, row["id"], row["price"]) == (event["t"], event["i"], event["p"])
    assert any(ns % 1_000_000 for ns in times)


def test_history_has_a_bar_once_as_it_was_told_last_and_none_has_no_results() -> None:
    async def scenario() -> None:
        async with running(
            Simulator(SimulatorOptions(name="polygon", rate=2_000, faults=("late_report:0.02",)), clock=fast_clock(30))
        ) as url:
            client = await logged_in(url + "/stocks", "A.AAPL")
            await client.until(lambda: len(events(client)) > 40)
            _, page = await fetched(url, "/v2/aggs/ticker/AAPL/range/1/second/0/4000000000000?adjusted=false&limit=3")
            assert (page["ticker"], page["adjusted"], page["status"], len(page["results"])) == ("AAPL", False, "OK", 3)
            rows = page["results"]
            while "next_url" in page:
                _, page = await fetched(url, page["next_url"].removeprefix("https://api.massive.com"))
                rows += page["results"]
            bars = {event["s"]: event for event in events(client)}
            assert [row["t"] for row in rows] == sorted({row["t"] for row in rows})
            assert {row["t"] for row in rows} >= set(list(bars)[:30])
            last = [bars[row["t"]] for row in rows if row["t"] in bars]
            both = [(row, event) for row, event in zip((row for row in rows if row["t"] in bars), last, strict=True)]
            same = [all(row[name] == event[name] for name in ("o", "h", "l", "c", "v", "vw")) for row, event in both]
            assert sum(same) >= len(same) - 3  # one may be revised between the two looks
            status, empty = await fetched(url, "/v2/aggs/ticker/NOSUCH/range/1/minute/2020-01-01/2020-01-02")
            assert (status, "results" in empty, empty["resultsCount"]) == (200, False, 0)
            assert (await fetched(url, "/v2/aggs/ticker/AAPL/range/5/minute/0/1"))[0] == 400

    asyncio.run(scenario())


def test_history_asks_for_a_key_and_refuses_what_is_too_much_and_fails_as_told() -> None:
    async def scenario() -> None:
        faults = ("rest_error:1", "rest_429:1", "rest_limit:4", "not_authorized:Q", "rest_cut:1", "rest_repeat:2")
        async with running(polygon(faults=faults)) as url:
            client = await logged_in(url + "/stocks", "T.AAPL")
            await client.until(lambda: len(events(client)) > 20)
            trades = "/v3/trades/AAPL?limit=2"
            assert (await fetched(url, trades))[0] == 500
            for key in ("", "bad key"):
                assert await fetched(url, trades, key) == (401, {"status": "ERROR", "request_id": "0", "error": "Unknown API Key"})
            status, said = await fetched(url, trades)
            assert (status, "exceeded the maximum requests" in said["error"]) == (429, True)
            status, cut = await fetched(url, f"{trades}&apiKey=demo", key="")
            assert (status, isinstance(cut, str)) == (200, True)
            _, repeated = await fetched(url, "/v3/trades/AAPL?order=asc&limit=2")
            assert repeated["next_url"] == "https://api.massive.com/v3/trades/AAPL?order=asc&limit=2"
            assert (await fetched(url, "/v3/quotes/AAPL"))[1]["status"] == "NOT_AUTHORIZED"
            _, fine = await fetched(url, trades)
            assert "cursor=" in fine["next_url"]
            assert (await fetched(url, trades))[0] == 429

    asyncio.run(scenario())
