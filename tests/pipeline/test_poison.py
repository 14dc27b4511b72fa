"""A record that no decoder can take is rejected alone; the pipeline goes on, whatever the bytes."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from tapeline.errors import Unavailable
from tapeline.local.locks import own
from tapeline.providers.events import Reject
from tapeline.providers.registry import DECODERS, identity
from tapeline.records import NORMALIZED_TOPICS, NS_PER_S, RAW, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC
from tapeline.stages.normalize import Normalize, run_normalize
from tapeline.stages.store import StoreWriter, Writing, run_store
from tapeline.stores.lake import Lake
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry.status import StatusFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tapeline.providers.events import Decode, Events

NOW_NS = 1_723_161_254 * NS_PER_S
DEEP = b'{"stream":"btcusdt@trade","data":{"e":"trade","x":' + b"[" * 100_000


def trade(number: int) -> bytes:
    event = {"e": "trade", "s": "BTCUSDT", "t": number, "p": "1.5", "q": "2", "T": NOW_NS // 10**6, "m": True}
    return json.dumps({"stream": "btcusdt@trade", "data": event}, separators=(",", ":")).encode()


def raw(payloads: Sequence[bytes], provider: str = "binance", feed: str = "spot") -> pa.RecordBatch:
    rows = len(payloads)
    values = [[provider] * rows, [feed] * rows, ["c"] * rows, ["frame"] * rows, [NOW_NS] * rows, payloads]
    return pa.RecordBatch.from_arrays([pa.array(v, f.type) for v, f in zip(values, RAW, strict=True)], schema=RAW)


def interpreted(stream: EmbeddedStream, root: Path, decoders: dict[str, Decode] | None = None) -> None:
    stop = threading.Event()
    stop.set()
    run_normalize(Normalize(stream, decoders or dict(DECODERS), StatusFile(root, "normalize")), stop, Random(1))


def rejected(stream: EmbeddedStream) -> list[dict[str, object]]:
    chunk = stream.read(REJECTED_TOPIC, {0: 0}, 100_000)
    return chunk.batch.to_pylist() if chunk is not None else []


@pytest.mark.parametrize(("provider", "feed"), [("binance", "spot"), ("polygon", "stocks"), ("alpaca", "iex"), ("alpaca", "opra")])
@pytest.mark.parametrize("poison", [b"[" * 100_000, b'{"a":' * 100_000, b'[{"T":"t","x":' + b"[" * 100_000, b"\x91" * 100_000])
def test_a_frame_nested_too_deeply_is_rejected_alone(provider: str, feed: str, poison: bytes, tmp_path: Path) -> None:
    with closing(EmbeddedStream(tmp_path / "stream")) as stream:
        stream.append(RAW_TOPIC, raw([poison, DEEP], provider, feed))
        interpreted(stream, tmp_path)
        assert [row["payload"] for row in rejected(stream)] == [poison, DEEP]
        totals = stream.totals("normalize")
        assert totals[f"{provider}/{feed}/seen"] == totals[f"{provider}/{feed}/rejected"] == 2


def test_the_neighbors_of_a_poisonous_record_are_unharmed(tmp_path: Path) -> None:
    payloads = [trade(number) for number in range(100)]
    for place in (0, 17, 50, 99):
        payloads[place] = DEEP
    with closing(EmbeddedStream(tmp_path / "stream")) as stream:
        stream.append(RAW_TOPIC, raw(payloads))
        interpreted(stream, tmp_path)
        chunk = stream.read(TICKS_TOPIC, {0: 0}, 1000)
        assert chunk is not None
        assert chunk.batch["sequence"].to_pylist() == [n for n in range(100) if n not in (0, 17, 50, 99)]
        assert chunk.batch["raw_offset"].to_pylist() == chunk.batch["sequence"].to_pylist()
        assert [row["raw_offset"] for row in rejected(stream)] == [0, 17, 50, 99]
        assert all(row["reason"] for row in rejected(stream))
        totals = stream.totals("normalize")
        assert (totals["binance/spot/seen"], totals["binance/spot/ticks"], totals["binance/spot/rejected"]) == (100, 96, 4)


def test_whatever_error_a_decoder_makes_one_record_is_set_aside(tmp_path: Path) -> None:
    def careless(feed: str, frames: Iterable[tuple[int, bytes]], events: Events) -> None:
        for row, frame in frames:
            if b'"t":7,' in frame:
                raise ZeroDivisionError("seven")
            events.seen += 1
            events.rejects.add(Reject("known", frame), row, 0)

    with closing(EmbeddedStream(tmp_path / "stream")) as stream:
        stream.append(RAW_TOPIC, raw([trade(number) for number in range(10)]))
        interpreted(stream, tmp_path, {"binance": careless})
        reasons = [row["reason"] for row in rejected(stream)]
        assert reasons == ["known"] * 7 + ["the decoder failed: ZeroDivisionError: seven"] + ["known"] * 2


class FailsAfterCommit(Lake):
    """A lake whose writes go through although they say that they did not."""

    failures = 0

    def _commit(self, *arguments: object) -> None:
        super()._commit(*arguments)  # type: ignore[arg-type]
        if self.failures:
            self.failures -= 1
            raise OSError("the answer was lost")


def test_a_commit_that_went_through_without_an_answer_is_not_done_again(tmp_path: Path) -> None:
    lake = FailsAfterCommit(tmp_path / "lake", identity)
    with closing(EmbeddedStream(tmp_path / "stream")) as stream:
        stream.append(RAW_TOPIC, raw([trade(1), b"?", trade(2), b"!"]))
        interpreted(stream, tmp_path)
        stop = threading.Event()
        keep = StoreWriter(stream, lake, Writing("lake", 1000, 0.0), StatusFile(tmp_path, "lake"), stop)
        lake.failures = 1
        with pytest.raises(Unavailable):
            keep.step()
        stop.set()
        run_store(keep, stop, Random(1))
        for topic in NORMALIZED_TOPICS:
            totals = lake.totals(topic)
            assert totals.positions.get(0, 0) == totals.read == totals.rows + totals.duplicates == stream.ends(topic)[0]
            assert totals.duplicates == 0


def test_memory_that_runs_out_rejects_no_record_and_is_not_hidden(tmp_path: Path) -> None:
    def hungry(feed: str, frames: Iterable[tuple[int, bytes]], events: Events) -> None:
        raise MemoryError

    with closing(EmbeddedStream(tmp_path / "stream")) as stream:
        stream.append(RAW_TOPIC, raw([trade(1), trade(2)]))
        with pytest.raises(MemoryError):
            interpreted(stream, tmp_path, {"binance": hungry})
        assert rejected(stream) == []
        assert stream.positions("normalize", RAW_TOPIC) == {0: 0}, "the records wait for the next one"


def test_a_data_folder_that_is_made_is_nobody_else_s(tmp_path: Path) -> None:
    with own(tmp_path / "data" / "locks" / "x", "a test"):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
