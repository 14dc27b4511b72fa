"""The dashboard's page while the live feed waits for the stream: it is said, with what to do, and it is over when the stream is back."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from pages import picture
from playwright.sync_api import expect
from processes import block
from watched import start
from websockets.sync.client import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Page
    from processes import Home, Spawner
    from services.redis import RedisServer
    from watched import Live

WELL = re.compile("^All is well")
WAITS = "The live feed waits for the stream. "


@pytest.fixture
def broker(own_redis: Callable[..., RedisServer]) -> RedisServer:
    return own_redis()


@pytest.fixture
def live(tmp_path_factory: pytest.TempPathFactory, spawn: Spawner, broker: RedisServer) -> Iterator[Live]:
    def configure(home: Home, url: str) -> None:
        home.configure(f'[stream]\nurl = "{broker.url}"\n' + block("binance", url, ["BTCUSDT", "ETHUSDT"], ["trade"]))

    return start(tmp_path_factory.mktemp("live"), spawn, configure, "--rate", "60")


def problems(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in message["verdict"]["problems"] if one["text"].startswith(WAITS)]


def test_the_live_feed_that_waits_for_its_stream_says_so_and_goes_on(
    live: Live, broker: RedisServer, open_page: Callable[..., Page]
) -> None:
    page = open_page()
    verdict, listed = page.get_by_role("heading", level=1), page.locator("#well .problems")
    expect(verdict).to_have_text(WELL)
    with connect(f"{live.url.replace('http', 'ws')}/v1/stream?symbols=BTC/USDT&kinds=ticks,health", max_size=None) as client:

        def until(true: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
            """The messages up to the first for which it is true."""
            found = []
            while not (found and true(found[-1])):
                found.append(json.loads(client.recv(60.0)))
            return found

        got = until(lambda message: message["kind"] == "ticks")
        broker.stop()
        got += until(lambda message: message["kind"] == "health" and bool(problems(message)))
        (said,) = problems(got[-1])
        assert said["state"] == "problem"
        assert broker.address in said["text"], "it says what cannot be reached"
        assert said["remedy"].startswith("Start the stream")
        assert int(said["since_ns"]) <= int(got[-1]["at_ns"])
        assert live.get("/v1/health")["verdict"]["state"] != "well"
        expect(listed).to_contain_text(WAITS)
        expect(listed).to_contain_text("Start the stream, if it is down.")
        page.get_by_role("button", name=re.compile("^What to do: The live feed waits")).click()
        expect(page.get_by_role("dialog").get_by_role("heading", level=2)).to_have_text("What to do: The live feed waits")
        page.keyboard.press("Escape")
        picture(page, "waits")

        broker.start()
        got += until(lambda message: message["kind"] == "health" and not problems(message))
        got += until(lambda message: message["kind"] == "ticks")
        expect(listed.filter(has_text=WAITS)).to_have_count(0)
        expect(verdict).to_have_text(WELL)
        got += until(lambda message: message["kind"] == "health" and message["verdict"]["state"] == "well")
    ids = [row["id"] for message in got if message["kind"] == "ticks" for row in message["rows"]]
    assert len(ids) == len(set(ids)), "nothing comes twice"
    numbers = [int(row["trade_id"]) for message in got if message["kind"] == "ticks" for row in message["rows"]]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "and nothing is missing"
