"""What Prometheus reads: the same numbers in each form, from what the processes say in their status files."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from set_clock import SetClock
from tapeline.app.overview import Overview
from tapeline.config import Config
from tapeline.errors import Unavailable
from tapeline.local.machine import process_space
from tapeline.monitor.metrics import exposed, series_of
from tapeline.monitor.server import MonitorServer
from tapeline.net.rate_limit import RateLimiter, counted
from tapeline.records import NS_PER_MS, NS_PER_S
from tapeline.streams.embedded import EmbeddedStream
from tapeline.telemetry import families
from tapeline.telemetry.families import FAMILIES
from tapeline.telemetry.latencies import BOUNDS_S, SCHEMA, Latencies
from tapeline.telemetry.status import StatusFile
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = 1_710_504_000 * NS_PER_S
ODD = 'a "quoted" \\ name\nof two lines, ünicode'


# Latencies.


def latencies(*ns: int) -> Latencies:
    made = Latencies(SetClock(NOW))
    made.add(np.array(ns, np.int64))
    return made


@given(st.lists(st.integers(-(10**9), 10**14), min_size=1, max_size=200))
def test_every_latency_is_in_one_bucket_of_each_kind_and_lies_within_its_bounds(ns: list[int]) -> None:
    found = latencies(*ns).since_start()
    real = [max(1, one) for one in ns]
    assert found["sum_s"] == pytest.approx(sum(real) / NS_PER_S)
    below = np.cumsum(found["classic"])
    for bound, count in zip(BOUNDS_S, below, strict=False):
        assert count == sum(one <= bound * NS_PER_S for one in real)
    assert below[-1] == len(real) == sum(count for _, count in found["native"])
    for number, count in found["native"]:
        least, most = 2.0 ** ((number - 1) / 2**SCHEMA), 2.0 ** (number / 2**SCHEMA)
        inside = [one for one in real if least * (1 - 1e-9) < one / NS_PER_S <= most * (1 + 1e-9)]
        assert len(inside) >= count or max(real) / NS_PER_S > 2.0**14


@given(st.lists(st.integers(1_000, 10**10), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_percentile_is_at_most_a_bucket_too_high(ns: list[int], quantile: float) -> None:
    exact = sorted(ns)[max(0, math.ceil(quantile * len(ns)) - 1)]
    found = latencies(*ns).ms(quantile)
    assert found is not None
    assert exact * (1 - 1e-9) <= found * NS_PER_MS <= exact * 2.0 ** (1 / 2**SCHEMA) * (1 + 1e-9)


def test_percentiles_are_of_the_last_seconds_and_the_counts_of_all_time() -> None:
    clock = SetClock(NOW)
    made = Latencies(clock)
    for second in range(60):
        clock.ns = NOW + second * NS_PER_S
        made.add(np.array([NS_PER_S if second < 30 else NS_PER_MS]))
        made.ms(0.5)
    assert made.ms(1.0) == pytest.approx(1.0, rel=0.05)
    assert sum(made.since_start()["classic"]) == 60
    assert Latencies(clock).ms(0.5) is None


# The three forms.


def status(stage: str, *samples: families.Sample, pid: int | None = None, space: str | None = None, age_s: float = 0.0) -> dict[str, Any]:
    return {
        "stage": stage,
        "pid": os.getpid() if pid is None else pid,
        "space": process_space() if space is None else space,
        "started_ns": NOW - 60 * NS_PER_S,
        "updated_ns": NOW - int(age_s * NS_PER_S),
        "metrics": json.loads(json.dumps(samples)),
    }


STATUSES = {
    "ingest": status("ingest", families.FRAMES.at(12, "binance", "spot", ODD), families.CONNECTED.at(1, "binance", "spot", ODD)),
    "normalize": status("normalize", families.PIPELINE.at(latencies(400_000, 7 * NS_PER_MS).since_start(), "binance", "stream")),
    "run": status("run", families.BALANCED.at(1.0, "lake", "ticks"), ("tapeline_of_the_future", (), 1.0)),
    "lake": status("lake", families.STORED.at(99, "ticks"), pid=0x3FFFFFF),
}


def test_a_sample_has_the_stage_that_reported_it_and_a_dead_process_only_says_that_it_is_down() -> None:
    found = series_of(STATUSES, NOW)
    by_name = {family.name: [(dict(one.labels), one.value) for one in some] for family, some in found.items()}
    assert by_name["tapeline_frames_total"] == [({"stage": "ingest", "provider": "binance", "feed": "spot", "connection": ODD}, 12)]
    assert by_name["tapeline_balanced"] == [({"stage": "lake", "of": "ticks"}, 1.0)]
    assert [(labels["stage"], value) for labels, value in by_name["tapeline_up"]] == [
        ("ingest", 1.0),
        ("normalize", 1.0),
        ("run", 1.0),
        ("lake", 0.0),
    ]
    assert "tapeline_stored_rows_total" not in by_name


def numbers(parsed: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in parsed for sample in family.samples}


def test_text_and_openmetrics_say_the_same() -> None:
    found = series_of(STATUSES, NOW)
    text, media_type = exposed(found, "")
    assert media_type.startswith("text/plain; version=0.0.4")
    newer, newer_type = exposed(found, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert newer_type.startswith("application/openmetrics-text; version=1.0.0")
    read = numbers(plain(text.decode()))
    assert read == numbers(openmetrics(newer.decode()))
    labels = {"stage": "normalize", "provider": "binance", "to": "stream"}
    for bound, count in (("0.0005", 1), ("0.005", 1), ("0.01", 2), ("+Inf", 2)):
        assert read["tapeline_pipeline_latency_seconds_bucket", frozenset({**labels, "le": bound}.items())] == count
    assert read["tapeline_pipeline_latency_seconds_sum", frozenset(labels.items())] == pytest.approx(0.0074)


def test_every_metric_follows_the_conventions_of_prometheus() -> None:
    for name, family in FAMILIES.items():
        assert name == family.name
        assert name.startswith("tapeline_")
        assert name.endswith("_total") == (family.kind == "counter"), name
        assert family.meaning.endswith("."), name
        assert "symbol" not in family.labels, "a symbol is data"
        assert family.kind != "histogram" or name.endswith("_seconds"), name


# The server.


@pytest.fixture
def listen() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def serve(listen: str) -> Iterator[Callable[..., MonitorServer]]:
    started: list[MonitorServer] = []

    def start(root: Path, *stages: str) -> MonitorServer:
        server = MonitorServer(listen, root, frozenset(stages), time.time_ns)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


def get(listen: str, path: str, method: str = "GET", **headers: str) -> urllib3.BaseHTTPResponse:
    def answer() -> urllib3.BaseHTTPResponse | None:
        try:
            return urllib3.request(method, f"http://{listen}{path}", headers=headers, retries=False, timeout=10.0)
        except urllib3.exceptions.HTTPError:
            return None

    found = until(answer, f"{listen} answers {path}")
    assert found is not None
    return found


def test_the_server_answers_with_the_metrics_and_says_what_is_silent(
    listen: str, serve: Callable[..., MonitorServer], tmp_path: Path
) -> None:
    StatusFile(tmp_path, "ingest").write({"metrics": [families.RECORDED.at(7)]})
    serve(tmp_path, "ingest", "normalize")
    text = get(listen, "/metrics").data.decode()
    assert 'tapeline_raw_records_total{stage="ingest"} 7.0' in text
    assert 'tapeline_resident_memory_bytes{stage="ingest"}' in text
    assert 'tapeline_build_info{python="' in text
    ready = get(listen, "/ready")
    assert (ready.status, ready.json()) == (503, {"silent": ["normalize"]})
    StatusFile(tmp_path, "normalize").write({})
    assert (get(listen, "/ready").status, get(listen, "/live").status) == (200, 200)
    assert get(listen, "/metrics", "HEAD").data == b""
    assert get(listen, "/metrics", "POST").status == 405
    assert get(listen, "/").status == 404
    assert get(listen, "/metrics", Accept="application/openmetrics-text; version=1.0.0").data.endswith(b"# EOF\n")


def test_a_server_that_is_stopped_at_once_stops(listen: str, tmp_path: Path) -> None:
    for _ in range(20):
        server = MonitorServer(listen, tmp_path, frozenset(), time.time_ns)
        server.start()
        server.stop()


def test_an_answer_is_counted_and_a_full_disk_does_not_cost_it(tmp_path: Path) -> None:
    limiter = RateLimiter(100, tmp_path / "quota.json")
    for status, waited_s in (("200", 0.5), ("200", 0.25), ("429", 0.0)):
        limiter.answered(status, waited_s)
    assert counted(tmp_path / "quota.json") == ({"200": 2, "429": 1}, 0.75)
    (tmp_path / "file").touch()
    RateLimiter(100, tmp_path / "file" / "quota.json").answered("200", 0.0)
    assert counted(tmp_path / "file" / "quota.json") == ({}, 0.0)


def test_what_cannot_be_looked_up_is_left_out_and_the_time_of_the_last_look_grows_old(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, away = SetClock(NOW), set[str]()

    def look(name: str, family: families.Family) -> Callable[..., list[families.Sample]]:
        def found(*_: object) -> list[families.Sample]:
            if name in away:
                raise Unavailable("It is away.")
            return [family.at(clock.ns)]

        return found

    monkeypatch.setattr(Overview, "_look", look("stream", families.DISK_FREE))
    monkeypatch.setattr(Overview, "_look_slowly", look("ledger", families.PASSED_OVER))
    overview = Overview(Config(data_dir=str(tmp_path)), EmbeddedStream(tmp_path / "stream", 1), {}, clock)

    def seen(after_s: int) -> tuple[set[str], float]:
        clock.ns += after_s * NS_PER_S
        values = {name: value for name, _, value in overview.samples()}
        looked = values.pop(families.LOOKED.name)
        assert isinstance(looked, float)
        return set(values), looked - NOW / NS_PER_S

    fast, slow = families.DISK_FREE.name, families.PASSED_OVER.name
    assert seen(0) == ({fast, slow}, 0)
    away.add("ledger")
    assert seen(100) == ({fast}, 0)
    away.add("stream")
    assert seen(5) == (set(), 0)
    away.clear()
    assert seen(4) == (set(), 0), "it looks again after five seconds"
    assert seen(1) == ({fast, slow}, 110)


def test_what_another_container_says_in_the_same_folder_is_its_own_to_answer(
    listen: str, serve: Callable[..., MonitorServer], tmp_path: Path
) -> None:
    StatusFile(tmp_path, "ingest").write({})
    other = status("lake", families.STORED.at(1, "ticks"), space="another container")
    (tmp_path / "status" / "lake.json").write_text(json.dumps(other))
    serve(tmp_path, "ingest")
    assert "lake" not in get(listen, "/metrics").data.decode()


def test_the_next_process_takes_the_address_over(
    listen: str, serve: Callable[..., MonitorServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tapeline.monitor.server._AGAIN_S", 0.05)
    StatusFile(tmp_path, "ingest").write({})
    first = serve(tmp_path, "ingest")
    assert get(listen, "/live").status == 200
    serve(tmp_path, "other")
    stranger = tmp_path / "elsewhere"
    serve(stranger, "ingest")
    until(lambda: "cannot be used for /metrics" in caplog.text, "the one of another data folder says so")
    assert caplog.text.count("cannot be used for /metrics") == 1, "the other of the same folder need not"
    first.stop()
    assert get(listen, "/live").status == 503, "one of the others answers, and its own stage has not reported"
