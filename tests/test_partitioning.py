"""A key's partition is the one that Kafka's own clients choose, and splitting a batch keeps the order of each key."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from made import ticks
from tapeline.records import RAW_TOPIC, TICKS, TICKS_TOPIC
from tapeline.streams.partitioning import partition_of, partitions_of, split

#: From Kafka's own tests (org.apache.kafka.common.utils.UtilsTest), as Java's signed integers.
KNOWN = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}
SYMBOLS = ["BTC/USDT", "ETH/USDT", "AAPL", "SPY251219C00650000", "币安/USDT", "", "X"]


@pytest.mark.parametrize("key", KNOWN)
def test_the_hash_of_a_key_is_kafka_s(key: str) -> None:
    without_sign = KNOWN[key] & 0x7FFFFFFF
    assert partition_of(key, 1 << 31) == without_sign
    assert [partition_of(key, partitions) for partitions in (1, 3, 4, 7, 1024)] == [without_sign % n for n in (1, 3, 4, 7, 1024)]


@given(st.lists(st.sampled_from(SYMBOLS)), st.integers(1, 9))
def test_splitting_loses_nothing_and_keeps_the_order_within_each_partition(symbols: list[str], partitions: int) -> None:
    batch = ticks(*[{"symbol": symbol, "sequence": at} for at, symbol in enumerate(symbols)])
    parts = list(split(TICKS_TOPIC, batch, partitions))
    assert len({partition for partition, _ in parts}) == len(parts)
    assert sorted(number for _, part in parts for number in part["sequence"].to_pylist()) == list(range(len(symbols)))
    for partition, part in parts:
        assert part.num_rows
        assert part["sequence"].to_pylist() == sorted(part["sequence"].to_pylist())
        assert {partition_of(symbol, partitions) for symbol in part["symbol"].to_pylist()} == {partition}
        rows = {row["sequence"]: row for row in batch.to_pylist()}
        assert part.to_pylist() == [rows[number] for number in part["sequence"].to_pylist()]


def test_the_partitions_of_a_batch_are_those_of_its_keys_and_a_slice_has_its_own() -> None:
    batch = ticks(*[{"symbol": symbol} for symbol in SYMBOLS])
    wanted = [partition_of(symbol, 4) for symbol in SYMBOLS]
    assert len(set(wanted)) > 1
    assert partitions_of(TICKS_TOPIC, batch, 4).tolist() == wanted
    assert partitions_of(TICKS_TOPIC, batch.slice(2, 3), 4).tolist() == wanted[2:5]
    assert partitions_of(TICKS_TOPIC, batch, 1).tolist() == [0] * len(SYMBOLS)


def test_a_batch_of_nothing_has_no_parts() -> None:
    assert list(split(TICKS_TOPIC, pa.RecordBatch.from_pylist([], TICKS), 4)) == []
    assert RAW_TOPIC.key == "connection"
