"""Each provider's session as a transcript: frames in, messages out; no socket, no clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames import VOICES, anything, golden, mutated
from tapeline.providers.alpaca.session import Options
from tapeline.providers.registry import CHANNELS, PROVIDERS
from tapeline.providers.session import FeedSettings, Plan, Reply, Session
from tapeline.secret import Secret

KEY, SECRET = "PKTOPSECRETKEY", "sEcReTvAlUe/+=="
Codec = Literal["json", "msgpack"]


def settings(feed: str, symbols: tuple[str, ...], channels: tuple[str, ...], **more: Any) -> FeedSettings:
    return FeedSettings(feed=feed, symbols=symbols, channels=channels, key=Secret(KEY), secret=Secret(SECRET), **more)


def plan_of(provider: str, feed: str, symbols: tuple[str, ...], channels: tuple[str, ...], **more: Any) -> Plan:
    (plan,) = PROVIDERS[provider].plans(settings(feed, symbols, channels, **more))
    return plan


def said(reply: Reply | None) -> list[Any]:
    """The JSON messages of a reply."""
    assert reply is not None
    return [json.loads(message) for message in reply.send]


def action(reply: Reply | None) -> str:
    """What a reply's problem asks for; `go on` without any."""
    assert reply is not None
    return reply.problem.action if reply.problem is not None else "go on"


def frame(*events: object) -> bytes:
    return msgspec.json.encode(events)


def any_plan(provider: str, feed: str) -> Plan:
    symbols = ("BTCUSDT", "ETHUSDT") if provider == "binance" else ("AAPL", "AMD")
    return plan_of(provider, feed, symbols, tuple(CHANNELS[provider][feed])[:2])


# Binance


def binance(count: int = 2) -> Session:
    return plan_of("binance", "spot", tuple(f"A{n}USDT" for n in range(count)), ("trade",)).session()


def test_binance_is_asked_in_lower_case_and_acknowledges_by_number() -> None:
    session = plan_of("binance", "spot", ("BTCUSDT",), ("aggTrade", "bookTicker", "kline_1M")).session()
    (asked,) = [json.loads(message) for message in session.opened()]
    assert asked == {"method": "SUBSCRIBE", "params": ["btcusdt@aggTrade", "btcusdt@bookTicker", "btcusdt@kline_1M"], "id": 1}
    assert session.missing() == asked["params"]
    assert session.received(b'{"result":null,"id":1}') == Reply()
    assert session.missing() == []


def test_binance_gets_many_streams_in_batches_each_confirmed_by_its_own_acknowledgement() -> None:
    session = binance(250)
    asked = [json.loads(message) for message in session.opened()]
    assert [len(message["params"]) for message in asked] == [100, 100, 50]
    session.received(b'{"result":null,"id":2}')
    assert session.missing() == asked[0]["params"] + asked[2]["params"]
    session.received(b'{"result":null,"id":77}')
    session.received(b'{"result":null,"id":"1"}')
    session.received(b'{"result":null,"id":null}')
    assert session.missing() == asked[0]["params"] + asked[2]["params"]


@pytest.mark.parametrize(
    "refusal",
    [
        {"error": {"code": 2, "msg": "Invalid request: invalid stream"}, "id": 1},
        {"code": 2, "msg": "Invalid request: invalid stream", "id": 1},
        {"code": 0, "msg": "Unknown property", "id": 1},
        {"error": {"code": 4, "msg": "Too many subscriptions"}, "id": 1},
    ],
    ids=["nested", "flat", "flat with code 0", "too many"],
)
def test_a_batch_that_binance_refuses_is_asked_again_one_by_one_and_only_the_bad_stream_is_named(refusal: dict[str, Any]) -> None:
    session = binance(3)
    session.opened()
    again = said(session.received(msgspec.json.encode(refusal)))
    assert [message["params"] for message in again] == [["a0usdt@trade"], ["a1usdt@trade"], ["a2usdt@trade"]]
    numbers = [message["id"] for message in again]
    assert len({1, *numbers}) == 4
    session.received(msgspec.json.encode({"result": None, "id": numbers[0]}))
    reply = session.received(msgspec.json.encode(refusal | {"id": numbers[1]}))
    session.received(msgspec.json.encode({"result": None, "id": numbers[2]}))
    assert action(reply) == "warn"
    assert reply is not None
    assert reply.problem is not None
    assert "a1usdt@trade" in reply.problem.message
    assert not reply.send
    assert session.missing() == ["a1usdt@trade"]


def test_a_second_refusal_of_what_binance_already_answered_changes_nothing() -> None:
    session = binance(2)
    session.opened()
    session.received(b'{"result":null,"id":1}')
    assert session.received(b'{"error":{"code":2,"msg":"late"},"id":1}') == Reply()
    assert session.missing() == []


@pytest.mark.parametrize("notice", [b'{"e":"serverShutdown","E":1}', b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}'])
def test_binance_announcing_its_shutdown_asks_for_a_successor_and_nothing_else(notice: bytes) -> None:
    session = binance()
    assert session.received(notice) == Reply(successor=True)
    assert session.channel(notice) is None


@pytest.mark.parametrize(("streams", "connections"), [(1, [1]), (1024, [1024]), (1025, [1024, 1]), (2500, [1024, 1024, 452])])
def test_a_binance_connection_carries_at_most_1024_streams(streams: int, connections: list[int]) -> None:
    symbols = tuple(f"S{n}USDT" for n in range(streams))
    plans = PROVIDERS["binance"].plans(settings("spot", symbols, ("trade",)))
    assert [len(plan.subscriptions) for plan in plans] == connections
    assert [topic for plan in plans for topic in plan.subscriptions] == [f"s{n}usdt@trade" for n in range(streams)]
    assert len({plan.name for plan in plans}) == len(plans)
    assert [plan.check is not None for plan in plans] == [True] + [False] * (len(plans) - 1)
    for plan in plans:
        asked = [stream for message in plan.session().opened() for stream in json.loads(message)["params"]]
        assert asked == plan.subscriptions
        assert plan.pace_s >= 0.25
        assert 0 < plan.rotate_after_s < 24 * 3600


def test_binance_names_what_its_list_of_symbols_does_not_hold() -> None:
    symbols = ("BTCUSDT", "BTCUSDTT", "ETHBTC", "HALTUSDT")
    check = plan_of("binance", "spot", symbols, ("trade",)).check
    assert check is not None
    listed = [("BTCUSDT", "BTC", "USDT", "TRADING"), ("ETHBTC", "ETHB", "TC", "TRADING"), ("HALTUSDT", "HALT", "USDT", "BREAK")]
    body = {"symbols": [dict(zip(("symbol", "baseAsset", "quoteAsset", "status"), row, strict=True)) for row in listed]}
    problems = check.problems(msgspec.json.encode(body))
    assert len(problems) == 2
    assert "BTCUSDTT" in problems[0]
    assert "did you mean BTCUSDT" in problems[0]
    assert "BREAK" in problems[1]
    assert check.names(msgspec.json.encode(body)) == {"BTCUSDT": "BTC/USDT", "ETHBTC": "ETHB/TC", "HALTUSDT": "HALT/USDT"}


# Polygon.io


def status(*pairs: tuple[str, str]) -> bytes:
    return frame(*({"ev": "status", "status": name, "message": message} for name, message in pairs))


def polygon(symbols: tuple[str, ...] = ("AAPL", "AMD")) -> Session:
    return plan_of("polygon", "stocks", symbols, ("T", "Q")).session()


def test_polygon_is_greeted_logs_in_and_subscribes() -> None:
    session = polygon()
    assert list(session.opened()) == []
    assert said(session.received(status(("connected", "Connected Successfully")))) == [{"action": "auth", "params": KEY}]
    topics = ["T.AAPL", "T.AMD", "Q.AAPL", "Q.AMD"]
    assert said(session.received(status(("auth_success", "authenticated")))) == [{"action": "subscribe", "params": ",".join(topics)}]
    assert session.missing() == topics


def test_polygon_acknowledges_topic_by_topic_in_one_frame_or_several() -> None:
    session = polygon()
    session.received(status(("success", "subscribed to: T.AAPL"), ("success", "subscribed to: Q.AMD")))
    session.received(status(("success", "subscribed to: Z.AAPL")))
    assert session.missing() == ["T.AMD", "Q.AAPL"]
    session.received(status(("success", "subscribed to: T.AMD")))
    session.received(status(("success", "subscribed to: Q.AAPL")))
    assert session.missing() == []


def test_polygon_gets_many_topics_in_messages_well_under_a_megabyte() -> None:
    session = polygon(tuple(f"SYMBOL{n}" for n in range(30_000)))
    reply = session.received(status(("auth_success", "authenticated")))
    assert reply is not None
    assert max(map(len, reply.send)) < 100_000
    assert [topic for message in said(reply) for topic in message["params"].split(",")] == session.missing()


DELAYED = "You don't have access real-time data. If your plan only includes delayed data, you can connect to the delayed websocket at"
STATUSES: dict[str, tuple[str, str, float]] = {
    "auth_failed": ("authentication failed", "stop", 0),
    "auth_timeout": ("No authentication request received.", "reconnect", 0),
    "error": ("not authorized", "warn", 0),
    "max_connections": ("Maximum number of websocket connections exceeded. ", "reconnect", 60),
    "slow_consumer": ("", "reconnect", 0),
    "force_disconnect": ("", "reconnect", 0),
}


@pytest.mark.parametrize("name", STATUSES)
def test_each_status_of_polygon_has_its_action(name: str) -> None:
    message, want, wait_s = STATUSES[name]
    reply = polygon().received(status((name, message)))
    assert action(reply) == want
    assert reply is not None
    assert reply.problem is not None
    assert reply.problem.wait_s == wait_s
    says, _, advice = reply.problem.message.partition(". ")
    assert f"{says}.".startswith(f"polygon says {name}" + (f": {message.strip().rstrip('.')}." if message else "."))
    assert not advice or (advice[0].isupper() and advice.endswith("."))


def test_polygon_saying_that_the_plan_is_delayed_stops_and_names_the_other_host() -> None:
    reply = polygon().received(status(("error", DELAYED)))
    assert action(reply) == "stop"
    assert reply is not None
    assert reply.problem is not None
    assert "wss://delayed.massive.com" in reply.problem.message


def test_a_status_that_polygon_invents_tomorrow_is_let_pass() -> None:
    session = polygon()
    reply = session.received(status(("weather", "fine")))
    assert (said(reply), action(reply)) == ([], "go on")


def test_of_several_troubles_in_one_frame_the_gravest_counts() -> None:
    assert action(polygon().received(status(("error", "not authorized"), ("max_connections", "too many")))) == "reconnect"
    assert action(polygon().received(status(("max_connections", "too many"), ("auth_failed", "no")))) == "stop"
    assert action(alpaca().received(frame(error(405), error(406)))) == "reconnect"


@pytest.mark.parametrize(
    ("event", "channel"),
    [(b'[{"ev":"T","sym":"A"}]', b"T"), (b'[{"ev":"AM","sym":"A"}]', b"AM"), (b'[{"ev":"XAS","pair":"A-B"},{"ev":"XT"}]', b"XAS")],
)
def test_the_data_of_polygon_is_named_by_its_first_event(event: bytes, channel: bytes) -> None:
    assert polygon().channel(event) == channel
    assert polygon().received(event) is None


# Alpaca


def alpaca(codec: Codec = "json", feed: str = "iex") -> Session:
    return plan_of("alpaca", feed, ("AAPL", "AMD"), ("trades", "quotes"), options=Options(codec=codec)).session()


def error(code: int, message: str = "said so") -> dict[str, object]:
    return {"T": "error", "code": code, "msg": message}


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_alpaca_is_greeted_logs_in_and_subscribes_in_either_codec(codec: Codec) -> None:
    encode, decode = (msgspec.json.encode, msgspec.json.decode) if codec == "json" else (msgspec.msgpack.encode, msgspec.msgpack.decode)
    session = alpaca(codec)

    def answers(*events: object) -> list[Any]:
        reply = session.received(encode(events))
        assert reply is not None
        return [decode(message) for message in reply.send]

    assert list(session.opened()) == []
    assert answers({"T": "success", "msg": "connected"}) == [{"action": "auth", "key": KEY, "secret": SECRET}]
    subscribe = {"action": "subscribe", "trades": ["AAPL", "AMD"], "quotes": ["AAPL", "AMD"]}
    assert answers({"T": "success", "msg": "authenticated"}) == [subscribe]
    assert session.missing() == ["trades.AAPL", "trades.AMD", "quotes.AAPL", "quotes.AMD"]
    state = {"T": "subscription", "trades": ["AAPL"], "quotes": ["AMD"], "bars": [], "statuses": ["*"], "corrections": ["AAPL"]}
    assert answers(state) == []
    assert session.missing() == ["trades.AMD", "quotes.AAPL"]
    assert answers(state | {"trades": ["AMD", "AAPL"], "quotes": ["AAPL", "AMD", "X"]}) == []
    assert session.missing() == []
    assert answers({"T": "subscription", "trades": [], "quotes": []}) == []
    assert len(session.missing()) == 4


#: Code, action, least wait in seconds (PROVIDERS: "client action").
ERRORS: dict[int, tuple[str, float]] = {
    400: ("stop", 0),
    401: ("reconnect", 0),
    402: ("stop", 0),
    403: ("warn", 0),
    404: ("reconnect", 0),
    405: ("warn", 0),
    406: ("reconnect", 30),
    407: ("reconnect", 0),
    409: ("stop", 0),
    410: ("stop", 0),
    411: ("stop", 0),
    412: ("stop", 0),
    413: ("stop", 0),
    500: ("reconnect", 0),
    599: ("reconnect", 0),
}


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("code", ERRORS)
def test_each_error_of_alpaca_has_its_action(code: int, codec: Codec) -> None:
    encode = msgspec.json.encode if codec == "json" else msgspec.msgpack.encode
    reply = alpaca(codec).received(encode([error(code, "the words of the provider")]))
    assert reply is not None
    assert reply.problem is not None
    assert (reply.problem.action, reply.problem.wait_s) == ERRORS[code]
    assert str(code) in reply.problem.message
    assert "the words of the provider" in reply.problem.message


def test_alpaca_saying_several_things_in_one_frame_is_heard_out() -> None:
    session = alpaca()
    reply = session.received(frame({"T": "success", "msg": "connected"}, {"T": "success", "msg": "authenticated"}))
    assert [message["action"] for message in said(reply)] == ["auth", "subscribe"]
    assert action(session.received(frame({"T": "success", "msg": "connected"}, error(402)))) == "stop"


@pytest.mark.parametrize(("feed", "codec"), [("opra", "json"), ("indicative", "json"), ("iex", "msgpack"), ("crypto", "msgpack")])
def test_alpaca_speaks_msgpack_where_asked_and_for_options_always(feed: str, codec: Codec) -> None:
    plan = plan_of("alpaca", feed, ("AAPL",), ("trades",), options=Options(codec=codec))
    assert plan.binary
    assert plan.headers["Content-Type"] == "application/msgpack"
    assert plan.session().received(msgspec.msgpack.encode([{"T": "success", "msg": "connected"}])) is not None


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(("tag", "channel"), [("t", "trades"), ("q", "quotes"), ("b", "bars"), ("u", "updatedBars"), ("d", "dailyBars")])
def test_the_data_of_alpaca_is_named_as_the_configuration_names_it(tag: str, channel: str, codec: Codec) -> None:
    encode = msgspec.json.encode if codec == "json" else msgspec.msgpack.encode
    event = encode([{"T": tag, "S": "AAPL", "x": 1}])
    assert alpaca(codec).channel(event) == channel.encode()
    assert alpaca(codec).received(event) is None
    many = encode([{"T": tag, "S": "AAPL"}] * 40)
    assert alpaca(codec).channel(many) == channel.encode()


@pytest.mark.parametrize(
    ("codec", "other"),
    [
        ("json", b'[{ "t":"2021-02-22T19:15:00Z"}]'),
        ("json", b'[{"S":"A"}]'),
        ("json", b'[{"T":"s","S":"A"}]'),
        ("json", b""),
        ("msgpack", b"\x91\x81t\x01"),
        ("msgpack", b"\x91"),
        ("msgpack", b""),
    ],
)
def test_what_is_no_data_of_alpaca_is_not_named_so(codec: Codec, other: bytes) -> None:
    assert alpaca(codec).channel(other) is None


# What holds for all


@pytest.mark.parametrize(("provider", "feed"), VOICES)
@given(data=st.data())
def test_no_bytes_make_a_session_raise_or_say_a_secret(provider: str, feed: str, data: st.DataObject) -> None:
    plan = any_plan(provider, feed)
    session = plan.session()
    session.opened()
    heads = [
        b'{"stream":"',
        b'{"result":null,"id":1',
        b'{"error":',
        b'[{"ev":"status"',
        b'[{"T":"success"',
        b'[{"T":"error"',
        b"\x91\x83\xa1T\xa5error",
    ]
    looks = st.tuples(st.sampled_from(heads), st.binary(max_size=30)).map(b"".join)
    for message in data.draw(st.lists(anything() | looks | mutated(provider, feed), max_size=6)):
        channel, reply = session.channel(message), session.received(message)
        assert channel is None or reply is None
        if reply is not None:
            shown = repr(reply.problem)
            assert KEY not in shown
            assert SECRET not in shown
    assert set(session.missing()) <= set(plan.subscriptions)


@pytest.mark.parametrize(("provider", "feed"), VOICES)
@pytest.mark.parametrize("depth", [1_000, 200_000])
def test_a_control_frame_of_many_brackets_is_let_pass(provider: str, feed: str, depth: int) -> None:
    session = any_plan(provider, feed).session()
    for head in (b'[{"ev":"status","x":', b'[{"T":"error","x":', b'{"id":1,"result":', b"\x91\x82\xa1T\xa5error\xa1x"):
        deep = (b"\x91" if head[0] > 0x7F else b"[") * depth
        reply = session.received(head + deep)
        assert reply is None or (said(reply), action(reply)) == ([], "go on")


@pytest.mark.parametrize(("provider", "feed"), VOICES)
def test_data_gets_no_answer(provider: str, feed: str) -> None:
    session = any_plan(provider, feed).session()
    session.opened()
    data = [one for one in golden(provider, feed, bad=False) if session.channel(one) is not None]
    assert data
    assert [session.received(one) for one in data] == [None] * len(data)


@pytest.mark.parametrize(("provider", "feed"), VOICES)
def test_secrets_show_in_no_repr(provider: str, feed: str) -> None:
    symbols = ("BTCUSDT",) if provider == "binance" else ("AAPL",)
    asked = settings(feed, symbols, tuple(CHANNELS[provider][feed])[:1])
    plan = any_plan(provider, feed)
    for shown in (repr(asked), repr(plan), str(plan), repr(plan.session()), repr(plan.subscriptions), plan.url, repr(plan.headers)):
        assert KEY not in shown
        assert SECRET not in shown


ECHOES: dict[str, Callable[[str], bytes]] = {
    "polygon": lambda text: status(("auth_failed", text)),
    "alpaca": lambda text: frame(error(402, text)),
}


@pytest.mark.parametrize("provider", ECHOES)
def test_a_provider_that_echoes_the_secret_in_its_refusal_is_not_quoted_with_it(provider: str) -> None:
    session = any_plan(provider, "stocks" if provider == "polygon" else "iex").session()
    reply = session.received(ECHOES[provider](f"the key {KEY} with {SECRET if provider == 'alpaca' else KEY} is not known"))
    assert reply is not None
    assert reply.problem is not None
    assert "is not known" in reply.problem.message
    assert KEY not in str(asdict(reply.problem))
    assert SECRET not in str(asdict(reply.problem))


def test_every_session_is_a_new_conversation() -> None:
    for provider, feed in VOICES:
        plan = any_plan(provider, feed)
        first = plan.session()
        first.opened()
        first.received(b'{"result":null,"id":1}')
        first.received(status(*(("success", f"subscribed to: {topic}") for topic in plan.subscriptions)))
        assert plan.session().missing() == list(plan.subscriptions)
