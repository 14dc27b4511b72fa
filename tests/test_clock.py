"""The wall clock is held against time itself: each leap is told once, and what is slewed or late is none."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from frames import raw_batch
from tapeline.local.clock import ClockWatch, Leap
from tapeline.providers.registry import DECODERS
from tapeline.records import NS_PER_MS, NS_PER_S, RAW_TOPIC
from tapeline.stages.normalize import Normalize
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry.status import StatusFile, read_status

NOW = 1_795_879_970 * NS_PER_S


@pytest.mark.parametrize("by_s", [172_800, 2, -2, -172_800])
def test_a_leap_is_told_once_with_what_the_clock_said_before_and_after(by_s: int) -> None:
    times = [NOW, 5 * NS_PER_S]
    watch = ClockWatch(lambda: times[0], lambda: times[1])
    times[:] = [NOW + NS_PER_S, 6 * NS_PER_S]
    assert watch.look() is None
    times[:] = [NOW + (2 + by_s) * NS_PER_S, 7 * NS_PER_S]
    assert watch.look() == Leap(NOW + NS_PER_S, NOW + (2 + by_s) * NS_PER_S, by_s * NS_PER_S)
    times[:] = [NOW + (3 + by_s) * NS_PER_S, 8 * NS_PER_S]
    assert watch.look() is None


def test_a_late_look_and_a_clock_that_is_slewed_are_no_leaps() -> None:
    times = [NOW, 0]
    watch = ClockWatch(lambda: times[0], lambda: times[1])
    for seconds in (1, 60, 3_600):
        times[:] = [times[0] + int(seconds * 1.0002 * NS_PER_S), times[1] + seconds * NS_PER_S]
        assert watch.look() is None


def test_a_leap_says_what_it_was() -> None:
    assert str(Leap(NOW, NOW, 172_800 * NS_PER_S)) == "the clock leapt ahead by 172,800.0 s"
    assert str(Leap(NOW, NOW, -2 * NS_PER_S)) == "the clock was set back by 2.0 s"


@pytest.mark.parametrize(("age_s", "off_s"), [(0.2, None), (-5, -5.0), (5, 5.0), (900, None)], ids=["right", "behind", "ahead", "delayed"])
def test_the_youngest_tick_tells_how_far_the_clock_is_from_the_provider_s(age_s: float, off_s: float | None, tmp_path: Path) -> None:
    event = '{"stream":"btcusdt@trade","data":{"e":"trade","E":1,"s":"BTCUSDT","t":%d,"p":"1","q":"1","T":%d,"m":true,"M":true}}'
    with closing(EmbeddedStream(tmp_path / "stream")) as stream:
        for number in range(3):
            frame = (event % (number, NOW // NS_PER_MS)).encode()
            stream.append(RAW_TOPIC, raw_batch("binance", "spot", [frame], received_ns=NOW + int((age_s + number) * NS_PER_S)))
        stage = Normalize(stream, DECODERS, StatusFile(tmp_path, "normalize"))
        while stage.step():
            continue
        stage.finish()
    assert read_status(tmp_path)["normalize"]["providers"]["binance"]["clock_off_s"] == off_s
