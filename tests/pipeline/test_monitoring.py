"""A running pipeline as those see it who watch it from outside: every metric and every panel has data, and what is broken shows."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import urllib3
from processes import Home, block
from services.process import free_port
from services.prometheus import scraping
from watchers import Dashboards, Webhook, metrics, query, shipped_routes, shipped_rules, value

from proving import PROVE, proof
from tapeline.telemetry.families import FAMILIES
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from processes import SimulatorProcess
    from services.alertmanager import Alertmanager
    from services.prometheus import Prometheus

#: The metrics and the panels that only a problem brings.
OF_PROBLEMS = {"tapeline_provider_errors_total"}
#: Those of two lines that carry the same events: tests/pipeline/test_two_lines.py looks at them.
OF_TWO_LINES = {"tapeline_line_events_total", "tapeline_line_first_events_total", "tapeline_line_missed_events_total"}
PANELS_OF_TWO_LINES = {"ingest: First", "ingest: Missed"}
PANELS_OF_PROBLEMS = {"ingest: Errors of providers"}
#: Yesterday is not complete: there is nothing of it.
PROMISE = '[[sla]]\nname = "yesterday"\ncheck = "completeness"\nby = "00:00"\n'


@pytest.fixture
def listen() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as listening:
        yield listening


def answers(listen: str, path: str) -> int:
    try:
        return urllib3.request("GET", f"http://{listen}{path}", timeout=5.0, retries=False).status
    except urllib3.exceptions.HTTPError:
        return 0


def everything_is_reported(home: Home, listen: str) -> None:
    def missing() -> set[str]:
        return FAMILIES.keys() - OF_PROBLEMS - OF_TWO_LINES - {name for name, samples in metrics(listen).items() if samples}

    until(lambda: (home.lake / "ticks").exists(), "the lake has rows")
    assert home.ask("jobs", "run", "check_lake").returncode == 0
    with suppress(AssertionError):
        until(lambda: not missing())
    assert missing() == set(), "every metric has data"
    found = metrics(listen)
    assert found.keys() <= FAMILIES.keys(), "each is in the reference"
    assert {labels["stage"] for labels, _ in found["tapeline_up"]} == {
        *("ingest", "normalize", "lake", "ledger", "repair", "schedule", "dashboard", "run")
    }
    assert value(found, "tapeline_connected", provider="binance") == 1
    assert all(number == 1 for _, number in found["tapeline_balanced"])
    came_in = value(found, "tapeline_events_in_total", stage="normalize", of="binance/spot")
    assert came_in == value(found, "tapeline_events_out_total", stage="normalize", of="binance/spot")


def native_histograms_are_read(prometheus: Prometheus) -> None:
    rate = until(lambda: query(prometheus, 'sum(rate(tapeline_events_in_total{stage="normalize"}[15s])) > 0'), "a rate")
    assert rate[0][1] > 50
    text = 'histogram_quantile(0.5, sum by (to) (rate(tapeline_pipeline_latency_seconds{to="stream"}[15s])))'
    native = until(lambda: query(prometheus, text), "a percentile of a native histogram")
    assert 0.0001 < native[0][1] < 60


def every_panel_has_data(dashboards: Dashboards, but: set[str]) -> None:
    """Each query of each panel brings series, whose names in the legend are those of labels that they have."""

    def empty() -> list[str]:
        return sorted(str(one) for one, found in dashboards.answers() if not found and str(one) not in but)

    with suppress(AssertionError):
        until(lambda: not empty())
    assert empty() == []
    for one, found in dashboards.answers():
        names = set(re.findall(r"{{(\w+)}}", one.legend))
        assert all(labels.keys() >= names for labels, _ in found), f"{one}: {one.legend}"


def firing(prometheus: Prometheus) -> set[str]:
    return {labels["alertname"] for labels, _ in query(prometheus, 'ALERTS{alertstate="firing"}')}


@proof("timeouts")
def test_who_watches_a_running_pipeline_sees_everything_and_is_told_of_what_breaks(
    home: Home,
    simulator: Callable[..., SimulatorProcess],
    listen: str,
    own_prometheus: Callable[..., Prometheus],
    own_alertmanager: Callable[..., Alertmanager],
    webhook: Webhook,
    tmp_path: Path,
) -> None:
    market = simulator("binance", "--rate", "500", "--port", str(free_port()))
    page = f'dashboard = {{ listen = "127.0.0.1:{free_port()}", run = true }}\n'
    settings = f'monitor.listen = "{listen}"\n{page}[[jobs]]\njob = "sync"\nevery = "1s"\n{PROMISE}'
    home.env = {"TAPELINE_MONITOR__LISTEN": listen}
    home.configure(settings + block("binance", market.url, ["BTCUSDT", "ETHUSDT"], ["trade", "kline_1s"]), ledger=True)
    run = home.start("run")
    alertmanager = own_alertmanager(shipped_routes(webhook.url, at_once=not PROVE))
    until(lambda: answers(listen, "/ready") == 200 or not run.running, "it is ready")
    assert run.running, run.said
    assert answers(listen, "/live") == 200
    native = own_prometheus(scraping(listen), native=True)
    prometheus = own_prometheus(shipped_rules(tmp_path / "rules", listen, alertmanager.address))
    everything_is_reported(home, listen)
    native_histograms_are_read(native)
    every_panel_has_data(Dashboards(prometheus), PANELS_OF_PROBLEMS | PANELS_OF_TWO_LINES)
    day = until(lambda: webhook.last("TapelineDayIncomplete"), "somebody is told that yesterday is not complete")
    assert day["labels"]["alert"] == "yesterday"
    assert not firing(prometheus) & {"TapelineStageDown", "TapelineUnbalanced", "TapelineDisconnected", "TapelineStale"}
    what_breaks_shows(home, prometheus, webhook, market)
    assert value(metrics(listen), "tapeline_connected", provider="binance") == 0
    what_is_whole_again_shows(prometheus, webhook, simulator, market)
    until(lambda: Dashboards(prometheus).level("jobs: Failed") > 0, "the job that was killed shows")
    every_panel_has_data(Dashboards(prometheus), PANELS_OF_TWO_LINES)
    run.end()
    assert answers(listen, "/live") == 0
    until(lambda: "TapelineAbsent" in firing(prometheus), "a pipeline that is gone is missed")
    assert Dashboards(prometheus).shown("overview: Processes down") == [], "nobody says that all is well"


@contextmanager
def held(pid: int) -> Iterator[None]:
    """A process that hangs meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def what_breaks_shows(home: Home, prometheus: Prometheus, webhook: Webhook, market: SimulatorProcess) -> None:
    """A job and a stage are killed, another stage hangs, and the provider dies: the panels show it, and somebody is told."""
    dashboards = Dashboards(prometheus)
    os.kill(home.word("schedule")["running"]["sync"], signal.SIGKILL)
    home.kill("lake")
    until(lambda: dashboards.level("overview: Restarts") > 0, "the restart shows")
    with held(until(lambda: home.pid("ledger"), "the ledger runs")):
        until(lambda: dashboards.level("completeness: Lag of the ledger") > 3, "the lag shows")
        until(lambda: dashboards.level("overview: Lag") > 3, "it is in the overview")
        until(lambda: dashboards.level("overview: Longest silence") > 3, "so is the silence")
    market.process.send(signal.SIGKILL)
    until(lambda: webhook.last("TapelineDisconnected").get("status") == "firing", "somebody is told")
    told = webhook.last("TapelineDisconnected")
    assert told["labels"]["provider"] == "binance"
    assert told["labels"]["severity"] == "critical"
    assert told["annotations"] == {"summary": "No connection to binance spot is open.", "runbook": "alerts.md#freshness"}

    def named() -> set[str]:
        return {labels["alertname"] for labels, _ in dashboards.shown("overview: Alerts that fire")}

    until(lambda: "TapelineDisconnected" in named(), "the table names it")
    until(lambda: dashboards.level("overview: Alerts") >= 1, "it is counted")
    until(lambda: dashboards.level("ingest: Connections") == 0, "the connection is closed")
    until(lambda: dashboards.level("ingest: Frames") == 0, "nothing comes in")
    until(lambda: dashboards.level("ingest: Time since the last data") > 3, "for how long shows")


def what_is_whole_again_shows(
    prometheus: Prometheus, webhook: Webhook, simulator: Callable[..., SimulatorProcess], market: SimulatorProcess
) -> None:
    """The provider comes back, and refuses once: that shows too, and the alert is over."""
    dashboards = Dashboards(prometheus)
    simulator("binance", "--rate", "500", "--port", str(urllib3.util.parse_url(market.url).port), "--fault", "auth_refused:1")
    until(lambda: dashboards.level("ingest: Connections") == 1, "the connection is open again")
    refused = until(lambda: dashboards.shown("ingest: Errors of providers"), "the refusal shows")
    assert "403" in {labels["code"] for labels, _ in refused}
    until(lambda: webhook.last("TapelineDisconnected")["status"] == "resolved", "somebody is told that it is over")


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
    assert value(metrics(listen), "tapeline_balanced", stage="normalize") is None, "a stage does not look at the others"
    dashboard = home.start("dashboard", "--listen", f"127.0.0.1:{free_port()}")
    until(lambda: value(metrics(listen), "tapeline_balanced", stage="normalize") == 1, "the dashboard looks, as no `tapeline run` does")
    dashboard.end()
    normalize.end()
