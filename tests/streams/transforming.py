"""A stage in small: what it makes of raw records, and what a stream must hold when it has made that of all of them exactly once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pyarrow as pa
from places import by_partition, everything

from made import bars, raws, rejects, ticks
from tapeline.errors import Unavailable
from tapeline.records import BARS_TOPIC, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tapeline.streams import Outputs, Stream, Totals


def transformed(chunk: Chunk) -> tuple[Outputs, Totals]:
    """Of every record a tick, of every third a bar, of every fifth a reject; the record's number is in each."""
    numbers = [int(payload.split()[0]) for payload in chunk.batch["payload"].to_pylist()]
    made, bar, rejected = _made(list(zip(chunk.partition.tolist(), numbers, strict=True)))
    outputs = [(TICKS_TOPIC, made), (BARS_TOPIC, bar), (REJECTED_TOPIC, rejected)]
    return outputs, {"in": len(numbers), "ticks": made.num_rows, "bars": bar.num_rows, "rejected": rejected.num_rows}


def _made(places: list[tuple[int, int]]) -> tuple[pa.RecordBatch, pa.RecordBatch, pa.RecordBatch]:
    made = ticks(*[{"symbol": symbol(p, n), "sequence": n, "raw_partition": p} for p, n in places])
    bar = bars(*[{"symbol": symbol(p, n), "trades": n, "raw_partition": p} for p, n in places if n % 3 == 0])
    fifth = [n for _, n in places if n % 5 == 0]
    rejected = rejects(len(fifth))
    offset = rejected.schema.get_field_index("raw_offset")
    return made, bar, rejected.set_column(offset, rejected.schema.field(offset), pa.array(fifth, pa.int64()))


def symbol(partition: int, number: int) -> str:
    """All records of a symbol come from one raw partition, so their order must hold to the end."""
    return f"P{partition}/{number % 7}"


class Flow:
    """Raw records that are written, and the check that everything was made of them once."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self.count = stream, 0
        self._behind: Mapping[int, int] | Unavailable = {}

    def write(self, count: int, in_batches_of: int = 10) -> None:
        """Some more, over all partitions."""
        for first in range(self.count, self.count + count, in_batches_of):
            rows = min(in_batches_of, self.count + count - first)
            self._stream.append(RAW_TOPIC, raws(first, rows), first // in_batches_of % self._stream.partitions)
        self.count += count

    def arrived(self, number: int) -> bool:
        """Whether a record that may or may not have been written is there; it then counts."""
        found = any(b"%d " % number in chunk.batch["payload"].to_pylist() for chunk in everything(self._stream, RAW_TOPIC))
        self.count += found
        return found

    def done(self) -> bool:
        """Whether the group is behind all of it."""
        try:
            lag = self._stream.lag(RAW_TOPIC, self._stream.positions("normalize", RAW_TOPIC))
        except Unavailable as error:
            self._behind = error
            return False
        self._behind = lag
        return not any(lag.values())

    def settle(self) -> None:
        try:
            until(self.done, "the group comes to the end of the raw topic")
        except AssertionError as late:
            raise AssertionError(f"{late}: {self._behind}") from None

    def check(self) -> list[tuple[int, int, int]]:
        """Outputs, totals and positions are those of every record, once; the ticks as partition, offset and number."""
        raw = by_partition(everything(self._stream, RAW_TOPIC), "payload")
        places = [(partition, int(payload.split()[0])) for partition, payloads in raw.items() for payload in payloads]
        assert sorted(number for _, number in places) == list(range(self.count)), "the raw topic itself"
        chunks = everything(self._stream, TICKS_TOPIC)
        found = [
            (p, o, n)
            for chunk in chunks
            for p, o, n in zip(chunk.partition.tolist(), chunk.offset.tolist(), chunk.batch["sequence"].to_pylist(), strict=True)
        ]
        numbers = Counter(number for _, _, number in found)
        twice, never = [n for n, times in numbers.items() if times > 1], sorted(set(range(self.count)) - set(numbers))
        totals = self._stream.totals("normalize")
        assert (twice, never) == ([], []), (
            f"of {self.count} ticks twice {twice[:40]}, never {never[:40]}, {len(found)} found, totals {totals}"
        )
        wanted: dict[str, list[int]] = {}
        for partition, number in places:
            wanted.setdefault(symbol(partition, number), []).append(number)
        order: dict[str, list[int]] = {}
        for chunk in chunks:
            for name, number in zip(chunk.batch["symbol"].to_pylist(), chunk.batch["sequence"].to_pylist(), strict=True):
                order.setdefault(name, []).append(number)
        assert order == wanted, "the order of each symbol"
        some = by_partition(everything(self._stream, BARS_TOPIC), "trades")
        assert sorted(n for part in some.values() for n in part) == list(range(0, self.count, 3))
        some = by_partition(everything(self._stream, REJECTED_TOPIC), "raw_offset")
        assert sorted(n for part in some.values() for n in part) == list(range(0, self.count, 5))
        rows = {"in": self.count, "ticks": self.count, "bars": -(-self.count // 3), "rejected": -(-self.count // 5)}
        assert self._stream.totals("normalize") == {name: value for name, value in rows.items() if value}
        return found
