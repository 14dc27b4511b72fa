"""Prices and sizes of which float64 is not the number that was written are counted, each once, whichever way they come."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames import normalized, raw_batch, rows
from tapeline.monitor.health import _provider
from tapeline.providers.decoding.inexact import _PIECE, JsonNumbers, _long_numbers, in_texts, is_inexact
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS
from tapeline.records import RAW_TOPIC, Chunk

T = 1_710_504_000_000
EXACT = ["1", "0.1", "100.0", "0.00012345", "123456789012345", "9007199254740992", "1234567.12345678", "0.12345678901234568", "1e300"]
INEXACT = ["0.1234567890123456789", "9007199254740993", "12345678901.12345678", "1.00000000000000000001", "3.14159265358979323846e-5"]


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Decimals as JSON writes them: few digits or many, zeros around them or not, with an exponent or without one."""
    digits = str(draw(st.integers(1, 10 ** draw(st.integers(1, 30)))))
    point = draw(st.integers(0, len(digits)))
    text = f"{digits[:point] or '0'}.{draw(st.sampled_from(['', '0', '0' * 9]))}{digits[point:]}" if draw(st.booleans()) else digits
    text = f"{text}0" if text.endswith(".") else text
    text += draw(st.sampled_from(["", "0", "0" * 20])) if "." in text else ""
    return text + draw(st.sampled_from(["", "", "", "e5", "E-7", "e+12"]))


def count_of(numbers: list[str]) -> int:
    """By Python's own decimals and floats."""
    return sum(Decimal(repr(float(number))) != Decimal(number) for number in numbers)


def counted(provider: str, feed: str, frames: list[bytes], kind: str = "frame") -> int:
    result = normalize(Chunk.dense(RAW_TOPIC, 0, 0, raw_batch(provider, feed, frames, kind=kind)), DECODERS)
    assert rows(result)["rejected"] == [], "they are prices and sizes"
    return result.counts[provider, feed].inexact


def spot(price: str, size: str) -> bytes:
    event = f'{{"e":"trade","E":{T},"s":"BTCUSDT","t":1,"p":"{price}","q":"{size}","T":{T},"m":true,"M":true}}'
    return f'{{"stream":"btcusdt@trade","data":{event}}}'.encode()


def stock(price: str, size: str) -> bytes:
    return f'[{{"ev":"T","sym":"A","x":4,"i":"12345678901234567890","p":{price},"s":1,"ds":"{size}","t":{T},"q":1}}]'.encode()


def alpaca(price: str, size: str) -> bytes:
    return f'[{{"T":"t","S":"A","i":52983525033527123,"x":"D","p":{price},"s":{size},"t":"2024-03-15T12:00:00.123456789Z"}}]'.encode()


VOICES = [("binance", "spot", spot), ("polygon", "stocks", stock), ("alpaca", "sip", alpaca)]


def test_what_is_exact_and_what_is_not() -> None:
    assert [text for text in EXACT if is_inexact(text)] == []
    assert [text for text in INEXACT if not is_inexact(text)] == []
    assert not any(map(is_inexact, ["", "x", "nan", "inf", "1e999", "-", "1.2.3"]))


@pytest.mark.parametrize(("provider", "feed", "frame"), VOICES)
@given(numbers=st.lists(st.tuples(texts(), texts()), min_size=1, max_size=30))
def test_the_count_is_python_s_for_any_decimals(provider: str, feed: str, frame: Any, numbers: list[tuple[str, str]]) -> None:
    frames = [frame(price, size) for price, size in numbers]
    assert counted(provider, feed, frames) == count_of([text for pair in numbers for text in pair])


@given(st.lists(texts(), max_size=60))
def test_the_count_of_texts_is_python_s(numbers: list[str]) -> None:
    assert in_texts(pa.array(numbers, pa.string())) == count_of(numbers)


@given(st.lists(st.tuples(st.integers(0, 40), texts()), min_size=1, max_size=30))
def test_wherever_in_the_memory_a_number_begins_it_is_found(some: list[tuple[int, str]]) -> None:
    frames = [b" " * blanks + b'{"p":' + text.encode() + b"}" for blanks, text in some]
    payload = pa.array([b"before", *frames, b"behind"], pa.binary()).slice(1, len(frames))
    assert JsonNumbers(["p"]).inexact(payload) == count_of([text for _, text in some])


def test_a_number_across_the_edge_of_what_is_searched_at_once_is_found() -> None:
    number = INEXACT[0].encode()
    for place in range(_PIECE - len(number) - 20, _PIECE + 20):
        frame = b" " * (place - 4) + b'"p":' + number + b" " * (place % 2) + b'"sip_timestamp":1517562000016036600'
        assert JsonNumbers(["p"]).inexact(pa.array([frame], pa.binary())) == 1, place
        assert _long_numbers(np.frombuffer(frame, np.uint8)).tolist() == [place]


@pytest.mark.parametrize(("provider", "feed", "frame"), VOICES)
def test_a_batch_of_thousands_and_the_other_kinds_of_records_in_it_count_the_same(provider: str, feed: str, frame: Any) -> None:
    frames = [frame("1.50000000", "2.00000000")] * 1_500 + [frame(INEXACT[0], "1.5"), frame("1.5", INEXACT[2])]
    assert counted(provider, feed, frames) == 2
    batch = pa.concat_batches([raw_batch(provider, feed, [b"{}"], "opened"), raw_batch(provider, feed, frames), raw_batch("x", "y", [b""])])
    result = normalize(Chunk.dense(RAW_TOPIC, 0, 0, batch), DECODERS)
    assert result.counts[provider, feed].inexact == 2
    assert result.counts["x", "y"].inexact == 0


def test_quotes_and_bars_are_counted_as_trades_are() -> None:
    long = INEXACT[0]
    kline = (
        f'{{"stream":"btcusdt@kline_1m","data":{{"e":"kline","E":{T},"s":"BTCUSDT","k":{{"t":{T},"i":"1m","o":"{long}","c":"1","h":"2",'
        f'"l":"{long}","v":"5","n":3,"x":true,"q":"{long}"}}}}}}'  # the volume in money is no column
    )
    book = f'{{"stream":"btcusdt@bookTicker","data":{{"u":1,"s":"BTCUSDT","b":"{long}","B":"1","a":"2","A":"{long}"}}}}'
    assert counted("binance", "spot", [kline.encode(), book.encode()]) == 4
    quote = f'[{{"ev":"Q","sym":"A","bx":4,"bp":{long},"bs":100,"ax":7,"ap":2,"as":{long},"t":{T},"q":1}}]'
    bar = f'[{{"ev":"AM","sym":"A","v":4110,"vw":{long},"o":0.4,"c":{long},"h":0.5,"l":0.1,"s":{T},"e":{T},"dv":"{long}"}}]'
    assert counted("polygon", "stocks", [quote.encode(), bar.encode()]) == 5
    right = f'[{{"T":"c","S":"A","x":"M","oi":1,"op":{long},"os":1,"ci":2,"cp":{long},"cs":{long},"t":"2023-04-06T14:25:06Z"}}]'
    assert counted("alpaca", "sip", [right.encode()]) == 2


def test_numbers_of_messagepack_are_float64_already() -> None:
    event = {"T": "t", "S": "A", "i": 1, "x": "D", "p": 0.1234567890123456789, "s": 1, "t": '"p":0.1234567890123456789'}
    result = normalized("alpaca", "sip", [msgspec.msgpack.encode([event])])
    assert result.counts["alpaca", "sip"].inexact == 0


def page(channel: str, symbol: str, path: str, body: bytes) -> bytes:
    head = {"channel": channel, "symbol": symbol, "path": path, "time_ms": T, "start_ns": 0, "end_ns": 1}
    return json.dumps(head).encode() + b"\n" + body


LONG = INEXACT[0]
PAGES = {
    "Binance's trades": (
        ("binance", "spot"),
        page(
            "trade",
            "BTC/USDT",
            "/api/v3/historicalTrades",
            f'[{{"id":1,"price":"{LONG}","qty":"{LONG}","quoteQty":"{LONG}","time":{T},"isBuyerMaker":true}}]'.encode(),
        ),
        2,
    ),
    "Polygon.io's trades": (
        ("polygon", "stocks"),
        page(
            "T",
            "AAPL",
            "/v3/trades/AAPL",
            f'{{"results":[{{"exchange":11,"id":"1","participant_timestamp":1517562000015577000,"price":{LONG},"sequence_number":1063,'
            f'"sip_timestamp":1517562000016036600,"size":100}}],"status":"OK"}}'.encode(),
        ),
        1,
    ),
    "a file of Polygon.io's": (
        ("polygon", "stocks"),
        page(
            "T",
            "AAPL",
            "/us_stocks_sip/trades_v1/2024/03/2024-03-15.csv.gz?ticker=AAPL",
            f"v -1\nticker,conditions,exchange,id,participant_timestamp,price,sequence_number,sip_timestamp,size\n"
            f'AAPL,"12,41",11,12345678901234567890,1517562000015577000,{LONG},1063,1517562000016036600,100\n'.encode(),
        ),
        1,
    ),
    "Alpaca's trades": (
        ("alpaca", "sip"),
        page(
            "trades",
            "AAPL",
            "/v2/stocks/trades",
            f'{{"trades":{{"AAPL":[{{"t":"2022-01-03T09:00:00.086175744Z","x":"P","p":{LONG},"s":246,"i":1}}]}},"next_page_token":null}}'.encode(),
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_and_files_of_history_count_too(name: str) -> None:
    (provider, feed), payload, count = PAGES[name]
    result = normalize(Chunk.dense(RAW_TOPIC, 0, 0, raw_batch(provider, feed, [payload], kind="fetched")), DECODERS)
    assert len(rows(result)["ticks"]) == 1, rows(result)["rejected"]
    assert result.counts[provider, feed].inexact == count


def test_the_times_of_a_page_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = PAGES["Polygon.io's trades"][1].replace(LONG.encode(), b"1.5")
    found: list[bytes] = []
    monkeypatch.setattr(JsonNumbers, "_in", lambda self, frame: found.append(frame) or 0)
    normalize(Chunk.dense(RAW_TOPIC, 0, 0, raw_batch("polygon", "stocks", [payload], kind="fetched")), DECODERS)
    assert found == []


def test_status_has_the_count_of_each_provider() -> None:
    totals = {"alpaca/sip/inexact": 3, "alpaca/crypto/inexact": 4, "binance/spot/inexact": 7}
    assert _provider("alpaca", totals, {}, [])["inexact"] == 7
