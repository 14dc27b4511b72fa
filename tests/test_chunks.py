"""A chunk knows where each of its records is, and which positions it stands for, however it is joined, cut and filtered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from made import raws
from tapeline.records import RAW_TOPIC, Chunk

#: Of reads that follow one another: the partition, how many offsets it jumps first, and how many records it finds.
READS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 0, 1, 1 << 30]), st.integers(1, 5)), min_size=1, max_size=8)


def read(reads: list[tuple[int, int, int]]) -> list[Chunk]:
    """Chunks as a stream gives them; the payload of each record is its partition and offset."""
    at: dict[int, int] = {}
    found = []
    for partition, jump, rows in reads:
        begin = at.get(partition, 0)
        dense = Chunk.dense(RAW_TOPIC, partition, begin + jump, raws(begin + jump, rows, b"%d" % partition))
        found.append(Chunk(RAW_TOPIC, dense.batch, dense.partition, dense.offset, {partition: begin}, dense.next))
        at[partition] = begin + jump + rows
    return found


def places(chunk: Chunk) -> list[tuple[int, int]]:
    """Where its records are, which their payloads confirm."""
    found = list(zip(chunk.partition.tolist(), chunk.offset.tolist(), strict=True))
    assert chunk.batch["payload"].to_pylist() == [b"%d %d" % (offset, partition) for partition, offset in found]
    assert chunk.rows == len(found)
    return found


@given(READS)
def test_joined_chunks_stand_for_all_that_they_were_read_from(reads: list[tuple[int, int, int]]) -> None:
    chunks = read(reads)
    joined = Chunk.join(chunks)
    assert places(joined) == [place for chunk in chunks for place in places(chunk)]
    partitions = {partition for partition, _, _ in reads}
    assert joined.begin == dict.fromkeys(partitions, 0)
    assert joined.next == {partition: max(at for p, at in places(joined) if p == partition) + 1 for partition in partitions}


@given(READS, st.dictionaries(st.integers(0, 3), st.integers(0, 12) | st.integers(1 << 30, (1 << 30) + 12)))
def test_what_lies_before_given_positions_is_left_out_and_nothing_else(
    reads: list[tuple[int, int, int]], positions: dict[int, int]
) -> None:
    chunk = Chunk.join(read(reads))
    rest = chunk.after(positions)
    assert places(rest) == [(partition, at) for partition, at in places(chunk) if at >= positions.get(partition, 0)]
    assert rest.begin == {partition: max(at, positions.get(partition, 0)) for partition, at in chunk.begin.items()}
    assert rest.next == {partition: max(at, positions.get(partition, 0)) for partition, at in chunk.next.items()}
    assert chunk.after(chunk.next).rows == 0
    assert places(chunk.after({})) == places(chunk)


@given(READS, st.integers(0, 40), st.integers(0, 40))
def test_a_slice_holds_its_rows_and_the_positions_of_the_whole(reads: list[tuple[int, int, int]], first: int, end: int) -> None:
    chunk = Chunk.join(read(reads))
    first, end = sorted((min(first, chunk.rows), min(end, chunk.rows)))
    part = chunk.slice(first, end)
    assert places(part) == places(chunk)[first:end]
    assert (part.begin, part.next) == (chunk.begin, chunk.next)
