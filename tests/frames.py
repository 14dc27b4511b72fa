"""Frames of every provider, good and mutated, and what normalizing them gives, in a form that is compared byte by byte."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from tapeline.providers.normalizing import Count, Normalized, normalize
from tapeline.providers.registry import CHANNELS, DECODERS
from tapeline.records import NORMALIZED_TOPICS, RAW, RAW_TOPIC, Chunk

FIXTURES = Path(__file__).parent / "fixtures"
#: Every feed, and one of each way of speaking.
FEEDS = [(provider, feed) for provider, feeds in CHANNELS.items() for feed in feeds]
VOICES = [pair for pair in FEEDS if pair[1] not in ("iex", "delayed_sip", "test", "indicative")]
#: Feeds without golden frames of their own speak like this one.
_SPEAKS_LIKE = {"opra": "indicative", "iex": "sip", "delayed_sip": "sip", "test": "sip"}
RECEIVED_NS = 1_672_515_782_143_218_540


def golden(provider: str, feed: str, *, bad: bool = True) -> list[bytes]:
    """The golden frames of a feed; without the bad ones where so asked."""
    folders = {FIXTURES / provider / feed, FIXTURES / provider / _SPEAKS_LIKE.get(feed, feed)}
    found = sorted(path for folder in folders for path in folder.glob("*.frame"))
    broken = ("bad_", "truncated", "not_utf8", "unknown_", "empty", "no_events")
    return [path.read_bytes() for path in found if bad or not path.name.startswith(broken)]


def raw_batch(provider: str, feed: str, frames: Sequence[bytes], kind: str = "frame", received_ns: int = RECEIVED_NS) -> pa.RecordBatch:
    """The raw records of some frames."""
    n = len(frames)
    columns = [pa.array([text] * n, pa.string()) for text in (provider, feed, "c1", kind)]
    return pa.record_batch([*columns, pa.array([received_ns] * n, pa.int64()), pa.array(frames, pa.binary())], schema=RAW)


def normalized(provider: str, feed: str, frames: Sequence[bytes], first: int = 0) -> Normalized:
    return normalize(Chunk.dense(RAW_TOPIC, 0, first, raw_batch(provider, feed, frames)), DECODERS)


Rows = dict[str, list[dict[str, Any]]]


def rows(result: Normalized) -> Rows:
    """The rows of each table."""
    return {topic.table: result.batches[topic].to_pylist() for topic in NORMALIZED_TOPICS}


def exact(results: Sequence[Normalized]) -> dict[str, list[str]]:
    """The output of consecutive raw batches, joined, with every value written out: equal only where every bit of every value is."""
    return {
        topic.table: [repr(row) for result in results for row in result.batches[topic].cast(topic.schema).to_pylist()]
        for topic in NORMALIZED_TOPICS
    }


def total(results: Sequence[Normalized]) -> Count:
    """The accounting of some results together."""
    return sum((count for result in results for count in result.counts.values()), Count())


# What may be wrong with a frame.

#: JSON texts to stand where a value stood.
NASTY_JSON = [
    *(b"null", b"true", b"NaN", b"Infinity", b"-Infinity", b"-1", b"0", b"-0.0", b"1e999", b"-1e999", b"1e308", b"5e-324", b"1.5"),
    *(b'"x"', b'""', b'"NaN"', b'"inf"', b'"-inf"', b'"-1"', b'"0"', b'"-0"', b'"1e400"', b'"1_000"', b'" 1 "', b'"0x1p3"', b'"+1"'),
    *(b'"1e-400"', b'"99999999999999999999999999"', b'"\\ud800"', b'"\\u0000"', b'"\xff"', b'"2021-02-29T00:00:00Z"'),
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"18446744073709551616", b"9" * 400),
    *(b"[]", b"{}", b"[[[[]]]]", b"[1,2", b'{"a":', b'"2262-04-12T00:00:00Z"', b'"2606-01-01T00:00:00Z"', b"253402300800000"),
]
#: The same for msgpack.
NASTY_VALUES: list[object] = [
    *(None, True, -1, 0, -0.0, 1e308, float("nan"), float("inf"), 1.5, "x", "", "-1", 2**63 - 1, 2**63, -(2**63), 2**64 - 1),
    *([], {}, [[[[]]]], b"bytes", [Ext(5, b"1")], {"a": Ext(7, b"123456789")}, {1: 2}, {1.5: None}, [Ext(-1, b"12345")]),
    *(
        Ext(-1, b"\0\0\0\0"),
        Ext(-1, b"\xff" * 8),
        Ext(-1, b"\x7f" * 12),
        Ext(-1, b"\xff" * 12),
        Ext(-1, b""),
        Ext(-1, b"123"),
        Ext(5, b"1"),
    ),
]
_VALUE = re.compile(rb'(?<=[:\[,])("(?:[^"\\]|\\.)*"|-?[0-9.eE+-]+|true|false|null)(?=[,\]}])')
_PAIR = re.compile(rb'"[^"]*":("[^"]*"|-?[0-9.]+|true|false|null)')


def _replaced(frame: bytes, at: int, token: bytes) -> bytes:
    found = list(_VALUE.finditer(frame))
    if not found:
        return frame + token
    match = found[at % len(found)]
    return frame[: match.start()] + token + frame[match.end() :]


def _twice(frame: bytes, at: int, token: bytes) -> bytes:
    """A key twice, with another value the second time."""
    found = list(_PAIR.finditer(frame))
    if not found:
        return frame + frame
    pair = found[at % len(found)]
    name = pair.group().partition(b":")[0]
    return frame[: pair.end()] + b"," + name + b":" + token + frame[pair.end() :]


def _flipped(frame: bytes, at: int, token: bytes) -> bytes:
    if not frame:
        return token
    at %= len(frame) * 8
    return frame[: at // 8] + bytes([frame[at // 8] ^ (1 << at % 8)]) + frame[at // 8 + 1 :]


def _truncated(frame: bytes, at: int, token: bytes) -> bytes:
    return frame[: at % (len(frame) + 1)]


def _inserted(frame: bytes, at: int, token: bytes) -> bytes:
    at %= len(frame) + 1
    return frame[:at] + token + frame[at:]


def _deleted(frame: bytes, at: int, token: bytes) -> bytes:
    at %= len(frame) + 1
    return frame[:at] + frame[at + 1 + len(token) % 7 :]


def _dressed(frame: bytes, at: int, token: bytes) -> bytes:
    """A byte order mark, blanks, newlines, another value, more brackets."""
    dress: list[Callable[[], bytes]] = [
        lambda: b"\xef\xbb\xbf" + frame,
        lambda: b" \n\t" + frame + b"\n",
        lambda: frame.replace(b",", b",\n"),
        lambda: frame.replace(b":", b" : "),
        lambda: frame + frame,
        lambda: frame + b"\n" + token,
        lambda: b"[" + frame + b"]",
        lambda: b"[" + token + b"," + frame[1:],
        lambda: frame[:-1] + b"," + token + b"]",
        lambda: frame + b"\0",
        lambda: b'{"stream":"btcusdt@trade","data":' + frame + b"}",
        lambda: b"",
    ]
    return dress[at % len(dress)]()


_MUTATIONS: list[Callable[[bytes, int, bytes], bytes]] = [_replaced, _replaced, _twice, _flipped, _truncated, _inserted, _deleted, _dressed]


def _rebuilt(frame: bytes, at: int, value: object) -> bytes:
    """A msgpack frame with another value in one field of one event, or one field more."""
    try:
        events: list[dict[str, Any]] = msgspec.msgpack.decode(frame, type=list[dict[str, Any]], ext_hook=None)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        return frame + msgspec.msgpack.encode(value)
    places = [(event, name) for event in events for name in (*event, "more")]
    if not places:
        return msgspec.msgpack.encode([value])
    event, name = places[at % len(places)]
    event[name] = value
    return msgspec.msgpack.encode(events)


_PLACE = st.integers(0, 4095)


def spoiled(good: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Some JSON with something wrong with it, once or twice over."""
    step = st.tuples(st.sampled_from(_MUTATIONS), _PLACE, st.sampled_from(NASTY_JSON))

    def broken(parts: tuple[bytes, list[tuple[Callable[[bytes, int, bytes], bytes], int, bytes]]]) -> bytes:
        frame, steps = parts
        for change, at, token in steps:
            frame = change(frame, at, token)
        return frame

    return st.tuples(st.sampled_from(good), st.lists(step, min_size=1, max_size=2)).map(broken)


def mutated(provider: str, feed: str) -> st.SearchStrategy[bytes]:
    """Golden frames with something wrong with them, once or twice over."""
    changed = spoiled(golden(provider, feed))
    packed = [frame for frame in golden(provider, feed) if frame[:1] > b"\x7f"]
    if not packed:
        return changed
    rebuilt = st.tuples(st.sampled_from(packed), _PLACE, st.sampled_from(NASTY_VALUES)).map(lambda parts: _rebuilt(*parts))
    return changed | rebuilt


_LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
_TREES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8
)


def anything() -> st.SearchStrategy[bytes]:
    """Any bytes at all, any text, any JSON, any msgpack."""
    return (
        st.binary(max_size=60) | st.text(max_size=30).map(str.encode) | _TREES.map(msgspec.json.encode) | _TREES.map(msgspec.msgpack.encode)
    )
