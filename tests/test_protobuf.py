"""The messages on the wire are what proto/market_data.proto says: the protobuf library and Tapeline read what the other wrote."""

from __future__ import annotations

import math
import re
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from made import BAR, TRADE
from tapeline.records import BARS_TOPIC, NORMALIZED_TOPICS, NOTICES_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Topic
from tapeline.streams.codecs.protobuf import MESSAGES, TYPES, decode, encode, fields

ROOT = Path(__file__).parent.parent
TODAY = (ROOT / "proto" / "market_data.proto").read_text()
V1 = (ROOT / "tests" / "fixtures" / "market_data_v1.proto").read_text()
EACH_TOPIC = pytest.mark.parametrize("topic", NORMALIZED_TOPICS, ids=lambda topic: topic.name)


@cache
def compiled(text: str) -> dict[str, Any]:
    """What protoc makes of a .proto: its messages' classes by their names."""
    with TemporaryDirectory() as folder:
        source, made = Path(folder) / "market_data.proto", Path(folder) / "set"
        source.write_text(text)
        command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{folder}", f"--descriptor_set_out={made}", str(source)]
        subprocess.run(command, check=True)
        files = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(files.file[0])
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tapeline.v1.{message.name}"))
        for message in files.file[0].message_type
    }


def message_class(topic: Topic, text: str = TODAY) -> Any:
    return compiled(text)[MESSAGES[topic][0]]


def in_library(topic: Topic, row: dict[str, Any], text: str = TODAY) -> Any:
    """The library's message of a row."""
    return message_class(topic, text)(**{field.name: row[field.column] for field in fields(topic) if row[field.column] is not None})


def row_of(topic: Topic, message: Any) -> dict[str, Any]:
    """A row of the library's message."""
    return {
        field.column: None if column.nullable and not message.HasField(field.name) else getattr(message, field.name)
        for field in fields(topic)
        for column in [topic.schema.field(field.column)]
    }


def bits(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its floats as their bytes, so that NaN equals itself and -0.0 is not 0.0."""
    return {name: struct.pack("<d", value) if isinstance(value, float) else value for name, value in row.items()}


def rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    return [bits(row) for row in batch.to_pylist()]


FLOATS = st.one_of(st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324]), st.floats())
TEXTS = st.one_of(st.sampled_from(["", "AAPL", "BTC/USDT", "日本", "é" * 64, "x" * 127, "x" * 128, "y" * 20_000]), st.text(max_size=20))
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.float64(): FLOATS,
    pa.int64(): st.one_of(st.sampled_from([0, -1, 2**63 - 1, -(2**63)]), st.integers(-(2**63), 2**63 - 1)),
    pa.int32(): st.one_of(st.sampled_from([0, -1, 2**31 - 1, -(2**31)]), st.integers(-(2**31), 2**31 - 1)),
    pa.bool_(): st.booleans(),
    pa.string(): TEXTS,
    pa.binary(): st.one_of(st.sampled_from([b"", b"\xff\0", b"z" * 127, b"z" * 128, b"z" * 3_000_000]), st.binary(max_size=40)),
}


@cache
def a_row(topic: Topic) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {column.name: st.none() | VALUES[column.type] if column.nullable else VALUES[column.type] for column in topic.schema}
    ).map(lambda row: {name: without_sign(value) if not topic.schema.field(name).nullable else value for name, value in row.items()})


def without_sign(value: Any) -> Any:
    """-0.0 in a column that is never null is written as any zero: as nothing."""
    return 0.0 if value == 0.0 and isinstance(value, float) else value


@st.composite
def batches(draw: st.DrawFn, topic: Topic) -> pa.RecordBatch:
    """Any rows; now and then one column all null; now and then a slice of a longer batch."""
    made = draw(st.lists(a_row(topic), max_size=8))
    empty = draw(st.sets(st.sampled_from([column.name for column in topic.schema if column.nullable] or [""]), max_size=2))
    batch = pa.RecordBatch.from_pylist([{**row, **dict.fromkeys(empty & row.keys())} for row in made], topic.schema)
    return batch.slice(draw(st.integers(0, len(made))))


@EACH_TOPIC
@given(data=st.data())
def test_the_library_reads_what_encode_writes(topic: Topic, data: st.DataObject) -> None:
    batch = data.draw(batches(topic))
    messages = encode(topic, batch)
    assert all(type(message) is bytes for message in messages)
    read = [message_class(topic).FromString(message) for message in messages]
    assert [bits(row_of(topic, message)) for message in read] == rows(batch)
    assert not any(len(UnknownFieldSet(message)) for message in read)


@EACH_TOPIC
@given(data=st.data())
def test_decode_reads_what_the_library_writes(topic: Topic, data: st.DataObject) -> None:
    batch = data.draw(batches(topic))
    read = decode(topic, [in_library(topic, row).SerializeToString() for row in batch.to_pylist()])
    assert read.schema == topic.schema
    read.validate(full=True)
    assert rows(read) == rows(batch)


@EACH_TOPIC
@given(data=st.data())
def test_what_encode_writes_decode_reads(topic: Topic, data: st.DataObject) -> None:
    batch = data.draw(batches(topic))
    messages = encode(topic, batch)
    assert rows(decode(topic, messages)) == rows(batch)
    assert encode(topic, decode(topic, messages)) == messages


def test_thousands_of_rows_of_few_kinds() -> None:
    quote = {"kind": "quote", "last": None, "volume": None, "side": None, "trade_id": None, "bid": 1.0, "ask": 2.0, "latency_ns": None}
    made = [{**TRADE, "raw_offset": at, "trade_id": str(at), **(quote if at % 3 else {})} for at in range(10_000)]
    batch = pa.RecordBatch.from_pylist(made, TICKS_TOPIC.schema)
    messages = encode(TICKS_TOPIC, batch)
    assert decode(TICKS_TOPIC, messages).equals(batch)
    assert [row_of(TICKS_TOPIC, message_class(TICKS_TOPIC).FromString(message)) for message in messages] == made


# ---- any legal message


def varint(value: int, padding: int = 0) -> bytes:
    """A varint, with so many needless bytes."""
    written = bytearray()
    while value > 127 or padding > 0:
        padding -= value <= 127
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


#: The wire type of each .proto type.
WIRE = {"double": 1, "sfixed64": 1, "sfixed32": 5, "bool": 0, "string": 2, "bytes": 2}


@st.composite
def any_field(draw: st.DrawFn, topic: Topic) -> bytes:
    """One field: known or not, of its wire type or another, its numbers as long as they may be."""
    number = draw(st.sampled_from([*range(1, len(fields(topic)) + 1), 23, 99, 1000, 2**29 - 1]))
    right = WIRE[fields(topic)[number - 1].kind] if number <= len(fields(topic)) else 2
    wire = draw(st.sampled_from([right, right, right, 0, 1, 2, 5, 3]))
    tag = varint(number << 3 | wire, draw(st.integers(0, 1)) if number < 1 << 28 else 0)
    padding = draw(st.integers(0, 3))
    match wire:
        case 0:
            return tag + varint(draw(st.integers(0, 2**40)), padding)
        case 1:
            return tag + draw(st.binary(min_size=8, max_size=8))
        case 5:
            return tag + draw(st.binary(min_size=4, max_size=4))
        case 3:
            inside = draw(st.lists(any_field(topic), max_size=2))
            return tag + b"".join(inside) + varint(number << 3 | 4)
        case _:
            text = draw(st.text(max_size=30)).encode()
            return tag + varint(len(text), padding) + text


def assert_read_as_the_library_does(topic: Topic, message: bytes) -> None:
    wanted: list[dict[str, Any]] | None
    try:
        wanted = [bits(row_of(topic, message_class(topic).FromString(message)))]
    except DecodeError:
        wanted = None
    try:
        found = rows(decode(topic, [message]))
    except ValueError as error:
        found, why = None, str(error)
    if found != wanted:
        assert odd(message), (found, wanted)
        assert found is None or wanted is None
    if found is None:
        assert why.startswith("message 0: ")


def odd(message: bytes) -> bool:
    """Whether it holds a group, which proto3 does not have, or a number that no field can have. There libraries differ."""
    at = 0

    def number() -> int:
        nonlocal at
        value = 0
        for place in range(10):
            value |= (message[at] & 127) << 7 * place
            at += 1
            if message[at - 1] < 128:
                break
        return value

    try:
        while at < len(message):
            tag = number()
            if tag >> 3 >= 1 << 29:
                return True
            match tag & 7:
                case 3:
                    return True
                case 0:
                    number()
                case 2:
                    length = number()
                    at += length
                case wire:
                    at += 8 if wire == 1 else 4
    except IndexError:
        pass
    return False


@EACH_TOPIC
@given(data=st.data())
def test_fields_in_any_order_repeated_unknown_or_longer_than_need_be(topic: Topic, data: st.DataObject) -> None:
    written = data.draw(st.lists(st.lists(any_field(topic), max_size=12).map(b"".join), min_size=1, max_size=4))
    for message in written:
        message_class(topic).FromString(message)
        assert_read_as_the_library_does(topic, message)
    together = decode(topic, written)
    assert rows(together) == [row for message in written for row in rows(decode(topic, [message]))]


@EACH_TOPIC
@given(data=st.data())
def test_any_bytes_are_read_as_the_library_reads_them_or_refused_with_a_reason(topic: Topic, data: st.DataObject) -> None:
    assert_read_as_the_library_does(topic, data.draw(st.binary(max_size=60)))


@EACH_TOPIC
@given(data=st.data())
def test_a_damaged_message_is_read_as_the_library_reads_it_or_refused_with_a_reason(topic: Topic, data: st.DataObject) -> None:
    row = TRADE if topic is TICKS_TOPIC else BAR if topic is BARS_TOPIC else data.draw(a_row(topic))
    message = bytearray(encode(topic, pa.RecordBatch.from_pylist([row], topic.schema))[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(message), 200)))
        match data.draw(st.sampled_from(["change", "cut", "insert", "remove"])):
            case "change" if at < len(message):
                message[at] = data.draw(st.integers(0, 255))
            case "cut":
                del message[at:]
            case "insert":
                message[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case _:
                del message[at : at + 1]
    assert_read_as_the_library_does(topic, bytes(message))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"\0", "field number 0"),
        (b"\x0a", "EOF"),
        (b"\x0a\x05BTC", "EOF"),
        (b"\x11\1\2", "EOF"),
        (b"\x0a\x02\xc3\x28", "invalid UTF-8"),
        (b"\x0f", "wire type"),
        (b"\x0c", "end-group"),
        (b"\x0b", "EOF inside group"),
        (b"\x0b" * 5_000, "group"),
        (b"\xff" * 12, "varint too large"),
        (b"\x0a\xff\xff\xff\xff\x0f", "EOF"),
    ],
)
def test_what_is_no_message_is_named_with_its_place_and_the_reason(bad: bytes, why: str) -> None:
    good = encode(TICKS_TOPIC, pa.RecordBatch.from_pylist([TRADE], TICKS_TOPIC.schema))[0]
    with pytest.raises(ValueError, match=rf"^message 2: .*{re.escape(why)}"):
        decode(TICKS_TOPIC, [good, good, bad, good])


def test_a_message_never_borrows_from_its_neighbour() -> None:
    """Every cut of a message, before another one: what is missing is missing."""
    message = encode(TICKS_TOPIC, pa.RecordBatch.from_pylist([TRADE], TICKS_TOPIC.schema))[0]
    for cut in range(len(message) + 1):
        for start in (0, cut):
            pair = [message[start:cut], message[cut:]]
            try:
                wanted = [bits(row_of(TICKS_TOPIC, message_class(TICKS_TOPIC).FromString(part))) for part in pair]
            except DecodeError:
                with pytest.raises(ValueError, match=r"^message [01]: "):
                    decode(TICKS_TOPIC, pair)
            else:
                assert rows(decode(TICKS_TOPIC, pair)) == wanted


# ---- the .proto


def described(text: str) -> dict[str, dict[int, tuple[str, int, bool, bool]]]:
    """Message to number to (name, type, optional, repeated)."""
    return {
        name: {field.number: (field.name, field.type, field.has_presence, field.is_repeated) for field in made.DESCRIPTOR.fields}
        for name, made in compiled(text).items()
    }


def test_the_proto_has_a_field_of_the_right_type_for_every_column_and_no_other() -> None:
    kinds = {name: getattr(FieldDescriptor, f"TYPE_{name.upper()}") for name in TYPES.values()}
    wanted = {
        MESSAGES[topic][0]: {
            field.number: (field.name, kinds[TYPES[column.type]], column.nullable, False)
            for field in fields(topic)
            for column in [topic.schema.field(field.column)]
        }
        for topic in NORMALIZED_TOPICS
    }
    assert described(TODAY) == wanted
    for topic in NORMALIZED_TOPICS:
        assert sorted(MESSAGES[topic][1]) == sorted(topic.schema.names)


def test_the_engine_s_own_fields_come_first() -> None:
    first = {number: name for number, (name, *_) in described(TODAY)["MarketData"].items() if number <= 6}
    assert first == {1: "symbol", 2: "timestamp_ns", 3: "bid", 4: "ask", 5: "last_price", 6: "volume"}


def broken(old: str, new: str) -> list[str]:
    """What a reader of the old .proto would misread in messages of the new one."""
    found = []
    after = described(new)
    for message, before in described(old).items():
        now = after.get(message, {})
        found += [f"{message}.{before[number][0]} is gone" for number in before.keys() - now.keys()]
        found += [f"{message}.{before[n][0]} became {now[n]}" for n in before.keys() & now.keys() if before[n] != now[n]]
        found += [f"{message}.{now[n][0]} is new and not optional" for n in now.keys() - before.keys() if not now[n][2]]
    return found


def test_no_field_of_the_first_version_was_removed_renumbered_renamed_or_retyped() -> None:
    assert broken(V1, TODAY) == []


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("  optional double bid = 3;", ""),
        ("  optional double bid = 3;", "  optional double bid = 23;"),
        ("  optional double bid = 3;", "  optional float bid = 3;"),
        ("  optional double bid = 3;", "  optional double best_bid = 3;"),
        ("  optional double bid = 3;", "  double bid = 3;"),
        ("  optional double bid = 3;", "  optional double bid = 3; double more = 23;"),
    ],
)
def test_a_change_that_breaks_readers_is_found(line: str, instead: str) -> None:
    assert line in V1
    assert broken(V1, V1.replace(line, instead))


# ---- writers and readers of different age

#: A later version: more fields at the end of each message, one of each kind that a later version may think of.
ADDED = """
  optional string note = 901;
  optional int64 small = 902;
  repeated double levels = 903;
  message Inner { optional string deep = 1; }
  optional Inner inner = 904;
  map<string, sfixed64> counts = 905;
"""
LATER = re.sub(r"(?m)^(message \w+ \{)$", rf"\1{ADDED}", V1)


def in_later_library(topic: Topic, row: dict[str, Any]) -> Any:
    message = in_library(topic, row, LATER)
    message.note, message.small = "later", -1
    message.levels.extend([1.0, 2.0])
    message.inner.deep = "x" * 200
    message.counts["a"] = 1
    return message


@EACH_TOPIC
@given(data=st.data())
def test_an_old_reader_reads_a_new_writer(topic: Topic, data: st.DataObject) -> None:
    row = data.draw(a_row(topic))
    message = in_later_library(topic, row).SerializeToString()
    assert bits(row_of(topic, message_class(topic, V1).FromString(message))) == bits(row)
    assert rows(decode(topic, [message, b"", message]))[::2] == [bits(row), bits(row)]


@EACH_TOPIC
@given(data=st.data())
def test_a_new_reader_reads_an_old_writer(topic: Topic, data: st.DataObject) -> None:
    row = data.draw(a_row(topic))
    batch = pa.RecordBatch.from_pylist([row], topic.schema)
    for message in (in_library(topic, row, V1).SerializeToString(), *encode(topic, batch)):
        later = message_class(topic, LATER).FromString(message)
        assert bits(row_of(topic, later)) == bits(row)
        assert not later.HasField("note")
        assert not later.HasField("inner")


@EACH_TOPIC
@given(data=st.data())
def test_decode_gives_null_for_fields_that_an_older_writer_did_not_know(topic: Topic, data: st.DataObject) -> None:
    optional = [column.name for column in topic.schema if column.nullable]
    missing = data.draw(st.sets(st.sampled_from(optional))) if optional else set()
    younger = {field.name for field in fields(topic) if field.column in missing}
    older_proto = "\n".join(
        line for line in V1.splitlines() if not (found := re.match(r"  optional \w+ (\w+) = ", line)) or found[1] not in younger
    )
    row = {**data.draw(a_row(topic)), **dict.fromkeys(missing)}
    older = message_class(topic, older_proto)
    message = older(**{f.name: row[f.column] for f in fields(topic) if row[f.column] is not None}).SerializeToString()
    assert rows(decode(topic, [message])) == [bits(row)]


@EACH_TOPIC
def test_messages_of_today_and_later_are_read_beside_each_other(topic: Topic) -> None:
    values = {pa.string(): "é" * 200, pa.binary(): b"\xff" * 20_000, pa.bool_(): True}
    full = {column.name: values.get(column.type, -1) for column in topic.schema}
    bare = {**full, **{column.name: None for column in topic.schema if column.nullable}}
    made = [full, bare, full]
    later = [in_later_library(topic, row).SerializeToString() for row in made]
    today = [in_library(topic, row).SerializeToString() for row in made]
    ours = encode(topic, pa.RecordBatch.from_pylist(made, topic.schema))
    assert decode(topic, [*later, *today, *ours]).to_pylist() == made * 3


def test_an_empty_message_is_a_row_of_nulls_and_zeros() -> None:
    for topic in (TICKS_TOPIC, BARS_TOPIC, NOTICES_TOPIC, REJECTED_TOPIC):
        assert rows(decode(topic, [b""])) == [bits(row_of(topic, message_class(topic)()))]


# ---- the page about it


def test_protoc_shows_a_message_as_the_page_says() -> None:
    shown = (ROOT / "docs" / "protobuf.md").read_text().split("```text\n")[1].split("```")[0]
    proto = ROOT / "proto"
    command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{proto}"]
    name = ["tapeline.v1.MarketData", "market_data.proto"]
    written = subprocess.run([*command, "--encode", *name], input=shown.encode(), capture_output=True, check=True).stdout
    batch = decode(TICKS_TOPIC, [written])
    tick = batch.to_pylist()[0]
    assert tick["received_ns"] - tick["ts_ns"] == tick["latency_ns"]
    ours = encode(TICKS_TOPIC, batch)[0]
    read = subprocess.run([*command, "--decode", *name], input=ours, capture_output=True, check=True).stdout.decode()
    assert shown == read


def test_the_page_s_rule_for_repeats_drops_repeats_and_nothing_else() -> None:
    page = (ROOT / "docs" / "engine.md").read_text()
    known: dict[str, Any] = {}
    exec(next(block for block in page.split("```python\n") if block.startswith("def is_new")).split("```")[0], known)
    places = [(0, 1, 0), (0, 1, 1), (1, 0, 0), (0, 2, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0), (1, 3, 0)]
    messages = [
        in_library(TICKS_TOPIC, {**TRADE, "raw_partition": part, "raw_offset": offset, "raw_index": index})
        for part, offset, index in places
    ]
    kept = [place for place, message in zip(places, messages, strict=True) if known["is_new"](0, message)]
    assert kept == list(dict.fromkeys(places))
