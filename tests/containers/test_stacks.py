"""The stacks of deploy/compose, brought up for real: every container is healthy, a crash loses nothing, and a stop is clean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import urllib3
from services import kafka
from services.process import free_port
from stacks import Stack, build, stand_in

from brokers import need
from proving import proof
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.docker import Engine

pytestmark = [proof("containers", quick=False), pytest.mark.timeout(3_600), pytest.mark.xdist_group("containers")]
STAGES = ("ingest", "normalize", "lake", "ledger", "repair", "schedule", "dashboard")
SIMULATORS = ("binance", "polygon", "alpaca")


def answer(port: int, path: str, token: str = "") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return urllib3.request("GET", f"http://127.0.0.1:{port}{path}", headers=headers, timeout=10.0, retries=False).status
    except urllib3.exceptions.HTTPError:
        return 0


def every_event_is_there(stack: Stack, service: str) -> None:
    """After the market has closed: each event that was sent is in the lake once, and the accounting balances."""
    stack.halt()
    found = stack.settles(service)
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
    light = stack("light", variables={"DASHBOARD_PORT": str(port)})
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
    redis = stack("redis", variables={**stand_in(image, "redis"), "DASHBOARD_PORT": str(port)})
    assert redis.healthy()
    redis.compose("stop", "repair")  # the history of a simulator has events that its sockets have not sent
    until(lambda: rows(redis) > 500, "data arrives")
    running = [f"{name}-1" for name in ("redis", *STAGES) if name != "repair"]
    for name in ("normalize-1", "redis-1", "lake-1"):
        redis.crash(name)
    until(lambda: redis.healthy(*running), "all are healthy again")
    every_event_is_there(redis, "dashboard")
    assert redis.stopped(STAGES) == {f"{name}-1": 0 for name in STAGES}


def test_full_has_kafka_and_a_database_and_whoever_watches(stack: Callable[..., Stack], image: Engine) -> None:
    need(kafka)
    build(image, "tapeline-prefect")
    ports = {f"{name}_PORT": str(free_port()) for name in ("DASHBOARD", "PROMETHEUS", "ALERTMANAGER", "PREFECT")}
    images: dict[str, str] = {}
    for name in ("kafka", "timescale", "prometheus", "alertmanager"):
        images |= stand_in(image, name)
    started = (*STAGES, *SIMULATORS, "postgresql", "kafka", "timescale", "prometheus", "alertmanager", "prefect-server", "prefect")
    full = stack("full", started, {**images, **ports})
    assert full.healthy()
    full.compose("stop", "repair")
    until(lambda: rows(full) > 500, "data arrives")
    running = [name for name in full.containers() if name != "repair-1"]
    for name in ("normalize-1", "lake-1", "postgresql-1"):
        full.crash(name)
    until(lambda: full.healthy(*running), "all are healthy again")
    targets = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/api/v1/query?query=count(tapeline_up==1)"

    def reporting() -> int:
        result = urllib3.request("GET", targets, timeout=10.0).json()["data"]["result"]
        return int(result[0]["value"][1]) if result else 0

    until(lambda: reporting() == len(STAGES) + 1, "Prometheus reads every stage, and both workers")
    every_event_is_there(full, "dashboard")
    count = "psql -h 127.0.0.1 -U tapeline -d tapeline -Atc 'SELECT count(*) FROM ticks'"
    kept = full.compose("exec", "-T", "timescale", "sh", "-c", f'PGPASSWORD="$(cat /run/secrets/postgres_password)" {count}')
    ticks = sum(row["kept"] for row in full.compared().counts if row["kind"] in ("trade", "quote"))
    assert int(kept) == ticks, "the database has the same ticks as the lake"
    assert set(full.stopped((*STAGES, "postgresql")).values()) == {0}
