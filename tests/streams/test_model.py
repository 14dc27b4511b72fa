"""Any sequence of appends, reads, commits and returns of a member gives what a list in memory gives, on every stream."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from places import EVERY, Place, by_partition, everything

from made import raws, ticks
from proving import PROVE, proof
from tapeline.records import RAW_TOPIC, TICKS_TOPIC
from tapeline.streams.partitioning import partition_of

if TYPE_CHECKING:
    from tapeline.streams import Member, Stream


pytestmark = proof("streams")


class Model:
    """What should be there."""

    def __init__(self) -> None:
        self.raw: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
        self.ticks: dict[int, list[int]] = {0: [], 1: [], 2: []}
        self.read = {0: 0, 1: 0, 2: 0}
        self.totals = 0
        self.written = 0

    @property
    def left(self) -> int:
        return sum(len(self.raw[p]) - self.read[p] for p in self.raw)


def step(rng: random.Random, stream: Stream, member: Member, model: Model) -> None:
    """One thing that can be done, done to both."""
    what = rng.choice(["append", "append", "keyed", "poll", "poll", "poll", "look"])
    if what == "append":
        count, partition = rng.choice([1, 1, 2, 9]), rng.randrange(3)
        batch = raws(model.written, count, rng.randbytes(rng.choice([0, 10, 40_000])))
        stream.append(RAW_TOPIC, batch, partition)
        model.raw[partition] += batch["payload"].to_pylist()
        model.written += count
    elif what == "keyed":
        symbols = [rng.choice("abcdefgh") for _ in range(rng.choice([1, 5]))]
        stream.append(TICKS_TOPIC, ticks(*[{"symbol": symbol, "sequence": -1} for symbol in symbols]))
        for symbol in symbols:
            model.ticks[partition_of(symbol, 3)].append(-1)
    elif what == "look":
        at = {p: 0 for p in range(3) if rng.random() < 0.5}
        assert by_partition(everything(stream, RAW_TOPIC, at, rng.choice([1, 3, 1_000])), "payload") == {
            p: v for p, v in model.raw.items() if v
        }
    else:
        poll(rng, member, model, rng.choice([1, 3, 1_000]))


def poll(rng: random.Random, member: Member, model: Model, max_rows: int) -> None:
    """What a member gets is what comes next; committed, it is behind the group."""
    chunk = member.poll(max_rows)
    if chunk is None:
        return
    for partition, payloads in by_partition([chunk], "payload").items():
        at = model.read[partition]
        assert payloads == model.raw[partition][at : at + len(payloads)]
    rows = list(zip(chunk.partition.tolist(), chunk.batch["payload"].to_pylist(), strict=True))
    made = [{"symbol": rng.choice("abcdefgh"), "sequence": int(payload.split()[0])} for _, payload in rows]
    member.commit(chunk, [(TICKS_TOPIC, ticks(*made))], {"in": len(rows)})
    for partition, _ in rows:
        model.read[partition] += 1
    for row in made:
        model.ticks[partition_of(row["symbol"], 3)].append(row["sequence"])
    model.totals += len(rows)


@pytest.mark.parametrize("place", EVERY, indirect=True)
@pytest.mark.parametrize("seed", range(20 if PROVE else 2))
def test_any_sequence_of_steps_gives_what_a_list_gives(place: Place, seed: int) -> None:
    rng, model, stream = random.Random(seed), Model(), place.open()
    for _ in range(6 if PROVE else 2):
        member = stream.join("normalize", RAW_TOPIC, "the one")
        for _ in range(30):
            step(rng, stream, member, model)
        member.close()
    member = stream.join("normalize", RAW_TOPIC, "the one")
    while model.left:
        poll(rng, member, model, 1_000)
    member.close()
    assert by_partition(everything(stream, RAW_TOPIC), "payload") == {p: v for p, v in model.raw.items() if v}
    found = by_partition(everything(stream, TICKS_TOPIC), "sequence")
    for partition, numbers in model.ticks.items():  # two writers: each one's order holds
        kept = found.get(partition, [])
        assert [n for n in kept if n >= 0] == [n for n in numbers if n >= 0]
        assert sorted(kept) == sorted(numbers)
    assert stream.totals("normalize").get("in", 0) == model.totals
    assert not any(stream.lag(RAW_TOPIC, stream.positions("normalize", RAW_TOPIC)).values())
