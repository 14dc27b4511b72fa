"""The stacks of deploy/compose, brought up for real: every container is healthy, a crash loses nothing, and a stop is clean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import urllib3
from services.process import free_port
from stacks import Stack, stand_in

from proving import proof
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.docker import Engine

pytestmark = [proof("containers", quick=False), pytest.mark.timeout(3_600), pytest.mark.xdist_group("containers")]
STAGES = ("ingest", "normalize", "lake", "ledger", "repair", "schedule", "dashboard")


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
