"""Reading frames by their shape gives what decoding them as JSON gives, for every frame there is."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeline.providers.binance.normalize import _SHAPES
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS
from tapeline.records import NORMALIZED_TOPICS, RAW, RAW_TOPIC, Chunk, Topic

TRADE = (
    '{"stream":"%s@trade","data":{"e":"trade","E":%s,"s":"%s","t":%s,"p":"%s","q":"%s","T":%s,"m":%s,"M":%s}}'
)  # fmt: skip
BOOK = '{"stream":"%s@bookTicker","data":{"u":%s,"s":"%s","b":"%s","B":"%s","a":"%s","A":"%s"}}'
AGG = (
    '{"stream":"%s@aggTrade","data":{"e":"aggTrade","E":%s,"s":"%s","a":%s,"p":"%s","q":"%s","f":%s,"l":%s,"T":%s,"m":%s,"M":%s}}'
)  # fmt: skip
GOOD = (
    TRADE % ("btcusdt", "1723161255343", "BTCUSDT", "3735683259", "61837.63000000", "0.02000000", "1723161255342", "true", "true")
).encode()

symbol = st.sampled_from(["BTCUSDT", "ETHBTC", "1000SATSUSDT", "SHIB2USDT", "ABCQQQ", "USDT", "btcusdt", "A" * 15 + "USDT", "币安USDT", ""])
number = st.one_of(
    st.integers(0, 10**17).map(str),
    st.sampled_from(["0", "00", "012", "-1", "1.0", "1e3", "9" * 8, "9" * 15, "9" * 16, "9" * 17, "9" * 30, '"1"', "null", "", "true"]),
)
when = st.one_of(st.integers(1_600_000_000_000, 1_800_000_000_000).map(str), number)
price = st.one_of(
    st.builds(lambda a, b: f"{a}.{b:08d}", st.integers(0, 9_999_999), st.integers(0, 99_999_999)),
    st.builds(lambda a, b: f"{a}.{b}", st.integers(0, 10**12), st.integers(0, 10**12)),
    st.sampled_from(
        ["0", "0.00000000", "00.10000000", "-1.00000000", "NaN", "inf", "1.0000000", "1.000000000", "1,00000000", "", ".5", "1e400"]
    ),
)
flag = st.sampled_from(["true", "false", "null", "1", "True"])
trade = st.tuples(symbol.map(str.lower), when, symbol, number, price, price, when, flag, flag).map(lambda v: TRADE % v)
book = st.tuples(symbol.map(str.lower), number, symbol, price, price, price, price).map(lambda v: BOOK % v)
aggregate = st.tuples(symbol.map(str.lower), when, symbol, number, price, price, number, number, when, flag, flag).map(lambda v: AGG % v)
written = st.one_of(trade, book, aggregate).map(str.encode)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A frame with one byte changed, added or taken away, or cut short."""
    frame = draw(written)
    at = draw(st.integers(0, len(frame) - 1))
    byte = bytes([draw(st.one_of(st.integers(0, 255), st.sampled_from(list(b'"\\,:{}0 .\n'))))])
    return draw(
        st.sampled_from([frame[:at] + byte + frame[at + 1 :], frame[:at] + byte + frame[at:], frame[:at] + frame[at + 1 :], frame[:at]])
    )


def raw_batch(frames: list[bytes]) -> pa.RecordBatch:
    n = len(frames)
    columns = [pa.array([text] * n) for text in ("binance", "spot", "c1", "frame")]
    return pa.record_batch([*columns, pa.array(range(10**18, 10**18 + n)), pa.array(frames, pa.binary())], schema=RAW)


def outputs(frames: list[bytes], cuts: list[int]) -> dict[Topic, pa.Table]:
    batch = raw_batch(frames)
    chunks = [Chunk.dense(RAW_TOPIC, 0, a, batch.slice(a, b - a)) for a, b in pairwise([0, *cuts, len(frames)])]
    parts = [normalize(chunk, DECODERS).batches for chunk in chunks]
    return {topic: pa.Table.from_batches([part[topic] for part in parts]).combine_chunks() for topic in NORMALIZED_TOPICS}


@settings(max_examples=settings().max_examples // 2)
@given(st.lists(st.one_of(written, damaged()), min_size=20, max_size=60))
def test_frames_read_by_shape_give_the_same_rows_as_frames_read_as_json(frames: list[bytes]) -> None:
    many = frames + [GOOD] * 1_000  # enough for reading by shape
    by_shape = outputs(many, [])
    as_json = outputs(many, list(range(100, len(many), 100)))  # too few at a time for it
    for topic in NORMALIZED_TOPICS:
        assert by_shape[topic].equals(as_json[topic])


def test_the_frames_that_binance_sends_are_read_by_shape() -> None:
    frames = [
        GOOD,
        (BOOK % ("ethusdt", "35346513501", "ETHUSDT", "2683.80000000", "3.02920000", "2683.81000000", "31.43950000")).encode(),
        (
            AGG % ("btcusdt", "1723161255343", "BTCUSDT", "1", "0.00001000", "9999999.00000000", "1", "2", "1723161255342", "false", "true")
        ).encode(),
    ]
    found, others = _SHAPES.read(pa.array(frames, pa.binary()), None)
    assert others.tolist() == []
    assert {name: rows.tolist() for name, rows, _ in found} == {"trade": [0], "bookTicker": [1], "aggTrade": [2]}
