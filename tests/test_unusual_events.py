"""What providers really send: whole numbers with a point or an exponent, averages of nothing, one event among many that nobody can read."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames import RECEIVED_NS, normalized, raw_batch, rows
from tapeline.providers.decoding.whole_numbers import in_digits, reading, whole
from tapeline.providers.history import PageHeader, Request, Span, WrongPage
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import ARCHIVES, DECODERS, HISTORIES
from tapeline.records import NS_PER_MS, RAW_TOPIC, Chunk

DAY_NS = 86_400 * 1_000_000_000
START_NS = RECEIVED_NS // DAY_NS * DAY_NS
T = START_NS // NS_PER_MS + 1_000


def forms(number: int) -> list[str]:
    """Ways to write a whole number."""
    digits = str(number)
    return [digits, f"{digits}.0", f"{digits}.000", f"{Decimal(number):e}", f"{Decimal(number):E}".replace("E+", "E")]


@given(st.integers(-(2**63), 2**63 - 1).filter(lambda number: number != 0))
def test_a_whole_number_is_the_same_however_it_is_written(number: int) -> None:
    for text in forms(number):
        assert whole(text) == number
        assert reading(msgspec.json.Decoder(dict[str, int]).decode)(f'{{"a \\"1.0\\" b": {text}}}'.encode()) == {'a "1.0" b': number}


@pytest.mark.parametrize("text", ["1.5", "1e-3", "1e30", "1e999", "-0.0", "x1.0", "1.0x", "", "1.", ".5", "0x10"])
def test_what_is_no_whole_number_stays_as_it_is(text: str) -> None:
    assert in_digits(text.encode()) == text.encode()
    with pytest.raises(ValueError, match=r"."):
        whole(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda kids: st.lists(kids, max_size=4)
    )
)
def test_any_json_means_the_same_after_it_was_written_in_digits(value: Any) -> None:
    text = json.dumps(value).encode()
    seen: list[bytes] = []

    def refusing(some: bytes) -> Any:
        seen.append(some)
        if len(seen) == 1:
            raise msgspec.ValidationError
        return json.loads(some, parse_int=float)

    try:
        assert reading(refusing)(text) == json.loads(text, parse_int=float)
    except msgspec.ValidationError:
        assert len(seen) == 1  # there was nothing to write otherwise


def test_a_live_trade_whose_numbers_have_exponents_is_a_trade() -> None:
    frame = (
        b'[{"ev":"T","sym":"AAPL","x":4,"i":"2","z":3,"p":1.5e2,"s":1e+06,"t":%d,"q":8.13548e+8},'
        b'{"ev":"T","sym":"A","x":4,"i":"1.0","p":1,"s":1,"t":%d}]'
    )
    found = rows(normalized("polygon", "stocks", [frame % (T, T)]))
    assert found["rejected"] == []
    assert [(row["last"], row["volume"], row["sequence"], row["trade_id"]) for row in found["ticks"]] == [
        (150.0, 1e6, 813_548_000, "2"),
        (1.0, 1.0, None, "1.0"),
    ]
    spot = b'{"stream":"btcusdt@trade","data":{"e":"trade","E":%d,"s":"BTCUSDT","t":12345.0,"p":"1","q":"1","T":%d.0,"m":true,"M":true}}'
    (tick,) = rows(normalized("binance", "spot", [spot % (T, T)]))["ticks"]
    assert (tick["sequence"], tick["ts_ns"]) == (12345, T * NS_PER_MS)


@pytest.mark.parametrize(
    ("provider", "feed", "frame"),
    [
        ("alpaca", "sip", '[{"T":"b","S":"MCO","o":1,"h":1,"l":1,"c":1,"v":500,"n":0,"vw":0,"t":"2022-12-31T14:31:00Z"}]'),
        ("polygon", "stocks", f'[{{"ev":"AM","sym":"MCO","v":500,"vw":0,"o":1,"h":1,"l":1,"c":1,"s":{T},"e":{T}}}]'),
        ("polygon", "crypto", f'[{{"ev":"XA","pair":"BTC-USD","v":500,"vw":0,"o":1,"h":1,"l":1,"c":1,"s":{T},"e":{T}}}]'),
        (
            "binance",
            "spot",
            f'{{"stream":"btcusdt@kline_1m","data":{{"e":"kline","E":{T},"s":"BTCUSDT","k":{{"t":{T},"i":"1m","o":"1","c":"1","h":"1",'
            '"l":"1","v":"500","n":0,"x":true,"q":"0"}}}',
        ),
    ],
)
def test_a_bar_whose_average_is_zero_is_a_bar_without_one(provider: str, feed: str, frame: str) -> None:
    found = rows(normalized(provider, feed, [frame.encode()]))
    assert found["rejected"] == []
    assert [(row["volume"], row["vwap"]) for row in found["bars"]] == [(500.0, None)]


def trade(number: int, **wrong: Any) -> dict[str, Any]:
    row = {
        "exchange": 11,
        "price": 1.0 + number,
        "size": 100,
        "sip_timestamp": START_NS + number,
        "id": str(number),
        "sequence_number": number,
    }
    return row | wrong


def alpaca(number: int, **wrong: Any) -> dict[str, Any]:
    return {"t": f"2022-12-31T14:00:00.{number:09d}Z", "x": "P", "p": 1.0 + number, "s": 1, "i": number, "z": "C"} | wrong


def binance(number: int, **wrong: Any) -> dict[str, Any]:
    return {"id": number, "price": str(1.0 + number), "qty": "2", "quoteQty": "3", "time": T, "isBuyerMaker": True} | wrong


def polygon_file(*lines: str) -> bytes:
    head = (
        "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,sip_timestamp,size,tape,trf_id,trf_timestamp"
    )
    return "\n".join(["v1 -1", head, *lines]).encode() + b"\n"


def of_polygon(number: int, price: str) -> str:
    return f'AAPL,"12,41",0,11,{number},{START_NS},{price},{number}.0,{START_NS + number},1e2,3,0,0'


#: What is asked, where from, the page, the prices that are kept, and the bytes of those that are not.
PAGES = {
    "polygon": (
        ("polygon", "stocks", "T", "AAPL", "/v3/trades/AAPL?x"),
        HISTORIES["polygon"],
        str(START_NS),
        json.dumps({"status": "OK", "results": [trade(1), trade(2, price="dear"), trade(3), trade(4, sip_timestamp=2**64)]}).encode(),
        [2.0, 4.0],
        [b'"dear"', str(2**64).encode()],
    ),
    "polygon's files": (
        ("polygon", "stocks", "T", "AAPL", "/us_stocks_sip/trades_v1/2022/12/2022-12-31.csv.gz?ticker=AAPL"),
        ARCHIVES["polygon"].history,
        "",
        polygon_file(of_polygon(1, "2.0"), of_polygon(2, "dear"), of_polygon(3, "4"), of_polygon(4, "5") + ",AAPL,1"),
        [2.0, 4.0],
        [b",dear,", b",AAPL,1"],
    ),
    "alpaca": (
        ("alpaca", "sip", "trades", "AAPL", "/v2/stocks/trades?x"),
        HISTORIES["alpaca"],
        "",
        json.dumps({"trades": {"AAPL": [alpaca(1), alpaca(2, p="dear"), alpaca(3, u="canceled")]}, "next_page_token": None}).encode(),
        [2.0, 4.0],
        [b'"dear"'],
    ),
    "binance": (
        ("binance", "spot", "trade", "BTC/USDT", "/api/v3/historicalTrades?x"),
        HISTORIES["binance"],
        "from:1",
        json.dumps([binance(1), binance(2, isBuyerMaker="banana"), binance(3), binance(4, qty=7)]).encode(),
        [2.0, 4.0],
        [b'"banana"', b'"qty": 7'],
    ),
    "binance's archive": (
        ("binance", "spot", "trade", "BTC/USDT", "/data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2022-12-31.zip"),
        ARCHIVES["binance"].history,
        "",
        f"sum -1\n1,2.0,2,4,{T},True,True\n2,3,2,6,{T},,True\n3,3,2,6,{T},TRUE,True\n4,3,2,6,{T},banana,True\n5,4.0,2,6,{T},False,True\n"
        f"6,4.0,2,6,{T},False,True,7,1,2,3,{T},True,True\n".encode(),
        [2.0, 4.0],
        [b",,True", b"TRUE", b"banana", b",7,1,2,3,"],
    ),
}


@pytest.mark.parametrize("of", PAGES)
def test_an_event_of_a_page_that_cannot_be_read_costs_itself_alone(of: str) -> None:
    (provider, feed, channel, symbol, path), history, after, body, prices, bad = PAGES[of]
    span = Span(feed, channel, symbol, START_NS, START_NS + DAY_NS)
    page = history.page(span, Request(path, after=after), body, (START_NS + 2 * DAY_NS) // NS_PER_MS)
    assert len(page.unreadable) == len(bad)
    assert all(text.decode() in told for text, told in zip(bad, page.unreadable, strict=True)), page.unreadable
    asked = PageHeader(channel, symbol, path, T, span.start_ns, span.end_ns, done=True, page=1)
    batch = raw_batch(provider, feed, [msgspec.json.encode(asked) + b"\n" + body], "fetched")
    result = normalize(Chunk.dense(RAW_TOPIC, 0, 0, batch), DECODERS)
    found = rows(result)
    assert [row["last"] for row in found["ticks"]] == prices
    assert len(found["rejected"]) == len(bad)
    assert all(text in row["payload"] for text, row in zip(bad, found["rejected"], strict=True))
    (count,) = result.counts.values()
    assert count.seen == count.ticks + count.bars + count.notices + count.rejected
    places = [(row["raw_offset"], row["raw_index"]) for row in (*found["ticks"], *found["rejected"])]
    assert len(set(places)) == len(places)


def test_a_page_of_which_no_event_can_be_read_is_wrong_as_a_whole() -> None:
    (_, feed, channel, symbol, path), history, after, *_ = PAGES["polygon"]
    body = json.dumps({"status": "OK", "results": [trade(1, price="dear"), trade(2, price="dear")]}).encode()
    with pytest.raises(WrongPage, match=r'row 1: row of a page: Expected `float`, got `str` - at `\$.price`: .*"dear"'):
        history.page(Span(feed, channel, symbol, START_NS, START_NS + DAY_NS), Request(path, after=after), body, 0)


@pytest.mark.parametrize(
    ("provider", "feed", "frame", "reason", "written"),
    [
        ("alpaca", "sip", '[{"T":"t","S":"A","p":1,"s":1,"t":"2022-13-31T14:31:00Z"}]', "time cannot be read", "'2022-13-31T14:31:00Z'"),
        ("polygon", "stocks", '[{"ev":"AM","sym":"M","v":5,"o":1,"h":1,"l":1,"c":1,"s":5,"e":6}]', "time cannot be read", "'5'"),
        ("polygon", "stocks", f'[{{"ev":"T","sym":"A","x":4,"i":"2","p":1,"s":1,"ds":"x","t":{T}}}]', "size or volume is not a", "'x'"),
        ("polygon", "stocks", f'[{{"ev":"T","sym":"A","x":4,"i":"2","p":-1,"s":1,"t":{T}}}]', "price is not a", "-1.0"),
        ("polygon", "stocks", f'[{{"ev":"T","sym":"","x":4,"i":"2","p":1,"s":1,"t":{T}}}]', "symbol is empty", "''"),
    ],
)
def test_a_reason_ends_with_what_was_written_and_not_with_the_whole_event(
    provider: str, feed: str, frame: str, reason: str, written: str
) -> None:
    (rejected,) = rows(normalized(provider, feed, [frame.encode()]))["rejected"]
    assert rejected["reason"].startswith(reason)
    assert rejected["reason"].endswith(f" ({written})")
    assert len(rejected["reason"]) < 100


def test_the_reason_of_a_spot_trade_names_its_text() -> None:
    event = '{"stream":"x@trade","data":{"e":"trade","E":1,"s":"%s","t":12345,"p":"%s","q":"1","T":%d,"m":true,"M":true}}'
    frames = [(event % some).encode() for some in (("BTCXYZ", "1", T), ("BTCUSDT", "abc", T), ("BTCUSDT", "1", 7))]
    reasons = [row["reason"] for row in rows(normalized("binance", "spot", frames))["rejected"]]
    assert [reason.partition(" (")[2] for reason in reasons] == ["'BTCXYZ')", "'abc')", "'7')"]


def test_reasons_that_differ_in_the_value_alone_are_one_group() -> None:
    event = '{"stream":"x@trade","data":{"e":"trade","E":1,"s":"BTCUSDT","t":12345,"p":"%s","q":"1","T":%d,"m":true,"M":true}}'
    frames = [(event % (price, T)).encode() for price in ("-1", "-2", "abc", "0")] + [
        b'{"stream":"x@%d","data":{"e":"y"}}' % n for n in range(3)
    ]
    reasons = [row["reason"] for row in rows(normalized("binance", "spot", frames))["rejected"]]
    assert {reason.partition(" (")[0] for reason in reasons} == {"price is not a finite number above zero", "unknown stream"}


def bar(**wrong: Any) -> bytes:
    return json.dumps([{"ev": "AM", "sym": "M", "v": 5, "o": 2, "h": 3, "l": 1, "c": 2, "s": T, "e": T} | wrong]).encode()


def test_bars_that_no_market_has_had_are_kept_and_counted() -> None:
    strange = [bar(l=4), bar(h=1), bar(o=9), bar(c=0.5)]
    result = normalized("polygon", "stocks", [bar(), *strange, bar(o=1, c=3)])
    assert (result.counts["polygon", "stocks"].suspect, len(rows(result)["bars"])) == (len(strange), 6)
    spot = (
        f'{{"stream":"btcusdt@kline_1m","data":{{"e":"kline","E":{T},"s":"BTCUSDT","k":{{"t":{T},"i":"1m","o":"1","c":"1","h":"1",'
        '"l":"1","v":"5","n":-3,"x":true,"q":"5"}}}'
    )
    result = normalized("binance", "spot", [spot.encode()])
    assert (result.counts["binance", "spot"].suspect, len(rows(result)["bars"])) == (1, 1)
