"""A reject or a notice that is larger than the stream takes is kept in a shorter form, which says what is missing and where it is whole."""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames import normalized, raw_batch, rows
from made import NOON, rejects
from tapeline.providers.normalizing import normalize
from tapeline.providers.registry import DECODERS
from tapeline.providers.rules import LONGEST_TEXT
from tapeline.records import AMENDS, NOTICES, NOTICES_TOPIC, RAW_TOPIC, REJECTED, REJECTED_TOPIC, Chunk, Topic, amending
from tapeline.streams.codecs import arrow, protobuf
from tapeline.streams.shortening import TAKEN_EVERYWHERE, larger, length_before, shortened, sizes

MOST = 1024 * 1024
NOTICE: dict[str, Any] = {
    **dict.fromkeys(NOTICES.names, 0),
    "provider": "alpaca",
    "feed": "sip",
    "connection": "c",
    "kind": "control",
    "symbol": None,
    "ts_ns": NOON,
    "detail": "{}",
}


def rejected(*wanted: dict[str, Any]) -> pa.RecordBatch:
    made = rejects(len(wanted)).to_pylist()
    return pa.RecordBatch.from_pylist([one | some for one, some in zip(made, wanted, strict=True)], REJECTED)


def notices(*wanted: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([NOTICE | some for some in wanted], NOTICES)


def fits(topic: Topic, batch: pa.RecordBatch, most: int) -> bool:
    """Whether each row is a message that the stream takes, key and all, in both codecs."""
    for row in range(batch.num_rows):
        one = batch.slice(row, 1)
        key = len(one[topic.key][0].as_py().encode())
        if len(arrow.encode(one)) + key > most or len(protobuf.encode(topic, one)[0]) + key > most:
            return False
    return True


def test_a_reject_that_is_too_large_keeps_its_beginning_and_says_what_is_missing_and_where_it_is() -> None:
    payload = bytes(range(256)) * 5_000
    batch = rejected({}, {"payload": payload, "reason": "JSON: bad", "raw_partition": 3, "raw_offset": 77}, {"payload": b"z"})
    found = shortened(REJECTED_TOPIC, batch, MOST)
    assert fits(REJECTED_TOPIC, found, MOST)
    first, cut, last = found.to_pylist()
    assert (first, last) == (batch.to_pylist()[0], batch.to_pylist()[2])
    assert payload.startswith(cut["payload"])
    assert MOST * 0.99 < len(cut["payload"]) < MOST
    missing = len(payload) - len(cut["payload"])
    assert cut["reason"] == (
        f"JSON: bad (cut: {missing} of {len(payload)} bytes are left out; partition 3 of the raw topic has all of them at offset 77)"
    )
    assert length_before(cut["reason"]) == len(payload)
    assert {name: cut[name] for name in cut if name not in ("payload", "reason")} == {
        name: value for name, value in batch.to_pylist()[1].items() if name not in ("payload", "reason")
    }


@pytest.mark.parametrize("reason", ["x", "JSON: bad (cut: 3 of 4 bytes)", "event type 'x (cut: 1 of 2 bytes are left out'"])
def test_a_reason_of_an_event_that_is_whole_says_nothing_of_a_cut(reason: str) -> None:
    assert length_before(reason) is None


texts = st.text(max_size=40)
long = st.integers(0, 3 * MOST)


@given(st.lists(st.tuples(long, texts, texts), min_size=1, max_size=5), st.integers(MOST, 2 * MOST))
def test_whatever_the_sizes_every_row_fits_and_those_that_did_are_as_they_were(some: list[tuple[int, str, str]], most: int) -> None:
    batches = (
        (REJECTED_TOPIC, rejected(*({"payload": b"\xff" * n, "reason": a, "connection": b} for n, a, b in some))),
        (NOTICES_TOPIC, notices(*({"detail": "\x01" * (n // 2), "symbol": a, "connection": b} for n, a, b in some))),
    )
    for topic, batch in batches:
        found = shortened(topic, batch, most)
        assert found.num_rows == batch.num_rows
        assert fits(topic, found, most)
        for before, after in zip(batch.to_pylist(), found.to_pylist(), strict=True):
            if before != after:
                assert int(sizes(topic, pa.RecordBatch.from_pylist([before], topic.schema))[0]) > 0.99 * most
                assert topic is NOTICES_TOPIC or length_before(after["reason"]) == len(before["payload"])


def test_what_every_stream_takes_is_never_shortened() -> None:
    batch = rejected(*({"payload": b"x" * 300_000} for _ in range(10)), {"payload": b"x" * (TAKEN_EVERYWHERE - 4096)})
    assert not len(larger(REJECTED_TOPIC, batch, TAKEN_EVERYWHERE))
    assert shortened(REJECTED_TOPIC, batch, MOST).equals(batch)


def test_a_key_counts_twice() -> None:
    batch = rejected({"connection": "c" * (MOST * 2 // 3), "payload": b""})
    assert larger(REJECTED_TOPIC, batch, MOST).tolist() == [0]
    (found,) = shortened(REJECTED_TOPIC, batch, MOST).to_pylist()
    assert found["connection"] == "c" * 255 + "…"
    assert found["payload"] == b""


def test_a_notice_that_is_too_large_is_json_that_says_so_and_still_takes_back_its_trade() -> None:
    detail = amending('{"T":"c","z":"' + "é\x01" * MOST + '"}', "FINR", "465")
    batch = notices({"detail": detail, "kind": "correction", "raw_partition": 1, "raw_offset": 5})
    (found,) = shortened(NOTICES_TOPIC, batch, MOST).to_pylist()
    told = json.loads(found["detail"])
    assert told["cut"] == {"bytes": len(detail.encode()), "partition": 1, "offset": 5}
    assert detail.startswith(told["begin"])
    assert len(told["begin"]) > 50_000
    amends = re.search(AMENDS, found["detail"])
    assert amends is not None
    assert (amends["exchange"], amends["trade_id"]) == ("FINR", "465")


def test_a_notice_that_amends_nothing_does_not_after_it_was_cut() -> None:
    batch = notices({"detail": json.dumps({"x": "y" * 2 * MOST})})
    (found,) = shortened(NOTICES_TOPIC, batch, MOST).to_pylist()
    assert json.loads(found["detail"]).keys() == {"cut", "begin"}


def test_a_tick_whose_texts_no_stream_takes_is_a_reject() -> None:
    event = {"T": "t", "S": "AAPL", "i": 1, "x": "D", "p": 1.5, "s": 1, "c": ["@"], "t": "2021-02-22T15:51:44.208Z"}
    long = "X" * (LONGEST_TEXT + 1)
    events = [event, event | {"S": long}, event | {"c": [long]}, event | {"S": "X" * LONGEST_TEXT}, event | {"x": long}]
    found = rows(normalized("alpaca", "sip", [json.dumps([one]).encode() for one in events]))
    assert [row["raw_offset"] for row in found["ticks"]] == [0, 3]
    reasons = [row["reason"] for row in found["rejected"]]
    assert [reason.partition(" (")[0] for reason in reasons] == [
        f"{name} has more than {LONGEST_TEXT} bytes" for name in ("symbol", "conditions", "exchange")
    ]


def test_a_reason_is_short_however_long_the_value_at_fault_is() -> None:
    frame = json.dumps([{"T": "nothing" + "\x00" * 5_000}]).encode()
    result = normalize(Chunk.dense(RAW_TOPIC, 0, 0, raw_batch("alpaca", "sip", [frame])), DECODERS)
    (row,) = rows(result)["rejected"]
    assert row["reason"].startswith("unknown event type ('nothing")
    assert len(row["reason"]) <= 1_000
