"""What was rejected is shown with its bytes, and goes through today's normalizer again exactly once, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from brokers import stream_block
from frames import golden, raw_batch
from proving import PROVE, proof
from tapeline.app.streams import open_stream
from tapeline.config import Config, StreamConfig
from tapeline.errors import Busy, ConfigError, Unavailable
from tapeline.jobs import rejects
from tapeline.jobs.rejects import Rejected, parse_id, rejected, retry
from tapeline.monitor.health import equations
from tapeline.providers.events import Reject
from tapeline.providers.registry import DECODERS, PYTHON_DECODERS, identity
from tapeline.reading import sql as query
from tapeline.records import NOTICES_TOPIC, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, TOPICS, Topic
from tapeline.stages.normalize import Normalize, run_normalize
from tapeline.stages.store import StoreWriter, Writing, run_store
from tapeline.stores.lake import Lake
from tapeline.streams.codecs import arrow
from tapeline.streams.shortening import length_before
from tapeline.telemetry.status import StatusFile
from waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tapeline.providers.events import Decode, Events
    from tapeline.streams import Stream

NOW_NS = 1_723_161_254_000_000_000
COMMAND = (sys.executable, "-m", "tapeline")


def broken(feed: str, frames: Iterable[tuple[int, bytes]], events: Events) -> None:
    """A decoder of yesterday that has a fault."""
    for _ in frames:
        raise ZeroDivisionError("yesterday's fault")


BROKEN: dict[str, Decode] = dict.fromkeys(DECODERS, broken)


def trade(number: int, price: str = "1.5") -> bytes:
    event = {"e": "trade", "s": "BTCUSDT", "t": number, "p": price, "q": "2", "T": NOW_NS // 10**6, "m": True}
    return json.dumps({"stream": "btcusdt@trade", "data": event}, separators=(",", ":")).encode()


class Pipeline:
    """A stream and a lake, whose stages run when a test says so."""

    def __init__(self, root: Path, stream: StreamConfig | None = None) -> None:
        self.root = root
        self.config = Config(data_dir=str(root), stream=stream or StreamConfig())
        self.stream: Stream = open_stream(self.config, {})
        self.lake = Lake(root / "lake", identity)

    def received(self, *payloads: bytes, provider: str = "binance", feed: str = "spot", partition: int = 0) -> None:
        self.stream.append(RAW_TOPIC, raw_batch(provider, feed, payloads, received_ns=NOW_NS), partition)

    def normalize(self, decoders: dict[str, Decode] | None = None) -> None:
        """Until nothing is left to read."""
        stop = threading.Event()
        stage = Normalize(self.stream, decoders or dict(DECODERS), StatusFile(self.root, "normalize"), name="test")
        deadline = time.monotonic() + PATIENCE_S
        while self._waits():
            assert time.monotonic() < deadline
            with suppress(Unavailable):
                stage.step()
        stop.set()
        run_normalize(stage, stop, Random(1))

    def _waits(self) -> bool:
        with suppress(Unavailable):  # a broker that has only just begun
            return any(self.stream.lag(RAW_TOPIC, self.stream.positions("normalize", RAW_TOPIC)).values())
        return True

    def keep(self) -> None:
        stop = threading.Event()
        stop.set()
        status = StatusFile(self.root, "lake")
        run_store(StoreWriter(self.stream, self.lake, Writing("lake", 10_000, 0.0), status, stop), stop, Random(1))

    def table(self, name: str) -> list[dict[str, Any]]:
        return query.find(self.root / "lake", name, "true", [])

    def rejected(self) -> list[Rejected]:
        return sorted(rejected(self.stream, self.table), key=lambda one: (one.received_ns, one.id))

    def retry(self, chosen: Callable[[Rejected], bool] = lambda _: True) -> list[str]:
        return list(retry(self.stream, self.table, chosen))

    def records(self, topic: Topic) -> list[dict[str, Any]]:
        """Everything in a topic."""
        at = dict.fromkeys(range(self.stream.partitions), 0)
        found: list[dict[str, Any]] = []
        while any(self.stream.lag(topic, at).values()):
            chunk = self.stream.read(topic, at, 10_000)
            if chunk is not None:
                at |= chunk.next
                found += chunk.batch.to_pylist()
        return found

    def sequences(self) -> list[int]:
        return sorted(row["sequence"] for row in self.records(TICKS_TOPIC))

    def balanced(self) -> None:
        found = equations(self.stream, {"lake": self.lake})
        assert found
        assert all(one.balanced for one in found), [str(one) for one in found]


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    found = Pipeline(tmp_path / "data", StreamConfig(partitions=2))
    with closing(found.stream):
        yield found


def test_what_was_rejected_is_listed_with_its_reason_and_its_bytes(pipeline: Pipeline) -> None:
    pipeline.received(trade(1), b"\xff no text", trade(2, "-1"))
    pipeline.received(b"[1]", provider="polygon", feed="stocks", partition=1)
    pipeline.normalize()
    found = {one.payload: one for one in pipeline.rejected()}
    assert found.keys() == {b"\xff no text", trade(2, "-1"), b"1"}
    assert "price" in found[trade(2, "-1")].reason
    assert found[b"1"].provider == "polygon"
    assert found[b"1"].id[0] == 1
    assert not any(one.retried for one in found.values())
    assert all(parse_id(one.name) == one.id for one in found.values())


def test_a_rejected_event_goes_through_today_s_normalizer_once_however_often_it_is_asked_for(pipeline: Pipeline) -> None:
    pipeline.received(trade(1), trade(2))
    pipeline.received(trade(3), partition=1)
    pipeline.normalize(BROKEN)
    assert pipeline.sequences() == []
    sent = pipeline.retry()
    assert len(sent) == 3
    assert pipeline.retry() == []  # while normalize has not seen them
    pipeline.normalize()
    assert pipeline.retry() == []  # once it has
    pipeline.keep()
    assert pipeline.retry() == []
    pipeline.normalize()
    pipeline.keep()
    assert pipeline.sequences() == [1, 2, 3]
    assert sorted(row["sequence"] for row in pipeline.table("ticks")) == [1, 2, 3]
    assert [one.retried for one in pipeline.rejected()] == [True] * 3
    assert sorted(json.loads(row["detail"])["of"] for row in pipeline.records(NOTICES_TOPIC)) == sorted(sent)
    ticks = pipeline.records(TICKS_TOPIC)
    assert {row["received_ns"] for row in ticks} == {NOW_NS}  # when it came, not when it was tried again
    pipeline.balanced()


def test_only_those_that_are_chosen_are_sent(pipeline: Pipeline) -> None:
    pipeline.received(trade(1), trade(2))
    pipeline.received(b"[1]", provider="polygon", feed="stocks")
    pipeline.normalize(BROKEN)
    (first, *_) = [one.name for one in pipeline.rejected() if one.payload == trade(1)]
    assert pipeline.retry(lambda one: one.name == first) == [first]
    pipeline.normalize()
    assert pipeline.sequences() == [1]
    assert pipeline.retry(lambda one: one.provider == "binance") != []
    pipeline.normalize()
    assert pipeline.sequences() == [1, 2]


def test_a_retried_event_that_is_rejected_again_is_a_new_one(pipeline: Pipeline) -> None:
    pipeline.received(trade(1, "-1"))
    pipeline.normalize(BROKEN)
    (first,) = pipeline.retry()
    pipeline.normalize()
    assert b"price" in asked(pipeline, "rejected", "list").stdout
    old, new = sorted(pipeline.rejected(), key=lambda one: one.retried, reverse=True)
    assert (old.name, old.retried) == (first, True)
    assert not new.retried
    assert new.payload == trade(1, "-1")
    assert "yesterday" in old.reason
    assert "price" in new.reason
    assert pipeline.retry() == [new.name]
    pipeline.normalize()
    assert len(pipeline.rejected()) == 3
    pipeline.keep()
    pipeline.balanced()


def test_retrying_while_normalize_is_at_it_doubles_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.received(trade(1))
    pipeline.normalize(BROKEN)
    pipeline.retry()
    # Normalize commits what was retried at each moment at which the second retry looks at something.
    other = open_stream(pipeline.config, {})
    for call in range(12):
        looks = 0
        with monkeypatch.context() as patch:
            for name in ("read", "positions", "ends", "tail_positions"):
                patch.setattr(other, name, _then(getattr(other, name), lambda at=call: due(at)))  # type: ignore[misc]

            def due(at: int) -> None:
                nonlocal looks
                looks += 1
                if looks == at + 1:
                    pipeline.normalize()

            assert [one.name for one in retry(other, pipeline.table, lambda one: b'"t":1,' in one.payload and not one.retried)] == []
        pipeline.normalize()
        assert pipeline.sequences() == [1] * (call + 1)
        pipeline.received(trade(1))
        pipeline.normalize(BROKEN)
        pipeline.retry()
    other.close()


def _then(call: Callable[..., Any], after: Callable[[], None]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        found = call(*arguments)
        after()
        return found

    return called


def test_two_at_the_same_time_are_not_allowed(pipeline: Pipeline) -> None:
    pipeline.received(trade(1))
    pipeline.normalize(BROKEN)
    other = open_stream(pipeline.config, {})
    with closing(other):

        def meanwhile(one: Rejected) -> bool:
            with pytest.raises(Busy, match="retry"):
                list(retry(other, pipeline.table, lambda _: True))
            return True

        assert len(list(retry(pipeline.stream, pipeline.table, meanwhile))) == 1
        assert list(retry(other, pipeline.table, lambda _: True)) == []


ARRAYS = [
    ("polygon", "stocks"),
    ("polygon", "crypto"),
    ("alpaca", "sip"),
    ("alpaca", "crypto"),
    ("alpaca", "opra"),
    ("alpaca", "indicative"),
]


@pytest.mark.parametrize(("provider", "feed"), ARRAYS)
def test_an_event_of_an_array_frame_is_retried_without_its_neighbors(provider: str, feed: str, pipeline: Pipeline) -> None:
    from frames import normalized, rows

    frames = [frame for frame in golden(provider, feed, bad=False) if len(rows(normalized(provider, feed, [frame]))["ticks"]) >= 2]
    if not frames:
        one = next(frame for frame in golden(provider, feed, bad=False) if rows(normalized(provider, feed, [frame]))["ticks"])
        codec: Any = msgspec.msgpack if one[:1] > b"\x7f" else msgspec.json
        elements = codec.decode(one, type=list[msgspec.Raw])
        frames = [codec.encode(elements + elements)]
    frame = frames[0]
    alone = rows(normalized(provider, feed, [frame]))["ticks"]

    def picky(feed: str, frames_: Iterable[tuple[int, bytes]], events: Events) -> None:
        """Yesterday's decoder did not know the first event of the frame."""
        PYTHON_DECODERS[provider](feed, frames_, events)  # type: ignore[arg-type]
        for channel, found in events.channels.items():
            if found.events:
                codec: Any = msgspec.msgpack if frame[:1] > b"\x7f" else msgspec.json
                elements = codec.decode(frame, type=list[msgspec.Raw])
                events.rejects.add(Reject("unknown event type", bytes(elements[found.index[0]])), found.row[0], found.index[0])
                del found.events[0], found.row[0], found.index[0]
                if not found.events:
                    del events.channels[channel]
                return

    pipeline.received(frame, provider=provider, feed=feed)
    pipeline.normalize({provider: picky})
    before = pipeline.records(TICKS_TOPIC)
    assert len(before) == len(alone) - 1
    assert len(pipeline.retry()) == 1
    pipeline.normalize()
    after = pipeline.records(TICKS_TOPIC)
    assert [row for row in after if row["raw_offset"] == before[0]["raw_offset"]] == before
    own = ("raw_offset", "raw_index", "raw_partition", "received_ns", "latency_ns")
    assert sorted(repr([row[name] for name in row if name not in own]) for row in after) == sorted(
        repr([row[name] for name in row if name not in own]) for row in alone
    )
    assert [one.retried for one in pipeline.rejected()] == [True]
    pipeline.keep()
    pipeline.balanced()


@pytest.mark.parametrize("space", [b" ", b"\n\t "])
def test_space_before_an_event_does_not_hide_that_it_is_one(space: bytes, pipeline: Pipeline) -> None:
    event = b'{"ev":"T","sym":"AAPL","x":4,"i":"12345","z":3,"p":114.125,"s":100,"c":[0],"t":1672515782143,"q":3681328}'
    unreadable = event.replace(b"114.125", b'"?"')
    frame = b"[" + space + event + space + b"," + space + unreadable + b"]"
    pipeline.received(frame, provider="polygon", feed="stocks")
    pipeline.normalize()
    assert len(pipeline.records(TICKS_TOPIC)) == 1
    (one,) = pipeline.rejected()
    assert one.payload.strip() == unreadable
    pipeline.retry()
    pipeline.normalize()
    again = [some for some in pipeline.rejected() if not some.retried]
    assert [some.reason for some in again] == [one.reason]


def test_a_whole_frame_that_no_array_was_found_in_is_retried_as_it_is(pipeline: Pipeline) -> None:
    frame = b'{"ev":"T","sym":"AAPL","x":4,"i":"12345","z":3,"p":114.125,"s":100,"c":[0],"t":1672515782143,"q":3681328}'
    pipeline.received(frame, provider="polygon", feed="stocks")
    pipeline.normalize()
    assert [one.payload for one in pipeline.rejected()] == [frame]
    pipeline.retry()
    pipeline.normalize()
    assert [(one.payload, one.retried) for one in pipeline.rejected()] == [(frame, True), (frame, False)]
    assert pipeline.records(TICKS_TOPIC) == []


def test_a_retried_event_that_turns_out_to_be_a_notice_has_an_id_of_its_own(pipeline: Pipeline) -> None:
    status = b'[{"ev":"status","status":"success","message":"subscribed to: T.AAPL"}]'
    pipeline.received(status, provider="polygon", feed="stocks")
    pipeline.normalize(BROKEN)
    pipeline.retry()
    pipeline.normalize()
    notices = pipeline.records(NOTICES_TOPIC)
    assert {row["kind"] for row in notices} > {"retried"}
    ids = [(row["raw_partition"], row["raw_offset"], row["raw_index"]) for row in notices]
    assert len(set(ids)) == len(ids)


#: As large as a message may be in the streams of these tests: the embedded one's real bound is a gigabyte.
BOUND = 2 * 1024 * 1024


def narrow(stream: Stream, *topics: Topic) -> None:
    """Let an embedded stream take, and give, no row of a table that is larger than the bound."""
    for topic in topics or TOPICS.values():
        stream._file(topic).db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, BOUND)  # type: ignore[attr-defined]  # of the embedded stream


def just_below(most: int, spare: int = 150) -> bytes:
    """A frame that is no JSON, random so that no compression makes it smaller; its raw record makes a message of nearly so many bytes."""
    beside = len(arrow.encode(raw_batch("binance", "spot", [os.urandom(most)]))) - most
    return os.urandom(most - beside - spare)


def test_a_frame_as_large_as_the_stream_takes_that_cannot_be_read_does_not_stop_the_worker(pipeline: Pipeline) -> None:
    narrow(pipeline.stream)
    frame = just_below(BOUND)
    pipeline.received(frame)
    pipeline.received(trade(1))
    pipeline.normalize()
    assert pipeline.sequences() == [1]
    (one,) = pipeline.rejected()
    assert frame.startswith(one.payload)
    assert 0.9 * BOUND < len(one.payload) < len(frame)
    assert f"{len(frame) - len(one.payload)} of {len(frame)} bytes are left out" in one.reason
    assert one.reason.startswith("JSON: ")
    pipeline.keep()
    pipeline.balanced()


def test_an_event_that_was_cut_is_retried_whole_or_not_at_all(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    narrow(pipeline.stream)
    space = b" " * (BOUND // 2)  # which compression makes small: the raw record is taken
    frame = trade(7)[:-1] + 3 * space + b"}"
    event = b'{"ev":"T","sym":"AAPL","x":4,"i":"12345","z":3,"p":114.125,' + 3 * space + b'"s":100,"c":[0],"t":1672515782143,"q":3681328}'
    pipeline.received(frame)
    pipeline.received(b"[%s,%s]" % (event, event), provider="polygon", feed="stocks", partition=1)
    pipeline.normalize({**BROKEN, "polygon": unknown_events})
    cut = pipeline.rejected()
    assert [length_before(one.reason) for one in cut] == [len(frame), len(event), len(event)]
    assert len(pipeline.retry()) == 3
    pipeline.normalize()
    ticks = pipeline.records(TICKS_TOPIC)
    assert sorted((row["symbol"], row["sequence"]) for row in ticks) == [("AAPL", 3681328)] * 2 + [("BTC/USDT", 7)]
    assert [row["payload"] for row in pipeline.records(RAW_TOPIC) if row["provider"] == "binance"][-1].endswith(frame)
    assert all(one.retried for one in pipeline.rejected())
    assert not caplog.messages or all("was not sent" not in said for said in caplog.messages)


def test_an_event_that_was_cut_and_is_gone_from_the_raw_topic_is_not_sent_and_that_is_said(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    narrow(pipeline.stream)
    pipeline.received(trade(7)[:-1] + b" " * 3 * BOUND + b"}")
    pipeline.normalize(BROKEN)
    (one,) = pipeline.rejected()
    pipeline.received(trade(8))
    pipeline.normalize()
    file: Any = pipeline.stream._file(RAW_TOPIC)  # type: ignore[attr-defined]  # of the embedded stream
    file.db.execute("DELETE FROM batches WHERE topic = ? AND first = ?", (RAW_TOPIC.name, one.id[1]))
    assert pipeline.retry() == []
    assert f"{one.name} was not sent" in caplog.text
    pipeline.normalize()
    assert pipeline.sequences() == [8]
    assert [some.retried for some in pipeline.rejected()] == [False]


def test_an_event_that_is_whole_and_too_large_to_be_sent_again_is_told_and_the_others_are_sent(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.received(just_below(BOUND), trade(1))
    pipeline.normalize(BROKEN)
    large, small = sorted(pipeline.rejected(), key=lambda one: len(one.payload), reverse=True)
    narrow(pipeline.stream, RAW_TOPIC)
    assert pipeline.retry() == [small.name]
    assert f"{large.name} was not sent" in caplog.text


def test_a_notice_whose_text_is_larger_than_the_stream_takes_does_not_stop_the_worker(pipeline: Pipeline) -> None:
    narrow(pipeline.stream)
    raw = raw_batch("binance", "spot", [b"\xff" * (BOUND // 2)], kind="closed", received_ns=NOW_NS)  # as text three times as long
    pipeline.stream.append(RAW_TOPIC, raw, 0)
    pipeline.received(trade(1))
    pipeline.normalize()
    assert pipeline.sequences() == [1]
    (notice,) = pipeline.records(NOTICES_TOPIC)
    assert json.loads(notice["detail"])["cut"] == {"bytes": 3 * (BOUND // 2), "partition": 0, "offset": notice["raw_offset"]}
    assert pipeline.rejected() == []


def test_a_retried_notice_of_another_program_hides_nothing(pipeline: Pipeline) -> None:
    for head in (b"\xff", b"[]", b'{"of":1}', b'{"of":"1"}', b"{}"):
        pipeline.stream.append(RAW_TOPIC, raw_batch("binance", "spot", [head + b"\n" + trade(1)], kind="retried"), 0)
    pipeline.received(b"?")
    assert pipeline.rejected() == []
    pipeline.normalize()
    assert [one.retried for one in pipeline.rejected()] == [False]


def unknown_events(feed: str, frames: Iterable[tuple[int, bytes]], events: Events) -> None:
    """A decoder of yesterday that knew none of the events."""
    del feed
    for row, frame in frames:
        for index, event in enumerate(msgspec.json.decode(frame, type=list[msgspec.Raw])):
            events.seen += 1
            events.rejects.add(Reject("unknown event type", bytes(event)), row, index)


@pytest.mark.parametrize(
    "text", ["", "1", "1-2", "1-2-3-4", "a-b-c", "-1-2-3", "1-2-", "1.0-2-3", "99999999999999999999-1-1", "0-9223372036854775808-0"]
)
def test_what_is_no_id_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match="partition-offset-index"):
        parse_id(text)


def asked(pipeline: Pipeline, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """`tapeline ARGUMENTS` on the pipeline's own stream and lake."""
    return subprocess.run(command(pipeline, *arguments), capture_output=True, env=environment(), check=False, timeout=60)


def command(pipeline: Pipeline, *arguments: str) -> list[str]:
    config = pipeline.root.with_suffix(".toml")
    config.write_text(f'data_dir = "{pipeline.root}"\n{stream_block(pipeline.config.stream)}')
    return [*COMMAND, *arguments, "--config", str(config)]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TAPELINE_")} | {"COLUMNS": "200"}


@pytest.fixture
def anywhere(request: pytest.FixtureRequest, shared: Callable[..., StreamConfig], tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline over the stream that the test's parameter names."""
    found = Pipeline(tmp_path / "data", shared(request.param, partitions=2))
    with closing(found.stream):
        yield found


@pytest.mark.parametrize("anywhere", ["embedded", "redis", "kafka"], indirect=True)
def test_the_commands_list_show_and_retry_on_every_stream(anywhere: Pipeline) -> None:
    anywhere.received(trade(1), trade(2), trade(3, "-1"))
    anywhere.received(b'[{"ev":"?","x":"\xff"}]', provider="polygon", feed="stocks", partition=1)
    anywhere.normalize(BROKEN)
    listed = asked(anywhere, "rejected", "list", "--format", "json")
    assert listed.returncode == 0, listed.stderr
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    known = {one.name: one for one in anywhere.rejected()}
    assert {row["id"]: row["reason"] for row in rows} == {name: one.reason for name, one in known.items()}
    assert {row["feed"] for row in rows} == {"binance/spot", "polygon/stocks"}
    for name, one in list(known.items())[-1:]:
        shown = asked(anywhere, "rejected", "show", name)
        assert (shown.returncode, shown.stdout) == (0, one.payload + b"\n")
        assert one.reason in shown.stderr.decode()

    binance = sorted(name for name, one in known.items() if one.provider == "binance")
    sent = asked(anywhere, "rejected", "retry", binance[0])
    assert (sent.returncode, sent.stdout.decode().split()) == (0, binance[:1]), sent.stderr
    sent = asked(anywhere, "rejected", "retry", "--provider", "binance")
    assert (sent.returncode, sent.stdout.decode().split()) == (0, binance[1:]), sent.stderr
    anywhere.normalize()
    sent = asked(anywhere, "rejected", "retry", "--reason", "yesterday")
    assert (sent.returncode, sent.stdout.decode().split()) == (0, sorted(known.keys() - binance)), sent.stderr
    sent = asked(anywhere, "rejected", "retry", "--reason", "yesterday")
    assert (sent.returncode, sent.stdout) == (0, b"")
    anywhere.normalize()
    anywhere.keep()
    assert anywhere.sequences() == [1, 2]
    again = [json.loads(line) for line in asked(anywhere, "rejected", "list", "--format", "json").stdout.splitlines()]
    assert len(again) == 2
    assert {row["id"] for row in again}.isdisjoint(known)
    everything = [json.loads(line) for line in asked(anywhere, "rejected", "list", "--all", "--format", "json").stdout.splitlines()]
    assert {row["id"] for row in everything if row["retried"]} == known.keys()
    assert asked(anywhere, "status", "--format", "json").returncode == 0
    anywhere.balanced()


def test_what_is_asked_for_wrongly_is_refused_with_a_word_on_it(pipeline: Pipeline) -> None:
    pipeline.received(trade(1))
    pipeline.normalize(BROKEN)
    there = json.loads(asked(pipeline, "rejected", "list", "--format", "json").stdout)["id"]
    for arguments, word in (
        (("show", "0-7-0"), "0-7-0"),
        (("show", "7"), "partition-offset-index"),
        (("retry", "0-7-0"), "0-7-0"),
        (("retry", there, "0-7-0"), "0-7-0"),
        (("retry", "x"), "partition-offset-index"),
        (("retry",), "--all"),
    ):
        found = asked(pipeline, "rejected", *arguments)
        assert (found.returncode, found.stdout) == (78, b""), arguments
        assert word in found.stderr.decode()
        assert "Traceback" not in found.stderr.decode()
    pipeline.normalize()
    assert pipeline.sequences() == []


def test_that_nothing_was_rejected_is_said_in_every_form(pipeline: Pipeline) -> None:
    pipeline.received(trade(1))
    pipeline.normalize()
    assert b"No rejected events" in asked(pipeline, "rejected", "list").stdout
    for form in ("json", "csv"):
        found = asked(pipeline, "rejected", "list", "--format", form)
        assert (found.returncode, b"Traceback" in found.stderr) == (0, False)
    assert asked(pipeline, "rejected", "list", "--format", "json").stdout == b""
    assert asked(pipeline, "rejected", "list", "--format", "csv").stdout.splitlines()[0].replace(b'"', b"") == b"id,received,feed,reason"


@proof("crashes")
@pytest.mark.parametrize("anywhere", ["embedded", "redis", *(["kafka"] if PROVE else [])], indirect=True)
def test_a_retry_that_is_killed_at_any_moment_and_done_again_doubles_nothing(anywhere: Pipeline) -> None:
    count = 400
    for partition in (0, 1):
        anywhere.received(*(trade(partition * count + number) for number in range(count)), partition=partition)
    anywhere.normalize(BROKEN)
    chance = Random(7)
    for _ in range(12 if PROVE else 4):
        process = subprocess.Popen(
            command(anywhere, "rejected", "retry", "--all"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
        time.sleep(chance.uniform(0.25, 1.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if chance.random() < 0.5:
            anywhere.normalize()
    deadline = time.monotonic() + PATIENCE_S
    while (done := asked(anywhere, "rejected", "retry", "--all")).returncode == Busy.exit_status:  # the killed one's lease
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert done.returncode == 0, done.stderr
    anywhere.normalize()
    anywhere.keep()
    assert anywhere.sequences() == list(range(2 * count))
    assert len(anywhere.records(REJECTED_TOPIC)) == 2 * count
    anywhere.balanced()


def test_what_is_sent_goes_in_batches_of_a_bound_and_what_comes_back_meanwhile_is_not_sent_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejects, "_BATCH_ROWS", 2)
    pipeline.received(*(trade(number) for number in range(1, 6)))
    pipeline.normalize(BROKEN)
    sent = []
    for name in retry(pipeline.stream, pipeline.table, lambda _: True):
        sent.append(name)
        pipeline.normalize(BROKEN)  # all of it is rejected again at once
        pipeline.keep()
    assert len(sent) == 5
    assert sorted(sent) == sorted(one.name for one in pipeline.rejected() if one.retried)
    assert len([one for one in pipeline.rejected() if not one.retried]) == 5
