"""The native core gives what the decoders in Python give, for every frame there is, and it takes the frames that providers send."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from frames import VOICES, anything, exact, golden, mutated, raw_batch
from tapeline.providers.decoding import native
from tapeline.providers.events import Decode, Events, Frames
from tapeline.providers.normalizing import Normalized, normalize
from tapeline.providers.registry import DECODERS, PROVIDERS, PYTHON_DECODERS
from tapeline.records import RAW_TOPIC, Chunk

EACH_VOICE = pytest.mark.parametrize(("provider", "feed"), VOICES)
TRADE = '{"stream":"%s@trade","data":{"e":"trade","E":%s,"s":"%s","t":%s,"p":"%s","q":"%s","T":%s,"m":%s,"M":%s}}'
AGG = '{"stream":"%s@aggTrade","data":{"e":"aggTrade","E":%s,"s":"%s","a":%s,"p":"%s","q":"%s","f":%s,"l":%s,"T":%s,"m":%s,"M":%s}}'
BOOK = '{"stream":"%s@bookTicker","data":{"u":%s,"s":"%s","b":"%s","B":"%s","a":"%s","A":"%s"}}'
KLINE = (
    '{"stream":"%s@kline_1m","data":{"e":"kline","E":%s,"s":"%s","k":{"t":%s,"T":%s,"s":"BTCUSDT","i":"1m","f":1,"L":2,"o":"%s","c":"%s",'
    '"h":"%s","l":"%s","v":"%s","n":%s,"x":%s,"q":"%s","V":"1","Q":"1","B":"0"}}}'
)
POLYGON_TRADE = '{"ev":"T","sym":"%s","x":%s,"i":%s,"z":3,"p":%s,"s":%s,"ds":%s,"c":%s,"t":%s,"q":%s,"trfi":%s}'
POLYGON_QUOTE = '{"ev":"Q","sym":"%s","bx":%s,"bp":%s,"bs":%s,"ax":%s,"ap":%s,"as":%s,"c":%s,"t":%s,"q":%s,"z":3}'
POLYGON_BAR = '{"ev":"AM","sym":"%s","v":%s,"dv":%s,"av":1,"vw":%s,"o":%s,"c":%s,"h":%s,"l":%s,"z":1,"s":%s,"e":1610144700000}'
ALPACA_TRADE = '{"T":"t","S":"%s","i":%s,"x":%s,"p":%s,"s":%s,"c":%s,"t":%s,"z":"C","tks":%s}'
ALPACA_QUOTE = '{"T":"q","S":"%s","bx":%s,"bp":%s,"bs":%s,"ax":%s,"ap":%s,"as":%s,"c":%s,"t":%s}'
ALPACA_BAR = '{"T":"%s","S":"%s","o":%s,"h":%s,"l":%s,"c":%s,"v":%s,"n":%s,"vw":%s,"t":%s}'


def normalized(provider: str, feed: str, frames: Sequence[bytes], decoders: Mapping[str, Decode]) -> Normalized:
    return normalize(Chunk.dense(RAW_TOPIC, 0, 0, raw_batch(provider, feed, frames)), decoders)


def assert_same(provider: str, feed: str, frames: Sequence[bytes]) -> None:
    """The core and Python give the same rows, value by value, and the same counts."""
    ours, reference = (normalized(provider, feed, frames, decoders) for decoders in (DECODERS, PYTHON_DECODERS))
    assert exact([ours]) == exact([reference])
    assert ours.counts == reference.counts


def left(provider: str, feed: str, frames: Sequence[bytes]) -> list[bytes]:
    """The frames that the core leaves to Python."""
    seen: list[bytes] = []
    decode = native.with_core(lambda _feed, rest, _events: seen.extend(frame for _, frame in rest), PROVIDERS[provider].native)
    decode(feed, Frames(pa.array(frames, pa.binary())), Events())
    return seen


def test_the_core_is_there_where_it_can_be_built() -> None:
    assert bool(native.version()) == bool(shutil.which("cargo"))


def test_a_core_of_another_interface_is_not_used() -> None:
    script = (
        "import tapeline_native; tapeline_native.INTERFACE += 1\n"
        "from tapeline.providers.decoding import native\n"
        "assert native.version() == '' and native.in_use() == 'Python'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@EACH_VOICE
@given(data=st.data())
def test_good_damaged_and_arbitrary_frames_become_the_same_rows(provider: str, feed: str, data: st.DataObject) -> None:
    good = st.sampled_from(golden(provider, feed))
    frames = data.draw(st.lists(good | mutated(provider, feed) | mutated(provider, feed) | anything(), min_size=1, max_size=12), "frames")
    assert_same(provider, feed, frames)


@EACH_VOICE
def test_a_frame_that_is_cut_short_at_any_byte_becomes_the_same_rejects(provider: str, feed: str) -> None:
    for frame in golden(provider, feed):
        if len(frame) < 2_000:
            assert_same(provider, feed, [frame[:end] for end in range(len(frame))])


@EACH_VOICE
def test_whole_batches_in_any_order_become_the_same_rows(provider: str, feed: str) -> None:
    frames = golden(provider, feed)
    assert_same(provider, feed, frames + frames[::-1] + frames)


symbol = st.sampled_from(["BTCUSDT", "ETHBTC", "AAPL", "O:SPY251219C00650000", "X/Y", "btcusdt", "币安USDT", "", "A" * 1_024, "A" * 1_025])
number = st.one_of(
    st.integers(0, 10**19).map(str),
    st.sampled_from(["0", "00", "012", "-1", "-0", "1.0", "1e3", "9" * 15, "9" * 18, "9" * 19, "9" * 30, '"1"', "null", "", "true", "[]"]),
)
moment = st.one_of(
    st.integers(1_600_000_000_000, 1_800_000_000_000).map(str), st.integers(1_600_000_000_000_000, 1_800_000_000_000_000).map(str), number
)
amount = st.one_of(
    st.builds(lambda a, b: f"{a}.{b:08d}", st.integers(0, 9_999_999), st.integers(0, 99_999_999)),
    st.builds(lambda a, b: f"{a}.{b}", st.integers(0, 10**12), st.integers(0, 10**12)),
    st.floats(0, 1e12, allow_subnormal=False).map(repr),
    st.sampled_from(
        [
            "nul*10",
            "tru3",
            "0",
            "0.0",
            "-0.0",
            "-1.5",
            "NaN",
            "inf",
            "1.0000000",
            "1,0",
            "",
            ".5",
            "5.",
            "1e400",
            "1E5",
            "65",
            "null",
            "true",
        ]
    ),
    st.sampled_from(["123456789012345.6", "0.1234567890123456", "12345678901234567890", "1000000000000000.000", "0.30000000000000004"]),
)
flag = st.sampled_from(["true", "false", "null", "1", "True"])
texts = st.sampled_from(['"A"', '"V"', '" "', '""', '"?"', '" N "', '"\\u0041"', '"é"', "null", "4", '"1234567890123456"', '"B"', '"S"'])
exact_text = amount.map(lambda text: f'"{text}"') | st.just("null")
code = st.sampled_from(["nul*10", "1", "4", "12", "201", "99", "-4", "null", "4.0", '"4"', "9" * 20])
codes = st.sampled_from(
    ["[]", "[0,12]", "[2]", "[1,2]", "7", "null", '["@","I"]', '[" "]', '["@",1]', '"@"', '""', "[null]", "[[1]]", "[1,]"]
)
time_text = st.one_of(
    st.datetimes().map(lambda at: f'"{at.isoformat()}Z"'),
    st.builds(
        lambda fraction, zone: f'"2021-02-22T15:51:44{fraction}{zone}"',
        st.sampled_from(["", ".", ".3", ".208", ".123456789", ".1234567891", ".000000001"]),
        st.sampled_from(["Z", "+00:00", "-05:00", "", "z"]),
    ),
    st.sampled_from(
        ['"2021-02-29T00:00:00Z"', '"2024-02-29T23:59:60Z"', '"2024-12-31 23:59:59Z"', "null", "1", '""', '"1989-12-31T00:00:00Z"']
    ),
)


def filled(template: str, *fields: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return st.tuples(*fields).map(lambda values: (template % values).encode())


lower = symbol.map(str.lower)
BINANCE = (
    filled(TRADE, lower, moment, symbol, number, amount, amount, moment, flag, flag)
    | filled(AGG, lower, moment, symbol, number, amount, amount, number, number, moment, flag, flag)
    | filled(BOOK, lower, number, symbol, amount, amount, amount, amount)
    | filled(KLINE, lower, moment, symbol, moment, moment, amount, amount, amount, amount, amount, number, flag, amount)
)
POLYGON = (
    filled(POLYGON_TRADE, symbol, code, texts, amount, amount, exact_text, codes, moment, number, code)
    | filled(POLYGON_QUOTE, symbol, code, amount, amount, code, amount, amount, codes, moment, number)
    | filled(POLYGON_BAR, symbol, amount, exact_text, amount, amount, amount, amount, amount, moment)
)
POLYGON_CRYPTO = st.sampled_from([b'"ev":"XT"', b'"ev":"XQ"', b'"ev":"XA"', b'"ev":"XAS"']).flatmap(
    lambda tag: POLYGON.map(lambda event: tag_changed(event, tag).replace(b'"sym"', b'"pair"').replace(b'"bx"', b'"x"'))
)
ALPACA = (
    filled(ALPACA_TRADE, symbol, number, texts, amount, amount, codes, time_text, texts)
    | filled(ALPACA_QUOTE, symbol, texts, amount, amount, texts, amount, amount, codes, time_text)
    | filled(ALPACA_BAR, st.sampled_from("bud"), symbol, amount, amount, amount, amount, amount, number, amount, time_text)
)


def tag_changed(event: bytes, tag: bytes) -> bytes:
    return b"{" + tag + event[event.index(b",") :]


@settings(max_examples=4 * settings().max_examples)
@given(st.lists(BINANCE, min_size=5, max_size=40))
def test_binances_frames_with_any_values_become_the_same_rows(frames: list[bytes]) -> None:
    assert_same("binance", "spot", frames)


@pytest.mark.parametrize(
    ("provider", "feed", "events"),
    [
        ("polygon", "stocks", POLYGON),
        ("polygon", "options", POLYGON),
        ("polygon", "crypto", POLYGON_CRYPTO),
        ("alpaca", "sip", ALPACA),
        ("alpaca", "opra", ALPACA),
        ("alpaca", "crypto", ALPACA),
    ],
)
@settings(max_examples=2 * settings().max_examples)
@given(data=st.data())
def test_array_frames_with_any_values_become_the_same_rows(
    provider: str, feed: str, events: st.SearchStrategy[bytes], data: st.DataObject
) -> None:
    arrays = st.lists(events, max_size=4).map(lambda some: b"[" + b",".join(some) + b"]")
    assert_same(provider, feed, data.draw(st.lists(arrays, min_size=3, max_size=12), "frames"))


def test_the_frames_that_providers_send_are_taken_by_the_core() -> None:
    binance = [
        TRADE % ("btcusdt", "1723161255343", "BTCUSDT", "3735683259", "61837.63000000", "0.02000000", "1723161255342", "true", "true"),
        AGG % ("btcusdt", "1723161255343", "BTCUSDT", "1", "0.00001", "9999999", "1", "2", "1723161255342123", "false", "true"),
        BOOK % ("ethusdt", "35346513501", "ETHUSDT", "2683.80000000", "3.02920000", "2683.81000000", "31.43950000"),
        KLINE % ("btcusdt", "1723161255343", "BTCUSDT", "1723161240000", "1723161299999", *["61837.63000000"] * 5, "4", "false", "1" * 30),
    ]
    assert left("binance", "spot", [frame.encode() for frame in binance]) == []
    trade = POLYGON_TRADE % ("MSFT", "4", '"12345"', "114.125", "100", '"100.5"', "[0,12]", "1536036818784", "3681328", "201")
    quote = POLYGON_QUOTE % ("MSFT", "4", "114.125", "100", "7", "114.128", "160", "0", "1536036818784", "50385480")
    bar = POLYGON_BAR % ("GTE", "4110", '"4110"', "0.4488", "0.4488", "0.4486", "0.4489", "0.4486", "1610144640000")
    assert left("polygon", "stocks", [f"[{trade},{quote}, {bar}]".encode(), b"[]"]) == []
    time = '"2021-02-22T15:51:44.208Z"'
    trade = ALPACA_TRADE % ("AAPL", "96921", '"D"', "126.55", "1", '["@","I"]', time, "null")
    quote = ALPACA_QUOTE % ("AMD", '"U"', "87.66", "1", '"Q"', "87.68", "4", '["R"]', time)
    bar = ALPACA_BAR % ("b", "SPY", "388.985", "389.13", "388.975", "389.12", "49378", "461", "389.062639", time)
    assert left("alpaca", "sip", [f"[{trade},{quote},{bar}]".encode()]) == []
    binary = [{"T": "t", "S": "AAPL", "i": 2**63 - 1, "x": "D", "p": 126.55, "s": 1, "c": ["@", "I"], "t": Ext(-1, b"\x60\x33\xd3\x10")}]
    assert left("alpaca", "sip", [msgspec.msgpack.encode(binary)]) == []


def test_what_the_core_does_not_know_is_left_to_python() -> None:
    status = b'[{"ev":"status","status":"auth_success","message":"authenticated"}]'
    correction = b'[{"T":"c","S":"EEM","x":"M","oi":1,"t":"2023-04-06T14:25:06.542305024Z"}]'
    assert left("polygon", "stocks", [status]) == [status]
    assert left("alpaca", "sip", [correction]) == [correction]
    assert left("binance", "spot", [b'{"result":null,"id":1}']) == [b'{"result":null,"id":1}']


def test_an_event_with_two_tags_is_left_to_python() -> None:
    bar = POLYGON_BAR % ("GTE", "4110", "null", "0.4488", "0.4488", "0.4486", "0.4489", "0.4486", "1610144640000")
    trade = ALPACA_TRADE % ("AAPL", "96921", '"D"', "126.55", "1", "null", '"2021-02-22T15:51:44.208Z"', "null")
    for provider, feed, event in (("polygon", "stocks", bar[:-1] + ',"ev":null}'), ("alpaca", "sip", trade[:-1] + ',"T":"q"}')):
        assert left(provider, feed, [f"[{event}]".encode()]) == [f"[{event}]".encode()]


def test_everything_works_without_the_core() -> None:
    script = (
        "import sys; sys.modules['tapeline_native'] = None\n"
        "from tapeline.providers.decoding import native\n"
        "from tapeline.providers.registry import DECODERS, PYTHON_DECODERS\n"
        "assert native.version() == '' and dict(DECODERS) == dict(PYTHON_DECODERS)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
