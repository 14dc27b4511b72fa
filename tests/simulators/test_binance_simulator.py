"""The Binance stand-in speaks the exchange's protocol: paths, requests, errors, pings, limits, the day's end."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from listening import connect, running, told
from picows import WSHandshakeError, WSMsgType

from tapeline.simulators import Simulator, SimulatorOptions

if TYPE_CHECKING:
    from pathlib import Path

SUBSCRIBED = {"result": None, "id": 1}


def binance(**options: Any) -> Simulator:
    return Simulator(SimulatorOptions(name="binance", **options))


def subscribe(*streams: Any, request_id: Any = 1) -> dict[str, Any]:
    return {"method": "SUBSCRIBE", "params": list(streams), "id": request_id}


def test_a_new_socket_is_silent_until_something_is_asked_for() -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            for path in ("/ws", "/stream"):
                client = await connect(url + path)
                await asyncio.sleep(0.1)
                assert client.messages == []
                client.say({"method": "LIST_SUBSCRIPTIONS", "id": 3})
                assert await client.count(1) == [{"result": [], "id": 3}]

    asyncio.run(scenario())


def test_a_combined_socket_wraps_and_a_raw_socket_does_not() -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            combined, raw = await connect(url + "/stream"), await connect(url + "/ws")
            for client in (combined, raw):
                client.say(subscribe("btcusdt@trade"))
            wrapped, bare = (await combined.count(5))[1:], (await raw.count(5))[1:]
            assert {tuple(message) for message in wrapped} == {("stream", "data")}
            assert {message["stream"] for message in wrapped} == {"btcusdt@trade"}
            assert {tuple(message) for message in bare} == {("e", "E", "s", "t", "p", "q", "T", "m", "M")}
            assert {message["s"] for message in bare} == {"BTCUSDT"}
            assert {kind for kind, _ in combined.messages + raw.messages} == {WSMsgType.TEXT}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "streams"),
    [
        ("/ws/btcusdt@trade", {"btcusdt@trade"}),
        ("/ws/btcusdt@trade/ethusdt@bookTicker", {"btcusdt@trade", "ethusdt@bookTicker"}),
        ("/stream?streams=btcusdt@trade/ethusdt@aggTrade", {"btcusdt@trade", "ethusdt@aggTrade"}),
        ("/stream?streams=btcusdt%40trade%2Fethusdt%40aggTrade", {"btcusdt@trade", "ethusdt@aggTrade"}),
    ],
)
def test_streams_named_in_the_url_need_no_request_and_get_no_acknowledgement(path: str, streams: set[str]) -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            client = await connect(url + path)
            messages = await client.count(30)
            assert all("result" not in message for message in messages)
            client.say({"method": "LIST_SUBSCRIPTIONS", "id": 9})
            await client.until(lambda: any(b'"result"' in data for _, data in client.messages))
            assert {"result": sorted(streams), "id": 9} in client.parsed()

    asyncio.run(scenario())


@pytest.mark.parametrize("request_id", [1, -5, 2**62, "a7f0-x", "9" * 36, None])
def test_the_id_of_a_request_comes_back_as_it_was(request_id: Any) -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            client = await connect(url + "/ws")
            client.say(subscribe("nosuch@trade", request_id=request_id))
            assert await client.count(1) == [{"result": None, "id": request_id}]

    asyncio.run(scenario())


def _error(code: int, message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "msg": message}, **more}


INVALID_STREAM = "Invalid request: invalid stream"
NOT_MADE = "Not made by this simulator: {}. It makes trade, aggTrade, bookTicker and kline_<i>."


def test_a_stream_in_the_url_that_the_simulator_does_not_make_is_named_and_the_others_flow() -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            client = await connect(url + "/stream?streams=btcusdt@depth/btcusdt@trade")
            await client.count(3)
            first, *others = client.parsed()
            assert first == _error(2, NOT_MADE.format("btcusdt@depth"))
            assert {frame["stream"] for frame in others} == {"btcusdt@trade"}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"{nonsense", _error(3, "Invalid JSON: expected value at line 1 column 1")),
        (subscribe("BTCUSDT@trade"), _error(2, INVALID_STREAM, id=1)),
        (subscribe("btcusdt@aggtrade"), _error(2, INVALID_STREAM, id=1)),
        (subscribe("btcusdt@kline_7m"), _error(2, INVALID_STREAM, id=1)),
        (subscribe(7), _error(2, INVALID_STREAM, id=1)),
        (subscribe("btcusdt@ticker"), _error(2, NOT_MADE.format("btcusdt@ticker"), id=1)),
        (subscribe("!miniTicker@arr"), _error(2, NOT_MADE.format("!miniTicker@arr"), id=1)),
        (
            subscribe("x" * 3, request_id="9" * 37),
            _error(2, "Invalid request: request ID must be an unsigned integer", id="9" * 37),
        ),
        (
            {"method": "BUY", "params": [], "id": 1},
            _error(
                2,
                "Invalid request: unknown variant `BUY`, expected one of "
                "SUBSCRIBE, UNSUBSCRIBE, LIST_SUBSCRIPTIONS, SET_PROPERTY, GET_PROPERTY",
                id=1,
            ),
        ),
        ({"params": [], "id": 1}, _error(2, "Invalid request: missing field `method` at line 1 column 2", id=1)),
        ({"method": "GET_PROPERTY", "params": ["color"], "id": 1}, _error(0, "Unknown property", id=1)),
        (
            {"method": "SET_PROPERTY", "params": ["combined", "yes"], "id": 1},
            _error(1, "Invalid value type: expected Boolean", id=1),
        ),
        (
            {"method": "GET_PROPERTY", "params": [5], "id": 1},
            _error(2, "Invalid request: property name must be a string", id=1),
        ),
        (
            {"method": "GET_PROPERTY", "params": ["combined", True], "id": 1},
            _error(2, "Invalid request: too many parameters", id=1),
        ),
    ],
)
def test_a_wrong_request_brings_a_nested_error_and_the_socket_lives(request_: Any, answer: Any) -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            client = await connect(url + "/ws")
            client.say(request_)
            assert await client.count(1) == [answer]
            client.say({"method": "LIST_SUBSCRIPTIONS", "id": 2})
            assert (await client.count(2))[1] == {"result": [], "id": 2}

    asyncio.run(scenario())


def test_the_property_combined_switches_the_wrapping() -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            client = await connect(url + "/ws")
            client.say({"method": "GET_PROPERTY", "params": ["combined"], "id": 1})
            client.say({"method": "SET_PROPERTY", "params": ["combined", True], "id": 2})
            client.say({"method": "GET_PROPERTY", "params": ["combined"], "id": 3})
            client.say(subscribe("btcusdt@trade", request_id=4))
            messages = await client.count(6)
            assert messages[:4] == [
                {"result": False, "id": 1},
                {"result": None, "id": 2},
                {"result": True, "id": 3},
                {"result": None, "id": 4},
            ]
            assert messages[4]["stream"] == "btcusdt@trade"

    asyncio.run(scenario())


def test_a_time_unit_of_microseconds_changes_every_time_and_nothing_else() -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            fine = await connect(url + "/stream?timeUnit=MICROSECOND&streams=btcusdt@trade/btcusdt@kline_1s")
            coarse = await connect(url + "/stream?streams=btcusdt@trade/btcusdt@kline_1s")
            await fine.until(lambda: any(b"kline" in data for _, data in fine.messages))
            await coarse.until(lambda: any(b"kline" in data for _, data in coarse.messages))
            rough = {message["data"]["t"]: message["data"] for message in coarse.parsed() if message["data"]["e"] == "trade"}
            both = [one["data"] for one in fine.parsed() if one["data"].get("t") in rough]
            assert both
            for trade in both:
                other = rough[trade["t"]]
                assert (trade["T"] // 1000, trade["E"] // 1000) == (other["T"], other["E"])
                assert trade | {"T": 0, "E": 0} == other | {"T": 0, "E": 0}
            assert any(trade["T"] % 1000 for trade in both), "real microseconds, not milliseconds times 1000"
            kline = next(one["data"]["k"] for one in fine.parsed() if one["data"]["e"] == "kline")
            assert (kline["t"] % 1_000_000, kline["T"] - kline["t"]) == (0, 999_999)
            with pytest.raises(WSHandshakeError):
                await connect(url + "/ws?timeUnit=NANOSECOND")

    asyncio.run(scenario())


def test_subscribing_twice_brings_no_event_twice_and_unsubscribing_ends_a_stream() -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            client = await connect(url + "/stream")
            client.say(subscribe("btcusdt@trade", "ethusdt@bookTicker"))
            client.say(subscribe("btcusdt@trade"))
            await client.count(100)
            client.say({"method": "UNSUBSCRIBE", "params": ["ethusdt@bookTicker"], "id": 5})
            await client.until(lambda: any(b'"id":5' in data for _, data in client.messages))
            so_far = len(client.messages)
            later = (await client.count(so_far + 100))[so_far:]
            assert {message["stream"] for message in later} == {"btcusdt@trade"}
            ids = [one["data"]["t"] for one in client.parsed() if one.get("stream") == "btcusdt@trade"]
            assert ids == list(range(ids[0], ids[0] + len(ids)))

    asyncio.run(scenario())


def test_ids_are_contiguous_where_the_exchange_says_so_and_one_aggregate_covers_its_trades() -> None:
    async def scenario() -> None:
        async with running(binance(rate=5000.0, limit=4000)) as url:
            client = await connect(url + "/stream?streams=btcusdt@trade/btcusdt@aggTrade/btcusdt@bookTicker")
            data = [message["data"] for message in await client.count(4000)]
            trades = [one for one in data if one.get("e") == "trade"]
            aggregates = [one for one in data if one.get("e") == "aggTrade"]
            books = [one for one in data if "u" in one]
            assert [one["t"] for one in trades] == list(range(trades[0]["t"], trades[0]["t"] + len(trades)))
            assert [one["a"] for one in aggregates] == list(range(aggregates[0]["a"], aggregates[0]["a"] + len(aggregates)))
            assert all(before["l"] + 1 == after["f"] for before, after in pairwise(aggregates))
            updates = [one["u"] for one in books]
            assert updates == sorted(set(updates))
            assert updates != list(range(updates[0], updates[0] + len(updates)))
            assert all(float(one["b"]) < float(one["a"]) for one in books)
            by_id = {one["t"]: one for one in trades}
            for one in aggregates:
                fills = [by_id[number] for number in range(one["f"], one["l"] + 1)]
                assert {(fill["p"], fill["m"]) for fill in fills} == {(one["p"], one["m"])}
                assert sum(_e8(fill["q"]) for fill in fills) == _e8(one["q"])

    asyncio.run(scenario())


def _e8(text: str) -> int:
    whole, _, rest = text.partition(".")
    return int(whole) * 10**8 + int(rest)


def test_a_kline_is_built_from_the_very_trades_sent_and_is_final_once() -> None:
    async def scenario() -> None:
        async with running(binance(rate=400.0)) as url:
            client = await connect(url + "/stream?streams=btcusdt@trade/btcusdt@kline_1s")
            await client.until(lambda: sum(b'"x":true' in data for _, data in client.messages) >= 3)
            data = [message["data"] for message in client.parsed()]
            trades = {one["t"]: one for one in data if one["e"] == "trade"}
            finals = [one["k"] for one in data if one["e"] == "kline" and one["k"]["x"]]
            assert [kline["t"] for kline in finals] == [finals[0]["t"] + 1000 * n for n in range(len(finals))]
            for kline in finals[1:]:
                inside = [trades[number] for number in range(kline["f"], kline["L"] + 1)]
                assert {one["T"] // 1000 * 1000 for one in inside} == {kline["t"]}
                assert kline["n"] == len(inside)
                assert (kline["o"], kline["c"]) == (inside[0]["p"], inside[-1]["p"])
                assert _e8(kline["h"]) == max(_e8(one["p"]) for one in inside)
                assert _e8(kline["l"]) == min(_e8(one["p"]) for one in inside)
                assert _e8(kline["v"]) == sum(_e8(one["q"]) for one in inside)
                assert _e8(kline["V"]) == sum(_e8(one["q"]) for one in inside if not one["m"])
                assert _e8(kline["q"]) * 10**8 == sum(_e8(one["q"]) * _e8(one["p"]) for one in inside)

    asyncio.run(scenario())


def test_more_than_five_messages_in_a_second_close_the_socket() -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            client = await connect(url + "/ws")
            for number in range(5):
                client.say({"method": "LIST_SUBSCRIPTIONS", "id": number})
            await client.count(5)
            assert client.close_code is None
            client.transport.send_pong(b"")  # a pong counts too
            await client.until(lambda: client.gone)
            assert (client.close_code, client.close_reason) == (1008, "Too many requests")

    asyncio.run(scenario())


def test_the_1025th_stream_is_refused_with_code_4() -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            client = await connect(url + "/ws")
            client.say(subscribe(*(f"coin{n}usdt@trade" for n in range(1024))))
            client.say(subscribe("btcusdt@trade", request_id=19))
            assert await client.count(2) == [SUBSCRIBED, _error(4, "Too many subscriptions", id=19)]

    asyncio.run(scenario())


def test_pings_carry_a_payload_and_a_client_that_echoes_stays() -> None:
    async def scenario() -> None:
        async with running(binance(day_seconds=1000.0)) as url:  # a ping each 0.23 s
            client, deaf = await connect(url + "/ws"), await connect(url + "/ws", answers_pings=False)
            await client.until(lambda: len(client.pings) >= 6)
            assert all(payload.isdigit() for payload in client.pings)
            assert len(set(client.pings)) == len(client.pings)
            assert deaf.close_code == 1008
            assert deaf.close_reason == "Pong timeout"
            assert not client.gone

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/ws", "/stream"])
def test_the_day_ends_with_a_notice_and_a_close(path: str) -> None:
    async def scenario() -> None:
        async with running(binance(day_seconds=1.0)) as url:
            client = await connect(url + path)
            await client.until(lambda: client.gone)
            (notice,) = client.parsed()
            inner = notice["data"] if path == "/stream" else notice
            assert inner["e"] == "serverShutdown"
            assert inner["E"] > 1_500_000_000_000
            assert path == "/ws" or notice["stream"] == "!serverShutdown"
            assert client.close_code == 1001

    asyncio.run(scenario())


def test_an_unknown_symbol_is_silent_or_by_fault_an_error_and_a_close() -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            client = await connect(url + "/ws")
            client.say(subscribe("nosuchcoin@trade"))
            await asyncio.sleep(0.2)
            assert client.parsed() == [SUBSCRIBED]
        async with running(binance(faults=("unknown_symbol",))) as url:
            client = await connect(url + "/ws")
            client.say(subscribe("nosuchcoin@trade"))
            await client.until(lambda: client.gone)
            assert client.parsed() == [_error(2, INVALID_STREAM, id=1)]

    asyncio.run(scenario())


def test_the_acknowledgement_may_come_after_the_first_data() -> None:
    async def scenario() -> None:
        async with running(binance(faults=("ack_after_data:0.1",))) as url:
            client = await connect(url + "/ws")
            client.say(subscribe("btcusdt@trade"))
            await client.until(lambda: any(b'"result"' in data for _, data in client.messages))
            assert client.parsed()[0]["e"] == "trade"
            assert SUBSCRIBED in client.parsed()

    asyncio.run(scenario())


def test_http_requests_are_answered_on_the_same_port() -> None:
    async def scenario() -> None:
        async with running(binance(symbols=("BTCUSDT", "ETHBTC"))) as url:
            place = url.replace("ws://", "http://")
            ping, time, listing = [await asyncio.to_thread(_get, place + path) for path in ("/api/v3/ping", "/api/v3/time")] + [
                await asyncio.to_thread(_get, place + "/api/v3/exchangeInfo")
            ]
            assert ping == {}
            assert time["serverTime"] > 1_500_000_000_000
            pairs = [(one["symbol"], one["baseAsset"], one["quoteAsset"], one["status"]) for one in listing["symbols"]]
            assert pairs == [("BTCUSDT", "BTC", "USDT", "TRADING"), ("ETHBTC", "ETH", "BTC", "TRADING")]
            status, error = await asyncio.to_thread(_refused, place + "/api/v3/exchangeInfo?symbol=NOPE")
            assert (status, json.loads(error)) == (400, {"code": -1121, "msg": "Invalid symbol."})
            assert (await asyncio.to_thread(_refused, place + "/nothing"))[0] == 404

    asyncio.run(scenario())


def _get(url: str) -> Any:
    with urllib.request.urlopen(url) as reply:
        assert reply.headers["X-MBX-USED-WEIGHT-1M"]
        return json.load(reply)


def _refused(url: str) -> tuple[int, bytes]:
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(url):
        pass
    with caught.value as reply:
        return reply.code, reply.read()


def test_the_journal_holds_what_each_client_was_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        simulator = binance(limit=500, journal=journal)
        async with running(simulator) as url:
            one = await connect(url + "/stream?streams=btcusdt@trade/btcusdt@bookTicker")
            other = await connect(url + "/ws/btcusdt@trade?timeUnit=microsecond")
            await one.count(400)
            await asyncio.sleep(0.6)
        lines = told(journal)
        assert [line["event"] for line in lines if line["connection"] == 1] == [m["data"] for m in one.parsed()]
        assert [line["event"] for line in lines if line["connection"] == 2] == other.parsed()
        assert len(one.messages) == 500
        for line in lines:
            assert (line["provider"], line["feed"], line["symbol"]) == ("binance", "spot", "BTCUSDT")
            assert line["id"] == line["event"]["t" if line["channel"] == "trade" else "u"]
        by_channel = {name: sum(line["channel"] == name for line in lines) for name in ("trade", "bookTicker")}
        assert simulator.sent == by_channel

    asyncio.run(scenario())


def test_nothing_is_sent_and_no_id_passes_while_nobody_listens() -> None:
    async def scenario() -> None:
        async with running(binance()) as url:
            first = await connect(url + "/ws/btcusdt@trade")
            await first.count(20)
            first.transport.disconnect()
            await first.until(lambda: first.gone)
            await asyncio.sleep(0.3)
            second = await connect(url + "/ws/btcusdt@trade")
            after = (await second.count(1))[0]["t"]
            # What was under way when the first client left is lost to it, as it is at the exchange.
            assert 0 < after - first.parsed()[-1]["t"] < 100

    asyncio.run(scenario())


def test_a_kline_goes_on_while_its_listener_reconnects() -> None:
    async def scenario() -> None:
        async with running(binance(rate=500.0)) as url:
            steady = await connect(url + "/ws/btcusdt@trade")
            first = await connect(url + "/ws/btcusdt@kline_1s")
            await first.count(2)
            first.transport.disconnect(False)
            await asyncio.sleep(0.4)
            second = await connect(url + "/ws/btcusdt@kline_1s")
            await second.until(lambda: any(b'"x":true' in data for _, data in second.messages))
            kline = next(event["k"] for event in second.parsed() if event["k"]["x"])
            assert len({event["k"]["t"] for event in second.parsed() if event["k"]["x"]}) == 1
            inside = [event for event in steady.parsed() if kline["t"] <= event["T"] <= kline["T"]]
            assert kline["n"] == len(inside) == kline["L"] - kline["f"] + 1

    asyncio.run(scenario())


async def fetched(url: str, path: str) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of a GET."""

    def get() -> tuple[int, dict[str, str], Any]:
        try:
            with urllib.request.urlopen(url.replace("ws:", "http:") + path, timeout=5) as reply:
                return reply.status, dict(reply.headers), json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), json.loads(error.read())

    return await asyncio.to_thread(get)


def test_history_holds_what_was_sent_and_what_a_fault_kept_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(binance(rate=2_000, faults=("skip:0.2",), journal=tmp_path / "sent.jsonl")) as url:
            client = await connect(url + "/stream")
            client.say(subscribe("btcusdt@trade", "btcusdt@aggTrade", "btcusdt@kline_1s"))
            await client.count(1_500)
            sent = [message["data"] for message in client.parsed()[1:]]
            ids = [event["t"] for event in sent if event["e"] == "trade"]
            assert any(b - a > 1 for a, b in pairwise(ids))
            status, headers, trades = await fetched(url, f"/api/v3/historicalTrades?symbol=BTCUSDT&fromId={ids[0]}&limit=300")
            assert status == 200
            assert headers["X-MBX-USED-WEIGHT-1M"] == "25"
            assert [row["id"] for row in trades] == list(range(ids[0], ids[0] + 300))
            by_id = {event["t"]: event for event in sent if event["e"] == "trade"}
            both = [(row, by_id[row["id"]]) for row in trades if row["id"] in by_id]
            assert all((row["price"], row["qty"], row["time"], row["isBuyerMaker"]) == (e["p"], e["q"], e["T"], e["m"]) for row, e in both)
            _, _, later = await fetched(url, f"/api/v3/aggTrades?symbol=BTCUSDT&startTime={trades[100]['time']}&limit=50")
            assert [row["T"] for row in later] == sorted(row["T"] for row in later)
            assert later[0]["T"] >= trades[100]["time"]
            assert (await fetched(url, "/api/v3/aggTrades?symbol=NOSUCH"))[::2] == (400, {"code": -1121, "msg": "Invalid symbol."})
            assert (await fetched(url, "/api/v3/aggTrades?symbol=BTCUSDT&limit=many"))[0] == 400
            _, _, bars = await fetched(url, "/api/v3/klines?symbol=BTCUSDT&interval=1s")
            assert all(b[0] - a[0] == 1_000 for a, b in pairwise(bars))

    asyncio.run(scenario())


def test_history_refuses_what_is_too_much_and_fails_as_told() -> None:
    async def scenario() -> None:
        async with running(binance(faults=("rest_error:1", "rest_429:1"))) as url:
            assert (await fetched(url, "/api/v3/time"))[0] == 500
            status, headers, _ = await fetched(url, "/api/v3/time")
            assert (status, headers["Retry-After"]) == (429, "1")
            assert (await fetched(url, "/api/v3/time"))[0] == 200
            statuses = [(await fetched(url, "/api/v3/historicalTrades?symbol=BTCUSDT"))[0] for _ in range(241)]
            assert statuses[0] in (200, 400)
            assert statuses[-1] == 429  # 6,000 a minute, 25 each

    asyncio.run(scenario())
