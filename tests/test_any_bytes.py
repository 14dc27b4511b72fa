"""Whatever bytes arrive, normalizing never raises, every event is accounted for, and the frames around are unharmed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames import FEEDS, RECEIVED_NS, VOICES, anything, exact, golden, mutated, normalized, raw_batch, rows, total
from tapeline.providers.normalizing import Normalized, normalize
from tapeline.providers.registry import DECODERS
from tapeline.records import RAW_TOPIC, REJECTED_TOPIC, Chunk

EACH_FEED = pytest.mark.parametrize(("provider", "feed"), FEEDS)
EACH_VOICE = pytest.mark.parametrize(("provider", "feed"), VOICES)


def pieces(provider: str, feed: str, frames: Sequence[bytes], cuts: Sequence[int]) -> list[Normalized]:
    """The same raw records in several batches."""
    places = sorted({0, len(frames), *(cut % (len(frames) + 1) for cut in cuts)})
    return [normalized(provider, feed, frames[start:end], start) for start, end in pairwise(places)]


def assert_accounted(provider: str, feed: str, frames: Sequence[bytes], cuts: Sequence[int] = ()) -> None:
    """Each frame gives in company what it gives alone, in the same order; in = out; a reject has a reason and its event's bytes."""
    whole = normalized(provider, feed, frames)
    alone = [normalized(provider, feed, [frame], at) for at, frame in enumerate(frames)]
    assert exact([whole]) == exact(alone)
    assert exact([whole]) == exact(pieces(provider, feed, frames, cuts))
    found = rows(whole)
    count = whole.counts[provider, feed]
    assert count == total(alone)
    assert count.records == len(frames)
    assert count.seen == sum(map(len, found.values())) == count.ticks + count.bars + count.notices + count.rejected
    for table in found.values():
        places = [(row["raw_offset"], row["raw_index"]) for row in table]
        assert places == sorted(set(places))
    for reject in found["rejected"]:
        frame = frames[reject["raw_offset"]]
        assert reject["reason"]
        assert reject["payload"] == frame or reject["payload"] == elements(frame)[reject["raw_index"]]
        assert reject["received_ns"] == RECEIVED_NS


def elements(frame: bytes) -> list[bytes]:
    """The bytes of each element of an array frame."""
    decode = msgspec.msgpack.decode if frame[:1] > b"\x7f" else msgspec.json.decode
    return [bytes(raw) for raw in decode(frame, type=list[msgspec.Raw])]


@EACH_VOICE
@given(data=st.data())
def test_a_batch_of_good_and_mutated_frames_gives_what_each_frame_gives_alone(provider: str, feed: str, data: st.DataObject) -> None:
    good = st.sampled_from(golden(provider, feed))
    frames = data.draw(st.lists(good | mutated(provider, feed) | mutated(provider, feed), min_size=1, max_size=8), "frames")
    assert_accounted(provider, feed, frames, data.draw(st.lists(st.integers(0, 8), max_size=2), "cuts"))


@EACH_VOICE
@given(data=st.data())
def test_any_bytes_at_all_are_accounted_for(provider: str, feed: str, data: st.DataObject) -> None:
    good = st.sampled_from(golden(provider, feed, bad=False))
    frames = data.draw(st.lists(good | anything() | anything(), min_size=1, max_size=6), "frames")
    assert_accounted(provider, feed, frames)


@pytest.mark.parametrize("provider", ["binance", "polygon", "alpaca", "nobody"])
@given(frames=st.lists(anything(), min_size=1, max_size=4))
def test_a_feed_or_a_provider_that_nobody_knows_is_rejected_frame_by_frame(provider: str, frames: list[bytes]) -> None:
    feed = "spot" if provider == "nobody" else "carrier-pigeon"
    if provider == "binance":  # has one feed, and does not look at its name
        feed, frames = "spot", [b"\x01" + frame for frame in frames]
    result = normalized(provider, feed, frames)
    assert [row["payload"] for row in rows(result)["rejected"]] == frames
    assert result.counts[provider, feed].seen == len(frames)


WRECKS = {
    "nothing": b"",
    "a zero byte": b"\0",
    "noise": bytes(range(256)),
    "a byte order mark": b"\xef\xbb\xbf[]",
    "an open bracket": b"[",
    "an open string": b'[{"ev":"T","T":"t","sym":"A',
    "a number": b"1",
    "a text": b'"trade"',
    "not a number": b"NaN",
    "two values": b"[][]",
    "a newline amid": b'{"stream":"btcusdt@trade\n","data":{}}',
    "half a character": b'{"e":"\xc3',
    "UTF-16": '[{"ev":"T"}]'.encode("utf-16"),
    "deep arrays": b"[" * 200_000,
    "deep arrays that end": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "deep data": b'{"stream":"btcusdt@trade","data":' + b"[" * 200_000,
    "deep event": b'[{"ev":"T","T":"t","sym":' + b"[" * 200_000,
    "deep msgpack": b"\x91" * 200_000,
    "deep msgpack event": b"\x91\x82\xa1T\xa1t\xa1S" + b"\x91" * 200_000,
    "a msgpack array that is too short": b"\xdd\xff\xff\xff\xff",
    "a msgpack map that is too short": b"\x91\xdf\xff\xff\xff\xff",
    "a msgpack text that is too short": b"\x91\x81\xa1T\xdb\xff\xff\xff\xff",
    "a reserved msgpack byte": b"\xc1",
    "blanks": b" " * 100,
}


@pytest.mark.parametrize(
    ("provider", "feed", "wreck"),
    [(*voice, name) for voice in VOICES for name in WRECKS],
)
def test_a_frame_that_cannot_be_read_is_one_reject_and_its_neighbors_are_whole(provider: str, feed: str, wreck: str) -> None:
    good = golden(provider, feed, bad=False)
    frames = [good[0], WRECKS[wreck], *good[1:]]
    assert_accounted(provider, feed, frames)
    rejected = [row for row in rows(normalized(provider, feed, frames))["rejected"] if row["raw_offset"] == 1]
    assert [(row["payload"], row["raw_index"], row["provider"], row["feed"], row["connection"]) for row in rejected] == [
        (WRECKS[wreck], 0, provider, feed, "c1")
    ]


@EACH_VOICE
def test_a_frame_of_10_mb_is_read_whole_or_rejected_whole(provider: str, feed: str) -> None:
    good = golden(provider, feed, bad=False)
    size = 10_000_000
    padded = [frame[:-1] + b" " * size + frame[-1:] for frame in good[:2] if frame[:1] <= b"\x7f"]
    frames = [good[0], *padded, b"\x00" * size, good[1][:-1] + b"\xc1" * size]
    found = rows(normalized(provider, feed, frames))
    first = len(padded) + 1
    assert {row["raw_offset"]: row["payload"] for row in found["rejected"]} == {first: frames[first], first + 1: frames[first + 1]}
    for at, frame in enumerate(padded, 1):
        strip = [{**row, "raw_offset": 0, "detail": ""} for table in found.values() for row in table if row["raw_offset"] == at]
        want = rows(normalized(provider, feed, [frame.replace(b" " * size, b"")]))
        assert strip == [{**row, "detail": ""} for table in want.values() for row in table]


MANY = 4_000
CROWDS = {
    ("polygon", "bad prices"): b'{"ev":"T","sym":"A","x":4,"p":-1,"s":1,"t":1536036818784}',
    ("polygon", "bad types"): b'{"ev":"T","sym":"A","x":4,"p":[],"s":1,"t":1536036818784}',
    ("polygon", "statuses"): b'{"ev":"status","status":"success","message":"subscribed to: T.A"}',
    ("alpaca", "bad prices"): b'{"T":"t","S":"A","p":-1,"s":1,"t":"2021-02-22T15:51:44.208Z"}',
    ("alpaca", "bad times"): b'{"T":"t","S":"A","p":1,"s":1,"t":"yesterday"}',
    ("alpaca", "halts"): b'{"T":"s","S":"A","sc":"H","t":"2021-02-22T19:15:00Z"}',
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("provider", "crowd"), CROWDS)
def test_a_frame_of_thousands_of_rejects_or_notices_takes_time_in_proportion(provider: str, crowd: str) -> None:
    event = CROWDS[provider, crowd]
    frame = b"[" + b",".join([event] * MANY) + b"]"
    found = rows(normalized(provider, "stocks" if provider == "polygon" else "sip", [frame]))
    odd = [row.get("payload") or row["detail"].encode() for row in found["rejected"] + found["notices"]]
    assert odd == [event] * MANY


@EACH_FEED
def test_records_of_a_kind_that_nobody_knows_are_rejected(provider: str, feed: str) -> None:
    result = normalize(Chunk.dense(RAW_TOPIC, 3, 7, raw_batch(provider, feed, [b"x", b"y"], kind="rumor")), DECODERS)
    rejected = result.batches[REJECTED_TOPIC].to_pylist()
    assert [(row["payload"], row["raw_partition"], row["raw_offset"]) for row in rejected] == [(b"x", 3, 7), (b"y", 3, 8)]
    assert all("rumor" in row["reason"] for row in rejected)


@EACH_FEED
@given(payload=st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_any_bytes_as_the_record_of_an_opening_or_a_close_are_a_notice(provider: str, feed: str, payload: bytes) -> None:
    for kind in ("opened", "subscribed", "closed"):
        result = normalize(Chunk.dense(RAW_TOPIC, 0, 0, raw_batch(provider, feed, [payload], kind=kind)), DECODERS)
        (notice,) = rows(result)["notices"]
        assert (notice["kind"], notice["ts_ns"], notice["detail"]) == (kind, RECEIVED_NS, payload.decode("utf-8", "replace"))


@EACH_VOICE
def test_the_feeds_of_a_batch_do_not_disturb_one_another(provider: str, feed: str) -> None:
    mixed = [(p, f, frame) for p, f in FEEDS for frame in golden(p, f)[:9]]
    mixed = mixed[::3] + mixed[1::3] + mixed[2::3]
    together = normalize(Chunk.dense(RAW_TOPIC, 0, 0, pa.concat_batches([raw_batch(p, f, [frame]) for p, f, frame in mixed])), DECODERS)
    alone = [normalized(p, f, [frame], at) for at, (p, f, frame) in enumerate(mixed)]
    assert exact([together]) == exact(alone)
    mine = [one for one, (p, f, _) in zip(alone, mixed, strict=True) if (p, f) == (provider, feed)]
    assert together.counts[provider, feed] == total(mine)


@given(st.data())
def test_the_order_of_the_keys_and_blanks_between_them_change_nothing_but_the_details(data: st.DataObject) -> None:
    provider, feed = data.draw(st.sampled_from([pair for pair in FEEDS if pair[1] not in ("opra", "indicative")]))
    frame = data.draw(st.sampled_from([frame for frame in golden(provider, feed, bad=False) if frame[:1] <= b"\x7f"]))
    parsed = json.loads(frame)
    spaced = json.dumps(parsed, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=data.draw(st.booleans())).encode()
    unlike = ("detail", "payload")
    strip = [
        [{**row, **dict.fromkeys(unlike)} for table in rows(normalized(provider, feed, [one])).values() for row in table]
        for one in (frame, spaced)
    ]
    assert strip[0] == strip[1]


TRADE = b'"data":{"e":"trade","E":1672515782136,"s":"BTCUSDT","t":12345,"p":"0.001","q":"100","T":1672515782136,"m":true,"M":true}}'


@pytest.mark.parametrize(
    "lookalike",
    [
        b'{"strEAM":"btcusdt@trade",' + TRADE,
        b'["stream","btcusdt@trade",' + TRADE,
        b'{"stream":"btcusdt@trade","stream":"btcusdt@depth",' + TRADE,
        b'{"stream":"btcusdt@trade","stream":7,' + TRADE,
        b'{"stream":"btcusdt@trade","e":7,' + TRADE,
        b'{"stream":"btcusdt@trade","E":"x",' + TRADE,
        b'{"stream":"btcusdt@trade","data":{},' + TRADE,
        b'{"stream":"btcusdt@tra\\u0064e",' + TRADE,
    ],
)
def test_a_binance_frame_that_looks_like_the_one_before_it_gives_what_it_gives_alone(lookalike: bytes) -> None:
    good = b'{"stream":"btcusdt@trade",' + TRADE
    assert_accounted("binance", "spot", [good, lookalike, good, lookalike])
