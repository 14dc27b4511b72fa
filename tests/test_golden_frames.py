"""Every golden frame becomes exactly the rows written beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tapeline.providers.events import Decode
from tapeline.providers.normalizing import Normalized, normalize
from tapeline.providers.registry import DECODERS, PYTHON_DECODERS
from tapeline.records import BARS_TOPIC, NOTICES_TOPIC, RAW, RAW_TOPIC, REJECTED_TOPIC, TICKS_TOPIC, Chunk

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(FIXTURES.glob("*/*/*.frame"))


def raw_batch(provider: str, feed: str, frames: list[bytes], received_ns: int, kind: str = "frame") -> pa.RecordBatch:
    n = len(frames)
    columns = [pa.array([text] * n) for text in (provider, feed, "c1", kind)]
    return pa.record_batch([*columns, pa.array([received_ns] * n), pa.array(frames, pa.binary())], schema=RAW)


def rows(normalized: Normalized) -> dict[str, list[dict[str, Any]]]:
    named = {"ticks": TICKS_TOPIC, "bars": BARS_TOPIC, "notices": NOTICES_TOPIC, "rejected": REJECTED_TOPIC}
    return {name: normalized.batches[topic].to_pylist() for name, topic in named.items()}


@pytest.mark.parametrize("decoders", [DECODERS, PYTHON_DECODERS], ids=["core", "python"])
@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}-{path.stem}")
def test_a_golden_frame_becomes_the_rows_beside_it(case: Path, decoders: Mapping[str, Decode]) -> None:
    provider, feed = case.parent.parent.name, case.parent.name
    expected = json.loads(case.with_suffix(".json").read_text())
    batch = raw_batch(provider, feed, [case.read_bytes()], expected["received_ns"])

    normalized = normalize(Chunk.dense(RAW_TOPIC, 0, 0, batch), decoders)
    found = rows(normalized)

    for name in ("ticks", "bars"):
        wanted = [row | {"raw_partition": 0, "raw_offset": 0} for row in expected[name]]
        assert found[name] == wanted
    assert len(found["notices"]) == len(expected["notices"])
    for got, want in zip(found["notices"], expected["notices"], strict=True):
        if "detail_parsed" in want:
            assert json.loads(got.pop("detail")) == want.pop("detail_parsed")
        assert got == want | {"raw_partition": 0, "raw_offset": 0}
    assert len(found["rejected"]) == len(expected["rejected"]), found["rejected"]
    for got, want in zip(found["rejected"], expected["rejected"], strict=True):
        assert want.pop("reason_contains").lower() in got.pop("reason").lower()
        assert got.pop("payload") == base64.b64decode(want.pop("payload_base64"))
        assert got == want | {"raw_partition": 0, "raw_offset": 0}
    count = normalized.counts[provider, feed]
    assert count.seen == count.ticks + count.bars + count.notices + count.rejected == sum(map(len, found.values()))


def test_every_provider_feed_and_channel_has_a_golden_frame() -> None:
    from tapeline.providers.registry import CHANNELS

    seen = set()
    for case in CASES:
        expected = json.loads(case.with_suffix(".json").read_text())
        seen |= {(row["provider"], row["feed"], row["channel"]) for name in ("ticks", "bars") for row in expected[name]}
    seen_kinds = {(p, f, "kline" if c.startswith("kline_") else c) for p, f, c in seen}
    wanted = {
        (provider, feed, "kline" if channel.startswith("kline_") else channel)
        for provider, feeds in CHANNELS.items()
        for feed, channels in feeds.items()
        for channel in channels
    }
    # Alpaca's stock feeds are one market under several names, as are its option feeds: one of each shows the rest.
    same = {"delayed_sip": "sip", "test": "sip", "iex": "sip", "opra": "indicative"}
    merge = lambda keys: {(p, same.get(f, f), c) for p, f, c in keys}  # noqa: E731
    assert merge(wanted) - merge(seen_kinds) == set()
