"""An audit names the raw frame, its connection, and where an event lies in each topic and each store, also when some of that is gone."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from frames import golden
from made import ticks
from proving import PROVE, proof
from tapeline.config import StreamConfig
from tapeline.reading import sql as query
from tapeline.reading.trace import Step, by_symbol, trace
from tapeline.records import NOTICES_TOPIC, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC
from tapeline.streams import Stream
from tapeline.streams.embedded import EmbeddedStream
from test_rejects import NOW_NS, Pipeline, asked, trade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    found = Pipeline(tmp_path / "data", StreamConfig(partitions=3))
    with closing(found.stream):
        yield found


def find(pipeline: Pipeline) -> Any:
    return lambda table, condition, values: query.find(pipeline.root / "lake", table, condition, values)


def way(pipeline: Pipeline, event: tuple[int, int, int]) -> list[Step]:
    return list(trace(pipeline.stream, {"lake": pipeline.lake}, find(pipeline), event))


def nth(pipeline: Pipeline, number: int, index: int = 0) -> tuple[int, int, int]:
    """The id of an event of the partition's first records."""
    raw = pipeline.stream.read(RAW_TOPIC, {}, 1_000)
    assert raw is not None
    return (0, int(raw.offset[raw.partition == 0][number]), index)


def ids(rows: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    return [(row["raw_partition"], row["raw_offset"], row["raw_index"]) for row in rows]


def test_each_place_on_the_way_of_each_event_is_named(pipeline: Pipeline) -> None:
    for partition in range(3):
        pipeline.received(*(trade(10 * partition + number) for number in range(3)), b"?", partition=partition)
    pipeline.received(*golden("polygon", "stocks", bad=False)[:6], provider="polygon", feed="stocks", partition=1)
    pipeline.normalize()
    pipeline.keep()
    looked = 0
    for topic in (TICKS_TOPIC, REJECTED_TOPIC, NOTICES_TOPIC):
        for row in pipeline.records(topic):
            event = ids([row])[0]
            steps = way(pipeline, event)
            by_place = {step.where.split(" ")[0] + " " + step.where.split(" ")[1]: step for step in steps}
            raw = by_place[f"{RAW_TOPIC.name} {event[0]}"]
            assert raw.where == f"{RAW_TOPIC.name} {event[0]} @ {event[1]}"
            assert raw.details["received_ns"] == row["received_ns"]
            assert "connection c1" in raw.found
            (place,) = [step for step in steps if step.where.startswith(topic.name)]
            assert place.details == row
            (kept,) = [step for step in steps if step.where == f"lake {topic.table}"]
            again = find(pipeline)(topic.table, "raw_partition = ? AND raw_offset = ? AND raw_index = ?", list(event))
            if again:
                assert kept.found == f"kept in {again[0]['filename']}"
                assert Path(again[0]["filename"]).exists()
            else:
                assert kept.found == "read, but not kept: the store already had an equal event"
            looked += bool(again)
    assert looked > 12


def test_the_frame_is_shown_byte_for_byte(pipeline: Pipeline) -> None:
    pipeline.received(trade(1), b"\xff\x00\x01")
    pipeline.normalize()
    assert way(pipeline, nth(pipeline, 0))[0].details["payload"] == trade(1).decode()
    shown = way(pipeline, nth(pipeline, 1))[0].details["payload"]
    assert base64.b64decode(shown.removeprefix("base64 ")) == b"\xff\x00\x01"


def test_a_store_that_has_not_read_it_yet_is_said_to_wait(pipeline: Pipeline) -> None:
    pipeline.received(trade(1))
    pipeline.normalize()
    (waits,) = [step.found for step in way(pipeline, nth(pipeline, 0)) if step.where == "lake ticks"]
    assert waits == "not yet read: it waits in the stream"
    pipeline.keep()
    (kept,) = [step.found for step in way(pipeline, nth(pipeline, 0)) if step.where == "lake ticks"]
    assert kept.startswith("kept in ")


def test_an_equal_event_that_the_store_dropped_is_said_to_have_been_there_before(pipeline: Pipeline) -> None:
    pipeline.received(trade(1))
    pipeline.normalize()
    pipeline.keep()
    pipeline.received(trade(1), partition=1)
    pipeline.normalize()
    pipeline.keep()
    first, again = sorted(ids(pipeline.records(TICKS_TOPIC)))
    assert [step.found for step in way(pipeline, again) if step.where == "lake ticks"] == [
        "read, but not kept: the store already had an equal event"
    ]
    assert next(step.found for step in way(pipeline, first) if step.where == "lake ticks").startswith("kept in ")


def test_what_retention_has_removed_is_said_to_be_gone_and_the_lake_still_tells(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "data")
    pipeline.received(trade(1))
    pipeline.normalize()
    pipeline.keep()
    first = nth(pipeline, 0)
    pipeline.stream.close()
    for file in (tmp_path / "data" / "stream").iterdir():
        file.unlink()
    pipeline = Pipeline(tmp_path / "data")
    with closing(pipeline.stream):
        raw, *rest = way(pipeline, first)
        assert "retention has removed it" in raw.found
        assert [step.where for step in rest] == [TICKS_TOPIC.name, "lake ticks"]
        assert rest[0].found == "no longer in the stream"
        assert rest[1].details["sequence"] == 1


@pytest.mark.parametrize("others", [0, 1, 2_500, 60_000])
def test_an_event_is_found_however_much_of_other_connections_lies_around_it(others: int, tmp_path: Path) -> None:
    with closing(EmbeddedStream(tmp_path / "stream", 1)) as stream:
        number = 0
        rare = []
        for _ in range(3):
            stream.append(TICKS_TOPIC, ticks(*({"raw_offset": number + at} for at in range(others))))
            number += others
            rare.append((1, 5 + len(rare), 0))
            stream.append(TICKS_TOPIC, ticks({"raw_partition": 1, "raw_offset": rare[-1][1]}))
        for event in [*rare, *([(0, 0, 0), (0, number - 1, 0), (0, number // 2, 0)] if others else [])]:
            steps = list(trace(stream, {}, lambda *_: [], event))
            (found,) = [step for step in steps if step.where.startswith(TICKS_TOPIC.name)]
            assert ids([found.details]) == [event]


def test_records_that_arrive_elsewhere_meanwhile_hide_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.received(trade(1))
    pipeline.normalize()
    busy = 0
    read = pipeline.stream.read

    def reading(topic: Any, positions: Any, max_rows: int) -> Any:
        """What comes first is often of another partition, as on a stream whose partitions are fetched apart."""
        nonlocal busy
        chunk = read(topic, positions, max_rows)
        if topic is RAW_TOPIC and busy < 3:
            busy += 1
            pipeline.received(trade(100 + busy), partition=2)
            return read(topic, {**pipeline.stream.ends(topic), 2: positions[2]}, max_rows)
        return chunk

    event = nth(pipeline, 0)
    monkeypatch.setattr(pipeline.stream, "read", reading)
    raw, *_ = way(pipeline, event)
    assert busy == 3
    assert raw.details["payload"] == trade(1).decode()


def test_events_are_found_by_symbol_and_time_the_nearest_before_it_where_none_is_at_it(pipeline: Pipeline) -> None:
    pipeline.received(trade(1), trade(2))
    pipeline.normalize()
    pipeline.keep()
    ms = NOW_NS // 10**6 * 10**6
    assert sorted(by_symbol(find(pipeline), "BTC/USDT", ms)) == [nth(pipeline, 0), nth(pipeline, 1)]
    assert sorted(by_symbol(find(pipeline), "BTC/USDT", ms + 10**9)) == [nth(pipeline, 0), nth(pipeline, 1)]
    assert by_symbol(find(pipeline), "BTC/USDT", ms - 1) == []
    assert by_symbol(find(pipeline), "ETH/USDT", ms) == []


@pytest.fixture
def anywhere(request: pytest.FixtureRequest, shared: Callable[..., StreamConfig], tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline over the stream that the test's parameter names."""
    found = Pipeline(tmp_path / "data", shared(request.param, partitions=2))
    with closing(found.stream):
        yield found


def raw_places(stream: Stream) -> list[tuple[int, int, bytes]]:
    """Partition, offset and payload of every raw record; Kafka may give them in several readings."""
    found: list[tuple[int, int, bytes]] = []
    at: dict[int, int] = {}
    while (chunk := stream.read(RAW_TOPIC, at, 100)) is not None:
        at |= chunk.next
        found += zip(chunk.partition.tolist(), chunk.offset.tolist(), chunk.batch["payload"].to_pylist(), strict=True)
    return found


@proof("streams")
@pytest.mark.parametrize("anywhere", ["embedded", "redis", *(["kafka"] if PROVE else [])], indirect=True)
def test_the_command_tells_the_way_of_ticks_bars_and_rejects_on_every_stream(anywhere: Pipeline) -> None:
    anywhere.received(*(trade(number) for number in range(5)), b"?")
    bars = b'[{"ev":"AM","sym":"AAPL","v":10,"av":20,"vw":1,"o":1,"c":2,"h":3,"l":1,"a":1,"z":1,"s":1672515780000,"e":1672515840000}]'
    anywhere.received(bars, provider="polygon", feed="stocks", partition=1)
    anywhere.normalize()
    anywhere.keep()
    at = {row["payload"]: ids([row])[0] for row in anywhere.records(REJECTED_TOPIC)}
    tick = next(row for row in anywhere.records(TICKS_TOPIC) if row["sequence"] == 3)
    events = [(ids([tick])[0], "normalized", "ticks"), (at[b"?"], "rejected", "rejected")]
    places = raw_places(anywhere.stream)
    bar = next((partition, offset, 0) for partition, offset, payload in places if payload == bars)
    events.append((bar, "bars", "bars"))
    for event, topic, table in events:
        name = "-".join(map(str, event))
        told = asked(anywhere, "audit", name, "--format", "json")
        assert told.returncode == 0, told.stderr
        found = json.loads(told.stdout)
        assert found["id"] == name
        raw, place, kept = found["steps"]
        assert raw["where"] == f"{RAW_TOPIC.name} {event[0]} @ {event[1]}"
        assert place["where"].startswith(f"market-data.{topic} ")
        assert tuple(place["record"][part] for part in ("raw_partition", "raw_offset", "raw_index")) == event
        assert kept["where"] == f"lake {table}"
        assert kept["found"].startswith("kept in ")
    by_time = asked(anywhere, "audit", "--symbol", "BTC/USDT", "--time", str(tick["ts_ns"]), "--format", "json")
    assert {json.loads(line)["id"] for line in by_time.stdout.splitlines()} == {
        "-".join(map(str, one)) for one in ids(anywhere.records(TICKS_TOPIC))
    }
    assert b"BTC/USDT" in asked(anywhere, "audit", "-".join(map(str, events[0][0]))).stdout


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (("x",), 78, "partition-offset-index"),
        (("0-99999999999999999999-0",), 78, "partition-offset-index"),
        (("9-0-0",), 78, "9-0-0"),
        (("0-7-0",), 78, "0-7-0"),
        (("--symbol", "BTC/USDT"), 78, "--time"),
        ((), 78, "--symbol"),
        (("--symbol", "NO/NE", "--time", "2024-03-15T12:00:00Z"), 78, "NO/NE"),
        (("--symbol", "BTC/USDT", "--time", "noon"), 78, "noon"),
    ],
)
def test_a_wrong_question_is_answered_with_what_is_wrong(arguments: tuple[str, ...], status: int, word: str, pipeline: Pipeline) -> None:
    pipeline.received(trade(1))
    pipeline.normalize()
    pipeline.keep()
    found = asked(pipeline, "audit", *arguments)
    assert (found.returncode, found.stdout) == (status, b""), found.stderr
    assert word in found.stderr.decode()
    assert "Traceback" not in found.stderr.decode()


def test_an_event_that_the_frame_does_not_hold_is_said_to_be_in_no_topic(pipeline: Pipeline) -> None:
    pipeline.received(trade(1))
    pipeline.normalize()
    steps = way(pipeline, nth(pipeline, 0, 5))
    assert "no topic has event 5" in steps[-1].found
    pipeline.received(trade(2))
    steps = way(pipeline, nth(pipeline, 1))
    assert "not yet read" in steps[-1].found
