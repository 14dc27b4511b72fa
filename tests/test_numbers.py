"""Numbers and times survive: decimal text of at most 15 digits and nanoseconds, from the wire through the lake and back."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from frames import normalized, rows
from tapeline.providers.registry import identity
from tapeline.reading.sql import connect
from tapeline.records import NS_PER_S, TICKS_TOPIC, Chunk
from tapeline.stores.lake import Lake

#: One moment and another: Tapeline's times lie between them (docs/records.md).
FIRST_S, LAST_S = 631_152_001, 4_102_444_799


@st.composite
def decimal_texts(draw: st.DrawFn) -> str:
    """A plain decimal as exchanges write them: up to 15 significant digits, zeros around them or not."""
    digits = draw(st.integers(1, 10**15 - 1)) if draw(st.booleans()) else draw(st.integers(1, 10 ** draw(st.integers(1, 15)) - 1))
    places = draw(st.integers(0, 18))
    text = f"{Decimal(digits).scaleb(-places):f}"
    if "." in text and draw(st.booleans()):
        text = text.rstrip("0").rstrip(".") or "0"
    return text + draw(st.sampled_from(["", "0", "000"])) if "." in text else text


def trade(at: int, price: str, size: str) -> bytes:
    data = {"e": "trade", "E": 1, "s": "BTCUSDT", "t": at, "p": price, "q": size, "T": 1_710_504_000_000, "m": True, "M": True}
    return b'{"stream":"btcusdt@trade","data":' + json.dumps(data, separators=(",", ":")).encode() + b"}"


def text_of(number: float) -> str:
    """The shortest decimal that is this float64, written plainly."""
    return f"{Decimal(repr(number)).normalize():f}"


def plain(text: str) -> str:
    return f"{Decimal(text).normalize():f}"


@settings(max_examples=max(5, settings().max_examples // 100))
@given(st.lists(decimal_texts(), min_size=300, max_size=600))
def test_a_decimal_of_15_digits_comes_back_from_the_lake_as_it_was_sent(texts: list[str]) -> None:
    frames = [trade(at, text, texts[-1 - at]) for at, text in enumerate(texts)]
    result = normalized("binance", "spot", frames)
    batch = result.batches[TICKS_TOPIC]
    assert batch.num_rows == len(texts)
    with tempfile.TemporaryDirectory() as folder:
        Lake(Path(folder), identity).write(Chunk.dense(TICKS_TOPIC, 0, 0, batch))
        with connect(Path(folder)) as db:
            found = db.execute("SELECT last, volume FROM ticks ORDER BY sequence").fetchall()
            shown = db.execute("SELECT last::VARCHAR FROM ticks ORDER BY sequence").fetchall()
    assert [text_of(last) for last, _ in found] == [plain(text) for text in texts]
    assert [text_of(volume) for _, volume in found] == [plain(text) for text in reversed(texts)]
    assert [plain(last) for (last,) in shown] == [plain(text) for text in texts]


@given(st.lists(st.floats(min_value=5e-324, allow_infinity=False, allow_nan=False), min_size=1, max_size=40))
def test_every_float_that_a_provider_writes_in_json_or_msgpack_is_kept_bit_by_bit(numbers: list[float]) -> None:
    base = {"T": "t", "S": "A", "s": 1, "t": "2024-03-15T12:00:00Z"}
    for encode in (msgspec.json.encode, msgspec.msgpack.encode):
        (table,) = (rows(normalized("alpaca", "crypto", [encode([{**base, "p": number} for number in numbers])]))["ticks"],)
        assert [row["last"] for row in table] == numbers


def rfc3339(ns: int, digits: int) -> str:
    seconds, rest = divmod(ns, NS_PER_S)
    whole = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    fraction = f"{rest:09d}"[:digits]
    return f"{whole:%Y-%m-%dT%H:%M:%S}{'.' if digits else ''}{fraction}Z"


def timestamp(ns: int, bits: int) -> Ext:
    """A msgpack Timestamp of 32 (seconds only), 64 or 96 bits."""
    seconds, rest = divmod(ns, NS_PER_S)
    if bits == 32:
        return Ext(-1, seconds.to_bytes(4, "big"))
    if bits == 64:
        return Ext(-1, (rest << 34 | seconds).to_bytes(8, "big"))
    return Ext(-1, rest.to_bytes(4, "big") + seconds.to_bytes(8, "big", signed=True))


TIMES = st.integers(FIRST_S * NS_PER_S, LAST_S * NS_PER_S)


def times_of(provider: str, feed: str, frame: bytes) -> list[int]:
    found = rows(normalized(provider, feed, [frame]))
    assert found["rejected"] == []
    return [row["ts_ns"] for row in found["ticks"]]


@given(st.lists(st.tuples(TIMES, st.integers(0, 9)), min_size=1, max_size=40))
def test_a_time_in_rfc_3339_of_any_number_of_digits_is_exact(times: list[tuple[int, int]]) -> None:
    base = {"T": "t", "S": "AAPL", "p": 1.5, "s": 1, "x": "V"}
    frame = msgspec.json.encode([{**base, "t": rfc3339(ns, digits)} for ns, digits in times])
    assert times_of("alpaca", "sip", frame) == [ns - ns % 10 ** (9 - digits) for ns, digits in times]


@given(st.lists(st.tuples(TIMES, st.sampled_from([32, 64, 96])), min_size=1, max_size=40))
def test_a_msgpack_timestamp_of_any_size_is_exact(times: list[tuple[int, int]]) -> None:
    base = {"T": "t", "S": "AAPL240315C00172500", "p": 1.5, "s": 1, "x": "N"}
    frame = msgspec.msgpack.encode([{**base, "t": timestamp(ns, bits)} for ns, bits in times])
    assert times_of("alpaca", "opra", frame) == [ns - ns % NS_PER_S if bits == 32 else ns for ns, bits in times]


@given(st.lists(st.tuples(TIMES, st.sampled_from([10**6, 10**3])), min_size=1, max_size=40))
def test_a_time_in_milliseconds_or_microseconds_is_exact(times: list[tuple[int, int]]) -> None:
    frames = [trade(at, "1", "1").replace(b"1710504000000", b"%d" % (ns // unit)) for at, (ns, unit) in enumerate(times)]
    found = [row["ts_ns"] for row in rows(normalized("binance", "spot", frames))["ticks"]]
    assert found == [ns - ns % unit for ns, unit in times]


@settings(max_examples=max(5, settings().max_examples // 100))
@given(st.lists(TIMES, min_size=50, max_size=100, unique=True))
def test_nanoseconds_come_back_from_the_lake_and_its_timestamps_agree_to_the_microsecond(times: list[int]) -> None:
    base = {"T": "t", "S": "AAPL", "p": 1.5, "s": 1, "x": "V"}
    times = [times[0] + at % 10**16 for at in times] if max(times) - min(times) > 10**17 else times
    times = sorted({min(time, LAST_S * NS_PER_S) for time in times})
    events = [{**base, "i": at, "t": rfc3339(ns, 9)} for at, ns in enumerate(times)]
    batch = normalized("alpaca", "sip", [msgspec.json.encode(events)]).batches[TICKS_TOPIC]
    with tempfile.TemporaryDirectory() as folder:
        Lake(Path(folder), identity).write(Chunk.dense(TICKS_TOPIC, 0, 0, batch.slice(0, 40)))
        with connect(Path(folder)) as db:
            found = db.execute("SELECT ts_ns, epoch_us(ts), date FROM ticks ORDER BY ts_ns").fetchall()
    assert [ns for ns, _, _ in found] == times[:40]
    for ns, us, date in found:
        assert us == ns // 1_000
        assert date == (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).date()
