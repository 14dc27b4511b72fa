"""A running pipeline as Prometheus sees it: every metric that is documented has data, and what is broken shows."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import urllib3
from processes import Home, block
from prometheus_client.parser import text_string_to_metric_families
from services.process import free_port

from tapeline.telemetry.families import FAMILIES
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from processes import SimulatorProcess
    from services.prometheus import Prometheus

#: The metrics that only a problem brings.
OF_PROBLEMS = {"tapeline_provider_errors_total", "tapeline_alert_active"}
#: Those of two lines that carry the same events: tests/pipeline/test_two_lines.py looks at them.
OF_TWO_LINES = {"tapeline_line_events_total", "tapeline_line_first_events_total", "tapeline_line_missed_events_total"}


@pytest.fixture
def listen() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def metrics(listen: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by their families; none while nobody answers."""
    try:
        text = urllib3.request("GET", f"http://{listen}/metrics", timeout=10.0, retries=False).data.decode()
    except urllib3.exceptions.HTTPError:
        return {}
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = [(dict(sample.labels), sample.value) for sample in family.samples]
    return found


def value(found: dict[str, list[tuple[dict[str, str], float]]], name: str, **labels: str) -> float | None:
    values = [number for has, number in found.get(name, ()) if labels.items() <= has.items()]
    return sum(values) if values else None


def answers(listen: str, path: str) -> int:
    try:
        return urllib3.request("GET", f"http://{listen}{path}", timeout=5.0, retries=False).status
    except urllib3.exceptions.HTTPError:
        return 0


def query(prometheus: Prometheus, text: str) -> list[tuple[dict[str, str], float]]:
    answer: dict[str, Any] = urllib3.request("POST", f"{prometheus.url}/api/v1/query", fields={"query": text}).json()
    assert answer["status"] == "success", answer
    return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]


def test_a_running_pipeline_has_every_metric_and_prometheus_reads_them(
    home: Home, simulator: Callable[..., SimulatorProcess], listen: str, own_prometheus: Callable[[str], Prometheus]
) -> None:
    market = simulator("binance", "--rate", "500")
    page = f'dashboard = {{ listen = "127.0.0.1:{free_port()}", run = true }}\n'
    settings = f'monitor.listen = "{listen}"\n{page}[[jobs]]\njob = "sync"\nevery = "1s"\n'
    home.env = {"TAPELINE_MONITOR__LISTEN": listen}
    home.configure(settings + block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "kline_1s"]), ledger=True)
    run = home.start("run")
    until(lambda: answers(listen, "/ready") == 200 or not run.running, "it is ready")
    assert run.running, run.said
    assert answers(listen, "/live") == 200
    prometheus = own_prometheus(listen)

    def missing() -> set[str]:
        return FAMILIES.keys() - OF_PROBLEMS - OF_TWO_LINES - {name for name, samples in metrics(listen).items() if samples}

    until(lambda: (home.lake / "ticks").exists(), "the lake has rows")
    assert home.ask("jobs", "run", "vacuum").returncode == 0
    with suppress(AssertionError):
        until(lambda: len(missing()) <= 0)
    assert missing() == set(), "every metric has data"
    assert metrics(listen).keys() <= FAMILIES.keys(), "each is in the reference"
    found = metrics(listen)
    assert {labels["stage"] for labels, _ in found["tapeline_up"]} == {
        *("ingest", "normalize", "lake", "ledger", "repair", "schedule", "dashboard", "run")
    }
    assert value(found, "tapeline_connected", provider="binance") == 1
    assert all(number == 1 for _, number in found["tapeline_balanced"])
    came_in = value(found, "tapeline_events_in_total", stage="normalize", of="binance/spot")
    assert came_in == value(found, "tapeline_events_out_total", stage="normalize", of="binance/spot")

    # Prometheus itself.
    assert until(lambda: query(prometheus, "up == 1"), "it scrapes")
    rate = until(lambda: query(prometheus, 'sum(rate(tapeline_events_in_total{stage="normalize"}[15s])) > 0'), "a rate")
    assert rate[0][1] > 50
    text = 'histogram_quantile(0.5, sum by (to) (rate(tapeline_pipeline_latency_seconds{to="stream"}[15s])))'
    native = until(lambda: query(prometheus, text), "a percentile of a native histogram")
    assert 0.0001 < native[0][1] < 60
    assert query(prometheus, "count(tapeline_lag_seconds) > 0")

    # A stage dies, and the provider goes away.
    home.kill("lake")
    until(lambda: (value(metrics(listen), "tapeline_restarts_total", stage="lake") or 0) >= 1, "the restart is counted")
    market.process.send(9)
    until(lambda: value(metrics(listen), "tapeline_connected", provider="binance") == 0, "the connection is gone")
    assert until(lambda: query(prometheus, "tapeline_connected == 0"), "Prometheus sees it, too")
    run.end()
    assert answers(listen, "/live") == 0


def test_a_stage_alone_answers_for_itself_and_the_next_one_after_it(
    home: Home, simulator: Callable[..., SimulatorProcess], listen: str
) -> None:
    market = simulator("binance", "--rate", "500")
    home.env = {"TAPELINE_MONITOR__LISTEN": listen}
    home.configure(block("binance", market.url, ["BTCUSDT"], ["trade"]))
    ingest = home.start("ingest")
    until(lambda: answers(listen, "/ready") == 200, "ingest answers")
    normalize = home.start("normalize")
    until(lambda: (value(metrics(listen), "tapeline_up", stage="normalize") or 0) == 1, "one answers for both")
    ingest.end()
    until(lambda: (value(metrics(listen), "tapeline_up", stage="ingest")) == 0, "the other takes over")
    assert answers(listen, "/ready") == 200
    assert time.time() - (value(metrics(listen), "tapeline_report_time_seconds", stage="normalize") or 0) < 30
    assert "cannot be used" not in normalize.said
    normalize.end()
