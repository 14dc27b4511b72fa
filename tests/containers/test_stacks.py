"""The stacks of deploy/compose, brought up for real: every container is healthy, a crash loses nothing, and a stop is clean."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import urllib3
from services import kafka
from services.process import free_port
from stacks import Stack, build, stand_in

from brokers import need
from proving import proof
from tapeline.reading.sql import connect
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.docker import Engine

pytestmark = [proof("containers", quick=False), pytest.mark.timeout(3_600), pytest.mark.xdist_group("containers")]
_EVENT = "provider, channel, symbol, raw_partition, raw_offset, raw_index, ts_ns, trade_id, sequence"
STAGES = ("ingest", "normalize", "lake", "ledger", "repair", "schedule", "dashboard")
SIMULATORS = ("binance", "polygon", "alpaca")


def answer(port: int, path: str, token: str = "") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return urllib3.request("GET", f"http://127.0.0.1:{port}{path}", headers=headers, timeout=10.0, retries=False).status
    except urllib3.exceptions.HTTPError:
        return 0


def check_the_pages(full: Stack, ports: Mapping[str, int]) -> None:
    """Each page of the profile answers on loopback, and to nobody without its password."""
    token, password = ((full.folder / "secrets" / name).read_text() for name in ("dashboard_token", "prefect_password"))
    assert (answer(ports["DASHBOARD"], "/v1/health"), answer(ports["DASHBOARD"], "/v1/health", token)) == (401, 200)
    page = urllib3.request("GET", f"http://127.0.0.1:{ports['NEXTJS']}/", timeout=30.0).data.decode()
    assert token in page
    assert f"http://127.0.0.1:{ports['DASHBOARD']}" in page, "the page tells the browser where Tapeline is"
    prefect, known = f"http://127.0.0.1:{ports['PREFECT']}", urllib3.make_headers(basic_auth=f"tapeline:{password}")
    assert urllib3.request("POST", f"{prefect}/api/deployments/filter", json={}).status == 401
    jobs = urllib3.request("POST", f"{prefect}/api/deployments/filter", json={}, headers=known).json()
    assert {job["status"] for job in jobs} == {"READY"}
    assert urllib3.request("GET", f"{prefect}/ui-settings").json()["api_url"] == f"{prefect}/api"
    assert "<html" in urllib3.request("GET", prefect, headers={"Accept": "text/html"}).data.decode().lower()
    assert answer(ports["ALERTMANAGER"], "/-/ready") == 200
    assert answer(ports["GRAFANA"], "/overview.json") == 200, "Grafana can read the dashboards"


def read_by_prometheus(port: int, stages: set[str]) -> None:
    """Wait until Prometheus knows that these stages run."""
    asked, missing = {"query": "tapeline_up == 1"}, set(stages)

    def all_read() -> bool:
        found = urllib3.request("GET", f"http://127.0.0.1:{port}/api/v1/query", fields=asked).json()["data"]["result"]
        missing.clear()
        missing.update(stages - {one["metric"]["stage"] for one in found})
        return not missing

    try:
        until(all_read, "Prometheus reads every stage, and both workers")
    except AssertionError as failed:
        raise AssertionError(f"{failed}: it does not read {missing}") from None


def in_the_database(full: Stack) -> set[tuple[str, ...]]:
    """The ticks that PostgreSQL has, by what makes each of them one event."""
    asked = f"psql -h 127.0.0.1 -U tapeline -d tapeline -qAt -F , -c 'SELECT {_EVENT} FROM ticks'"
    text = full.compose("exec", "-T", "timescale", "sh", "-c", f'PGPASSWORD="$(cat /run/secrets/postgres_password)" {asked}')
    found = [tuple(line.split(",")) for line in text.splitlines()]
    assert len(found) == len(set(found)), "no event is there twice"
    return set(found)


def in_the_lake(full: Stack) -> set[tuple[str, ...]]:
    with closing(connect(full.volume("data") / "lake")) as db:
        return {tuple("" if value is None else str(value) for value in row) for row in db.execute(f"SELECT {_EVENT} FROM ticks").fetchall()}


def every_event_is_there(stack: Stack, service: str, *, cut: bool = False) -> None:
    """After the market has closed: each event that was sent is in the lake once, and the accounting balances. `cut`: see `compared`."""
    stack.halt()
    found = stack.settles(service, cut=cut)
    assert found.exact
    assert found.sent > 1_000
    status = stack.status(service)
    assert status["equations"]
    assert [one["text"] for one in status["equations"] if not one["balanced"]] == []


def every_row_was_sent(stack: Stack) -> int:
    """How many rows the lake has, none of them too many."""
    found = stack.compared()
    assert not found.extra, found.extra[:3]
    return found.kept


def rows(stack: Stack) -> int:
    try:
        return stack.compared().kept
    except Exception:  # noqa: BLE001 the lake is being made
        return 0


def test_light_is_one_container_that_loses_nothing_when_a_stage_is_killed(stack: Callable[..., Stack]) -> None:
    port = free_port()
    light = stack("light", {"DASHBOARD_PORT": str(port)})
    assert light.healthy()
    token = (light.folder / "secrets" / "dashboard_token").read_text()
    until(lambda: answer(port, "/v1/health", token) == 200, "the dashboard answers on loopback")
    assert answer(port, "/v1/health") == 401, "nobody gets in without the token"
    until(lambda: rows(light) > 500, "data arrives")
    for stage in ("normalize", "store lake"):
        light.kill("tapeline-1", stage)
    every_event_is_there(light, "tapeline")
    kept = rows(light)
    light.crash("tapeline-1")
    until(light.healthy, "it is healthy again")
    assert every_row_was_sent(light) >= kept
    assert light.stopped(["tapeline"]) == {"tapeline-1": 0}
    assert "everything received is in the stores" in light.compose("logs", "--no-color", "--tail", "20", "tapeline")


def test_redis_has_a_container_for_each_stage_and_loses_nothing_when_they_are_killed(stack: Callable[..., Stack], image: Engine) -> None:
    port = free_port()
    redis = stack("redis", stand_in(image, "redis") | {"DASHBOARD_PORT": str(port)})
    assert redis.healthy()
    redis.compose("stop", "repair")  # the history of a simulator has events that its sockets have not sent
    until(lambda: rows(redis) > 500, "data arrives")
    running = [f"{name}-1" for name in ("redis", *STAGES) if name != "repair"]
    for name in ("normalize-1", "redis-1", "lake-1"):
        redis.crash(name)
    until(lambda: redis.healthy(*running), "all are healthy again")
    every_event_is_there(redis, "dashboard")
    assert redis.stopped(STAGES) == {f"{name}-1": 0 for name in STAGES}


def test_full_has_kafka_a_database_and_whoever_watches_and_loses_nothing_when_they_are_killed(
    stack: Callable[..., Stack], image: Engine
) -> None:
    need(kafka)
    build(image, "tapeline-prefect", "tapeline-nextjs", **stand_in(image, "node"))
    ports = {name: free_port() for name in ("DASHBOARD", "PROMETHEUS", "ALERTMANAGER", "GRAFANA", "PREFECT", "NEXTJS")}
    servers = stand_in(image, "kafka", "timescale", "prometheus", "alertmanager", "grafana")
    full = stack("full", servers | {f"{name}_PORT": str(port) for name, port in ports.items()})
    assert full.healthy()
    check_the_pages(full, ports)
    every = {*STAGES, "normalize-2", "postgresql"}
    read_by_prometheus(ports["PROMETHEUS"], every)
    full.compose("stop", "repair")  # the history of a simulator has events that its sockets have not sent
    until(lambda: rows(full) > 500, "data arrives")
    running = [name for name in full.containers() if name != "repair-1"]
    for name in ("kafka-1", "normalize-1", "ingest-1", "timescale-1", "lake-1", "postgresql-1"):
        if name == "ingest-1":
            assert full.containers()[name]["RestartCount"] == 0, "ingest kept its connections while Kafka was away"
        full.crash(name)
        until(lambda name=name: full.healthy(name), f"{name} is healthy again")
    until(lambda: full.healthy(*running), "all are healthy again")
    assert "Fencing broker 1" in full.compose("logs", "--no-color", "kafka"), "the controller has noted the crash before the broker is back"
    read_by_prometheus(ports["PROMETHEUS"], every - {"repair"})
    every_event_is_there(full, "dashboard", cut=True)
    assert in_the_database(full) == in_the_lake(full)
    stages = {f"{name}-1" for name in (*STAGES, "postgresql")} | {"normalize-2"}
    assert full.stopped((*STAGES, "postgresql")) == dict.fromkeys(stages, 0)
