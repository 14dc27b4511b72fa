"""The Alpaca stand-in: two codecs, compression, logins by header and message, full-state acknowledgements, errors."""

from __future__ import annotations

import asyncio
import re
import struct
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from listening import Client, connect, fast_clock, running, told
from picows import WSHandshakeError, WSMsgType

from tapeline.simulators import Simulator, SimulatorOptions

if TYPE_CHECKING:
    from pathlib import Path

CONNECTED = [{"T": "success", "msg": "connected"}]
LOGGED_IN = [{"T": "success", "msg": "authenticated"}]
AUTH = {"action": "auth", "key": "demo", "secret": "secret"}
PACKED = {"Content-Type": "application/msgpack"}
HEADERS = {"APCA-API-KEY-ID": "demo", "APCA-API-SECRET-KEY": "secret"}
OPTION = "SPY271217C00650000"


def alpaca(**options: Any) -> Simulator:
    return Simulator(SimulatorOptions(name="alpaca", **options))


def failed(code: int, message: str) -> list[dict[str, Any]]:
    return [{"T": "error", "code": code, "msg": message}]


async def logged_in(url: str, **wanted: list[str]) -> Client:
    client = await connect(url)
    client.say(AUTH)
    if wanted:
        client.say({"action": "subscribe", **wanted})
    return client


def events(client: Client) -> list[dict[str, Any]]:
    control = ("success", "error", "subscription")
    return [event for message in client.parsed() for event in message if event["T"] not in control]


def test_login_and_a_full_state_acknowledgement_each_time() -> None:
    async def scenario() -> None:
        async with running(alpaca(rate=1.0)) as url:
            client = await connect(url + "/v2/sip")
            assert await client.count(1) == [CONNECTED]
            client.say(AUTH)
            assert (await client.count(2))[1] == LOGGED_IN
            client.say({"action": "subscribe", "trades": ["NOSUCH"], "quotes": ["AMD2", "AMD1"], "bars": ["*"]})
            state = {
                "T": "subscription",
                "trades": ["NOSUCH"],
                "quotes": ["AMD1", "AMD2"],
                "bars": ["*"],
                "updatedBars": [],
                "dailyBars": [],
                "statuses": [],
                "lulds": [],
                "imbalances": [],
                "corrections": ["NOSUCH"],
                "cancelErrors": ["NOSUCH"],
            }
            assert (await client.count(3))[2] == [state]
            client.say({"action": "unsubscribe", "quotes": ["AMD1"], "bars": ["*"]})
            assert (await client.count(4))[3] == [state | {"quotes": ["AMD2"], "bars": []}]

    asyncio.run(scenario())


def test_a_login_by_header_needs_no_message() -> None:
    async def scenario() -> None:
        async with running(alpaca()) as url:
            client = await connect(url + "/v2/iex", headers=HEADERS)
            client.say({"action": "subscribe", "trades": ["AAPL"]})
            messages = await client.count(4)
            assert messages[:2] == [CONNECTED, LOGGED_IN]
            assert messages[3][0]["S"] == "AAPL"

    asyncio.run(scenario())


def test_msgpack_clients_send_fragments_and_get_timestamps_with_nanoseconds(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal.jsonl"
        async with running(alpaca(limit=300, journal=journal)) as url:
            client = await connect(url + "/v2/iex", headers=PACKED)
            client.say_packed(AUTH)
            client.say_packed({"action": "subscribe", "trades": ["*"], "quotes": ["*"]})

            def heard() -> list[dict[str, Any]]:
                messages = [_unpacked(data) for _, data in client.messages]
                return [event for message in messages for event in message if len(event["T"]) == 1]

            await client.until(lambda: len(heard()) == 300)
            assert {kind for kind, _ in client.messages} == {WSMsgType.BINARY}
            assert [next(iter(event)) for event in heard()] == ["T"] * 300
        assert heard() == [line["event"] for line in told(journal)]

    asyncio.run(scenario())


def _unpacked(data: bytes) -> Any:
    """Decode msgpack, timestamps as RFC 3339 text with nanoseconds."""

    def timestamp(code: int, payload: memoryview) -> str:
        assert code == -1
        if len(payload) == 4:
            seconds, rest = struct.unpack(">I", payload)[0], 0
        elif len(payload) == 8:
            (both,) = struct.unpack(">Q", payload)
            seconds, rest = both & ((1 << 34) - 1), both >> 34
        else:
            rest, seconds = struct.unpack(">Iq", payload)
        whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{whole}.{rest:09d}".rstrip("0") + "Z" if rest else whole + "Z"

    return _with_raw_timestamps(data, timestamp)


def _with_raw_timestamps(data: bytes, timestamp: Any) -> Any:
    # msgspec turns timestamps into datetimes (microseconds) by itself: their extension code is changed before decoding.
    marked = re.sub(rb"\xa1t(\xd6|\xd7)\xff", lambda found: b"\xa1t" + found[1] + b"\x05", data)
    return msgspec.msgpack.decode(marked, ext_hook=lambda _, payload: timestamp(-1, payload))


def test_compression_is_spoken_when_it_is_offered() -> None:
    async def scenario() -> None:
        async with running(alpaca()) as url:
            offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
            client = await connect(url + "/v2/iex", headers=HEADERS | offer)
            answer = client.transport.response.headers["Sec-WebSocket-Extensions"]
            assert answer == "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
            squeeze = zlib.compressobj(wbits=-15)
            request = b'{"action":"subscribe","trades":["AAPL"]}'
            body = squeeze.compress(request) + squeeze.flush(zlib.Z_SYNC_FLUSH)
            client.transport.send(WSMsgType.TEXT, body.removesuffix(b"\x00\x00\xff\xff"), rsv1=True)
            await client.until(lambda: len(client.messages) >= 5)
            plain = [zlib.decompressobj(wbits=-15).decompress(data + b"\x00\x00\xff\xff") for _, data in client.messages]
            decoded = [msgspec.json.decode(data) for data in plain]
            assert decoded[:2] == [CONNECTED, LOGGED_IN]
            assert decoded[2][0]["trades"] == ["AAPL"]
            assert {event["S"] for event in decoded[3]} == {"AAPL"}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "symbol", "trade", "quote"),
    [
        ("/v2/sip", "AAPL", "T S i x p s c t z", "T S bx bp bs ax ap as c z t"),
        ("/v2/iex", "AAPL", "T S i x p s c t z", "T S bx bp bs ax ap as c z t"),
        ("/v2/delayed_sip", "AAPL", "T S i x p s c t z", "T S bx bp bs ax ap as c z t"),
        ("/v2/test", "FAKEPACA", "T S i x p s c t z", "T S bx bp bs ax ap as c z t"),
        ("/v1beta3/crypto/us", "BTC/USD", "T S p s t i tks", "T S bp bs ap as t"),
    ],
)
def test_events_carry_the_keys_of_their_feed(path: str, symbol: str, trade: str, quote: str) -> None:
    async def scenario() -> None:
        async with running(alpaca()) as url:
            client = await logged_in(url + path, trades=[symbol], quotes=[symbol])
            await client.until(lambda: {event["T"] for event in events(client)} >= {"t", "q"})
            for event in events(client):
                if event["T"] in "tq":
                    assert list(event) == (trade if event["T"] == "t" else quote).split()
                    assert event["S"] == symbol
            if path == "/v2/iex":
                places = {event.get("x", event.get("bx")) for event in events(client)}
                assert places == {"V"}
            if path == "/v2/delayed_sip":
                age = datetime.now(UTC) - datetime.fromisoformat(events(client)[-1]["t"][:23] + "+00:00")
                assert 14.9 < age.total_seconds() / 60 < 15.5

    asyncio.run(scenario())


def test_option_trades_have_one_condition_text_and_no_id() -> None:
    async def scenario() -> None:
        async with running(alpaca()) as url:
            client = await connect(url + "/v1beta1/opra", headers=PACKED | HEADERS)
            client.say_packed({"action": "subscribe", "trades": ["*"], "quotes": [OPTION]})
            await client.until(lambda: len(client.messages) > 20)
            heard = [event for _, data in client.messages for event in _unpacked(data) if len(event["T"]) == 1]
            keys = {event["T"]: " ".join(event) for event in heard}
            assert keys == {"t": "T S t p s x c", "q": "T S t bx bp bs ax ap as c"}
            assert all(isinstance(event["c"], str) for event in heard)
            assert {event["S"] for event in heard if event["T"] == "q"} == {OPTION}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "request_", "answer", "closes"),
    [
        ("/v2/iex", {"action": "auth", "key": "bad", "secret": "s"}, failed(402, "auth failed"), True),
        ("/v2/iex", {"action": "auth", "key": "demo"}, failed(402, "auth failed"), True),
        ("/v2/iex", {"action": "subscribe", "trades": ["A"]}, failed(401, "not authenticated"), False),
        ("/v2/iex", {"action": "dance"}, failed(400, "invalid syntax"), False),
        ("/v2/iex", b"{nonsense", failed(400, "invalid syntax"), False),
    ],
)
def test_errors_before_the_login(path: str, request_: Any, answer: Any, closes: bool) -> None:
    async def scenario() -> None:
        async with running(alpaca()) as url:
            client = await connect(url + path)
            client.say(request_)
            assert await client.count(2) == [CONNECTED, answer]
            await asyncio.sleep(0.1)
            assert client.gone == closes

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "request_", "answer"),
    [
        ("/v2/iex", AUTH, failed(403, "already authenticated")),
        (
            "/v2/iex",
            {"action": "subscribe", "orderbooks": ["AAPL"]},
            failed(410, "invalid subscribe action for this feed"),
        ),
        ("/v2/iex", {"action": "subscribe", "trades": ["no such!"]}, failed(400, "invalid syntax")),
        ("/v2/iex", {"action": "subscribe", "trades": "AAPL"}, failed(400, "invalid syntax")),
        (
            "/v1beta3/crypto/us",
            {"action": "subscribe", "statuses": ["*"]},
            failed(410, "invalid subscribe action for this feed"),
        ),
    ],
)
def test_errors_after_the_login_leave_the_socket_open(path: str, request_: Any, answer: Any) -> None:
    async def scenario() -> None:
        async with running(alpaca()) as url:
            client = await logged_in(url + path)
            client.say(request_)
            assert (await client.count(3))[2] == answer
            client.say({"action": "subscribe", "quotes": ["*"]})
            assert (await client.count(4))[3][0]["quotes"] == ["*"]

    asyncio.run(scenario())


def test_options_speak_msgpack_only_and_have_no_star_for_quotes() -> None:
    async def scenario() -> None:
        async with running(alpaca()) as url:
            client = await connect(url + "/v1beta1/indicative")
            await client.until(lambda: client.gone)
            assert client.parsed() == [failed(412, "option messages are only available in MsgPack format")]
            client = await connect(url + "/v1beta1/indicative", headers=PACKED | HEADERS)
            client.say_packed({"action": "subscribe", "quotes": ["*"]})
            await client.until(lambda: len(client.messages) == 3)
            last = msgspec.msgpack.decode(client.messages[2][1])
            assert last == failed(413, "star subscription is not allowed for option quotes")

    asyncio.run(scenario())


def test_a_second_connection_on_one_account_is_refused_until_the_first_has_left() -> None:
    async def scenario() -> None:
        async with running(alpaca(faults=("keep_after_error",))) as url:
            first = await logged_in(url + "/v2/iex")
            await first.count(2)
            await (await logged_in(url + "/v2/sip")).count(2)  # another endpoint counts by itself
            second = await logged_in(url + "/v2/iex")
            assert (await second.count(2))[1] == failed(406, "connection limit exceeded")
            first.transport.disconnect()
            await first.until(lambda: first.gone)
            await asyncio.sleep(0.05)
            second.say(AUTH)  # on the same socket, as the Go client does
            assert (await second.count(3))[2] == LOGGED_IN

    asyncio.run(scenario())


def test_a_lost_connection_can_go_on_counting_and_a_closed_one_does_not() -> None:
    async def scenario() -> None:
        async with running(alpaca(faults=("zombie_slot:0.5",))) as url:
            polite = await logged_in(url + "/v2/iex")
            await polite.count(2)
            polite.transport.send_close()
            await polite.until(lambda: polite.gone)
            lost = await logged_in(url + "/v2/iex")
            assert (await lost.count(2))[1] == LOGGED_IN
            lost.transport.disconnect(False)
            await asyncio.sleep(0.05)
            early = await logged_in(url + "/v2/iex")
            assert (await early.count(2))[1] == failed(406, "connection limit exceeded")
            await early.until(lambda: early.gone)
            await asyncio.sleep(0.5)
            late = await logged_in(url + "/v2/iex")
            assert (await late.count(2))[1] == LOGGED_IN

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (402, "auth failed"),
        (404, "auth timeout"),
        (406, "connection limit exceeded"),
        (409, "insufficient subscription"),
    ],
)
def test_errors_asked_for_come_at_the_login(code: int, message: str) -> None:
    async def scenario() -> None:
        async with running(alpaca(faults=(f"error:{code}",))) as url:
            client = await logged_in(url + "/v2/iex")
            await client.until(lambda: client.gone)
            assert client.parsed() == [CONNECTED, failed(code, message)]

    asyncio.run(scenario())


@pytest.mark.parametrize(("code", "message"), [(407, "slow client"), (500, "internal error")])
def test_errors_asked_for_come_in_mid_stream(code: int, message: str) -> None:
    async def scenario() -> None:
        async with running(alpaca(faults=(f"error:{code}",))) as url:
            client = await logged_in(url + "/v2/iex", trades=["AAPL"])
            await client.until(lambda: client.gone)
            assert client.parsed()[-1] == failed(code, message)
            assert events(client)

    asyncio.run(scenario())


def test_a_symbol_limit_leaves_the_subscription_as_it_was() -> None:
    async def scenario() -> None:
        async with running(alpaca(faults=("symbol_limit:2",))) as url:
            client = await logged_in(url + "/v2/iex", trades=["A1", "A2"])
            client.say({"action": "subscribe", "trades": ["A3"]})
            client.say({"action": "subscribe", "bars": ["A3"]})
            messages = await client.count(5)
            assert messages[3] == failed(405, "symbol limit exceeded")
            assert messages[4][0]["trades"] == ["A1", "A2"]

    asyncio.run(scenario())


def test_too_many_upgrades_bring_http_429() -> None:
    async def scenario() -> None:
        async with running(alpaca(faults=("http_429:2",))) as url:
            for _ in range(2):
                with pytest.raises(WSHandshakeError) as caught:
                    await connect(url + "/v2/iex")
                assert caught.value.response is not None
                assert caught.value.response.status == 429
            assert await (await connect(url + "/v2/iex")).count(1) == [CONNECTED]

    asyncio.run(scenario())


def test_minute_bars_updates_and_daily_bars_come_from_the_trades_sent() -> None:
    async def scenario() -> None:
        options = SimulatorOptions(name="alpaca", symbols=("AAPL",), rate=300.0, faults=("late_report:0.01",))
        async with running(Simulator(options, clock=fast_clock(90))) as url:
            wanted = {name: ["AAPL"] for name in ("trades", "bars", "updatedBars", "dailyBars")}
            client = await logged_in(url + "/v2/sip", **wanted)
            await client.until(lambda: {event["T"] for event in events(client)} >= set("tbud"))
            heard = events(client)
            first: dict[str, str] = {}
            for place, event in enumerate(heard):
                if event["T"] in "bu":
                    minute = event["t"][:16]
                    inside = [one for one in heard[:place] if one["T"] == "t" and one["t"].startswith(minute)]
                    assert event["v"] == sum(one["s"] for one in inside)
                    assert event["n"] == len(inside)
                    assert (event["h"], event["l"]) == (max(o["p"] for o in inside), min(o["p"] for o in inside))
                    assert first.setdefault(minute, event["T"]) == "b"
            daily = next(event for event in heard if event["T"] == "d")
            before = [one for one in heard[: heard.index(daily)] if one["T"] == "t"]
            assert daily["t"].endswith("T00:00:00Z")
            assert daily["v"] == sum(one["s"] for one in before)

    asyncio.run(scenario())


def test_crypto_bars_come_in_minutes_without_trades_too() -> None:
    async def scenario() -> None:
        options = SimulatorOptions(name="alpaca", symbols=("BTC/USD",), rate=0.2)
        async with running(Simulator(options, clock=fast_clock(120))) as url:
            client = await logged_in(url + "/v1beta3/crypto/us", bars=["BTC/USD"])
            await client.until(lambda: len(events(client)) >= 4)
            starts = [event["t"] for event in events(client)]
            assert starts == sorted(set(starts))
            quiet = [event for event in events(client) if event["n"] == 0]
            assert quiet
            assert all((event["v"], event["vw"]) == (0, 0) and event["o"] == event["c"] > 0 for event in quiet)

    asyncio.run(scenario())


def test_corrections_and_cancels_follow_trades_without_being_asked_for() -> None:
    async def scenario() -> None:
        async with running(alpaca(rate=50_000.0)) as url:
            client = await logged_in(url + "/v2/sip", trades=["*"], statuses=["*"], lulds=["*"], imbalances=["*"])
            await client.until(lambda: {event["T"] for event in events(client)} >= set("tcxsli"))
            trades = {(one["S"], one["i"]): one for one in events(client) if one["T"] == "t"}
            for event in events(client):
                if event["T"] == "c":
                    original = trades[event["S"], event["oi"]]
                    assert (event["op"], event["os"], event["x"]) == (original["p"], original["s"], original["x"])
                elif event["T"] == "x":
                    assert event["p"] == trades[event["S"], event["i"]]["p"]

    asyncio.run(scenario())
